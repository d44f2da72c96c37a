"""Joins a connection driver and one queue of a target: what the log says of a connection, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, Protocol

from nvmeof.aio.driver import Batching, ConnectionDriver
from nvmeof.aio.polling import Poller
from nvmeof.pdu.digest import warn_if_slow
from nvmeof.protocol.connection import ConnectionConfig, TargetConnection
from nvmeof.protocol.events import Event
from nvmeof.protocol.pdu_tap import PduTap
from nvmeof.runtime import Runtime
from nvmeof.security.tls.key import IdentityFields
from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.core.slices import Slices
from nvmeof.target.core.throttle import Throttle
from nvmeof.target.meters import Meters
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.limited import LimitedQueue
from nvmeof.target.queue.metering import LatencyMeter, QueueMeter
from nvmeof.target.queue.queue import TargetQueue
from nvmeof.target.queue.tracing import CommandTrace
from nvmeof.target.queue.watching import BothWatchers
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Association, Figures
from nvmeof.trace import Side, Trace, TracedQueue
from nvmeof.transport.base import Endpoint

logger = logging.getLogger("nvmeof.target")

BATCHING: Final = Batching(
    reads=16, read_seconds=500e-6, flush_reads=2, flush_bytes=64 * 1024, send_bytes=1 << 20, leave_to_wake=False
)
"""A target serves many: what one host sends and takes in one turn of the loop is bounded, and answers do not wait long
for company."""


def printable(text: str) -> str:
    """Return text of a host in a form that is safe for a line of the log."""
    return text if text.isprintable() else repr(text)


class Owner(Protocol):
    """The Protocol of a driver's server."""

    loop: asyncio.AbstractEventLoop
    registry: TargetRegistry
    pool: BufferPool
    slices: Slices
    detached_commands: DetachedCommands
    tasks: set[asyncio.Task[Any]]
    trace: Trace | None
    meters: Meters | None
    throttle: Throttle | None
    poller: Poller | None

    @property
    def runtime(self) -> Runtime: ...

    def connected(self, driver: QueueDriver) -> None: ...

    def ended(self, driver: QueueDriver) -> None: ...


