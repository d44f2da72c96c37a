"""Several paths on the command line: opening a subsystem over them, ``list-subsys`` and ``show-topology``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.recovery import recovery_keywords, recovery_options
from nvmeof.host.client import HostController
from nvmeof.host.host_subsystem import HostSubsystem, PathAddress, connect_multipath
from nvmeof.host.multipath.facts import MemberFacts
from nvmeof.host.multipath.iopolicy import DEFAULT_IOPOLICY, IOPOLICIES
from nvmeof.host.multipath.member import Member
from nvmeof.host.url import TargetUrl

F = TypeVar("F", bound=Callable[..., Any])

iopolicy_option = click.option(
    "--iopolicy",
    type=click.Choice(list(IOPOLICIES)),
    help="Path of a command.  [default: numa]",
)


def multipath_options(*taken: str) -> Callable[[F], F]:
    """Add the options of paths that last: the I/O policy, and recovery. ``taken``: short forms that the command
    uses.
    """

    def add(command: F) -> F:
        return iopolicy_option(recovery_options(*taken)(command))

    return add


async def open_host(options: dict[str, Any]) -> HostController | HostSubsystem:
    """Connect as the options say: to a subsystem with several paths, a policy or recovery, else to a controller."""
    if len(options["where"]) == 1 and options.get("iopolicy") is None and not recovery_keywords(options):
        return await opt.open_controller(options)
    return await open_subsystem(options)


async def open_url(url: TargetUrl, options: dict[str, Any]) -> HostController | HostSubsystem:
    """Connect to what a URL names, with the command's ``options`` (:func:`~nvmeof.host.cli.options.url_options`).

    Options of the command line have precedence over the URL's, and hold for every URL of the command. Raises as
    :func:`open_host`.
    """
    given = opt.given_options()
    params: dict[str, Any] = dict.fromkeys(opt.PATH_NAMES, ())
    found = opt.options_of_url(url)
    params |= options | {name: value for name, value in found.items() if name not in given}
    params["nqn"] = url.subnqn
    if {"io_timeout", "admin_timeout"} & found.keys() and "timeout" not in given:
        params["timeout"] = None
    opt.spread_paths(params)
    return await open_host(params)


async def open_subsystem(options: dict[str, Any]) -> HostSubsystem:
    """Connect over all paths that the options name; those that cannot be connected are reported and left out."""
    chosen = opt.split_options(options)
    for name in opt.PATH_NAMES:
        chosen.pop(name, None)
    if options.get("timeout") is not None:
        chosen["io_timeout"] = chosen["admin_timeout"] = options["timeout"]
    nqn = options.get("nqn") or await opt.subsystem_of_any(options)
    paths = [PathAddress(**{name: place.get(name) for name in opt.PATH_NAMES}) for place in options["where"]]
    subsystem = await connect_multipath(
        *paths,
        subnqn=nqn,
        transport=options["transport"],
        iopolicy=options.get("iopolicy") or DEFAULT_IOPOLICY,
        paths=opt.path_options(options),
        **chosen,
        **recovery_keywords(options),
    )
    for where, error in subsystem.left_out:
        out.remark(f"left out the path {where}: {error}")
    return subsystem


@opt.command("list-subsys")
@opt.controller_options
@multipath_options()
@opt.output_option
@opt.coroutine
async def list_subsys_command(output: str, **options: Any) -> None:
    """Connect over all given paths, and show the subsystem with them, their ANA states and its namespaces."""
    async with await open_subsystem(options) as subsystem:
        if output == "json":
            out.print_json([subsystem_json(subsystem)])
        else:
            print_subsystem(subsystem)


@opt.command("show-topology")
@opt.controller_options
@multipath_options()
@opt.output_option
@opt.coroutine
async def show_topology_command(output: str, **options: Any) -> None:
    """Connect over all given paths, and show each namespace with its paths and their ANA states."""
    async with await open_subsystem(options) as subsystem:
        (host,) = found = [subsystem_json(subsystem)]
        (shown,) = host["Subsystems"]
        del shown["Paths"]
        if output == "json":
            out.print_json(found)
            return
        print(f"{shown['Name']} - NQN={shown['NQN']}\n               hostnqn={host['HostNQN']}\n\\")
        for each in shown["Namespaces"]:
            print(f" +- NSID {each['NSID']}")
            for path in each["Paths"]:
                words = (path["Name"], path["Transport"], path["Address"], path["State"], path["ANAState"])
                print(out.clean(f"    +- {' '.join(words)}"))


def _address(member: Member) -> str:
    options = member.path.options
    parts = [f"traddr={options.traddr}", f"trsvcid={options.trsvcid}"]
    parts += [f"host_traddr={options.host_traddr}"] if options.host_traddr else []
    parts += [f"host_iface={options.host_iface}"] if options.host_iface else []
    return ",".join(parts)


def subsystem_json(subsystem: HostSubsystem) -> dict[str, Any]:
    """Return the keys of ``nvme list-subsys -v -o json``; ``Namespaces`` as in ``nvme show-topology``."""
    info = next(member.info for member in subsystem.paths if member.info is not None)
    return {
        "HostNQN": subsystem.options.hostnqn,
        "HostID": str(subsystem.options.hostid),
        "Subsystems": [
            {
                "Name": "nvme-subsys0",
                "NQN": subsystem.subnqn,
                "Model": info.mn,
                "Firmware": info.fr,
                "IOPolicy": subsystem.iopolicy,
                "Type": "nvm",
                "Paths": [_path_json(index, member) for index, member in enumerate(subsystem.paths)],
                "Namespaces": [
                    {
                        "NSID": head.nsid,
                        "Paths": [
                            {
                                **_path_json(subsystem.paths.index(path.member), path.member),
                                "ANAState": path.describe()["ana_state"],
                                "ANAGroup": path.anagrpid,
                            }
                            for path in head.paths
                        ],
                    }
                    for head in subsystem.core.heads
                ],
            }
        ],
    }


def _path_json(index: int, member: Member) -> dict[str, Any]:
    return {
        "Name": f"nvme{index}",
        "Transport": member.path.options.transport,
        "Address": _address(member),
        "State": member.path.state.value,
    }


def print_subsystem(subsystem: HostSubsystem) -> None:
    """Print the lines of ``nvme list-subsys``, with the ANA state of each namespace behind its path."""
    print(f"nvme-subsys0 - NQN={subsystem.subnqn}")
    print(f"               hostnqn={subsystem.options.hostnqn}")
    print(f"               iopolicy={subsystem.iopolicy}")
    print("\\")
    for index, member in enumerate(subsystem.paths):
        options = member.path.options
        states = [f"{path['nsid']}: {path['ana_state']}" for path in member.describe()["namespaces"]]
        print(
            f" +- nvme{index} {options.transport} {_address(member)} {member.path.state.value}"
            + (f"  [namespace {', '.join(states)}]" if states else "")
        )


def path_rows(
    nsid: int, before: Mapping[str, MemberFacts], after: list[MemberFacts], seconds: float
) -> list[tuple[object, ...]]:
    """Return a line of a table for each path: how it reaches ``nsid``, and its traffic between two descriptions."""
    changes = [
        {name: each[name] - before[each["name"]][name] for name in ("ios", "bytes", "failovers", "retries")}
        if each["name"] in before
        else each
        for each in after
    ]
    total = sum(int(change["bytes"]) for change in changes)
    return [
        (
            f"  {each['name']}",
            each["path"]["state"],
            next((path["ana_state"] for path in each["namespaces"] if path["nsid"] == nsid), "-"),
            change["ios"],
            f"{int(change['bytes']) / seconds / 1e6:,.1f} MB/s",
            f"{int(change['bytes']) / total if total else 0:.0%}",
            change["failovers"],
            change["retries"],
        )
        for each, change in zip(after, changes, strict=True)
    ]


PATH_HEADINGS = ("  path", "state", "ANA", "I/Os", "rate", "share", "failovers", "retries")


COMMANDS = (list_subsys_command, show_topology_command)
