"""Namespace Management and Namespace Attachment (NVMe Base), for subsystems with a pool."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, AdminOpcode, CommandEffects, LogPageId, Nmic, Oacs
from nvmeof.spec.identify import CONTROLLER_LIST_MAX, parse_controller_list
from nvmeof.spec.identify_namespace import format_index
from nvmeof.spec.log_pages import GetLogPage, build_changed_namespaces
from nvmeof.spec.namespace_management import (
    CONTROLLER_LIST_BYTES,
    NAMESPACE_CREATE,
    NAMESPACE_CREATE_BYTES,
    AttachmentSelect,
    ManagementSelect,
)
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.admission import check_path
from nvmeof.target.commands.dispatch.base import (
    AnaRule,
    CommandRow,
    Completion,
    Decoded,
    Direction,
    NsidRule,
    Offering,
    check_nsid,
    decoded,
    fixed,
)
from nvmeof.target.commands.managing import managing
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.changes import ChangedAllocations
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.endurance_group import ENDURANCE_GROUP_ID
from nvmeof.target.namespaces.lba_formats import lookup
from nvmeof.target.namespaces.reservations import Group
from nvmeof.target.subsystem.ana import ANA_GROUP
from nvmeof.target.subsystem.management import NamespaceManager, NewNamespace
from nvmeof.target.subsystem.namespace_kinds import NamespaceKind
from nvmeof.target.subsystem.persistent_events import change_namespace

_SEL = SQE.error_location("cdw10")
_CSI = SQE.error_location("cdw11", 24)
_NSID = SQE.error_location("nsid")
_DATA = SQE.error_location("sgl_address")


def managed(subsystem: Offering) -> bool:
    """Return whether hosts may manage the namespaces of a subsystem."""
    return subsystem.manager is not None


def _parties(ctx: AdminContext) -> tuple[Controller, NamespaceManager]:
    assert ctx.subsystem.manager is not None
    return ctx.controller, ctx.subsystem.manager


@dataclass(frozen=True, slots=True)
class Selected:
    """The own fields of Namespace Management and Namespace Attachment: SEL, and CSI of a create operation."""

    select: int
    csi: int

    @classmethod
    def parse(cls, sqe: Sqe) -> Selected:
        """Read CDW10 and CDW11 (NVMe Base, Namespace Management command and Namespace Attachment command)."""
        return cls(sqe.cdw10 & 0xF, sqe.cdw11 >> 24)


Request = Decoded[Selected]


def _deletes(request: Request) -> bool:
    return request.fields.select == ManagementSelect.DELETE


def _check_select(request: Request, last: int) -> None:
    select = request.fields.select
    if select > last:
        raise CommandError(Status.INVALID_FIELD, _SEL, message=f"operation {select} is reserved (SEL)")


# Namespace Management


def management_bytes(ctx: AdminContext, request: Request) -> int:
    """Return the bytes of the data: only a create operation has any."""
    return NAMESPACE_CREATE_BYTES if request.fields.select == ManagementSelect.CREATE else 0


def check_management(ctx: AdminContext, request: Request) -> None:
    """Check SEL and the NSID, before the data of a create operation arrives (NVMe Base, Namespace
    Management command)."""
    _check_select(request, ManagementSelect.DELETE)
    sqe = request.sqe
    if _deletes(request):
        if sqe.nsid != NSID_ALL:
            check_nsid(ctx, sqe.nsid)
        check_path(ctx, sqe.nsid)
        return
    if sqe.nsid:
        raise CommandError(Status.INVALID_FIELD, _NSID, message="the NSID of a new namespace is not the host's choice")
    csi = request.fields.csi
    if csi not in _parties(ctx)[1].kinds:
        raise CommandError(Status.IO_COMMAND_SET_NOT_SUPPORTED, _CSI, message=f"I/O command set {csi} is not supported")


def namespace_management(ctx: AdminContext, request: Request, data: memoryview | None) -> Awaitable[Completion]:
    """Create (DW0: the NSID) or delete; FFFFFFFFh deletes all."""
    if _deletes(request):
        return _delete(ctx, request.sqe)
    assert data is not None
    fields = NAMESPACE_CREATE.parse(bytes(data))
    controller, manager = _parties(ctx)
    groups = controller.subsystem.config.max_ana_groups
    new = new_namespace(fields, manager.kinds[request.fields.csi], ana_groups=groups)
    return _create(ctx, request.sqe, fields, new)


def _invalid(message: str, status: Status = Status.INVALID_FIELD) -> CommandError:
    return CommandError(status, _DATA, message=message)


def new_namespace(fields: Any, kind: NamespaceKind, *, ana_groups: int) -> NewNamespace:
    """Make the namespace that the data of a create operation describes. Raises `CommandError`.
    `ana_groups`: ANAGRPMAX."""
    if fields.nmic & Nmic.DISPERSED:
        raise _invalid("dispersed namespaces are not supported (NMIC)")
    if fields.nvmsetid:
        raise _invalid(f"there is no NVM Set {fields.nvmsetid}")
    if fields.endgid not in (0, ENDURANCE_GROUP_ID):
        raise _invalid(f"there is no Endurance Group {fields.endgid}")
    if fields.lbstm:
        raise _invalid("no format has storage tags to mask (LBSTM)")
    if fields.nphndls:
        raise _invalid("there are no placement handles (NPHNDLS)")
    if fields.anagrpid > ana_groups:
        raise _invalid(f"ANA group {fields.anagrpid} is beyond ANAGRPMAX, {ana_groups}", Status.ANA_GROUP_ID_INVALID)
    block_bytes = lookup(format_index(fields.flbas), _DATA)
    if fields.dps:
        raise _invalid("no format has room for protection information (DPS)", Status.INVALID_FORMAT)
    if not fields.nsze or fields.ncap > fields.nsze:
        raise _invalid(f"a namespace of {fields.nsze} blocks cannot have a capacity of {fields.ncap}")
    if fields.ncap != fields.nsze:
        raise _invalid("thin provisioning is not supported", Status.THIN_PROVISIONING_NOT_SUPPORTED)
    return NewNamespace(
        size_bytes=fields.nsze * block_bytes,
        block_bytes=block_bytes,
        shared=bool(fields.nmic & Nmic.SHARED),
        csi=kind.csi,
        options=kind.check(fields, block_bytes),
        anagrpid=fields.anagrpid or ANA_GROUP,
    )


async def _create(ctx: AdminContext, sqe: Sqe, fields: Any, new: NewNamespace) -> Completion:
    controller, manager = _parties(ctx)
    nsid = await manager.create(ctx.runtime, new)
    names = ("nsze", "ncap", "flbas", "dps", "nmic")
    told = {name: fields[name] for name in names}
    _remember(controller, sqe, nsid, anagrpid=fields.anagrpid or ANA_GROUP, endgid=ENDURANCE_GROUP_ID, **told)
    return Completion(dw0=nsid)


async def _delete(ctx: AdminContext, sqe: Sqe) -> Completion:
    controller, manager = _parties(ctx)
    nsid = None if sqe.nsid == NSID_ALL else sqe.nsid
    going = None if nsid is None else controller.subsystem.namespaces.get(nsid)
    told: dict[str, int] = {}
    if going is not None:
        told = {"nsze": going.size_blocks, "ncap": going.size_blocks, "nmic": Nmic.SHARED}
        told |= {"anagrpid": going.anagrpid, "endgid": ENDURANCE_GROUP_ID}
    await manager.delete(ctx.runtime, nsid, by=controller.cntlid)
    _remember(controller, sqe, sqe.nsid, **told)
    return Completion()


def _remember(controller: Controller, sqe: Sqe, nsid: int, **fields: int) -> None:
    controller.record(EventType.CHANGE_NAMESPACE, change_namespace(sqe.cdw10, nsid, **fields))


# Namespace Attachment


def check_attachment(ctx: AdminContext, request: Request) -> None:
    """Check SEL and the NSID, before the controller list arrives (NVMe Base, Namespace Attachment command)."""
    _check_select(request, AttachmentSelect.DETACH)
    check_nsid(ctx, request.sqe.nsid)


def namespace_attachment(ctx: AdminContext, request: Request, data: memoryview | None) -> Awaitable[Completion]:
    """Attach to, or detach from, every controller of a list: all of them or none."""
    assert data is not None
    return _attachment(ctx, request, controllers_of(data))


def controllers_of(data: memoryview) -> list[int]:
    """Return the CNTLIDs of a controller list. Raises Controller List Invalid unless there are some, and they
    ascend."""
    count = int.from_bytes(data[:2], "little")
    cntlids = parse_controller_list(data) if 0 < count <= CONTROLLER_LIST_MAX else []
    if not cntlids or any(first >= second for first, second in pairwise(cntlids)):
        raise _invalid(f"a list of {count} controllers that do not ascend", Status.CONTROLLER_LIST_INVALID)
    return cntlids


async def _attachment(ctx: AdminContext, request: Request, cntlids: list[int]) -> Completion:
    _, manager = _parties(ctx)
    operation = manager.attach if request.fields.select == AttachmentSelect.ATTACH else manager.detach
    await operation(ctx.runtime, request.sqe.nsid, cntlids)
    return Completion()


# What has changed


def _changed(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return build_changed_namespaces(controller.parts[ChangedAllocations])


def _changed_read(controller: Controller) -> None:
    controller.parts[ChangedAllocations].clear()


ROWS = Rows(
    log_pages=(
        LogPageSpec(
            LogPageId.CHANGED_ALLOCATED_NAMESPACES,
            "Changed Allocated Namespace List",
            _changed,
            acknowledge=_changed_read,
        ),
    ),
    admin=(
        managing(
            CommandRow(
                opcode=AdminOpcode.NAMESPACE_MANAGEMENT,
                name="Namespace Management",
                handler=namespace_management,
                decode=decoded(Selected.parse),
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=management_bytes,
                check=check_management,
                nsid=NsidRule.HANDLER,
                reservation=Group.WRITE,
                deletes=_deletes,
                effects=CommandEffects.SUPPORTED
                | CommandEffects.NAMESPACE_INVENTORY_CHANGE
                | CommandEffects.SUBSYSTEM_SCOPE,
                events=(EventType.CHANGE_NAMESPACE,),
                ana=AnaRule.FIELDS,
                oacs=Oacs.NAMESPACE_MANAGEMENT,
                offered=managed,
                remark="where the subsystem has a pool of capacity",
            )
        ),
        managing(
            CommandRow(
                opcode=AdminOpcode.NAMESPACE_ATTACHMENT,
                name="Namespace Attachment",
                handler=namespace_attachment,
                decode=decoded(Selected.parse),
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=fixed(CONTROLLER_LIST_BYTES),
                check=check_attachment,
                nsid=NsidRule.HANDLER,
                reservation=Group.WRITE,
                effects=CommandEffects.SUPPORTED
                | CommandEffects.NAMESPACE_INVENTORY_CHANGE
                | CommandEffects.CONTROLLER_SCOPE
                | CommandEffects.NAMESPACE_SCOPE,
                ana=AnaRule.FIELDS,
                offered=managed,
                remark="where the subsystem has a pool of capacity",
            )
        ),
    ),
)
