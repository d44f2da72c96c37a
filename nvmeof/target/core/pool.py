"""Staging memory for data on its way between a queue and a backend."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_SMALLEST_CLASS_BYTES = 4096


class BufferPool:
    """Buffers by size class (powers of two), last in first out, so that what is used again is still in cache.

    At most `limit_bytes` are held, handed out and kept together; a single buffer larger than that is given only when
    nothing else is out.
    """

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        if limit_bytes < _SMALLEST_CLASS_BYTES:
            raise ValueError(f"a pool of {limit_bytes} bytes holds no buffer")
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.idle_bytes = 0
        self._idle: dict[int, list[memoryview]] = {}
        self._waiters: deque[Callable[[], object]] = deque()

    def take(self, length: int) -> memoryview | None:
        """A writable view of exactly `length` bytes with any content; None when the limit is reached."""
        if length <= _SMALLEST_CLASS_BYTES:
            size = _SMALLEST_CLASS_BYTES
        else:
            size = 1 << (length - 1).bit_length()
        idle = self._idle.get(size)
        if idle:
            self.idle_bytes -= size
            self.used_bytes += size
            return idle.pop()[:length]
        if self.used_bytes and self.used_bytes + size > self.limit_bytes:
            return None
        if self.used_bytes + self.idle_bytes + size > self.limit_bytes:
            self._drop_idle(size)
        self.used_bytes += size
        return memoryview(bytearray(size))[:length]

    def give(self, view: memoryview) -> None:
        """Take a view of `take` back. Nobody may use it any more.

        Of those who wait, the first that can use what is free now is called (and those before it, in vain).
        """
        whole = memoryview(view.obj)
        size = len(whole)
        self.used_bytes -= size
        if self.used_bytes + self.idle_bytes + size <= self.limit_bytes:
            self.idle_bytes += size
            self._idle.setdefault(size, []).append(whole)
        for _ in range(len(self._waiters)):
            if not self._waiters:  # one of them gave memory back as well
                break
            used_bytes = self.used_bytes
            self._waiters.popleft()()
            if self.used_bytes > used_bytes:
                break

    def when_free(self, callback: Callable[[], object]) -> None:
        """Call once, after the next `give`, the ones who asked first first."""
        self._waiters.append(callback)

    def forget(self, callback: Callable[[], object]) -> None:
        """Undo `when_free` for somebody who is going away; harmless when it is not waiting."""
        try:
            self._waiters.remove(callback)
        except ValueError:
            pass

    def _drop_idle(self, wanted: int) -> None:
        for size in sorted(self._idle, reverse=True):
            views = self._idle[size]
            while views and self.used_bytes + self.idle_bytes + wanted > self.limit_bytes:
                views.pop()
                self.idle_bytes -= size
