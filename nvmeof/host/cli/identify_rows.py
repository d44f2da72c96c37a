"""Identify structures as commands; also Get LBA Status and the reservation report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import click

from nvmeof.cli.types import U8, U16, U32, U64, Number
from nvmeof.host import sqe_builders
from nvmeof.host.cli.structures import Asked, Structure
from nvmeof.spec.enums import CNTLID_DYNAMIC, Cns, Csi, NamespaceIdType
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER_NVM,
    IO_COMMAND_SETS,
    parse_controller_list,
    parse_namespace_descriptors,
    parse_namespace_list,
)
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE_INDEPENDENT, IDENTIFY_NAMESPACE_NVM
from nvmeof.spec.media import LBA_STATUS_HEADER, parse_lba_status
from nvmeof.spec.namespace_management import NAMESPACE_GRANULARITY_LIST
from nvmeof.spec.reservations import ReservationReport
from nvmeof.spec.uuid_list import parse_uuid_list
from nvmeof.wire import plain


def _identify(
    cns: int, csi: int = 0, *, of_namespace: bool = False, cntid: int = 0
) -> Callable[[Asked], Awaitable[bytes]]:
    """Return the reader of an Identify structure."""

    async def read(asked: Asked) -> bytes:
        return await asked.controller.identify_raw(cns, asked.nsid if of_namespace else 0, cntid, csi)

    return read


# -- lists


async def _namespaces(asked: Asked) -> bytes:
    cns = {
        (False, False): Cns.ACTIVE_NAMESPACES,
        (False, True): Cns.ALLOCATED_NAMESPACES,
        (True, False): Cns.CSI_ACTIVE_NAMESPACES,
        (True, True): Cns.CSI_ALLOCATED_NAMESPACES,
    }[asked["csi"] is not None, asked["all_namespaces"]]
    first = max(asked["start"] - 1, 0)
    return await asked.controller.identify_raw(cns, first, csi=asked["csi"] or 0)


async def _controllers(asked: Asked) -> bytes:
    nsid = asked["attached"]
    cns = Cns.CONTROLLERS if nsid is None else Cns.ATTACHED_CONTROLLERS
    return await asked.controller.identify_raw(cns, nsid or 0, asked["cntid"])


def _numbered(values: list[int], heading: str) -> Iterator[str]:
    yield heading
    for number, each in enumerate(values):
        yield f"[{number:4}]:{each:#x}"


def _controller_list(data: bytes, asked: Asked) -> Any:
    found = parse_controller_list(data)
    return {"num_ctrl": len(found), "ctrl_list": [{"ctrl_id": each} for each in found]}


def _endurance_groups(data: bytes, asked: Asked) -> Any:
    found = parse_controller_list(data)  # a list of 16-bit identifiers with their number in front, as this one
    return {"num_endgrp_id": len(found), "endgrp_list": [{"endgrp_id": each} for each in found]}


# -- identifiers

_TYPES = {
    NamespaceIdType.EUI64: "eui64",
    NamespaceIdType.NGUID: "nguid",
    NamespaceIdType.UUID: "uuid",
    NamespaceIdType.CSI: "csi",
}


def _descriptors(data: bytes, asked: Asked) -> Any:
    found, at = [], 0
    for each in parse_namespace_descriptors(data):
        text = each.nid.hex()
        kind = _TYPES.get(NamespaceIdType(each.nidt), "unknown") if each.nidt in _TYPES else "unknown"
        if kind == "uuid":
            text = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        elif kind == "csi":
            text = f"{each.nid[0]:x}"
        found.append({"loc": at, "nidt": int(each.nidt), "nidl": len(each.nid), "Type": kind, kind: text})
        at += 4 + len(each.nid)
    return {"ns-descs": found}


def _descriptor_lines(data: bytes, asked: Asked) -> Iterator[str]:
    for each in _descriptors(data, asked)["ns-descs"]:
        yield f"{each['Type']:<7} : {each[each['Type']]}"


_SETS = {
    4: "Computational Programs", 3: "Subsystem Local Memory", Csi.ZONED: "Zoned Namespace", Csi.KEY_VALUE: "Key Value",
    Csi.NVM: "NVM",
}  # fmt: skip


def _command_sets(data: bytes, asked: Asked) -> Any:
    found: dict[str, Any] = {}
    for at, each in enumerate(IO_COMMAND_SETS.parse(data).combinations):
        if not each:
            break
        found[f"I/O Command Set Combination[{at}]"] = each
        found[f"IOCSC{at}"] = {
            f"{name} Command Set": "Selected" if each >> bit & 1 else "Not selected" for bit, name in _SETS.items()
        }
    return found


def _uuids(data: bytes, asked: Asked) -> Any:
    return {"UUID-list": [{"association": int(kind), "uuid": str(uuid)} for kind, uuid in parse_uuid_list(data)]}


def _granularities(data: bytes, asked: Asked) -> Any:
    table = NAMESPACE_GRANULARITY_LIST.parse(data)
    return {
        "attributes": table.attributes,
        "num-descriptors": table.num_descriptors,
        "namespace-granularity-list": [
            {"namespace-size-granularity": each.nszegran, "namespace-capacity-granularity": each.ncapgran}
            for each in table.descriptors[: table.num_descriptors + 1]
        ],
    }


def _independent(data: bytes, asked: Asked) -> Any:
    return {name: value for name, value in plain(IDENTIFY_NAMESPACE_INDEPENDENT.parse(data)).items() if name != "vs"}


def _nvm_namespace(data: bytes, asked: Asked) -> Any:
    raw = plain(IDENTIFY_NAMESPACE_NVM.parse(data))
    formats = raw.pop("elbaf")
    shown = {name: raw.pop(name) for name in ("lbstm", "pic", "pifa") if name in raw}
    assert asked.namespace is not None
    count = asked.namespace.info.nlbaf + asked.namespace.info.nulbaf + 1
    shown["elbafs"] = [{"sts": each & 0x7F, "pif": each >> 7 & 3, "qpif": each >> 9 & 0xF} for each in formats[:count]]
    return {**shown, **raw}


# -- other commands


async def _lba_status(asked: Asked) -> bytes:
    data = bytearray(4 * asked["max_dw"])
    sqe = sqe_builders.get_lba_status(asked.nsid, asked["start_lba"], asked["range_len"], len(data), asked["action"])
    await asked.controller.admin(sqe, data_in=memoryview(data))
    return bytes(data)


def _lba_status_json(data: bytes, asked: Asked) -> Any:
    _, entries = parse_lba_status(data)
    header = LBA_STATUS_HEADER.parse(data)
    return {
        "Number of LBA Status Descriptors (NLSD)": header.nlsd,
        "Completion Condition (CMPC)": header.cmpc,
        "LBA status descriptors": [
            {"Descriptor Starting LBA (DSLBA)": start, "Number of Logical Blocks (NLB)": blocks - 1, "Status": status}
            for start, blocks, status in entries
        ],
    }


async def _report(asked: Asked) -> bytes:
    assert asked.namespace is not None
    report = await asked.namespace.reservations.report()
    return report.encode()


def _report_json(data: bytes, asked: Asked) -> Any:
    report = ReservationReport.decode(data)
    return {
        "gen": report.generation,
        "rtype": report.rtype,
        "regctl": report.count,
        "ptpls": int(report.persistent),
        "regctlext": [
            {"cntlid": each.cntlid, "rcsts": int(each.holder), "rkey": each.key, "hostid": each.hostid.hex()}
            for each in report.registrants
        ],
    }


def _command_set_option(short: str = "-y") -> Callable[[Any], Any]:
    return click.option(short, "--csi", "csi", type=U8, metavar="CSI", help="Only of this command set.")


ROWS = (
    Structure(
        "list-ns",
        "The namespaces that are attached to the controller.",
        _namespaces,
        lambda data, asked: {"nsid_list": [{"nsid": each} for each in parse_namespace_list(data)]},
        lambda data, asked: _numbered(parse_namespace_list(data), "NVME Namespace List:"),
        (
            _command_set_option(),
            click.option("--all", "all_namespaces", is_flag=True, help="Unattached ones too."),
            click.option("--start", type=U32, default=1, show_default=True, metavar="NSID", help="From this one on."),
        ),
    ),
    Structure(
        "list-ctrl",
        "The controllers of the subsystem, or those that a namespace is attached to.",
        _controllers,
        _controller_list,
        lambda data, asked: _numbered(parse_controller_list(data), f"num of ctrls present: {data[0] | data[1] << 8}"),
        (
            click.option("--cntid", type=U16, default=0, show_default=True, metavar="CNTLID", help="From this one on."),
            click.option(
                "-N",
                "--namespace-id",
                "attached",
                type=U32,
                metavar="NSID",
                help="To which this namespace is attached.",
            ),
        ),
    ),
    Structure(
        "ns-descs",
        "The identifiers of a namespace: EUI-64, NGUID, UUID, command set.",
        _identify(Cns.NAMESPACE_DESCRIPTORS, of_namespace=True),
        _descriptors,
        _descriptor_lines,
        namespace=True,
    ),
    Structure(
        "nvm-id-ctrl",
        "Identify Controller of the NVM command set.",
        _identify(Cns.CSI_CONTROLLER, Csi.NVM),
        lambda data, asked: plain(IDENTIFY_CONTROLLER_NVM.parse(data)),
    ),
    Structure(
        "nvm-id-ns",
        "Identify Namespace of the NVM command set.",
        _identify(Cns.CSI_NAMESPACE, Csi.NVM, of_namespace=True),
        _nvm_namespace,
        namespace=True,
    ),
    Structure(
        "cmdset-ind-id-ns",
        "Identify Namespace, what does not depend on the command set.",
        _identify(Cns.INDEPENDENT_NAMESPACE, of_namespace=True),
        _independent,
        namespace=True,
    ),
    Structure(
        "id-iocs",
        "The combinations of command sets.",
        _identify(Cns.IO_COMMAND_SETS, cntid=CNTLID_DYNAMIC),
        _command_sets,
    ),
    Structure("id-uuid", "The UUID list.", _identify(Cns.UUIDS), _uuids),
    Structure(
        "id-ns-granularity",
        "Granularities of namespaces' sizes and capacities.",
        _identify(Cns.NAMESPACE_GRANULARITY),
        _granularities,
    ),
    Structure("list-endgrp", "The endurance groups.", _identify(Cns.ENDURANCE_GROUPS), _endurance_groups),
    Structure(
        "get-lba-status",
        "Get LBA Status: blocks that may not be readable.",
        _lba_status,
        _lba_status_json,
        options=(
            click.option("--start-lba", type=U64, default=0, show_default=True, metavar="LBA", help="First block."),
            click.option(
                "-m",
                "--max-dw",
                type=Number(2, 1 << 20),
                default=1024,
                show_default=True,
                metavar="N",
                help="Dwords of the answer.",
            ),
            click.option(
                "--action",
                type=U8,
                default=0x11,
                metavar="N",
                help="10h: scan all blocks; 11h: tracked blocks.  [default: 11h]",
            ),
            click.option(
                "-l", "--range-len", type=U16, default=0, metavar="N", help="Blocks.  [default: all that follow]"
            ),
        ),
        namespace=True,
    ),
    Structure(
        "resv-report",
        "Reservation Report: the registrants, and who holds the reservation.",
        _report,
        _report_json,
        options=(click.option("-e", "--eds", is_flag=True, help="Host identifiers of 128 bits, as always here."),),
        namespace=True,
    ),
)
COMMANDS = tuple(row.command() for row in ROWS)
