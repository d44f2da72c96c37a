"""Slices of all scenarios and builds, interleaved: a fresh target, seven hosts and the measured one for each."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import procstat
from benchmarks.isolation.plan import (
    BASELINE,
    FURTHER_SUBSYSTEMS,
    MAXIMUM_RATIO,
    MISBEHAVIOURS,
    OTHER_SIZE_BYTES,
    OTHER_SUBNQN,
    P99_RATIO,
    RSS_GROWTH_BYTES,
    SIZE_BYTES,
    SUBNQN,
    Plan,
    misbehaving,
)
from benchmarks.processes import ROOT, Cores, Server, free_port, pinned, stop, wait_for_port
from benchmarks.session import BenchmarkError

LAUNCHER = Path(__file__).with_name("target.py")
MIN_GOT = 0.9
TARGET_NICE, LOAD_NICE = -20, -10
"""Priorities, where they are permitted: what else runs on the machine should not have its part in the latencies."""
WORKERS = 4  # threads of a file, which wait for each other too
WINDOW_SECONDS = 1.0
READY_SECONDS = 20.0
END_SECONDS = 40.0
STREAMS = ("ramdisk read", "ramdisk write", "file read", "file write")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Build:
    """A checkout whose target is measured."""

    name: str
    folder: Path


@dataclass
class Figures:
    """What was seen of one scenario with one build, over all of its slices."""

    latencies_us: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STREAMS})
    windows: list[Window] = field(default_factory=list)
    rss_bytes: int = 0
    rss_growth_bytes: int = 0
    offered: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    realtime: bool = True


@dataclass(frozen=True)
class Threads:
    """What a process used and waited for, up to now, in seconds: its main thread, and all others of its threads."""

    wall: float
    main_ran: float
    main_waited: float
    others_ran: float
    others_waited: float
    stolen: float  # by the hypervisor, from the whole machine


def read_threads(pid: int) -> Threads:
    """Read the scheduler's account. Raises `OSError` when the process is gone."""
    figures = {True: [0, 0], False: [0, 0]}
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            ran, waited, _ = (task / "schedstat").read_text().split()
            of_kind = figures[task.name == str(pid)]
            of_kind[0] += int(ran)
            of_kind[1] += int(waited)
    (main_ran, main_waited), (others_ran, others_waited) = figures[True], figures[False]
    return Threads(
        wall=time.monotonic(),
        main_ran=main_ran / 1e9,
        main_waited=main_waited / 1e9,
        others_ran=others_ran / 1e9,
        others_waited=others_waited / 1e9,
        stolen=procstat.steal_seconds(),
    )


def got(before: Threads, after: Threads) -> float:
    """The share of the CPU time that the target was ready to use and had.

    On one core its threads wait for each other. What one waited beyond what the others ran was lost to somebody else,
    and so was what the hypervisor took.
    """
    main, others = after.main_ran - before.main_ran, after.others_ran - before.others_ran
    lost = max(
        after.main_waited - before.main_waited - others,
        after.others_waited - before.others_waited - WORKERS * (main + others),
        0.0,
    )
    lost += after.stolen - before.stolen
    return (main + others) / (main + others + lost) if main + others + lost > 0 else 1.0


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Window:
    """A second of a slice."""

    start: float
    end: float
    got: float
    busy: float


class Watch:
    """Looks at the target once per window, from the load's core."""

    def __init__(self, pid: int) -> None:
        self.windows: list[Window] = []
        self.rss_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the target is gone: the probe tells
            before = read_threads(self._pid)
            while not self._ended.wait(WINDOW_SECONDS):
                after = read_threads(self._pid)
                ran = after.main_ran + after.others_ran - before.main_ran - before.others_ran
                busy = ran / (after.wall - before.wall)
                self.windows.append(Window(before.wall, after.wall, got(before, after), busy))
                self.rss_bytes = max(self.rss_bytes, rss_bytes(self._pid))
                before = after


