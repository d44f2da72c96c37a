"""SGL descriptors as NVMe over Fabrics uses them (NVMe Base, Scatter Gather Lists).

A command over NVMe/TCP carries exactly one descriptor, SGL1, in bytes 24-39 of the SQE: either the offset of data in
the capsule, or the length of data that the transport moves by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import construct as c

from nvmeof.wire import U8, U32, U64, Record

DESCRIPTOR_BYTES = 16


class SglType(IntEnum):
    """Byte 15 of a descriptor: type in bits 7:4, subtype in bits 3:0."""

    DATA_BLOCK_ADDRESS = 0x00
    DATA_BLOCK_IN_CAPSULE = 0x01
    BIT_BUCKET = 0x10
    SEGMENT_ADDRESS = 0x20
    SEGMENT_OFFSET = 0x21
    LAST_SEGMENT_ADDRESS = 0x30
    LAST_SEGMENT_OFFSET = 0x31
    KEYED_DATA_BLOCK_ADDRESS = 0x40
    KEYED_DATA_BLOCK_INVALIDATE = 0x4F
    TRANSPORT_DATA_BLOCK = 0x5A


DATA_BLOCK_IN_CAPSULE = SglType.DATA_BLOCK_IN_CAPSULE
TRANSPORT_DATA_BLOCK = SglType.TRANSPORT_DATA_BLOCK


class Psdt(IntEnum):
    """PRP or SGL for Data Transfer: bits 7:6 of the command flags. Over fabrics only SGLs are allowed."""

    PRP = 0
    SGL_CONTIGUOUS_METADATA = 1
    SGL_METADATA_SEGMENT = 2


FLAGS_SGL = Psdt.SGL_CONTIGUOUS_METADATA << 6
"""The command flags byte of an unfused command with SGLs."""


@dataclass(slots=True)
class Sgl:
    """One descriptor. ``address`` is an offset for in-capsule data, 0 for a transport data block."""

    address: int = 0
    length: int = 0
    type: int = 0


SGL: Record[Sgl] = Record(
    c.Struct("address" / U64, "length" / U32, c.Padding(3), "type" / U8),
    Sgl,
)


@dataclass(slots=True)
class KeyedSgl:
    """A keyed descriptor (RDMA). ``length`` is the low 16 bits, ``length_high`` the high 8 bits of 24."""

    address: int = 0
    length: int = 0
    length_high: int = 0
    key: int = 0
    type: int = 0


KEYED_SGL: Record[KeyedSgl] = Record(
    c.Struct("address" / U64, "length" / c.Int16ul, "length_high" / U8, "key" / U32, "type" / U8),
    KeyedSgl,
)
