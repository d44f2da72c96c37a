"""Log pages as commands: the rows of :class:`~nvmeof.host.cli.structures.Structure` whose structure is a log page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from nvmeof.cli.types import U8, U16, Bytes, Number
from nvmeof.errors import ConfigurationError, NvmeofError, NvmeStatusError
from nvmeof.host.cli import nvme_json_logs as shown
from nvmeof.host.cli import options as opt
from nvmeof.host.cli.actions import tell
from nvmeof.host.cli.files import Sink
from nvmeof.host.cli.structures import Asked, Structure
from nvmeof.host.client import HostController
from nvmeof.spec.enums import NSID_ALL, Csi, LogPageId
from nvmeof.spec.persistent_events import HEADER as PERSISTENT_HEADER
from nvmeof.spec.persistent_events import LogAction
from nvmeof.spec.status import Status
from nvmeof.spec.telemetry import BLOCK_BYTES, CREATE, HEADER

LOG_MAX_BYTES = 1 << 30
"""More is taken for a length that makes no sense."""
LBA_STATUS_HEADER_BYTES = 16


def _page(lid: int, length_bytes: int, *, nsid: int = NSID_ALL, csi: int = 0) -> Callable[[Asked], Awaitable[bytes]]:
    """Return the reader of a page of fixed length."""

    async def read(asked: Asked) -> bytes:
        return await asked.controller.get_log(lid, length_bytes, nsid=nsid, csi=csi)

    return read


async def _effects(asked: Asked) -> bytes:
    """Read the effects of all command sets, or of the one that was asked for."""
    wanted = asked["csi"]
    found = []
    for csi in (Csi.ZONED, Csi.NVM) if wanted is None else (wanted,):
        try:
            page = await asked.controller.get_log(LogPageId.COMMANDS_SUPPORTED_AND_EFFECTS, 4096, nsid=0, csi=csi)
        except NvmeStatusError:
            if csi == Csi.NVM or wanted is not None:
                raise
            continue  # the controller has no such command set
        found.append((csi, page))
    asked.options["sets"] = [csi for csi, _ in found]
    return b"".join(page for _, page in found)


def _effects_json(data: bytes, asked: Asked) -> Any:
    return [shown.effects(data[4096 * at : 4096 * (at + 1)], int(csi)) for at, csi in enumerate(asked.options["sets"])]


async def _endurance(asked: Asked) -> bytes:
    return await asked.controller.get_log(LogPageId.ENDURANCE_GROUP, 512, nsid=0, lsi=asked["group"])


async def _lba_status(asked: Asked) -> bytes:
    head = await asked.controller.get_log(LogPageId.LBA_STATUS, LBA_STATUS_HEADER_BYTES, nsid=NSID_ALL, rae=True)
    length = int.from_bytes(head[:4], "little")
    if not LBA_STATUS_HEADER_BYTES <= length <= LOG_MAX_BYTES:
        raise NvmeofError(f"the LBA Status log claims {length} bytes, which is invalid")
    return await asked.controller.get_log(LogPageId.LBA_STATUS, -(-length // 4) * 4, nsid=NSID_ALL)


ACTIONS = {
    0: LogAction.READ, 1: LogAction.ESTABLISH_AND_READ, 2: LogAction.RELEASE, 3: LogAction.ESTABLISH_AND_READ_HEADER,
}  # fmt: skip


async def _persistent(asked: Asked) -> bytes:
    """Read the log in a context that this command establishes, unless an action says otherwise."""
    action, page = asked["action"], LogPageId.PERSISTENT_EVENTS
    alone = action is None
    first = LogAction.ESTABLISH_AND_READ if alone else ACTIONS[action]
    if first == LogAction.RELEASE:
        await asked.controller.get_log(page, 4, nsid=0, lsp=first)
        return b""
    head = await _established(asked.controller, first)
    try:
        length = asked["log_len"] or PERSISTENT_HEADER.parse(head).tll
        if length > LOG_MAX_BYTES:
            raise NvmeofError(f"the Persistent Event log claims {length} bytes, which is invalid")
        if length <= len(head):
            return head[:length]
        rest = await asked.controller.get_log(page, -(-(length - len(head)) // 4) * 4, len(head), nsid=0)
        return (head + rest)[:length]
    finally:
        if alone:
            await asked.controller.get_log(page, 4, nsid=0, lsp=LogAction.RELEASE)


async def _established(controller: HostController, action: LogAction) -> bytes:
    """Read the header; release first a context that an interrupted command has left."""
    page = LogPageId.PERSISTENT_EVENTS
    try:
        return await controller.get_log(page, 512, nsid=0, lsp=action)
    except NvmeStatusError as error:
        if error.status != Status.COMMAND_SEQUENCE_ERROR or action == LogAction.READ:
            raise
    await controller.get_log(page, 4, nsid=0, lsp=LogAction.RELEASE)
    return await controller.get_log(page, 512, nsid=0, lsp=action)


def _persistent_json(data: bytes, asked: Asked) -> Any:
    if len(data) < 512:
        return {}
    try:
        return shown.persistent_events(data)
    except ValueError as error:
        raise NvmeofError(f"the Persistent Event log cannot be read: {error}") from None


def _changed_lines(data: bytes, asked: Asked) -> Iterator[str]:
    changed = shown.changed_namespaces(data)[shown.DEVICE]
    yield from ([f"{name} : {value}" for name, value in changed.items()] or ["no namespace has changed"])


def _effects_lines(data: bytes, asked: Asked) -> Iterator[str]:
    for each in _effects_json(data, asked):
        yield f"command set {each['command_set_identifier']}"
        for name, value in (*each["admin_cmd_set"].items(), *each["io_cmd_set"].items()):
            yield f"  {name:<48} {value:#010x}"


_csi = click.option("-y", "--csi", "-c", "csi", type=U8, metavar="CSI", help="Command set.  [default: all that exist]")
_group = click.option(
    "--group-id", "group", type=U16, default=1, show_default=True, metavar="N", help="Endurance group."
)
_entries = click.option(
    "-e", "--dst-entries", "entries", type=Number(1, 20), default=20, show_default=True, metavar="N", help="Results."
)
_action = click.option(
    "--action", type=Number(0, 3), metavar="N",
    help="0 read, 1 establish and read, 2 release, 3 establish and read the header.  [default: 1, then 2]",
)  # fmt: skip
_log_len = click.option(
    "-l", "--log_len", "--log-len", "log_len", type=Bytes(LOG_MAX_BYTES), metavar="SIZE", help="At most so many bytes."
)


@dataclass(frozen=True, slots=True)
class _Simple:
    """A log page that needs no option."""

    name: str
    help: str
    lid: int
    length_bytes: int
    as_json: Callable[[bytes], Any]
    lines: Callable[[bytes, Asked], Iterator[str]] | None = None
    nsid: int = NSID_ALL

    def row(self) -> Structure:
        convert = self.as_json
        return Structure(
            self.name, self.help, _page(self.lid, self.length_bytes, nsid=self.nsid),
            lambda data, asked: convert(data), self.lines,
        )  # fmt: skip


_SIMPLE = (
    _Simple(
        "supported-log-pages", "Supported Log Pages (00h).", LogPageId.SUPPORTED_LOG_PAGES, 1024,
        shown.supported_logs, nsid=0,
    ),
    _Simple("fw-log", "Firmware Slot Information log page (03h).", LogPageId.FIRMWARE_SLOT, 512, shown.firmware_slots),
    _Simple(
        "changed-ns-list-log", "Changed Attached Namespace List log page (04h); reading it clears it.",
        LogPageId.CHANGED_NAMESPACES, 4096, shown.changed_namespaces, _changed_lines,
    ),
    _Simple(
        "changed-alloc-ns-list-log", "Changed Allocated Namespace List log page (1Ch); reading it clears it.",
        LogPageId.CHANGED_ALLOCATED_NAMESPACES, 4096, shown.changed_namespaces, _changed_lines,
    ),
    _Simple(
        "fid-support-effects-log", "Feature Identifiers Supported and Effects log page (12h).",
        LogPageId.FEATURES_SUPPORTED_AND_EFFECTS, 1024, shown.features_supported, nsid=0,
    ),
    _Simple(
        "mi-cmd-support-effects-log", "NVMe-MI Commands Supported and Effects log page (13h).",
        LogPageId.NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS, 4096, shown.mi_supported, nsid=0,
    ),
    _Simple(
        "resv-notif-log", "Reservation Notification log page (80h); reading it removes the notification.",
        LogPageId.RESERVATION_NOTIFICATION, 64, shown.reservation_notification, nsid=0,
    ),
    _Simple("sanitize-log", "Sanitize Status log page (81h).", LogPageId.SANITIZE_STATUS, 512, shown.sanitize),
)  # fmt: skip

ROWS = (
    *(each.row() for each in _SIMPLE),
    Structure(
        "effects-log", "Commands Supported and Effects log page (05h), of each command set.", _effects, _effects_json,
        _effects_lines, (_csi,),
    ),
    Structure(
        "self-test-log", "Device Self-test log page (06h), newest result first.",
        _page(LogPageId.DEVICE_SELF_TEST, 564), lambda data, asked: shown.self_test(data, asked["entries"]),
        options=(_entries,),
    ),
    Structure(
        "endurance-log", "Endurance Group Information log page (09h).", _endurance,
        lambda data, asked: shown.endurance(data), options=(_group,),
    ),
    Structure(
        "persistent-event-log", "Persistent Event log page (0Dh): what has happened to the subsystem.", _persistent,
        _persistent_json, options=(_action, _log_len),
    ),
    Structure(
        "lba-status-log", "LBA Status Information log page (0Eh).", _lba_status,
        lambda data, asked: shown.lba_status_log(data),
    ),
)  # fmt: skip


@opt.command("telemetry-log")
@click.option("-O", "--output-file", "path", required=True, type=click.Path(dir_okay=False), help="File to write.")
@click.option("--host-generate", type=click.Choice(["0", "1"]), default="1", show_default=True, help="1: new capture.")
@click.option("--controller-init", is_flag=True, help="The controller's own capture.")
@click.option(
    "-d", "--data-area", type=Number(1, 4), default=3, show_default=True, metavar="N", help="Up to this data area."
)
@click.option("-r", "--rae", is_flag=True, help="Retain the asynchronous event.")
@opt.controller_options
@opt.output_option
@opt.coroutine
async def telemetry_command(
    path: str, host_generate: str, controller_init: bool, data_area: int, rae: bool, output: str, **options: Any
) -> None:
    """Telemetry log page (07h, or 08h), to a file: its header and the data areas up to --data-area."""
    lid = LogPageId.TELEMETRY_CONTROLLER if controller_init else LogPageId.TELEMETRY_HOST
    lsp = CREATE if host_generate == "1" and not controller_init else 0
    async with await opt.open_controller(options) as controller:
        head = await controller.get_log(lid, HEADER.sizeof(), lsp=lsp, nsid=NSID_ALL, rae=True)
        last = HEADER.parse(head)[f"da{data_area}lb"]
        if not last and data_area == 4:
            raise ConfigurationError("this controller has no data area 4: give --data-area 3")
        length = last * BLOCK_BYTES
        if length > LOG_MAX_BYTES:
            raise NvmeofError(f"the telemetry log claims {length} bytes, which is invalid")
        rest = b""
        if length:
            rest = await controller.get_log(lid, length, HEADER.sizeof(), nsid=NSID_ALL, rae=rae)
    sink = Sink(path)
    with sink.filling(len(head) + len(rest)):
        await sink.write(memoryview(head + rest))
    size = len(head) + len(rest)
    tell((f"{size} bytes of telemetry were written to {path}", {"file": path, "bytes": size}), output)


COMMANDS = (*(row.command() for row in ROWS), telemetry_command)
