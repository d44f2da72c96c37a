"""Administration: everything that can be changed while a target runs, with a verb for each change and its opposite. A
target starts from its configuration; `describe` and `save` return its present state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final, Protocol
from uuid import UUID

from nvmeof.errors import ConfigurationError
from nvmeof.runtime import Runtime
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.tls.key import TlsKey
from nvmeof.spec.enums import AnaState
from nvmeof.target.core.rate_limits import Limiter, RateLimit
from nvmeof.target.description import describe_port, describe_subsystem
from nvmeof.target.document import TargetSettings, to_document
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.ports import Port, Ports
from nvmeof.target.storage.base import Backend
from nvmeof.target.subsystem import live_changes
from nvmeof.target.subsystem.ana import ANA_GROUP, ANA_TRANSITION_SECONDS
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, Referral, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.hosts import Host
from nvmeof.target.subsystem.registry import TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.transport.paths.driver import flows_of
from nvmeof.transport.paths.model import PathEndpoint, parse_path

REMOVE_SECONDS: Final = 10.0
"""How long a removal waits until what it removes has ended."""
_POLL_SECONDS: Final = 0.02


class Administered(Protocol):
    """The Protocol of an administered target, which `nvmeof.target.server.Target` implements."""

    config: TargetConfig
    registry: TargetRegistry
    ports: Ports
    loop: asyncio.AbstractEventLoop

    @property
    def runtime(self) -> Runtime: ...

    @property
    def settings(self) -> TargetSettings: ...

    @property
    def subsystems(self) -> dict[str, Subsystem]: ...

    def check_runs(self, what: str) -> None: ...

    def subsystem(self, subnqn: str | None) -> Subsystem: ...

    def port(self, portid: int) -> Port: ...

    def limit_rates(self) -> list[str]: ...

    async def start_subsystem(self, config: SubsystemConfig) -> None: ...

    async def stop_subsystem(self, subsystem: Subsystem, deadline: float) -> list[str]: ...

    async def add_namespace(self, namespace: Backend | NamespaceConfig, *, subnqn: str | None = None) -> int: ...

    async def remove_namespace(self, nsid: int, *, subnqn: str | None = None) -> None: ...

    async def replace_backend(self, nsid: int, backend: Backend, *, subnqn: str | None = None) -> None: ...

    async def start_port(self, config: PortConfig) -> Port: ...

    async def stop_port(self, port: Port, deadline: float) -> list[str]: ...

    async def unlink(self, port: Port, subsystem: Subsystem, deadline: float) -> list[str]: ...

    async def drain(self, subsystem: Subsystem | None, portid: int | None, seconds: float) -> list[str]: ...


class Administration:
    """The administration of a running target; `Target.administration` is one.

    Every verb takes effect for hosts at once, and notifies them. All raise `ConfigurationError` for an object that does
    not exist or a value that cannot be used, with nothing changed, and `LocalProtocolError` before the target's start.
    A removal waits for at most `seconds` until what it removes has ended: associations, connections, commands in
    progress, open files. It returns what has not, a sentence each, none at best; that ends in the background, and
    nothing new begins with it.

    >>> administration.set_ana_state(AnaState.INACCESSIBLE, group=2, portid=1)  # doctest: +SKIP
    """

    def __init__(self, target: Administered) -> None:
        self._target = target

    def _deadline(self, seconds: float) -> float:
        return self._target.loop.time() + seconds

    # Subsystems

    async def add_subsystem(self, config: SubsystemConfig) -> None:
        """Open the namespaces of a subsystem and offer it on every port that lists it. Raises also `OSError`."""
        self._target.check_runs("a subsystem is added")
        await self._target.start_subsystem(config)

    async def remove_subsystem(self, subnqn: str, *, seconds: float = REMOVE_SECONDS) -> list[str]:
        """End a subsystem's associations, flush its namespaces and close them. Returns what has not ended."""
        self._target.registry.generated.forget_subsystem(self._subsystem(subnqn).nqn)
        return await self._target.stop_subsystem(self._subsystem(subnqn), self._deadline(seconds))

    def _subsystem(self, subnqn: str | None) -> Subsystem:
        return self._target.subsystem(subnqn)

    def link_subsystem(self, subnqn: str, portid: int) -> None:
        """Offer a subsystem on a port that lists subsystems and did not list this one."""
        subsystem, port = self._subsystem(subnqn), self._target.port(portid)
        listed = port.config.subsystems
        if listed is None or subsystem.nqn in listed:
            raise ConfigurationError(f"port {portid} offers {subsystem.nqn} already")
        port.list_subsystems(listed | {subsystem.nqn})
        self._target.registry.change_port(port.info)

    async def unlink_subsystem(self, subnqn: str, portid: int, *, seconds: float = REMOVE_SECONDS) -> list[str]:
        """Stop offering a subsystem on a port; its associations there end. Returns what has not ended.

        A port that offered all subsystems offers those that exist now from then on, and later ones when they are linked
        to it.
        """
        subsystem, port = self._subsystem(subnqn), self._target.port(portid)
        listed = port.config.subsystems
        offered = frozenset(self._target.subsystems) if listed is None else listed
        if subsystem.nqn not in offered:
            raise ConfigurationError(f"port {portid} does not offer {subsystem.nqn}")
        port.list_subsystems(offered - {subsystem.nqn})
        return await self._target.unlink(port, subsystem, self._deadline(seconds))

    def link_all_subsystems(self, portid: int) -> None:
        """Offer all subsystems on a port, those that are added later too."""
        self._target.check_runs("a port is changed")
        port = self._target.port(portid)
        port.list_subsystems(None)
        self._target.registry.change_port(port.info)

    async def offer_subsystems(
        self, subnqns: Collection[str], portid: int, *, seconds: float = REMOVE_SECONDS
    ) -> list[str]:
        """Offer these subsystems on a port and no others, which need not exist yet; associations with others end.

        Returns what has not ended.
        """
        self._target.check_runs("a port is changed")
        port, wanted = self._target.port(portid), frozenset(subnqns)
        dropped = [each for nqn, each in self._target.subsystems.items() if port.info.offers(nqn) and nqn not in wanted]
        port.list_subsystems(wanted)
        self._target.registry.change_port(port.info)
        deadline, left = self._deadline(seconds), list[str]()
        for subsystem in dropped:
            left += await self._target.unlink(port, subsystem, deadline)
        return left

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

    def set_namespace_limit(self, nsid: int, limit: RateLimit | None, *, subnqn: str | None = None) -> list[str]:
        """Set the rate limit that all users of a namespace share, or (None) take it back.

        Returns a sentence for each I/O queue that holds to it only when its host has connected again: those from before
        the target's first rate limit.
        """
        subsystem = self._subsystem(subnqn)
        namespace = subsystem.namespaces.get(nsid)
        if namespace is None:
            raise ConfigurationError(f"{subsystem.nqn} has no namespace {nsid}")
        if limit is None:
            namespace.limiter = None
        elif namespace.limiter is None:
            namespace.limiter = Limiter(limit)
        else:
            namespace.limiter.change(limit, self._target.loop.time())
        return self._limits_changed(subsystem)

    def disable_namespace(self, nsid: int, *, subnqn: str | None = None) -> None:
        """Withdraw a namespace from hosts; it keeps its NSID, its data and its open storage."""
        live_changes.disable_namespace(self._subsystem(subnqn), nsid)

    def enable_namespace(self, nsid: int, *, subnqn: str | None = None) -> None:
        """Show a disabled namespace to hosts again."""
        subsystem = self._subsystem(subnqn)
        live_changes.enable_namespace(subsystem, nsid)
        subsystem.resume(self._target.runtime)

    def set_read_only(self, nsid: int, read_only: bool = True, *, subnqn: str | None = None) -> None:
        """Refuse writes of all hosts to a namespace, or allow them."""
        live_changes.set_read_only(self._subsystem(subnqn), nsid, read_only)

    def set_identifiers(
        self,
        nsid: int,
        *,
        uuid: UUID | None = None,
        nguid: bytes | None = None,
        eui64: bytes | None = None,
        subnqn: str | None = None,
    ) -> None:
        """Give a disabled namespace other identifiers; those that are None stay."""
        live_changes.set_identifiers(self._subsystem(subnqn), nsid, uuid=uuid, nguid=nguid, eui64=eui64)

    async def replace_backend(self, nsid: int, backend: Backend, *, subnqn: str | None = None) -> None:
        """Put other storage behind a disabled namespace, and close what it had. Raises also `OSError`."""
        await self._target.replace_backend(nsid, backend, subnqn=subnqn)

    def set_limits(self, *, subnqn: str | None = None, **limits: int) -> None:
        """Change ``max_io_queues``, ``max_queue_entries``, ``cntlid_min`` or ``cntlid_max`` of a subsystem.

        Hosts follow at their next connect.
        """
        live_changes.set_limits(self._subsystem(subnqn), **limits)

    async def drain(
        self, subnqn: str | None = None, *, portid: int | None = None, seconds: float = REMOVE_SECONDS
    ) -> list[str]:
        """Let commands in progress end on the connections of a subsystem, of a port, or of a subsystem on a port.

        No further command begins on them, so a removal has to follow. Returns a sentence for each connection with
        commands that have not ended after `seconds`.
        """
        subsystem = None if subnqn is None else self._subsystem(subnqn)
        return await self._target.drain(subsystem, portid, seconds)

    # Hosts

    def set_host_limit(self, nqn: str | None, limit: RateLimit | None, *, subnqn: str | None = None) -> list[str]:
        """Set the rate limit of a host, or (`nqn` None) of each host that has none of its own; None: take it back.

        Returns sentences as `set_namespace_limit` does.
        """
        subsystem = self._subsystem(subnqn)
        subsystem.host_limits.set(nqn, limit)
        return self._limits_changed(subsystem)

    def _limits_changed(self, subsystem: Subsystem) -> list[str]:
        """Let commands take the general path again, where they find the limits, and those pass that may by now."""
        now = self._target.loop.time()
        unlimited = self._target.limit_rates()
        for controller in subsystem.controllers.values():
            view = controller.view
            view.limiter = subsystem.host_limits.limiter(view.host_nqn, now)
            view.namespaces.pause()
            view.namespaces.resume()
        return [f"{peer}: its queue is limited when it has connected again" for peer in unlimited]

    def add_host(self, nqn: str, *, subnqn: str | None = None) -> None:
        """Allow one more host to use a subsystem that is limited to some hosts."""
        subsystem = self._subsystem(subnqn)
        subsystem.hosts.add(Host(nqn))
        self._target.registry.hosts_changed(subsystem.nqn)

    def remove_host(self, nqn: str, *, subnqn: str | None = None) -> None:
        """Remove a host from a subsystem's allowed ones; its associations end."""
        subsystem = self._subsystem(subnqn)
        subsystem.hosts.remove(nqn)
        self._target.registry.generated.forget(nqn)
        subsystem.end_forbidden()
        self._target.registry.hosts_changed(subsystem.nqn)

    def allow_any_host(self, allowed: bool = True, *, subnqn: str | None = None) -> None:
        """Let any host use a subsystem, or only those that were added: the associations of others end."""
        subsystem = self._subsystem(subnqn)
        subsystem.hosts.any_host = allowed
        subsystem.end_forbidden()
        self._target.registry.hosts_changed(subsystem.nqn)

    def set_allowed_hosts(self, hosts: frozenset[str] | None, *, subnqn: str | None = None) -> None:
        """Let these hosts use a subsystem and no others, or (None) any; associations of hosts that may not end."""
        self._target.registry.set_allowed_hosts(self._subsystem(subnqn).nqn, hosts)

    def set_managing_hosts(self, hosts: frozenset[str] | None, *, subnqn: str | None = None) -> None:
        """Let these hosts format, sanitize and manage the namespaces of a subsystem, and no others; None: all that may
        use it."""
        self._subsystem(subnqn).hosts.set_managing(hosts)

    def set_host_keys(self, nqn: str, keys: HostKeys | None, *, subnqn: str | None = None) -> None:
        """Set what a host authenticates itself with, from its next Connect on; None: it need not. TLS keys that were
        made of the old one are forgotten.

        Associations that exist go on: `remove_host` ends them, where only some hosts are allowed.
        """
        self._subsystem(subnqn).hosts.set_keys(nqn, keys)
        self._target.registry.generated.forget(nqn)

    def set_tls_key(self, nqn: str, key: TlsKey | None, *, subnqn: str | None = None) -> None:
        """Set what a host uses TLS with, from its next connection on; None: it cannot.

        Associations that exist go on: `remove_host` ends them, where only some hosts are allowed.
        """
        self._subsystem(subnqn).hosts.set_tls_key(nqn, key)

    # Ports and paths

    async def add_port(self, config: PortConfig) -> int:
        """Listen on one more address, for all subsystems; returns its Port ID. Raises also `TransportError`."""
        self._target.check_runs("a port is added")
        return (await self._target.start_port(config)).portid

    async def remove_port(self, portid: int, *, seconds: float = REMOVE_SECONDS) -> list[str]:
        """Stop listening on an address, and end its associations and connections.

        Returns what has not ended.
        """
        self._target.check_runs("a port is removed")
        return await self._target.stop_port(self._target.port(portid), self._deadline(seconds))

    def set_referrals(self, referrals: Collection[Referral], portid: int) -> None:
        """Name these other discovery services in a port's Discovery log, and no others."""
        self._target.check_runs("a port is changed")
        port = self._target.port(portid)
        port.name_referrals(tuple(referrals))
        self._target.registry.change_port(port.info)

    def end_controller(self, cntlid: int, reason: str, *, subnqn: str | None = None) -> None:
        """End the association of one controller. Its host may connect again at once."""
        subsystem = self._subsystem(subnqn)
        controller = subsystem.controllers.get(cntlid)
        if controller is None:
            raise ConfigurationError(f"{subsystem.nqn} has no controller {cntlid}")
        controller.destroy(reason)

    async def add_path(self, path: str, *, portid: int | None = None) -> PathEndpoint:
        """Announce one more address to MPTCP hosts: ``ADDR[%dev][,backup]``, on one port or (None) on all that can.

        Raises also `TransportError`.
        """
        self._target.check_runs("a path is added")
        return await self._target.ports.add_path(path, portid)

    async def remove_path(
        self, address: str, *, portid: int | None = None, seconds: float = REMOVE_SECONDS
    ) -> list[str]:
        """Take an announced address back, on one port or (None) on all, and end the subflows there.

        Returns what has not ended: a path that another process announces too stays in use. Raises also
        `TransportError`.
        """
        self._target.check_runs("a path is removed")
        wanted = parse_path(address).address
        ports = self._target.ports.remove_path(wanted, portid)
        deadline = self._deadline(seconds)
        while left := sum(_subflows(port, wanted) for port in ports):
            if self._target.loop.time() >= deadline:
                break
            await asyncio.sleep(_POLL_SECONDS)
        return [f"{left} subflows at {wanted} are open still"] if left else []

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
        """Set the state of an ANA group after the Change state, which lasts for `seconds`, at most ANATT."""
        if not 0 <= seconds <= ANA_TRANSITION_SECONDS:
            raise ConfigurationError(f"a change takes 0 to {ANA_TRANSITION_SECONDS} s (ANATT), not {seconds:g}")
        self.set_ana_state(AnaState.CHANGE, group, portid=portid)
        await asyncio.sleep(seconds)
        self.set_ana_state(state, group, portid=portid)

    # What there is

    def describe(self) -> dict[str, Any]:
        """Return the target's present state, in the types of JSON: its subsystems and its ports."""
        target = self._target
        return {
            "subsystems": [describe_subsystem(each) for each in target.subsystems.values()],
            "ports": [describe_port(each) for each in target.ports.values()],
        }

    def to_config(self) -> TargetConfig:
        """Return the configuration of what the target is now; its namespaces are those that are open.

        Namespaces that hosts have created are their pool's.
        """
        target = self._target
        return replace(
            target.config,
            subsystems=tuple(each.to_config(_namespaces(each)) for each in target.subsystems.values()),
            ports=tuple(port.to_config() for port in target.ports.values()),
        )

    def save(self) -> dict[str, Any]:
        """Return the configuration of what the target is now as a document, which JSON has too.

        `Target.from_document` makes a target of it that is the same, with ramdisks empty. Raises also
        `ConfigurationError` for a namespace whose storage a program made in a way that no text describes.
        """
        settings = self._target.settings
        paths = replace(settings.paths, paths=())  # each port has its own by now
        return to_document(replace(settings, config=self.to_config(), paths=paths))


