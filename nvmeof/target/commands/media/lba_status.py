"""Get LBA Status, the LBA Status Information log and its interval (NVM Command Set)."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace

from nvmeof.errors import CommandError
from nvmeof.runtime import pause
from nvmeof.spec.enums import AdminOpcode, FeatureId, LogPageId, Oacs
from nvmeof.spec.log_pages import GetLogPage
from nvmeof.spec.media import (
    LBA_STATUS_DESCRIPTOR_BYTES,
    LBA_STATUS_HEADER_BYTES,
    LbaStatus,
    LbaStatusAction,
    LbaStatusCompletion,
    build_lba_status,
    build_lba_status_log,
    split_range,
)
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.base import CommandRow, Completion, Direction, NsidRule
from nvmeof.target.commands.io.nvm import active_namespace
from nvmeof.target.commands.rows.features import Scope, Value, constant, remembered
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.lba_status_events import POLL_INTERVAL, LbaAlert
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.subsystem.self_test import find_unreadable

SCAN_BYTES = 4 << 20
_MNDW = SQE.error_location("cdw12")
_ACTION = SQE.error_location("cdw13", 24)


def status_bytes(ctx: AdminContext, sqe: Sqe) -> int:
    """Length rule: MNDW dwords."""
    return (sqe.cdw12 + 1) * 4


def _range(namespace: Namespace, sqe: Sqe) -> tuple[int, int]:
    """The first block, and the one behind the last."""
    length = sqe.cdw13 & 0xFFFF
    namespace.check_range(sqe.slba, max(length, 1))
    return sqe.slba, sqe.slba + length if length else namespace.size_blocks


def check_lba_status(ctx: AdminContext, sqe: Sqe) -> None:
    """A range within the namespace, an action that there is, no more data than MDTS."""
    namespace = active_namespace(ctx, sqe)
    if sqe.cdw13 >> 24 not in (LbaStatusAction.SCAN, LbaStatusAction.TRACKED):
        raise CommandError(Status.INVALID_FIELD, _ACTION, message=f"there is no action type {sqe.cdw13 >> 24:02X}h")
    limit = ctx.limits.transfer_bytes
    if status_bytes(ctx, sqe) > limit:
        raise CommandError(
            Status.INVALID_FIELD, _MNDW, message=f"{status_bytes(ctx, sqe)} bytes are more than MDTS ({limit})"
        )
    _range(namespace, sqe)


def get_lba_status(ctx: AdminContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Which blocks of a range may not be readable; with a scan, all of it is read to find out."""
    namespace = active_namespace(ctx, sqe)
    first, end = _range(namespace, sqe)
    if sqe.cdw13 >> 24 == LbaStatusAction.TRACKED:
        return _answer(namespace, sqe, first, end)
    return _scan(ctx, namespace, sqe, first, end)


async def _scan(ctx: AdminContext, namespace: Namespace, sqe: Sqe, first: int, end: int) -> Completion:
    blocks = max(SCAN_BYTES >> namespace.block_shift, 1)
    position = first
    while position < end:
        if ctx.detached:
            raise CommandError(Status.ABORTED_SQ_DELETION, dnr=False, message="aborted: the queue was deleted")
        # Formatted or shorter than before: what is there now decides.
        namespace.check_range(position, 1)
        piece = min(position + blocks, end, namespace.size_blocks)
        found = await find_unreadable(namespace, position, piece)
        if found is None:
            position = piece
        else:
            block, _ = found
            namespace.unreadable_blocks.fail(block, block + 1)
            position = block + 1
            if len(list(namespace.unreadable_blocks.ranges(first, position))) > _room(sqe):
                break
        await pause(ctx.runtime, ctx.host_nqn)
    return _answer(namespace, sqe, first, end)


def _room(sqe: Sqe) -> int:
    return max((sqe.cdw12 + 1) * 4 - LBA_STATUS_HEADER_BYTES, 0) // LBA_STATUS_DESCRIPTOR_BYTES


def _answer(namespace: Namespace, sqe: Sqe, first: int, end: int) -> Completion:
    room = _room(sqe)
    entries: list[tuple[int, int, int]] = []
    for start, stop, by_host in namespace.unreadable_blocks.ranges(first, end):
        status = LbaStatus.MAY_FAIL | (LbaStatus.WRITTEN_UNCORRECTABLE if by_host else 0)
        entries += [(part, count, status) for part, count in split_range(start, stop)]
        if len(entries) > room:
            break
    more = len(entries) > room
    cmpc = LbaStatusCompletion.MORE if more else LbaStatusCompletion.COMPLETE
    length = (sqe.cdw12 + 1) * 4
    return Completion(data=build_lba_status(entries[:room], cmpc)[:length].ljust(length, b"\0"))


# The log page, and how often a host is told of it


def _log(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    namespaces = []
    generation = 0
    for namespace in ctx.namespaces.values():
        generation += namespace.unreadable_blocks.generation
        ranges = [
            part
            for start, end, _ in namespace.unreadable_blocks.ranges(0, namespace.size_blocks)
            for part in split_range(start, end)
        ]
        if ranges:
            namespaces.append((namespace.nsid, ranges))
    return build_lba_status_log(namespaces, generation)


def _interval(controller: Controller, sqe: Sqe, data: bytes | None) -> Value:
    # LSIPI is not the host's to change: it is told as it is.
    return Value(sqe.cdw11 & 0xFFFF | POLL_INTERVAL << 16)


_INTERVAL = remembered(
    FeatureId.LBA_STATUS_REPORT_INTERVAL,
    "LBA Status Information Report Interval",
    constant(POLL_INTERVAL | POLL_INTERVAL << 16),
    _interval,
    scope=Scope.CONTROLLER,
)


def _apply_interval(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    """Set Features tells the value that has come of it."""
    assert _INTERVAL.apply is not None
    _INTERVAL.apply(controller, sqe, data)
    return _INTERVAL.read(controller, sqe).dw0


ROWS = Rows(
    admin=(
        CommandRow(
            opcode=AdminOpcode.GET_LBA_STATUS,
            name="Get LBA Status",
            handler=get_lba_status,
            direction=Direction.CONTROLLER_TO_HOST,
            transfer_bytes=status_bytes,
            check=check_lba_status,
            nsid=NsidRule.ACTIVE,
            oacs=Oacs.GET_LBA_STATUS,
            remark="blocks marked by Write Uncorrectable, and those that failed to be read or fail in a scan",
        ),
    ),
    log_pages=(
        LogPageSpec(
            LogPageId.LBA_STATUS,
            "LBA Status Information",
            _log,
            acknowledge=lambda controller: controller.parts[LbaAlert].acknowledged(controller.runtime.now()),
        ),
    ),
    features=(replace(_INTERVAL, apply=_apply_interval),),
)
