"""The two ways to act on paths, behind one interface: the kernel's path manager, or commands per connection.

A driver knows nothing of time and of links: the path keeper decides which path is suspended and resumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nvmeof.errors import TransportError
from nvmeof.transport.base import Endpoint, SubflowInfo, log
from nvmeof.transport.paths import diag
from nvmeof.transport.paths.kernel import KernelPaths, ListedPath
from nvmeof.transport.paths.model import Limits, PathEndpoint, PathPrivilegeError

Connections: TypeAlias = Callable[[], Iterable[Endpoint]]
"""Gives the open connections that are ours."""

LIVE_STATES = frozenset(("ESTABLISHED", "SYN_SENT", "SYN_RECV"))


@dataclass(frozen=True, slots=True)
class Flow:
    """A subflow of one of our connections."""

    token: int
    info: SubflowInfo

    @property
    def local_host(self) -> str:
        return self.info.local.host.partition("%")[0]

    @property
    def live(self) -> bool:
        return self.info.state in LIVE_STATES


def flows_of(connections: Iterable[Endpoint]) -> list[list[Flow]]:
    """Return the subflows of each connection that speaks MPTCP now."""
    result = []
    for endpoint in connections:
        if endpoint.closed:
            continue
        info = endpoint.describe()
        if info.protocol == "mptcp" and info.token is not None:
            result.append([Flow(info.token, flow) for flow in info.subflows])
    return result


class PathDriver(ABC):
    """Acts on paths. The methods raise TransportError (PathPrivilegeError without CAP_NET_ADMIN) or OSError."""

    name: str

    @abstractmethod
    def add(self, endpoints: Sequence[PathEndpoint], limits: Limits | None) -> list[PathEndpoint]:
        """Use these paths, all or none; as the kernel has them."""

    @abstractmethod
    def remove(self, endpoint: PathEndpoint) -> None:
        """Use a path no longer."""

    @abstractmethod
    def set_backup(self, endpoint: PathEndpoint, backup: bool) -> PathEndpoint:
        """Make a path a backup, or a regular one."""

    @abstractmethod
    def suspend(self, endpoint: PathEndpoint, flows: Sequence[Flow]) -> None:
        """Close the subflows over a path, and open none until `resume`. `flows`: those of our connections."""

    @abstractmethod
    def resume(self, endpoint: PathEndpoint) -> None:
        """Open subflows over a path again."""

    @abstractmethod
    def close_flow(self, flow: Flow) -> None:
        """Close one subflow."""

    def reconcile(self) -> None:  # noqa: B027 (the kernel's path manager needs none)
        """Open what is missing (called now and then, and after events)."""

    @abstractmethod
    def close(self) -> None:
        """Take everything back."""


def align_backup(address: str, backup: bool, flows: Iterable[SubflowInfo]) -> int:
    """Close the subflows of a connection from `address` whose flag did not follow; how many.

    The kernel changes one subflow per connection and local address (mptcp_pm_nl_mp_prio_send_ack), whatever their
    number; the one that it changed stays.
    """
    closed = 0
    for flow in flows:
        if flow.state != "ESTABLISHED" or flow.local.host.partition("%")[0] != address:
            continue
        told = diag.look_up(flow.local, flow.peer)
        if told is None or told.flags is None or bool(told.flags & diag.SubflowFlag.BACKUP_LOC) == backup:
            continue
        closed += diag.destroy(flow.local, flow.peer)
    return closed


class KernelDriver(PathDriver):
    """The in-kernel path manager: endpoints of the namespace, which act on all of its connections.

    Only endpoints of ours are touched. A subflow that belongs to none is closed by itself (SOCK_DESTROY).
    """

    name = "kernel"

    def __init__(self, paths: KernelPaths, connections: Connections = tuple) -> None:
        self.paths = paths
        self._connections = connections

    def add(self, endpoints: Sequence[PathEndpoint], limits: Limits | None) -> list[PathEndpoint]:
        added: list[PathEndpoint] = []
        try:
            if limits is not None:
                self.paths.ensure_limits(limits)
            for endpoint in endpoints:
                added.append(self.paths.add(endpoint))
        except PathPrivilegeError:
            raise self._all_commands(endpoints, limits) from None
        except TransportError:
            for endpoint in added:
                self.paths.remove(endpoint.key)
            raise
        return added

    def _all_commands(self, endpoints: Sequence[PathEndpoint], limits: Limits | None) -> PathPrivilegeError:
        """Make one error for everything that is missing."""
        present: set[tuple[str, int | None]] = set()
        try:
            present = {each.endpoint.key for each in self.paths.list()}
            if limits is not None:
                now = self.paths.limits()
                limits = None if now.at_least(limits) == now else now.at_least(limits)
        except PathPrivilegeError:
            pass  # it may not even be read: name them all
        commands = [limits.command()] if limits is not None else []
        commands += [each.command() for each in endpoints if each.key not in present]
        return PathPrivilegeError("adding MPTCP paths", commands)

    def remove(self, endpoint: PathEndpoint) -> None:
        self.paths.remove(endpoint.key)

    def set_backup(self, endpoint: PathEndpoint, backup: bool) -> PathEndpoint:
        changed = self.paths.set_backup(endpoint.key, backup)
        for flows in flows_of(self._connections()):
            align_backup(endpoint.address, backup, [flow.info for flow in flows])
        return changed

    def suspend(self, endpoint: PathEndpoint, flows: Sequence[Flow]) -> None:
        if not self.paths.suspend(endpoint):
            for flow in flows:
                self.close_flow(flow)

    def resume(self, endpoint: PathEndpoint) -> None:
        self.paths.resume(endpoint)

    def close_flow(self, flow: Flow) -> None:
        if not diag.destroy(flow.info.local, flow.info.peer):
            log.debug("the subflow %s - %s was gone already", flow.info.local, flow.info.peer)

    def list(self) -> list[ListedPath]:
        """Return all endpoints of the namespace."""
        return self.paths.list()

    def close(self) -> None:
        self.paths.close()
