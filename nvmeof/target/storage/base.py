"""What stores a namespace's bytes: the contract between a namespace and its storage.

A backend works in bytes and knows nothing of NVMe. Ranges have been checked by its one caller
(`nvmeof.target.namespaces.namespace`), which also turns every `OSError` into a status. An operation either
completes at once, or gives back an awaitable; buffers that were passed in are borrowed until that is done.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from nvmeof.errors import ConfigurationError
from nvmeof.runtime import settled
from nvmeof.target.core.metadata import BLOCK_BYTES_CHOICES as BLOCK_BYTES_CHOICES
from nvmeof.target.core.metadata import MetadataStore
from nvmeof.target.storage.namespace_text import Element, NamespaceText
from nvmeof.target.storage.zone_store import MemoryZoneStore, ZoneLayout, ZoneStore

DEFAULT_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities of a backend."""

    size_bytes: int
    block_bytes: int = 512  # the logical block size that it is presented with
    can_write: bool = True
    can_deallocate: bool = False
    can_write_zeroes: bool = False  # faster than writing zeroes
    can_fua: bool = True
    volatile_cache: bool = False  # what was written may be lost at a power failure before `flush`
    deallocated_reads_zero: bool = True
    preferred_bytes: int = 4096  # writes and deallocations of this granularity and alignment are cheap


