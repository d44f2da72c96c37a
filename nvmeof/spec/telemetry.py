"""The Telemetry log pages, 07h and 08h (NVMe Base 2.x): a header of 512 bytes, then blocks of 512 bytes.

Area n begins with block 1, like all of them, and ends with the block that the header names: an area holds those before
it. What is in the blocks is the vendor's matter; ours is described in docs/telemetry.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import construct as c

from nvmeof.wire import U8, U16, U32, build

BLOCK_BYTES = 512
HEADER_BYTES = 512
AREAS = 4
LAST_BLOCK_MAX = 0xFFFF
"""What the fields of areas 1 to 3 can say."""

CREATE = 1 << 0
"""Log Specific Parameter bit 0 of page 07h (CTHID): capture now."""
MCDA_SHIFT = 1
MCDA_MASK = 7
"""Bits 3:1: the last area to create; 0: as the controller likes."""
LIDSP_MCDAS = 1 << 0
"""LID Specific Parameter of page 07h: MCDA is looked at."""


class Scope(IntEnum):
    """What the data is about."""

    NOT_REPORTED = 0
    CONTROLLER = 1
    NVM_SUBSYSTEM = 2


HEADER = c.Struct(
    "lid" / U8,
    c.Padding(4),
    "ieee" / c.Bytes(3),
    "da1lb" / U16,
    "da2lb" / U16,
    "da3lb" / U16,
    c.Padding(2),
    "da4lb" / U32,
    c.Padding(360),
    "ths" / U8,
    "thdgn" / U8,
    "tcda" / U8,
    "tcdgn" / U8,
    "rid" / c.Bytes(128),
)
"""512 bytes. ``da<n>lb``: last block of area n. Byte 380 is the host-initiated data's scope in page 07h; byte 381 its
generation number there, and the controller-initiated data's scope in page 08h. ``tcda``: controller-initiated data is
available that no host has acknowledged. ``rid``: why it was captured."""


def build_telemetry(
    lid: int,
    areas: Sequence[bytes],
    *,
    scope: Scope,
    generation: int,
    controller_available: bool,
    controller_generation: int,
    reason: bytes = b"",
    host: bool,
) -> bytes:
    """Build a whole page. ``areas``: what each adds to the one before, whole blocks. ``host``: page 07h rather than
    08h."""
    ends: list[int] = []
    last = 0
    for area in areas:
        last += len(area) // BLOCK_BYTES
        ends.append(last)
    ends += [last] * (3 - len(ends))
    header = build(
        HEADER,
        lid=lid,
        da1lb=ends[0],
        da2lb=ends[1],
        da3lb=ends[2],
        da4lb=ends[3] if len(ends) > 3 else 0,
        ths=scope if host else 0,
        thdgn=generation if host else scope,
        tcda=controller_available,
        tcdgn=controller_generation,
        rid=reason[:128].ljust(128, b"\0"),
    )
    return header + b"".join(areas)
