"""Moves the bytes of one connection between its endpoint and its consumer, for target and host alike.

::

    Endpoint (bytes) <-> ConnectionDriver <-> Connection (PDUs)
                               |
                            Consumer (commands: a target's queue, a host's queue)

The driver reads into the connection's own buffers, hands events on, sends in batches, waits where the socket is
blocked, lingers and closes. What is to happen to the bytes of both ends is put in here, once:

- TLS: an `Endpoint` that wraps another one. It gives 0 in `available`, and its `recv_both` may fill the first buffer
  alone; its handshake comes before the driver is made.
- Captures: the connection's `tap`, which sees the bytes as they pass.
- Faults: a wrapped endpoint for those of the byte stream, the connection's `make_encoder` for those of PDUs.
- Polling: `readable`, called in place of the event loop's call (`nvmeof.aio.polling`).

The driver must not know what a command means, nor which role its connection has: what differs is in `Batching`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Protocol

from nvmeof.protocol.connection import Connection, State
from nvmeof.protocol.events import Event
from nvmeof.transport.base import Endpoint, Turns

LINGER_SECONDS: Final = 2.0
"""How long a connection that ends waits for the peer to take what is queued, and to close."""
_DISCARD_BYTES: Final = 64 * 1024
_NO_LIMIT: Final = 1 << 62
_CLOSED: Final = State.CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How much one connection does before others get their turn, and what of its output leaves together."""

    reads: int = 16
    """Receives in one turn of the event loop, at most."""
    leave_large: int = 0
    """Two thirds of the large payloads that are expected, but at most so many, are left for later turns: what is asked
    for next, in place of those that have come, reaches the peer before it runs out of work. 0: none is left."""
    read_seconds: float = float("inf")
    """Time for them, at most, where there is more than one."""
    flush_reads: int = _NO_LIMIT
    """While data is still being received, output is batched: for at most this many receives ..."""
    flush_bytes: int = _NO_LIMIT
    """... or until there is so much of it."""
    send_bytes: int = _NO_LIMIT
    """Bytes sent in one go, also to a peer that takes them as fast as they come, at most."""
    leave_to_wake: bool = False
    """Output waits for the end of the reading, or for the `wake` that will send it; else a `wake` ends the reading."""


class Consumer(Protocol):
    """The consumer of a connection, as its driver sees it: a target's queue, or a host's."""

    @property
    def owner(self) -> Hashable:
        """The owner that the connection's turns are counted for, where the driver has `Turns`."""
        ...

    def handle(self, events: list[Event], now: float) -> None:
        """Handle the events of one receive, in order. Views in the events hold until this returns."""
        ...

    def sent(self) -> None:
        """Continue operations that waited for room: the socket has taken some of the output. Called while `tell_sent`
        is set."""
        ...

    def lost(self, error: OSError) -> None:
        """End the connection's work: the socket has failed."""
        ...

    def broken(self, error: Exception) -> None:
        """End the connection's work: handling it raised what it must not, a defect of ours."""
        ...

    def closed(self) -> None:
        """Forget the connection: its endpoint has been closed. Called once."""
        ...


