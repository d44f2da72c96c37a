"""Memory for the data of requests, shared by all clients of an export process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

RESERVE_SHARE: Final = 4
"""The reserve is this fraction of the limit, beyond it."""


class Share:
    """What one client holds."""

    __slots__ = ("held_bytes",)

    def __init__(self) -> None:
        self.held_bytes = 0


class Budget:
    """Counts bytes that are held, so that no client takes all of them.

    A client gets more as long as what it holds is no more than what is left free (the dynamic thresholds of Choudhury
    and Hahne, IEEE/ACM ToN 6(2), 1998); one that holds nothing is also served from a reserve. A request larger than
    all there is may begin when nothing else is held.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._waiters: deque[Callable[[], None]] = deque()

    def take(self, count: int, share: Share) -> bool:
        """Take ``count`` bytes, if the share may have them now."""
        free = self.limit_bytes - self.held_bytes
        held = share.held_bytes
        if (
            held + count > free
            and self.held_bytes
            and (held or count > free + self.limit_bytes // RESERVE_SHARE)
        ):  # fmt: skip
            return False
        self.held_bytes += count
        share.held_bytes += count
        return True

    def give(self, count: int, share: Share) -> None:
        """Give bytes back, and call those who wait: each tries again, and may wait again."""
        self.held_bytes -= count
        share.held_bytes -= count
        for _ in range(len(self._waiters)):
            self._waiters.popleft()()

    def when_free(self, callback: Callable[[], None]) -> None:
        """Call once, when bytes have been given back."""
        self._waiters.append(callback)
