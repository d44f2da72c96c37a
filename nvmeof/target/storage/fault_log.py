"""Lines of the log about faults that may come in thousands: one of each kind a minute, with the number of others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

SECONDS: Final = 60.0
_KINDS_MAX: Final = 64


class FaultLog:
    """A log with at most one line of each kind in `seconds`; the next line states how many were left out. `now`: a
    clock."""

    def __init__(
        self, logger: logging.Logger, *, seconds: float = SECONDS, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._seconds = seconds
        self._now = now
        self._said: dict[Hashable, tuple[float, int]] = {}  # when, and how many were left out since

    def error(self, kind: Hashable, message: str) -> None:
        """Log an error, unless one of its kind was logged a short time ago."""
        now = self._now()
        said_at, left_out = self._said.get(kind, (-self._seconds, 0))
        if now - said_at < self._seconds:
            self._said[kind] = (said_at, left_out + 1)
            return
        if len(self._said) >= _KINDS_MAX:
            self._said.clear()
        self._said[kind] = (now, 0)
        self._logger.error("%s%s", message, f" ({left_out} more like this)" if left_out else "")
