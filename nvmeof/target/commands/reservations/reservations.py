"""Reservation Register, Acquire, Release and Report (NVMe Base, I/O commands).

Everything is checked and computed by :mod:`nvmeof.target.namespaces.reservations`. A command completes when its
change is durable (where it has to be); then the hosts concerned are told, and Preempt and Abort waits for what it
could not abort.
"""

from __future__ import annotations

from collections.abc import Awaitable
from enum import IntEnum
from functools import partial

from nvmeof.errors import CommandError
from nvmeof.runtime import Future, settled
from nvmeof.spec.enums import Csi, FeatureId, NvmOpcode, Oncs
from nvmeof.spec.reservations import (
    CDW10_IGNORE_EXISTING_KEY,
    CDW10_PERSISTENCE,
    CDW10_TYPE,
    RELEASE_DATA_BYTES,
    REPORT_EXTENDED,
    RESERVATION_KEYS,
    RESERVATION_KEYS_BYTES,
    AcquireAction,
    Cptpl,
    RegisterAction,
    Registrant,
    ReleaseAction,
    ReservationCommand,
    ReservationReport,
    ReservationType,
    unpack_release,
)
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import CommandRow, Completion, Decoded, Direction, NsidRule, decoded, fixed
from nvmeof.target.commands.io.nvm import active_namespace
from nvmeof.target.commands.rows.features import FeatureTable, current_value
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Notice, Outcome, Reservations

_PAGE_BYTES = 4096  # what hosts may send though the data is shorter
_NO_HOST = bytes(16)


def _invalid(message: str, field: str, bit: int = 0) -> CommandError:
    return CommandError(Status.INVALID_FIELD, SQE.error_location(field, bit), message=message)


def _check_host(ctx: CommandContext) -> None:
    if ctx.hostid == _NO_HOST:
        raise CommandError(Status.HOST_ID_NOT_INITIALIZED, message="reservations need a host identifier")


Request = Decoded[ReservationCommand]
_DECODE = decoded(lambda sqe: ReservationCommand.decode(sqe.cdw10))


def _check_action(ctx: CommandContext, command: ReservationCommand, name: str, actions: type[IntEnum]) -> None:
    _check_host(ctx)
    if command.action not in list(actions):
        raise _invalid(f"Reservation {name} action {command.action} is reserved", "cdw10")


def _check_key_is_used(command: ReservationCommand) -> None:
    if command.ignore_existing_key:
        raise _invalid("the existing key cannot be ignored (IEKEY)", "cdw10", CDW10_IGNORE_EXISTING_KEY)


def _check_type(command: ReservationCommand) -> None:
    if command.rtype not in list(ReservationType):
        raise _invalid(f"reservation type {command.rtype} is reserved", "cdw10", CDW10_TYPE)


def check_register(ctx: CommandContext, request: Request) -> None:
    """RREGA and CPTPL that there are."""
    command = request.fields
    _check_action(ctx, command, "Register", RegisterAction)
    if command.cptpl not in list(Cptpl):
        raise _invalid(f"CPTPL {command.cptpl} is reserved", "cdw10", CDW10_PERSISTENCE)


def check_acquire(ctx: CommandContext, request: Request) -> None:
    """RACQA and RTYPE that there are; the key is always looked at."""
    command = request.fields
    _check_action(ctx, command, "Acquire", AcquireAction)
    _check_key_is_used(command)
    _check_type(command)


def check_release(ctx: CommandContext, request: Request) -> None:
    """RRELA that there is, and RTYPE where it counts; the key is always looked at."""
    command = request.fields
    _check_action(ctx, command, "Release", ReleaseAction)
    _check_key_is_used(command)
    if command.action == ReleaseAction.RELEASE:
        _check_type(command)


