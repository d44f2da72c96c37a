"""A flood of ten thousand connections that never become hosts: their count, their memory, their time, and who else is
served."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import socket
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from nvmeof.target.core.connection_limits import STRANGERS_MOST
from nvmeof.transport import SocketOptions
from tests.conformance.rawhost import RawHost, icreq, running, until

CONNECTIONS = 10_000
ADDRESSES = 5
BATCH = 50
MOST_BYTES = 64 << 10
"""What one connection without a Connect may hold of the target's memory."""


@pytest.fixture
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * STRANGERS_MOST + 4096  # both ends of what is held are in this process
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} descriptors are needed: raise the hard limit (ulimit -Hn), which is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def begin(port: int, number: int) -> socket.socket:
    """Begin to connect from one of several addresses."""
    one = socket.socket()
    one.bind((f"127.0.1.{1 + number % ADDRESSES}", 0))
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", port))
    return one


def settled(one: socket.socket) -> bool:
    """Return whether it is connected, or was refused."""
    try:
        one.getpeername()
        return True
    except OSError:
        return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 or ended(one)


def ended(one: socket.socket) -> bool:
    """Return whether the target has closed it."""
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


async def flood(port: int, held: list[socket.socket]) -> float:
    """Open them all, those that are taken say nothing or half of a handshake; return the longest time that the event
    loop did not go on for, in seconds."""
    longest = 0.0
    for first in range(0, CONNECTIONS, BATCH):
        batch = [begin(port, number) for number in range(first, first + BATCH)]
        held += batch
        for _ in range(200):
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)
            if all(map(settled, batch)):
                break
        for one in batch[::2]:
            with contextlib.suppress(OSError):
                one.send(icreq()[:64])
        if len(held) > STRANGERS_MOST:
            for each in list(filter(ended, held)):
                each.close()
            held[:] = [each for each in held if each.fileno() >= 0]
    return longest


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_ten_thousand_half_open_connections(descriptors: None) -> None:
    held: list[socket.socket] = []
    async with running("tcp", connect_seconds=3600.0, check=False) as target:
        try:
            host = await RawHost.open(target)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            longest = await flood(target.address.port, held)
            await until(lambda: len(target.drivers) <= STRANGERS_MOST)
            gc.collect()
            bytes_each = (tracemalloc.get_traced_memory()[0] - before) / max(len(target.drivers), 1)
            tracemalloc.stop()
            assert len(target.drivers) > STRANGERS_MOST // 2, "it takes those that it can"
            assert target.connections.strangers.taken <= STRANGERS_MOST
            assert bytes_each < MOST_BYTES, bytes_each
            assert longest < 5.0, "the event loop goes on"
            # Who came before is served, and so is who comes from an address of its own.
            await host.connect()
            other = await RawHost.open(target, options=SocketOptions(host_traddr="127.0.2.1"))
            await other.connect()
            host.close()
            other.close()
        finally:
            for each in held:
                each.close()
        await until(lambda: not target.drivers)
        assert target.connections.strangers.taken == 0
