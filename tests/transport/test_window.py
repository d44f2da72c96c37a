"""Received bytes open the receive window of MPTCP connections, before the read that shows it to the peer."""

from __future__ import annotations

import asyncio
import platform
import socket

import pytest

from nvmeof.transport import SocketOptions
from nvmeof.transport.window import BULK_BYTES, STEPS, WindowOpener, open_window

from .conftest import connected, receive, send, wait_for
from .test_mptcp import needs_mptcp

linux = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
needs_rcvlowat = pytest.mark.skipif(
    linux < (6, 7), reason="SO_RCVLOWAT raises no receive buffer of MPTCP before Linux 6.7"
)


class Source:
    """An endpoint that is only read; it records its calls in order."""

    def __init__(self) -> None:
        self.waiting = 0
        self.notes: list[str] = []

    def available(self) -> int:
        return self.waiting

    def recv_into(self, buffer: memoryview | bytearray) -> int:
        self.notes.append(f"read {len(buffer)}")
        return len(buffer)

    def recv_both(self, buffer: memoryview, behind: memoryview) -> int:
        return self.recv_into(bytearray(len(buffer) + len(behind)))


def opener(source: Source) -> WindowOpener:
    return WindowOpener(source, lambda size: source.notes.append(f"window {size}"))  # type: ignore[arg-type]


def test_small_messages_open_nothing_until_they_are_many() -> None:
    source = Source()
    opener(source)
    for _ in range(STEPS[0][0] // 1024):
        source.waiting = BULK_BYTES - 1
        source.recv_into(bytearray(1024))
    assert set(source.notes) == {"read 1024"}
    source.recv_into(bytearray(24))
    assert source.notes[-2:] == [f"window {STEPS[0][1]}", "read 24"]


def test_bulk_opens_the_window_before_its_first_read() -> None:
    source = Source()
    opener(source)
    source.waiting = BULK_BYTES
    source.recv_both(memoryview(bytearray(24)), memoryview(bytearray(4096)))
    assert source.notes == [f"window {STEPS[0][1]}", "read 4120"]
    # waiting bytes open the first step only: received bytes open the others
    source.recv_into(bytearray(24))
    assert source.notes == [f"window {STEPS[0][1]}", "read 4120", "read 24"]


def test_each_step_once_and_then_the_socket_is_used_directly() -> None:
    source = Source()
    original = source.recv_into, source.recv_both
    opener(source)
    kept = source.recv_into  # a reader's loop holds the methods for a while
    piece = bytearray(1 << 20)
    for _ in range((STEPS[-1][0] >> 20) + 1):
        kept(piece)
    kept(piece)
    assert [note for note in source.notes if note.startswith("window")] == [f"window {size}" for _, size in STEPS]
    assert (source.recv_into, source.recv_both) == original


def test_a_socket_that_refuses_costs_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.close()
        open_window(sock, 1 << 20)  # EBADF stands for any error of a kernel


@needs_mptcp
@needs_rcvlowat
async def test_the_buffer_of_a_bulk_receiver_grows_and_stays_under_the_kernels_control() -> None:
    async with connected("mptcp") as (near, far):
        idle = near.describe().rcvbuf_bytes
        assert idle is not None
        await asyncio.gather(send(far, bytes(2000)), receive(near, 2000))
        assert near.describe().rcvbuf_bytes == idle, "small messages need no larger buffer"
        data = bytes(range(256)) * 4096
        sending = asyncio.ensure_future(send(far, data))
        await wait_for(lambda: near.available() >= BULK_BYTES)
        assert await receive(near, len(data)) == data
        await sending
        grown = near.describe().rcvbuf_bytes
        assert grown is not None and grown > STEPS[0][1]
        assert far.describe().rcvbuf_bytes == idle, "a sender's own buffer is left alone"
        sock = near._sock  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1, "one byte wakes the reader"


@needs_mptcp
@needs_rcvlowat
async def test_the_buffer_is_not_locked() -> None:
    async with connected("mptcp") as (near, _):
        sock = near._sock  # type: ignore[attr-defined]
        sizes = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)]
        for wanted in (256 * 1024, 512 * 1024):  # the second would not change a size that SO_RCVBUF has locked
            open_window(sock, wanted)
            sizes.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        assert sizes[0] < sizes[1] < sizes[2]


@needs_mptcp
async def test_a_requested_buffer_size_stays() -> None:
    async with connected("mptcp", settings=SocketOptions(rcvbuf_bytes=65536)) as (near, far):
        wanted = near.describe().rcvbuf_bytes
        await asyncio.gather(send(far, bytes(1 << 20)), receive(near, 1 << 20))
        assert near.describe().rcvbuf_bytes == wanted
