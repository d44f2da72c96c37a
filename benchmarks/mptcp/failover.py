"""Experiment 5: links cut and restored under a verifying load, with and without the path keeper."""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from benchmarks.mptcp import runs
from benchmarks.mptcp.lab import LabError, Link, Network, describe
from benchmarks.mptcp.runs import BLOCK_BYTES, Settings

NAME = "failover"
TITLE = "Links cut and restored under a verifying load"
EXPECTED = (
    "The series and its talk promise fail-over: when a path fails, traffic goes on over the others, and what was "
    "under way on it is injected again there. No figure is published. A kernel notices by retransmission timeouts, so "
    "a pause of some hundred milliseconds is to be expected; an idle or broken subflow is not made anew by the kernel "
    "when its link returns (mptcp_net-next issue 440), but one that was never closed goes on at its next "
    "retransmission. The keeper hears of links by rtnetlink: it closes the subflow of a cut link and makes a new one "
    "when the link is back, where that gives more than it costs."
)
RATE_MBIT = 50
LINKS = 4
WORKERS = 8
SAMPLE_SECONDS = 0.05
AGAIN_SHARE = 0.1
"""A link carries load again when it reaches this share of its rate."""
ROUNDS = (1, 5)
"""Runs of each scenario with and without the keeper, in turn: quick and full."""
WINDOW_SECONDS = 5.0
"""Seconds before a cut, and after a restoration, over which a rate is taken; fewer where other events are nearer."""
START_SECONDS = 1.0
"""The load's first second is no measure of its rate."""
MOVED_SHARE = 0.97
"""With the keeper the load moves at least this share of what it moves with the kernel alone."""
AFTER_SHARE = 0.8
"""With the keeper the rate after a link is restored is at least this share of the rate before its cut."""


@dataclass
class Stage:
    """A running network with its verifying load, and the notes of one scenario."""

    network: Network
    began: float = 0.0
    events: list[tuple[float, str, int]] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def cut(self, *links: int) -> None:
        """Take links down, and note when."""
        for number in links:
            self.events.append((time.monotonic() - self.began, "cut", number))
            self.network.cut(number)

    def restore(self, *links: int) -> None:
        """Bring links up again, and note when."""
        for number in links:
            self.network.restore(number)
            self.events.append((time.monotonic() - self.began, "restored", number))


def one_after_another(stage: Stage, down: float, rest: float) -> None:
    """Cut and restore each link in turn."""
    for number in range(1, LINKS + 1):
        stage.sleep(rest)
        stage.cut(number)
        stage.sleep(down)
        stage.restore(number)
    stage.sleep(rest * 2)


def to_the_backup(stage: Stage, down: float, rest: float) -> None:
    """Cut and restore all links but the backup path, link 4."""
    stage.sleep(rest)
    stage.cut(1, 2, 3)
    stage.sleep(down)
    stage.restore(1, 2, 3)
    stage.sleep(rest * 2)


