"""The short cuts of a target's queue: plain Reads and Writes of a namespace that is memory.

None of them checks a command. The first of a kind goes the whole way through its table row and leaves a pattern; those
that differ from it only in their address and identifier are served straight from the receive buffer, as long as what
was found out for the first still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final, cast

from nvmeof.pdu.capsule import CAPSULE_CMD_BYTES
from nvmeof.pdu.header import CH_BYTES
from nvmeof.protocol.connection import TargetConnection
from nvmeof.protocol.events import CommandBatch, CommandData, Event
from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.sqe import SQE, SQE_BYTES, Sqe
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import CommandSpec
from nvmeof.target.core.admission import AdmissionToken
from nvmeof.target.namespaces.namespace import ATOMIC_WRITE_BYTES as ATOMIC_BYTES
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.wire import Buffer

# What the short cut looks at: opcode and flags, CID, NSID, SGL1's length and type, SLBA, CDW12. Of a write also
# SGL1's address, which is the offset of in-capsule data.
_FIELDS: Final = "HHI24xQQI12x"
_SHORT: Final = Struct("<HHI16xQQQI12x")
_STRIDES: Final = {
    CAPSULE_CMD_BYTES: Struct(f"<{CH_BYTES}x{_FIELDS}"),
    CAPSULE_CMD_BYTES + 4: Struct(f"<{CH_BYTES}x{_FIELDS}4x"),
}
NO_BUFFER: Final = memoryview(b"")
_FIELD_NAMES: Final = ("opcode", "cid", "nsid", "sgl_length", "cdw10", "cdw12")
assert _SHORT.size == SQE_BYTES
assert [SQE.offsets[name] for name in _FIELD_NAMES] == [0, 2, 4, 32, 40, 48]


@dataclass(slots=True)
class CommandTemplate:
    """A command that went the whole way, and what the short cut may change of it: CID and SLBA."""

    word: int
    nsid: int
    sgl: int
    cdw12: int
    namespace: Namespace
    memory: memoryview
    admission_token: AdmissionToken
    length: int
    shift: int
    max_slba: int
    spec: CommandSpec
    staged: bool  # its data is collected before any of it goes to the memory
    block_bytes: int
    blocks: int
    raw: bytes  # its SQE

    def sqe(self, cid: int, slba: int) -> Sqe:
        """Return the command with another CID and SLBA."""
        return replace(SQE.unpack_from(self.raw), cid=cid, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32)


def command_of(transfer: R2tTransfer) -> tuple[CommandSpec, Sqe]:
    """Return the row and the command that a transfer is for."""
    context = transfer.context
    if isinstance(context, DeferredCommand):
        return context.spec, context.sqe
    template, slba = shortened(transfer)
    return template.spec, template.sqe(transfer.cid, slba)


def shortened(transfer: R2tTransfer) -> tuple[CommandTemplate, int]:
    """Return template and SLBA of a Write that took the fast path."""
    template, slba = cast("tuple[CommandTemplate, int]", transfer.context)
    return template, slba


def nsid_of(transfer: R2tTransfer) -> int:
    """Return the NSID of the command that a transfer is for."""
    context = transfer.context
    return context.sqe.nsid if isinstance(context, DeferredCommand) else shortened(transfer)[0].nsid


def staging_of(transfer: R2tTransfer) -> memoryview | None:
    """Return the pool's memory that the data is staged in; None when it goes straight to the namespace."""
    if isinstance(transfer.context, DeferredCommand) or shortened(transfer)[0].staged:
        return transfer.buffer
    return None


def _usable(pattern: CommandTemplate | None) -> CommandTemplate | None:
    """The pattern, if what was found out for its command still holds."""
    return pattern if pattern is not None and pattern.admission_token.valid else None


@dataclass(slots=True, eq=False)
class DeferredCommand:
    """Context of the transfer of a command that went the whole way: what is executed when its data is there."""

    spec: CommandSpec
    sqe: Sqe


