"""The rules that a PDU's header must keep, one row per PDU type, and their check.

A broken rule is a :class:`~nvmeof.errors.PduError` whose FEI is the offset of the field in error
(NVMe TCP Transport specification, section 3.6.2; the FES values are in section 3.6.2.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import PduError
from .capsule import CAPSULE_CMD_BYTES, CAPSULE_RESP_BYTES
from .handshake import IC_BYTES
from .header import (
    DIGEST_BYTES,
    FLAGS_OFFSET,
    HLEN_OFFSET,
    PDO_OFFSET,
    PLEN_OFFSET,
    TYPE_OFFSET,
    Flags,
    PduType,
    align,
)
from .termination import MAX_TERM_DATA_BYTES, TERM_REQ_BYTES, Fes
from .transfer import TRANSFER_BYTES


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """The rule of a PDU type's header."""

    hlen: int
    digests: bool  # HDGST may follow the header
    data: str  # "none", "optional" (in-capsule), "always", "undigested" (a TermReq's: no PDO, no digest)


RULES: Final[dict[int, HeaderRule]] = {
    PduType.ICREQ: HeaderRule(IC_BYTES, False, "none"),
    PduType.ICRESP: HeaderRule(IC_BYTES, False, "none"),
    PduType.H2C_TERM_REQ: HeaderRule(TERM_REQ_BYTES, False, "undigested"),
    PduType.C2H_TERM_REQ: HeaderRule(TERM_REQ_BYTES, False, "undigested"),
    PduType.CAPSULE_CMD: HeaderRule(CAPSULE_CMD_BYTES, True, "optional"),
    PduType.CAPSULE_RESP: HeaderRule(CAPSULE_RESP_BYTES, True, "none"),
    PduType.H2C_DATA: HeaderRule(TRANSFER_BYTES, True, "always"),
    PduType.C2H_DATA: HeaderRule(TRANSFER_BYTES, True, "always"),
    PduType.R2T: HeaderRule(TRANSFER_BYTES, True, "none"),
}


@dataclass(frozen=True, slots=True)
class Framing:
    """The results of the handshake for received PDUs: digests, and the data alignment (bytes) that we asked for."""

    header_digest: bool = False
    data_digest: bool = False
    pda_bytes: int = 4
    max_data_bytes: int = 0xFFFFFFFF
    """The longest data that an in-capsule command may bring."""


def _invalid(offset: int, message: str) -> PduError:
    return PduError(Fes.INVALID_HEADER_FIELD, offset, message)


def rule_of(pdu_type: int) -> HeaderRule:
    """Return the rule of a PDU type. Raises PduError for a type that does not exist."""
    rule = RULES.get(pdu_type)
    if rule is None:
        raise _invalid(TYPE_OFFSET, f"PDU type {pdu_type:#04x} does not exist")
    return rule


TLS_RECORDS: Final = range(0x14, 0x18)
"""Content types of TLS records (RFC 8446, section 5.1); 15h is an alert, 16h a handshake message, as a hello is."""
TLS_MAJOR_VERSION: Final = 3
"""The byte behind it, in all versions from SSL 3.0 to TLS 1.3."""


def check_first_bytes(first: int, second: int) -> None:
    """Check the first two bytes of a peer. Raises PduError where they begin a TLS record."""
    if first in TLS_RECORDS and second == TLS_MAJOR_VERSION:
        raise _invalid(
            TYPE_OFFSET, f"the other side seems to speak TLS (first byte {first:02X}h), which is not spoken here"
        )


def check_header(pdu_type: int, flags: int, hlen: int, pdo: int, plen: int, framing: Framing) -> tuple[int, int]:
    """Check a common header (NVMe/TCP transport, PDU common header); returns (offset of the data, length of the data),
    both 0 without data.

    With PDO 0 the data begins right after the header and its digest, where Linux looks for it whatever PDO says. Raises
    PduError, FEI being the offset of the field in error.
    """
    rule = rule_of(pdu_type)
    if hlen != rule.hlen:
        raise _invalid(HLEN_OFFSET, f"HLEN is {hlen}, a {PduType(pdu_type).name} has {rule.hlen}")
    if rule.data == "undigested":
        if not hlen <= plen <= hlen + MAX_TERM_DATA_BYTES:
            raise _invalid(PLEN_OFFSET, f"PLEN is {plen}, a TermReq has {hlen} to {hlen + MAX_TERM_DATA_BYTES}")
        return hlen, plen - hlen
    header_end = hlen
    if rule.digests:
        if bool(flags & Flags.HDGSTF) != framing.header_digest:
            raise _invalid(FLAGS_OFFSET, "HDGSTF is not what the handshake settled")
        if framing.header_digest:
            header_end += DIGEST_BYTES
    if rule.data == "none" or (rule.data == "optional" and plen == header_end):
        if plen != header_end:
            raise _invalid(PLEN_OFFSET, f"PLEN is {plen}, this PDU has {header_end}")
        return 0, 0
    return _check_data(rule, flags, pdo, plen, header_end, framing)


def _check_data(
    rule: HeaderRule, flags: int, pdo: int, plen: int, header_end: int, framing: Framing
) -> tuple[int, int]:
    trailer = DIGEST_BYTES if framing.data_digest else 0
    if bool(flags & Flags.DDGSTF) != framing.data_digest:
        raise _invalid(FLAGS_OFFSET, "DDGSTF is not what the handshake settled")
    if plen < header_end + trailer + 1:
        raise _invalid(PLEN_OFFSET, f"PLEN is {plen}, too small for a header of {header_end} bytes and data")
    if not pdo:
        pdo = header_end
    elif pdo < header_end or pdo > align(header_end, 128) or pdo % framing.pda_bytes:
        raise _invalid(PDO_OFFSET, f"PDO is {pdo}, after a header of {header_end} bytes aligned to {framing.pda_bytes}")
    length = plen - pdo - trailer
    if length < 1:
        raise _invalid(PLEN_OFFSET, f"PLEN is {plen} with data from {pdo} on")
    if rule.data == "optional" and length > framing.max_data_bytes:
        raise _invalid(PLEN_OFFSET, f"{length} bytes in a capsule that takes {framing.max_data_bytes}")
    return pdo, length
