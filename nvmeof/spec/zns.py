"""Structures and numbers of the Zoned Namespace Command Set (ZNS 1.x): zones, reports, Identify, the changed zones.

Field names are the specification's in lower case, values raw. Lengths of zones are logical blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import construct as c

from nvmeof.spec.identify_namespace import LBA_FORMATS
from nvmeof.wire import U8, U16, U32, U64, Bits, Buffer, Record

ZONE_TYPE_SEQUENTIAL_WRITE_REQUIRED = 2
NO_WRITE_POINTER = 0xFFFF_FFFF_FFFF_FFFF
"""WP of a zone whose state leaves it without one (full, read only, offline)."""
NO_LIMIT = 0xFFFF_FFFF
"""MAR and MOR: no limit."""
EXTENSION_UNIT_BYTES = 64
"""The unit of ZDES."""


class ZoneState(IntEnum):
    """ZS of a zone descriptor."""

    EMPTY = 0x1
    IMPLICITLY_OPENED = 0x2
    EXPLICITLY_OPENED = 0x3
    CLOSED = 0x4
    READ_ONLY = 0xD
    FULL = 0xE
    OFFLINE = 0xF


class ZoneAttributes(IntFlag):
    """ZA of a zone descriptor."""

    FINISHED_BY_CONTROLLER = 1 << 0
    FINISH_RECOMMENDED = 1 << 1
    RESET_RECOMMENDED = 1 << 2
    RANDOM_WRITE_AREA_VALID = 1 << 3
    EXTENSION_VALID = 1 << 7


class ZoneSendAction(IntEnum):
    """ZSA of Zone Management Send: CDW13 bits 7:0."""

    CLOSE = 0x01
    FINISH = 0x02
    OPEN = 0x03
    RESET = 0x04
    OFFLINE = 0x05
    SET_EXTENSION = 0x10
    FLUSH_RANDOM_WRITE_AREA = 0x11


class ZoneReceiveAction(IntEnum):
    """ZRA of Zone Management Receive: CDW13 bits 7:0."""

    REPORT = 0x00
    EXTENDED_REPORT = 0x01


REPORTED_STATES: dict[int, ZoneState | None] = {
    0: None,
    1: ZoneState.EMPTY,
    2: ZoneState.IMPLICITLY_OPENED,
    3: ZoneState.EXPLICITLY_OPENED,
    4: ZoneState.CLOSED,
    5: ZoneState.FULL,
    6: ZoneState.READ_ONLY,
    7: ZoneState.OFFLINE,
}
"""ZRASF of a report: the state of the zones that are listed, None for all."""

APPEND_PIREMAP = 1 << 25
"""CDW12 of Zone Append: remap the reference tag."""

_SEND = Bits(4, zsa=8, select_all=1, options=7, _16=16)
_RECEIVE = Bits(4, zra=8, zrasf=8, partial=1, _17=15)


@dataclass(frozen=True, slots=True)
class ZoneSend:
    """CDW13 of Zone Management Send. ``options``: ZSASO, all of them about Zone Random Write Areas."""

    action: int
    select_all: bool = False
    options: int = 0

    @classmethod
    def decode(cls, cdw13: int) -> ZoneSend:
        """Decode the dword."""
        raw = _SEND.decode(cdw13)
        return cls(raw["zsa"], bool(raw["select_all"]), raw["options"])

    def encode(self) -> int:
        """Return the dword. ``ValueError`` for a value that is too large."""
        return _SEND.encode(zsa=self.action, select_all=self.select_all, options=self.options)


@dataclass(frozen=True, slots=True)
class ZoneReceive:
    """CDW13 of Zone Management Receive. ``which``: ZRASF, a key of :data:`REPORTED_STATES`."""

    action: int
    which: int = 0
    partial: bool = False

    @classmethod
    def decode(cls, cdw13: int) -> ZoneReceive:
        """Decode the dword."""
        raw = _RECEIVE.decode(cdw13)
        return cls(raw["zra"], raw["zrasf"], bool(raw["partial"]))

    def encode(self) -> int:
        """Return the dword. ``ValueError`` for a value that is too large."""
        return _RECEIVE.encode(zra=self.action, zrasf=self.which, partial=self.partial)


@dataclass(slots=True)
class ZoneDescriptor:
    """One zone of a report, 64 bytes. ``zs`` holds the state in bits 7:4."""

    zt: int = ZONE_TYPE_SEQUENTIAL_WRITE_REQUIRED
    zs: int = 0
    za: int = 0
    zai: int = 0
    zcap: int = 0
    zslba: int = 0
    wp: int = 0

    @property
    def state(self) -> ZoneState:
        """The state; ``ValueError`` for a reserved one."""
        return ZoneState(self.zs >> 4)


ZONE_DESCRIPTOR: Record[ZoneDescriptor] = Record(
    c.Struct(
        "zt" / U8, "zs" / U8, "za" / U8, "zai" / U8, c.Padding(4), "zcap" / U64, "zslba" / U64, "wp" / U64,
        c.Padding(32),
    ),
    ZoneDescriptor,
)  # fmt: skip
ZONE_DESCRIPTOR_BYTES = 64
ZONE_REPORT_HEADER = c.Struct("number_of_zones" / U64, c.Padding(56))
"""What a report begins with, 64 bytes; zone descriptors follow, each with its extension in an extended report."""
ZONE_REPORT_HEADER_BYTES = 64

LBA_FORMAT_EXTENSION = c.Struct("zsze" / U64, "zdes" / U8, c.Padding(7))
IDENTIFY_NAMESPACE_ZNS = c.Struct(
    "zoc" / U16,
    "ozcs" / U16,
    "mar" / U32,
    "mor" / U32,
    "rrl" / U32,
    "frl" / U32,
    "rrl1" / U32,
    "rrl2" / U32,
    "rrl3" / U32,
    "frl1" / U32,
    "frl2" / U32,
    "frl3" / U32,
    "numzrwa" / U32,
    "zrwafg" / U16,
    "zrwasz" / U16,
    "zrwacap" / U8,
    c.Padding(2763),
    "lbafe" / LBA_FORMAT_EXTENSION[LBA_FORMATS],
    "vs" / c.Bytes(256),
)
"""CNS 05h and 1Bh with the ZNS command set, 4096 bytes.

