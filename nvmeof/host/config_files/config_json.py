"""``config.json``: a list of hosts, each with subsystems, each with ports; and what the kernel is connected to.

What this module does not know in the file is preserved when it is written again.

Sources: libnvme doc/config-schema.json, src/nvme/json.c.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never, TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.host.config_files.fabrics_options import ADDRESS, BY_NAME, PORT_OPTIONS, Kind
from nvmeof.host.config_files.files import CONFIG_JSON, read_text
from nvmeof.json_places import Place, line_of
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.spec.nqn import check_nqn

KERNEL_CONTROLLERS = Path("/sys/class/nvme")


@dataclass(slots=True)
class PortEntry:
    """A port of a subsystem in config.json. ``options``: those of :data:`PORT_OPTIONS` that are there."""

    transport: str
    traddr: str | None = None
    trsvcid: str | None = None
    host_traddr: str | None = None
    host_iface: str | None = None
    options: dict[str, int | bool] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    """Keys that mean nothing to this module, with their values."""

    @property
    def key(self) -> tuple[str | None, ...]:
        """What tells it apart from the other ports of its subsystem."""
        return tuple(getattr(self, name) for name in ADDRESS)

    def as_json(self) -> dict[str, Any]:
        """Return the object of the file."""
        address = {name: value for name, value in zip(ADDRESS, self.key, strict=True) if value is not None}
        return {**address, **self.options, **self.other}


@dataclass(slots=True)
class SubsystemEntry:
    """A subsystem in config.json."""

    nqn: str
    ports: list[PortEntry] = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the object of the file."""
        return {"nqn": self.nqn, **self.other, "ports": [port.as_json() for port in self.ports]}


@dataclass(slots=True)
class HostEntry:
    """A host in config.json: who connects. ``persistent_discovery_ctrl``: keep its discovery controllers connected."""

    hostnqn: str
    hostid: str | None = None
    persistent_discovery_ctrl: bool | None = None
    subsystems: list[SubsystemEntry] = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the object of the file."""
        given = {name: getattr(self, name) for name in ("hostid", "persistent_discovery_ctrl")}
        return {
            "hostnqn": self.hostnqn,
            **{name: value for name, value in given.items() if value is not None},
            **self.other,
            "subsystems": [subsystem.as_json() for subsystem in self.subsystems],
        }


@dataclass(slots=True)
class ConfigFile:
    """What config.json says. ``around``: the keys beside ``hosts`` where the file is an object; None: a plain list.

    libnvme 1 reads and writes a list; its schema describes an object. Both are read, and written as they were read.
    """

    hosts: list[HostEntry] = field(default_factory=list)
    around: dict[str, Any] | None = None

    def as_json(self) -> Any:
        """Return what the file holds."""
        hosts = [host.as_json() for host in self.hosts]
        return hosts if self.around is None else {**self.around, "hosts": hosts}

    def set_port(self, hostnqn: str, hostid: str | None, subnqn: str, port: PortEntry) -> bool:
        """Add a port; options given for one that is there replace its own. Host and subsystem are added as needed.

        Returns whether anything changed.
        """
        before = self.as_json()
        host = next(
            (each for each in self.hosts if each.hostnqn == hostnqn and hostid in (None, each.hostid)),
            None,
        )
        if host is None:
            host = HostEntry(hostnqn, hostid)
            self.hosts.append(host)
        subsystem = next((each for each in host.subsystems if each.nqn == subnqn), None)
        if subsystem is None:
            subsystem = SubsystemEntry(subnqn)
            host.subsystems.append(subsystem)
        known = next((each for each in subsystem.ports if each.key == port.key), None)
        if known is None:
            subsystem.ports.append(port)
        else:
            known.options.update(port.options)
            known.other.update(port.other)
        return bool(self.as_json() != before)

    def merge(self, other: ConfigFile) -> bool:
        """Add the ports of another file's hosts, as :meth:`set_port` does. Returns whether anything changed."""
        changed = [
            self.set_port(host.hostnqn, host.hostid, subsystem.nqn, port)
            for host in other.hosts
            for subsystem in host.subsystems
            for port in subsystem.ports
        ]
        return any(changed)


def parse_config(text: str, where: str = CONFIG_JSON) -> ConfigFile:
    """Read config.json. An empty text is an empty file.

    Raises :class:`ConfigurationError`, one sentence with `where` and the line, for what is no JSON or not of this form.
    """
    if not text.strip():
        return ConfigFile()
    try:
        root = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{where}, line {error.lineno}: not JSON: {error.msg}, at column {error.colno}"
        ) from None
    except (RecursionError, ValueError):
        raise ConfigurationError(f"{where} is nested too deeply, or has a number that is too long") from None
    return _ConfigReader(text, where).config(root)


def format_config(config: ConfigFile) -> str:
    """Return the text of config.json."""
    return json.dumps(config.as_json(), indent=2) + "\n"


