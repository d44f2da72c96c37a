"""How many connections a target takes, and how many of them from one address."""

from __future__ import annotations

from typing import Final

STRANGERS_MOST: Final = 2048
"""Connections that have made no Connect yet, of all addresses together."""
CONNECTIONS_MOST: Final = 16384
FILES_KEPT: Final = 64
"""Descriptors that are left for files, listeners and all else."""


def connections_most(files_most: int) -> int:
    """Return the most connections for a process that may have `files_most` descriptors (-1: any number)."""
    if files_most < 0:
        return CONNECTIONS_MOST
    return max(1, min(CONNECTIONS_MOST, files_most - FILES_KEPT))


class AddressShares:
    """Counts of something by address: an address gets one more while it has fewer than are left free of `most`.

    So one address alone gets half of them, and an address that has none is refused only when all are taken.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._by_address: dict[str, int] = {}

    def take(self, address: str) -> bool:
        """Count one more for an address; False: it has its share, or none is left."""
        here = self._by_address.get(address, 0)
        if here + 1 > self.most - self.taken:
            return False
        self._by_address[address] = here + 1
        self.taken += 1
        return True

    def give(self, address: str) -> None:
        """Release a connection that `take` counted."""
        here = self._by_address.pop(address) - 1
        if here:
            self._by_address[address] = here
        self.taken -= 1
