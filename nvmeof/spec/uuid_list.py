"""UUID List, Identify CNS 17h: whose vendor specific information a UUID Index selects (NVMe Base 2.1, UUID List)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from uuid import UUID

import construct as c

from nvmeof.wire import U8, build

UUID_ENTRIES_MAX = 127


class UuidAssociation(IntEnum):
    """What an entry's UUID is associated with, bits 1:0 of its header."""

    NONE = 0
    PCI_VENDOR = 1
    PCI_SUBSYSTEM_VENDOR = 2


UUID_LIST = c.Struct(
    c.Padding(32),
    "entries" / c.Struct("header" / U8, c.Padding(15), "uuid" / c.Bytes(16))[UUID_ENTRIES_MAX],
)
"""CNS 17h, 4096 bytes: UUID Index n selects the entry at 32 n. An entry of zeroes ends the list."""


def build_uuid_list(uuids: Sequence[UUID]) -> bytes:
    """Build a UUID List; none of the UUIDs has an association."""
    return build(UUID_LIST, entries=[{"header": UuidAssociation.NONE, "uuid": uuid.bytes} for uuid in uuids])


def parse_uuid_list(data: bytes) -> list[tuple[UuidAssociation | int, UUID]]:
    """Parse the entries up to the first of zeroes. Raises `construct.StreamError` for less than 4096 bytes."""
    found: list[tuple[UuidAssociation | int, UUID]] = []
    for entry in UUID_LIST.parse(data).entries:
        if not any(entry.uuid):
            break
        association = entry.header & 3
        known = UuidAssociation(association) if association in list(UuidAssociation) else association
        found.append((known, UUID(bytes=entry.uuid)))
    return found
