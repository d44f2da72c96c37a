"""What a server that means harm answers to a read: no byte of the buffer is taken for data that did not come."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.nbd.numbers import Command
from nvmeof.nbd.option_data import NbdProtocolError
from nvmeof.target.storage.nbd.replies import ReplyParser
from nvmeof.target.storage.nbd.request import SPANS_MOST, NbdRequest

OLD = b"another host's data " * 256
SIZE, AT, COOKIE, DONE = 4096, 1 << 20, 7, 1


def data(at: int, piece: bytes, flags: int = 0) -> bytes:
    return struct.pack(">IHHQIQ", 0x668E33EF, flags, 1, COOKIE, 8 + len(piece), AT + at) + piece


def hole(at: int, size: int, flags: int = 0) -> bytes:
    return struct.pack(">IHHQIQI", 0x668E33EF, flags, 2, COOKIE, 12, AT + at, size)


def end() -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, DONE, 0, COOKIE, 0)


def simple(piece: bytes) -> bytes:
    return struct.pack(">IIQ", 0x67446698, 0, COOKIE) + piece


def feed(request: NbdRequest, stream: bytes) -> None:
    parser, rest = ReplyParser({COOKIE: request}, None), memoryview(stream)
    while rest:
        buffer = parser.next_buffer()
        count = min(len(buffer), len(rest))
        buffer[:count] = rest[:count]
        rest = rest[count:]
        parser.received(count)


def reading() -> tuple[NbdRequest, bytearray]:
    buffer = bytearray(OLD[:SIZE])
    return NbdRequest(Command.READ, AT, SIZE, memoryview(buffer)), buffer


@pytest.mark.parametrize(
    "stream",
    [
        data(0, b"a" * 2048) * 2 + end(),
        data(0, b"a" * 2048) + data(2047, b"b" * 2048, DONE),
        hole(0, 2048) * 2 + end(),
        hole(2048, 2048) + data(1024, b"b" * 2048, DONE),
        data(0, b"a" * 2048) + simple(b"c" * SIZE),
    ],
    ids=["twice the same", "one byte of overlap", "a hole twice", "behind before front", "both kinds of reply"],
)
async def test_pieces_that_overlap(stream: bytes) -> None:
    request, _ = reading()
    with pytest.raises(NbdProtocolError, match=r"overlap|simple reply"):
        feed(request, stream)
    assert not request.done()


async def test_a_read_that_is_sent_again_begins_from_nothing() -> None:
    request, buffer = reading()
    feed(request, data(0, b"a" * 2048))
    request.begin_reply()
    feed(request, data(2048, b"b" * 2048) + hole(0, 2048, DONE))
    assert request.done() and buffer == bytes(2048) + b"b" * 2048


@given(st.permutations(range(16)), st.sets(st.integers(0, 15)))
def test_pieces_in_any_order(order: list[int], holes: set[int]) -> None:
    async def run() -> None:
        request, buffer = reading()
        piece = SIZE // 16
        stream = b"".join(
            hole(each * piece, piece) if each in holes else data(each * piece, bytes([65 + each]) * piece)
            for each in order
        )
        feed(request, stream + end())
        assert request.done()
        wanted = b"".join(bytes(piece) if each in holes else bytes([65 + each]) * piece for each in range(16))
        assert buffer == wanted

    asyncio.run(run())


async def test_pieces_are_bounded() -> None:
    request = NbdRequest(Command.READ, 0, 4 * SPANS_MOST)
    taken = sum(request.cover(2 * number, 1) for number in range(SPANS_MOST + 100))
    assert taken == SPANS_MOST + 1
