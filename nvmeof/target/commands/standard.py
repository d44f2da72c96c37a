"""The tables of a target: which modules have rows, and what stands before every command.

A new module with rows is one line in `MODULES`. Rows from outside of the package are arguments of `standard_tables`.
"""

from __future__ import annotations

from typing import Final

from nvmeof.target.commands import admin, authentication, fabrics, zns
from nvmeof.target.commands.dispatch.base import IoRows
from nvmeof.target.commands.dispatch.command_tables import AdmissionCheck
from nvmeof.target.commands.features import feature_metadata, feature_namespace, feature_reservations, feature_rows
from nvmeof.target.commands.identify import identify, identify_namespaces
from nvmeof.target.commands.io import cancel, compare, copy, nvm, uncorrectable, verify, zones
from nvmeof.target.commands.logs import logs_discovery, logs_events, logs_general, logs_health, logs_telemetry
from nvmeof.target.commands.media import (
    format_nvm,
    lba_status,
    namespace_management,
    sanitize,
    self_test,
    write_protection,
)
from nvmeof.target.commands.reservations import reservation_gate, reservations
from nvmeof.target.commands.rows.rows import Rows, build_tables
from nvmeof.target.core.tables import Tables

ADMISSION: Final[tuple[AdmissionCheck, ...]] = (sanitize.gate, format_nvm.gate, reservation_gate.gate)
"""The admission checks, in order: a sanitize operation or a format also blocks the holder of a reservation."""

MODULES: Final[tuple[Rows | IoRows, ...]] = (
    admin.ROWS,
    identify.ROWS,
    identify_namespaces.ROWS,
    namespace_management.ROWS,
    logs_general.ROWS,
    logs_health.ROWS,
    logs_telemetry.ROWS,
    logs_events.ROWS,
    logs_discovery.ROWS,
    feature_rows.ROWS,
    feature_namespace.ROWS,
    feature_metadata.ROWS,
    fabrics.ROWS,
    authentication.ROWS,
    nvm.ROWS,
    compare.ROWS,
    verify.ROWS,
    uncorrectable.ROWS,
    copy.ROWS,
    cancel.ROWS,
    sanitize.ROWS,
    format_nvm.ROWS,
    self_test.ROWS,
    lba_status.ROWS,
    write_protection.ROWS,
    reservations.ROWS,
    feature_reservations.ROWS,
    zns.ROWS,
    zones.ROWS,
)


def standard_tables(*more: Rows | IoRows, admission: tuple[AdmissionCheck, ...] = ADMISSION) -> Tables:
    """Make the tables of a target, with `more` rows beside those of this package.

    Raises `ValueError` when one of them has the opcode, log page or feature of another.

        Target(namespaces=[Ramdisk("1G")], tables=standard_tables(Rows(log_pages=(MY_PAGE,))))
    """
    return build_tables(admission, (*MODULES, *more))
