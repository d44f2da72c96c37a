"""Which blocks of a namespace cannot be read: those marked by Write Uncorrectable, and those that failed to be read.

Marks of hosts outlive the process where the metadata store does. Failed blocks are found again by the next read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from nvmeof.target.core.block_ranges import BlockRanges
from nvmeof.target.core.metadata import KeptValue, MetadataStore, damaged

SECTION: Final = "uncorrectable"
RANGES_MAX: Final = 4096
"""Upper bound of the ranges of each kind; twice as many when writes have cut them. Each change stores all ranges, so
that their number is the cost of a command."""


class UnreadableBlocks:
    """`marked` and `failing` are sets of logical blocks; `found` is called when there is one more that fails,
    `changed` when other blocks are marked than before.

    `block_bytes` is stored with them: it may be another one the next time. Raises `ConfigurationError` for what cannot
    be read: a host that marked blocks must not be given their data.
    """

    __slots__ = ("_metadata_store", "_stored", "block_bytes", "changed", "failing", "found", "generation", "some")

    def __init__(self, metadata_store: MetadataStore, size_blocks: int, block_bytes: int = 512) -> None:
        self._metadata_store = metadata_store
        self.block_bytes = block_bytes
        self.failing = BlockRanges()
        self.generation = 0  # changes when one more fails or is marked
        self.found: Callable[[], object] = lambda: None
        self.changed: Callable[[], object] = lambda: None
        self.some = False  # whether there are any at all, of either kind
        marked = self._restore(metadata_store.get(SECTION), size_blocks)
        self._stored = KeptValue(metadata_store, SECTION, marked, self._dump, self._changed)
        self._count()

    @property
    def marked(self) -> BlockRanges:
        """Those that a host has marked; not to be modified."""
        return self._stored.now

    def _count(self) -> None:
        self.some = bool(self.marked) or bool(self.failing) or self._stored.settled is not self.marked

    def _changed(self) -> None:
        self._count()
        self.changed()

    def _restore(self, stored: Any, size_blocks: int) -> BlockRanges:
        marked = BlockRanges()
        if stored is None:
            return marked
        try:
            unit = int(stored["block_bytes"])
            for start, end in stored["ranges"]:
                if not 0 <= start < end:
                    raise ValueError(f"{start} to {end} is no range")
                # A block that is marked in part cannot be read.
                first, last = start * unit // self.block_bytes, -(-end * unit // self.block_bytes)
                if first < size_blocks:
                    marked.add(int(first), int(min(last, size_blocks)))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise damaged(self._metadata_store, SECTION, error) from error
        return marked

    @property
    def durable(self) -> bool:
        """Whether marks are there again after a power loss."""
        return self._metadata_store.durable

    @property
    def full(self) -> bool:
        """Whether there is no room for another range."""
        return len(self.marked) >= RANGES_MAX

    def crowded(self, start: int, end: int) -> bool:
        """Return whether blocks cannot be replaced, because that cuts a range in two and there are too many ranges."""
        return len(self.marked) >= 2 * RANGES_MAX and self.marked.splits(start, end)

    def _dump(self, marked: BlockRanges) -> dict[str, Any] | None:
        ranges = [list(item) for item in marked]
        return {"block_bytes": self.block_bytes, "ranges": ranges} if ranges else None

    def mark(self, start: int, end: int) -> Awaitable[None] | None:
        """Mark blocks `start` to `end` (not included) as unreadable. Done when the marks are stored; raises or ends
        with `OSError` without effect. Blocks that are marked already are stored again, since their first write may not
        have ended.
        """
        marked = self.marked
        if not marked.covers(start, end):
            self.generation += 1
            marked = marked.copy()
            marked.add(start, end)
        return self._stored.set(marked)

    def forget(self, start: int, end: int) -> Awaitable[None] | None:
        """Make blocks readable again after they were written. Done when that is stored; raises or ends with
        `OSError`."""
        self.failing.remove(start, end)
        self._count()
        if self.marked.overlaps(start, end):
            return self._stored.set(self._without(start, end))
        # Another write has taken the mark back, and that is not stored yet: after a loss of power it would be there.
        return self._stored.set(self.marked.copy()) if self._stored.settled.overlaps(start, end) else None

    def _without(self, start: int, end: int) -> BlockRanges:
        marked = self.marked.copy()
        marked.remove(start, end)
        return marked

    def concern(self, start: int, end: int) -> bool:
        """Return whether any of these blocks is marked or failed, or may be marked again after a loss of power."""
        if self.marked.overlaps(start, end) or self.failing.overlaps(start, end):
            return True
        if self._stored.settled is not self.marked:
            return self._stored.settled.overlaps(start, end)
        self._count()  # the last change is stored by now
        return False

    def clip(self, size_blocks: int) -> None:
        """Drop the ranges beyond `size_blocks`, after the namespace has become smaller."""
        if self.marked:
            self._stored.replace(self._without(size_blocks, 1 << 64))
        self.failing.remove(size_blocks, 1 << 64)
        self._count()

    def clear(self) -> Awaitable[None] | None:
        """Make all blocks readable, after all data was erased. Done when that is stored; raises or ends with
        `OSError`."""
        self.failing = BlockRanges()
        self._count()
        return self._stored.set(BlockRanges()) if self.marked else None

    def fail(self, start: int, end: int) -> None:
        """Note that some of these blocks could not be read."""
        if len(self.failing) >= RANGES_MAX or self.failing.covers(start, end):
            return
        self.failing.add(start, end)
        self.some = True
        self.generation += 1
        self.found()

    def ranges(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield the unreadable ranges from `first` to `end`, in order: start, end, and whether a host has marked the
        range."""
        both = BlockRanges()
        for start, stop in self.failing:
            both.add(start, stop)
        for start, stop in self.marked:
            both.remove(start, stop)
        merged = [(start, stop, False) for start, stop in both] + [(start, stop, True) for start, stop in self.marked]
        for start, stop, by_host in sorted(merged):
            if start < end and stop > first:
                yield max(start, first), min(stop, end), by_host