def _subflows(port: Port, address: str) -> int:
    """Return how many subflows of a port's connections are alive at a local address."""
    count = 0
    for endpoint in port.endpoints:
        for flows in flows_of([endpoint]):
            count += sum(flow.live and flow.local_host == address for flow in flows)
            # A connection that came to that address itself has its first subflow there, whatever is announced.
            count -= endpoint.local_address.host == address
    return max(0, count)


def _namespaces(subsystem: Subsystem) -> tuple[NamespaceConfig, ...]:
    created = subsystem.manager.nsids if subsystem.manager is not None else frozenset()
    known = {**subsystem.namespaces, **subsystem.disabled}
    return tuple(
        _namespace(known[nsid], enabled=nsid not in subsystem.disabled) for nsid in sorted(known) if nsid not in created
    )


def _namespace(namespace: Namespace, *, enabled: bool) -> NamespaceConfig:
    return NamespaceConfig(
        backend=namespace.backend,
        nsid=namespace.nsid,
        nguid=namespace.nguid,
        uuid=namespace.uuid,
        eui64=namespace.eui64 if any(namespace.eui64) else None,
        read_only=namespace.configured_read_only,
        zoned=namespace.geometry if isinstance(namespace, ZonedNamespace) else None,
        anagrpid=namespace.anagrpid,
        rate_limit=None if namespace.limiter is None else namespace.limiter.limit,
        enabled=enabled,
    )
