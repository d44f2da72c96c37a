"""A namespace in memory: one mapping, sparse, whose deallocated pages go back to the system.

It is anonymous and private, or (`keep`) that of a memory file, which a process that takes the target over maps as it is
(docs/decisions/0031-restart.md has what each costs).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import format_size, parse_size
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.storage.base import BLOCK_BYTES_CHOICES, Backend, Capabilities, Lease
from nvmeof.target.storage.namespace_text import Element, NamespaceText

_PAGE = mmap.PAGESIZE
PHYSICAL_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
# Not in the mmap module before Python 3.13.
_MAP_NORESERVE = 0x4000
_PAGEMAP_CHUNK = 128 << 20
_COPY_BYTES = 8 << 20
# The top byte of a pagemap entry: bit 7 present, bit 6 swapped.
_PRESENT = re.compile(rb"[\x40-\xff]+", re.DOTALL)
# Zeroes are copied from one small block that stays in cache, not allocated for each request.
_ZEROES = bytes(1 << 16)


@dataclass(slots=True)
class Memory:
    """The content of a ramdisk without the ramdisk. `made`: its size and block size as it was made, in bytes;
    `mapped_bytes`: the size of the mapping. It is in `mapping`, or in the memory file `descriptor` (-1: there is none).
    """

    made: tuple[int, int]
    block_bytes: int
    mapped_bytes: int
    identity: str
    mapping: mmap.mmap | None
    descriptor: int

    def facts(self) -> dict[str, Any]:
        """Return what it is but for the content, as a JSON value."""
        return {
            "made": list(self.made),
            "block_bytes": self.block_bytes,
            "mapped_bytes": self.mapped_bytes,
            "identity": self.identity,
        }

    @classmethod
    def from_facts(cls, facts: Any, descriptor: int) -> Memory:
        """Make it of `facts` and of a memory file."""
        size_bytes, block_bytes = facts["made"]
        made = int(size_bytes), int(block_bytes)
        return cls(
            made, int(facts["block_bytes"]), int(facts["mapped_bytes"]), str(facts["identity"]), None, descriptor
        )

    def populated(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges that have memory."""
        if self.mapping is not None:
            return _populated(self.mapping, self.descriptor, self.mapped_bytes)
        return _data_of(self.descriptor, 0, self.mapped_bytes)


