"""Whatever a peer sends, in whatever pieces: no exception is raised, and the connection waits, or has ended for a
reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.protocol.connection import Connection, ConnectionConfig, HostConnection, State, TargetConnection
from nvmeof.protocol.events import CommandBatch, CommandData, ProtocolFailure, Terminated
from nvmeof.protocol.transfers import R2tTransfer
from tests.events import one_by_one

from .wire import (
    LAST,
    SUCCESS,
    WRITE,
    Framing,
    feed,
    icreq,
    icresp,
    ready_host,
    ready_target,
    sent,
    sqe,
    term_req,
    unfinished,
)

FRAMINGS = [Framing(), Framing(True), Framing(False, True), Framing(True, True, 128)]


def new_target(framing: Framing) -> Connection:
    return TargetConnection(ConnectionConfig())


def new_host(framing: Framing) -> Connection:
    h = HostConnection(ConnectionConfig(header_digest=True, data_digest=True))
    h.start()
    sent(h)
    return h


def busy_target(framing: Framing) -> Connection:
    """Return a target with eight commands, some of which wait for data."""
    t = ready_target(framing, entries=16, maxr2t=2, r2t_bytes=3000)
    feed(t, b"".join(framing.command(cid, WRITE, 100) for cid in range(8)))
    for cid, size in ((0, 8), (1, 4000), (2, 40_000), (3, 10_000)):
        t.request_data(cid, memoryview(bytearray(size)), cid)
    sent(t)
    return t


def busy_host(framing: Framing) -> Connection:
    h = ready_host(framing, maxr2t=2)
    for cid, size in ((0, 8), (1, 4000), (2, 40_000)):
        h.send_command(cid, sqe(), data_in=memoryview(bytearray(size)))
    for cid, size in ((3, 8), (4, 4000), (5, 40_000)):
        h.send_command(cid, sqe(WRITE), bytes(size), in_capsule=False)
    h.send_command(6, sqe())
    sent(h)
    return h


MAKE: list[Callable[[Framing], Connection]] = [new_target, new_host, busy_target, busy_host]


def valid(kind: Callable[[Framing], Connection], framing: Framing) -> list[bytes]:
    """Return valid PDUs for the connection, in a valid order."""
    if kind is new_target:
        return [icreq(dgst=3), Framing().command(1), Framing().command(2, WRITE, data=b"x" * 99), term_req(2, 1)]
    if kind is new_host:
        return [icresp(dgst=3), Framing(True, True).r2t(1, 2, 3, 4), term_req(3, 1, 0, bytes(24))]
    if kind is busy_target:
        return [
            framing.h2c(0, 0, 0, bytes(8)),
            framing.command(9),
            framing.h2c(1, 1, 0, bytes(2000), last=False),
            framing.command(10, WRITE, data=bytes(700)),
            framing.h2c(1, 1, 2000, bytes(1000)),
            framing.h2c(1, 2, 3000, bytes(1000)),
            framing.h2c(2, 3, 0, bytes(3000)),
            framing.command(11),
            framing.command(12),
        ]
    return [
        framing.c2h(0, 0, bytes(8), LAST | SUCCESS),
        framing.response(6),
        framing.r2t(4, 9, 0, 4000),
        framing.c2h(1, 0, bytes(3000), 0),
        framing.c2h(2, 0, bytes(40_000)),
        framing.response(2),
        framing.c2h(1, 3000, bytes(1000)),
        framing.response(1),
        framing.response(4),
    ]


def survives(connection: Connection, stream: bytes, steps: random.Random) -> None:
    """Check the invariant: no exception, at most one ending, and no event after an ending."""
    ended: list[Any] = []
    position = 0
    while position < len(stream):
        buffer = connection.next_buffer()
        assert len(buffer)
        count = min(len(buffer), len(stream) - position, steps.choice((1, 2, 30, 1000, 1 << 20)))
        buffer[:count] = stream[position : position + count]
        position += count
        for event in one_by_one(connection.bytes_received(count, 0.0)):
            assert not ended, event
            if isinstance(event, ProtocolFailure | Terminated):
                ended.append(event)
            elif isinstance(event, CommandBatch):
                for index in range(event.count):
                    answer(connection, event.view[index * event.stride + 8 :][:64], steps)
            elif isinstance(event, CommandData):
                answer(connection, event.sqe, steps)
            elif isinstance(event, R2tTransfer):
                connection.send_completion(event.cid)
        if steps.random() < 0.5:
            sent(connection, steps.choice((0, 10, 10_000)))
    if ended and isinstance(ended[0], ProtocolFailure):
        assert connection.state in (State.TERMINATING, State.CLOSED)
        assert 1 <= ended[0].error.fes <= 6
        assert str(ended[0].error)
        sent(connection)
    if ended:
        assert connection.state is State.CLOSED
        assert not unfinished(connection)
    else:
        assert connection.state not in (State.TERMINATING, State.CLOSED)
        assert connection.want_read
        connection.eof_received()
    assert connection.backlog_bytes == 0


def answer(connection: Connection, command: memoryview, steps: random.Random) -> None:
    cid = int.from_bytes(command[2:4], "little")
    kind = steps.randrange(3)
    if kind == 0:
        connection.send_completion(cid, 2)
    elif kind == 1:
        connection.send_read(cid, memoryview(bytearray(steps.choice((1, 512, 5000)))))
    else:
        connection.request_data(cid, memoryview(bytearray(steps.choice((1, 512, 40_000)))), None)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=600), st.sampled_from(FRAMINGS), st.integers(0, 1 << 30))
@pytest.mark.parametrize("make", MAKE)
def test_arbitrary_bytes(make: Callable[[Framing], Connection], stream: bytes, framing: Framing, seed: int) -> None:
    survives(make(framing), stream, random.Random(seed))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(range(10)) * 3 + [255]),
            st.sampled_from([0, 1, 2, 3, 4, 8, 12, 255]),
            st.sampled_from([24, 72, 128, 0, 255]),
            st.sampled_from([0, 24, 28, 72, 76, 128, 255]),
            st.sampled_from([24, 28, 32, 72, 76, 80, 128, 152, 0xFFFFFFFF]),
            st.binary(max_size=160),
        ),
        max_size=8,
    ),
    st.sampled_from(FRAMINGS),
    st.integers(0, 1 << 30),
)
@pytest.mark.parametrize("make", MAKE)
def test_plausible_headers(
    make: Callable[[Framing], Connection],
    headers: list[tuple[int, int, int, int, int, bytes]],
    framing: Framing,
    seed: int,
) -> None:
    stream = b"".join(bytes(h[:4]) + h[4].to_bytes(4, "little") + h[5] for h in headers)
    survives(make(framing), stream, random.Random(seed))


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(FRAMINGS),
    st.lists(
        st.tuples(
            st.sampled_from(["flip", "set", "cut", "double", "drop", "swap", "header"]),
            st.integers(0, 1 << 30),
            st.integers(0, 255),
        ),
        max_size=4,
    ),
    st.integers(0, 1 << 30),
)
@pytest.mark.parametrize("make", MAKE)
def test_mutated_streams(
    make: Callable[[Framing], Connection], framing: Framing, mutations: list[tuple[str, int, int]], seed: int
) -> None:
    pdus = [bytearray(pdu) for pdu in valid(make, framing)]
    for kind, where, value in mutations:
        if not pdus:
            break
        index = where % len(pdus)
        pdu = pdus[index]
        at = where // 16 % max(len(pdu), 1)
        if kind == "flip" and pdu:
            pdu[at] ^= 1 << value % 8
        elif kind == "set" and pdu:
            pdu[at] = value
        elif kind == "header" and pdu:
            pdu[at % min(len(pdu), 24)] = value
        elif kind == "cut":
            del pdu[at : at + value]
        elif kind == "double":
            pdus.insert(index, bytearray(pdu))
        elif kind == "drop":
            del pdus[index]
        else:
            other = value % len(pdus)
            pdus[index], pdus[other] = pdus[other], pdus[index]
    survives(make(framing), b"".join(pdus), random.Random(seed))


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("make", MAKE)
def test_unmutated_streams_are_right(make: Callable[[Framing], Connection], framing: Framing) -> None:
    connection = make(framing)
    stream = valid(make, framing)
    if make is new_target or make is new_host:
        stream = stream[:1]
    events = feed(connection, b"".join(stream))
    assert not any(isinstance(event, ProtocolFailure) for event in events)
    assert connection.state in (State.HOST_READY, State.TARGET_READY)
