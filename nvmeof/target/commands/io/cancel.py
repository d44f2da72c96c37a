"""Cancel: the Abort command of an I/O queue, for one of its commands or for all (NVMe Base, Cancel command)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, Csi, NvmOpcode
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import (
    AnaRule,
    CommandRow,
    Completion,
    Decoded,
    IoRows,
    NsidRule,
    decoded,
    not_active,
)

SINGLE, MULTIPLE = 0, 1
_ALL_COMMANDS = 0xFFFF
_COUNT_MAX = 0xFFFF
_NSID = SQE.error_location("nsid")
_SQID = SQE.error_location("cdw10")
_CID = SQE.error_location("cdw10", 16)
_ACTION = SQE.error_location("cdw11")


@dataclass(frozen=True, slots=True)
class CancelFields:
    """The own fields of Cancel: SQID, CID and the action code."""

    sqid: int
    cid: int
    action: int

    @classmethod
    def parse(cls, sqe: Sqe) -> CancelFields:
        """Read CDW10 and CDW11 (NVMe Base, Cancel command)."""
        return cls(sqe.cdw10 & 0xFFFF, sqe.cdw10 >> 16, sqe.cdw11 & 3)


def check_cancel(ctx: IoContext, request: Decoded[CancelFields]) -> None:
    """Check that the command names one other command of this queue, or all (NVMe Base, Cancel command)."""
    sqe, fields = request.sqe, request.fields
    sqid, cid, action = fields.sqid, fields.cid, fields.action
    if sqe.nsid != NSID_ALL and sqe.nsid not in ctx.namespaces:
        raise not_active(ctx, sqe.nsid)
    if action not in (SINGLE, MULTIPLE):
        raise CommandError(Status.INVALID_FIELD, _ACTION, message=f"cancel action {action} is reserved")
    if sqid != ctx.qid:
        raise CommandError(Status.INVALID_FIELD, _SQID, message=f"queue {ctx.qid} cancels no commands of queue {sqid}")
    if action == SINGLE and cid == sqe.cid:
        raise CommandError(Status.INVALID_COMMAND_ID, _CID, message="a Cancel command that is to cancel itself")
    if action == MULTIPLE and cid != _ALL_COMMANDS:
        raise CommandError(Status.INVALID_FIELD, _CID, message="to cancel several commands the CID has to be FFFFh")


def cancel(ctx: IoContext, request: Decoded[CancelFields], data: memoryview | None) -> Completion:
    """Execute Cancel. DW0 counts how many commands were aborted (bits 15:0), and how many may be yet (bits 31:16)."""
    sqe, commands = request.sqe, ctx.queue.commands()
    if request.fields.action == SINGLE:
        cid = request.fields.cid
        if cid in commands and sqe.nsid not in (NSID_ALL, commands[cid]):
            raise CommandError(
                Status.INVALID_FIELD, _NSID, message=f"command {cid:#x} is for namespace {commands[cid]}"
            )
        chosen = [cid] if cid in commands else []
    else:
        chosen = [cid for cid, nsid in commands.items() if sqe.nsid in (NSID_ALL, nsid)]
    aborted = deferred = 0
    for cid in chosen:
        if ctx.queue.abort(cid):
            aborted += 1
        elif cid in ctx.aborting:
            deferred += 1
    return Completion(dw0=min(aborted, _COUNT_MAX) | min(deferred, _COUNT_MAX) << 16)


ROWS: Final = IoRows(
    {
        Csi.NVM: (
            CommandRow(
                opcode=NvmOpcode.CANCEL,
                name="Cancel",
                handler=cancel,
                decode=decoded(CancelFields.parse),
                check=check_cancel,
                nsid=NsidRule.HANDLER,
                ana=AnaRule.UNAFFECTED,  # it touches no namespace, and a host cancels what it sends elsewhere
                remark="NSID: an active namespace, or FFFFFFFFh for all",
            ),
        )
    }
)
