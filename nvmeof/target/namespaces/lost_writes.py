"""Which hosts have yet to learn that what they wrote may be lost.

The system tells the failure of an fsync once, to the one who asked. But all hosts that wrote since the last good one
have lost data: each of them is told at its next Flush, or write with FUA.
"""

from __future__ import annotations

from typing import Final

_HOSTS_MAX: Final = 4096


class LostWrites:
    """Of one namespace. Hosts are known by their host identifiers, failures by their number so far."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: dict[bytes, int] = {}  # how many failures a host knows of, or that were before its time

    def connected(self, hostid: bytes, failures: int) -> None:
        """Remember a host, unless it was here before. One that was forgotten is told once too often."""
        if hostid in self._told:
            return
        if len(self._told) >= _HOSTS_MAX:
            del self._told[next(iter(self._told))]
        self._told[hostid] = failures

    def tell(self, hostid: bytes, failures: int) -> bool:
        """Return whether a host has to be told of a failure; it counts as told then."""
        pending = self._told.get(hostid, 0) < failures
        if pending:
            self._told[hostid] = failures
        return pending
