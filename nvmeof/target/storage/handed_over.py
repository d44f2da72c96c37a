"""What a backend has in memory that a new process shall have too: a ramdisk's content, and what is kept beside data.

A file keeps its data, reservations and zones itself, and has nothing here. What has no file is told as a value
(`BackendState.document`) and an open memory file (memfd_create(2)), which outlives the process that made it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nvmeof.spec.zns import ZoneState
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.filter import BackendFilter
from nvmeof.target.storage.ramdisk import Memory, Ramdisk
from nvmeof.target.storage.zone_store import MemoryZoneStore, ZoneLayout, ZoneRecord

_COPY_BYTES: Final = 8 << 20

Number = Callable[[int], int]
"""Returns the number that stands for a descriptor in a document."""


@dataclass(slots=True)
class BackendState:
    """`kept`: the sections of a metadata store in memory; `zones`: records of zones in memory, as `MemoryZoneStore`
    writes them; `memory`: the content of a ramdisk. None: there is none, or it is in a file."""

    kept: dict[str, Any] | None = None
    zones: dict[str, Any] | None = None
    memory: Memory | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to hand over."""
        return not self.kept and self.zones is None and self.memory is None

    def document(self, number: Number) -> dict[str, Any]:
        """Return the state as a JSON value. `number` takes the descriptor of a memory file."""
        found: dict[str, Any] = {"kept": self.kept, "zones": self.zones}
        if self.memory is not None:
            found["memory"] = {**self.memory.facts(), "descriptor": number(self.memory.descriptor)}
        return found

    @classmethod
    def from_document(cls, document: Mapping[str, Any], descriptors: list[int]) -> BackendState:
        """Make the state that `document` has written. Raises `KeyError`, `TypeError` or `IndexError` for another."""
        memory = document.get("memory")
        found = None if memory is None else Memory.from_facts(memory, descriptors[memory["descriptor"]])
        return cls(document["kept"], document["zones"], found)


def innermost(backend: Backend) -> Backend:
    """Return the storage behind all filters."""
    while isinstance(backend, BackendFilter):
        backend = backend.next
    return backend


def copied_bytes(backend: Backend) -> int:
    """Return how many bytes have to be copied to hand a backend over: none of one that has nothing in memory, or has it
    in a memory file."""
    storage = innermost(backend)
    if not isinstance(storage, Ramdisk) or storage.keep:
        return 0
    return sum(end - start for start, end in storage.allocated(0, storage.capabilities.size_bytes))


def hand_over(backend: Backend) -> BackendState:
    """Return what a backend has in memory. The backend must have nothing in progress, and is only closed after this:
    a ramdisk's content is no longer its own."""
    storage = innermost(backend)
    state = BackendState()
    store = getattr(storage, "metadata_store", None)
    if isinstance(store, MemoryStore):
        state.kept = store.values
    zones = storage.zones_in_memory
    if zones is not None:
        state.zones = zones.document()
    if isinstance(storage, Ramdisk):
        state.memory = storage.hand_over()
    return state


def take_over(backend: Backend, state: BackendState) -> None:
    """Let a backend that is open, and that nobody uses yet, have what `hand_over` has returned. Raises `OSError` and
    `ConfigurationError`."""
    storage = innermost(backend)
    store = getattr(storage, "metadata_store", None)
    if state.kept is not None and isinstance(store, MemoryStore):
        storage.metadata_store = MemoryStore(state.kept, store.origin)
    if state.zones is not None:
        storage.zones_in_memory = _zones(state.zones)
    if state.memory is not None and isinstance(storage, Ramdisk):
        wanted = storage.capabilities.size_bytes
        storage.take_over(state.memory)
        if storage.capabilities.size_bytes != wanted:  # the file of the configuration says another size by now
            storage.resize(wanted)


def _zones(document: Mapping[str, Any]) -> MemoryZoneStore:
    records = [ZoneRecord(ZoneState(state), attributes, written) for state, attributes, written in document["records"]]
    extensions = {int(index): bytes.fromhex(text) for index, text in document["extensions"].items()}
    return MemoryZoneStore(ZoneLayout(*document["layout"]), len(records), records, extensions)


@dataclass(slots=True)
class PoolState:
    """A pool of memory: its sections, and the storage of its namespaces by name."""

    kept: dict[str, Any] = field(default_factory=dict)
    backends: dict[str, BackendState] = field(default_factory=dict)


def to_memory_file(memory: Memory) -> None:
    """Move a ramdisk's content to a memory file, unless it is in one; what was never written stays without memory.

    For a thread: it takes a second or so per GiB. Raises `OSError`, with the content where it was.
    """
    if memory.descriptor >= 0:
        return
    assert memory.mapping is not None
    descriptor = os.memfd_create("nvmeof-ramdisk", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, memory.mapped_bytes)
        with memoryview(memory.mapping) as view:
            for start, end in memory.populated():
                for at in range(start, end, _COPY_BYTES):
                    write_all(descriptor, view[at : min(at + _COPY_BYTES, end)], at)
    except BaseException:
        os.close(descriptor)
        raise
    memory.descriptor = descriptor
    memory.mapping.madvise(mmap.MADV_DONTNEED)
    memory.mapping = None


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write bytes at an offset, all of them. Raises `OSError`."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
