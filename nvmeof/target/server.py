"""A target on an event loop: its start, its stop, and what it does every second or so.

>>> async with Target(namespaces=[Ramdisk("1G")]) as target:
...     print(target.address, target.subnqn)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final

from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.errors import ConfigurationError, LocalProtocolError
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.target.administration import Administration
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.connections import POLL_SECONDS, Connections
from nvmeof.target.core.audit import Audit
from nvmeof.target.core.owner import OWNER
from nvmeof.target.core.pool import RESERVE_SHARE, BufferPool
from nvmeof.target.core.slices import Slices
from nvmeof.target.core.tables import Tables
from nvmeof.target.document import CONNECT_SECONDS, TargetSettings, from_document
from nvmeof.target.driver import QueueDriver
from nvmeof.target.handover import Handover, SubsystemState
from nvmeof.target.meters import Meters
from nvmeof.target.namespaces.endurance_group import Pool
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.namespaces.zones import Zones
from nvmeof.target.ports import Port, Ports
from nvmeof.target.queue.limited import LimitedQueue
from nvmeof.target.served_subsystem import ServedSubsystem
from nvmeof.target.simple_config import DEFAULT_SUBNQN, namespace_config, simple_config, warn_of_memory
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.threads import give_way
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.namespace_kinds import NamespaceKinds
from nvmeof.target.subsystem.registry import TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.trace import Trace, join
from nvmeof.transport.base import Address, Listener, SocketOptions
from nvmeof.transport.paths.model import PathEndpoint
from nvmeof.transport.paths.session import PathOptions
from nvmeof.transport.service_manager import adopt_sockets

logger = logging.getLogger("nvmeof.target")

DRAIN_SECONDS: Final = 10.0
"""How long a stop waits for commands in progress."""
RECEIVE_SECONDS: Final = 2.0
"""Seconds of the stop that wait for data of R2Ts."""
_TICK_SECONDS: Final = 1.0
_SHORTEST_TICK_SECONDS: Final = 0.02
_TICK_SHARE: Final = 50
"""The event loop spends at most this fraction of its time in ticks, however many connections there are."""


def _ownerless() -> Context:
    """Return the context of background work, which belongs to no command's association."""
    context = copy_context()
    context.run(OWNER.set, None)
    return context


