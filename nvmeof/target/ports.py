"""Ports: an address that is listened on, with everything that belongs to it, and the ports of a target.

What a port announces is MPTCP's: addresses that a host may open further subflows to. Another kind of announcer would
stand beside it in `Port`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from nvmeof.address import check_host, ip_of, is_wildcard, split_scope
from nvmeof.errors import ConfigurationError
from nvmeof.security.tls.suites import SUITES, parse_suites
from nvmeof.spec.enums import AnaState
from nvmeof.target.subsystem.config import TLS_OFF, PortConfig, Referral
from nvmeof.target.subsystem.registry import PortInfo
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.transport import base
from nvmeof.transport.base import Address, Endpoint, Listener, SocketOptions, Turns
from nvmeof.transport.options import resolve, to_address
from nvmeof.transport.paths.interfaces import covered
from nvmeof.transport.paths.model import PathEndpoint, PathRole, parse_path
from nvmeof.transport.paths.session import AUTO, PathOptions, PathSession, Prepare
from nvmeof.transport.service_manager import InheritedSocket
from nvmeof.transport.sockets import SocketListener

logger = logging.getLogger("nvmeof.target")


class Port:
    """One port of a running target: its configuration, its listeners, what takes their connections, the addresses that
    it announces, and the ANA state of each group, the same in all subsystems.

    `listeners` are those of the address itself; `covering` are the additional ones of announced addresses. `config` has
    the port number that is really listened on; `info` is what Discovery tells.
    """

    def __init__(
        self,
        portid: int,
        config: PortConfig,
        info: PortInfo,
        accept: Callable[[PortInfo, Endpoint], None],
        open_endpoints: Callable[[int], list[Endpoint]],
    ) -> None:
        self.portid = portid
        self.config = config
        self.info = info
        self.listeners: list[Listener] = []
        self.covering: dict[str, list[Listener]] = {}
        self.announcements: PathSession | None = None
        """The announced addresses; None before `announce`."""
        self.ana: dict[int, AnaState] = dict(config.ana)
        self._accept = accept
        self._open_endpoints = open_endpoints

    def accepted(self, endpoint: Endpoint) -> None:
        """Take a connection that came by this port."""
        self._accept(self.info, endpoint)

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints of the open connections that came by this port."""
        return self._open_endpoints(self.portid)

    @property
    def all_listeners(self) -> list[Listener]:
        """The listeners of the port's address, then those of announced addresses."""
        return [*self.listeners, *(each for listeners in self.covering.values() for each in listeners)]

    def listening(self, listeners: list[Listener]) -> None:
        """Take over the listeners of the port's own address."""
        self.listeners += listeners
        number = listeners[0].address.port
        self.config = replace(self.config, port=number)
        bound = tuple(listener.address.host for listener in listeners)
        self.info = replace(self.info, trsvcid=str(number), bound=bound)

    def close(self) -> None:
        """Stop listening, and withdraw the announced addresses. Idempotent."""
        if self.announcements is not None:
            self.announcements.stop()
        for listener in self.all_listeners:
            listener.close()

    # -- subsystems ----------------------------------------------------------------------------------------------

    def offer(self, subsystem: Subsystem) -> None:
        """Give a subsystem the ANA states of this port. Raises `ConfigurationError` for a group it cannot have."""
        for group, state in self.ana.items():
            subsystem.set_ana_state(state, group, portid=self.portid)

    def list_subsystems(self, subsystems: frozenset[str] | None) -> None:
        """Offer these subsystems from now on, by NQN (None: all)."""
        self.config = replace(self.config, subsystems=subsystems)
        self.info = replace(self.info, subsystems=subsystems)

    def name_referrals(self, referrals: tuple[Referral, ...]) -> None:
        """Name these other discovery services in the Discovery log from now on."""
        self.config = replace(self.config, referrals=referrals)
        self.info = replace(self.info, referrals=referrals)

    def set_ana_state(self, state: AnaState, group: int, subsystems: Iterable[Subsystem]) -> None:
        """Put a group into a state, in all subsystems or in none. Raises `ConfigurationError`."""
        concerned = list(subsystems)
        for subsystem in concerned:
            subsystem.check_ana_state(state, group, self.portid)
        self.ana[group] = state
        for subsystem in concerned:
            subsystem.set_ana_state(state, group, portid=self.portid)

    # -- announced addresses -------------------------------------------------------------------------------------

    @property
    def announces(self) -> bool:
        """Return whether connections of this port can have further addresses announced."""
        return base.get(self.config.transport).announces

    async def announce(self, options: PathOptions, cover: Prepare) -> None:
        """Announce the addresses of `options`, from now on; `add_path` and `remove_path` change them.

        `cover` ensures a listener on each of them. Raises `ConfigurationError` for wrong options; a missing privilege
        is logged.
        """
        self.config = replace(self.config, paths=options.paths)
        self.announcements = PathSession(PathRole.SIGNAL, options, lambda: self.endpoints, what="target")
        await self.announcements.start([listener.address for listener in self.listeners], cover)

    def announced(self, address: str) -> bool:
        """Return whether that address is announced here."""
        session = self.announcements
        return session is not None and any(each.endpoint.address == address for each in session.paths)

    def add_path(self, path: str) -> PathEndpoint:
        """Announce one more address, in the open connections too. Raises `ConfigurationError` and `TransportError`."""
        assert self.announcements is not None, "announce() comes before add_path()"
        added = self.announcements.add_path(path)
        self.config = replace(self.config, paths=(*self.config.paths, path))
        return added

    def remove_path(self, address: str) -> None:
        """Withdraw an announced address. Raises `ConfigurationError` for one that is not, and `TransportError`."""
        if self.announcements is None:
            raise ConfigurationError(f"the address {address} was not announced on port {self.portid}")
        self.announcements.remove_path(address)
        left = tuple(each for each in self.config.paths if each == AUTO or parse_path(each).address != address)
        if left == self.config.paths:  # it is one of those that "auto" found: name the others
            named = [each for each in left if each != AUTO]
            known = {parse_path(each).address for each in named}
            found = [each.endpoint for each in self.announcements.paths if each.endpoint.address not in known]
            left = (*named, *(f"{each},backup" if "backup" in each.flags.words else str(each) for each in found))
        self.config = replace(self.config, paths=left)

    def uncover(self, address: str) -> None:
        """Close the listeners that the announcement of an address needed."""
        for listener in self.covering.pop(address, ()):
            listener.close()

    def to_config(self) -> PortConfig:
        """Return the configuration that makes a port as this one is now."""
        return replace(self.config, portid=self.portid, ana=tuple(sorted(self.ana.items())))


