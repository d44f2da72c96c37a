"""Tap, encoder and raw bytes: the means of faults, captures and misbehaving peers."""

from __future__ import annotations

import pytest

from nvmeof.pdu.capsule import CAPSULE_CMD_BYTES
from nvmeof.pdu.header import CH
from nvmeof.pdu.transfer import C2H_DATA, H2C_DATA, R2T_PDU
from nvmeof.protocol.connection import ConnectionConfig, Tap, TargetConnection
from nvmeof.protocol.encoder import Encoder
from nvmeof.protocol.events import Completions
from nvmeof.wire import Buffer

from .wire import (
    LAST,
    SUCCESS,
    WRITE,
    Arrived,
    Framing,
    crc,
    failure,
    feed,
    icreq,
    ready_host,
    ready_target,
    sent,
    split,
    sqe,
)

PLAIN, BOTH = Framing(), Framing(True, True)


class Recorder(Tap):
    def __init__(self) -> None:
        self.incoming = b""
        self.outgoing = b""

    def received(self, data: memoryview) -> None:
        self.incoming += data

    def sent(self, data: Buffer) -> None:
        self.outgoing += data


@pytest.mark.parametrize("framing", [PLAIN, BOTH])
@pytest.mark.parametrize("step", [1, 13, 5000, 1 << 20])
def test_the_tap_sees_every_byte_once(framing: Framing, step: int) -> None:
    """Both roles, payloads that are received in place, partial sends, live memory that changes in between."""
    t = ready_target(framing)
    t.tap = tap = Recorder()
    stream = framing.command(1, WRITE, 40_000) + framing.command(2)
    feed(t, stream, step)
    t.request_data(1, memoryview(bytearray(40_000)), None)
    memory = bytearray(5000)
    t.send_read(2, memoryview(memory))
    taken = b""
    while t.want_write:
        taken += sent(t, step)
        memory[:] = bytes([memory[0] + 1 & 0xFF]) * 5000
    data = framing.h2c(1, 0, 0, b"in place" * 5000)
    feed(t, data, step)
    assert tap.incoming == stream + data
    assert tap.outgoing == taken

    h = ready_host(framing)
    h.tap = tap = Recorder()
    h.send_command(1, sqe(), data_in=memoryview(bytearray(40_000)))
    taken = sent(h, step) + sent(h)
    answer = framing.c2h(1, 0, b"in place" * 5000, LAST | SUCCESS)
    feed(h, answer, step)
    assert tap.incoming == answer
    assert tap.outgoing == taken


def test_the_tap_sees_discarded_bytes_too() -> None:
    t = ready_target()
    t.terminate(1)
    t.tap = tap = Recorder()
    feed(t, b"\xff" * 100)
    assert tap.incoming == b"\xff" * 100


def test_raw_bytes_go_as_they_are_and_in_order() -> None:
    t = ready_target()
    feed(t, PLAIN.command(1) + PLAIN.command(2))
    raw = bytearray(b"raw bytes")
    t.send_completion(1)
    t.send_raw(raw)
    raw[:] = b"different"
    t.send_completion(2)
    assert sent(t) == PLAIN.response(1, sqhd=2) + b"raw bytes" + PLAIN.response(2, sqhd=2)


class LyingEncoder(Encoder):
    """An encoder that states one byte too much as the length of each C2HData."""

    def c2h_data(self, cid: int, datao: int, datal: int, flags: int) -> bytes:
        return super().c2h_data(cid, datao, datal + 1, flags)


def test_an_encoder_can_be_put_in_before_the_handshake() -> None:
    t = TargetConnection(ConnectionConfig(header_digest=True, data_digest=True))
    t.make_encoder = LyingEncoder
    feed(t, icreq(dgst=3, hpda=31))
    sent(t)
    feed(t, BOTH.command(1))
    t.send_read(1, bytes(8))
    h = ready_host(Framing(True, True, 128))
    h.send_command(1, sqe(), data_in=memoryview(bytearray(8)))
    assert failure(feed(h, sent(t))) == (4, 0)


