"""The connections of a running target: how many it takes, what they share, and which it ends for being silent."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nvmeof.aio.polling import Poller
from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.errors import TransportError
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.security.tls.key import IdentityFields, parse_identity
from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.core.connection_limits import CONNECTIONS_MOST, STRANGERS_MOST, AddressShares, connections_most
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.pool import BufferPool, MemoryShare
from nvmeof.target.core.slices import Slices
from nvmeof.target.core.throttle import Throttle
from nvmeof.target.driver import QueueDriver
from nvmeof.target.meters import Meters
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.subsystem.config import TLS_ALLOWED, TLS_OFF
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.target.subsystem.tls_psks import psks_of
from nvmeof.trace import Trace
from nvmeof.transport.base import Address, Endpoint, say_dropped

if TYPE_CHECKING:
    from nvmeof.aio.tls import ServerHandshake, TlsEndpoint

logger = logging.getLogger("nvmeof.target")

STALLED_SECONDS: Final = 10.0
"""Memory of which none has come back for so long is taken from its association when one that has none waits for it."""
POLL_SECONDS: Final = 0.005
_GIVE_UP_SECONDS: Final = 1.0


class Connections:
    """Every connection from its acceptance to its end. Implements :class:`nvmeof.target.driver.Owner`.

    `config`: what is offered in the handshake. `connect_seconds`: a connection without a Connect command is ended after
    so long. `pool`: the memory that all share. `drivers` are the open connections, `tasks` the commands that something
    else is waited for. `trace` gets their events, `meters` count their commands. `poll_seconds`: how long I/O queues
    are polled for data; 0: never.
    """

    loop: asyncio.AbstractEventLoop
    runtime: AsyncioRuntime
    slices: Slices

    def __init__(
        self,
        config: ConnectionConfig,
        registry: TargetRegistry,
        pool: BufferPool,
        connect_seconds: float,
        trace: Trace | None = None,
        meters: Meters | None = None,
        poll_seconds: float = 0.0,
    ) -> None:
        self.trace = trace
        self.poller: Poller | None = None
        self._poll_seconds = poll_seconds
        self.meters = meters
        self.throttle: Throttle | None = None
        """Where commands wait for rate limits; None while there are none."""
        self.most = CONNECTIONS_MOST
        """The most connections, if there may be so many files."""
        self.refused = 0
        """Connections that were not taken, since their address had its share."""
        self.registry = registry
        self.pool = pool
        self.connect_seconds = connect_seconds
        self.detached_commands = DetachedCommands()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.drivers: set[QueueDriver] = set()
        self.strangers = AddressShares(STRANGERS_MOST)
        """Those that have made no Connect, by address."""
        self._config = config
        self._counted = AddressShares(CONNECTIONS_MOST)
        self._handshakes: dict[ServerHandshake, int] = {}  # TLS's, with the Port ID that they came by
        self._moves: dict[MemoryShare, tuple[int, float]] = {}  # what was last seen of a share, and when

    def start(self, runtime: AsyncioRuntime, slices: Slices) -> None:
        """Take connections from now on, on the event loop of `runtime`."""
        self.loop, self.runtime, self.slices = runtime.loop, runtime, slices
        if self._poll_seconds:
            self.poller = Poller(runtime.loop, self._poll_seconds)
        files_most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._counted.most = min(self.most, connections_most(files_most))

    def limit_rates(self) -> None:
        """Hold the queues that connect from now on to the rate limits of namespaces and hosts."""
        if self.throttle is None:
            self.throttle = Throttle(self.runtime)

    # -- beginnings ----------------------------------------------------------------------------------------------

    def accept(self, port: PortInfo, endpoint: Endpoint) -> None:
        """Serve a new connection to a port, unless its address has its share of them already."""
        if not self._admit(endpoint):
            endpoint.abort()
            return
        if port.tls == TLS_OFF:
            self._serve(port, endpoint)
        else:
            self._shake_hands(port, endpoint)

    def _serve(self, port: PortInfo, endpoint: Endpoint, secured: IdentityFields | None = None) -> None:
        local = endpoint.local_address
        seen, figures = port.seen_at(local.host, local.port), partial(_figures, endpoint)
        driver = QueueDriver(self, endpoint, seen, self._config, figures, secured)
        self.drivers.add(driver)

    def _shake_hands(self, port: PortInfo, endpoint: Endpoint) -> None:
        """Serve a connection once its TLS handshake is complete, or where the port allows it as it is."""
        from nvmeof.aio.tls import ServerHandshake, TlsEndpoint

        def done(result: TlsEndpoint | TransportError) -> None:
            self._handshakes.pop(handshake, None)
            if isinstance(result, TlsEndpoint):
                serve(result, parse_identity(result.psk_identity))
                return
            self._release(endpoint)
            left_out = self.registry.peer_log.strangers.admit(str(endpoint.peer_address), self.loop.time())
            if left_out is not None:
                logger.warning("%s: connection ended: %s%s", endpoint.peer_address, result, left_out_text(left_out))

        def plain(unencrypted: Endpoint) -> None:
            self._handshakes.pop(handshake, None)
            serve(unencrypted, None)

        def serve(ready: Endpoint, secured: IdentityFields | None) -> None:
            try:
                self._serve(port, ready, secured)
            except Exception as error:
                say_dropped(ready.peer_address, error)
                self._release(endpoint)
                ready.abort()

        handshake = ServerHandshake(
            endpoint,
            partial(psks_of, self.registry, port, self.loop.time),
            port.suites,
            done,
            self.connect_seconds,
            plain=plain if port.tls == TLS_ALLOWED else None,
            turns=self.slices,
        )
        self._handshakes[handshake] = port.portid
        handshake.start()

    def _release(self, endpoint: Endpoint) -> None:
        """Note the end of a connection that has not become a queue."""
        self._counted.give(endpoint.peer_address.host)
        self.strangers.give(endpoint.peer_address.host)

    def _admit(self, endpoint: Endpoint) -> bool:
        """Count a new connection, unless its address has its share of them already."""
        address = endpoint.peer_address.host
        if self._counted.take(address):
            if self.strangers.take(address):
                return True
            self._counted.give(address)
        self.refused += 1
        self.registry.happenings.tell("refused", peer=str(endpoint.peer_address), reason="too many connections")
        audit = self.registry.peer_log.audit
        if audit is not None:
            audit(AuditEvent.CONNECTION_REFUSED, granted=False, peer=str(endpoint.peer_address))
        left_out = self.registry.peer_log.strangers.admit(str(endpoint.peer_address), self.loop.time())
        if left_out is not None:
            logger.warning(
                "%s: connection refused: of %d open ones, %d have made no Connect, and too many are of this address%s",
                endpoint.peer_address,
                self._counted.taken,
                self.strangers.taken,
                left_out_text(left_out),
            )
        return False

    def connected(self, driver: QueueDriver) -> None:
        """Note that a connection has completed its Connect."""
        self.strangers.give(driver.endpoint.peer_address.host)
        self.registry.happenings.tell("connected", **_whose(driver))

    def ended(self, driver: QueueDriver) -> None:
        """Note the end of a connection."""
        if driver in self.drivers:
            self.drivers.discard(driver)
            self._counted.give(driver.endpoint.peer_address.host)
            if driver.said:
                self.registry.happenings.tell("disconnected", **_whose(driver), reason=driver.reason)
            else:
                self.strangers.give(driver.endpoint.peer_address.host)

    def endpoints(self, portid: int) -> list[Endpoint]:
        """Return the endpoints of the open connections that came by a port."""
        return [driver.endpoint for driver in self.of_port(portid)]

    def of_port(self, portid: int) -> list[QueueDriver]:
        """Return the open connections that came by a port."""
        return [driver for driver in self.drivers if driver.port.portid == portid]

    def of_subsystem(self, subsystem: Subsystem, portid: int | None = None) -> list[QueueDriver]:
        """Return the open connections of a subsystem's associations, on all ports or on one."""
        return [
            driver
            for driver in self.drivers
            if (association := driver.association) is not None
            and subsystem.controllers.get(association.cntlid) is association
            and portid in (None, association.ana.portid)
        ]

    # -- what is silent ------------------------------------------------------------------------------------------

    def end_unconnected(self, now: float) -> float | None:
        """End connections that have made no Connect in time; when the next of them is due, if any."""
        following: float | None = None
        for driver in list(self.drivers):
            if driver.connected:
                continue
            due = driver.opened_at + self.connect_seconds
            if now >= due:
                driver.finish_unconnected(self.connect_seconds)
            else:
                following = due if following is None else min(following, due)
        return following

    def end_stalled(self, now: float) -> None:
        """End associations that keep all memory from one that has none, and neither take nor send any data."""
        if not self.pool.starving:
            self._moves.clear()
            return
        for driver in list(self.drivers):
            share, controller = driver.queue.share, driver.association
            moves, since = self._moves.get(share, (-1, now))
            if controller is None or not share.held_bytes or moves != share.moves:
                self._moves[share] = (share.moves, now)
            elif now - since >= STALLED_SECONDS and self.pool.starving:
                seconds = f"{STALLED_SECONDS:g}"
                controller.destroy(
                    f"it has moved no data for {seconds} s, and others wait for the memory that it holds"
                )

    # -- endings -------------------------------------------------------------------------------------------------

    def drain(self, *, receive: bool) -> bool:
        """Begin no further command on any I/O queue; return whether none is in progress. `receive`: still wait for data
        of R2Ts.
        """
        busy = sum(not driver.drain(receive=receive) for driver in self.drivers)  # calls each, not the first alone
        return not busy

    async def drain_some(self, drivers: Collection[QueueDriver], deadline: float) -> list[QueueDriver]:
        """Begin no further command on these connections' I/O queues, and wait until those in progress have ended.

        Returns the connections of which some have not at `deadline` (of the loop's clock). The connections have to be
        ended then: what their hosts send stays unanswered.
        """
        while True:
            busy = [each for each in drivers if each in self.drivers and not each.drain(receive=True)]
            if not busy or self.loop.time() >= deadline:
                return busy
            await asyncio.sleep(POLL_SECONDS)

    async def end(self, drivers: Collection[QueueDriver], reason: str, deadline: float) -> list[str]:
        """End connections and wait until they have closed and their commands have ended.

        What is open at `deadline` (of the loop's clock) is closed without sending what is queued. Returns a sentence
        for each connection of which something goes on even so.
        """
        for driver in drivers:
            driver.queue.lost(reason)
        while any(self._goes_on(driver) for driver in drivers) and self.loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        for driver in drivers:
            if driver in self.drivers:
                driver.abort(reason)
        left = [driver for driver in drivers if self._goes_on(driver)]
        return [
            f"{driver.queue.ctx.peer}: {len(driver.queue.running) or 'no'} commands of queue {driver.queue.ctx.qid} "
            f"are in progress still{', and it is not closed' if driver in self.drivers else ''}"
            for driver in left
        ]

    def _goes_on(self, driver: QueueDriver) -> bool:
        return driver in self.drivers or bool(driver.queue.running)

    def end_handshakes(self, portid: int | None = None) -> None:
        """End the TLS handshakes under way, at all ports or at one."""
        for handshake in [each for each, number in self._handshakes.items() if portid in (None, number)]:
            del self._handshakes[handshake]
            handshake.cancel()
            self._release(handshake.endpoint)

    def abort(self, reason: str) -> None:
        """End all connections at once, without sending what is queued."""
        for driver in list(self.drivers):
            driver.abort(reason)

    async def stop(self, reason: str, expired: Callable[[], bool]) -> None:
        """End all queues and wait until their connections have closed and their commands have ended.

        Those that have not ended when `expired` returns True are dropped.
        """
        self.end_handshakes()
        for driver in list(self.drivers):
            driver.queue.lost(reason)
        while (self.drivers or self.tasks) and not expired():  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        self.abort(reason)
        if self.poller is not None:
            self.poller.close()
        await self._give_up_tasks()

    async def _give_up_tasks(self) -> None:
        """Cancel commands that have not ended by now; their memory stays with them."""
        await asyncio.sleep(0)
        left = [task for task in self.tasks if not task.done()]
        if not left:
            return
        logger.warning("%d commands were still in progress and are given up", len(left))
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_GIVE_UP_SECONDS)


def _whose(driver: QueueDriver) -> dict[str, object]:
    """Return whose a connection is, for an event; empty before its Connect."""
    ctx = driver.queue.ctx
    if isinstance(ctx, ConnectContext):
        return {"peer": ctx.peer}
    view = ctx.view
    return {
        "peer": ctx.peer,
        "portid": driver.port.portid,
        "subnqn": view.subnqn,
        "host": view.host_nqn,
        "cntlid": view.cntlid,
        "qid": ctx.qid,
    }


def _figures(endpoint: Endpoint) -> dict[str, object]:
    """Return the kernel's figures of a connection, for telemetry."""
    info = asdict(endpoint.describe())
    for name in ("local", "peer"):
        info[name] = str(Address(**info[name]))
    for subflow in info["subflows"]:
        for name in ("local", "peer"):
            subflow[name] = str(Address(**subflow[name]))
    return {name: value for name, value in info.items() if value is not None and name != "token"}