class QueueDriver:
    """Serves a connection from its acceptance to its end: the consumer of its bytes, and the queue's driver.

    Implements :class:`nvmeof.aio.driver.Consumer` and :class:`nvmeof.target.queue.contract.Driver`. `port`: what the
    connection came by. `figures` returns the figures of the connection, for telemetry. `secured`: the PSK identity of
    its TLS.
    """

    __slots__ = (
        "_draining",
        "_finishing",
        "_gone",
        "_owner",
        "_said",
        "_spawned",
        "_take",
        "connection",
        "driver",
        "meter",
        "opened_at",
        "port",
        "queue",
        "reason",
    )

    def __init__(
        self,
        owner: Owner,
        endpoint: Endpoint,
        port: PortInfo,
        config: ConnectionConfig,
        figures: Figures | None = None,
        secured: IdentityFields | None = None,
    ) -> None:
        self._owner = owner
        self.connection = TargetConnection(config)
        self.queue = (
            TargetQueue(self.connection, owner.pool, owner.detached_commands, self)
            if owner.throttle is None
            else LimitedQueue(self.connection, owner.pool, owner.detached_commands, self, owner.throttle)
        )
        peer = str(endpoint.peer_address)
        self.port = port
        self.queue.ctx = ConnectContext(
            owner.runtime, owner.registry, port, self.queue, peer=peer, connection=figures, secured=secured
        )
        self.queue.pacing.slices = owner.slices
        if owner.trace is not None:
            self._listen(owner.trace, TracedQueue(Side.TARGET, peer))
        self._take = self.queue.handle
        self.meter: QueueMeter | None = None
        if owner.meters is not None:
            self._count(owner.meters, endpoint)
        self.opened_at = owner.loop.time()
        self.reason = ""
        self._finishing = False
        self._draining = False
        self._gone = False  # closed, and not forgotten
        self._spawned = 0  # commands that something else is waited for
        self._said = False
        # What is no I/O queue is read in turn with others.
        self.driver = ConnectionDriver(
            endpoint,
            self.connection,
            self,
            BATCHING,
            loop=owner.loop,
            turns=owner.slices,
            clock=owner.slices.clock,
        )
        self.driver.start()

    def _listen(self, listener: Trace, queue: TracedQueue) -> None:
        """Report the queue's commands, and its PDUs if the listener takes them."""
        self.queue.trace = trace = CommandTrace(listener, queue, self._owner.runtime.now)
        if trace.wants_pdus:
            self.connection.tap = PduTap(trace.pdus)

    def _count(self, meters: Meters, endpoint: Endpoint) -> None:
        """Count the queue's commands, beside a trace if there is one, and take their times if the meters do."""
        self.meter = meter = meters.open(self.port.portid, self.queue.handle)
        trace = self.queue.trace
        self.queue.trace = meter if trace is None else BothWatchers(trace, meter)
        if isinstance(meter, LatencyMeter):
            self._take = meter.handle
            endpoint.sendmsg = meter.sendmsg(endpoint.sendmsg)

    @property
    def endpoint(self) -> Endpoint:
        """The connection's endpoint."""
        return self.driver.endpoint

    @property
    def said(self) -> bool:
        """Whether a Connect has succeeded."""
        return self._said

    @property
    def association(self) -> Association | None:
        """The controller that the queue belongs to; None before Connect, and when the queue has ended."""
        ctx = self.queue.ctx
        if isinstance(ctx, ConnectContext) or ctx.detached:
            return None
        return self._owner.registry.association(ctx.view.subnqn, ctx.view.cntlid)

    @property
    def connected(self) -> bool:
        """Whether a Connect has succeeded, or would have but for commands that its host left behind."""
        return self._said or self.queue.connecting

    # -- what the connection driver asks -------------------------------------------------------------------------

    @property
    def owner(self) -> Hashable:
        """Whose turns reading takes before the Connect of an I/O queue."""
        return self.queue.pacing.owner

    def handle(self, events: list[Event], now: float) -> None:
        """Handle the events of one receive."""
        self._take(events, now)
        if not self._said:
            self._say_connected()

    def sent(self) -> None:
        """Go on with commands that waited until some of the output had gone."""
        queue = self.queue
        staging = queue.staging
        if queue.held or staging.reads:
            queue.resume()
        if staging.counted:
            staging.settle()
        if not (staging.counted or queue.held or staging.reads):
            self.driver.tell_sent = False

    def lost(self, error: OSError) -> None:
        """End the queue: the socket has failed."""
        self.queue.lost(f"connection lost: {error.strerror or error}")

    def broken(self, error: Exception) -> None:
        """End this connection after a defect of the target, and log it; other connections go on."""
        logger.debug("%s", self.queue.ctx.peer, exc_info=error)
        self.abort(f"internal error: {type(error).__name__}: {error}", fault=True)

    def closed(self) -> None:
        """Give back what the connection's output held, and leave the target."""
        self.queue.staging.settle()
        if self._owner.poller is not None:
            self._owner.poller.remove_connection(self.driver)
        if self.queue.trace is not None:
            self.queue.trace.ended(self.reason)
        if self.meter is not None and self._owner.meters is not None:
            self._owner.meters.close(self.meter)
        self._owner.ended(self)
        self._gone = True
        self._owner.loop.call_soon(self._forget)  # not here: this is called from within

    def _forget(self) -> None:
        """Break the reference cycles, once no further call can come."""
        if self._gone and not self._spawned:
            self._gone = False
            self.queue.forget()
            del self.driver

    # -- what the queue asks -------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Send what was queued outside of a read."""
        self.queue.io.served = True
        if not self._said:
            self._say_connected()
        self.driver.wake()

    def wait_for_room(self) -> None:
        """Call the queue when some of the output has gone."""
        self.driver.tell_sent = True

    def hold_receiving(self, crowded: bool) -> None:
        """Stop receiving commands while the queue is crowded; the next `wake` begins again."""
        self.driver.receiving = not (crowded or self._draining or self._finishing)

    def spawn(self, pending: Awaitable[Completion], done: Callable[[Completion], None]) -> None:
        """Await a command in a separate task, to its end."""
        tasks = self._owner.tasks
        task = asyncio.ensure_future(pending, loop=self._owner.loop)

        def ended(future: asyncio.Future[Completion]) -> None:
            tasks.discard(task)
            self._spawned -= 1
            if not future.cancelled():
                try:
                    done(future.result())
                except Exception as error:
                    self.broken(error)
            if self._gone:
                self._forget()

        self._spawned += 1
        if isinstance(task, asyncio.Task):
            tasks.add(task)
        task.add_done_callback(ended)

    # -- endings -------------------------------------------------------------------------------------------------

    def drain(self, *, receive: bool) -> bool:
        """Begin no further command of an I/O queue; return whether none is in progress. ``receive``: still wait for
        data of R2Ts.
        """
        queue = self.queue
        if not queue.ctx.qid or self._finishing:
            return True
        idle = queue.drain()
        self._draining = not (receive and queue.receiving)
        self.hold_receiving(queue.crowded)
        self.driver.update_reader()
        return (idle or (self._draining and not queue.pending)) and not self.connection.want_write

    def finish(self, reason: str, *, fault: bool = False) -> None:
        """Log why the queue has ended; send what is queued, and close: at once, or when it is the host's turn."""
        if self._finishing:
            return
        self._finishing = True
        self.reason = reason
        if self.meter is not None and self._owner.meters is not None:
            self._owner.meters.ending(self.meter, self.endpoint.describe(), fault=fault)
        self._say_ended(logging.WARNING if fault else logging.INFO)
        slices = self._owner.slices
        if slices.open:
            began = slices.clock()
            self.driver.finish()
            slices.spend(slices.clock() - began)
        else:
            self.driver.receiving = False
            self.driver.update_reader()
            slices.add(self.owner, self.driver.finish)

    def abort(self, reason: str, *, fault: bool = False) -> None:
        """End at once, without sending what is queued."""
        self.queue.lost(reason, fault=fault)
        self.driver.close()

    def finish_unconnected(self, seconds: float) -> None:
        """End a connection whose host has made no Connect in time."""
        self.queue.lost(f"no Connect within {seconds:g} s")

    # -- what is said --------------------------------------------------------------------------------------------

    def _say_connected(self) -> None:
        ctx = self.queue.ctx
        if isinstance(ctx, ConnectContext) or self._gone:  # what came behind the Connect may have ended it
            return
        self._said = True
        self.driver.handle = self._take  # there is no Connect to look for from here on
        if ctx.qid:
            poller = self._owner.poller
            if poller is None:
                self.driver.turns = None
            else:
                poller.add_connection(self.driver)
            self.queue.io = self._owner.slices.io
        self._owner.connected(self)
        left_out = self._owner.registry.peer_log.hosts.admit(ctx.peer, self._owner.loop.time())
        if left_out is None:
            return
        info = self.endpoint.describe()
        transport = info.protocol
        if info.fallback:
            transport += f", fallback from {info.transport}"
        if info.tls is not None:
            transport += f", {info.tls}"
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
            ctx.view.cntlid,
            transport,
            digests,
            ctx.entries,
            ctx.view.subnqn,
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
