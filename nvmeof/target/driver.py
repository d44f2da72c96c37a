"""Joins one socket, one queue connection and one queue of a target, on the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from nvmeof.pdu.digest import warn_if_slow
from nvmeof.protocol.connection import ConnectionConfig, State, TargetConnection
from nvmeof.runtime import Runtime
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.core.slices import Slices
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.queue import TargetQueue
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.transport.base import Endpoint

logger = logging.getLogger("nvmeof.target")

READS_AT_A_TIME: Final = 16
"""How often a socket is read before the others get their turn."""
FLUSH_BYTES: Final = 64 * 1024
FLUSH_TURNS: Final = 2
"""While there is more to read, what is to be sent waits for company, but neither long nor without end."""
SEND_MOST_BYTES: Final = 1 << 20
"""After so much was sent in one go, also to a host that takes it as fast as it comes, the others get their turn."""
READ_SECONDS: Final = 500e-6
"""How long one socket is read in one turn of the loop, if there is more than one receive in it."""
LINGER_SECONDS: Final = 2.0
"""How long a connection that ends waits for the peer to take what is queued, and to close."""


def printable(text: str) -> str:
    """What a host sent, fit for a line of the log."""
    return text if text.isprintable() else repr(text)


class Owner(Protocol):
    """What a driver needs of its server."""

    loop: asyncio.AbstractEventLoop
    registry: TargetRegistry
    pool: BufferPool
    slices: Slices
    detached_commands: DetachedCommands
    tasks: set[asyncio.Task[Any]]

    @property
    def runtime(self) -> Runtime: ...

    def connected(self, driver: QueueDriver) -> None: ...

    def ended(self, driver: QueueDriver) -> None: ...


class QueueDriver:
    """Owns an endpoint from its acceptance to its end. Implements :class:`nvmeof.target.queue.queue.Driver`."""

    __slots__ = (
        "_blocked",
        "_closed",
        "_deferred",
        "_draining",
        "_finishing",
        "_linger",
        "_owner",
        "_paced",
        "_reading",
        "_said",
        "_slices",
        "_woken",
        "connection",
        "endpoint",
        "opened_at",
        "queue",
        "reason",
    )

    def __init__(self, owner: Owner, endpoint: Endpoint, port: PortInfo, config: ConnectionConfig) -> None:
        self._owner = owner
        self._slices = owner.slices
        self.endpoint = endpoint
        self.connection = TargetConnection(config)
        self.queue = TargetQueue(self.connection, owner.pool, owner.detached_commands, self)
        peer = str(endpoint.peer_address)
        self.queue.ctx = CommandContext(owner.runtime, owner.registry, port, self.queue, peer=peer)
        self.opened_at = owner.loop.time()
        self.reason = ""
        self.queue.slices = owner.slices
        self._paced = True  # it is no I/O queue: its work is done in slices
        self._deferred = False  # it is read when it is its host's turn
        self._blocked = False  # the socket takes nothing: wait for it
        self._reading = True
        self._finishing = False
        self._draining = False
        self._closed = False
        self._said = False
        self._woken = False
        self._linger: asyncio.TimerHandle | None = None
        endpoint.set_reader(self._readable)

    @property
    def said(self) -> bool:
        """Whether a Connect has succeeded."""
        return self._said

    @property
    def connected(self) -> bool:
        """Whether a Connect has succeeded, or would have but for commands that its host left behind."""
        return self._said or self.queue.connecting

    # -- the socket ----------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._paced:
            self._read_in_turn()
            return
        try:
            self._receive()
        except Exception as error:
            self._broken(error)

    def _read_in_turn(self) -> None:
        """What is no I/O queue is read at once only while this turn of the loop has time for it."""
        slices = self._slices
        if slices.open:
            began = slices.clock()
            self._read_now()
            slices.spend(slices.clock() - began)
        else:
            self._deferred = True
            self._update_reader()
            slices.add(self.queue.owner, self._read_now)

    def _read_now(self) -> None:
        self._deferred = False
        if self._closed:
            return
        try:
            self._receive()
            self._update_reader()
        except Exception as error:
            self._broken(error)

    def _receive(self) -> None:
        if self._finishing:
            self._discard()
            return
        connection, endpoint = self.connection, self.endpoint
        receive, receive_both, available = endpoint.recv_into, endpoint.recv_both, endpoint.available
        now, clock, until = self._owner.loop.time(), self._slices.clock, 0.0
        for turn in range(1, READS_AT_A_TIME + 1):
            buffer = connection.next_buffer(available)
            behind = connection.behind
            try:
                n = receive(buffer) if behind is None else receive_both(buffer, behind)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self.queue.lost(f"connection lost: {error.strerror or error}")
                return
            events = connection.bytes_received(n, now) if n else connection.eof_received()
            if events:
                self.queue.handle(events, now)
                if not self._said:
                    self._say_connected()
            if not turn % FLUSH_TURNS or connection.backlog_bytes >= FLUSH_BYTES:
                self._flush()
            wanted = len(buffer) if behind is None else len(buffer) + len(behind)
            # Unless the socket is blocked, what is queued has gone, and nothing speaks against reading on.
            if (
                n < wanted
                or self._finishing
                or self._woken
                or (self._blocked and not connection.want_read)
                or self.queue.crowded
            ):
                break
            if turn == 1:
                until = clock() + READ_SECONDS
            elif clock() >= until:
                break
        if connection.want_write:
            self._flush()
        self._update_reader()

    def _update_reader(self) -> None:
        wanted = not (self._closed or self._deferred) and (
            self._finishing or (self.connection.want_read and not self._draining and not self.queue.crowded)
        )
        if wanted is not self._reading:
            self._reading = wanted
            self.endpoint.set_reader(self._readable if wanted else None)

    def _flush(self) -> None:
        if self._blocked or self._closed:
            return
        connection, queue, send = self.connection, self.queue, self.endpoint.sendmsg
        left = SEND_MOST_BYTES
        while connection.want_write:
            if left <= 0 and not self._finishing:
                self.wake()
                return
            try:
                n = send(connection.data_to_send())
            except (BlockingIOError, InterruptedError):
                connection.bytes_sent(0)
                self._blocked = True
                self.endpoint.set_writer(self._writable)
                break
            except OSError as error:
                connection.bytes_sent(0)
                if self._finishing:
                    self._close()
                else:
                    queue.lost(f"connection lost: {error.strerror or error}")
                return
            connection.bytes_sent(n)
            left -= n
            if queue.held or queue.staging.reads:
                queue.resume()
        if queue.staging.counted:
            queue.staging.settle()

    def _writable(self) -> None:
        self._blocked = False
        self.endpoint.set_writer(None)
        try:
            self._flush()
            if self._closed or self._blocked:
                return
            if self._finishing:
                self._flushed()
            else:
                self._update_reader()
        except Exception as error:
            self._broken(error)

    def wake(self) -> None:
        """Something was queued outside of a read: send it with whatever else comes in this turn of the loop."""
        if not self._woken and not self._closed:
            self._woken = True
            self._owner.loop.call_soon(self._send_woken)

    def _send_woken(self) -> None:
        self._woken = False
        if self._closed:
            return
        try:
            if not self._said:
                self._say_connected()
            self._flush()
            self._update_reader()
        except Exception as error:
            self._broken(error)

    # -- commands that take their time ---------------------------------------------------------------------------

    def spawn(self, pending: Awaitable[Completion], done: Callable[[Completion], None]) -> None:
        """Wait for a command in a task of its own, to its end."""
        tasks = self._owner.tasks
        task = asyncio.ensure_future(pending, loop=self._owner.loop)

        def ended(future: asyncio.Future[Completion]) -> None:
            tasks.discard(task)
            if future.cancelled():
                return
            try:
                done(future.result())
            except Exception as error:
                self._broken(error)

        if isinstance(task, asyncio.Task):
            tasks.add(task)
        task.add_done_callback(ended)

    # -- endings -------------------------------------------------------------------------------------------------

    def drain(self, *, receive: bool) -> bool:
        """Begin no command of an I/O queue any more; True when nothing of it is in progress.

        ``receive``: data that the host was asked for is still waited for.
        """
        queue = self.queue
        if not queue.ctx.qid or self._finishing:
            return True
        idle = queue.drain()
        self._draining = not (receive and queue.receiving)
        self._update_reader()
        return (idle or (self._draining and not queue.pending)) and not self.connection.want_write

    def finish(self, reason: str, *, fault: bool = False) -> None:
        """The queue has ended: send what is queued, wait a little for the peer to close, close."""
        if self._finishing:
            return
        self._finishing = True
        self.reason = reason
        self._say_ended(logging.WARNING if fault else logging.INFO)
        terminating = self.connection.state is State.TERMINATING
        if self.connection.want_write:
            self._linger = self._owner.loop.call_later(LINGER_SECONDS, self._close)
            self._flush()
            if self._blocked or self._closed:
                return
        if terminating:
            self._flushed()
        else:
            self._close()

    def _flushed(self) -> None:
        """Everything is with the kernel. A socket closed with bytes unread would take a TermReq along."""
        if self._linger is None:
            self._close()
            return
        self.endpoint.shutdown()
        self._update_reader()

    def _discard(self) -> None:
        """Read what still comes until the peer closes."""
        scratch = memoryview(bytearray(65536))
        for _ in range(READS_AT_A_TIME):
            try:
                n = self.endpoint.recv_into(scratch)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                n = 0
            if not n:
                self._close()
                return

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._linger is not None:
            self._linger.cancel()
        self.connection.close()
        self.queue.staging.settle()
        self.endpoint.set_reader(None)
        self.endpoint.set_writer(None)
        self.endpoint.close()
        self._owner.ended(self)

    def abort(self, reason: str, *, fault: bool = False) -> None:
        """End at once, without sending what is queued."""
        self.queue.lost(reason, fault=fault)
        self._close()

    def _broken(self, error: Exception) -> None:
        """A defect of ours: this connection ends and says why; the others go on."""
        logger.debug("%s", self.queue.ctx.peer, exc_info=error)
        self.abort(f"internal error: {type(error).__name__}: {error}", fault=True)

    def finish_unconnected(self, seconds: float) -> None:
        """The host has made no Connect in time."""
        self.queue.lost(f"no Connect within {seconds:g} s")

    # -- what is said --------------------------------------------------------------------------------------------

    def _say_connected(self) -> None:
        ctx = self.queue.ctx
        controller = ctx.controller
        if controller is None:
            return
        self._said = True
        self._paced = not ctx.qid
        self._owner.connected(self)
        left_out = self._owner.registry.peer_log.hosts.admit(ctx.peer, self._owner.loop.time())
        if left_out is None:
            return
        info = self.endpoint.describe()
        transport = info.protocol
        if info.fallback:
            transport += f", fallback from {info.transport}"
        parameters = self.connection.parameters
        digests = ""
        if parameters is not None and (parameters.header_digest or parameters.data_digest):
            names = [n for n, on in (("header", parameters.header_digest), ("data", parameters.data_digest)) if on]
            digests = f", {' and '.join(names)} digests"
            warn_if_slow()
        logger.info(
            "%s: queue %d of controller %d connected (%s%s), %d entries, subsystem %s, host %s%s",
            ctx.peer,
            ctx.qid,
            controller.cntlid,
            transport,
            digests,
            ctx.entries,
            controller.subsystem.nqn,
            printable(ctx.host_nqn),
            left_out_text(left_out),
        )

    def _say_ended(self, level: int) -> None:
        ctx, peers = self.queue.ctx, self._owner.registry.peer_log
        left_out = (peers.hosts if self._said else peers.strangers).admit(ctx.peer, self._owner.loop.time())
        if left_out is None:
            return
        text = left_out_text(left_out)
        if self._said:
            logger.log(
                level,
                "%s: queue %d ended: %s (%d commands, %d refused)%s",
                ctx.peer,
                ctx.qid,
                self.reason,
                ctx.counters.commands,
                ctx.counters.errors,
                text,
            )
        else:
            logger.log(level, "%s: connection ended before Connect: %s%s", ctx.peer, self.reason, text)
