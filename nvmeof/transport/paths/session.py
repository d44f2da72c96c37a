"""The paths of one target or one association, from its start to its end: what the rest of the package uses.

>>> session = PathSession(PathRole.SUBFLOW, PathOptions(paths=("auto",)), connections, what="host")
>>> await session.start([Address("10.1.1.1", 4420)])
>>> session.add_path("10.1.3.2%eth2,backup"); session.set_backup("10.1.3.2", False); session.list()
>>> session.stop()

Nothing here is needed for a connection to work: what cannot be had is said in one sentence, and `problem` keeps it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.transport import options as setup
from nvmeof.transport.base import Address, log
from nvmeof.transport.paths import interfaces, sysctl
from nvmeof.transport.paths.driver import Connections, KernelDriver, PathDriver
from nvmeof.transport.paths.keeper import PathKeeper, PathState, carries
from nvmeof.transport.paths.kernel import KernelPaths
from nvmeof.transport.paths.model import (
    ALL_PATHS,
    SUBFLOWS_MAX,
    Limits,
    PathEndpoint,
    PathPrivilegeError,
    PathRole,
    PathSpec,
    PathsUnavailable,
    parse_path,
)
from nvmeof.transport.paths.sockops import SubflowRule, SubflowRules
from nvmeof.transport.paths.userspace import UserspaceDriver

AUTO = "auto"
Prepare: TypeAlias = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions:
    """Options of MPTCP's path management, for a host or a target: ``PathOptions(paths=("auto",))``.

    The options need pyroute2 and CAP_NET_ADMIN. Without these the connections work, and one line of the log says what
    is missing. Raises :class:`~nvmeof.errors.ConfigurationError` for a path that cannot be parsed.
    """

    paths: tuple[str, ...] = ()
    """`ADDR[%dev][,backup][,fullmesh][,mark=N][,congestion=NAME]`, or 'auto': one address of every interface."""
    fullmesh: bool = False
    """A host's paths are connected to every address that the target announces."""
    limits: Limits | None = ALL_PATHS
    """Raised to these where they are lower; None leaves them alone."""
    path_manager: str | None = None
    """'kernel' or 'userspace' for the namespace's new connections; None takes what is set."""
    keep: bool = True
    """Watch the paths: close what is cut, use again what has come back."""

    def __post_init__(self) -> None:
        for text in self.paths:
            if text != AUTO:
                parse_path(text)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.paths or self.path_manager)


