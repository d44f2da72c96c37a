"""When a host is told that blocks may not be readable any more: not more often than it wants to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nvmeof.runtime import Runtime

POLL_INTERVAL: Final = 10
"""LSIPI: how long a host should wait between two looks at the log page, in units of 100 ms."""
_UNIT_SECONDS: Final = 0.1


class LbaAlert:
    """Of one controller. `report` sends the event; `interval` gives LSIRI in units of 100 ms."""

    def __init__(self, runtime: Runtime, report: Callable[[], object], interval: Callable[[], int]) -> None:
        self._runtime = runtime
        self._report = report
        self._interval = interval
        self._since: float | None = None  # of the last report, or of the log page's last reading
        self._scheduled = False

    def found(self) -> None:
        """There are blocks that were not known before."""
        if not self._scheduled:
            self._send_in_time()

    def _send_in_time(self) -> None:
        wait = 0.0
        if self._since is not None:
            wait = self._since + self._interval() * _UNIT_SECONDS - self._runtime.now()
        if wait > 0:
            self._scheduled = True
            self._runtime.call_later(wait, self._later)
        else:
            self._since = self._runtime.now()
            self._report()

    def acknowledged(self) -> None:
        """The host has read the log page: the interval starts anew."""
        self._since = self._runtime.now()

    def _later(self) -> None:
        self._scheduled = False
        self._send_in_time()  # the interval may have begun anew
