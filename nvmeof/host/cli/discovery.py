"""``discover`` and ``connect-all``: show what discovery services know, and connect to all of it."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from nvmeof.cli import interrupts
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.cli import nvme_json
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.recovery import recovery_keywords
from nvmeof.host.cli.services import Asked, ask_each, config_option, services, services_by_mdns
from nvmeof.host.cli.show import watch_paths
from nvmeof.host.cli.subsystem import multipath_options, print_subsystem, subsystem_json
from nvmeof.host.client import discover
from nvmeof.host.discovery import DiscoveryEntry, DiscoveryLog
from nvmeof.host.discovery_service import PERSISTENT_KEEP_ALIVE, DiscoveryChange, discover_all, watch_discovery
from nvmeof.host.host_subsystem import HostSubsystem, PathAddress, connect_multipath
from nvmeof.host.multipath.iopolicy import DEFAULT_IOPOLICY
from nvmeof.host.options import ConnectOptions
from nvmeof.host.referrals import Discovered, DiscoveryService
from nvmeof.spec.enums import Treq
from nvmeof.transport import Address

_persistent = click.option(
    "-p", "--persistent", is_flag=True, help="Stay, and follow the changes of the log until Ctrl-C."
)


@opt.command("discover")
@opt.service_options
@click.option("-r", "--raw", type=click.Path(path_type=Path), metavar="FILE", help="Write the log page to a file.")
@click.option("--referrals", is_flag=True, help="Include the services that it refers to.")
@_persistent
@click.option("--mdns", is_flag=True, help="Ask the services that multicast DNS finds (_nvme-disc._tcp).")
@config_option
@opt.output_option
@opt.coroutine
async def discover_command(
    output: str,
    raw: Path | None,
    referrals: bool,
    persistent: bool,
    mdns: bool,
    config_file: str | None,
    **options: Any,
) -> None:
    """Show what a discovery service knows, or those of config.json and discovery.conf."""
    chosen_options = {**options, "persistent": persistent}
    asked = await services_by_mdns(chosen_options) if mdns else services(chosen_options, config_file)
    if raw is not None and (len(asked) > 1 or referrals or persistent):
        raise ConfigurationError("--raw takes the log of one service: leave out --referrals and --persistent, give -a")
    if persistent:
        await _follow_all(asked, output)
        return

    async def show(each: Asked) -> None:
        chosen = opt.discovery_options(each.options)
        if referrals:
            found = await discover_all(**chosen)
            for sentence in found.left_out:
                out.remark(sentence)
            _print_entries(DiscoveryLog(found.entries), output)
            return
        log = await discover(**chosen)
        assert isinstance(log, DiscoveryLog)
        if raw is not None:
            _write_raw(raw, log.raw)
        else:
            _print_entries(log, output)

    await ask_each(asked, show)


def _write_raw(path: Path, page: bytes) -> None:
    try:
        path.write_bytes(page)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    out.remark(f"the discovery log was written to {path}")


def _print_entries(entries: DiscoveryLog, output: str) -> None:
    if output == "json":
        records = [nvme_json.discovery_record(entry) for entry in entries]
        out.print_json({"genctr": entries.genctr, "records": records})
        return
    headings = ("Transport", "Address", "Family", "Type", "Security", "Subsystem NQN")
    out.print_table(headings, [_row(entry) for entry in entries], key="Subsystem NQN")


def _row(entry: DiscoveryEntry) -> tuple[object, ...]:
    return (
        opt.transport_name(entry),
        Address(entry.traddr, _port(entry)),
        entry.family,
        entry.kind.replace("_", " "),
        entry.security,
        entry.subnqn,
    )


def _port(entry: DiscoveryEntry) -> int:
    return int(entry.trsvcid) if entry.trsvcid.isascii() and entry.trsvcid.isdigit() else 0


def _watch_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a persistent discovery controller; the keep-alive timeout is nvme-cli's."""
    chosen = opt.discovery_options(options)
    chosen["keep_alive_tmo"] = PERSISTENT_KEEP_ALIVE
    for name in ("reconnect_delay", "ctrl_loss_tmo"):
        if options.get(name) is not None:
            chosen[name] = options[name]
    return chosen


