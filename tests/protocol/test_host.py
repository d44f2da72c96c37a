"""The host's role against a hand-written controller: commands, data both ways, completions, and errors."""

from __future__ import annotations

import struct
from array import array

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.connection import State
from nvmeof.protocol.events import Completions
from nvmeof.spec.status import Status

from .wire import (
    LAST,
    READ,
    SUCCESS,
    WRITE,
    Framing,
    failure,
    feed,
    ready_host,
    sent,
    split,
    sqe,
    term_req,
)

FRAMINGS = [Framing(), Framing(True, False, 12), Framing(False, True, 128), Framing(True, True, 12)]
"""Each value of each field, and each pair of digests; test_bytewise.py and test_fuzz.py draw from all of them."""
PLAIN, BOTH = Framing(), Framing(True, True)
TRANSIENT = Status.TRANSIENT_TRANSPORT_ERROR << 1


# -- commands -----------------------------------------------------------------------------------------------------


def body(cid: int, opcode: int, sgl: bytes) -> bytes:
    """Return an SQE with every byte of the caller set to EEh, flags to FUSE 01b."""
    return struct.pack("<BBH", opcode, 0x41, cid) + b"\xee" * 20 + sgl + b"\xee" * 24


FULL_SQE = struct.pack("<BBH", 1, 0x81, 0x5555) + b"\xee" * 60


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("cpda", [0, 2, 31])
def test_capsules(framing: Framing, cpda: int) -> None:
    """The connection sets CID, PSDT and SGL1; all other bytes are the caller's."""
    h = ready_host(framing, cpda=cpda, incapsule_bytes=16)
    out = Framing(framing.header_digest, framing.data_digest, 4 * (cpda + 1))
    h.send_command(0xFFFF, FULL_SQE)
    assert sent(h) == out.pdu(4, 0, body(0xFFFF, 1, struct.pack("<QI3xB", 0, 0, 0x5A)))
    h.send_command(0, bytearray(FULL_SQE), data_in=memoryview(bytearray(4096)))
    assert sent(h) == out.pdu(4, 0, body(0, 1, struct.pack("<QI3xB", 0, 4096, 0x5A)))
    h.send_command(1, memoryview(FULL_SQE), b"exactly sixteen.")
    assert sent(h) == out.pdu(4, 0, body(1, 1, struct.pack("<QI3xB", 0, 16, 0x01)), b"exactly sixteen.")
    h.send_command(2, FULL_SQE, b"seventeen bytes..")
    assert sent(h) == out.pdu(4, 0, body(2, 1, struct.pack("<QI3xB", 0, 17, 0x5A)))
    h.send_command(3, FULL_SQE, b"short", in_capsule=False)
    assert sent(h) == out.pdu(4, 0, body(3, 1, struct.pack("<QI3xB", 0, 5, 0x5A)))
    assert h.outstanding == 5


def test_misuse() -> None:
    h = ready_host(incapsule_bytes=16)
    h.send_command(1, sqe())
    into = memoryview(bytearray(8))
    for arguments, named in [
        ((1, sqe()), {}),
        ((-1, sqe()), {}),
        ((0x10000, sqe()), {}),
        ((2, bytes(63)), {}),
        ((2, bytes(65)), {}),
        ((2, sqe(), bytes(17)), {"in_capsule": True}),
        ((2, sqe(), bytes(8), into), {}),
        ((2, sqe(), memoryview(array("I", [1, 2]))), {}),
        ((2, sqe(), memoryview(bytes(8))[::2]), {}),
        ((2, sqe(), None, memoryview(bytes(8))), {}),
        ((2, sqe(), None, memoryview(array("I", [1, 2]))), {}),
        ((2, sqe(), None, into[::2]), {}),
    ]:
        with pytest.raises(LocalProtocolError):
            h.send_command(*arguments, **named)  # type: ignore[arg-type]
    assert h.outstanding == 1
    sent(h)
    assert h.large_expected == 0


def test_in_capsule_limit_can_change() -> None:
    h = ready_host(incapsule_bytes=0)
    h.send_command(1, sqe(WRITE), b"x")
    assert sent(h) == PLAIN.pdu(4, 0, sqe(WRITE)[:1] + b"\x40\1\0" + bytes(20) + struct.pack("<QI3xB24x", 0, 1, 0x5A))
    h.set_incapsule(1 << 20)
    h.send_command(2, sqe(WRITE), bytes(1 << 20))
    assert len(sent(h)) == 72 + (1 << 20)


