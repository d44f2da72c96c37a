"""The software queue device: NVMe/TCP by a queue connection over an endpoint of a transport (tcp, mptcp, memory).

One :class:`SocketQueue` per queue. Commands that are submitted in one turn of the event loop leave in one
``sendmsg``; the first command of an idle queue leaves at once, which is what a lone caller's latency wants.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import cast

from nvmeof.aio.driver import Batching, ConnectionDriver
from nvmeof.errors import (
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    NvmeofError,
    RemoteTermination,
    TransportError,
)
from nvmeof.host.facts import QueueFacts
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import CommandSeries, Queue, QueueDevice, Request
from nvmeof.pdu.digest import warn_if_slow
from nvmeof.pdu.termination import fes_text
from nvmeof.protocol.connection import ConnectionConfig, HostConnection, Tap
from nvmeof.protocol.events import Completions, Deviation, Event, PeerClosed, ProtocolFailure, Ready, Terminated
from nvmeof.protocol.pdu_tap import PduTap, Taps
from nvmeof.spec.sqe import SQE_BYTES
from nvmeof.transport import Address, Endpoint, SocketOptions, get, names

log = logging.getLogger("nvmeof.host")
ADMIN_RECEIVE_BYTES = 16 * 1024
IO_RECEIVE_BYTES = 144 * 1024
"""Room for the answers to 32 Reads of 4 KiB, headers and responses included."""
_UNANSWERED = "in place of an answer to ICReq: does that port require TLS? Then connect with a TLS key (--tls-key)"
BATCHING = Batching(reads=16, leave_large=16, leave_to_wake=True)
"""A host reads all received data but what is large, and sends all commands of one turn of the event loop together."""


class SocketQueue:
    """The connection of one queue: gives commands to the connection, and completions up.

    Implements :class:`nvmeof.aio.driver.Consumer`.
    """

    owner = None

    def __init__(self, queue: Queue, endpoint: Endpoint, tap: Tap | None = None) -> None:
        options = queue.options
        self.queue = queue
        self.endpoint = endpoint
        self.loop = asyncio.get_running_loop()
        self.connection = HostConnection(
            ConnectionConfig(
                header_digest=options.hdr_digest,
                data_digest=options.data_digest,
                pda_bytes=options.hpda_bytes,
                maxr2t=options.maxr2t,
                incapsule_bytes=max(queue.capsule_bytes - SQE_BYTES, 0),
                receive_buffer_bytes=IO_RECEIVE_BYTES if queue.qid else ADMIN_RECEIVE_BYTES,
            ),
        )
        self.connection.tap = tap
        self.driver = ConnectionDriver(endpoint, self.connection, self, BATCHING, loop=self.loop)
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self._handlers: dict[type[Event], Callable[..., None]] = {
            Ready: self._on_ready,
            Terminated: self._on_terminated,
            ProtocolFailure: self._on_protocol_failure,
            Deviation: self._on_deviation,
            PeerClosed: self._on_peer_closed,
        }

    async def handshake(self, timeout_seconds: float) -> None:
        """Exchange ICReq and ICResp within ``timeout_seconds``. Raises :class:`TransportError`."""
        self.connection.start()
        self.driver.start()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.ready
        except TimeoutError:
            raise ConnectTimeout(
                f"{self.endpoint.peer_address} took the connection, but did not answer ICReq "
                f"within {timeout_seconds:g} s: is it an NVMe/TCP target?"
            ) from None

        parameters = self.connection.parameters
        assert parameters is not None
        options = self.queue.options
        for name, asked, granted in (
            ("header", options.hdr_digest, parameters.header_digest),
            ("data", options.data_digest, parameters.data_digest),
        ):
            if asked and not granted:
                raise TransportError(
                    f"{self.endpoint.peer_address} does not offer {name} digests, which were asked for"
                )
            if granted:
                warn_if_slow()

    # -- out

    def send(self, request: Request, more: bool) -> None:
        """Queue a command; it leaves with all others of this turn of the loop."""
        try:
            self.connection.send_command(request.cid, request.sqe, request.data_out, request.data_in)
        except LocalProtocolError as error:
            # not from here: the controller above is in the middle of a submission
            self.loop.call_soon(self._lost, error)
            return
        driver = self.driver
        if driver.woken:
            return
        if not more and len(self.queue.requests) == 1:
            driver.flush()
        else:
            driver.wake()

    def send_batch(self, batch: CommandSeries, cids: Sequence[int]) -> None:
        """Queue several commands; they leave at once when nothing else is under way, as `send` does it."""
        connection = self.connection
        try:
            send = connection.send_writes if batch.write else connection.send_reads
            send(cids, batch.sqe, batch.slbas, batch.buffers)
        except LocalProtocolError as error:
            self.loop.call_soon(self._lost, error)
            return
        if not self.driver.woken:
            if len(self.queue.requests) == len(cids):
                self.driver.flush()
            else:
                self.driver.wake()

    def sent(self) -> None:
        """Do nothing: the host's output is bounded by its commands, and nothing waits for room."""

    # -- in

    def poll(self) -> int:
        """Read and handle received data; return how many commands completed."""
        completed = self.queue.completed
        self.driver.readable()
        return self.queue.completed - completed

    def handle(self, events: list[Event], now: float) -> None:
        """Complete commands, and act on what ends the connection."""
        for event in events:
            if type(event) is Completions:
                self.queue.complete(event.entries)
            elif not self.driver.closed:
                self._handlers[type(event)](event)

    def _on_ready(self, event: Ready) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _on_terminated(self, event: Terminated) -> None:
        reason = fes_text(event.fes)
        error = ConnectionLost(f"{self._peer} terminated queue {self.queue.qid}: {reason} (information {event.fei:#x})")
        error.__cause__ = RemoteTermination(event.fes, event.fei)
        self._lost(error)

    def _on_protocol_failure(self, event: ProtocolFailure) -> None:
        self.driver.flush()  # the TermReq
        if self.ready.done():
            self._lost(ConnectionLost(f"{self._peer} broke the protocol on queue {self.queue.qid}: {event.error}"))
        else:
            self._lost(ConnectionLost(f"cannot speak with {self._peer}: {event.error}"))

    def _on_deviation(self, event: Deviation) -> None:
        log.info("%s departs from the specification on queue %d: %s", self._peer, self.queue.qid, event.message)

    def _on_peer_closed(self, event: PeerClosed) -> None:
        if self.ready.done():
            self._lost(ConnectionLost(f"{self._peer} closed the connection of queue {self.queue.qid}"))
        else:
            self._lost(ConnectionLost(f"{self._peer} closed the connection {_UNANSWERED}"))

    @property
    def _peer(self) -> Address:
        return self.endpoint.peer_address

    def lost(self, error: OSError) -> None:
        """End the queue: the socket has failed."""
        why = error.strerror or type(error).__name__
        if self.ready.done():
            self._lost(ConnectionLost(f"the connection of queue {self.queue.qid} to {self._peer} was lost: {why}"))
        else:
            self._lost(ConnectionLost(f"{self._peer} ended the connection ({why}) {_UNANSWERED}"))

    def broken(self, error: Exception) -> None:
        """End the queue: a defect of ours."""
        log.debug("%s", self._peer, exc_info=error)
        reason = f"internal error: {type(error).__name__}: {error}"
        self._lost(ConnectionLost(f"the connection of queue {self.queue.qid} to {self._peer} was given up: {reason}"))

    def _lost(self, error: NvmeofError) -> None:
        if self.driver.closed:
            return
        if not self.ready.done():
            self.ready.set_exception(error)
            self.stop()
        else:
            self.queue.report_err(error)

    # -- the end

    def stop(self) -> None:
        """Stop: no byte is moved, no buffer touched, no completion delivered after this."""
        self.driver.stop()

    def close(self) -> None:
        """Close the connection."""
        self.driver.close()

    def closed(self) -> None:
        """Give up a handshake that is under way: the endpoint has been closed."""
        if not self.ready.done():
            self.ready.cancel()