class FastPath:
    """The part of :class:`~nvmeof.target.queue.queue.TargetQueue` that serves runs of like commands."""

    ctx: CommandContext

    def __init__(self, connection: TargetConnection) -> None:
        self.connection = connection
        self.closed = False
        self._busy: set[int] = set()  # CIDs of commands that did not complete at once
        self._transfers: dict[int, R2tTransfer] = {}  # by CID: data that was asked for
        self._read: CommandTemplate | None = None
        self._write: CommandTemplate | None = None  # with its data in the capsule
        self._granted: CommandTemplate | None = None  # a Write whose data was asked for

    def _command(self, view: memoryview, capsule: CommandData | None) -> None:
        """One command, the whole way."""
        raise AssertionError("the queue does that")

    def _conflict(self, sqe: Sqe) -> None:
        """Refuse a command whose CID is in use."""
        raise AssertionError("the queue does that")

    def _request(self, transfer: R2tTransfer, length: int) -> bool:
        """Stage a command's data and ask the host for it; False when there is no memory for it now."""
        raise AssertionError("the queue does that")

    def _batch(self, batch: CommandBatch) -> None:
        view, stride = batch.view, batch.stride
        pattern, granted = _usable(self._read), _usable(self._granted)
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
                and self._ask_for(granted, cid, slba)
            ):
                continue
            self._command(sqe, None)
            if self.closed:
                return
            pattern, granted = _usable(self._read), _usable(self._granted)
        if cids:
            assert pattern is not None
            self._send_reads(pattern, cids, data)

    def _send_reads(self, pattern: CommandTemplate, cids: list[int], data: list[Buffer]) -> None:
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

    def _pattern(self, spec: CommandSpec, view: Buffer, sqe: Sqe, length: int) -> CommandTemplate | None:
        """The pattern of a command that `prepare` has let pass; None when its namespace is not memory."""
        namespace, controller = self.ctx.namespaces[sqe.nsid], self.ctx.controller
        memory = namespace.memory
        if memory is None or controller is None:
            return None
        word, _, nsid, _, sgl, _, cdw12 = _SHORT.unpack_from(view)
        shift = namespace.block_shift
        max_slba = namespace.size_blocks - (length >> shift)
        admission_token, parameters = controller.admission_token(namespace), self.connection.parameters
        # A digest is known to be right only when all is there.
        staged = length <= ATOMIC_BYTES or (parameters is not None and parameters.data_digest)
        return CommandTemplate(
            word, nsid, sgl, cdw12, namespace, memory, admission_token, length, shift, max_slba, spec, staged,
            1 << shift, length >> shift, bytes(view),
        )  # fmt: skip

    def _data_run(self, events: list[Event], position: int) -> int:
        """Commands with data in their capsules, from ``position`` on; returns where the run ends."""
        pattern = _usable(self._write)
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
            if pattern is not None and done:
                self._wrote(pattern, done)
                done = []
            self._command(event.sqe, event)
            if self.closed:
                return position
            pattern = _usable(self._write)
        if pattern is not None and done:
            self._wrote(pattern, done)
        return position

    def _wrote(self, pattern: CommandTemplate, cids: Sequence[int]) -> None:
        count = len(cids)
        counters = pattern.namespace.counters
        counters.writes += count
        counters.blocks_written += count * (pattern.length >> pattern.shift)
        self.ctx.counters.commands += count
        self.connection.send_completions(cids)

    def _ask_for(self, pattern: CommandTemplate, cid: int, slba: int) -> bool:
        """Ask for the data of a Write that is like the pattern's; False when it has to go the whole way."""
        if cid in self._busy:
            return False
        if pattern.staged:
            if not self._request(R2tTransfer(cid, NO_BUFFER, (pattern, slba)), pattern.length):
                return False
        else:
            start = slba << pattern.shift
            buffer = pattern.memory[start : start + pattern.length]
            transfer = R2tTransfer(cid, buffer, (pattern, slba), pattern.block_bytes, pattern.admission_token)
            self._transfers[cid] = transfer
            self.connection.ask(transfer)
        self._busy.add(cid)
        return True
