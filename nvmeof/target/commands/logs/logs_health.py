"""SMART / Health Information and Endurance Group Information: what was done, and for how long.

There is one endurance group, which is the subsystem. Nothing wears out here, so that spare and use are what they were
in the beginning; what was read and written is counted over all runs if the subsystem's metadata store is durable.
"""

from __future__ import annotations

from nvmeof.errors import CommandError
from nvmeof.spec.endurance import ENDURANCE_GROUP, UNIT_BYTES
from nvmeof.spec.enums import NSID_ALL, LogPageId, Lpa
from nvmeof.spec.log_pages import DATA_UNIT_BYTES, SMART_HEALTH, GetLogPage
from nvmeof.spec.persistent_events import EventType
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.rows.log_pages import LSI, LogPageSpec, namespaces_of
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.health import COMPOSITE_KELVIN, SPARE_PERCENT, SPARE_THRESHOLD_PERCENT, critical_warning
from nvmeof.target.namespaces.endurance_group import ENDURANCE_GROUP_ID
from nvmeof.target.subsystem.lifetime_counters import Totals
from nvmeof.wire import build

SNAPSHOT_SECONDS = 24 * 3600.0
"""How often the history takes note of the SMART log."""


def _units(size_bytes: int, unit_bytes: int) -> int:
    return -(-size_bytes // unit_bytes)


def smart_log(controller: Controller, totals: Totals) -> bytes:
    """Build the page from a controller's state and the counters `totals`."""
    lifetime, now = controller.subsystem.lifetime, controller.runtime.now()
    return build(
        SMART_HEALTH,
        critical_warning=critical_warning(controller),
        composite_temperature=COMPOSITE_KELVIN,
        available_spare=SPARE_PERCENT,
        available_spare_threshold=SPARE_THRESHOLD_PERCENT,
        data_units_read=_units(totals.smart_bytes_read, DATA_UNIT_BYTES),
        data_units_written=_units(totals.smart_bytes_written, DATA_UNIT_BYTES),
        host_read_commands=totals.host_reads,
        host_write_commands=totals.host_writes,
        controller_busy_time=int(lifetime.busy_seconds(now) // 60),
        power_cycles=lifetime.power_cycles,
        power_on_hours=int(lifetime.power_on_seconds(now) // 3600),
        unsafe_shutdowns=lifetime.unsafe_shutdowns,
        media_errors=totals.media_errors,
        error_log_entries=controller.error_log.count,
    )


def _smart(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    if nsid in (0, NSID_ALL):
        return smart_log(controller, controller.subsystem.lifetime.totals)
    return smart_log(controller, Totals.of(ctx.namespaces[each] for each in namespaces_of(ctx, nsid)))


def snapshot(controller: Controller) -> None:
    """Put the SMART log into the history, once a day for each subsystem."""
    subsystem, now = controller.subsystem, controller.runtime.now()
    if controller.discovery or not subsystem.lifetime.snapshot_due(now, SNAPSHOT_SECONDS):
        return
    controller.record(EventType.SMART_SNAPSHOT, smart_log(controller, subsystem.lifetime.totals))


def _check_group(controller: Controller, command: GetLogPage) -> None:
    if command.lsi != ENDURANCE_GROUP_ID:
        raise CommandError(Status.INVALID_FIELD, LSI, message=f"there is no endurance group {command.lsi}")


def _endurance(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    subsystem = controller.subsystem
    totals = subsystem.lifetime.totals
    capacity = sum(each.size_blocks << each.block_shift for each in subsystem.namespaces.values())
    written = _units(totals.smart_bytes_written, UNIT_BYTES)
    return build(
        ENDURANCE_GROUP,
        avsp=SPARE_PERCENT,
        avspt=SPARE_THRESHOLD_PERCENT,
        dur=_units(totals.smart_bytes_read + totals.bytes_copied, UNIT_BYTES),
        duw=written,
        muw=written,
        hrc=totals.host_reads + totals.verifies,
        hwc=totals.host_writes,
        mdie=totals.media_errors,
        neile=subsystem.lifetime.errors,
        tegcap=capacity,
    )


ROWS = Rows(
    log_pages=(
        LogPageSpec(
            LogPageId.SMART_HEALTH,
            "SMART / Health Information",
            _smart,
            per_namespace=True,
            lpa=Lpa.SMART_PER_NAMESPACE,
            during_sanitize=True,
        ),
        LogPageSpec(
            LogPageId.ENDURANCE_GROUP,
            "Endurance Group Information",
            _endurance,
            check=_check_group,
            remark="of group 1, which is the subsystem",
        ),
    ),
)