def all_down(stage: Stage, down: float, rest: float) -> None:
    """Cut all links for three seconds."""
    stage.sleep(rest)
    stage.cut(*range(1, LINKS + 1))
    stage.sleep(3.0)
    stage.restore(*range(1, LINKS + 1))
    stage.sleep(rest * 3)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A sequence of cuts and restorations of links."""

    name: str
    act: Callable[[Stage, float, float], None]
    backup: tuple[int, ...] = ()
    down: tuple[float, float] = (0.8, 4.0)
    """Seconds that a link stays down, quick and full."""
    rest: tuple[float, float] = (0.8, 4.0)
    """Seconds between two cuts, quick and full."""

    def seconds(self, settings: Settings) -> float:
        """Return how long the load must run."""
        down, rest = settings.pick(*self.down), settings.pick(*self.rest)
        if self.act is one_after_another:
            return float(LINKS * (down + rest) + rest * 2)
        return float(down + rest * 3) if self.act is to_the_backup else float(rest * 4 + 3.0)


SCENARIOS = (
    Scenario("one after another", one_after_another),
    Scenario("with a backup path", to_the_backup, backup=(4,)),
    Scenario("all down for 3 s", all_down),
)


def run(settings: Settings) -> dict[str, Any]:
    """Run all scenarios with the kernel alone and with the path keeper in turn, several times."""
    if importlib.util.find_spec("pyroute2") is None:
        raise LabError("the path keeper needs pyroute2 (pip install 'nvmeof-mptcp[mptcp]')")
    links = [Link(RATE_MBIT)] * LINKS
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for number in range(settings.pick(*ROUNDS)):
        for scenario in SCENARIOS:
            for keeper in (bool(number % 2), not number % 2):
                with Network(links) as network, contextlib.ExitStack() as stack:
                    stack.enter_context(runs.target(network, "mptcp", settings.congestion, "--ramdisk", "128M"))
                    row = _row(network, scenario, keeper, settings)
                found.setdefault((scenario.name, keeper), []).append(row)
    with Network(links) as network, contextlib.ExitStack() as stack:
        network.set_paths(LINKS, signal=False)
        stack.enter_context(runs.bare_server(network, "mptcp", settings.congestion))
        bare = runs.bare(network, "mptcp", "write", settings.congestion, 1.5)
    rows = [_together(found[scenario.name, keeper]) for scenario in SCENARIOS for keeper in (False, True)]
    return {"links": describe(links), "block_bytes": BLOCK_BYTES, "workers": WORKERS, "bare_write": bare, "rows": rows}


def _together(several: list[dict[str, Any]]) -> dict[str, Any]:
    """Join several runs in one row: medians, worst and sums; the figure's samples are those of the median run."""
    shown = sorted(several, key=lambda row: row["megabytes"])[len(several) // 2]
    brief = [{name: value for name, value in row.items() if name not in ("samples", "events")} for row in several]
    after = [min(row["after_share"]) for row in several if row["after_share"]]
    return shown | {
        "runs": brief,
        "megabytes": statistics.median(row["megabytes"] for row in several),
        "longest_pause_seconds": statistics.median(row["longest_pause_seconds"] for row in several),
        "worst_pause_seconds": max(row["longest_pause_seconds"] for row in several),
        "lost_bytes": sum(row["lost_bytes"] for row in several),
        "errors": [error for row in several for error in row["errors"]],
        "dropped_by_kernel": sum(row["dropped_by_kernel"] for row in several),
        "again_seconds": [each for row in several for each in row["again_seconds"]],
        "after_share": statistics.median(after) if after else None,
        "most_subflows": max(row["most_subflows"] for row in several),
    }


def _paths(network: Network, scenario: Scenario, keeper: bool) -> dict[str, Any]:
    """Set the kernel's endpoints; or return the worker's option that makes the path keeper set the same ones."""
    if not keeper:
        network.set_paths(LINKS, scenario.backup, signal=False)
        return {}
    network.set_paths(1)
    paths = [
        f"{network.host_address(number)}%link{number}" + ",backup" * (number in scenario.backup)
        for number in range(1, LINKS + 1)
    ]
    return {"paths": paths}


def _row(network: Network, scenario: Scenario, keeper: bool, settings: Settings) -> dict[str, Any]:
    seconds = scenario.seconds(settings)
    process = runs.start_worker(
        network, task="verify", transport="mptcp", congestion=settings.congestion, subflows=LINKS, depth=WORKERS,
        block_bytes=BLOCK_BYTES, seconds=seconds + 0.5, **_paths(network, scenario, keeper),
    )  # fmt: skip
    started = runs.first_line(process)
    stage = Stage(network, time.monotonic())
    samples: list[tuple[float, list[int]]] = []
    stop = threading.Event()
    sampler = threading.Thread(target=sample, args=(stage, samples, stop))
    sampler.start()
    try:
        scenario.act(stage, settings.pick(*scenario.down), settings.pick(*scenario.rest))
    finally:
        stop.set()
        sampler.join()
    found = runs.answer(process, seconds + 90)
    times = [moment - stage.began for moment in found["times"]]
    pause, at = longest_pause(times, samples[-1][0])
    return {
        "scenario": scenario.name,
        "keeper": keeper,
        "backup": list(scenario.backup),
        "subflows_at_start": started["connections"]["subflows"],
        "megabytes": len(times) * BLOCK_BYTES / 1e6,
        "longest_pause_seconds": pause,
        "pause_at": at,
        "lost_bytes": found["lost_bytes"],
        "errors": found["errors"],
        "dropped_by_kernel": network.dropped(),
        "most_subflows": found["most_subflows"],
        "after_share": _after(stage.events, times, samples[-1][0]),
        "again_seconds": again(stage.events, samples, scenario.backup),
        "events": stage.events,
        "samples": rates(samples),
        **found["connections"],
    }


def sample(stage: Stage, samples: list[tuple[float, list[int]]], stop: threading.Event) -> None:
    """Note the bytes of each link and the time until ``stop`` is set."""
    while not stop.wait(SAMPLE_SECONDS):
        counters = stage.network.counters()
        samples.append((time.monotonic() - stage.began, [sum(pair) for pair in counters]))


def rates(samples: Sequence[tuple[float, list[int]]]) -> list[tuple[float, list[float]]]:
    """Return for each interval its end, and the MB/s of each link in both directions."""
    return [
        (round(late, 3), [round((b - a) / (late - early) / 1e6, 3) for a, b in zip(before, after, strict=True)])
        for (early, before), (late, after) in pairwise(samples)
    ]


def longest_pause(times: Sequence[float], end: float, begin: float = 0.0) -> tuple[float, float]:
    """Return the longest time without a completion from `begin` to `end`, and when it began."""
    marks = [begin, *sorted(moment for moment in times if begin <= moment <= end), end]
    gaps = [(late - early, early) for early, late in pairwise(marks)]
    return max(gaps, key=lambda gap: gap[0])


def _after(events: Sequence[tuple[float, str, int]], times: Sequence[float], end: float) -> list[float]:
    """Return for each restored link the rate of completions from then on, relative to the rate before the cut."""

    def rate(early: float, late: float) -> float:
        return sum(early < moment <= late for moment in times) / (late - early)

    found, cuts = [], [moment for moment, what, _ in events if what == "cut"]
    restored = [moment for moment, what, _ in events if what == "restored"]
    for moment, what, number in events:
        if what != "restored":
            continue
        cut = min(when for when, action, link in events if action == "cut" and link == number)
        together = min(when for when in cuts if cut - when < 1.0)
        back = [when for when in restored if when < together]
        since = max([min(START_SECONDS, together / 2), together - WINDOW_SECONDS, *back])
        until = min([end, moment + WINDOW_SECONDS, *(when for when in cuts if when > moment)])
        before = rate(since, together)
        if before:
            found.append(round(rate(moment, until) / before, 3))
    return found


def again(
    events: Sequence[tuple[float, str, int]],
    samples: Sequence[tuple[float, list[int]]],
    backup: Sequence[int],
    rate_mbit: float = RATE_MBIT,
) -> list[float | None]:
    """Return for each restored link the seconds until it carried load again; None if not before the next cut."""
    per_link, found = rates(samples), []
    for moment, what, number in events:
        if what != "restored" or number in backup:
            continue
        nexts = [when for when, action, link in events if when > moment and link == number and action == "cut"]
        limit = min(nexts, default=float("inf"))
        wanted = AGAIN_SHARE * rate_mbit / 8
        reached = [when for when, values in per_link if moment < when <= limit and values[number - 1] >= wanted]
        found.append(round(reached[0] - moment, 3) if reached else None)
    return found


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check that no byte and no command is lost, that the keeper costs no throughput, and that every link is used
    again.
    """
    found = []
    rows = {(row["scenario"], row["keeper"]): row for row in result["rows"]}
    for row in result["rows"]:
        what = f"{row['scenario']}, {'keeper' if row['keeper'] else 'kernel alone'}"
        bad = row["lost_bytes"] + len(row["errors"])
        found.append({"goal": f"{what}: no byte lost and no error", "value": float(bad), "reached": not bad})
        if not row["keeper"]:
            continue
        again, moved = row["again_seconds"], row["megabytes"] / rows[row["scenario"], False]["megabytes"]
        found += [
            {"goal": f"{what}: every restored path carries load again", "reached": None not in again,
             "value": max((each for each in again if each is not None), default=0.0)},
            {"goal": f"{what}: moved at least {MOVED_SHARE} of what the kernel alone did", "value": moved,
             "reached": moved >= MOVED_SHARE},
            {"goal": f"{what}: rate after links are back at least {AFTER_SHARE} of the rate before",
             "value": row["after_share"] or 0.0, "reached": (row["after_share"] or 0.0) >= AFTER_SHARE},
            {"goal": f"{what}: no more subflows than the {LINKS} links", "value": float(row["most_subflows"]),
             "reached": row["most_subflows"] <= LINKS},
        ]  # fmt: skip
    return found


def _worst(again: Sequence[float | None]) -> str:
    if not again:
        return "-"
    known = [each for each in again if each is not None]
    words = f"{max(known):.2f}" if known else "-"
    missing = len(again) - len(known)
    return words + (f" ({missing} of {len(again)} never)" if missing else "")


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows."""
    columns = ["scenario", "paths kept by", "MB verified", "longest pause, s (worst run)", "rate after / before",
               "bytes lost", "errors", "restored path used after, s (worst)", "subflows", "bare sender, MB/s",
               "dropped by kernel"]  # fmt: skip
    lines = [
        [row["scenario"], "keeper" if row["keeper"] else "kernel alone", f"{row['megabytes']:.0f}",
         f"{row['longest_pause_seconds']:.2f} ({row['worst_pause_seconds']:.2f})",
         f"{row['after_share']:.2f}" if row["after_share"] is not None else "-",
         str(row["lost_bytes"]), str(len(row["errors"])), _worst(row["again_seconds"]), str(row["most_subflows"]),
         f"{result['bare_write']:.1f}", str(row["dropped_by_kernel"])]
        for row in result["rows"]
    ]  # fmt: skip
    return columns, lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    rows = {(row["scenario"], row["keeper"]): row for row in result["rows"]}
    lost = sum(row["lost_bytes"] for row in result["rows"])
    errors = sum(len(row["errors"]) for row in result["rows"])
    alone, kept = (
        sum(row["dropped_by_kernel"] for row in result["rows"] if row["keeper"] is keeper) for keeper in (False, True)
    )
    fewest, words = min(len(row["runs"]) for row in result["rows"]), []
    for scenario in SCENARIOS:
        without, by_keeper = rows[scenario.name, False], rows[scenario.name, True]
        share = by_keeper["megabytes"] / without["megabytes"]
        words.append(
            f"{scenario.name.capitalize()}: {by_keeper['megabytes']:.0f} MB with the keeper and "
            f"{without['megabytes']:.0f} MB with the kernel alone ({share:.2f}), longest pause "
            f"{by_keeper['longest_pause_seconds']:.2f} s and {without['longest_pause_seconds']:.2f} s"
        )
    return (
        f"Medians of at least {fewest} runs each, in turn; lost bytes, errors and drops are sums, a rate after / "
        "before is that of the worst link of a run, completions within five seconds. "
        f"{lost} bytes were lost and {errors} commands failed in all runs. {'. '.join(words)}. The pause "
        "is the time until the kernel gives what was on the cut link to another one: retransmission timeouts, 200 ms "
        "and up. Left alone, the kernel keeps the cut subflow and tries it again, each time after twice as long: that "
        "sets how soon a returned link is used, and in some cuts the load also stood still until the link was back. "
        "The keeper is told by rtnetlink: it closes the subflow of a cut link at once, so that its data goes to the "
        "others, and makes a new one when the link is up. Two of the subflows that a connection began with are never "
        "closed, since new ones have small receive buffers for good (see the note on windows); with no link left, or "
        "only a backup path, everything is left to the kernel, so there both rows are the kernel's. Packets that the "
        f"kernels dropped beyond the MPTCP receive window: {alone} with the kernel alone, {kept} with the keeper."
    )


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot what each link carried: a row per scenario, the kernel alone on the left and the keeper on the right."""
    axes = figure.subplots(len(SCENARIOS), 2, sharey=True, squeeze=False,
                           gridspec_kw={"hspace": 0.6, "wspace": 0.06})  # fmt: skip
    for index, row in enumerate(result["rows"]):
        ax = axes[index // 2][index % 2]
        times = [when for when, _ in row["samples"]]
        series = [[values[number] for _, values in row["samples"]] for number in range(LINKS)]
        ax.stackplot(times, series, labels=[f"link {number + 1}" for number in range(LINKS)],
                     colors=[f"C{number}" for number in range(LINKS)], linewidth=0, alpha=0.85)  # fmt: skip
        downs: dict[int, float] = {}
        for when, what, number in row["events"]:
            if what == "cut":
                downs[number] = when
            elif number in downs:
                ax.plot([downs[number], when], [50 + number * 2.6] * 2, color=f"C{number - 1}", linewidth=3,
                        solid_capstyle="butt")  # fmt: skip
        ax.axhline(result["bare_write"], color="0.3", linestyle=":", linewidth=1, label="bare sender, one direction")
        ax.set_xlim(0, times[-1])
        ax.set_ylim(0, 63)
        who = "with the keeper" if row["keeper"] else "kernel alone"
        ax.set_title(f"{row['scenario'].capitalize()}, {who}: longest pause {row['longest_pause_seconds']:.2f} s",
                     fontsize=10)  # fmt: skip
        if not index % 2:
            ax.set_ylabel("MB/s, both directions")
        if index // 2 == len(SCENARIOS) - 1:
            ax.set_xlabel("Seconds")
    axes[0][0].plot([], [], color="0.4", linewidth=3, label="bar: that link is down")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=LINKS + 2, bbox_to_anchor=(0.5, 0.955), frameon=False)
