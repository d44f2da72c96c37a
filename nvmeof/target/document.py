"""The configuration of a target as a document: a mapping that JSON and other formats of that shape can hold.

    {
      "version": 1,
      "subsystems": [
        {"nqn": "nqn.2026-01.org.example:one", "hosts": ["nqn.2014-08.org.nvmexpress:uuid:…"],
         "namespaces": [{"nsid": 1, "storage": "file:/srv/disk.img", "uuid": "…", "nguid": "…"}]}
      ],
      "ports": [{"portid": 1, "transport": "mptcp", "host": "192.0.2.1", "port": 4420, "ana": {"2": "inaccessible"}}]
    }

What is left out has its default. Storage is written as ``--namespace`` has it. Sizes are bytes and times are seconds.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, Final, TypeVar, get_args, get_type_hints

from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.secret import load_secret
from nvmeof.security.tls.key import TlsKey, load_tls_key
from nvmeof.security.words import hash_word, parse_group, parse_hash
from nvmeof.target.core.metadata import SUBSYSTEM_SECTIONS
from nvmeof.target.core.rate_limits import RateLimit
from nvmeof.target.namespaces.endurance_group import Pool
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.kinds import make_backend
from nvmeof.target.storage.namespace_text import format_namespace_text, parse_namespace_text
from nvmeof.target.storage.pools import FilePool, RamdiskPool
from nvmeof.target.subsystem.ana import parse_ana_state, state_word
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, Referral, SubsystemConfig, TargetConfig
from nvmeof.transport.base import SocketOptions
from nvmeof.transport.paths.model import Limits
from nvmeof.transport.paths.session import PathOptions

VERSION: Final = 1
"""The version of documents that this package writes, and the only one that it reads."""
CONNECT_SECONDS: Final = 10.0
"""A connection that has not made a Connect by then is closed."""

T = TypeVar("T")
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """All that a target is made with, but for the rows of its commands, log pages and features.

    `config`: its subsystems and ports. `sockets`, `connection`, `connect_seconds` and `paths` are those of every port:
    the options of listening sockets, what is offered in the handshake, how long a connection may be without a Connect,
    and how addresses are announced (its `paths` on every port that announces).
    """

    config: TargetConfig
    sockets: SocketOptions = field(default_factory=SocketOptions)
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    connect_seconds: float = CONNECT_SECONDS
    paths: PathOptions = field(default_factory=PathOptions)


# -- writing -----------------------------------------------------------------------------------------------------------

NESTED: Final[Mapping[type, frozenset[str]]] = {
    NamespaceConfig: frozenset({"backend", "nguid", "uuid", "eui64", "zoned", "rate_limit"}),
    SubsystemConfig: frozenset(
        {
            "allowed_hosts",
            "managing_hosts",
            "host_keys",
            "tls_keys",
            "namespaces",
            "pool",
            "metadata_store",
            "host_limit",
            "host_limits",
        }
    ),
    PortConfig: frozenset({"advertise_as", "ana", "subsystems", "paths", "referrals", "tls_suites"}),
    TargetConfig: frozenset({"subsystems", "ports"}),
    PathOptions: frozenset({"paths", "limits"}),
}
"""The fields of a configuration that are no plain text, number or truth value, and are written by hand below."""


def _default(each: Any) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _plain(config: Any) -> Document:
    """Return the plain fields of a configuration that do not have their default."""
    nested = NESTED.get(type(config), frozenset())
    return {
        each.name: value
        for each in fields(config)
        if each.name not in nested and (value := getattr(config, each.name)) != _default(each)
    }


def _without_nothing(document: Document) -> Document:
    return {name: value for name, value in document.items() if value is not None}


def to_document(settings: TargetSettings) -> Document:
    """Return settings as a document. Raises `ConfigurationError` for storage that no text describes."""
    config, paths = settings.config, settings.paths
    return {
        "version": VERSION,
        **_plain(config),
        **_without_nothing(
            {
                "sockets": _plain(settings.sockets) or None,
                "connection": _plain(settings.connection) or None,
                "connect_seconds": None if settings.connect_seconds == CONNECT_SECONDS else settings.connect_seconds,
                "paths": _paths(paths) or None,
            }
        ),
        "subsystems": [_subsystem(each) for each in config.subsystems],
        "ports": [_port(each) for each in config.ports],
    }


def _paths(options: PathOptions) -> Document:
    """Return how addresses are announced, and the addresses for every port. No limits are written as an empty list."""
    document = _plain(options)
    if options.paths:
        document["paths"] = list(options.paths)
    if options.limits != PathOptions().limits:
        limits = options.limits
        document["limits"] = [] if limits is None else [limits.subflows, limits.add_addr_accepted]
    return document


def _subsystem(config: SubsystemConfig) -> Document:
    store = config.metadata_store
    if store is not None and not isinstance(store, JsonFileStore):
        raise ConfigurationError(f"{config.nqn}: its state is stored by a program, not in a file: it cannot be saved")
    return {
        **_plain(config),
        **_without_nothing(
            {
                "hosts": None if config.allowed_hosts is None else sorted(config.allowed_hosts),
                "managing_hosts": None if config.managing_hosts is None else sorted(config.managing_hosts),
                "host_keys": {nqn: _keys(keys) for nqn, keys in config.host_keys} or None,
                "tls_keys": {nqn: key.source or key.to_text() for nqn, key in config.tls_keys} or None,
                "pool": None if config.pool is None else _pool(config.pool),
                "state": None if store is None else str(store.path),
                "host_limit": None if config.host_limit is None else _plain(config.host_limit),
                "host_limits": {nqn: _plain(limit) for nqn, limit in config.host_limits} or None,
            }
        ),
        "namespaces": [_namespace(each) for each in config.namespaces],
    }


def _keys(keys: HostKeys) -> Document:
    controller = keys.controller_key
    return _without_nothing(
        {
            "dhchap_key": keys.key.source or keys.key.to_text(),
            "dhchap_ctrl_key": None if controller is None else controller.source or controller.to_text(),
            "dhchap_hash": None if keys.hash_id is None else hash_word(keys.hash_id),
            "dhchap_dhgroup": None if keys.group is None else keys.group.name.lower(),
        }
    )


def _pool(pool: Pool) -> Document:
    if isinstance(pool, RamdiskPool):
        return {"capacity_bytes": pool.capacity_bytes}
    if isinstance(pool, FilePool):
        return {"capacity_bytes": pool.capacity_bytes, "directory": str(pool.directory)}
    raise ConfigurationError(f"the pool {pool.description} is a program's own: it cannot be saved")


def _namespace(config: NamespaceConfig) -> Document:
    return {
        **_plain(config),
        **_without_nothing(
            {
                "uuid": None if config.uuid is None else str(config.uuid),
                "nguid": None if config.nguid is None else config.nguid.hex(),
                "eui64": None if config.eui64 is None else config.eui64.hex(),
                "zoned": None if config.zoned is None else _plain(config.zoned),
                "rate_limit": None if config.rate_limit is None else _plain(config.rate_limit),
            }
        ),
        "storage": format_namespace_text(config.backend.to_text()),
    }


def _port(config: PortConfig) -> Document:
    plain = {"transport": config.transport, "host": config.host, "port": config.port}
    advertise_as = list(config.advertise_as)
    return {
        **_plain(config),
        **plain,
        **_without_nothing(
            {
                "advertise_as": None if config.advertise_as == PortConfig().advertise_as else advertise_as,
                "subsystems": None if config.subsystems is None else sorted(config.subsystems),
                "paths": list(config.paths) or None,
                "tls_suites": list(config.tls_suites) or None,
                "referrals": [_plain(each) for each in config.referrals] or None,
                "ana": {str(group): state_word(state) for group, state in config.ana} or None,
            }
        ),
    }


# -- reading -----------------------------------------------------------------------------------------------------------


class _Section:
    """A mapping of a document: each entry is taken once, and `finish` refuses the rest."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{where or 'the document'} is a mapping of names to values, not {value!r}")
        self.where = where
        self._left = dict(value)

    def _place(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def wrong(self, name: str, wanted: str, value: object) -> ConfigurationError:
        """Make the error of an entry that is not what it should be."""
        return ConfigurationError(f"{self._place(name)} is {wanted}, not {value!r}")

    def take(self, name: str, kind: type[T], wanted: str) -> T | None:
        """Take an entry of a type; None for one that is not there."""
        value = self._left.pop(name, None)
        if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
            return value
        raise self.wrong(name, wanted, value)

    def texts(self, name: str) -> tuple[str, ...] | None:
        """Take a list of texts."""
        value: list[Any] | None = self.take(name, list, "a list of texts")
        if value is not None and not all(isinstance(each, str) for each in value):
            raise self.wrong(name, "a list of texts", value)
        return None if value is None else tuple(value)

    def section(self, name: str) -> _Section | None:
        """Take a mapping."""
        value = self._left.pop(name, None)
        return None if value is None else _Section(value, self._place(name))

    def sections(self, name: str) -> list[_Section]:
        """Take a list of mappings."""
        value: list[Any] = self.take(name, list, "a list") or []
        return [_Section(each, f"{self._place(name)}[{number}]") for number, each in enumerate(value)]

    def hexadecimal(self, name: str) -> bytes | None:
        """Take bytes, written as hexadecimal digits."""
        value = self.take(name, str, "hexadecimal digits")
        try:
            return None if value is None else bytes.fromhex(value)
        except ValueError:
            raise self.wrong(name, "hexadecimal digits", value) from None

    def plain(self, kind: type[Any]) -> Document:
        """Take the plain fields of a configuration."""
        nested, hints = NESTED.get(kind, frozenset()), get_type_hints(kind)
        taken: Document = {}
        for each in fields(kind):
            if each.name in nested or each.name not in self._left:
                continue
            value, hint = self._left.pop(each.name), hints[each.name]
            types = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            if float in types and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if type(value) not in types:
                words = " or ".join("null" if one is type(None) else one.__name__ for one in types)
                raise self.wrong(each.name, f"of the type {words}", value)
            taken[each.name] = value
        return taken

    def make(self, kind: type[T], **values: Any) -> T:
        """Make a configuration of its plain fields and `values`; every entry must have been taken."""
        plain = self.plain(kind)
        self.finish()
        missing = [
            each.name
            for each in fields(kind)  # type: ignore[arg-type]
            if each.default is MISSING and each.default_factory is MISSING and each.name not in {**plain, **values}
        ]
        if missing:
            raise ConfigurationError(f"{self.where or 'the document'} has no {missing[0]}: it must be given")
        try:
            return kind(**plain, **values)
        except NvmeofError as error:
            raise ConfigurationError(f"{self.where}: {error}" if self.where else str(error)) from error

    def finish(self) -> None:
        """Raise `ConfigurationError` for an entry that was not taken."""
        if self._left:
            raise ConfigurationError(f"{self._place(str(next(iter(self._left))))} is no entry that is known here")


def from_document(document: object) -> TargetSettings:
    """Return the settings that a document describes; nothing is opened yet.

    Raises `ConfigurationError` that names the entry that is wrong, such as ``subsystems[0].namespaces[1].nsid``.
    """
    top = _Section(document, "")
    version = top.take("version", int, f"the number {VERSION}")
    if version != VERSION:
        raise ConfigurationError(f"the document has the version {version}; this package reads version {VERSION}")
    sockets = (top.section("sockets") or _Section({}, "sockets")).make(SocketOptions)
    connection = (top.section("connection") or _Section({}, "connection")).make(ConnectionConfig)
    paths = _paths_from(top.section("paths") or _Section({}, "paths"))
    connect_seconds = top.take("connect_seconds", object, "a number of seconds")
    if connect_seconds is None:
        connect_seconds = CONNECT_SECONDS
    if isinstance(connect_seconds, bool) or not isinstance(connect_seconds, int | float) or connect_seconds <= 0:
        raise top.wrong("connect_seconds", "a number of seconds above 0", connect_seconds)
    subsystems = tuple(map(_subsystem_from, top.sections("subsystems")))
    ports = tuple(map(_port_from, top.sections("ports")))
    config = top.make(TargetConfig, subsystems=subsystems, ports=ports)
    return TargetSettings(
        config=config, sockets=sockets, connection=connection, connect_seconds=float(connect_seconds), paths=paths
    )


def _paths_from(section: _Section) -> PathOptions:
    paths = section.texts("paths") or ()
    limits: list[Any] | None = section.take("limits", list, "a list of two numbers, or an empty one")
    if limits is None:
        return section.make(PathOptions, paths=paths)
    if len(limits) not in (0, 2) or not all(type(each) is int for each in limits):
        raise section.wrong("limits", "a list of two numbers, or an empty one", limits)
    return section.make(PathOptions, paths=paths, limits=Limits(*limits) if limits else None)


def _subsystem_from(section: _Section) -> SubsystemConfig:
    hosts, managing = section.texts("hosts"), section.texts("managing_hosts")
    pool = section.section("pool")
    state = section.take("state", str, "the path of a file")
    keys: Mapping[str, Any] = section.take("host_keys", Mapping, "a mapping of host NQNs to keys") or {}  # type: ignore[type-abstract]
    tls_keys: Mapping[str, Any] = section.take("tls_keys", Mapping, "a mapping of host NQNs to TLS keys") or {}  # type: ignore[type-abstract]
    where = f"{section.where}.host_keys"
    host_limit = section.section("host_limit")
    limits: Mapping[str, Any] = section.take("host_limits", Mapping, "a mapping of host NQNs to rate limits") or {}  # type: ignore[type-abstract]
    return section.make(
        SubsystemConfig,
        allowed_hosts=None if hosts is None else frozenset(hosts),
        managing_hosts=None if managing is None else frozenset(managing),
        host_keys=tuple((nqn, _keys_from(_Section(each, f"{where}[{nqn!r}]"))) for nqn, each in keys.items()),
        tls_keys=tuple((nqn, _tls_key_from(section, nqn, each)) for nqn, each in tls_keys.items()),
        namespaces=tuple(map(_namespace_from, section.sections("namespaces"))),
        pool=None if pool is None else _pool_from(pool),
        metadata_store=None if state is None else JsonFileStore(state, sections=SUBSYSTEM_SECTIONS),
        host_limit=None if host_limit is None else host_limit.make(RateLimit),
        host_limits=tuple(
            (nqn, _Section(each, f"{section.where}.host_limits[{nqn!r}]").make(RateLimit))
            for nqn, each in limits.items()
        ),
    )


def _tls_key_from(section: _Section, nqn: str, source: object) -> TlsKey:
    """Read a host's TLS key: as such, or as ``file:PATH`` and ``env:NAME``."""
    where = f"{section.where}.tls_keys[{nqn!r}]"
    if not isinstance(source, str):
        raise ConfigurationError(f"{where} is file:PATH or env:NAME, or the key itself")
    try:
        return load_tls_key(source)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _keys_from(section: _Section) -> HostKeys:
    """Read a host's keys: nvmet's attributes of a host, secrets as such or as ``file:PATH`` and ``env:NAME``."""
    texts = {
        name: section.take(name, str, "a text")
        for name in ("dhchap_key", "dhchap_ctrl_key", "dhchap_hash", "dhchap_dhgroup")
    }
    section.finish()
    key, controller, hash_name, group = texts.values()
    if key is None:
        raise ConfigurationError(f"{section.where} has no dhchap_key: it must be given")
    try:
        return HostKeys(
            load_secret(key),
            None if controller is None else load_secret(controller),
            None if hash_name is None else parse_hash(hash_name),
            None if group is None else parse_group(group),
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{section.where}: {error}") from error


def _pool_from(section: _Section) -> Pool:
    capacity = section.take("capacity_bytes", int, "a number of bytes")
    directory = section.take("directory", str, "the path of a directory")
    section.finish()
    if capacity is None or capacity < 1:
        raise section.wrong("capacity_bytes", "a number of bytes above 0", capacity)
    return RamdiskPool(capacity) if directory is None else FilePool(directory, capacity)


def _namespace_from(section: _Section) -> NamespaceConfig:
    storage = section.take("storage", str, "the text of a backend, such as file:/srv/disk.img")
    if storage is None:
        raise ConfigurationError(f"{section.where} has no storage: write for instance file:/srv/disk.img")
    zoned, rate_limit = section.section("zoned"), section.section("rate_limit")
    number = section.take("uuid", str, "a UUID")
    try:
        identifier = None if number is None else uuid.UUID(number)
    except ValueError:
        raise section.wrong("uuid", "a UUID", number) from None
    try:
        backend = make_backend(parse_namespace_text(storage))
    except ConfigurationError as error:
        raise ConfigurationError(f"{section.where}.storage: {error}") from error
    return section.make(
        NamespaceConfig,
        backend=backend,
        uuid=identifier,
        nguid=section.hexadecimal("nguid"),
        eui64=section.hexadecimal("eui64"),
        zoned=None if zoned is None else zoned.make(ZoneGeometry),
        rate_limit=None if rate_limit is None else rate_limit.make(RateLimit),
    )


def _port_from(section: _Section) -> PortConfig:
    values: Document = {}
    for name in ("advertise_as", "paths", "tls_suites"):
        texts = section.texts(name)
        if texts is not None:
            values[name] = texts
    subsystems = section.texts("subsystems")
    ana: Mapping[Any, Any] = section.take("ana", Mapping, "a mapping of groups to states") or {}  # type: ignore[type-abstract]
    states = []
    for group, word in ana.items():
        if not (isinstance(group, str) and group.isdecimal()) or not isinstance(word, str):
            raise section.wrong("ana", 'a mapping such as {"2": "inaccessible"}', dict(ana))
        states.append((int(group), parse_ana_state(word)))
    return section.make(
        PortConfig,
        subsystems=None if subsystems is None else frozenset(subsystems),
        ana=tuple(states),
        referrals=tuple(each.make(Referral) for each in section.sections("referrals")),
        **values,
    )
