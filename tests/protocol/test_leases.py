"""The owner of a buffer, and until when: sending from live memory, digests, release callbacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.protocol.connection import Connection
from nvmeof.protocol.output import SEND_WINDOW_BYTES, Output
from nvmeof.wire import Buffer

from .wire import LAST, SUCCESS, Framing, Released, crc, feed, ready_target, sent, split

PLAIN, DATA = Framing(), Framing(False, True)
SIZE = 4096


def reading(framing: Framing, commands: int = 4) -> Connection:
    """Return a target without flow control that has received some commands."""
    t = ready_target(framing, flow_control=False)
    t._announce_disabled = False
    feed(t, b"".join(framing.command(cid) for cid in range(commands)))
    return t


@pytest.mark.parametrize("cut", [25, 1000, 24 + SIZE - 1])
def test_the_rest_of_a_partly_taken_payload_does_not_change(cut: int) -> None:
    t = reading(PLAIN)
    memory = bytearray(b"a" * SIZE)
    t.send_read(0, memoryview(memory))
    t.send_read(1, memoryview(memory))
    first = sent(t, cut)
    memory[:] = b"b" * SIZE
    assert first + sent(t) == PLAIN.c2h(0, 0, b"a" * SIZE, LAST | SUCCESS) + PLAIN.c2h(
        1, 0, b"b" * SIZE, LAST | SUCCESS
    )


@pytest.mark.parametrize("cut", [0, 10, 24])
def test_a_payload_that_is_not_begun_is_live(cut: int) -> None:
    t = reading(PLAIN)
    memory = bytearray(b"a" * SIZE)
    t.send_read(0, memoryview(memory))
    first = sent(t, cut)
    memory[:] = b"b" * SIZE
    assert first + sent(t) == PLAIN.c2h(0, 0, b"b" * SIZE, LAST | SUCCESS)


@pytest.mark.parametrize("kind", [memoryview, lambda memory: memory], ids=["view", "bytearray"])
@pytest.mark.parametrize("cut", [0, 10, 24, 1000, 24 + SIZE, 24 + SIZE + 3, 24 + SIZE + 4])
def test_data_does_not_change_once_its_digest_is_computed(cut: int, kind: type[Buffer]) -> None:
    t = reading(DATA)
    memory = bytearray(b"a" * SIZE)
    t.send_read(0, kind(memory))
    t.send_read(1, kind(memory))
    t.data_to_send()
    t.bytes_sent(0)  # the socket was full after all
    memory[:] = b"b" * SIZE
    first = sent(t, cut)
    memory[:] = b"c" * SIZE
    assert first + sent(t) == DATA.c2h(0, 0, b"a" * SIZE, LAST | SUCCESS) + DATA.c2h(1, 0, b"a" * SIZE, LAST | SUCCESS)


def test_digests_are_computed_when_the_socket_is_ready() -> None:
    t = reading(DATA)
    memory = bytearray(b"a" * SIZE)
    t.send_read(0, memoryview(memory))
    memory[:] = b"b" * SIZE
    assert sent(t) == DATA.c2h(0, 0, b"b" * SIZE, LAST | SUCCESS)


def test_digests_are_computed_only_over_data_that_is_sent_next() -> None:
    t = reading(DATA)
    memory = bytearray(SEND_WINDOW_BYTES)
    for cid in range(4):
        t.send_read(cid, memoryview(memory))
    assert sum(map(len, t.data_to_send())) == 24 + SEND_WINDOW_BYTES + 4
    t.bytes_sent(1)
    memory[:] = b"z" * SEND_WINDOW_BYTES
    pdus = list(split(b"\x07" + sent(t)))
    assert [pdu[24] for pdu in pdus] == [0, *b"zzz"]
    for pdu in pdus:
        assert pdu[-4:] == crc(pdu[24:-4])


def test_stable_memory_is_never_copied() -> None:
    t = reading(DATA)
    data = bytes(SIZE)
    t.send_read(0, data)
    t.send_read(1, memoryview(bytearray(SIZE)), stable=True)
    t.data_to_send()
    t.bytes_sent(0)
    assert t.data_to_send()[1] is data
    assert isinstance(t.data_to_send()[4], memoryview)


# -- releases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [PLAIN, DATA])
@pytest.mark.parametrize("step", [1, 7, 100, 4096, 1 << 20])
def test_release_comes_once_with_the_last_byte(framing: Framing, step: int) -> None:
    t = reading(framing)
    released = Released()
    size = 300
    for cid in range(3):
        t.send_read(cid, bytes(size), release=released.callback(cid))
    whole = 24 + size + (4 if framing.data_digest else 0)
    total = 0
    while t.want_write:
        total += len(sent(t, step))
        assert list(released.counts.values()) == [int(total >= (cid + 1) * whole) for cid in range(3)]
    assert total == 3 * whole


@pytest.mark.parametrize("framing", [PLAIN, DATA])
@pytest.mark.parametrize("taken", [0, 10, 500])
def test_close_releases_once(framing: Framing, taken: int) -> None:
    t = reading(framing)
    released = Released()
    for cid in range(3):
        t.send_read(cid, bytes(300), release=released.callback(cid))
    sent(t, taken)
    t.close()
    t.close()
    assert released.counts == dict.fromkeys(range(3), 1)


@pytest.mark.parametrize("framing", [PLAIN, DATA])
@pytest.mark.parametrize("end", ["eof", "TermReq", "terminate"])
def test_every_end_releases_once(framing: Framing, end: str) -> None:
    t = reading(framing)
    released = Released()
    for cid in range(3):
        t.send_read(cid, bytes(300), release=released.callback(cid))
    sent(t, 400)
    if end == "eof":
        t.eof_received()
    elif end == "TermReq":
        feed(t, framing.__class__().pdu(2, 0, bytes(16)))
    else:
        t.terminate(2)
        assert sent(t)[-24:-22] == b"\x03\0"
    assert released.counts == dict.fromkeys(range(3), 1)


def test_after_the_end_nothing_is_queued_and_everything_is_released() -> None:
    """Slow commands may still complete after the end of the connection."""
    for framing in (PLAIN, DATA):
        for end in ("terminate", "close"):
            t = reading(framing)
            released = Released()
            t.terminate(2) if end == "terminate" else t.close()
            queued = t.backlog_bytes
            t.send_read(0, bytes(10), release=released.callback(0))
            t.send_completion(1)
            t.send_reads([2, 3], [b"x", b"y"], 1)
            t.send_raw(b"raw")
            assert t.backlog_bytes == queued
            assert released.counts == {0: 1}
            assert t.in_flight == 0


def test_closing_from_a_release_callback() -> None:
    t = reading(PLAIN)
    released = Released()
    t.send_read(0, bytes(10), release=t.close)
    for cid in (1, 2):
        t.send_read(cid, bytes(10), release=released.callback(cid))
    sent(t, 102)
    assert released.counts == {1: 1, 2: 1}


# -- the queue alone ----------------------------------------------------------------------------------------------


@given(
    st.booleans(),
    st.lists(st.one_of(st.binary(max_size=20), st.tuples(st.binary(min_size=1, max_size=8), st.binary(max_size=40)))),
    st.lists(st.integers(0, 30), min_size=1),
)
def test_all_bytes_in_order_and_counted(
    digest: bool, items: list[bytes | tuple[bytes, bytes]], cuts: list[int]
) -> None:
    out = Output()
    out.data_digest = digest
    released = Released()
    expected, ends = b"", []
    for index, item in enumerate(items):
        if isinstance(item, bytes):
            out.add(item)
            expected += item
        else:
            out.add_data(item[0], memoryview(bytearray(item[1])), released.callback(index))
            expected += item[0] + item[1] + (crc(item[1]) if digest else b"")
            ends.append((index, len(expected)))
        assert out.end_position == len(expected)
    taken = b""
    turn = 0
    while out.pending_bytes:
        ready = b"".join(map(bytes, out.take()))
        part = ready[: cuts[turn % len(cuts)] or (turn % 2)]
        out.taken(len(part))
        taken += part
        turn += 1
        assert out.sent_bytes == len(taken)
        assert out.pending_bytes == len(expected) - len(taken)
        assert all(released.counts[index] == (len(taken) >= end) for index, end in ends)
    assert taken == expected
    assert not b"".join(map(bytes, out.ready))
