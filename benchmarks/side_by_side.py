"""This checkout beside another one, in turns (A B A B): CPU per I/O of the target and of the host, memory when idle.

    git worktree add ../before COMMIT
    python -m benchmarks.side_by_side loopback --against ../before --case 'tcp-read*'
    python -m benchmarks.side_by_side host --against ../before
    python -m benchmarks.side_by_side idle --against ../before

Both builds meet the same weather, and the load comes from this checkout alone. The figures are medians over the
rounds; ``user`` is also given pooled over all of them, since the kernel splits user from system time by its tick, which
a single sample has few of. A pair of samples in which a process had to wait for its core is left out; ~ marks a case
that has no other. Goals: at most 1.05 of the other build's user CPU per I/O, and no more memory per idle
connection.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from benchmarks.cases import Case, full_grid
from benchmarks.loopback import Plan, fill, is_quiet
from benchmarks.processes import (
    ROOT,
    SUBNQN,
    Cores,
    Server,
    choose_cores,
    free_port,
    generate,
    mptcp_available,
    pinned,
    stop,
    target_arguments,
    wait_for_port,
)
from benchmarks.session import CC_ENABLE, DYNAMIC_CNTLID, BenchmarkError, Queue, open_socket

USER_GOAL: Final = 1.05
IDLE_GOAL: Final = 1.0
SIZE_BYTES: Final = 1 << 28
QUEUES_EACH: Final = 15
"""I/O queues of one association, beside its admin queue."""
PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024
SETTLE_SECONDS: Final = 0.3
COLLECTING: Final = (
    "import gc, runpy, signal; signal.signal(signal.SIGUSR1, lambda *_: gc.collect()); "
    "runpy.run_module('nvmeof.target', run_name='__main__', alter_sys=True)"
)
"""A target that collects its garbage when it is told to."""
AWAITABLE: Final = Path(__file__).with_name("awaitable.py")
HOST_CASES: Final = (("read", 4096, 32), ("read", 4096, 1), ("write", 4096, 32), ("read", 1 << 17, 8))


@dataclass(frozen=True)
class Build:
    """A checkout that is measured."""

    name: str
    folder: Path


@dataclass
class Side:
    """The samples of one build in one case: user CPU and user and system CPU per I/O (us), and how many I/Os."""

    user: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    ios: list[int] = field(default_factory=list)

    def add(self, user_seconds: float, system_seconds: float, ios: int) -> None:
        """Take one sample."""
        self.user.append(user_seconds / ios * 1e6)
        self.both.append((user_seconds + system_seconds) / ios * 1e6)
        self.ios.append(ios)

    @property
    def pooled(self) -> float:
        """User CPU per I/O over all samples together."""
        return sum(u * n for u, n in zip(self.user, self.ios, strict=True)) / sum(self.ios)


def _started(argv: Sequence[str], build: Build, cpu: int | None, **files: Any) -> subprocess.Popen[str]:
    """Start a process with the modules of ``build``: where it runs comes before where it is told to search."""
    return pinned(argv, cpu, search=[str(build.folder)], cwd=build.folder, **files)


@contextlib.contextmanager
def target_of(
    build: Build, trtype: str, storage: Sequence[str], cpu: int | None, *, collecting: bool = False
) -> Iterator[Server]:
    """Run a target process of ``build`` for the time of the block."""
    port = free_port()
    launcher = [sys.executable, *(["-c", COLLECTING] if collecting else ["-m", "nvmeof.target"])]
    argv = [*launcher, *target_arguments(port, trtype=trtype, storage=storage, congestion=None)]
    with tempfile.TemporaryFile("w+") as log:
        process = _started(argv, build, cpu, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_port(process, port, log)
            yield Server(build.name, process.pid, port)
        finally:
            stop(process)


def _ratio(here: float, there: float) -> float:
    """Return here / there; not a number where so little was done that the kernel counted no CPU time."""
    return here / there if there else math.nan


def _print_sides(name: str, there: Side, here: Side) -> tuple[str, float]:
    """Print one line; return the name and the ratio of the medians of user CPU."""
    user = _ratio(statistics.median(here.user), statistics.median(there.user))
    both = _ratio(statistics.median(here.both), statistics.median(there.both))
    pooled = _ratio(here.pooled, there.pooled)
    figures = f"{statistics.median(there.user):>9.2f}{statistics.median(here.user):>9.2f}{user:>8.3f}{pooled:>8.3f}"
    print(f"{name:<34}{len(here.user):>3}{figures}{both:>9.3f}", flush=True)
    return name, user


def _head(what: str) -> None:
    print(f"{what:<34}{'n':>3}{'there us':>9}{'here us':>9}{'user':>8}{'pooled':>8}{'u+s':>9}", flush=True)


# -- the target under load -------------------------------------------------------------------------------------------


def loopback(builds: tuple[Build, Build], cases: Sequence[Case], plan: Plan, cores: Cores) -> list[tuple[str, float]]:
    """Measure the target's CPU per I/O in each case; return the ratios of user CPU."""
    ratios = []
    _head("target, user CPU per I/O")
    for transport, kind in dict.fromkeys((case.transport, case.storage) for case in cases):
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            servers = []
            for build in builds:
                storage = ["--ramdisk", str(plan.size_bytes)]
                if kind == "file":
                    path = Path(folder) / f"{build.name}.img"
                    with path.open("wb") as file:
                        file.truncate(plan.size_bytes)
                    storage = ["--file", str(path)]
                servers.append(stack.enter_context(target_of(build, transport, storage, cores.server)))
            for server in servers:
                fill(server, cores, plan, transport)
            for case in (c for c in cases if (c.transport, c.storage) == (transport, kind)):
                ratios.append(_loopback_case(case, servers, plan, cores))
    return ratios


