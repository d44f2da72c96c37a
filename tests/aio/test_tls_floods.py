"""A peer that speaks TLS to TLS itself without an end: no data, and no more of a turn of the loop than others get."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvmeof.aio.tls import IDLE_MOST, TlsEndpoint
from nvmeof.security.tls.key import generate_tls_key
from nvmeof.security.tls.session import TlsSession
from nvmeof.security.tls.suites import AES_128_GCM

PSK = generate_tls_key().psk("nqn.2026-01.org.example:host", "nqn.2026-01.org.example:disk")


class Flood:
    """An endpoint whose peer sends a KeyUpdate whenever there is room for one."""

    transport_name = "memory"
    local_address = peer_address = None

    def __init__(self, peer: TlsSession) -> None:
        self.peer = peer
        self.receives = 0
        self.waiting = b""
        self.ended = False

    def recv_into(self, buffer: Any) -> int:
        self.receives += 1
        if self.receives > 50:
            raise AssertionError("a turn of the loop has no end")
        while len(self.waiting) < len(buffer) and not self.ended:
            assert self.peer._lib.SSL_key_update(self.peer._ssl, 0) == 1
            self.peer._lib.SSL_do_handshake(self.peer._ssl)
            self.waiting += take(self.peer)
        if not self.waiting:
            raise BlockingIOError
        taken, self.waiting = self.waiting[: len(buffer)], self.waiting[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def sendmsg(self, buffers: Any) -> int:
        return sum(map(len, buffers))

    def set_writer(self, callback: Any) -> None: ...
    def set_reader(self, callback: Any) -> None: ...
    def abort(self) -> None: ...


def take(session: TlsSession) -> bytes:
    taken = b""
    while len(output := session.output()):
        taken += bytes(output)
        session.sent(len(output))
    return taken


async def test_key_updates_without_an_end() -> None:
    ours, theirs = TlsSession(PSK, (AES_128_GCM,), server=True), TlsSession(PSK, (AES_128_GCM,), server=False)
    done = False
    while not done:
        done = theirs.handshake()
        ours.feed(take(theirs))
        done = ours.handshake() and done
        theirs.feed(take(ours))
    flood: Any = Flood(theirs)
    endpoint = TlsEndpoint(flood, ours, asyncio.get_running_loop())
    buffer = bytearray(4096)
    with pytest.raises((BlockingIOError, ConnectionAbortedError)):
        endpoint.recv_into(memoryview(buffer))
    assert flood.receives <= IDLE_MOST + 1
    rest, flood.waiting, flood.ended = flood.waiting, b"", True
    theirs.write(b"data")
    flood.waiting = rest + take(theirs)
    got = 0
    while not got:
        try:
            got = endpoint.recv_into(memoryview(buffer))
        except BlockingIOError:
            assert flood.waiting, "there is data still"
    assert buffer[:got] == b"data", "the connection goes on"
    endpoint.abort()
    theirs.free()
