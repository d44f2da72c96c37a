"""Experiment 1: one queue over 1 to 8 paths of 100 Mbit/s, beside a bare sender and beside TCP."""

from __future__ import annotations

import contextlib
from statistics import mean
from typing import Any

from benchmarks.mptcp import runs
from benchmarks.mptcp.lab import Link, Network, describe
from benchmarks.mptcp.runs import BLOCK_BYTES, Settings

NAME = "aggregation"
TITLE = "Bandwidth over 1 to 8 paths of 100 Mbit/s"
PUBLISHED = {1: 11.08, 2: 22.32, 3: 33.24, 4: 43.39, 5: 54.46, 6: 65.63, 7: 73.14, 8: 88.25}
"""MB/s of iperf over 1 to 8 subflows, from the talk "BPF on MPTCP" (third eBPF developers' conference)."""
EXPECTED = (
    "The talk's column for iperf over MPTCP: 11.08 MB/s with one subflow, 88.25 MB/s with eight, 7.97 times as much; "
    "the NVMe series says the same of one NVMe path over four interfaces (4 times TCP). TCP stays on one link."
)
RATE_MBIT = 100
DEPTH = 127
"""The most commands that a queue of 128 entries takes."""
SCALING_GOAL = 0.88
BARE_GOAL = 0.95


def run(settings: Settings) -> dict[str, Any]:
    """Measure each number of paths over both transports, NVMe and the bare sender in turn."""
    links = [Link(RATE_MBIT)] * 8
    rows = []
    with Network(links) as network, contextlib.ExitStack() as stack:
        stack.enter_context(runs.target(network, "mptcp", settings.congestion, "--ramdisk", "256M"))
        stack.enter_context(runs.bare_server(network, "mptcp", settings.congestion))
        for count in settings.pick((1, 2, 4, 8), range(1, 9)):
            for transport in ("mptcp", "tcp"):
                if transport == "mptcp" or count in (1, 8):
                    rows.append(_row(network, transport, count, settings))
    return {"links": describe(links), "block_bytes": BLOCK_BYTES, "depth": DEPTH, "queues": 1, "rows": rows}


