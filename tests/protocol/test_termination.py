"""TermReqs in both directions, the end of the stream at every byte, and what is left afterwards."""

from __future__ import annotations

import pytest

from nvmeof.protocol.connection import Connection, State
from nvmeof.protocol.events import CommandBatch, PeerClosed, ProtocolFailure, Terminated

from .wire import (
    LAST,
    SUCCESS,
    WRITE,
    Framing,
    commands,
    feed,
    ready_host,
    ready_target,
    sent,
    sqe,
    term_req,
    unfinished,
)

PLAIN, BOTH = Framing(), Framing(True, True)


@pytest.mark.parametrize("framing", [PLAIN, BOTH])
@pytest.mark.parametrize("length", [0, 24, 128])
def test_a_term_req_from_the_peer(framing: Framing, length: int) -> None:
    data = bytes(range(length))
    for connection, kind in ((ready_target(framing), 2), (ready_host(framing), 3)):
        [event] = feed(connection, term_req(kind, 6, 0x01020304, data), 10)
        assert event == Terminated(6, 0x01020304, data)
        assert connection.state is State.CLOSED
        assert not connection.want_read


def test_nothing_after_a_term_req_counts() -> None:
    t = ready_target()
    events = feed(t, PLAIN.command(1) + term_req(2, 2) + PLAIN.command(2) + b"\xff" * 100)
    assert commands(events[:1]) == [1]
    assert events[1:] == [Terminated(2, 0, b"")]


def test_a_term_req_of_the_wrong_direction_is_a_sequence_error() -> None:
    [event] = feed(ready_target(), term_req(3, 2))
    assert isinstance(event, ProtocolFailure)
    assert event.error.fes == 2
    [event] = feed(ready_host(), term_req(2, 2))
    assert isinstance(event, ProtocolFailure)


@pytest.mark.parametrize("framing", [PLAIN, BOTH])
def test_queued_output_precedes_our_term_req(framing: Framing) -> None:
    t = ready_target(framing)
    feed(t, framing.command(1) + framing.command(2))
    t.send_read(1, b"x" * 100)
    begun = sent(t, 50)
    events = feed(t, b"\x0a" * 40)
    assert isinstance(events[-1], ProtocolFailure)
    expected = framing.c2h(1, 0, b"x" * 100) + framing.response(1, sqhd=2) + term_req(3, 1, 0, b"\x0a" * 10)
    assert t.state is State.TERMINATING
    assert begun + sent(t) == expected
    assert t.state is State.CLOSED  # type: ignore[comparison-overlap]


def test_the_header_in_error_has_the_received_bytes_and_at_most_128() -> None:
    t = ready_target()
    feed(t, bytes([4, 0, 200, 0, 0, 0, 0, 0]) + bytes(range(200)))
    assert sent(t) == term_req(3, 1, 2, (bytes([4, 0, 200, 0, 0, 0, 0, 0]) + bytes(range(200)))[:128])
    t = ready_target()
    feed(t, bytes([4, 0, 200, 0, 0, 0, 0, 0, 1, 2]), 9)
    assert sent(t) == term_req(3, 1, 2, bytes([4, 0, 200, 0, 0, 0, 0, 0, 1]))


def test_commands_before_the_broken_pdu_come_in_the_same_list() -> None:
    """Their handling must not fail although the connection no longer serves them."""
    t = ready_target()
    batch, failure = feed(t, PLAIN.command(1, WRITE, 100) + PLAIN.command(2) + b"\xff" * 8)
    assert isinstance(batch, CommandBatch)
    assert isinstance(failure, ProtocolFailure)
    t.request_data(1, memoryview(bytearray(100)), None)
    t.send_read(2, bytes(100))
    t.set_queue(3, 8, flow_control=False)
    assert sent(t) == term_req(3, 1, 0, b"\xff" * 8)


def test_bytes_after_our_term_req_are_discarded() -> None:
    t = ready_target()
    t.terminate(1)
    assert feed(t, PLAIN.command(1) * 1000 + b"\xff" * 100_000, 4096) == []
    assert t.want_read
    assert t.in_flight == 0


def test_terminate_in_the_middle_of_a_payload() -> None:
    buffer = bytearray(100_000)
    t = ready_target()
    feed(t, PLAIN.command(1, WRITE, 100_000))
    t.request_data(1, memoryview(buffer), None)
    feed(t, PLAIN.h2c(1, 0, 0, b"x" * 100_000)[:5000])
    place = t.next_buffer()
    assert place.obj is buffer
    t.terminate(1)
    place[:10] = b"y" * 10
    assert t.bytes_received(10, 0.0) == []
    assert feed(t, b"x" * 50_000) == []
    assert buffer[4986:] == bytes(100_000 - 4986)
    sent(t)
    assert t.state is State.CLOSED


def target_streams() -> tuple[Connection, bytes]:
    t = ready_target(BOTH)
    feed(t, BOTH.command(1, WRITE, 40_000))
    t.request_data(1, memoryview(bytearray(40_000)), None)
    sent(t)
    return t, BOTH.command(2) + BOTH.command(3, WRITE, data=b"x" * 200) + BOTH.h2c(1, 0, 0, bytes(40_000))


def host_streams() -> tuple[Connection, bytes]:
    h = ready_host(BOTH)
    h.send_command(1, sqe(), data_in=memoryview(bytearray(40_000)))
    h.send_command(2, sqe(WRITE), bytes(64), in_capsule=False)
    h.send_command(3, sqe())
    sent(h)
    return h, BOTH.r2t(2, 0, 0, 64) + BOTH.response(3) + BOTH.c2h(1, 0, bytes(40_000), LAST | SUCCESS)


@pytest.mark.parametrize("make", [target_streams, host_streams])
def test_end_of_stream_at_every_byte_of_a_header(make: object) -> None:
    _, stream = make()  # type: ignore[operator]
    for cut in [*range(500), *range(500, len(stream), 997), len(stream) - 4, len(stream) - 1, len(stream)]:
        connection, _ = make()  # type: ignore[operator]
        before = feed(connection, stream[:cut])
        assert not any(isinstance(event, ProtocolFailure | PeerClosed) for event in before)
        assert connection.eof_received() == [PeerClosed()]
        assert connection.state is State.CLOSED
        assert (connection.want_read, connection.want_write) == (False, False)
        assert not unfinished(connection)
        assert connection._payload is None


def test_end_of_stream_while_we_terminate() -> None:
    t = ready_target()
    t.terminate(1)
    assert t.eof_received() == [PeerClosed()]
    assert not t.want_write
