"""The offload device beside the software queue: CPU of the application's process for each read, user and system.

One process is connected to one target by both devices, and uses them in turn, round after round. What the application
costs is its own process's CPU clock; what the device costs is that of the device's process. The quotients are those of
the sums of all rounds, so that another program's load falls on both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

import nvmeof
from benchmarks.session import BenchmarkError
from nvmeof.aio.runloop import run as run_loop
from nvmeof.host.client import DEVICES
from nvmeof.host.offload.device import OffloadDevice

SUBNQN: Final = "nqn.2026-01.io.nvmeof:target"
BOTH_GOAL: Final = 1.5
"""CPU of both processes together, as a multiple of the software queue's."""
LARGE: Final = 128 * 1024
SMALL: Final = 4096
DEPTH: Final = 32
NAMESPACE_BYTES: Final = 256 << 20
CHILD_SECONDS: Final = 600


@dataclass(frozen=True)
class Case:
    """What is read, and how: ``form`` is ``awaited`` or ``batch``; ``pool``: into buffers of the device.

    ``goal``: the application's CPU beside that of the software queue, at most; None: for information.
    """

    name: str
    size: int
    depth: int
    form: str
    pool: bool
    goal: float | None


CASES: Final = (
    Case("128 KiB, depth 32, device's buffers", LARGE, DEPTH, "awaited", True, 0.35),
    Case("128 KiB, depth 32, any bytearray", LARGE, DEPTH, "awaited", False, 0.6),
    Case("4 KiB in batches of 32, any bytearray", SMALL, DEPTH, "batch", False, 0.6),
    Case("128 KiB, depth 1, device's buffers", LARGE, 1, "awaited", True, None),
    Case("4 KiB in batches of 32, device's buffers", SMALL, DEPTH, "batch", True, None),
    Case("4 KiB, depth 32, any bytearray", SMALL, DEPTH, "awaited", False, None),
)


@dataclass(frozen=True)
class Plan:
    """How long and how often is measured."""

    seconds: float = 0.5
    rounds: int = 10
    warmup_seconds: float = 0.1


FULL: Final = Plan()
QUICK: Final = Plan(0.2, 3)


@dataclass
class _Spent:
    """CPU seconds for so many reads."""

    reads: int = 0
    application: float = 0.0
    device: float = 0.0


def _cpu_of(pid: int) -> float:
    """Return the CPU seconds, user and system, of another process: its clock, as clock_getcpuclockid(3) names it."""
    return time.clock_gettime((~pid << 3) | 2)


