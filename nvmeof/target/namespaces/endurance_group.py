"""Capacity of an NVM subsystem: what namespaces occupy, and the pools that new ones are made from."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, Protocol

from nvmeof.target.core.metadata import MetadataStore
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.storage.base import Backend

ENDURANCE_GROUP_ID: Final = 1
"""The one Endurance Group of a subsystem: all of its capacity is alike."""
GRANULARITY_BYTES: Final = 4096
"""Capacity is allocated in units of it."""


def rounded(size_bytes: int) -> int:
    """Return the capacity in bytes that a namespace of `size_bytes` takes: whole units of the group."""
    return -(-size_bytes // GRANULARITY_BYTES) * GRANULARITY_BYTES


def occupied_bytes(namespace: Namespace) -> int:
    """Return NVMCAP, the capacity in bytes that is allocated to a namespace."""
    return rounded(namespace.size_blocks << namespace.block_shift)


class Pool(Protocol):
    """Where the storage of created namespaces comes from, by names that are given out once.

    An operation completes at once or gives an awaitable, and raises (or
    ends with) `OSError` or `ConfigurationError`.
    """

    @property
    def capacity_bytes(self) -> int:
        """Of all namespaces together."""
        ...

    @property
    def volatile_cache(self) -> bool:
        """Whether its storage may lose completed writes at a power failure before a Flush."""
        ...

    @property
    def metadata_store(self) -> MetadataStore:
        """What has to be known of the namespaces."""
        ...

    @property
    def description(self) -> str:
        """A few words for a log line."""
        ...

    async def acquire(self) -> None:
        """Lock the pool against other processes and read its metadata; called before all other methods."""
        ...

    async def release(self) -> None:
        """Release the lock; all storage was closed before."""
        ...

    def create(self, name: str, size_bytes: int, block_bytes: int) -> Backend | Awaitable[Backend]:
        """Create and open storage that reads as zeroes; it is durable if the pool is."""
        ...

    def open(self, name: str, *, zoned: bool = False) -> Backend | Awaitable[Backend]:
        """Open storage that was created before. `zoned`: it has stored zones."""
        ...

    def delete(self, name: str, backend: Backend | None) -> Awaitable[None] | None:
        """Close storage and give its space back; that of a name that is not there is none. `backend`: if opened."""
        ...
