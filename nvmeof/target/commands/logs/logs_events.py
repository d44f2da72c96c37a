"""The Persistent Event log: the subsystem's history, read through a reporting context that does not change.

The context belongs to a controller, and goes with its reset.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.spec.enums import LogPageId, Lpa
from nvmeof.spec.log_pages import GetLogPage
from nvmeof.spec.persistent_events import (
    HEADER,
    HEADER_BYTES,
    HEADER_LENGTH_FIELD,
    LOG_REVISION,
    RCI_CONTEXT_EXISTS,
    RCI_SUBSYSTEM_PORT,
    EventType,
    LogAction,
    supported_events,
)
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.rows.log_pages import LSP, LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.controller.controller import Controller
from nvmeof.target.subsystem.persistent_events import HISTORY_BYTES
from nvmeof.wire import build, layout

PELS = -(-(HISTORY_BYTES + HEADER_BYTES) // 65536)
"""What Identify Controller says of the log's size: units of 64 KiB."""
_RCI_OFFSET, _ = layout(HEADER)["rci"]
_LIDSP_HEADER_ACTION = 1 << 0
_ACTION_MASK = 3
_ALWAYS = (
    EventType.SMART_SNAPSHOT,
    EventType.TIMESTAMP_CHANGE,
    EventType.POWER_ON_OR_RESET,
    EventType.HARDWARE_ERROR,
    EventType.SET_FEATURE,
    EventType.TELEMETRY_CREATED,
)
"""Events that exist whatever commands the subsystem has."""


@dataclass
class ReportingContext:
    """The log as it was when a host began to read it; None while there is no reporting context."""

    page: bytes | None = None

    def reset(self) -> None:
        """Release the reporting context at a Controller Reset (NVMe Base, Persistent Event log)."""
        self.page = None


def supported(commands: CommandTables) -> tuple[EventType, ...]:
    """Return the types of events that may be in the log."""
    return tuple(sorted({*_ALWAYS, *(event for spec in commands.admin.values() for event in spec.events)}))


def _header(commands: CommandTables, controller: Controller, count: int, length_bytes: int, generation: int) -> bytes:
    subsystem = controller.subsystem
    hours = int(subsystem.lifetime.power_on_seconds(controller.runtime.now()) // 3600)
    return build(
        HEADER,
        lid=LogPageId.PERSISTENT_EVENTS,
        tnev=count,
        tll=length_bytes,
        lrev=LOG_REVISION,
        lhl=HEADER_LENGTH_FIELD,
        tstmp=controller.timestamp,
        poh=hours,
        pwrcc=subsystem.lifetime.power_cycles,
        sn=subsystem.config.serial_number,
        mn=subsystem.config.model,
        subnqn=subsystem.nqn,
        gnum=generation,
        seb=supported_events(supported(commands)),
    )


def _establish(commands: CommandTables, controller: Controller) -> bytes:
    """Make a reporting context: the whole log as it is now, the newest event first."""
    history = controller.subsystem.history
    events = [event.encode() for event in reversed(history.events)]
    length = HEADER_BYTES + sum(map(len, events))
    page = _header(commands, controller, len(events), length, history.next_generation()) + b"".join(events)
    controller.parts[ReportingContext].page = page
    return page


def _check(controller: Controller, command: GetLogPage) -> None:
    context = controller.parts[ReportingContext].page
    action = command.lsp & _ACTION_MASK
    if action == LogAction.READ and context is None:
        raise CommandError(
            Status.COMMAND_SEQUENCE_ERROR, LSP, message="the Persistent Event log is read without a reporting context"
        )
    if action == LogAction.ESTABLISH_AND_READ and context is not None:
        raise CommandError(
            Status.COMMAND_SEQUENCE_ERROR, LSP, message="the Persistent Event log has a reporting context already"
        )


def _events(ctx: AdminContext, controller: Controller, command: GetLogPage, nsid: int) -> bytes:
    _check(controller, command)
    action = command.lsp & _ACTION_MASK
    context = controller.parts[ReportingContext].page
    if action == LogAction.RELEASE:
        controller.parts[ReportingContext].page = None
        return b""
    if action == LogAction.ESTABLISH_AND_READ_HEADER:
        existed = context is not None
        header = bytearray((context or _establish(ctx.tables[CommandTables], controller))[:HEADER_BYTES])
        if existed:
            rci = RCI_CONTEXT_EXISTS | RCI_SUBSYSTEM_PORT | controller.port.portid
            header[_RCI_OFFSET : _RCI_OFFSET + 4] = rci.to_bytes(4, "little")
        return bytes(header)
    return context if context is not None else _establish(ctx.tables[CommandTables], controller)


ROWS = Rows(
    log_pages=(
        LogPageSpec(
            LogPageId.PERSISTENT_EVENTS,
            "Persistent Event",
            _events,
            check=_check,
            lidsp=_LIDSP_HEADER_ACTION,
            lpa=Lpa.PERSISTENT_EVENTS,
            remark="outlives restarts with --state",
        ),
    ),
)
