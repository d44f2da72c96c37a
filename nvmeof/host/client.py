"""The host for asyncio programs: :func:`discover` and :func:`connect`.

::

    async with await nvmeof.connect("192.0.2.1", 4420, subnqn="nqn.2026-01.org.example:disk") as controller:
        namespace = controller.namespace(1)
        await namespace.write(0, bytes(4096))
        data = await namespace.read(0, 8)
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, Unpack

from nvmeof.address import parse_port, split_scope
from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.errors import ConfigurationError, NvmeStatusError, TransportError
from nvmeof.host.admin_commands import AdminCommands
from nvmeof.host.buffers import DeviceBuffer
from nvmeof.host.controller import Controller
from nvmeof.host.device_registry import DeviceRegistry
from nvmeof.host.discovery import DiscoveryEntry, DiscoveryLog, read_discovery_log
from nvmeof.host.identity import host_identity
from nvmeof.host.namespace import Namespace
from nvmeof.host.offload.device import OffloadDevice
from nvmeof.host.options import ConnectKeywords, ConnectOptions
from nvmeof.host.queue import QueueDevice
from nvmeof.host.socket_queue import SocketQueue, SocketQueueDevice
from nvmeof.host.url import TargetUrl, is_url
from nvmeof.spec.enums import DISCOVERY_NQN, DISCOVERY_PORT, NVME_PORT, DataTransfer, LogPageId
from nvmeof.spec.nqn import check_nqn
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.trace import Trace
from nvmeof.transport.base import Address, Endpoint
from nvmeof.transport.paths.model import ALL_PATHS, PathRole, parse_limits
from nvmeof.transport.paths.session import PathOptions, PathSession
from nvmeof.wire import Buffer

__all__ = ["HostController", "PassthruResult", "connect", "discover"]

log = logging.getLogger("nvmeof.host")

DEVICES = DeviceRegistry(SocketQueueDevice(), OffloadDevice())
"""The queue devices that :func:`connect` chooses from: NVMe/TCP in software, in this process or in one of its own."""
DEFAULT_TRANSPORT = "mptcp"
"""MPTCP falls back to TCP by itself wherever the kernel or the peer lacks it."""


@dataclass(frozen=True, slots=True)
class PassthruResult:
    """The result of a raw command: ``result`` is DW0 | DW1 << 32 of its completion, ``data`` what it returned. ::

    (await controller.admin_passthru(0x06, data_bytes=4096, cdw10=1)).data[4:24]  # the serial number
    """

    result: int
    data: bytes


class HostController(Controller, AdminCommands):
    """A connected controller, for asyncio programs: the result of :func:`connect`. It ends with its ``async with``
    block. Namespaces and raw commands are methods of this class; those of :class:`AdminCommands` (identify, log pages,
    features) are its methods too. This class adds MPTCP paths to both bases.

    The commands raise :class:`NvmeStatusError` when they complete with another status than success,
    :class:`ConnectionLost` when a queue died.
    """

    def __init__(
        self, device: QueueDevice, options: ConnectOptions, runtime: AsyncioRuntime, trace: Trace | None = None
    ) -> None:
        Controller.__init__(self, device, options, runtime, trace)
        AdminCommands.__init__(self, self.execute_admin)
        self._background = runtime
        self.paths: PathSession | None = None
        """MPTCP paths in addition to the system's, where :func:`connect` was called with ``paths``."""

    def endpoints(self) -> Iterator[Endpoint]:
        """Yield the open connections of all queues."""
        for queue in self.queues():
            link = queue.private
            if isinstance(link, SocketQueue) and not link.endpoint.closed:
                yield link.endpoint

    async def start_paths(self, options: PathOptions) -> None:
        """Manage MPTCP paths for this association. Failures are logged, one sentence each."""
        self.stop_paths()
        self.paths = PathSession(PathRole.SUBFLOW, options, self.endpoints, what="host")
        await self.paths.start([Address(self.options.traddr, self.options.trsvcid)])

    def stop_paths(self) -> None:
        """Take back the paths that were added. Safe to call twice."""
        if self.paths is not None:
            self.paths.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def disconnect(self) -> None:
        """Shut the controller down in order and close all connections. Safe to call twice."""
        try:
            await self.shutdown()
            await self._background.stop()
        finally:
            self.stop_paths()

    def take_buffer(self, size_bytes: int) -> DeviceBuffer:
        """Take memory for reads and writes: what the queue device needs no copy for. Release it after use.

        With ``transport="tcp_offload"`` it is memory of the device, else that of this program. Raises
        ConfigurationError for a size that the device cannot have, LocalProtocolError when its memory is used up.
        """
        return self.device.take_buffer(size_bytes)

    async def namespaces(self) -> list[Namespace]:
        """Return the active namespaces, identified; one that is deleted during the call is left out."""
        found: list[Namespace] = []
        for nsid in await self.active_namespaces():
            namespace = self.namespace(nsid)
            try:
                await namespace.refresh()
            except NvmeStatusError as error:
                log.info("namespace %d is listed, but cannot be identified: %s", nsid, error)
                continue
            found.append(namespace)
        return found

    async def discovery_log(self) -> list[DiscoveryEntry]:
        """Return the Discovery log page of a discovery controller."""

        async def read(length_bytes: int, offset: int) -> bytes:
            return await self.get_log(LogPageId.DISCOVERY, length_bytes, offset, nsid=0)

        entries = await read_discovery_log(read)
        peer = self.device.peer_address(self.association.admin_queue) or ""
        interface = split_scope(peer)[1] or self.options.host_iface or ""
        found = (entry.read_from(self.options.traddr, interface) for entry in entries)
        return DiscoveryLog(found, entries.genctr, entries.raw)

    async def admin_passthru(
        self, opcode: int, *, nsid: int = 0, data: Buffer | None = None, data_bytes: int = 0, **dwords: int
    ) -> PassthruResult:
        """Execute a raw admin command; ``dwords``: cdw2, cdw3, cdw10 to cdw15, flags. See :meth:`io_passthru`."""
        self._check_transfer(data, data_bytes)
        sqe, data_in = _raw(opcode, nsid, data, data_bytes, dwords)
        result = await self.admin(sqe, data_out=data, data_in=data_in)
        return PassthruResult(result, bytes(data_in) if data_in is not None else b"")

    async def io_passthru(
        self, opcode: int, *, nsid: int = 0, data: Buffer | None = None, data_bytes: int = 0, **dwords: int
    ) -> PassthruResult:
        """Execute a raw I/O command. ``data`` is sent; ``data_bytes`` are received. Bits 1:0 of the opcode say which it
        takes.

        Raises :class:`ConfigurationError` where these disagree, and for more data than the queue device transfers.
        """
        self._check_transfer(data, data_bytes)
        sqe, data_in = _raw(opcode, nsid, data, data_bytes, dwords)
        result = await self.io(sqe, data_out=data, data_in=data_in)
        return PassthruResult(result, bytes(data_in) if data_in is not None else b"")

    def _check_transfer(self, data: Buffer | None, data_bytes: int) -> None:
        limit, size = self.device.max_hw_sectors, max(data_bytes, 0 if data is None else len(data))
        if limit and size > limit:
            raise ConfigurationError(f"the queue device {self.device.name} transfers {limit} bytes at once, not {size}")


