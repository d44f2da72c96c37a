"""Reservation Register, Acquire, Release and Report (NVMe Base, I/O commands).

Everything is checked and computed by :mod:`nvmeof.target.namespaces.reservations`. The change is an effect
(`Effects.change_reservation`): a command completes when that is durable (where it has to be), the hosts concerned have
been notified, and what Preempt and Abort could not abort has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.spec.enums import Csi, NvmOpcode, Oncs
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
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import (
    CommandRow,
    Completion,
    Decoded,
    Direction,
    IoRows,
    NsidRule,
    decoded,
    fixed,
)
from nvmeof.target.commands.io.nvm import active_namespace, completed
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Outcome, Reservations

_PAGE_BYTES = 4096  # what hosts may send though the data is shorter
_NO_HOST = bytes(16)


def _invalid(message: str, field: str, bit: int = 0) -> CommandError:
    return CommandError(Status.INVALID_FIELD, SQE.error_location(field, bit), message=message)


def _check_host(ctx: IoContext) -> None:
    if ctx.hostid == _NO_HOST:
        raise CommandError(Status.HOST_ID_NOT_INITIALIZED, message="reservations need a host identifier")


Request = Decoded[ReservationCommand]
_DECODE = decoded(lambda sqe: ReservationCommand.decode(sqe.cdw10))


def _check_action(ctx: IoContext, command: ReservationCommand, name: str, actions: type[IntEnum]) -> None:
    _check_host(ctx)
    if command.action not in list(actions):
        raise _invalid(f"Reservation {name} action {command.action} is reserved", "cdw10")


def _check_key_is_used(command: ReservationCommand) -> None:
    if command.ignore_existing_key:
        raise _invalid("the existing key cannot be ignored (IEKEY)", "cdw10", CDW10_IGNORE_EXISTING_KEY)


def _check_type(command: ReservationCommand) -> None:
    if command.rtype not in list(ReservationType):
        raise _invalid(f"reservation type {command.rtype} is reserved", "cdw10", CDW10_TYPE)


def check_register(ctx: IoContext, request: Request) -> None:
    """Check RREGA and CPTPL for reserved values (NVMe Base, Reservation Register command)."""
    command = request.fields
    _check_action(ctx, command, "Register", RegisterAction)
    if command.cptpl not in list(Cptpl):
        raise _invalid(f"CPTPL {command.cptpl} is reserved", "cdw10", CDW10_PERSISTENCE)


def check_acquire(ctx: IoContext, request: Request) -> None:
    """Check RACQA and RTYPE for reserved values, and that IEKEY is 0 (NVMe Base, Reservation Acquire command)."""
    command = request.fields
    _check_action(ctx, command, "Acquire", AcquireAction)
    _check_key_is_used(command)
    _check_type(command)


def check_release(ctx: IoContext, request: Request) -> None:
    """Check RRELA, RTYPE where it is used, and that IEKEY is 0 (NVMe Base, Reservation Release command)."""
    command = request.fields
    _check_action(ctx, command, "Release", ReleaseAction)
    _check_key_is_used(command)
    if command.action == ReleaseAction.RELEASE:
        _check_type(command)


def _registered_persistence(namespace: Namespace, state: Reservations, cptpl: int) -> Reservations:
    """Return the state with PTPL as Register leaves it. Linux sets PTPL with every registration, whatever RESCAP says:
    without a durable store PTPL stays as it is, and the report shows that. (Feature 83h is refused there.)
    """
    if cptpl == Cptpl.CLEAR:
        return state.persist(False)
    if cptpl == Cptpl.SET and namespace.reservations.durable:
        return state.persist(True)
    return state


def reservation_register(
    ctx: IoContext, request: Request, data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Execute Reservation Register."""
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
    ctx: IoContext, request: Request, data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Execute Reservation Acquire."""
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
    ctx: IoContext, request: Request, data: memoryview | None
) -> Completion | Awaitable[Completion]:
    """Execute Reservation Release."""
    assert data is not None
    namespace, command = active_namespace(ctx, request.sqe), request.fields
    state, crkey = namespace.reservations.state, unpack_release(data)
    if command.action == ReleaseAction.CLEAR:
        return _take_effect(ctx, namespace, state.clear(ctx.hostid, crkey))
    return _take_effect(ctx, namespace, state.release(ctx.hostid, crkey, command.rtype))


def _take_effect(
    ctx: IoContext, namespace: Namespace, outcome: Outcome, *, abort: bool = False
) -> Completion | Awaitable[Completion]:
    return completed(ctx.effects.change_reservation(namespace, outcome, abort=abort))


@dataclass(frozen=True, slots=True)
class ReportFields:
    """The own fields of Reservation Report: how many bytes (NUMD, converted), and EDS."""

    length_bytes: int
    extended: bool

    @classmethod
    def parse(cls, sqe: Sqe) -> ReportFields:
        """Read CDW10 and CDW11 (NVMe Base, Reservation Report command)."""
        return cls((sqe.cdw10 + 1) * 4, bool(sqe.cdw11 & REPORT_EXTENDED))


def _report_bytes(ctx: IoContext, request: Decoded[ReportFields]) -> int:
    """Return the bytes of NUMD dwords: the length rule of Report."""
    return request.fields.length_bytes


def check_report(ctx: IoContext, request: Decoded[ReportFields]) -> None:
    """Check EDS, which must be 1 over fabrics (128-bit host identifiers), and a length within MDTS (NVMe Base,
    Reservation Report command)."""
    _check_host(ctx)
    if not request.fields.extended:
        raise CommandError(
            Status.HOST_ID_INCONSISTENT_FORMAT,
            SQE.error_location("cdw11"),
            message="host identifiers have 128 bits: a report has the extended data structure (EDS)",
        )
    if request.fields.length_bytes > ctx.limits.transfer_bytes:
        raise _invalid(f"{request.fields.length_bytes} bytes of a report are more than MDTS", "cdw10")


def reservation_report(ctx: IoContext, request: Decoded[ReportFields], data: memoryview | None) -> Completion:
    """Execute Reservation Report: return the length that the command gives. Bytes beyond the end of the report are
    zeroes, since some hosts treat less data than they described as an error. One entry per host, with CNTLID FFFFh:
    controllers are of the dynamic model (NVMe Base, Registered Controller; nvmet_execute_pr_report does so too).
    """
    state = active_namespace(ctx, request.sqe).reservations.state
    registrants = tuple(Registrant(host, key, state.holds(host)) for host, key in state.registrants.items())
    report = ReservationReport(state.generation, state.rtype or 0, state.persistent, registrants).encode()
    length = request.fields.length_bytes
    return Completion(data=report[:length].ljust(length, b"\0"))


ROWS: Final = IoRows(
    {
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
                decode=decoded(ReportFields.parse),
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
    }
)
