"""A backend whose operations wait for the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from nvmeof.target.storage.base import Backend, Capabilities, Lease


class SlowBackend(Backend):
    """Memory whose writes, reads and flushes pass a gate one at a time: open it, or let single operations through."""

    def __init__(self, size_bytes: int = 1 << 20, *, slow_reads: bool = False) -> None:
        self.content = bytearray(size_bytes)
        self.slow_reads = slow_reads
        self.gate = asyncio.Event()
        self.begun = 0
        self.writes: list[int] = []  # offsets, in the order in which they ended
        self.flushes = 0
        self.closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(size_bytes=len(self.content), volatile_cache=True)

    @property
    def description(self) -> str:
        return "slow memory"

    def acquire_read(self, offset: int, length: int) -> Lease | Awaitable[Lease]:
        lease = Lease(memoryview(self.content)[offset : offset + length], stable=False)
        return self._later(lease) if self.slow_reads else lease

    async def _later(self, lease: Lease) -> Lease:
        self.begun += 1
        await self.gate.wait()
        return lease

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> Awaitable[None]:
        return self._write(offset, data)

    async def _write(self, offset: int, data: memoryview) -> None:
        self.begun += 1
        await self.gate.wait()
        assert not self.closed
        self.content[offset : offset + len(data)] = data
        self.writes.append(offset)

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> Awaitable[None]:
        return self._write(offset, memoryview(bytes(length)))

    def deallocate(self, offset: int, length: int) -> None: ...

    def flush(self) -> Awaitable[None] | None:
        self.flushes += 1
        return None

    def resize(self, size_bytes: int) -> None:
        raise OSError("no")

    async def close(self) -> None:
        self.closed = True