class Ports(Mapping[int, Port]):
    """The ports that a target listens on, by Port ID.

    `options`: socket options of all listeners. `accept` takes each new connection, with the port that it came by;
    `open_endpoints` gives the open ones of a Port ID. `configured`: the ports that are going to be started, which the
    way of listening on a wildcard depends on.
    """

    def __init__(
        self,
        options: SocketOptions,
        accept: Callable[[PortInfo, Endpoint], None],
        open_endpoints: Callable[[int], list[Endpoint]],
        configured: tuple[PortConfig, ...],
    ) -> None:
        self.options = options
        self.path_options = PathOptions()
        """How addresses are announced; `paths` are those of every port that announces."""
        self._accept = accept
        self._open_endpoints = open_endpoints
        self._configured = configured
        self.turns: Turns | None = None
        """The shares of the event loop's time for new connections and other work."""
        self._ports: dict[int, Port] = {}
        self._held = False

    def __getitem__(self, portid: int) -> Port:
        return self._ports[portid]

    def __iter__(self) -> Iterator[int]:
        return iter(self._ports)

    def __len__(self) -> int:
        return len(self._ports)

    def port(self, portid: int) -> Port:
        """Return the port of a Port ID. Raises `ConfigurationError`."""
        try:
            return self._ports[portid]
        except KeyError:
            raise ConfigurationError(f"there is no port {portid}") from None

    @property
    def listeners(self) -> list[Listener]:
        """The listeners of all ports."""
        return [listener for port in self.values() for listener in port.all_listeners]

    # -- start and stop ------------------------------------------------------------------------------------------

    async def start(self, config: PortConfig, subsystems: Iterable[Subsystem]) -> Port:
        """Listen on an address and offer subsystems there; nothing is announced yet.

        Raises `ConfigurationError` and `TransportError`.
        """
        transport = base.get(config.transport)
        taken = {each.portid for each in self._configured} | set(self)  # those of ports yet to be started as well
        portid = config.portid or next(number for number in itertools.count(1) if number not in taken)
        if portid in self:
            raise ConfigurationError(f"port {portid} exists already")
        if config.paths and not transport.announces:
            raise ConfigurationError(f"port {portid} announces addresses: that needs the transport mptcp")
        info = PortInfo(
            portid=portid,
            transport=config.transport,
            trtype=transport.trtype,
            traddr=config.host,
            trsvcid=str(config.port),
            advertised=await _advertised(config),
            advertise_port=config.advertise_port,
            discovery_only=config.discovery_only,
            advertise_as=config.advertise_as,
            plain_tcp=transport.plain_tcp,
            subsystems=config.subsystems,
            referrals=config.referrals,
            tls=config.tls,
            suites=parse_suites(config.tls_suites) or SUITES,
        )
        if config.tls != TLS_OFF:
            from nvmeof.security.tls.library import library

            library()  # raises where there is none, before the first host comes
        port = Port(portid, config, info, self._accept, self._open_endpoints)
        for subsystem in subsystems:
            port.offer(subsystem)
        options = self._listen_options(config)
        port.listening(self._shared(await transport.listen(config.host, config.port, options, port.accepted)))
        self._ports[portid] = port
        return port

    async def announce(self, port: Port) -> None:
        """Announce what a port's configuration and the target's options say. Raises as `Port.announce`."""
        paths = tuple(dict.fromkeys((*self.path_options.paths, *port.config.paths)))
        options = replace(self.path_options, paths=paths)
        if port.announces and options.wanted:
            await port.announce(options, self.cover)

    def hold(self) -> None:
        """Accept nothing on any port until `go_on`, on listeners to come neither: connections wait in the kernel."""
        self._held = True
        for listener in self.listeners:
            listener.hold()

    def go_on(self) -> None:
        """Accept again after `hold`."""
        self._held = False
        for listener in self.listeners:
            listener.go_on()

    def hand_over(self) -> list[InheritedSocket]:
        """Return copies of the listening sockets, for a process that takes the target over."""
        return [each.hand_over() for each in self.listeners if isinstance(each, SocketListener)]

    def _shared(self, listeners: list[Listener]) -> list[Listener]:
        """Let listeners accept in turn with other work."""
        for listener in listeners:
            listener.turns = self.turns
            if self._held:
                listener.hold()
        return listeners

    def stop(self, port: Port) -> None:
        """Stop listening on a port, and remove it."""
        announced = [] if port.announcements is None else [each.endpoint.address for each in port.announcements.paths]
        port.close()
        del self._ports[port.portid]
        for address in announced:
            self._uncover(address)

    def close(self) -> None:
        """Stop listening on all ports; addresses stay announced until `stop_announcing`."""
        for port in self.values():
            for listener in port.all_listeners:
                listener.close()

    def stop_announcing(self) -> None:
        """Take back what all ports announce."""
        for port in self.values():
            if port.announcements is not None:
                port.announcements.stop()

    def _listen_options(self, port: PortConfig) -> SocketOptions:
        """Return the socket options of a port: a wildcard of both families leaves IPv4 to a port on 0.0.0.0 with the
        same number."""
        if not port.port or not is_wildcard(port.host):
            return self.options
        beside = any(
            each is not port and (each.host, each.port) == ("0.0.0.0", port.port)
            for each in (*self._configured, *(running.config for running in self.values()))
        )
        return replace(self.options, ipv6_only=beside)

    # -- announced addresses -------------------------------------------------------------------------------------

    def announcing(self, portid: int | None = None) -> list[Port]:
        """Return the ports that can announce addresses, or the one of a Port ID. Raises `ConfigurationError`."""
        ports = list(self.values()) if portid is None else [self.port(portid)]
        found = [port for port in ports if port.announces]
        if not found:
            raise ConfigurationError("announcing addresses needs a port of the transport mptcp")
        return found

    async def add_path(self, path: str, portid: int | None = None) -> PathEndpoint:
        """Announce one more address on a port, or (None) on all that can; all or none.

        Raises `ConfigurationError` and `TransportError`.
        """
        address = parse_path(path).endpoint(PathRole.SIGNAL).address
        ports = [port for port in self.announcing(portid) if not port.announced(address)]
        if not ports:
            raise ConfigurationError(f"the address {address} is announced already")
        added: list[Port] = []
        try:
            for port in ports:
                if port.announcements is None:
                    await port.announce(replace(self.path_options, paths=()), self.cover)
            await self.cover(address)
            for port in ports:
                endpoint = port.add_path(path)
                added.append(port)
        except BaseException:
            for port in added:
                port.remove_path(address)
            self._uncover(address)
            raise
        return endpoint

    def remove_path(self, address: str, portid: int | None = None) -> list[Port]:
        """Withdraw an announced address on a port, or (None) on all; return the ports that announced it.

        Raises `ConfigurationError` for one that is not announced there, and `TransportError`.
        """
        wanted = parse_path(address).address
        ports = list(self.values()) if portid is None else [self.port(portid)]
        found = [port for port in ports if port.announced(wanted)]
        if not found:
            known = dict.fromkeys(
                each.endpoint.address
                for port in ports
                if port.announcements is not None
                for each in port.announcements.paths
            )
            raise ConfigurationError(f"the address {wanted} was not announced; there are {', '.join(known) or 'none'}")
        for port in found:
            port.remove_path(wanted)
        self._uncover(wanted)
        return found

    async def cover(self, address: str) -> None:
        """Listen on an announced address too where no listener takes its connections: joins would be refused.

        On every port, since the kernel's path manager announces it in the connections of all ports.
        """
        for port in list(self.values()):
            if not port.announces:
                continue
            number = port.config.port
            if not covered(address, self._listened(number)):
                found = self._shared(
                    await base.get(port.config.transport).listen(address, number, self.options, port.accepted)
                )
                logger.info("listening on %s too, which is announced", found[0].address)
                port.covering[address] = found

    def _listened(self, number: int) -> list[Address]:
        """Return the addresses with that port number that accept connections of announcing ports."""
        return [
            listener.address
            for port in self.values()
            if port.announces
            for listener in port.all_listeners
            if listener.address.port == number
        ]

    def _uncover(self, address: str) -> None:
        """Stop listening on an address that no port announces any longer."""
        if not any(port.announced(address) for port in self.values()):
            for port in self.values():
                port.uncover(address)


async def _advertised(port: PortConfig) -> tuple[str, ...]:
    """Return the addresses that Discovery reports in place of a port's address: a name is looked up, as TRADDR holds
    none."""
    host = port.advertise_host
    if host is None or not base.get(port.transport).plain_tcp:
        return () if host is None else (host,)
    if ip_of(host) is not None:
        return (split_scope(check_host(host))[0],)
    found = await resolve(host, 0)
    addresses = tuple(split_scope(to_address(sockaddr).host)[0] for _, sockaddr in found)
    logger.info("advertising %s as %s", host, ", ".join(addresses))
    return addresses
