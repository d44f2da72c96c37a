"""Commands that change what other hosts see: which hosts may use them, and that the audit log is told.

They are Format NVM, Sanitize, Namespace Management and Attachment, Set Features of a namespace's write protection, and
the reset and the shutdown of an NVM subsystem. A host that is not among `SubsystemConfig.managing_hosts` gets Command
Prohibited by Command and Feature Lockdown (23h; docs/decisions/0030-managing-hosts.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from nvmeof.errors import CommandError
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.base import CommandRow, Completion
from nvmeof.target.core.audit import AuditEvent

T = TypeVar("T")
Handler = Callable[[AdminContext, T, "memoryview | None"], "Completion | Awaitable[Completion]"]
_OPCODE = SQE.error_location("opcode")


def check_managing(ctx: AdminContext, name: str) -> None:
    """Raise Command Prohibited by Command and Feature Lockdown unless the host may manage its subsystem."""
    hosts = ctx.subsystem.hosts
    if hosts.may_manage(ctx.host_nqn):
        return
    error = CommandError(
        Status.PROHIBITED_BY_LOCKDOWN,
        _OPCODE,
        message=f"{name} by host {ctx.host_nqn}, which is not among those that may manage {ctx.subsystem.nqn}",
    )
    tell(ctx, name, error.status)
    raise error


def tell(ctx: AdminContext, name: str, status: int, **details: Any) -> None:
    """Tell the audit log, if there is one, that a command has ended."""
    audit = ctx.peer_log.audit
    if audit is not None:
        audit(
            AuditEvent.COMMAND,
            granted=not status,
            peer=ctx.peer,
            host=ctx.host_nqn,
            subsystem=ctx.subsystem.nqn,
            command=name,
            status=f"{status:#x}",
            **details,
        )


def managing(row: CommandRow[AdminContext, T]) -> CommandRow[AdminContext, T]:
    """Return the row of a command that only managing hosts may use, and whose end the audit log is told."""

    def check(ctx: AdminContext, command: T) -> None:
        check_managing(ctx, row.name)
        row.check(ctx, command)

    return replace(row, check=check, handler=audited(row.name, row.handler))


def audited(name: str, handler: Handler[T]) -> Handler[T]:
    """Return a handler that tells the audit log how the command has ended."""

    def run(ctx: AdminContext, command: T, data: memoryview | None) -> Completion | Awaitable[Completion]:
        if ctx.peer_log.audit is None:
            return handler(ctx, command, data)
        details = _details(command)

        def ended(status: int) -> None:
            tell(ctx, name, status, **details)

        try:
            result = handler(ctx, command, data)
        except CommandError as error:
            ended(error.status)
            raise
        if isinstance(result, Completion):
            ended(result.status)
            return result
        return _later(result, ended)

    return run


async def _later(pending: Awaitable[Completion], ended: Callable[[int], None]) -> Completion:
    try:
        completion = await pending
    except CommandError as error:
        ended(error.status)
        raise
    ended(completion.status)
    return completion


def _details(command: Any) -> dict[str, str | int]:
    """Return the fields of a command that say what it was for: its namespace, and CDW10 and CDW11 as they came."""
    sqe = getattr(command, "sqe", command)
    return {"nsid": sqe.nsid, "cdw10": f"{sqe.cdw10:#x}", "cdw11": f"{sqe.cdw11:#x}"}
