"""A set of logical blocks, as ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class BlockRanges:
    """Disjoint half-open ranges, none touching the next. `len` is their number, not that of the blocks."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def copy(self) -> BlockRanges:
        """Return another set of the same blocks."""
        other = BlockRanges()
        other._starts, other._ends = self._starts.copy(), self._ends.copy()
        return other

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any block of a range (at least one block) is in the set."""
        first = bisect_right(self._ends, start)
        return first < len(self._starts) and self._starts[first] < end

    def covers(self, start: int, end: int) -> bool:
        """Return whether all blocks of a range (at least one block) are in the set."""
        first = bisect_right(self._ends, start)
        return first < len(self._starts) and self._starts[first] <= start and end <= self._ends[first]

    def splits(self, start: int, end: int) -> bool:
        """Return whether removing a range (at least one block) makes one range more, since both its neighbours are in
        the set."""
        first = bisect_right(self._ends, start)
        return first < len(self._starts) and self._starts[first] < start and end < self._ends[first]

    def add(self, start: int, end: int) -> None:
        """Put a range of one block at least in."""
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:  # these it overlaps or touches
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Take a range out, as far as it is in."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if start >= end or first >= last:
            return
        left = [(self._starts[first], start)] if self._starts[first] < start else []
        right = [(end, self._ends[last - 1])] if self._ends[last - 1] > end else []
        self._starts[first:last] = [item[0] for item in left + right]
        self._ends[first:last] = [item[1] for item in left + right]
