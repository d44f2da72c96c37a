"""Ports: an address that is listened on, with everything that belongs to it, and the ports of a target."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from nvmeof.address import check_host, ip_of, is_wildcard, split_scope
from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import AnaState
from nvmeof.target.subsystem.config import PortConfig
from nvmeof.target.subsystem.registry import PortInfo
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.transport import base
from nvmeof.transport.base import Endpoint, Listener, SocketOptions
from nvmeof.transport.options import resolve, to_address
from nvmeof.transport.paths.interfaces import covered

logger = logging.getLogger("nvmeof.target")


class Port:
    """One port of a running target: its configuration, its listeners, what takes their connections, and the ANA state
    of each group, the same in all subsystems.

    `listeners` are those of the address itself, and those of announced addresses that needed one of their own.
    `config` has the port number that is really listened on; `info` is what Discovery tells.
    """

    def __init__(self, portid: int, config: PortConfig, info: PortInfo, accepted: Callable[[Endpoint], None]) -> None:
        self.portid = portid
        self.config = config
        self.info = info
        self.accepted = accepted
        self.listeners: list[Listener] = []
        self.ana: dict[int, AnaState] = dict(config.ana)

    def listening(self, listeners: list[Listener]) -> None:
        """Take over the listeners of the port's own address."""
        self.listeners += listeners
        number = listeners[0].address.port
        self.config = replace(self.config, port=number)
        bound = tuple(listener.address.host for listener in listeners)
        self.info = replace(self.info, trsvcid=str(number), bound=bound)

    def offer(self, subsystem: Subsystem) -> None:
        """Give a subsystem the ANA states of this port. Raises `ConfigurationError` for a group it cannot have."""
        for group, state in self.ana.items():
            subsystem.set_ana_state(state, group, portid=self.portid)

    def set_ana_state(self, state: AnaState, group: int, subsystems: Iterable[Subsystem]) -> None:
        """Put a group into a state, in all subsystems or in none. Raises `ConfigurationError`."""
        concerned = list(subsystems)
        for subsystem in concerned:
            subsystem.check_ana_state(state, group, self.portid)
        self.ana[group] = state
        for subsystem in concerned:
            subsystem.set_ana_state(state, group, portid=self.portid)

    def close(self) -> None:
        """Listen no more."""
        for listener in self.listeners:
            listener.close()

    def to_config(self) -> PortConfig:
        """Return the configuration that makes a port as this one is now."""
        return replace(self.config, ana=tuple(sorted(self.ana.items())))


class Ports(Mapping[int, Port]):
    """The ports that a target listens on, by Port ID.

    `options`: socket options of all listeners. `accept` takes each new connection, with the port that it came by.
    `configured`: the ports that are going to be started, which the way of listening on a wildcard depends on.
    """

    def __init__(
        self,
        options: SocketOptions,
        accept: Callable[[PortInfo, Endpoint], None],
        configured: tuple[PortConfig, ...],
    ) -> None:
        self.options = options
        self._accept = accept
        self._configured = configured
        self._ports: dict[int, Port] = {}

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
        return [listener for port in self.values() for listener in port.listeners]

    async def start(self, config: PortConfig, subsystems: Iterable[Subsystem]) -> Port:
        """Listen on an address and offer subsystems there. Raises `ConfigurationError` and `TransportError`."""
        transport = base.get(config.transport)
        portid = next(number for number in itertools.count(1) if number not in self)
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
        )
        accepted = partial(self._accept, info)
        port = Port(portid, config, info, accepted)
        for subsystem in subsystems:
            port.offer(subsystem)
        port.listening(await transport.listen(config.host, config.port, self._listen_options(config), accepted))
        self._ports[portid] = port
        return port

    def stop(self, port: Port) -> None:
        """Listen on a port no more, and forget it."""
        port.close()
        del self._ports[port.portid]

    def close(self) -> None:
        """Listen on no port any more."""
        for port in self.values():
            port.close()

    def _listen_options(self, port: PortConfig) -> SocketOptions:
        """A wildcard of both families leaves IPv4 to the port that 0.0.0.0 was asked for with the same number."""
        if not port.port or not is_wildcard(port.host):
            return self.options
        beside = any(
            each is not port and (each.host, each.port) == ("0.0.0.0", port.port)
            for each in (*self._configured, *(running.config for running in self.values()))
        )
        return replace(self.options, ipv6_only=beside)

    def mptcp_listeners(self) -> list[Listener]:
        """The listeners that MPTCP is really spoken on."""
        return [listener for listener in self.listeners if listener.describe().transport == "mptcp"]

    async def cover(self, address: str) -> None:
        """Listen on an announced address too where no listener takes its connections: joins would be refused."""
        for port in list(self.values()):
            config = port.config
            if config.transport != "mptcp":
                continue
            same_port = [each.address for each in self.mptcp_listeners() if each.address.port == config.port]
            if not covered(address, same_port):
                found = await base.get(config.transport).listen(address, config.port, self.options, port.accepted)
                logger.info("listening on %s too, which is announced", found[0].address)
                port.listeners += found


async def _advertised(port: PortConfig) -> tuple[str, ...]:
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
