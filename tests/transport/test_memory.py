"""The in-process pair behaves like TCP where it matters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import TransportError
from nvmeof.transport import Address, Endpoint, Listener, MemoryTransport, SocketOptions, memory_pair

from .conftest import receive, send, wait_for


def read(endpoint: Endpoint, count: int = 1 << 16) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: endpoint.recv_into(memoryview(buffer))])


def test_bytes_cross_without_a_loop() -> None:
    one, two = memory_pair()
    assert one.sendmsg([b"abc", bytearray(b"de"), memoryview(b"f")]) == 6
    assert read(two, 4) == b"abcd"
    assert read(two) == b"ef"
    assert two.sendmsg([b"back"]) == 4
    assert read(one) == b"back"
    assert one.fileno() == -1
    info = one.describe()
    assert (info.protocol, info.fallback, info.bytes_sent, info.bytes_received) == ("memory", False, 6, 4)
    assert (one.local_address, one.peer_address) == (two.peer_address, two.local_address)


def test_capacity_makes_sends_partial_and_then_block() -> None:
    one, two = memory_pair(10)
    assert one.sendmsg([b"x" * 7, b"y" * 7]) == 10
    with pytest.raises(BlockingIOError):
        one.sendmsg([b"", b"z"])
    assert one.sendmsg([b""]) == 0
    assert read(two, 4) == b"x" * 4
    assert one.sendmsg([b"z" * 9]) == 4
    assert read(two) == b"xxxyyyzzzz"
    with pytest.raises(BlockingIOError):
        read(two)
    assert two.sendmsg([b"w" * 11]) == 10


def test_directions_may_differ_in_capacity() -> None:
    one, two = memory_pair(3, peer_capacity_bytes=5)
    assert one.sendmsg([bytes(9)]) == 3
    assert two.sendmsg([bytes(9)]) == 5


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 64), st.integers(1, 16))
def test_the_stream_is_preserved_whatever_the_sizes(chunks: list[bytes], capacity: int, step: int) -> None:
    one, two = memory_pair(capacity, max_chunk_bytes=step)
    rest, got = memoryview(b"".join(chunks)), bytearray()
    while rest or len(got) < sum(map(len, chunks)):
        if rest:
            try:
                rest = rest[one.sendmsg([rest[:3], rest[3:]]) :]
            except BlockingIOError:
                assert len(got) < sum(map(len, chunks))
        part = read(two)
        assert 0 < len(part) <= step
        got += part
    assert bytes(got) == b"".join(chunks)


def test_close_delivers_sent_bytes_then_the_end() -> None:
    one, two = memory_pair()
    one.sendmsg([b"last words"])
    one.close()
    one.close()
    assert one.closed
    assert read(two) == b"last words"
    assert read(two) == b""
    assert read(two) == b""
    with pytest.raises(BrokenPipeError):
        two.sendmsg([b"x"])
    with pytest.raises(ConnectionAbortedError):
        read(one)
    with pytest.raises(ConnectionAbortedError):
        one.sendmsg([b"x"])
    assert one.describe().closed


def test_abort_resets_the_peer() -> None:
    one, two = memory_pair()
    one.sendmsg([b"abc"])
    one.abort()
    assert read(two) == b"abc"
    with pytest.raises(ConnectionResetError):
        read(two)
    assert read(two) == b""
    with pytest.raises(BrokenPipeError):
        two.sendmsg([b"x"])


def test_a_sender_notices_a_reset_too() -> None:
    one, two = memory_pair()
    one.abort()
    with pytest.raises(ConnectionResetError):
        two.sendmsg([b"x"])
    with pytest.raises(BrokenPipeError):
        two.sendmsg([b"x"])


def test_shutdown_closes_one_direction() -> None:
    one, two = memory_pair()
    one.shutdown()
    assert read(two) == b""
    assert two.sendmsg([b"still"]) == 5
    assert read(one) == b"still"
    with pytest.raises(BrokenPipeError):
        one.sendmsg([b"x"])


async def test_callbacks_repeat_while_the_condition_lasts() -> None:
    one, two = memory_pair(8)
    calls: list[str] = []
    two.set_reader(lambda: calls.append("r"))
    await asyncio.sleep(0)
    assert calls == []
    one.sendmsg([b"ab"])
    assert calls == []  # never from within sendmsg
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(calls) >= 2
    read(two)
    await asyncio.sleep(0)
    count = len(calls)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(calls) == count
    two.set_reader(None)
    one.sendmsg([b"ab"])
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(calls) == count


async def test_writer_waits_for_room() -> None:
    one, two = memory_pair(4)
    one.sendmsg([b"full"])
    calls: list[int] = []
    one.set_writer(lambda: calls.append(1))
    for _ in range(3):
        await asyncio.sleep(0)
    assert calls == []
    read(two, 1)
    await asyncio.sleep(0)
    assert calls
    one.set_writer(None)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_waiting_writer_notices_the_end_of_the_peer(end: str) -> None:
    one, two = memory_pair(4)
    one.sendmsg([b"full"])
    task = asyncio.ensure_future(send(one, b"more"))
    await asyncio.sleep(0)
    getattr(two, end)()
    with pytest.raises(ConnectionError):
        await task


async def test_an_error_in_a_callback_does_not_end_the_callbacks() -> None:
    one, two = memory_pair()
    loop = asyncio.get_running_loop()
    seen: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: seen.append(context))
    two.set_reader(lambda: 1 // 0)
    one.sendmsg([b"x"])
    await wait_for(lambda: len(seen) >= 2)
    two.set_reader(None)


async def test_byte_by_byte() -> None:
    transport = MemoryTransport(capacity_bytes=3, max_chunk_bytes=1)
    accepted: list[Endpoint] = []
    (listener,) = await transport.listen("here", 4420, SocketOptions(), accepted.append)
    near = await transport.connect("here", 4420, SocketOptions(host_traddr="there"))
    await wait_for(lambda: accepted)
    data = bytes(range(100))
    calls, got = await asyncio.gather(send(near, data), receive(accepted[0], 100))
    assert got == data
    assert calls > 30
    assert near.peer_address == Address("here", 4420) == accepted[0].local_address
    assert accepted[0].peer_address.host == "there"
    listener.close()


async def test_listeners_by_address() -> None:
    transport = MemoryTransport()
    nothing: Callable[[Endpoint], None] = lambda endpoint: None  # noqa: E731
    (one,) = await transport.listen("a", 0, SocketOptions(), nothing)
    (two,) = await transport.listen("a", 0, SocketOptions(), nothing)
    assert one.address.port != two.address.port
    with pytest.raises(TransportError, match=r"cannot listen on a:\d+: the address is in use"):
        await transport.listen("a", one.address.port, SocketOptions(), nothing)
    with pytest.raises(TransportError, match="connection refused by b:1: is a target listening there"):
        await transport.connect("b", 1, SocketOptions())
    one.close()
    with pytest.raises(TransportError, match="refused"):
        await transport.connect("a", one.address.port, SocketOptions())
    assert one.describe().closed
    assert not two.describe().closed


async def test_connection_to_a_listener_that_closes_is_reset() -> None:
    transport = MemoryTransport()
    accepted: list[Endpoint] = []
    (listener,) = await transport.listen("a", 1, SocketOptions(), accepted.append)
    near = await transport.connect("a", 1, SocketOptions())
    listener.close()
    with pytest.raises(ConnectionResetError):
        await receive(near, 1)
    assert not accepted


async def test_a_failing_accept_costs_only_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    transport = MemoryTransport()
    accepted: list[Endpoint] = []

    def accept(endpoint: Endpoint) -> None:
        if not accepted:
            accepted.append(endpoint)
            raise RuntimeError("no room")
        accepted.append(endpoint)

    await transport.listen("a", 1, SocketOptions(), accept)
    first = await transport.connect("a", 1, SocketOptions())
    second = await transport.connect("a", 1, SocketOptions(sndbuf_bytes=2))
    with pytest.raises(ConnectionResetError):
        await receive(first, 1)
    assert second.sendmsg([b"abc"]) == 2
    assert await receive(accepted[1], 2) == b"ab"
    assert "was dropped: RuntimeError: no room" in caplog.text


def test_a_listener_of_a_closed_loop_is_ignored() -> None:
    transport = MemoryTransport()

    async def listen() -> Listener:
        return (await transport.listen("a", 1, SocketOptions(), lambda endpoint: None))[0]

    async def connect() -> None:
        with pytest.raises(TransportError, match="refused"):
            await transport.connect("a", 1, SocketOptions())
        await listen()
        left_over.close()
        (await transport.connect("a", 1, SocketOptions())).close()

    left_over = asyncio.run(listen())
    asyncio.run(connect())
