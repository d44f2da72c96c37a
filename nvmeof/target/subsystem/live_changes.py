"""Changes of a subsystem that serves hosts, beyond coming and going: what an operator asks for, never a host.

A namespace that is disabled keeps its storage open, its data, reservations and counters, and no host sees it: the state
that `enable` 0 is in Linux's nvmet. As there (`drivers/nvme/target/configfs.c`), identifiers and storage change in that
state only: a host that uses a namespace never finds another one in its place.
"""

from __future__ import annotations

import uuid as uuid_module
from dataclasses import replace
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.storage.base import Backend
from nvmeof.target.subsystem.subsystem import Subsystem

LIMITS: Final = ("max_io_queues", "max_queue_entries", "cntlid_min", "cntlid_max")
"""The limits of a subsystem's configuration that can be changed while it runs."""


def disable_namespace(subsystem: Subsystem, nsid: int) -> Namespace:
    """Withdraw a namespace from hosts and keep it, with its storage open.

    Commands that have begun end on it. Raises `ConfigurationError` for one that is not there, is disabled already, or
    was created by a host.
    """
    if nsid in subsystem.disabled:
        raise ConfigurationError(f"namespace {nsid} of {subsystem.nqn} is disabled already")
    if subsystem.manager is not None and nsid in subsystem.manager.nsids:
        raise ConfigurationError(
            f"namespace {nsid} of {subsystem.nqn} was created by a host: detach it there, or remove it"
        )
    namespace = subsystem.remove_namespace(nsid)
    subsystem.disabled[nsid] = namespace
    return namespace


def enable_namespace(subsystem: Subsystem, nsid: int) -> Namespace:
    """Show a disabled namespace to hosts again. Raises `ConfigurationError` unless it is disabled."""
    namespace = disabled(subsystem, nsid)
    del subsystem.disabled[nsid]
    try:
        subsystem.insert(namespace, attached=True)
    except ConfigurationError:
        subsystem.disabled[nsid] = namespace
        raise
    subsystem.revalidate(namespace)
    return namespace


def disabled(subsystem: Subsystem, nsid: int) -> Namespace:
    """Return a disabled namespace. Raises `ConfigurationError` for one that is not there, or that hosts see."""
    namespace = subsystem.configured(nsid)
    if nsid not in subsystem.disabled:
        raise ConfigurationError(f"namespace {nsid} of {subsystem.nqn} is enabled: disable it first")
    return namespace


def set_read_only(subsystem: Subsystem, nsid: int, read_only: bool) -> None:
    """Refuse writes of all hosts to a namespace, or allow them; hosts get an event.

    A host's own write protection (Namespace Write Protection) holds beside it. Raises `ConfigurationError` for storage
    that cannot be written.
    """
    namespace = subsystem.configured(nsid)
    if not read_only and not namespace.backend.capabilities.can_write:
        raise ConfigurationError(
            f"namespace {nsid} of {subsystem.nqn} cannot be made writable: {namespace.backend.description} is read-only"
        )
    if namespace.configured_read_only != read_only:
        namespace.configure_read_only(read_only)
        subsystem.attributes_changed(namespace)


def set_identifiers(
    subsystem: Subsystem,
    nsid: int,
    *,
    uuid: uuid_module.UUID | None = None,
    nguid: bytes | None = None,
    eui64: bytes | None = None,
) -> None:
    """Give a disabled namespace other identifiers; those that are None stay. NGUID has 16 bytes, EUI-64 has 8.

    Raises `ConfigurationError`.
    """
    namespace = disabled(subsystem, nsid)
    for name, value, size in (("NGUID", nguid, 16), ("EUI-64", eui64, 8)):
        if value is not None and len(value) != size:
            raise ConfigurationError(f"an {name} has {size} bytes, not {len(value)}")
    old = namespace.identifiers
    namespace.identifiers = NamespaceIdentifiers(
        nguid=nguid or old.nguid, uuid=uuid or old.uuid, eui64=old.eui64 if eui64 is None else eui64
    )


def replace_backend(subsystem: Subsystem, nsid: int, backend: Backend) -> Backend:
    """Put other storage, which is open, behind a disabled namespace; its identifiers stay.

    Returns the storage that it had before, for the caller to close. Raises `ConfigurationError`, for a zoned namespace
    too: its zones belong to its storage.
    """
    old = disabled(subsystem, nsid)
    if isinstance(old, ZonedNamespace):
        raise ConfigurationError(f"namespace {nsid} of {subsystem.nqn} is zoned: remove it and add another")
    subsystem.disabled[nsid] = Namespace(
        nsid,
        backend,
        old.identifiers,
        read_only=old.configured_read_only and old.backend.capabilities.can_write,
        anagrpid=old.anagrpid,
        shared=old.shared,
    )
    return old.backend


def set_limits(subsystem: Subsystem, **limits: int) -> None:
    """Change some of `LIMITS` of the subsystem's configuration.

    Controllers that exist keep what they have; hosts follow at their next connect. Raises `ConfigurationError`, with
    nothing changed.
    """
    for name in limits:
        if name not in LIMITS:
            raise ConfigurationError(f"{name} cannot be changed while the target runs; {', '.join(LIMITS)} can")
    subsystem.config = replace(subsystem.config, **limits)  # type: ignore[arg-type]
