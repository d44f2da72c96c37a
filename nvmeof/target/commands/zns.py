"""The Zoned Namespace Command Set: Zone Append, Zone Management Send and Receive, and what Identify tells of it.

The commands of the NVM Command Set are part of it; their rules of zones are in :mod:`nvmeof.target.namespaces.zoned`.
"""

from __future__ import annotations

from collections.abc import Awaitable

from nvmeof.errors import CommandError
from nvmeof.spec.enums import CommandEffects, Csi, LogPageId, NvmOpcode
from nvmeof.spec.identify import mdts_field
from nvmeof.spec.log_pages import GetLogPage
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.spec.zns import (
    APPEND_PIREMAP,
    EXTENSION_UNIT_BYTES,
    IDENTIFY_CONTROLLER_ZNS,
    IDENTIFY_NAMESPACE_ZNS,
    NO_LIMIT,
    OZCS_READ_ACROSS_ZONES,
    REPORTED_STATES,
    ZONE_REPORT_HEADER_BYTES,
    ZoneReceive,
    ZoneReceiveAction,
    ZoneSend,
    ZoneSendAction,
    build_changed_zones,
)
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import Access, CommandRow, Completion, Direction, NsidRule, not_active
from nvmeof.target.commands.io.nvm import (
    active_namespace,
    block_bytes,
    check_directive,
    check_extension,
    completed,
    through,
)
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.commands.rows.structures import CommandSetStructures
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.lba_formats import LBA_FORMATS, formats_of
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import ACTIONS, SELECTED
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.wire import build

_SLBA = SQE.error_location("cdw10")
_ACTION = SQE.error_location("cdw13")
_SELECT_ALL = SQE.error_location("cdw13", 8)
_DATA = SQE.error_location("sgl_address")
_OPTIONS = SQE.error_location("cdw13", 9)


def zoned(ctx: CommandContext, sqe: Sqe) -> ZonedNamespace:
    """The namespace of a command of this command set. Raises `CommandError` when it has gone."""
    namespace = active_namespace(ctx, sqe)
    if not isinstance(namespace, ZonedNamespace):  # another one has taken its place meanwhile
        raise CommandError(Status.INVALID_NAMESPACE, SQE.error_location("nsid"))
    return namespace


def _invalid(location: int, message: str) -> CommandError:
    return CommandError(Status.INVALID_FIELD, location, message=message)


# Zone Append


def check_append(ctx: CommandContext, sqe: Sqe) -> None:
    """Up to ZASL, to a zone that is named by its first block, without protection information or a directive."""
    namespace = zoned(ctx, sqe)
    check_extension(sqe)
    if sqe.cdw12 & APPEND_PIREMAP:
        raise _invalid(SQE.error_location("cdw12", 25), "there is no protection information to remap (PIREMAP)")
    check_directive(sqe)
    assert ctx.subsystem is not None
    limit, length = ctx.subsystem.config.transfer_limit_bytes, block_bytes(ctx, sqe)
    if length > limit:
        raise _invalid(SQE.error_location("cdw12"), f"to append {length} bytes is more than ZASL ({limit})")
    namespace.check_range(sqe.slba, 1)
    namespace.zones.at(sqe.slba)
    namespace.check_writable()


