"""Slices: what takes the event loop's time beside reads and writes is done a little at a time, in turn by owner.

New connections, Connects, admin commands, ends of connections and the pieces of long operations all come here when
there is more of them than a fraction of a millisecond per turn of the loop. Between two turns the loop serves all I/O.
A turn in which it has served some is followed by one without a slice, for a while: a write to a file takes several
turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

SLICE_SECONDS: Final = 100e-6
"""How much of it is done in one turn of the loop; what has begun is finished, so it may be one piece more."""
PATIENCE_SECONDS: Final = 1e-3
"""How long it waits, at the most, while the loop serves I/O in each of its turns."""
LONG_SECONDS: Final = 300e-6
"""How long one queue begins commands on the long way in one turn of the loop."""


class ServedIo:
    """Whether reads or writes were served in this turn of the loop: queues set it, who shares out time clears it."""

    __slots__ = ("served",)

    def __init__(self) -> None:
        self.served = False


class Slices:
    """Shares out the loop's time for expensive work. One owner's pieces keep their order; owners take turns.

    ``call_soon`` calls back in the next turn of the event loop, ``clock`` returns seconds. Queues set ``io`` when they
    have served I/O. ``give_way`` lets threads run that work for the loop, which itself never waits while something
    waits here.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float],
        slice_seconds: float = SLICE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        give_way: Callable[[], object] = lambda: None,
    ) -> None:
        self.clock = clock
        self.slice_seconds = slice_seconds
        self.patience_seconds = patience_seconds
        self.io = ServedIo()
        self._put_off_since: float | None = None
        self._give_way = give_way
        self._call_soon = call_soon
        self._waiting: dict[Hashable, deque[tuple[Callable[[], object], bool]]] = {}  # whose turn it is comes first
        self._spent_seconds = 0.0  # in this turn of the loop
        self._scheduled = False

    @property
    def open(self) -> bool:
        """Whether expensive work may be done at once: nothing waits, and this turn's slice is not used up."""
        return not self._waiting and self._spent_seconds < self.slice_seconds

    def spend(self, seconds: float) -> None:
        """Take note of work that was done at once."""
        self._spent_seconds += seconds
        self._schedule()

    def add(self, owner: Hashable, work: Callable[[], object], *, whole: bool = False) -> None:
        """Call ``work`` in a turn of the loop to come, when it is the owner's turn.

        ``whole``: it only lets something go on, of unknown length; nothing else is begun in that turn.
        """
        self._waiting.setdefault(owner, deque()).append((work, whole))
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._turn)

    def _turn(self) -> None:
        """Use a new turn of the loop for one slice of work, or leave it to I/O."""
        self._scheduled = False
        self._spent_seconds = 0.0
        if self._waiting:
            self._give_way()
        began = self.clock()
        served, self.io.served = self.io.served, False
        if served and self._waiting:
            if self._put_off_since is None:
                self._put_off_since = began
            if began - self._put_off_since < self.patience_seconds:
                self._schedule()
                return
        self._put_off_since = None
        try:
            while self._waiting:
                owner = next(iter(self._waiting))
                queue = self._waiting.pop(owner)
                work, whole = queue.popleft()
                if queue:
                    self._waiting[owner] = queue  # behind all others
                work()
                self._spent_seconds = self.clock() - began
                if whole:
                    self._spent_seconds += self.slice_seconds
                if self._spent_seconds >= self.slice_seconds:
                    break
        finally:
            if self._waiting or self._spent_seconds:
                self._schedule()