async def _follow_all(asked: list[Asked], output: str) -> None:
    """Print the changes of all services until Ctrl-C. Raises where none is left."""
    over = False
    with interrupts.regular_end():
        await asyncio.gather(*(_follow_changes(each, output, alone=len(asked) == 1) for each in asked))
        over = True
    if over:
        raise NvmeofError(f"all {len(asked)} discovery services are lost")


async def _follow_changes(asked: Asked, output: str, *, alone: bool) -> None:
    """Print the changes of one service; the loss of one of several is a remark, and the others go on."""
    try:
        async with watch_discovery(**_watch_options(asked.options)) as watch:
            async for change in watch:
                _print_change(change, output)
    except NvmeofError as error:
        if alone:
            raise
        out.remark(f"follows {asked.options['traddr']} of {asked.source} no more: {error}")


def _print_change(change: DiscoveryChange, output: str) -> None:
    if output == "json":
        lists = {"added": change.added, "removed": change.removed}
        out.print_json(
            {
                "genctr": change.log.genctr,
                "reconnected": change.reconnected,
                **{name: [nvme_json.discovery_record(each) for each in found] for name, found in lists.items()},
            }
        )
    for sign, entries in (("+", change.added), ("-", change.removed)):
        for entry in entries if output == "normal" else ():
            print(sign, *(out.clean(value) for value in _row(entry)))
    sys.stdout.flush()


# -- connect-all


class Connections:
    """The subsystems that ``connect-all`` holds, each over all discovered paths."""

    def __init__(self, stack: AsyncExitStack, output: str, *, persistent: bool = False) -> None:
        self.subsystems: dict[str, HostSubsystem] = {}
        self.failures: list[NvmeofError] = []
        self.over = asyncio.Event()
        """Set at SIGTERM, and when the last path of the last subsystem is gone, unless it may be found again."""
        self._persistent = persistent
        self._stack = stack
        self._output = output
        self._turn = asyncio.Lock()

    async def take(self, asked: Asked) -> Discovered:
        """Ask a service and its referrals, and connect what is not connected. Raises the error of a service that cannot
        be asked.
        """
        async with self._turn:
            found = await discover_all(**opt.discovery_options(asked.options))
            for sentence in found.left_out:
                out.remark(sentence)
            for subnqn, paths in opt.paths_to_subsystems(found.entries, asked.options).items():
                await self._connect(subnqn, paths, found, asked.options)
        return found

    async def _connect(
        self, subnqn: str, paths: list[ConnectOptions], found: Discovered, options: dict[str, Any]
    ) -> None:
        """Connect the missing paths to one subsystem; report those that cannot be connected."""
        subsystem = self.subsystems.get(subnqn)
        known = subsystem.paths if subsystem is not None else []
        new = [path for path in paths if not any(path.same_path(member.path.options) for member in known)]
        if not new:
            return
        where = [PathAddress(**{name: getattr(path, name) for name in opt.PATH_NAMES}) for path in new]
        try:
            if subsystem is None:
                subsystem = await self._open(subnqn, where, found, options)
            else:
                for each in where:
                    await subsystem.add_path(each)
        except NvmeofError as error:
            self.failures.append(error)
            out.remark(f"could not connect to {subnqn}: {error}")
            if subsystem is None:
                return
        self.show(subsystem)

    async def _open(
        self, subnqn: str, where: list[PathAddress], found: Discovered, options: dict[str, Any]
    ) -> HostSubsystem:
        chosen = opt.split_options(options)
        for name in opt.PATH_NAMES:
            chosen.pop(name, None)
        if options.get("timeout") is not None:
            chosen["io_timeout"] = chosen["admin_timeout"] = options["timeout"]
        if _may_disable_sqflow(found, subnqn):
            chosen["disable_sqflow"] = True
        subsystem = await connect_multipath(
            *where,
            subnqn=subnqn,
            iopolicy=options.get("iopolicy") or DEFAULT_IOPOLICY,
            paths=opt.path_options(options),
            **chosen,
            **recovery_keywords(options),
        )
        await self._stack.enter_async_context(subsystem)
        self.subsystems[subnqn] = subsystem
        for path, error in subsystem.left_out:
            out.remark(f"left out the path {path} to {subnqn}: {error}")
        watch_paths(subsystem, lambda error: self._lost(subnqn, error))
        return subsystem

    def _lost(self, subnqn: str, error: NvmeofError) -> None:
        self.subsystems.pop(subnqn, None)
        self.failures.append(error)
        if not self.subsystems and not self._persistent:
            self.over.set()

    def show(self, subsystem: HostSubsystem) -> None:
        """Print a subsystem with its paths."""
        if self._output == "json":
            out.print_json([subsystem_json(subsystem)])
        else:
            print_subsystem(subsystem)
        sys.stdout.flush()

    async def follow(self, service: DiscoveryService, asked: Asked) -> None:
        """Keep a service connected, and connect the new entries of its log, without end unless the options have a
        ctrl_loss_tmo.

        Ends with one remark when the service is lost for good.
        """
        options = {**asked.options, "traddr": service.traddr, "trsvcid": service.trsvcid}
        watch = watch_discovery(**{"ctrl_loss_tmo": -1, **_watch_options(options), "subnqn": service.subnqn})
        try:
            async for change in watch:  # connects, and reconnects
                if change.added or change.reconnected:
                    await self._take_again(asked)
        except NvmeofError as error:
            out.remark(f"follows the discovery service at {service} no more: {error}")
        finally:
            await watch.close()

    async def _take_again(self, asked: Asked) -> None:
        try:
            await self.take(asked)
        except NvmeofError as error:
            out.remark(f"could not ask {asked.options['traddr']} again: {error}")


