"""The target's role in Writes with R2T and H2CData, against a hand-written host."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.connection import Connection, State

from .wire import (
    DDGSTF,
    FRAMINGS,
    HDGSTF,
    LAST,
    PLAIN,
    WRITE,
    Arrived,
    Framing,
    failure,
    feed,
    ready_target,
    sent,
    term_req,
)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [1, 512, 4096, 32767, 32768, 100_000])
def test_write(framing: Framing, size: int) -> None:
    t = ready_target(framing)
    feed(t, framing.command(7, WRITE, size))
    buffer = bytearray(size)
    t.request_data(7, memoryview(buffer), "context")
    assert sent(t) == framing.r2t(7, 0, 0, size)
    assert t.asked_bytes == size
    data = bytes(i * 7 & 0xFF for i in range(size))
    assert feed(t, framing.h2c(7, 0, 0, data), 5000) == [Arrived(7, "context", True)]
    assert buffer == data
    assert t.asked_bytes == 0


def test_large_payload_goes_to_its_buffer_and_nothing_else_does() -> None:
    t = ready_target()
    size = 65536
    feed(t, PLAIN.command(7, WRITE, size))
    buffer = memoryview(bytearray(size))
    t.request_data(7, buffer, None)
    assert len(t.next_buffer()) == 512
    feed(t, PLAIN.h2c(7, 0, 0, bytes(size))[:1000])
    rest = t.next_buffer()
    assert rest.obj is buffer.obj
    assert len(rest) == size - 1000 + 24
    feed(t, bytes(len(rest)))
    assert t.next_buffer().obj is not buffer.obj
    assert len(t.next_buffer()) == 32768


def test_several_h2c_data_per_r2t() -> None:
    t = ready_target()
    feed(t, PLAIN.command(7, WRITE, 10_000))
    buffer = bytearray(10_000)
    t.request_data(7, memoryview(buffer), None)
    data = bytes(range(250)) * 40
    cuts = [0, 1, 4, 5000, 9999, 10_000]
    stream = b"".join(PLAIN.h2c(7, 0, a, data[a:b], last=b == 10_000) for a, b in pairwise(cuts))
    assert feed(t, stream) == [Arrived(7, None, True)]
    assert buffer == data


@pytest.mark.parametrize(("maxr2t", "outstanding"), [(1, 1), (2, 2), (3, 3), (4, 4), (9, 4), (1 << 32, 4)])
def test_maxr2t(maxr2t: int, outstanding: int) -> None:
    t = ready_target(maxr2t=maxr2t, r2t_bytes=1000)
    feed(t, PLAIN.command(7, WRITE, 3500))
    buffer = bytearray(3500)
    t.request_data(7, memoryview(buffer), None)
    first = [PLAIN.r2t(7, i, i * 1000, min(1000, 3500 - i * 1000)) for i in range(4)]
    assert sent(t) == b"".join(first[:outstanding])
    assert t.asked_bytes == (3500 if outstanding == 4 else outstanding * 1000)
    for i in range(4):
        length = min(1000, 3500 - i * 1000)
        events = feed(t, PLAIN.h2c(7, i, i * 1000, bytes([i + 1]) * length))
        assert events == ([Arrived(7, None, True)] if i == 3 else [])
        assert sent(t) == (first[i + outstanding] if i + outstanding < 4 else b"")
    assert buffer == b"\1" * 1000 + b"\2" * 1000 + b"\3" * 1000 + b"\4" * 500


def test_outstanding_r2ts_may_be_answered_in_any_order() -> None:
    t = ready_target(maxr2t=2, r2t_bytes=4)
    feed(t, PLAIN.command(7, WRITE, 8))
    buffer = bytearray(8)
    t.request_data(7, memoryview(buffer), None)
    events = feed(t, PLAIN.h2c(7, 1, 4, b"wxyz") + PLAIN.h2c(7, 0, 0, b"abcd"))
    assert events == [Arrived(7, None, True)]
    assert buffer == b"abcdwxyz"


def asked(size: int = 100, **config: int) -> Connection:
    """Return a target that has asked for ``size`` bytes of command 7 under TTAG 0."""
    t = ready_target(**config)  # type: ignore[arg-type]
    feed(t, PLAIN.command(7, WRITE, size))
    t.request_data(7, memoryview(bytearray(size)), None)
    sent(t)
    return t


@pytest.mark.parametrize(
    ("name", "pdu", "expected"),
    [
        ("unknown TTAG", PLAIN.h2c(7, 1, 0, bytes(100)), (1, 10)),
        ("unknown TTAG, highest", PLAIN.h2c(7, 0xFFFF, 0, bytes(100)), (1, 10)),
        ("another command's TTAG", PLAIN.h2c(8, 0, 0, bytes(100)), (1, 8)),
        ("beyond the R2T", PLAIN.h2c(7, 0, 0, bytes(101)), (4, 0)),
        ("far beyond", PLAIN.h2c(7, 0, 0xFFFFFFFF, bytes(100)), (4, 0)),
        ("begins in the middle", PLAIN.h2c(7, 0, 50, bytes(50)), (2, 0)),
        ("LAST_PDU early", PLAIN.h2c(7, 0, 0, bytes(50), last=True), (1, 1)),
        ("DATAL below what follows", PLAIN.h2c(7, 0, 0, bytes(100))[:16] + b"\x10" + bytes(107), (1, 16)),
        ("DATAL above what follows", PLAIN.h2c(7, 0, 0, bytes(100))[:16] + b"\xff" + bytes(107), (1, 16)),
        ("PLEN huge", PLAIN.h2c(7, 0, 0, bytes(100))[:4] + b"\xff" * 4 + bytes(100), (1, 16)),
        ("no data", PLAIN.pdu(6, LAST, PLAIN.h2c(7, 0, 0, b"x")[8:24]), (1, 4)),
        ("data digest that was not settled", PLAIN.pdu(6, LAST | DDGSTF, PLAIN.h2c(7, 0, 0, b"x")[8:24], b"x"), (1, 1)),
        ("header digest that was not settled", PLAIN.pdu(6, LAST | HDGSTF, bytes(16), b"x"), (1, 1)),
    ],
)
def test_wrong_h2c_data(name: str, pdu: bytes, expected: tuple[int, int]) -> None:
    t = asked()
    assert failure(feed(t, pdu)) == expected
    assert sent(t)[:14] == term_req(3, *expected, data=pdu[:24])[:14]
    assert t.state is State.CLOSED
    assert t.asked_bytes == 0


def test_out_of_order_within_an_r2t() -> None:
    t = asked()
    feed(t, PLAIN.h2c(7, 0, 0, bytes(40), last=False))
    assert failure(feed(t, PLAIN.h2c(7, 0, 0, bytes(40), last=False))) == (2, 0)


def test_a_ttag_ends_with_its_data() -> None:
    t = asked()
    assert len(feed(t, PLAIN.h2c(7, 0, 0, bytes(100)))) == 1
    assert failure(feed(t, PLAIN.h2c(7, 0, 0, bytes(100)))) == (1, 10)


def test_more_than_maxh2cdata() -> None:
    t = asked(9000, maxh2cdata_bytes=4096)
    feed(t, PLAIN.h2c(7, 0, 0, bytes(4096), last=False))
    assert failure(feed(t, PLAIN.h2c(7, 0, 4096, bytes(4100), last=False))) == (5, 0)


def test_offset_that_overflows_32_bits() -> None:
    t = asked()
    pdu = PLAIN.h2c(7, 0, 0xFFFFFFFF, b"x")
    assert failure(feed(t, pdu)) == (4, 0)


@pytest.mark.parametrize(
    "buffer",
    [memoryview(b"readonly"), memoryview(bytearray()), memoryview(bytearray(8)).cast("I")],
    ids=["readonly", "empty", "words"],
)
def test_buffers_that_cannot_take_data(buffer: memoryview) -> None:
    t = ready_target()
    feed(t, PLAIN.command(7, WRITE, 8))
    with pytest.raises(LocalProtocolError):
        t.request_data(7, buffer, None)
