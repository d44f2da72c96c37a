"""The Telemetry log pages, and when a capture is made: as a host asks, and when something went wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

from nvmeof.errors import CommandError
from nvmeof.spec.enums import LogPageId, Lpa
from nvmeof.spec.log_pages import GetLogPage
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.spec.telemetry import AREAS, BLOCK_BYTES, CREATE, HEADER_BYTES, LIDSP_MCDAS, MCDA_MASK, MCDA_SHIFT
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.rows.features import FeatureTable, Scope
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.telemetry import HostInitiated, controller_page, dump, host_page, telemetry_of
from nvmeof.target.core.tables import Tables

_MCDA = SQE.error_location("cdw10", 9)
_REASON_HOST = "asked for by a host"


def _features(features: FeatureTable, controller: Controller) -> dict[str, Any]:
    """Return the current values of the controller's features: DW0 and data (hexadecimal) by name."""
    found: dict[str, Any] = {}
    for fid, row in features.items():
        if row.scope is Scope.NAMESPACE or row.private or not row.supported(controller):
            continue
        try:
            value = row.read(controller, Sqe(cdw10=fid))
        except CommandError:
            continue  # a feature whose value needs more fields
        found[row.name] = value.dw0
        if value.data is not None and any(value.data):
            found[row.name] = [value.dw0, value.data.rstrip(b"\0").hex()]
    return found


def _area_4(controller: Controller) -> bool:
    """Return whether the host has announced support of data area 4 (ETDAS)."""
    return bool(controller.features.host_behavior.etdas)


def _check_host(controller: Controller, command: GetLogPage) -> None:
    areas = command.lsp >> MCDA_SHIFT & MCDA_MASK
    if command.lsp & CREATE and areas > AREAS:
        raise CommandError(Status.INVALID_FIELD, _MCDA, message=f"there is no telemetry data area {areas}")


def _host(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    area_4 = _area_4(controller)
    capture = controller.parts[HostInitiated]
    if not command.lsp & CREATE:
        return host_page(controller, capture, area_4=area_4)
    most = command.lsp >> MCDA_SHIFT & MCDA_MASK or AREAS
    areas = min(most, AREAS if area_4 else AREAS - 1)
    capture.take(
        dump(controller, _REASON_HOST, partial(_features, ctx.tables[FeatureTable]), areas=areas), _REASON_HOST
    )
    page = host_page(controller, capture, area_4=area_4)
    controller.record(EventType.TELEMETRY_CREATED, page[:HEADER_BYTES])
    return page


def _initiated(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return controller_page(controller, area_4=_area_4(controller))


def _acknowledge(controller: Controller) -> None:
    telemetry_of(controller).acknowledge()


def capture_fault(tables: Tables, controller: Controller, reason: str) -> None:
    """Capture the state after a failure, unless a recent capture exists, and send all hosts of the subsystem an
    event."""
    now = controller.runtime.now()
    initiated = telemetry_of(controller)
    if controller.discovery or not initiated.due(now):
        return
    features = partial(_features, tables[FeatureTable])
    initiated.store(dump(controller, reason, features, areas=AREAS), reason, now)
    controller.record(EventType.TELEMETRY_CREATED, controller_page(controller, area_4=False)[:HEADER_BYTES])
    for each in list(controller.subsystem.controllers.values()):
        each.telemetry_changed()


ROWS = Rows(
    failure_listeners=(capture_fault,),
    log_pages=(
        LogPageSpec(
            LogPageId.TELEMETRY_HOST,
            "Telemetry Host-Initiated",
            _host,
            check=_check_host,
            lidsp=LIDSP_MCDAS,
            lpa=Lpa.TELEMETRY | Lpa.TELEMETRY_DATA_AREA_4,
            whole=BLOCK_BYTES,
            remark="JSON text, see telemetry.md; area 4 for hosts that enable it",
        ),
        LogPageSpec(
            LogPageId.TELEMETRY_CONTROLLER,
            "Telemetry Controller-Initiated",
            _initiated,
            acknowledge=_acknowledge,
            whole=BLOCK_BYTES,
            remark="after internal errors, media errors and protocol faults",
        ),
    ),
)