def _registered_persistence(namespace: Namespace, state: Reservations, cptpl: int) -> Reservations:
    """PTPL as Register leaves it.

    Linux sets it with every registration, whatever RESCAP says: where nothing can persist it stays as it is, and the
    report says so. (Feature 83h is refused there.)
    """
    if cptpl == Cptpl.CLEAR:
        return state.persist(False)
    if cptpl == Cptpl.SET and namespace.reservations.durable:
        return state.persist(True)
    return state


def reservation_register(
    ctx: CommandContext, request: Request, data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Reservation Register."""
    assert data is not None
    namespace, command = active_namespace(ctx, request.sqe), request.fields
    keys = RESERVATION_KEYS.unpack_from(data)
    outcome = namespace.reservations.state.register(
        ctx.hostid,
        RegisterAction(command.action),
        keys.crkey,
        keys.key,
        ignore_key=command.ignore_existing_key,
    )
    state = _registered_persistence(namespace, outcome.state, command.cptpl)
    return _take_effect(ctx, namespace, Outcome(state, outcome.notices))


def reservation_acquire(
    ctx: CommandContext, request: Request, data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Reservation Acquire."""
    assert data is not None
    namespace, command = active_namespace(ctx, request.sqe), request.fields
    keys, rtype, state = (
        RESERVATION_KEYS.unpack_from(data),
        ReservationType(command.rtype),
        namespace.reservations.state,
    )
    if command.action == AcquireAction.ACQUIRE:
        return _take_effect(ctx, namespace, state.acquire(ctx.hostid, keys.crkey, rtype))
    outcome = state.preempt(ctx.hostid, keys.crkey, keys.key, rtype)
    return _take_effect(ctx, namespace, outcome, abort=command.action == AcquireAction.PREEMPT_AND_ABORT)


def reservation_release(
    ctx: CommandContext, request: Request, data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Reservation Release."""
    assert data is not None
    namespace, command = active_namespace(ctx, request.sqe), request.fields
    state, crkey = namespace.reservations.state, unpack_release(data)
    if command.action == ReleaseAction.CLEAR:
        return _take_effect(ctx, namespace, state.clear(ctx.hostid, crkey))
    return _take_effect(ctx, namespace, state.release(ctx.hostid, crkey, command.rtype))


def _take_effect(
    ctx: CommandContext, namespace: Namespace, outcome: Outcome, *, abort: bool = False
) -> Completion | Awaitable[Completion]:
    pending = namespace.reservations.change(outcome.state)
    if pending is not None:
        return _when_kept(ctx, namespace, outcome, pending, abort)
    waiting = _consequences(ctx, namespace, outcome, abort)
    return Completion() if waiting is None else _completed(waiting)


async def _when_kept(
    ctx: CommandContext, namespace: Namespace, outcome: Outcome, pending: Awaitable[None], abort: bool
) -> Completion:
    await pending
    await settled(_consequences(ctx, namespace, outcome, abort))
    return Completion()


async def _completed(waiting: Awaitable[None]) -> Completion:
    await waiting
    return Completion()


def _consequences(ctx: CommandContext, namespace: Namespace, outcome: Outcome, abort: bool) -> Awaitable[None] | None:
    """Tell who is concerned; with `abort` end the commands of preempted hosts, and wait for those that go on."""
    for notice in outcome.notices:
        _notify(ctx, namespace, notice)
    if not abort or not outcome.preempted or ctx.subsystem is None:
        return None
    for controller in list(ctx.subsystem.controllers.values()):
        if controller.hostid in outcome.preempted:
            controller.abort_namespace(namespace.nsid)
    finished: Future[None] = ctx.runtime.create_future()
    return finished if namespace.in_progress.watch(outcome.preempted, partial(finished.set_result, None)) else None


def _notify(ctx: CommandContext, namespace: Namespace, notice: Notice) -> None:
    subsystem, controller = ctx.subsystem, ctx.controller
    if subsystem is None or controller is None or subsystem.namespaces.get(namespace.nsid) is not namespace:
        return
    features = ctx.tables[FeatureTable]
    mask = current_value(features, controller, FeatureId.RESERVATION_NOTIFICATION_MASK, namespace.nsid).dw0
    if mask & 1 << notice.kind:
        return
    for each in list(subsystem.controllers.values()):
        if each.hostid in notice.hosts and namespace.nsid in each.attached:
            each.reservation_changed(namespace.nsid, notice.kind)


def _report_bytes(ctx: CommandContext, sqe: Sqe) -> int:
    """Length rule of Report: NUMD (0's-based) dwords."""
    return (sqe.cdw10 + 1) * 4


def check_report(ctx: CommandContext, sqe: Sqe) -> None:
    """Host identifiers have 128 bits over fabrics; a length within MDTS."""
    _check_host(ctx)
    if not sqe.cdw11 & REPORT_EXTENDED:
        raise CommandError(
            Status.HOST_ID_INCONSISTENT_FORMAT,
            SQE.error_location("cdw11"),
            message="host identifiers have 128 bits: a report has the extended data structure (EDS)",
        )
    assert ctx.subsystem is not None
    if _report_bytes(ctx, sqe) > ctx.subsystem.config.transfer_limit_bytes:
        raise _invalid(f"{_report_bytes(ctx, sqe)} bytes of a report are more than MDTS", "cdw10")


def reservation_report(ctx: CommandContext, sqe: Sqe, data: memoryview | None) -> Completion:
    """Reservation Report: as much of it as is asked for. What is asked for beyond its end is sent as zeroes, for there
    are hosts that take less data than they described for an error. One entry per host, with CNTLID FFFFh: controllers
    are of the dynamic model (NVMe Base, Registered Controller; nvmet_execute_pr_report does so too).
    """
    assert ctx.subsystem is not None
    state = active_namespace(ctx, sqe).reservations.state
    registrants = tuple(Registrant(host, key, state.holds(host)) for host, key in state.registrants.items())
    report = ReservationReport(state.generation, state.rtype or 0, state.persistent, registrants).encode()
    length = _report_bytes(ctx, sqe)
    return Completion(data=report[:length].ljust(length, b"\0"))


ROWS = Rows(
    io={
        Csi.NVM: (
            CommandRow(
                opcode=NvmOpcode.RESERVATION_REGISTER,
                name="Reservation Register",
                handler=reservation_register,
                decode=_DECODE,
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=fixed(RESERVATION_KEYS_BYTES),
                check=check_register,
                nsid=NsidRule.ACTIVE,
                longer_sgl_bytes=_PAGE_BYTES,
                oncs=Oncs.RESERVATIONS,
                remark="CPTPL sets nothing where nothing persists (a ramdisk)",
            ),
            CommandRow(
                opcode=NvmOpcode.RESERVATION_REPORT,
                name="Reservation Report",
                handler=reservation_report,
                direction=Direction.CONTROLLER_TO_HOST,
                transfer_bytes=_report_bytes,
                check=check_report,
                nsid=NsidRule.ACTIVE,
                oncs=Oncs.RESERVATIONS,
                remark="the extended data structure, as host identifiers have 128 bits",
            ),
            CommandRow(
                opcode=NvmOpcode.RESERVATION_ACQUIRE,
                name="Reservation Acquire",
                handler=reservation_acquire,
                decode=_DECODE,
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=fixed(RESERVATION_KEYS_BYTES),
                check=check_acquire,
                nsid=NsidRule.ACTIVE,
                longer_sgl_bytes=_PAGE_BYTES,
                oncs=Oncs.RESERVATIONS,
            ),
            CommandRow(
                opcode=NvmOpcode.RESERVATION_RELEASE,
                name="Reservation Release",
                handler=reservation_release,
                decode=_DECODE,
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=fixed(RELEASE_DATA_BYTES),
                check=check_release,
                nsid=NsidRule.ACTIVE,
                longer_sgl_bytes=_PAGE_BYTES,
                oncs=Oncs.RESERVATIONS,
            ),
        )
    },
)
