"""What the command line says once the target serves: for a person, or for a program."""

from __future__ import annotations

import shlex
from typing import Any

import click

from nvmeof.address import is_link_local, is_loopback, split_scope
from nvmeof.aio.runloop import loop_name
from nvmeof.cli import streams
from nvmeof.launch import command_line
from nvmeof.size_text import format_size
from nvmeof.target.subsystem.ana import ANA_GROUP
from nvmeof.target.subsystem.config import TLS_OFF, TLS_REQUIRED
from nvmeof.transport.base import Address


def remark(text: str) -> None:
    """Say a sentence on stderr, behind the program's name."""
    streams.remark("nvmeof-target", text)


def _reachable(host: str) -> str:
    """Return an address that a host on this machine can use."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _elsewhere(host: str, reachable: str) -> str:
    """Return what a host on another machine has to change in the lines to connect with."""
    if host != reachable:
        return f" (from elsewhere: this machine's address instead of {reachable})"
    if is_link_local(host):
        return f" (from elsewhere: behind %, that machine's interface instead of {split_scope(host)[1]})"
    return ""


def facts(described: dict[str, Any]) -> dict[str, Any]:
    """Return the facts to print at the start, from the result of `Administration.describe`: its first
    subsystem, flat."""
    subsystem, ports = described["subsystems"][0], described["ports"]
    paths = {path["address"]: path for port in ports for path in port["paths"]}
    return {
        "subnqn": subsystem["nqn"],
        "serial": subsystem["serial"],
        "transport": ports[0]["transport"],
        "trtype": ports[0]["trtype"],
        "loop": loop_name(),
        "allowed_hosts": subsystem["hosts"],
        "hosts_with_keys": subsystem["hosts_with_keys"],
        "authentication_required": subsystem["authentication_required"],
        "hosts_with_tls_keys": subsystem["hosts_with_tls_keys"],
        "tls": ports[0]["tls"],
        "listeners": [
            {**listener, "discovery_only": port["discovery_only"]} for port in ports for listener in port["listeners"]
        ],
        "paths": list(paths.values()),
        "ana": [
            {
                "group": int(group),
                "state": state,
                "portid": port["portid"],
                "address": str(Address(port["host"], port["port"])),
            }
            for port in ports
            for group, state in port["ana"].items()
            if not port["discovery_only"]
        ],
        "namespaces": subsystem["namespaces"],
        "pool": subsystem["pool"],
    }


def say_configured(described: dict[str, Any]) -> None:
    """Say what a target with a configuration file serves, from the result of `Administration.describe`."""
    for subsystem in described["subsystems"]:
        _say_subsystem(subsystem["nqn"], subsystem["serial"], subsystem["namespaces"], subsystem["pool"])
    for port in described["ports"]:
        for listener in port["listeners"]:
            _say_listener({**listener, "discovery_only": port["discovery_only"]}, port["transport"], port["trtype"])
        for path in port["paths"]:
            _say_path(path)
    if not described["ports"]:
        click.echo("no port is listened on")
    click.echo("stop with Ctrl-C; SIGHUP reads the file again")


def _say_subsystem(nqn: str, serial: str, namespaces: list[dict[str, Any]], pool: dict[str, Any] | None) -> None:
    click.echo(f"subsystem  {nqn}  (serial {serial})")
    for namespace in namespaces:
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
    if pool:
        sizes = {name: format_size(pool[f"{name}_bytes"]) for name in ("capacity", "unallocated")}
        where = pool["description"].removesuffix(f" {sizes['capacity']}")
        click.echo(
            f"capacity   {sizes['capacity']} for hosts to create namespaces from, {sizes['unallocated']} left ({where})"
        )


def _say_listener(listener: dict[str, Any], transport: str, trtype: int) -> None:
    address = Address(listener["address"], listener["port"])
    protocol = listener["protocol"]
    if listener["fallback"]:
        protocol += f" (asked for {transport}; {listener['fallback']})"
    what = "discovery " if listener["discovery_only"] else "listening "
    click.echo(f"{what} {address} over {protocol}, trtype {trtype}, loop {loop_name()}")


def _say_path(path: dict[str, Any]) -> None:
    click.echo(f"announced  {path['address']} on {path['device']} ({path['flags']})")


def say(told: dict[str, Any]) -> None:
    """Say what a target of the command line serves, from `facts`, and how to connect."""
    _say_subsystem(told["subnqn"], told["serial"], told["namespaces"], told["pool"])
    for listener in told["listeners"]:
        _say_listener(listener, told["transport"], told["trtype"])
    for each in told.get("ana", ()):
        click.echo(f"ANA        group {each['group']} is {each['state']} on {each['address']}")
    for path in told["paths"]:
        _say_path(path)
    first = told["listeners"][0]
    host = _reachable(first["address"])
    click.echo(f"connect with{_elsewhere(first['address'], host)}")
    where = f"-a {host} -s {first['port']} -n {shlex.quote(told['subnqn'])}"
    secured = told.get("tls", TLS_OFF) == TLS_REQUIRED
    click.echo(f"  nvme connect -t tcp {where}{' --tls' if secured else ''}")
    key = " --tls --tls-key file:KEY" if secured else ""
    click.echo(f"  {command_line('host')} connect -t {told['transport']} {where}{key}")
    click.echo("stop with Ctrl-C")


def warn(told: dict[str, Any]) -> None:
    if told["allowed_hosts"] or told["authentication_required"] or told.get("tls", TLS_OFF) == TLS_REQUIRED:
        return
    public = [
        str(Address(listener["address"], listener["port"]))
        for listener in told["listeners"]
        if not listener["discovery_only"] and not is_loopback(listener["address"])
    ]
    if public:
        remark(f"warning: any host that reaches {', '.join(public)} may read and write (see --allow-host and --listen)")
