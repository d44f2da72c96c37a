"""One queue of a target: what its connection tells becomes commands, and their outcomes become completions.

Every command takes the way of its table row (:mod:`nvmeof.target.commands.table`). Plain Reads and in-capsule Writes
of a namespace that is memory take a short cut: the first of a kind goes the whole way, and those that differ from it
only in their address and identifier are served straight from the receive buffer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final, Protocol

from nvmeof.errors import CommandError
from nvmeof.pdu.capsule import CAPSULE_CMD_BYTES
from nvmeof.pdu.header import CH_BYTES
from nvmeof.pdu.termination import fes_text
from nvmeof.protocol.connection import Connection
from nvmeof.protocol.events import (
    CommandBatch,
    CommandData,
    Event,
    PeerClosed,
    ProtocolFailure,
    Terminated,
    TransferDone,
)
from nvmeof.spec.connect import CONNECT_DATA
from nvmeof.spec.enums import FABRICS_OPCODE, FabricsType, NvmOpcode
from nvmeof.spec.nqn import terminated_nqn
from nvmeof.spec.sgl import DATA_BLOCK_IN_CAPSULE
from nvmeof.spec.sqe import SQE, SQE_BYTES, Sqe
from nvmeof.spec.status import Status, status_field
from nvmeof.target.commands.base import CommandSpec, Completion, Direction
from nvmeof.target.commands.table import execute, prepare
from nvmeof.target.context import QueueContext
from nvmeof.target.namespace import Namespace
from nvmeof.target.orphans import Orphans
from nvmeof.target.pool import BufferPool
from nvmeof.target.states import ControllerState
from nvmeof.wire import Buffer, layout

# What the short cut looks at: opcode and flags, CID, NSID, SGL1's length and type, SLBA, CDW12. Of a write also
# SGL1's address, which is the offset of in-capsule data.
_FIELDS: Final = "HHI24xQQI12x"
_SHORT: Final = Struct("<HHI16xQQQI12x")
_STRIDES: Final = {
    CAPSULE_CMD_BYTES: Struct(f"<{CH_BYTES}x{_FIELDS}"),
    CAPSULE_CMD_BYTES + 4: Struct(f"<{CH_BYTES}x{_FIELDS}4x"),
}
STAGING_SHARES: Final = 4
"""One queue stages at most this fraction of the pool for data that its host has yet to send: one that has stopped
sending must not keep all the others from writing."""
assert _SHORT.size == SQE_BYTES
assert [SQE.offsets[name] for name in ("opcode", "cid", "nsid", "sgl_length", "cdw10", "cdw12")] == [
    0,
    2,
    4,
    32,
    40,
    48,
]
_NO_BUFFER: Final = memoryview(b"")
_HOSTNQN_OFFSET, _HOSTNQN_BYTES = layout(CONNECT_DATA)["hostnqn"]


class Driver(Protocol):
    """What a queue needs of whoever owns its socket and the event loop."""

    def spawn(self, pending: Awaitable[Completion], done: Callable[[Completion], None]) -> None:
        """Wait for ``pending`` (to its end, whatever happens to the queue), then call ``done``."""
        ...

    def wake(self) -> None:
        """There is something to send that was not asked for by what was just received."""
        ...

    def finish(self, reason: str, *, fault: bool = False) -> None:
        """The queue has come to its end: send what is queued, then close the socket. ``fault``: somebody did wrong."""
        ...


@dataclass(slots=True)
class _Pattern:
    """A command that went the whole way, and what the short cut may change of it: CID and SLBA."""

    word: int
    nsid: int
    sgl: int
    cdw12: int
    namespace: Namespace
    memory: memoryview | None
    epoch: int
    length: int
    shift: int
    max_slba: int
    spec: CommandSpec


class _Staging:
    """Data of one command on its way from the host: where it goes, and what to do when it is there.

    ``pattern`` and ``slba`` are those of a Write that took the short cut; its SQE is taken apart only when needed.
    """

    __slots__ = ("_sqe", "buffer", "pattern", "raw", "slba", "spec")

    def __init__(
        self, buffer: memoryview, spec: CommandSpec, raw: Buffer, pattern: _Pattern | None = None, slba: int = 0
    ) -> None:
        self.buffer = buffer
        self.spec = spec
        self.raw = raw
        self.pattern = pattern
        self.slba = slba
        self._sqe: Sqe | None = None

    @property
    def sqe(self) -> Sqe:
        """The command."""
        if self._sqe is None:
            self._sqe = SQE.unpack_from(self.raw)
        return self._sqe


class TargetQueue:
    """Serves one connection. ``close`` ends it from the controller's side; the driver calls ``lost``."""

    def __init__(self, connection: Connection, pool: BufferPool, orphans: Orphans, driver: Driver) -> None:
        self.connection = connection
        self.pool = pool
        self.orphans = orphans
        self.driver = driver
        self.ctx: QueueContext
        self.closed = False
        self._busy: set[int] = set()  # CIDs of commands that did not complete at once
        self._staged: dict[int, _Staging] = {}
        self._staged_bytes = 0
        self._waiting: deque[tuple[_Staging, int, int]] = deque()  # for staging memory
        self._draining = False
        self.connecting = False
        """A Connect waits for commands that its host left behind."""
        self.pending = 0
        """Commands that are being worked on, Asynchronous Event Requests included."""
        self._read: _Pattern | None = None
        self._write: _Pattern | None = None
        self._granted: _Pattern | None = None  # a Write whose data was asked for

    # -- events --------------------------------------------------------------------------------------------------

    def handle(self, events: list[Event], now: float) -> None:
        """What the connection told, in order."""
        self.ctx.on_command(now)
        position = 0
        while position < len(events) and not self.closed:
            event = events[position]
            position += 1
            if self._draining and isinstance(event, CommandBatch | CommandData):
                continue  # not begun, and so left without an answer: the host sends it again elsewhere
            if isinstance(event, CommandBatch):
                self._batch(event)
            elif isinstance(event, CommandData):
                position = self._data_run(events, position - 1)
            elif isinstance(event, TransferDone):
                self._transfer_done(event)
            elif isinstance(event, ProtocolFailure):
                self._end(f"protocol error: {event.error}", fault=True)
            elif isinstance(event, Terminated):
                self._end(f"the host terminated the connection: {fes_text(event.fes)} (FEI {event.fei:#x})", fault=True)
            elif isinstance(event, PeerClosed):
                self._end("closed by the host")

    def _batch(self, batch: CommandBatch) -> None:
        view, stride = batch.view, batch.stride
        pattern = self._read if self._usable(self._read) else None
        granted = self._granted if self._usable(self._granted) else None
        cids: list[int] = []
        data: list[Buffer] = []
        done = 0
        for word, cid, nsid, sgl, slba, cdw12 in _STRIDES[stride].iter_unpack(view):
            if (
                pattern is not None
                and slba <= pattern.max_slba
                and word == pattern.word
                and nsid == pattern.nsid
                and sgl == pattern.sgl
                and cdw12 == pattern.cdw12
            ):
                assert pattern.memory is not None
                offset = slba << pattern.shift
                data.append(pattern.memory[offset : offset + pattern.length])
                cids.append(cid)
                continue
            if cids:
                assert pattern is not None
                self._send_reads(pattern, cids, data)
                done += len(cids)
                cids, data = [], []
            start = done * stride + CH_BYTES
            done += 1
            sqe = view[start : start + SQE_BYTES]
            if (
                granted is not None
                and slba <= granted.max_slba
                and word == granted.word
                and nsid == granted.nsid
                and sgl == granted.sgl
                and cdw12 == granted.cdw12
                and self._ask_for(granted, sqe, cid, slba)
            ):
                continue
            self._command(sqe, None)
            if self.closed:
                return
            pattern = self._read if self._usable(self._read) else None
            granted = self._granted if self._usable(self._granted) else None
        if cids:
            assert pattern is not None
            self._send_reads(pattern, cids, data)

    def _send_reads(self, pattern: _Pattern, cids: list[int], data: list[Buffer]) -> None:
        if self._busy and not self._busy.isdisjoint(cids):
            for cid, view in zip(cids, data, strict=True):
                if cid in self._busy:
                    self._conflict(Sqe(opcode=pattern.word & 0xFF, cid=cid, nsid=pattern.nsid))
                else:
                    self._send_reads(pattern, [cid], [view])
            return
        count = len(cids)
        counters = pattern.namespace.counters
        counters.reads += count
        counters.blocks_read += count * (pattern.length >> pattern.shift)
        self.ctx.counters.commands += count
        self.connection.send_reads(cids, data, pattern.length)

    def _usable(self, pattern: _Pattern | None) -> bool:
        """Whether what was found out for the pattern's command still holds."""
        if pattern is None:
            return False
        ctx = self.ctx
        return (
            ctx.state is ControllerState.READY
            and pattern.epoch == ctx.epoch
            and pattern.memory is pattern.namespace.memory
        )

    def _pattern(self, spec: CommandSpec, view: Buffer, sqe: Sqe, length: int) -> _Pattern | None:
        """The pattern of a command that `prepare` has let pass; None when its namespace is not memory."""
        namespace = self.ctx.namespaces[sqe.nsid]
        if namespace.memory is None:
            return None
        word, _, nsid, _, sgl, _, cdw12 = _SHORT.unpack_from(view)
        shift = namespace.block_shift
        max_slba = namespace.size_blocks - (length >> shift)
        memory, epoch = namespace.memory, self.ctx.epoch
        return _Pattern(word, nsid, sgl, cdw12, namespace, memory, epoch, length, shift, max_slba, spec)

    # -- commands ------------------------------------------------------------------------------------------------

    def _data_run(self, events: list[Event], position: int) -> int:
        """Commands with data in their capsules, from ``position`` on; returns where the run ends."""
        pattern = self._write if self._usable(self._write) else None
        done: list[int] = []
        unpack = _SHORT.unpack_from
        for event in events[position:]:
            if not isinstance(event, CommandData):
                break
            position += 1
            if pattern is not None and event.digest_ok:
                word, cid, nsid, sgl_address, sgl, slba, cdw12 = unpack(event.sqe)
                if (
                    slba <= pattern.max_slba
                    and not sgl_address
                    and word == pattern.word
                    and nsid == pattern.nsid
                    and sgl == pattern.sgl
                    and cdw12 == pattern.cdw12
                    and cid not in self._busy
                    and len(event.data) == pattern.length
                ):
                    # Memory completes at once, and never fails: that is what the pattern stands for.
                    pattern.namespace.backend.write(slba << pattern.shift, event.data)
                    done.append(cid)
                    continue
            if done:
                self._wrote(pattern, done)
                done = []
            self._command(event.sqe, event)
            if self.closed:
                return position
            pattern = self._write if self._usable(self._write) else None
        if done:
            self._wrote(pattern, done)
        return position

    def _wrote(self, pattern: _Pattern | None, cids: list[int]) -> None:
        assert pattern is not None
        count = len(cids)
        counters = pattern.namespace.counters
        counters.writes += count
        counters.blocks_written += count * (pattern.length >> pattern.shift)
        self.ctx.counters.commands += count
        self.connection.send_completions(cids)

    def _command(self, view: memoryview, capsule: CommandData | None) -> None:
        """One command, the whole way."""
        ctx = self.ctx
        sqe = SQE.unpack_from(view)
        if sqe.cid in self._busy:
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
            self._stage(spec, bytes(view), sqe.cid, length)
            return
        if ctx.qid and sqe.opcode == NvmOpcode.READ:
            self._read = self._pattern(spec, view, sqe, length)
        elif ctx.qid and sqe.opcode == NvmOpcode.WRITE:
            self._write = self._pattern(spec, view, sqe, length)
        if data is None or (ctx.qid and self._write is not None and sqe.opcode == NvmOpcode.WRITE):
            self._run(spec, sqe, data, None)
        else:
            self._run_copied(spec, sqe, data)

    def _conflict(self, sqe: Sqe) -> None:
        """Refuse a command whose CID is in use; the one that uses it goes on."""
        error = CommandError(Status.COMMAND_ID_CONFLICT, SQE.error_location("cid"), message="the CID is in use")
        self._complete(sqe, self.ctx.refuse(sqe, error))

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
        if not in_capsule or len(capsule.data) < length:
            raise CommandError(
                Status.DATA_SGL_LENGTH_INVALID,
                location,
                message=f"{len(capsule.data)} bytes are in a capsule whose SGL says {length if in_capsule else 'none'}",
            )
        if not capsule.digest_ok:
            raise CommandError(
                Status.TRANSIENT_TRANSPORT_ERROR, dnr=False, message="the digest of in-capsule data is wrong"
            )
        return capsule.data[:length]

    def _run_copied(self, spec: CommandSpec, sqe: Sqe, data: memoryview) -> None:
        """Run a command that may keep its data for longer than the receive buffer does."""
        buffer = self.pool.take(len(data))
        if buffer is None:
            own = memoryview(bytearray(data))
            self._run(spec, sqe, own, None)
            return
        buffer[:] = data
        self._run(spec, sqe, buffer, buffer)

    def _ask_for(self, pattern: _Pattern, view: memoryview, cid: int, slba: int) -> bool:
        """Ask for the data of a Write that is like the pattern's; False when it has to go the whole way."""
        if cid in self._busy or self._waiting:
            return False
        if not self._request(_Staging(_NO_BUFFER, pattern.spec, bytes(view), pattern, slba), cid, pattern.length):
            return False
        self._busy.add(cid)
        return True

    def _stage(self, spec: CommandSpec, raw: bytes, cid: int, length: int) -> None:
        """Ask the host for a command's data, or wait for memory to put it into."""
        staging = _Staging(_NO_BUFFER, spec, raw)
        if self._waiting:
            self._waiting.append((staging, cid, length))
        elif not self._request(staging, cid, length):
            self._waiting.append((staging, cid, length))
            self.pool.when_free(self._retry)

    def _request(self, staging: _Staging, cid: int, length: int) -> bool:
        """Take memory for a command's data and ask the host for it; False when there is none now."""
        if self._staged and self._staged_bytes + length > self.pool.limit_bytes // STAGING_SHARES:
            return False
        buffer = self.pool.take(length)
        if buffer is None:
            return False
        staging.buffer = buffer
        self._staged[cid] = staging
        self._staged_bytes += length
        self.connection.request_data(cid, buffer, staging)
        return True

    def _retry(self) -> None:
        """Some staging memory has become free."""
        asked = False
        while self._waiting and self._request(*self._waiting[0]):
            self._waiting.popleft()
            asked = True
        if self._waiting:
            self.pool.when_free(self._retry)
        if asked:
            self.driver.wake()

    def _transfer_done(self, event: TransferDone) -> None:
        staging = event.context
        assert isinstance(staging, _Staging)
        cid, buffer, pattern = event.cid, staging.buffer, staging.pattern
        del self._staged[cid]
        self._staged_bytes -= len(buffer)
        if pattern is not None and event.ok and self._usable(pattern):
            pattern.namespace.backend.write(staging.slba << pattern.shift, buffer)
            self.pool.give(buffer)
            self._busy.discard(cid)
            self._wrote(pattern, [cid])
            return
        if event.ok:
            self._run_late(staging.spec, staging.sqe, staging.buffer, staging.buffer)
            return
        error = CommandError(Status.TRANSIENT_TRANSPORT_ERROR, dnr=False, message="a data digest is wrong")
        self._refuse_late(staging.sqe, error, staging.buffer)

    def _run_late(self, spec: CommandSpec, sqe: Sqe, data: memoryview, lent: memoryview | None) -> None:
        """Execute a command some time after it was found legal: another may have come in between."""
        if self.ctx.state in spec.states:
            self._run(spec, sqe, data, lent)
            return
        error = CommandError(
            Status.COMMAND_SEQUENCE_ERROR,
            SQE.error_location("opcode"),
            message=f"{spec.name} while the controller is {self.ctx.state.value}",
        )
        self._refuse_late(sqe, error, lent)

    def _refuse_late(self, sqe: Sqe, error: CommandError, lent: memoryview | None) -> None:
        if lent is not None:
            self.pool.give(lent)
        self._complete(sqe, self.ctx.refuse(sqe, error))

    def _run(self, spec: CommandSpec, sqe: Sqe, data: memoryview | None, lent: memoryview | None) -> None:
        """Execute a command; ``lent`` is the pool's memory that it uses until it has ended."""
        ctx = self.ctx
        connecting = ctx.controller is None
        if connecting and data is not None and self._wait_for_orphans(spec, sqe, data, lent):
            return
        result = execute(ctx, spec, sqe, data)
        if isinstance(result, Completion):
            if lent is not None:
                self.pool.give(lent)
            if connecting and ctx.controller is not None:
                self._connected()
            self._complete(sqe, result)
            return
        self._busy.add(sqe.cid)
        host = ctx.host_nqn

        def ended(completion: Completion) -> None:
            if lent is not None:
                self.pool.give(lent)
            if self.closed:
                if completion.release is not None:
                    completion.release()
                self.orphans.done(host)
                return
            self.pending -= 1
            self._complete(sqe, completion)
            self.driver.wake()

        self.pending += 1
        self.driver.spawn(result, ended)

    def _wait_for_orphans(self, spec: CommandSpec, sqe: Sqe, data: memoryview, lent: memoryview | None) -> bool:
        """Whether an admin Connect has to wait until its host's old commands have ended; it is then resumed."""
        if sqe.opcode != FABRICS_OPCODE or sqe.fctype != FabricsType.CONNECT:
            return False
        name = bytes(data[_HOSTNQN_OFFSET : _HOSTNQN_OFFSET + _HOSTNQN_BYTES])
        if not terminated_nqn(name):
            return False

        def resume() -> None:
            self.connecting = False
            if self.closed:
                if lent is not None:
                    self.pool.give(lent)
                return
            self._run_late(spec, sqe, data, lent)
            self.driver.wake()

        if not self.orphans.wait(name.split(b"\0", 1)[0].decode(errors="backslashreplace"), resume):
            return False
        self._busy.add(sqe.cid)
        self.connecting = True
        return True

    def _connected(self) -> None:
        ctx = self.ctx
        self.connection.set_queue(ctx.qid, ctx.entries, flow_control=ctx.flow_control)
        if ctx.qid and ctx.subsystem is not None:
            self.connection.set_incapsule(ctx.subsystem.config.incapsule_bytes)

    def _complete(self, sqe: Sqe, completion: Completion) -> None:
        cid = sqe.cid
        if completion.status != Status.COMMAND_ID_CONFLICT:
            self._busy.discard(cid)
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
        self.pool.forget(self._retry)
        self._waiting.clear()
        return not self.pending and not self._staged

    def _end(self, reason: str, *, fault: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self.pool.forget(self._retry)
        self._waiting.clear()
        host = self.ctx.host_nqn
        for _ in range(self.pending):
            self.orphans.add(host)
        self.ctx.detach(reason)
        self.driver.finish(reason, fault=fault)
        # A queue that has ended is fed no more: nobody writes to what was granted.
        staged, self._staged = self._staged, {}
        self._staged_bytes = 0
        for staging in staged.values():
            self.pool.give(staging.buffer)

    @property
    def receiving(self) -> bool:
        """Whether data that was asked for is still to come."""
        return bool(self._staged)