def _loopback_case(case: Case, servers: Sequence[Server], plan: Plan, cores: Cores) -> tuple[str, float]:
    quiet, noisy = (Side(), Side()), (Side(), Side())
    arguments = [*case.arguments(), *plan.arguments()]
    for _ in range(plan.most_pairs):
        samples = [generate(server, cores.generator, arguments) for server in servers]
        for side, sample in zip(quiet if all(map(is_quiet, samples)) else noisy, samples, strict=True):
            side.add(sample["server_cpu"]["user"], sample["server_cpu"]["system"], sample["ios"])
        if len(quiet[0].ios) >= plan.pairs:
            break
    if not quiet[0].ios:  # something else runs on this machine
        return _print_sides(f"{case.name} ~", *noisy)
    return _print_sides(case.name, *quiet)


# -- the host --------------------------------------------------------------------------------------------------------


def host(builds: tuple[Build, Build], rounds: int, seconds: float, cores: Cores) -> list[tuple[str, float]]:
    """Measure the host's CPU per I/O against one target, by the awaitable API and by `bench`; return the ratios."""
    ratios = []
    _head("host, user CPU per I/O")
    with target_of(builds[1], "tcp", ["--ramdisk", str(SIZE_BYTES)], cores.server) as server:
        fill(server, cores, Plan(size_bytes=SIZE_BYTES), "tcp")
        for way in (_awaitable, _bench):
            for op, size, depth in HOST_CASES:
                sides = Side(), Side()
                for _ in range(rounds):
                    for side, build in zip(sides, builds, strict=True):
                        side.add(*way(build, server, cores.generator, op, size, depth, seconds))
                ratios.append(_print_sides(f"{way.__name__[1:]}-{op}-{size >> 10}k-d{depth}", *sides))
    return ratios