def _raw(
    opcode: int, nsid: int, data: Buffer | None, data_bytes: int, dwords: dict[str, int]
) -> tuple[bytes, memoryview | None]:
    direction = opcode & 3
    if data is not None and direction == DataTransfer.CONTROLLER_TO_HOST:
        raise ConfigurationError(f"opcode {opcode:#04x} brings data from the controller, so none can be sent with it")
    if data_bytes and direction in (DataTransfer.NONE, DataTransfer.HOST_TO_CONTROLLER):
        raise ConfigurationError(f"opcode {opcode:#04x} brings no data from the controller")
    try:
        sqe = SQE.pack(Sqe(opcode=opcode, nsid=nsid, **dwords))
    except TypeError:
        raise ConfigurationError(f"unknown command dword among {', '.join(dwords)}") from None
    return sqe, memoryview(bytearray(data_bytes)) if data_bytes else None


async def connect(
    traddr: str | DiscoveryEntry,
    trsvcid: int | str | None = None,
    *,
    subnqn: str | None = None,
    transport: str | None = None,
    hostnqn: str | None = None,
    hostid: str | uuid.UUID | None = None,
    registry: DeviceRegistry = DEVICES,
    paths: PathOptions | None = None,
    trace: Trace | None = None,
    **options: Unpack[ConnectKeywords],
) -> HostController:
    """Connect to the controller of ``subnqn``: admin queue, I/O queues, keep-alive.

    ::

        async with await connect("192.0.2.1", subnqn="nqn.2026-01.org.example:disk", nr_io_queues=2) as controller:
            for namespace in await controller.namespaces():
                print(namespace.nsid, namespace.size_bytes)

    ``traddr``: an IP address (a link-local one with its interface, ``fe80::1%eth0``) or a name; or a URL
    (``nvme+mptcp://192.0.2.1:4420/NQN``, :mod:`nvmeof.host.url`) or an entry that :func:`discover` gave, which say all
    of the following; what is an argument too goes before the URL's. ``trsvcid``: the port, as number or text (4420).
    ``transport``: ``mptcp`` unless given, which falls back to TCP; with an entry, the entry's. ``hostnqn``, ``hostid``:
    the identity of this host; those of nvme-cli's files in /etc/nvme, or of this user, when not given. ``paths``: the
    local addresses that MPTCP connects from (``PathOptions(paths=("auto",))``), and how. ``registry``: the queue
    devices to choose from; the software device is the only one unless a program adds its own. ``trace``: called with
    PDUs and with every command, when it is sent and when it is completed; see :mod:`nvmeof.trace`.

    ``options``: the other fields of :class:`ConnectOptions`. Times are seconds: ``connect_timeout`` (10),
    ``io_timeout`` and ``admin_timeout`` (30; a command that takes longer ends the association, with ``abort_first`` it
    is aborted first), ``keep_alive_tmo`` (5; 0 for none). Counts: ``nr_io_queues`` (1) and ``queue_size`` (128
    entries). Bytes: ``sndbuf_bytes``, ``rcvbuf_bytes``. Also ``hdr_digest``, ``data_digest``,
    ``disable_sqflow``, ``host_traddr``, ``host_iface``, ``tos``, ``mark``, ``congestion``.

    Raises :class:`ConfigurationError` for an option that cannot be used, :class:`ConnectTimeout` (a TimeoutError) when
    nothing answers, another :class:`TransportError` when no connection comes about, :class:`NvmeStatusError` when the
    controller refuses. ``asyncio.timeout`` around it is obeyed at once, and leaves nothing open.
    """
    if isinstance(traddr, str) and is_url(traddr):
        given = {"trsvcid": trsvcid, "subnqn": subnqn, "transport": transport, "hostnqn": hostnqn, "hostid": hostid}
        return await connect(
            **_of_url(traddr, given, paths, options),
            registry=registry,
            trace=trace,
        )
    if isinstance(traddr, DiscoveryEntry):
        entry = check_reachable(traddr, secured=options.get("tls") is not None)
        traddr, trsvcid = entry.address, entry.port if trsvcid is None else trsvcid
        subnqn, transport = subnqn or entry.subnqn, transport or entry.transport
        if not entry.is_nvm:
            options = {"discovery": True, "nr_io_queues": 0, **options}
    transport = transport or DEFAULT_TRANSPORT
    port = NVME_PORT if trsvcid is None else parse_port(trsvcid)
    chosen = association_options(subnqn, hostnqn, hostid, traddr=traddr, trsvcid=port, transport=transport, **options)
    runtime = AsyncioRuntime(log)
    controller = HostController(registry.claim(chosen), chosen, runtime, trace)
    try:
        if paths is not None and paths.wanted:
            if transport != "mptcp":
                raise ConfigurationError(f"extra paths need the transport mptcp, not {transport}")
            await controller.start_paths(paths)
        await controller.connect()
    except BaseException:
        await runtime.stop()
        controller.stop_paths()
        raise
    return controller