class Target:
    """Serves subsystems to NVMe/TCP and NVMe-over-MPTCP hosts, within ``async with`` or from ``start`` to ``stop``.

    ::

        async with Target(namespaces=[Ramdisk("1G"), FileBackend("/srv/disk.img")], listen="192.0.2.1") as target:
            await asyncio.Event().wait()

    Either a whole ``config``, or the parts of a simple one: ``namespaces`` (backends or NamespaceConfig) of one
    subsystem ``subnqn``, offered by transport ``trtype`` on the addresses ``listen`` (``host:port``, port 0 for any
    free one) to ``allowed_hosts`` (None: to any host).

    ``pool``: what hosts may create namespaces from (a ``RamdiskPool`` or a ``FilePool``); without one they cannot.
    ``digests``: grant header and data digests to hosts that ask. ``options``: socket options of all listeners.
    ``paths``: the addresses that MPTCP announces to hosts. ``connect_seconds``: a connection without a Connect command
    is closed after so long.
    ``connection``: what is offered in the handshake; see :class:`~nvmeof.protocol.connection.ConnectionConfig`.
    ``tables``: its commands, log pages and features; see :func:`~nvmeof.target.commands.standard.standard_tables`.
    ``trace``: called with PDUs and the steps of every command; see :mod:`nvmeof.trace`. ``meters``: count the commands
    of every queue; see :mod:`nvmeof.target.metrics`.
    ``audit``: told of connects, refusals, authentications and commands that change what other hosts see; an
    :class:`~nvmeof.target.audit_log.AuditLog` writes them to a file. ``handover``: what another target has left
    (`hand_over`), for the first start; that start accepts no connections until `accept`.

    Raises :class:`~nvmeof.errors.ConfigurationError` for options that cannot be used, and on start
    :class:`~nvmeof.errors.TransportError` for an address that cannot be listened on.
    """

    def __init__(
        self,
        config: TargetConfig | None = None,
        *,
        namespaces: Iterable[Backend | NamespaceConfig] = (),
        subnqn: str = DEFAULT_SUBNQN,
        trtype: str = "mptcp",
        listen: str | Sequence[str] = "127.0.0.1:0",
        allowed_hosts: Iterable[str] | None = None,
        pool: Pool | None = None,
        digests: bool = True,
        options: SocketOptions | None = None,
        connection: ConnectionConfig | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        paths: PathOptions | None = None,
        tables: Tables | None = None,
        trace: Trace | None = None,
        meters: Meters | None = None,
        audit: Audit | None = None,
        handover: Handover | None = None,
    ) -> None:
        if config is None:
            config = simple_config(namespaces, subnqn, trtype, listen, allowed_hosts, pool)
        self.config = config
        self.options = options or SocketOptions()
        self.tables = tables or standard_tables()
        self.trace: Trace | None = join(trace)
        self.meters = meters
        self.audit = audit
        self.connect_seconds = connect_seconds
        self._offered = connection or ConnectionConfig(header_digest=digests, data_digest=digests)
        largest = max((s.incapsule_bytes for s in config.subsystems), default=0)
        self._connection_config = replace(self._offered, incapsule_bytes=max(8192, largest))
        self.loop: asyncio.AbstractEventLoop
        self.runtime: AsyncioRuntime
        self.slices: Slices
        self._path_options = paths or PathOptions()
        self._started = self._ended = False
        self._handover = handover
        self._new_run()

    @classmethod
    def from_document(cls, document: object, *, tables: Tables | None = None, trace: Trace | None = None) -> Target:
        """Make the target that a document describes, such as one that `Administration.save` has returned.

        Raises ConfigurationError that names the entry that is wrong.
        """
        return cls.from_settings(from_document(document), tables=tables, trace=trace)

    @classmethod
    def from_settings(
        cls,
        settings: TargetSettings,
        *,
        tables: Tables | None = None,
        trace: Trace | None = None,
        meters: Meters | None = None,
        audit: Audit | None = None,
        handover: Handover | None = None,
    ) -> Target:
        """Make the target that settings describe."""
        return cls(
            settings.config,
            options=settings.sockets,
            connection=settings.connection,
            connect_seconds=settings.connect_seconds,
            paths=settings.paths,
            tables=tables,
            trace=trace,
            meters=meters,
            audit=audit,
            handover=handover,
        )

    @property
    def settings(self) -> TargetSettings:
        """The arguments of the target."""
        return TargetSettings(
            config=self.config,
            sockets=self.options,
            connection=self._offered,
            connect_seconds=self.connect_seconds,
            paths=self._path_options,
        )

    def _new_run(self) -> None:
        """Make the objects that live from a start to a stop."""
        self.registry = TargetRegistry(self.tables)
        self.registry.peer_log.audit = self.audit
        config = self.config
        longest = max((s.transfer_limit_bytes for s in config.subsystems), default=0)
        self.pool = BufferPool(config.staging_bytes, reserve_bytes=max(config.staging_bytes // RESERVE_SHARE, longest))
        self.connections = Connections(
            self._connection_config,
            self.registry,
            self.pool,
            self.connect_seconds,
            self.trace,
            self.meters,
            config.poll_seconds,
        )
        self.ports = Ports(self.options, self.connections.accept, self.connections.endpoints, config.ports)
        self.ports.path_options = self._path_options
        """The ports that are listened on, by Port ID."""
        self.administration = Administration(self)
        self.unflushed: list[str] = []
        """Backends that could not be flushed at the end: their last writes may be lost."""
        self._served: dict[str, ServedSubsystem] = {}  # by NQN
        self._handed: Mapping[str, SubsystemState] = {}  # what another target has left of subsystems, by NQN
        self._closing: dict[str, asyncio.Task[None]] = {}  # those that are being closed, by NQN
        self._timer: asyncio.TimerHandle | None = None
        self._stop_by: float | None = None

    # -- what a user looks at ------------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """The first address that is listened on, with its real port. Raises LocalProtocolError before ``start``."""
        if not self.listeners:
            raise LocalProtocolError("the target has no address yet: await start() first, or use `async with`")
        return self.listeners[0].address

    @property
    def listeners(self) -> list[Listener]:
        """The listeners of all ports."""
        return self.ports.listeners

    @property
    def addresses(self) -> list[Address]:
        """All addresses that are listened on; none before ``start``."""
        return [listener.address for listener in self.listeners]

    @property
    def subnqn(self) -> str:
        """The NQN of the first subsystem."""
        return self.config.subsystems[0].nqn

    @property
    def subsystems(self) -> dict[str, Subsystem]:
        """The subsystems by NQN."""
        return self.registry.subsystems

    @property
    def drivers(self) -> set[QueueDriver]:
        """The open connections."""
        return self.connections.drivers

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """The commands that something else is waited for."""
        return self.connections.tasks

    @property
    def _opened(self) -> list[Subsystem]:
        """The subsystems that exist, also those that are not offered yet."""
        return [each.opened for each in self._served.values() if each.opened is not None]

    # -- start and stop ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the namespaces and listen. A failure closes everything again.

        A target can start again after ``stop`` or a ``start`` that failed, with what its configuration says: ramdisks
        are empty then, and namespaces that were added before the stop are gone. Raises ConfigurationError,
        TransportError and OSError; LocalProtocolError while it runs.
        """
        if self._started:
            raise LocalProtocolError("the target runs already: stop() comes before another start()")
        if self._ended:
            self._new_run()
        self._started = True
        warn_of_memory(self.config)
        self.loop = asyncio.get_running_loop()
        self.slices = Slices(self.loop.call_soon, time.perf_counter, give_way=give_way)
        self.ports.turns = self.slices
        self.runtime = AsyncioRuntime(
            logger, self.loop, in_turn=partial(self.slices.add, whole=True), background_context=_ownerless
        )
        self.registry.started_at = self.loop.time()
        self.connections.most = self.config.max_connections
        self.connections.start(self.runtime, self.slices)
        handover, self._handover = self._handover, None
        self._handed = {} if handover is None else handover.subsystems
        if handover is not None:
            self.ports.hold()
            adopt_sockets(handover.sockets)
            self.registry.generation = handover.generation
            self.registry.discovery.continue_cntlids(*handover.discovery_cntlids)
        try:
            for subsystem_config in self.config.subsystems:
                await self.start_subsystem(subsystem_config)
            started = [await self._listen(port) for port in self.config.ports]
            if self._path_options.wanted:
                self.ports.announcing()  # raises where there is none
            for each in started:
                await self.ports.announce(each)
        except BaseException:
            await self.stop()
            raise
        self._handed = {}
        self._tick()

    def accept(self) -> None:
        """Accept connections after a start from a handover."""
        self.ports.go_on()

    def limit_rates(self) -> list[str]:
        """Hold queues to the rate limits that there are now; return the peers of those that were there before."""
        self.connections.limit_rates()
        assert self.connections.throttle is not None
        self.connections.throttle.serve()
        return [
            driver.queue.ctx.peer
            for driver in self.drivers
            if driver.queue.ctx.qid and not isinstance(driver.queue, LimitedQueue)
        ]

    async def start_subsystem(self, config: SubsystemConfig) -> None:
        """Open what a subsystem consists of and offer it. What was opened is closed again when that fails.

        Raises ConfigurationError and OSError. `Administration.add_subsystem` is this for a target that runs.
        """
        if config.nqn in self._closing:
            raise ConfigurationError(f"the subsystem {config.nqn} is being removed; add it when that has ended")
        if config.nqn in self._served:
            raise ConfigurationError(f"the subsystem {config.nqn} exists already")
        if config.has_rate_limits:
            self.connections.limit_rates()
        served = ServedSubsystem(config, self.runtime, self.unflushed, self._handed.get(config.nqn))
        self._served[config.nqn] = served
        try:
            subsystem = await served.open(self.tables[NamespaceKinds], self.ports.values())
            self.registry.add_subsystem(subsystem)
        except BaseException:
            await self._served.pop(config.nqn).close()
            raise
        subsystem.resume(self.runtime)

    async def stop_subsystem(self, subsystem: Subsystem, deadline: float) -> list[str]:
        """Stop offering a subsystem: its associations end, its namespaces are flushed and closed.

        Returns what has not ended at `deadline` (of the loop's clock), a sentence each; it goes on in the background.
        """
        drivers = self.connections.of_subsystem(subsystem)
        self.registry.remove_subsystem(subsystem.nqn)
        closing = self.loop.create_task(self._served.pop(subsystem.nqn).close())
        self._closing[subsystem.nqn] = closing
        closing.add_done_callback(lambda _: self._closing.pop(subsystem.nqn, None))
        left = await self.connections.end(drivers, "the subsystem was removed", deadline)
        await asyncio.wait([closing], timeout=max(0.0, deadline - self.loop.time()))
        if not closing.done():
            left.append(f"the namespaces of {subsystem.nqn} are being flushed and closed still")
        elif not closing.cancelled() and (error := closing.exception()) is not None:
            left.append(f"the namespaces of {subsystem.nqn} could not all be closed: {error}")
        return left

    async def start_port(self, config: PortConfig) -> Port:
        """Listen on an address, offer subsystems there, and announce what its configuration says.

        Raises ConfigurationError and TransportError; nothing is left of it then.
        """
        port = await self._listen(config)
        try:
            await self.ports.announce(port)
        except BaseException:
            self.ports.stop(port)
            self.registry.remove_port(port.portid)
            raise
        return port

    async def _listen(self, config: PortConfig) -> Port:
        running = tuple(port.config for port in self.ports.values())
        replace(self.config, ports=(*running, config))  # raises for an address that is taken
        port = await self.ports.start(config, self._opened)
        self.registry.add_port(port.info)
        return port

    async def stop_port(self, port: Port, deadline: float) -> list[str]:
        """Stop listening on a port; its associations and connections end.

        Returns what has not ended at `deadline` (of the loop's clock), a sentence each.
        """
        reason = f"port {port.portid} was removed"
        drivers = self.connections.of_port(port.portid)
        self.ports.stop(port)
        self.connections.end_handshakes(port.portid)
        self.registry.remove_port(port.portid)
        for subsystem in (*self.subsystems.values(), self.registry.discovery):
            _end_associations(subsystem, port, reason)
            subsystem.ana.forget(port.portid)
        return await self.connections.end(drivers, reason, deadline)

    async def unlink(self, port: Port, subsystem: Subsystem, deadline: float) -> list[str]:
        """Stop offering a subsystem on a port; its associations there end.

        Returns what has not ended at `deadline` (of the loop's clock), a sentence each.
        """
        reason = f"{subsystem.nqn} is no longer offered on port {port.portid}"
        drivers = self.connections.of_subsystem(subsystem, port.portid)
        self.registry.change_port(port.info)
        _end_associations(subsystem, port, reason)
        return await self.connections.end(drivers, reason, deadline)

    async def drain(self, subsystem: Subsystem | None, portid: int | None, seconds: float) -> list[str]:
        """Let commands in progress end, and begin no further ones, on the connections of a subsystem, a port, or both.

        Waits for at most `seconds`; returns a sentence for each connection of which commands are in progress still. The
        caller ends these connections.
        """
        of_port = None if portid is None else self.connections.of_port(portid)
        drivers = of_port if subsystem is None else self.connections.of_subsystem(subsystem, portid)
        busy = await self.connections.drain_some(drivers or (), self.loop.time() + seconds)
        return [f"{each.queue.ctx.peer}: commands of queue {each.queue.ctx.qid} were cut" for each in busy]

    def port(self, portid: int) -> Port:
        """Return the port of a Port ID. Raises ConfigurationError."""
        return self.ports.port(portid)

    async def add_path(self, path: str) -> PathEndpoint:
        """Announce one more address on every MPTCP port, in the open connections too: `ADDR[%dev][,backup]`.

        Raises ConfigurationError, TransportError, LocalProtocolError before ``start``.
        """
        self.check_runs("a path is added")
        return await self.ports.add_path(path)

    async def stop(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Stop listening, let commands in progress end, end all associations, flush and close the namespaces.

        ``drain_seconds``: how long it waits for commands in progress. Nothing happens when it does not run.
        """
        if not self._started:
            return
        self.ports.close()
        await self._end_all(drain_seconds)
        served, self._served = self._served, {}
        for each in served.values():
            await each.close()
        self._started, self._ended = False, True

    async def hand_over(self, drain_seconds: float = DRAIN_SECONDS) -> Handover:
        """Stop as `stop` does, and return all that another target needs to go on: no connect is refused meanwhile.

        What has not begun of a host's commands is left without an answer, so that it is sent again. Raises
        ConfigurationError, with nothing changed, for a configuration that cannot be saved.
        """
        self.check_runs("it is handed over")
        for each in self._served.values():
            await each.flush()
        document = self.administration.save()
        self.ports.hold()
        handover = Handover(document, sockets=self.ports.hand_over())
        handover.discovery_cntlids = self.registry.discovery.cntlids
        used = {nqn: subsystem.cntlids for nqn, subsystem in self.subsystems.items()}
        await self._end_all(drain_seconds)
        handover.generation = self.registry.generation
        self.ports.close()
        served, self._served = self._served, {}
        for nqn, each in served.items():
            state = handover.subsystems[nqn] = await each.hand_over()
            state.cntlids = used.get(nqn, state.cntlids)
        self._started, self._ended = False, True
        return handover

    async def _end_all(self, drain_seconds: float) -> None:
        """Let commands in progress end, and end all associations and background work."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        receive_by = self.loop.time() + RECEIVE_SECONDS
        if self._stop_by is None:
            self._stop_by = self.loop.time() + drain_seconds
        while not self.connections.drain(receive=self.loop.time() < receive_by):
            if self._stop_expired():
                break
            await asyncio.sleep(POLL_SECONDS)
        self.registry.end_all("the target is stopping")
        await self.connections.stop("the target is stopping", self._stop_expired)
        await self.runtime.stop()
        self.ports.stop_announcing()
        if self._closing:
            await asyncio.wait(list(self._closing.values()))

    def _stop_expired(self) -> bool:
        return self._stop_by is not None and self.loop.time() >= self._stop_by

    def stop_now(self) -> None:
        """Make a `stop` in progress wait for nothing but the flush."""
        if not self._started:
            return
        self._stop_by = self.loop.time()
        self.connections.abort("the target is stopping at once")

    async def __aenter__(self) -> Target:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # -- while it runs -------------------------------------------------------------------------------------------

    async def add_namespace(self, namespace: Backend | NamespaceConfig, *, subnqn: str | None = None) -> int:
        """Open a backend and offer it in the first subsystem, or ``subnqn``; returns its NSID.

        Hosts get an asynchronous event. Raises ConfigurationError and OSError, and LocalProtocolError before
        ``start``.
        """
        served, config = self._served[self.subsystem(subnqn).nqn], namespace_config(namespace)
        if config.rate_limit is not None:
            self.connections.limit_rates()
        return await served.add_namespace(config)

    def check_runs(self, what: str) -> None:
        """Raise LocalProtocolError unless the target is running."""
        if not self._started:
            raise LocalProtocolError(f"the target does not run: start() comes before {what}")

    def subsystem(self, subnqn: str | None = None) -> Subsystem:
        """Return a subsystem (None: the first). Raises ConfigurationError, and LocalProtocolError before ``start``."""
        self.check_runs("its namespaces are changed")
        found = self.subsystems.get(subnqn or self.subnqn)
        if found is None:
            raise ConfigurationError(f"there is no subsystem {subnqn or self.subnqn}")
        return found

    async def remove_namespace(self, nsid: int, *, subnqn: str | None = None) -> None:
        """Withdraw a namespace and close its backend; one that a host has created is deleted with its data.

        Raises ConfigurationError for one that is not there, LocalProtocolError before ``start``.
        """
        await self._served[self.subsystem(subnqn).nqn].remove_namespace(nsid)

    async def replace_backend(self, nsid: int, backend: Backend, *, subnqn: str | None = None) -> None:
        """Open other storage for a disabled namespace, and close what it had before.

        Raises ConfigurationError and OSError, LocalProtocolError before ``start``.
        """
        await self._served[self.subsystem(subnqn).nqn].replace_backend(nsid, backend)

    def zones(self, nsid: int, *, subnqn: str | None = None) -> Zones:
        """Return the zones of a zoned namespace, of the first subsystem or ``subnqn``, to change them as a device does.

        ``zones = target.zones(1)``, then ``zones.degrade(zones[3])`` makes the fourth zone read only. Raises
        ConfigurationError for a namespace that is not there or has no zones, LocalProtocolError before ``start``.
        """
        subsystem = self.subsystem(subnqn)
        namespace = subsystem.namespaces.get(nsid)
        if namespace is None:
            raise ConfigurationError(f"{subsystem.nqn} has no namespace {nsid}")
        if not isinstance(namespace, ZonedNamespace):
            raise ConfigurationError(f"namespace {nsid} of {subsystem.nqn} has no zones")
        return namespace.zones

    def _tick(self) -> None:
        """End silent connections and associations, then sleep until the next deadline."""
        now = self.loop.time()
        following = now + min(_TICK_SECONDS, self.connect_seconds)
        for subsystem in (*self.subsystems.values(), self.registry.discovery):
            subsystem.tick(now)
            for controller in list(subsystem.controllers.values()):
                deadline = controller.tick(now)
                if deadline is not None:
                    following = min(following, deadline)
        unconnected = self.connections.end_unconnected(now)
        if unconnected is not None:
            following = min(following, unconnected)
        self.connections.end_stalled(now)
        ended = self.loop.time()
        shortest = max(_SHORTEST_TICK_SECONDS, _TICK_SHARE * (ended - now))
        self._timer = self.loop.call_at(max(following, ended + shortest), self._tick)


def _end_associations(subsystem: Subsystem, port: Port, reason: str) -> None:
    """End the associations of a subsystem that came by a port."""
    for controller in list(subsystem.controllers.values()):
        if controller.ana.portid == port.portid:
            controller.destroy(reason)
