"""Which blocks of a namespace cannot be read: those marked by Write Uncorrectable, and those that failed to be read.

What a host has marked outlives the process where the keeper does. What failed is found again by whoever reads it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from nvmeof.target.block_ranges import BlockRanges
from nvmeof.target.keeper import Keeper, damaged

SECTION: Final = "uncorrectable"
RANGES_MAX: Final = 4096
"""How many ranges are kept of each kind; twice as many when writes have cut them. All are kept anew with each change,
so that their number is what a command costs everybody."""


class Marks:
    """`marked` and `failing` are sets of logical blocks; `found` is called when there is one more that fails.

    `block_bytes` is kept with them: it may be another one the next time. Raises `ConfigurationError` for what cannot be
    read: a host that marked blocks must not be given their data.
    """

    __slots__ = ("_keeper", "block_bytes", "failing", "found", "generation", "marked", "some")

    def __init__(self, keeper: Keeper, size_blocks: int, block_bytes: int = 512) -> None:
        self._keeper = keeper
        self.block_bytes = block_bytes
        self.marked = BlockRanges()
        self.failing = BlockRanges()
        self.generation = 0  # changes when one more fails or is marked
        self.found: Callable[[], object] = lambda: None
        self.some = False  # whether there are any at all, of either kind
        self._restore(keeper.get(SECTION), size_blocks)
        self._count()

    def _count(self) -> None:
        self.some = bool(self.marked) or bool(self.failing)

    def _restore(self, kept: Any, size_blocks: int) -> None:
        if kept is None:
            return
        try:
            unit = int(kept["block_bytes"])
            for start, end in kept["ranges"]:
                if not 0 <= start < end:
                    raise ValueError(f"{start} to {end} is no range")
                # A block that is marked in part cannot be read.
                first, last = start * unit // self.block_bytes, -(-end * unit // self.block_bytes)
                if first < size_blocks:
                    self.marked.add(int(first), int(min(last, size_blocks)))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise damaged(self._keeper, SECTION, error) from error

    @property
    def durable(self) -> bool:
        """Whether marks are there again after a power loss."""
        return self._keeper.durable

    @property
    def full(self) -> bool:
        """Whether there is no room for another range."""
        return len(self.marked) >= RANGES_MAX

    def crowded(self, start: int, end: int) -> bool:
        """Whether blocks cannot be replaced: that would cut a range in two, and there are too many already."""
        return len(self.marked) >= 2 * RANGES_MAX and self.marked.splits(start, end)

    def _keep(self) -> Awaitable[None] | None:
        self._count()
        ranges = [list(item) for item in self.marked]
        return self._keeper.put(SECTION, {"block_bytes": self.block_bytes, "ranges": ranges} if ranges else None)

    def mark(self, start: int, end: int) -> Awaitable[None] | None:
        """Blocks cannot be read from now on. Done when that is kept; raises or ends with `OSError`."""
        if not self.marked.covers(start, end):
            self.generation += 1
        self.marked.add(start, end)
        return self._keep()

    def forget(self, start: int, end: int) -> Awaitable[None] | None:
        """Blocks have been replaced, and can be read again. Done when that is kept; raises or ends with `OSError`."""
        self.failing.remove(start, end)
        if not self.marked.overlaps(start, end):
            self._count()
            return None
        self.marked.remove(start, end)
        return self._keep()

    def concern(self, start: int, end: int) -> bool:
        """Whether any of these blocks is marked or failed."""
        return self.marked.overlaps(start, end) or self.failing.overlaps(start, end)

    def clip(self, size_blocks: int) -> None:
        """The namespace has become smaller."""
        self.marked.remove(size_blocks, 1 << 64)
        self.failing.remove(size_blocks, 1 << 64)
        self._count()

    def clear(self) -> Awaitable[None] | None:
        """Nothing is left of what the blocks held. Done when that is kept; raises or ends with `OSError`."""
        self.failing = BlockRanges()
        if not self.marked:
            self.some = False
            return None
        self.marked = BlockRanges()
        return self._keep()

    def fail(self, start: int, end: int) -> None:
        """Some of these blocks could not be read."""
        if len(self.failing) >= RANGES_MAX or self.failing.covers(start, end):
            return
        self.failing.add(start, end)
        self.some = True
        self.generation += 1
        self.found()

    def ranges(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """All of them from `first` to `end`, in order: start, end, and whether a host has marked them."""
        both = BlockRanges()
        for start, stop in self.failing:
            both.add(start, stop)
        for start, stop in self.marked:
            both.remove(start, stop)
        merged = [(start, stop, False) for start, stop in both] + [(start, stop, True) for start, stop in self.marked]
        for start, stop, by_host in sorted(merged):
            if start < end and stop > first:
                yield max(start, first), min(stop, end), by_host
