"""TermReqs: content and names."""

from __future__ import annotations

import pytest

from nvmeof.pdu.header import PduType
from nvmeof.pdu.termination import TERM_REQ, Fes, fes_text, term_req


def test_header_of_the_pdu_in_error_is_the_data() -> None:
    raw = term_req(PduType.C2H_TERM_REQ, Fes.INVALID_HEADER_FIELD, 0x01020304, b"\x04\0\x48\0" * 2)
    assert raw.hex() == "03001800" + "20000000" + "0100" + "04030201" + "00" * 10 + "04004800" * 2


@pytest.mark.parametrize("length", [0, 1, 127, 128])
def test_data_up_to_128_bytes(length: int) -> None:
    raw = term_req(PduType.H2C_TERM_REQ, Fes.PDU_SEQUENCE_ERROR, 0, b"x" * length)
    assert len(raw) == TERM_REQ.unpack_from(raw).plen == 24 + length


def test_more_is_cut() -> None:
    raw = term_req(PduType.H2C_TERM_REQ, Fes.PDU_SEQUENCE_ERROR, 0, bytes(range(129)))
    assert TERM_REQ.unpack_from(raw).plen == 152
    assert raw[24:] == bytes(range(128))


def test_names() -> None:
    assert fes_text(3) == "Header Digest Error"
    assert fes_text(0x99) == "reserved status 0x99"
    assert all(fes_text(fes)[0].isupper() for fes in Fes)