class _Reader:
    """Reads of one case over one controller."""

    def __init__(self, controller: nvmeof.HostController, case: Case) -> None:
        self._case = case
        self._namespace = controller.namespace(1)
        self._buffer = controller.take_buffer(case.size * case.depth) if case.pool else None
        whole = memoryview(bytearray(case.size * case.depth)) if self._buffer is None else self._buffer.view
        self._whole = whole
        self._views = [whole[at : at + case.size] for at in range(0, len(whole), case.size)]
        blocks = self._namespace.size_blocks
        self._step = case.size // self._namespace.block_bytes
        self._starts = [at * self._step for at in range(blocks // self._step)]

    async def read(self, seconds: float) -> int:
        """Read for so long; the number of reads."""
        loop, done = asyncio.get_running_loop(), 0
        until = loop.time() + seconds
        starts, namespace, step, case = self._starts, self._namespace, self._step, self._case

        async def worker(index: int) -> None:
            nonlocal done
            view, at = self._views[index], index
            while loop.time() < until:
                await namespace.read_into(starts[at % len(starts)], view)
                at += case.depth
                done += 1

        if case.form == "awaited":
            await asyncio.gather(*map(worker, range(case.depth)))
            return done
        at = 0
        while loop.time() < until:
            await namespace.read_many(starts[at : at + case.depth], step, into=self._whole)
            at = (at + case.depth) % (len(starts) - case.depth)
            done += case.depth
        return done

    def close(self) -> None:
        """Give the buffer back."""
        if self._buffer is not None:
            self._views.clear()
            self._whole = memoryview(b"")
            self._buffer.release()


async def _measure(read: Callable[[float], Awaitable[int]], plan: Plan, device: int | None, spent: _Spent) -> None:
    await read(plan.warmup_seconds)
    before, device_before = time.process_time(), 0.0 if device is None else _cpu_of(device)
    spent.reads += await read(plan.seconds)
    spent.application += time.process_time() - before
    if device is not None:
        spent.device += _cpu_of(device) - device_before


async def _case(controllers: tuple[nvmeof.HostController, nvmeof.HostController], case: Case, plan: Plan) -> Any:
    device = next(each for each in DEVICES if isinstance(each, OffloadDevice)).process_id()
    readers = [_Reader(each, case) for each in controllers]
    software, offload = _Spent(), _Spent()
    for number in range(plan.rounds):
        # each goes first as often as the other
        for which in (0, 1) if number % 2 else (1, 0):
            await _measure(readers[which].read, plan, device if which else None, offload if which else software)
    for each in readers:
        each.close()
    one = software.application / software.reads
    mine, device_each = offload.application / offload.reads, offload.device / offload.reads
    return {
        "case": case.name,
        "goal": case.goal,
        "software_us": one * 1e6,
        "application_us": mine * 1e6,
        "device_us": device_each * 1e6,
        "ratio": mine / one,
        "both_ratio": (mine + device_each) / one,
        "reads": [software.reads, offload.reads],
    }


async def _child(port: int, plan: Plan) -> list[Any]:
    async def connect(transport: str) -> nvmeof.HostController:
        return await nvmeof.connect("127.0.0.1", port, subnqn=SUBNQN, transport=transport)

    async with await connect("tcp") as software, await connect("tcp_offload") as offload:
        for each in (software, offload):
            await each.namespace(1).refresh()
        return [await _case((software, offload), case, plan) for case in CASES]


@contextmanager
def _target() -> Iterator[int]:
    command = [sys.executable, "-m", "nvmeof.target", "--listen", "127.0.0.1:0", "-o", "json", "--trtype", "tcp"]
    command += ["--ramdisk", str(NAMESPACE_BYTES)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        with process.stdout:
            yield json.loads(process.stdout.readline())["listeners"][0]["port"]
    finally:
        process.terminate()
        process.wait()


def run(plan: Plan) -> list[dict[str, Any]]:
    """Measure all cases; one mapping for each. Raises BenchmarkError."""
    with _target() as port:
        command = [sys.executable, "-m", "benchmarks.offload", "--port", str(port)]
        command += ["--seconds", str(plan.seconds), "--rounds", str(plan.rounds)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, timeout=CHILD_SECONDS, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise BenchmarkError(f"the offload benchmark failed: {error}") from error
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def check_goals(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals as the other benchmarks do."""
    return [
        {
            "goal": f"offload, {each['case']}, CPU of {what} / software queue: <= {limit}",
            "value": each[key],
            "reached": each[key] <= limit,
            "noisy": False,
        }
        for each in results
        if each["goal"] is not None
        for what, key, limit in (
            ("the application", "ratio", each["goal"]),
            ("both processes", "both_ratio", BOTH_GOAL),
        )
    ]


def print_results(console: Console, results: list[dict[str, Any]]) -> None:
    """One line per case."""
    title = "Offload device: CPU of one read, user and system, in us"
    table = Table(title=title, title_justify="left")
    table.add_column("case")
    for column in ("software queue", "application", "device", "application / software", "both / software"):
        table.add_column(column, justify="right")
    for each in results:
        cells = (f"{each[key]:.1f}" for key in ("software_us", "application_us", "device_us"))
        table.add_row(each["case"], *cells, f"{each['ratio']:.2f}", f"{each['both_ratio']:.2f}")
    console.print(table)


def main() -> None:
    """Measure over the target at a port, and print JSON: the process that :func:`run` starts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offload", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=FULL.seconds)
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    options = parser.parse_args()
    plan = Plan(options.seconds, options.rounds)
    print(json.dumps(run_loop(_child(options.port, plan))))


if __name__ == "__main__":
    main()
