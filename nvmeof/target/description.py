"""What a running target is, in the words and numbers of JSON: for people, for programs, and for tests."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nvmeof.address import Address
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.ports import Port
from nvmeof.target.subsystem.ana import state_word
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.transport import base
from nvmeof.transport.base import Listener


def describe_subsystem(subsystem: Subsystem) -> dict[str, Any]:
    """Describe a subsystem: what hosts see of it, who may use it (`hosts` null: any), and who does."""
    names = subsystem.hosts.names
    manager, limits = subsystem.manager, subsystem.host_limits
    return {
        "nqn": subsystem.nqn,
        "serial": subsystem.config.serial_number,
        "model": subsystem.config.model,
        "hosts": None if names is None else sorted(names),
        "managing_hosts": None if subsystem.hosts.managing is None else sorted(subsystem.hosts.managing),
        "hosts_with_keys": sorted(subsystem.hosts.keys),
        "authentication_required": subsystem.hosts.authentication_required,
        "host_limit": None if limits.each is None else asdict(limits.each),
        "host_limits": {nqn: asdict(limit) for nqn, limit in limits.own.items()},
        "hosts_with_tls_keys": sorted(subsystem.hosts.tls_keys),
        "tls_required": subsystem.hosts.tls_required,
        "namespaces": [describe_namespace(namespace) for namespace in subsystem.namespaces.values()],
        "pool": None
        if manager is None
        else {
            "description": manager.pool.description,
            "capacity_bytes": manager.pool.capacity_bytes,
            "unallocated_bytes": subsystem.unallocated_bytes,
        },
        "controllers": [
            {"cntlid": each.cntlid, "host": each.host_nqn, "portid": each.ana.portid}
            for each in subsystem.controllers.values()
        ],
    }


def describe_namespace(namespace: Namespace) -> dict[str, Any]:
    """Describe a namespace, with the geometry of its zones if it has any."""
    return {
        "nsid": namespace.nsid,
        "backend": namespace.backend.description,
        "size_bytes": namespace.size_blocks * namespace.block_bytes,
        "block_bytes": namespace.block_bytes,
        "read_only": namespace.read_only,
        "anagrpid": namespace.anagrpid,
        "uuid": str(namespace.uuid),
        "zoned": _zones(namespace),
        "rate_limit": None if namespace.limiter is None else asdict(namespace.limiter.limit),
    }


def _zones(namespace: Namespace) -> dict[str, Any] | None:
    if not isinstance(namespace, ZonedNamespace):
        return None
    geometry = namespace.geometry
    return {
        "zones": len(namespace.zones),
        "zone_bytes": geometry.zone_bytes,
        "capacity_bytes": geometry.capacity,
        "max_open": geometry.max_open,
        "max_active": geometry.max_active,
        "extension_bytes": geometry.extension_bytes,
        "description": geometry.description,
    }


def describe_port(port: Port) -> dict[str, Any]:
    """Describe a port: where it listens, what it offers (`subsystems` null: all), and the addresses it announces."""
    config = port.config
    return {
        "portid": port.portid,
        "transport": config.transport,
        "trtype": base.get(config.transport).trtype,
        "host": config.host,
        "port": config.port,
        "discovery_only": config.discovery_only,
        "tls": config.tls,
        "subsystems": None if config.subsystems is None else sorted(config.subsystems),
        "referrals": [f"{each.transport}://{Address(each.traddr, each.trsvcid)}" for each in config.referrals],
        "listeners": [_listener(listener) for listener in port.all_listeners],
        "ana": {str(group): state_word(state) for group, state in sorted(port.ana.items())},
        "paths": port.announcements.list() if port.announcements is not None else [],
    }


def _listener(listener: Listener) -> dict[str, Any]:
    info = listener.describe()
    return {
        "address": info.address.host,
        "port": info.address.port,
        "protocol": info.protocol,
        "fallback": info.fallback_reason or None,
    }
