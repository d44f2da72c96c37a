"""The table of the isolation benchmark, and its goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.isolation.plan import (
    BASELINE,
    MAXIMUM_RATIO,
    MISBEHAVIOURS,
    P99_RATIO,
    RSS_GROWTH_BYTES,
)
from benchmarks.isolation.run import STREAMS

_TEXT = {each.name: each.text for each in MISBEHAVIOURS} | {BASELINE: "seven well-behaved hosts", "all": "all of these"}


def _cell(stream: dict[str, Any], scenario: str) -> str:
    if not stream["commands"]:
        return "-"
    text = f"{stream['p99_us']:,.0f}/{stream['max_us']:,.0f}"
    if scenario == BASELINE:
        return text
    p99, most = stream["p99_ratio"], stream["max_ratio"]
    return f"{text} {p99:.1f}x{'!' * (p99 > P99_RATIO)} {most:.1f}x{'!' * (most > MAXIMUM_RATIO)}"


def print_results(console: Console, results: Sequence[dict[str, Any]]) -> None:
    """A line per build and scenario."""
    table = Table(
        title="Isolation: p99/maximum of the eighth host in us, and their ratios to the baseline", title_justify="left"
    )
    table.add_column("build")
    table.add_column("the other seven")
    for column in (*STREAMS, "dropped", "busy", "RSS MiB", "+MiB"):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(
            r["build"],
            _TEXT[r["scenario"]],
            *(_cell(r["streams"][name], r["scenario"]) for name in STREAMS),
            f"{r['dropped']}/{r['windows']}",
            f"{r['busy']:.2f}",
            f"{r['rss_bytes'] >> 20:,}",
            f"{r['rss_growth_bytes'] >> 20:,}",
        )
    console.print(table)
    for r in results:
        for error in dict.fromkeys(r["errors"]):
            console.print(f"{r['build']}, {_TEXT[r['scenario']]}: {error}", markup=False, highlight=False)
    for goal in check_goals(results):
        verdict = "[green]pass[/]" if goal["reached"] else "[red]FAIL[/]"
        console.print(f"{verdict}  {goal['goal']}", highlight=False)
    if not all(r["realtime"] for r in results):
        console.print("The measured host was not given real-time priority: its latencies contain waits for its core.")


def check_goals(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A goal per scenario of this build: ratios, answers, memory."""
    return [
        {
            "goal": f"isolation, {_TEXT[r['scenario']]}: p99 within {P99_RATIO:g} x, "
            f"maximum within {MAXIMUM_RATIO:g} x, memory within {RSS_GROWTH_BYTES >> 20} MiB",
            "reached": r["reached"],
            "value": max((each["p99_ratio"] for each in r["streams"].values()), default=0.0),
            "noisy": r["dropped"] * 2 > r["windows"],
        }
        for r in results
        if r["scenario"] != BASELINE and r["build"] == "this"
    ]
