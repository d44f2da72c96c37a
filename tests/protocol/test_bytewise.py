"""A stream means the same however it is cut: whole, byte by byte, at random places."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.protocol.connection import Connection
from nvmeof.protocol.events import CommandBatch, CommandData, Completions, ProtocolFailure
from nvmeof.protocol.transfers import R2tTransfer
from tests.events import one_by_one

from .wire import LAST, READ, SUCCESS, WRITE, Framing, feed, ready_host, ready_target, sent, sqe

FRAMINGS = st.builds(Framing, st.booleans(), st.booleans(), st.sampled_from([4, 12, 128]))
BAD = st.sampled_from([b"", b"\xff" * 8, b"\x05\0\x18\0\x18\0\0\0" + bytes(16), b"\x04\0\x48\0\0\0\0\1"])


def told(events: list[Any]) -> list[Any]:
    """Return the contents of the events, however they were grouped."""
    out: list[Any] = []
    for event in one_by_one(events):
        if isinstance(event, CommandBatch):
            starts = range(8, event.count * event.stride, event.stride)
            out += [("command", bytes(event.view[start : start + 64])) for start in starts]
        elif isinstance(event, CommandData):
            out.append(("command", bytes(event.sqe), bytes(event.data), event.digest_ok))
        elif isinstance(event, Completions):
            out += [("completion", entry) for entry in event.entries]
        elif isinstance(event, ProtocolFailure):
            out.append(("failure", event.error.fes, event.error.fei))
        elif isinstance(event, R2tTransfer):
            out.append(("data", event.cid, event.context, event.ok, event.data))
        else:
            out.append(event)
    return out


def flip(stream: bytes, bits: list[int]) -> bytes:
    broken = bytearray(stream)
    for bit in bits:
        bit %= len(broken) * 8
        broken[bit // 8] ^= 1 << bit % 8
    return bytes(broken)


@settings(max_examples=150, deadline=None)
@given(
    FRAMINGS,
    st.lists(st.one_of(st.just(b""), st.binary(min_size=1, max_size=100)), max_size=12),
    st.lists(st.integers(1, 50_000), max_size=3),
    st.lists(st.integers(0, 1 << 30), max_size=1),
    BAD,
    st.integers(2, 40),
)
def test_target(
    framing: Framing, capsules: list[bytes], writes: list[int], bits: list[int], bad: bytes, entries: int
) -> None:
    stream = b"".join(framing.command(100 + i, WRITE if data else READ, data=data) for i, data in enumerate(capsules))
    buffers: list[bytearray] = []
    outgoing: list[bytes] = []

    def make() -> Connection:
        t = ready_target(framing, entries=entries)
        for cid, size in enumerate(writes[: entries - 1]):
            feed(t, framing.command(cid, WRITE, size))
            buffers.append(bytearray(size))
            t.request_data(cid, memoryview(buffers[-1]), cid)
        outgoing.append(sent(t))
        return t

    for ttag, size in enumerate(writes[: entries - 1]):
        half = size // 2
        if half:
            stream += framing.h2c(ttag, ttag, 0, b"1" * half, last=False)
        stream += framing.h2c(ttag, ttag, half, b"2" * (size - half))
    stream += bad
    if stream:
        stream = flip(stream, bits)
        check(make, stream, buffers, len(writes[: entries - 1]))


@settings(max_examples=150, deadline=None)
@given(
    FRAMINGS,
    st.lists(st.tuples(st.sampled_from([READ, WRITE, 0]), st.integers(1, 50_000), st.booleans()), max_size=6),
    st.lists(st.integers(0, 1 << 30), max_size=1),
    BAD,
    st.integers(0, 1 << 30),
)
def test_host(framing: Framing, work: list[tuple[int, int, bool]], bits: list[int], bad: bytes, seed: int) -> None:
    buffers: list[bytearray] = []

    def make() -> Connection:
        h = ready_host(framing)
        for cid, (opcode, size, _) in enumerate(work):
            buffer = bytearray(size)
            buffers.append(buffer)
            if opcode == WRITE:
                h.send_command(cid, sqe(opcode), bytes(size), in_capsule=False)
            else:
                h.send_command(cid, sqe(opcode), data_in=memoryview(buffer) if opcode == READ else None)
        sent(h)
        return h

    parts = []
    for cid, (opcode, size, success) in enumerate(work):
        part = b""
        if opcode == READ:
            half = size // 2
            if half and not success:
                part += framing.c2h(cid, 0, b"1" * half, 0)
            start = half if half and not success else 0
            part += framing.c2h(cid, start, b"2" * (size - start), LAST | (SUCCESS if success else 0))
        elif opcode == WRITE:
            part += framing.r2t(cid, 7, 0, size)
        if opcode != READ or not success:
            part += framing.response(cid, dw0=cid)
        parts.append(part)
    random.Random(seed).shuffle(parts)
    stream = b"".join(parts) + bad
    if stream:
        check(make, flip(stream, bits), buffers, len(work))


def check(make: Any, stream: bytes, buffers: list[bytearray], count: int) -> None:
    whole = make()
    expected = told(feed(whole, stream))
    filled = [bytes(buffer) for buffer in buffers[-count:]] if count else []
    reply = None if any(e[0] == "failure" for e in expected if isinstance(e, tuple)) else sent(whole)
    for step in (1, 7, 1000):
        connection = make()
        assert told(feed(connection, stream, step)) == expected
        assert connection.state is whole.state or reply is None
        if reply is not None:  # after a failure: as much of the header in error as had arrived
            assert sent(connection) == reply
            assert ([bytes(buffer) for buffer in buffers[-count:]] if count else []) == filled


@pytest.mark.parametrize("step", range(1, 80))
def test_every_step_through_a_batch(step: int) -> None:
    for framing in (Framing(), Framing(True)):
        t = ready_target(framing)
        stream = b"".join(
            framing.command(cid, WRITE if cid == 5 else READ, data=b"x" * 9 * (cid == 5)) for cid in range(9)
        )
        events = told(feed(t, stream, step))
        assert [int.from_bytes(event[1][2:4], "little") for event in events] == list(range(9))
