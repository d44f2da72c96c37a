"""``saved``: connections with short names, which every command takes in place of a target's URL."""

from __future__ import annotations

from typing import Any

import click

from nvmeof.address import Address
from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.config_files import saved
from nvmeof.host.url import REPEATABLE, TargetUrl, Value, option_kinds

_name = click.argument("name", shell_complete=opt.complete_target)


def url_of_options(options: dict[str, Any]) -> TargetUrl:
    """Return the URL that stands for the options of the command. Raises :class:`ConfigurationError`."""
    where, given = options["where"], opt.given_options()
    transports = {place["transport"] for place in where}
    if len(transports) > 1:
        raise ConfigurationError("paths of several transports cannot be saved: a URL has one transport for all")
    found: dict[str, Value] = {}
    for name in option_kinds():
        if name in REPEATABLE - {"mptcp_subflow"}:
            values = tuple(place[name] for place in where if place[name] is not None)
            if values:
                found[name] = values
        elif name in given and options.get(name) is not None:
            found[name] = options[name]
    if "timeout" in given and options.get("timeout") is not None:
        found["io_timeout"] = found["admin_timeout"] = options["timeout"]
    paths = tuple(Address(place["traddr"], place["trsvcid"] or 0) for place in where)
    # through the text, so that the saved URL is the one that will be read
    url = TargetUrl(transports.pop(), paths, options.get("nqn"), options.get("nsid"), found)
    return TargetUrl.parse(str(url))


@click.group("saved", context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.pass_context
def saved_group(ctx: click.Context) -> None:
    """Saved connections: short names in place of URLs, which `connect --save NAME` makes too."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@saved_group.command("list", cls=opt.HostCommand)
@opt.output_option
def list_command(output: str) -> None:
    """Show the saved connections."""
    found = saved.read_saved()
    if output == "json":
        out.print_json({"Connections": [{"Name": name, "URL": url} for name, url in found.items()]})
    elif found:
        out.print_table(("Name", "URL"), list(found.items()), key="URL")
    else:
        out.remark(f"no connection is saved in {saved.connections_file()}")


@saved_group.command("add", cls=opt.HostCommand)
@_name
@click.argument("url")
def add_command(name: str, url: str) -> None:
    """Save a URL under a name, in place of what had the name before."""
    path = saved.save(name, TargetUrl.parse(url))
    out.remark(f"saved {name} in {path}")


@saved_group.command("remove", cls=opt.HostCommand)
@_name
def remove_command(name: str) -> None:
    """Forget a saved connection."""
    saved.remove(name)
    out.remark(f"removed {name}")


COMMANDS = (saved_group,)
