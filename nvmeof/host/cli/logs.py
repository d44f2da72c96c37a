"""Commands that show a controller's logs and features: smart-log, error-log, ana-log, get-log, get-feature."""

from __future__ import annotations

import sys
from typing import Any

import click

from nvmeof.cli.types import BYTES, U8, U32, Bytes, Number
from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import nvme_json
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.feature_text import feature_lines, feature_name
from nvmeof.spec.enums import NSID_ALL, FeatureId, FeatureSelect, LogPageId
from nvmeof.spec.features import FEATURE_DATA_BYTES
from nvmeof.spec.log_pages import (
    DATA_UNIT_BYTES,
    ERROR_INFORMATION_ENTRY,
    SMART_HEALTH,
)
from nvmeof.spec.status import describe_status, split_status
from nvmeof.wire import plain

KELVIN = 273
GET_LOG_MAX_BYTES = 1 << 30
"""More is taken for a slip: no log page is that long."""
_ALL = "[default: the controller]"


@opt.command("smart-log")
@click.option("-N", "--namespace-id", "nsid", type=U32, default=NSID_ALL, metavar="NSID", help=f"Namespace.  {_ALL}")
@opt.controller_options
@opt.output_option
@opt.coroutine
async def smart_log_command(output: str, nsid: int, **options: Any) -> None:
    """SMART / Health Information log page."""
    async with await opt.open_controller(options) as controller:
        log = plain(SMART_HEALTH.parse(await controller.get_log(LogPageId.SMART_HEALTH, 512, nsid=nsid)))
    if output == "json":
        out.print_json(nvme_json.smart_log(log))
        return
    shown = {name: str(value) for name, value in log.items()}
    shown["composite_temperature"] = f"{log['composite_temperature'] - KELVIN} °C"
    for name in ("data_units_read", "data_units_written"):
        shown[name] = f"{log[name]} ({out.size(log[name] * DATA_UNIT_BYTES)})"
    out.print_fields(shown.items())


@opt.command("error-log")
@click.option(
    "-e", "--log-entries", type=Number(1, 256), default=64, show_default=True, metavar="N", help="At most so many."
)
@opt.controller_options
@opt.output_option
@opt.coroutine
async def error_log_command(output: str, log_entries: int, **options: Any) -> None:
    """Error Information log page, newest entry first.

    The log belongs to a controller, and every connection has a separate controller, so the log is mostly empty. How
    many errors the subsystem has logged in all is in smart-log.
    """
    async with await opt.open_controller(options) as controller:
        count = min(log_entries, controller.info.elpe + 1)
        size = ERROR_INFORMATION_ENTRY.sizeof()
        raw = await controller.get_log(LogPageId.ERROR_INFORMATION, count * size)
        parsed = [ERROR_INFORMATION_ENTRY.parse(raw[start : start + size]) for start in range(0, len(raw), size)]
        entries = [plain(entry) for entry in parsed if entry.error_count]
        in_all = SMART_HEALTH.parse(await controller.get_log(LogPageId.SMART_HEALTH, SMART_HEALTH.sizeof()))
    if not entries:
        counted = in_all.error_log_entries
        out.remark(
            "no errors: this controller was made for this command; other controllers of the subsystem logged "
            + (f"{counted}: see the target's log, or 'nvme error-log' on a Linux host" if counted else "none")
        )
    if output == "json":
        out.print_json({"errors": [nvme_json.error_entry(entry) for entry in entries]})
        return
    rows = [
        (
            entry["error_count"],
            entry["sqid"],
            f"{entry['cid']:#06x}",
            f"{entry['opcode']:#04x}",
            describe_status(split_status(entry["status"])[0]),
            "-" if entry["parameter_error_location"] == 0xFFFF else f"{entry['parameter_error_location']:#06x}",
            entry["lba"],
            entry["nsid"],
        )
        for entry in entries
    ]
    if rows:
        out.print_table(("Count", "SQID", "CID", "Opcode", "Status", "Location", "LBA", "NSID"), rows, key="Status")


@opt.command("ana-log")
@opt.controller_options
@opt.output_option
@opt.coroutine
async def ana_log_command(output: str, **options: Any) -> None:
    """Asymmetric Namespace Access log page: the state of each group of namespaces on this path."""
    async with await opt.open_controller(options) as controller:
        log = await controller.ana_log()
        chgcnt, groups = log.change_count, log.groups
    if output == "json":
        out.print_json(nvme_json.ana_log("nvme0", chgcnt, groups))
        return
    rows = [
        (each.grpid, nvme_json.ana_state_name(each.state), each.chgcnt, " ".join(map(str, each.nsids)))
        for each in groups
    ]
    out.print_table(("Group", "State", "Changes", "Namespaces"), rows, right=("Group", "Changes"))


