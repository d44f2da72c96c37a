"""What features are set to: values, and where those that outlast a reset are stored."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Final

from nvmeof.spec.features import HOST_BEHAVIOR_SUPPORT
from nvmeof.target.core.metadata import MetadataStore, damaged, document_of
from nvmeof.wire import layout

logger = logging.getLogger(__name__)

_SECTION: Final = "features"
_CDFE_OFFSET, _CDFE_BYTES = layout(HOST_BEHAVIOR_SUPPORT)["cdfe"]


@dataclass(frozen=True, slots=True)
class Value:
    """The result of Get Features: DW0 and, for some features, a data structure."""

    dw0: int = 0
    data: bytes | None = None


Values = dict[tuple[int, int], Value]
"""By feature identifier, and by what selects one of several values (temperature sensors); mostly 0."""


@dataclass(slots=True)
class FeatureValues:
    """The values that Set Features changed of a controller: values, and what is more than remembered."""

    values: Values = field(default_factory=dict)
    thresholds: dict[int, int] = field(default_factory=dict)  # kelvin, by THSEL (0 over, 1 under)
    behavior: bytes = bytes(512)
    timestamp_ms: int = 0
    timestamp_set_at: float = 0.0
    timestamp_origin: int = 0
    reset_at: float = 0.0

    @property
    def host_behavior(self) -> Any:
        """The fields of Host Behavior Support: what the host has said that it knows."""
        return HOST_BEHAVIOR_SUPPORT.parse(self.behavior)

    @property
    def copy_formats(self) -> int:
        """CDFE of Host Behavior Support: the formats of Copy's descriptors that the host has enabled."""
        return int.from_bytes(self.behavior[_CDFE_OFFSET : _CDFE_OFFSET + _CDFE_BYTES], "little")


@dataclass(frozen=True, slots=True)
class Saved:
    """A value that was set to outlast resets: CDW11 to CDW15 of the Set Features, its data, and what was made of it."""

    dwords: tuple[int, ...]
    data: bytes | None
    value: Value


def _load(entry: Any) -> Saved | None:
    """Parse an entry that `save` made; None for any other."""
    try:
        data = entry["data"]
        made = entry["value"]
        return Saved(
            tuple(int(dword) & 0xFFFFFFFF for dword in entry["dwords"])[:5],
            None if data is None else bytes.fromhex(data),
            Value(int(entry["dw0"]), None if made is None else bytes.fromhex(made)),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def load(metadata_store: MetadataStore, fid: int, selector: int = 0) -> Saved | None:
    """Return the saved value of a feature; None for none."""
    return _load(document_of(metadata_store, _SECTION).get(f"{fid:02x}.{selector:x}"))


def load_strictly(metadata_store: MetadataStore, fid: int, selector: int = 0) -> Saved | None:
    """Return the saved value of a feature. Raises `ConfigurationError` for an invalid entry, which must not be
    discarded silently."""
    document = metadata_store.get(_SECTION)
    if document is None:
        return None
    key = f"{fid:02x}.{selector:x}"
    try:
        if key not in dict(document):
            return None
        saved = _load(document[key])
        if saved is None:
            raise ValueError(f"{key} is not a value")
    except (TypeError, ValueError) as error:
        raise damaged(metadata_store, _SECTION, error) from error
    return saved


def load_all(metadata_store: MetadataStore) -> list[tuple[int, Saved]]:
    """Return all saved values with their feature identifiers, in the order in which they were saved first."""
    found = []
    for key, entry in document_of(metadata_store, _SECTION).items():
        saved = _load(entry)
        fid = key.partition(".")[0]
        if saved is not None and len(fid) == 2 and all(digit in "0123456789abcdef" for digit in fid):
            found.append((int(fid, 16), saved))
    return found


def check_saved(metadata_store: MetadataStore) -> None:
    """Log a warning when saved values of controllers are invalid: their features start with the defaults."""
    stored = metadata_store.get(_SECTION)
    if stored is not None and len(load_all(metadata_store)) < (len(stored) if isinstance(stored, dict) else 1):
        logger.warning(
            "section %r of %s is only partly valid; the other values are the defaults", _SECTION, metadata_store.origin
        )


def save(metadata_store: MetadataStore, fid: int, selector: int, saved: Saved) -> Awaitable[None] | None:
    """Keep a value; done when it is on non-volatile media. Raises or ends with `OSError`."""
    entry = {
        "dwords": list(saved.dwords),
        "data": None if saved.data is None else saved.data.hex(),
        "dw0": saved.value.dw0,
        "value": None if saved.value.data is None else saved.value.data.hex(),
    }
    return metadata_store.put(_SECTION, {**document_of(metadata_store, _SECTION), f"{fid:02x}.{selector:x}": entry})


def forget(values: Values, metadata_store: MetadataStore, fid: int) -> Awaitable[None] | None:
    """Set a feature to its default, also as saved value; done when that is stored. Raises or ends with `OSError`."""
    for key in [key for key in values if key[0] == fid]:
        del values[key]
    document = document_of(metadata_store, _SECTION)
    left = {key: entry for key, entry in document.items() if not key.startswith(f"{fid:02x}.")}
    return None if left == document else metadata_store.put(_SECTION, left or None)