def _run(argv: Sequence[str], build: Build, cpu: int | None) -> dict[str, Any]:
    process = _started(argv, build, cpu, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    try:
        result: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise BenchmarkError(f"{build.name}: {(err.strip().splitlines() or ['no output'])[-1]}") from error
    return result


def _awaitable(
    build: Build, server: Server, cpu: int | None, op: str, size: int, depth: int, seconds: float
) -> tuple[float, float, int]:
    argv = [sys.executable, str(AWAITABLE), "--port", str(server.port), "--op", op, "--bs", str(size)]
    found = _run([*argv, "--depth", str(depth), "--seconds", str(seconds)], build, cpu)
    return found["user"], found["system"], found["ios"]


def _bench(
    build: Build, server: Server, cpu: int | None, op: str, size: int, depth: int, seconds: float
) -> tuple[float, float, int]:
    argv = [sys.executable, "-m", "nvmeof.host", "bench", "-t", "tcp", "-a", "127.0.0.1", "-s", str(server.port)]
    argv += ["-n", SUBNQN, "--rw", f"rand{op}", "-b", str(size), "-d", str(depth), "--runtime", str(seconds)]
    argv += ["-o", "json", *["--write-anyway"] * (op == "write")]
    found = _run(argv, build, cpu)
    ios = int(found["ios"])
    return found["cpu_user_us_per_io"] * ios / 1e6, found["cpu_system_us_per_io"] * ios / 1e6, ios


# -- memory ----------------------------------------------------------------------------------------------------------


def idle(
    builds: tuple[Build, Build], connections: int, rounds: int, transports: Sequence[str], cores: Cores
) -> list[tuple[str, float]]:
    """Measure the target's KiB per idle connection; return the ratios."""
    ratios = []
    print(f"{'KiB per idle connection':<34}{'n':>3}{'there':>9}{'here':>9}{'ratio':>8}", flush=True)
    for transport in transports:
        found: tuple[list[float], list[float]] = [], []
        for _ in range(rounds):
            for build, figures in zip(builds, found, strict=True):
                figures.append(_idle_kib(build, transport, connections, cores))
        there, here = map(statistics.median, found)
        name = f"{transport}, {connections:,} connections"
        print(f"{name:<34}{rounds:>3}{there:>9.2f}{here:>9.2f}{here / there:>8.3f}", flush=True)
        ratios.append((name, here / there))
    return ratios


def _idle_kib(build: Build, transport: str, connections: int, cores: Cores) -> float:
    with (
        target_of(build, transport, ["--ramdisk", "1M"], cores.server, collecting=True) as server,
        contextlib.ExitStack() as stack,
    ):
        _associate(server, transport, stack)  # what the first one loads is no connection's
        before, count = _rss_kib(server), 0
        while count < connections:
            count += _associate(server, transport, stack)
        return (_rss_kib(server) - before) / count


def _associate(server: Server, transport: str, stack: contextlib.ExitStack) -> int:
    """Open an association with all of its queues; return how many connections these are."""

    def queue() -> Queue:
        sock = open_socket("127.0.0.1", server.port, mptcp=transport == "mptcp", congestion=None)
        return Queue(stack.enter_context(sock))

    admin = queue()
    cntlid = admin.connect(SUBNQN, 0, 31, 0, DYNAMIC_CNTLID)
    admin.property_set(0x14, CC_ENABLE)
    for qid in range(1, QUEUES_EACH + 1):
        queue().connect(SUBNQN, qid, 127, 4, cntlid)
    return 1 + QUEUES_EACH


def _rss_kib(server: Server) -> int:
    """Let the target collect its garbage and come to rest; return its resident memory."""
    os.kill(server.pid, signal.SIGUSR1)
    time.sleep(SETTLE_SECONDS)
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * PAGE_KIB


# -- command line ----------------------------------------------------------------------------------------------------


def _judge(ratios: Sequence[tuple[str, float]], goal: float) -> int:
    above = [(name, ratio) for name, ratio in ratios if ratio > goal]
    for name, ratio in above:
        print(f"above {goal:g}: {name}: {ratio:.3f}")
    if not above:
        print(f"all {len(ratios)} at most {goal:g}")
    return 2 if above else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: the goal is reached in all cases; 2: it is not; 1: it could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("part", choices=["loopback", "host", "idle"])
    parser.add_argument("--against", type=Path, required=True, metavar="DIR", help="the other checkout")
    parser.add_argument("--case", default="*", help="loopback: names or a pattern [default: all]")
    parser.add_argument("--transport", choices=["tcp", "mptcp"], help="[default: both]")
    parser.add_argument("--file", action="store_true", help="loopback: a file in TMPDIR in place of a ramdisk")
    parser.add_argument("--rounds", type=int, help="[default: 9; idle: 5]")
    parser.add_argument("--seconds", type=float, default=0.6, help="of a sample [default: 0.6]")
    parser.add_argument("--connections", type=int, default=2048, help="idle: how many [default: 2048]")
    options = parser.parse_args(argv)
    builds = Build("there", options.against.resolve()), Build("here", ROOT)
    cores = choose_cores()
    transports = [options.transport] if options.transport else ["tcp", *["mptcp"] * mptcp_available()]
    try:
        if options.part == "idle":
            found = idle(builds, options.connections, options.rounds or 5, transports, cores)
            return _judge(found, IDLE_GOAL)
        rounds = options.rounds or 9
        if options.part == "host":
            return _judge(host(builds, rounds, options.seconds, cores), USER_GOAL)
        cases = [
            Case(
                c.op,
                c.block_size_bytes,
                c.depth,
                c.transport,
                c.digests,
                c.flow_control,
                "file" if options.file else "ramdisk",
            )
            for c in full_grid(tuple(transports))
        ]
        cases = [case for case in cases if fnmatch(case.name, options.case)]
        plan = Plan(
            seconds=options.seconds,
            warmup_seconds=0.15,
            pairs=rounds,
            most_pairs=2 * rounds,
            size_bytes=SIZE_BYTES,
            wait="spin" if cores.server is not None else "poll",
        )
        return _judge(loopback(builds, cases, plan, cores), USER_GOAL)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
