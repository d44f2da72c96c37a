"""What is printed, and what is kept: tables for a reader, JSON for a comparison."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")


def commit() -> str | None:
    """The checkout's commit, with a plus sign when files differ from it; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def save(report: dict[str, Any], output: Path | None) -> Path:
    """Write the report, by default to benchmarks/results under the time of day; returns where."""
    if output is None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        output = RESULTS / f"run-{time.strftime('%Y%m%d-%H%M%S')}.json"
    output.write_text(json.dumps(report, indent=1) + "\n")
    return output


def print_environment(console: Console, environment: dict[str, Any]) -> None:
    console.print(
        f"{environment['python']}, {environment['loop']}; Linux {environment['kernel']}; "
        f"{environment['cpu_model']}, {environment['cpus']} CPUs; load {environment['load_average'][0]}",
        highlight=False,
    )


def print_codec(console: Console, results: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Codecs, ns per record (best of several rounds)", title_justify="left")
    table.add_column("record")
    for column in ("bytes", "construct", "derived", "bare struct", "construct/derived"):
        table.add_column(column, justify="right")
    for r in results:
        gain = r["construct_ns"] / r["derived_ns"]
        figures = (f"{r[key]:,.0f}" for key in ("construct_ns", "derived_ns", "struct_ns"))
        table.add_row(r["name"], str(r["bytes"]), *figures, f"{gain:.0f} x")
    console.print(table)


def print_connection(console: Console, results: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Connection without sockets, batches of 32 commands of 4 KiB", title_justify="left")
    table.add_column("what")
    for column in ("ns per command", "median"):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(r["name"], f"{r['best_ns']:,.0f}", f"{r['median_ns']:,.0f}")
    console.print(table)


def _digests(r: dict[str, Any]) -> str:
    return "on" if r["header_digest"] and r["data_digest"] else "off"


def _bound(side: dict[str, Any]) -> str:
    return f"{side['server_busy']:.2f}"


def _loopback_row(r: dict[str, Any]) -> list[str]:
    ours, bare = r["target"], r["floor"]
    what = f"{r['op']} {r['block_size_bytes'] // 1024}k d{r['depth']}"
    conditions = [r["protocol"], _digests(r), {True: "yes", False: "no", None: "-"}[r["success_flag"]]]
    if r["storage"] != "ramdisk":
        what += f" {r['storage']}"
    return [
        what + (" ~" if r["noisy"] else ""),
        *conditions,
        f"{ours['iops']:,.0f}",
        f"{ours['mb_per_s']:,.0f}",
        f"{ours['p50_us']:.0f}/{ours['p99_us']:.0f}",
        f"{ours['user_us']:.2f}+{ours['system_us']:.2f}",
        _bound(ours),
        f"{ours['generator_user_us']:.2f}+{ours['generator_system_us']:.2f}",
        f"{bare['iops']:,.0f}",
        f"{bare['user_us']:.2f}+{bare['system_us']:.2f}",
        _bound(bare),
        f"{r['iops_ratio']:.2f}",
        f"{r['cpu_ratio']:.2f}",
    ]


LOOPBACK_COLUMNS = (
    "protocol",
    "digests",
    "SUCCESS",
    "IOPS",
    "MB/s",
    "p50/p99 us",
    "CPU us/IO u+s",
    "busy",
    "gen. us/IO u+s",
    "floor IOPS",
    "floor us/IO u+s",
    "busy",
    "IOPS ratio",
    "CPU ratio",
)


def print_loopback(console: Console, results: Sequence[dict[str, Any]]) -> None:
    """One line per case; ``~`` marks a case without a quiet sample."""
    table = Table(title="Loopback, target against floor", title_justify="left")
    table.add_column("case")
    for column in LOOPBACK_COLUMNS:
        table.add_column(column, justify="right")
    engines = set()
    for r in results:
        if "error" in r:
            table.add_row(r["name"], *["-"] * len(LOOPBACK_COLUMNS))
            continue
        engines.add((r["engine"], r["engine_note"], r["wait"]))
        table.add_row(*_loopback_row(r))
    console.print(table)
    for r in results:
        if "error" in r:
            console.print(f"{r['name']}: {r['error']}", markup=False)
    for engine, note, wait in sorted(engines):
        reason = f" ({note})" if note else ""
        console.print(
            f"Load generator: {engine}{reason}, waiting: {wait}. Busy: the share of its core that the server used; "
            "well below 1, the generator or the wake-ups were the limit, and the CPU ratio tells more than IOPS.",
            markup=False,
        )
    if any(r.get("noisy") for r in results):
        console.print("~ no quiet sample: other processes had part of the core; the figures are a sign of life only.")


def print_start(console: Console, result: dict[str, Any]) -> None:
    title = "Our host and our target, MB/s (medians); bare: sockets of the same kernel, same pattern"
    table = Table(title=title, title_justify="left")
    for column in ("direction", "part"):
        table.add_column(column)
    for column in ("tcp", "mptcp", "ratio", "bare tcp", "bare mptcp", "bare ratio"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        for part, words in (("first", "first 64 MiB"), ("steady", "then, 8 under way"), ("deep", "then, 32 under way")):
            cells: list[str] = []
            for each in (row[part], row.get(f"bare_{part}")):
                cells += [f"{each['tcp']:,.0f}", f"{each['mptcp']:,.0f}", f"{each['ratio']:.2f}"] if each else ["-"] * 3
            table.add_row(row["direction"], words, *cells)
    console.print(table)


def print_goals(console: Console, goals: Sequence[dict[str, Any]]) -> None:
    for goal in goals:
        verdict = "[green]pass[/]" if goal["reached"] else "[red]FAIL[/]"
        doubt = " (noisy)" if goal["noisy"] else ""
        console.print(f"{verdict}  {goal['goal']}: {goal['value']:.2f}{doubt}", highlight=False)