def _may_disable_sqflow(found: Discovered, subnqn: str) -> bool:
    """Return whether all entries of a subsystem allow disabling SQ flow control, which is then disabled, as in
    libnvme.
    """
    return all(entry.treq & Treq.DISABLE_SQ_FLOW_CONTROL for entry in found.entries if entry.subnqn == subnqn)


@opt.command("connect-all")
@opt.all_controllers_options
@multipath_options()
@_persistent
@config_option
@opt.output_option
@opt.coroutine
async def connect_all_command(output: str, persistent: bool, config_file: str | None, **options: Any) -> None:
    """Connect to all that discovery services and their referrals name, and hold it until Ctrl-C.

    Without an address the services of config.json and discovery.conf are asked. What this host has no
    transport for is left out. Connections that are lost are made again.
    """
    async with AsyncExitStack() as stack:
        asked = services({**options, "persistent": persistent}, config_file)
        held = Connections(stack, output, persistent=any(each.options["persistent"] for each in asked))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, held.over.set)
        followers: list[tuple[DiscoveryService, Asked]] = []

        async def take(each: Asked) -> None:
            found = await held.take(each)
            if each.options["persistent"]:
                followers.extend((service, each) for service in found.services)

        await ask_each(asked, take)
        if not held.subsystems and not followers:
            if held.failures:
                raise held.failures[0]
            out.remark("no subsystem was found that can be connected to")
            return
        if output == "normal":
            print("connected; Ctrl-C disconnects", flush=True)
        await _hold(held, followers)
    if output == "normal":
        print("disconnected")


async def _hold(held: Connections, followers: list[tuple[DiscoveryService, Asked]]) -> None:
    """Wait for Ctrl-C or SIGTERM; without followers also for the loss of the last subsystem, whose error is raised."""
    tasks = [asyncio.create_task(held.follow(service, asked)) for service, asked in followers]
    try:
        with interrupts.regular_end():
            await held.over.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not held.subsystems and held.failures and not tasks:
        raise held.failures[-1]


COMMANDS = (discover_command, connect_all_command)
