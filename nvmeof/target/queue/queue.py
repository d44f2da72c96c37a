"""One queue of a target: what its connection tells becomes commands, and their outcomes become completions.

Every command takes the way of its table row (:mod:`nvmeof.target.commands.table`), but for plain Reads and Writes of a
namespace that is memory: :mod:`nvmeof.target.queue.fast_path` serves those that are like one that has gone
the whole way.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.pdu.termination import fes_text
from nvmeof.protocol.config import BACKLOG_BYTES
from nvmeof.protocol.connection import TargetConnection
from nvmeof.protocol.events import (
    CommandBatch,
    CommandData,
    Deviation,
    Event,
    PeerClosed,
    ProtocolFailure,
    Terminated,
)
from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.connect import CONNECT_DATA
from nvmeof.spec.enums import FABRICS_OPCODE, FabricsType, NvmOpcode
from nvmeof.spec.nqn import terminated_nqn, unnamed_host
from nvmeof.spec.sgl import DATA_BLOCK_IN_CAPSULE
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status, status_field
from nvmeof.target.commands.dispatch.base import Access, CommandSpec, Completion, Direction
from nvmeof.target.commands.table import check_again, execute, prepare
from nvmeof.target.core.aborting import abandon, aborted_by_request
from nvmeof.target.core.owner import OWNER
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.core.slices import LONG_SECONDS, Slices
from nvmeof.target.queue.aborts import AbortableCommands
from nvmeof.target.queue.contract import Driver
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.fast_path import CommandTemplate, DeferredCommand, command_of, shortened, staging_of
from nvmeof.wire import layout

logger = logging.getLogger("nvmeof.target")
RUNNING_MOST: Final = 128
"""While an I/O queue has this many commands in its backends, or any queue so many that are held, no more are received:
each may hold a copy of its data."""
HOLD_BYTES: Final = BACKLOG_BYTES
"""While more than this is to be sent, no further command goes the whole way: one receive may bring hundreds of them,
and the answer to each, a log page for instance, may be as long as MDTS."""
_HOSTNQN_OFFSET, _HOSTNQN_BYTES = layout(CONNECT_DATA)["hostnqn"]


class TargetQueue(AbortableCommands):
    """Serves one connection. ``close`` ends it from the controller's side; the driver calls ``lost``."""

    def __init__(
        self, connection: TargetConnection, pool: BufferPool, detached_commands: DetachedCommands, driver: Driver
    ) -> None:
        super().__init__(connection)
        self.pool = pool
        self.detached_commands = detached_commands
        self.driver = driver
        self._draining = False
        self.crowded = False
        """No more commands should be received until some have ended."""
        self._orphaned: set[int] = set()  # CIDs of commands that go on although the queue has ended
        self.slices: Slices | None = None
        """Who shares out the event loop's time; None: nobody does."""
        self._long = 0  # commands that went the whole way in this turn
        self._long_began = 0.0
        self._going_on = False
        self.connecting = False
        """A Connect waits for commands that its host left behind."""
        self.pending = 0
        """Commands that are being worked on, Asynchronous Event Requests included."""

    # -- events --------------------------------------------------------------------------------------------------

    def handle(self, events: list[Event], now: float) -> None:
        """What the connection told, in order."""
        controller = self.ctx.controller
        if controller is not None:
            controller.touch(now)
        self._long = 0
        position = 0
        while position < len(events) and not self.closed:
            event = events[position]
            position += 1
            if isinstance(event, R2tTransfer):
                self._transfer_done(event)
                continue
            if self._draining and isinstance(event, CommandBatch | CommandData):
                continue  # not begun, and so left without an answer: the host sends it again elsewhere
            if isinstance(event, CommandBatch):
                self._batch(event)
            elif isinstance(event, CommandData):
                position = self._data_run(events, position - 1)
            elif isinstance(event, ProtocolFailure):
                self._end(f"protocol error: {event.error}", fault=True)
            elif isinstance(event, Terminated):
                self._end(f"the host terminated the connection: {fes_text(event.fes)} (FEI {event.fei:#x})", fault=True)
            elif isinstance(event, Deviation):
                logger.info("%s: the host departs from the specification: %s", self.ctx.peer, event.message)
            elif isinstance(event, PeerClosed):
                self._end("closed by the host")

    # -- commands ------------------------------------------------------------------------------------------------

    def _command(self, view: memoryview, capsule: CommandData | None) -> None:
        """One command, the whole way."""
        if self.held or self.connection.backlog_bytes > HOLD_BYTES or self._late():
            self._defer(view, capsule)
        else:
            self._admit(view, capsule)

    def _defer(self, view: memoryview, capsule: CommandData | None) -> None:
        raw = memoryview(bytes(view))
        if capsule is not None:
            capsule = CommandData(raw, memoryview(bytes(capsule.data)), capsule.digest_ok)
        self.held.append((raw, capsule))
        self._look_for_crowds()
        self._go_on_in_turn()

    def _look_for_crowds(self) -> None:
        running = len(self._running) if self.ctx.qid else 0  # an admin queue has to hear an Abort
        self.crowded = running >= RUNNING_MOST or len(self.held) >= RUNNING_MOST

    def _late(self) -> bool:
        """Whether this queue has had its share of this turn of the event loop: one receive may bring hundreds of
        commands that take long."""
        slices = self.slices
        if slices is None:
            return False
        self._long += 1
        if self._long == 1:
            self._long_began = slices.clock()
            return False
        return slices.clock() - self._long_began > LONG_SECONDS

    @property
    def owner(self) -> Hashable:
        """Who takes turns with others for the event loop's time: the host, or what is at an address before Connect."""
        return self.ctx.host_nqn or self.ctx.peer.rpartition(":")[0]

    def _go_on_in_turn(self) -> None:
        if self.slices is not None and not self._going_on:
            self._going_on = True
            self.slices.add(self.owner, self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        self._long = 0
        if (self.held or self.reads) and not self.closed:
            self.resume()
            self.driver.wake()

    def resume(self) -> None:
        """Take commands that were held, in their order, while there is room for their output and time for them."""
        while self.held and not self.closed and self.connection.backlog_bytes <= HOLD_BYTES:
            if self._late():
                self._go_on_in_turn()
                return
            self._admit(*self.held.popleft())
            if self.crowded:
                self._look_for_crowds()
        if self.reads:
            self._continue_reads()

    def _admit(self, view: memoryview, capsule: CommandData | None) -> None:
        ctx = self.ctx
        sqe = SQE.unpack_from(view)
        if (sqe.fuse or self._first is not None) and self._fuse(sqe, capsule):
            return
        if sqe.cid in self._busy and not self._forget_event_request(sqe.cid):
            self._conflict(sqe)
            return
        try:
            spec, length = prepare(ctx, sqe)
            data = self._capsule_data(sqe, length, capsule)
        except CommandError as error:
            self._complete(sqe, ctx.refuse(sqe, error))
            return
        if spec.direction is Direction.HOST_TO_CONTROLLER and length and data is None:
            if ctx.qid and sqe.opcode == NvmOpcode.WRITE:
                self._granted = self._pattern(spec, view, sqe, length)
            self._busy.add(sqe.cid)
            self._allocate_staging(spec, sqe, length)
            return
        reserved = 0
        if length and data is None:  # it reads: into memory of the target's, unless its namespace is memory
            namespace = ctx.namespaces.get(sqe.nsid) if ctx.qid else None
            if namespace is None or namespace.memory is None:
                if not self._reserve(sqe, view, length):
                    return
                reserved = length
        if ctx.qid and sqe.opcode == NvmOpcode.READ:
            self._read = self._pattern(spec, view, sqe, length)
        elif ctx.qid and sqe.opcode == NvmOpcode.WRITE:
            self._write = self._pattern(spec, view, sqe, length)
        if data is None or (ctx.qid and self._write is not None and sqe.opcode == NvmOpcode.WRITE):
            self._run(spec, sqe, data, None, reserved)
        else:
            self._run_copied(spec, sqe, data)

    def _conflict(self, sqe: Sqe) -> None:
        """Refuse a command whose CID is in use; the one that uses it goes on. Sent with another CID it may succeed."""
        location = SQE.error_location("cid")
        error = CommandError(Status.COMMAND_ID_CONFLICT, location, dnr=False, message="the CID is in use")
        self._complete(sqe, self.ctx.refuse(sqe, error))

    def _forget_event_request(self, cid: int) -> bool:
        """Forget the waiting Asynchronous Event Request of a CID that its host uses anew; False when there is none.

        Hosts do that which forget their requests before they shut a controller down (SPDK's, at every end). The request
        holds no data, and its host waits for it no more: no completion can be taken for the other command's.
        """
        controller = self.ctx.controller
        if self.ctx.qid or controller is None or not controller.events.forget(cid):
            return False
        logger.info("%s: CID %#x of a waiting Asynchronous Event Request is used anew: forgotten", self.ctx.peer, cid)
        self._running.pop(cid, None)
        self._busy.discard(cid)
        self.ctx.aborting.discard(cid)
        self.connection.forget_command()
        return True

    def _capsule_data(self, sqe: Sqe, length: int, capsule: CommandData | None) -> memoryview | None:
        """A command's in-capsule data; raises when SGL1 and the capsule tell different things."""
        location = SQE.error_location("sgl_length")
        in_capsule = sqe.sgl_type == DATA_BLOCK_IN_CAPSULE and length > 0
        if capsule is None:
            if in_capsule:
                raise CommandError(
                    Status.DATA_SGL_LENGTH_INVALID, location, message=f"{length} bytes should be in the capsule"
                )
            return None
        first = sqe.sgl_address  # an offset in the capsule, as SGLS says
        if not in_capsule or len(capsule.data) < first + length:
            raise CommandError(
                Status.DATA_SGL_LENGTH_INVALID,
                location,
                message=f"{len(capsule.data)} bytes are in a capsule whose SGL says {length if in_capsule else 'none'}",
            )
        if not capsule.digest_ok:
            raise CommandError(
                Status.TRANSIENT_TRANSPORT_ERROR, dnr=False, message="the digest of in-capsule data is wrong"
            )
        return capsule.data[first : first + length]

    def _run_copied(self, spec: CommandSpec, sqe: Sqe, data: memoryview) -> None:
        """Run a command that may keep its data for longer than the receive buffer does."""
        self._run(spec, sqe, *self._copy_in(data))

    def _transfer_done(self, transfer: R2tTransfer) -> None:
        """All data that was asked for is there: of a Write of the fast path mostly where it belongs already."""
        cid = transfer.cid
        del self._transfers[cid]
        if isinstance(transfer.context, DeferredCommand):
            self._staged_done(transfer, transfer.buffer)
            return
        template, slba = shortened(transfer)
        if not template.admission_token.valid or not transfer.ok:
            if template.staged:
                self._staged_done(transfer, transfer.buffer)
            else:
                self._overtaken(transfer, template)
            return
        if template.staged:
            template.namespace.backend.write(slba << template.shift, transfer.buffer)
            self.pool.give(transfer.buffer)
        self._busy.discard(cid)
        counters = template.namespace.counters
        counters.writes += 1
        counters.blocks_written += template.blocks
        self.ctx.counters.commands += 1
        self.connection.send_completion(cid)

    def _staged_done(self, transfer: R2tTransfer, staging: memoryview | None) -> None:
        spec, sqe = command_of(transfer)
        if transfer.ok:
            self._resume_deferred(spec, sqe, transfer.buffer, staging)
        else:
            error = CommandError(Status.TRANSIENT_TRANSPORT_ERROR, dnr=False, message="a data digest is wrong")
            self._refuse_deferred(sqe, error, staging)

    def _overtaken(self, transfer: R2tTransfer, template: CommandTemplate) -> None:
        """What was found out about a Write straight to the namespace holds no more, or a digest of it was wrong."""
        if transfer.ok and transfer.data is None:
            transfer.buffer = memoryview(bytearray(transfer.buffer))
        elif transfer.ok and self.ctx.namespaces.get(template.nsid, template.namespace) is not template.namespace:
            # What went to the old one before may be lost with it, and is not in the data.
            error = CommandError(
                Status.NAMESPACE_NOT_READY, dnr=False, message=f"namespace {template.nsid} was replaced meanwhile"
            )
            self._refuse_deferred(command_of(transfer)[1], error, None)
            return
        self._staged_done(transfer, None)

    def _resume_deferred(self, spec: CommandSpec, sqe: Sqe, data: memoryview, lent: memoryview | None) -> None:
        """Execute a command some time after it was found legal: another may have come in between."""
        if sqe.cid in self._pairs:
            self._half_arrived(sqe.cid, data, lent)
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
        if sqe.cid in self._pairs:
            self._half_failed(sqe.cid, error, lent)
            return
        if lent is not None:
            self.pool.give(lent)
        self._complete(sqe, self.ctx.refuse(sqe, error))

    def _run(
        self, spec: CommandSpec, sqe: Sqe, data: memoryview | None, lent: memoryview | None, reserved: int = 0
    ) -> None:
        """Execute a command; ``lent`` is the pool's memory that it uses until it has ended.

        ``reserved``: bytes that were counted for what it reads, until that has been sent.
        """
        ctx = self.ctx
        connecting = ctx.controller is None
        if connecting and data is not None and self._wait_for_orphans(spec, sqe, data, lent):
            return
        OWNER.set(self.share)
        result = execute(ctx, spec, sqe, data)
        if isinstance(result, Completion):
            if lent is not None:
                self.pool.give(lent)
            if connecting and ctx.controller is not None:
                self._connected()
            self._complete(sqe, result)
            return
        self._reading += reserved
        self._busy.add(sqe.cid)
        self._running[sqe.cid] = (0 if sqe.opcode == FABRICS_OPCODE else sqe.nsid, spec)
        if len(self._running) >= RUNNING_MOST:
            self._look_for_crowds()
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
            self._running.pop(sqe.cid, None)
            if self.closed:
                if completion.release is not None:
                    completion.release()
                if sqe.cid in self._orphaned:
                    self.detached_commands.done(host)
            else:
                self.pending -= 1
                if self.crowded:
                    self._look_for_crowds()
                self._complete(sqe, completion)
                self.driver.wake()
            if reserved:
                self._read_ended(reserved)
            if begun is not None:
                begun.end()

        self.pending += 1
        self.driver.spawn(result, ended)

    def _wait_for_orphans(self, spec: CommandSpec, sqe: Sqe, data: memoryview, lent: memoryview | None) -> bool:
        """Whether an admin Connect has to wait until its host's old commands have ended; it is then resumed."""
        if sqe.opcode != FABRICS_OPCODE or sqe.fctype != FabricsType.CONNECT:
            return False
        name = bytes(data[_HOSTNQN_OFFSET : _HOSTNQN_OFFSET + _HOSTNQN_BYTES])
        if name[0] and not terminated_nqn(name):
            return False
        host = name.split(b"\0", 1)[0].decode(errors="backslashreplace") or unnamed_host(bytes(data[:16]))

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
        self._busy.add(sqe.cid)
        self.connecting = True
        return True

    def _connected(self) -> None:
        ctx = self.ctx
        self.connection.set_queue(ctx.qid, ctx.entries, flow_control=ctx.flow_control)
        if ctx.qid and ctx.subsystem is not None and ctx.controller is not None:
            self.share = ctx.controller.memory
            self.connection.set_incapsule(ctx.subsystem.config.incapsule_bytes)

    def _complete(self, sqe: Sqe, completion: Completion) -> None:
        cid = sqe.cid
        if completion.status != Status.COMMAND_ID_CONFLICT:
            self._busy.discard(cid)
            self.ctx.aborting.discard(cid)
            self.ctx.preempted.discard(cid)
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
        if completion.disconnect:
            self._end("disconnected by the host")

    # -- endings -------------------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """The controller ends this queue."""
        self._end(reason)

    def lost(self, reason: str, *, fault: bool = False) -> None:
        """The socket has gone."""
        self._end(reason, fault=fault)

    def drain(self) -> bool:
        """Begin no command any more; True when none is in progress."""
        self._draining = True
        self._drop_waiting()
        self.held.clear()
        return not self.pending and not self._transfers

    def _end(self, reason: str, *, fault: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self._drop_waiting()
        self.held.clear()
        if self.ctx.qid:  # an admin command writes nothing that could overtake; a Format may take hours
            self._leave_orphans()
        self.ctx.detach(reason, fault=fault)
        self.driver.finish(reason, fault=fault)
        self._drop_fused()
        # A queue that has ended is fed no more: nobody writes to what was granted.
        transfers, self._transfers = self._transfers, {}
        for transfer in transfers.values():
            staging = staging_of(transfer)
            if staging is not None:
                self.pool.give(staging)

    def _leave_orphans(self) -> None:
        """Give up what has not begun; the host's next Connect waits for what has, and may still change data."""
        ctx = self.ctx
        for cid, (_, spec) in self._running.items():
            ctx.aborting.add(cid)
            changes = spec.access is not Access.READ and spec.opcode != NvmOpcode.FLUSH
            if not abandon(ctx.waiting.get(cid)) and changes:
                self._orphaned.add(cid)
                self.detached_commands.add(ctx.host_nqn)

    @property
    def receiving(self) -> bool:
        """Whether data that was asked for is still to come."""
        return bool(self._transfers)
