"""How hosts create namespaces: one kind for each I/O command set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nvmeof.errors import CommandError
from nvmeof.spec.enums import Csi
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from nvmeof.spec.zns import NO_LIMIT
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.storage.base import Backend

_DATA = SQE.error_location("sgl_address")


@dataclass(frozen=True, slots=True)
class NamespaceKind:
    """How namespaces of an I/O command set are made.

    `check(fields, block_bytes)` looks at the fields of the create data that only this command set has, raises
    `CommandError`, and gives what has to be remembered of them (JSON). `make(nsid, backend, identifiers, options,
    **common)` makes the namespace, at its creation and after every restart; `common` is what `Namespace` takes.
    """

    csi: int
    check: Callable[[Any, int], dict[str, Any]]
    make: Callable[..., Namespace]


def _nothing_to_remember(fields: Any, block_bytes: int) -> dict[str, Any]:
    return {}


def _make(
    nsid: int, backend: Backend, identifiers: NamespaceIdentifiers, options: Mapping[str, Any], **common: Any
) -> Namespace:
    return Namespace(nsid, backend, identifiers, **common)


def _invalid(message: str) -> CommandError:
    return CommandError(Status.INVALID_FIELD, _DATA, message=message)


def _zones_to_remember(fields: Any, block_bytes: int) -> dict[str, Any]:
    """Return what to store of a zoned namespace that a host creates: its zones are those of `ZoneGeometry()`."""
    zone_blocks = ZoneGeometry().zone_bytes // block_bytes
    active, opened = (0 if each == NO_LIMIT else each for each in (fields.rar, fields.ror))
    if fields.nsze % zone_blocks:
        raise _invalid(f"{fields.nsze} blocks are not whole zones of {zone_blocks} blocks")
    if fields.znsco or fields.rnumzrwa:
        raise _invalid("zone random write areas are not supported (ZNSCO, RNUMZRWA)")
    if active and opened > active:
        raise _invalid(f"{opened} of {active} active zones cannot be open (ROR, RAR)")
    return {"zone_bytes": ZoneGeometry().zone_bytes, "max_active": active, "max_open": opened}


def _make_zoned(
    nsid: int,
    backend: Backend,
    identifiers: NamespaceIdentifiers,
    options: Mapping[str, Any],
    *,
    csi: int,
    **common: Any,
) -> Namespace:
    return ZonedNamespace(nsid, backend, identifiers, ZoneGeometry(**options), **common)


class NamespaceKinds(dict[int, NamespaceKind]):
    """The kinds of namespaces that hosts can create, by CSI."""


STANDARD_KINDS: Final[Mapping[int, NamespaceKind]] = NamespaceKinds(
    {
        Csi.NVM: NamespaceKind(Csi.NVM, _nothing_to_remember, _make),
        Csi.ZONED: NamespaceKind(Csi.ZONED, _zones_to_remember, _make_zoned),
    }
)
"""Those of this package."""
