"""The `memory` transport: byte streams inside one process, deterministic and without the kernel.

For tests and for a target and a host in one program. It behaves like TCP where that matters: each direction holds a
bounded number of bytes, so that sends are partial and then would block; closing gives the peer what is left and
then the end of the stream; aborting gives it a reset. Reads can be cut into chunks (1: byte by byte).

Readiness callbacks come through `loop.call_soon`, again and again while the condition lasts, like those of a
selector. `recv_into`, `sendmsg`, `shutdown`, `close` and `abort` need no loop. Both ends belong to one thread.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Callable, Sequence

from nvmeof.errors import TransportError
from nvmeof.transport.base import (
    Address,
    Buffer,
    ConnectionInfo,
    Endpoint,
    Listener,
    ListenerInfo,
    SocketOptions,
    Transport,
    say_dropped,
)

DEFAULT_CAPACITY_BYTES = 1 << 20
TRTYPE_LOOP = 254
"""NVMe Base, Discovery log entry, TRTYPE: intra-host transport."""

_WOULD_BLOCK = (errno.EAGAIN, "the other end must act first")


class _Stream:
    """One direction: bytes that were sent and not yet received."""

    __slots__ = ("buffer", "capacity", "eof", "received_bytes", "sent_bytes")

    def __init__(self, capacity: int) -> None:
        self.buffer = bytearray()
        self.capacity = capacity
        self.eof = False
        self.sent_bytes = 0
        self.received_bytes = 0


class MemoryEndpoint(Endpoint):
    """One end of an in-process connection; made by `memory_pair` or by the transport."""

    def __init__(self, local: Address, peer: Address, inbox: _Stream, outbox: _Stream, max_chunk: int | None) -> None:
        self.local_address = local
        self.peer_address = peer
        self.transport_name = "memory"
        self.recv_into = self._recv_into
        self.recv_both = self._recv_both
        self.sendmsg = self._sendmsg
        self._inbox = inbox
        self._outbox = outbox
        self._max_chunk = max_chunk
        self._peer: MemoryEndpoint | None = None
        self._closed = False
        self._reset = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: Callable[[], object] | None = None
        self._writer: Callable[[], object] | None = None
        self._reader_scheduled = False
        self._writer_scheduled = False

    def fileno(self) -> int:
        return -1

    @property
    def closed(self) -> bool:
        return self._closed

    def available(self) -> int:
        n = len(self._inbox.buffer)
        return n if self._max_chunk is None else min(n, self._max_chunk)

    def _recv_into(self, buffer: memoryview | bytearray) -> int:
        if self._closed:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the endpoint is closed")
        waiting = self._inbox.buffer
        n = min(len(waiting), len(buffer))
        if self._max_chunk is not None:
            n = min(n, self._max_chunk)
        if n:
            with memoryview(waiting) as source:
                buffer[:n] = source[:n]
            del waiting[:n]
            self._inbox.received_bytes += n
            if self._peer is not None:
                self._peer._schedule_writer()
            return n
        if self._reset and not waiting:
            self._reset = False  # reported once, as a socket's pending error is
            raise ConnectionResetError(errno.ECONNRESET, "the peer reset the connection")
        if self._inbox.eof or not len(buffer):
            return 0
        raise BlockingIOError(*_WOULD_BLOCK)

    def _recv_both(self, buffer: memoryview, behind: memoryview) -> int:
        n = self._recv_into(buffer)
        if n < len(buffer) or not self._inbox.buffer or self._reset or self._max_chunk is not None:
            return n
        return n + self._recv_into(behind)

    def _sendmsg(self, buffers: Sequence[Buffer]) -> int:
        if self._closed:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the endpoint is closed")
        outbox = self._outbox
        if self._reset:
            self._reset = False
            raise ConnectionResetError(errno.ECONNRESET, "the peer reset the connection")
        if outbox.eof or self._peer is None or self._peer._closed:
            raise BrokenPipeError(errno.EPIPE, "the stream is shut down or the peer is gone")
        space = outbox.capacity - len(outbox.buffer)
        taken = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")[: space - taken]
            outbox.buffer += view
            taken += len(view)
            if taken == space:
                break
        if not taken:
            if any(len(memoryview(buffer)) for buffer in buffers):
                raise BlockingIOError(*_WOULD_BLOCK)
            return 0
        outbox.sent_bytes += taken
        self._peer._schedule_reader()
        return taken

    def set_reader(self, callback: Callable[[], object] | None) -> None:
        self._reader = callback
        if callback is not None:
            self._loop = asyncio.get_running_loop()
            self._schedule_reader()

    def set_writer(self, callback: Callable[[], object] | None) -> None:
        self._writer = callback
        if callback is not None:
            self._loop = asyncio.get_running_loop()
            self._schedule_writer()

    def _readable(self) -> bool:
        return bool(self._inbox.buffer) or self._inbox.eof or self._reset

    def _writable(self) -> bool:
        outbox = self._outbox
        gone = outbox.eof or self._reset or self._peer is None or self._peer._closed
        return gone or len(outbox.buffer) < outbox.capacity

    def _schedule_reader(self) -> None:
        if self._reader is None or self._reader_scheduled or self._loop is None or not self._readable():
            return
        if not self._loop.is_closed():
            self._reader_scheduled = True
            self._loop.call_soon(self._run_reader)

    def _schedule_writer(self) -> None:
        if self._writer is None or self._writer_scheduled or self._loop is None or not self._writable():
            return
        if not self._loop.is_closed():
            self._writer_scheduled = True
            self._loop.call_soon(self._run_writer)

    def _run_reader(self) -> None:
        self._reader_scheduled = False
        if self._reader is not None and self._readable():
            try:
                self._reader()
            finally:
                self._schedule_reader()

    def _run_writer(self) -> None:
        self._writer_scheduled = False
        if self._writer is not None and self._writable():
            try:
                self._writer()
            finally:
                self._schedule_writer()

    def shutdown(self) -> None:
        self._outbox.eof = True
        if self._peer is not None:
            self._peer._schedule_reader()
        self._schedule_writer()

    def close(self) -> None:
        self._finish(reset=False)

    def abort(self) -> None:
        self._finish(reset=True)

    def _finish(self, *, reset: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._reader = self._writer = None
        self._outbox.eof = True
        self._inbox.buffer.clear()  # unread data is discarded; a peer that waits for room fails
        peer = self._peer
        if peer is not None and not peer._closed:
            if reset:
                peer._reset = True
            peer._schedule_reader()
            peer._schedule_writer()
        self._peer = None

    def describe(self) -> ConnectionInfo:
        return ConnectionInfo(
            transport="memory",
            protocol="memory",
            local=self.local_address,
            peer=self.peer_address,
            closed=self._closed,
            bytes_sent=self._outbox.sent_bytes,
            bytes_received=self._inbox.received_bytes,
            sndbuf_bytes=self._outbox.capacity,
            rcvbuf_bytes=self._inbox.capacity,
        )


def memory_pair(
    capacity_bytes: int = DEFAULT_CAPACITY_BYTES,
    *,
    max_chunk_bytes: int | None = None,
    local: Address = Address("memory", 1),
    peer: Address = Address("memory", 2),
    peer_capacity_bytes: int | None = None,
) -> tuple[MemoryEndpoint, MemoryEndpoint]:
    """Return two connected endpoints, the first at `local`.

    `capacity_bytes`: how many bytes may be under way from the first to the second, `peer_capacity_bytes` the other way
    (None: the same). `max_chunk_bytes`: the most that one `recv_into` gives at either end.
    """
    there = _Stream(capacity_bytes)
    back = _Stream(peer_capacity_bytes or capacity_bytes)
    first = MemoryEndpoint(local, peer, back, there, max_chunk_bytes)
    second = MemoryEndpoint(peer, local, there, back, max_chunk_bytes)
    first._peer, second._peer = second, first
    return first, second


class MemoryListener(Listener):
    """An entry in the transport's table of addresses."""

    def __init__(
        self,
        transport: MemoryTransport,
        address: Address,
        options: SocketOptions,
        accepted: Callable[[Endpoint], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.address = address
        self._transport = transport
        self._options = options
        self._accepted = accepted
        self._loop = loop
        self._count = 0
        self._closed = False

    @property
    def capacity_bytes(self) -> int:
        """How much an accepted endpoint may have under way."""
        return self._options.sndbuf_bytes or self._transport.capacity_bytes

    @property
    def orphaned(self) -> bool:
        """True if its loop was closed and it was not: no connection will be accepted here."""
        return self._loop.is_closed()

    def deliver(self, endpoint: MemoryEndpoint) -> None:
        """Hand over a new connection, in the next turn of the loop."""
        self._loop.call_soon(self._deliver, endpoint)

    def _deliver(self, endpoint: MemoryEndpoint) -> None:
        if self._closed:
            endpoint.abort()
            return
        self._count += 1
        try:
            self._accepted(endpoint)
        except Exception as error:
            say_dropped(endpoint.peer_address, error)
            endpoint.abort()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._transport.forget(self)

    def describe(self) -> ListenerInfo:
        return ListenerInfo(
            transport="memory", protocol="memory", address=self.address, accepted=self._count, closed=self._closed
        )


class MemoryTransport(Transport):
    """Listeners by (host, port) in a table of this instance; `host` is any label."""

    name = "memory"
    trtype = TRTYPE_LOOP

    def __init__(self, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES, max_chunk_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        """Bytes that one direction holds, unless the sender's `SocketOptions.sndbuf_bytes` says otherwise."""
        self.max_chunk_bytes = max_chunk_bytes
        """The most that one `recv_into` gives; None: no limit."""
        self._listeners: dict[tuple[str, int], MemoryListener] = {}
        self._ports = itertools.count(49152)

    async def listen(
        self, host: str, port: int, options: SocketOptions, accepted: Callable[[Endpoint], None]
    ) -> list[Listener]:
        if not port:
            port = next(free for free in self._ports if (host, free) not in self._listeners)
        address = Address(host, port)
        present = self._listeners.get((host, port))
        if present is not None and not present.orphaned:
            raise TransportError(f"cannot listen on {address}: the address is in use")
        listener = MemoryListener(self, address, options, accepted, asyncio.get_running_loop())
        self._listeners[host, port] = listener
        return [listener]

    async def connect(self, host: str, port: int, options: SocketOptions) -> Endpoint:
        address = Address(host, port)
        listener = self._listeners.get((host, port))
        if listener is None or listener.orphaned:
            raise TransportError(f"connection refused by {address}: is a target listening there?")
        near, far = memory_pair(
            options.sndbuf_bytes or self.capacity_bytes,
            peer_capacity_bytes=listener.capacity_bytes,
            max_chunk_bytes=self.max_chunk_bytes,
            local=Address(options.host_traddr or "memory", next(self._ports)),
            peer=address,
        )
        listener.deliver(far)
        return near

    def forget(self, listener: MemoryListener) -> None:
        """Take a listener out of the table; `MemoryListener.close` calls it."""
        key = (listener.address.host, listener.address.port)
        if self._listeners.get(key) is listener:
            del self._listeners[key]