``mar mor``: 0's-based, FFFFFFFFh for no limit. ``rrl frl``: seconds, 0 where nothing is said. ``zsze``: blocks,
``zdes``: units of 64 bytes.
"""
OZCS_READ_ACROSS_ZONES = 1 << 0

IDENTIFY_CONTROLLER_ZNS = c.Struct("zasl" / U8, c.Padding(4095))
"""CNS 06h with the ZNS command set. ``zasl``: as MDTS, for Zone Append; 0: MDTS is its limit."""

CHANGED_ZONES_MAX = 511
CHANGED_ZONES_BYTES = 4096
CHANGED_ZONES_TOO_MANY = 0xFFFF


def build_changed_zones(zones: Iterable[int]) -> bytes:
    """Log page BFh: first blocks of zones, ascending; FFFFh as their number when there are more than 511."""
    ordered = sorted(zones)
    if len(ordered) > CHANGED_ZONES_MAX:
        return struct.pack("<H", CHANGED_ZONES_TOO_MANY).ljust(CHANGED_ZONES_BYTES, b"\0")
    return struct.pack(f"<H6x{len(ordered)}Q", len(ordered), *ordered).ljust(CHANGED_ZONES_BYTES, b"\0")


def parse_changed_zones(data: Buffer) -> list[int] | None:
    """Return the first blocks of changed zones; None when they were too many. ``struct.error`` for a page that is
    cut."""
    (count,) = struct.unpack_from("<H", data)
    if count == CHANGED_ZONES_TOO_MANY:
        return None
    return list(struct.unpack_from(f"<{count}Q", data, 8))


def parse_zone_report(data: Buffer, extension_bytes: int = 0) -> tuple[int, list[ZoneDescriptor]]:
    """Return Number of Zones, and the complete descriptors. ``extension_bytes``: of an extended report."""
    (number,) = struct.unpack_from("<Q", data)
    stride = ZONE_DESCRIPTOR_BYTES + extension_bytes
    there = min(number, (len(data) - ZONE_REPORT_HEADER_BYTES) // stride)
    return number, [
        ZONE_DESCRIPTOR.unpack_from(data, ZONE_REPORT_HEADER_BYTES + index * stride) for index in range(there)
    ]
