"""Locks on ranges of blocks, for threads that read, change and write back parts of them.

This module knows no namespaces: a range is a pair of numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RangeLock:
    """One lock per range ``first`` to ``end`` (not included): each request waits for all earlier ones that overlap."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._asked: list[tuple[int, int]] = []  # in order of arrival; the first ones have it

    @contextmanager
    def held(self, first: int, end: int) -> Iterator[None]:
        """Hold the range within the ``with`` block. An exception while it waits, as of Ctrl-C, gives it up."""
        entry = (first, end)
        with self._condition:
            self._asked.append(entry)
        try:
            with self._condition:
                self._condition.wait_for(lambda: self._is_first(entry))
            yield
        finally:
            with self._condition:
                del self._asked[self._position(entry)]
                self._condition.notify_all()

    def _position(self, entry: tuple[int, int]) -> int:
        return next(index for index, each in enumerate(self._asked) if each is entry)

    def _is_first(self, entry: tuple[int, int]) -> bool:
        first, end = entry
        for each in self._asked:
            if each is entry:
                return True
            if each[0] < end and first < each[1]:
                return False
        raise AssertionError("the range is not asked for")
