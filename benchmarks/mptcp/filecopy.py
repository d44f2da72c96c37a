"""Experiment 3: a file copied to a namespace of a remote target over one subflow and over eight."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from benchmarks.mptcp import runs
from benchmarks.mptcp.lab import Link, Network, describe
from benchmarks.mptcp.runs import Settings

NAME = "filecopy"
TITLE = "A file copied to a remote namespace over 1 and 8 subflows"
EXPECTED = (
    "The talk's table for rsync, a .tar.gz of 1.3 GB: 11.08 MB/s and 114.83 s over TCP, 88.25 MB/s and 14.35 s over "
    "MPTCP with 8 subflows: 8.0 times as fast."
)
PUBLISHED = {"tcp": (11.08, 114.83), "mptcp": (88.25, 14.35)}
RATE_MBIT = 100
LINKS = 8
DEPTH = 32
CASES = (("tcp", 1), ("mptcp", 1), ("mptcp", 8))


def run(settings: Settings) -> dict[str, Any]:
    """Copy over TCP, one subflow and eight; compare the contents in the file behind the target's namespace."""
    size = settings.pick(50_000_000, 1_300_000_000) // 4096 * 4096
    source = settings.scratch / "source"
    _make_file(source, size)
    links = [Link(RATE_MBIT)] * LINKS
    rows = []
    with Network(links) as network, contextlib.ExitStack() as stack:
        stack.enter_context(runs.bare_server(network, "mptcp", settings.congestion))
        for transport, paths in CASES:
            rows.append(_row(network, transport, paths, source, size, settings))
    return {"links": describe(links), "size_bytes": size, "depth": DEPTH, "rows": rows}


def _make_file(path: Path, size: int) -> None:
    piece = 4 << 20
    with path.open("wb") as file:
        for offset in range(0, size, piece):
            file.write(os.urandom(min(piece, size - offset)))


def _row(network: Network, transport: str, paths: int, source: Path, size: int, settings: Settings) -> dict[str, Any]:
    network.set_paths(paths, signal=False)
    bare = runs.bare(network, transport, "write", settings.congestion, settings.pick(1.0, 4.0))
    backing = settings.scratch / f"backing-{transport}-{paths}"
    dropped = network.dropped()
    with runs.target(network, "mptcp", settings.congestion, "--file", str(backing), "--size", str(size)):
        found = runs.work(
            network, timeout_seconds=600, task="copy", transport=transport, congestion=settings.congestion,
            subflows=paths, depth=DEPTH, path=str(source),
        )  # fmt: skip
    with backing.open("rb") as file:
        arrived = hashlib.file_digest(file, "sha256").hexdigest()
    backing.unlink()
    return {
        "transport": transport,
        "paths": paths,
        "seconds": found["seconds"],
        "mb_per_s": found["mb_per_s"],
        "bare_write": bare,
        "identical": arrived == found["sha256"],
        "dropped_by_kernel": network.dropped() - dropped,
        **found["connections"],
    }


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Check the contents, and 0.88 of eight times the rate of one subflow."""
    tcp, _, eight = result["rows"]
    factor = eight["mb_per_s"] / tcp["mb_per_s"]
    return [
        {"goal": "every copy is identical to its source", "value": float(all(r["identical"] for r in result["rows"])),
         "reached": all(r["identical"] for r in result["rows"])},
        {"goal": f"8 subflows over TCP at least {0.88 * LINKS:.2f}", "value": factor,
         "reached": factor >= 0.88 * LINKS},
    ]  # fmt: skip


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows."""
    lines = []
    for row in result["rows"]:
        published = PUBLISHED.get(row["transport"]) if row["transport"] == "tcp" or row["paths"] == LINKS else None
        lines.append([
            row["transport"], str(row["paths"]), f"{result['size_bytes'] / 1e6:.0f}", f"{row['seconds']:.2f}",
            f"{row['mb_per_s']:.2f}", f"{row['bare_write']:.2f}", "yes" if row["identical"] else "NO",
            f"{published[0]:.2f} MB/s, {published[1]:.2f} s" if published else "",
        ])  # fmt: skip
    columns = ["transport", "subflows", "MB", "seconds", "MB/s", "bare MB/s", "identical", "published (1.3 GB, rsync)"]
    return columns, lines


def seen(result: dict[str, Any]) -> str:
    """Explain the results, and why they deviate from the expected ones."""
    tcp, _, eight = result["rows"]
    size = result["size_bytes"] / 1e9
    return (
        f"{size:.2f} GB took {tcp['seconds']:.1f} s over TCP ({tcp['mb_per_s']:.1f} MB/s) and {eight['seconds']:.1f} s "
        f"over eight subflows ({eight['mb_per_s']:.1f} MB/s): {eight['mb_per_s'] / tcp['mb_per_s']:.1f} times as fast; "
        "the SHA-256 of what lies in the target's file is that of the source each time. The time includes reading the "
        "source and a Flush at the end; a short file pays more for the start of eight windows than 1.3 GB do."
        + (
            f" {eight['dropped_by_kernel']} packets beyond the MPTCP receive window were dropped by the kernel."
            if eight["dropped_by_kernel"]
            else ""
        )
    )


def plot(result: dict[str, Any], figure: Any) -> None:
    """Plot seconds per copy beside the scaled published times."""
    ax = figure.subplots()
    scale = result["size_bytes"] / 1.3e9
    names = []
    for index, row in enumerate(result["rows"]):
        names.append("TCP" if row["transport"] == "tcp" else f"MPTCP, {row['paths']} subflow{'s' * (row['paths'] > 1)}")
        colour = "C3" if row["transport"] == "tcp" else "C0"
        ax.barh(index, row["seconds"], color=colour, height=0.55)
        marked = row["transport"] == "tcp" or row["paths"] == LINKS
        end = max(row["seconds"], PUBLISHED[row["transport"]][1] * scale if marked else 0.0)
        ax.annotate(f"{row['seconds']:.1f} s, {row['mb_per_s']:.1f} MB/s", (end, index), xytext=(10, 0), va="center",
                    textcoords="offset points")  # fmt: skip
        if marked:
            ax.plot([PUBLISHED[row["transport"]][1] * scale], [index], "D", color="black", fillstyle="none",
                    label="published (rsync, 1.3 GB), scaled to this size" if not index else None)  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, max(row["seconds"] for row in result["rows"]) * 1.35)
    ax.set_xlabel(f"Seconds for {result['size_bytes'] / 1e6:.0f} MB (links of {RATE_MBIT} Mbit/s)")
    ax.legend(loc="lower right")
