"""The LBA Status Information events of unreadable blocks: at most one per interval that the host sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nvmeof.runtime import Runtime, TimerHandle

POLL_INTERVAL: Final = 10
"""LSIPI: how long a host should wait between two looks at the log page, in units of 100 ms."""
_UNIT_SECONDS: Final = 0.1


class LbaAlert:
    """The LBA Status Information Alert event of one controller (NVM Command Set, LBA Status Information)."""

    def __init__(self) -> None:
        self._since: float | None = None  # of the last report, or of the log page's last reading
        self._timer: TimerHandle | None = None

    def reset(self) -> None:
        """Forget when it was reported, and do not report what was found before (Controller Level Reset)."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def found(self, runtime: Runtime, report: Callable[[], object], interval: Callable[[], int]) -> None:
        """Report new blocks: at once, or when the interval has passed.

        ``report`` sends the event; ``interval`` gives LSIRI in units of 100 ms, as it is then.
        """
        if self._timer is None:
            self._send_in_time(runtime, report, interval)

    def _send_in_time(self, runtime: Runtime, report: Callable[[], object], interval: Callable[[], int]) -> None:
        wait = 0.0
        if self._since is not None:
            wait = self._since + interval() * _UNIT_SECONDS - runtime.now()
        if wait > 0:
            self._timer = runtime.call_later(wait, lambda: self._later(runtime, report, interval))
        else:
            self._since = runtime.now()
            report()

    def acknowledged(self, now: float) -> None:
        """Begin a new interval, since the host has read the log page."""
        self._since = now

    def _later(self, runtime: Runtime, report: Callable[[], object], interval: Callable[[], int]) -> None:
        self._timer = None
        self._send_in_time(runtime, report, interval)  # a new interval may have begun
