"""H2CData, C2HData and R2T (NVMe TCP Transport specification, sections 3.6.2.8 to 3.6.2.10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import construct as c

from ..wire import Record
from .header import CH_FIELDS


@dataclass(slots=True)
class H2CData:
    """Data from the host: ``datao`` and ``datal`` in bytes, within the command's data."""

    pdu_type: int
    flags: int
    hlen: int
    pdo: int
    plen: int
    cccid: int
    ttag: int
    datao: int
    datal: int


@dataclass(slots=True)
class C2HData:
    """Data from the controller: ``datao`` and ``datal`` in bytes, within the command's data."""

    pdu_type: int
    flags: int
    hlen: int
    pdo: int
    plen: int
    cccid: int
    datao: int
    datal: int


@dataclass(slots=True)
class R2T:
    """Ready to Transfer: ``r2to`` and ``r2tl`` in bytes, within the command's data."""

    pdu_type: int
    flags: int
    hlen: int
    pdo: int
    plen: int
    cccid: int
    ttag: int
    r2to: int
    r2tl: int


H2C_DATA: Final[Record[H2CData]] = Record(
    c.Struct(
        *CH_FIELDS,
        "cccid" / c.Int16ul,
        "ttag" / c.Int16ul,
        "datao" / c.Int32ul,
        "datal" / c.Int32ul,
        c.Padding(4),
    ),
    H2CData,
)

C2H_DATA: Final[Record[C2HData]] = Record(
    c.Struct(
        *CH_FIELDS,
        "cccid" / c.Int16ul,
        c.Padding(2),
        "datao" / c.Int32ul,
        "datal" / c.Int32ul,
        c.Padding(4),
    ),
    C2HData,
)

R2T_PDU: Final[Record[R2T]] = Record(
    c.Struct(
        *CH_FIELDS,
        "cccid" / c.Int16ul,
        "ttag" / c.Int16ul,
        "r2to" / c.Int32ul,
        "r2tl" / c.Int32ul,
        c.Padding(4),
    ),
    R2T,
)

TRANSFER_BYTES: Final = 24
CCCID_OFFSET: Final = H2C_DATA.offsets["cccid"]
TTAG_OFFSET: Final = H2C_DATA.offsets["ttag"]
DATAO_OFFSET: Final = H2C_DATA.offsets["datao"]
DATAL_OFFSET: Final = H2C_DATA.offsets["datal"]
