"""What has to outlive a process: small values by name, such as reservations, beside the data that they belong to."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol


class Keeper(Protocol):
    """Sections of JSON values."""

    durable: bool
    """Whether what is kept is there again after a power loss."""

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

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values: dict[str, Any] = dict(values or {})

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


FORMAT_SECTION = "format"
"""What Format NVM has made of a namespace: `block_bytes`; and `erase` (SES) while that has not come to its end."""


def formatted_block_bytes(keeper: Keeper) -> int | None:
    """The block size that a host has formatted a namespace to; None when none has."""
    kept = keeper.get(FORMAT_SECTION)
    try:
        return None if kept is None else int(kept["block_bytes"])
    except (KeyError, TypeError, ValueError):
        return None
