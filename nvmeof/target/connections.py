"""The connections of a running target: how many it takes, what they share, and which it ends for being silent."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.core.connection_limits import CONNECTIONS_MOST, STRANGERS_MOST, AddressShares, connections_most
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.pool import BufferPool, MemoryShare
from nvmeof.target.core.slices import Slices
from nvmeof.target.driver import QueueDriver
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.trace import Trace
from nvmeof.transport.base import Address, Endpoint

logger = logging.getLogger("nvmeof.target")

STALLED_SECONDS: Final = 10.0
"""Memory of which none has come back for so long is taken from its association when one that has none waits for it."""
POLL_SECONDS: Final = 0.005
_GIVE_UP_SECONDS: Final = 1.0


class Connections:
    """Every connection from its acceptance to its end. Implements :class:`nvmeof.target.driver.Owner`.

    `config`: what is offered in the handshake. `connect_seconds`: a connection without a Connect command is ended after
    so long. `pool`: the memory that all share. `drivers` are the open connections, `tasks` the commands that something
    else is waited for. `trace` gets their events.
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
    ) -> None:
        self.trace = trace
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
        self._moves: dict[MemoryShare, tuple[int, float]] = {}  # what was last seen of a share, and when

    def start(self, runtime: AsyncioRuntime, slices: Slices) -> None:
        """Take connections from now on, on the event loop of `runtime`."""
        self.loop, self.runtime, self.slices = runtime.loop, runtime, slices
        self._counted.most = connections_most(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    # -- beginnings ----------------------------------------------------------------------------------------------

    def accept(self, port: PortInfo, endpoint: Endpoint) -> None:
        """Serve a new connection to a port, unless its address has its share of them already."""
        if not self._admit(endpoint):
            endpoint.abort()
            return
        local = endpoint.local_address
        seen, figures = port.seen_at(local.host, local.port), partial(_figures, endpoint)
        driver = QueueDriver(self, endpoint, seen, self._config, figures)
        self.drivers.add(driver)

    def _admit(self, endpoint: Endpoint) -> bool:
        """Count a new connection, unless its address has its share of them already."""
        address = endpoint.peer_address.host
        if self._counted.take(address):
            if self.strangers.take(address):
                return True
            self._counted.give(address)
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

    def ended(self, driver: QueueDriver) -> None:
        """Note the end of a connection."""
        if driver in self.drivers:
            self.drivers.discard(driver)
            self._counted.give(driver.endpoint.peer_address.host)
            if not driver.said:
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

    def abort(self, reason: str) -> None:
        """End all connections at once, without sending what is queued."""
        for driver in list(self.drivers):
            driver.abort(reason)

    async def stop(self, reason: str, expired: Callable[[], bool]) -> None:
        """End all queues and wait until their connections have closed and their commands have ended.

        Those that have not ended when `expired` returns True are dropped.
        """
        for driver in list(self.drivers):
            driver.queue.lost(reason)
        while (self.drivers or self.tasks) and not expired():  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        self.abort(reason)
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


def _figures(endpoint: Endpoint) -> dict[str, object]:
    """Return the kernel's figures of a connection, for telemetry."""
    info = asdict(endpoint.describe())
    for name in ("local", "peer"):
        info[name] = str(Address(**info[name]))
    for subflow in info["subflows"]:
        for name in ("local", "peer"):
            subflow[name] = str(Address(**subflow[name]))
    return {name: value for name, value in info.items() if value is not None and name != "token"}
