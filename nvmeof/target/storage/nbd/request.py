"""One request to an NBD server, from a backend's operation to its reply."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from nvmeof.nbd.numbers import Command
from nvmeof.target.storage.remote import EngineRequest

CHANGING: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})
SPANS_MOST: Final = 1 << 16
"""Pieces of a read that do not touch each other: more than every other block of 32 MiB makes."""
_NOTHING: Final = memoryview(b"")


class NbdRequest(EngineRequest):
    """Done when the server has answered it; fails with `OSError`. `view`: the data to write, or where a read lands."""

    def __init__(
        self, command: int, offset: int = 0, length: int = 0, view: memoryview = _NOTHING, flags: int = 0
    ) -> None:
        super().__init__()
        self.command = command
        self.offset = offset
        self.length = length
        self.view = view
        self.flags = flags
        self.sent = 0.0  # the loop's time
        self.deadline = 0.0  # until when it waits for a connection
        self.received = 0  # bytes of a read
        self._spans: list[tuple[int, int]] = []  # of a read: what has been received, in order, beginnings and ends
        self.error: OSError | None = None  # of a chunk; the reply has not ended yet
        self.extents: list[tuple[int, int]] = []  # of a block status: lengths and flags

    def begin_reply(self) -> None:
        """Take note that it is sent, for the first time or again: nothing of its reply has come."""
        self.received = 0
        self.error = None
        self._spans.clear()

    def cover(self, at: int, size: int) -> bool:
        """Note a piece of a read's data, `size` bytes from `at` on; False for one that overlaps another, or one too
        many. Counted twice, a piece would pass off what its buffer held before as data."""
        spans, end = self._spans, at + size
        where = bisect_left(spans, (at,))
        before = spans[where - 1] if where else (-1, -1)
        after = spans[where] if where < len(spans) else (-1, -1)
        if before[1] > at or -1 < after[0] < end or len(spans) > SPANS_MOST:
            return False
        joined = before[0] if before[1] == at else at, after[1] if after[0] == end else end
        spans[where - (before[1] == at) : where + (after[0] == end)] = [joined]
        self.received += size
        return True

    @property
    def changing(self) -> bool:
        """Whether it changes data."""
        return self.command in CHANGING

    def fail(self, error: OSError) -> None:
        """End it with an error, unless it has ended."""
        if not self.done():
            self.set_exception(error)

    def succeed(self) -> None:
        """End it, with the error of its chunks if there was one."""
        if self.done():
            return
        if self.error is not None:
            self.set_exception(self.error)
        else:
            self.set_result(None)