def read_config(path: Path) -> ConfigFile:
    """Read a config.json. Raises :class:`ConfigurationError`."""
    return parse_config(read_text(path), str(path))


T = TypeVar("T")


class _ConfigReader:
    """Makes entries of what JSON gave; knows the text, to name the line of what is wrong."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where

    def _fail(self, place: Place, message: str) -> Never:
        raise ConfigurationError(f"{self._where}, line {line_of(self._text, place)}: {message}")

    def config(self, root: Any) -> ConfigFile:
        if isinstance(root, dict):
            around = {key: value for key, value in root.items() if key != "hosts"}
            return ConfigFile(self._list(root.get("hosts", []), ("hosts",), self._host), around)
        return ConfigFile(self._list(root, (), self._host))

    def _list(self, value: Any, place: Place, read: Callable[[Any, Place], T]) -> list[T]:
        if not isinstance(value, list):
            self._fail(place, f"{place[-1] if place else 'the file'} must be a list, not {_json_kind(value)}")
        return [read(each, (*place, index)) for index, each in enumerate(value)]

    def _object(self, value: Any, place: Place, what: str, needed: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(place, f"{what} must be an object, not {_json_kind(value)}")
        if needed not in value:
            self._fail(place, f"{what} without its {needed}")
        return dict(value)

    def _text_of(self, value: Any, place: Place) -> str:
        if isinstance(value, int) and not isinstance(value, bool) and place[-1] == "trsvcid":
            return str(value)
        if not isinstance(value, str):
            self._fail(place, f"{place[-1]} must be a text, not {_json_kind(value)}")
        return value

    def _nqn(self, value: Any, place: Place) -> str:
        text = self._text_of(value, place)
        try:
            return check_nqn(text, str(place[-1]))
        except ConfigurationError as error:
            self._fail(place, str(error))

    def _host(self, value: Any, place: Place) -> HostEntry:
        rest = self._object(value, place, "a host", "hostnqn")
        host = HostEntry(self._nqn(rest.pop("hostnqn"), (*place, "hostnqn")))
        if "hostid" in rest:
            host.hostid = self._text_of(rest.pop("hostid"), (*place, "hostid"))
        if "persistent_discovery_ctrl" in rest:
            wanted = rest.pop("persistent_discovery_ctrl")
            host.persistent_discovery_ctrl = bool(
                self._option(wanted, (*place, "persistent_discovery_ctrl"), Kind.FLAG)
            )
        host.subsystems = self._list(rest.pop("subsystems", []), (*place, "subsystems"), self._subsystem)
        host.other = rest
        return host

    def _subsystem(self, value: Any, place: Place) -> SubsystemEntry:
        rest = self._object(value, place, "a subsystem", "nqn")
        nqn = self._nqn(rest.pop("nqn"), (*place, "nqn"))
        return SubsystemEntry(nqn, self._list(rest.pop("ports", []), (*place, "ports"), self._port), rest)

    def _port(self, value: Any, place: Place) -> PortEntry:
        rest = self._object(value, place, "a port", "transport")
        address = {name: self._text_of(rest.pop(name), (*place, name)) for name in ADDRESS if name in rest}
        options = {
            name: self._option(rest.pop(name), (*place, name), BY_NAME[name].kind)
            for name in list(rest)
            if name in PORT_OPTIONS
        }
        return PortEntry(**address, options=options, other=rest)

    def _option(self, value: Any, place: Place, kind: Kind) -> int | bool:
        fits = isinstance(value, bool) if kind is Kind.FLAG else isinstance(value, int) and not isinstance(value, bool)
        if not fits:
            self._fail(place, f"{place[-1]} must be {kind.value}, not {_json_kind(value)}")
        assert isinstance(value, int)
        return value


def _json_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else json.dumps(value)[:80]


# -- what the kernel is connected to


def kernel_connections(directory: Path = KERNEL_CONTROLLERS) -> ConfigFile:
    """Return the fabrics controllers of this machine's kernel, from sysfs, without those of discovery."""
    found = ConfigFile()
    for each in sorted(directory.glob("nvme*"), key=lambda path: (len(path.name), path.name)):
        facts = {name: _attribute(each / name) for name in ("transport", "address", "subsysnqn", "hostnqn", "hostid")}
        if facts["transport"] in ("", "pcie") or facts["subsysnqn"] in ("", DISCOVERY_NQN) or not facts["hostnqn"]:
            continue
        address: Mapping[str, str] = dict(
            part.split("=", 1) for part in facts["address"].split(",") if part.count("=") == 1
        )
        port = PortEntry(
            facts["transport"],
            address.get("traddr"),
            address.get("trsvcid"),
            address.get("host_traddr"),
            address.get("host_iface"),
        )
        found.set_port(facts["hostnqn"], facts["hostid"] or None, facts["subsysnqn"], port)
    return found


def _attribute(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
