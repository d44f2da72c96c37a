"""Who has which part of the shared memory: a buddy allocator over each of its parts.

This module must not know rings, queues or processes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

from nvmeof.errors import ConfigurationError

SMALLEST_ORDER: Final = 9
LARGEST_ORDER: Final = 25
BUFFER_MAX_BYTES: Final = 1 << LARGEST_ORDER
"""Largest buffer that an application can take: 32 MiB."""
POOL_MAX_BYTES: Final = 2 << 30

_address_of: Final = ctypes.addressof
_byte_at: Final = ctypes.c_char.from_buffer


class Buddies:
    """Allocates powers of two of bytes of a range that begins at ``start``, a multiple of 2**LARGEST_ORDER long.

    The piece that was freed last is the first to be given again: its memory is in the processor's caches.
    """

    __slots__ = ("_free", "_start")

    def __init__(self, start: int, size_bytes: int) -> None:
        self._start = start
        self._free: list[list[int]] = [[] for _ in range(LARGEST_ORDER + 1)]
        # taken from the end: low addresses first
        self._free[LARGEST_ORDER] = list(range(start + size_bytes - BUFFER_MAX_BYTES, start - 1, -BUFFER_MAX_BYTES))

    @staticmethod
    def order(size_bytes: int) -> int:
        """Return the order of the pieces that hold so many bytes; more than LARGEST_ORDER: there are none."""
        return max((size_bytes - 1).bit_length(), SMALLEST_ORDER)

    def take(self, order: int) -> int:
        """Return the offset of a piece; -1 where none is free."""
        free = self._free[order]
        if free or self._split_for(order, 1):
            return free.pop()
        return -1

    def take_many(self, order: int, count: int) -> list[int]:
        """Return the offsets of ``count`` pieces; none where fewer are free."""
        free = self._free[order]
        if len(free) < count and not self._split_for(order, count):
            return []
        taken = free[-count:]
        del free[-count:]
        return taken

    def give(self, order: int, offset: int) -> None:
        """Take a piece back."""
        self._free[order].append(offset)

    def free_list(self, order: int) -> list[int]:
        """Return the list that pieces of that order are appended to, as `give` does it."""
        return self._free[order]

    def _split_for(self, order: int, count: int) -> bool:
        """Have ``count`` free pieces by splitting larger ones, after joining smaller ones where that is needed."""
        if not self._split(order, count):
            self._join()
            return self._split(order, count)
        return True

    def _split(self, order: int, count: int) -> bool:
        free = self._free
        while len(free[order]) < count:
            larger = next((each for each in range(order + 1, LARGEST_ORDER + 1) if free[each]), None)
            if larger is None:
                return False
            offset = free[larger].pop()
            while larger > order:
                larger -= 1
                free[larger].append(offset + (1 << larger))
            free[order].append(offset)
        return True

    def _join(self) -> None:
        """Make larger pieces of free ones that lie side by side."""
        start = self._start
        for order in range(SMALLEST_ORDER, LARGEST_ORDER):
            size, alone = 1 << order, []
            free = set(self._free[order])
            for offset in sorted(free):
                if offset not in free:
                    continue
                buddy = ((offset - start) ^ size) + start
                if buddy in free:
                    free -= {offset, buddy}
                    self._free[order + 1].append(min(offset, buddy))
                else:
                    alone.append(offset)
            self._free[order][:] = alone


class Region:
    """The shared memory: ``reserved_bytes`` at its beginning, the device's own buffers, the application's pool.

    ``descriptor`` is that of the memory, for another process to map. It lives for as long as a view of it does.
    """

    def __init__(self, reserved_bytes: int, staging_bytes: int, pool_bytes: int) -> None:
        base = _whole(reserved_bytes)
        staging, pool = _whole(staging_bytes), _whole(pool_bytes)
        self.size_bytes = base + staging + pool
        self.descriptor = os.memfd_create("nvmeof-offload", os.MFD_CLOEXEC)
        try:
            os.truncate(self.descriptor, self.size_bytes)
            self.mapping = mmap.mmap(self.descriptor, self.size_bytes)
        except OSError:
            os.close(self.descriptor)
            raise
        self.memory = memoryview(self.mapping)
        self.staging = Buddies(base, staging)
        self.pool = Buddies(base + staging, pool)
        self._address = _address_of(_byte_at(self.memory))

    def offset_of(self, view: memoryview) -> int:
        """Return the offset in the memory of a contiguous view; -1 for one of other memory or a read-only one."""
        if view.obj is not self.mapping or view.readonly:
            return -1
        return _address_of(_byte_at(view)) - self._address

    def close(self) -> None:
        """Forget the descriptor; views of the memory stay as they are."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()


def _whole(size_bytes: int) -> int:
    return -(-size_bytes // BUFFER_MAX_BYTES) * BUFFER_MAX_BYTES


def check_size(size_bytes: int) -> None:
    """Raise ConfigurationError for a buffer size that the pool cannot have."""
    if not 1 <= size_bytes <= BUFFER_MAX_BYTES:
        raise ConfigurationError(f"a device buffer has 1 to {BUFFER_MAX_BYTES} bytes, not {size_bytes}")
