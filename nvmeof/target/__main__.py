"""``python -m nvmeof.target``: serve ramdisks and files to NVMe/TCP and NVMe-over-MPTCP hosts.

Exit codes: 0 stopped by SIGINT, SIGTERM or SIGHUP, 1 something could not be done (an address in use, a file that can't
be opened), 2 asked for wrongly, 130 ended by SIGINT before it served.
"""

from __future__ import annotations

if __name__ == "__main__":
    from nvmeof.cli import early

    early.exit_at_interrupt()

import asyncio
import gc
import json
import logging
import resource
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from nvmeof.address import is_link_local, is_loopback, split_scope
from nvmeof.aio.runloop import loop_name, run
from nvmeof.cli import streams
from nvmeof.cli.exit_codes import run_program
from nvmeof.cli.types import SECONDS, U8, Bytes, Number
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.launch import command_line
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.size_text import format_size, parse_size
from nvmeof.spec.enums import CNTLID_MAX, DISCOVERY_PORT, NVME_PORT
from nvmeof.target.core.metadata import SUBSYSTEM_SECTIONS
from nvmeof.target.namespaces.endurance_group import Pool
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry, parse_zoned
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.ports import Port
from nvmeof.target.server import Target
from nvmeof.target.simple_config import DEFAULT_SUBNQN
from nvmeof.target.storage.base import DEFAULT_BLOCK_BYTES, Backend
from nvmeof.target.storage.file import KEPT_SUFFIX, ZONES_SUFFIX, FileBackend, beside
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.pools import FilePool, RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.ana import ANA_GROUP, parse_ana_setting, state_word
from nvmeof.target.subsystem.config import (
    ADVERTISE_DEFAULT,
    ADVERTISE_FORMS,
    NamespaceConfig,
    PortConfig,
    SubsystemConfig,
    TargetConfig,
)
from nvmeof.target.subsystem.namespace_option import parse_namespace_option
from nvmeof.transport import base
from nvmeof.transport.base import Address, SocketOptions
from nvmeof.transport.paths.model import ALL_PATHS, parse_limits
from nvmeof.transport.paths.session import PathOptions
from nvmeof.version import __version__

_PATIENCE_SECONDS: Final = 1.0
"""How long a line of the log waits for its reader: a target serves on when nobody reads."""
DEFAULT_RAMDISK: Final = "1G"
_FILES_WANTED: Final = 65536

logger = logging.getLogger("nvmeof.target")


@dataclass(slots=True)
class Options:
    """The command line, as given."""

    trtype: str = "mptcp"
    trtype_code: int | None = None
    listen: tuple[str, ...] = ()
    discovery: tuple[str, ...] = ()
    advertise: str | None = None
    advertise_as: tuple[str, ...] = ()
    ramdisk: tuple[str, ...] = ()
    namespace: tuple[str, ...] = ()
    file: tuple[str, ...] = ()
    size: str | None = None
    capacity: str | None = None
    pool: str | None = None
    block_size: int | None = None
    read_only: bool = False
    shared: bool = False
    subnqn: str = DEFAULT_SUBNQN
    serial: str = ""
    model: str = "nvmeof"
    allow_host: tuple[str, ...] = ()
    max_queues: int = 128
    queue_size: int = 1024
    mdts: str = "1M"
    in_capsule: str = "8K"
    cntlid_min: int = 1
    cntlid_max: int = CNTLID_MAX
    digests: bool = True
    congestion: str | None = None
    sndbuf: str | None = None
    rcvbuf: str | None = None
    tos: int | None = None
    keep_alive: float = 0.0
    state: str | None = None
    admin_label: str = ""
    ana: tuple[str, ...] = ()
    mptcp_signal: tuple[str, ...] = ()
    mptcp_limits: str | None = None
    path_manager: str | None = None
    uvloop: bool | None = None
    output: str = "normal"


def _remark(text: str) -> None:
    streams.remark("nvmeof-target", text)


def _backends(options: Options) -> list[NamespaceConfig]:
    for name, given in (("size", options.size is not None), ("shared", options.shared)):
        if given and not options.file:
            raise ConfigurationError(f"--{name} requires --file")
    ramdisks = options.ramdisk or (() if options.file or options.namespace or options.capacity else (DEFAULT_RAMDISK,))
    backends: list[tuple[Backend, ZoneGeometry | None]] = []
    for size, zoned in map(parse_zoned, ramdisks):
        backends.append((Ramdisk(size, block_bytes=options.block_size or DEFAULT_BLOCK_BYTES), zoned))
    for path, zoned in map(parse_zoned, options.file):
        file = FileBackend(
            path,
            size=options.size,
            block_bytes=options.block_size,
            read_only=options.read_only,
            shared=options.shared,
        )
        backends.append((file, zoned))
    configs = [
        NamespaceConfig(backend=backend, read_only=options.read_only, zoned=zoned) for backend, zoned in backends
    ]
    return [*configs, *map(parse_namespace_option, options.namespace)]


