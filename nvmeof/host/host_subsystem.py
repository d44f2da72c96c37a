"""Multipath for asyncio programs: :func:`connect_multipath`, and the subsystem that it gives.

::

    addresses = ["192.0.2.1", "192.0.2.2"]
    async with await connect_multipath(*addresses, subnqn="nqn.2026-01.org.example:disk") as subsystem:
        namespace = subsystem.namespace(1)
        await namespace.write(0, bytes(4096))
        data = await namespace.read(0, 8)
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

from nvmeof.address import Address
from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.errors import ConfigurationError, NvmeofError, NvmeStatusError
from nvmeof.host.admin_commands import AdminCommands
from nvmeof.host.client import (
    DEFAULT_TRANSPORT,
    DEVICES,
    HostController,
    association_options,
    check_reachable,
    take_path_options,
)
from nvmeof.host.controller import Controller
from nvmeof.host.device_registry import DeviceRegistry
from nvmeof.host.discovery import DiscoveryEntry
from nvmeof.host.multipath.identity import PathMismatchError
from nvmeof.host.multipath.iopolicy import DEFAULT_IOPOLICY
from nvmeof.host.multipath.member import Member
from nvmeof.host.multipath.subsystem import Subsystem
from nvmeof.host.namespace import Namespace
from nvmeof.host.options import ConnectKeywords, ConnectOptions, RecoveryKeywords, RecoveryOptions
from nvmeof.host.path import Path
from nvmeof.host.requests import DEFAULT_OPTIONS, RequestOptions
from nvmeof.host.url import TargetUrl, check_no_secret, is_url
from nvmeof.spec.enums import NVME_PORT, AdminOpcode
from nvmeof.trace import Trace
from nvmeof.transport.base import Endpoint
from nvmeof.transport.paths.model import PathRole
from nvmeof.transport.paths.session import PathOptions, PathSession
from nvmeof.wire import Buffer

log = logging.getLogger("nvmeof.host")

_REPEATABLE = frozenset({AdminOpcode.IDENTIFY, AdminOpcode.GET_LOG_PAGE, AdminOpcode.GET_FEATURES})
"""Admin commands that may be sent over another path when what became of them is not known."""


@dataclass(frozen=True, slots=True)
class PathAddress:
    """The address of one path: ``PathAddress("192.0.2.2", 4421, "tcp", host_iface="eth1")``.

    ``traddr``: an IP address or a name. ``trsvcid``: the port. ``host_traddr``, ``host_iface``: the local address and
    the network interface to connect from. A field that is None takes the argument of :func:`connect_multipath`.
    """

    traddr: str
    trsvcid: int | None = None
    transport: str | None = None
    host_traddr: str | None = None
    host_iface: str | None = None

    @classmethod
    def parse(cls, text: str) -> PathAddress:
        """Read ``ADDR`` or ``ADDR:PORT``, an IPv6 address with a port in brackets. Raises ConfigurationError."""
        address = Address.parse(text, 0)
        return cls(address.host, address.port or None)

    def __str__(self) -> str:
        return self.traddr if self.trsvcid is None else str(Address(self.traddr, self.trsvcid))


PathSpec = str | PathAddress | DiscoveryEntry
"""A path: ``ADDR``, ``ADDR:PORT``, a :class:`PathAddress`, or an entry that ``discover`` gave."""


class PathKeywords(ConnectKeywords, RecoveryKeywords, total=False):
    """The options of every path: those of an association, and those of recovery."""


class HostSubsystem(AdminCommands):
    """A subsystem over several paths, for asyncio programs: what :func:`connect_multipath` gives.

    Ends with its ``async with`` block. Namespaces are used as those of a controller. The admin commands (identify, log
    pages, features) are its methods too, and go over any path that is live; ``member.controller`` has those of one
    path. ``core`` is the subsystem without an event loop.
    """

    def __init__(
        self,
        common: ConnectOptions,
        *,
        recovery: RecoveryOptions | None = None,
        iopolicy: str = DEFAULT_IOPOLICY,
        native_multipath: bool = True,
        registry: DeviceRegistry = DEVICES,
        paths: PathOptions | None = None,
        trace: Trace | None = None,
    ) -> None:
        super().__init__(self._execute_admin)
        self._background = AsyncioRuntime(log)
        self.core = Subsystem(common.subnqn, self._background, iopolicy=iopolicy, multipath=native_multipath)
        self.options = common
        """The options common to all paths; each path has a separate address."""
        self.recovery = recovery or RecoveryOptions()
        self._registry = registry
        self._path_options = paths
        self._trace = trace
        self._sessions: dict[Member, PathSession] = {}
        self.left_out: list[tuple[PathSpec, NvmeofError]] = []
        """Paths that could not be connected at the start, and why."""

    def __repr__(self) -> str:
        return f"<HostSubsystem {self.subnqn}: {len(self.paths)} paths, {self.iopolicy}>"

    @property
    def subnqn(self) -> str:
        """NQN of the subsystem."""
        return self.core.subnqn

    @property
    def paths(self) -> list[Member]:
        """The paths, in the order in which they were added."""
        return self.core.members

    @property
    def iopolicy(self) -> str:
        """The I/O policy: numa, round-robin, queue-depth or service-time. Setting it takes effect at once."""
        return self.core.iopolicy

    @iopolicy.setter
    def iopolicy(self, name: str) -> None:
        self.core.iopolicy = name

    async def add_path(self, where: PathSpec) -> Member:
        """Connect one more path, and use it. Raises as :func:`connect_multipath` does; I/O is not disturbed then."""
        options = self._options_of(where)
        device = self._registry.claim(options)
        runtime = self._background

        def make() -> Controller:
            return HostController(device, options, runtime, self._trace)

        path = Path[Controller](options, make, runtime, self.recovery)
        session = await self._start_session(path)
        try:
            member = await self.core.add(path)
        except BaseException:
            if session is not None:
                session.stop()
            raise
        if session is not None:
            self._sessions[member] = session
        return member

    async def remove_path(self, member: Member) -> None:
        """Remove a path: let its commands end, and shut its controller down. Raises ConfigurationError."""
        try:
            await self.core.remove(member)
        finally:
            self._stop_session(member)

    def path(self, traddr: str, trsvcid: int | None = None) -> Member:
        """Return the path to an address. Raises ConfigurationError where there is none, or several and no
        ``trsvcid``."""
        found = [
            member
            for member in self.paths
            if member.path.options.traddr == traddr and trsvcid in (None, member.path.options.trsvcid)
        ]
        if len(found) != 1:
            where = traddr if trsvcid is None else f"{traddr}:{trsvcid}"
            there = ", ".join(member.name for member in self.paths) or "none"
            raise ConfigurationError(
                f"{'several paths lead' if found else 'no path leads'} to {where}; the paths are: {there}"
            )
        return found[0]

    def _options_of(self, where: PathSpec) -> ConnectOptions:
        if isinstance(where, DiscoveryEntry):
            check_reachable(where, secured=self.options.tls is not None)
            where = PathAddress(where.address, where.port, where.transport)
        elif isinstance(where, str):
            where = PathAddress.parse(where)
        changes = {
            name: getattr(where, name)
            for name in ("traddr", "trsvcid", "transport", "host_traddr", "host_iface")
            if getattr(where, name) is not None
        }
        return self.options.with_changes(**changes)

    # -- MPTCP's paths below those of NVMe

    async def _start_session(self, path: Path[Controller]) -> PathSession | None:
        if self._path_options is None or not self._path_options.wanted or path.options.transport != "mptcp":
            return None
        session = PathSession(PathRole.SUBFLOW, self._path_options, partial(_endpoints, path), what="host")
        await session.start([Address(path.options.traddr, path.options.trsvcid)])
        return session

    def _stop_session(self, member: Member) -> None:
        session = self._sessions.pop(member, None)
        if session is not None:
            session.stop()

    # -- commands

    async def _execute_admin(
        self,
        sqe: bytes,
        /,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        async def call(member: Member) -> int:
            return await member.commands.admin(sqe, data_out=data_out, data_in=data_in, options=options)

        return await self.core.on_any_path(None, call, repeatable=sqe[0] in _REPEATABLE)

    def namespace(self, nsid: int, path: Member | None = None) -> Namespace:
        """Return the namespace ``nsid``, over all of its paths; ``path``: that of a private namespace, or the only one
        to use.

        Raises :class:`NvmeStatusError` where there is none, ConfigurationError where there are several.
        """
        return self.core.namespace(nsid, path)

    async def namespaces(self) -> list[Namespace]:
        """Return all namespaces, identified; one that is deleted during the call is left out."""
        found: list[Namespace] = []
        for namespace in self.core.all_namespaces():
            try:
                await namespace.refresh()
            except NvmeStatusError as error:
                log.info("namespace %d cannot be identified: %s", namespace.nsid, error)
                continue
            found.append(namespace)
        return found

    # -- the end

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def disconnect(self) -> None:
        """Shut all controllers down in order and close all connections. Safe to call twice."""
        try:
            await self.core.close()
            await self._background.stop()
        finally:
            for member in list(self._sessions):
                self._stop_session(member)


def _endpoints(path: Path[Controller]) -> Iterator[Endpoint]:
    controller = path.controller
    if isinstance(controller, HostController):
        yield from controller.endpoints()


async def connect_multipath(
    *where: PathSpec,
    subnqn: str | None = None,
    trsvcid: int | None = None,
    transport: str | None = None,
    hostnqn: str | None = None,
    hostid: str | uuid.UUID | None = None,
    iopolicy: str | None = None,
    native_multipath: bool = True,
    all_paths: bool = False,
    registry: DeviceRegistry = DEVICES,
    paths: PathOptions | None = None,
    trace: Trace | None = None,
    **options: Unpack[PathKeywords],
) -> HostSubsystem:
    """Connect to a subsystem over several paths, and use them as one.

    ::

        async with await connect_multipath(
            "192.0.2.1", "192.0.2.2:4421", subnqn="nqn.2026-01.org.example:disk", iopolicy="round-robin"
        ) as subsystem:
            await subsystem.namespace(1).write(0, bytes(4096))

    ``where``: the paths (see :data:`PathSpec`), in the order in which ``numa`` prefers them; or one URL, which names
    them with ``path=`` and may say the rest too (:mod:`nvmeof.host.url`; arguments go before what it says).
    ``trsvcid`` (4420) and ``transport`` (mptcp, which falls back to TCP) hold where a path does not say; tcp and mptcp
    may be mixed. ``iopolicy``: numa (the default), round-robin, queue-depth or service-time.
    ``native_multipath`` False: every path has separate namespaces (``subsystem.namespace(1, path)``), and commands
    never go over another one. ``all_paths``: fail where one of the paths cannot be connected; otherwise one is enough,
    and failures of the others are logged. ``registry``, ``hostnqn``, ``hostid``, ``paths``, ``trace`` and the further
    options are those of :func:`nvmeof.connect` and of recovery (``reconnect_delay``, ``ctrl_loss_tmo``,
    ``fast_io_fail_tmo``).

    Raises what :func:`nvmeof.connect` does, and :class:`PathMismatchError` when what is behind the paths is not one
    subsystem, or they disagree about a namespace. Nothing is left open then.
    """
    url = next((each for each in where if isinstance(each, str) and is_url(each)), None)
    if url is not None:
        if len(where) > 1:
            raise ConfigurationError("give one URL, with the further paths in it (path=ADDR:PORT), or addresses")
        given = {
            "subnqn": subnqn, "trsvcid": trsvcid, "transport": transport, "hostnqn": hostnqn, "hostid": hostid,
            "iopolicy": iopolicy, "paths": paths, **options,
        }  # fmt: skip
        specs, arguments = _of_url(TargetUrl.parse(url), given)
        return await connect_multipath(
            *specs, **arguments, native_multipath=native_multipath, all_paths=all_paths, registry=registry, trace=trace
        )
    specs = list(where)
    if not specs:
        raise ConfigurationError("no path was given: give at least one address")
    if subnqn is None:
        subnqn = next((each.subnqn for each in specs if isinstance(each, DiscoveryEntry)), None)
    recovery = {name: options.pop(name) for name in RecoveryKeywords.__annotations__ if name in options}  # type: ignore[misc]
    common = association_options(
        subnqn,
        hostnqn,
        hostid,
        traddr="localhost",  # each path has its own
        trsvcid=NVME_PORT if trsvcid is None else trsvcid,
        transport=transport or DEFAULT_TRANSPORT,
        **options,
    )
    subsystem = HostSubsystem(
        common,
        recovery=RecoveryOptions(**recovery),
        iopolicy=iopolicy or DEFAULT_IOPOLICY,
        native_multipath=native_multipath,
        registry=registry,
        paths=paths,
        trace=trace,
    )
    try:
        await _connect_all(subsystem, specs, all_paths=all_paths)
    except BaseException:
        await subsystem.disconnect()
        raise
    return subsystem


def _of_url(url: TargetUrl, given: dict[str, Any]) -> tuple[list[PathSpec], dict[str, Any]]:
    """Return the paths of a URL, and the arguments of :func:`connect_multipath`: those given go before the URL's."""
    check_no_secret(url.options)
    arguments: dict[str, Any] = dict(url.options)
    local = {name: arguments.pop(name, ()) for name in ("host_traddr", "host_iface")}
    specs: list[PathSpec] = []
    for index, path in enumerate(url.paths):
        own = {name: values[min(index, len(values) - 1)] for name, values in local.items() if values}
        specs.append(PathAddress(path.host, path.port or None, **own))
    arguments |= {"subnqn": url.subnqn, "transport": url.transport, "paths": take_path_options(arguments)}
    return specs, {**arguments, **{name: value for name, value in given.items() if value is not None}}


async def _connect_all(subsystem: HostSubsystem, specs: list[PathSpec], *, all_paths: bool) -> None:
    """Connect the paths one after the other, so that their order is the one asked for. Raises as connect_multipath."""
    first: NvmeofError | None = None
    for spec in specs:
        try:
            await subsystem.add_path(spec)
        except (ConfigurationError, PathMismatchError):
            raise
        except NvmeofError as error:
            if all_paths:
                raise
            log.warning("left out a path to %s: %s", subsystem.subnqn, error)
            subsystem.left_out.append((spec, error))
            first = first or error
        await asyncio.sleep(0)
    if not subsystem.paths and first is not None:
        raise first
