"""The Reservation Notification log pages of one controller: a queue that reading empties."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from nvmeof.spec.log_pages import RESERVATION_NOTIFICATION
from nvmeof.spec.reservations import NotificationType
from nvmeof.wire import build

NOTICES_MAX: Final = 256
"""Upper bound of the notices that wait: the largest count that the log page can report (NALP)."""
_COUNT_MAX: Final = (1 << 64) - 1
_EMPTY: Final = bytes(RESERVATION_NOTIFICATION.sizeof())


@dataclass(slots=True)
class _Notice:
    count: int
    kind: NotificationType
    nsid: int


class ReservationNotices:
    """Oldest first. `len()`: how many are unread."""

    def __init__(self) -> None:
        self._queue: deque[_Notice] = deque()
        self._count = 0
        self._page = _EMPTY

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, kind: NotificationType, nsid: int) -> None:
        """Append a notice. One without room shows as a gap in the counts of its neighbours."""
        self._count = self._count + 1 if self._count < _COUNT_MAX else 1
        if len(self._queue) >= NOTICES_MAX:
            self._queue[-1].count = self._count
        else:
            self._queue.append(_Notice(self._count, kind, nsid))

    def page(self, offset_bytes: int) -> bytes:
        """Return the whole page: the oldest notice, which leaves the queue. All zeroes when there is none.

        With an offset, return the page that was last read from its beginning: a host may read one in pieces.
        """
        if offset_bytes == 0:
            self._page = self._take()
        return self._page

    def _take(self) -> bytes:
        if not self._queue:
            return _EMPTY
        notice = self._queue.popleft()
        return build(
            RESERVATION_NOTIFICATION,
            log_page_count=notice.count,
            type=notice.kind,
            available=len(self._queue),
            nsid=notice.nsid,
        )

    def reset(self) -> None:
        """Forget the notices, as a Controller Level Reset does."""
        self._queue.clear()
        self._count = 0
        self._page = _EMPTY