def test_an_encoder_can_be_put_in_at_any_time() -> None:
    t = ready_target()
    feed(t, PLAIN.command(1) + PLAIN.command(2))
    t.send_completion(1)

    class Silent(Encoder):
        def response(self, *_: int) -> bytes:
            return b""

    t.encoder = Silent()
    t.send_completion(2)
    assert sent(t) == PLAIN.response(1, sqhd=2)


def test_several_c2h_data_per_command_by_hand() -> None:
    """A controller may split a command's data in any way; ours does not, but its encoder can."""
    t = ready_target(BOTH)
    feed(t, BOTH.command(1))
    h = ready_host(BOTH)
    into = bytearray(12)
    h.send_command(1, sqe(), data_in=memoryview(into))
    for offset, part, flags in ((0, b"abcd", 0), (4, b"efgh", 0), (8, b"ijkl", LAST)):
        t.send_raw(t.encoder.c2h_data(1, offset, len(part), flags) + part + crc(part))
    t.send_completion(1)
    assert feed(h, sent(t)) == [Completions([(1, 0, 0, 0)])]
    assert into == b"abcdefghijkl"


def test_several_h2c_data_by_hand() -> None:
    t = ready_target()
    feed(t, PLAIN.command(1, WRITE, 8))
    buffer = bytearray(8)
    t.request_data(1, memoryview(buffer), None)
    h = ready_host()
    for offset in (0, 4):
        h.send_raw(h.encoder.h2c_data(1, 0, offset, 4, offset == 4) + b"wxyz")
    assert feed(t, sent(h)) == [Arrived(1, None, True)]
    assert buffer == b"wxyzwxyz"


@pytest.mark.parametrize("header_digest", [False, True])
@pytest.mark.parametrize("data_digest", [False, True])
@pytest.mark.parametrize("pda_bytes", range(4, 129, 4))
def test_headers_against_their_declarations(header_digest: bool, data_digest: bool, pda_bytes: int) -> None:
    encoder = Encoder(header_digest, data_digest, pda_bytes)
    hdgst, ddgst = (4 if header_digest else 0), (4 if data_digest else 0)
    flags = header_digest | data_digest << 1
    pdo = -(-(24 + hdgst) // pda_bytes) * pda_bytes

    raw = encoder.c2h_data(0x1234, 0x10, 512, LAST | SUCCESS)
    c2h = C2H_DATA.unpack_from(raw)
    assert (c2h.pdu_type, c2h.flags, c2h.hlen, c2h.pdo, c2h.plen) == (7, flags | 12, 24, pdo, pdo + 512 + ddgst)
    assert (c2h.cccid, c2h.datao, c2h.datal) == (0x1234, 0x10, 512)
    assert len(raw) == pdo
    assert encoder.c2h_headers([0x1234], 512, LAST) == [encoder.c2h_data(0x1234, 0, 512, LAST)]

    raw = encoder.h2c_data(1, 2, 3, 4, False)
    h2c = H2C_DATA.unpack_from(raw)
    assert (h2c.pdu_type, h2c.flags, h2c.pdo, h2c.plen) == (6, flags, pdo, pdo + 4 + ddgst)
    assert (h2c.cccid, h2c.ttag, h2c.datao, h2c.datal) == (1, 2, 3, 4)
    assert encoder.h2c_data(1, 2, 3, 4, True)[1] == flags | 4

    raw = encoder.r2t(1, 2, 3, 4)
    r2t = R2T_PDU.unpack_from(raw)
    assert (r2t.pdu_type, r2t.flags, r2t.pdo, r2t.plen) == (9, header_digest, 0, 24 + hdgst)
    assert (r2t.cccid, r2t.ttag, r2t.r2to, r2t.r2tl) == (1, 2, 3, 4)

    raw = encoder.command(1, sqe(), (0, 9, 1), 9)
    ch = CH.unpack_from(raw)
    end = -(-(72 + hdgst) // pda_bytes) * pda_bytes
    assert (ch.pdu_type, ch.flags, ch.hlen, ch.pdo, ch.plen) == (4, flags, CAPSULE_CMD_BYTES, end, end + 9 + ddgst)
    assert len(raw) == end

    [whole] = split(encoder.response(1, 2, 3, 4, 5, 6))
    assert whole[1] == header_digest
    assert encoder.responses([7, 8], 5, 6) == [encoder.response(cid, 0, 0, 0, 5, 6) for cid in (7, 8)]
