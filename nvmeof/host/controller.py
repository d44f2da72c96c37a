"""A controller as its host sees it: the association's whole life over any queue device.

Connect, enable, identify, I/O queues, asynchronous events, keep-alive, command timeouts with Abort, shutdown. Commands
go through :class:`nvmeof.host.queue.Queue`; waiting goes through the injected runtime; there is no socket, no asyncio
and no clock here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from nvmeof.errors import ConnectionLost, LocalProtocolError, NvmeofError, NvmeStatusError, TransportError
from nvmeof.host import sqe_builders
from nvmeof.host.association import Association, HostState
from nvmeof.host.namespace import Namespace
from nvmeof.host.options import ADMIN_QUEUE_ENTRIES, QUEUE_SIZE_MIN, ConnectOptions
from nvmeof.host.queue import Queue, QueueDevice, Request
from nvmeof.host.results import IdentifyController
from nvmeof.host.runtime import Runtime, sleep
from nvmeof.host.timeouts import Timeouts
from nvmeof.spec.connect import CONNECT_DATA, describe_connect_invalid
from nvmeof.spec.enums import (
    CNTLID_DYNAMIC,
    NSID_ALL,
    ControllerType,
    Ctratt,
    FeatureId,
    LogPageId,
    Oaes,
)
from nvmeof.spec.identify import mdts_bytes, parse_namespace_list
from nvmeof.spec.properties import (
    CAP_OFFSET,
    CC_OFFSET,
    CSTS_OFFSET,
    VS_OFFSET,
    Cap,
    CapCss,
    Cc,
    CcCss,
    Csts,
    Shn,
    Shst,
    Vs,
)
from nvmeof.spec.sqe import DSM_MAX_RANGES
from nvmeof.spec.status import Status
from nvmeof.wire import build

log = logging.getLogger("nvmeof.host")

OFCS_DISCONNECT = 1 << 0
"""OFCS of Identify Controller: the Disconnect command is supported."""
MIN_IOCCSZ = 4
"""IOCCSZ of capsules that hold an SQE and no data."""
MIN_IORCSZ = 1
EVENTS_WANTED = Oaes.NAMESPACE_ATTRIBUTE | Oaes.ANA_CHANGE
PRIORITY_COMMANDS = 4
"""Identifiers of an admin queue that only keep-alive and Abort may use."""
UNLIMITED_TRANSFER_BYTES = 4 << 20
"""Largest single transfer where neither the controller nor the device sets a limit."""
NSID_MAX = 0xFFFFFFFE
READY_POLL_SECONDS = 0.002
SHUTDOWN_MAX_SECONDS = 60.0
SHUTDOWN_SECONDS = 5.0
"""How long a shutdown may take where the controller does not say (RTD3E 0)."""


@dataclass(frozen=True, slots=True)
class AsyncEvent:
    """What a controller told through an Asynchronous Event Request: type, information, and the log page to read."""

    type: int
    info: int
    log_page: int

    @classmethod
    def decode(cls, dw0: int) -> AsyncEvent:
        """From DW0 of the completion."""
        return cls(dw0 & 7, dw0 >> 8 & 0xFF, dw0 >> 16 & 0xFF)


@dataclass(frozen=True, slots=True)
class NvmLimits:
    """Limits of Write Zeroes and Dataset Management; 0 for none."""

    write_zeroes_bytes: int = 0
    dsm_ranges: int = DSM_MAX_RANGES
    dsm_range_blocks: int = 0xFFFFFFFF


class _EventRequest(Request):
    """The outstanding Asynchronous Event Request."""

    __slots__ = ("controller",)

    def __init__(self, controller: Controller) -> None:
        super().__init__(sqe_builders.async_event_request())
        self.controller = controller
        self.timeout = 0.0

    def completed(self, result: int, status: int) -> None:
        self.controller._event_completed(result & 0xFFFFFFFF, status)

    def failed(self, error: NvmeofError) -> None:
        """The queue is gone: nobody waits for an event."""


class Controller(Association):
    """One association with a controller, over queues of ``device``."""

    def __init__(self, device: QueueDevice, options: ConnectOptions, runtime: Runtime) -> None:
        super().__init__(device, options, runtime)
        self.version = Vs()
        self.cap = Cap()
        self._cc = Cc()
        self._info: IdentifyController | None = None
        self.max_transfer_bytes = UNLIMITED_TRANSFER_BYTES
        self.on_event: list[Callable[[AsyncEvent], object]] = []
        """Called with each asynchronous event, after its log page was read."""
        self._limits: NvmLimits | None = None
        self._namespaces: dict[int, Namespace] = {}

    @property
    def info(self) -> IdentifyController:
        """Identify Controller as read when connecting. Raises LocalProtocolError before."""
        if self._info is None:
            raise LocalProtocolError("the controller is not connected: await connect() first")
        return self._info

    def namespace(self, nsid: int) -> Namespace:
        """The namespace ``nsid``: read and write it. Its own methods identify it when that is first needed.

        What of it is known without that (``size_bytes``) needs ``await namespace.refresh()`` before; those that
        :meth:`HostController.namespaces` lists are identified. Raises LocalProtocolError for what is no NSID.
        """
        if not 1 <= nsid <= NSID_MAX:
            raise LocalProtocolError(f"a namespace has an NSID from 1 to {NSID_MAX}, not {nsid}")
        namespace = self._namespaces.get(nsid)
        if namespace is None:
            namespace = self._namespaces[nsid] = Namespace(self, nsid)
        return namespace

    # -- setting up

    async def connect(self) -> None:
        """Connect all queues and bring the controller to where I/O can start.

        Raises :class:`TransportError`, :class:`NvmeStatusError` or :class:`ConfigurationError`; everything that was
        made is freed then.
        """
        if self.state is not HostState.NEW:
            raise LocalProtocolError(f"a controller connects once; this one is {self.state.value}")
        self.state = HostState.CONNECTING
        await self.device.setup_ctrl(self.options)
        try:
            await self._connect_admin_queue()
            await self._enable()
            await self._learn()
            if not self.is_discovery and self.options.nr_io_queues:
                await self._connect_io_queues()
            await self._listen_for_events()
        except BaseException as error:
            reason = error if isinstance(error, NvmeofError) else ConnectionLost("the connection was given up")
            await self._free(reason)
            raise
        self.state = HostState.LIVE

    @property
    def is_discovery(self) -> bool:
        """A discovery controller: no I/O queues."""
        return self.options.discovery or (self._info is not None and self._info.cntrltype == ControllerType.DISCOVERY)

    async def _connect_admin_queue(self) -> None:
        options = self.options
        queue = Queue(
            self.device,
            options,
            0,
            ADMIN_QUEUE_ENTRIES,
            reserved=PRIORITY_COMMANDS,
            timeout=options.admin_timeout,
        )
        self.admin_queue = queue
        await self._create(queue)
        self.timeouts = Timeouts(queue, self.queues, self._queue_error)
        self._on_timer()
        kato_ms = round(options.keep_alive_tmo * 1000)
        self.cntlid = await self._fabrics_connect(queue, CNTLID_DYNAMIC, kato_ms)
        self._keep_alive(traffic_based=False)  # until CTRATT is known

    async def _fabrics_connect(self, queue: Queue, cntlid: int, kato_ms: int = 0) -> int:
        options = self.options
        data = build(
            CONNECT_DATA,
            hostid=options.hostid.bytes,
            cntlid=cntlid,
            subnqn=options.subnqn,
            hostnqn=options.hostnqn,
        )
        sqe = sqe_builders.connect(queue.qid, queue.entries, kato_ms=kato_ms, disable_sqflow=options.disable_sqflow)
        try:
            result = await self._execute(queue, sqe, data_out=data, timeout=options.connect_timeout, abortable=False)
        except NvmeStatusError as error:
            raise _connect_refused(error, queue.qid, options) from None
        granted, authentication = result & 0xFFFF, result >> 16 & 0xFFFF
        if authentication:
            raise TransportError(f"{options.subnqn} wants in-band authentication, which this host does not offer")
        if cntlid != CNTLID_DYNAMIC and granted != cntlid:
            raise TransportError(
                f"I/O queue {queue.qid} was connected to controller {granted:#x} in place of {cntlid:#x}: not our peer"
            )
        self.device.queue_connected(queue)
        return granted

    async def _enable(self) -> None:
        self.cap = Cap.decode(await self.property_get(CAP_OFFSET, 8))
        csts = Csts.decode(await self.property_get(CSTS_OFFSET))
        cc = Cc(css=CcCss.ALL_SUPPORTED if self.cap.css & CapCss.IO_COMMAND_SETS else CcCss.NVM)
        if csts.rdy:
            await self.property_set(CC_OFFSET, cc.encode())
            await self._wait_csts("stop", lambda status: not status.rdy, self.cap.timeout_seconds)
        cc = replace(cc, en=True)
        await self.property_set(CC_OFFSET, cc.encode())
        await self._wait_csts("become ready", lambda status: status.rdy, self.cap.timeout_seconds)
        self._cc = cc
        self.version = Vs.decode(await self.property_get(VS_OFFSET))

    async def _wait_csts(self, what: str, reached: Callable[[Csts], bool], seconds: float) -> None:
        deadline = self.runtime.now() + max(seconds, 0.5)
        pause = READY_POLL_SECONDS
        while True:
            status = Csts.decode(await self.property_get(CSTS_OFFSET))
            if reached(status):
                return
            if status.cfs:
                raise TransportError(f"the controller of {self.options.subnqn} reports a fatal error (CSTS.CFS)")
            if self.runtime.now() >= deadline:
                raise TransportError(f"the controller of {self.options.subnqn} did not {what} within {seconds:g} s")
            await sleep(self.runtime, pause)
            pause = min(pause * 2, 0.1)

    async def _learn(self) -> None:
        info = self._info = await self.identify()
        if info.cntlid != self.cntlid:
            raise TransportError(
                f"{self.options.subnqn} gave controller {self.cntlid:#x} on Connect and {info.cntlid:#x} on Identify"
            )
        self.max_transfer_bytes = min(
            mdts_bytes(info.mdts, self.cap.mpsmin_bytes) or UNLIMITED_TRANSFER_BYTES,
            self.device.max_hw_sectors or UNLIMITED_TRANSFER_BYTES,
            UNLIMITED_TRANSFER_BYTES,
        )
        assert self.timeouts is not None
        self.timeouts.set_abort_limit(info.acl + 1)
        if self.is_discovery:
            return
        self._check_fabrics_limits()
        self._keep_alive(bool(info.ctratt & Ctratt.TRAFFIC_BASED_KEEP_ALIVE))

    def _check_fabrics_limits(self) -> None:
        """Refuse a controller that no I/O queue can work with, as nvme_check_ctrl_fabric_info of Linux does.

        Raises :class:`TransportError`, one sentence.
        """
        info, name = self.info, self.options.subnqn
        if info.icdoff:
            raise TransportError(
                f"{name} puts in-capsule data at an offset (ICDOFF {info.icdoff}), which is not supported"
            )
        if not info.kas:
            raise TransportError(
                f"{name} has no keep alive (KAS 0), which is mandatory over fabrics: update the target"
            )
        if info.ioccsz < MIN_IOCCSZ:
            raise TransportError(
                f"{name} takes I/O command capsules of {info.ioccsz * 16} bytes (IOCCSZ {info.ioccsz}), "
                f"and a command has {MIN_IOCCSZ * 16}: update the target"
            )
        if info.iorcsz < MIN_IORCSZ:
            raise TransportError(
                f"{name} sends I/O response capsules of 0 bytes (IORCSZ 0), and a completion has {MIN_IORCSZ * 16}: "
                "update the target"
            )

    def _io_entries(self) -> int:
        """Size of the I/O queues: as asked for, within MQES and MAXCMD (0, which some controllers say, is no limit)."""
        wanted = self.options.queue_size
        entries = min(wanted, self.cap.mqes_entries)
        if self.info.maxcmd and self.info.maxcmd < entries:
            entries = max(self.info.maxcmd, QUEUE_SIZE_MIN)
        if entries < wanted:
            log.info("%s takes I/O queues of %d entries, %d were asked for", self.options.subnqn, entries, wanted)
        return entries

    async def _connect_io_queues(self) -> None:
        options = self.options
        wanted = options.nr_io_queues
        granted = await self.set_number_of_queues(wanted)
        if granted < wanted:
            log.info("%s grants %d I/O queues, %d were asked for", options.subnqn, granted, wanted)
        entries = self._io_entries()
        # a name may have several addresses, of several machines: all queues go where the admin queue went
        address = self.device.peer_address(self._admin)
        if address is not None:
            options = options.with_changes(traddr=address)
        for qid in range(1, min(wanted, granted) + 1):
            queue = Queue(
                self.device,
                options,
                qid,
                entries,
                timeout=options.io_timeout,
                capsule_bytes=self.info.ioccsz * 16,
            )
            self.io_queues.append(queue)
            await self._create(queue)
        for queue in self.io_queues:
            await self._fabrics_connect(queue, self.cntlid)

    async def nvm_limits(self) -> NvmLimits:
        """What Identify CNS 06h says about Write Zeroes and Dataset Management; read once, when first needed."""
        if self._limits is None:
            try:
                raw = await self.identify_nvm_limits()
                self._limits = NvmLimits(
                    mdts_bytes(raw.wzsl, self.cap.mpsmin_bytes) or 0,
                    min(raw.dmrl, DSM_MAX_RANGES) or DSM_MAX_RANGES,
                    raw.dmrsl or 0xFFFFFFFF,
                )
            except NvmeStatusError:
                # the data structure is younger than many a controller
                self._limits = NvmLimits()
        return self._limits

    # -- asynchronous events

    async def _listen_for_events(self) -> None:
        wanted = self.info.oaes & (Oaes.DISCOVERY_LOG if self.is_discovery else EVENTS_WANTED)
        if wanted:
            try:
                await self.set_feature(FeatureId.ASYNC_EVENT_CONFIGURATION, int(wanted))
            except NvmeStatusError as error:
                log.info("%s does not take the asynchronous event configuration: %s", self.options.subnqn, error)
        self._admin.submit(_EventRequest(self))

    def _event_completed(self, dw0: int, status: int) -> None:
        if status >= 2:
            # Asynchronous Event Request Limit Exceeded, or aborted by a shutdown: asking again would loop
            return
        event = AsyncEvent.decode(dw0)
        self.runtime.spawn(self._handle_event(event))

    async def _handle_event(self, event: AsyncEvent) -> None:
        try:
            if event.log_page:
                await self._clear_event(event)
        except NvmeStatusError as error:
            log.info("the log page %#04x of an event could not be read: %s", event.log_page, error)
        except NvmeofError:
            return
        for callback in list(self.on_event):
            callback(event)
        if self.state in (HostState.LIVE, HostState.CONNECTING) and self._admin.error is None:
            self._admin.submit(_EventRequest(self))

    async def _clear_event(self, event: AsyncEvent) -> None:
        """Read the event's log page, which lets the controller report the next event of that kind."""
        if event.log_page == LogPageId.CHANGED_NAMESPACES:
            raw = await self.get_log(LogPageId.CHANGED_NAMESPACES, 4096)
            changed = parse_namespace_list(raw)
            everything = changed[:1] == [NSID_ALL]
            for namespace in list(self._namespaces.values()):
                if everything or namespace.nsid in changed:
                    await self._refresh(namespace)
        elif event.log_page in (LogPageId.DISCOVERY, LogPageId.ANA):
            await self.get_log(event.log_page, 16, nsid=0)
        else:
            await self.get_log(event.log_page, 512)

    async def _refresh(self, namespace: Namespace) -> None:
        try:
            await namespace.refresh()
        except NvmeofError as error:
            if self._admin.error is not None:
                raise
            # it has gone, or is none that we can use: the others may still be
            log.info("namespace %d has changed, but cannot be identified: %s", namespace.nsid, error)

    async def shutdown(self) -> None:
        """End the association in order: delete the I/O queues, shut the controller down, close.

        Never raises for what the controller does, and takes no longer than its RTD3E (5 s where it gives none). Safe
        to call again, and after a loss. When cancelled, it closes everything at once.
        """
        if self.state is HostState.CLOSED:
            return
        try:
            if self.state is HostState.LIVE:
                self.state = HostState.CLOSING
                await self._end_in_order()
        finally:
            await self._free(ConnectionLost("the host disconnected"))
            self.state = HostState.CLOSED

    async def _end_in_order(self) -> None:
        assert self.timeouts is not None
        self.timeouts.stop_keep_alive()
        seconds = min(self.info.rtd3e / 1e6, SHUTDOWN_MAX_SECONDS) or SHUTDOWN_SECONDS
        late = ConnectionLost(f"{self.options.subnqn} did not shut down within {seconds:g} s")
        guard = self.runtime.call_later(seconds, lambda: self._queue_error(self._admin, late))
        try:
            await self._disconnect_io_queues()
            await self._shut_down(seconds)
        except NvmeofError as error:
            log.info("%s did not shut down in order: %s", self.options.subnqn, error)
        finally:
            guard.cancel()

    async def _disconnect_io_queues(self) -> None:
        """Delete the I/O queues by command where that is supported; their connections are closed then."""
        if not self.info.ofcs & OFCS_DISCONNECT:
            return
        for queue in self.io_queues:
            try:
                await self._execute(queue, sqe_builders.disconnect(), abortable=False)
            except NvmeStatusError as error:
                log.info("I/O queue %d: %s", queue.qid, error)
            except ConnectionLost:
                if self.error is not None:
                    raise
            else:
                self._close_queue(queue, ConnectionLost("the queue was deleted"))

    async def _shut_down(self, seconds: float) -> None:
        await self.property_set(CC_OFFSET, replace(self._cc, shn=Shn.NORMAL).encode())
        await self._wait_csts("shut down", lambda status: status.shst == Shst.COMPLETE, seconds)


def _connect_refused(error: NvmeStatusError, qid: int, options: ConnectOptions) -> NvmeofError:
    """The refusal of a Connect, with the parameter that it names (DW0: IPO, and IATTR in bit 16)."""
    invalid = error.status == Status.CONNECT_INVALID_PARAMETERS
    where = f" (it names {describe_connect_invalid(error.dw0)})" if invalid else ""
    queue = "the controller" if qid == 0 else f"I/O queue {qid}"
    return NvmeStatusError(
        error.status, f"{options.subnqn} refused {queue}: {error}{where}", dnr=error.dnr, dw0=error.dw0
    )
