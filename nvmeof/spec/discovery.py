"""The Discovery log page, 70h (NVMe Base 2.x, Discovery Log Page): a header and one entry per port of a subsystem."""

from __future__ import annotations

from enum import IntFlag
from typing import Any

import construct as c

from nvmeof.spec.enums import SecType, TcpProtocol, Trtype
from nvmeof.wire import U8, U16, U64, Buffer, PaddedText, build

HEADER_BYTES = 1024
ENTRY_BYTES = 1024


class Eflags(IntFlag):
    """Entry flags."""

    DUPLICATE_RETURNED_INFORMATION = 1 << 0
    EXPLICIT_PERSISTENT_CONNECTION = 1 << 1
    NO_CDC = 1 << 2


DISCOVERY_LOG_HEADER = c.Struct(
    "genctr" / U64,
    "numrec" / U64,
    "recfmt" / U16,
    c.Padding(1006),
)
"""Generation counter, number of entries, record format (0)."""

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

TSAS_TCP = c.Struct("sectype" / U8, "prottype" / U8, c.Padding(254))
"""TSAS of NVMe/TCP: the security type, and what was proposed to tell MPTCP from TCP before it became a type of its own
(:class:`~nvmeof.spec.enums.TcpProtocol`; the byte is reserved in the specification)."""

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
    """One entry, 1024 bytes, with the TSAS of a TCP-like transport; ``fields`` as in :data:`DISCOVERY_LOG_ENTRY`."""
    tsas = build(TSAS_TCP, sectype=sectype, prottype=prottype) if trtype in (Trtype.TCP, Trtype.MPTCP) else b""
    return build(DISCOVERY_LOG_ENTRY, **{"trtype": trtype, "tsas": tsas, **fields})


def build_discovery_log(genctr: int, entries: list[bytes]) -> bytes:
    """The whole log page from entries of 1024 bytes."""
    header = build(DISCOVERY_LOG_HEADER, genctr=genctr, numrec=len(entries), recfmt=0)
    return header + b"".join(entries)


def parse_discovery_entries(data: Buffer) -> list[Any]:
    """The whole entries in ``data`` (without the header), as containers; a cut last one is left out."""
    view = memoryview(data)
    return [
        DISCOVERY_LOG_ENTRY.parse(view[start : start + ENTRY_BYTES])
        for start in range(0, len(view) - ENTRY_BYTES + 1, ENTRY_BYTES)
    ]
