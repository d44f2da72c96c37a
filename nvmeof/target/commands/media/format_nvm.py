"""Format NVM (NVMe Base and NVM Command Set, Format NVM command), and which commands are allowed during a format."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from functools import partial

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, AdminOpcode, CommandEffects, Oacs
from nvmeof.spec.media import FormatNvm, SecureErase, SelfTestResult
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status, status_field
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import (
    Access,
    CommandRow,
    CommandSpec,
    Completion,
    Decoded,
    NsidRule,
    decoded,
    never,
    not_active,
)
from nvmeof.target.commands.managing import managing
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.format_job import can_format, format_namespace
from nvmeof.target.namespaces.lba_formats import lookup
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Group
from nvmeof.target.subsystem.persistent_events import format_completion, format_start

FNA = 0
"""Format and secure erase are for one namespace; no cryptographic erase; FFFFFFFFh is taken."""
_LBAF = SQE.error_location("cdw10")
_PI = SQE.error_location("cdw10", 5)
_PIL = SQE.error_location("cdw10", 8)
_SES = SQE.error_location("cdw10", 9)


def gate(ctx: CommandContext, spec: CommandSpec, sqe: Sqe) -> None:
    """Abort a command that would touch the data of a namespace that is being formatted, or delete it."""
    concerned: Iterable[Namespace]
    if spec.deletes is not never and spec.deletes(spec.command(ctx, sqe)):
        concerned = spec.concerned(ctx, sqe)
    elif spec.access is Access.NONE or (namespace := ctx.namespaces.get(sqe.nsid)) is None:
        return
    else:
        concerned = (namespace,)
    for namespace in concerned:
        if namespace.blocked_status is Status.FORMAT_IN_PROGRESS:
            raise CommandError(
                Status.FORMAT_IN_PROGRESS, dnr=False, message=f"namespace {namespace.nsid} is being formatted"
            )


def _concerned(ctx: AdminContext, sqe: Sqe) -> list[Namespace]:
    """Return the namespaces that a command formats: any that is allocated, or all that are attached."""
    if sqe.nsid == NSID_ALL:
        return list(ctx.namespaces.values())
    namespace = ctx.subsystem.namespaces.get(sqe.nsid)
    if namespace is None:
        raise not_active(ctx, sqe.nsid)
    return [namespace]


def _block_bytes(ctx: AdminContext, command: FormatNvm) -> int:
    """Return the block size, in bytes, of the requested format. Raises Invalid Format.

    MSET is ignored: no format has metadata.
    """
    index = command.index
    if ctx.controller.features.host_behavior.lbafee:
        index |= command.upper << 4
    for wrong, location, name in (
        (command.pi, _PI, "protection information (PI)"),
        (command.pil, _PIL, "protection information first (PIL)"),
    ):
        if wrong:
            raise CommandError(Status.INVALID_FORMAT, location, message=f"there is no {name}")
    return lookup(index, _LBAF)


def check_format(ctx: AdminContext, request: Decoded[FormatNvm]) -> None:
    """Check LBAF and SES, and that the namespaces support them now (NVMe Base, Format NVM command)."""
    concerned = _concerned(ctx, request.sqe)
    ses = request.fields.ses
    if ses not in (SecureErase.NONE, SecureErase.USER_DATA):
        raise CommandError(Status.INVALID_FIELD, _SES, message=f"secure erase {ses} is not supported")
    block_bytes = _block_bytes(ctx, request.fields)
    for namespace in concerned:
        if namespace.blocked_status not in (None, Status.NAMESPACE_NOT_READY):  # the latter by a format that failed
            raise CommandError(
                namespace.blocked_status,
                dnr=False,
                message=f"namespace {namespace.nsid}: {namespace.blocked_status.description}",
            )
        namespace.check_writable()
        if not can_format(namespace, block_bytes):
            raise CommandError(
                Status.INVALID_FORMAT,
                _LBAF,
                message=f"namespace {namespace.nsid} cannot have blocks of {block_bytes} bytes",
            )


def format_nvm(ctx: AdminContext, request: Decoded[FormatNvm], data: memoryview | None) -> Awaitable[Completion]:
    """Format NVM. Its completion comes when it is done."""
    check_format(ctx, request)
    concerned = _concerned(ctx, request.sqe)
    tests = ctx.controller.subsystem.self_test
    if request.sqe.nsid == NSID_ALL or any(tests.concerns(each.nsid) for each in concerned):
        tests.abort(SelfTestResult.ABORTED_BY_FORMAT)
    for namespace in concerned:
        namespace.block_access(Status.FORMAT_IN_PROGRESS)
    return _format(ctx, ctx.controller, request, concerned)


async def _format(
    ctx: AdminContext, controller: Controller, request: Decoded[FormatNvm], concerned: list[Namespace]
) -> Completion:
    sqe = request.sqe
    secure = request.fields.ses == SecureErase.USER_DATA
    block_bytes = _block_bytes(ctx, request.fields)
    controller.record(EventType.FORMAT_START, format_start(sqe.nsid, FNA, sqe.cdw10))
    failure: CommandError | None = None
    for namespace in concerned:
        if failure is not None:
            namespace.block_access(None)
            continue
        ready = partial(controller.subsystem.attributes_changed, namespace)
        try:
            await format_namespace(ctx.runtime, namespace, block_bytes, secure=secure, ready=ready)
        except CommandError as error:
            failure = error
    field = status_field(0 if failure is None else failure.status)
    controller.record(EventType.FORMAT_COMPLETION, format_completion(sqe.nsid, field, failed=failure is not None))
    if failure is not None:
        raise failure
    return Completion()


ROWS = Rows(
    admin=(
        managing(
            CommandRow(
                opcode=AdminOpcode.FORMAT_NVM,
                name="Format NVM",
                handler=format_nvm,
                decode=decoded(lambda sqe: FormatNvm.decode(sqe.cdw10)),
                check=check_format,
                nsid=NsidRule.HANDLER,
                effects=CommandEffects.SUPPORTED
                | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE
                | CommandEffects.NAMESPACE_CAPABILITY_CHANGE
                | CommandEffects.COMMAND_SUBMISSION_NO_OTHER_ON_NAMESPACE
                | CommandEffects.NAMESPACE_SCOPE,
                oacs=Oacs.FORMAT_NVM,
                reservation=Group.WRITE,
                events=(EventType.FORMAT_START, EventType.FORMAT_COMPLETION),
                remark="blocks of 512 or 4096 bytes, user data erase; nothing is encrypted that a cryptographic erase "
                "could make unreadable",
            )
        ),
    ),
)
