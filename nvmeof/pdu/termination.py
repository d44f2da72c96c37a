"""H2CTermReq and C2HTermReq (NVMe TCP Transport specification, sections 3.6.2.4 and 3.6.2.5)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import construct as c

from ..wire import Buffer, Record
from .header import CH_FIELDS, PduType


class Fes(IntEnum):
    """Fatal Error Status. 05h is the R2T limit when a host says it, the data transfer limit when a controller does."""

    INVALID_HEADER_FIELD = 0x01
    PDU_SEQUENCE_ERROR = 0x02
    HEADER_DIGEST_ERROR = 0x03
    DATA_OUT_OF_RANGE = 0x04
    LIMIT_EXCEEDED = 0x05
    UNSUPPORTED_PARAMETER = 0x06


FES_TEXT: Final[dict[int, str]] = {
    Fes.INVALID_HEADER_FIELD: "Invalid PDU Header Field",
    Fes.PDU_SEQUENCE_ERROR: "PDU Sequence Error",
    Fes.HEADER_DIGEST_ERROR: "Header Digest Error",
    Fes.DATA_OUT_OF_RANGE: "Data Transfer Out of Range",
    Fes.LIMIT_EXCEEDED: "Transfer Limit Exceeded",
    Fes.UNSUPPORTED_PARAMETER: "Unsupported Parameter",
}


@dataclass(slots=True)
class TermReq:
    """A TermReq's header. ``fei`` is the offset of the field in error, or the digest that was received."""

    pdu_type: int
    flags: int
    hlen: int
    pdo: int
    plen: int
    fes: int
    fei: int


TERM_REQ: Final[Record[TermReq]] = Record(
    c.Struct(*CH_FIELDS, "fes" / c.Int16ul, "fei" / c.Int32ul, c.Padding(10)),
    TermReq,
)

TERM_REQ_BYTES: Final = 24
MAX_TERM_DATA_BYTES: Final = 128


def term_req(pdu_type: PduType, fes: int, fei: int, header: Buffer) -> bytes:
    """Build a whole TermReq, with up to 128 bytes of the header of the PDU in error as its data."""
    data = bytes(header[:MAX_TERM_DATA_BYTES])
    plen = TERM_REQ_BYTES + len(data)
    return TERM_REQ.pack(TermReq(pdu_type, 0, TERM_REQ_BYTES, 0, plen, fes, fei)) + data


def fes_text(fes: int) -> str:
    """Return the standard name of a Fatal Error Status."""
    return FES_TEXT.get(fes, f"reserved status {fes:#x}")
