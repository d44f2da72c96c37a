"""A controller: one association between a host and a subsystem, from its Connect to its end.

Properties (CC, CSTS), the keep-alive timer, features, asynchronous events and the Error Information log live here; the
queues are only known by what can be done to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from nvmeof.errors import CommandError
from nvmeof.runtime import Runtime
from nvmeof.spec.enums import Csi, FeatureId
from nvmeof.spec.features import build_timestamp
from nvmeof.spec.persistent_events import EventType, HardwareErrorCode
from nvmeof.spec.properties import Cc, CcCss, Crto, Csts, Shst, Vs
from nvmeof.spec.reservations import NotificationType
from nvmeof.spec.status import Status, status_field
from nvmeof.target.controller.ana_log import AnaLogCounts
from nvmeof.target.controller.changes import ChangedAllocations, ChangedNamespaces, ChangedZones
from nvmeof.target.controller.error_log import ErrorLog
from nvmeof.target.controller.events import (
    ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED,
    ANA_CHANGE,
    DISCOVERY_EVENTS,
    DISCOVERY_LOG_CHANGE,
    IO_EVENTS,
    LBA_STATUS_ALERT,
    NAMESPACE_ATTRIBUTE_CHANGED,
    RELIABILITY,
    RESERVATION_LOG_AVAILABLE,
    TELEMETRY_LOG_CHANGED,
    TRANSIENT_INTERNAL_ERROR,
    ZONE_DESCRIPTOR_CHANGED,
    AsyncEvents,
)
from nvmeof.target.controller.keep_alive import KeepAliveTimer
from nvmeof.target.controller.lba_status_events import POLL_INTERVAL, LbaAlert
from nvmeof.target.controller.parts import ControllerParts
from nvmeof.target.controller.properties import (
    CC_WRITABLE,
    CQE_BYTES,
    SQE_BYTES,
    capabilities,
    check_cc,
    usable,
)
from nvmeof.target.controller.reservation_events import ReservationNotices
from nvmeof.target.core.queue_control import QueueControl
from nvmeof.target.core.states import ControllerState
from nvmeof.target.namespaces.feature_values import FeatureValues
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.projection.association import AssociationView, Projection
from nvmeof.target.projection.effects import Effects
from nvmeof.target.subsystem.persistent_events import hardware_error, power_on_or_reset
from nvmeof.target.subsystem.registry import PortInfo
from nvmeof.target.subsystem.subsystem import Figures, Subsystem

VERSION = Vs(2, 1)
KEEP_ALIVE_GRANULARITY_SECONDS = 0.1  # KAS = 1
KATO_MAX_MS = 0xFFFFFFFF // 100 * 100
"""The largest timeout, in milliseconds, that is a multiple of the granularity and fits the field."""
DISCOVERY_IDLE_SECONDS = 120.0
NOT_ENABLED_SECONDS = 120.0
"""Seconds for which an association that is not (or no longer) enabled, and silent, is not ended."""


@dataclass(frozen=True, slots=True)
class ControllerHooks:
    """The callbacks of a controller into the layers above it.

    `restore` makes saved features current, at the start and after every reset. `effects` makes the door for the effects
    of a queue's commands: of the controller, QID, queue and TRTYPE. `periodic` is called once a second or so.
    """

    effects: Callable[[Controller, int, QueueControl, int], Effects]
    restore: Callable[[Controller], None]
    periodic: Callable[[Controller], None]


class Controller:
    """Created by an admin queue's Connect; `destroy` ends it.

    `kato_ms`: the keep alive timeout that the host asked for, 0 for none (a discovery controller then goes after two
    minutes without a command). Times are seconds on the runtime's clock. What its commands know of it is `view`, a
    projection that every change renews.
    """

    def __init__(
        self,
        runtime: Runtime,
        subsystem: Subsystem,
        cntlid: int,
        *,
        host_nqn: str,
        hostid: bytes,
        port: PortInfo,
        kato_ms: int,
        hooks: ControllerHooks,
        secured: bool = False,
    ) -> None:
        self.runtime = runtime
        self.subsystem = subsystem
        self.cntlid = cntlid
        self.host_nqn = host_nqn
        self.hostid = hostid
        self.hostid_differs = False  # an I/O queue's Connect with another HOSTID was logged
        self.port = port
        self.secured = secured
        """Its admin queue came by TLS: so must the others."""
        self.discovery = subsystem.discovery
        self.cc = 0
        self.ready = False
        self.failed = False
        self.shutdown_status = Shst.NORMAL
        self.gone = False
        self.subsystem_was_reset = subsystem.was_reset  # CSTS.NSSRO, until it is cleared
        self.features = FeatureValues(timestamp_set_at=runtime.now(), reset_at=runtime.now())
        self._hooks = hooks
        self.error_log = ErrorLog()
        self.events = AsyncEvents(
            runtime, subsystem.config.max_async_events, DISCOVERY_EVENTS if self.discovery else IO_EVENTS
        )
        self.attached: dict[int, Namespace] = {}  # by NSID, in their order
        self._active: Mapping[int, Namespace] | None = None  # what `project` has made of it
        self.ana = subsystem.ana.on(port.portid)
        self.view = AssociationView(
            cntlid=cntlid,
            subnqn=subsystem.nqn,
            host_nqn=host_nqn,
            hostid=hostid,
            limits=subsystem.command_limits,
            sanitize=subsystem.sanitizer.view,
        )
        self.view.limiter = subsystem.host_limits.limiter(host_nqn, runtime.now())
        self.namespaces = self.view.namespaces  # the active ones: attached, with a command set that is enabled
        self.figures: dict[int, Figures] = {}  # of queues, by QID
        self.connections: dict[int, Figures] = {}  # and of what carries them
        self.parts = ControllerParts()  # what single features and log pages remember
        self.queues: dict[int, QueueControl] = {}
        self.kato_ms = 0
        self._shutdowns = 0
        self._timer = KeepAliveTimer(runtime, self.view.activity, lambda: self.keep_alive_seconds, self._expired)
        self.set_kato(kato_ms)
        subsystem.start_attached(self)
        self.parts[AnaLogCounts].reset()
        subsystem.controllers[cntlid] = self
        hooks.restore(self)

    # Properties

    @property
    def csts(self) -> int:
        """Controller Status: RDY, CFS, SHST, ST, NSSRO."""
        whole = self.subsystem.shutdown_status
        return Csts(
            rdy=self.ready,
            cfs=self.failed,
            shst=whole or self.shutdown_status,
            st=bool(whole),
            nssro=self.subsystem_was_reset,
        ).encode()

    @property
    def cap(self) -> int:
        """Controller Capabilities, 64 bits."""
        return capabilities(self.subsystem.config, discovery=self.discovery).encode()

    @property
    def crto(self) -> int:
        """Controller Ready Timeouts."""
        return Crto(crwmt_seconds=self.subsystem.config.ready_timeout_seconds).encode()

    def write_cc(self, value: int) -> bool:
        """Execute Property Set of CC. Returns True when a shutdown began: flush, then call `shutdown_complete`.

        What is read-only stays zero. After a shutdown, only a reset, or enabling without SHN, makes the controller
        ready again. A shutdown of the whole subsystem takes an NVM Subsystem Reset. Raises Invalid Field in Command.
        """
        value &= CC_WRITABLE
        check_cc(self.cc, value, io_queues=any(self.queues))
        old, new = Cc.decode(self.cc), Cc.decode(value)
        self.cc = value
        self._active = None  # CSS may be another
        was_reset = old.en and not new.en
        if was_reset:
            self._reset()
        elif new.en and not old.en:
            if not new.shn:
                self._end_shutdown()
            if self.shutdown_status is Shst.NORMAL and not self.subsystem.shutdown_status:
                self._enable(new)
        began = bool(new.shn) and (was_reset or not old.shn) and not self.subsystem.shutdown_status
        if began:
            self._shutdowns += 1
            self.shutdown_status = Shst.OCCURRING
        self.project()
        self._timer.restart()
        return began

    def _end_shutdown(self) -> None:
        self._shutdowns += 1
        self.shutdown_status = Shst.NORMAL

    def subsystem_shutdown(self) -> None:
        """Begin an NVM Subsystem Shutdown: no further command is accepted."""
        self.project()
        self._timer.restart()

    def subsystem_reset(self) -> None:
        """Execute an NVM Subsystem Reset: restore the state after Connect. The association stays, with its admin
        queue."""
        self.cc = 0
        self._active = None
        self.subsystem_was_reset = True
        self._reset()
        self.project()
        self._timer.restart()

    def clear_csts(self, value: int) -> None:
        """Execute Property Set of CSTS: NSSRO is cleared by writing it; all else is read-only."""
        if value & Csts.BITS.encode(nssro=1):
            self.subsystem_was_reset = False

    @property
    def shutdown_token(self) -> int:
        """Names the shutdown in progress, for `shutdown_complete`."""
        return self._shutdowns

    def shutdown_complete(self, token: int) -> None:
        """Complete a shutdown after its flush; ignored when another shutdown or a reset came in between."""
        if token == self._shutdowns and self.shutdown_status is Shst.OCCURRING:
            self.shutdown_status = Shst.COMPLETE
            self.project()

    def _enable(self, configuration: Cc) -> None:
        if usable(configuration, discovery=self.discovery):
            self.ready = True
        else:
            self.failed = True
            self.record(EventType.HARDWARE_ERROR, hardware_error(HardwareErrorCode.CONTROLLER_FATAL_STATUS))

    def _reset(self) -> None:
        """Execute a Controller Reset: end I/O queues, restore the defaults of features and events; the admin queue
        stays."""
        self.ready = self.failed = False
        self.subsystem.self_test.controller_reset(self.cntlid)
        self._end_shutdown()
        self._close_queues("the controller was reset", [qid for qid in self.queues if qid])
        now = self.runtime.now()
        self.record(EventType.POWER_ON_OR_RESET, self._reset_information(now))
        self.features = FeatureValues(timestamp_set_at=now, reset_at=now)
        self.parts.reset()
        self.events.reset()
        self._hooks.restore(self)

    # Namespaces

    def attach(self, *namespaces: Namespace) -> None:
        """Give this controller namespaces."""
        self.attached.update((namespace.nsid, namespace) for namespace in namespaces)
        self._active = None
        self.parts[AnaLogCounts].note(*(namespace.anagrpid for namespace in namespaces))
        for namespace in namespaces:
            namespace.lost_writes.connected(self.hostid, namespace.backend.sync_failures)
        self.project()

    def detach(self, nsid: int) -> bool:
        """Take a namespace away, if it is attached: commands for it that have not begun are refused."""
        namespace = self.attached.pop(nsid, None)
        if namespace is None:
            return False
        self._active = None
        self.parts[AnaLogCounts].note(namespace.anagrpid)
        self.project()
        return True

    def busy_with(self, nsid: int) -> bool:
        """Return whether I/O commands for that NSID are in progress, a namespace since deleted included."""
        return any(nsid in queue.commands().values() for qid, queue in self.queues.items() if qid)

    def enabled(self, csi: int) -> bool:
        """Return whether CC.CSS enables that I/O command set; before CC is set, any is enabled."""
        if csi == Csi.NVM:
            return True
        configuration = Cc.decode(self.cc)
        return not configuration.en or configuration.css == CcCss.ALL_SUPPORTED

    # What commands know

    @property
    def state(self) -> ControllerState:
        """The state that decides which commands are legal."""
        return self.view.state

    def _current_state(self) -> ControllerState:
        if self.gone:
            return ControllerState.GONE
        if self.failed:
            return ControllerState.FAILED
        if self.shutdown_status is not Shst.NORMAL or self.subsystem.shutdown_status:
            return ControllerState.SHUTDOWN
        return ControllerState.READY if self.ready else ControllerState.DISABLED

    @property
    def write_cache_enabled(self) -> bool:
        """Feature 06h: whether a write may complete before it is on non-volatile media."""
        value = self.features.values.get((FeatureId.VOLATILE_WRITE_CACHE, 0))
        return value is None or bool(value.dw0)

    def project(self) -> None:
        """End the epoch, and the admissions of it, after a change of what commands depend on; begin the next one."""
        self.view.change(
            Projection(
                state=self._current_state(),
                namespaces=self._active_namespaces(),
                ana=self.ana.access,
                write_cache=self.write_cache_enabled,
                copy_formats=self.features.copy_formats,
            )
        )

    def _active_namespaces(self) -> Mapping[int, Namespace]:
        """Return the attached namespaces whose command set is enabled: the same mapping until that changes."""
        if self._active is None:
            self._active = {nsid: each for nsid, each in self.attached.items() if self.enabled(each.csi)}
        return self._active

    def effects(self, qid: int, queue: QueueControl, trtype: int) -> Effects:
        """Make the door for the effects of a queue's commands; `trtype` is of the port that it was connected by."""
        return self._hooks.effects(self, qid, queue, trtype)

    # Queues

    def attach_queue(
        self,
        qid: int,
        queue: QueueControl,
        figures: Figures,
        connection: Figures | None = None,
    ) -> None:
        """Add a queue whose Connect was accepted. `figures` describes the queue, `connection` its connection."""
        self.queues[qid] = queue
        self.figures[qid] = figures
        if connection is not None:
            self.connections[qid] = connection

    def detach_queue(self, qid: int, queue: QueueControl, reason: str = "the queue was closed") -> None:
        """Remove a queue that has ended; with its admin queue the controller ends. A queue that was replaced is
        ignored."""
        if self.queues.get(qid) is not queue:
            return
        del self.queues[qid]
        self.figures.pop(qid, None)
        self.connections.pop(qid, None)
        if qid == 0:
            self.destroy(reason)

    def destroy(self, reason: str) -> None:
        """End the association: all its queues are closed. Harmless when repeated."""
        if self.gone:
            return
        self.gone = True
        self._timer.end()
        self.ready = False
        self.project()
        self.subsystem.controllers.pop(self.cntlid, None)
        self.subsystem.self_test.controller_reset(self.cntlid)
        self.events.abort_all(Status.ABORTED_SQ_DELETION)
        # I/O queues first: the admin queue is what the host watches.
        self._close_queues(reason, sorted(self.queues, reverse=True))

    def _close_queues(self, reason: str, qids: list[int]) -> None:
        for qid in qids:
            queue = self.queues.pop(qid, None)
            self.figures.pop(qid, None)
            self.connections.pop(qid, None)
            if queue is not None:
                queue.close(reason)

    # Keep alive

    def set_kato(self, kato_ms: int) -> None:
        """Set the keep alive timeout (milliseconds, rounded up to the granularity) and restart the timer."""
        step = int(KEEP_ALIVE_GRANULARITY_SECONDS * 1000)
        self.kato_ms = min(-(-kato_ms // step) * step, KATO_MAX_MS)
        self._timer.restart()

    @property
    def keep_alive_seconds(self) -> float:
        """How long an interval is, in one of which commands have to come; 0: forever.

        The Keep Alive Timer is active while the controller is ready; otherwise the association may be removed, but not
        for two minutes.
        """
        if self.state is not ControllerState.READY:
            return NOT_ENABLED_SECONDS
        if self.kato_ms:
            return self.kato_ms / 1000
        return DISCOVERY_IDLE_SECONDS if self.discovery else self.subsystem.config.any_keep_alive_seconds

    def keep_alive(self) -> None:
        """Restart the keep alive interval, for a Keep Alive command."""
        self._timer.restart()

    def next_deadline(self) -> float | None:
        """Return when `check_deadline` should be called next; None: never."""
        return None if self.gone else self._timer.deadline()

    def check_deadline(self, now: float) -> bool:
        """End the association when its host was silent for a whole interval (NVMe Base, Keep Alive); return whether it
        was."""
        return not self.gone and self._timer.check(now)

    def tick(self, now: float) -> float | None:
        """Execute what is due; return when to call next, None for never."""
        self.check_deadline(now)
        self._hooks.periodic(self)
        return self.next_deadline()

    def _expired(self) -> None:
        if self.state is not ControllerState.READY:
            self.destroy(f"not enabled, and no command for {NOT_ENABLED_SECONDS:g} s")
            return
        silence = self.keep_alive_seconds
        self.subsystem.keep_alive_timeouts += 1
        self.failed = True
        self.record(EventType.HARDWARE_ERROR, hardware_error(HardwareErrorCode.CONTROLLER_FATAL_STATUS))
        self.destroy(f"keep alive timeout: no command for {silence:g} s")

    # History

    @property
    def timestamp(self) -> bytes:
        """The Timestamp data structure (Feature 0Eh) as it is now."""
        features = self.features
        elapsed = self.runtime.now() - features.timestamp_set_at
        return build_timestamp(features.timestamp_ms / 1000 + elapsed, origin=features.timestamp_origin)

    def record(self, kind: EventType, data: bytes) -> None:
        """Write an event into the subsystem's history; `subsystem.persistent_events` has what makes its data."""
        if self.discovery:
            return
        self.subsystem.history.add(
            kind,
            data,
            now=self.runtime.now(),
            timestamp=self.timestamp,
            cntlid=self.cntlid,
            portid=self.port.portid,
        )

    def _reset_information(self, now: float) -> bytes:
        lifetime = self.subsystem.lifetime
        milliseconds = int(lifetime.power_on_seconds(now) * 1000)
        descriptor = (self.cntlid, lifetime.power_cycles, milliseconds, self.timestamp)
        return power_on_or_reset(self.subsystem.config.firmware, [descriptor])

    # Events

    def _lba_alert_interval(self) -> int:
        value = self.features.values.get((FeatureId.LBA_STATUS_REPORT_INTERVAL, 0))
        return POLL_INTERVAL if value is None else value.dw0 & 0xFFFF

    def unreadable_found(self) -> None:
        """Report that blocks of an attached namespace may have become unreadable."""
        report = partial(self.events.report, LBA_STATUS_ALERT)
        self.parts[LbaAlert].found(self.runtime, report, self._lba_alert_interval)

    def writes_lost(self, nsid: int) -> None:
        """Add an error log entry, of no command, for writes to an attached namespace that may be lost."""
        self.error_log.add(
            sqid=0xFFFF,
            cid=0xFFFF,
            status_field=status_field(Status.WRITE_FAULT, True, False),
            error_location=0xFFFF,
            lba=0,
            nsid=nsid,
            trtype=0,
            opcode=0,
        )
        self.events.report(TRANSIENT_INTERNAL_ERROR)  # after a persistent one hosts reset the controller
        self.events.report(RELIABILITY)

    def namespace_changed(self, nsid: int) -> None:
        """Report a namespace that came, went or changed its attributes."""
        if self.discovery:
            return
        self.parts[ChangedNamespaces].add(nsid)
        self.events.report(NAMESPACE_ATTRIBUTE_CHANGED)

    def allocation_changed(self, nsid: int) -> None:
        """Report a namespace of the subsystem that came, went, changed its attributes, or was attached elsewhere."""
        if self.discovery:
            return
        self.parts[ChangedAllocations].add(nsid)
        self.events.report(ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED)

    def zone_changed(self, nsid: int, zslba: int) -> None:
        """Report a change, by no command, of the zone at that block of an active namespace."""
        self.parts[ChangedZones].setdefault(nsid, set()).add(zslba)
        self.events.report(replace(ZONE_DESCRIPTOR_CHANGED, parameter=nsid))

    def reservation_changed(self, nsid: int, kind: NotificationType) -> None:
        """Report a change of the reservation of an attached namespace, or of the host's registration."""
        self.parts[ReservationNotices].add(kind, nsid)
        self.events.report(RESERVATION_LOG_AVAILABLE)

    def reservation_log_read(self) -> None:
        """Note that the host has read one notice, and send the event for the next one."""
        if self.parts[ReservationNotices]:
            self.events.report(RESERVATION_LOG_AVAILABLE)

    def abort_namespace(self, nsid: int) -> None:
        """End the commands for a namespace that can be ended at once (Preempt and Abort)."""
        for queue in list(self.queues.values()):
            queue.abort_namespace(nsid)

    def telemetry_changed(self) -> None:
        """Report new controller-initiated telemetry."""
        if not self.discovery:
            self.events.report(TELEMETRY_LOG_CHANGED)

    def ana_changed(self, *groups: int) -> None:
        """Report a changed state of an ANA group on this controller's port, or a namespace that moved between groups.

        NVMe Base 8.1.1.9 asks for the event upon entry to every state but Change; like nvmet, it is sent then too, so
        that hosts count the time that a change may take.
        """
        self.project()
        self.parts[AnaLogCounts].note(*groups)
        if not self.discovery:
            self.events.report(ANA_CHANGE)

    def discovery_changed(self) -> None:
        """Report a change of the Discovery log."""
        if self.discovery:
            self.events.report(DISCOVERY_LOG_CHANGE)

    def withdraw_events(self, lid: int) -> None:
        """Let an event of a log page that was not sent yet be none: the page has become another one."""
        self.events.withdraw(lid)

    def connect_refused(self, qid: int, cid: int, error: CommandError, *, trtype: int, opcode: int) -> None:
        """Put an I/O queue that could not be made into the Error Information log."""
        self.error_log.add(
            sqid=qid,
            cid=cid,
            status_field=status_field(error.status, error.dnr, False),
            error_location=error.error_location,
            lba=0,
            nsid=0,
            trtype=trtype,
            opcode=opcode,
        )

    # Checks

    def check_entry_sizes(self, error_location: int) -> None:
        """Raise Command Sequence Error until CC sets the entry sizes of I/O queues (IOSQES, IOCQES; NVMe Base,
        Controller Configuration)."""
        configuration = Cc.decode(self.cc)
        if configuration.iosqes_bytes != SQE_BYTES or configuration.iocqes_bytes != CQE_BYTES:
            raise CommandError(
                Status.COMMAND_SEQUENCE_ERROR, error_location, message="CC.IOSQES and CC.IOCQES are not set to 6 and 4"
            )

    def check_qid_free(self, qid: int, error_location: int) -> None:
        """Raise Command Sequence Error for a queue that exists already (NVMe Base, Connect command)."""
        if qid in self.queues:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR, error_location, message=f"queue {qid} exists already")
