"""What a module adds to a target: its rows, by the table that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from nvmeof.spec.enums import Csi
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.context import LbaOpcodes
from nvmeof.target.commands.dispatch.base import CommandRow, CommandSpec, IoRows, IoSpec, always
from nvmeof.target.commands.dispatch.command_tables import AdmissionCheck, CommandTables
from nvmeof.target.commands.rows.features import FeatureSpec, FeatureTable
from nvmeof.target.commands.rows.log_pages import LogPageSpec, LogPageTable
from nvmeof.target.commands.rows.structures import (
    CommandSetStructures,
    CommandSetTable,
    IdentifySpec,
    IdentifyTable,
)
from nvmeof.target.controller.error_reporting import FailureListener, FailureListeners
from nvmeof.target.core.tables import Tables
from nvmeof.target.subsystem.namespace_kinds import STANDARD_KINDS, NamespaceKind, NamespaceKinds

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of one module, or of a plug-in.

    `io` has commands by the CSI of their I/O command set: those of the NVM Command Set are commands of every other set
    too. `command_sets` and `namespace_kinds`: what Identify says of an I/O command set, and how hosts create its
    namespaces. `failure_listeners` are called for failures that concern more than one command.
    """

    admin: tuple[CommandRow[AdminContext, Any], ...] = ()
    discovery: tuple[CommandRow[AdminContext, Any], ...] = ()
    fabrics_admin: tuple[CommandSpec, ...] = ()
    fabrics_io: tuple[CommandSpec, ...] = ()
    io: Mapping[int, tuple[IoSpec, ...]] = field(default_factory=lambda: MappingProxyType({}))
    log_pages: tuple[LogPageSpec, ...] = ()
    features: tuple[FeatureSpec, ...] = ()
    structures: tuple[IdentifySpec, ...] = ()
    command_sets: tuple[CommandSetStructures, ...] = ()
    namespace_kinds: tuple[NamespaceKind, ...] = ()
    failure_listeners: tuple[FailureListener, ...] = ()


def _keyed(what: str, rows: Iterable[Row], key: Callable[[Row], int]) -> dict[int, Row]:
    table: dict[int, Row] = {}
    for row in rows:
        if key(row) in table:
            name: Any = getattr(row, "name", what)
            raise ValueError(f"{name}: {what} {key(row):02X}h has a row already")
        table[key(row)] = row
    return table


Spec = TypeVar("Spec", bound=CommandSpec)


def _commands(rows: Iterable[Spec]) -> dict[int, Spec]:
    return _keyed("opcode", rows, lambda row: row.opcode)


def build_tables(admission: tuple[AdmissionCheck, ...], modules: Iterable[Rows | IoRows]) -> Tables:
    """Make the tables of a target.

    Raises `ValueError` for an opcode, page or feature that has two rows, and for an I/O command with `offered`.
    """
    every = tuple(Rows(io=module) if isinstance(module, IoRows) else module for module in modules)
    sets = sorted({Csi.NVM, *(csi for rows in every for csi in rows.io)})
    own = {csi: tuple(row for rows in every for row in rows.io.get(csi, ())) for csi in sets}
    for row in (row for rows in own.values() for row in rows):
        if row.offered is not always:
            raise ValueError(f"{row.name}: an I/O command cannot depend on the subsystem (offered)")
    io = {csi: _commands(own[Csi.NVM] + (own[csi] if csi != Csi.NVM else ())) for csi in sets}
    return Tables(
        CommandTables(
            admin=_commands(row for rows in every for row in rows.admin),
            discovery=_commands(row for rows in every for row in rows.discovery),
            fabrics_admin=_commands(row for rows in every for row in rows.fabrics_admin),
            fabrics_io=_commands(row for rows in every for row in rows.fabrics_io),
            io=io,
            admission=admission,
        ),
        LogPageTable(_keyed("log page", (row for rows in every for row in rows.log_pages), lambda row: row.lid)),
        FeatureTable(_keyed("feature", (row for rows in every for row in rows.features), lambda row: row.fid)),
        IdentifyTable(_keyed("CNS", (row for rows in every for row in rows.structures), lambda row: row.cns)),
        CommandSetTable(
            _keyed("I/O command set", (row for rows in every for row in rows.command_sets), lambda row: row.csi)
        ),
        NamespaceKinds(
            _keyed(
                "I/O command set",
                (*STANDARD_KINDS.values(), *(row for rows in every for row in rows.namespace_kinds)),
                lambda row: row.csi,
            )
        ),
        FailureListeners(listener for rows in every for listener in rows.failure_listeners),
        LbaOpcodes(opcode for table in io.values() for opcode, row in table.items() if row.lba_in_cdw10),
    )
