"""Copy, within a namespace and across namespaces, by descriptors of formats 0h and 2h (NVM Command Set, Copy command).

The write portion of a Copy is one write as far as atomicity goes (NVMCSA): what fits into the atomic write unit is
gathered first, and written in one piece. All of it happens here, without the network: every Copy is a fast one.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.runtime import pause, settled
from nvmeof.spec.enums import NSID_ALL, CommandEffects, Csi, NvmOpcode, Oncs
from nvmeof.spec.sqe import COPY_FORMAT_SHIFT, COPY_RANGE, COPY_RANGE_BYTES, SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.admission import admit
from nvmeof.target.commands.dispatch.base import (
    Access,
    CommandRow,
    Completion,
    Decoded,
    Direction,
    IoRows,
    NsidRule,
    decoded,
)
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.io.nvm import active_namespace, check_directive, check_extension, telling, through
from nvmeof.target.namespaces.namespace import ATOMIC_WRITE_BYTES, Namespace

FORMAT_ACROSS = 2
"""Descriptor format 2h: each range names its namespace."""
COPY_FORMATS = 1 << 0 | 1 << FORMAT_ACROSS
"""CDFS: the descriptor formats that are there. Formats 1h and 3h are for protection information of 16 bytes."""
COPY_FORMATS_TO_ENABLE = 1 << FORMAT_ACROSS
"""CDFE: those that a host has to enable."""
COPY_RANGES_MAX = 128
"""MSRC + 1: source ranges per command."""
COPY_RANGE_LIMIT_BYTES = 4 << 20
"""MSSRL: one source range."""
COPY_LIMIT_BYTES = 16 << 20
"""MCL: all of a command, so that none keeps a ramdisk's queues waiting for long."""
_PIECE_BYTES = 256 << 10  # at a time in memory, and from one namespace to another


@dataclass(frozen=True, slots=True)
class Source:
    """One source range."""

    namespace: Namespace
    slba: int
    blocks: int


@dataclass(frozen=True, slots=True)
class CopyFields:
    """The own fields of Copy: the descriptors' format (CDFMT), and how many there are (NR, converted)."""

    form: int
    ranges: int

    @classmethod
    def parse(cls, sqe: Sqe) -> CopyFields:
        """Read CDW12 (NVM Command Set, Copy command)."""
        return cls(sqe.cdw12 >> COPY_FORMAT_SHIFT & 0xF, (sqe.cdw12 & 0xFF) + 1)


Request = Decoded[CopyFields]


def _copy_bytes(ctx: IoContext, request: Request) -> int:
    """Return the bytes of the descriptors: the length rule of Copy."""
    return request.fields.ranges * COPY_RANGE_BYTES


def _too_large(message: str) -> CommandError:
    return CommandError(Status.COMMAND_SIZE_LIMIT_EXCEEDED, message=message)


def check_copy(ctx: IoContext, request: Request) -> None:
    """Check that the descriptor format is supported and enabled, that there are at most MSRC ranges, and that the
    namespace may be written (NVM Command Set, Copy command).

    PRINFOR, PRINFOW, STCR and STCW are of no effect without protection information.
    """
    sqe, form, count = request.sqe, request.fields.form, request.fields.ranges
    enabled = 1 | ctx.view.copy_formats
    if not COPY_FORMATS & enabled & 1 << form:
        supported = COPY_FORMATS & 1 << form
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw12", COPY_FORMAT_SHIFT),
            message=f"Copy descriptors of format {form:X}h are not {'enabled' if supported else 'supported'}",
        )
    check_directive(sqe)
    check_extension(sqe)
    if count > COPY_RANGES_MAX:
        raise _too_large(f"{count} source ranges are more than MSRC allows ({COPY_RANGES_MAX})")
    active_namespace(ctx, sqe).check_writable()


def _source_namespace(ctx: IoContext, sqe: Sqe, nsid: int, destination: Namespace) -> Namespace:
    """Return the namespace of a source range, after checks of this host's access and of the format of the
    destination."""
    if nsid == sqe.nsid:
        return destination
    if nsid in (0, NSID_ALL) or nsid > ctx.limits.max_namespaces:
        raise CommandError(Status.INVALID_NAMESPACE, message=f"to copy from namespace {nsid:#x}, which cannot exist")
    source = ctx.namespaces.get(nsid)
    if source is None:
        raise CommandError(Status.INVALID_FIELD, message=f"to copy from namespace {nsid}, which is not active")
    # Who may not read there must not do so through a Copy.
    read = ctx.tables[CommandTables].nvm[NvmOpcode.READ]
    admit(ctx, read, replace(sqe, opcode=NvmOpcode.READ, nsid=nsid))
    if source.block_bytes != destination.block_bytes:
        raise CommandError(
            Status.INCOMPATIBLE_NAMESPACE,
            message=f"to copy blocks of {source.block_bytes} bytes to blocks of {destination.block_bytes}",
        )
    return source


