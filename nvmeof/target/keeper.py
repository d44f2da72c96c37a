"""What has to outlive a process: small values by name, such as reservations, beside the data that they belong to."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from nvmeof.errors import ConfigurationError

BLOCK_BYTES_CHOICES = (512, 1024, 2048, 4096)


class Keeper(Protocol):
    """Sections of JSON values."""

    durable: bool
    """Whether what is kept is there again after a power loss."""

    origin: str
    """Where that is, for people."""

    def get(self, section: str) -> Any:
        """What was put last; None for nothing."""
        ...

    def put(self, section: str, value: Any) -> Awaitable[None] | None:
        """Keep a value (None: nothing); done when it is on non-volatile media. Raises or ends with `OSError`.

        The value must not be changed afterwards. `get` shows it at once.
        """
        ...


class MemoryKeeper:
    """Keeps for as long as it lives."""

    durable = False

    def __init__(self, values: Mapping[str, Any] | None = None, origin: str = "memory") -> None:
        self._values: dict[str, Any] = dict(values or {})
        self.origin = origin

    def get(self, section: str) -> Any:
        """What was put last; None for nothing."""
        return self._values.get(section)

    def put(self, section: str, value: Any) -> Awaitable[None] | None:
        """Keep a value (None: nothing)."""
        if value is None:
            self._values.pop(section, None)
        else:
            self._values[section] = value
        return None


def document_of(keeper: Keeper, section: str) -> dict[str, Any]:
    """A section that is a JSON object; an empty one for anything else."""
    document = keeper.get(section)
    return document if isinstance(document, dict) else {}


def damaged(keeper: Keeper, section: str, error: Exception) -> ConfigurationError:
    """Of what must not be forgotten unsaid: that a section holds what nobody has put there, and how to go on."""
    return ConfigurationError(
        f"what {keeper.origin} keeps as {section!r} cannot be read ({type(error).__name__}: {error}): repair it, or "
        "take that entry out to go on without"
    )


FORMAT_SECTION = "format"
"""What Format NVM has made of a namespace: `block_bytes`; and `erase` (SES) while that has not come to its end."""


def formatted_block_bytes(keeper: Keeper) -> int | None:
    """The block size that a host has formatted a namespace to; None when none has.

    Raises `ConfigurationError` for what cannot be read: with blocks of another size all data would be elsewhere.
    """
    kept = keeper.get(FORMAT_SECTION)
    if kept is None:
        return None
    try:
        block_bytes = int(kept["block_bytes"])
        if block_bytes not in BLOCK_BYTES_CHOICES:
            raise ValueError(f"there are no blocks of {block_bytes} bytes")
        if kept.get("erase") not in (None, 0, 1):
            raise ValueError(f"there is no erasure {kept['erase']!r}")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(keeper, FORMAT_SECTION, error) from error
    return block_bytes


def erasure_interrupted(keeper: Keeper) -> bool:
    """Whether a format was begun, and has not come to its end. Raises `ConfigurationError` like the block size."""
    return formatted_block_bytes(keeper) is not None and keeper.get(FORMAT_SECTION).get("erase") is not None
