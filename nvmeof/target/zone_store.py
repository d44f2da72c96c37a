"""Where the states and write pointers of zones are kept."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import NamedTuple, Protocol

from nvmeof.spec.zns import ZoneState
from nvmeof.target.sizes import format_size


class ZoneLayout(NamedTuple):
    """What the zones kept are zones of: with another layout they would mean something else."""

    block_bytes: int
    zone_blocks: int
    capacity_blocks: int
    extension_bytes: int

    def __str__(self) -> str:
        block = self.block_bytes
        return (
            f"zones of {format_size(self.zone_blocks * block)} in blocks of {block} bytes "
            f"({format_size(self.capacity_blocks * block)} usable, extensions of {self.extension_bytes} bytes)"
        )


class ZoneRecord(NamedTuple):
    """One zone. `written`: blocks of it that hold data; `attributes` as in a zone descriptor."""

    state: ZoneState = ZoneState.EMPTY
    attributes: int = 0
    written: int = 0


class ZoneStore(Protocol):
    """Records by the zone's number.

    There are two of each zone. `put` is what it is now: it outlives this process, but not a loss of power. `commit`
    tells what it is as far as the data is on non-volatile media: that is what is found after a loss of power.
    """

    durable: bool
    """Whether `commit` does anything."""

    def load(self) -> list[ZoneRecord]:
        """All of them, as they were left."""
        ...

    def put(self, index: int, record: ZoneRecord) -> None:
        """What a zone is now. Raises `OSError`."""
        ...

    def extension(self, index: int) -> bytes:
        """A zone's descriptor extension."""
        ...

    def put_extension(self, index: int, extension: bytes) -> None:
        """Keep a zone's descriptor extension. Raises `OSError`."""
        ...

    def commit(self, records: Mapping[int, ZoneRecord]) -> Awaitable[None] | None:
        """These zones are so on non-volatile media; done when that is kept there too. Ends with `OSError`."""
        ...

    def resize(self, count: int) -> None:
        """Keep so many zones from now on, new ones empty. Raises `OSError`."""
        ...


class MemoryZoneStore:
    """Implements :class:`ZoneStore` for as long as it lives."""

    durable = False

    def __init__(self, layout: ZoneLayout, count: int) -> None:
        self.layout = layout
        self._records = [ZoneRecord()] * count
        self._extensions: dict[int, bytes] = {}

    def load(self) -> list[ZoneRecord]:
        """All of them."""
        return list(self._records)

    def put(self, index: int, record: ZoneRecord) -> None:
        """What a zone is now."""
        self._records[index] = record

    def extension(self, index: int) -> bytes:
        """A zone's descriptor extension."""
        return self._extensions.get(index, bytes(self.layout.extension_bytes))

    def put_extension(self, index: int, extension: bytes) -> None:
        """Keep a zone's descriptor extension."""
        self._extensions[index] = extension

    def commit(self, records: Mapping[int, ZoneRecord]) -> Awaitable[None] | None:
        """Memory has nothing to be committed to."""
        return None

    def resize(self, count: int) -> None:
        """Keep so many zones from now on."""
        del self._records[count:]
        self._records += [ZoneRecord()] * (count - len(self._records))
        for index in [index for index in self._extensions if index >= count]:
            del self._extensions[index]
