"""Helpers for tests of backends."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Awaitable
from typing import TypeVar

from nvmeof.target.storage.base import Backend, Capabilities, Lease
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk

T = TypeVar("T")


async def settled(result: T | Awaitable[T]) -> T:
    """Return the result of an operation that may complete at once or later."""
    if isinstance(result, Awaitable):
        return await result
    return result


async def read(backend: Backend, offset: int, length: int) -> bytes:
    lease = await settled(backend.acquire_read(offset, length))
    try:
        return bytes(lease.view)
    finally:
        lease.release()


async def write(backend: Backend, offset: int, data: memoryview, *, fua: bool = False) -> None:
    await settled(backend.write(offset, data, fua=fua))


class Hidden(Backend):
    """A ramdisk that does not show its memory: its queue takes the general path, and stages writes."""

    def __init__(self, size: str | int) -> None:
        self.ramdisk = Ramdisk(size)

    @property
    def capabilities(self) -> Capabilities:
        return self.ramdisk.capabilities

    @property
    def description(self) -> str:
        return f"hidden {self.ramdisk.description}"

    def acquire_read(self, offset: int, length: int) -> Lease:
        return self.ramdisk.acquire_read(offset, length)

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> None:
        self.ramdisk.write(offset, data, fua=fua)

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> None:
        self.ramdisk.write_zeroes(offset, length, deallocate=deallocate, fua=fua)

    def deallocate(self, offset: int, length: int) -> None:
        self.ramdisk.deallocate(offset, length)

    def flush(self) -> None:
        self.ramdisk.flush()

    def resize(self, size_bytes: int) -> None:
        self.ramdisk.resize(size_bytes)


class AsyncDriver:
    """Awaits commands on the running loop."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task] = set()
        self.wakes = 0

    def spawn(self, pending, done):
        async def run():
            done(await pending)

        task = asyncio.ensure_future(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def wake(self):
        self.wakes += 1

    def wait_for_room(self):
        pass

    def hold_receiving(self, crowded):
        pass

    def finish(self, reason, *, fault=False):
        pass


def killed(backend: FileBackend) -> None:
    """Simulate a kill of its process: nothing was closed, and the lock is released."""
    fcntl.flock(backend._fd, fcntl.LOCK_UN)


class SlowFlush(Hidden):
    """A backend whose Flush completes when the test says so."""

    def __init__(self) -> None:
        super().__init__("1M")
        self.go_on = asyncio.Event()
        self.flushes = 0

    async def _flush(self) -> None:
        self.flushes += 1
        await self.go_on.wait()

    def flush(self) -> Awaitable[None]:
        return self._flush()
