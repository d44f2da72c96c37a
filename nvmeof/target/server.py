"""A target on an event loop: listeners, connections, keep-alive, and its start and stop.

>>> async with Target(namespaces=[Ramdisk("1G")]) as target:
...     print(target.address, target.subnqn)
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import resource
import time
from collections.abc import Iterable, Sequence
from contextvars import Context, copy_context
from dataclasses import asdict, replace
from functools import partial
from types import TracebackType
from typing import Any, Final

from nvmeof.address import check_host, ip_of, is_wildcard, split_scope
from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.errors import ConfigurationError, LocalProtocolError
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.runtime import settled
from nvmeof.size_text import format_size
from nvmeof.target.administration import Administration
from nvmeof.target.commands.logs.logs_health import snapshot
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.controller.controller import Controller
from nvmeof.target.core.connection_limits import CONNECTIONS_MOST, STRANGERS_MOST, AddressShares, connections_most
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.owner import OWNER
from nvmeof.target.core.pool import RESERVE_SHARE, BufferPool, MemoryShare
from nvmeof.target.core.slices import Slices
from nvmeof.target.core.tables import Tables
from nvmeof.target.driver import QueueDriver
from nvmeof.target.namespaces.endurance_group import Pool
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.namespaces.zones import Zones
from nvmeof.target.ports import Port
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import PHYSICAL_BYTES, Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.namespace_kinds import NamespaceKinds
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.transport import base
from nvmeof.transport.base import Address, Endpoint, Listener, SocketOptions
from nvmeof.transport.options import resolve, to_address
from nvmeof.transport.paths.interfaces import covered
from nvmeof.transport.paths.model import PathEndpoint, PathRole, parse_path
from nvmeof.transport.paths.session import PathOptions, PathSession

logger = logging.getLogger("nvmeof.target")

DEFAULT_SUBNQN: Final = "nqn.2026-01.io.nvmeof:target"
CONNECT_SECONDS: Final = 10.0
"""A connection that has not made a Connect by then is closed."""
DRAIN_SECONDS: Final = 10.0
"""How long a stop waits for commands in progress."""
RECEIVE_SECONDS: Final = 2.0
"""How long of that it waits for data that hosts were asked for."""
STALLED_SECONDS: Final = 10.0
"""Memory of which none has come back for so long is taken from its association when one that has none waits for it."""
_TICK_SECONDS: Final = 1.0
_SHORTEST_TICK_SECONDS: Final = 0.02
_TICK_SHARE: Final = 50
"""The event loop spends no more than this fraction of its time in ticks, however many connections there are."""
_STOP_POLL_SECONDS: Final = 0.005


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
    ) -> None:
        if config is None:
            config = simple_config(namespaces, subnqn, trtype, listen, allowed_hosts, pool)
        self.config = config
        self.options = options or SocketOptions()
        self.tables = tables or standard_tables()
        self.connect_seconds = connect_seconds
        largest = max((s.incapsule_bytes for s in config.subsystems), default=0)
        self._connection_config = replace(
            connection or ConnectionConfig(header_digest=digests, data_digest=digests),
            incapsule_bytes=max(8192, largest),
        )
        self.loop: asyncio.AbstractEventLoop
        self.runtime: AsyncioRuntime
        self.slices: Slices
        self._path_options = paths
        self._started = self._ended = False
        self._new_run()

    def _new_run(self) -> None:
        """Make anew what belongs to the time from a start to a stop."""
        self.registry = TargetRegistry(self.tables)
        config = self.config
        longest = max((s.transfer_limit_bytes for s in config.subsystems), default=0)
        self.pool = BufferPool(config.staging_bytes, reserve_bytes=max(config.staging_bytes // RESERVE_SHARE, longest))
        self.detached_commands = DetachedCommands()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.drivers: set[QueueDriver] = set()
        self._moves: dict[MemoryShare, tuple[int, float]] = {}  # what was last seen of a share, and when
        self._connections = AddressShares(CONNECTIONS_MOST)
        self._strangers = AddressShares(STRANGERS_MOST)
        self.ports: dict[int, Port] = {}
        """The ports that are listened on, by Port ID."""
        self.administration = Administration(self)
        self.unflushed: list[str] = []
        """What could not be flushed at the end: what was written last may be lost."""
        self.paths: PathSession | None = None
        self._backends: list[Backend] = []
        self._subsystems: list[Subsystem] = []
        self._pools: list[Pool] = []
        self._metadata_stores: list[JsonFileStore] = []
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
        return [listener for port in self.ports.values() for listener in port.listeners]

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

    # -- start and stop ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the namespaces and listen. What was opened is closed again when this fails.

        A target can start again after ``stop`` or a ``start`` that failed, with what its configuration says: ramdisks
        are empty then, and namespaces that were added meanwhile are gone.
        Raises ConfigurationError, TransportError and OSError; LocalProtocolError while it runs.
        """
        if self._started:
            raise LocalProtocolError("the target runs already: stop() comes before another start()")
        if self._ended:
            self._new_run()
        self._started = True
        _warn_of_memory(self.config)
        self.loop = asyncio.get_running_loop()
        self.slices = Slices(self.loop.call_soon, time.perf_counter)
        self.runtime = AsyncioRuntime(
            logger, self.loop, in_turn=partial(self.slices.add, whole=True), background_context=_ownerless
        )
        self.registry.started_at = self.loop.time()
        self._connections.most = connections_most(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        try:
            for subsystem_config in self.config.subsystems:
                await self.start_subsystem(subsystem_config)
            for port in self.config.ports:
                await self.start_port(port)
            if self._path_options is not None and self._path_options.wanted:
                await self._start_paths(self._path_options)
        except BaseException:
            await self.stop()
            raise
        self._tick()

    async def start_subsystem(self, config: SubsystemConfig) -> None:
        """Open what a subsystem consists of and offer it. What was opened is closed again when that fails.

        Raises ConfigurationError and OSError. `Administration.add_subsystem` is this for a target that runs.
        """
        if config.nqn in self.subsystems:
            raise ConfigurationError(f"the subsystem {config.nqn} exists already")
        opened = len(self._backends)
        subsystem: Subsystem | None = None
        try:
            for namespace in config.namespaces:
                await namespace.backend.open()
                self._backends.append(namespace.backend)
            if isinstance(config.metadata_store, JsonFileStore):
                config.metadata_store.hold()
                self._metadata_stores.append(config.metadata_store)
            if config.pool is not None:
                await config.pool.acquire()
                self._pools.append(config.pool)
            subsystem = Subsystem(config, kinds=self.tables[NamespaceKinds])
            self._subsystems.append(subsystem)
            if subsystem.manager is not None:
                await subsystem.manager.open()
            for port in self.ports.values():
                port.offer(subsystem)
            await self._power_on(subsystem)
            self.registry.add_subsystem(subsystem)
        except BaseException:
            await self._close_subsystem(config, subsystem, self._backends[opened:])
            raise
        subsystem.resume(self.runtime)

    async def stop_subsystem(self, subsystem: Subsystem) -> None:
        """Offer a subsystem no more: its associations end, its namespaces are flushed and closed."""
        self.registry.remove_subsystem(subsystem.nqn)
        backends = [each for each in subsystem.backends if each in self._backends]
        await self._close_subsystem(subsystem.config, subsystem, backends)

    async def _close_subsystem(
        self, config: SubsystemConfig, subsystem: Subsystem | None, backends: list[Backend]
    ) -> None:
        self._backends = [each for each in self._backends if each not in backends]
        for backend in backends + (subsystem.created_backends if subsystem is not None else []):
            await self._close_backend(backend)
        if subsystem is not None and subsystem in self._subsystems:
            self._subsystems.remove(subsystem)
            await self._power_off(subsystem)
        if config.pool is not None and config.pool in self._pools:
            self._pools.remove(config.pool)
            await config.pool.release()
        store = config.metadata_store
        if isinstance(store, JsonFileStore) and store in self._metadata_stores:
            self._metadata_stores.remove(store)
            await store.release()

    async def start_port(self, config: PortConfig) -> Port:
        """Listen on an address and offer all subsystems there. Raises ConfigurationError and TransportError."""
        running = tuple(port.config for port in self.ports.values())
        replace(self.config, ports=(*running, config))  # raises for an address that is taken
        transport = base.get(config.transport)
        portid = next(number for number in itertools.count(1) if number not in self.ports)
        info = PortInfo(
            portid=portid,
            transport=config.transport,
            trtype=transport.trtype,
            traddr=config.host,
            trsvcid=str(config.port),
            advertised=await self._advertised(config),
            advertise_port=config.advertise_port,
            discovery_only=config.discovery_only,
            advertise_as=config.advertise_as,
            plain_tcp=transport.plain_tcp,
        )

        def accepted(endpoint: Endpoint) -> None:
            if not self._admit(endpoint):
                endpoint.abort()
                return
            local = endpoint.local_address
            driver = QueueDriver(self, endpoint, info.seen_at(local.host, local.port), self._connection_config)
            driver.queue.ctx.connection = partial(_figures, endpoint)
            self.drivers.add(driver)

        port = Port(portid, config, info, accepted)
        for subsystem in self._subsystems:
            port.offer(subsystem)
        port.listening(await transport.listen(config.host, config.port, self._listen_options(config), accepted))
        self.ports[portid] = port
        self.registry.add_port(port.info)
        return port

    def stop_port(self, port: Port) -> None:
        """Listen on a port no more; associations and connections that came by it end."""
        reason = f"port {port.portid} was removed"
        port.close()
        del self.ports[port.portid]
        self.registry.remove_port(port.portid)
        for subsystem in (*self.subsystems.values(), self.registry.discovery):
            for controller in list(subsystem.controllers.values()):
                if controller.ana.portid == port.portid:
                    controller.destroy(reason)
            subsystem.ana.forget(port.portid)
        for driver in list(self.drivers):
            if driver.queue.ctx.port.portid == port.portid:
                driver.queue.lost(reason)

    def port(self, portid: int) -> Port:
        """Return the port of a Port ID. Raises ConfigurationError."""
        try:
            return self.ports[portid]
        except KeyError:
            raise ConfigurationError(f"there is no port {portid}") from None

    def _admit(self, endpoint: Endpoint) -> bool:
        """Count a new connection, unless its address has its share of them already."""
        address = endpoint.peer_address.host
        if self._connections.take(address):
            if self._strangers.take(address):
                return True
            self._connections.give(address)
        left_out = self.registry.peer_log.strangers.admit(str(endpoint.peer_address), self.loop.time())
        if left_out is not None:
            logger.warning(
                "%s: connection refused: of %d open ones, %d have made no Connect, and too many are of this address%s",
                endpoint.peer_address,
                self._connections.taken,
                self._strangers.taken,
                left_out_text(left_out),
            )
        return False

    def _listen_options(self, port: PortConfig) -> SocketOptions:
        """A wildcard of both families leaves IPv4 to the port that 0.0.0.0 was asked for with the same number."""
        if not port.port or not is_wildcard(port.host):
            return self.options
        beside = any(
            each is not port and (each.host, each.port) == ("0.0.0.0", port.port)
            for each in (*self.config.ports, *(running.config for running in self.ports.values()))
        )
        return replace(self.options, ipv6_only=beside)

    async def _advertised(self, port: PortConfig) -> tuple[str, ...]:
        """The addresses that Discovery tells in place of a port's own: a name is looked up, as TRADDR holds none."""
        host = port.advertise_host
        if host is None or not base.get(port.transport).plain_tcp:
            return () if host is None else (host,)
        if ip_of(host) is not None:
            return (split_scope(check_host(host))[0],)
        found = await resolve(host, 0)
        addresses = tuple(split_scope(to_address(sockaddr).host)[0] for _, sockaddr in found)
        logger.info("advertising %s as %s", host, ", ".join(addresses))
        return addresses

    async def _start_paths(self, options: PathOptions) -> None:
        addresses = [listener.address for listener in self._mptcp_listeners()]
        if not addresses:
            raise ConfigurationError("announcing addresses needs a port of the transport mptcp")
        self.paths = PathSession(PathRole.SIGNAL, options, self._endpoints, what="target")
        await self.paths.start(addresses, self._cover)

    def _mptcp_listeners(self) -> list[Listener]:
        return [listener for listener in self.listeners if listener.describe().transport == "mptcp"]

    def _endpoints(self) -> list[Endpoint]:
        return [driver.endpoint for driver in self.drivers]

    async def _cover(self, address: str) -> None:
        """Listen on an announced address too where no listener takes its connections: joins would be refused."""
        for port in list(self.ports.values()):
            config = port.config
            if config.transport != "mptcp":
                continue
            same_port = [each.address for each in self._mptcp_listeners() if each.address.port == config.port]
            if not covered(address, same_port):
                found = await base.get(config.transport).listen(address, config.port, self.options, port.accepted)
                logger.info("listening on %s too, which is announced", found[0].address)
                port.listeners += found

    async def add_path(self, path: str) -> PathEndpoint:
        """Announce one more address, in the connections that are open too: `ADDR[%dev][,backup]`.

        Raises ConfigurationError, TransportError, LocalProtocolError before ``start``.
        """
        self.check_runs("a path is added")
        if self.paths is None:
            self.paths = PathSession(PathRole.SIGNAL, PathOptions(), self._endpoints, what="target")
            await self.paths.start([])
        await self._cover(parse_path(path).address)
        return self.paths.add_path(path)

    async def stop(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Stop listening, let commands in progress end, end all associations, flush and close the namespaces.

        ``drain_seconds``: how long it waits for commands in progress. Nothing happens when it does not run.
        """
        if not self._started:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for port in self.ports.values():
            port.close()
        receive_by = self.loop.time() + RECEIVE_SECONDS
        if self._stop_by is None:
            self._stop_by = self.loop.time() + drain_seconds
        while self._busy_queues(receive=self.loop.time() < receive_by):
            if self.loop.time() >= self._stop_by:
                break
            await asyncio.sleep(_STOP_POLL_SECONDS)
        self.registry.end_all("the target is stopping")
        for driver in list(self.drivers):
            driver.queue.lost("the target is stopping")
        while (self.drivers or self.tasks) and self.loop.time() < self._stop_by:  # noqa: ASYNC110
            await asyncio.sleep(_STOP_POLL_SECONDS)
        for driver in list(self.drivers):
            driver.abort("the target is stopping")
        await self._give_up_tasks()
        await self.runtime.stop()
        if self.paths is not None:
            self.paths.stop()
        await self._close_backends()
        subsystems, self._subsystems = self._subsystems, []
        for subsystem in subsystems:
            await self._power_off(subsystem)
        pools, self._pools = self._pools, []
        for pool in pools:
            await pool.release()
        metadata_stores, self._metadata_stores = self._metadata_stores, []
        for metadata_store in metadata_stores:
            await metadata_store.release()
        self._started, self._ended = False, True

    def stop_now(self) -> None:
        """Make a `stop` that is under way wait for nothing any more but the flush."""
        if not self._started:
            return
        self._stop_by = self.loop.time()
        for driver in list(self.drivers):
            driver.abort("the target is stopping at once")

    def _busy_queues(self, *, receive: bool) -> int:
        """How many queues have commands in progress; none of them begins another from now on."""
        return sum(not driver.drain(receive=receive) for driver in self.drivers)

    async def _give_up_tasks(self) -> None:
        """What has not ended by now is cancelled; its memory stays with it."""
        await asyncio.sleep(0)
        left = [task for task in self.tasks if not task.done()]
        if not left:
            return
        logger.warning("%d commands were still in progress and are given up", len(left))
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_TICK_SECONDS)

    async def _close_backends(self) -> None:
        backends, self._backends = self._backends, []
        backends += [backend for subsystem in self._subsystems for backend in subsystem.created_backends]
        for backend in backends:
            await self._close_backend(backend)

    async def _close_backend(self, backend: Backend) -> None:
        try:
            if backend.capabilities.can_write:
                await settled(backend.flush())
        except OSError as error:
            logger.error("%s: flush failed: %s", backend.description, error.strerror or error)
            self.unflushed.append(backend.description)
        await backend.close()

    async def _power_on(self, subsystem: Subsystem) -> None:
        try:
            await settled(subsystem.power_on(self.loop.time()))
        except OSError as error:
            # A full disk is no reason to withhold what is on it: it may be how there is room again.
            logger.error("%s: its state cannot be kept: %s", subsystem.nqn, error.strerror or error)

    async def _power_off(self, subsystem: Subsystem) -> None:
        """Keep what a subsystem counted, and that this was a clean end."""
        try:
            await settled(subsystem.power_off(self.loop.time()))
        except OSError as error:
            logger.error("%s: its state could not be kept: %s", subsystem.nqn, error.strerror or error)

    async def __aenter__(self) -> Target:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # -- while it runs -------------------------------------------------------------------------------------------

    def connected(self, driver: QueueDriver) -> None:
        """A connection has made its Connect."""
        self._strangers.give(driver.endpoint.peer_address.host)

    def ended(self, driver: QueueDriver) -> None:
        """A connection has gone."""
        if driver in self.drivers:
            self.drivers.discard(driver)
            self._connections.give(driver.endpoint.peer_address.host)
            if not driver.said:
                self._strangers.give(driver.endpoint.peer_address.host)

    async def add_namespace(self, namespace: Backend | NamespaceConfig, *, subnqn: str | None = None) -> int:
        """Open a backend and offer it in the first subsystem, or ``subnqn``; returns its NSID.

        Hosts are told by an asynchronous event. Raises ConfigurationError and OSError, and LocalProtocolError before
        ``start``.
        """
        subsystem = self.subsystem(subnqn)
        config = _namespace_config(namespace)
        await config.backend.open()
        try:
            added = subsystem.add_namespace(config)
        except ConfigurationError:
            await config.backend.close()
            raise
        self._backends.append(config.backend)
        subsystem.resume(self.runtime)
        return added.nsid

    def check_runs(self, what: str) -> None:
        """Raise LocalProtocolError unless the target runs."""
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
        subsystem = self.subsystem(subnqn)
        if subsystem.manager is not None and nsid in subsystem.manager.nsids:
            await subsystem.manager.delete(self.runtime, nsid)
            return
        namespace = subsystem.remove_namespace(nsid)
        self._backends.remove(namespace.backend)
        await namespace.backend.close()

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
        """End what has been silent for too long, then sleep until the next deadline."""
        now = self.loop.time()
        following = now + min(_TICK_SECONDS, self.connect_seconds)
        for subsystem in (*self.subsystems.values(), self.registry.discovery):
            subsystem.tick(now)
            for controller in list(subsystem.controllers.values()):
                if not isinstance(controller, Controller):
                    continue
                controller.check_deadline(now)
                snapshot(controller)
                deadline = controller.next_deadline()
                if deadline is not None:
                    following = min(following, deadline)
        for driver in list(self.drivers):
            if driver.connected:
                continue
            if now >= driver.opened_at + self.connect_seconds:
                driver.finish_unconnected(self.connect_seconds)
            else:
                following = min(following, driver.opened_at + self.connect_seconds)
        self._end_stalled(now)
        ended = self.loop.time()
        shortest = max(_SHORTEST_TICK_SECONDS, _TICK_SHARE * (ended - now))
        self._timer = self.loop.call_at(max(following, ended + shortest), self._tick)

    def _end_stalled(self, now: float) -> None:
        """End associations that keep all memory from one that has none, and neither take nor send any data."""
        if not self.pool.starving:
            self._moves.clear()
            return
        for driver in list(self.drivers):
            share, controller = driver.queue.share, driver.queue.ctx.controller
            moves, since = self._moves.get(share, (-1, now))
            if controller is None or not share.held_bytes or moves != share.moves:
                self._moves[share] = (share.moves, now)
            elif now - since >= STALLED_SECONDS and self.pool.starving:
                seconds = f"{STALLED_SECONDS:g}"
                controller.destroy(
                    f"it has moved no data for {seconds} s, and others wait for the memory that it holds"
                )


def _figures(endpoint: Endpoint) -> dict[str, object]:
    """What the kernel tells of a connection, for telemetry."""
    info = asdict(endpoint.describe())
    for name in ("local", "peer"):
        info[name] = str(Address(**info[name]))
    for subflow in info["subflows"]:
        for name in ("local", "peer"):
            subflow[name] = str(Address(**subflow[name]))
    return {name: value for name, value in info.items() if value is not None and name != "token"}


def _warn_of_memory(config: TargetConfig) -> None:
    """Say that hosts may write more to ramdisks, which are sparse, than there is memory for."""
    total_bytes = sum(
        namespace.backend.size_bytes
        for subsystem in config.subsystems
        for namespace in subsystem.namespaces
        if isinstance(namespace.backend, Ramdisk)
    )
    total_bytes += sum(s.pool.capacity_bytes for s in config.subsystems if isinstance(s.pool, RamdiskPool))
    if total_bytes > PHYSICAL_BYTES:
        logger.warning(
            "the ramdisks hold %s together, and this machine has %.1fG of memory: hosts that write more than that end "
            "the target",
            format_size(total_bytes), PHYSICAL_BYTES / (1 << 30),
        )  # fmt: skip


def _namespace_config(namespace: Any) -> NamespaceConfig:
    return namespace if isinstance(namespace, NamespaceConfig) else NamespaceConfig(backend=namespace)


def simple_config(
    namespaces: Iterable[Any],
    subnqn: str,
    trtype: str,
    listen: str | Sequence[str],
    allowed_hosts: Iterable[str] | None,
    pool: Pool | None = None,
) -> TargetConfig:
    """The configuration of one subsystem on one transport."""
    if isinstance(namespaces, str):
        _namespace_config(namespaces)  # raises, and says what to write instead
    if isinstance(namespaces, Backend | NamespaceConfig):
        name = type(namespaces).__name__
        raise ConfigurationError(f"namespaces is a list: write for instance [Ramdisk('1G')], not a {name} alone")
    configs = tuple(_namespace_config(namespace) for namespace in namespaces)
    subsystem = SubsystemConfig(
        nqn=subnqn,
        namespaces=configs,
        allowed_hosts=None if allowed_hosts is None else frozenset(allowed_hosts),
        pool=pool,
    )
    addresses = [Address.parse(text) for text in ([listen] if isinstance(listen, str) else listen)]
    if not addresses:
        raise ConfigurationError("a target needs at least one address to listen on")
    ports = tuple(PortConfig(transport=trtype, host=address.host, port=address.port) for address in addresses)
    return TargetConfig(subsystems=(subsystem,), ports=ports)
