"""A load of reads and writes of several sizes, limited in rate or amount, whose data can be verified.

The commands go through the namespace, so that every kind of host and path can carry them; that costs some microseconds
of CPU more for each than :mod:`nvmeof.host.load`, which has one kind of command.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from nvmeof.errors import NvmeofError
from nvmeof.host.load import Figures, MeasuredLoad
from nvmeof.host.namespace import Namespace
from nvmeof.pdu.digest import crc32c


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What is sent. ``sizes``: bytes of a command, each with its weight."""

    sizes: Sequence[tuple[int, int]]
    read_percent: int = 100
    random: bool = True
    depth: int = 32
    bytes_per_second: float | None = None
    ios_per_second: float | None = None
    limit_bytes: int | None = None
    """The load ends when it has sent commands for so many bytes."""
    verify: bool = False
    """Check what is read against what was written."""

    @property
    def slot_bytes(self) -> int:
        """The distance of two places: the largest command."""
        return max(size for size, _ in self.sizes)


@dataclass(slots=True)
class Direction:
    """What the reads, or the writes, did while they were measured."""

    ios: int = 0
    bytes: int = 0
    latencies_ns: Sequence[int] = ()
    """Ascending."""


@dataclass(slots=True)
class _Counter:
    bytes: int = 0
    latencies_ns: array[int] = field(default_factory=lambda: array("q"))

    def figures(self) -> Direction:
        return Direction(len(self.latencies_ns), self.bytes, sorted(self.latencies_ns))


class VerifyError(NvmeofError):
    """Data that was read is not what was written."""


