"""The result of `bench`: as text, as JSON with fio's field names, and beside another result.

Source of the names: fio's ``--output-format=json`` (fio 3.39). Latencies are from sending to completion, which is both
``lat`` and ``clat`` of fio: no command is queued before it is sent.
"""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.cli import output as out
from nvmeof.host.config_files.files import read_text
from nvmeof.host.facts import QueueFacts
from nvmeof.host.mixed_load import Direction
from nvmeof.host.multipath.facts import MemberFacts
from nvmeof.version import __version__

PERCENTILES = (
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99
)  # fmt: skip
"""Those that fio reports."""
HISTOGRAM_WIDTH = 40
CURVE = tuple(1 - 10 ** (-step / 8) for step in range(45))
"""Shares of commands for which a curve has a point: eight to each nine."""


@dataclass(slots=True)
class BenchResult:
    """Figures of one run; latencies in microseconds, CPU in microseconds of this process per I/O."""

    pattern: str
    block_bytes: int
    depth: int
    queues: int
    seconds: float
    ios: int
    iops: float
    megabytes_per_second: float
    latency_p50_us: float
    latency_p99_us: float
    latency_p999_us: float
    latency_max_us: float
    cpu_user_us_per_io: float
    cpu_system_us_per_io: float
    success_flag_possible: bool
    complete: bool = True
    """True if the load ran for the full time."""
    verified: int = 0
    """Commands whose data was checked."""
    error: NvmeofError | None = None
    """The error of the command that ended the load."""
    connections: list[QueueFacts] = field(default_factory=list)
    paths: list[MemberFacts] = field(default_factory=list)
    """Of several: what each is, and what went over it since it was connected."""
    path_rows: list[tuple[object, ...]] = field(default_factory=list)
    """The same for people: what went over each path while it was measured."""
    read: Direction = field(default_factory=Direction)
    write: Direction = field(default_factory=Direction)
    job_options: dict[str, str] = field(default_factory=dict)
    """The options of the run under fio's names."""

    def as_json(self) -> dict[str, Any]:
        """Return fio's form, with the figures that it has no name for beside ``jobs``."""
        left_out = ("error", "path_rows", "read", "write", "job_options")
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in left_out}
        now = time.time()
        return {
            "fio version": f"nvmeof-{__version__}",
            "timestamp": int(now),
            "timestamp_ms": int(now * 1000),
            "time": time.ctime(now),
            "jobs": [self._job()],
            **own,
        }

    def _job(self) -> dict[str, Any]:
        total = self.seconds or 1.0
        return {
            "jobname": "bench",
            "groupid": 0,
            "error": 0 if self.error is None else 5,  # EIO, as fio has it for a device that fails
            "elapsed": max(1, round(self.seconds)),
            "job options": self.job_options,
            "read": direction_json(self.read, self.seconds),
            "write": direction_json(self.write, self.seconds),
            "job_runtime": round(self.seconds * 1000),
            "usr_cpu": round(self.cpu_user_us_per_io * self.ios / total / 1e4, 6),
            "sys_cpu": round(self.cpu_system_us_per_io * self.ios / total / 1e4, 6),
        }


def direction_json(direction: Direction, seconds: float) -> dict[str, Any]:
    """Return fio's object of the reads or the writes."""
    rate = direction.bytes / seconds if seconds else 0.0
    latency = latency_json(direction.latencies_ns)
    return {
        "io_bytes": direction.bytes,
        "io_kbytes": direction.bytes >> 10,
        "bw_bytes": round(rate),
        "bw": round(rate / 1024),
        "iops": direction.ios / seconds if seconds else 0.0,
        "runtime": round(seconds * 1000),
        "total_ios": direction.ios,
        "short_ios": 0,
        "drop_ios": 0,
        "clat_ns": latency,
        "lat_ns": {name: latency[name] for name in ("min", "max", "mean", "stddev", "N")},
        # not fio's: what a curve of this result needs
        "lat_curve_ns": [[share, at(direction.latencies_ns, share)] for share in CURVE] if direction.ios else [],
    }


def latency_json(latencies_ns: Sequence[int]) -> dict[str, Any]:
    """Return fio's object of a latency: ``latencies_ns`` ascending."""
    count = len(latencies_ns)
    mean = sum(latencies_ns) / count if count else 0.0
    spread = math.sqrt(sum((each - mean) ** 2 for each in latencies_ns) / count) if count else 0.0
    return {
        "min": latencies_ns[0] if count else 0,
        "max": latencies_ns[-1] if count else 0,
        "mean": mean,
        "stddev": spread,
        "N": count,
        "percentile": {f"{each:.6f}": at(latencies_ns, each / 100) for each in PERCENTILES} if count else {},
        "bins": {str(low): number for low, _, number in histogram(latencies_ns)},
    }


