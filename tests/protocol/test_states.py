"""Every state with every input: a legal input has its effect, any other is an error of its sender."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.protocol.connection import Connection, ConnectionConfig, HostConnection, State, TargetConnection
from nvmeof.protocol.events import CommandBatch, Completions, PeerClosed, ProtocolFailure, Ready, Terminated
from nvmeof.protocol.states import RECEIVED, TRANSITIONS, Effect, Input, diagram

from .wire import SUCCESS, WRITE, Framing, feed, icreq, icresp, ready_host, ready_target, sent, sqe, term_req

PLAIN = Framing()


def host_new() -> Connection:
    return HostConnection(ConnectionConfig())


def host_wait() -> Connection:
    connection = host_new()
    connection.start()
    sent(connection)
    return connection


def host_ready() -> Connection:
    """Return a host with two outstanding commands: 1 reads 64 bytes, 2 writes 64."""
    connection = ready_host()
    connection.send_command(1, sqe(), data_in=memoryview(bytearray(64)))
    connection.send_command(2, sqe(WRITE), bytes(range(64)), in_capsule=False)
    sent(connection)
    return connection


def target_wait() -> Connection:
    return TargetConnection(ConnectionConfig())


def target_ready() -> Connection:
    """Return a target with command 1, which has asked for 64 bytes under TTAG 0."""
    connection = ready_target()
    feed(connection, PLAIN.command(1, WRITE, 64))
    connection.request_data(1, memoryview(bytearray(64)), None)
    sent(connection)
    return connection


def terminating(role: Callable[[], Connection]) -> Callable[[], Connection]:
    def make() -> Connection:
        connection = role()
        connection.terminate(1)
        return connection

    return make


def closed(role: Callable[[], Connection]) -> Callable[[], Connection]:
    def make() -> Connection:
        connection = role()
        connection.close()
        return connection

    return make


MAKE: list[tuple[State, Callable[[], Connection]]] = [
    (State.HOST_NEW, host_new),
    (State.HOST_WAIT_ICRESP, host_wait),
    (State.HOST_READY, host_ready),
    (State.TARGET_WAIT_ICREQ, target_wait),
    (State.TARGET_READY, target_ready),
    (State.TERMINATING, terminating(host_ready)),
    (State.TERMINATING, terminating(target_ready)),
    (State.CLOSED, closed(host_ready)),
    (State.CLOSED, closed(target_ready)),
]

PDUS: dict[Input, bytes] = {
    Input.ICREQ: icreq(),
    Input.ICRESP: icresp(),
    Input.CAPSULE_CMD: PLAIN.command(5),
    Input.CAPSULE_RESP: PLAIN.response(1, 0x4004),
    Input.H2C_DATA: PLAIN.h2c(1, 0, 0, bytes(64)),
    Input.C2H_DATA: PLAIN.c2h(1, 0, b"\x01" * 64, 4 | SUCCESS),
    Input.R2T: PLAIN.r2t(2, 9, 0, 64),
    Input.H2C_TERM_REQ: term_req(2, 4),
    Input.C2H_TERM_REQ: term_req(3, 4),
}

LEGAL: dict[State, dict[Input, State]] = {
    State.HOST_NEW: {Input.START: State.HOST_WAIT_ICRESP},
    State.HOST_WAIT_ICRESP: {Input.ICRESP: State.HOST_READY, Input.C2H_TERM_REQ: State.CLOSED},
    State.HOST_READY: {
        Input.CAPSULE_RESP: State.HOST_READY,
        Input.C2H_DATA: State.HOST_READY,
        Input.R2T: State.HOST_READY,
        Input.C2H_TERM_REQ: State.CLOSED,
    },
    State.TARGET_WAIT_ICREQ: {Input.ICREQ: State.TARGET_READY, Input.H2C_TERM_REQ: State.CLOSED},
    State.TARGET_READY: {
        Input.CAPSULE_CMD: State.TARGET_READY,
        Input.H2C_DATA: State.TARGET_READY,
        Input.H2C_TERM_REQ: State.CLOSED,
    },
    State.TERMINATING: {},
    State.CLOSED: {},
}
OVER = (State.TERMINATING, State.CLOSED)


def test_the_matrix_is_whole() -> None:
    assert set(TRANSITIONS) == set(LEGAL) == {state for state, _ in MAKE} == set(State)
    assert set(PDUS) == set(RECEIVED.values())
    assert set(Input) == set(PDUS) | {
        Input.START, Input.PEER_ERROR, Input.TERMINATE, Input.EOF, Input.FLUSHED, Input.CLOSE,
    }  # fmt: skip


@pytest.mark.parametrize("happened", PDUS)
@pytest.mark.parametrize(("state", "make"), MAKE)
def test_pdu(state: State, make: Callable[[], Connection], happened: Input) -> None:
    connection = make()
    assert connection.state is state
    queued = connection.backlog_bytes
    events = feed(connection, PDUS[happened])
    if state in OVER:
        assert events == []
        assert connection.state is state
        assert connection.backlog_bytes == queued
    elif happened in LEGAL[state]:
        assert connection.state is LEGAL[state][happened]
        _check_effect(happened, connection, events)
    else:
        [failure] = events
        assert isinstance(failure, ProtocolFailure)
        assert (failure.error.fes, failure.error.fei) == (2, 0)
        assert connection.state is State.TERMINATING
        reply = sent(connection)
        assert reply[0] == (2 if isinstance(connection, HostConnection) else 3)
        assert connection.state is State.CLOSED  # type: ignore[comparison-overlap]


def _check_effect(happened: Input, connection: Connection, events: list) -> None:  # type: ignore[type-arg]
    if happened is Input.ICREQ:
        assert isinstance(events[0], Ready)
        assert sent(connection)[0] == 1
    elif happened is Input.ICRESP:
        assert isinstance(events[0], Ready)
        assert not connection.want_write
    elif happened is Input.CAPSULE_CMD:
        assert isinstance(events[0], CommandBatch)
        assert connection.in_flight == 2
    elif happened is Input.CAPSULE_RESP:
        assert events == [Completions([(1, 0x4004, 0, 0)])]
    elif happened is Input.H2C_DATA:
        assert events[0].cid == 1
        assert connection.asked_bytes == 0
    elif happened is Input.C2H_DATA:
        assert events == [Completions([(1, 0, 0, 0)])]
    elif happened is Input.R2T:
        assert events == []
        assert sent(connection) == PLAIN.h2c(2, 9, 0, bytes(range(64)))
    else:
        assert events == [Terminated(4, 0, b"")]
        assert not connection.want_read
        assert not connection.want_write


@pytest.mark.parametrize(("state", "make"), MAKE)
def test_start(state: State, make: Callable[[], Connection]) -> None:
    connection = make()
    if not isinstance(connection, HostConnection):
        assert not hasattr(connection, "start")
        return
    if state is State.HOST_NEW:
        connection.start()
        assert connection.state is State.HOST_WAIT_ICRESP
        assert sent(connection) == icreq()
    else:
        with pytest.raises(LocalProtocolError):
            connection.start()
        assert connection.state is state


@pytest.mark.parametrize(("state", "make"), MAKE)
def test_peer_error(state: State, make: Callable[[], Connection]) -> None:
    connection = make()
    events = feed(connection, b"\x0a" * 8)
    if state in OVER:
        assert events == []
        assert connection.state is state
    else:
        [failure] = events
        assert isinstance(failure, ProtocolFailure)
        assert (failure.error.fes, failure.error.fei) == (1, 0)
        assert connection.state is State.TERMINATING
        assert sent(connection)[-32:] == term_req(2 if isinstance(connection, HostConnection) else 3, 1, 0, b"\x0a" * 8)


@pytest.mark.parametrize(("state", "make"), MAKE)
def test_terminate(state: State, make: Callable[[], Connection]) -> None:
    connection = make()
    if state is State.CLOSED:
        with pytest.raises(LocalProtocolError):
            connection.terminate(4)
        return
    connection.terminate(4)
    kind = 2 if isinstance(connection, HostConnection) else 3
    assert connection.state is State.TERMINATING
    # one TermReq only, the first
    assert sent(connection) == term_req(kind, 1 if state is State.TERMINATING else 4)
    assert connection.state is State.CLOSED  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(("state", "make"), MAKE)
def test_eof(state: State, make: Callable[[], Connection]) -> None:
    connection = make()
    assert connection.eof_received() == ([] if state is State.CLOSED else [PeerClosed()])
    assert connection.state is State.CLOSED
    assert not connection.want_read
    assert not connection.want_write
    assert connection.data_to_send() == []
    assert connection.eof_received() == []


@pytest.mark.parametrize(("state", "make"), MAKE)
def test_flushed(state: State, make: Callable[[], Connection]) -> None:
    """Only the flush of a TermReq closes; all else may be flushed without consequence."""
    connection = make()
    sent(connection)
    connection.bytes_sent(0)
    assert connection.state is (State.CLOSED if state is State.TERMINATING else state)


@pytest.mark.parametrize(("state", "make"), MAKE)
def test_close(state: State, make: Callable[[], Connection]) -> None:
    connection = make()
    connection.close()
    connection.close()
    assert connection.state is State.CLOSED
    assert (connection.want_read, connection.want_write) == (False, False)


@pytest.mark.parametrize(("state", "make"), MAKE)
def test_sending_a_command(state: State, make: Callable[[], Connection]) -> None:
    connection = make()
    if not isinstance(connection, HostConnection):
        assert not hasattr(connection, "send_command")
        return
    if state is State.HOST_READY:
        connection.send_command(7, sqe())
        assert sent(connection) == PLAIN.pdu(4, 0, sqe()[:1] + b"\x40\x07\0" + bytes(35) + b"\x5a" + bytes(24))
    else:
        with pytest.raises(LocalProtocolError):
            connection.send_command(7, sqe())


@pytest.mark.parametrize(("state", "make"), MAKE)
def test_asking_for_data(state: State, make: Callable[[], Connection]) -> None:
    connection = make()
    if not isinstance(connection, TargetConnection):
        assert not hasattr(connection, "request_data")
        return
    sent(connection) if state is not State.TERMINATING else None
    queued = connection.backlog_bytes
    if state is State.TARGET_READY:
        connection.request_data(7, memoryview(bytearray(8)), None)
        assert sent(connection) == PLAIN.r2t(7, 1, 0, 8)
    elif state in OVER:
        # the command may have come in the same receive as the PDU that ended the connection
        connection.request_data(7, memoryview(bytearray(8)), None)
        assert connection.backlog_bytes == queued
    else:
        with pytest.raises(LocalProtocolError):
            connection.request_data(7, memoryview(bytearray(8)), None)


def test_every_effect_and_input_is_used() -> None:
    used = {effect for row in TRANSITIONS.values() for effect, _ in row.values()}
    assert used == set(Effect)
    assert {happened for row in TRANSITIONS.values() for happened in row} == set(Input)


def test_roles_never_meet() -> None:
    """No transition leads from one role's states to the other's."""
    for state, row in TRANSITIONS.items():
        for _, after in row.values():
            assert state in OVER or after in OVER or state.name.split("_")[0] == after.name.split("_")[0]


def test_diagram_names_every_state() -> None:
    text = diagram()
    assert text.startswith("stateDiagram-v2\n")
    assert all(state.name in text for state in State)
    assert "HOST_WAIT_ICRESP --> HOST_READY: ICResp received" in text
    assert "TERMINATING --> CLOSED: TermReq taken by the socket, end of stream, close" in text
