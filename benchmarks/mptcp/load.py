"""Loads that a host puts on one or several controllers: requests that are sent again as soon as they complete."""

from __future__ import annotations

import asyncio
import os
import random
import time
from array import array
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from benchmarks.session import BenchmarkError
from nvmeof.errors import NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.namespace import Namespace
from nvmeof.host.queue import Queue, Request

STOP_SECONDS = 60.0
ADDRESSES = 4096


class Load:
    """``depth`` requests per queue on ``queues``, in turn over all of them (Linux's ``round-robin``), until stopped.

    What completes between :meth:`open_window` and :meth:`close_window` counts.
    """

    def __init__(self, namespace: Namespace, queues: Sequence[Queue], pattern: str, size: int, depth: int) -> None:
        self.size = size
        self.latencies_ns = array("q")
        self.error: NvmeofError | None = None
        self.running = True
        self.active = 0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues = list(queues)
        self._turn = 0
        self._depth = depth
        self._write = pattern.endswith("write")
        self.next_sqe = cycle(_sqes(namespace, pattern, size)).__next__
        self._opened = 0.0

    def start(self, ramp_seconds: float = 0.0) -> None:
        """Submit the first requests, the queues in turn; spread over ``ramp_seconds``, so that windows can grow."""
        data = os.urandom(self.size) if self._write else None
        loop, count = asyncio.get_running_loop(), self._depth * len(self._queues)
        for index in range(count):
            if ramp_seconds:
                loop.call_later(ramp_seconds * index / count, self._add, data)
            else:
                self._add(data)

    def _add(self, data: bytes | None) -> None:
        if self.running:
            self.active += 1
            LoadRequest(self, data, None if self._write else memoryview(bytearray(self.size))).send()

    def queue(self) -> Queue:
        """The next queue in turn that has room for a request."""
        for _ in self._queues:
            self._turn = (self._turn + 1) % len(self._queues)
            if self._queues[self._turn].room:
                break
        return self._queues[self._turn]

    def open_window(self) -> None:
        """Count from now on."""
        self.latencies_ns = array("q")
        self._opened = time.perf_counter()

    def close_window(self) -> dict[str, Any]:
        """What completed since :meth:`open_window`. Raises what a command failed with."""
        elapsed, latencies = time.perf_counter() - self._opened, sorted(self.latencies_ns)
        if self.error is not None:
            raise self.error
        if not latencies:
            raise BenchmarkError(f"no command of {self.size} bytes completed within {elapsed:.1f} s")

        def percentile(share: float) -> float:
            return latencies[min(int(len(latencies) * share), len(latencies) - 1)] / 1e6

        return {
            "ios": len(latencies),
            "seconds": elapsed,
            "iops": len(latencies) / elapsed,
            "mb_per_s": len(latencies) * self.size / elapsed / 1e6,
            "p50_ms": percentile(0.5),
            "p99_ms": percentile(0.99),
            "max_ms": percentile(1.0),
        }

    async def stop(self) -> None:
        """Send nothing more and wait for what is under way. Raises what a command failed with."""
        self.running = False
        if self.active:
            await asyncio.wait_for(self.finished, STOP_SECONDS)
        if self.error is not None:
            raise self.error

    def ended(self, error: NvmeofError | None) -> None:
        """A request is over for good."""
        self.active -= 1
        if error is not None:
            self.error = self.error or error
            self.running = False
        if not self.active and not self.finished.done():
            self.finished.set_result(None)