class Ramdisk(Backend):
    """Storage in memory: ``Ramdisk("1G")``. It is sparse, and ends with the target.

    `size`: bytes, or text such as `1G`; a whole number of blocks of `block_bytes` (512 or 4096). `keep`: it is in a
    memory file, which a restart of the target hands over without copying it; without, it is copied then. Raises
    `ConfigurationError`.
    """

    memory: memoryview
    identity = ""

    def __init__(self, size: str | int, *, block_bytes: int = 512, keep: bool = False) -> None:
        size_bytes = parse_size(size)
        self.keep = keep
        if block_bytes not in BLOCK_BYTES_CHOICES:
            raise ConfigurationError(f"a block size of {block_bytes} bytes is not supported: 512 or 4096")
        if size_bytes % block_bytes:
            raise ConfigurationError(f"a ramdisk of {size} is not a whole number of {block_bytes}-byte blocks")
        self._made = size_bytes, block_bytes
        self._begin()

    def to_text(self) -> NamespaceText:
        capabilities = self.capabilities
        options: tuple[tuple[str, str | None], ...] = ()
        if capabilities.block_bytes != 512:
            options = (("block-size", str(capabilities.block_bytes)),)
        if self.keep:
            options = (*options, ("keep", None))
        return NamespaceText(Element("ramdisk", str(capabilities.size_bytes), options))

    def _begin(self) -> None:
        size_bytes, block_bytes = self._made
        self.metadata_store = MemoryStore()
        self.identity = str(uuid.uuid4())  # what it held is never there again
        self._zones = None
        self._gone = False
        self._capabilities = Capabilities(
            size_bytes=size_bytes,
            block_bytes=block_bytes,
            can_deallocate=True,
            can_write_zeroes=True,
            preferred_bytes=_PAGE,
        )
        self._shared = False
        self._map, self._descriptor = self._new_map(size_bytes)
        self._room_bytes = size_bytes
        self.memory = memoryview(self._map)[:size_bytes]

    def _new_map(self, size_bytes: int) -> tuple[mmap.mmap, int]:
        """Return a new mapping, and the memory file that it is of (-1: of none). Raises `ConfigurationError`."""
        descriptor = -1
        try:
            if self.keep:
                descriptor = os.memfd_create("nvmeof-ramdisk", os.MFD_CLOEXEC)
                os.ftruncate(descriptor, size_bytes)
            return self._map_of(descriptor, size_bytes), descriptor
        except (OSError, OverflowError, ValueError) as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise ConfigurationError(f"cannot map a ramdisk of {format_size(size_bytes)}: {error}") from error

    @staticmethod
    def _map_of(descriptor: int, size_bytes: int) -> mmap.mmap:
        # NORESERVE: a sparse disk may be larger than memory, as a sparse file may be larger than its file system.
        kind = mmap.MAP_SHARED if descriptor >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapping = mmap.mmap(descriptor, size_bytes, flags=kind | _MAP_NORESERVE)
        # Huge pages make random access to much memory cheaper. On a disk larger than the memory they would use up in
        # 2 MiB pieces what is written in small ones.
        if size_bytes <= PHYSICAL_BYTES // 2:
            with contextlib.suppress(OSError):  # a kernel without them
                mapping.madvise(mmap.MADV_HUGEPAGE)
        return mapping

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def size_bytes(self) -> int:
        """Its size as it was made."""
        return self._made[0]

    @property
    def description(self) -> str:
        return f"ramdisk {format_size(self._capabilities.size_bytes)}"

    def acquire_read(self, offset: int, length: int) -> Lease:
        return Lease(self.memory[offset : offset + length], stable=False)

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> None:
        self.memory[offset : offset + len(data)] = data

    def copy(self, source: int, destination: int, length: int, *, fua: bool = False) -> None:
        memory = self.memory
        memory[destination : destination + length] = memory[source : source + length]

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> None:
        # Long ranges are released to the kernel in any case: filling 256 MiB would block the event loop.
        if deallocate or length > len(_ZEROES):
            self.deallocate(offset, length)
        else:
            self._fill(offset, offset + length)

    def deallocate(self, offset: int, length: int) -> None:
        end = offset + length
        first = -(-offset // _PAGE) * _PAGE
        # The last page of the disk is ours whole, also when the disk ends inside it.
        last = end if end == self._room_bytes else end // _PAGE * _PAGE
        if last <= first:
            self._fill(offset, end)
            return
        self._fill(offset, first)
        # Of a memory file a hole is made: dropping its pages would bring them back.
        self._map.madvise(mmap.MADV_DONTNEED if self._descriptor < 0 else mmap.MADV_REMOVE, first, last - first)
        self._fill(last, end)

    def _fill(self, start: int, end: int) -> None:
        memory = self.memory
        while start < end:
            part = min(end - start, len(_ZEROES))
            memory[start : start + part] = _ZEROES[:part]
            start += part

    def flush(self) -> None:
        return None

    def resize(self, size_bytes: int) -> None:
        """Move to a new mapping; views handed out before keep showing the old content."""
        block = self._capabilities.block_bytes
        if size_bytes <= 0 or size_bytes % block:
            raise OSError(errno.EINVAL, f"{size_bytes} bytes is not a whole number of {block}-byte blocks")
        new, descriptor = self._new_map(size_bytes)
        memory = memoryview(new)[:size_bytes]
        keep = min(size_bytes, self._capabilities.size_bytes)
        for first, end in self._populated(keep):
            for start in range(first, end, len(_ZEROES)):
                part = self.memory[start : min(start + len(_ZEROES), end)]
                # Pages that were only read hold zeroes: a sparse disk stays sparse.
                if part != _ZEROES[: len(part)]:
                    memory[start : start + len(part)] = part
        self._close_descriptor()
        self._map, self._descriptor, self.memory, self._room_bytes = new, descriptor, memory, size_bytes
        self._capabilities = replace(self._capabilities, size_bytes=size_bytes)

    def set_block_bytes(self, block_bytes: int) -> None:
        """Set the block size, in bytes. The mapping stays; a remainder below one block is inaccessible until blocks are
        smaller."""
        size_bytes = self._room_bytes - self._room_bytes % block_bytes
        if block_bytes not in BLOCK_BYTES_CHOICES or not size_bytes:
            raise OSError(errno.EINVAL, f"{self._room_bytes} bytes cannot be blocks of {block_bytes}")
        self.memory = memoryview(self._map)[:size_bytes]
        self._capabilities = replace(self._capabilities, size_bytes=size_bytes, block_bytes=block_bytes)

    def allocated(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the ranges that have pages: one that was never written has none."""
        first = offset // _PAGE * _PAGE
        end = offset + length
        return [(max(start, offset), min(stop, end)) for start, stop in self._populated(end, first)]

    def _populated(self, end: int, first: int = 0) -> Iterator[tuple[int, int]]:
        """Yield the ranges from `first` to `end` that have pages."""
        return _populated(self._map, self._descriptor, end, first)

    # -- handing over --------------------------------------------------------------------------------------------

    def hand_over(self) -> Memory:
        """Give the content away, for `take_over` of another ramdisk; only `close` may follow."""
        identity, block_bytes = self.identity, self._capabilities.block_bytes
        memory = Memory(self._made, block_bytes, self._room_bytes, identity, self._map, self._descriptor)
        self._shared, self._gone, self._descriptor = True, True, -1
        return memory

    def take_over(self, given: Memory) -> None:
        """Have the content of another ramdisk in place of its own: the memory itself, or a copy of its memory file
        unless this one is in such a file as well. Raises `OSError`."""
        mapping, descriptor = given.mapping, -1
        if self.keep and given.descriptor >= 0:
            mapping = self._map_of(given.descriptor, given.mapped_bytes)
            descriptor = os.dup(given.descriptor)
        elif mapping is None:
            mapping = self._map_of(-1, given.mapped_bytes)
            for start, end in given.populated():
                for at in range(start, end, _COPY_BYTES):
                    _read_all(given.descriptor, mapping, at, min(at + _COPY_BYTES, end))
        self._close_descriptor()
        self._made, self._map, self._descriptor = given.made, mapping, descriptor
        self._shared = True
        self._room_bytes, self.identity = given.mapped_bytes, given.identity
        self.set_block_bytes(given.block_bytes)

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    async def open(self) -> None:
        """Start empty: a ramdisk that was closed has lost its data, and has its first size and block size again."""
        if self._gone:
            self._begin()

    async def close(self) -> None:
        """Free the pages now; the mapping goes with the last view of it."""
        if not self._map.closed and self._capabilities.size_bytes and not self._shared:
            self._map.madvise(mmap.MADV_DONTNEED if self._descriptor < 0 else mmap.MADV_REMOVE)
        self._close_descriptor()
        self._gone = True


def _populated(mapping: mmap.mmap, descriptor: int, end: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the ranges from `first` to `end` of a mapping that have pages: of a memory file those that are no holes
    (lseek(2)), else those in memory or swapped out (proc(5), pagemap)."""
    if descriptor >= 0:
        yield from _data_of(descriptor, first, end)
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            for chunk in range(first, end, _PAGEMAP_CHUNK):
                pages = -(-min(_PAGEMAP_CHUNK, end - chunk) // _PAGE)
                pagemap.seek((address + chunk) // _PAGE * 8)
                flags = pagemap.read(pages * 8)[7::8]
                for run in _PRESENT.finditer(flags):
                    yield chunk + run.start() * _PAGE, min(chunk + run.end() * _PAGE, end)
    except OSError:
        yield first, end


def _data_of(descriptor: int, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a memory file that have memory."""
    at = first
    while at < end:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        if start >= end:
            return
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, min(at, end)


def _read_all(descriptor: int, mapping: mmap.mmap, start: int, end: int) -> None:
    with memoryview(mapping) as view:
        while start < end:
            count = os.preadv(descriptor, [view[start:end]], start)
            if not count:
                raise OSError(errno.EIO, "a memory file is shorter than the ramdisk that it holds")
            start += count