def _pool(options: Options) -> Pool | None:
    if options.capacity is None:
        if options.pool is not None:
            raise ConfigurationError("--pool requires --capacity (the space that hosts may allocate)")
        return None
    return RamdiskPool(options.capacity) if options.pool is None else FilePool(options.pool, options.capacity)


def _state(options: Options) -> JsonFileStore | None:
    if options.state is None:
        return None
    state = Path(options.state).resolve()
    for path, _ in map(parse_zoned, options.file):
        if state in (beside(Path(path), suffix) for suffix in ("", KEPT_SUFFIX, ZONES_SUFFIX)):
            raise ConfigurationError(
                f"--state {options.state} is already used for the metadata of --file {path}; choose another path"
            )
    return JsonFileStore(state, sections=SUBSYSTEM_SECTIONS)


def _ports(options: Options) -> list[PortConfig]:
    advertised = Address("", 0) if options.advertise is None else Address.parse(options.advertise, default_port=0)
    ports: list[PortConfig] = []
    settings = list(map(parse_ana_setting, options.ana))
    given = [(text, NVME_PORT, False) for text in options.listen or ("0.0.0.0",)]
    given += [(text, DISCOVERY_PORT, True) for text in options.discovery]
    for text, default_port, discovery_only in given:
        address = Address.parse(text, default_port=default_port)
        ports.append(
            PortConfig(
                transport=options.trtype,
                host=address.host,
                port=address.port,
                advertise_host=advertised.host or None,
                # The port that is advertised is the subsystem's, not that of the discovery service beside it.
                advertise_port=(advertised.port or None) if not discovery_only else None,
                discovery_only=discovery_only,
                advertise_as=options.advertise_as or ADVERTISE_DEFAULT,
                ana=tuple((each.group, each.state) for each in settings if each.applies(address.host, address.port)),
            )
        )
    for text, setting in zip(options.ana, settings, strict=True):
        if not any(setting.applies(port.host, port.port) for port in ports if not port.discovery_only):
            raise ConfigurationError(f"--ana {text}: there is no --listen {text.partition('@')[2]}")
    return ports


def make_target(options: Options) -> Target:
    """The target that a command line asks for. Raises ConfigurationError."""
    if options.trtype_code is not None:
        base.set_trtype_code(options.trtype, options.trtype_code)
    base.get(options.trtype)
    subsystem = SubsystemConfig(
        nqn=options.subnqn,
        serial=options.serial,
        model=options.model,
        allowed_hosts=frozenset(options.allow_host) or None,
        namespaces=tuple(_backends(options)),
        pool=_pool(options),
        max_io_queues=options.max_queues,
        max_queue_entries=options.queue_size,
        max_transfer_bytes=parse_size(options.mdts, zero=True),
        incapsule_bytes=parse_size(options.in_capsule, zero=True),
        cntlid_min=options.cntlid_min,
        cntlid_max=options.cntlid_max,
        any_keep_alive_seconds=options.keep_alive,
        admin_label=options.admin_label,
        metadata_store=_state(options),
    )
    return Target(
        TargetConfig(subsystems=(subsystem,), ports=tuple(_ports(options))),
        options=SocketOptions(
            congestion=options.congestion,
            tos=options.tos,
            sndbuf_bytes=parse_size(options.sndbuf) if options.sndbuf else None,
            rcvbuf_bytes=parse_size(options.rcvbuf) if options.rcvbuf else None,
        ),
        connection=ConnectionConfig(header_digest=options.digests, data_digest=options.digests),
        paths=PathOptions(
            paths=options.mptcp_signal,
            limits=parse_limits(options.mptcp_limits) if options.mptcp_limits else ALL_PATHS,
            path_manager=options.path_manager,
        ),
    )


# -- what is said at the start ---------------------------------------------------------------------------------------


