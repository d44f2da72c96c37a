"""The configuration of a simple target: one subsystem with a few namespaces, on some addresses of one transport."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from nvmeof.address import Address
from nvmeof.errors import ConfigurationError
from nvmeof.size_text import format_size
from nvmeof.target.namespaces.endurance_group import Pool
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import PHYSICAL_BYTES, Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig

DEFAULT_SUBNQN: Final = "nqn.2026-01.io.nvmeof:target"

logger = logging.getLogger("nvmeof.target")


def namespace_config(namespace: Any) -> NamespaceConfig:
    """Return the configuration of a namespace that may be given as a backend alone. Raises `ConfigurationError`."""
    return namespace if isinstance(namespace, NamespaceConfig) else NamespaceConfig(backend=namespace)


def simple_config(
    namespaces: Iterable[Any],
    subnqn: str,
    trtype: str,
    listen: str | Sequence[str],
    allowed_hosts: Iterable[str] | None,
    pool: Pool | None = None,
) -> TargetConfig:
    """Make the configuration of one subsystem on one transport: the parameters are those of `Target`.

    Raises `ConfigurationError` for what cannot be used.
    """
    if isinstance(namespaces, str):
        namespace_config(namespaces)  # raises, and says what to write instead
    if isinstance(namespaces, Backend | NamespaceConfig):
        name = type(namespaces).__name__
        raise ConfigurationError(f"namespaces is a list: write for instance [Ramdisk('1G')], not a {name} alone")
    configs = tuple(namespace_config(namespace) for namespace in namespaces)
    subsystem = SubsystemConfig(
        nqn=subnqn,
        namespaces=configs,
        allowed_hosts=None if allowed_hosts is None else frozenset(allowed_hosts),
        pool=pool,
    )
    addresses = [Address.parse(text) for text in ([listen] if isinstance(listen, str) else listen)]
    if not addresses:
        raise ConfigurationError("a target needs at least one address to listen on")
    ports = tuple(PortConfig(transport=trtype, host=address.host, port=address.port) for address in addresses)
    return TargetConfig(subsystems=(subsystem,), ports=ports)


def warn_of_memory(config: TargetConfig) -> None:
    """Log that hosts may write more to ramdisks, which are sparse, than there is memory for."""
    total_bytes = sum(
        namespace.backend.size_bytes
        for subsystem in config.subsystems
        for namespace in subsystem.namespaces
        if isinstance(namespace.backend, Ramdisk)
    )
    total_bytes += sum(s.pool.capacity_bytes for s in config.subsystems if isinstance(s.pool, RamdiskPool))
    if total_bytes > PHYSICAL_BYTES:
        logger.warning(
            "the ramdisks hold %s together, and this machine has %.1fG of memory: hosts that write more than that end "
            "the target",
            format_size(total_bytes), PHYSICAL_BYTES / (1 << 30),
        )  # fmt: skip
