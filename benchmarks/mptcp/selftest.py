"""Experiment 2: the selftest of the NVMe over MPTCP series with one NVMe path, MPTCP against TCP."""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.mptcp import runs
from benchmarks.mptcp.lab import Link, Network, describe
from benchmarks.mptcp.runs import BLOCK_BYTES, Settings

NAME = "selftest"
TITLE = "The series' selftest: four links, one NVMe path"
EXPECTED = (
    "The cover letter of the series: with one NVMe path and four interfaces MPTCP gives four times the bandwidth of "
    "TCP. Its selftest shapes four links to 1000 Mbit/s and runs fio (direct, 128 KiB, 4 jobs, depth 256, 10 s each) "
    "for random reads, flush, random writes, flush on a 512 MiB file."
)
PUBLISHED_FACTOR = 4.0
LINKS = 4
JOBS = 4
DEPTH = 256
PHASES = ("randread", "flush", "randwrite", "flush")


def run(settings: Settings) -> dict[str, Any]:
    """Run the four phases over TCP and over MPTCP, the bare sender before each."""
    rate = settings.pick(400, 1000)
    links = [Link(rate)] * LINKS
    rows = []
    with Network(links) as network:
        network.set_paths(LINKS)
        with contextlib.ExitStack() as stack:
            stack.enter_context(runs.bare_server(network, "mptcp", settings.congestion))
            stack.enter_context(runs.target(network, "mptcp", settings.congestion, "--ramdisk", "512M"))
            for transport in ("tcp", "mptcp"):
                rows.append(_row(network, transport, settings))
    return {"links": describe(links), "rate_mbit": rate, "block_bytes": BLOCK_BYTES, "depth": DEPTH, "queues": JOBS,
            "rows": rows}  # fmt: skip


def _row(network: Network, transport: str, settings: Settings) -> dict[str, Any]:
    seconds, warmup = settings.pick(1.6, 10.0), settings.pick(0.8, 2.0)
    bare = {d: runs.bare(network, transport, d, settings.congestion, seconds / 2, 0.7) for d in ("read", "write")}
    before, dropped = network.counters(), network.dropped()
    found = runs.work(
        network, task="phases", transport=transport, congestion=settings.congestion, subflows=LINKS, queues=JOBS,
        depth=DEPTH, block_bytes=BLOCK_BYTES, phases=PHASES, seconds=seconds, warmup_seconds=warmup,
    )  # fmt: skip
    figures = {phase["pattern"]: phase for phase in found["phases"]}
    return {
        "transport": transport,
        "read": figures["randread"]["mb_per_s"],
        "write": figures["randwrite"]["mb_per_s"],
        "flush_seconds": [phase["seconds"] for phase in found["phases"] if phase["pattern"] == "flush"],
        "bare_read": bare["read"],
        "bare_write": bare["write"],
        "link_mb": runs.link_megabytes(before, network.counters()),
        "dropped_by_kernel": network.dropped() - dropped,
        **found["connections"],
    }


def _factors(result: dict[str, Any]) -> dict[str, float]:
    tcp, mptcp = result["rows"]
    return {word: mptcp[word] / tcp[word] for word in ("read", "write")}


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check for four times TCP, of which 0.88 is required."""
    return [
        {"goal": f"MPTCP over TCP, {word}s, at least {0.88 * LINKS:.2f}", "value": value,
         "reached": value >= 0.88 * LINKS}
        for word, value in _factors(result).items()
    ]  # fmt: skip


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows."""
    lines = [
        [row["transport"], "/".join(map(str, row["subflows"])), f"{row['read']:.1f}", f"{row['bare_read']:.1f}",
         f"{row['write']:.1f}", f"{row['bare_write']:.1f}", "/".join(f"{s * 1e3:.1f}" for s in row["flush_seconds"])]
        for row in result["rows"]
    ]  # fmt: skip
    factors = _factors(result)
    lines.append(["MPTCP / TCP", "", f"{factors['read']:.2f}", "", f"{factors['write']:.2f}", "", ""])
    lines.append(["published", "", f"{PUBLISHED_FACTOR:.2f}", "", f"{PUBLISHED_FACTOR:.2f}", "", ""])
    return ["transport", "subflows per queue", "random read", "bare", "random write", "bare", "flushes, ms"], lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    tcp, mptcp = result["rows"]
    factors = _factors(result)
    text = (
        f"At {result['rate_mbit']} Mbit/s per link reads went from {tcp['read']:.0f} to {mptcp['read']:.0f} MB/s "
        f"({factors['read']:.2f} times) and writes from {tcp['write']:.0f} to {mptcp['write']:.0f} MB/s "
        f"({factors['write']:.2f} times); the bare sender on one connection went from {tcp['bare_read']:.0f} to "
        f"{mptcp['bare_read']:.0f}. Each of the four queues is an MPTCP connection of its own over all links. Two "
        "per cent of the factor are MPTCP's own option in each packet (one link carries 11.7 MB/s over MPTCP where it "
        "carries 12.0 over TCP), so 3.92 is all there is to have. A ramdisk has nothing to flush, so"
        " a flush shows the latency of an idle queue."
    )
    if mptcp["dropped_by_kernel"]:
        text += (
            f" The kernels dropped {mptcp['dropped_by_kernel']} packets beyond the MPTCP receive window, which costs a "
            "connection a second or two each time (see the note on windows)."
        )
    return text


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot bars of reads and writes over TCP and MPTCP, the bare sender as a mark, the claim as a line."""
    ax = figure.subplots()
    tcp, mptcp = result["rows"]
    for index, word in enumerate(("read", "write")):
        for shift, row, colour in ((-0.2, tcp, "C3"), (0.2, mptcp, "C0")):
            ax.bar(index + shift, row[word], width=0.36, color=colour,
                   label=f"NVMe over {row['transport'].upper()}" if not index else None)  # fmt: skip
            ax.annotate(f"{row[word]:.0f}", (index + shift, row[word] / 2), ha="center", color="white", weight="bold")
            ax.plot([index + shift], [row[f"bare_{word}"]], "x", color="black", markersize=9,
                    label="bare sender, one connection" if not index and shift < 0 else None)  # fmt: skip
        ax.plot([index, index + 0.4], [PUBLISHED_FACTOR * tcp[word]] * 2, "--", color="0.3",
                label="published: 4 × TCP" if not index else None)  # fmt: skip
    ax.set_xticks([0, 1], ["random reads", "random writes"])
    ax.set_ylabel("Payload, MB/s")
    ax.set_ylim(0, PUBLISHED_FACTOR * max(tcp["read"], tcp["write"]) * 1.35)
    ax.set_title(f"{result['links']}; 128 KiB, {result['queues']} queues, depth {result['depth']} each")
    ax.legend(loc="upper center", ncols=2)
