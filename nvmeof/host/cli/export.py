"""``export``: namespaces for NBD clients, where the kernel has no NVMe/TCP host."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import click

from nvmeof.cli import interrupts
from nvmeof.cli.types import BYTES, U32
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli import subsystem
from nvmeof.host.cli.show import watch_paths
from nvmeof.host.client import HostController
from nvmeof.host.config_files.saved import find_target
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.nbd_export.disk import ExportedDisk
from nvmeof.host.nbd_export.server import MEMORY_BYTES, NbdServer, Place, server_tls
from nvmeof.nbd.uri import NbdUri

_VWC_PRESENT = 1


@opt.command("export")
@opt.export_options
@click.argument("more", nargs=-1, metavar="[TARGET]...")
@subsystem.multipath_options()
@click.option("-N", "--namespace-id", "nsids", type=U32, multiple=True, metavar="NSID",
              help="Namespace; repeatable.  [default: all]")  # fmt: skip
@click.option("--nbd", "places", multiple=True, required=True, metavar="PLACE",
              help="Listen at unix:/PATH or tcp:ADDRESS[:PORT] (10809); repeatable.")  # fmt: skip
@click.option("--name", "names", multiple=True, metavar="NAME",
              help="Name, once for each export.  [default: NSID]")  # fmt: skip
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@click.option("--tls-certificates", "folder", metavar="FOLDER", help="The server's certificate and key, and ca-cert.")
@click.option("--tls", type=click.Choice(["allow", "require"]), default="require", show_default=True,
              help="Of clients.")  # fmt: skip
@click.option("--tls-verify-peer", is_flag=True, help="Require a certificate of clients.")
@click.option("--memory", type=BYTES, default=MEMORY_BYTES, metavar="SIZE",
              help="For data in flight.  [default: 128M]")  # fmt: skip
@opt.output_option
@opt.coroutine
async def export_command(
    more: tuple[str, ...],
    nsids: tuple[int, ...],
    places: tuple[str, ...],
    names: tuple[str, ...],
    read_only: bool,
    folder: str | None,
    tls: str,
    tls_verify_peer: bool,
    memory: int,
    output: str,
    **options: Any,
) -> None:
    """Serve namespaces to NBD clients (nbdfuse, nbd-client, qemu, nbdcopy), until Ctrl-C or SIGTERM.

    TARGET: a URL, nvme+mptcp://HOST:4420/NQN?nsid=1, or a saved name; several of them are served together. Every
    namespace is an export. A flush covers the writes of all clients of this process.
    """
    parsed = [Place.parse(place) for place in places]
    if tls_verify_peer and folder is None:
        raise ConfigurationError("--tls-verify-peer needs certificates: give --tls-certificates FOLDER")
    context = None if folder is None else server_tls(folder, verify=tls_verify_peer)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    lost: list[NvmeofError] = []

    def on_lost(error: NvmeofError) -> None:
        lost.append(error)
        ended.set()

    async with AsyncExitStack() as stack:
        targets = (options, *(_options_of(text, options) for text in more))
        disks = await _open_disks(stack, targets, nsids, read_only=read_only, on_lost=on_lost)
        _name(disks, names)
        server = NbdServer(disks, tls=context, tls_required=tls == "require", memory_bytes=memory)
        try:
            where = [(place, await server.listen(place)) for place in parsed]
            _tell(where, disks, tls=context is not None, output=output)
            with interrupts.regular_end():
                await ended.wait()
        finally:
            with interrupts.unhurried():
                await server.close()
        if lost:
            raise lost[0]


async def _open_disks(
    stack: AsyncExitStack,
    targets: Iterable[dict[str, Any]],
    nsids: tuple[int, ...],
    *,
    read_only: bool,
    on_lost: Callable[[NvmeofError], None],
) -> list[ExportedDisk]:
    """Connect to each target until ``stack`` is closed, and return the exports; ``on_lost`` is called with the error of
    a host whose connection is lost. Raises as :func:`subsystem.open_host` and :func:`_disks`.
    """
    disks: list[ExportedDisk] = []
    for options in targets:
        nsid = options.pop("nsid", None)
        host = await subsystem.open_host(options)
        stack.push_async_exit(host)
        if isinstance(host, HostSubsystem):
            watch_paths(host, on_lost)
        else:
            host.on_lost.append(on_lost)
        disks += await _disks(host, nsids or (() if nsid is None else (nsid,)), read_only)
    return disks


def _options_of(text: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a further target: those of the command line, updated by its URL."""
    own = ("where", "nqn", "nsid", *opt.PATH_NAMES)
    found: dict[str, Any] = {name: value for name, value in options.items() if name not in own}
    found |= {**dict.fromkeys(opt.PATH_NAMES, ()), **opt.options_of_url(find_target(text))}
    opt.spread_paths(found)
    return found


def _name(disks: list[ExportedDisk], names: tuple[str, ...]) -> None:
    """Give the exports the names of the command line, or numbers where their NSIDs are not distinct."""
    if names and len(names) != len(disks):
        raise ConfigurationError(
            f"{len(names)} names for {len(disks)} exports: give --name once for each, or leave it out"
        )
    if names:
        for disk, name in zip(disks, names, strict=True):
            disk.name = name
    elif len({disk.name for disk in disks}) < len(disks):
        for number, disk in enumerate(disks, 1):
            disk.name = str(number)


async def _disks(host: HostController | HostSubsystem, nsids: tuple[int, ...], read_only: bool) -> list[ExportedDisk]:
    """Return the exports of a subsystem, named by their NSIDs. Raises :class:`NvmeofError` for a namespace that does
    not exist.
    """
    found = [host.namespace(nsid) for nsid in nsids] if nsids else await host.namespaces()
    if not found:
        raise NvmeofError(f"{host.options.subnqn} has no active namespace")
    if isinstance(host, HostSubsystem):
        infos = [member.info for member in host.paths if member.info is not None]
    else:
        infos = [host.info]
    oncs = infos[0].oncs
    for info in infos[1:]:
        oncs &= info.oncs
    # A Flush covers the cache of the controller that takes it: over several controllers there must be no cache.
    multi_conn = len(infos) == 1 or not any(info.vwc & _VWC_PRESENT for info in infos)
    disks = []
    for namespace in found:
        await namespace.refresh()
        name = str(namespace.nsid)
        disks.append(ExportedDisk(namespace, name, read_only=read_only, multi_conn=multi_conn, oncs=oncs))
    return disks


def _tell(where: list[tuple[Place, str]], disks: list[ExportedDisk], *, tls: bool, output: str) -> None:
    exports = []
    for place, real in where:
        for disk in disks:
            if place.path is not None:
                uri = NbdUri(disk.name, path=place.path, tls=tls)
            else:
                host, _, port = real.removeprefix("tcp:").rpartition(":")
                uri = NbdUri(disk.name, host.strip("[]"), int(port), tls=tls)
            exports.append((disk, str(uri)))
    if output == "json":
        rows = [{"Name": disk.name, "NSID": disk.namespace.nsid, "URI": uri} for disk, uri in exports]
        out.print_json({"Exports": rows})
    else:
        for disk, where_from in exports:
            print(f"{where_from}  namespace {disk.namespace.nsid}, {disk.namespace.size_bytes} bytes")
        print("exported; Ctrl-C ends it")
    sys.stdout.flush()  # a program that waits for this line on a pipe goes on now


COMMANDS = (export_command,)