@opt.command("get-log")
@click.option("--log-id", type=U8, required=True, metavar="LID", help="Log page identifier.")
@click.option(
    "-l", "--log-len", type=Bytes(GET_LOG_MAX_BYTES), required=True, metavar="SIZE",
    help="Bytes to read, a multiple of 4.",
)  # fmt: skip
@click.option("--offset", type=BYTES, default=0, metavar="SIZE", help="Byte offset, a multiple of 4.")
@click.option("--lsp", type=Number(0, 127), default=0, metavar="N", help="Log specific parameter.")
@click.option("-N", "--namespace-id", "nsid", type=U32, default=NSID_ALL, metavar="NSID", help=f"Namespace.  {_ALL}")
@click.option("--rae", is_flag=True, help="Retain the asynchronous event.")
@click.option("-b", "--raw-binary", is_flag=True, help="The bytes themselves.")
@opt.controller_options
@opt.output_option
@opt.coroutine
async def get_log_command(
    log_id: int,
    log_len: int,
    offset: int,
    lsp: int,
    nsid: int,
    rae: bool,
    raw_binary: bool,
    output: str,
    **options: Any,
) -> None:
    """Any log page, as a hex dump, as JSON with the bytes in hexadecimal, or raw."""
    if not log_len or log_len % 4 or offset % 4:
        raise ConfigurationError("--log-len and --offset are multiples of 4 bytes, and --log-len is not 0")
    async with await opt.open_controller(options) as controller:
        data = await controller.get_log(log_id, log_len, offset, nsid=nsid, lsp=lsp, rae=rae)
    if raw_binary:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if output == "json":
        out.print_json({"log": log_id, "offset": offset, "data": data})
        return
    for line in out.hexdump(data):
        print(line)


@opt.command("get-feature")
@click.option("--feature-id", type=U8, required=True, metavar="FID", help="Feature identifier.")
@click.option("--sel", type=Number(0, 3), default=0, metavar="N", help="0 current, 1 default, 2 saved, 3 capabilities.")
@click.option("-N", "--namespace-id", "nsid", type=U32, default=0, metavar="NSID", help=f"Namespace.  {_ALL}")
@click.option(
    "-l", "--data-len", type=Bytes(1 << 20), metavar="SIZE",
    help="Bytes of data that come with the value.  [default: what the feature has]",
)  # fmt: skip
@opt.controller_options
@opt.output_option
@opt.coroutine
async def get_feature_command(
    feature_id: int, sel: int, nsid: int, data_len: int | None, output: str, **options: Any
) -> None:
    """A feature's value, and what it means.

    Most features belong to a controller, and every connection has a separate controller: the current value is what a
    host gets that has just connected, not what another host has set for itself. Values of a namespace or of the whole
    subsystem, and saved ones (--sel 2), are the same for all.
    """
    length = data_len
    if length is None:
        length = 0 if sel == FeatureSelect.SUPPORTED_CAPABILITIES else FEATURE_DATA_BYTES.get(feature_id, 0)
    async with await opt.open_controller(options) as controller:
        value: Any = await controller.get_feature(feature_id, sel, nsid=nsid, data_bytes=length)
    number, data = value if length else (value, b"")
    meaning = dict(feature_lines(feature_id, number, data, sel))
    if output == "json":
        out.print_json(
            {"feature": feature_id, "name": feature_name(feature_id), "value": number, "data": data, "meaning": meaning}
        )
    else:
        print(f"get-feature:{feature_id:#04x} ({feature_name(feature_id)}), value:{number:#010x}")
        out.print_fields((f"  {name}", text) for name, text in meaning.items())
        for line in out.hexdump(data):
            print(line)
    if sel == FeatureSelect.CURRENT and feature_id in _OF_A_CONTROLLER:
        out.remark("this is the value of the controller that was made for this command; other hosts have their own")


_OF_A_CONTROLLER = frozenset(
    {
        FeatureId.ARBITRATION,
        FeatureId.POWER_MANAGEMENT,
        FeatureId.TEMPERATURE_THRESHOLD,
        FeatureId.NUMBER_OF_QUEUES,
        FeatureId.WRITE_ATOMICITY_NORMAL,
        FeatureId.ASYNC_EVENT_CONFIGURATION,
        FeatureId.KEEP_ALIVE_TIMER,
        FeatureId.HOST_BEHAVIOR_SUPPORT,
        FeatureId.IO_COMMAND_SET_PROFILE,
        FeatureId.HOST_IDENTIFIER,
    }
)
"""Features whose scope is the controller (Base, Feature Identifiers)."""


COMMANDS = (smart_log_command, error_log_command, ana_log_command, get_log_command, get_feature_command)