class SocketQueueDevice(QueueDevice):
    """NVMe/TCP in software over any registered transport; ``tap`` gives each new queue's connection a tap."""

    name = "tcp"
    allowed_opts = frozenset(
        {
            "hdr_digest",
            "data_digest",
            "host_traddr",
            "host_iface",
            "tos",
            "mark",
            "congestion",
            "sndbuf_bytes",
            "rcvbuf_bytes",
            "hpda_bytes",
            "maxr2t",
            "tls",
            "concat",
        }
    )

    def __init__(self, tap: Callable[[Queue], Tap | None] | None = None) -> None:
        self._tap = tap

    def _tap_of(self, queue: Queue) -> Tap | None:
        """Return the device's tap joined with that of the trace hook, if it listens to PDUs."""
        tap = self._tap(queue) if self._tap else None
        trace = queue.trace
        if trace is None or not trace.wants_pdus:
            return tap
        counting = PduTap(trace.pdus)
        return counting if tap is None else Taps(tap, counting)

    def claim_dev(self, options: ConnectOptions) -> bool:
        return options.transport in names()

    async def setup_ctrl(self, options: ConnectOptions) -> None:
        """Do nothing: connections belong to queues."""

    async def release_ctrl(self, options: ConnectOptions) -> None:
        """Do nothing: there is nothing to free."""

    async def create_queue(self, queue: Queue) -> None:
        options = queue.options
        loop = asyncio.get_running_loop()
        deadline = loop.time() + options.connect_timeout
        socket_options = SocketOptions(
            host_traddr=options.host_traddr,
            host_iface=options.host_iface,
            tos=options.tos,
            mark=options.mark,
            congestion=options.congestion,
            sndbuf_bytes=options.sndbuf_bytes,
            rcvbuf_bytes=options.rcvbuf_bytes,
            connect_timeout_seconds=options.connect_timeout,
        )
        reach = partial(get(options.transport).connect, options.traddr, options.trsvcid, socket_options)
        endpoint = await _secured(reach, options)
        link = SocketQueue(queue, endpoint, self._tap_of(queue))
        try:
            await link.handshake(max(deadline - loop.time(), 0.1))
        except TransportError:
            link.close()
            raise
        except BaseException:
            link.close()
            endpoint.abort()
            raise
        queue.private = link

    def send_req(self, request: Request, more: bool) -> None:
        link = request.queue.private
        assert link is not None
        link.send(request, more)

    def send_batch(self, queue: Queue, batch: CommandSeries, cids: Sequence[int], requests: Sequence[Request]) -> None:
        link = _link(queue)
        assert link is not None
        link.send_batch(batch, cids)

    def give_back(self, request: Request) -> bool:
        link = _link(request.queue)
        assert link is not None
        link.connection.give_back(request.cid, request.data_out)
        return True

    def poll_queue(self, queue: Queue) -> int:
        link = _link(queue)
        return link.poll() if link is not None else 0

    def drain_queue(self, queue: Queue) -> None:
        if queue.private is not None:
            queue.private.stop()

    def destroy_queue(self, queue: Queue) -> None:
        if queue.private is not None:
            queue.private.close()

    def peer_address(self, queue: Queue) -> str | None:
        link = _link(queue)
        return None if link is None else link.endpoint.peer_address.host

    def describe(self, queue: Queue) -> QueueFacts:
        link = _link(queue)
        if link is None:
            return {"transport": queue.options.transport}
        facts = cast(QueueFacts, link.endpoint.describe().as_dict())
        parameters = link.connection.parameters
        if parameters is not None:
            facts["hdr_digest"] = parameters.header_digest
            facts["data_digest"] = parameters.data_digest
        return facts


async def _secured(reach: Callable[[], Awaitable[Endpoint]], options: ConnectOptions) -> Endpoint:
    """Return a connected endpoint, with TLS where it is asked for."""
    if options.tls is None:
        return await reach()
    from nvmeof.aio.tls import connect_tls  # only now: not every host has an OpenSSL, or needs one

    return await connect_tls(reach, options.tls, options.hostnqn, options.subnqn, options.connect_timeout)


def _link(queue: Queue) -> SocketQueue | None:
    """Return the queue's connection, where it has been created."""
    return queue.private if isinstance(queue.private, SocketQueue) else None
