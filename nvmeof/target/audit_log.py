"""An audit log: one JSON object in each line, in a file that may be rotated, or on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.core.log_rate import LogRate

STANDARD_OUTPUT: Final = "-"
_STRANGERS_BURST, _STRANGERS_PER_SECOND = 50, 1.0
_HOSTS_BURST, _HOSTS_PER_SECOND = 600, 10.0
_SAY_SECONDS: Final = 60.0
"""A log that cannot be written is a line of the other log, once in so many seconds."""

logger = logging.getLogger("nvmeof.target")


class AuditLog:
    """Implements :class:`nvmeof.target.core.audit.Audit`: ``Target(config, audit=AuditLog("/var/log/nvmeof.audit"))``.

    A line is written before the peer gets its answer. A file is made with mode 0600, and appended to; call `reopen`
    when it was renamed. What one address causes is bounded, by event and command and for what was refused and what was
    granted by itself, so that no line is kept out by those of another kind: the next line of that kind of an address
    says in `left_out` how many before it were left out. Raises `ConfigurationError` for a
    file that cannot be written; what fails later is a line of the target's log, and the target goes on.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = None if os.fspath(where) == STANDARD_OUTPUT else Path(where)
        self._wall_clock, self._clock = wall_clock, clock
        self._refused = {each: LogRate(_STRANGERS_BURST, _STRANGERS_PER_SECOND) for each in AuditEvent}
        self._granted = {each: LogRate(_HOSTS_BURST, _HOSTS_PER_SECOND) for each in AuditEvent}
        self._torn = False  # the last line was written in part
        self._said: float | None = None
        self.lost = 0
        """Lines that could not be written."""
        self._fd = -1
        try:
            self._open()
        except OSError as error:
            raise ConfigurationError(f"cannot write the audit log {self.path}: {error.strerror or error}") from error

    def _open(self) -> None:
        if self.path is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO without a reader
            fd = os.open(self.path, flags, 0o600)
            self.close()
            self._fd = fd

    def reopen(self) -> None:
        """Go on in a file of the same name, after the present one was renamed; one that cannot be opened is logged."""
        try:
            self._open()
        except OSError as error:
            logger.error("the audit log %s cannot be opened again: %s", self.path, error.strerror or error)

    def close(self) -> None:
        """Close the file. Calling it twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __call__(
        self, event: AuditEvent, *, granted: bool, peer: str, host: str = "", subsystem: str = "", **details: str | int
    ) -> None:
        """Write a line, unless the peer has had too many."""
        what = details.get("command") or details.get("verb")
        rate = (self._granted if granted else self._refused)[event]
        left_out = rate.admit((what, peer.rpartition(":")[0] or peer), self._clock())
        if left_out is None:
            return
        moment = datetime.fromtimestamp(self._wall_clock(), UTC).isoformat(timespec="milliseconds")
        entry: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "event": str(event),
            "outcome": "granted" if granted else "refused",
            "peer": peer,
        }
        if host:
            entry["host"] = host
        if subsystem:
            entry["subsystem"] = subsystem
        entry.update(details)
        if left_out:
            entry["left_out"] = left_out
        self._write(json.dumps(entry) + "\n")

    def _write(self, line: str) -> None:
        try:
            if self.path is None:
                sys.stdout.write(line)
                sys.stdout.flush()
            elif self._fd < 0:
                raise OSError("it is not open")
            else:
                data = (b"\n" if self._torn else b"") + line.encode()
                written = os.write(self._fd, data)
                self._torn = written < len(data)
                if self._torn:
                    raise OSError("a line was written in part")
        except (OSError, ValueError) as error:  # ValueError: standard output was closed
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.lost += 1
        now = self._clock()
        if self._said is None or now - self._said >= _SAY_SECONDS:
            self._said = now
            text = getattr(error, "strerror", None) or error
            logger.error("the audit log cannot be written (%s): %d lines are lost so far", text, self.lost)
