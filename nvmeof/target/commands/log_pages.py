"""Get Log Page: one row per log page (NVMe Base, Get Log Page command)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.spec.enums import NSID_ALL, Csi, LogPageId
from nvmeof.spec.log_pages import (
    ANA_LSP_GROUPS_ONLY,
    DATA_UNIT_BYTES,
    ERROR_INFORMATION_ENTRY,
    FEATURES_SUPPORTED_AND_EFFECTS,
    FIRMWARE_SLOT,
    SMART_HEALTH,
    AnaGroup,
    GetLogPage,
    build_ana_log,
    build_changed_namespaces,
    build_effects,
    build_supported_log_pages,
)
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.base import Completion
from nvmeof.target.commands.features import FEATURES
from nvmeof.target.commands.registry import ADMIN, DISCOVERY, NVM
from nvmeof.target.context import QueueContext
from nvmeof.target.controller import Controller
from nvmeof.target.discovery import discovery_log
from nvmeof.target.error_log import ERROR_LOG_ENTRIES
from nvmeof.target.health import COMPOSITE_KELVIN, SPARE_PERCENT, SPARE_THRESHOLD_PERCENT, critical_warning
from nvmeof.target.namespace import Namespace
from nvmeof.target.subsystem import ANA_GROUP
from nvmeof.wire import build

Builder = Callable[[QueueContext, Controller, GetLogPage, int], bytes]


@dataclass(frozen=True, slots=True)
class LogPageSpec:
    """A row. `build(ctx, controller, command, nsid)` makes the whole page."""

    lid: int
    name: str
    build: Builder
    io: bool = True
    discovery: bool = False
    per_namespace: bool = False


def _supported(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return build_supported_log_pages(
        row.lid for row in LOG_PAGES.values() if (row.discovery if controller.discovery else row.io)
    )


def _errors(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    entries = b"".join(
        build(
            ERROR_INFORMATION_ENTRY,
            error_count=entry.error_count,
            sqid=entry.sqid,
            cid=entry.cid,
            status=entry.status_field,
            parameter_error_location=entry.error_location,
            lba=entry.lba,
            nsid=entry.nsid,
            trtype=entry.trtype,
            opcode=entry.opcode,
        )
        for entry in controller.error_log.newest()
    )
    return entries.ljust(ERROR_LOG_ENTRIES * ERROR_INFORMATION_ENTRY.sizeof(), b"\0")


def _units(size_bytes: int) -> int:
    return -(-size_bytes // DATA_UNIT_BYTES)


def _smart(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    namespaces: Iterable[Namespace] = ctx.namespaces.values()
    if nsid not in (0, NSID_ALL):
        if nsid not in ctx.namespaces:
            raise CommandError(Status.INVALID_NAMESPACE, SQE.error_location("nsid"))
        namespaces = [ctx.namespaces[nsid]]
    chosen = list(namespaces)
    started = ctx.inventory.started_at
    hours = 0 if started is None else int((ctx.runtime.now() - started) // 3600)
    return build(
        SMART_HEALTH,
        critical_warning=critical_warning(controller),
        composite_temperature=COMPOSITE_KELVIN,
        available_spare=SPARE_PERCENT,
        available_spare_threshold=SPARE_THRESHOLD_PERCENT,
        data_units_read=_units(sum(item.counters.blocks_read << item.block_shift for item in chosen)),
        data_units_written=_units(sum(item.counters.blocks_written << item.block_shift for item in chosen)),
        host_read_commands=sum(item.counters.reads for item in chosen),
        host_write_commands=sum(item.counters.writes for item in chosen),
        power_cycles=1,
        power_on_hours=hours,
        media_errors=sum(item.counters.media_errors for item in chosen),
        error_log_entries=controller.error_log.count,
    )


def _firmware(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return build(FIRMWARE_SLOT, afi=1, frs=[controller.subsystem.config.firmware])


def _changed(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return build_changed_namespaces(controller.changed_namespaces)


def _effects(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    if command.csi not in list(Csi):
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw14", 24),
            message=f"I/O command set {command.csi} does not exist",
        )
    # nvme-cli asks for zoned namespaces whenever CAP.CSS shows that command sets can be chosen: a set that exists
    # and is not here has no commands.
    io = NVM if command.csi == Csi.NVM and not controller.discovery else {}
    admin = DISCOVERY if controller.discovery else ADMIN
    return build_effects(
        {opcode: spec.effects for opcode, spec in admin.items()}, {opcode: spec.effects for opcode, spec in io.items()}
    )


def _ana(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    subsystem = controller.subsystem
    group = AnaGroup(ANA_GROUP, subsystem.ana_state, subsystem.ana_change_count, tuple(ctx.namespaces))
    return build_ana_log(subsystem.ana_change_count, [group], groups_only=bool(command.lsp & ANA_LSP_GROUPS_ONLY))


def _feature_effects(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    effects = [0] * 256
    for fid, row in FEATURES.items():
        if row.supported(controller) and (row.discovery or not controller.discovery):
            effects[fid] = row.log_entry
    return build(FEATURES_SUPPORTED_AND_EFFECTS, fids=effects)


def _discovery(ctx: QueueContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    return discovery_log(ctx.inventory, ctx.port, ctx.host_nqn)


LOG_PAGES: dict[int, LogPageSpec] = {
    row.lid: row
    for row in (
        LogPageSpec(LogPageId.SUPPORTED_LOG_PAGES, "Supported Log Pages", _supported, discovery=True),
        LogPageSpec(LogPageId.ERROR_INFORMATION, "Error Information", _errors, discovery=True),
        LogPageSpec(LogPageId.SMART_HEALTH, "SMART / Health Information", _smart, per_namespace=True),
        LogPageSpec(LogPageId.FIRMWARE_SLOT, "Firmware Slot Information", _firmware),
        LogPageSpec(LogPageId.CHANGED_NAMESPACES, "Changed Namespace List", _changed),
        LogPageSpec(
            LogPageId.COMMANDS_SUPPORTED_AND_EFFECTS, "Commands Supported and Effects", _effects, discovery=True
        ),
        LogPageSpec(LogPageId.ANA, "Asymmetric Namespace Access", _ana),
        LogPageSpec(
            LogPageId.FEATURES_SUPPORTED_AND_EFFECTS,
            "Feature Identifiers and Effects",
            _feature_effects,
            discovery=True,
        ),
        LogPageSpec(LogPageId.DISCOVERY, "Discovery", _discovery, io=False, discovery=True),
    )
}


def add_log_pages(*rows: LogPageSpec) -> None:
    """Add log pages that other modules make; each has one row."""
    for row in rows:
        if row.lid in LOG_PAGES:
            raise ValueError(f"{row.name}: {row.lid:02X}h has a row already")
        LOG_PAGES[row.lid] = row


def decode(sqe: Sqe) -> GetLogPage:
    """The command's dwords in converted units."""
    return GetLogPage.decode(sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14)