class ConnectionDriver:
    """Driver of one connection over one endpoint, from `start` to `close`, on the running event loop.

    ``consumer`` serves it; ``batching`` says how much is done at once. ``turns``: while it is not None, the connection
    is read only in turn with others. ``clock``: seconds, for `Batching.read_seconds`.

    The consumer calls `wake` (or `flush`) when it has queued output outside of `Consumer.handle`, `update_reader` when
    it has changed `receiving`, and at the end `finish`, `stop` or `close`.
    """

    __slots__ = (
        "_batching",
        "_blocked",
        "_clock",
        "_consumer",
        "_deferred",
        "_ended",
        "_finishing",
        "_linger",
        "_loop",
        "_reading",
        "_turns",
        "closed",
        "connection",
        "endpoint",
        "handle",
        "receiving",
        "tell_sent",
        "woken",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        connection: Connection,
        consumer: Consumer,
        batching: Batching,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        turns: Turns | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.endpoint = endpoint
        self.connection = connection
        self.handle = consumer.handle
        """Where events go, at first `Consumer.handle`: a consumer with less to do from some time on may replace it."""
        self.receiving = True
        """Set by the consumer: whether more should be received."""
        self.tell_sent = False
        """Set by the consumer: whether `sent` is to be called, since something waits for room."""
        self.closed = False
        """True when no further byte is moved."""
        self.woken = False
        """A `wake` will send what is queued in this turn of the loop."""
        self._consumer = consumer
        self._batching = batching
        self._turns = turns
        self._loop = loop or asyncio.get_running_loop()
        self._clock = clock
        self._reading = False
        self._deferred = False  # it is read when it is its owner's turn
        self._blocked = False  # the socket takes nothing: wait for it
        self._finishing = False
        self._ended = False
        self._linger: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin: send what is queued (a host's ICReq), and read."""
        if self.connection.want_write:
            self.flush()
        self.update_reader()

    # -- in ------------------------------------------------------------------------------------------------------

    @property
    def turns(self) -> Turns | None:
        """What decides when the connection is read; None: it is read whenever data has arrived."""
        return self._turns

    @turns.setter
    def turns(self, turns: Turns | None) -> None:
        self._turns = turns
        if self._reading:
            self.endpoint.set_reader(self.readable if turns is not None else self._receive)

    @property
    def reading(self) -> bool:
        """Whether the event loop is asked for data of this connection: now it may be read."""
        return self._reading

    def readable(self) -> None:
        """Read and handle received data, now or in this connection's turn."""
        if self._turns is not None:
            self._read_in_turn(self._turns)
        else:
            self._receive()

    def _read_in_turn(self, turns: Turns) -> None:
        """Read at once only while this turn of the loop has time for it."""
        if turns.open:
            began = turns.clock()
            self._read_now()
            turns.spend(turns.clock() - began)
        else:
            self._deferred = True
            self.update_reader()
            turns.add(self._consumer.owner, self._read_now)

    def _read_now(self) -> None:
        self._deferred = False
        if not self.closed:
            self._receive()
            self.update_reader()

    def _receive(self) -> None:
        """Receive as long as buffers get full and `Batching` allows it, and send what that has led to.

        Most receives bring less than the buffer holds, and are the only one of their turn: what only a further one
        needs comes after the test for that.
        """
        if self._finishing:
            self._discard()
            return
        connection, endpoint = self.connection, self.endpoint
        out = connection.out
        now, reads, most, until = self._loop.time(), 0, 0, 0.0
        try:
            while True:
                buffer = connection.next_buffer(endpoint.available)
                behind = connection.behind
                try:
                    n = endpoint.recv_into(buffer) if behind is None else endpoint.recv_both(buffer, behind)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as error:
                    self._consumer.lost(error)
                    return
                events = connection.bytes_received(n, now) if n else connection.eof_received()
                if events:
                    self.handle(events, now)
                if n < (len(buffer) if behind is None else len(buffer) + len(behind)):
                    break
                reads += 1
                batching = self._batching
                patient = batching.leave_to_wake
                if not patient and (not reads % batching.flush_reads or out.pending_bytes >= batching.flush_bytes):
                    self.flush()
                if reads == 1:
                    most = batching.reads
                    if batching.leave_large and (large := connection.large_expected):
                        most = min(most, 1 + max(large // 3, large - batching.leave_large))
                # Unless the socket is blocked, what is queued has gone, and nothing speaks against reading on.
                if (
                    reads >= most
                    or self._finishing
                    or not self.receiving
                    or (self.woken and not patient)
                    or (self._blocked and not connection.want_read)
                ):
                    break
                if reads == 1:
                    until = self._clock() + batching.read_seconds
                elif self._clock() >= until:
                    break
            if out.pending_bytes and not (self.woken and self._batching.leave_to_wake):
                self.flush()
            # With nothing to send, a connection that is read wants to be read on until its end.
            if out.pending_bytes or not (self._reading and self.receiving) or connection.state is _CLOSED:
                self.update_reader()
        except Exception as error:
            self._consumer.broken(error)

    def update_reader(self) -> None:
        """Listen to the endpoint, or do not, as connection and consumer want it now."""
        wanted = not (self.closed or self._deferred) and (
            self._finishing or (self.receiving and self.connection.want_read)
        )
        if wanted is not self._reading:
            self._reading = wanted
            self.endpoint.set_reader(None if not wanted else self._receive if self._turns is None else self.readable)

    # -- out -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Give the socket the queued output, until it takes no more or has used its share."""
        if self._blocked or self.closed:
            return
        connection, send = self.connection, self.endpoint.sendmsg
        out, taken = connection.out, 0
        while out.pending_bytes:
            try:
                n = send(out.take())
            except (BlockingIOError, InterruptedError):
                connection.bytes_sent(0)
                self._blocked = True
                self.endpoint.set_writer(self._writable)
                return
            except OSError as error:
                connection.bytes_sent(0)
                if self._finishing:
                    self.close()
                else:
                    self._consumer.lost(error)
                return
            connection.bytes_sent(n)
            if self.tell_sent:
                self._consumer.sent()
            if out.pending_bytes:
                taken += n
                if taken >= self._batching.send_bytes and not self._finishing:
                    self.wake()
                    return

    def _writable(self) -> None:
        self._blocked = False
        self.endpoint.set_writer(None)
        try:
            self.flush()
            if self.closed or self._blocked:
                return
            if self._finishing:
                self._flushed()
            else:
                self.update_reader()
        except Exception as error:
            self._consumer.broken(error)

    def wake(self) -> None:
        """Send what was queued outside of a read, with whatever else comes in this turn of the loop."""
        if not self.woken and not self.closed:
            self.woken = True
            self._loop.call_soon(self._send_woken)

    def _send_woken(self) -> None:
        self.woken = False
        if self.closed:
            return
        try:
            self.flush()
            self.update_reader()
        except Exception as error:
            self._consumer.broken(error)

    # -- endings -------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Send what is queued, wait a little for the peer to close if it was a TermReq, and close."""
        if self._finishing:
            return
        self._finishing = True
        terminating = self.connection.state is State.TERMINATING
        if self.connection.want_write:
            self._linger = self._loop.call_later(LINGER_SECONDS, self.close)
            self.flush()
            if self._blocked or self.closed:
                return
        if terminating:
            self._flushed()
        else:
            self.close()

    def _flushed(self) -> None:
        """Shut down sending once the kernel has all output; closing with unread bytes would discard a TermReq."""
        if self._linger is None:
            self.close()
            return
        self.endpoint.shutdown()
        self.update_reader()

    def _discard(self) -> None:
        """Read and discard input until the peer closes."""
        if self.closed:
            return
        scratch = memoryview(bytearray(_DISCARD_BYTES))
        for _ in range(self._batching.reads):
            try:
                n = self.endpoint.recv_into(scratch)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                n = 0
            if not n:
                self.close()
                return

    def stop(self) -> None:
        """Stop moving bytes: all buffers are free, and no event follows. The endpoint stays open."""
        if self.closed:
            return
        self.closed = self._finishing = True
        if self._linger is not None:
            self._linger.cancel()
        self._reading = False
        self.endpoint.set_reader(None)
        self.endpoint.set_writer(None)
        if self.connection.state is not State.CLOSED:
            self.connection.close()

    def close(self) -> None:
        """Close the endpoint, at once. Safe to call twice."""
        if self._ended:
            return
        self._ended = True
        self.stop()
        self.endpoint.close()
        self._consumer.closed()