@contextlib.contextmanager
def running(build: Build, core: int | None, folder: str) -> Iterator[Server]:
    """A target of that build for the time of the block."""
    port = free_port()
    given = {
        "port": port,
        "file": str(Path(folder) / "namespace.img"),
        "size_bytes": SIZE_BYTES,
        "other_size_bytes": OTHER_SIZE_BYTES,
        "subnqn": SUBNQN,
        "other_subnqn": OTHER_SUBNQN,
        "further_subsystems": FURTHER_SUBSYSTEMS,
    }
    with tempfile.TemporaryFile("w+") as log:
        argv = [sys.executable, "-P", str(LAUNCHER), json.dumps(given)]
        process = pinned(argv, core, search=[str(build.folder)], nice=TARGET_NICE, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_port(process, port, log)
            yield Server(build.name, process.pid, port)
        finally:
            stop(process)


class Load:
    """A process on the load's core that says ``ready``, waits for a line, and prints JSON."""

    def __init__(self, name: str, arguments: Sequence[str], core: int | None) -> None:
        self.name = name
        argv = [sys.executable, "-m", *arguments]
        self.process = pinned(argv, core, nice=LOAD_NICE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._watchdog = threading.Timer(READY_SECONDS, self.process.kill)
        self._watchdog.start()

    def ready(self) -> None:
        """Wait until it is connected. Raises `BenchmarkError` with its sentence if it is not."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self._watchdog.cancel()
        if line.strip() != "ready":
            with contextlib.suppress(ValueError, AttributeError):
                raise BenchmarkError(f"{self.name}: {json.loads(line).get('error')}")
            raise BenchmarkError(f"{self.name}: not connected within {READY_SECONDS:g} s")

    def go(self, seconds: float) -> None:
        """Begin."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def result(self, seconds: float) -> dict[str, Any]:
        """What it printed; it is killed when it does not end in time."""
        try:
            out, _ = self.process.communicate(timeout=seconds)
            found: dict[str, Any] = json.loads(out)
        except (subprocess.TimeoutExpired, ValueError):
            self.end()
            return {"error": f"{self.name} did not end in time"}
        return found

    def end(self) -> None:
        """Kill it if it still runs."""
        self._watchdog.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def run_slice(build: Build, scenario: str, cores: Cores, plan: Plan, figures: Figures) -> None:
    """One slice of a scenario; what it shows is added to ``figures``."""
    seconds = plan.slice_seconds
    bad = misbehaving(scenario)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(build, cores.server, folder) as target,
        contextlib.ExitStack() as stack,
    ):

        def start(name: str, module: str, *arguments: str) -> Load:
            load = Load(
                name, [f"benchmarks.isolation.{module}", *arguments, "--port", str(target.port)], cores.generator
            )
            stack.callback(load.end)
            return load

        probe = start("the measured host", "probe")
        probe.ready()
        rss_before = rss_bytes(target.pid)
        hosts = [
            start(f"host {each.number}", "hosts", each.name, *["--behave"] * (each.number not in bad))
            for each in MISBEHAVIOURS
        ]
        for host in hosts:
            host.ready()
        for host in hosts:
            host.go(seconds + 2 * plan.settle_seconds)
        time.sleep(plan.settle_seconds)
        with Watch(target.pid) as watch:
            probe.go(seconds)
            result = probe.result(seconds + END_SECONDS)
        offered = [host.result(END_SECONDS) for host in hosts]
    _add(figures, watch, result, offered, rss_before)


def _add(
    figures: Figures, watch: Watch, result: dict[str, Any], offered: list[dict[str, Any]], rss_before: int
) -> None:
    windows = watch.windows
    dropped = [window for window in windows if window.got < MIN_GOT]
    figures.windows += windows
    figures.rss_bytes = max(figures.rss_bytes, watch.rss_bytes)
    figures.rss_growth_bytes = max(figures.rss_growth_bytes, watch.rss_bytes - rss_before)
    figures.realtime &= bool(result.get("realtime"))
    figures.offered.append({each.name: counts for each, counts in zip(MISBEHAVIOURS, offered, strict=True)})
    if "error" in result:
        figures.errors.append(f"the measured host: {result['error']}")
    for name in STREAMS:
        # One that took longer than a window is judged by all that it touched.
        figures.latencies_us[name] += [
            us
            for at, us in result.get(name, ())
            if us > WINDOW_SECONDS * 1e6
            or not any(window.start <= at and at - us / 1e6 < window.end for window in dropped)
        ]
    if result.get("unanswered"):
        figures.errors.append("commands of the measured host were not answered")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def summarize(figures: Figures, baseline: Figures) -> dict[str, Any]:
    """A scenario's figures, and their ratios to the baseline's of the same build."""
    streams = {}
    for name in STREAMS:
        ours, base = figures.latencies_us[name], baseline.latencies_us[name]
        p99, most = percentile(ours, 0.99), max(ours, default=0.0)
        base_p99, base_most = percentile(base, 0.99), max(base, default=0.0)
        streams[name] = {
            "commands": len(ours),
            "p50_us": percentile(ours, 0.5),
            "p99_us": p99,
            "p999_us": percentile(ours, 0.999),
            "max_us": most,
            "p99_ratio": p99 / base_p99 if base_p99 else 0.0,
            "max_ratio": most / base_most if base_most else 0.0,
        }
    reached = (
        not figures.errors
        and figures.rss_growth_bytes <= RSS_GROWTH_BYTES
        and all(
            each["commands"] and each["p99_ratio"] <= P99_RATIO and each["max_ratio"] <= MAXIMUM_RATIO
            for each in streams.values()
        )
    )
    return {
        "streams": streams,
        "reached": reached,
        "windows": len(figures.windows),
        "dropped": sum(window.got < MIN_GOT for window in figures.windows),
        "busy": sum(window.busy for window in figures.windows) / max(1, len(figures.windows)),
        "all_windows": [asdict(window) for window in figures.windows],
        "rss_bytes": figures.rss_bytes,
        "rss_growth_bytes": figures.rss_growth_bytes,
        "realtime": figures.realtime,
        "offered": figures.offered,
        "errors": figures.errors,
    }


def run(scenarios: Sequence[str], builds: Sequence[Build], cores: Cores, plan: Plan, say: Say) -> list[dict[str, Any]]:
    """Measure; a row per build and scenario, the baseline's first."""
    everything = (BASELINE, *scenarios)
    found = {(build.name, scenario): Figures() for build in builds for scenario in everything}
    for number in range(plan.rounds):
        for scenario in everything:
            for build in builds:
                figures = found[build.name, scenario]
                try:
                    run_slice(build, scenario, cores, plan, figures)
                except BenchmarkError as error:
                    figures.errors.append(str(error))
                said = f": {figures.errors[-1]}" if figures.errors else ""
                say(f"round {number + 1} of {plan.rounds}, {build.name}, {scenario}{said}")
    return [
        {"build": build.name, "scenario": scenario}
        | summarize(found[build.name, scenario], found[build.name, BASELINE])
        for build in builds
        for scenario in everything
    ]


def this_build() -> Build:
    """The checkout that this benchmark belongs to."""
    return Build("this", ROOT)
