"""CPU figures of processes and of the machine, from /proc."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuReading:
    """What a process has used up to now, all threads together."""

    wall_seconds: float
    user_ticks: int
    system_ticks: int
    run_seconds: float  # exact, from the scheduler
    wait_seconds: float  # runnable, but waiting for a CPU


@dataclass(frozen=True)
class CpuUse:
    """What a process used between two readings, in seconds.

    The kernel splits user from system by sampling at its tick: over a short window the split is coarse, the sum is not.
    """

    wall: float
    user: float
    system: float
    wait: float

    @property
    def busy(self) -> float:
        """Share of one core that was used, 0..1."""
        return (self.user + self.system) / self.wall if self.wall else 0.0

    @property
    def got(self) -> float:
        """Share of the CPU time that was wanted and was had: below 0.9, somebody else was on the core."""
        wanted = self.user + self.system + self.wait
        return (self.user + self.system) / wanted if wanted else 1.0


def read_cpu(pid: int) -> CpuReading:
    """Raises `OSError` when the process is gone."""
    root = Path("/proc") / str(pid)
    fields = (root / "stat").read_text().rpartition(")")[2].split()
    run = wait = 0
    for task in (root / "task").iterdir():
        with contextlib.suppress(OSError):
            ran, waited, _ = (task / "schedstat").read_text().split()
            run, wait = run + int(ran), wait + int(waited)
    return CpuReading(time.monotonic(), int(fields[11]), int(fields[12]), run / 1e9, wait / 1e9)


def cpu_between(before: CpuReading, after: CpuReading) -> CpuUse:
    user = (after.user_ticks - before.user_ticks) * TICK_SECONDS
    system = (after.system_ticks - before.system_ticks) * TICK_SECONDS
    run = after.run_seconds - before.run_seconds
    if run > 0 and user + system > 0:
        user, system = run * user / (user + system), run * system / (user + system)
    elif run > 0:
        system = run
    return CpuUse(after.wall_seconds - before.wall_seconds, user, system, after.wait_seconds - before.wait_seconds)


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def steal_seconds() -> float:
    """Time that the hypervisor took from all CPUs since boot."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) * TICK_SECONDS


def loop_name() -> str:
    """The event loop that the target picks by default on this machine."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f"uvloop {metadata.version('uvloop')}"
    return "asyncio"


def environment() -> dict[str, object]:
    """The conditions that a number depends on."""
    load = os.getloadavg()
    return {
        "kernel": platform.release(),
        "cpu_model": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "loop": loop_name(),
        "platform": sys.platform,
        "load_average": [round(value, 2) for value in load],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def pin(cpu: int | None) -> None:
    """Run this process on one CPU; None leaves it as it is."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
