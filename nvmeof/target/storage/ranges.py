"""Range locks: a logical block is never read while half of it is written.

Requests are granted in the order in which they enter the table, so that no two can wait for each other. Those of one
owner enter in the order of their arrival, and those without an owner after all that came before them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

MOST_LOCKS: Final = 256
"""Upper bound of the locks that are compared with each request. Requests beyond it wait in line, whatever their range:
the work and the memory that a request takes must not grow with the number of commands that hosts have in progress. Each
owner has its own line, and at most as many of these locks as are free at its request."""


class RunRanges:
    """The ranges of a run: all of one length, none overlapping another."""

    __slots__ = ("_aligned", "_length", "_offsets", "_starts")

    def __init__(self, starts: list[int], length: int) -> None:
        self._starts = starts  # sorted
        self._length = length
        self._aligned = not any(start % length for start in starts)
        self._offsets = frozenset(starts)

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether one of the ranges has bytes in common with that one."""
        starts = self._starts
        following = bisect_right(starts, start - self._length)
        return following < len(starts) and starts[following] < end

    def meets(self, other: RunRanges) -> bool:
        """Return whether two runs have bytes in common."""
        if self._length == other._length and self._aligned and other._aligned:
            return not self._offsets.isdisjoint(other._offsets)
        return any(self.overlaps(start, start + other._length) for start in other._starts)


class RangeLock:
    """The request of one range, or of a run: then `start` and `end` are around all of its `ranges`.

    `granted`: the range is held; `when_granted` is called once if it is granted later.
    """

    __slots__ = ("_blockers", "_waiters", "end", "exclusive", "owner", "ranges", "start", "when_granted")

    def __init__(
        self, start: int, end: int, exclusive: bool, owner: object = None, ranges: RunRanges | None = None
    ) -> None:
        self.ranges = ranges
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.owner = owner
        self.when_granted: Callable[[], object] | None = None
        self._blockers = 0
        self._waiters: list[RangeLock] = []

    @property
    def granted(self) -> bool:
        return self._blockers == 0


