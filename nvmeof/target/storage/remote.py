"""A backend whose bytes are another program's, reached by requests that may be many and take their time.

`RemoteBackend` is what such backends share: range locks, so that a write is seen whole or not at all whatever the
engine does, memory for reads, splitting at the engine's limit, and comparisons. A subclass begins requests.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.core.metadata import MemoryStore, MetadataStore
from nvmeof.target.core.owner import OWNER
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.storage.base import BLOCK_BYTES_CHOICES, Backend, Capabilities, Lease, SourceError
from nvmeof.target.storage.operation import Operation
from nvmeof.target.storage.ranges import RangeLock, RangeLocks

IDLE_BYTES: Final = 32 << 20
"""How much memory for reads is kept for the next ones."""
ZERO_PIECE_BYTES: Final = 1 << 20
_ZEROES: Final = memoryview(bytes(ZERO_PIECE_BYTES))


class OutcomeUnknownError(OSError):
    """A change was sent and not answered in time: it may have been made, or may be made later. It must not be sent
    again, over another path either."""


def not_in_time(what: str, seconds: float, *, changing: bool) -> OSError:
    """Return the error of a request that was not answered within `seconds`."""
    if changing:
        return OutcomeUnknownError(
            errno.ETIMEDOUT, f"{what} has not answered for {seconds:g} s: whether the change was made is not known"
        )
    return OSError(errno.ETIMEDOUT, f"{what} has not answered for {seconds:g} s")


class EngineRequest(Operation[None]):
    """A request to an engine. Once it has begun it cannot be cancelled: the engine's library or socket has its buffer,
    and a caller that is cancelled gets the CancelledError when the engine is done with that."""

    def cancel(self, msg: object | None = None) -> bool:
        return super().cancel(msg) if self._claim else False


class RemoteBackend(Backend):
    """Storage behind an engine; see the module. `max_bytes`: most that one request may transfer."""

    overwrite_to_erase = True
    max_bytes = 32 << 20
    native_fua = False
    """Whether a write can be asked to be on the media when it ends; else a flush follows it."""

    def __init__(self, metadata_store: MetadataStore | None = None) -> None:
        self.metadata_store = metadata_store or MemoryStore()
        self._capabilities: Capabilities | None = None
        self._ranges = RangeLocks()
        # How much hosts may have is counted where their commands are taken, by association.
        self._pool = BufferPool(sys.maxsize, idle_limit_bytes=IDLE_BYTES)

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise ConfigurationError(f"{self.description} has not been opened yet")
        return self._capabilities

    # What a subclass begins; the operation is done, or fails with `OSError`, when the engine has answered

    @abstractmethod
    def begin_read(self, offset: int, view: memoryview) -> asyncio.Future[None]:
        """Begin to fill `view`, at most `max_bytes`."""

    @abstractmethod
    def begin_write(self, offset: int, data: memoryview, fua: bool) -> asyncio.Future[None]:
        """Begin to write `data`, at most `max_bytes`."""

    @abstractmethod
    async def zero(self, offset: int, length: int, *, deallocate: bool, fua: bool) -> None:
        """Make a range read as zeroes."""

    @abstractmethod
    async def trim(self, offset: int, length: int) -> None:
        """Give the space of a range back, as the engine can."""

    @abstractmethod
    async def sync(self) -> None:
        """Bring what was written to the media."""

    def changed(self) -> None:
        """Take note of a change that the engine has answered, and that may be in its volatile cache."""

    # Operations

    @asynccontextmanager
    async def _locked(self, start: int, end: int, *, exclusive: bool) -> AsyncIterator[None]:
        lock = self._ranges.acquire(start, end, exclusive=exclusive, owner=OWNER.get())
        if not lock.granted:
            await self._granted(lock)
        try:
            yield
        finally:
            self._ranges.release(lock)

    async def _granted(self, lock: RangeLock) -> None:
        operation: Operation[None] = Operation()

        def grant() -> None:
            if operation.begin() and not operation.done():
                operation.set_result(None)
            else:
                self._ranges.release(lock)

        lock.when_granted = grant
        try:
            await operation
        except asyncio.CancelledError:
            if operation.done() and not operation.cancelled():
                self._ranges.release(lock)
            raise

    def _pieces(self, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        for start in range(0, len(view), self.max_bytes):
            yield start, view[start : start + self.max_bytes]

    async def _fill(self, offset: int, view: memoryview) -> None:
        if len(view) <= self.max_bytes:
            await self.begin_read(offset, view)
        else:
            await _all([self.begin_read(offset + start, piece) for start, piece in self._pieces(view)])

    async def _put(self, offset: int, data: memoryview, fua: bool) -> None:
        native = fua and self.native_fua
        if len(data) <= self.max_bytes:
            await self.begin_write(offset, data, native)
        else:
            await _all([self.begin_write(offset + start, piece, native) for start, piece in self._pieces(data)])
        await self._settle_change(fua)

    async def _settle_change(self, fua: bool) -> None:
        if not (fua and self.native_fua):
            self.changed()
            if fua:
                await self.sync()

    async def acquire_read(self, offset: int, length: int) -> Lease:
        view = self._pool.take(length)
        assert view is not None  # the pool has no limit
        try:
            # As `_locked` does, without the cost of a context manager: this is the hot path.
            lock = self._ranges.acquire(offset, offset + length, exclusive=False, owner=OWNER.get())
            if not lock.granted:
                await self._granted(lock)
            try:
                await self._fill(offset, view)
            finally:
                self._ranges.release(lock)
        except BaseException:
            self._pool.give(view)
            raise
        return Lease(view, stable=True, release=lambda: self._pool.give(view))

    async def read_into(self, offset: int, view: memoryview) -> None:
        async with self._locked(offset, offset + len(view), exclusive=False):
            await self._fill(offset, view)

    async def write(self, offset: int, data: memoryview, *, fua: bool = False) -> None:
        async with self._locked(offset, offset + len(data), exclusive=True):
            await self._put(offset, data, fua)

    async def compare_and_write(self, offset: int, compare: memoryview, data: memoryview, *, fua: bool = False) -> bool:
        async with self._locked(offset, offset + len(data), exclusive=True):
            found = bytearray(len(compare))
            try:
                await self._fill(offset, memoryview(found))
            except OSError as error:
                raise SourceError(error.errno, error.strerror) from error
            if found != compare:
                return False
            await self._put(offset, data, fua)
            return True

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> None:
        async with self._locked(offset, offset + length, exclusive=True):
            await self.zero(offset, length, deallocate=deallocate, fua=fua and self.native_fua)
            await self._settle_change(fua)

    async def deallocate(self, offset: int, length: int) -> None:
        async with self._locked(offset, offset + length, exclusive=True):
            await self.trim(offset, length)
            self.changed()

    async def flush(self) -> None:
        await self.sync()

    async def write_zeroes_as_data(self, offset: int, length: int, fua: bool) -> None:
        """Write zeroes, for an engine that has no request for that. `fua`: where it is native."""
        for start in range(0, length, min(ZERO_PIECE_BYTES, self.max_bytes)):
            piece = _ZEROES[: min(ZERO_PIECE_BYTES, self.max_bytes, length - start)]
            await self.begin_write(offset + start, piece, fua)

    def resize(self, size_bytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


async def _all(operations: list[asyncio.Future[None]]) -> None:
    """Await all, and raise the first error then: until the last one has ended the buffers are in use."""
    failure: BaseException | None = None
    for operation in operations:
        try:
            await operation
        except (OSError, asyncio.CancelledError) as error:
            failure = failure or error
    if failure is not None:
        raise failure


def block_size(wanted: int | None, minimum: int, size_bytes: int, what: str) -> int:
    """Return the block size to present: what was asked for, or the smallest that the engine can do (512 or 4096).

    Raises `ConfigurationError` when there is none.
    """
    if wanted is not None and wanted not in BLOCK_BYTES_CHOICES:
        raise ConfigurationError(f"a block size of {wanted} bytes is not supported: 512 or 4096")
    if wanted is not None and wanted < minimum:
        raise ConfigurationError(f"{what} has blocks of {minimum} bytes: write block-size=4096, or leave it away")
    chosen = wanted or next((each for each in sorted(BLOCK_BYTES_CHOICES) if each >= minimum), None)
    if chosen is None:
        raise ConfigurationError(f"{what} has blocks of {minimum} bytes: a namespace has at most 4096")
    if size_bytes < chosen:
        raise ConfigurationError(f"{what} has {size_bytes} bytes: less than one block of {chosen}")
    return chosen
