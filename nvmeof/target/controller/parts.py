"""What a feature or a log page remembers of a controller: its own state, which the controller only keeps for it."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar


class ControllerPart(Protocol):
    """Made without arguments when it is first asked for; goes with the controller."""

    def reset(self) -> None:
        """Go back to the state after Connect, at a Controller Reset (NVMe Base, Controller Level Reset)."""
        ...


Part = TypeVar("Part", bound=ControllerPart)


class ControllerParts:
    """The parts of one controller, each found by its type."""

    __slots__ = ("_by_type",)

    def __init__(self) -> None:
        self._by_type: dict[type, Any] = {}

    def __getitem__(self, kind: type[Part]) -> Part:
        part: Part | None = self._by_type.get(kind)
        if part is None:
            part = self._by_type[kind] = kind()
        return part

    def reset(self) -> None:
        """Reset all of them."""
        for part in self._by_type.values():
            part.reset()