class LoadRequest(Request):
    """One of the requests that are always under way."""

    __slots__ = ("load", "started_ns")

    def __init__(self, load: Load, data_out: bytes | None, data_in: memoryview | None) -> None:
        super().__init__(b"", data_out, data_in)
        self.load = load
        self.started_ns = 0

    def send(self) -> None:
        """Submit with the next address, on the next queue."""
        self.sqe = self.load.next_sqe()
        self.started_ns = time.perf_counter_ns()
        try:
            self.load.queue().submit(self)
        except NvmeofError as error:
            self.load.ended(error)

    def completed(self, result: int, status: int) -> None:
        load = self.load
        load.latencies_ns.append(time.perf_counter_ns() - self.started_ns)
        if status >= 2:
            load.ended(NvmeofError(f"a command completed with the status {status >> 1 & 0x7FF:#05x}"))
        elif load.running:
            self.send()
        else:
            load.ended(None)

    def failed(self, error: NvmeofError) -> None:
        self.load.ended(error)


def _sqes(namespace: Namespace, pattern: str, size: int) -> list[bytes]:
    blocks = size // namespace.block_bytes
    slots = namespace.size_blocks // blocks
    starts = [random.randrange(slots) * blocks for _ in range(ADDRESSES)]
    if not pattern.startswith("rand"):
        starts = [slot % slots * blocks for slot in range(ADDRESSES)]
    make = sqe_builders.write if pattern.endswith("write") else sqe_builders.read
    return [make(namespace.nsid, start, blocks) for start in starts]


class Verifier:
    """Writes blocks with contents that tell place and generation, reads them back and compares, for ever.

    Each of ``workers`` tasks owns some slots of ``size`` bytes. A completion is noted with the time (CLOCK_MONOTONIC,
    which all processes share) and its bytes.
    """

    def __init__(self, namespace: Namespace, size: int, workers: int, slots_each: int) -> None:
        self._namespace = namespace
        self._size = size
        self._workers = workers
        self._slots_each = slots_each
        self._pool = random.Random(20260101).randbytes(size * 2)
        self._written: dict[int, int] = {}
        self.times: list[float] = []
        self.errors: list[str] = []
        self.lost_bytes = 0
        self.running = True

    def contents(self, slot: int, generation: int) -> bytes:
        """What belongs there."""
        mark = slot.to_bytes(8, "little") + generation.to_bytes(8, "little")
        start = (slot * 7919 + generation * 104729) % self._size
        return mark + self._pool[start : start + self._size - 16]

    async def run(self, seconds: float) -> None:
        """Work for so long, then read everything once more."""
        ending = asyncio.get_running_loop().call_later(seconds, self._end)
        try:
            await asyncio.gather(*(self._work(worker) for worker in range(self._workers)))
            slots = list(self._written.items())
            for first in range(0, len(slots), self._workers):
                await asyncio.gather(*(self._compare(*pair) for pair in slots[first : first + self._workers]))
        finally:
            ending.cancel()

    def _end(self) -> None:
        self.running = False

    def _over(self) -> bool:
        return not self.running

    async def _work(self, worker: int) -> None:
        generation = 0
        while self.running:
            generation += 1
            for slot in range(worker * self._slots_each, (worker + 1) * self._slots_each):
                if self._over():
                    return
                await self._write(slot, generation)
                await self._compare(slot, generation)

    async def _write(self, slot: int, generation: int) -> None:
        block = slot * (self._size // self._namespace.block_bytes)
        try:
            await self._namespace.write(block, self.contents(slot, generation))
        except NvmeofError as error:
            self._failed(error)
            return
        self._written[slot] = generation
        self.times.append(time.monotonic())

    async def _compare(self, slot: int, generation: int) -> None:
        if self._written.get(slot) != generation:
            return
        blocks = self._size // self._namespace.block_bytes
        try:
            found = await self._namespace.read(slot * blocks, blocks)
        except NvmeofError as error:
            self._failed(error)
            return
        self.times.append(time.monotonic())
        if found != self.contents(slot, generation):
            expected = self.contents(slot, generation)
            self.lost_bytes += sum(a != b for a, b in zip(found, expected, strict=False))

    def _failed(self, error: NvmeofError) -> None:
        self.errors.append(str(error))
        self.running = len(self.errors) < 100 and self.running