class PathSession:
    """Paths in the name of one target or association. `connections` gives its open endpoints, whenever asked."""

    def __init__(self, role: PathRole, options: PathOptions, connections: Connections, *, what: str) -> None:
        self.role = role
        self.options = options
        self.paths: list[PathState] = []
        self.problem: TransportError | None = None
        """Why paths are not managed, or not all of them."""
        self.driver: PathDriver | None = None
        self.keeper: PathKeeper | None = None
        self._what = what
        self._connections = connections
        self._namespace: KernelPaths | None = None
        self._rules: SubflowRules | None = None

    # -- start and stop

    async def start(self, addresses: Sequence[Address], prepare: Prepare | None = None) -> list[PathEndpoint]:
        """Begin; `addresses`: what a target listens on, or where a host connects to. Returns the paths in use.
        `prepare` is called with each address before it is used: a target ensures a listener there.

        A missing privilege or means becomes `problem` and is logged. Raises ConfigurationError for wrong options.
        """
        try:
            specs = await self._specs(addresses)
            wanted = [each.endpoint(self.role) for each in specs]
            self._open(wanted)
            if prepare is not None:
                for spec in specs:
                    await prepare(spec.address)
            assert self.driver is not None
            added = self.driver.add(wanted, self.options.limits)
            self.paths += [PathState(each) for each in added]
            self._set_rules(specs)
            if self.options.keep:
                self.keeper = PathKeeper(self.driver, self.paths, self._connections)
        except ConfigurationError:
            self.stop()
            raise
        except (TransportError, OSError) as error:
            self.problem = error if isinstance(error, TransportError) else TransportError(error.strerror or str(error))
            log.warning("%s", self.problem)
            self.stop()
        return [each.endpoint for each in self.paths]

    def _open(self, endpoints: Sequence[PathEndpoint]) -> None:
        """Find out the path manager in use, and set the other one where that was asked for."""
        self._namespace = KernelPaths(self._what)
        wanted, present = self.options.path_manager, sysctl.path_manager()
        if wanted is not None and wanted != present:
            self._namespace.set_path_manager(wanted)
            present = wanted
        elif wanted is not None:
            with contextlib.suppress(OSError, TransportError):
                self._namespace.set_path_manager(wanted)  # another session may have set it: it stays until both end
        if present == "kernel":
            self.driver = KernelDriver(self._namespace, self._connections)
        elif present == "userspace":
            try:
                self.driver = UserspaceDriver(self.role, self._connections)
            except PathPrivilegeError:
                raise self._without_userspace(endpoints) from None
        else:
            raise TransportError(f"paths are left to the path manager {present!r} that this network namespace uses")

    def _set_rules(self, specs: Sequence[PathSpec]) -> None:
        """Set marks and congestion controls of single paths; a failure is logged, and the paths work without them."""
        rules = [
            SubflowRule(address=each.address, mark=each.mark, congestion=each.congestion)
            for each in specs
            if each.mark is not None or each.congestion is not None
        ]
        if rules:
            try:
                self._rules = SubflowRules(rules)
            except PathsUnavailable as error:
                self.problem = error
                log.warning("the paths have no mark or congestion control of their own: %s", error)

    def _without_userspace(self, endpoints: Sequence[PathEndpoint]) -> PathPrivilegeError:
        """Make the error for a user-space path manager without the privilege to act as one, with its remedy."""
        name, value = sysctl.path_manager_sysctl("kernel")
        limits = [self.options.limits.command()] if self.options.limits is not None else []
        commands = [f"sysctl -w net.mptcp.{name}={value}", *limits, *(each.command() for each in endpoints)]
        return PathPrivilegeError("managing paths per connection (path manager 'userspace')", commands)

    def stop(self) -> None:
        """Take back what was added. Idempotent."""
        if self._rules is not None:
            self._rules.close()
            self._rules = None
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None
        if self.driver is not None:
            self.driver.close()
            self.driver = None
        if self._namespace is not None:
            self._namespace.close()
            self._namespace = None
        self.paths.clear()

    async def _specs(self, addresses: Sequence[Address]) -> list[PathSpec]:
        """Return the paths that were asked for, 'auto' worked out, each address once."""
        specs: dict[str, PathSpec] = {}
        for text in self.options.paths:
            if text == AUTO:
                found = await self._auto(addresses)
            else:
                spec = self._with_device(parse_path(text))
                if spec.device is None:
                    raise ConfigurationError(f"no interface of this machine has the address {spec.address}")
                found = [spec]
            for spec in found:
                if self.options.fullmesh and self.role is PathRole.SUBFLOW:
                    spec = replace(spec, fullmesh=True)
                specs.setdefault(spec.address, spec)
        if len(specs) > SUBFLOWS_MAX:
            raise ConfigurationError(f"MPTCP has at most {SUBFLOWS_MAX} paths, not {len(specs)}")
        return list(specs.values())

    def _with_device(self, spec: PathSpec) -> PathSpec:
        """Return a path with the interface that has its address; without one where none has. Raises
        ConfigurationError."""
        spec.endpoint(self.role)  # a path that its role does not allow has no interface to look for
        return spec if spec.device is not None else replace(spec, device=interfaces.device_of(spec.address))

    async def _auto(self, addresses: Sequence[Address]) -> list[PathSpec]:
        if self.role is PathRole.SIGNAL:
            return interfaces.auto_signal(list(addresses))
        for address in addresses:
            found = await setup.resolve(address.host, address.port)
            return interfaces.auto_subflow(setup.to_address(found[0][1]).host)
        return []

    # -- control while running

    def add_path(self, path: str) -> PathEndpoint:
        """Use one more path, from now on and in the connections that are open: `ADDR[%dev][,backup][,fullmesh]`."""
        driver = self._running()
        spec = self._with_device(parse_path(path, fullmesh=self.options.fullmesh and self.role is PathRole.SUBFLOW))
        (endpoint,) = driver.add([spec.endpoint(self.role)], None)
        self.paths.append(PathState(endpoint))
        return endpoint

    def remove_path(self, address: str) -> None:
        """Use a path no longer: its subflows close, the connections go on over the others."""
        state = self._find(address)
        self._running().remove(state.endpoint)
        self.paths.remove(state)

    def set_backup(self, address: str, backup: bool = True) -> None:
        """Use a path only while no other is left (or, with False, always)."""
        state = self._find(address)
        state.endpoint = self._running().set_backup(state.endpoint, backup)

    def list(self) -> list[dict[str, Any]]:
        """Return the session's paths: address, device, flags, whether each is up, and why not."""
        return [
            {
                "address": each.endpoint.address,
                "device": each.endpoint.device,
                "flags": each.endpoint.flags.words,
                "up": each.up,
                "reason": each.reason,
            }
            for each in self.paths
        ]

    def _running(self) -> PathDriver:
        if self.driver is None:
            raise self.problem or TransportError("no paths are managed: the session has not started, or has ended")
        return self.driver

    def _find(self, address: str) -> PathState:
        wanted = parse_path(address).address
        for each in self.paths:
            if each.endpoint.address == wanted:
                return each
        known = ", ".join(each.endpoint.address for each in self.paths) or "none"
        raise ConfigurationError(f"{wanted} is no path of this {self._what}: there are {known}")


__all__ = ["AUTO", "PathOptions", "PathPrivilegeError", "PathSession", "carries"]
