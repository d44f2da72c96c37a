"""The options of the command line, and the target that they ask for."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.security.tls.keylog import open_keylog
from nvmeof.size_text import parse_size
from nvmeof.spec.enums import CNTLID_MAX, DISCOVERY_PORT, NVME_PORT
from nvmeof.target.audit_log import AuditLog
from nvmeof.target.cli.limits import parse_keep_alive_range, with_rate_limits
from nvmeof.target.cli.secrets import host_keys, tls_keys
from nvmeof.target.configuration.files import Loaded, read_configuration
from nvmeof.target.core.connection_limits import CONNECTIONS_MOST
from nvmeof.target.core.metadata import SUBSYSTEM_SECTIONS
from nvmeof.target.document import TargetSettings
from nvmeof.target.handover import Handover
from nvmeof.target.meters import Meters
from nvmeof.target.namespaces.endurance_group import Pool
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry, parse_zoned
from nvmeof.target.server import Target
from nvmeof.target.simple_config import DEFAULT_SUBNQN
from nvmeof.target.slow_commands import SlowCommandLog
from nvmeof.target.storage.base import DEFAULT_BLOCK_BYTES, Backend
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.file_names import KEPT_SUFFIX, ZONES_SUFFIX, beside
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.pools import FilePool, RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.ana import parse_ana_setting
from nvmeof.target.subsystem.config import (
    ADVERTISE_DEFAULT,
    TLS_OFF,
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

logger = logging.getLogger("nvmeof.target")
DEFAULT_RAMDISK: Final = "1G"


@dataclass(slots=True)
class Options:
    """The command line, as given."""

    trtype: str = "mptcp"
    trtype_code: int | None = None
    listen: tuple[str, ...] = ()
    discovery: tuple[str, ...] = ()
    mdns: bool = False
    advertise: str | None = None
    advertise_as: tuple[str, ...] = ()
    ramdisk: tuple[str, ...] = ()
    keep_ramdisks: bool = False
    namespace: tuple[str, ...] = ()
    file: tuple[str, ...] = ()
    size: str | None = None
    capacity: str | None = None
    pool: str | None = None
    block_size: int | None = None
    read_only: bool = False
    shared: bool = False
    direct: bool = False
    subnqn: str = DEFAULT_SUBNQN
    serial: str = ""
    model: str = "nvmeof"
    allow_host: tuple[str, ...] = ()
    managing_host: tuple[str, ...] = ()
    audit_log: str | None = None
    dhchap_key: tuple[str, ...] = ()
    dhchap_ctrl_key: tuple[str, ...] = ()
    dhchap_hash: str | None = None
    dhchap_dhgroup: str | None = None
    require_authentication: bool = False
    tls: str = TLS_OFF
    tls_key: tuple[str, ...] = ()
    tls_suites: str | None = None
    tls_keylog: str | None = None
    reauthenticate: float = 0.0
    max_queues: int = 128
    queue_size: int = 1024
    mdts: str = "1M"
    in_capsule: str = "8K"
    max_controllers: int = 0
    max_controllers_per_host: int = 0
    max_connections: int = CONNECTIONS_MOST
    max_h2c_data: str = "1M"
    memory: str = "256M"
    keep_alive_range: str | None = None
    rate_limit: tuple[str, ...] = ()
    cntlid_min: int = 1
    cntlid_max: int = CNTLID_MAX
    digests: bool = True
    congestion: str | None = None
    sndbuf: str | None = None
    rcvbuf: str | None = None
    tos: int | None = None
    keep_alive: float = 0.0
    state: str | None = None
    slow_command: float | None = None
    poll: int = 0
    admin_label: str = ""
    ana: tuple[str, ...] = ()
    mptcp_signal: tuple[str, ...] = ()
    mptcp_limits: str | None = None
    path_manager: str | None = None
    uvloop: bool | None = None
    output: str = "normal"
    config: str | None = None
    check: bool = False
    inherited: tuple[PortConfig, ...] = ()  # ports for the sockets of a service manager, where none are given
    log_format: str = "text"
    metrics: str | None = None
    metrics_latency: bool = True
    control: str | None = None


def _ramdisk(options: Options, size: str) -> Ramdisk:
    return Ramdisk(size, block_bytes=options.block_size or DEFAULT_BLOCK_BYTES, keep=options.keep_ramdisks)


def _backends(options: Options) -> list[NamespaceConfig]:
    for name, given in (("size", options.size is not None), ("shared", options.shared), ("direct", options.direct)):
        if given and not options.file:
            raise ConfigurationError(f"--{name} requires --file")
    ramdisks = options.ramdisk or (() if options.file or options.namespace or options.capacity else (DEFAULT_RAMDISK,))
    backends: list[tuple[Backend, ZoneGeometry | None]] = []
    for size, zoned in map(parse_zoned, ramdisks):
        backends.append((_ramdisk(options, size), zoned))
    for path, zoned in map(parse_zoned, options.file):
        file = FileBackend(
            path,
            size=options.size,
            block_bytes=options.block_size,
            read_only=options.read_only,
            shared=options.shared,
            direct=options.direct,
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
    return JsonFileStore(options.state, sections=SUBSYSTEM_SECTIONS)  # not resolved: it refuses a link to nothing


def _ports(options: Options) -> list[PortConfig]:
    advertised = Address("", 0) if options.advertise is None else Address.parse(options.advertise, default_port=0)
    ports: list[PortConfig] = []
    settings = list(map(parse_ana_setting, options.ana))
    if options.inherited and not options.listen and not options.discovery:
        return [
            replace(port, ana=tuple((s.group, s.state) for s in settings if s.applies(port.host, port.port)))
            for port in options.inherited
        ]
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
                tls=options.tls,
                tls_suites=() if options.tls_suites is None else tuple(options.tls_suites.replace(":", ",").split(",")),
                ana=tuple((each.group, each.state) for each in settings if each.applies(address.host, address.port)),
            )
        )
    for text, setting in zip(options.ana, settings, strict=True):
        if not any(setting.applies(port.host, port.port) for port in ports if not port.discovery_only):
            raise ConfigurationError(f"--ana {text}: there is no --listen {text.partition('@')[2]}")
    return ports


def _trace(options: Options) -> SlowCommandLog | None:
    return None if options.slow_command is None else SlowCommandLog(options.slow_command, logger)


def _meters(options: Options) -> Meters | None:
    if options.metrics is None:
        return None
    return Meters(time.perf_counter if options.metrics_latency else None)


def load(options: Options) -> Loaded:
    """Read the file of --config. Raises ConfigurationError."""
    assert options.config is not None
    loaded = read_configuration(Path(options.config))
    for each in loaded.remarks:
        logger.warning("%s: %s", options.config, each)
    return loaded


def make_configured(
    options: Options, settings: TargetSettings, audit: AuditLog | None, handover: Handover | None = None
) -> Target:
    """Make the target that settings describe: those of --config, or of the target that this one goes on with
    (`handover`). Raises ConfigurationError."""
    if options.trtype_code is not None:
        base.set_trtype_code(options.trtype, options.trtype_code)
    if any(port.tls != TLS_OFF for port in settings.config.ports):
        open_keylog(options.tls_keylog)
    return Target.from_settings(
        settings, trace=_trace(options), meters=_meters(options), audit=audit, handover=handover
    )


def make_audit_log(options: Options) -> AuditLog | None:
    """Open the file of --audit-log, if one was named. Raises ConfigurationError."""
    return None if options.audit_log is None else AuditLog(options.audit_log)


def _subsystem(options: Options) -> SubsystemConfig:
    shortest, longest = (0.0, 0.0) if not options.keep_alive_range else parse_keep_alive_range(options.keep_alive_range)
    return SubsystemConfig(
        nqn=options.subnqn,
        serial=options.serial,
        model=options.model,
        allowed_hosts=frozenset(options.allow_host) or None,
        managing_hosts=frozenset(options.managing_host) or None,
        host_keys=host_keys(options.dhchap_key, options.dhchap_ctrl_key, options.dhchap_hash, options.dhchap_dhgroup),
        authentication_required=options.require_authentication,
        tls_keys=tls_keys(options.tls_key, options.tls, generated=bool(options.dhchap_key)),
        reauthentication_seconds=options.reauthenticate,
        namespaces=tuple(_backends(options)),
        pool=_pool(options),
        max_io_queues=options.max_queues,
        max_queue_entries=options.queue_size,
        max_transfer_bytes=parse_size(options.mdts, zero=True),
        incapsule_bytes=parse_size(options.in_capsule, zero=True),
        cntlid_min=options.cntlid_min,
        cntlid_max=options.cntlid_max,
        any_keep_alive_seconds=options.keep_alive,
        keep_alive_min_seconds=shortest,
        keep_alive_max_seconds=longest,
        max_controllers=options.max_controllers,
        max_controllers_per_host=options.max_controllers_per_host,
        admin_label=options.admin_label,
        metadata_store=_state(options),
    )


def make_target(options: Options, audit: AuditLog | None = None) -> Target:
    """Make the target from a command line's options. Raises ConfigurationError."""
    if options.trtype_code is not None:
        base.set_trtype_code(options.trtype, options.trtype_code)
    base.get(options.trtype)
    if options.tls != TLS_OFF:
        open_keylog(options.tls_keylog)
    return Target(
        TargetConfig(
            subsystems=(with_rate_limits(_subsystem(options), options.rate_limit),),
            ports=tuple(_ports(options)),
            staging_bytes=parse_size(options.memory),
            max_connections=options.max_connections,
            poll_seconds=options.poll * 1e-6,
        ),
        options=SocketOptions(
            congestion=options.congestion,
            tos=options.tos,
            sndbuf_bytes=parse_size(options.sndbuf) if options.sndbuf else None,
            rcvbuf_bytes=parse_size(options.rcvbuf) if options.rcvbuf else None,
        ),
        connection=ConnectionConfig(
            header_digest=options.digests,
            data_digest=options.digests,
            maxh2cdata_bytes=parse_size(options.max_h2c_data),
        ),
        paths=PathOptions(
            paths=options.mptcp_signal,
            limits=parse_limits(options.mptcp_limits) if options.mptcp_limits else ALL_PATHS,
            path_manager=options.path_manager,
        ),
        trace=_trace(options),
        meters=_meters(options),
        audit=audit,
    )