def _of_url(text: str, given: dict[str, Any], paths: PathOptions | None, options: ConnectKeywords) -> dict[str, Any]:
    """Return the arguments of :func:`connect` that a URL stands for; those that were given go first."""
    found = TargetUrl.parse(text).keywords()
    paths = paths or take_path_options(found)
    return {**found, **{name: value for name, value in given.items() if value is not None}, "paths": paths, **options}


def take_path_options(options: dict[str, Any]) -> PathOptions | None:
    """Take MPTCP's paths, as a URL and the command line name them, out of ``options``; None where there are none."""
    limits = options.pop("mptcp_limits", None)
    chosen = PathOptions(
        paths=tuple(options.pop("mptcp_subflow", None) or ()),
        fullmesh=bool(options.pop("mptcp_fullmesh", False)),
        limits=parse_limits(limits) if limits else ALL_PATHS,
        path_manager=options.pop("path_manager", None),
    )
    return chosen if chosen.wanted else None


def association_options(
    subnqn: str | None, hostnqn: str | None, hostid: str | uuid.UUID | None, **options: Any
) -> ConnectOptions:
    """Check and complete what a program gave of the subsystem and of this host; the rest are fields of ConnectOptions.

    Raises :class:`ConfigurationError`, also for a keyword that is no option.
    """
    if subnqn is None:
        raise ConfigurationError("no subsystem NQN was given: give subnqn=, or an entry that discover() gave")
    check_nqn(subnqn, "the subsystem NQN")
    nqn, identifier = host_identity(hostnqn, hostid)
    try:
        return ConnectOptions(subnqn=subnqn, hostnqn=nqn, hostid=identifier, **options)
    except TypeError as error:
        raise ConfigurationError(f"unknown connect option: {str(error).rpartition(' ')[2]}") from None


