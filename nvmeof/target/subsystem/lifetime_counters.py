"""What a subsystem counts over its whole life: power cycles, power-on time, and what its namespaces did.

All of it is in the subsystem's metadata store, and outlives restarts if that is durable. Counters are stored from time
to time and at a clean stop: a kill loses those of the last minutes, as it does with a device.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

from nvmeof.target.core.metadata import MetadataStore, document_of
from nvmeof.target.namespaces.namespace import BLOCK_COUNTERS, Namespace, NamespaceCounters

logger = logging.getLogger(__name__)

SECTION: Final = "lifetime"
SAVE_SECONDS: Final = 300.0
"""How often counters are stored."""
_NAMESPACES_MAX: Final = 1024
_NUMBER_MAX: Final = 1 << 96  # beyond any real count, and its multiples still fit SMART's 16 bytes


@dataclass(slots=True)
class Totals:
    """Commands, and bytes instead of blocks, of one namespace or several."""

    reads: int = 0
    writes: int = 0
    verifies: int = 0
    copies: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_verified: int = 0
    bytes_copied: int = 0
    media_errors: int = 0

    def add(self, counters: NamespaceCounters, block_shift: int) -> None:
        """Add what a namespace of that block size has counted."""
        for field in fields(counters):
            value = getattr(counters, field.name)
            name = field.name
            if name in BLOCK_COUNTERS:
                name, value = name.replace("blocks", "bytes"), value << block_shift
            setattr(self, name, getattr(self, name) + value)

    @classmethod
    def of(cls, namespaces: Iterable[Namespace]) -> Totals:
        """Return the sum of the counters of namespaces."""
        totals = cls()
        for namespace in namespaces:
            totals.add(namespace.counters, namespace.block_shift)
        return totals

    def plus(self, other: Totals) -> Totals:
        """Return the sum of both."""
        return Totals(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})

    @property
    def host_reads(self) -> int:
        """SMART Host Read Commands: Compare, Copy and Read."""
        return self.reads + self.copies

    @property
    def host_writes(self) -> int:
        """User Data Out Commands: Copy and Write."""
        return self.writes + self.copies

    @property
    def smart_bytes_read(self) -> int:
        """Bytes of SMART Data Units Read: Compare, Read and Verify."""
        return self.bytes_read + self.bytes_verified

    @property
    def smart_bytes_written(self) -> int:
        """Bytes of User Data Out Commands: Copy and Write."""
        return self.bytes_written + self.bytes_copied


def _dump(totals: Totals) -> dict[str, int]:
    return {field.name: getattr(totals, field.name) for field in fields(totals) if getattr(totals, field.name)}


def _number(stored: Any, name: str) -> int | float:
    """Return the stored count of that name; 0 for a value that is not a count."""
    value = stored.get(name, 0) if isinstance(stored, dict) else 0
    return value if isinstance(value, int | float) and 0 <= value < _NUMBER_MAX else 0


def _sound(stored: Any) -> bool:
    """Return whether all stored values are valid counts."""
    if isinstance(stored, dict):
        return all(_sound(value) for value in stored.values())
    return isinstance(stored, bool | int | float) and 0 <= stored < _NUMBER_MAX


def _load(stored: Any) -> Totals:
    return Totals(**{field.name: int(_number(stored, field.name)) for field in fields(Totals)})


class Lifetime:
    """`power_cycles` counts this one too. Until `start` the clock stands still."""

    def __init__(self, metadata_store: MetadataStore) -> None:
        self._metadata_store = metadata_store
        stored = document_of(metadata_store, SECTION)
        found = metadata_store.get(SECTION)
        if found is not None and not (isinstance(found, dict) and _sound(found)):
            logger.warning("section %r of %s is invalid; some counters start from zero", SECTION, metadata_store.origin)
        self.power_cycles = int(_number(stored, "power_cycles")) + 1
        self.unsafe_shutdowns = int(_number(stored, "unsafe_shutdowns"))
        self.unsafe = bool(stored) and not stored.get("clean", False)
        """Whether the last run ended without a clean stop."""
        if self.unsafe:
            self.unsafe_shutdowns += 1
        self.errors = int(_number(stored, "errors"))
        """The number of entries in the Error Information logs of all controllers so far."""
        self._snapshot_at: float | None = None
        self._seconds = float(_number(stored, "power_on_seconds"))
        self._busy = float(_number(stored, "busy_seconds"))
        self._busy_since: float | None = None
        self._outstanding = 0
        self._started_at: float | None = None
        self._saved_at = 0.0
        namespaces = stored.get("namespaces")
        self._of: dict[str, Totals] = (
            {uuid: _load(each) for uuid, each in namespaces.items()} if isinstance(namespaces, dict) else {}
        )
        self.gone = _load(stored.get("gone"))
        """The totals of namespaces that were deleted."""
        self._adopted: dict[int, Namespace] = {}

    # Namespaces

    def adopt(self, namespace: Namespace) -> None:
        """Add a namespace; its counters go on from the stored ones."""
        stored = self._of.pop(str(namespace.uuid), None)
        if stored is not None:
            for field in fields(namespace.counters):
                name, shift = field.name, 0
                if name in BLOCK_COUNTERS:
                    name, shift = name.replace("blocks", "bytes"), namespace.block_shift
                setattr(namespace.counters, field.name, getattr(stored, name) >> shift)
        self._adopted[id(namespace)] = namespace

    def release(self, namespace: Namespace) -> None:
        """Remove a namespace; its counts stay in the totals."""
        self._adopted.pop(id(namespace), None)
        totals = Totals.of([namespace])
        if totals == Totals():
            return
        self._of[str(namespace.uuid)] = totals
        while len(self._of) > _NAMESPACES_MAX:
            self.gone = self.gone.plus(self._of.pop(next(iter(self._of))))

    @property
    def totals(self) -> Totals:
        """The totals of the subsystem over its lifetime."""
        totals = Totals.of(self._adopted.values()).plus(self.gone)
        for each in self._of.values():
            totals = totals.plus(each)
        return totals

    # Time; `now` is seconds on the runtime's clock

    def start(self, now: float) -> Awaitable[None] | None:
        """Start the power-on clock; an end without `stop` counts as an unsafe shutdown."""
        if self._started_at is None:
            self._started_at = now
        return self.save(now)

    def power_on_seconds(self, now: float) -> float:
        """Return the power-on time of the subsystem in seconds, over all runs."""
        return self._seconds + (now - self._started_at if self._started_at is not None else 0.0)

    def begin(self, now: float) -> None:
        """Count an I/O command that did not complete at once."""
        if not self._outstanding:
            self._busy_since = now
        self._outstanding += 1

    def end(self, now: float) -> None:
        """Note the completion of such a command."""
        self._outstanding -= 1
        if not self._outstanding and self._busy_since is not None:
            self._busy += now - self._busy_since
            self._busy_since = None

    def busy_seconds(self, now: float) -> float:
        """Return for how many seconds I/O commands were outstanding."""
        return self._busy + (now - self._busy_since if self._busy_since is not None else 0.0)

    def snapshot_due(self, now: float, every_seconds: float) -> bool:
        """Return whether a snapshot of SMART is due; True counts as taken."""
        if self._snapshot_at is not None and now - self._snapshot_at < every_seconds:
            return False
        self._snapshot_at = now
        return True

    def save_due(self, now: float) -> bool:
        """Return whether `save` is due."""
        return self._started_at is not None and now - self._saved_at >= SAVE_SECONDS

    def save(self, now: float, *, clean: bool = False) -> Awaitable[None] | None:
        """Keep everything. Raises or ends with `OSError`."""
        self._saved_at = now
        namespaces = {uuid: _dump(each) for uuid, each in self._of.items()}
        namespaces |= {str(each.uuid): _dump(Totals.of([each])) for each in self._adopted.values()}
        return self._metadata_store.put(
            SECTION,
            {
                "power_cycles": self.power_cycles,
                "unsafe_shutdowns": self.unsafe_shutdowns,
                "power_on_seconds": round(self.power_on_seconds(now), 3),
                "busy_seconds": round(self.busy_seconds(now), 3),
                "clean": clean,
                "errors": self.errors,
                "namespaces": namespaces,
                "gone": _dump(self.gone),
            },
        )