# -- completions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMINGS)
def test_completions(framing: Framing) -> None:
    h = ready_host(framing)
    for cid in range(5):
        h.send_command(cid, sqe())
    # the phase bit is not part of the status
    stream = [framing.response(cid, 0x8000 | cid << 1 | 1, sqhd=cid + 1, dw0=cid, dw1=0xFFFFFFFF) for cid in (3, 0, 4)]
    [event] = feed(h, b"".join(stream))
    assert event == Completions([(cid, 0x8000 | cid << 1, cid, 0xFFFFFFFF) for cid in (3, 0, 4)])
    assert h.outstanding == 2
    assert h.sqhd == 5


def test_a_cid_is_free_again() -> None:
    h = ready_host()
    for _ in range(3):
        h.send_command(9, sqe())
        assert feed(h, PLAIN.response(9)) == [Completions([(9, 0, 0, 0)])]


@pytest.mark.parametrize("cid", [0, 2, 0xFFFF])
def test_completion_of_an_unknown_cid(cid: int) -> None:
    h = ready_host()
    h.send_command(1, sqe())
    events = feed(h, PLAIN.response(1) + PLAIN.response(cid))
    assert events[0] == Completions([(1, 0, 0, 0)])
    assert failure(events) == (1, 20)
    assert sent(h)[72:] == term_req(2, 1, 20, PLAIN.response(cid))


def test_a_second_completion() -> None:
    h = ready_host()
    h.send_command(1, sqe())
    assert failure(feed(h, PLAIN.response(1) * 2)) == (1, 20)


@pytest.mark.parametrize("bad", [0, 1, 4])
def test_header_digest_of_a_completion(bad: int) -> None:
    h = ready_host(BOTH)
    for cid in range(5):
        h.send_command(cid, sqe())
    stream = bytearray(b"".join(BOTH.response(cid) for cid in range(5)))
    stream[bad * 28 + 24 : bad * 28 + 28] = b"\x01\x02\x03\x04"
    events = feed(h, bytes(stream))
    assert [e for event in events if isinstance(event, Completions) for e in event.entries] == [
        (cid, 0, 0, 0) for cid in range(bad)
    ]
    assert failure(events) == (3, 0x04030201)


# -- data in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("success", [True, False])
@pytest.mark.parametrize("size", [1, 4096, 32768, 100_000])
def test_read(framing: Framing, success: bool, size: int) -> None:
    h = ready_host(framing)
    into = bytearray(size)
    h.send_command(5, sqe(), data_in=memoryview(into))
    data = bytes(i * 11 & 0xFF for i in range(size))
    stream = framing.c2h(5, 0, data, LAST | SUCCESS) if success else framing.c2h(5, 0, data) + framing.response(5)
    assert feed(h, stream, 5000) == [Completions([(5, 0, 0, 0)])]
    assert into == data
    assert h.outstanding == 0
    assert h.large_expected == 0


@pytest.mark.parametrize("framing", FRAMINGS)
def test_several_c2h_data_interleaved_between_commands(framing: Framing) -> None:
    h = ready_host(framing)
    a, b = bytearray(1000), bytearray(40_000)
    h.send_command(1, sqe(), data_in=memoryview(a))
    h.send_command(2, sqe(), data_in=memoryview(b))
    stream = [
        framing.c2h(2, 0, b"b" * 10_000, 0),
        framing.c2h(1, 0, b"a" * 500, 0),
        framing.c2h(2, 10_000, b"b" * 29_999, 0),
        framing.c2h(1, 500, b"a" * 500, LAST | SUCCESS),
        framing.c2h(2, 39_999, b"b", LAST),
        framing.response(2),
    ]
    events = feed(h, b"".join(stream))
    assert [entry for event in events for entry in event.entries] == [(1, 0, 0, 0), (2, 0, 0, 0)]
    assert (bytes(a), bytes(b)) == (b"a" * 1000, b"b" * 40_000)


@pytest.mark.parametrize("flags", [LAST, LAST | SUCCESS])
def test_a_requested_alignment_is_used(flags: int) -> None:
    h = ready_host(Framing(pda=128))
    h.send_command(1, sqe(), data_in=memoryview(bytearray(64)))
    assert failure(feed(h, PLAIN.c2h(1, 0, bytes(64), flags))) == (1, 3)


