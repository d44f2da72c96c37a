"""``config``: look at config.json, change it, and put into it what the kernel is connected to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.recovery import NAMES, recovery_options
from nvmeof.host.cli.services import NO_FILE, config_option, config_path
from nvmeof.host.config_files.config_json import (
    ConfigFile,
    PortEntry,
    format_config,
    kernel_connections,
    read_config,
)
from nvmeof.host.config_files.fabrics_options import PORT_OPTIONS
from nvmeof.host.config_files.files import CONFIG_JSON, own_file, write_text
from nvmeof.host.identity import host_identity
from nvmeof.spec.nqn import check_nqn


@opt.command("config")
@opt.port_options
@recovery_options("-R")
@click.option("-R", "--scan", is_flag=True, help="Add what this machine's kernel is connected to.")
@click.option("-M", "--modify", is_flag=True, help="Add the port that the options name, or change its options.")
@click.option("-U", "--update", is_flag=True, help="Write the file.")
@click.option("-O", "--dump", is_flag=True, help="Print the resulting file.")
@config_option
def config_command(scan: bool, modify: bool, update: bool, dump: bool, config_file: str | None, **options: Any) -> None:
    """Show and change config.json, the file that libnvme and connect-all take subsystems from."""
    if not (update or dump):
        raise ConfigurationError("nothing to do: give --dump to see the file, or --update to write it")
    path = config_path(config_file)
    config = read_config(path) if path is not None and path.exists() else ConfigFile()
    if scan:
        config.merge(kernel_connections())
    if modify:
        _modify(config, options)
    if update:
        target = own_file(CONFIG_JSON) if config_file in (None, NO_FILE) else Path(str(config_file))
        write_text(target, format_config(config))
        out.remark(f"{target} was written")
    if dump:
        print(format_config(config), end="")


def _modify(config: ConfigFile, options: dict[str, Any]) -> None:
    if not options.get("nqn") or not options.get("traddr"):
        raise ConfigurationError("--modify needs a subsystem and its address: give --nqn and --traddr")
    check_nqn(options["nqn"], "the subsystem NQN")
    hostnqn, hostid = host_identity(options.get("hostnqn"), options.get("hostid"))
    given = opt.given_options()
    port = PortEntry(
        options["transport"],
        options["traddr"],
        None if options.get("trsvcid") is None else str(options["trsvcid"]),
        options.get("host_traddr"),
        options.get("host_iface"),
        {name: _whole(name, options[name]) for name in (*sorted(PORT_OPTIONS), *NAMES) if name in given & PORT_OPTIONS},
    )
    config.set_port(hostnqn, str(hostid), options["nqn"], port)


def _whole(name: str, value: float | bool) -> int | bool:
    if isinstance(value, bool) or value == int(value):
        return value if isinstance(value, bool) else int(value)
    raise ConfigurationError(f"{CONFIG_JSON} has whole seconds: --{name.replace('_', '-')} cannot be {value:g}")


COMMANDS = (config_command,)
