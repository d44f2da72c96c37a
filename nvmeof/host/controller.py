"""A controller as its host sees it: the association's whole life over any queue device.

Connect, enable, identify, I/O queues, asynchronous events, keep-alive, command timeouts with Abort, shutdown. Commands
go through :class:`nvmeof.host.queue.Queue`; waiting goes through the injected runtime; there is no socket, no asyncio
and no clock here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from nvmeof.errors import (
    AuthenticationError,
    CommandNotExecuted,
    ConnectionLost,
    LocalProtocolError,
    NvmeofError,
    NvmeStatusError,
    OutcomeUnknown,
    TransportError,
)
from nvmeof.host import sqe_builders
from nvmeof.host.admin_commands import AdminCommands
from nvmeof.host.association import Association, HostState
from nvmeof.host.async_events import AsyncEvents
from nvmeof.host.authentication import HostAuthentication
from nvmeof.host.batch import BatchPart, IoBatch, run_batch
from nvmeof.host.controller_checks import check_fabrics_limits, connect_refused
from nvmeof.host.fused import run_fused
from nvmeof.host.io_port import NvmLimits
from nvmeof.host.namespace import Namespace
from nvmeof.host.options import ADMIN_QUEUE_ENTRIES, QUEUE_SIZE_MIN, ConnectOptions
from nvmeof.host.queue import Queue, QueueDevice
from nvmeof.host.requests import DEFAULT_OPTIONS, Command, CommandPart, RequestOptions, give_up, run_transfer
from nvmeof.host.results import IdentifyController, IdentifyNamespace
from nvmeof.runtime import Runtime, sleep
from nvmeof.security.tls.credentials import TlsCredentials
from nvmeof.security.tls.key import Derivation
from nvmeof.spec.connect import CONNECT_DATA
from nvmeof.spec.enums import (
    CNTLID_DYNAMIC,
    NSID_ALL,
    ControllerType,
    Ctratt,
    Oaes,
)
from nvmeof.spec.identify import mdts_bytes
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
from nvmeof.trace import Trace, join
from nvmeof.wire import Buffer, build

log = logging.getLogger("nvmeof.host")

OFCS_DISCONNECT = 1 << 0
"""OFCS of Identify Controller: the Disconnect command is supported."""
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
DISABLE_SECONDS = 5.0
"""Least time that a controller gets to clear CSTS.RDY in a reset; more where CAP.TO says so."""
_NOT_ABORTABLE = RequestOptions(abortable=False)
FUSES_COMPARE_AND_WRITE = 1 << 0
"""Bit 0 of FUSES, Identify Controller."""


class Controller:
    """One association with a controller, over queues of ``device``; the :class:`IoPort` of its namespaces.

    Its parts: ``association`` (queues, timeouts, their end), ``commands`` (admin commands as methods), ``events``.
    """

    def __init__(
        self, device: QueueDevice, options: ConnectOptions, runtime: Runtime, trace: Trace | None = None
    ) -> None:
        self.association = Association(device, options, runtime, join(trace))
        self.commands = AdminCommands(self.execute_admin)
        self.events = AsyncEvents(self.association, self.commands, self._namespaces_changed)
        self.device = device
        self.options = options
        self.runtime = runtime
        self.subnqn = options.subnqn
        self.version = Vs()
        self.cap = Cap()
        self.max_transfer_bytes = UNLIMITED_TRANSFER_BYTES
        self.queues = self.association.queues
        self.io_queues = self.association.io_queues
        self.describe = self.association.describe
        self.on_lost = self.association.on_lost
        self.on_event = self.events.listeners
        self.quiesced = False
        """True when the controller has confirmed that it no longer executes a command of this association."""
        self._authentication = HostAuthentication(self.association, options, runtime)
        self._cc = Cc()
        self._info: IdentifyController | None = None
        self._limits: NvmLimits | None = None
        self._namespaces: dict[int, Namespace] = {}
        self._idle_parts: list[BatchPart] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.cntlid:#x} of {self.subnqn}: {self.state.value}>"

    @property
    def state(self) -> HostState:
        """Where the association is."""
        return self.association.state

    @property
    def error(self) -> NvmeofError | None:
        """Why the association ended; None while it has not."""
        return self.association.error

    @property
    def cntlid(self) -> int:
        """The controller identifier that Connect gave."""
        return self.association.cntlid

    @property
    def info(self) -> IdentifyController:
        """Identify Controller as read when connecting. Raises LocalProtocolError before."""
        if self._info is None:
            raise LocalProtocolError("the controller is not connected: await connect() first")
        return self._info

    @property
    def identified(self) -> IdentifyController | None:
        """Identify Controller, None where the association ended before it was read."""
        return self._info

    def namespace(self, nsid: int) -> Namespace:
        """Return the namespace ``nsid``, to read and write it. Its own methods identify it when that is first needed.

        What of it is known without that (``size_bytes``) needs ``await namespace.refresh()`` before; those that
        :meth:`HostController.namespaces` lists are identified. Raises LocalProtocolError for an invalid NSID.
        """
        if not 1 <= nsid <= NSID_MAX:
            raise LocalProtocolError(f"a namespace has an NSID from 1 to {NSID_MAX}, not {nsid}")
        namespace = self._namespaces.get(nsid)
        if namespace is None:
            namespace = self._namespaces[nsid] = Namespace(self, nsid)
        return namespace

    # -- commands: what IoPort asks for, and the admin queue

    async def execute_admin(
        self,
        sqe: bytes,
        /,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        """Send one admin command; return DW0 | DW1 << 32 of its completion."""
        queue = self.association.admin_queue
        return await self.association.execute(queue, sqe, data_out=data_out, data_in=data_in, options=options)

    async def io(
        self,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        """Send one I/O command on the next queue; return DW0 | DW1 << 32 of its completion."""
        # as `requests.execute`: a coroutine less for every Read and Write
        association = self.association
        command = Command(self.runtime.create_future(), sqe, data_out, data_in, options)
        association.pick_queue().submit(command)
        try:
            return await command.future
        except NvmeofError:
            raise
        except BaseException:
            await give_up(self.runtime, command, association.abort, hold=options.hold)
            raise

    async def io_transfer(self, parts: Iterator[CommandPart], *, hold: bool = True) -> int:
        """Send many I/O commands as one operation, in turn over the queues; the results of all, or'ed."""
        association = self.association
        return await run_transfer(self.runtime, association.pick_queue, parts, association.abort, hold=hold)

    async def io_batch(self, batch: IoBatch) -> None:
        """Send Reads or Writes of one length as one operation, in turn over the queues."""
        association = self.association
        await run_batch(self.runtime, association.pick_queue, batch, association.abort, self._idle_parts)

    async def io_fused(self, halves: tuple[bytes, bytes], compare: Buffer, write: Buffer, *, hold: bool = True) -> None:
        """Send the halves of a fused operation on the next queue."""
        association = self.association
        queue = association.pick_queue()
        await run_fused(self.runtime, queue, halves, compare, write, association.abort, hold=hold)

    async def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace (CNS 00h), decoded. All zero for a namespace that is not active."""
        return await self.commands.identify_namespace(nsid)

    # -- setting up

    async def connect(self) -> None:
        """Connect all queues and bring the controller to where I/O can start.

        Raises :class:`TransportError`, :class:`NvmeStatusError` or :class:`ConfigurationError`; everything that was
        made is freed then.
        """
        association = self.association
        if association.state is not HostState.NEW:
            raise LocalProtocolError(f"a controller connects once; this one is {association.state.value}")
        association.state = HostState.CONNECTING
        await self.device.setup_ctrl(self.options)
        association.held = True
        try:
            if self.options.concat:
                self.options = await self._concatenate()
                self._authentication = HostAuthentication(association, self.options, self.runtime)
            await self._connect_admin_queue()
            await self._enable()
            await self._learn()
            if not self.is_discovery and self.options.nr_io_queues:
                await self._connect_io_queues()
            await self.events.start(self.info.oaes & (Oaes.DISCOVERY_LOG if self.is_discovery else EVENTS_WANTED))
        except BaseException as error:
            reason = error if isinstance(error, NvmeofError) else ConnectionLost("the connection was given up")
            if isinstance(error, CommandNotExecuted | OutcomeUnknown) and association.error is not None:
                reason = association.error  # which command met it does not matter here
            await association.free(reason)
            if reason is not error and isinstance(error, NvmeofError):
                raise reason from None
            raise
        association.state = HostState.LIVE

    async def _concatenate(self) -> ConnectOptions:
        """Authenticate on a connection in clear, and end it; return the options with the TLS key that this has made
        (NVMe Base, secure channel concatenation). Raises as `connect` does."""
        plain = Controller(self.device, self.options, self.runtime)
        authentication = plain._authentication
        authentication.concatenate = True
        try:
            await plain._connect_admin_queue()
        finally:
            await plain.association.free(ConnectionLost("the key for TLS was made"))
        if authentication.generated is None:
            raise AuthenticationError(
                f"{self.options.subnqn}: the subsystem demands no authentication, so that there is no key for TLS: "
                "give the host a key there, or connect without --concat"
            )
        generated = TlsCredentials(authentication.generated, derivation=Derivation.RFC8446)
        return self.options.with_changes(tls=generated, concat=False)

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
        await self.association.create_admin_queue(queue)
        kato_ms = round(options.keep_alive_tmo * 1000)
        self.association.cntlid = await self._fabrics_connect(queue, CNTLID_DYNAMIC, kato_ms)
        if queue.trace is not None:
            queue.trace.queue.cntlid = self.association.cntlid
        self.association.start_keep_alive(traffic_based=False)  # until CTRATT is known

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
            result = await self.association.execute(
                queue, sqe, data_out=data, options=RequestOptions(timeout=options.connect_timeout, abortable=False)
            )
        except NvmeStatusError as error:
            raise connect_refused(error, queue.qid, options) from None
        granted = result & 0xFFFF
        demanded = self._authentication.check(result & ~0xFFFF)
        if cntlid != CNTLID_DYNAMIC and granted != cntlid:
            raise TransportError(
                f"I/O queue {queue.qid} was connected to controller {granted:#x} in place of {cntlid:#x}: not our peer"
            )
        if demanded:
            await self._authentication.authenticate(queue)
        elif not queue.qid:
            self._authentication.check_proof()
        return granted

    async def authenticate(self) -> None:
        """Authenticate all queues again, with I/O going on: as writing ``dhchap_secret`` does in Linux.

        Raises :class:`AuthenticationError`; the controller ends the connection then.
        """
        for queue in (self.association.admin_queue, *self.io_queues):
            await self._authentication.authenticate(queue)

    async def _enable(self) -> None:
        self.cap = Cap.decode(await self.commands.property_get(CAP_OFFSET, 8))
        csts = Csts.decode(await self.commands.property_get(CSTS_OFFSET))
        cc = Cc(css=CcCss.ALL_SUPPORTED if self.cap.css & CapCss.IO_COMMAND_SETS else CcCss.NVM)
        if csts.rdy:
            await self.commands.property_set(CC_OFFSET, cc.encode())
            await self._wait_csts("stop", lambda status: not status.rdy, self.cap.timeout_seconds)
        cc = replace(cc, en=True)
        await self.commands.property_set(CC_OFFSET, cc.encode())
        await self._wait_csts("become ready", lambda status: status.rdy, self.cap.timeout_seconds)
        self._cc = cc
        self.version = Vs.decode(await self.commands.property_get(VS_OFFSET))

    async def _wait_csts(self, what: str, reached: Callable[[Csts], bool], seconds: float) -> None:
        deadline = self.runtime.now() + max(seconds, 0.5)
        pause = READY_POLL_SECONDS
        while True:
            status = Csts.decode(await self.commands.property_get(CSTS_OFFSET))
            if reached(status):
                return
            if status.cfs:
                raise TransportError(f"the controller of {self.options.subnqn} reports a fatal error (CSTS.CFS)")
            if self.runtime.now() >= deadline:
                raise TransportError(f"the controller of {self.options.subnqn} did not {what} within {seconds:g} s")
            await sleep(self.runtime, pause)
            pause = min(pause * 2, 0.1)

    async def _learn(self) -> None:
        info = self._info = await self.commands.identify()
        if info.cntlid != self.cntlid:
            raise TransportError(
                f"{self.options.subnqn} gave controller {self.cntlid:#x} on Connect and {info.cntlid:#x} on Identify"
            )
        self.max_transfer_bytes = min(
            mdts_bytes(info.mdts, self.cap.mpsmin_bytes) or UNLIMITED_TRANSFER_BYTES,
            self.device.max_hw_sectors or UNLIMITED_TRANSFER_BYTES,
            UNLIMITED_TRANSFER_BYTES,
        )
        self.association.timeouts.set_abort_limit(info.acl + 1)
        if self.is_discovery:
            return
        check_fabrics_limits(info, self.options.subnqn)
        self.association.start_keep_alive(traffic_based=bool(info.ctratt & Ctratt.TRAFFIC_BASED_KEEP_ALIVE))

    def _io_entries(self) -> int:
        """Return the size of the I/O queues: the option's, within MQES and MAXCMD (0 is no limit)."""
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
        granted = await self.commands.set_number_of_queues(wanted)
        if granted < wanted:
            log.info("%s grants %d I/O queues, %d were asked for", options.subnqn, granted, wanted)
        entries = self._io_entries()
        # a name may have several addresses, of several machines: all queues go where the admin queue went
        address = self.device.peer_address(self.association.admin_queue)
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
            await self.association.create_io_queue(queue)
        for queue in self.io_queues:
            await self._fabrics_connect(queue, self.cntlid)

    async def nvm_limits(self) -> NvmLimits:
        """Return the limits of commands without data (Identify CNS 06h); read once, when first needed."""
        if self._limits is None:
            fused = bool(self.info.fuses & FUSES_COMPARE_AND_WRITE)
            try:
                raw = await self.commands.identify_nvm_limits()
                self._limits = NvmLimits(
                    mdts_bytes(raw.wzsl, self.cap.mpsmin_bytes) or 0,
                    min(raw.dmrl, DSM_MAX_RANGES) or DSM_MAX_RANGES,
                    raw.dmrsl or 0xFFFFFFFF,
                    mdts_bytes(raw.vsl, self.cap.mpsmin_bytes) or 0,
                    mdts_bytes(raw.wusl, self.cap.mpsmin_bytes) or 0,
                    fused,
                )
            except NvmeStatusError:
                # the data structure is younger than many a controller
                self._limits = NvmLimits(compare_and_write=fused)
        return self._limits

    # -- asynchronous events

    async def _namespaces_changed(self, nsids: list[int]) -> None:
        """Identify the namespaces of a Changed Namespace List again; a list that begins with FFFFFFFFh: all of them."""
        everything = nsids[:1] == [NSID_ALL]
        for namespace in list(self._namespaces.values()):
            if everything or namespace.nsid in nsids:
                await self._refresh(namespace)

    async def _refresh(self, namespace: Namespace) -> None:
        try:
            await namespace.refresh()
        except NvmeofError as error:
            if self.association.admin_queue.error is not None:
                raise
            # it has gone, or is none that we can use: the others may still be
            log.info("namespace %d has changed, but cannot be identified: %s", namespace.nsid, error)

    async def abandon(self, error: NvmeofError) -> None:
        """Close all queues at once, without a word to the controller, and release the device. Safe to call again."""
        association = self.association
        if association.state in (HostState.NEW, HostState.CLOSED):
            return
        await association.free(error)
        association.state = HostState.CLOSED

    async def disable(self) -> bool:
        """End the association by a controller reset, as Linux does before it reconnects.

        The I/O queues are closed first, so that outstanding commands fail at once; then CC.EN is cleared, and the
        connection of the admin queue is closed when CSTS.RDY is 0 or CAP.TO has passed. Return whether the controller
        confirmed it: then it executes no further command of this association, and ``quiesced`` is set. Never raises for
        errors of the controller; safe to call after a loss.
        """
        association = self.association
        error = ConnectionLost("the controller was reset by this host")
        if association.state is HostState.LIVE:
            association.state = HostState.CLOSING
            association.ended_at = self.runtime.now()
            association.timeouts.stop_keep_alive()
            for queue in self.io_queues:
                association.close_queue(queue, error)
            seconds = max(self.cap.timeout_seconds, DISABLE_SECONDS)
            late = ConnectionLost(f"{self.options.subnqn} did not stop within {seconds:g} s")
            guard = self.runtime.call_later(seconds, lambda: association.queue_error(association.admin_queue, late))
            try:
                await self.commands.property_set(CC_OFFSET, replace(self._cc, en=False).encode())
                await self._wait_csts("stop", lambda status: not status.rdy, seconds)
                self.quiesced = True
            except NvmeofError as failure:
                log.info("%s was not reset in order: %s", self.options.subnqn, failure)
            finally:
                guard.cancel()
                await self.abandon(error)
        return self.quiesced

    async def shutdown(self) -> None:
        """End the association in order: delete the I/O queues, shut the controller down, close.

        Never raises for what the controller does, and takes no longer than its RTD3E (5 s where it gives none). Safe
        to call again, and after a loss. When cancelled, it closes everything at once.
        """
        association = self.association
        if association.state is HostState.CLOSED:
            return
        try:
            if association.state is HostState.LIVE:
                association.state = HostState.CLOSING
                await self._end_in_order()
        finally:
            await association.free(ConnectionLost("the host disconnected"))
            association.state = HostState.CLOSED

    async def _end_in_order(self) -> None:
        association = self.association
        association.timeouts.stop_keep_alive()
        seconds = min(self.info.rtd3e / 1e6, SHUTDOWN_MAX_SECONDS) or SHUTDOWN_SECONDS
        late = ConnectionLost(f"{self.options.subnqn} did not shut down within {seconds:g} s")
        guard = self.runtime.call_later(seconds, lambda: association.queue_error(association.admin_queue, late))
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
                await self.association.execute(queue, sqe_builders.disconnect(), options=_NOT_ABORTABLE)
            except NvmeStatusError as error:
                log.info("I/O queue %d: %s", queue.qid, error)
            except ConnectionLost:
                if self.error is not None:
                    raise
            else:
                self.association.close_queue(queue, ConnectionLost("the queue was deleted"))

    async def _shut_down(self, seconds: float) -> None:
        await self.commands.property_set(CC_OFFSET, replace(self._cc, shn=Shn.NORMAL).encode())
        await self._wait_csts("shut down", lambda status: status.shst == Shst.COMPLETE, seconds)
        self.quiesced = True