def test_success_flags_in_one_receive_are_one_event() -> None:
    h = ready_host()
    for cid in range(3):
        h.send_command(cid, sqe(), data_in=memoryview(bytearray(16)))
    events = feed(h, b"".join(PLAIN.c2h(cid, 0, bytes(16), LAST | SUCCESS) for cid in range(3)))
    assert events == [Completions([(cid, 0, 0, 0) for cid in range(3)])]


def test_a_large_read_is_received_in_place() -> None:
    h = ready_host()
    into = memoryview(bytearray(65536))
    h.send_command(1, sqe(), data_in=into)
    assert len(h.next_buffer()) == 512
    feed(h, PLAIN.c2h(1, 0, bytes(65536))[:4096])
    assert h.next_buffer().obj is into.obj
    assert len(h.next_buffer()) == 65536 - 4096 + 24


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("success", [True, False])
@pytest.mark.parametrize("size", [64, 100_000])
def test_a_wrong_data_digest_fails_its_command_only(broken: int, success: bool, size: int) -> None:
    h = ready_host(BOTH)
    for cid in (1, 2):
        h.send_command(cid, sqe(), data_in=memoryview(bytearray(size)))
    half = size // 2
    parts = [BOTH.c2h(1, 0, bytes(half), 0), BOTH.c2h(1, half, bytes(half), LAST | (SUCCESS if success else 0))]
    parts[broken] = parts[broken][:-1] + bytes([parts[broken][-1] ^ 1])
    events = feed(h, b"".join(parts) + (b"" if success else BOTH.response(1)))
    assert events == [Completions([(1, TRANSIENT, 0, 0)])]
    assert feed(h, BOTH.c2h(2, 0, bytes(size), LAST | SUCCESS)) == [Completions([(2, 0, 0, 0)])]


def test_success_without_all_of_the_data_is_no_success() -> None:
    h = ready_host()
    h.send_command(1, sqe(), data_in=memoryview(bytearray(64)))
    [event] = feed(h, PLAIN.c2h(1, 0, bytes(32)) + PLAIN.response(1))
    assert event == Completions([(1, Status.DATA_TRANSFER_ERROR << 1, 0, 0)])
    h.send_command(1, sqe(), data_in=memoryview(bytearray(64)))
    assert feed(h, PLAIN.response(1, 0x4004)) == [Completions([(1, 0x4004, 0, 0)])]


@pytest.mark.parametrize(
    ("name", "stream", "expected"),
    [
        ("unknown CID", PLAIN.c2h(9, 0, bytes(8)), (1, 8)),
        ("a command without data", PLAIN.c2h(2, 0, bytes(8)), (4, 0)),
        ("beyond the buffer", PLAIN.c2h(1, 0, bytes(65)), (4, 0)),
        ("offset beyond", PLAIN.c2h(1, 0xFFFFFFFF, bytes(8)), (4, 0)),
        ("not from the start", PLAIN.c2h(1, 8, bytes(8)), (2, 0)),
        ("again the same", PLAIN.c2h(1, 0, bytes(8), 0) * 2, (2, 0)),
        ("after LAST_PDU", PLAIN.c2h(1, 0, bytes(8)) + PLAIN.c2h(1, 8, bytes(8)), (2, 0)),
        ("SUCCESS without LAST_PDU", PLAIN.c2h(1, 0, bytes(64), SUCCESS), (1, 1)),
        ("after its end", PLAIN.c2h(1, 0, bytes(64), LAST | SUCCESS) + PLAIN.c2h(1, 0, b"x"), (1, 8)),
        ("DATAL lies", PLAIN.c2h(1, 0, bytes(64))[:16] + b"\x20" + bytes(71), (1, 16)),
        ("PLEN huge", PLAIN.c2h(1, 0, bytes(64))[:4] + b"\xff" * 4 + bytes(64), (1, 16)),
        ("PLEN 0, for data and its end", PLAIN.c2h(1, 0, bytes(64), LAST | SUCCESS)[:4] + bytes(180), (1, 4)),
        ("PLEN 0, a response follows", PLAIN.c2h(1, 0, bytes(64), LAST)[:4] + bytes(180), (1, 4)),
        ("PLEN below its header", PLAIN.c2h(1, 0, bytes(64), LAST)[:4] + b"\x17" + bytes(179), (1, 4)),
        ("PLEN without data", PLAIN.c2h(1, 0, bytes(64), LAST | SUCCESS)[:4] + b"\x18" + bytes(179), (1, 4)),
    ],
)
def test_wrong_c2h_data(name: str, stream: bytes, expected: tuple[int, int]) -> None:
    h = ready_host()
    h.send_command(1, sqe(), data_in=memoryview(bytearray(64)))
    h.send_command(2, sqe())
    sent(h)
    assert failure(feed(h, stream)) == expected
    assert sent(h)[:14] == term_req(2, *expected, data=stream[:24])[:14]
    assert h.state is State.CLOSED
    assert h.outstanding == 0


