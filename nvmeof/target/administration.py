"""Administration: everything that can be changed while a target runs, under one roof, with a verb for each way.

The configuration that a target was made of is where it begins; what it is now is told by `describe` and `save`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import AnaState
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.ports import Port, Ports
from nvmeof.target.storage.base import Backend
from nvmeof.target.subsystem.ana import ANA_GROUP, ANA_TRANSITION_SECONDS, state_word
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.hosts import Host
from nvmeof.target.subsystem.registry import TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.transport.paths.model import PathEndpoint
from nvmeof.transport.paths.session import PathSession


class Administered(Protocol):
    """What administration needs of a target: `nvmeof.target.server.Target` has it."""

    config: TargetConfig
    registry: TargetRegistry
    ports: Ports
    paths: PathSession | None

    @property
    def subsystems(self) -> dict[str, Subsystem]: ...

    def check_runs(self, what: str) -> None: ...

    def subsystem(self, subnqn: str | None) -> Subsystem: ...

    def port(self, portid: int) -> Port: ...

    async def start_subsystem(self, config: SubsystemConfig) -> None: ...

    async def stop_subsystem(self, subsystem: Subsystem) -> None: ...

    async def add_namespace(self, namespace: Backend | NamespaceConfig, *, subnqn: str | None = None) -> int: ...

    async def remove_namespace(self, nsid: int, *, subnqn: str | None = None) -> None: ...

    async def start_port(self, config: PortConfig) -> Port: ...

    def stop_port(self, port: Port) -> None: ...

    async def add_path(self, path: str) -> PathEndpoint: ...


class Administration:
    """What an administrator may do to a running target; `Target.administration` is one.

    Every verb takes effect for hosts at once, and tells them. All raise `ConfigurationError` for what does not exist or
    cannot be, with nothing changed, and `LocalProtocolError` before the target's start.

    >>> administration.set_ana_state(AnaState.INACCESSIBLE, group=2, portid=1)  # doctest: +SKIP
    """

    def __init__(self, target: Administered) -> None:
        self._target = target

    # Subsystems

    async def add_subsystem(self, config: SubsystemConfig) -> None:
        """Open the namespaces of a subsystem and offer it on every port. Raises also `OSError`."""
        self._target.check_runs("a subsystem is added")
        await self._target.start_subsystem(config)

    async def remove_subsystem(self, subnqn: str) -> None:
        """End a subsystem's associations, flush its namespaces and close them."""
        await self._target.stop_subsystem(self._subsystem(subnqn))

    def _subsystem(self, subnqn: str | None) -> Subsystem:
        return self._target.subsystem(subnqn)

    # Namespaces

    async def add_namespace(self, namespace: Backend | NamespaceConfig, *, subnqn: str | None = None) -> int:
        """Open a backend and offer it; returns the NSID. `subnqn`: None for the first subsystem, here as below."""
        return await self._target.add_namespace(namespace, subnqn=subnqn)

    async def remove_namespace(self, nsid: int, *, subnqn: str | None = None) -> None:
        """Withdraw a namespace and close its backend; one that a host has created is deleted with its data."""
        await self._target.remove_namespace(nsid, subnqn=subnqn)

    def resize_namespace(self, nsid: int, size_bytes: int, *, subnqn: str | None = None) -> None:
        """Change a namespace's size. Raises also `OSError`, when its backend cannot."""
        self._subsystem(subnqn).resize_namespace(nsid, size_bytes)

    def move_namespace(self, nsid: int, group: int, *, subnqn: str | None = None) -> None:
        """Move a namespace to another ANA group."""
        self._subsystem(subnqn).move_namespace(nsid, group)

    # Hosts

    def add_host(self, nqn: str, *, subnqn: str | None = None) -> None:
        """Let one more host use a subsystem that not any host may use."""
        self._subsystem(subnqn).hosts.add(Host(nqn))
        self._target.registry.changed()

    def remove_host(self, nqn: str, *, subnqn: str | None = None) -> None:
        """Let a host not use a subsystem any more; its associations end."""
        subsystem = self._subsystem(subnqn)
        subsystem.hosts.remove(nqn)
        subsystem.end_forbidden()
        self._target.registry.changed()

    def allow_any_host(self, allowed: bool = True, *, subnqn: str | None = None) -> None:
        """Let any host use a subsystem, or only those that were added: the associations of others end."""
        subsystem = self._subsystem(subnqn)
        subsystem.hosts.any_host = allowed
        subsystem.end_forbidden()
        self._target.registry.changed()

    # Ports and paths

    async def add_port(self, config: PortConfig) -> int:
        """Listen on one more address, for all subsystems; returns its Port ID. Raises also `TransportError`."""
        self._target.check_runs("a port is added")
        return (await self._target.start_port(config)).portid

    async def remove_port(self, portid: int) -> None:
        """Listen on an address no more, and end the associations and connections that came by it."""
        self._target.check_runs("a port is removed")
        self._target.stop_port(self._target.port(portid))

    async def add_path(self, path: str) -> PathEndpoint:
        """Announce one more address to MPTCP hosts: ``ADDR[%dev][,backup]``."""
        return await self._target.add_path(path)

    def remove_path(self, address: str) -> None:
        """Take back an announced address."""
        if self._target.paths is None:
            raise ConfigurationError(f"the address {address} was not announced")
        self._target.paths.remove_path(address)

    def set_ana_state(self, state: AnaState, group: int = ANA_GROUP, *, portid: int | None = None) -> None:
        """Put an ANA group into a state on one port, or (None) on all, in every subsystem."""
        target = self._target
        target.check_runs("an ANA state is set")
        ports = list(target.ports.values()) if portid is None else [target.port(portid)]
        for port in ports:
            for subsystem in target.subsystems.values():
                subsystem.check_ana_state(state, group, port.portid)
        for port in ports:
            port.set_ana_state(state, group, target.subsystems.values())

    async def change_ana_state(
        self, state: AnaState, group: int = ANA_GROUP, *, portid: int | None = None, seconds: float
    ) -> None:
        """Put an ANA group into a state by way of Change, in which it is for so many seconds, ANATT at the most."""
        if not 0 <= seconds <= ANA_TRANSITION_SECONDS:
            raise ConfigurationError(f"a change takes 0 to {ANA_TRANSITION_SECONDS} s (ANATT), not {seconds:g}")
        self.set_ana_state(AnaState.CHANGE, group, portid=portid)
        await asyncio.sleep(seconds)
        self.set_ana_state(state, group, portid=portid)

    # What there is

    def describe(self) -> dict[str, Any]:
        """Return what the target is now, as JSON has it."""
        target = self._target
        return {
            "subsystems": [_subsystem(each) for each in target.subsystems.values()],
            "ports": [
                {
                    "portid": port.portid,
                    "transport": port.config.transport,
                    "host": port.config.host,
                    "port": port.config.port,
                    "addresses": [str(listener.address) for listener in port.listeners],
                    "discovery_only": port.config.discovery_only,
                    "ana": {str(group): state_word(state) for group, state in sorted(port.ana.items())},
                }
                for port in target.ports.values()
            ],
            "paths": target.paths.list() if target.paths is not None else [],
        }

    def save(self) -> TargetConfig:
        """Return the configuration of what the target is now.

        Namespaces that hosts have created are their pool's. The size of a ramdisk that was resized is its backend's
        matter: started again it has the size that it was made with.
        """
        target = self._target
        return TargetConfig(
            subsystems=tuple(each.to_config(_namespaces(each)) for each in target.subsystems.values()),
            ports=tuple(port.to_config() for port in target.ports.values()),
            staging_bytes=target.config.staging_bytes,
        )


