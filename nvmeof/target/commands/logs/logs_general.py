"""Log pages of the controller itself: supported pages and commands, errors, changes, ANA."""

from __future__ import annotations

from collections import defaultdict

from nvmeof.spec.enums import CommandEffects, LogPageId, Lpa
from nvmeof.spec.log_pages import (
    ANA_LSP_GROUPS_ONLY,
    ERROR_INFORMATION_ENTRY,
    FEATURES_SUPPORTED_AND_EFFECTS,
    FIRMWARE_SLOT,
    IOS,
    LIDSP_SHIFT,
    LSUPP,
    AnaGroup,
    GetLogPage,
    build_ana_log,
    build_changed_namespaces,
    build_effects,
    build_supported_log_pages,
)
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.rows.features import FeatureTable
from nvmeof.target.commands.rows.log_pages import LogPageSpec, LogPageTable, command_set
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.ana_log import AnaLogCounts
from nvmeof.target.controller.changes import ChangedNamespaces
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.error_log import ERROR_LOG_ENTRIES
from nvmeof.wire import build

_FIRST_SLOT_END = 16
_NVME_MI_EFFECTS_BYTES = 4096
_SCOPES = 0xFFF << 20


def _supported(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return build_supported_log_pages(
        {
            row.lid: LSUPP | (IOS if row.entries is not None else 0) | row.lidsp << LIDSP_SHIFT
            for row in ctx.tables[LogPageTable].values()
            if row.here(controller)
        }
    )


def _errors(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    entries = b"".join(
        build(
            ERROR_INFORMATION_ENTRY,
            error_count=entry.error_count,
            sqid=entry.sqid,
            cid=entry.cid,
            status=entry.status_field,
            parameter_error_location=entry.error_location,
            lba=0 if controller.subsystem.sanitizer.state.processing else entry.lba,
            nsid=entry.nsid,
            trtype=entry.trtype,
            csi=entry.csi,
            cs=entry.command_specific,
            opcode=entry.opcode,
            log_page_version=1,
        )
        for entry in controller.error_log.newest()
    )
    return entries.ljust(ERROR_LOG_ENTRIES * ERROR_INFORMATION_ENTRY.sizeof(), b"\0")


def _firmware(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    page = build(FIRMWARE_SLOT, afi=1, frs=[controller.subsystem.config.firmware])
    return page[:_FIRST_SLOT_END].ljust(len(page), b"\0")  # a slot that is not there has no spaces either


def _changed(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return build_changed_namespaces(controller.parts[ChangedNamespaces])


def _changed_read(controller: Controller) -> None:
    controller.parts[ChangedNamespaces].clear()


def admin_effects(effects: CommandEffects) -> CommandEffects:
    """Return the effects with the controller's scope, for an admin command without another scope."""
    return effects if effects & _SCOPES else effects | CommandEffects.CONTROLLER_SCOPE


def _effects(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    # A command set that exists and is not here has no commands.
    commands = ctx.tables[CommandTables]
    io = {} if controller.discovery else commands.io.get(command_set(controller, command), {})
    admin = commands.discovery if controller.discovery else commands.admin
    # A discovery controller has no UUID List.
    absent = CommandEffects.UUID_SELECTION if controller.discovery else CommandEffects(0)
    # I/O commands report no scope: Linux warns of each whose entry says more than what it does to logical blocks.
    return build_effects(
        {
            opcode: admin_effects(spec.effects & ~absent)
            for opcode, spec in admin.items()
            if spec.offered(controller.subsystem)
        },
        {opcode: spec.effects for opcode, spec in io.items()},
    )


def _ana(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    counts, members = controller.parts[AnaLogCounts], defaultdict[int, list[int]](list)
    for namespace in ctx.namespaces.values():
        members[namespace.anagrpid].append(namespace.nsid)
    groups = [
        AnaGroup(group, controller.ana.state(group), counts.of_group(group), tuple(members[group]))
        for group in sorted(controller.subsystem.ana.groups)
    ]
    return build_ana_log(counts.changes, groups, groups_only=bool(command.lsp & ANA_LSP_GROUPS_ONLY))


def _feature_effects(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    effects = [0] * 256
    for fid, row in ctx.tables[FeatureTable].items():
        if row.supported(controller) and (row.discovery or not controller.discovery):
            effects[fid] = row.log_entry
    return build(FEATURES_SUPPORTED_AND_EFFECTS, fids=effects)


def _no_management_interface(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return bytes(_NVME_MI_EFFECTS_BYTES)


ROWS = Rows(
    log_pages=(
        LogPageSpec(
            LogPageId.SUPPORTED_LOG_PAGES,
            "Supported Log Pages",
            _supported,
            discovery=True,
            csi=True,
            lpa=Lpa.SUPPORTED_LOG_PAGES,
        ),
        LogPageSpec(LogPageId.ERROR_INFORMATION, "Error Information", _errors, discovery=True, during_sanitize=True),
        LogPageSpec(LogPageId.FIRMWARE_SLOT, "Firmware Slot Information", _firmware),
        LogPageSpec(
            LogPageId.CHANGED_NAMESPACES,
            "Changed Attached Namespace List",
            _changed,
            acknowledge=_changed_read,
            during_sanitize=True,
        ),
        LogPageSpec(
            LogPageId.COMMANDS_SUPPORTED_AND_EFFECTS,
            "Commands Supported and Effects",
            _effects,
            csi=True,
            discovery=True,
            lpa=Lpa.COMMANDS_SUPPORTED_AND_EFFECTS,
        ),
        LogPageSpec(
            LogPageId.ANA,
            "Asymmetric Namespace Access",
            _ana,
            # Not in the specification's list, but hosts that lose their path do not come back without it; it has
            # nothing of the data.
            during_sanitize=True,
            remark="groups only (RGO)",
        ),
        LogPageSpec(
            LogPageId.FEATURES_SUPPORTED_AND_EFFECTS,
            "Feature Identifiers and Effects",
            _feature_effects,
            csi=True,
            discovery=True,
        ),
        LogPageSpec(
            LogPageId.NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS,
            "NVMe-MI Commands Supported and Effects",
            _no_management_interface,
            discovery=True,
            remark="says that there are none; bit 5 of LPA stands for this page too",
        ),
    ),
)
