"""I/O commands of the NVM Command Set: Read, Write, Flush, Write Zeroes, Dataset Management.

This is the complete path of every one of them; a queue may serve plain Reads of `Namespace.memory` by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from nvmeof.errors import CommandError
from nvmeof.runtime import pause, settled
from nvmeof.spec.enums import NSID_ALL, CommandEffects, Csi, NvmOpcode, Oncs
from nvmeof.spec.sqe import (
    CDW12_DEALLOCATE,
    CDW12_EXTENSION_TYPE_MASK,
    CDW12_EXTENSION_TYPE_SHIFT,
    CDW12_FUA,
    CDW12_NAMESPACE_ZEROES,
    DSM_DEALLOCATE,
    DSM_MAX_RANGES,
    DSM_RANGE,
    DSM_RANGE_BYTES,
    SQE,
    Sqe,
)
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext, IoContext
from nvmeof.target.commands.dispatch.base import (
    Access,
    CommandRow,
    Completion,
    Decoded,
    Direction,
    IoRows,
    NsidRule,
    decoded,
    not_active,
    processed_during_sanitize,
)
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Group
from nvmeof.target.storage.base import Lease

_DTYPE_MASK = 0xF << 20
_ZEROES_DTYPE_MASK = 0x7 << 20  # bit 23 is NSZ
_ALL_BLOCKS_CLEARED = 1
_MEMORY_PIECE_BYTES = 8 << 20
"""How much memory is given back in one go: the event loop does it."""
T = TypeVar("T")


def active_namespace(ctx: CommandContext, sqe: Sqe) -> Namespace:
    """Return the namespace of a command that `prepare` has let pass. Raises `CommandError` when it was deleted
    since."""
    try:
        return ctx.namespaces[sqe.nsid]
    except KeyError:  # it went while the command's data was on its way
        raise not_active(ctx, sqe.nsid) from None


def completed(result: Awaitable[None] | None, dw0: int = 0) -> Completion | Awaitable[Completion]:
    """Complete with success, at once or when the backend is done."""
    return Completion(dw0=dw0) if result is None else _later(result, dw0)


async def _later(pending: Awaitable[None], dw0: int) -> Completion:
    await pending
    return Completion(dw0=dw0)


def block_bytes(ctx: IoContext, sqe: Sqe) -> int:
    """Return the bytes of NLB blocks, for Read and Write."""
    return sqe.transfer_blocks << active_namespace(ctx, sqe).block_shift


def check_extension(sqe: Sqe) -> None:
    """Refuse command extensions (CETYPE; NVM Command Set, Read command). PRINFO and STC are of no effect in a namespace
    without protection information."""
    if sqe.cdw12 & CDW12_EXTENSION_TYPE_MASK:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw12", CDW12_EXTENSION_TYPE_SHIFT),
            message="command extensions are not supported (CETYPE)",
        )


def check_directive(sqe: Sqe, mask: int = _DTYPE_MASK) -> None:
    """Refuse directives (DTYPE; NVMe Base, Directives)."""
    if sqe.cdw12 & mask:
        raise CommandError(
            Status.INVALID_FIELD, SQE.error_location("cdw12", 20), message="directives are not supported (DTYPE)"
        )


def check_transfer(ctx: IoContext, sqe: Sqe) -> None:
    """Check that a Read, Write or Compare is within MDTS and the namespace (NVM Command Set, Read, Write and Compare
    commands). LR and DSM are hints."""
    namespace = active_namespace(ctx, sqe)
    check_extension(sqe)
    length = sqe.transfer_blocks << namespace.block_shift
    limit = ctx.limits.transfer_bytes
    if length > limit:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw12"),
            message=f"a transfer of {length} bytes is larger than MDTS ({limit} bytes)",
        )
    namespace.check_range(sqe.slba, sqe.transfer_blocks)


def check_write(ctx: IoContext, sqe: Sqe) -> None:
    """Check a Write as a Read, and that the namespace may be written and no directive is used (NVM Command Set, Write
    command)."""
    check_transfer(ctx, sqe)
    check_directive(sqe)
    active_namespace(ctx, sqe).check_writable()


def read(ctx: IoContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Read."""
    namespace = active_namespace(ctx, sqe)
    result: Lease | Awaitable[Lease]
    if sqe.cdw12 & CDW12_FUA:
        result = committed(sqe, namespace, lambda: namespace.read(sqe.slba, sqe.transfer_blocks))
    else:
        result = namespace.read(sqe.slba, sqe.transfer_blocks)
    return _leased(result) if isinstance(result, Lease) else _read_later(result)


