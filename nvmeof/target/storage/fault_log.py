"""Lines of the log about faults that may come in thousands: one of each kind a minute, with the number of others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

from nvmeof.target.core.log_rate import LogRate

SECONDS: Final = 60.0


class FaultLog:
    """A log with at most one line of each kind in `SECONDS`; the next line states how many were left out. `now`: a
    clock, in seconds."""

    def __init__(self, logger: logging.Logger, *, now: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._now = now
        self._rate = LogRate(1, 1 / SECONDS, together=0)

    def error(self, kind: Hashable, message: str) -> None:
        """Log an error, unless one of its kind was logged a short time ago."""
        left_out = self._rate.admit(kind, self._now())
        if left_out is not None:
            self._logger.error("%s%s", message, f" ({left_out} more like this)" if left_out else "")
