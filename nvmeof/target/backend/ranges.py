"""Range locks: a logical block is never read while half of it is written.

Requests are granted in the order of their arrival, so that nobody starves and no two can wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable


class RangeLock:
    """One request. `granted` tells whether it holds its range; `when_granted` is called once when that comes later."""

    __slots__ = ("_blockers", "_waiters", "end", "exclusive", "start", "when_granted")

    def __init__(self, start: int, end: int, exclusive: bool) -> None:
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.when_granted: Callable[[], object] | None = None
        self._blockers = 0
        self._waiters: list[RangeLock] = []

    @property
    def granted(self) -> bool:
        return self._blockers == 0


class RangeLocks:
    """Locks over half-open ranges of bytes: readers share, writers exclude. Few are held at a time."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[RangeLock, None] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def busy(self, start: int, end: int, *, exclusive: bool) -> bool:
        """Whether a request for that range would have to wait."""
        return any(lock.start < end and start < lock.end and (exclusive or lock.exclusive) for lock in self._locks)

    def acquire(self, start: int, end: int, *, exclusive: bool) -> RangeLock:
        """Ask for a range; look at `granted`, and set `when_granted` where it is False."""
        wanted = RangeLock(start, end, exclusive)
        for lock in self._locks:
            if lock.start < end and start < lock.end and (exclusive or lock.exclusive):
                lock._waiters.append(wanted)
                wanted._blockers += 1
        self._locks[wanted] = None
        return wanted

    def release(self, lock: RangeLock) -> None:
        """Give a range back; those who waited only for it are granted."""
        del self._locks[lock]
        for waiter in lock._waiters:
            waiter._blockers -= 1
            if waiter._blockers == 0 and waiter.when_granted is not None:
                waiter.when_granted()
