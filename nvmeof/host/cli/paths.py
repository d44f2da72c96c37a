"""``paths``: MPTCP's paths in this network namespace, for all of its connections, and what they carry."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import click
from rich.live import Live

from nvmeof.cli.types import Number, Seconds
from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.watch import Sampler, view
from nvmeof.transport.paths import KernelPaths, Limits, PathEndpoint, PathFlag, PathRole, diag, parse_path, sysctl
from nvmeof.transport.paths.driver import align_backup
from nvmeof.transport.paths.interfaces import device_of
from nvmeof.transport.paths.model import ALL_PATHS, parse_limits


def _namespace() -> KernelPaths:
    """Return the network namespace's paths; additions outlive the command."""
    return KernelPaths("command line", permanent=True)


@click.group("paths", invoke_without_command=True)
@click.pass_context
def paths_group(ctx: click.Context) -> None:
    """MPTCP paths of this network namespace: show, change and watch them."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


# -- endpoints


@paths_group.command("list")
@opt.output_option
def list_command(output: str) -> None:
    """Show the addresses that MPTCP uses, whose they are, and the limits."""
    with _namespace() as paths:
        listed, limits = paths.list(), paths.limits()
    if output == "json":
        out.print_json(
            {
                "limits": {"subflows": limits.subflows, "add_addr_accepted": limits.add_addr_accepted},
                "path_manager": sysctl.path_manager(),
                "endpoints": [
                    {
                        **_facts(each.endpoint),
                        "owned": each.owned,
                        "holders": list(each.holders),
                        "suspended": each.suspended,
                    }
                    for each in listed
                ],
            }
        )
        return
    rows = [
        (
            each.endpoint.id or "-",
            each.endpoint.address,
            each.endpoint.device or "-",
            each.endpoint.flags.words,
            "link down" if each.suspended else "in use",
            ", ".join(each.holders) if each.owned else "not nvmeof's",
        )
        for each in listed
    ]
    out.print_table(("Id", "Address", "Device", "Flags", "State", "Held by"), rows, right=("Id",))
    print(f"limits       : {limits.subflows} extra subflows, {limits.add_addr_accepted} announced addresses taken up")
    print(f"path manager : {sysctl.path_manager()} (for new connections)")


def _facts(endpoint: PathEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "address": endpoint.address,
        "device": endpoint.device,
        "port": endpoint.port,
        "flags": endpoint.flags.words.split(),
    }


@paths_group.command("add")
@click.argument("path", metavar="ADDR[%DEV]")
@click.option("--signal", "role", flag_value="signal", help="Announce it to peers (a target's address).")
@click.option("--subflow", "role", flag_value="subflow", default="subflow", help="Connect from it.  [default]")
@click.option("--backup", is_flag=True, help="Use it only when no other path is left.")
@click.option("--fullmesh", is_flag=True, help="Connect to every address of the peer.")
@opt.output_option
def add_command(path: str, role: str, backup: bool, fullmesh: bool, output: str) -> None:
    """Use an address, in open connections too. It stays until it is removed."""
    words = [path, *(["backup"] if backup else []), *(["fullmesh"] if fullmesh else [])]
    spec = parse_path(",".join(words))
    endpoint = spec.endpoint(PathRole(role or "subflow"))
    if endpoint.device is None:
        device = device_of(endpoint.address)
        if device is None:
            raise ConfigurationError(f"no interface of this machine has the address {endpoint.address}")
        spec = parse_path(",".join([f"{path}%{device}", *words[1:]]))
        endpoint = spec.endpoint(PathRole(role or "subflow"))
    with _namespace() as paths:
        added = paths.add(endpoint)
    if output == "json":
        out.print_json(_facts(added))
    else:
        print(f"{added} id {added.id} {added.flags.words}")


@paths_group.command("remove")
@click.argument("address", metavar="ADDR")
@click.option("--any", "whosever", is_flag=True, help="Also one that others hold, or that nvmeof did not add.")
@opt.output_option
def remove_command(address: str, whosever: bool, output: str) -> None:
    """Use an address no longer: its subflows close, connections go on over the others."""
    wanted = parse_path(address).address
    with _namespace() as paths:
        removed = paths.remove((wanted, None), whosever=whosever)
        left = [each for each in paths.list() if each.endpoint.address == wanted]
    if output == "json":
        out.print_json({**_facts(removed), "removed": not left, "holders": list(left[0].holders) if left else []})
    elif left:
        print(f"{removed} stays, for {', '.join(left[0].holders)}: --any removes it")
    else:
        print(f"{removed} removed")


@paths_group.command("backup")
@click.argument("address", metavar="ADDR")
@click.argument("state", type=click.Choice(["on", "off"]), default="on")
@opt.output_option
def backup_command(address: str, state: str, output: str) -> None:
    """Make a path a backup (on), or a regular one (off), in open connections too."""
    wanted, backup = parse_path(address).address, state == "on"
    with _namespace() as paths:
        changed = paths.set_backup((wanted, None), backup)
    closed = sum(align_backup(wanted, backup, each.subflows) for each in diag.connections())
    if output == "json":
        out.print_json({**_facts(changed), "subflows_closed": closed})
        return
    print(f"{changed} {changed.flags.words}")
    if closed:
        print(f"{closed} further subflows from it closed: the kernel changes one per connection")


# -- settings


@paths_group.command("limits")
@click.argument("limits", metavar="[SUBFLOWS,ADDRESSES]", required=False)
@opt.output_option
def limits_command(limits: str | None, output: str) -> None:
    """Show or set how many extra subflows a connection has, and how many announced addresses it takes up."""
    with _namespace() as paths:
        now = paths.apply_limits(parse_limits(limits)) if limits else paths.limits()
    _print_limits(now, output)


def _print_limits(limits: Limits, output: str = "normal") -> None:
    if output == "json":
        out.print_json({"subflows": limits.subflows, "add_addr_accepted": limits.add_addr_accepted})
    else:
        print(f"{limits.subflows} extra subflows, {limits.add_addr_accepted} announced addresses taken up")


@paths_group.command("schedulers")
@click.option("--set", "chosen", metavar="NAME", help="Use it for new connections.")
@opt.output_option
def schedulers_command(chosen: str | None, output: str) -> None:
    """Show the packet schedulers that the kernel has, or choose one."""
    if chosen:
        sysctl.set_scheduler(chosen)
    settings = sysctl.settings()
    bpf = ", ".join(settings.bpf_schedulers) or ("none loaded" if settings.bpf_schedulers_possible else "absent")
    if output == "json":
        out.print_json(
            {
                "current": settings.scheduler.current,
                "available": list(settings.scheduler.available),
                "bpf": list(settings.bpf_schedulers),
                "bpf_possible": settings.bpf_schedulers_possible,
            }
        )
        return
    out.print_fields(
        (
            ("in use", settings.scheduler.current),
            ("available", ", ".join(settings.scheduler.available)),
            ("in BPF", bpf if settings.bpf_schedulers_possible else f"{bpf}: this kernel has no mptcp_sched_ops"),
            ("by limits", "'paths use first', 'paths use backup' and 'paths use all' work with any scheduler"),
        )
    )


@paths_group.command("managers")
@click.option("--set", "chosen", metavar="NAME", help="Use it for new connections.")
@opt.output_option
def managers_command(chosen: str | None, output: str) -> None:
    """Show the path managers that the kernel has, or choose one."""
    if chosen:
        sysctl.set_path_manager(chosen)
    choice = sysctl.settings().path_manager
    if output == "json":
        out.print_json({"current": choice.current, "available": list(choice.available)})
        return
    out.print_fields((("in use", choice.current), ("available", ", ".join(choice.available))))


@paths_group.command("use")
@click.argument("behaviour", type=click.Choice(["all", "first", "backup"]))
@opt.output_option
def use_command(behaviour: str, output: str) -> None:
    """Which paths new connections use: all; only the first; or the others as its backup.

    all: limits 8 and 8, no backup flags. first: limits 0 and 0. backup: every address that is connected from gets the
    backup flag, so that it is used when the first path is gone.
    """
    with _namespace() as paths:
        now = paths.apply_limits(Limits(0, 0) if behaviour == "first" else ALL_PATHS)
        for each in paths.list() if behaviour != "first" else ():
            if each.owned and not each.suspended and each.endpoint.flags & PathFlag.SUBFLOW:
                paths.set_backup(each.endpoint.key, behaviour == "backup")
    _print_limits(now, output)


@paths_group.command("recover")
@opt.output_option
def recover_command(output: str) -> None:
    """Take back what processes of nvmeof left that ended without doing so."""
    with _namespace() as paths:
        gone = paths.recover()
    if output == "json":
        out.print_json({"removed": [_facts(each) for each in gone]})
        return
    for endpoint in gone:
        print(f"{endpoint} removed")
    if not gone:
        print("nothing was left")


# -- figures


@paths_group.command("watch")
@click.option("-s", "--trsvcid", "port", type=Number(1, 65535), metavar="PORT", help="Only connections with this port.")
@click.option(
    "--interval", type=Seconds(0.05), default=1.0, show_default=True, metavar="SECONDS", help="Time between two lines."
)
@click.option("--count", type=Number(1), metavar="N", help="Stop after so many.  [default: at Ctrl-C]")
@opt.output_option
@opt.coroutine
async def watch_command(port: int | None, interval: float, count: int | None, output: str) -> None:
    """Show what every subflow carries, of all processes in this network namespace. JSON: one object per line."""
    sampler = Sampler()
    first = _sample(port)
    if first and not any(each.subflows for each in first):
        out.remark("this kernel reports which subflow belongs to which connection only with CAP_NET_ADMIN")
    sampler.take(first, time.monotonic())
    terminal = out.console()
    with Live(console=terminal, auto_refresh=False, screen=False) if _live(output) else _Nothing() as live:
        shown = 0
        while count is None or shown < count:
            await asyncio.sleep(interval)
            rates = sampler.take(_sample(port), time.monotonic())
            shown += 1
            if output == "json":
                facts: dict[str, Any] = {"time": time.time(), "connections": [each.as_dict() for each in rates]}
                print(json.dumps(facts), flush=True)
            elif isinstance(live, Live):
                live.update(view(rates, terminal.width), refresh=True)
            else:
                terminal.print(view(rates, terminal.width))
                sys.stdout.flush()


def _live(output: str) -> bool:
    return output == "normal" and sys.stdout.isatty()


class _Nothing:
    """Replaces a live display where there is no terminal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _sample(port: int | None) -> list[Any]:
    try:
        return diag.connections(port=port)
    except OSError as error:
        raise TransportError(f"this kernel shows no figures of MPTCP connections: {error.strerror}") from None


COMMANDS = (paths_group,)