def _reachable(host: str) -> str:
    """An address that a host on this machine can use."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _elsewhere(host: str, reachable: str) -> str:
    """What a host on another machine has to change of the lines to connect with."""
    if host != reachable:
        return f" (from elsewhere: this machine's address instead of {reachable})"
    if is_link_local(host):
        return f" (from elsewhere: behind %, that machine's interface instead of {split_scope(host)[1]})"
    return ""


def facts(target: Target, options: Options) -> dict[str, Any]:
    """What the target offers, for a person or a program."""
    subsystem = target.subsystems[target.subnqn]
    listeners = [
        (listener.describe(), port.config.discovery_only)
        for port in target.ports.values()
        for listener in port.listeners
    ]
    return {
        "subnqn": target.subnqn,
        "serial": subsystem.config.serial_number,
        "transport": options.trtype,
        "trtype": base.get(options.trtype).trtype,
        "loop": loop_name(),
        "allowed_hosts": sorted(options.allow_host) or None,
        "listeners": [
            {
                "address": info.address.host,
                "port": info.address.port,
                "protocol": info.protocol,
                "fallback": info.fallback_reason or None,
                "discovery_only": discovery_only,
            }
            for info, discovery_only in listeners
        ],
        "paths": target.paths.list() if target.paths else [],
        "ana": [
            {"group": group, "state": state_word(state), "portid": port.portid, "address": _port_address(port)}
            for port in target.ports.values()
            for group, state in sorted(port.ana.items())
            if not port.config.discovery_only
        ],
        "namespaces": [
            {
                "nsid": namespace.nsid,
                "backend": namespace.backend.description,
                "size_bytes": namespace.size_blocks * namespace.block_bytes,
                "block_bytes": namespace.block_bytes,
                "read_only": namespace.read_only,
                "anagrpid": namespace.anagrpid,
                "uuid": str(namespace.uuid),
                "zoned": _zones_told(namespace),
            }
            for namespace in subsystem.namespaces.values()
        ],
        "pool": None
        if subsystem.manager is None
        else {
            "description": subsystem.manager.pool.description,
            "capacity_bytes": subsystem.manager.pool.capacity_bytes,
            "unallocated_bytes": subsystem.unallocated_bytes,
        },
    }


def _port_address(port: Port) -> str:
    return str(Address(port.config.host, port.config.port))


def _zones_told(namespace: Namespace) -> dict[str, Any] | None:
    if not isinstance(namespace, ZonedNamespace):
        return None
    geometry = namespace.geometry
    return {
        "zones": len(namespace.zones),
        "zone_bytes": geometry.zone_bytes,
        "capacity_bytes": geometry.capacity,
        "max_open": geometry.max_open,
        "max_active": geometry.max_active,
        "extension_bytes": geometry.extension_bytes,
        "description": geometry.description,
    }


def _say(told: dict[str, Any]) -> None:
    click.echo(f"subsystem  {told['subnqn']}  (serial {told['serial']})")
    for namespace in told["namespaces"]:
        access = ", read-only" if namespace["read_only"] else ""
        access += "" if namespace["anagrpid"] == ANA_GROUP else f", ANA group {namespace['anagrpid']}"
        size = format_size(namespace["size_bytes"])
        backend = namespace["backend"].removesuffix(f" {size}")
        zoned = namespace["zoned"]
        zones = f", {zoned['zones']} {zoned['description']}" if zoned else ""
        click.echo(
            f"namespace  {namespace['nsid']}: {backend}, {size} in blocks of {namespace['block_bytes']} bytes"
            f"{zones}{access}"
        )
    if told["pool"]:
        pool = {name: format_size(told["pool"][f"{name}_bytes"]) for name in ("capacity", "unallocated")}
        where = told["pool"]["description"].removesuffix(f" {pool['capacity']}")
        click.echo(
            f"capacity   {pool['capacity']} for hosts to create namespaces from, {pool['unallocated']} left ({where})"
        )
    for listener in told["listeners"]:
        address = Address(listener["address"], listener["port"])
        protocol = listener["protocol"]
        if listener["fallback"]:
            protocol += f" (asked for {told['transport']}; {listener['fallback']})"
        what = "discovery " if listener["discovery_only"] else "listening "
        click.echo(f"{what} {address} over {protocol}, trtype {told['trtype']}, loop {told['loop']}")
    for each in told.get("ana", ()):
        click.echo(f"ANA        group {each['group']} is {each['state']} on {each['address']}")
    for path in told["paths"]:
        click.echo(f"announced  {path['address']} on {path['device']} ({path['flags']})")
    first = told["listeners"][0]
    host = _reachable(first["address"])
    click.echo(f"connect with{_elsewhere(first['address'], host)}")
    where = f"-a {host} -s {first['port']} -n {shlex.quote(told['subnqn'])}"
    click.echo(f"  nvme connect -t tcp {where}")
    click.echo(f"  {command_line('host')} connect -t {told['transport']} {where}")
    click.echo("stop with Ctrl-C")


def _warn(told: dict[str, Any]) -> None:
    if told["allowed_hosts"]:
        return
    public = [
        str(Address(listener["address"], listener["port"]))
        for listener in told["listeners"]
        if not listener["discovery_only"] and not is_loopback(listener["address"])
    ]
    if public:
        _remark(
            f"warning: any host that reaches {', '.join(public)} may read and write (see --allow-host and --listen)"
        )


# -- running ---------------------------------------------------------------------------------------------------------


async def serve(options: Options) -> None:
    """Start, say so, and stop on SIGINT, SIGTERM or SIGHUP (a second one stops at once)."""
    if options.output == "json":
        streams.demand(streams.STDOUT)
    target = make_target(options)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    signals = 0

    def stop(number: signal.Signals) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            logger.warning("%s again: stopping at once", number.name)
            target.stop_now()
        else:
            logger.info("%s: stopping", number.name)
            stopping.set()

    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
        ending.append(signal.SIGHUP)
    for number in ending:
        loop.add_signal_handler(number, stop, number)
    try:
        await target.start()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise NvmeofError(f"{where}{error.strerror or error}") from error
    freeze_heap()
    try:
        told = facts(target, options)
        try:
            if options.output == "json":
                click.echo(json.dumps(told))
            else:
                _say(told)
            sys.stdout.flush()
        except OSError as error:
            streams.discard(streams.STDOUT)
            _remark(f"what is served could not be said: {streams.sentence(error)}; serving all the same")
        _warn(told)
        await stopping.wait()
    finally:
        await target.stop()
    if target.unflushed:
        raise NvmeofError(f"{', '.join(target.unflushed)} could not be flushed: what was written last may be lost")
    logger.info("stopped")


def freeze_heap() -> None:
    """Take what is there now out of the garbage collector's sight: a full collection would stop everybody for long."""
    gc.collect()
    gc.freeze()


