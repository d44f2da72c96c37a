"""What has to outlive a process: small values by name, such as reservations, beside the data that they belong to."""

from __future__ import annotations

from collections.abc import Awaitable
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

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

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