def append(ctx: CommandContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Zone Append; DW0 and DW1 tell where the data went."""
    assert data is not None
    slba, pending = zoned(ctx, sqe).append(sqe.slba, data, fua=through(ctx, sqe))
    completion = Completion(dw0=slba & 0xFFFFFFFF, dw1=slba >> 32)
    return completion if pending is None else _appended(pending, completion)


async def _appended(pending: Awaitable[None], completion: Completion) -> Completion:
    await pending
    return completion


# Zone Management Send


def _send_bytes(ctx: CommandContext, sqe: Sqe) -> int:
    """Length rule: only a descriptor extension is data."""
    if ZoneSend.decode(sqe.cdw13).action != ZoneSendAction.SET_EXTENSION:
        return 0
    return zoned(ctx, sqe).zones.layout.extension_bytes


def check_send(ctx: CommandContext, sqe: Sqe) -> None:
    """An action that there is, for the first block of a zone or for all, in a namespace that may be written."""
    namespace, send = zoned(ctx, sqe), ZoneSend.decode(sqe.cdw13)
    action = ACTIONS.get(send.action)
    if action is None:
        raise _invalid(_ACTION, f"zone send action {send.action:02X}h is not supported")
    if send.options:
        raise _invalid(_OPTIONS, "zone random write areas are not supported (ZSASO)")
    if send.action == ZoneSendAction.SET_EXTENSION and not namespace.zones.layout.extension_bytes:
        raise _invalid(_ACTION, f"zones of namespace {namespace.nsid} have no descriptor extensions")
    if send.select_all and action not in SELECTED:
        raise _invalid(_SELECT_ALL, f"{action.value} is for one zone, not for all")
    if not send.select_all:
        namespace.check_range(sqe.slba, 1)
        namespace.zones.at(sqe.slba)
    namespace.check_writable()


def send(ctx: CommandContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Zone Management Send."""
    namespace, command = zoned(ctx, sqe), ZoneSend.decode(sqe.cdw13)
    if command.action == ZoneSendAction.SET_EXTENSION:
        assert data is not None
        return completed(namespace.set_extension(sqe.slba, bytes(data)))
    return completed(namespace.manage(ACTIONS[command.action], sqe.slba, select_all=command.select_all))


# Zone Management Receive


def _receive_bytes(ctx: CommandContext, sqe: Sqe) -> int:
    """Length rule: NUMD dwords, 0's-based."""
    return (sqe.cdw12 + 1) * 4


def check_receive(ctx: CommandContext, sqe: Sqe) -> None:
    """A report that there is, within MDTS, long enough for its header."""
    namespace, receive = zoned(ctx, sqe), ZoneReceive.decode(sqe.cdw13)
    if receive.action not in list(ZoneReceiveAction):
        raise _invalid(_ACTION, f"zone receive action {receive.action:02X}h is not supported")
    if receive.action == ZoneReceiveAction.EXTENDED_REPORT and not namespace.zones.layout.extension_bytes:
        raise _invalid(_ACTION, f"zones of namespace {namespace.nsid} have no descriptor extensions")
    if receive.which not in REPORTED_STATES:
        raise _invalid(_SELECT_ALL, f"there is no reporting option {receive.which:02X}h")
    assert ctx.subsystem is not None
    limit, length = ctx.subsystem.config.transfer_limit_bytes, _receive_bytes(ctx, sqe)
    if not ZONE_REPORT_HEADER_BYTES <= length <= limit:
        raise _invalid(
            SQE.error_location("cdw12"), f"a report has {ZONE_REPORT_HEADER_BYTES} to {limit} bytes, not {length}"
        )
    namespace.check_range(sqe.slba, 1)


def receive(ctx: CommandContext, sqe: Sqe, data: memoryview | None) -> Completion:
    """Zone Management Receive: a report, from the zone of the given block on."""
    command = ZoneReceive.decode(sqe.cdw13)
    report = zoned(ctx, sqe).zones.report(
        sqe.slba,
        command.which,
        _receive_bytes(ctx, sqe),
        partial=command.partial,
        extended=command.action == ZoneReceiveAction.EXTENDED_REPORT,
    )
    return Completion(data=report)


# Identify


def _namespace_structure(namespace: Namespace | None) -> bytes:
    # With none, those that a host creates.
    geometry = namespace.geometry if isinstance(namespace, ZonedNamespace) else ZoneGeometry()
    block_size = LBA_FORMATS[0] if namespace is None else namespace.block_bytes
    return build(
        IDENTIFY_NAMESPACE_ZNS,
        ozcs=OZCS_READ_ACROSS_ZONES if geometry.read_across else 0,
        mar=geometry.max_active - 1 if geometry.max_active else NO_LIMIT,
        mor=geometry.max_open - 1 if geometry.max_open else NO_LIMIT,
        lbafe=[
            {"zsze": geometry.zone_bytes // size, "zdes": geometry.extension_bytes // EXTENSION_UNIT_BYTES}
            for size in formats_of(block_size)
        ],
    )


def _controller_structure(controller: Controller) -> bytes:
    return build(IDENTIFY_CONTROLLER_ZNS, zasl=mdts_field(controller.subsystem.config.max_transfer_bytes or None))


# The log of changed zones


def _changed_zones(ctx: CommandContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    if nsid not in ctx.namespaces:
        raise not_active(ctx, nsid)
    if not isinstance(ctx.namespaces[nsid], ZonedNamespace):
        raise CommandError(
            Status.INVALID_NAMESPACE, SQE.error_location("nsid"), message=f"namespace {nsid} has no zones"
        )
    zones = controller.changed_zones.get(nsid, set())
    if not command.retain:
        # Those of one namespace only: `acknowledge` would not know which.
        controller.changed_zones.pop(nsid, None)
    return build_changed_zones(zones)


ROWS = Rows(
    io={
        Csi.ZONED: (
            CommandRow(
                opcode=NvmOpcode.ZONE_MANAGEMENT_SEND,
                access=Access.WRITE,
                name="Zone Management Send",
                lba_in_cdw10=True,
                handler=send,
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=_send_bytes,
                check=check_send,
                nsid=NsidRule.ACTIVE,
                effects=CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE,
                remark="close, finish, open, reset, offline, set zone descriptor extension",
            ),
            CommandRow(
                opcode=NvmOpcode.ZONE_MANAGEMENT_RECEIVE,
                access=Access.READ,
                name="Zone Management Receive",
                lba_in_cdw10=True,
                handler=receive,
                direction=Direction.CONTROLLER_TO_HOST,
                transfer_bytes=_receive_bytes,
                check=check_receive,
                nsid=NsidRule.ACTIVE,
                remark="report and extended report",
            ),
            CommandRow(
                opcode=NvmOpcode.ZONE_APPEND,
                access=Access.WRITE,
                name="Zone Append",
                lba_in_cdw10=True,
                handler=append,
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=block_bytes,
                check=check_append,
                nsid=NsidRule.ACTIVE,
                effects=CommandEffects.SUPPORTED | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE,
            ),
        )
    },
    command_sets=(CommandSetStructures(Csi.ZONED, _namespace_structure, _controller_structure),),
    log_pages=(
        LogPageSpec(LogPageId.CHANGED_ZONES, "Changed Zone List", _changed_zones, per_namespace=True, remark="CSI 02h"),
    ),
)
