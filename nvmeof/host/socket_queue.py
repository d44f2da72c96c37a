"""The software queue device: NVMe/TCP by a queue connection over an endpoint of a transport (tcp, mptcp, memory).

One :class:`SocketQueue` per queue. Commands that are submitted in one turn of the event loop leave in one
``sendmsg``; the first command of an idle queue leaves at once, which is what a lone caller's latency wants.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from nvmeof.errors import ConnectionLost, ConnectTimeout, LocalProtocolError, NvmeofError, TransportError
from nvmeof.host.facts import QueueFacts
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import Queue, QueueDevice, Request
from nvmeof.pdu.digest import warn_if_slow
from nvmeof.pdu.termination import fes_text
from nvmeof.protocol.connection import ConnectionConfig, HostConnection, State, Tap
from nvmeof.protocol.events import Completions, Deviation, Event, PeerClosed, ProtocolFailure, Ready, Terminated
from nvmeof.spec.sqe import SQE_BYTES
from nvmeof.transport import Address, Endpoint, SocketOptions, get, names

log = logging.getLogger("nvmeof.host")
ADMIN_RECEIVE_BYTES = 16 * 1024
IO_RECEIVE_BYTES = 128 * 1024
_UNANSWERED = "in place of an answer to ICReq: does that port require TLS, which this host does not speak?"
READS_PER_WAKEUP = 16
"""Socket reads before the event loop's other work gets its turn."""


class SocketQueue:
    """The connection of one queue: moves bytes between endpoint and protocol, and completions up."""

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
        self.ready: asyncio.Future[None] = self.loop.create_future()
        self.closed = False
        self._flush_scheduled = False
        self._writing = False
        self._reading = False
        self._handlers: dict[type[Event], Callable[..., None]] = {
            Ready: self._on_ready,
            Terminated: self._on_terminated,
            ProtocolFailure: self._on_protocol_failure,
            Deviation: self._on_deviation,
            PeerClosed: self._on_peer_closed,
        }

    async def handshake(self, timeout_seconds: float) -> None:
        """ICReq and ICResp. Raises :class:`TransportError`."""
        self.connection.start()
        self.flush()
        self._read_again()
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
        if self._flush_scheduled:
            return
        if not more and len(self.queue.requests) == 1:
            self.flush()
            return
        self._flush_scheduled = True
        self.loop.call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Give the socket what there is, until it takes no more."""
        if self.closed:
            return
        connection, sendmsg = self.connection, self.endpoint.sendmsg
        while connection.want_write:
            buffers = connection.data_to_send()
            if not buffers:
                break
            try:
                taken = sendmsg(buffers)
            except BlockingIOError:
                connection.bytes_sent(0)
                if not self._writing:
                    self._writing = True
                    self.endpoint.set_writer(self.flush)
                return
            except OSError as error:
                connection.bytes_sent(0)
                self._socket_error(error)
                return
            connection.bytes_sent(taken)
        if self._writing:
            self._writing = False
            self.endpoint.set_writer(None)
        if not self._reading and connection.want_read:
            self._read_again()

    # -- in

    def _read_again(self) -> None:
        self._reading = True
        self.endpoint.set_reader(self.on_readable)

    def on_readable(self) -> int:
        """Read and handle what there is; how many commands completed."""
        connection, recv_into = self.connection, self.endpoint.recv_into
        now = self.loop.time()
        completed = self.queue.completed
        for _ in range(READS_PER_WAKEUP):
            if self.closed:
                break
            buffer = connection.next_buffer()
            try:
                received = recv_into(buffer)
            except BlockingIOError:
                break
            except OSError as error:
                self._socket_error(error)
                break
            events = connection.bytes_received(received, now) if received else connection.eof_received()
            for event in events:
                if type(event) is Completions:
                    self._complete(event.entries)
                elif not self.closed:
                    self._handlers[type(event)](event)
            if received < len(buffer):
                break
        if not self.closed:
            if not connection.want_read:
                self._reading = False
                self.endpoint.set_reader(None)
            if connection.want_write and not self._writing and not self._flush_scheduled:
                self.flush()
        return self.queue.completed - completed

    def _complete(self, entries: list[tuple[int, int, int, int]]) -> None:
        requests = self.queue.requests
        for cid, status, dw0, dw1 in entries:
            request = requests.get(cid)
            if request is None:
                return  # the queue was torn down by an earlier one
            request.done(dw0 | dw1 << 32, status)

    def _on_ready(self, event: Ready) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _on_terminated(self, event: Terminated) -> None:
        reason = fes_text(event.fes)
        self._lost(
            ConnectionLost(f"{self._peer} terminated queue {self.queue.qid}: {reason} (information {event.fei:#x})")
        )

    def _on_protocol_failure(self, event: ProtocolFailure) -> None:
        self.flush()  # the TermReq
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

    def _socket_error(self, error: OSError) -> None:
        why = error.strerror or type(error).__name__
        if self.ready.done():
            self._lost(ConnectionLost(f"the connection of queue {self.queue.qid} to {self._peer} was lost: {why}"))
        else:
            self._lost(ConnectionLost(f"{self._peer} ended the connection ({why}) {_UNANSWERED}"))

    def _lost(self, error: NvmeofError) -> None:
        if self.closed:
            return
        if not self.ready.done():
            self.ready.set_exception(error)
            self.stop()
        else:
            self.queue.report_err(error)

    # -- the end

    def stop(self) -> None:
        """No byte moves any more, no buffer is touched, no completion comes."""
        if self.closed:
            return
        self.closed = True
        self.endpoint.set_reader(None)
        self.endpoint.set_writer(None)
        if self.connection.state is not State.CLOSED:
            self.connection.close()

    def close(self) -> None:
        """Close the connection."""
        self.stop()
        if not self.ready.done():
            self.ready.cancel()
        self.endpoint.close()


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
        }
    )

    def __init__(self, tap: Callable[[Queue], Tap | None] | None = None) -> None:
        self._tap = tap

    def claim_dev(self, options: ConnectOptions) -> bool:
        return options.transport in names()

    async def setup_ctrl(self, options: ConnectOptions) -> None:
        """Nothing to prepare: connections belong to queues."""

    async def release_ctrl(self, options: ConnectOptions) -> None:
        """Nothing to free."""

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
        endpoint = await get(options.transport).connect(options.traddr, options.trsvcid, socket_options)
        link = SocketQueue(queue, endpoint, self._tap(queue) if self._tap else None)
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

    def give_back(self, request: Request) -> bool:
        link = _link(request.queue)
        assert link is not None
        link.connection.give_back(request.cid, request.data_out)
        return True

    def poll_queue(self, queue: Queue) -> int:
        link = _link(queue)
        return link.on_readable() if link is not None and not link.closed else 0

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


def _link(queue: Queue) -> SocketQueue | None:
    """Return the queue's connection, where it has been created."""
    return queue.private if isinstance(queue.private, SocketQueue) else None
