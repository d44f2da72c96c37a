"""Commands that show subsystems, controllers and namespaces: list, id-ctrl, id-ns, connect, gen-hostnqn."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from nvmeof.cli import interrupts
from nvmeof.errors import ConfigurationError, NvmeofError, TransportError
from nvmeof.host.async_events import AsyncEvent
from nvmeof.host.cli import nvme_json
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.saved import url_of_options
from nvmeof.host.cli.subsystem import multipath_options, open_host
from nvmeof.host.client import HostController, connect, discover
from nvmeof.host.config_files import saved
from nvmeof.host.facts import QueueFacts
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.multipath.member import Member
from nvmeof.host.namespace import Namespace
from nvmeof.host.path import PathState
from nvmeof.spec.enums import NVME_PORT
from nvmeof.spec.identify_namespace import format_index
from nvmeof.spec.nqn import uuid_nqn
from nvmeof.spec.properties import Vs
from nvmeof.transport import Address
from nvmeof.wire import plain


@opt.command("list")
@opt.controller_options
@opt.output_option
@opt.coroutine
async def list_command(output: str, **options: Any) -> None:
    """Show the namespaces of a subsystem, or of all that discovery names."""
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for index, paths in enumerate(await _subsystems(options)):
        try:
            async with await _first_that_connects(paths, options) as controller:
                rows += [_row(index, controller, namespace) for namespace in await controller.namespaces()]
        except NvmeofError as error:
            failures.append(f"{paths[0]['subnqn']}: {error}")
    if output == "json":
        out.print_json({"Devices": rows})
    else:
        headings = ("Node", "Subsystem NQN", "Serial", "Model", "NSID", "Usage", "Format", "Transport")
        out.print_table(headings, [_shown(row) for row in rows], ("NSID",), key="Subsystem NQN")
    for failure in failures:
        out.remark(failure)
    if not rows and not failures:
        out.remark("no namespaces: none is attached to this host (a host creates them where the target has --capacity)")
    if failures and not rows:
        sys.exit(1)


async def _subsystems(options: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the ways to each subsystem: where to connect, once for each distinct path."""
    if options.get("nqn"):
        return [[{"subnqn": options["nqn"], "trsvcid": options.get("trsvcid") or NVME_PORT}]]
    found = opt.paths_to_subsystems(await discover(**opt.discovery_options(options)), options)
    return [
        [{"subnqn": path.subnqn, "traddr": path.traddr, "trsvcid": path.trsvcid} for path in paths]
        for paths in found.values()
    ]


async def _first_that_connects(paths: list[dict[str, Any]], options: dict[str, Any]) -> HostController:
    """Return a controller over the first path that connects. Raises the error of the last one."""
    for place in paths:
        chosen = {**opt.split_options(options), **place, "nr_io_queues": 1}
        try:
            return await connect(paths=opt.path_options(options), **chosen)
        except (TransportError, ConfigurationError):
            if place is paths[-1]:
                raise
    raise AssertionError("a subsystem without a path")


def _row(index: int, controller: HostController, namespace: Namespace) -> dict[str, Any]:
    info, nsid = controller.info, namespace.nsid
    facts = controller.describe()[0]
    return {
        "NameSpace": nsid,
        "DevicePath": f"nvme{index}n{nsid}",
        "GenericPath": f"ng{index}n{nsid}",
        "SubsystemNQN": controller.options.subnqn,
        "Firmware": info.fr,
        "ModelNumber": info.mn,
        "SerialNumber": info.sn,
        "UsedBytes": namespace.info.nuse * namespace.block_bytes,
        "MaximumLBA": namespace.size_blocks,
        "PhysicalSize": namespace.size_bytes,
        "SectorSize": namespace.block_bytes,
        "Transport": facts.get("transport"),
        "Protocol": facts.get("protocol"),
        "Address": str(Address(controller.options.traddr, controller.options.trsvcid)),
        "TransportInUse": out.transport_in_use(facts),
    }


def _shown(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        row["DevicePath"],
        row["SubsystemNQN"],
        row["SerialNumber"],
        row["ModelNumber"],
        row["NameSpace"],
        f"{out.size(row['UsedBytes'])} / {out.size(row['PhysicalSize'])}",
        out.block_size(row["SectorSize"]),
        row["TransportInUse"],
    )


@opt.command("id-ctrl")
@opt.controller_options
@opt.output_option
@opt.coroutine
async def id_ctrl_command(output: str, **options: Any) -> None:
    """Identify Controller."""
    async with await opt.open_controller(options) as controller:
        info = plain(await controller.identify())
    if output == "json":
        out.print_json(nvme_json.identify_controller(info))
        return
    shown = {
        name: f"{value:#x}" if name in _HEXADECIMAL else _field(value)
        for name, value in info.items()
        if name not in ("psd", "vs")
    }
    shown["ver"] = f"{shown['ver']} ({Vs.decode(info['ver'])})"
    if info["mdts"]:
        shown["mdts"] = f"{info['mdts']} ({out.block_size(controller.cap.mpsmin_bytes << info['mdts'])})"
    shown["ioccsz"] = f"{info['ioccsz']} ({info['ioccsz'] * 16} bytes)"
    out.print_fields(shown.items())


_HEXADECIMAL = frozenset(
    {"vid", "ssvid", "cntlid", "ver", "oaes", "ctratt", "oacs", "frmw", "lpa", "sqes", "cqes", "oncs", "fuses", "fna",
     "vwc", "sgls", "fcatt", "ofcs", "cmic"}
)  # fmt: skip


