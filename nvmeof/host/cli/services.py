"""The discovery services that a command asks: the one that its options name, or those of config.json and
discovery.conf.

Source: nvme-cli fabrics.c, ``nvmf_discover``: without an address config.json comes first, then discovery.conf.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nvmeof.address import Address, parse_port
from nvmeof.aio import mdns
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.cli import output as out
from nvmeof.host.cli.options import check_transport, given_options
from nvmeof.host.config_files.config_json import ConfigFile, read_config
from nvmeof.host.config_files.discovery_conf import parse_discovery_conf
from nvmeof.host.config_files.fabrics_options import ADDRESS
from nvmeof.host.config_files.files import CONFIG_JSON, DISCOVERY_CONF, find, read_text
from nvmeof.security.secret import parse_secret
from nvmeof.security.tls.key import PREFIX as TLS_PREFIX
from nvmeof.security.tls.key import parse_tls_key

NO_FILE = "none"
"""What ``--config`` says for no file, as in nvme-cli."""

config_option = click.option(
    "-J",
    "--config",
    "config_file",
    metavar="FILE",
    help="config.json to use; none: none.  [default: /etc/nvme's, or ours]",
)

_TAKEN = frozenset(
    (
        *ADDRESS, "hostnqn", "hostid", "nr_io_queues", "queue_size", "keep_alive_tmo", "reconnect_delay",
        "ctrl_loss_tmo", "fast_io_fail_tmo", "tos", "disable_sqflow", "hdr_digest", "data_digest", "persistent",
    )
)  # fmt: skip
"""Options of the files that mean something to this host."""
_SECURED = ("tls", "concat", "tls_key", "tls_key_identity")
"""Options without which a port cannot be used ..."""
_NEEDED = {"tls": "tls_key", "tls_key": "tls_key", "concat": "dhchap_secret"}
"""... unless there is the key or secret that they need, in the file or given."""

_SECRETS = {
    "dhchap_secret": ("dhchap_secret", "dhchap_key"),
    "dhchap_ctrl_secret": ("dhchap_ctrl_secret", "dhchap_ctrl_key"),
}
"""Our options for secrets, and what discovery.conf and config.json call them."""


@dataclass(slots=True)
class Asked:
    """A discovery service: the command's options, updated by those of its file, and the place where the file names
    it.
    """

    options: dict[str, Any]
    source: str


def config_path(config_file: str | None) -> Path | None:
    """Return the config.json that ``--config`` names, else an existing one; None where none exists or none is
    wanted.
    """
    if config_file == NO_FILE:
        return None
    return find(CONFIG_JSON) if config_file is None else Path(config_file)


def services(options: dict[str, Any], config_file: str | None = None) -> list[Asked]:
    """Return the discovery services to ask, each once.

    With an address it is the service there; otherwise those of config.json (whose options give way to the command
    line's), and those of discovery.conf (whose options go first). Raises :class:`ConfigurationError` for a wrong file,
    and without any service to ask.
    """
    if options.get("traddr"):
        return [Asked(options, "")]
    found: list[Asked] = []
    path = config_path(config_file)
    if path is not None:
        given = given_options()
        for host, service in _of_config(read_config(path), options.get("hostnqn")):
            mine = {name: value for name, value in service.items() if name not in given}
            _add(found, {**options, **host, **_usable(mine, str(path))}, str(path), service)
    path = find(DISCOVERY_CONF)
    if path is not None:
        for line in parse_discovery_conf(read_text(path), str(path)):
            where = f"{path}, line {line.line}"
            _add(found, {**options, **_usable(line.options, where)}, where, line.options)
    if not found:
        raise ConfigurationError(
            f"no address was given, and {DISCOVERY_CONF} and {CONFIG_JSON} name none: give one with --traddr"
        )
    return found


async def services_by_mdns(options: dict[str, Any]) -> list[Asked]:
    """Return the discovery services that multicast DNS finds on this machine's links, by its addresses in their order.

    Raises :class:`ConfigurationError` with an address given as well, and without python-zeroconf;
    :class:`NvmeofError` where none answers.
    """
    if options.get("traddr"):
        raise ConfigurationError("--mdns looks for services, and --traddr names one: give one of the two")
    found: list[Asked] = []
    for service in await mdns.find_services():
        where = {"traddr": service.addresses[0], "trsvcid": service.port, "subnqn": service.nqn}
        out.remark(f"mDNS: {service.name} at {Address(service.addresses[0], service.port)}")
        found.append(Asked({**options, **where}, f"mDNS ({service.name})"))
    if not found:
        raise NvmeofError(f"no discovery service answered by mDNS within {mdns.BROWSE_SECONDS:g} s")
    return found


async def ask_each(asked: list[Asked], ask: Callable[[Asked], Awaitable[None]]) -> None:
    """Ask the services one after the other. The failure of one of several is a remark.

    Raises the error of the only one, and :class:`NvmeofError` when none of several could be asked.
    """
    failed = 0
    for each in asked:
        try:
            await ask(each)
        except NvmeofError as error:
            if len(asked) == 1 and not (each.source and isinstance(error, ConfigurationError)):
                raise
            if len(asked) == 1:
                raise ConfigurationError(f"{each.source}: {error}") from None
            failed += 1
            out.remark(f"could not ask {each.options['traddr']} of {each.source}: {error}")
    if failed == len(asked):
        raise NvmeofError(f"none of the {failed} discovery services could be asked")


def _of_config(config: ConfigFile, hostnqn: str | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield who asks, and which service: each port of config.json, for the host that was named or for all."""
    for host in config.hosts:
        if hostnqn not in (None, host.hostnqn):
            continue
        who: dict[str, Any] = {"hostnqn": host.hostnqn, **({"hostid": host.hostid} if host.hostid else {})}
        if host.persistent_discovery_ctrl:
            who["persistent"] = True
        key = host.other.get("dhchap_key")
        for subsystem in host.subsystems:
            for port in subsystem.ports:
                own = port.as_json()
                yield who, {**own, "dhchap_key": own.get("dhchap_key", key)}


def _usable(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = {name: value for name, value in options.items() if name in _TAKEN}
    for name, theirs in _SECRETS.items():
        text = next((options[each] for each in theirs if isinstance(options.get(each), str)), None)
        if text not in (None, "none"):  # libnvme's word for none
            try:
                found[name] = parse_secret(str(text))
            except ConfigurationError as error:
                raise ConfigurationError(f"{where}: {error}") from None
    key = options.get("tls_key")
    if isinstance(key, str) and key.startswith(TLS_PREFIX):  # others are of a keyring
        try:
            found["tls_key"] = parse_tls_key(key)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    if found.get("tos") == -1:
        del found["tos"]  # libnvme's word for none
    if "trsvcid" in found:
        try:
            found["trsvcid"] = parse_port(found["trsvcid"])
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    return found


def _add(found: list[Asked], options: dict[str, Any], source: str, given: Mapping[str, Any]) -> None:
    """Add a service, unless it is a duplicate or has a transport that this host lacks (lines of other hosts are left
    alone).
    """
    secured = [name for name in _SECURED if given.get(name) not in (None, False, "none")]
    lacking = [name for name in secured if options.get(_NEEDED.get(name, "")) is None]
    if lacking:
        out.remark(f"left out {options.get('traddr')} of {source}: this host does not have its {', '.join(lacking)}")
        return
    if secured:
        options["concat" if "concat" in secured else "tls"] = True
    try:
        check_transport(options["transport"])
    except ConfigurationError:
        return
    names = ("transport", "traddr", "trsvcid", "host_traddr", "host_iface", "hostnqn", "hostid")
    key = [options.get(name) for name in names]
    if options.get("traddr") and not any([each.options.get(name) for name in names] == key for each in found):
        found.append(Asked(options, source))