def committed(sqe: Sqe, namespace: Namespace, operation: Callable[[], T | Awaitable[T]]) -> T | Awaitable[T]:
    """Read, compare or verify. With Force Unit Access what is only in a volatile cache is committed before."""
    if sqe.cdw12 & CDW12_FUA and namespace.backend.capabilities.volatile_cache:
        return _commit(namespace, operation)
    return operation()


async def _commit(namespace: Namespace, operation: Callable[[], T | Awaitable[T]]) -> T:
    await settled(namespace.flush())
    return await settled(operation())


def _leased(lease: Lease) -> Completion:
    return Completion(data=lease.view, release=lease.release, stable=lease.stable)


async def _read_later(pending: Awaitable[Lease]) -> Completion:
    return _leased(await pending)


def through(ctx: IoContext, sqe: Sqe) -> bool:
    """Return whether a write must reach the media before it completes: FUA, or the host switched the write cache
    off."""
    return bool(sqe.cdw12 & CDW12_FUA) or not ctx.view.write_cache


def write(ctx: IoContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Write."""
    assert data is not None
    namespace, fua = active_namespace(ctx, sqe), through(ctx, sqe)
    pending = namespace.write(sqe.slba, data, fua=fua)
    return completed(telling(ctx, namespace, pending) if fua else pending)


def telling(ctx: IoContext, namespace: Namespace, pending: Awaitable[None] | None) -> Awaitable[None] | None:
    """Flush, or change blocks with FUA: it fails also when what the host wrote before could not be brought to the
    media."""
    if pending is not None:
        return _tell_later(ctx, namespace, pending)
    error = namespace.tell_lost(ctx.hostid)
    if error is not None:
        raise error
    return None


async def _tell_later(ctx: IoContext, namespace: Namespace, pending: Awaitable[None]) -> None:
    try:
        await pending
    finally:
        error = namespace.tell_lost(ctx.hostid)  # if it fails itself, the host knows
    if error is not None:
        raise error


def check_write_zeroes(ctx: IoContext, sqe: Sqe) -> None:
    """Check the range and NSZ (NVM Command Set, Write Zeroes command). It moves no data: MDTS does not apply. NSZ is
    for a namespace that can be deallocated to zeroes."""
    namespace = active_namespace(ctx, sqe)
    check_extension(sqe)
    check_directive(sqe, _ZEROES_DTYPE_MASK)
    if sqe.cdw12 & CDW12_NAMESPACE_ZEROES:
        capabilities = namespace.backend.capabilities
        if not sqe.cdw12 & CDW12_DEALLOCATE:
            raise CommandError(
                Status.INVALID_FIELD, SQE.error_location("cdw12", 25), message="NSZ without DEAC of Write Zeroes"
            )
        if namespace.csi != Csi.NVM or not (capabilities.can_deallocate and capabilities.deallocated_reads_zero):
            raise CommandError(
                Status.INVALID_FIELD,
                SQE.error_location("cdw12", 23),
                message=f"namespace {namespace.nsid} cannot be zeroed by deallocation (NSZ)",
            )
    else:
        namespace.check_range(sqe.slba, sqe.transfer_blocks)
    namespace.check_writable()


def write_zeroes(ctx: IoContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Write Zeroes; with DEAC the space is given back, with NSZ all of it. DW0 bit 0 then says so (LBACZ)."""
    deallocate = bool(sqe.cdw12 & CDW12_DEALLOCATE)
    namespace = active_namespace(ctx, sqe)
    if sqe.cdw12 & CDW12_NAMESPACE_ZEROES:
        first, blocks, deallocate, dw0 = 0, namespace.size_blocks, True, _ALL_BLOCKS_CLEARED
    else:
        first, blocks, dw0 = sqe.slba, sqe.transfer_blocks, 0
    fua = through(ctx, sqe)
    zero = partial(namespace.write_zeroes, deallocate=deallocate, fua=fua)
    pending: Awaitable[None] | None
    if _is_long(namespace, blocks):
        pending = _in_pieces(ctx, sqe, namespace, zero, [(first, blocks)])
    else:
        pending = zero(first, blocks)
    return completed(telling(ctx, namespace, pending) if fua else pending, dw0)


def _is_long(namespace: Namespace, blocks: int) -> bool:
    """Return whether an operation on so many blocks would block the event loop for too long."""
    return namespace.backend.memory is not None and blocks << namespace.block_shift > _MEMORY_PIECE_BYTES


async def _in_pieces(
    ctx: IoContext,
    sqe: Sqe,
    namespace: Namespace,
    operation: Callable[[int, int], Awaitable[None] | None],
    ranges: Iterable[tuple[int, int]],
) -> None:
    """Execute the operation range by range, long ranges in pieces, and yield to the event loop in between."""
    step = _MEMORY_PIECE_BYTES >> namespace.block_shift
    done = 0
    for first, blocks in ranges:
        end = first + blocks
        while first < end:
            following = min(end, (first // step + 1) * step)
            if done + following - first > step:
                await pause(ctx.runtime, ctx.host_nqn)
                ctx.check_not_aborted(sqe.cid)
                done = 0
            await settled(operation(first, following - first))
            done += following - first
            first = following


def flush(ctx: IoContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Flush one namespace, or all with FFFFFFFFh."""
    if sqe.nsid != NSID_ALL:
        return completed(_flush_one(ctx, active_namespace(ctx, sqe)))
    return run_all(partial(_flush_one, ctx, namespace) for namespace in ctx.namespaces.values())


def _flush_one(ctx: IoContext, namespace: Namespace) -> Awaitable[None] | None:
    try:
        pending = namespace.flush()
    except CommandError:
        namespace.tell_lost(ctx.hostid)  # its completion ends with the error
        raise
    return telling(ctx, namespace, pending)


def run_all(operations: Iterable[Callable[[], Awaitable[None] | None]]) -> Completion | Awaitable[Completion]:
    """Do all of them, also when one fails; the (last) failure is the command's."""
    pending: list[Awaitable[None]] = []
    failure: CommandError | None = None
    for operation in operations:
        try:
            result = operation()
        except CommandError as error:
            failure = error
        else:
            if result is not None:
                pending.append(result)
    if pending:
        return _finish_all(pending, failure)
    if failure is not None:
        raise failure
    return Completion()


async def _finish_all(pending: list[Awaitable[None]], failure: CommandError | None) -> Completion:
    left = deque(pending)
    try:
        while left:
            try:
                await left.popleft()
            except CommandError as error:
                failure = error
    finally:  # given up at the target's end: what was not waited for must not be complained of
        for each in left:
            if isinstance(each, Coroutine):
                each.close()
    if failure is not None:
        raise failure
    return Completion()


@dataclass(frozen=True, slots=True)
class DatasetManagement:
    """The own dwords of Dataset Management: how many ranges (NR, converted), and AD. The other attributes are hints."""

    ranges: int
    deallocate: bool

    @classmethod
    def parse(cls, sqe: Sqe) -> DatasetManagement:
        """Read CDW10 and CDW11 (NVM Command Set, Dataset Management command)."""
        return cls((sqe.cdw10 & 0xFF) + 1, bool(sqe.cdw11 & DSM_DEALLOCATE))


def _dsm_bytes(ctx: IoContext, request: Decoded[DatasetManagement]) -> int:
    """Return the bytes of the ranges, 16 each: the length rule of Dataset Management."""
    return request.fields.ranges * DSM_RANGE_BYTES


def check_dataset_management(ctx: IoContext, request: Decoded[DatasetManagement]) -> None:
    """Refuse to deallocate in a read-only namespace (NVM Command Set, Dataset Management command)."""
    if request.fields.deallocate:
        active_namespace(ctx, request.sqe).check_writable()


def dataset_management(
    ctx: IoContext, request: Decoded[DatasetManagement], data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Deallocate up to 256 ranges; all are checked before the first is touched."""
    assert data is not None
    sqe = request.sqe
    namespace = active_namespace(ctx, sqe)
    ranges = [DSM_RANGE.unpack_from(data, number * DSM_RANGE_BYTES) for number in range(request.fields.ranges)]
    for item in ranges:
        if item.slba + item.length_blocks > namespace.size_blocks:
            raise CommandError(
                Status.LBA_OUT_OF_RANGE,
                message=f"a range to deallocate ends at block {item.slba + item.length_blocks}, "
                f"namespace {namespace.nsid} has {namespace.size_blocks}",
            )
    if not request.fields.deallocate:
        return Completion()
    if _is_long(namespace, sum(item.length_blocks for item in ranges)):
        spans = [(item.slba, item.length_blocks) for item in ranges]
        return completed(_in_pieces(ctx, sqe, namespace, namespace.deallocate, spans))
    return run_all(partial(namespace.deallocate, item.slba, item.length_blocks) for item in ranges)


ROWS: Final = IoRows(
    {
        Csi.NVM: (
            CommandRow(
                opcode=NvmOpcode.FLUSH,
                name="Flush",
                handler=flush,
                nsid=NsidRule.ACTIVE_OR_ALL,
                abortable=True,
                reservation=Group.WRITE,
                during_sanitize=processed_during_sanitize,
            ),
            CommandRow(
                opcode=NvmOpcode.WRITE,
                access=Access.WRITE,
                name="Write",
                lba_in_cdw10=True,
                abortable=True,
                handler=write,
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=block_bytes,
                check=check_write,
                nsid=NsidRule.ACTIVE,
                effects=CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE,
            ),
            CommandRow(
                opcode=NvmOpcode.READ,
                access=Access.READ,
                name="Read",
                lba_in_cdw10=True,
                abortable=True,
                handler=read,
                direction=Direction.CONTROLLER_TO_HOST,
                transfer_bytes=block_bytes,
                check=check_transfer,
                nsid=NsidRule.ACTIVE,
            ),
            CommandRow(
                opcode=NvmOpcode.WRITE_ZEROES,
                access=Access.WRITE,
                name="Write Zeroes",
                lba_in_cdw10=True,
                abortable=True,
                handler=write_zeroes,
                check=check_write_zeroes,
                nsid=NsidRule.ACTIVE,
                effects=CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE,
                oncs=Oncs.WRITE_ZEROES | Oncs.NAMESPACE_ZEROES,
                remark="DEAC and NSZ",
            ),
            CommandRow(
                opcode=NvmOpcode.DATASET_MANAGEMENT,
                access=Access.WRITE,
                name="Dataset Management",
                handler=dataset_management,
                decode=decoded(DatasetManagement.parse),
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=_dsm_bytes,
                check=check_dataset_management,
                nsid=NsidRule.ACTIVE,
                effects=CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE,
                longer_sgl_bytes=DSM_MAX_RANGES * DSM_RANGE_BYTES,
                oncs=Oncs.DATASET_MANAGEMENT,
            ),
        )
    }
)
