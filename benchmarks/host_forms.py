"""CPU time of the host's process per 4 KiB read at depth 32, by the form in which a program asks: over TCP on loopback.

The target is a process of its own with a ramdisk. User and system time are the kernel's account of this process; of
several rounds the median, by user time, is printed, and the least. Run it with nothing beside it.

With --paths the same over NVMe multipath, for each I/O policy; there are no goals for that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import nvmeof
from nvmeof.aio.runloop import run
from nvmeof.host.head_load import HeadLoad
from nvmeof.host.load import Load
from nvmeof.host.multipath.iopolicy import IOPOLICIES
from nvmeof.host.namespace import Namespace
from nvmeof.host.queue import Queue

SIZE: Final = 4096
DEPTH: Final = 32
ADDRESSES: Final = 4096
GOALS_US: Final = {"awaited": 6.0, "batches": 2.5, "bench": 2.5}
"""User time per read that each form is to stay within."""


@dataclass(frozen=True)
class Round:
    """What one round of a form cost, in microseconds per read, and how many reads it did in a second."""

    user_us: float
    system_us: float
    iops: float


class Forms:
    """The forms: each is a coroutine that reads for some seconds and returns how many reads that were."""

    def __init__(self, namespace: Namespace, queues: Sequence[Queue] = ()) -> None:
        self._queues = queues
        self._namespace = namespace
        slots = self._namespace.size_bytes // SIZE
        self._blocks = SIZE // self._namespace.block_bytes
        self._lbas = [random.randrange(slots) * self._blocks for _ in range(ADDRESSES)]

    def all(self) -> dict[str, Callable[[float], Awaitable[int]]]:
        """By the names of `GOALS_US`."""
        return {
            "awaited": self.awaited,
            "batches": self.batches,
            "bench": self.bench if self._queues else self.head_bench,
        }

    async def awaited(self, seconds: float) -> int:
        """``await namespace.read_into(...)`` in as many tasks as the depth."""
        count, running, namespace, lbas = 0, True, self._namespace, self._lbas

        async def worker(index: int) -> None:
            nonlocal count
            buffer = memoryview(bytearray(SIZE))
            while running:
                await namespace.read_into(lbas[index % ADDRESSES], buffer)
                index += DEPTH
                count += 1

        tasks = [asyncio.create_task(worker(index)) for index in range(DEPTH)]
        await asyncio.sleep(seconds)
        running = False
        await asyncio.gather(*tasks)
        return count

    async def batches(self, seconds: float) -> int:
        """``await namespace.read_many(...)`` of as many reads as the depth, one batch after the other."""
        count, into, end = 0, bytearray(SIZE * DEPTH), time.monotonic() + seconds
        while time.monotonic() < end:
            first = count % ADDRESSES
            await self._namespace.read_many(self._lbas[first : first + DEPTH], self._blocks, into=into)
            count += DEPTH
        return count

    async def bench(self, seconds: float) -> int:
        """What ``python -m nvmeof.host bench`` does."""
        return await self._under(Load(self._namespace, self._queues, "randread", SIZE, DEPTH), seconds)

    async def head_bench(self, seconds: float) -> int:
        """The same over several paths."""
        return await self._under(HeadLoad(self._namespace, "randread", SIZE, DEPTH), seconds)

    async def _under(self, load: Load | HeadLoad, seconds: float) -> int:
        load.start()
        load.open_window()
        await asyncio.wait([load.finished], timeout=seconds)
        ios = load.close_window().ios
        load.stop()
        await load.finished
        return ios


async def _measure(form: Callable[[float], Awaitable[int]], seconds: float, rounds: int) -> list[Round]:
    await form(min(seconds, 0.3))
    found = []
    for _ in range(rounds):
        began, before = time.monotonic(), os.times()
        count = await form(seconds)
        after, took = os.times(), time.monotonic() - began
        each = 1e6 / max(count, 1)
        found.append(Round((after.user - before.user) * each, (after.system - before.system) * each, count / took))
    return sorted(found, key=lambda one: one.user_us)


@contextmanager
def _target() -> Iterator[int]:
    command = [sys.executable, "-m", "nvmeof.target", "--listen", "0.0.0.0:0", "--ramdisk", "256M", "-o", "json"]
    process = subprocess.Popen(
        [*command, "--trtype", "tcp"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            yield json.loads(process.stdout.readline())["listeners"][0]["port"]
    finally:
        process.terminate()
        process.wait()


async def _run(port: int, seconds: float, rounds: int, disable_sqflow: bool) -> bool:
    reached = True
    async with await nvmeof.connect(
        "127.0.0.1", port, transport="tcp", subnqn="nqn.2026-01.io.nvmeof:target", disable_sqflow=disable_sqflow
    ) as controller:
        await controller.namespace(1).refresh()
        for name, form in Forms(controller.namespace(1), controller.io_queues).all().items():
            flow = "without" if disable_sqflow else "with"
            reached &= _show(name, flow, await _measure(form, seconds, rounds), GOALS_US[name])
    return reached


def _show(name: str, flow: str, results: list[Round], goal: float | None) -> bool:
    """Print a line; whether the goal is reached, where there is one."""
    median = results[len(results) // 2]
    reached = goal is None or median.user_us <= goal
    print(
        f"{name:<23}{flow:<8}{median.user_us:>6.2f}{results[0].user_us:>7.2f}{median.system_us:>8.2f}"
        f"{median.iops:>11,.0f}{'' if goal is None else f'{goal:>6.1f}'} {'' if reached else 'missed'}"
    )
    return reached


async def _run_paths(port: int, seconds: float, rounds: int, paths: int) -> None:
    addresses = [f"127.0.0.{number}:{port}" for number in range(1, paths + 1)]
    async with await nvmeof.connect_multipath(
        *addresses, transport="tcp", subnqn="nqn.2026-01.io.nvmeof:target", all_paths=True
    ) as subsystem:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        for policy in IOPOLICIES:
            subsystem.iopolicy = policy
            for name, form in Forms(namespace).all().items():
                _show(f"{name}, {policy}", "with", await _measure(form, seconds, rounds), None)


def main() -> int:
    """Print a table; with --strict a goal that is missed makes the exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_forms", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round (1)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each form (9)")
    parser.add_argument("--paths", type=int, default=0, help="over so many NVMe paths (0: over one controller)")
    parser.add_argument("--strict", action="store_true", help="exit with 2 when a goal is missed")
    options = parser.parse_args()
    print("us per 4 KiB read      flow ctl  user  least  system       IOPS  goal")
    reached = True
    with _target() as port:
        if options.paths:
            run(_run_paths(port, options.seconds, options.rounds, options.paths))
            return 0
        for disable_sqflow in (False, True):
            reached &= run(_run(port, options.seconds, options.rounds, disable_sqflow))
    return 0 if reached or not options.strict else 2


if __name__ == "__main__":
    sys.exit(main())
