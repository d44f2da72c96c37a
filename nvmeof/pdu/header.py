"""PDU types, flags and the common header (NVMe TCP Transport specification, section 3.6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import construct as c

from ..wire import Record


class PduType(IntEnum):
    """The PDU-Type field. Even types travel from host to controller, odd ones from controller to host."""

    ICREQ = 0x00
    ICRESP = 0x01
    H2C_TERM_REQ = 0x02
    C2H_TERM_REQ = 0x03
    CAPSULE_CMD = 0x04
    CAPSULE_RESP = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09


class Flags:
    """The FLAGS field. Plain numbers: an enum's operators would cost more than all the rest of a header's check."""

    HDGSTF: Final = 0x01
    DDGSTF: Final = 0x02
    LAST_PDU: Final = 0x04
    SUCCESS: Final = 0x08


CH_BYTES: Final = 8
DIGEST_BYTES: Final = 4
PDA_UNIT_BYTES: Final = 4
PDA_MAX_BYTES: Final = 128

# The common header's fields, first in each PDU's declaration.
CH_FIELDS: Final = (
    "pdu_type" / c.Int8ul,
    "flags" / c.Int8ul,
    "hlen" / c.Int8ul,
    "pdo" / c.Int8ul,
    "plen" / c.Int32ul,
)


@dataclass(slots=True)
class CommonHeader:
    """CH: ``hlen`` is the header's length, ``pdo`` the data's offset, ``plen`` the whole PDU's length, all in bytes."""

    pdu_type: int
    flags: int
    hlen: int
    pdo: int
    plen: int


CH: Final[Record[CommonHeader]] = Record(c.Struct(*CH_FIELDS), CommonHeader)

# FEI values: the offset of the field in error.
TYPE_OFFSET: Final = CH.offsets["pdu_type"]
FLAGS_OFFSET: Final = CH.offsets["flags"]
HLEN_OFFSET: Final = CH.offsets["hlen"]
PDO_OFFSET: Final = CH.offsets["pdo"]
PLEN_OFFSET: Final = CH.offsets["plen"]


def align(offset: int, alignment_bytes: int) -> int:
    """Return the first multiple of ``alignment_bytes`` that is not below ``offset``: where data may begin (PDO)."""
    return -(-offset // alignment_bytes) * alignment_bytes
