"""What has to outlive a process: small values by name, such as reservations, beside the data that they belong to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from nvmeof.errors import ConfigurationError

BLOCK_BYTES_CHOICES = (512, 1024, 2048, 4096)

DATA_SECTIONS: Final = frozenset({"format", "reservations", "features", "uncorrectable", "sanitize"})
"""Sections that belong to the data of a namespace (PATH.nvmeof)."""
SUBSYSTEM_SECTIONS: Final = frozenset({"history", "lifetime", "self-test", "telemetry", "features", "sanitize"})
"""Sections that belong to a subsystem (--state)."""
POOL_SECTIONS: Final = SUBSYSTEM_SECTIONS | {"namespaces"}
"""Sections of a pool (pool.json), which also has those of the subsystem unless there is a --state."""

T = TypeVar("T")


class NotKeptError(OSError):
    """A value could not be written to its store; the value before holds again."""


class MetadataStore(Protocol):
    """Sections of JSON values."""

    durable: bool
    """True if stored sections survive a power loss."""

    origin: str
    """Where that is, for people."""

    def get(self, section: str) -> Any:
        """Return the value that was put last; None for none."""
        ...

    def put(self, section: str, value: Any) -> Awaitable[None] | None:
        """Keep a value (None: nothing); done when it is on non-volatile media. Raises or ends with `OSError`.

        The value must not be changed afterwards. `get` shows it at once, and the value before again after a failure.
        """
        ...

    def watch(self, section: str, withdrawn: Callable[[], None]) -> None:
        """Call `withdrawn` in the step in which a value of the section is found not to have been stored."""
        ...


class MemoryStore:
    """Keeps for as long as it lives."""

    durable = False

    def __init__(self, values: Mapping[str, Any] | None = None, origin: str = "memory") -> None:
        self._values: dict[str, Any] = dict(values or {})
        self.origin = origin

    @property
    def values(self) -> dict[str, Any]:
        """All sections, as they are now."""
        return dict(self._values)

    def get(self, section: str) -> Any:
        """Return the value that was put last; None for none."""
        return self._values.get(section)

    def put(self, section: str, value: Any) -> Awaitable[None] | None:
        """Keep a value (None: nothing)."""
        if value is None:
            self._values.pop(section, None)
        else:
            self._values[section] = value
        return None

    def watch(self, section: str, withdrawn: Callable[[], None]) -> None:
        """Do nothing: a write to memory cannot fail later."""


class KeptValue(Generic[T]):
    """A value in one section of a metadata store: a change that cannot be stored is undone.

    `changed` is called after each change, and after one was taken back. Values are compared by identity and must not be
    modified in place.
    """

    __slots__ = ("_changed", "_dump", "_metadata_store", "_section", "_settled", "now")

    def __init__(
        self, metadata_store: MetadataStore, section: str, now: T, dump: Callable[[T], Any], changed: Callable[[], None]
    ) -> None:
        self.now = now
        self._settled = now  # the last that is known to be stored
        self._metadata_store = metadata_store
        self._section = section
        self._dump = dump
        self._changed = changed
        metadata_store.watch(section, self._withdraw)

    @property
    def settled(self) -> T:
        """The value that is there after a loss of power, or one of those since."""
        return self._settled

    def set(self, value: T) -> Awaitable[None] | None:
        """Let a value hold, and keep it; done when it is on non-volatile media. Raises or ends with `OSError`."""
        if value is not self.now:
            self.now = value
            self._changed()
        try:
            pending = self._metadata_store.put(self._section, self._dump(value))
        except OSError:
            self._withdraw()
            raise
        if pending is None:
            self._settled = value
            return None
        return self._later(pending, value)

    def replace(self, value: T) -> None:
        """Let a value hold that need not be stored."""
        changed = value is not self.now
        self.now = self._settled = value
        if changed:
            self._changed()

    async def _later(self, pending: Awaitable[None], value: T) -> None:
        try:
            await pending
        except OSError:
            # A change that came later was built on this one: if it can be stored, so is this one.
            if self.now is value:
                self._withdraw()
            raise
        except BaseException:
            self._settled = value  # the command was given up; the write goes on
            raise
        self._settled = value

    def _withdraw(self) -> None:
        if self.now is not self._settled:
            self.now = self._settled
            self._changed()


def document_of(metadata_store: MetadataStore, section: str) -> dict[str, Any]:
    """Return a section that is a JSON object; an empty one for any other value."""
    document = metadata_store.get(section)
    return document if isinstance(document, dict) else {}


def damaged(metadata_store: MetadataStore, section: str, error: Exception) -> ConfigurationError:
    """Make the error for a section whose content is invalid and must not be silently discarded."""
    return ConfigurationError(
        f"section {section!r} of {metadata_store.origin} is invalid ({type(error).__name__}: {error}); "
        "repair it, or remove the section to continue without it"
    )


FORMAT_SECTION: Final = "format"
"""What Format NVM has made of a namespace: `block_bytes`; and `erase` (SES) while that has not come to its end."""


def formatted_block_bytes(metadata_store: MetadataStore) -> int | None:
    """Return the block size, in bytes, that a host has formatted a namespace to; None when none has. Raises
    `ConfigurationError` for an invalid section: with another block size all data would be at other addresses.
    """
    stored = metadata_store.get(FORMAT_SECTION)
    if stored is None:
        return None
    try:
        block_bytes = int(stored["block_bytes"])
        if block_bytes not in BLOCK_BYTES_CHOICES:
            raise ValueError(f"there are no blocks of {block_bytes} bytes")
        if stored.get("erase") not in (None, 0, 1):
            raise ValueError(f"there is no erasure {stored['erase']!r}")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(metadata_store, FORMAT_SECTION, error) from error
    return block_bytes


def erasure_interrupted(metadata_store: MetadataStore) -> bool:
    """Return whether a format has begun and not ended. Raises `ConfigurationError` for an invalid section."""
    return (
        formatted_block_bytes(metadata_store) is not None
        and metadata_store.get(FORMAT_SECTION).get("erase") is not None
    )
