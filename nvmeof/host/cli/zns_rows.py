"""``zns``: the commands of zoned namespaces, as nvme-cli's plug-in has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from nvmeof.cli.types import U64, Bytes, Number
from nvmeof.errors import ConfigurationError
from nvmeof.host import sqe_builders
from nvmeof.host.cli.actions import Action, Outcome
from nvmeof.host.cli.files import Source
from nvmeof.host.cli.structures import Asked, Structure
from nvmeof.host.namespace import Namespace
from nvmeof.spec.enums import Cns, Csi
from nvmeof.spec.identify_namespace import format_index
from nvmeof.spec.zns import (
    CHANGED_ZONES_TOO_MANY,
    EXTENSION_UNIT_BYTES,
    IDENTIFY_CONTROLLER_ZNS,
    IDENTIFY_NAMESPACE_ZNS,
    ZONE_DESCRIPTOR_BYTES,
    ZONE_REPORT_HEADER_BYTES,
    ZoneReceiveAction,
    ZoneSendAction,
    ZoneState,
    parse_zone_report,
)
from nvmeof.wire import plain

_STATES: dict[int, str] = {
    ZoneState.EMPTY: "EMPTY", ZoneState.IMPLICITLY_OPENED: "IMP_OPENED", ZoneState.EXPLICITLY_OPENED: "EXP_OPENED",
    ZoneState.CLOSED: "CLOSED", ZoneState.READ_ONLY: "READONLY", ZoneState.FULL: "FULL", ZoneState.OFFLINE: "OFFLINE",
}  # fmt: skip


def _namespace(asked: Asked) -> Namespace:
    assert asked.namespace is not None
    return asked.namespace


# -- structures


async def _id_ctrl(asked: Asked) -> bytes:
    return await asked.controller.identify_raw(Cns.CSI_CONTROLLER, csi=Csi.ZONED)


async def _id_ns(asked: Asked) -> bytes:
    return await asked.controller.identify_raw(Cns.CSI_NAMESPACE, asked.nsid, csi=Csi.ZONED)


def _id_ns_json(data: bytes, asked: Asked) -> Any:
    info, of = plain(IDENTIFY_NAMESPACE_ZNS.parse(data)), _namespace(asked).info
    formats = info.pop("lbafe")[: of.nlbaf + of.nulbaf + 1]
    del info["vs"]
    return {**info, "lbafe": formats}


async def _extension_bytes(asked: Asked) -> int:
    """Return the bytes of each zone's descriptor extension, if asked for."""
    if not asked["extended"]:
        return 0
    namespace = _namespace(asked)
    zdes = (await namespace.zones.info()).lbafe[format_index(namespace.info.flbas)].zdes
    return zdes * EXTENSION_UNIT_BYTES