def _field(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@opt.command("id-ns")
@opt.controller_options
@opt.namespace_option
@opt.output_option
@opt.coroutine
async def id_ns_command(output: str, nsid: int | None, **options: Any) -> None:
    """Identify Namespace."""
    async with await opt.open_controller(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        info = plain(namespace.info)
    if output == "json":
        out.print_json({"nsid": namespace.nsid, **nvme_json.identify_namespace(info)})
        return
    formats, in_use = info.pop("lbaf"), format_index(info["flbas"])
    out.print_fields((name, _field(value)) for name, value in info.items() if name != "vs")
    for index, each in enumerate(formats[: info["nlbaf"] + 1]):
        mark = " (in use)" if index == in_use else ""
        print(
            f"lbaf {index:2} : ms {each['ms']}  lbads {each['lbads']} ({1 << each['lbads']} B)  rp {each['rp']}{mark}"
        )
    print(f"size    : {out.size(namespace.size_bytes)} ({namespace.size_bytes} bytes)")


@opt.command("connect")
@opt.controller_options
@multipath_options()
@click.option("--save", "name", metavar="NAME", help="Save it as a TARGET.")
@opt.output_option
@opt.coroutine
async def connect_command(output: str, name: str | None, **options: Any) -> None:
    """Connect, show what came of it, and hold the connection until Ctrl-C. With options of recovery, or several paths,
    lost connections are made again. TARGET: a URL, nvme+mptcp://HOST:4420/NQN?nsid=1, or a saved name.
    """
    url = None if name is None else url_of_options(options)
    if name is not None:
        saved.check_name(name)
    async with await open_host(options) as host:
        if name is not None and url is not None:
            out.remark(f"saved {name} in {saved.save(name, url)}")
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        lost: list[NvmeofError] = []

        def on_lost(error: NvmeofError) -> None:
            lost.append(error)
            stop.set()

        namespaces = await host.namespaces()
        if isinstance(host, HostSubsystem):
            watch_paths(host, on_lost)
            for member in host.paths:
                if isinstance(member.controller, HostController):
                    _print_connection(member.controller, namespaces, output)
        else:
            host.on_lost.append(on_lost)
            host.on_event.append(_print_event)
            _print_connection(host, namespaces, output)
        if output == "normal":
            print("connected; Ctrl-C disconnects", flush=True)
        with interrupts.regular_end():
            await stop.wait()
        if lost:
            raise lost[0]
    if output == "normal":
        print("disconnected")


def watch_paths(subsystem: HostSubsystem, on_lost: Callable[[NvmeofError], None]) -> None:
    """Report each change of a path; call ``on_lost`` when the last path has been removed."""

    def removed(member: Member, error: NvmeofError) -> None:
        out.remark(f"path {member.name}: removed ({error})")
        if not subsystem.paths:
            on_lost(error)

    subsystem.core.on_lost.append(removed)
    subsystem.core.on_event.append(lambda member, event: _print_event(event))
    for member in subsystem.paths:
        member.path.on_change.append(partial(_print_change, member))


def _print_change(member: Member) -> None:
    path = member.path
    reason = f" ({path.error})" if path.error is not None and path.state is PathState.RESETTING else ""
    out.remark(f"path {member.name}: {'failfast expired' if path.failfast_expired else path.state.value}{reason}")


def _print_event(event: AsyncEvent) -> None:
    out.remark(f"event: type {event.type}, information {event.info:#04x}, log page {event.log_page:#04x}")


def _print_connection(controller: HostController, namespaces: list[Namespace], output: str) -> None:
    queues = controller.describe()
    if output == "json":
        spaces = [
            {"nsid": each.nsid, "blocks": each.size_blocks, "block_bytes": each.block_bytes} for each in namespaces
        ]
        out.print_json(
            {
                "subnqn": controller.options.subnqn,
                "cntlid": controller.cntlid,
                "namespaces": spaces,
                "queues": queues,
            }
        )
        sys.stdout.flush()
        return
    info = controller.info
    out.print_fields(
        (
            ("subsystem", controller.options.subnqn),
            ("controller", f"{controller.cntlid:#x}, NVMe {controller.version}, {info.mn}, serial {info.sn}"),
            ("transfer", f"{out.block_size(controller.max_transfer_bytes)} at most"),
            *((f"namespace {each.nsid}", _namespace_text(each)) for each in namespaces),
            *((f"queue {each['qid']}", _queue_text(each)) for each in queues),
        )
    )


def _namespace_text(namespace: Namespace) -> str:
    nguid = bytes(namespace.info.nguid).hex()
    return f"{out.size(namespace.size_bytes)}, blocks of {out.block_size(namespace.block_bytes)}, NGUID {nguid}"


def _queue_text(facts: QueueFacts) -> str:
    text = f"{out.transport_in_use(facts)} {facts.get('local', '')} - {facts.get('peer', '')}"
    paths = facts.get("subflows") or ()
    if len(paths) > 1:
        text += "; " + ", ".join(f"{each['local']} - {each['peer']}" for each in paths)
    return f"{text}, {facts['entries']} entries"


@opt.command("gen-hostnqn")
@opt.output_option
def gen_hostnqn_command(output: str) -> None:
    """A new host NQN."""
    if output == "json":
        out.print_json({"hostnqn": uuid_nqn()})
    else:
        print(uuid_nqn())


COMMANDS = (
    list_command,
    id_ctrl_command,
    id_ns_command,
    connect_command,
    gen_hostnqn_command,
)