def _raise_file_limit() -> None:
    """Each connection is a file: take as many as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(_FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-t", "--trtype", default="mptcp", show_default=True, help="Transport: mptcp (falls back to tcp) or tcp.")
@click.option("--trtype-code", type=U8, help="TRTYPE told in Discovery (mptcp: 4, provisionally).")
@click.option(
    "-l",
    "--listen",
    multiple=True,
    metavar="ADDR[:PORT]",
    help="Address to serve on; repeatable. IPv6 with a port in brackets: [::1]:4420. A port alone, * and [::] are "
    "all addresses of both families.  [default: 0.0.0.0:4420]",
)
@click.option(
    "--discovery", multiple=True, metavar="ADDR[:PORT]", help="A discovery-only port (8009 unless given); repeatable."
)
@click.option(
    "--advertise",
    metavar="ADDR[:PORT]",
    help="Address (or port alone) that Discovery tells hosts, behind NAT or a proxy.",
)
@click.option(
    "--advertise-as",
    multiple=True,
    type=click.Choice(ADVERTISE_FORMS),
    help="Form of Discovery entries: own TRTYPE, plain tcp, or tsas; repeatable.  [default: own and tcp]",
)
@click.option(
    "--ramdisk",
    multiple=True,
    metavar="SIZE[,ZONES]",
    help="A namespace in memory, such as 256M or 2T; repeatable. ZONES makes it a zoned one: zoned, zone-size=64M, "
    "zone-capacity=48M, max-open=8, max-active=12, zdes=64, read-across=no, any of them.  [default: one of 1G]",
)
@click.option(
    "--file",
    multiple=True,
    metavar="PATH[,ZONES]",
    help="A namespace in a file or block device; repeatable; numbered after the ramdisks. What belongs to a "
    "file's data is kept beside it, in PATH.nvmeof and PATH.zones.",
)
@click.option(
    "--namespace",
    multiple=True,
    metavar="KIND:VALUE[,OPTION=...][,FILTER:...]",
    help="A namespace of any kind, with filters in front of it: file:/srv/a.img,nsid=7,delay:read=10ms; repeatable; "
    "numbered after the others. A comma in a value is written ,, (docs/howto/filters.md).",
)
@click.option("--size", metavar="SIZE", help="Create the --file, or extend it, to this size.")
@click.option(
    "--block-size",
    type=Bytes(),
    metavar="512|4096",
    help="Logical block size in bytes.  [default: what the --file had before, or 512]",
)
@click.option(
    "--ana",
    multiple=True,
    metavar="GROUP=STATE[@ADDR:PORT]",
    help="State of an ANA group at the start: optimized, non-optimized, inaccessible, persistent-loss or change; on "
    "all ports, or on the one that listens there (@PORT will do); repeatable. A namespace is in group 1, or as "
    "--namespace ...,anagrpid=N says.  [default: optimized]",
)
@click.option(
    "--capacity",
    metavar="SIZE",
    help="Let hosts create namespaces, of so much together, and attach and delete them; in memory unless --pool.",
)
@click.option("--pool", metavar="DIR", help="Directory for what hosts create; found again after a restart.")
@click.option(
    "--read-only", is_flag=True, help="Refuse writes (to ramdisks and files; hosts write to what they create)."
)
@click.option("--shared", is_flag=True, help="Serve a --file that another process has locked, too.")
@click.option(
    "-n",
    "--subnqn",
    default=DEFAULT_SUBNQN,
    show_default=True,
    help="The subsystem's NQN; serial, NGUID and UUID derive from it.",
)
@click.option("--serial", default="", help="Serial number.")
@click.option("--model", default="nvmeof", show_default=True, help="Model number.")
@click.option(
    "--allow-host", multiple=True, metavar="NQN", help="Only this host may connect; repeatable.  [default: any host]"
)
@click.option(
    "--max-queues",
    type=Number(1, 65535),
    metavar="N",
    default=128,
    show_default=True,
    help="I/O queues per controller.",
)
@click.option(
    "--queue-size",
    type=Number(2, 65536),
    metavar="N",
    default=1024,
    show_default=True,
    help="Entries per I/O queue at the most.",
)
@click.option(
    "--mdts",
    default="1M",
    show_default=True,
    metavar="SIZE",
    help="Largest transfer of one command; 0 tells hosts no limit, and takes what memory allows (64M).",
)
@click.option(
    "--in-capsule",
    default="8K",
    show_default=True,
    metavar="SIZE",
    help="Largest data within an I/O command's capsule; 0: none.",
)
@click.option("--cntlid-min", type=int, default=1, show_default=True, metavar="N", help="Lowest controller identifier.")
@click.option(
    "--cntlid-max",
    type=int,
    default=CNTLID_MAX,
    show_default=True,
    metavar="N",
    help="Highest one; targets that serve the same subsystem NQN need ranges that do not overlap.",
)
@click.option(
    "--digests/--no-digests", default=True, show_default=True, help="Grant digests (CRC32C) to hosts that ask."
)
@click.option(
    "--keep-alive",
    type=SECONDS,
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="End silent hosts that ask for no keep alive; 0: never.",
)
@click.option("--admin-label", default="", help="A name for people, told by Discovery in its extended entries.")
@click.option(
    "--state",
    metavar="PATH",
    help="A file for what outlives the process: event history, saved features, power-on hours.  "
    "[default: that of the --pool, if any]",
)
@click.option("--congestion", metavar="NAME", help="TCP congestion control of all connections.")
@click.option("--sndbuf", metavar="SIZE", help="Send buffer of all connections.  [default: adapts itself]")
@click.option("--rcvbuf", metavar="SIZE", help="Receive buffer of all connections.  [default: adapts itself]")
@click.option(
    "--mptcp-signal",
    multiple=True,
    metavar="ADDR[%DEV][,backup]|auto",
    help="Announce this address to MPTCP hosts; repeatable. auto: one of every interface that is up.",
)
@click.option("--mptcp-limits", metavar="SUBFLOWS,ADDRESSES", help="At least these limits.  [default: 8,8]")
@click.option("--path-manager", metavar="NAME", help="kernel or userspace, for the whole network namespace.")
@click.option("--tos", type=U8, help="Type of service of all connections.")
@click.option("--uvloop/--no-uvloop", default=None, help="Event loop.  [default: uvloop where installed]")
@click.option(
    "-o",
    "--output-format",
    "output",
    type=click.Choice(["normal", "json"]),
    default="normal",
    show_default=True,
    help="Form of what is said at the start.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every refused command too.")
@click.option("-q", "--quiet", is_flag=True, help="Log only what goes wrong.")
@click.version_option(__version__, prog_name="nvmeof-target")
def cli(verbose: bool, quiet: bool, block_size: int | None, **given: Any) -> None:
    """Serve namespaces to NVMe/TCP and NVMe-over-MPTCP hosts, until SIGINT, SIGTERM or SIGHUP.

    Without options: a ramdisk of 1 GiB on 0.0.0.0:4420 over MPTCP; plain TCP hosts can connect as well.
    """
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    if block_size not in (None, 512, 4096):
        raise click.UsageError(f"--block-size is 512 or 4096, not {block_size}")
    options = Options(block_size=block_size, **given)
    _raise_file_limit()
    run(serve(options), uvloop=options.uvloop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. One sentence on stderr for whatever goes wrong."""
    return run_program("nvmeof-target", cli, arguments, demand_output=False, patience_seconds=_PATIENCE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
