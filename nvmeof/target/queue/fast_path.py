"""The fast path of a target's queue: plain Reads and Writes of a namespace that is memory, or does many at once.

The fast path checks no command. The first command of a kind takes the general path through its table row and leaves a
template. Commands that differ from the template only in their address and identifier are served straight from the
receive buffer, as long as the template's admission token is valid. Of each kind (Read, Write with its data in the
capsule, Write with an R2T) the queue has several templates, one for each size, namespace and flags.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

from nvmeof.pdu.capsule import CAPSULE_CMD_BYTES
from nvmeof.pdu.header import CH_BYTES
from nvmeof.protocol.events import CommandBatch, CommandData, CommandDataRun, Event
from nvmeof.protocol.transfers import R2tTransfer, ReadGroup
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.sqe import SQE, SQE_BYTES, Sqe
from nvmeof.target.commands.dispatch.base import CommandSpec
from nvmeof.target.namespaces.namespace import ATOMIC_WRITE_BYTES as ATOMIC_BYTES
from nvmeof.target.queue.contract import InFlight
from nvmeof.target.queue.deferred import NO_BUFFER, CommandTemplate, columns_of
from nvmeof.target.queue.mixture import Mixture, in_order
from nvmeof.target.queue.pacing import Pacing
from nvmeof.target.queue.run_path import RunPath
from nvmeof.target.queue.staging import Staging
from nvmeof.target.storage.base import Runs
from nvmeof.wire import Buffer

# The fields that the fast path compares: opcode and flags, CID, NSID, SGL1's length and type, SLBA, CDW12. Of a write
# also SGL1's address, which is the offset of in-capsule data.
_FIELDS: Final = "HHI24xQQI12x"
_SHORT: Final = Struct("<HHI16xQQQI12x")
_STRIDES: Final = {
    CAPSULE_CMD_BYTES: Struct(f"<{CH_BYTES}x{_FIELDS}"),
    CAPSULE_CMD_BYTES + 4: Struct(f"<{CH_BYTES}x{_FIELDS}4x"),
}
COLUMNS_FROM: Final = 8 if sys.byteorder == "little" else 1 << 30
"""From so many commands on, those of a run are compared with the template by columns: all of one field at once."""
assert (CAPSULE_CMD_BYTES, CH_BYTES) == (72, 8)  # so that the fields are 9, 18 or 36 items apart
TEMPLATES_MOST: Final = 16
"""Templates of one kind, at the most; then all are learned anew."""
_FIELD_NAMES: Final = ("opcode", "cid", "nsid", "sgl_length", "cdw10", "cdw12")
assert _SHORT.size == SQE_BYTES
assert [SQE.offsets[name] for name in _FIELD_NAMES] == [0, 2, 4, 32, 40, 48]


_Key = tuple[int, int, int, int]
"""What a template's commands have in common: opcode and flags, NSID, SGL1's length and type, CDW12 and 13."""


def _usable(template: CommandTemplate | None) -> CommandTemplate | None:
    """Return the template while its admission token is valid."""
    return template if template is not None and template.admission_token.valid else None


class FastPath:
    """The part of a queue that serves runs of like commands. ``closed`` and what is no such command is the queue's."""

    __slots__ = (
        "_busy",
        "_connection",
        "_granted",
        "_grants",
        "_queue",
        "_read",
        "_reads",
        "_staging",
        "_transfers",
        "_write",
        "_writes",
        "runs",
    )

    def __init__(self, queue: InFlight, staging: Staging, pacing: Pacing) -> None:
        self._queue = queue
        self._staging = staging
        self._connection = queue.connection
        self._busy = queue.busy
        self._transfers = queue.transfers
        self.runs = RunPath(queue, staging, pacing)
        """What serves namespaces that are no memory, but do many commands at once."""
        # The template of each kind that was used last, and all of them.
        self._read: CommandTemplate | None = None
        self._reads: dict[_Key, CommandTemplate] = {}
        self._write: CommandTemplate | None = None  # with its data in the capsule
        self._writes: dict[_Key, CommandTemplate] = {}
        self._granted: CommandTemplate | None = None  # a Write with an R2T
        self._grants: dict[_Key, CommandTemplate] = {}

    def forget(self) -> None:
        """Forget the templates: the next command of each kind takes the general path."""
        self._read = self._write = self._granted = None
        for table in (self._reads, self._writes, self._grants):
            table.clear()

    def learn(self, spec: CommandSpec, view: Buffer, sqe: Sqe, length: int, *, deferred: bool) -> None:
        """Make a template of a Read or Write that `prepare` has let pass, and whose namespace is memory.

        ``deferred``: a Write whose data is still to be asked for.
        """
        template = self._template(spec, view, sqe, length)
        if sqe.opcode == NvmOpcode.READ:
            self._read, table = template, self._reads
        elif deferred:
            self._granted, table = template, self._grants
        else:
            self._write, table = template, self._writes
        if template is not None:
            if len(table) >= TEMPLATES_MOST:
                table.clear()
            table[template.word, template.nsid, template.sgl, template.cdw12] = template

    @staticmethod
    def _other(table: dict[_Key, CommandTemplate], key: _Key, slba: int) -> CommandTemplate | None:
        """Return the template for a command of a kind, if there is a valid one and its blocks exist."""
        template = table.get(key)
        if template is None:
            return None
        if not template.admission_token.valid:
            del table[key]
            return None
        return template if slba <= template.max_slba else None

    def batch(self, batch: CommandBatch) -> None:
        """Serve a run of commands without data in their capsules.

        One function, although a long one: a Read of a run costs about half a microsecond here (decision 0002), and a
        call for each command would be a good part of that.
        """
        view, stride = batch.view, batch.stride
        queue, template, granted = self._queue, _usable(self._read), _usable(self._granted)
        count = batch.count
        if template is not None and count >= COLUMNS_FROM and stride == CAPSULE_CMD_BYTES:
            words, halves = view.cast("Q"), view.cast("H")
            opcodes, namespaces, sgls, blocks = template.columns or columns_of(template)
            if (
                halves[4::36] == opcodes[:count]
                and words[5::9] == sgls[:count]
                and words[7::9] == blocks[:count]
                and view.cast("I")[3::18] == namespaces[:count]
            ):
                slbas = words[6::9].tolist()
                if max(slbas) <= template.max_slba:
                    self._send_reads(template, halves[5::36].tolist(), slbas)
                    return
        elif template is not None and count == 1:  # the host waits for each command: no loop for one
            word, cid, nsid, _, sgl, slba, cdw12 = _SHORT.unpack_from(view, CH_BYTES)
            if (
                slba <= template.max_slba
                and word == template.word
                and nsid == template.nsid
                and sgl == template.sgl
                and cdw12 == template.cdw12
            ):
                self._send_reads(template, [cid], [slba])
                return
        cids: list[int] = []
        found: list[int] = []
        mixture: Mixture | None = None  # once there are Reads that are like different templates
        for index, (word, cid, nsid, sgl, slba, cdw12) in enumerate(_STRIDES[stride].iter_unpack(view)):
            if (
                template is not None
                and slba <= template.max_slba
                and word == template.word
                and nsid == template.nsid
                and sgl == template.sgl
                and cdw12 == template.cdw12
            ):
                found.append(slba)
                cids.append(cid)
                continue
            like_granted = (
                granted is not None
                and slba <= granted.max_slba
                and word == granted.word
                and nsid == granted.nsid
                and sgl == granted.sgl
                and cdw12 == granted.cdw12
            )
            if not like_granted and (other := self._other(self._reads, (word, nsid, sgl, cdw12), slba)) is not None:
                if mixture is None:
                    mixture = Mixture()
                cids, found = mixture.change(template, cids, found, other)
                found.append(slba)
                cids.append(cid)
                template = self._read = other
                continue
            if cids:
                assert template is not None
                self._send_run(template, cids, found, mixture)
                cids, found, mixture = [], [], None
                if queue.closed:
                    return
            if not like_granted:
                other = self._other(self._grants, (word, nsid, sgl, cdw12), slba)
                if other is not None:
                    granted, like_granted = other, True
                    self._granted = other
            if like_granted and granted is not None and self._ask_for(granted, cid, slba):
                continue
            start = index * stride + CH_BYTES
            queue.command(view[start : start + SQE_BYTES], None)
            if queue.closed:
                return
            template, granted = _usable(self._read), _usable(self._granted)
        if cids:
            assert template is not None
            self._send_run(template, cids, found, mixture)

    def _send_run(self, template: CommandTemplate, cids: list[int], slbas: list[int], mixture: Mixture | None) -> None:
        """Serve the Reads of a run, which are like one template, or like several that `mixture` has."""
        if mixture is None:
            self._send_reads(template, cids, slbas)
            return
        mixture.change(template, cids, slbas, template)
        groups, queue = mixture.groups, self._queue
        if self._busy and not all(self._busy.isdisjoint(group.cids) for group in groups):
            for template, cid, slba in in_order(groups):
                if not queue.closed:
                    self._send_reads(template, [cid], [slba])
            return
        if any(group.template.runs is not None for group in groups):
            for group in groups:
                if not queue.closed:
                    self._send_reads(group.template, group.cids, group.slbas)
            return
        parts = []
        for group in groups:
            template, count = group.template, len(group.cids)
            memory, shift, length = template.memory, template.shift, template.length
            data: list[Buffer] = [memory[(at := slba << shift) : at + length] for slba in group.slbas]
            parts.append(ReadGroup(group.cids, data, length, group.places))
            counters = template.namespace.counters
            counters.reads += count
            counters.blocks_read += count * template.blocks
            queue.ctx.counters.commands += count
        self._connection.send_read_groups(parts)
        if queue.trace is not None:
            for group in groups:
                template = group.template
                queue.trace.served(template.word & 0xFF, template.nsid, group.cids, template.length)

    def _send_reads(self, template: CommandTemplate, cids: Sequence[int], slbas: Sequence[int]) -> None:
        if self._busy and not self._busy.isdisjoint(cids):
            for cid, slba in zip(cids, slbas, strict=True):
                if cid in self._busy:
                    self._queue.conflict(Sqe(opcode=template.word & 0xFF, cid=cid, nsid=template.nsid))
                else:
                    self._send_reads(template, [cid], [slba])
            return
        if template.runs is not None:
            self.runs.read(template, template.runs, cids, slbas)
            return
        memory, shift, length = template.memory, template.shift, template.length
        count = len(cids)
        data: list[Buffer]
        if count == 1:  # without the frame of a comprehension
            at = slbas[0] << shift
            data = [memory[at : at + length]]
        else:
            data = [memory[(at := slba << shift) : at + length] for slba in slbas]
        counters = template.namespace.counters
        counters.reads += count
        counters.blocks_read += count * (template.length >> template.shift)
        queue = self._queue
        queue.ctx.counters.commands += count
        self._connection.send_reads(cids, data, template.length)
        if queue.trace is not None:
            queue.trace.served(template.word & 0xFF, template.nsid, cids, template.length)

    def _template(self, spec: CommandSpec, view: Buffer, sqe: Sqe, length: int) -> CommandTemplate | None:
        """Make the template of a command that `prepare` has let pass; None when its namespace is not memory."""
        table = self._queue.ctx.namespaces
        namespace = table[sqe.nsid]
        memory, runs = namespace.memory, namespace.runs
        if memory is None and runs is None:
            return None
        word, _, nsid, _, sgl, _, cdw12 = _SHORT.unpack_from(view)
        shift = namespace.block_shift
        max_slba = namespace.size_blocks - (length >> shift)
        admission_token, parameters = table.admission_token(namespace), self._connection.parameters
        # A data digest can only be checked when all data has arrived.
        staged = memory is None or length <= ATOMIC_BYTES or (parameters is not None and parameters.data_digest)
        memory, runs = (NO_BUFFER, runs) if memory is None else (memory, None)
        return CommandTemplate(
            word, nsid, sgl, cdw12, namespace, memory, runs, admission_token, length, shift, max_slba, spec, staged,
            1 << shift, length >> shift, bytes(view),
        )  # fmt: skip

    def data_batch(self, run: CommandDataRun) -> None:
        """Serve commands with equally long data in their capsules; those that are not like the template one by one."""
        template, view, stride = _usable(self._write), run.view, run.stride
        if template is None or run.length != template.length:
            template = self._change_write(view[CH_BYTES:])
        if template is not None and run.length == template.length and not stride % 8 and sys.byteorder == "little":
            words, halves = view.cast("Q"), view.cast("H")
            step, count = stride // 8, run.count
            opcodes, namespaces, sgls, blocks = template.columns or columns_of(template)
            if (
                halves[4 :: stride // 2] == opcodes[:count]
                and words[5::step] == sgls[:count]
                and words[7::step] == blocks[:count]
                and view.cast("I")[3 :: stride // 4] == namespaces[:count]
                and not any(words[4::step].tolist())
            ):
                slbas, cids = words[6::step].tolist(), halves[5 :: stride // 2].tolist()
                if max(slbas) <= template.max_slba and (not self._busy or self._busy.isdisjoint(cids)):
                    self._write_batch(template, run, cids, slbas)
                    return
        self._one_by_one([*run.commands()])

    def _change_write(self, sqe: memoryview) -> CommandTemplate | None:
        """Return the template of a Write with its data in the capsule that is not like the one before; it is used from
        now on."""
        word, _, nsid, _, sgl, slba, cdw12 = _SHORT.unpack_from(sqe)
        template = self._other(self._writes, (word, nsid, sgl, cdw12), slba)
        if template is not None:
            self._write = template
        return template

    def _one_by_one(self, commands: list[Event]) -> None:
        position = 0
        while position < len(commands) and not self._queue.closed:
            position = self.data_run(commands, position)

    def _write_batch(self, template: CommandTemplate, run: CommandDataRun, cids: list[int], slbas: list[int]) -> None:
        if template.runs is not None:
            taken = self.runs.write(template, template.runs, cids, slbas, run.data())
            if taken < len(cids):
                for event in run.commands()[taken:]:
                    if self._queue.closed:
                        return
                    self._queue.command(event.sqe, event)
            return
        # As `Ramdisk.write`, which is what the template stands for, without a call for each.
        memory, view, shift, length, at = template.memory, run.view, template.shift, run.length, run.offset
        for slba in slbas:
            offset = slba << shift
            memory[offset : offset + length] = view[at : at + length]
            at += run.stride
        self._wrote(template, cids)

    def data_run(self, events: list[Event], position: int) -> int:
        """Serve commands with data in their capsules, from ``position`` on; return where the run ends."""
        queue, template = self._queue, _usable(self._write)
        if template is not None and template.runs is not None:
            return self._run_of_writes(template, template.runs, events, position)
        done: list[int] = []
        unpack = _SHORT.unpack_from
        for event in events[position:]:
            if not isinstance(event, CommandData):
                break
            position += 1
            if template is not None and event.digest_ok:
                word, cid, nsid, sgl_address, sgl, slba, cdw12 = unpack(event.sqe)
                like = (
                    word == template.word and nsid == template.nsid and sgl == template.sgl and cdw12 == template.cdw12
                )
                if not like and (other := self._change_write(event.sqe)) is not None:
                    if done:
                        self._wrote(template, done)
                        done = []
                    if other.runs is not None:
                        return position - 1
                    template, like = other, True
                if (
                    like
                    and slba <= template.max_slba
                    and not sgl_address
                    and cid not in self._busy
                    and len(event.data) == template.length
                ):
                    # Memory completes at once, and never fails: that is what the template stands for.
                    template.namespace.backend.write(slba << template.shift, event.data)
                    done.append(cid)
                    continue
            if template is not None and done:
                self._wrote(template, done)
                done = []
            queue.command(event.sqe, event)
            if queue.closed:
                return position
            template = _usable(self._write)
            if template is not None and template.runs is not None:  # no memory: the rest is a run, for the caller
                return position
        if template is not None and done:
            self._wrote(template, done)
        return position

    def _run_of_writes(self, template: CommandTemplate, runs: Runs, events: list[Event], position: int) -> int:
        """As `data_run`, for a backend with runs: up to the first command that is not like the template."""
        queue, unpack, busy = self._queue, _SHORT.unpack_from, self._busy
        cids: list[int] = []
        slbas: list[int] = []
        data: list[memoryview] = []
        found: list[CommandData] = []
        for event in events[position:]:
            if not isinstance(event, CommandData) or not event.digest_ok:
                break
            word, cid, nsid, sgl_address, sgl, slba, cdw12 = unpack(event.sqe)
            if not (
                slba <= template.max_slba
                and not sgl_address
                and word == template.word
                and nsid == template.nsid
                and sgl == template.sgl
                and cdw12 == template.cdw12
                and cid not in busy
                and len(event.data) == template.length
            ):
                break
            cids.append(cid)
            slbas.append(slba)
            data.append(event.data)
            found.append(event)
        taken = self.runs.write(template, runs, cids, slbas, data)
        for event in found[taken:]:
            queue.command(event.sqe, event)
            if queue.closed:
                return position + len(found)
        position += len(found)
        if not found and isinstance(event := events[position], CommandData):
            other = self._change_write(event.sqe)
            if other is not None and other is not template:
                return position  # with that template
            queue.command(event.sqe, event)
            position += 1
        return position

    def _wrote(self, template: CommandTemplate, cids: Sequence[int]) -> None:
        count = len(cids)
        counters = template.namespace.counters
        counters.writes += count
        counters.blocks_written += count * (template.length >> template.shift)
        queue = self._queue
        queue.ctx.counters.commands += count
        self._connection.send_completions(cids)
        if queue.trace is not None:
            queue.trace.served(template.word & 0xFF, template.nsid, cids, template.length)

    def _ask_for(self, template: CommandTemplate, cid: int, slba: int) -> bool:
        """Send the R2T of a Write that is like the template; return False when it has to take the general path."""
        if cid in self._busy:
            return False
        if template.staged:
            if not self._staging.request(R2tTransfer(cid, NO_BUFFER, (template, slba)), template.length):
                return False
        else:
            start = slba << template.shift
            buffer = template.memory[start : start + template.length]
            transfer = R2tTransfer(cid, buffer, (template, slba), template.block_bytes, template.admission_token)
            self._transfers[cid] = transfer
            self._connection.ask(transfer)
        self._busy.add(cid)
        if self._queue.trace is not None:
            self._queue.trace.asked(template.word & 0xFF, template.nsid, cid, template.length)
        return True

    def arrived(self, transfer: R2tTransfer) -> bool:
        """Complete a Write of the fast path; return False when its template is no longer valid, or it failed. Without
        digests the data is in the namespace already; else it is copied there in one step.
        """
        template: CommandTemplate
        slba: int
        context: Any = transfer.context
        template, slba = context  # as `shortened`, without the call
        if not template.admission_token.valid or not transfer.ok:
            return False
        if template.runs is not None:
            self.runs.arrived.append((template, slba, transfer))
            return True
        if template.staged:
            template.namespace.backend.write(slba << template.shift, transfer.buffer)
            self._queue.pool.give(transfer.buffer)
        self._busy.discard(transfer.cid)
        counters = template.namespace.counters
        counters.writes += 1
        counters.blocks_written += template.blocks
        queue = self._queue
        queue.ctx.counters.commands += 1
        self._connection.send_completion(transfer.cid)
        if queue.trace is not None:
            queue.trace.written(template.word & 0xFF, template.nsid, transfer.cid, template.length)
        return True
