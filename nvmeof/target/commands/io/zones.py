"""I/O commands of the Zoned Namespace Command Set: Zone Append, Zone Management Send and Receive.

The commands of the NVM Command Set are part of it; their rules of zones are in :mod:`nvmeof.target.namespaces.zoned`.
Their Identify data and log page are in :mod:`nvmeof.target.commands.zns`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.enums import CommandEffects, Csi, NvmOpcode
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.spec.zns import (
    APPEND_PIREMAP,
    REPORTED_STATES,
    ZONE_REPORT_HEADER_BYTES,
    ZoneReceive,
    ZoneReceiveAction,
    ZoneSend,
    ZoneSendAction,
)
from nvmeof.target.commands.context import IoContext
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
from nvmeof.target.commands.io.nvm import (
    active_namespace,
    block_bytes,
    check_directive,
    check_extension,
    completed,
    telling,
    through,
)
from nvmeof.target.namespaces.zone_states import ACTIONS, SELECTED
from nvmeof.target.namespaces.zoned import ZonedNamespace

_SLBA = SQE.error_location("cdw10")
_ACTION = SQE.error_location("cdw13")
_SELECT_ALL = SQE.error_location("cdw13", 8)
_DATA = SQE.error_location("sgl_address")
_OPTIONS = SQE.error_location("cdw13", 9)


def zoned(ctx: IoContext, sqe: Sqe) -> ZonedNamespace:
    """Return the namespace of a command of this command set. Raises `CommandError` when it was deleted since."""
    namespace = active_namespace(ctx, sqe)
    if not isinstance(namespace, ZonedNamespace):  # replaced by another one since
        raise CommandError(Status.INVALID_NAMESPACE, SQE.error_location("nsid"))
    return namespace


def _invalid(location: int, message: str) -> CommandError:
    return CommandError(Status.INVALID_FIELD, location, message=message)


# Zone Append


def check_append(ctx: IoContext, sqe: Sqe) -> None:
    """Check that data is within ZASL and ZSLBA is a zone's first block, without protection information or a directive
    (ZNS, Zone Append command)."""
    namespace = zoned(ctx, sqe)
    check_extension(sqe)
    if sqe.cdw12 & APPEND_PIREMAP:
        raise _invalid(SQE.error_location("cdw12", 25), "there is no protection information to remap (PIREMAP)")
    check_directive(sqe)
    limit, length = ctx.limits.transfer_bytes, block_bytes(ctx, sqe)
    if length > limit:
        raise _invalid(SQE.error_location("cdw12"), f"to append {length} bytes is more than ZASL ({limit})")
    namespace.check_range(sqe.slba, 1)
    namespace.zones.at(sqe.slba)
    namespace.check_writable()


def append(ctx: IoContext, sqe: Sqe, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Execute Zone Append; DW0 and DW1 are the LBA of the data."""
    assert data is not None
    namespace, fua = zoned(ctx, sqe), through(ctx, sqe)
    slba, pending = namespace.append(sqe.slba, data, fua=fua)
    if fua:
        pending = telling(ctx, namespace, pending)
    completion = Completion(dw0=slba & 0xFFFFFFFF, dw1=slba >> 32)
    return completion if pending is None else _appended(pending, completion)


async def _appended(pending: Awaitable[None], completion: Completion) -> Completion:
    await pending
    return completion


# Zone Management Send


SendRequest = Decoded[ZoneSend]


def _send_bytes(ctx: IoContext, request: SendRequest) -> int:
    """Return the bytes of a descriptor extension; other actions have no data."""
    if request.fields.action != ZoneSendAction.SET_EXTENSION:
        return 0
    return zoned(ctx, request.sqe).zones.layout.extension_bytes


def check_send(ctx: IoContext, request: SendRequest) -> None:
    """Check ZSA, that SLBA is the first block of a zone unless Select All is set, and that the namespace may be written
    (ZNS, Zone Management Send command)."""
    sqe, send = request.sqe, request.fields
    namespace = zoned(ctx, sqe)
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


def send(ctx: IoContext, request: SendRequest, data: memoryview | None) -> Completion | Awaitable[Completion]:
    """Execute Zone Management Send."""
    sqe, command = request.sqe, request.fields
    namespace = zoned(ctx, sqe)
    if command.action == ZoneSendAction.SET_EXTENSION:
        assert data is not None
        return completed(namespace.set_extension(sqe.slba, bytes(data)))
    return completed(namespace.manage(ACTIONS[command.action], sqe.slba, select_all=command.select_all))


# Zone Management Receive


@dataclass(frozen=True, slots=True)
class ReceiveFields:
    """The own fields of Zone Management Receive: what is reported, and how many bytes of it (NUMD, converted)."""

    report: ZoneReceive
    length_bytes: int

    @classmethod
    def parse(cls, sqe: Sqe) -> ReceiveFields:
        """Read CDW12 and CDW13 (Zoned Namespace Command Set, Zone Management Receive command)."""
        return cls(ZoneReceive.decode(sqe.cdw13), (sqe.cdw12 + 1) * 4)


def _receive_bytes(ctx: IoContext, request: Decoded[ReceiveFields]) -> int:
    """Return the bytes that the command gives: the length rule of Zone Management Receive."""
    return request.fields.length_bytes


def check_receive(ctx: IoContext, request: Decoded[ReceiveFields]) -> None:
    """Check ZRA, and a length within MDTS that holds the report's header (ZNS, Zone Management Receive command)."""
    sqe, receive = request.sqe, request.fields.report
    namespace = zoned(ctx, sqe)
    if receive.action not in list(ZoneReceiveAction):
        raise _invalid(_ACTION, f"zone receive action {receive.action:02X}h is not supported")
    if receive.action == ZoneReceiveAction.EXTENDED_REPORT and not namespace.zones.layout.extension_bytes:
        raise _invalid(_ACTION, f"zones of namespace {namespace.nsid} have no descriptor extensions")
    if receive.which not in REPORTED_STATES:
        raise _invalid(_SELECT_ALL, f"there is no reporting option {receive.which:02X}h")
    limit, length = ctx.limits.transfer_bytes, request.fields.length_bytes
    if not ZONE_REPORT_HEADER_BYTES <= length <= limit:
        raise _invalid(
            SQE.error_location("cdw12"), f"a report has {ZONE_REPORT_HEADER_BYTES} to {limit} bytes, not {length}"
        )
    namespace.check_range(sqe.slba, 1)


def receive(ctx: IoContext, request: Decoded[ReceiveFields], data: memoryview | None) -> Completion:
    """Execute Zone Management Receive: a report, from the zone of the given block on."""
    sqe, command = request.sqe, request.fields.report
    report = zoned(ctx, sqe).zones.report(
        sqe.slba,
        command.which,
        request.fields.length_bytes,
        partial=command.partial,
        extended=command.action == ZoneReceiveAction.EXTENDED_REPORT,
    )
    return Completion(data=report)


ROWS: Final = IoRows(
    {
        Csi.ZONED: (
            CommandRow(
                opcode=NvmOpcode.ZONE_MANAGEMENT_SEND,
                access=Access.WRITE,
                name="Zone Management Send",
                lba_in_cdw10=True,
                handler=send,
                decode=decoded(lambda sqe: ZoneSend.decode(sqe.cdw13)),
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
                decode=decoded(ReceiveFields.parse),
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
    }
)