def _row(network: Network, transport: str, count: int, settings: Settings) -> dict[str, Any]:
    network.set_paths(count, signal=False)
    seconds, warmup = settings.pick(1.5, 2.5), settings.pick(0.7, 1.2)
    bare = {d: runs.bare(network, transport, d, settings.congestion, seconds, warmup) for d in ("read", "write")}
    before, dropped = network.counters(), network.dropped()
    found = [
        runs.work(
            network, task="phases", transport=transport, congestion=settings.congestion, subflows=count, depth=DEPTH,
            block_bytes=BLOCK_BYTES, phases=[pattern], seconds=seconds, warmup_seconds=warmup,
            ramp_seconds=warmup / 2,
        )
        for _ in range(settings.pick(1, 2))
        for pattern in ("randread", "randwrite")
    ]  # fmt: skip
    figures = {word: [run["phases"][0]["mb_per_s"] for run in found[start::2]]
               for start, word in enumerate(("read", "write"))}  # fmt: skip
    return {
        "paths": count,
        "transport": transport,
        "read": mean(figures["read"]),
        "write": mean(figures["write"]),
        "runs": figures,
        "bare_read": bare["read"],
        "bare_write": bare["write"],
        "link_mb": runs.link_megabytes(before, network.counters()),
        "dropped_by_kernel": network.dropped() - dropped,
        **found[-1]["connections"],
    }


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check for each N: 0.88 of N times one path, and 0.95 of the bare sender."""
    rows = {row["paths"]: row for row in result["rows"] if row["transport"] == "mptcp"}
    found = []
    for direction in ("read", "write"):
        one = rows[1][direction]
        for count, row in rows.items():
            bare = row[f"bare_{direction}"]
            for what, value, wanted in (
                (f"{count} paths, {direction}: share of {count} x one path", row[direction] / (one * count),
                 SCALING_GOAL),
                (f"{count} paths, {direction}: share of the bare sender", row[direction] / bare, BARE_GOAL),
            ):  # fmt: skip
                found.append({"goal": f"{what} at least {wanted}", "value": value, "reached": value >= wanted})
    return found


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows."""
    columns = ["paths", "transport", "subflows", "NVMe read", "bare", "ratio", "NVMe write", "bare", "ratio",
               "published", "x one path, read", "write"]  # fmt: skip
    first = {row["transport"]: row for row in reversed(result["rows"])}
    lines = []
    for row in result["rows"]:
        one = first[row["transport"]]
        lines.append([
            str(row["paths"]), row["transport"], "/".join(map(str, row["subflows"])),
            f"{row['read']:.2f}", f"{row['bare_read']:.2f}", f"{row['read'] / row['bare_read']:.2f}",
            f"{row['write']:.2f}", f"{row['bare_write']:.2f}", f"{row['write'] / row['bare_write']:.2f}",
            f"{PUBLISHED[row['paths']]:.2f}" if row["transport"] == "mptcp" else "",
            f"{row['read'] / one['read']:.2f}", f"{row['write'] / one['write']:.2f}",
        ])  # fmt: skip
    return columns, lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    rows = {row["paths"]: row for row in result["rows"] if row["transport"] == "mptcp"}
    tcp = [row for row in result["rows"] if row["transport"] == "tcp"]
    last = max(rows)
    dropped = sum(row["dropped_by_kernel"] for row in result["rows"])
    one, most = rows[1], rows[last]
    return (
        f"One path gives {one['read']:.1f} MB/s for reads and {one['write']:.1f} for writes, {last} paths "
        f"{most['read']:.1f} and {most['write']:.1f}: {most['read'] / one['read']:.2f} and "
        f"{most['write'] / one['write']:.2f} times as much. TCP gives {min(r['read'] for r in tcp):.1f} to "
        f"{max(r['read'] for r in tcp):.1f} MB/s whatever the number of links. The single path is above the published "
        "11.08 because here a megabyte is 10^6 bytes of payload and tbf's rate leaves out nothing but the headers of "
        "Ethernet, IP, TCP and MPTCP (11.8 MB/s at 1448 bytes of 1514); iperf and rsync print 2^20 (11.08 MiB/s are "
        "11.62 MB/s). NVMe adds 24 to 48 bytes of PDU headers to 128 KiB, and reads follow the bare sender. Writes "
        "need more under way: a command waits in the socket behind the data of earlier writes, and its data only comes "
        "after the R2T, so about half of the depth is data in flight; with 64 commands (measured too) 8 paths gave "
        "0.88 of the bare sender, and 1 to 6 paths 0.98 and more."
        + (
            f" The kernels dropped {dropped} packets beyond the MPTCP receive window in all runs, which halts a "
            "connection for a moment each time."
            if dropped
            else ""
        )
    )


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot reads and writes over the number of paths."""
    axes = figure.subplots(1, 2, sharey=True)
    rows = {t: [r for r in result["rows"] if r["transport"] == t] for t in ("mptcp", "tcp")}
    top = max(PUBLISHED)
    for ax, direction in zip(axes, ("read", "write"), strict=True):
        one = rows["mptcp"][0][direction]
        ax.plot([0, top], [0, one * top], color="0.75", linewidth=1, linestyle="--", label="N × one path")
        ax.plot(list(PUBLISHED), list(PUBLISHED.values()), "D", color="0.35", markersize=5, fillstyle="none",
                label="published (iperf, MPTCP)")  # fmt: skip
        for transport, colour, word in (("mptcp", "C0", "MPTCP"), ("tcp", "C3", "TCP")):
            paths = [r["paths"] for r in rows[transport]]
            ax.plot(paths, [r[f"bare_{direction}"] for r in rows[transport]], "x", color=colour, markersize=8,
                    label=f"bare sender, {word}")  # fmt: skip
            ax.plot(paths, [r[direction] for r in rows[transport]], "o-", color=colour, markersize=5, linewidth=1.8,
                    label=f"NVMe over {word}")  # fmt: skip
        ax.set_title(f"Random {direction}s, 128 KiB, 1 queue, depth {result['depth']}")
        ax.set_xlabel("Paths (links of 100 Mbit/s)")
        ax.set_xlim(0.5, top + 0.5)
        ax.set_ylim(0, one * top * 1.06)
        ax.set_xticks(range(1, top + 1))
    axes[0].set_ylabel("Payload, MB/s")
    axes[0].legend(loc="upper left")
