"""The JSON Schema of a configuration document, derived from the dataclasses that it is made into.

``python -m nvmeof.target.configuration.schema`` prints it. Editors that know JSON Schema check a file by it.
"""

from __future__ import annotations

import json
from dataclasses import fields
from types import UnionType
from typing import Any, Final, get_args, get_type_hints

from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.security.tls.suites import SUITES
from nvmeof.security.words import hash_word
from nvmeof.spec.auth import DhGroupId, HashId
from nvmeof.target.core.rate_limits import RateLimit
from nvmeof.target.document import NESTED, VERSION
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.subsystem.ana import STATE_WORDS
from nvmeof.target.subsystem.config import (
    ADVERTISE_FORMS,
    REFERRAL_TRANSPORTS,
    TLS_POLICIES,
    NamespaceConfig,
    PortConfig,
    Referral,
    SubsystemConfig,
    TargetConfig,
)
from nvmeof.transport.base import SocketOptions
from nvmeof.transport.paths.session import PathOptions

_TYPES: Final = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
Schema = dict[str, Any]


def _type(hint: Any) -> Schema:
    types = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    names = [_TYPES[each] for each in types]
    return {"type": names[0] if len(names) == 1 else names}


def _object(kind: type[Any], required: tuple[str, ...] = (), **more: Schema) -> Schema:
    """The schema of a dataclass: its plain fields by their types, and ``more`` for those that are written by hand."""
    nested, hints = NESTED.get(kind, frozenset()), get_type_hints(kind)
    plain = {each.name: _type(hints[each.name]) for each in fields(kind) if each.name not in nested}
    return _mapping({**plain, **more}, required)


def _mapping(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**made, "required": list(required)} if required else made


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


TEXT: Final[Schema] = {"type": "string"}
_KEYS: Final = _mapping(
    {
        "dhchap_key": {"type": "string", "description": "DHHC-1:…, file:PATH or env:NAME"},
        "dhchap_ctrl_key": {"type": "string", "description": "DHHC-1:…, file:PATH or env:NAME"},
        "dhchap_hash": {"enum": [*(each.name.lower() for each in HashId), *(hash_word(each) for each in HashId)]},
        "dhchap_dhgroup": {"enum": [each.name.lower() for each in DhGroupId]},
    },
    ("dhchap_key",),
)


def _hexadecimal(size: int) -> Schema:
    return {"type": "string", "pattern": f"^[0-9a-fA-F]{{{2 * size}}}$"}


def _namespace() -> Schema:
    return _object(
        NamespaceConfig,
        ("storage",),
        storage={"type": "string", "description": "as --namespace has it: file:/srv/disk.img, ramdisk:1G"},
        uuid={"type": "string", "format": "uuid"},
        nguid=_hexadecimal(16),
        eui64=_hexadecimal(8),
        zoned=_object(ZoneGeometry, ("zone_bytes",)),
        rate_limit=_object(RateLimit),
    )


def _subsystem() -> Schema:
    return _object(
        SubsystemConfig,
        ("nqn",),
        hosts={**_list(TEXT), "description": "NQNs of the hosts that may use it; left out: any host"},
        managing_hosts={
            **_list(TEXT),
            "description": "NQNs of the hosts that may format, sanitize and manage namespaces; left out: all of them",
        },
        host_keys={"type": "object", "additionalProperties": _KEYS},
        tls_keys={
            "type": "object",
            "additionalProperties": {"type": "string", "description": "NVMeTLSkey-1:…, file:PATH or env:NAME"},
        },
        pool=_mapping({"capacity_bytes": {"type": "integer", "minimum": 1}, "directory": TEXT}, ("capacity_bytes",)),
        state={"type": "string", "description": "a file for what outlives the process"},
        namespaces=_list(_namespace()),
        host_limit={**_object(RateLimit), "description": "of each host that has none in host_limits"},
        host_limits={"type": "object", "additionalProperties": _object(RateLimit)},
    )


def _port() -> Schema:
    referral = _object(Referral, ("traddr",))
    referral["properties"]["transport"] = {"enum": list(REFERRAL_TRANSPORTS)}
    port = _object(
        PortConfig,
        advertise_as=_list({"enum": list(ADVERTISE_FORMS)}, minItems=1),
        ana={
            "type": "object",
            "additionalProperties": {"enum": list(STATE_WORDS)},
            "propertyNames": {"pattern": "^[0-9]+$"},
        },
        subsystems={**_list(TEXT), "description": "NQNs of the subsystems that it offers; left out: all"},
        paths=_list(TEXT),
        referrals=_list(referral),
        tls_suites=_list({"enum": [each.name for each in SUITES]}),
    )
    port["properties"]["tls"] = {"enum": list(TLS_POLICIES)}
    return port


def schema() -> Schema:
    """Return the schema (JSON Schema 2020-12)."""
    document = _object(
        TargetConfig,
        ("version",),
        version={"const": VERSION},
        connect_seconds={"type": "number", "exclusiveMinimum": 0},
        sockets=_object(SocketOptions),
        connection=_object(ConnectionConfig),
        paths=_object(PathOptions, paths=_list(TEXT), limits=_list({"type": "integer"}, maxItems=2)),
        subsystems=_list(_subsystem()),
        ports=_list(_port()),
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of an nvmeof target",
        **document,
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
