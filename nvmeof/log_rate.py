"""How many lines of the log one cause may have: a peer, or a fault of one kind."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

CAUSES_MOST: Final = 256
"""Upper bound of the causes that are counted separately; beyond it the one with the oldest line is forgotten."""


class _Bucket:
    __slots__ = ("left", "left_out", "since")

    def __init__(self, left: float, now: float) -> None:
        self.left = left
        self.since = now
        self.left_out = 0

    def fill(self, now: float, most: float, per_second: float) -> None:
        self.left = min(most, self.left + (now - self.since) * per_second)
        self.since = now


class LogRate:
    """A token bucket for each cause, and one for all of them that is ``together`` times as large (0: none).

    `burst`: lines at once. `per_second`: lines that a cause may have in the long run. Times are seconds on any clock
    that only goes forward.

    >>> rate = LogRate(burst=1, per_second=1 / 60)
    >>> [rate.admit("disk full", now) for now in (0.0, 1.0, 2.0, 60.0)]
    [0, None, None, 2]
    """

    def __init__(self, burst: int, per_second: float, *, together: int = 8) -> None:
        self._burst = burst
        self._per_second = per_second
        self._together = together
        self._causes: dict[Hashable, _Bucket] = {}
        self._all: _Bucket | None = None

    def admit(self, cause: Hashable, now: float) -> int | None:
        """Return None for a line that must be left out, else how many were left out since the last one of its cause."""
        bucket = self._causes.pop(cause, None) or _Bucket(self._burst, now)
        self._causes[cause] = bucket  # heard of last
        if len(self._causes) > CAUSES_MOST:
            del self._causes[next(iter(self._causes))]
        bucket.fill(now, self._burst, self._per_second)
        admitted = bucket.left >= 1 and self._admitted_together(now)
        if not admitted:
            bucket.left_out += 1
            return None
        bucket.left -= 1
        left_out, bucket.left_out = bucket.left_out, 0
        return left_out

    def _admitted_together(self, now: float) -> bool:
        if not self._together:
            return True
        if self._all is None:
            self._all = _Bucket(self._together * self._burst, now)
        self._all.fill(now, self._together * self._burst, self._together * self._per_second)
        if self._all.left < 1:
            return False
        self._all.left -= 1
        return True


class PeerRate(LogRate):
    """The lines that peers cause, by their addresses."""

    def admit(self, cause: Hashable, now: float) -> int | None:
        """Return as :meth:`LogRate.admit`; of ``192.0.2.1:4420`` the port does not count."""
        peer = str(cause)
        return super().admit(peer.rpartition(":")[0] or peer, now)


def left_out_text(left_out: int) -> str:
    """Return the part of a line that states how many lines before it were left out."""
    return f" ({left_out} lines about this peer were left out)" if left_out else ""