def _sources(ctx: IoContext, request: Request, data: memoryview) -> list[Source]:
    """Return the source ranges, all checked before the first is copied."""
    sqe, across = request.sqe, request.fields.form == FORMAT_ACROSS
    destination = active_namespace(ctx, sqe)
    sources = []
    for number in range(request.fields.ranges):
        item = COPY_RANGE.unpack_from(data, number * COPY_RANGE_BYTES)
        if item.extension_type & 0xF:
            raise CommandError(Status.INVALID_FIELD, message="a source range with a command extension (CETYPE)")
        namespace = _source_namespace(ctx, sqe, item.snsid, destination) if across else destination
        sources.append(Source(namespace, item.slba, item.blocks))
    shift = destination.block_shift
    longest, total = max(item.blocks for item in sources), sum(item.blocks for item in sources)
    if longest > COPY_RANGE_LIMIT_BYTES >> shift:
        raise _too_large(f"a source range of {longest} blocks is larger than MSSRL")
    if total > COPY_LIMIT_BYTES >> shift:
        raise _too_large(f"to copy {total} blocks is more than MCL ({COPY_LIMIT_BYTES >> shift})")
    destination.check_range(sqe.slba, total)
    for source in sources:
        first, end = source.slba, source.slba + source.blocks
        source.namespace.check_range(first, source.blocks)
        # Formats that know of one namespace only leave it to the host what it gets then.
        if across and source.namespace is destination and first < sqe.slba + total and sqe.slba < end:
            raise CommandError(
                Status.OVERLAPPING_IO_RANGE,
                message=f"blocks {first}..{end - 1} are source and destination of one Copy",
            )
    return sources


def copy(ctx: IoContext, request: Request, data: memoryview | None) -> Awaitable[Completion]:
    """Execute Copy. After a failure DW0 is the first range that was not copied."""
    assert data is not None
    sqe = request.sqe
    return _copy_in_turn(ctx, sqe, active_namespace(ctx, sqe), _sources(ctx, request, data))


async def _copy_in_turn(ctx: IoContext, sqe: Sqe, destination: Namespace, sources: list[Source]) -> Completion:
    """Copy in turn: each copy may need a buffer, so that only few of one association are in progress at a time."""
    async with ctx.view.copies.turn(ctx.runtime):
        ctx.check_not_aborted(sqe.cid)
        copied = _copy(ctx, sqe, destination, sources)
        await settled(telling(ctx, destination, copied) if through(ctx, sqe) else copied)
        return Completion()


async def _copy(ctx: IoContext, sqe: Sqe, destination: Namespace, sources: list[Source]) -> None:
    fua = through(ctx, sqe)
    total = sum(item.blocks for item in sources)
    if total << destination.block_shift <= ATOMIC_WRITE_BYTES:
        await _copy_at_once(destination, sources, sqe.slba, total, fua)
    else:
        slba, pace = sqe.slba, _Pace(ctx, sqe, destination)
        for index, item in enumerate(sources):
            try:
                await _copy_range(pace, destination, item, slba, fua)
            except CommandError as error:
                error.dw0 = index
                raise
            slba += item.blocks
    destination.counters.copies += 1


async def _copy_at_once(destination: Namespace, sources: list[Source], slba: int, blocks: int, fua: bool) -> None:
    """Read all, then write all in one step."""
    shift = destination.block_shift
    buffer, at = memoryview(bytearray(blocks << shift)), 0
    for item in sources:
        end = at + (item.blocks << shift)
        await settled(item.namespace.read_into(item.slba, buffer[at:end]))
        at = end
    await _write(destination, slba, buffer, fua)


async def _copy_range(pace: _Pace, destination: Namespace, source: Source, slba: int, fua: bool) -> None:
    step = _PIECE_BYTES >> destination.block_shift
    if source.namespace is destination:
        if destination.backend.memory is None:
            step = source.blocks  # its threads do it
        starts = range(0, source.blocks, step)
        # Where a range is copied a little further up, its end goes first, as memmove has it.
        for done in starts if slba < source.slba else reversed(starts):
            blocks = min(step, source.blocks - done)
            await pace.piece(blocks)
            await settled(destination.copy(source.slba + done, slba + done, blocks, fua=fua))
        return
    buffer = memoryview(bytearray(min(_PIECE_BYTES, source.blocks << destination.block_shift)))
    for done in range(0, source.blocks, step):
        part = buffer[: source.blocks - done << destination.block_shift]
        await pace.piece(len(part) >> destination.block_shift)
        await settled(source.namespace.read_into(source.slba + done, part))
        await _write(destination, slba + done, part, fua)


class _Pace:
    """Yields to the event loop between the pieces that it copies itself."""

    def __init__(self, ctx: IoContext, sqe: Sqe, destination: Namespace) -> None:
        self._ctx = ctx
        self._cid = sqe.cid
        self._at_once = _PIECE_BYTES >> destination.block_shift if destination.backend.memory is not None else None
        self._blocks = 0

    async def piece(self, blocks: int) -> None:
        """Note that `blocks` more are about to be copied, and yield if due. Raises `CommandError` when the command was
        aborted."""
        self._ctx.check_not_aborted(self._cid)
        self._blocks += blocks
        if self._at_once is not None and self._blocks > self._at_once:
            await pause(self._ctx.runtime, self._ctx.host_nqn)
            self._ctx.check_not_aborted(self._cid)
            self._blocks = blocks


async def _write(destination: Namespace, slba: int, data: memoryview, fua: bool) -> None:
    written = destination.write(slba, data, fua=fua)
    # Count as a copy, not as a write.
    counters, blocks = destination.counters, len(data) >> destination.block_shift
    counters.writes -= 1
    counters.blocks_written -= blocks
    counters.blocks_copied += blocks
    await settled(written)


ROWS: Final = IoRows(
    {
        Csi.NVM: (
            CommandRow(
                opcode=NvmOpcode.COPY,
                access=Access.READ_WRITE,
                name="Copy",
                lba_in_cdw10=True,
                abortable=True,
                handler=copy,
                decode=decoded(CopyFields.parse),
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=_copy_bytes,
                check=check_copy,
                nsid=NsidRule.ACTIVE,
                effects=CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE,
                longer_sgl_bytes=COPY_RANGES_MAX * COPY_RANGE_BYTES,
                oncs=Oncs.COPY | Oncs.COPY_SINGLE_ATOMICITY | Oncs.ALL_FAST_COPY,
                remark="descriptor formats 0h and, where the host enables it, 2h",
            ),
        )
    }
)