def at(latencies_ns: Sequence[int], share: float) -> int:
    """Return the nanoseconds within which ``share`` of the commands completed; 0 where there were none."""
    count = len(latencies_ns)
    return latencies_ns[min(int(count * share), count - 1)] if count else 0


def histogram(latencies_ns: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return ``(from, to, commands)`` in nanoseconds: two classes for each power of two, the empty ones at the ends
    left out. ``latencies_ns`` ascending.
    """
    if not latencies_ns:
        return []
    bounds = [0, *sorted({round(2 ** (step / 2)) for step in range(2, 96)})]
    edges = [bisect_left(latencies_ns, bound) for bound in bounds]
    classes = [(low, high, edges[index + 1] - edges[index]) for index, (low, high) in enumerate(pairwise(bounds))]
    filled = [index for index, each in enumerate(classes) if each[2]]
    return classes[filled[0] : filled[-1] + 1]


def histogram_lines(latencies_ns: Sequence[int]) -> Iterable[str]:
    """Yield the histogram as bars."""
    classes = histogram(latencies_ns)
    most = max((number for _, _, number in classes), default=1)
    for low, high, number in classes:
        bar = "█" * max(round(number / most * HISTOGRAM_WIDTH), 1 if number else 0)
        yield f"{low / 1000:>9.1f} to {high / 1000:>9.1f} us  {number:>10,}  {bar}"


# -- two results


@dataclass(frozen=True, slots=True)
class Saved:
    """A result that was saved with ``-o json``, or by fio. ``directions``: fio's objects of reads and writes."""

    name: str
    directions: dict[str, dict[str, Any]]
    cpu_us_per_io: float | None


def load(path: str) -> Saved:
    """Read a result. Raises :class:`ConfigurationError` for a file that is not one."""
    text = read_text(Path(path))
    try:
        found = json.loads(text)
        job = found["jobs"][0]
        directions = {name: job[name] for name in ("read", "write") if job[name]["total_ios"]}
        for each in directions.values():
            _ = float(each["iops"]), float(each["bw_bytes"]), each["clat_ns"]["percentile"]["50.000000"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise ConfigurationError(f"{path} is no result of bench -o json, nor of fio --output-format=json") from None
    cpu = None
    if "cpu_user_us_per_io" in found:
        cpu = found["cpu_user_us_per_io"] + found["cpu_system_us_per_io"]
    return Saved(path, directions, cpu)


def comparison(one: Saved, other: Saved) -> list[dict[str, Any]]:
    """Return the figures of two results beside each other: ``name``, ``a``, ``b``, ``ratio`` of b to a."""
    rows: list[tuple[str, float | None, float | None]] = []
    for name in ("read", "write"):
        a, b = one.directions.get(name), other.directions.get(name)
        if a is None or b is None:
            continue
        rows.append((f"{name} IOPS", a["iops"], b["iops"]))
        rows.append((f"{name} MB/s", a["bw_bytes"] / 1e6, b["bw_bytes"] / 1e6))
        rows.append((f"{name} mean latency us", a["clat_ns"]["mean"] / 1000, b["clat_ns"]["mean"] / 1000))
        for percentile in ("50.000000", "99.000000", "99.900000"):
            pair = (each["clat_ns"]["percentile"].get(percentile) for each in (a, b))
            x, y = (None if value is None else value / 1000 for value in pair)
            rows.append((f"{name} p{float(percentile):g} us", x, y))
    rows.append(("CPU us per I/O", one.cpu_us_per_io, other.cpu_us_per_io))
    if len(rows) == 1:
        raise ConfigurationError(f"{one.name} and {other.name} have nothing in common: one has reads, one has writes")
    return [
        {"name": name, "a": a, "b": b, "ratio": b / a if a and b is not None else None}
        for name, a, b in rows
        if a is not None and b is not None
    ]


def print_comparison(one: Saved, other: Saved, rows: list[dict[str, Any]]) -> None:
    """Print two results beside each other."""
    headings = ("", one.name, other.name, "ratio")
    shown = [
        (
            each["name"],
            f"{each['a']:,.1f}",
            f"{each['b']:,.1f}",
            "" if each["ratio"] is None else f"{each['ratio']:.2f}",
        )
        for each in rows
    ]
    out.print_table(headings, shown, right=headings[1:])
