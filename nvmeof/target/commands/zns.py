"""Identify data and the Changed Zone List of the Zoned Namespace Command Set; its commands are in `io.zones`."""

from __future__ import annotations

from nvmeof.errors import CommandError
from nvmeof.spec.enums import Csi, LogPageId
from nvmeof.spec.identify import mdts_field
from nvmeof.spec.log_pages import GetLogPage
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.spec.zns import (
    EXTENSION_UNIT_BYTES,
    IDENTIFY_CONTROLLER_ZNS,
    IDENTIFY_NAMESPACE_ZNS,
    NO_LIMIT,
    OZCS_READ_ACROSS_ZONES,
    build_changed_zones,
)
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.base import not_active
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.commands.rows.structures import CommandSetStructures
from nvmeof.target.controller.changes import ChangedZones
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.lba_formats import LBA_FORMATS, formats_of
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.wire import build

_SLBA = SQE.error_location("cdw10")
_ACTION = SQE.error_location("cdw13")
_SELECT_ALL = SQE.error_location("cdw13", 8)
_DATA = SQE.error_location("sgl_address")
_OPTIONS = SQE.error_location("cdw13", 9)


# Identify


def _namespace_structure(namespace: Namespace | None) -> bytes:
    # With none, those that a host creates.
    geometry = namespace.geometry if isinstance(namespace, ZonedNamespace) else ZoneGeometry()
    block_size = LBA_FORMATS[0] if namespace is None else namespace.block_bytes
    return build(
        IDENTIFY_NAMESPACE_ZNS,
        ozcs=OZCS_READ_ACROSS_ZONES if geometry.read_across else 0,
        mar=geometry.max_active - 1 if geometry.max_active else NO_LIMIT,
        mor=geometry.max_open - 1 if geometry.max_open else NO_LIMIT,
        lbafe=[
            {"zsze": geometry.zone_bytes // size, "zdes": geometry.extension_bytes // EXTENSION_UNIT_BYTES}
            for size in formats_of(block_size)
        ],
    )


def _controller_structure(controller: Controller) -> bytes:
    return build(IDENTIFY_CONTROLLER_ZNS, zasl=mdts_field(controller.subsystem.config.max_transfer_bytes or None))


# The log of changed zones


def _changed_zones(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    if nsid not in ctx.namespaces:
        raise not_active(ctx, nsid)
    if not isinstance(ctx.namespaces[nsid], ZonedNamespace):
        raise CommandError(
            Status.INVALID_NAMESPACE, SQE.error_location("nsid"), message=f"namespace {nsid} has no zones"
        )
    changed = controller.parts[ChangedZones]
    zones = changed.get(nsid, set())
    if not command.retain:
        # Those of one namespace only: `acknowledge` would not know which.
        changed.pop(nsid, None)
    return build_changed_zones(zones)


ROWS = Rows(
    command_sets=(CommandSetStructures(Csi.ZONED, _namespace_structure, _controller_structure),),
    log_pages=(
        LogPageSpec(LogPageId.CHANGED_ZONES, "Changed Zone List", _changed_zones, per_namespace=True, remark="CSI 02h"),
    ),
)
