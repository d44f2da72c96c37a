"""The Error Information log of a controller: the last refused commands, newest first."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

ERROR_LOG_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class ErrorEntry:
    """One refused command. `status_field` is the CQE's status word; `lba` and `nsid` are 0 where they do not apply."""

    error_count: int
    sqid: int
    cid: int
    status_field: int
    error_location: int
    lba: int
    nsid: int
    trtype: int
    opcode: int
    csi: int = 0  # the I/O command set of an I/O command
    command_specific: int = 0  # Command Specific Information


class ErrorLog:
    """A ring of `ERROR_LOG_ENTRIES`; `count` goes on counting."""

    def __init__(self) -> None:
        self.count = 0
        self._entries: deque[ErrorEntry] = deque(maxlen=ERROR_LOG_ENTRIES)

    def add(
        self,
        *,
        sqid: int,
        cid: int,
        status_field: int,
        error_location: int,
        lba: int,
        nsid: int,
        trtype: int,
        opcode: int,
        csi: int = 0,
        command_specific: int = 0,
    ) -> None:
        """Remember a refused command."""
        self.count += 1
        self._entries.appendleft(
            ErrorEntry(
                self.count, sqid, cid, status_field, error_location, lba, nsid, trtype, opcode, csi, command_specific
            )
        )

    def newest(self) -> list[ErrorEntry]:
        """Return all entries, the newest first."""
        return list(self._entries)
