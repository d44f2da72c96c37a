"""Ports: an address that is listened on, with everything that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from nvmeof.spec.enums import AnaState
from nvmeof.target.subsystem.config import PortConfig
from nvmeof.target.subsystem.registry import PortInfo
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.transport.base import Endpoint, Listener


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