async def _report(asked: Asked) -> bytes:
    """Read the report as one structure: the header of the whole, and as many descriptors as were asked for."""
    namespace, extension = _namespace(asked), await _extension_bytes(asked)
    asked.options["extension"] = extension
    port, start, stride = namespace.port, asked["start_lba"], ZONE_DESCRIPTOR_BYTES + extension
    action = ZoneReceiveAction.EXTENDED_REPORT if extension else ZoneReceiveAction.REPORT

    async def receive(lba: int, zones: int) -> bytes:
        data = bytearray(ZONE_REPORT_HEADER_BYTES + zones * stride)
        sqe = sqe_builders.zone_receive(
            namespace.nsid, lba, len(data), action, asked["state"], partial=asked["partial"]
        )
        await port.io(sqe, data_in=memoryview(data))
        return bytes(data)

    head = (await receive(start, 0))[:ZONE_REPORT_HEADER_BYTES]
    wanted = int.from_bytes(head[:8], "little")
    if asked["descs"] is not None:
        wanted = min(wanted, asked["descs"])
    at_once = max((min(64 << 10, port.max_transfer_bytes) - ZONE_REPORT_HEADER_BYTES) // stride, 1)
    parts = [head]
    while wanted > 0:
        data = await receive(start, min(at_once, wanted))
        _, found = parse_zone_report(data, extension)
        if not found:
            break
        parts.append(data[ZONE_REPORT_HEADER_BYTES : ZONE_REPORT_HEADER_BYTES + len(found) * stride])
        wanted -= len(found)
        start = max(found[-1].zslba + 1, start + 1)
    return b"".join(parts)


def _report_json(data: bytes, asked: Asked) -> Any:
    extension = asked["extension"]
    number, zones = parse_zone_report(data, extension)
    listed = []
    for at, each in enumerate(zones):
        zone = {
            "slba": each.zslba, "wp": each.wp, "cap": each.zcap, "state": _STATES.get(each.zs >> 4, "UNKNOWN"),
            "type": "SEQWRITE_REQ" if each.zt == 2 else "UNKNOWN", "attrs": each.za, "attrs_info": each.zai,
        }  # fmt: skip
        if extension:
            begin = ZONE_REPORT_HEADER_BYTES + at * (ZONE_DESCRIPTOR_BYTES + extension) + ZONE_DESCRIPTOR_BYTES
            zone["ext_data"] = data[begin : begin + extension].hex()
        listed.append(zone)
    return {"nr_zones": number, "zone_list": listed}


def _report_lines(data: bytes, asked: Asked) -> Iterator[str]:
    report = _report_json(data, asked)
    yield f"nr_zones: {report['nr_zones']}"
    for each in report["zone_list"]:
        yield (
            f"SLBA: {each['slba']:#010x} WP: {each['wp']:#010x} Cap: {each['cap']:#08x} "
            f"State: {each['state']:<10} Type: {each['type']} Attrs: {each['attrs']:#04x}"
            + (f" Ext: {each['ext_data']}" if "ext_data" in each else "")
        )


async def _changed(asked: Asked) -> bytes:
    return await asked.controller.get_log(0xBF, 4096, nsid=asked.nsid, csi=Csi.ZONED, rae=asked["rae"])


def _changed_json(data: bytes, asked: Asked) -> Any:
    number = int.from_bytes(data[:2], "little")
    shown: dict[str, Any] = {"nrzid": number}
    count = 0 if number == CHANGED_ZONES_TOO_MANY else number
    for at in range(count):
        shown[f"zid {at:03}"] = f"{int.from_bytes(data[8 + 8 * at : 16 + 8 * at], 'little'):#x}"
    return shown


_START = click.option(
    "--start-lba", type=U64, default=0, show_default=True, metavar="LBA", help="First block of the zone."
)

STRUCTURES = (
    Structure(
        "id-ctrl",
        "Identify Controller of the zoned command set.",
        _id_ctrl,
        lambda data, asked: plain(IDENTIFY_CONTROLLER_ZNS.parse(data)),
    ),
    Structure("id-ns", "Identify Namespace of the zoned command set.", _id_ns, _id_ns_json, namespace=True),
    Structure(
        "report-zones",
        "The zones of a namespace, their states and write pointers.",
        _report,
        _report_json,
        _report_lines,
        (
            _START,
            click.option("-d", "--descs", type=Number(1), metavar="N", help="At most so many.  [default: all]"),
            click.option(
                "--state",
                type=Number(0, 7),
                default=0,
                metavar="N",
                help="1 empty, 2, 3 opened, 4 closed, 5 full, 6 read only, 7 offline.",
            ),
            click.option("-e", "--extended", is_flag=True, help="Include descriptor extensions."),
            click.option("-p", "--partial", is_flag=True, help="Count only the zones of the answer."),
        ),
        namespace=True,
    ),
    Structure(
        "changed-zone-list",
        "Zones that changed by themselves (log page BFh); reading it clears it.",
        _changed,
        _changed_json,
        options=(click.option("-r", "--rae", is_flag=True, help="Retain the event."),),
        namespace=True,
    ),
)


# -- actions


async def _send(asked: Asked, action: int, start: int, *, everywhere: bool = False, data: bytes | None = None) -> None:
    namespace = _namespace(asked)
    sqe = sqe_builders.zone_send(namespace.nsid, start, action, select_all=everywhere)
    await namespace.port.io(sqe, data_out=data)


def _manage(action: ZoneSendAction) -> Any:
    async def run(asked: Asked) -> Outcome:
        if asked["start_lba"] is None and not asked["select_all"]:
            raise ConfigurationError("which zone? Give its first block with --start-lba, or --select-all")
        await _send(asked, action, asked["start_lba"] or 0, everywhere=asked["select_all"])
        where = "all zones" if asked["select_all"] else f"zone {asked['start_lba']}"
        return f"{action.name.lower()}: {where} of namespace {asked.nsid}"

    return run


async def _set_description(asked: Asked) -> Outcome:
    with Source(asked["path"]) as source:
        data = await source.read(255 * EXTENSION_UNIT_BYTES)
    await _namespace(asked).zones.set_extension(asked["start_lba"], data)
    return f"set the extension of zone {asked['start_lba']} of namespace {asked.nsid}"


async def _append(asked: Asked) -> Outcome:
    namespace = _namespace(asked)
    with Source(asked["path"]) as source:
        data = await source.read(asked["data_size"] or namespace.port.max_transfer_bytes)
    size = namespace.block_bytes
    padded = data.ljust(-(-len(data) // size) * size, b"\0")
    lba = await namespace.zones.append(asked["zslba"], padded, fua=asked["fua"])
    return f"Success appended data to LBA {lba:x}", {"lba": lba, "blocks": len(padded) // size}


async def _mgmt_send(asked: Asked) -> Outcome:
    data = None
    if asked["path"] is not None:
        with Source(asked["path"]) as source:
            data = await source.read(255 * EXTENSION_UNIT_BYTES)
    await _send(asked, asked["zsa"], asked["start_lba"] or 0, everywhere=asked["select_all"], data=data)
    return f"zone management action {asked['zsa']:#x} done on namespace {asked.nsid}"


_WHICH = click.option("--start-lba", type=U64, metavar="LBA", help="First block of the zone.")
_ALL = click.option("--select-all", is_flag=True, help="All zones in a suitable state.")
_FILE = click.option("-d", "--data", "path", type=click.Path(dir_okay=False), help="File.  [default: stdin]")
_MANAGED = (
    ("open-zone", "Open a zone explicitly.", ZoneSendAction.OPEN),
    ("close-zone", "Close a zone.", ZoneSendAction.CLOSE),
    ("finish-zone", "Make a zone full.", ZoneSendAction.FINISH),
    ("reset-zone", "Make a zone empty: its data is gone.", ZoneSendAction.RESET),
    ("offline-zone", "Take a read-only zone offline.", ZoneSendAction.OFFLINE),
)

ACTIONS = (
    *(Action(name, text, _manage(action), (_WHICH, _ALL)) for name, text, action in _MANAGED),
    Action("set-zone-desc", "Give an empty zone its descriptor extension.", _set_description, (_START, _FILE)),
    Action(
        "zone-append",
        "Append data to a zone; where it went is printed.",
        _append,
        (
            click.option(
                "--zslba", type=U64, default=0, show_default=True, metavar="LBA", help="First block of the zone."
            ),
            click.option(
                "-z", "--data-size", type=Bytes(1 << 31), metavar="SIZE", help="Bytes of the data.  [default: all]"
            ),
            _FILE,
            click.option("--force-unit-access", "--fua", "fua", is_flag=True, help="Force Unit Access."),
        ),
    ),
    Action(
        "zone-mgmt-send",
        "Zone Management Send with any action.",
        _mgmt_send,
        (
            _WHICH,
            _ALL,
            click.option("--zsa", type=Number(0, 255), required=True, metavar="N", help="Action."),
            click.option("-d", "--data", "path", type=click.Path(dir_okay=False), help="File with data."),
        ),
    ),
)


@click.group("zns", context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.pass_context
def zns_group(ctx: click.Context) -> None:
    """Zoned namespaces: reports, states of zones, appending."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


for _command in (*(row.command() for row in STRUCTURES), *(action.command() for action in ACTIONS)):
    zns_group.add_command(_command)

COMMANDS = (zns_group,)
