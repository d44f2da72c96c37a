"""Loads that a host puts on one or several controllers: a measuring load, and a verifying one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.session import BenchmarkError
from nvmeof.errors import NvmeofError
from nvmeof.host.load import Load, MeasuredLoad, round_robin
from nvmeof.host.namespace import Namespace
from nvmeof.host.queue import Queue

STOP_SECONDS = 60.0


def round_robin_load(namespace: Namespace, queues: Sequence[Queue], pattern: str, size: int, depth: int) -> Load:
    """Return a load of ``depth`` requests per queue, in turn over the queues of one or several controllers."""
    return Load(namespace, queues, pattern, size, depth, next_queue=round_robin(queues))


def close_window(load: MeasuredLoad) -> dict[str, Any]:
    """Return what completed since :meth:`Load.open_window`. Raises the error of a failed command."""
    figures = load.close_window()
    if load.error is not None:
        raise load.error
    if not figures.ios:
        raise BenchmarkError(f"no command of {figures.block_bytes} bytes completed within {figures.seconds:.1f} s")
    return {
        "ios": figures.ios,
        "seconds": figures.seconds,
        "iops": figures.iops,
        "mb_per_s": figures.megabytes_per_second,
        "p50_ms": figures.latency_us(0.5) / 1000,
        "p99_ms": figures.latency_us(0.99) / 1000,
        "max_ms": figures.latency_us(1.0) / 1000,
    }


async def stop(load: MeasuredLoad) -> None:
    """Send nothing more, and wait for the outstanding commands. Raises the error of a failed command."""
    load.stop()
    await asyncio.wait_for(load.finished, STOP_SECONDS)
    if load.error is not None:
        raise load.error


class BlockDevice(Protocol):
    """The Protocol of what a verifying load works on: a namespace, or a device file with the same methods."""

    @property
    def block_bytes(self) -> int: ...

    async def read(self, lba: int, blocks: int = 1) -> bytes: ...

    async def write(self, lba: int, data: bytes) -> None: ...


class Verifier:
    """Writes blocks whose contents state slot and generation, reads the blocks back and compares, without end.

    Each of ``workers`` tasks owns some slots of ``size`` bytes. A completion is noted with the time (CLOCK_MONOTONIC,
    which all processes share) and its bytes.
    """

    def __init__(self, namespace: BlockDevice, size: int, workers: int, slots_each: int) -> None:
        self._namespace = namespace
        self._size = size
        self._workers = workers
        self._slots_each = slots_each
        self._pool = random.Random(20260101).randbytes(size * 2)
        self._written: dict[int, int] = {}
        self.times: list[float] = []
        self.errors: list[str] = []
        self.lost_bytes = 0
        self.longest_seconds = 0.0
        """The longest time of a command, from its submission to its completion."""
        self.running = True

    def contents(self, slot: int, generation: int) -> bytes:
        """Return the contents of a slot at a generation."""
        mark = slot.to_bytes(8, "little") + generation.to_bytes(8, "little")
        start = (slot * 7919 + generation * 104729) % self._size
        return mark + self._pool[start : start + self._size - 16]

    async def run(self, seconds: float) -> None:
        """Run for ``seconds``, then read all that was written once more."""
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
        began = time.monotonic()
        try:
            await self._namespace.write(block, self.contents(slot, generation))
        except (NvmeofError, OSError) as error:
            self._failed(error)
            return
        self._written[slot] = generation
        self._completed(began)

    async def _compare(self, slot: int, generation: int) -> None:
        if self._written.get(slot) != generation:
            return
        blocks = self._size // self._namespace.block_bytes
        began = time.monotonic()
        try:
            found = await self._namespace.read(slot * blocks, blocks)
        except (NvmeofError, OSError) as error:
            self._failed(error)
            return
        self._completed(began)
        if found != self.contents(slot, generation):
            expected = self.contents(slot, generation)
            self.lost_bytes += sum(a != b for a, b in zip(found, expected, strict=False))

    def _completed(self, began: float) -> None:
        now = time.monotonic()
        self.times.append(now)
        self.longest_seconds = max(self.longest_seconds, now - began)

    def _failed(self, error: Exception) -> None:
        self.errors.append(str(error))
        self.running = len(self.errors) < 100 and self.running
