"""Every rule of a PDU's header, and the exact FES and FEI of its violation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import PduError
from nvmeof.pdu.framer import RULES, Framing, check_header, rule_of
from nvmeof.pdu.header import PduType
from nvmeof.pdu.termination import Fes

ICREQ, ICRESP, H2C_TERM, C2H_TERM, CMD, RESP, H2C, C2H, R2T = PduType
HDGSTF, DDGSTF = 1, 2
TYPE, FLAGS, HLEN, PDO, PLEN = 0, 1, 2, 3, 4

PLAIN = Framing(max_data_bytes=8192)
HEADER = Framing(header_digest=True, max_data_bytes=8192)
DATA = Framing(data_digest=True, max_data_bytes=8192)
BOTH = Framing(header_digest=True, data_digest=True, max_data_bytes=8192)

LEGAL: list[tuple[Framing, PduType, int, int, int, int, tuple[int, int]]] = [
    # framing, type, flags, hlen, pdo, plen -> data
    (PLAIN, ICREQ, 0, 128, 0, 128, (0, 0)),
    (PLAIN, ICRESP, 0, 128, 0, 128, (0, 0)),
    (PLAIN, H2C_TERM, 0, 24, 0, 24, (24, 0)),
    (PLAIN, C2H_TERM, 0, 24, 0, 152, (24, 128)),
    (BOTH, C2H_TERM, 0, 24, 0, 32, (24, 8)),
    (PLAIN, CMD, 0, 72, 0, 72, (0, 0)),
    (HEADER, CMD, HDGSTF, 72, 0, 76, (0, 0)),
    (DATA, CMD, 0, 72, 0, 72, (0, 0)),
    (BOTH, CMD, HDGSTF, 72, 0, 76, (0, 0)),
    (BOTH, CMD, HDGSTF | DDGSTF, 72, 76, 76 + 4096 + 4, (76, 4096)),
    (PLAIN, CMD, 0, 72, 72, 72 + 8192, (72, 8192)),
    (PLAIN, CMD, 0, 72, 128, 128 + 1, (128, 1)),
    (PLAIN, RESP, 0, 24, 0, 24, (0, 0)),
    (HEADER, RESP, HDGSTF, 24, 0, 28, (0, 0)),
    (PLAIN, R2T, 0, 24, 0, 24, (0, 0)),
    (BOTH, R2T, HDGSTF, 24, 0, 28, (0, 0)),
    *[
        entry
        for kind in (H2C, C2H)
        for entry in [
            (PLAIN, kind, 0, 24, 24, 24 + 1, (24, 1)),
            (PLAIN, kind, 4, 24, 128, 128 + 512, (128, 512)),
            (HEADER, kind, HDGSTF, 24, 28, 28 + 512, (28, 512)),
            (DATA, kind, DDGSTF, 24, 24, 24 + 512 + 4, (24, 512)),
            (BOTH, kind, HDGSTF | DDGSTF, 24, 28, 28 + 512 + 4, (28, 512)),
            (Framing(pda_bytes=128), kind, 0, 24, 128, 128 + 4, (128, 4)),
            (Framing(pda_bytes=12), kind, 0, 24, 36, 36 + 4, (36, 4)),
            (PLAIN, kind, 0, 24, 24, 0xFFFFFFFF, (24, 0xFFFFFFFF - 24)),
        ]
    ],
]


@pytest.mark.parametrize("case", LEGAL)
def test_legal(case: tuple[Framing, PduType, int, int, int, int, tuple[int, int]]) -> None:
    framing, kind, flags, hlen, pdo, plen, expected = case
    assert check_header(kind, flags, hlen, pdo, plen, framing) == expected


def fails(framing: Framing, kind: int, flags: int, hlen: int, pdo: int, plen: int, fei: int) -> None:
    with pytest.raises(PduError) as caught:
        check_header(kind, flags, hlen, pdo, plen, framing)
    assert (caught.value.fes, caught.value.fei) == (Fes.INVALID_HEADER_FIELD, fei)
    assert str(caught.value)


def test_types_that_do_not_exist() -> None:
    for kind in set(range(256)) - set(PduType):
        with pytest.raises(PduError):
            rule_of(kind)
        fails(PLAIN, kind, 0, 24, 0, 24, TYPE)


@pytest.mark.parametrize("kind", PduType)
def test_hlen_is_one_value_per_type(kind: PduType) -> None:
    right = {ICREQ: 128, ICRESP: 128, CMD: 72}.get(kind, 24)
    assert RULES[kind].hlen == right
    for hlen in set(range(256)) - {right}:
        fails(PLAIN, kind, 0, hlen, 24, 256, HLEN)


@pytest.mark.parametrize("kind", [CMD, RESP, H2C, C2H, R2T])
def test_hdgstf_is_what_the_handshake_negotiated(kind: PduType) -> None:
    hlen = RULES[kind].hlen
    fails(PLAIN, kind, HDGSTF, hlen, hlen, hlen + 4, FLAGS)
    fails(HEADER, kind, 0, hlen, hlen, hlen, FLAGS)


@pytest.mark.parametrize("kind", [CMD, H2C, C2H])
def test_ddgstf_is_what_the_handshake_negotiated(kind: PduType) -> None:
    hlen = RULES[kind].hlen
    fails(PLAIN, kind, DDGSTF, hlen, hlen, hlen + 512 + 4, FLAGS)
    fails(DATA, kind, 0, hlen, hlen, hlen + 512, FLAGS)


@pytest.mark.parametrize("kind", [ICREQ, ICRESP, RESP, R2T])
def test_plen_without_data_is_the_header(kind: PduType) -> None:
    hlen = RULES[kind].hlen
    for plen in (0, 7, hlen - 1, hlen + 1, hlen + 4, 0xFFFFFFFF):
        fails(PLAIN, kind, 0, hlen, 0, plen, PLEN)


@pytest.mark.parametrize("kind", [RESP, R2T])
def test_plen_counts_the_header_digest(kind: PduType) -> None:
    for plen in (24, 27, 29, 32):
        fails(HEADER, kind, HDGSTF, 24, 0, plen, PLEN)


@pytest.mark.parametrize("kind", [H2C_TERM, C2H_TERM])
def test_plen_of_a_term_req(kind: PduType) -> None:
    for plen in (0, 23, 153, 0xFFFFFFFF):
        fails(PLAIN, kind, 0, 24, 0, plen, PLEN)


@pytest.mark.parametrize("kind", [CMD, H2C, C2H])
def test_plen_too_small_for_data(kind: PduType) -> None:
    hlen = RULES[kind].hlen
    flags = HDGSTF | DDGSTF
    for plen in {0, hlen, hlen + 1, hlen + 3, hlen + 4, hlen + 5, hlen + 8} - ({hlen + 4} if kind is CMD else set()):
        fails(BOTH, kind, flags, hlen, hlen + 4, plen, PLEN)
    # long enough for the header, not for the position of the data
    fails(PLAIN, kind, 0, hlen, 128, 128, PLEN)
    fails(DATA, kind, DDGSTF, hlen, 128, 128 + 4, PLEN)


@pytest.mark.parametrize("kind", [CMD, H2C, C2H])
def test_with_pdo_0_data_begins_after_header_and_digest(kind: PduType) -> None:
    hlen = RULES[kind].hlen
    assert check_header(kind, 0, hlen, 0, hlen + 512, PLAIN) == (hlen, 512)
    assert check_header(kind, HDGSTF | DDGSTF, hlen, 0, hlen + 4 + 512 + 4, BOTH) == (hlen + 4, 512)
    assert check_header(kind, 0, hlen, 0, hlen + 512, Framing(pda_bytes=128)) == (hlen, 512)
    if kind is not CMD:
        fails(PLAIN, kind, 0, hlen, 0, hlen, PLEN)


@pytest.mark.parametrize("kind", [CMD, H2C, C2H])
def test_pdo(kind: PduType) -> None:
    hlen = RULES[kind].hlen
    plen = 4096
    for pdo in (1, hlen - 4, hlen + 1, hlen + 2, 129, 132, 252, 255):
        fails(PLAIN, kind, 0, hlen, pdo, plen, PDO)
    fails(HEADER, kind, HDGSTF, hlen, hlen, plen, PDO)  # the header digest is there
    fails(Framing(pda_bytes=128), kind, 0, hlen, hlen, plen, PDO)
    fails(Framing(pda_bytes=16), kind, 0, hlen, 76, plen, PDO)


def test_in_capsule_data_has_a_limit() -> None:
    assert check_header(CMD, 0, 72, 72, 72 + 8192, PLAIN) == (72, 8192)
    fails(PLAIN, CMD, 0, 72, 72, 72 + 8193, PLEN)
    fails(PLAIN, CMD, 0, 72, 72, 0xFFFFFFFF, PLEN)
    fails(Framing(max_data_bytes=0), CMD, 0, 72, 72, 73, PLEN)


@given(
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1) | st.integers(0, 300),
    st.builds(
        Framing,
        header_digest=st.booleans(),
        data_digest=st.booleans(),
        pda_bytes=st.integers(1, 32).map(lambda n: 4 * n),
        max_data_bytes=st.integers(0, 9000),
    ),
)
def test_accepted_headers_are_consistent(
    kind: int, flags: int, hlen: int, pdo: int, plen: int, framing: Framing
) -> None:
    try:
        offset, length = check_header(kind, flags, hlen, pdo, plen, framing)
    except PduError as error:
        assert error.fes == Fes.INVALID_HEADER_FIELD
        assert error.fei in (TYPE, FLAGS, HLEN, PDO, PLEN)
        return
    assert offset in (0, 24, pdo) or (pdo == 0 and offset == hlen + 4 * framing.header_digest)
    assert offset <= 128
    trailer = 4 if framing.data_digest and RULES[kind].data != "undigested" else 0
    if length:
        assert offset + length + trailer == plen
        assert kind != CMD or length <= framing.max_data_bytes
    else:
        assert plen in (24, 28, 72, 76, 128)
