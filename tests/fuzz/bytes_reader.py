"""Decisions out of bytes: what a harness does with an input follows from the input alone, whoever made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Reader:
    """Reads an input from its beginning; behind its end there are zeroes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return max(0, len(self._data) - self._at)

    def number(self, size: int = 1) -> int:
        """Return an unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def below(self, count: int) -> int:
        """Return a number below ``count`` (at most 256)."""
        return self.number() % count

    def choose(self, items: Sequence[T]) -> T:
        """Return one of at most 256 items."""
        return items[self.below(len(items))]

    def take(self, size: int) -> bytes:
        """Return ``size`` bytes."""
        part = self._data[self._at : self._at + size]
        self._at += size
        return part.ljust(size, b"\0")

    def size(self) -> int:
        """Return a length: mostly a short one, or that of one block or several, or a limit and one more."""
        kind = self.below(8)
        if kind < 4:
            return self.below(64)
        return (512, 4096, 8192, 8193)[kind - 4] if kind < 8 else 0
