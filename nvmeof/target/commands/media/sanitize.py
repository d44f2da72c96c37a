"""Sanitize, its log page and its configuration, and which commands are allowed during it (NVMe Base,
Sanitize command)."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from functools import partial

from nvmeof.errors import CommandError
from nvmeof.spec.enums import (
    NSID_ALL,
    AdminOpcode,
    AsyncCommandSetInfo,
    AsyncEventType,
    CommandEffects,
    FeatureId,
    LogPageId,
)
from nvmeof.spec.log_pages import SANITIZE_STATUS, GetLogPage
from nvmeof.spec.media import NO_ESTIMATE, Sanicap, SanitizeAction, SanitizeCommand, SanitizeOutcome, SelfTestResult
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import Access, CommandRow, CommandSpec, Completion, Decoded, NsidRule, decoded
from nvmeof.target.commands.managing import managing
from nvmeof.target.commands.rows.features import FeatureTable, Scope, current_value, dword
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.events import Event
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Group
from nvmeof.target.projection.sanitize_view import SanitizeState
from nvmeof.target.subsystem.persistent_events import sanitize_start
from nvmeof.target.subsystem.sanitize import Sanitizer
from nvmeof.wire import build

SANICAP = Sanicap.BLOCK_ERASE | Sanicap.OVERWRITE | Sanicap.NO_DEALLOCATE_INHIBITED | Sanicap.MEDIA_NOT_MODIFIED_AFTER
"""Nothing is encrypted, so there is no cryptographic erase. Everything is deallocated in the end, also when a host does
not want that (NDI): a sparse file or disk must not fill up for it."""

COMPLETED = Event(
    AsyncEventType.IO_COMMAND_SET_SPECIFIC, AsyncCommandSetInfo.SANITIZE_COMPLETED, LogPageId.SANITIZE_STATUS, 0
)
COMPLETED_UNEXPECTED_DEALLOCATION = Event(
    AsyncEventType.IO_COMMAND_SET_SPECIFIC,
    AsyncCommandSetInfo.SANITIZE_COMPLETED_UNEXPECTED_DEALLOCATION,
    LogPageId.SANITIZE_STATUS,
    0,
)
_ESTIMATE_BYTES_PER_SECOND = 500_000_000
_OVERWRITE_PASSES = 16
_ACTION = SQE.error_location("cdw10")
_NDAS = SQE.error_location("cdw10", 9)
_EMVS = SQE.error_location("cdw10", 10)
_STARTS = frozenset({SanitizeAction.BLOCK_ERASE, SanitizeAction.OVERWRITE})


# While one is in progress


def gate(ctx: CommandContext, spec: CommandSpec, sqe: Sqe) -> None:
    """Abort a command that is not allowed now: Sanitize In Progress, or Sanitize Failed (NVMe Base,
    Sanitize command)."""
    sanitize = ctx.view.sanitize
    if sanitize.state is SanitizeState.IDLE:
        if sanitize.erased and ctx.qid and spec.access in (Access.WRITE, Access.READ_WRITE):
            ctx.effects.written()
        return
    if spec.during_sanitize(ctx, spec.command(ctx, sqe)):
        return
    # After a failure admin commands get Sanitize In Progress, until a host has cleared the failure.
    failed = bool(ctx.qid) and sanitize.state.failure
    status = Status.SANITIZE_FAILED if failed else Status.SANITIZE_IN_PROGRESS
    raise CommandError(status, dnr=False, message=f"{spec.name}: {status.description}")


def _after_failure(ctx: AdminContext, request: Decoded[SanitizeCommand]) -> bool:
    """Return whether another sanitize operation may start: after a failure, not during an operation."""
    return ctx.view.sanitize.state.failure


def _all_namespaces(ctx: CommandContext, sqe: Sqe) -> Iterable[Namespace]:
    return ctx.named(NSID_ALL)


# The command


def _invalid(message: str, location: int) -> CommandError:
    return CommandError(Status.INVALID_FIELD, location, message=message)


def check_sanitize(ctx: AdminContext, request: Decoded[SanitizeCommand]) -> None:
    """Check that the action is supported and allowed after the last sanitize operation (NVMe Base, Sanitize
    command)."""
    controller = ctx.controller
    command, state = request.fields, controller.subsystem.sanitizer.state
    if command.action == SanitizeAction.EXIT_FAILURE_MODE:
        if state is SanitizeState.RESTRICTED_FAILURE:
            raise _failed("a failed restricted sanitize can only be cleared by another sanitize operation")
        return
    if command.action not in _STARTS:
        raise _invalid(f"sanitize action {command.action} is not supported", _ACTION)
    if command.emvs:
        raise _invalid("there is no media verification state (EMVS)", _EMVS)
    if state is SanitizeState.RESTRICTED_FAILURE and command.ause:
        raise _failed("after the failure of a restricted sanitize operation the next one must be restricted (AUSE)")
    if command.ndas and not current_value(ctx.tables[FeatureTable], controller, FeatureId.SANITIZE_CONFIG).dw0 & 1:
        raise _invalid("everything is deallocated: this cannot be inhibited (NDAS)", _NDAS)
    for namespace in controller.subsystem.namespaces.values():
        if namespace.read_only:
            raise CommandError(
                Status.NAMESPACE_WRITE_PROTECTED, message=f"namespace {namespace.nsid} is write protected"
            )
        if namespace.blocked_status is Status.FORMAT_IN_PROGRESS:
            raise CommandError(
                Status.FORMAT_IN_PROGRESS, dnr=False, message=f"namespace {namespace.nsid} is being formatted"
            )


def _failed(message: str) -> CommandError:
    return CommandError(Status.SANITIZE_FAILED, _ACTION, message=message)


def sanitize(
    ctx: AdminContext, request: Decoded[SanitizeCommand], data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Sanitize. The operation it starts goes on after its completion."""
    check_sanitize(ctx, request)
    if request.fields.action == SanitizeAction.EXIT_FAILURE_MODE:
        sanitizer = ctx.controller.subsystem.sanitizer
        return _leave(sanitizer) if sanitizer.state.failure else Completion()
    return _start(ctx, ctx.controller, request.sqe)


