"""Where the states and write pointers of zones are stored."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from nvmeof.size_text import format_size
from nvmeof.spec.zns import ZoneState


class ZoneLayout(NamedTuple):
    """What the stored zones divide: with another layout, but for the block size, they would mean something else."""

    block_bytes: int
    zone_bytes: int
    capacity_bytes: int
    extension_bytes: int

    @property
    def zone_blocks(self) -> int:
        return self.zone_bytes // self.block_bytes

    @property
    def capacity_blocks(self) -> int:
        return self.capacity_bytes // self.block_bytes

    def __str__(self) -> str:
        return (
            f"zones of {format_size(self.zone_bytes)} ({format_size(self.capacity_bytes)} usable, "
            f"extensions of {self.extension_bytes} bytes)"
        )


class ZoneRecord(NamedTuple):
    """One zone. `written`: blocks of it that hold data; `attributes` as in a zone descriptor."""

    state: ZoneState = ZoneState.EMPTY
    attributes: int = 0
    written: int = 0


class ZoneStore(Protocol):
    """Two records of each zone, by the zone's number. `put` stores the present record, which outlives this process but
    not a loss of power. `commit` stores the record that matches the data on non-volatile media, which is found after a
    loss of power.
    """

    layout: ZoneLayout
    durable: bool
    """Whether `commit` does anything."""

    def load(self) -> list[ZoneRecord]:
        """Return the records of all zones, as they were stored last."""
        ...

    def put(self, index: int, record: ZoneRecord) -> None:
        """Store the current record of a zone. Raises `OSError`."""
        ...

    def extension(self, index: int) -> bytes:
        """Return a zone's descriptor extension."""
        ...

    def put_extension(self, index: int, extension: bytes) -> None:
        """Keep a zone's descriptor extension. Raises `OSError`."""
        ...

    def commit(self, records: Mapping[int, ZoneRecord]) -> Awaitable[None] | None:
        """Commit records of zones whose data is on non-volatile media. Raises or ends with `OSError`."""
        ...

    def resize(self, count: int) -> None:
        """Keep so many zones from now on, new ones empty. Raises `OSError`."""
        ...

    def set_block_bytes(self, block_bytes: int) -> None:
        """Convert records to another block size, in bytes."""
        ...


class MemoryZoneStore:
    """Implements :class:`ZoneStore` for as long as it lives."""

    durable = False

    def __init__(
        self,
        layout: ZoneLayout,
        count: int,
        records: Sequence[ZoneRecord] = (),
        extensions: Mapping[int, bytes] | None = None,
    ) -> None:
        self.layout = layout
        self._records = list(records) or [ZoneRecord()] * count
        self._extensions: dict[int, bytes] = dict(extensions or {})

    def document(self) -> dict[str, Any]:
        """Return layout, records and extensions as a JSON value."""
        return {
            "layout": list(self.layout),
            "records": [[int(each.state), each.attributes, each.written] for each in self._records],
            "extensions": {str(index): extension.hex() for index, extension in self._extensions.items()},
        }

    def load(self) -> list[ZoneRecord]:
        """Return the records of all zones."""
        return list(self._records)

    def put(self, index: int, record: ZoneRecord) -> None:
        """Store the current record of a zone."""
        self._records[index] = record

    def extension(self, index: int) -> bytes:
        """Return a zone's descriptor extension."""
        return self._extensions.get(index, bytes(self.layout.extension_bytes))

    def put_extension(self, index: int, extension: bytes) -> None:
        """Keep a zone's descriptor extension."""
        self._extensions[index] = extension

    def commit(self, records: Mapping[int, ZoneRecord]) -> Awaitable[None] | None:
        """Do nothing: memory has no non-volatile copy."""
        return None

    def set_block_bytes(self, block_bytes: int) -> None:
        """Convert records to another block size, in bytes."""
        old, self.layout = self.layout.block_bytes, self.layout._replace(block_bytes=block_bytes)
        self._records = [each._replace(written=-(-each.written * old // block_bytes)) for each in self._records]

    def resize(self, count: int) -> None:
        """Keep so many zones from now on."""
        del self._records[count:]
        self._records += [ZoneRecord()] * (count - len(self._records))
        for index in [index for index in self._extensions if index >= count]:
            del self._extensions[index]