def _subsystem(subsystem: Subsystem) -> dict[str, Any]:
    names = subsystem.hosts.names
    return {
        "nqn": subsystem.nqn,
        "serial": subsystem.config.serial_number,
        "hosts": None if names is None else sorted(names),
        "namespaces": [
            {
                "nsid": namespace.nsid,
                "backend": namespace.backend.description,
                "size_bytes": namespace.size_blocks * namespace.block_bytes,
                "block_bytes": namespace.block_bytes,
                "read_only": namespace.read_only,
                "anagrpid": namespace.anagrpid,
            }
            for namespace in subsystem.namespaces.values()
        ],
        "controllers": [
            {"cntlid": each.cntlid, "host": each.host_nqn, "portid": each.ana.portid}
            for each in subsystem.controllers.values()
        ],
    }


def _namespaces(subsystem: Subsystem) -> tuple[NamespaceConfig, ...]:
    created = subsystem.manager.nsids if subsystem.manager is not None else frozenset()
    return tuple(_namespace(each) for nsid, each in subsystem.namespaces.items() if nsid not in created)


def _namespace(namespace: Namespace) -> NamespaceConfig:
    return NamespaceConfig(
        backend=namespace.backend,
        nsid=namespace.nsid,
        nguid=namespace.nguid,
        uuid=namespace.uuid,
        eui64=namespace.eui64 if any(namespace.eui64) else None,
        read_only=namespace.configured_read_only,
        zoned=namespace.geometry if isinstance(namespace, ZonedNamespace) else None,
        anagrpid=namespace.anagrpid,
    )