def log_bytes(ctx: QueueContext, sqe: Sqe) -> int:
    """Length rule: NUMD dwords."""
    return decode(sqe).length_bytes


def check_get_log_page(ctx: QueueContext, sqe: Sqe) -> None:
    """A page that exists here, a length within MDTS, and an offset that is a multiple of four."""
    assert ctx.controller is not None and ctx.subsystem is not None
    command = decode(sqe)
    row = LOG_PAGES.get(command.lid)
    if row is None or not (row.discovery if ctx.controller.discovery else row.io):
        raise CommandError(
            Status.INVALID_LOG_PAGE,
            SQE.error_location("cdw10"),
            message=f"log page {command.lid:#04x} is not supported",
        )
    limit = ctx.subsystem.config.max_transfer_bytes
    if command.length_bytes > limit:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw10", 16),
            message=f"{command.length_bytes} bytes of a log page are more than MDTS ({limit})",
        )
    if command.index_offset:
        raise CommandError(
            Status.INVALID_FIELD, SQE.error_location("cdw14", 23), message="index offsets are not supported (OT)"
        )
    if command.offset_bytes % 4:
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw12"),
            message=f"log page offset {command.offset_bytes} is not a multiple of 4",
        )


def get_log_page(ctx: QueueContext, sqe: Sqe, data: memoryview | None) -> Completion:
    """A part of a page; what is asked for beyond its end reads as zeroes. RAE = 0 lets its events be sent again."""
    command, controller = decode(sqe), ctx.controller
    assert controller is not None
    page = LOG_PAGES[command.lid].build(ctx, controller, command, sqe.nsid)
    if command.offset_bytes > len(page):
        raise CommandError(
            Status.INVALID_FIELD,
            SQE.error_location("cdw12"),
            message=f"offset {command.offset_bytes} is beyond the {len(page)} bytes of log page {command.lid:#04x}",
        )
    if not command.retain:
        controller.events.log_page_read(command.lid)
        if command.lid == LogPageId.CHANGED_NAMESPACES:
            controller.changed_namespaces.clear()
    part = page[command.offset_bytes : command.offset_bytes + command.length_bytes]
    return Completion(data=part.ljust(command.length_bytes, b"\0"))