# -- data out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("cpda", [0, 31])
@pytest.mark.parametrize("size", [1, 4096, 4097, 8192, 50_000])
def test_r2t_is_answered_in_parts_of_maxh2cdata(framing: Framing, cpda: int, size: int) -> None:
    h = ready_host(framing, cpda=cpda, maxh2cdata=4096)
    out = Framing(framing.header_digest, framing.data_digest, 4 * (cpda + 1))
    data = bytes(i * 13 & 0xFF for i in range(size))
    h.send_command(5, sqe(WRITE), data, in_capsule=False)
    sent(h)
    assert feed(h, framing.r2t(5, 0xBEEF, 0, size)) == []
    expected = [out.h2c(5, 0xBEEF, at, data[at : at + 4096], last=at + 4096 >= size) for at in range(0, size, 4096)]
    assert sent(h) == b"".join(expected)
    assert feed(h, framing.response(5)) == [Completions([(5, 0, 0, 0)])]


def test_several_r2ts() -> None:
    h = ready_host(maxr2t=3)
    data = bytes(range(100))
    h.send_command(5, sqe(WRITE), data, in_capsule=False)
    sent(h)
    feed(h, PLAIN.r2t(5, 1, 0, 10) + PLAIN.r2t(5, 2, 10, 30) + PLAIN.r2t(5, 3, 40, 60))
    assert sent(h) == PLAIN.h2c(5, 1, 0, data[:10]) + PLAIN.h2c(5, 2, 10, data[10:40]) + PLAIN.h2c(5, 3, 40, data[40:])


@pytest.mark.parametrize("maxr2t", [1, 3])
@pytest.mark.parametrize("framing", [PLAIN, BOTH])
def test_r2t_limit(maxr2t: int, framing: Framing) -> None:
    h = ready_host(framing, maxr2t=maxr2t)
    h.send_command(5, sqe(WRITE), bytes(100), in_capsule=False)
    sent(h)
    feed(h, b"".join(framing.r2t(5, i, 4 * i, 4) for i in range(maxr2t)))
    assert failure(feed(h, framing.r2t(5, 9, 4 * maxr2t, 4))) == (5, 0)


def test_an_answered_r2t_no_longer_counts() -> None:
    h = ready_host(maxr2t=2)
    h.send_command(5, sqe(WRITE), bytes(100), in_capsule=False)
    sent(h)
    feed(h, PLAIN.r2t(5, 0, 0, 4) + PLAIN.r2t(5, 1, 4, 4))
    sent(h, 27)  # all but the last byte of the first
    sent(h, 1)
    feed(h, PLAIN.r2t(5, 0, 8, 4))
    assert failure(feed(h, PLAIN.r2t(5, 3, 12, 4))) == (5, 0)


@pytest.mark.parametrize(
    ("name", "stream", "expected"),
    [
        ("unknown CID", PLAIN.r2t(9, 0, 0, 8), (1, 8)),
        ("a command without data", PLAIN.r2t(2, 0, 0, 8), (4, 0)),
        ("a command whose data was in its capsule", PLAIN.r2t(3, 0, 0, 8), (4, 0)),
        ("beyond the data", PLAIN.r2t(1, 0, 0, 65), (4, 0)),
        ("offset beyond", PLAIN.r2t(1, 0, 0xFFFFFFFF, 8), (4, 0)),
        ("not from the start", PLAIN.r2t(1, 0, 8, 8), (2, 0)),
        ("the same again", PLAIN.r2t(1, 0, 0, 8) * 2, (2, 0)),
        ("no bytes", PLAIN.r2t(1, 0, 0, 0), (1, 16)),
    ],
)
def test_wrong_r2t(name: str, stream: bytes, expected: tuple[int, int]) -> None:
    h = ready_host(maxr2t=4)
    h.send_command(1, sqe(WRITE), bytes(64), in_capsule=False)
    h.send_command(2, sqe())
    h.send_command(3, sqe(WRITE), bytes(64))
    sent(h)
    events = feed(h, stream)
    assert failure(events) == expected
    assert list(split(sent(h)))[-1] == term_req(2, *expected, data=stream[-24:])


