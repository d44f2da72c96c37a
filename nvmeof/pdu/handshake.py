"""ICReq and ICResp, the connection's handshake (NVMe TCP Transport specification, sections 3.6.2.2 and 3.6.2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Final

import construct as c

from ..wire import Record
from .header import CH_FIELDS, PDA_UNIT_BYTES

IC_BYTES: Final = 128
PFV_1_0: Final = 0
MAX_PDA: Final = 31  # HPDA and CPDA: 0's based count of dwords
MIN_MAXH2CDATA_BYTES: Final = 4096


class Dgst(IntFlag):
    """The DGST field: which digests are asked for (ICReq) or in use (ICResp)."""

    HDGST_ENABLE = 0x01
    DDGST_ENABLE = 0x02


@dataclass(slots=True)
class IcReq:
    """ICReq as sent: ``hpda`` 0's based dwords, ``maxr2t`` 0's based count."""

    pdu_type: int
    flags: int
    hlen: int
    pdo: int
    plen: int
    pfv: int
    hpda: int
    dgst: int
    maxr2t: int


@dataclass(slots=True)
class IcResp:
    """ICResp as sent: ``cpda`` 0's based dwords, ``maxh2cdata`` in bytes."""

    pdu_type: int
    flags: int
    hlen: int
    pdo: int
    plen: int
    pfv: int
    cpda: int
    dgst: int
    maxh2cdata: int


ICREQ: Final[Record[IcReq]] = Record(
    c.Struct(
        *CH_FIELDS,
        "pfv" / c.Int16ul,
        "hpda" / c.Int8ul,
        "dgst" / c.Int8ul,
        "maxr2t" / c.Int32ul,
        c.Padding(112),
    ),
    IcReq,
)

ICRESP: Final[Record[IcResp]] = Record(
    c.Struct(
        *CH_FIELDS,
        "pfv" / c.Int16ul,
        "cpda" / c.Int8ul,
        "dgst" / c.Int8ul,
        "maxh2cdata" / c.Int32ul,
        c.Padding(112),
    ),
    IcResp,
)


def pda_to_bytes(pda: int) -> int:
    """Return the alignment in bytes of an HPDA or CPDA value."""
    return (pda + 1) * PDA_UNIT_BYTES


def pda_from_bytes(alignment_bytes: int) -> int:
    """Return the HPDA or CPDA value for an alignment of 4 to 128 bytes."""
    return alignment_bytes // PDA_UNIT_BYTES - 1