class Lease:
    """Bytes that a reader may look at until it calls `release`.

    `stable` False: the memory is shared with writers and may change; read it (and compute digests over it) in the same
    synchronous step in which it goes to the socket, and copy what was not taken.
    """

    __slots__ = ("_release", "stable", "view")

    def __init__(self, view: memoryview, *, stable: bool, release: Callable[[], None] | None = None) -> None:
        self.view = view
        self.stable = stable
        self._release = release

    def release(self) -> None:
        """Give the memory back. Calling it again does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


def _same(lease: Lease, data: memoryview) -> bool:
    try:
        # A bytearray compares with any buffer at the speed of memory, two memoryviews element by element.
        return bytearray(data) == lease.view
    finally:
        lease.release()


async def _same_later(pending: Awaitable[Lease], data: memoryview) -> bool:
    return _same(await pending, data)


async def _verify_later(pending: Awaitable[Lease]) -> None:
    (await pending).release()


class SizeChangedError(OSError):
    """A range lies beyond the end of the file: another process has made the file shorter."""


class SourceError(OSError):
    """What is to be copied, or compared before it is written, cannot be read."""


async def _read_later(pending: Awaitable[Lease], view: memoryview) -> None:
    lease = await pending
    try:
        view[:] = lease.view
    finally:
        lease.release()


async def _not_at_once(pending: Awaitable[Lease]) -> bool:
    (await pending).release()
    raise OSError(errno.EOPNOTSUPP, "this backend cannot compare and write as one")


async def _wrote_later(pending: Awaitable[None]) -> bool:
    await pending
    return True


async def _copy(backend: Backend, source: int, destination: int, length: int, fua: bool) -> None:
    try:
        lease = await settled(backend.acquire_read(source, length))
    except OSError as error:
        raise SourceError(error.errno, error.strerror) from error
    try:
        await settled(backend.write(destination, lease.view, fua=fua))
    finally:
        lease.release()


RunErrors: TypeAlias = dict[int, OSError]
"""Why requests of a run have failed, by their index in it."""


class Runs(Protocol):
    """What a backend offers that does many like reads or writes at once. `offsets` and `length` are bytes.

    A caller asks for at most `most` in one run. What a run cannot do, the operations of `Backend` do one by one.
    """

    most: int

    def read(self, offsets: Sequence[int], length: int) -> tuple[memoryview, list[int]] | None:
        """Read blocks at once, one behind the other, into memory that `release` takes back.

        Returns it with the indexes of those that have to be read in another way; None when all have to.
        """
        ...

    def release(self, view: memoryview) -> None:
        """Take the memory of `read` back."""
        ...

    def write(
        self, buffers: Sequence[memoryview], offsets: Sequence[int], length: int, done: Callable[[RunErrors], None]
    ) -> bool:
        """Write blocks, in one buffer one behind the other or each in its own, which are borrowed until ``done`` is
        called with the errors. False: not as a run now, and ``done`` is not called.
        """
        ...


class Backend(ABC):
    """Storage of `capabilities.size_bytes` bytes. `offset` and `length` are bytes."""

    memory: memoryview | None = None
    """The whole content, writable, for a backend that is plain memory; a hot path slices it directly."""

    runs: Runs | None = None
    """How many like reads or writes are done at once, for a backend that can and is open."""

    metadata_store: MetadataStore
    """Where a namespace keeps what belongs to its data (reservations, zones); known once the backend is open."""

    sync_failures: int = 0
    """How often data that was written before could not be brought to the media: it may be lost."""

    sync_error: OSError | None = None
    """The last of these failures."""

    element: Element | None = None
    """The text that it was made from; None for one that a program made. Of a filter: its own part of the text."""

    _zones: ZoneStore | None = None

    def to_text(self) -> NamespaceText:
        """Return the text that makes storage like this, as it is now: what a configuration is saved with.

        Raises `ConfigurationError` for one that a program made and that no text describes.
        """
        if self.element is None:
            raise ConfigurationError(
                f"{self.description} was made by a program, in a way that no text describes: it cannot be saved"
            )
        return NamespaceText(self.element)

    @property
    def has_zones(self) -> bool:
        """Whether zones are stored beside the data, which is of no use without them."""
        return False

    def zone_store(self, layout: ZoneLayout, count: int) -> ZoneStore:
        """Return the store of a zoned namespace's zones; the same object each time.

        Raises `ConfigurationError` for zones that are not the stored ones.
        """
        if self._zones is None or self._zones.layout[1:] != layout[1:]:
            self._zones = self._make_zone_store(layout, count)
        return self._zones

    @property
    def zones_in_memory(self) -> MemoryZoneStore | None:
        """The records of its zones, where they are in memory alone; None: in a file, or there are none."""
        return self._zones if isinstance(self._zones, MemoryZoneStore) else None

    @zones_in_memory.setter
    def zones_in_memory(self, zones: MemoryZoneStore) -> None:
        self._zones = zones

    def _make_zone_store(self, layout: ZoneLayout, count: int) -> ZoneStore:
        return MemoryZoneStore(layout, count)

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """The present capabilities; the size changes with `resize`."""

    @property
    @abstractmethod
    def description(self) -> str:
        """A few words for a log line."""

    async def open(self) -> None:  # noqa: B027 - optional for a backend
        """Open the backend. Raises `OSError` or `ConfigurationError`; calling it twice is harmless."""

    async def close(self) -> None:  # noqa: B027 - optional for a backend
        """Let everything go, after what was begun has ended. Calling it twice is harmless."""

    @abstractmethod
    def acquire_read(self, offset: int, length: int) -> Lease | Awaitable[Lease]:
        """Return a lease of the bytes of a range; the caller releases the lease."""

    def read_into(self, offset: int, view: memoryview) -> Awaitable[None] | None:
        """Copying variant of `acquire_read` into `view`, for callers that must not hold a lease."""
        lease = self.acquire_read(offset, len(view))
        if not isinstance(lease, Lease):
            return _read_later(lease, view)
        view[:] = lease.view
        lease.release()
        return None

    def compare(self, offset: int, data: memoryview) -> bool | Awaitable[bool]:
        """Return whether a range holds `data`, as one atomic read sees the range. `data` is borrowed until the answer
        is there."""
        lease = self.acquire_read(offset, len(data))
        return _same(lease, data) if isinstance(lease, Lease) else _same_later(lease, data)

    def compare_and_write(
        self, offset: int, compare: memoryview, data: memoryview, *, fua: bool = False
    ) -> bool | Awaitable[bool]:
        """Write `data` if a range holds `compare`, with nothing in between; whether it was so.

        Raises `SourceError` when it cannot be read, any other `OSError` when it cannot be written. This one will do
        for a backend that reads at once; one that does not has to bring its own, and `EOPNOTSUPP` says so.
        """
        try:
            lease = self.acquire_read(offset, len(compare))
        except OSError as error:
            raise SourceError(error.errno, error.strerror) from error
        if not isinstance(lease, Lease):
            return _not_at_once(lease)
        if not _same(lease, compare):
            return False
        written = self.write(offset, data, fua=fua)
        return True if written is None else _wrote_later(written)

    def verify(self, offset: int, length: int) -> Awaitable[None] | None:
        """Read a range and discard its data. Raises or ends with `OSError` when the range cannot be read."""
        lease = self.acquire_read(offset, length)
        if isinstance(lease, Lease):
            lease.release()
            return None
        return _verify_later(lease)

    @abstractmethod
    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> Awaitable[None] | None:
        """Write a range. `fua`: done only when the bytes are on non-volatile media."""

    def copy(self, source: int, destination: int, length: int, *, fua: bool = False) -> Awaitable[None] | None:
        """Copy a range to another, as memmove does. Raises `SourceError` when it cannot be read."""
        return _copy(self, source, destination, length, fua)

    @abstractmethod
    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> Awaitable[None] | None:
        """Make a range read as zeroes; `deallocate` says that its space need not stay reserved."""

    @abstractmethod
    def deallocate(self, offset: int, length: int) -> Awaitable[None] | None:
        """Give the space of a range back; it reads as zeroes when the capability says so."""

    @abstractmethod
    def flush(self) -> Awaitable[None] | None:
        """Commit all writes that completed before to non-volatile media."""

    @abstractmethod
    def resize(self, size_bytes: int) -> None:
        """Change the size; bytes beyond the old one read as zeroes. Raises `OSError`."""

    # What a backend may leave as it is here

    def revalidate(self) -> str:
        """Take over the size that the storage has now, if that can change without `resize`; cheap.

        Returns what has happened, in words for the log; nothing for no change. Raises `OSError`.
        """
        return ""

    @property
    def identity(self) -> str:
        """Return what identifies the data after a restart, for a backend whose metadata store is not durable. An
        operation that began on other data, such as erasing it, does not go on with this.
        """
        return self.description

    overwrite_to_erase = False
    """Whether deallocated data may still be found on the media: to erase data, it has to be overwritten before."""

    @property
    def used_bytes(self) -> int:
        """Return the bytes of the size that have space allocated; the whole size where finding that out is costly."""
        return self.capabilities.size_bytes

    def allocated(self, offset: int, length: int) -> list[tuple[int, int]] | Awaitable[list[tuple[int, int]]]:
        """Return the parts (start, end) of a range that may hold data, in order; the gaps between the parts read as
        zeroes."""
        return [(offset, offset + length)]

    def set_block_bytes(self, block_bytes: int) -> None:
        """Change the logical block size that it is presented with.

        The size becomes as many whole blocks as there is room for. Raises `OSError` when that cannot be done.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
