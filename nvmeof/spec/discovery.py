"""The Discovery log page, 70h (NVMe Base 2.x, Discovery Log Page): a header and one entry per port of a subsystem."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Any

import construct as c

from nvmeof.spec.enums import SecType, TcpProtocol, Trtype
from nvmeof.wire import U8, U16, U32, U64, Buffer, PaddedText, build

HEADER_BYTES = 1024
ENTRY_BYTES = 1024


class Eflags(IntFlag):
    """Entry flags."""

    DUPLICATE_RETURNED_INFORMATION = 1 << 0
    EXPLICIT_PERSISTENT_CONNECTION = 1 << 1
    NO_CDC = 1 << 2


class DiscoveryLsp(IntFlag):
    """Log Specific Parameter of Get Log Page: extended entries, entries of this port only, entries of all subsystems.

    The same bits are in the LID Specific Parameter of the Supported Log Pages log.
    """

    EXTENDED_ENTRIES = 1 << 0
    PORT_LOCAL = 1 << 1
    ALL_SUBSYSTEMS = 1 << 2


class DiscoveryFlags(IntFlag):
    """DLPF: which of the requested forms this log page has."""

    EXTENDED = 1 << 0
    PORT_LOCAL = 1 << 1
    ALL_SUBSYSTEMS = 1 << 2


class ExtendedAttributeType(IntEnum):
    """EXATTYPE. Admin labels name a host or an NVM subsystem for people."""

    HOST_IDENTIFIER = 0x01
    ADMIN_LABEL_ASCII = 0x02
    ADMIN_LABEL_UTF8 = 0x03


DISCOVERY_LOG_HEADER = c.Struct(
    "genctr" / U64,
    "numrec" / U64,
    "recfmt" / U16,
    "dlpf" / U8,
    c.Padding(1),
    "tdlpl" / U32,
    c.Padding(1000),
)
"""Generation counter, number of entries, record format (0), flags, and the length of the whole page."""

DISCOVERY_LOG_ENTRY = c.Struct(
    "trtype" / U8,
    "adrfam" / U8,
    "subtype" / U8,
    "treq" / U8,
    "portid" / U16,
    "cntlid" / U16,
    "asqsz" / U16,
    "eflags" / U16,
    c.Padding(20),
    "trsvcid" / PaddedText(32, b" "),
    c.Padding(192),
    "subnqn" / PaddedText(256),
    "traddr" / PaddedText(256, b" "),
    "tsas" / c.Bytes(256),
)
"""One entry. ``asqsz``: largest admin queue, entries. ``tsas``: see :data:`TSAS_TCP` and :data:`TSAS_RDMA`."""

EXTENDED_ENTRY_TAIL = c.Struct("tel" / U32, "numexat" / U16, c.Padding(2))
"""What follows byte 1023 in an extended entry: its whole length, and how many attributes come then."""
EXTENDED_ENTRY_BYTES = ENTRY_BYTES + 8
EXTENDED_ATTRIBUTE = c.Struct("exattype" / U16, "exatlen" / U16)
"""Type and length of one extended attribute; its value follows, padded to a multiple of 4 bytes."""

TSAS_TCP = c.Struct("sectype" / U8, "prottype" / U8, c.Padding(254))
"""TSAS of NVMe/TCP: the security type, and the byte that was proposed to distinguish MPTCP from TCP before MPTCP became
a separate type (:class:`~nvmeof.spec.enums.TcpProtocol`; the byte is reserved in the specification)."""

TSAS_RDMA = c.Struct(
    "qptype" / U8,
    "prtype" / U8,
    "cms" / U8,
    c.Padding(5),
    "pkey" / U16,
    c.Padding(246),
)
"""TSAS of NVMe over RDMA: queue pair type, provider type, connection management service, partition key."""


def build_discovery_entry(
    *, trtype: int, sectype: int = SecType.NONE, prottype: int = TcpProtocol.TCP, **fields: Any
) -> bytes:
    """Build one entry, 1024 bytes, with the TSAS of a TCP-like transport; ``fields`` as in
    :data:`DISCOVERY_LOG_ENTRY`."""
    tsas = build(TSAS_TCP, sectype=sectype, prottype=prottype) if trtype in (Trtype.TCP, Trtype.MPTCP) else b""
    return build(DISCOVERY_LOG_ENTRY, **{"trtype": trtype, "tsas": tsas, **fields})


def extend_discovery_entry(entry: bytes, attributes: Iterable[tuple[int, bytes]] = ()) -> bytes:
    """Build an extended entry from a plain one. ``attributes``: type and value; values are padded to multiples of 4
    bytes."""
    parts = []
    for kind, value in attributes:
        padded = value.ljust(-(-len(value) // 4) * 4, b"\0")
        parts.append(build(EXTENDED_ATTRIBUTE, exattype=kind, exatlen=len(padded)) + padded)
    length = EXTENDED_ENTRY_BYTES + sum(map(len, parts))
    return entry + build(EXTENDED_ENTRY_TAIL, tel=length, numexat=len(parts)) + b"".join(parts)


def build_discovery_log(genctr: int, entries: list[bytes], flags: int = 0) -> bytes:
    """Build the whole log page from its entries."""
    total = HEADER_BYTES + sum(map(len, entries))
    header = build(DISCOVERY_LOG_HEADER, genctr=genctr, numrec=len(entries), recfmt=0, dlpf=flags, tdlpl=total)
    return header + b"".join(entries)


def parse_discovery_entries(data: Buffer) -> list[Any]:
    """Parse the whole entries in ``data`` (without the header), as containers; a cut last one is left out."""
    view = memoryview(data)
    return [
        DISCOVERY_LOG_ENTRY.parse(view[start : start + ENTRY_BYTES])
        for start in range(0, len(view) - ENTRY_BYTES + 1, ENTRY_BYTES)
    ]
