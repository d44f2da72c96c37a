"""``delay:read=10ms,write=1s``: operations of a kind take longer, by a fixed time.

Operations wait beside each other, as those of a slow disk with a deep queue do: the time comes before the operation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.filter import Kind, OperationFilter, call_later

T = TypeVar("T")
OPTIONS: Final = ("all", *(kind.value for kind in Kind))
SUMMARY: Final = "operations take longer: delay:read=10ms,write=1s"


class DelayFilter(OperationFilter):
    """Delay each operation by the seconds that `seconds` has for its kind (none where it has no entry)."""

    label = "delay"

    def __init__(self, next: Backend, seconds: Mapping[Kind, float]) -> None:
        super().__init__(next)
        self.seconds = dict(seconds)

    def around(self, kind: Kind, offset: int, length: int, call: Callable[[], T | Awaitable[T]]) -> T | Awaitable[T]:
        seconds = self.seconds.get(kind, 0.0)
        return call_later(seconds, call) if seconds else call()


def make(next: Backend, arguments: Arguments) -> Backend:
    """Make the filter from the text of a namespace."""
    every = arguments.seconds("all")
    return DelayFilter(next, {kind: arguments.seconds(kind.value, every) for kind in Kind})
