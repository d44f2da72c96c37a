"""Range locks: a logical block is never read while half of it is written.

Requests are granted in the order of their arrival, so that nobody starves and no two can wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

MOST_LOCKS: Final = 256
"""How many are looked at for each request. What comes beyond that waits in line, whatever its range: the work and the
memory that a request takes must not grow with the number of commands that hosts have in progress."""


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

    __slots__ = ("_in_line", "_locks", "_released", "_releasing")

    def __init__(self) -> None:
        self._locks: dict[RangeLock, None] = {}
        self._in_line: deque[RangeLock] = deque()
        self._released: deque[RangeLock] = deque()
        self._releasing = False

    def __len__(self) -> int:
        return len(self._locks) + len(self._in_line)

    def busy(self, start: int, end: int, *, exclusive: bool) -> bool:
        """Whether a request for that range would have to wait."""
        return any(lock.start < end and start < lock.end and (exclusive or lock.exclusive) for lock in self._locks)

    def acquire(self, start: int, end: int, *, exclusive: bool) -> RangeLock:
        """Ask for a range; look at `granted`, and set `when_granted` where it is False."""
        wanted = RangeLock(start, end, exclusive)
        if self._in_line or len(self._locks) >= MOST_LOCKS:
            wanted._blockers = 1
            self._in_line.append(wanted)
        else:
            self._enter(wanted)
        return wanted

    def _enter(self, wanted: RangeLock) -> None:
        start, end, exclusive = wanted.start, wanted.end, wanted.exclusive
        for lock in self._locks:
            if lock.start < end and start < lock.end and (exclusive or lock.exclusive):
                lock._waiters.append(wanted)
                wanted._blockers += 1
        self._locks[wanted] = None

    def release(self, lock: RangeLock) -> None:
        """Give a range back; those who waited only for it are granted."""
        del self._locks[lock]
        self._released.append(lock)
        if self._releasing:  # by somebody who was granted just now: one after the other, not one inside the other
            return
        self._releasing = True
        try:
            while self._released:
                for waiter in self._released.popleft()._waiters:
                    self._unblock(waiter)
                while self._in_line and len(self._locks) < MOST_LOCKS:
                    following = self._in_line.popleft()
                    self._enter(following)
                    self._unblock(following)
        finally:
            self._releasing = False

    @staticmethod
    def _unblock(waiter: RangeLock) -> None:
        waiter._blockers -= 1
        if waiter._blockers == 0 and waiter.when_granted is not None:
            waiter.when_granted()