class RangeLocks:
    """Locks over half-open ranges of bytes: readers share, writers exclude. Few are held at a time."""

    __slots__ = ("_arrivals", "_exclusive", "_held", "_in_line", "_lines", "_locks", "_released", "_releasing")

    def __init__(self) -> None:
        self._locks: dict[RangeLock, None] = {}
        self._held: dict[object, int] = {}  # how many of them by owner
        self._lines: dict[object, deque[tuple[int, list[RangeLock]]]] = {}  # by owner, whose turn is next first
        self._in_line = 0
        self._exclusive = 0  # how many of the locks are
        self._arrivals = 0
        self._released: deque[RangeLock] = deque()
        self._releasing = False

    def __len__(self) -> int:
        return len(self._locks) + self._in_line

    def busy(self, start: int, end: int, *, exclusive: bool) -> bool:
        """Return whether a request for that range would have to wait."""
        if not self._locks:
            return False
        return any(
            lock.start < end
            and start < lock.end
            and (exclusive or lock.exclusive)
            and (lock.ranges is None or lock.ranges.overlaps(start, end))
            for lock in self._locks
        )

    def run_busy(self, offsets: Sequence[int], length: int, *, exclusive: bool) -> bool:
        """Return whether one of several ranges of one length would have to wait."""
        if not self._locks or not (exclusive or self._exclusive):
            return False
        wanted = RunRanges(sorted(offsets), length)
        return self._run_waits(wanted, min(offsets), max(offsets) + length, exclusive)

    def _run_waits(self, wanted: RunRanges, start: int, end: int, exclusive: bool) -> bool:
        for lock in self._locks:
            if lock.start < end and start < lock.end and (exclusive or lock.exclusive):
                ranges = lock.ranges
                if wanted.overlaps(lock.start, lock.end) if ranges is None else wanted.meets(ranges):
                    return True
        return False

    def try_run(self, offsets: Sequence[int], length: int, owner: object = None) -> RangeLock | None:
        """Lock several ranges of one length for writing, as one lock; None when one of them would have to wait, or
        overlaps another."""
        starts = sorted(offsets)
        if any(after - before < length for before, after in pairwise(starts)):
            return None
        if (self._in_line and (owner is None or owner in self._lines)) or not self._room(1, owner):
            return None
        start, end, wanted = starts[0], starts[-1] + length, RunRanges(starts, length)
        if self._locks and self._run_waits(wanted, start, end, True):
            return None
        lock = RangeLock(start, end, True, owner, wanted)
        self._exclusive += 1
        self._locks[lock] = None
        self._held[owner] = self._held.get(owner, 0) + 1
        return lock

    def acquire(self, start: int, end: int, *, exclusive: bool, owner: object = None) -> RangeLock:
        """Ask for a range; look at `granted`, and set `when_granted` where it is False."""
        return self.acquire_all([(start, end, exclusive)], owner)[0]

    def acquire_all(self, ranges: Sequence[tuple[int, int, bool]], owner: object = None) -> list[RangeLock]:
        """Ask for several ranges (start, end, exclusive) in one step; none may overlap another."""
        wanted = [RangeLock(start, end, exclusive, owner) for start, end, exclusive in ranges]
        if (self._in_line and (owner is None or owner in self._lines)) or not self._room(len(wanted), owner):
            for lock in wanted:
                lock._blockers = 1
            self._arrivals += 1
            self._in_line += len(wanted)
            self._lines.setdefault(owner, deque()).append((self._arrivals, wanted))
        else:
            for lock in wanted:
                self._enter(lock)
        return wanted

    def _room(self, count: int, owner: object) -> bool:
        free = MOST_LOCKS - len(self._locks)
        return count + (0 if owner is None else self._held.get(owner, 0)) <= free

    def _next(self) -> list[RangeLock] | None:
        """Take the request that is next in line and may enter now; its owner is served again after the others."""
        for owner, line in self._lines.items():
            number, wanted = line[0]
            if not self._room(len(wanted), owner):
                continue
            if owner is None and any(other[0][0] < number for other in self._lines.values()):
                continue
            line.popleft()
            del self._lines[owner]
            if line:
                self._lines[owner] = line
            self._in_line -= len(wanted)
            return wanted
        return None

    def _enter(self, wanted: RangeLock) -> None:
        start, end, exclusive = wanted.start, wanted.end, wanted.exclusive
        if exclusive or self._exclusive:
            for lock in self._locks:
                if (
                    lock.start < end
                    and start < lock.end
                    and (exclusive or lock.exclusive)
                    and (lock.ranges is None or lock.ranges.overlaps(start, end))
                ):
                    lock._waiters.append(wanted)
                    wanted._blockers += 1
        self._exclusive += exclusive
        self._locks[wanted] = None
        self._held[wanted.owner] = self._held.get(wanted.owner, 0) + 1

    def release(self, lock: RangeLock) -> None:
        """Release a range, and grant the requests that waited only for it."""
        del self._locks[lock]
        self._exclusive -= lock.exclusive
        held = self._held.pop(lock.owner) - 1
        if held:
            self._held[lock.owner] = held
        self._released.append(lock)
        if self._releasing:  # by a caller that was granted just now: one after the other, not one inside the other
            return
        self._releasing = True
        try:
            while self._released:
                for waiter in self._released.popleft()._waiters:
                    self._unblock(waiter)
                while self._in_line and (following := self._next()) is not None:
                    for entering in following:
                        self._enter(entering)
                    for entering in following:
                        self._unblock(entering)
        finally:
            self._releasing = False

    @staticmethod
    def _unblock(waiter: RangeLock) -> None:
        waiter._blockers -= 1
        if waiter._blockers == 0 and waiter.when_granted is not None:
            waiter.when_granted()