class MixedLoad(MeasuredLoad):
    """``mix.depth`` tasks, each with one command under way, until :meth:`stop` or ``mix.limit_bytes``.

    Used as :class:`nvmeof.host.load.Load` is; :attr:`reads` and :attr:`writes` are what :meth:`close_window` counted.
    """

    def __init__(self, namespace: Namespace, mix: Mix) -> None:
        super().__init__(mix.slot_bytes)
        self.namespace = namespace
        self.mix = mix
        self.reads, self.writes = Direction(), Direction()
        self.verified = 0
        """Commands whose data was checked."""
        self._counters = _Counter(), _Counter()
        self._sizes = [size for size, _ in mix.sizes]
        self._weights = [weight for _, weight in mix.sizes]
        self._slots = namespace.size_bytes // mix.slot_bytes
        self._next = 0
        self._sent_bytes = 0
        self._due = 0.0
        self._busy: set[int] = set()
        self._written: dict[int, tuple[int, int]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._pattern = random.randbytes(2 * mix.slot_bytes)

    def start(self) -> None:
        """Begin all tasks."""
        self._due = time.perf_counter()
        self.active = self.mix.depth
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self.mix.depth)]

    def open_window(self) -> None:
        """Count from now on."""
        super().open_window()
        self._counters = _Counter(), _Counter()

    def close_window(self) -> Figures:
        """Return the figures of all commands; the two directions' are in :attr:`reads` and :attr:`writes`."""
        self.reads, self.writes = (each.figures() for each in self._counters)
        return super().close_window()

    @property
    def counted_bytes(self) -> int:
        """The bytes of the commands completed since :meth:`open_window`."""
        return sum(each.bytes for each in self._counters)

    async def _work(self) -> None:
        error: NvmeofError | None = None
        buffer = bytearray(self.mix.slot_bytes)
        try:
            while self.running and self._take():
                await self._one(buffer)
        except NvmeofError as problem:
            error = problem
        finally:
            if self.active == 1:  # the last one: the amount has been sent and answered
                self.running = False
            self.ended(error)

    def _take(self) -> bool:
        limit = self.mix.limit_bytes
        return limit is None or self._sent_bytes < limit

    def _place(self) -> int | None:
        """Return a slot that no other command is using; None where all that were tried are in use."""
        for _ in range(16):
            if self.mix.random:
                slot = random.randrange(self._slots)
            else:
                slot, self._next = self._next, (self._next + 1) % self._slots
            if not (self.mix.verify and slot in self._busy):
                return slot
        return None

    async def _one(self, buffer: bytearray) -> None:
        slot = self._place()
        if slot is None:
            await asyncio.sleep(0)
            return
        size = random.choices(self._sizes, self._weights)[0] if len(self._sizes) > 1 else self._sizes[0]
        reading = random.randrange(100) < self.mix.read_percent
        self._sent_bytes += size
        await self._paced(size)
        if not self.running:
            return
        lba = slot * self.mix.slot_bytes // self.namespace.block_bytes
        self._busy.add(slot)
        try:
            if reading:
                await self._read(slot, lba, memoryview(buffer)[:size])
            else:
                await self._write(slot, lba, size)
        finally:
            self._busy.discard(slot)

    async def _paced(self, size: int) -> None:
        """Wait until the limits of the rate allow a command of ``size`` bytes."""
        mix, step = self.mix, 0.0
        if mix.bytes_per_second:
            step = size / mix.bytes_per_second
        if mix.ios_per_second:
            step = max(step, 1 / mix.ios_per_second)
        if not step:
            return
        now = time.perf_counter()
        # at most 50 ms are made up for, so that a pause is not followed by a burst
        self._due = max(self._due + step, now - 0.05)
        if self._due > now:
            await asyncio.sleep(self._due - now)

    async def _read(self, slot: int, lba: int, view: memoryview) -> None:
        began = time.perf_counter_ns()
        await self.namespace.read_into(lba, view)
        self._count(0, len(view), began)
        known = self._written.get(slot)
        if self.mix.verify and known is not None and known[0] <= len(view):
            self._check(slot, view[: known[0]], known[1])

    async def _write(self, slot: int, lba: int, size: int) -> None:
        start = random.randrange(self.mix.slot_bytes)
        data = memoryview(self._pattern)[start : start + size]
        began = time.perf_counter_ns()
        # what is there after a write that failed is not known
        known = self._written.pop(slot, None)
        await self.namespace.write(lba, data)
        self._count(1, size, began)
        if self.mix.verify and (known is None or size >= known[0]):
            self._written[slot] = size, crc32c(data, 0)

    def _count(self, direction: int, size: int, began: int) -> None:
        taken = time.perf_counter_ns() - began
        self.latencies_ns.append(taken)
        counter = self._counters[direction]
        counter.latencies_ns.append(taken)
        counter.bytes += size

    def _check(self, slot: int, data: memoryview, wanted: int) -> None:
        self.verified += 1
        found = crc32c(data, 0)
        if found != wanted:
            at = slot * self.mix.slot_bytes
            raise VerifyError(
                f"verify: bytes {at} to {at + len(data) - 1} of namespace {self.namespace.nsid} have CRC32C "
                f"{found:08x}, and what was written has {wanted:08x}"
            )

    async def verify_written(self) -> int:
        """Read all that was written and not overwritten since, and check it; return how many places.

        Raises :class:`VerifyError`, and what a command fails with.
        """
        free: asyncio.Queue[bytearray] = asyncio.Queue()
        for _ in range(self.mix.depth):
            free.put_nowait(bytearray(self.mix.slot_bytes))

        async def check(slot: int, size: int, wanted: int, buffer: bytearray) -> None:
            try:
                view = memoryview(buffer)[:size]
                await self.namespace.read_into(slot * self.mix.slot_bytes // self.namespace.block_bytes, view)
                self._check(slot, view, wanted)
            finally:
                free.put_nowait(buffer)

        written = dict(self._written)
        try:
            async with asyncio.TaskGroup() as tasks:
                for slot, (size, wanted) in written.items():
                    tasks.create_task(check(slot, size, wanted, await free.get()))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return len(written)
