"""What hosts learn of reservations without asking for a report: features 82h and 83h, and log page 80h."""

from __future__ import annotations

from collections.abc import Awaitable

from nvmeof.spec.enums import FeatureId, LogPageId
from nvmeof.spec.log_pages import GetLogPage
from nvmeof.spec.reservations import NotificationType, mask_of
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.rows.features import (
    FeatureSpec,
    Scope,
    Value,
    check_bits,
    constant,
    dword,
    invalid,
    namespace_of,
)
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.reservation_events import ReservationNotices

_PERSIST = 1
_MASKABLE = mask_of(kind for kind in NotificationType if kind is not NotificationType.EMPTY)


def _persistence(controller: Controller, sqe: Sqe) -> Value:
    return Value(int(namespace_of(controller, sqe).reservations.state.persistent))


def _check_persistence(controller: Controller, sqe: Sqe) -> None:
    check_bits("Reservation Persistence", sqe.cdw11, _PERSIST)
    namespace = namespace_of(controller, sqe)
    if sqe.cdw11 and not namespace.reservations.durable:
        raise invalid(f"nothing of namespace {namespace.nsid} persists through a power loss (PTPL)")


def _set_persistence(controller: Controller, sqe: Sqe, data: memoryview | None) -> int | Awaitable[int]:
    store = namespace_of(controller, sqe).reservations
    pending = store.change(store.state.persist(bool(sqe.cdw11)))
    return 0 if pending is None else _later(pending)


async def _later(pending: Awaitable[None]) -> int:
    await pending
    return 0


def _notification(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return controller.parts[ReservationNotices].page(command.offset_bytes)


ROWS = Rows(
    features=(
        dword(
            FeatureId.RESERVATION_NOTIFICATION_MASK,
            "Reservation Notification Mask",
            _MASKABLE,
            scope=Scope.NAMESPACE,
            all_refusal=Status.INVALID_FIELD,
            needs_access=True,
        ),
        FeatureSpec(
            FeatureId.RESERVATION_PERSISTENCE,
            "Reservation Persistence",
            _persistence,
            constant(0),
            _set_persistence,
            scope=Scope.NAMESPACE,
            check=_check_persistence,
            all_refusal=Status.INVALID_FIELD,
            needs_access=True,
        ),
    ),
    log_pages=(
        LogPageSpec(
            LogPageId.RESERVATION_NOTIFICATION,
            "Reservation Notification",
            _notification,
            acknowledge=Controller.reservation_log_read,
            during_sanitize=True,
        ),
    ),
)
