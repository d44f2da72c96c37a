"""Memory for data on its way between queues and backends, shared out so that no host takes all of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

_SMALLEST_CLASS_BYTES: Final = 4096
RESERVE_SHARE: Final = 4
"""A pool's reserve is this fraction of its limit, beyond it."""


def class_bytes(length: int) -> int:
    """Return the bytes of memory that a buffer of `length` bytes takes: the next power of two, at least 4,096."""
    return _SMALLEST_CLASS_BYTES if length <= _SMALLEST_CLASS_BYTES else 1 << (length - 1).bit_length()


class MemoryShare:
    """The memory that one association holds of a pool."""

    __slots__ = ("held_bytes", "moves")

    def __init__(self) -> None:
        self.held_bytes = 0
        self.moves = 0
        """Counts returns of memory: distinguishes a slow host from a silent one."""


class BufferPool:
    """Buffers by size class (powers of two), last in first out, so that what is used again is still in cache.

    At most `limit_bytes` are out at a time, and at most `idle_limit_bytes` (bytes, default: the limit) kept for later.

    A share gets more as long as what it holds is no more than what is left free (the dynamic thresholds of Choudhury
    and Hahne, IEEE/ACM ToN 6(2), 1998): one that takes all it can get ends with half of the limit, n of them with
    1/(n+1) each, and as much stays free. A share that holds nothing is also served from `reserve_bytes` beyond the
    limit (default: a quarter of it). A buffer larger than all that is given only when nothing else is out.
    Without a share there is only the limit.
    """

    def __init__(
        self, limit_bytes: int = 64 << 20, *, reserve_bytes: int | None = None, idle_limit_bytes: int | None = None
    ) -> None:
        if limit_bytes < _SMALLEST_CLASS_BYTES:
            raise ValueError(f"a pool of {limit_bytes} bytes holds no buffer")
        self.limit_bytes = limit_bytes
        self.reserve_bytes = limit_bytes // RESERVE_SHARE if reserve_bytes is None else reserve_bytes
        self.idle_limit_bytes = limit_bytes if idle_limit_bytes is None else idle_limit_bytes
        self.used_bytes = 0
        self.idle_bytes = 0
        self._idle: dict[int, list[memoryview]] = {}
        self._owners: dict[int, MemoryShare] = {}  # by the identity of the buffer
        self._waiters: dict[MemoryShare | None, deque[tuple[int, Callable[[], object]]]] = {}
        self._waking = False
        self._wake_again = False

    def fits(self, size_bytes: int, share: MemoryShare | None) -> bool:
        """Return whether a share may take that many more bytes now."""
        used = self.used_bytes
        free = self.limit_bytes - used
        if share is None:
            return size_bytes <= free or not used
        held = share.held_bytes
        if held + size_bytes <= free or not used:
            return True
        return not held and size_bytes <= free + self.reserve_bytes

    def take(self, length: int, share: MemoryShare | None = None, *, fits: bool = False) -> memoryview | None:
        """Return a writable view of exactly `length` bytes with any content; None when the share may not have it now.

        `fits`: the caller has asked already.
        """
        size = _SMALLEST_CLASS_BYTES if length <= _SMALLEST_CLASS_BYTES else 1 << (length - 1).bit_length()
        idle = self._idle.get(size)
        # Without a share what is idle is within the limit.
        if not fits and (share is not None or not idle) and not self.fits(size, share):
            return None
        if idle:
            self.idle_bytes -= size
            whole = idle.pop()
        else:
            if self.used_bytes + self.idle_bytes + size > self.limit_bytes:
                self._drop_idle(size)
            whole = memoryview(bytearray(size))
        self.used_bytes += size
        if share is not None:
            share.held_bytes += size
            self._owners[id(whole.obj)] = share
        return whole[:length]

    def give(self, view: memoryview) -> None:
        """Return a view of `take` to the pool; the caller must not use the view after that. Waiters for memory are
        served."""
        whole = memoryview(view.obj)
        size = len(whole)
        if self._owners:
            share = self._owners.pop(id(view.obj), None)
            if share is not None:
                share.held_bytes -= size
                share.moves += 1
        self.used_bytes -= size
        if self.used_bytes + self.idle_bytes + size <= self.limit_bytes and self.idle_bytes < self.idle_limit_bytes:
            self.idle_bytes += size
            idle = self._idle.get(size)
            if idle is None:
                self._idle[size] = [whole]
            else:
                idle.append(whole)
        if self._waiters:
            self._wake()

    def reserve(self, size_bytes: int, share: MemoryShare) -> bool:
        """Count memory that comes from elsewhere as held by a share, if it may have that much."""
        held, used = share.held_bytes, self.used_bytes
        if held + size_bytes > self.limit_bytes - used and not self.fits(
            size_bytes, share
        ):  # mostly, with one call less
            return False
        self.used_bytes = used + size_bytes
        share.held_bytes = held + size_bytes
        return True

    def release(self, size_bytes: int, share: MemoryShare) -> None:
        """Return memory that `reserve` took."""
        self.used_bytes -= size_bytes
        share.held_bytes -= size_bytes
        share.moves += 1
        if self._waiters:
            self._wake()

    def when_free(self, callback: Callable[[], object], size_bytes: int = 0, share: MemoryShare | None = None) -> None:
        """Call once, after memory has been given back, when the share may have `size_bytes` more.

        The waiters of one share are called in the order in which they asked, the shares in turn.
        """
        self._waiters.setdefault(share, deque()).append((size_bytes, callback))

    @property
    def starving(self) -> bool:
        """Whether a share that holds nothing waits: the reserve is out too."""
        return any(share is not None and not share.held_bytes for share in self._waiters)

    def forget(self, callback: Callable[[], object]) -> None:
        """Remove a waiter of `when_free` that is going away; no effect when it is not waiting."""
        for share, waiters in self._waiters.items():
            for item in waiters:
                if item[1] == callback:
                    waiters.remove(item)
                    if not waiters:
                        del self._waiters[share]
                    return

    def _wake(self) -> None:
        if self._waking:  # by a waiter that gave memory back as well
            self._wake_again = True
            return
        self._waking = True
        try:
            while True:
                self._wake_again = False
                for share in list(self._waiters):
                    self._wake_one(share)
                if not self._wake_again:
                    return
        finally:
            self._waking = False

    def _wake_one(self, share: MemoryShare | None) -> None:
        """Call the first waiter of a share if it can be served; the share is the last in line then."""
        waiters = self._waiters.get(share)
        if waiters is None or not self.fits(waiters[0][0], share):
            return
        used_bytes = self.used_bytes
        callback = waiters.popleft()[1]
        del self._waiters[share]
        if waiters:
            self._waiters[share] = waiters
        callback()
        if self.used_bytes > used_bytes:
            self._wake_again = True  # there may be more for others, or for this one

    def _drop_idle(self, wanted: int) -> None:
        for size in sorted(self._idle, reverse=True):
            views = self._idle[size]
            while views and self.used_bytes + self.idle_bytes + wanted > self.limit_bytes:
                views.pop()
                self.idle_bytes -= size
