"""One queue of a target: events of its connection become commands, and their outcomes become completions.

Every command takes the general path, that of its table row (:mod:`nvmeof.target.commands.table`); the parts have what
is special. A part knows the parts below it and, of the queue, only what :class:`~nvmeof.target.queue.contract.InFlight`
says: which CIDs are in use, and how a command begins, completes and is refused.

    driver ──owns──> TargetQueue ──owns──> connection (receives events, sends completions)
                       │   commands in flight: busy, transfers, running, held
                       ├── Aborts       finds a command in any of the places below, and ends it
                       ├── FusedPairs   halves that wait for each other ──> FastPath.forget, Staging.ask
                       ├── FastPath     runs like a template, served from the receive buffer ──> Staging.request
                       │     └── RunPath  those of a backend that does many at once (a file) ──> Staging.reserve_run
                       ├── Staging      the pool's memory: data from the host, and reads that wait for memory
                       └── Pacing       holds commands back: output, time of the event loop, commands in backends
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import ClassVar, Final

from nvmeof.errors import CommandError, LocalProtocolError
from nvmeof.pdu.termination import fes_text
from nvmeof.protocol.connection import TargetConnection
from nvmeof.protocol.events import (
    CommandBatch,
    CommandData,
    CommandDataRun,
    Deviation,
    Event,
    PeerClosed,
    ProtocolFailure,
    Terminated,
)
from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.enums import FABRICS_OPCODE, FabricsType, NvmOpcode
from nvmeof.spec.sqe import CDW12_FUA, FUSE_MASK, SQE, Sqe
from nvmeof.spec.status import Status, status_field
from nvmeof.target.commands.admin_context import AdminContext, AnyContext, ConnectContext
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import Access, CommandSpec, Completion, Direction
from nvmeof.target.commands.table import check_again, execute, prepare
from nvmeof.target.core.aborting import abandon, aborted_by_request
from nvmeof.target.core.owner import OWNER
from nvmeof.target.core.pool import BufferPool, MemoryShare
from nvmeof.target.core.slices import ServedIo
from nvmeof.target.core.states import QueueState
from nvmeof.target.queue.aborts import Aborts
from nvmeof.target.queue.capsule import capsule_data
from nvmeof.target.queue.contract import Driver
from nvmeof.target.queue.deferred import CommandTemplate, DeferredCommand, command_of, shortened, staging_of
from nvmeof.target.queue.detached import DetachedCommands, connecting_host
from nvmeof.target.queue.fast_path import FastPath
from nvmeof.target.queue.fused_pairs import FusedPairs
from nvmeof.target.queue.pacing import HOLD_BYTES, RUNNING_MOST, Pacing
from nvmeof.target.queue.staging import Staging
from nvmeof.target.queue.watching import QueueWatcher

logger = logging.getLogger("nvmeof.target")
_TO_CONTROLLER: Final = Direction.HOST_TO_CONTROLLER
_READ, _WRITE = int(NvmOpcode.READ), int(NvmOpcode.WRITE)
_CID_CONFLICT: Final = Status.COMMAND_ID_CONFLICT


class TargetQueue:
    """Serves one connection. ``close`` ends it from the controller's side; the driver calls ``lost``."""

    ctx: AnyContext
    fast_path_kind: ClassVar[type[FastPath]] = FastPath
    pacing_kind: ClassVar[type[Pacing]] = Pacing

    def __init__(
        self, connection: TargetConnection, pool: BufferPool, detached_commands: DetachedCommands, driver: Driver
    ) -> None:
        self.connection = connection
        self.pool = pool
        self.detached_commands = detached_commands
        self.driver = driver
        self.share = MemoryShare()
        """What the queue's memory is counted by: the association's, from an I/O queue's Connect on."""
        self.closed = False
        self.busy: set[int] = set()
        self.transfers: dict[int, R2tTransfer] = {}
        self.running: dict[int, tuple[int, CommandSpec]] = {}
        # Mostly empty, and then a deque takes 700 bytes more: of each connection.
        self.held: list[tuple[memoryview, CommandData | None]] = []
        """Commands that wait until enough of what is to be sent has gone; see ``resume``."""
        self._arrived: list[R2tTransfer] = []
        """Those whose data came while no command could begin; see ``paused``."""
        self.pacing = self.pacing_kind(self)
        self.staging = Staging(self, self.pacing)
        self.fast_path = self.fast_path_kind(self, self.staging, self.pacing)
        self._write_runs = self.fast_path.runs.arrived
        self.fused = FusedPairs(self, self.staging, self.fast_path)
        self.aborts = Aborts(self, self.staging, self.fused)
        self._draining = False
        self.detached: set[int] = set()  # CIDs of commands that go on although the queue has ended
        self.trace: QueueWatcher | None = None
        """Who is told of the commands, the trace hook or a meter; None: nobody."""
        self.io = ServedIo()
        """Called when events were handled; for an I/O queue, by the slices of the event loop's time."""
        self.connecting = False
        """A Connect waits for commands that its host left behind."""
        self.pending = 0
        """Commands that are being worked on, Asynchronous Event Requests included."""

    # -- events --------------------------------------------------------------------------------------------------

    def handle(self, events: list[Event], now: float) -> None:
        """Handle the events of the connection, in order."""
        self.ctx.activity.heard = True
        self.io.served = True
        self.pacing.new_turn()
        position = 0
        while position < len(events) and not self.closed:
            event = events[position]
            position += 1
            if type(event) is R2tTransfer:
                self._transfer_done(event)
                continue
            if self._draining and isinstance(event, CommandBatch | CommandData | CommandDataRun):
                continue  # not begun, and so left without an answer: the host sends it again elsewhere
            if isinstance(event, CommandBatch):
                self.fast_path.batch(event)
            elif isinstance(event, CommandDataRun):
                self.fast_path.data_batch(event)
            elif isinstance(event, CommandData):
                position = self.fast_path.data_run(events, position - 1)
            elif isinstance(event, ProtocolFailure):
                self._end(f"protocol error: {event.error}", fault=True)
            elif isinstance(event, Terminated):
                self._end(f"the host terminated the connection: {fes_text(event.fes)} (FEI {event.fei:#x})", fault=True)
            elif isinstance(event, Deviation):
                logger.info("%s: the host departs from the specification: %s", self.ctx.peer, event.message)
            elif isinstance(event, PeerClosed):
                self._end("closed by the host")
        if self._write_runs:
            self.fast_path.runs.write_arrived()

    # -- commands ------------------------------------------------------------------------------------------------

    def command(self, view: memoryview, capsule: CommandData | None) -> None:
        """Execute one command on the general path."""
        if self.held or self.connection.out.pending_bytes > HOLD_BYTES or self.pacing.late() or self.paused():
            self.pacing.hold(view, capsule)
        else:
            self.begin(view, capsule)

    def paused(self) -> bool:
        """Return whether no command of an I/O queue may begin, since its namespaces are being changed.

        The queue goes on by itself when that is done. Never true of an admin queue, whose commands make the change.
        """
        table = self.ctx.namespaces
        if not table.paused or not self.ctx.qid:
            return False
        table.when_resumed(self._resumed)
        return True

    def _resumed(self) -> None:
        if self.closed:
            return
        arrived, self._arrived = self._arrived, []
        for transfer in arrived:
            self._transfer_done(transfer)
        self.resume()
        self.driver.wake()

    def go_on(self) -> None:
        """Begin what was held, if any, and send what came of it."""
        if not self.closed and (self.held or self.staging.reads):
            self.resume()
            self.driver.wake()

    def resume(self) -> None:
        """Take commands that were held, in their order, while there is room for their output and time for them."""
        out, pacing = self.connection.out, self.pacing
        while self.held and not self.closed and out.pending_bytes <= HOLD_BYTES and not pacing.full():
            if self.paused():
                return
            if pacing.late():
                pacing.go_on_in_turn()
                return
            self.begin(*self.held.pop(0))
            if pacing.crowded:
                pacing.look_for_crowds()
        if self.staging.reads:
            self.staging.continue_reads()

    def begin(self, view: memoryview, capsule: CommandData | None) -> None:
        ctx = self.ctx
        sqe = SQE.unpack_from(view)
        if (sqe.flags & FUSE_MASK or self.fused.first is not None) and self.fused.take(sqe, capsule):
            return
        if sqe.cid in self.busy and not self._forget_event_request(sqe.cid):
            self.conflict(sqe)
            return
        try:
            spec, length = prepare(ctx, sqe)
            data = capsule_data(sqe, length, capsule)
        except CommandError as error:
            self.refuse(sqe, error)
            return
        if self.trace is not None:
            self.trace.admitted(sqe, length)
        namespace = ctx.namespaces.get(sqe.nsid) if ctx.qid else None
        in_memory = namespace is not None and namespace.memory is not None
        plain = (in_memory or (namespace is not None and namespace.runs is not None and self._unsynced(sqe))) and (
            sqe.opcode == _READ or sqe.opcode == _WRITE
        )
        reserved = 0
        if length and data is None:
            if spec.direction is _TO_CONTROLLER:
                if plain:
                    self.fast_path.learn(spec, view, sqe, length, deferred=True)
                self.busy.add(sqe.cid)
                self.staging.ask(spec, sqe, length)
                return
            if not in_memory:  # it reads into memory of the target's
                if not self.staging.reserve(sqe, view, length):
                    return
                reserved = length
        if plain:
            self.fast_path.learn(spec, view, sqe, length, deferred=False)
        if data is None or (plain and in_memory):
            self._run(spec, sqe, data, None, reserved)
        else:
            self._run_copied(spec, sqe, data)

    def _unsynced(self, sqe: Sqe) -> bool:
        """Return whether a Read or Write leaves a volatile cache as it is: only such ones are served in runs."""
        ctx = self.ctx
        return isinstance(ctx, IoContext) and not sqe.cdw12 & CDW12_FUA and ctx.view.write_cache

    def conflict(self, sqe: Sqe) -> None:
        """Refuse a command whose CID is in use; the one that uses it goes on. Sent with another CID it may succeed."""
        location = SQE.error_location("cid")
        error = CommandError(Status.COMMAND_ID_CONFLICT, location, dnr=False, message="the CID is in use")
        self.refuse(sqe, error)

    def refuse(self, sqe: Sqe, error: CommandError) -> None:
        """End a command with an error."""
        self.complete(sqe, self.ctx.refuse(sqe, error))

    def _forget_event_request(self, cid: int) -> bool:
        """Forget the waiting Asynchronous Event Request whose CID its host uses again; return False when there is none.
        Some hosts forget their requests before they shut a controller down (SPDK's, at every end). The request holds no
        data, and its host no longer waits for it: no completion can be taken for the other command's.
        """
        ctx = self.ctx
        if not isinstance(ctx, AdminContext) or not ctx.controller.events.forget(cid):
            return False
        logger.info(
            "%s: CID %#x of a waiting Asynchronous Event Request is used anew: forgotten",
            self.ctx.peer,
            cid,
        )
        self.running.pop(cid, None)
        self.busy.discard(cid)
        self.ctx.aborting.discard(cid)
        self.connection.forget_command()
        if self.trace is not None:
            self.trace.forget(cid)
        return True

    def _run_copied(self, spec: CommandSpec, sqe: Sqe, data: memoryview) -> None:
        """Run a command that may keep its data for longer than the receive buffer does."""
        self._run(spec, sqe, *self.staging.copy_in(data))

    def _transfer_done(self, transfer: R2tTransfer) -> None:
        """Continue a command whose data has arrived; a Write of the fast path mostly has it in the
        namespace already."""
        if self.ctx.namespaces.paused and self.paused():
            self._arrived.append(transfer)  # and stays among those that can be aborted
            return
        del self.transfers[transfer.cid]
        if isinstance(transfer.context, DeferredCommand):
            self._staged_done(transfer, transfer.buffer)
        elif not self.fast_path.arrived(transfer):
            template, _ = shortened(transfer)
            if template.staged:
                self._staged_done(transfer, transfer.buffer)
            else:
                self._overtaken(transfer, template)

    def go_on_with(self, transfer: R2tTransfer) -> None:
        """Continue a command of the fast path, whose data has arrived in memory of the pool, on the general path."""
        self._staged_done(transfer, transfer.buffer)

    def _staged_done(self, transfer: R2tTransfer, staging: memoryview | None) -> None:
        spec, sqe = command_of(transfer)
        if transfer.ok:
            self._resume_deferred(spec, sqe, transfer.buffer, staging)
        else:
            error = CommandError(Status.TRANSIENT_TRANSPORT_ERROR, dnr=False, message="a data digest is wrong")
            self._refuse_deferred(sqe, error, staging)

    def _overtaken(self, transfer: R2tTransfer, template: CommandTemplate) -> None:
        """Complete a Write straight to the namespace whose template is no longer valid, or whose digest was wrong."""
        if transfer.ok and transfer.data is None:
            transfer.buffer = memoryview(bytearray(transfer.buffer))
        elif transfer.ok and self.ctx.namespaces.get(template.nsid, template.namespace) is not template.namespace:
            # What went to the old one before may be lost with it, and is not in the data.
            error = CommandError(
                Status.NAMESPACE_NOT_READY,
                dnr=False,
                message=f"namespace {template.nsid} was replaced while its data was received: send the command again",
            )
            self._refuse_deferred(command_of(transfer)[1], error, None)
            return
        self._staged_done(transfer, None)

    def _resume_deferred(self, spec: CommandSpec, sqe: Sqe, data: memoryview, lent: memoryview | None) -> None:
        """Execute a command some time after it was found legal: another may have come in between."""
        if sqe.cid in self.fused.pairs:
            self.fused.arrived(sqe.cid, data, lent)
            return
        try:
            if sqe.cid in self.ctx.aborting:
                raise aborted_by_request()
            check_again(self.ctx, spec, sqe)
        except CommandError as error:
            self._refuse_deferred(sqe, error, lent)
            return
        self._run(spec, sqe, data, lent)

    def _refuse_deferred(self, sqe: Sqe, error: CommandError, lent: memoryview | None) -> None:
        if sqe.cid in self.fused.pairs:
            self.fused.failed(sqe.cid, error, lent)
            return
        if lent is not None:
            self.pool.give(lent)
        self.complete(sqe, self.ctx.refuse(sqe, error))

    def _run(
        self, spec: CommandSpec, sqe: Sqe, data: memoryview | None, lent: memoryview | None, reserved: int = 0
    ) -> None:
        """Execute a command; ``lent`` is the pool's memory that it uses until it has ended.

        ``reserved``: bytes that were counted for what it reads, until that has been sent.
        """
        ctx = self.ctx
        connecting = ctx if isinstance(ctx, ConnectContext) else None
        if connecting is not None and data is not None and self._wait_for_detached(spec, sqe, data, lent):
            return
        OWNER.set(self.share)
        if self.trace is not None:
            self.trace.backend_called(sqe)
        result = execute(ctx, spec, sqe, data)
        if not isinstance(result, Completion):
            self._complete_later(spec, sqe, result, lent, reserved)
            return
        if lent is not None:
            self.pool.give(lent)
        if connecting is not None and connecting.accepted is not None:
            self._connected(connecting.accepted)
        self.complete(sqe, result)

    def _complete_later(
        self, spec: CommandSpec, sqe: Sqe, pending: Awaitable[Completion], lent: memoryview | None, reserved: int
    ) -> None:
        """Complete a command when its handler, which has begun, is done; the arguments are those of ``_run``."""
        self.staging.reading += reserved
        self.busy.add(sqe.cid)
        self.running[sqe.cid] = (0 if sqe.opcode == FABRICS_OPCODE else sqe.nsid, spec)
        if len(self.running) >= RUNNING_MOST:
            self.pacing.look_for_crowds()
        ctx = self.ctx
        host = ctx.host_nqn
        namespace = None if sqe.opcode == FABRICS_OPCODE else ctx.namespaces.get(sqe.nsid)
        begun = None if namespace is None else namespace.in_progress.begin(ctx.hostid)

        def ended(completion: Completion) -> None:
            if lent is not None:
                self.pool.give(lent)
            if completion.forgotten:
                if not self.closed:
                    self.pending -= 1
                return
            self.running.pop(sqe.cid, None)
            if self.closed:
                if completion.release is not None:
                    completion.release()
                if sqe.cid in self.detached:
                    self.detached_commands.done(host)
            else:
                self.pending -= 1
                if self.pacing.crowded:
                    self.pacing.look_for_crowds()
                self.complete(sqe, completion)
                if self.held:
                    self.resume()
                self.driver.wake()
            if reserved:
                self.staging.read_ended(reserved)
            if begun is not None:
                begun.end()

        self.pending += 1
        self.driver.spawn(pending, ended)

    def _wait_for_detached(self, spec: CommandSpec, sqe: Sqe, data: memoryview, lent: memoryview | None) -> bool:
        """Return whether an admin Connect has to wait for its host's detached commands; it is resumed when they have
        ended."""
        if sqe.opcode != FABRICS_OPCODE or sqe.fctype != FabricsType.CONNECT:
            return False
        host = connecting_host(data)
        if host is None:
            return False

        def resume() -> None:
            self.connecting = False
            if self.closed:
                if lent is not None:
                    self.pool.give(lent)
                return
            self._resume_deferred(spec, sqe, data, lent)
            self.driver.wake()

        if not self.detached_commands.wait(host, resume):
            return False
        self.busy.add(sqe.cid)
        self.connecting = True
        return True

    def _connected(self, ctx: AdminContext | IoContext) -> None:
        self.ctx = ctx
        self.connection.set_queue(ctx.qid, ctx.entries, flow_control=ctx.flow_control)
        if self.trace is not None:
            self.trace.connected(ctx)
        if isinstance(ctx, IoContext):
            self.share = ctx.view.memory
            self.connection.set_incapsule(ctx.limits.incapsule_bytes)

    def complete(self, sqe: Sqe, completion: Completion) -> None:
        cid, ctx = sqe.cid, self.ctx
        if completion.status != _CID_CONFLICT:
            self.busy.discard(cid)
            if ctx.aborting:
                ctx.aborting.discard(cid)
            if ctx.preempted:
                ctx.preempted.discard(cid)
        field = 0
        if completion.status:
            field = status_field(completion.status, completion.dnr, completion.more)
        if completion.data is None:
            self.connection.send_completion(cid, field, completion.dw0, completion.dw1)
            if completion.release is not None:
                completion.release()
        else:
            self.connection.send_read(
                cid,
                completion.data,
                field,
                completion.dw0,
                completion.dw1,
                release=completion.release,
                stable=completion.stable,
            )
        if self.trace is not None:
            self.trace.completed(sqe, completion)
        if completion.ends:
            self._end(completion.ends)

    def set_state(self, state: QueueState) -> None:
        """Let those commands be legal from now on whose rows name this state (NVMe Base, In-band Authentication).

        Raises `LocalProtocolError` before the queue's Connect.
        """
        if isinstance(self.ctx, ConnectContext):
            raise LocalProtocolError("a queue has no state to set before its Connect")
        self.ctx.queue_state = state
        self.fast_path.forget()

    # -- aborts --------------------------------------------------------------------------------------------------

    def commands(self) -> dict[int, int]:
        """Return NSID by CID of the commands in progress."""
        return self.aborts.commands()

    def abort(self, cid: int) -> bool:
        """End a command as :meth:`Aborts.abort` does; True when it has no effect from then on."""
        return self.aborts.abort(cid)

    def abort_namespace(self, nsid: int) -> None:
        """End the commands for a namespace, as Preempt and Abort demands."""
        self.aborts.abort_namespace(nsid)

    # -- endings -------------------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """End this queue at the controller's request."""
        self._end(reason)

    def lost(self, reason: str, *, fault: bool = False) -> None:
        """End the queue after its socket was lost."""
        self._end(reason, fault=fault)

    def drain(self) -> bool:
        """Begin no further command; return whether none is in progress."""
        self._draining = True
        self.staging.drop_waiting()
        self.held.clear()
        return not self.pending and not self.transfers

    def _end(self, reason: str, *, fault: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self.staging.drop_waiting()
        self.held.clear()
        if self.ctx.qid:  # an admin command writes nothing that could overtake; a Format may take hours
            self._detach_running()
        self.ctx.detach(reason, fault=fault)
        self.driver.finish(reason, fault=fault)
        self.fused.drop()
        # A queue that has ended receives nothing: no granted buffer is written.
        transfers, self.transfers = self.transfers, {}
        for transfer in transfers.values():
            staging = staging_of(transfer)
            if staging is not None:
                self.pool.give(staging)

    def forget(self) -> None:
        """Let go of the parts, the context and the driver, when no further call can come. They refer to the queue and
        the queue to them; without these references all is freed at once, and not by the cyclic garbage collector, which
        stops the event loop when many connections have ended.
        """
        del self.pacing, self.staging, self.fast_path, self._write_runs, self.fused, self.aborts, self.driver, self.ctx

    def _detach_running(self) -> None:
        """Give up what has not begun; the host's next Connect waits for what has, and may still change data."""
        ctx = self.ctx
        for cid, (_, spec) in self.running.items():
            ctx.aborting.add(cid)
            changes = spec.access is not Access.READ and spec.opcode != NvmOpcode.FLUSH
            if not abandon(ctx.waiting.get(cid)) and changes:
                self.detached.add(cid)
                self.detached_commands.add(ctx.host_nqn)

    @property
    def crowded(self) -> bool:
        """Whether no more commands should be received, until some have ended."""
        return self.pacing.crowded

    @property
    def receiving(self) -> bool:
        """Return whether data of an R2T is still to come."""
        return bool(self.transfers)