class DiscoverKeywords(ConnectKeywords, total=False):
    """The keyword arguments of :func:`discover`: those of :func:`connect`."""

    subnqn: str | None
    hostnqn: str | None
    hostid: str | uuid.UUID | None
    registry: DeviceRegistry
    paths: PathOptions | None
    trace: Trace | None


async def discover(
    traddr: str,
    trsvcid: int | str | None = None,
    *,
    transport: str | None = None,
    **options: Unpack[DiscoverKeywords],
) -> list[DiscoveryEntry]:
    """Read the Discovery log of the discovery service at that address. :func:`connect` takes its entries.

    ::

        for entry in await discover("192.0.2.1"):
            print(entry.subnqn, entry.transport, entry.traddr, entry.trsvcid)

    ``traddr``: an address, a name, or a URL (``nvme+tcp://192.0.2.1``). Without ``trsvcid`` the discovery port (8009)
    is tried first, then 4420, where most targets answer too. Raises as :func:`connect` does.
    """
    if is_url(traddr):
        given = {"trsvcid": trsvcid, "transport": transport}
        found = _of_url(traddr, given, options.get("paths"), options)
        if found["subnqn"] is None:
            del found["subnqn"]
        return await discover(**found)
    transport = transport or DEFAULT_TRANSPORT
    chosen: DiscoverKeywords = {
        "subnqn": DISCOVERY_NQN, "keep_alive_tmo": 0, "nr_io_queues": 0, **options, "discovery": True,
    }  # fmt: skip
    if trsvcid is not None:
        return await _discover(traddr, trsvcid, transport, chosen)
    try:
        return await _discover(traddr, DISCOVERY_PORT, transport, chosen)
    except TransportError as first:
        try:
            return await _discover(traddr, NVME_PORT, transport, chosen)
        except TransportError as second:
            raise second from first


async def _discover(traddr: str, trsvcid: int | str, transport: str, options: DiscoverKeywords) -> list[DiscoveryEntry]:
    async with await connect(traddr, trsvcid, transport=transport, **options) as controller:
        return await controller.discovery_log()


def check_reachable(entry: DiscoveryEntry, *, secured: bool) -> DiscoveryEntry:
    """Return the entry. Raises TransportError for a port that requires TLS where there is no key for it."""
    if entry.requires_tls and not secured:
        where = Address(entry.address, entry.port)
        raise TransportError(f"{entry.subnqn} at {where} requires TLS: connect with a key (tls=, --tls-key)")
    return entry
