"""A load that verifies: each block carries its address and its generation, and each read is checked.

Runs in the guest too, with nothing but Python's library, on any block device.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from typing import Any, Protocol

_STAMP = struct.Struct("<8sQQQ")
MAGIC = b"survive\0"
SLOW_SECONDS = 0.25
"""A command that takes longer is recorded."""
REMEMBERED = 200
PIECES = (1, 8, 8, 64)
"""Blocks of a command, drawn at random."""


class Device(Protocol):
    """The Protocol of a block device. Both methods raise :attr:`failure`."""

    block_bytes: int

    @property
    def failure(self) -> type[Exception]:
        """The exception of both methods."""
        ...

    async def read(self, first: int, blocks: int) -> bytes:
        """Return the data of ``blocks`` blocks from block ``first`` on."""
        ...

    async def write(self, first: int, data: bytes) -> None:
        """Write whole blocks from block ``first`` on."""
        ...


def stamp(run: int, block: int, generation: int, block_bytes: int) -> bytes:
    """Return the content of a block: which run wrote it, where it belongs, and how often it was written before."""
    return _STAMP.pack(MAGIC, run, block, generation) * (block_bytes // _STAMP.size)


def describe(data: bytes) -> str:
    """Describe the wrong content of a block, for a message."""
    magic, run, block, generation = _STAMP.unpack_from(data)
    if magic != MAGIC:
        return f"{data[:16].hex()}..."
    whole = data == stamp(run, block, generation, len(data))
    return f"run {run:#x} block {block} generation {generation}{'' if whole else ' and something else'}"


class VerifyingLoad:
    """``workers`` tasks that read and write the ``blocks`` blocks from ``first`` on, each of them its own part.

    A block may hold the last acknowledged content, or that of a later failed write, whose outcome is unknown.
    """

    def __init__(
        self, device: Device, run: int, first: int, blocks: int, *, workers: int = 4, pause_seconds: float = 0.02
    ) -> None:
        self.device = device
        self.run = run
        self.reads = self.writes = 0
        self.longest_seconds = 0.0
        self.slow: list[tuple[float, float, str]] = []
        """Slow commands: their beginning, duration and kind."""
        self.errors: list[tuple[float, str]] = []
        self.error_count = 0
        self.wrong: list[tuple[float, str]] = []
        self._first, self._blocks, self._workers, self._pause = first, blocks, workers, pause_seconds
        self._generation: dict[int, int] = {}
        self._uncertain: dict[int, set[int]] = {}
        self._next = 0
        self._running = True
        self._tasks: list[asyncio.Task[None]] = []

    async def fill(self) -> None:
        """Write each block once. Raises the device's error."""
        for first in range(self._first, self._first + self._blocks, max(PIECES)):
            await self._write(first, max(PIECES))
        self.errors_must_be_none()

    def errors_must_be_none(self) -> None:
        """Raise RuntimeError where a command has failed."""
        if self.errors:
            raise RuntimeError(self.errors[0][1])

    def start(self) -> None:
        """Begin the load."""
        share = self._blocks // self._workers
        for index in range(self._workers):
            work = self._work(random.Random(self.run + index), self._first + index * share, share)
            self._tasks.append(asyncio.create_task(work))

    async def stop(self) -> None:
        """Send nothing more, and wait for the outstanding commands."""
        self._running = False
        await asyncio.gather(*self._tasks)

    async def verify(self) -> int:
        """Read everything again; return how many blocks were compared."""
        for first in range(self._first, self._first + self._blocks, max(PIECES)):
            await self._read(first, max(PIECES))
        return self._blocks

    async def _work(self, draw: random.Random, first: int, blocks: int) -> None:
        while self._running:
            count = draw.choice(PIECES)
            begin = first + draw.randrange(blocks - count + 1)
            failed = self.error_count
            await (self._write if draw.random() < 0.5 else self._read)(begin, count)
            await asyncio.sleep(self._pause if failed == self.error_count else 10 * self._pause)

    async def _write(self, first: int, count: int) -> None:
        self._next += 1
        generation = self._next
        data = b"".join(
            stamp(self.run, block, generation, self.device.block_bytes) for block in range(first, first + count)
        )
        begun = time.time()
        try:
            await self.device.write(first, data)
        except self.device.failure as error:
            for block in range(first, first + count):
                self._uncertain.setdefault(block, set()).add(generation)
            self._failed(begun, f"write of {count} blocks at {first}", error)
            return
        self._took(begun, "write")
        self.writes += 1
        for block in range(first, first + count):
            self._generation[block] = generation
            self._uncertain.pop(block, None)

    async def _read(self, first: int, count: int) -> None:
        begun = time.time()
        try:
            data = await self.device.read(first, count)
        except self.device.failure as error:
            self._failed(begun, f"read of {count} blocks at {first}", error)
            return
        self._took(begun, "read")
        self.reads += 1
        size = self.device.block_bytes
        for index in range(count):
            block, found = first + index, data[index * size : (index + 1) * size]
            allowed = {self._generation.get(block, 0), *self._uncertain.get(block, ())}
            if all(found != stamp(self.run, block, generation, size) for generation in allowed):
                wanted = " or ".join(map(str, sorted(allowed)))
                self._remember(self.wrong, begun, f"block {block} (generation {wanted} is right) has {describe(found)}")

    def _took(self, begun: float, what: str) -> None:
        seconds = time.time() - begun
        self.longest_seconds = max(self.longest_seconds, seconds)
        if seconds > SLOW_SECONDS and len(self.slow) < REMEMBERED:
            self.slow.append((begun, seconds, what))

    def _failed(self, begun: float, what: str, error: Exception) -> None:
        self.error_count += 1
        self._remember(
            self.errors, time.time(), f"{what}, {time.time() - begun:.2f} s: {type(error).__name__}: {error}"
        )

    @staticmethod
    def _remember(where: list[tuple[float, str]], at: float, what: str) -> None:
        if len(where) < REMEMBERED:
            where.append((at, what))

    def result(self) -> dict[str, Any]:
        """Return counts and faults, for ``json.dumps``."""
        return {
            "reads": self.reads,
            "writes": self.writes,
            "longest_seconds": self.longest_seconds,
            "slow": self.slow,
            "errors": self.errors,
            "error_count": self.error_count,
            "wrong": self.wrong,
        }
