"""Copy within a namespace, by descriptors of format 0h (NVM Command Set, Copy command)."""

from __future__ import annotations

from collections.abc import Awaitable

from nvmeof.errors import CommandError
from nvmeof.spec.enums import CommandEffects, NvmOpcode, Oncs
from nvmeof.spec.sqe import (
    COPY_FORMAT_SHIFT,
    COPY_PRINFOR_MASK,
    COPY_PRINFOR_SHIFT,
    COPY_RANGE,
    COPY_RANGE_BYTES,
    COPY_STORAGE_TAG_CHECK_READ,
    SQE,
    CopyRange,
    Sqe,
)
from nvmeof.spec.status import Status
from nvmeof.target.commands.base import Access, CommandSpec, Completion, Direction, NsidRule
from nvmeof.target.commands.nvm import active_namespace, check_directive, check_protection, through
from nvmeof.target.commands.registry import NVM, register
from nvmeof.target.context import QueueContext
from nvmeof.target.namespace import Namespace

COPY_FORMATS = 1 << 0
"""CDFS: the descriptor formats that are there."""
COPY_RANGES_MAX = 128
"""MSRC + 1: source ranges per command."""
COPY_RANGE_LIMIT_BYTES = 4 << 20
"""MSSRL: one source range."""
COPY_LIMIT_BYTES = 16 << 20
"""MCL: all of a command, so that none keeps a ramdisk's queues waiting for long."""


def _copy_bytes(ctx: QueueContext, sqe: Sqe) -> int:
    """Length rule: NR (0's-based) descriptors."""
    return ((sqe.cdw12 & 0xFF) + 1) * COPY_RANGE_BYTES


def _too_large(message: str) -> CommandError:
    return CommandError(Status.COMMAND_SIZE_LIMIT_EXCEEDED, message=message)


def check_copy(ctx: QueueContext, sqe: Sqe) -> None:
    """Format 0h, up to MSRC ranges, no protection information, to a namespace that may be written."""
    desfmt = sqe.cdw12 >> COPY_FORMAT_SHIFT & 0xF
    if desfmt:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw12", COPY_FORMAT_SHIFT),
            message=f"Copy descriptors of format {desfmt:X}h are not supported",
        )
    check_protection(sqe)
    for mask, bit in ((COPY_PRINFOR_MASK, COPY_PRINFOR_SHIFT), (COPY_STORAGE_TAG_CHECK_READ, 25)):
        if sqe.cdw12 & mask:
            raise CommandError(
                Status.INVALID_FIELD,
                SQE.error_location("cdw12", bit),
                message="protection information and storage tags are not supported (PRINFOR, STCR)",
            )
    check_directive(sqe)
    count = (sqe.cdw12 & 0xFF) + 1
    if count > COPY_RANGES_MAX:
        raise _too_large(f"{count} source ranges are more than MSRC allows ({COPY_RANGES_MAX})")
    active_namespace(ctx, sqe).check_writable()


def _source_ranges(namespace: Namespace, sqe: Sqe, data: memoryview) -> list[CopyRange]:
    """The ranges, all checked before the first is copied."""
    ranges = [
        COPY_RANGE.unpack_from(data, at)
        for at in range(0, ((sqe.cdw12 & 0xFF) + 1) * COPY_RANGE_BYTES, COPY_RANGE_BYTES)
    ]
    limit = COPY_RANGE_LIMIT_BYTES >> namespace.block_shift
    longest = max(item.blocks for item in ranges)
    if longest > limit:
        raise _too_large(f"a source range of {longest} blocks is larger than MSSRL ({limit})")
    total = sum(item.blocks for item in ranges)
    limit = COPY_LIMIT_BYTES >> namespace.block_shift
    if total > limit:
        raise _too_large(f"to copy {total} blocks is more than MCL ({limit})")
    namespace.check_range(sqe.slba, total)
    for item in ranges:
        namespace.check_range(item.slba, item.blocks)
        if item.slba < sqe.slba + total and sqe.slba < item.slba + item.blocks:
            raise CommandError(
                Status.OVERLAPPING_IO_RANGE,
                message=f"blocks {item.slba}..{item.slba + item.blocks - 1} are source and destination of one Copy",
            )
    return ranges


def copy(ctx: QueueContext, sqe: Sqe, data: memoryview | None) -> Awaitable[Completion]:
    """Copy. One range after the other; after a failure DW0 tells the first that was not copied."""
    assert data is not None
    namespace = active_namespace(ctx, sqe)
    return _copy(namespace, _source_ranges(namespace, sqe, data), sqe.slba, through(ctx, sqe))


async def _copy(namespace: Namespace, ranges: list[CopyRange], slba: int, fua: bool) -> Completion:
    for index, item in enumerate(ranges):
        try:
            pending = namespace.copy(item.slba, slba, item.blocks, fua=fua)
            if pending is not None:
                await pending
        except CommandError as error:
            error.dw0 = index
            raise
        slba += item.blocks
    namespace.counters.copies += 1
    return Completion()


register(
    NVM,
    (
        CommandSpec(
            opcode=NvmOpcode.COPY,
            access=Access.READ_WRITE,
            name="Copy",
            abortable=True,
            handler=copy,
            direction=Direction.HOST_TO_CONTROLLER,
            transfer_bytes=_copy_bytes,
            check=check_copy,
            nsid=NsidRule.ACTIVE,
            effects=CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE,
            longer_sgl_bytes=COPY_RANGES_MAX * COPY_RANGE_BYTES,
            oncs=Oncs.COPY,
            remark="descriptor format 0h",
        ),
    ),
)