def test_a_host_reads_on_however_much_it_has_to_send() -> None:
    """Both ends may have more to send than the sockets take; if both stopped reading, neither would go on."""
    h = ready_host(maxh2cdata=1 << 20)
    data = bytes(20 << 20)
    h.send_command(1, sqe(WRITE), data)
    feed(h, PLAIN.r2t(1, 0, 0, len(data)))
    assert h.backlog_bytes > 20 << 20
    assert h.want_read


@pytest.mark.parametrize("framing", [PLAIN, BOTH])
def test_an_early_completion_releases_the_callers_buffer(framing: Framing) -> None:
    """A controller may end a command before it has all the data; requested data is still sent unchanged."""
    h = ready_host(framing, maxh2cdata=4096)
    data = bytearray(b"x" * 10_000)
    h.send_command(1, sqe(WRITE), data, in_capsule=False)
    sent(h)
    feed(h, framing.r2t(1, 0, 0, 10_000))
    begun = sent(h, 100)
    assert feed(h, framing.response(1, 0x4004)) == [Completions([(1, 0x4004, 0, 0)])]
    data[:] = bytes(10_000)
    stream = b"".join(framing.h2c(1, 0, at, b"x" * min(4096, 10_000 - at), at == 8192) for at in (0, 4096, 8192))
    assert begun + sent(h) == stream
    data.extend(b"not exported any more")


@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_close_releases_all_buffers(opcode: int) -> None:
    h = ready_host()
    buffer = bytearray(100_000)
    if opcode == READ:
        h.send_command(1, sqe(), data_in=memoryview(buffer))
        feed(h, PLAIN.c2h(1, 0, bytes(100_000))[:10_000])
    else:
        h.send_command(1, sqe(WRITE), buffer)
        feed(h, PLAIN.r2t(1, 0, 0, 100_000))
        sent(h, 5000)
    h.close()
    assert h.outstanding == 0
    buffer.extend(b"not exported any more")


# -- buffers released early ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [PLAIN, BOTH])
@pytest.mark.parametrize("size", [4096, 100_000])
@pytest.mark.parametrize("cut", [0, 10, 24, 28, 500, 4000])
def test_a_read_whose_buffer_is_released_goes_on_elsewhere(framing: Framing, size: int, cut: int) -> None:
    h = ready_host(framing)
    into = bytearray(size)
    h.send_command(7, sqe(), data_in=memoryview(into))
    sent(h)
    stream = framing.c2h(7, 0, b"\xaa" * size) + framing.response(7)
    feed(h, stream[:cut])
    h.give_back(7)
    into[:] = b"\x55" * size
    [completions] = feed(h, stream[cut:])
    assert completions == Completions([(7, 0, 0, 0)])
    assert into == b"\x55" * size
    h.give_back(7)  # the command has ended: nothing happens


@pytest.mark.parametrize("framing", [PLAIN, BOTH])
@pytest.mark.parametrize("gone", [0, 30, 5000])
def test_a_write_whose_buffer_is_released_sends_the_data_before(framing: Framing, gone: int) -> None:
    def stream(given_back: bool) -> bytes:
        h = ready_host(framing, maxh2cdata=4096)
        data = bytearray(b"\xaa" * 20000)
        h.send_command(3, sqe(WRITE), data)
        out = sent(h)
        feed(h, framing.r2t(3, 1, 0, 8192))
        out += sent(h, gone)
        if given_back:
            h.give_back(3, data)
            data[:] = bytes(20000)
        out += sent(h)
        feed(h, framing.r2t(3, 2, 8192, 20000 - 8192))
        return out + sent(h)

    assert stream(True) == stream(False)


@pytest.mark.parametrize("framing", [PLAIN, BOTH])
def test_capsule_data_that_is_released_before_it_is_sent(framing: Framing) -> None:
    h = ready_host(framing, incapsule_bytes=8192)
    data = bytearray(b"\xaa" * 4096)
    h.send_command(3, sqe(WRITE), data)
    h.give_back(3, data)
    data[:] = bytes(4096)
    assert b"\xaa" * 4096 in sent(h)
