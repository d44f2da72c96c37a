"""Get LBA Status, the LBA Status Information log and its interval (NVM Command Set)."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, replace

from nvmeof.errors import CommandError
from nvmeof.runtime import pause, settled
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
from nvmeof.target.commands.dispatch.base import CommandRow, Completion, Decoded, Direction, NsidRule, decoded
from nvmeof.target.commands.io.nvm import active_namespace
from nvmeof.target.commands.rows.features import Scope, Value, constant, remembered
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.lba_status_events import POLL_INTERVAL, LbaAlert
from nvmeof.target.namespaces.namespace import Namespace, status_of_os_error
from nvmeof.target.subsystem.self_test import find_unreadable

SCAN_BYTES = 4 << 20
_MNDW = SQE.error_location("cdw12")
_ACTION = SQE.error_location("cdw13", 24)


@dataclass(frozen=True, slots=True)
class LbaStatusFields:
    """The own fields of Get LBA Status: the action (ATYPE), the range length (RL; 0: to the end), and how many bytes
    may be answered (MNDW, converted).
    """

    action: int
    blocks: int
    length_bytes: int

    @classmethod
    def parse(cls, sqe: Sqe) -> LbaStatusFields:
        """Read CDW12 and CDW13 (NVM Command Set, Get LBA Status command)."""
        return cls(sqe.cdw13 >> 24, sqe.cdw13 & 0xFFFF, (sqe.cdw12 + 1) * 4)

    @property
    def room(self) -> int:
        """How many descriptors may be answered."""
        return max(self.length_bytes - LBA_STATUS_HEADER_BYTES, 0) // LBA_STATUS_DESCRIPTOR_BYTES


Request = Decoded[LbaStatusFields]


def status_bytes(ctx: AdminContext, request: Request) -> int:
    """Return the bytes of MNDW dwords."""
    return request.fields.length_bytes


def _range(namespace: Namespace, request: Request) -> tuple[int, int]:
    """Return the first block of the range, and the one behind its last."""
    sqe, length = request.sqe, request.fields.blocks
    namespace.check_range(sqe.slba, max(length, 1))
    return sqe.slba, sqe.slba + length if length else namespace.size_blocks


def check_lba_status(ctx: AdminContext, request: Request) -> None:
    """Check the range, ATYPE, and a length within MDTS (NVM Command Set, Get LBA Status command)."""
    namespace, fields = active_namespace(ctx, request.sqe), request.fields
    if fields.action not in tuple(LbaStatusAction):
        raise CommandError(Status.INVALID_FIELD, _ACTION, message=f"there is no action type {fields.action:02X}h")
    limit = ctx.limits.transfer_bytes
    if fields.length_bytes > limit:
        raise CommandError(
            Status.INVALID_FIELD, _MNDW, message=f"{fields.length_bytes} bytes are more than MDTS ({limit})"
        )
    _range(namespace, request)


def get_lba_status(ctx: AdminContext, request: Request, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Return the blocks of a range that may be unreadable, after a scan those found by reading all of it; or the
    blocks that are allocated."""
    namespace = active_namespace(ctx, request.sqe)
    first, end = _range(namespace, request)
    if request.fields.action == LbaStatusAction.TRACKED:
        return _answer(namespace, request.fields, first, end)
    if request.fields.action == LbaStatusAction.ALLOCATED:
        return _allocated(namespace, request.fields, first, end)
    return _scan(ctx, namespace, request.fields, first, end)


async def _scan(ctx: AdminContext, namespace: Namespace, fields: LbaStatusFields, first: int, end: int) -> Completion:
    blocks = max(SCAN_BYTES >> namespace.block_shift, 1)
    position = first
    while position < end:
        if ctx.detached:
            raise CommandError(Status.ABORTED_SQ_DELETION, dnr=False, message="aborted: the queue was deleted")
        # The namespace may have been formatted or shrunk since: its present size counts.
        namespace.check_range(position, 1)
        piece = min(position + blocks, end, namespace.size_blocks)
        found = await find_unreadable(namespace, position, piece)
        if found is None:
            position = piece
        else:
            block, _ = found
            namespace.unreadable_blocks.fail(block, block + 1)
            position = block + 1
            if len(list(namespace.unreadable_blocks.ranges(first, position))) > fields.room:
                break
        await pause(ctx.runtime, ctx.host_nqn)
    return _answer(namespace, fields, first, end)


async def _allocated(namespace: Namespace, fields: LbaStatusFields, first: int, end: int) -> Completion:
    """Answer with the ranges whose blocks may hold data; a block of which a part does is one."""
    shift = namespace.block_shift
    entries: list[tuple[int, int, int]] = []
    before = first
    try:
        for start, stop in await settled(namespace.backend.allocated(first << shift, end - first << shift)):
            start, stop = max(start >> shift, before), -(-stop >> shift)
            entries += [(part, count, 0) for part, count in split_range(start, stop)]
            before = stop
            if len(entries) > fields.room:
                break
    except OSError as error:
        status, dnr = status_of_os_error(error, writing=False)
        raise CommandError(
            status, dnr=dnr, message=f"where namespace {namespace.nsid} has data is not known: {error}"
        ) from error
    return _completion(fields, entries)


def _completion(fields: LbaStatusFields, entries: list[tuple[int, int, int]]) -> Completion:
    """Answer with as many entries as there is room for."""
    room, length = fields.room, fields.length_bytes
    cmpc = LbaStatusCompletion.MORE if len(entries) > room else LbaStatusCompletion.COMPLETE
    return Completion(data=build_lba_status(entries[:room], cmpc)[:length].ljust(length, b"\0"))


def _answer(namespace: Namespace, fields: LbaStatusFields, first: int, end: int) -> Completion:
    room = fields.room
    entries: list[tuple[int, int, int]] = []
    for start, stop, by_host in namespace.unreadable_blocks.ranges(first, end):
        status = LbaStatus.MAY_FAIL | (LbaStatus.WRITTEN_UNCORRECTABLE if by_host else 0)
        entries += [(part, count, status) for part, count in split_range(start, stop)]
        if len(entries) > room:
            break
    return _completion(fields, entries)


# The log page, and the interval of its events


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
    # LSIPI is read-only: Set Features returns it
    return Value(sqe.cdw11 & 0xFFFF | POLL_INTERVAL << 16)


_INTERVAL = remembered(
    FeatureId.LBA_STATUS_REPORT_INTERVAL,
    "LBA Status Information Report Interval",
    constant(POLL_INTERVAL | POLL_INTERVAL << 16),
    _interval,
    scope=Scope.CONTROLLER,
)


def _apply_interval(controller: Controller, sqe: Sqe, data: memoryview | None) -> int:
    """Set the interval; Set Features returns the value in effect."""
    assert _INTERVAL.apply is not None
    _INTERVAL.apply(controller, sqe, data)
    return _INTERVAL.read(controller, sqe).dw0


ROWS = Rows(
    admin=(
        CommandRow(
            opcode=AdminOpcode.GET_LBA_STATUS,
            name="Get LBA Status",
            handler=get_lba_status,
            decode=decoded(LbaStatusFields.parse),
            direction=Direction.CONTROLLER_TO_HOST,
            transfer_bytes=status_bytes,
            check=check_lba_status,
            nsid=NsidRule.ACTIVE,
            oacs=Oacs.GET_LBA_STATUS,
            remark="blocks marked as uncorrectable, that failed to be read or fail in a scan; allocated blocks",
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
