"""How many connections a target takes, and how many of them from one address."""

from __future__ import annotations

from typing import Final

from nvmeof.address_shares import AddressShares, counted_as

__all__ = (
    "CONNECTIONS_MOST",
    "FILES_KEPT",
    "STRANGERS_MOST",
    "AddressShares",
    "connections_most",
    "counted_as",
)

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