async def _leave(sanitizer: Sanitizer) -> Completion:
    try:
        await sanitizer.leave_failure()
    except OSError as error:
        raise _not_kept(error) from error
    return Completion()


def _not_kept(error: OSError) -> CommandError:
    return CommandError(
        Status.INTERNAL_ERROR,
        dnr=False,
        message=f"the state of the sanitize operation cannot be stored: {error.strerror or error}",
    )


async def _start(ctx: AdminContext, controller: Controller, sqe: Sqe) -> Completion:
    subsystem = controller.subsystem
    subsystem.self_test.abort(SelfTestResult.ABORTED_BY_SANITIZE)
    for each in list(subsystem.controllers.values()):
        each.project()
        each.withdraw_events(LogPageId.SANITIZE_STATUS)
    try:
        await subsystem.sanitizer.start(ctx.runtime, sqe.cdw10, sqe.cdw11, partial(_ended, controller))
    except OSError as error:
        raise _not_kept(error) from error
    controller.record(EventType.SANITIZE_START, sanitize_start(SANICAP, sqe.cdw10, sqe.cdw11))
    return Completion()


def _ended(controller: Controller, sanitizer: Sanitizer) -> None:
    """Report the end on the controller that started the operation, and record it."""
    unexpected = sanitizer.outcome is SanitizeOutcome.SUCCESS_UNEXPECTED_DEALLOCATION
    if not controller.gone:
        controller.events.report(COMPLETED_UNEXPECTED_DEALLOCATION if unexpected else COMPLETED)
    controller.subsystem.sanitized(controller.runtime, sanitizer)


# Its log page and feature


def _status(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    sanitizer = controller.subsystem.sanitizer
    size_bytes = sum(each.backend.capabilities.size_bytes for each in controller.subsystem.namespaces.values())
    once = max(size_bytes // _ESTIMATE_BYTES_PER_SECOND, 1)
    return build(
        SANITIZE_STATUS,
        sprog=sanitizer.sprog,
        sstat=sanitizer.sstat,
        scdw10=sanitizer.cdw10,
        eto=min(once * _OVERWRITE_PASSES, NO_ESTIMATE - 1),
        etbe=min(once, NO_ESTIMATE - 1),
        etce=NO_ESTIMATE,
        etond=NO_ESTIMATE,
        etbend=NO_ESTIMATE,
        etcend=NO_ESTIMATE,
        etpvds=NO_ESTIMATE,
        ssi=sanitizer.ssi,
    )


ROWS = Rows(
    admin=(
        managing(
            CommandRow(
                opcode=AdminOpcode.SANITIZE,
                name="Sanitize",
                handler=sanitize,
                decode=decoded(lambda sqe: SanitizeCommand.decode(sqe.cdw10, sqe.cdw11)),
                check=check_sanitize,
                nsid=NsidRule.ZERO,
                effects=CommandEffects.SUPPORTED
                | CommandEffects.LOGICAL_BLOCK_CONTENT_CHANGE
                | CommandEffects.COMMAND_SUBMISSION_NO_OTHER
                | CommandEffects.SUBSYSTEM_SCOPE,
                reservation=Group.WRITE,
                concerned=_all_namespaces,
                during_sanitize=_after_failure,
                events=(EventType.SANITIZE_START, EventType.SANITIZE_COMPLETION),
                remark="block erase and overwrite of all namespaces, in the background, over restarts too; "
                "nothing is encrypted that a cryptographic erase could make unreadable. What a file system or a device "
                "keeps elsewhere (copies on write, snapshots, spare blocks) is out of reach",
            )
        ),
    ),
    log_pages=(LogPageSpec(LogPageId.SANITIZE_STATUS, "Sanitize Status", _status, during_sanitize=True),),
    features=(dword(FeatureId.SANITIZE_CONFIG, "Sanitize Config", 1, scope=Scope.SUBSYSTEM, persistent=True),),
)
