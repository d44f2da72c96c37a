"""Which hosts have yet to learn that what they wrote may be lost.

The kernel reports the failure of an fsync once, to one caller. But all hosts that wrote since the last good one have
lost data: each host gets an error at its next Flush, or write with FUA.
"""

from __future__ import annotations

from typing import Final

_HOSTS_MAX: Final = 4096


class LostWrites:
    """The hosts of one namespace whose writes may be lost. Hosts are known by their host identifiers, failures by their
    number so far."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: dict[bytes, int] = {}  # how many failures a host knows of, or that were before its time

    def connected(self, hostid: bytes, failures: int) -> None:
        """Remember a host, unless it was connected before. A host that was forgotten gets the error once too often."""
        if hostid in self._told:
            return
        if len(self._told) >= _HOSTS_MAX:
            del self._told[next(iter(self._told))]
        self._told[hostid] = failures

    def tell(self, hostid: bytes, failures: int) -> bool:
        """Return whether a host has to get the error of a failure, and note that it got it."""
        pending = self._told.get(hostid, 0) < failures
        if pending:
            self._told[hostid] = failures
        return pending
