"""Filters: a backend in front of another one, of the same shape, after nbdkit's.

    namespace ─▶ log ─▶ error ─▶ delay ─▶ file
                 each one is a Backend and has the `next` one behind it

`BackendFilter` forwards everything. `OperationFilter` is for those that do something around operations on data: they
write one method. In the text of a ``--namespace`` the filters follow the backend; each stands in front of
what is left of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.runtime import settled
from nvmeof.target.core.metadata import MetadataStore
from nvmeof.target.storage.base import Backend, Capabilities, Lease, Runs
from nvmeof.target.storage.namespace_text import Element, NamespaceText
from nvmeof.target.storage.zone_store import MemoryZoneStore, ZoneLayout, ZoneStore

T = TypeVar("T")


class BackendFilter(Backend):
    """Forward every member of a backend to the next one. A subclass overrides what it changes.

    `next` is the backend behind the filter; the filter opens and closes it. `label` is its name in a description.
    """

    label = ""
    element: Element | None = None

    def __init__(self, next: Backend) -> None:
        self.next = next

    @property
    def memory(self) -> memoryview | None:  # type: ignore[override]
        return self.next.memory

    @property
    def runs(self) -> Runs | None:  # type: ignore[override]
        return self.next.runs

    @property
    def metadata_store(self) -> MetadataStore:
        return self.next.metadata_store

    @metadata_store.setter
    def metadata_store(self, store: MetadataStore) -> None:
        self.next.metadata_store = store

    @property
    def has_zones(self) -> bool:
        return self.next.has_zones

    @property
    def zones_in_memory(self) -> MemoryZoneStore | None:
        return self.next.zones_in_memory

    @zones_in_memory.setter
    def zones_in_memory(self, zones: MemoryZoneStore) -> None:
        self.next.zones_in_memory = zones

    def zone_store(self, layout: ZoneLayout, count: int) -> ZoneStore:
        return self.next.zone_store(layout, count)

    @property
    def capabilities(self) -> Capabilities:
        return self.next.capabilities

    @property
    def description(self) -> str:
        return f"{self.next.description} behind {self.label}" if self.label else self.next.description

    def to_text(self) -> NamespaceText:
        if self.element is None:
            raise ConfigurationError(
                f"the filter {self.label} was made by a program, in a way that no text describes: it cannot be saved"
            )
        behind = self.next.to_text()
        return NamespaceText(behind.backend, (*behind.filters, self.element))

    async def open(self) -> None:
        await self.next.open()

    async def close(self) -> None:
        await self.next.close()

    def acquire_read(self, offset: int, length: int) -> Lease | Awaitable[Lease]:
        return self.next.acquire_read(offset, length)

    def read_into(self, offset: int, view: memoryview) -> Awaitable[None] | None:
        return self.next.read_into(offset, view)

    def compare(self, offset: int, data: memoryview) -> bool | Awaitable[bool]:
        return self.next.compare(offset, data)

    def compare_and_write(
        self, offset: int, compare: memoryview, data: memoryview, *, fua: bool = False
    ) -> bool | Awaitable[bool]:
        return self.next.compare_and_write(offset, compare, data, fua=fua)

    def verify(self, offset: int, length: int) -> Awaitable[None] | None:
        return self.next.verify(offset, length)

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> Awaitable[None] | None:
        return self.next.write(offset, data, fua=fua)

    def copy(self, source: int, destination: int, length: int, *, fua: bool = False) -> Awaitable[None] | None:
        return self.next.copy(source, destination, length, fua=fua)

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> Awaitable[None] | None:
        return self.next.write_zeroes(offset, length, deallocate=deallocate, fua=fua)

    def deallocate(self, offset: int, length: int) -> Awaitable[None] | None:
        return self.next.deallocate(offset, length)

    def flush(self) -> Awaitable[None] | None:
        return self.next.flush()

    def resize(self, size_bytes: int) -> None:
        self.next.resize(size_bytes)

    @property
    def identity(self) -> str:
        return self.next.identity

    @property
    def overwrite_to_erase(self) -> bool:  # type: ignore[override]
        return self.next.overwrite_to_erase

    @property
    def used_bytes(self) -> int:
        return self.next.used_bytes

    def allocated(self, offset: int, length: int) -> list[tuple[int, int]] | Awaitable[list[tuple[int, int]]]:
        return self.next.allocated(offset, length)

    def set_block_bytes(self, block_bytes: int) -> None:
        self.next.set_block_bytes(block_bytes)

    def revalidate(self) -> str:
        return self.next.revalidate()

    @property
    def sync_failures(self) -> int:  # type: ignore[override]
        return self.next.sync_failures

    @property
    def sync_error(self) -> OSError | None:  # type: ignore[override]
        return self.next.sync_error


async def call_later(seconds: float, call: Callable[[], T | Awaitable[T]]) -> T:
    """Do an operation `seconds` from now, and return what it gives."""
    await asyncio.sleep(seconds)
    return await settled(call())


class Kind(StrEnum):
    """The kinds of operations on data that filters distinguish; `all` in an option means every one."""

    READ = "read"
    WRITE = "write"
    ZERO = "zero"
    TRIM = "trim"
    FLUSH = "flush"


class OperationFilter(BackendFilter):
    """A filter around operations on data: each goes through `around`.

    The fast paths of memory and of runs are off behind such a filter, since they call no operation.
    """

    memory = None
    runs = None

    def around(self, kind: Kind, offset: int, length: int, call: Callable[[], T | Awaitable[T]]) -> T | Awaitable[T]:
        """Do an operation on `length` bytes at `offset` by `call`; return or await what it gives. Override this.

        Raises `OSError` for an operation that shall fail. A Copy is a read and a write: it is of the kind write, at its
        destination; so is a Compare and Write. `offset` and `length` of a Flush are 0.
        """
        raise TypeError(f"{type(self).__name__} does not say what it does around an operation")

    def acquire_read(self, offset: int, length: int) -> Lease | Awaitable[Lease]:
        return self.around(Kind.READ, offset, length, lambda: self.next.acquire_read(offset, length))

    def read_into(self, offset: int, view: memoryview) -> Awaitable[None] | None:
        return self.around(Kind.READ, offset, len(view), lambda: self.next.read_into(offset, view))

    def compare(self, offset: int, data: memoryview) -> bool | Awaitable[bool]:
        return self.around(Kind.READ, offset, len(data), lambda: self.next.compare(offset, data))

    def compare_and_write(
        self, offset: int, compare: memoryview, data: memoryview, *, fua: bool = False
    ) -> bool | Awaitable[bool]:
        return self.around(
            Kind.WRITE, offset, len(data), lambda: self.next.compare_and_write(offset, compare, data, fua=fua)
        )

    def verify(self, offset: int, length: int) -> Awaitable[None] | None:
        return self.around(Kind.READ, offset, length, lambda: self.next.verify(offset, length))

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> Awaitable[None] | None:
        return self.around(Kind.WRITE, offset, len(data), lambda: self.next.write(offset, data, fua=fua))

    def copy(self, source: int, destination: int, length: int, *, fua: bool = False) -> Awaitable[None] | None:
        return self.around(
            Kind.WRITE, destination, length, lambda: self.next.copy(source, destination, length, fua=fua)
        )

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> Awaitable[None] | None:
        return self.around(
            Kind.ZERO, offset, length, lambda: self.next.write_zeroes(offset, length, deallocate=deallocate, fua=fua)
        )

    def deallocate(self, offset: int, length: int) -> Awaitable[None] | None:
        return self.around(Kind.TRIM, offset, length, lambda: self.next.deallocate(offset, length))

    def flush(self) -> Awaitable[None] | None:
        return self.around(Kind.FLUSH, 0, 0, self.next.flush)
