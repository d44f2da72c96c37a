"""``count:``: how many operations of each kind there were, their bytes, and how many failed or are in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.filter import Kind, OperationFilter

T = TypeVar("T")
OPTIONS: Final = ()
SUMMARY: Final = "operations, bytes and failures are counted, for tests and programs: count:"


@dataclass(slots=True)
class Count:
    """Operations of one kind; `bytes` are those of all that began."""

    operations: int = 0
    bytes: int = 0
    failed: int = 0
    in_flight: int = 0
    most_in_flight: int = 0


class CountFilter(OperationFilter):
    """Count operations by kind in `counts`."""

    label = "count"

    def __init__(self, next: Backend) -> None:
        super().__init__(next)
        self.counts = {kind: Count() for kind in Kind}

    def around(self, kind: Kind, offset: int, length: int, call: Callable[[], T | Awaitable[T]]) -> T | Awaitable[T]:
        count = self.counts[kind]
        count.operations += 1
        count.bytes += length
        count.in_flight += 1
        count.most_in_flight = max(count.most_in_flight, count.in_flight)
        try:
            result = call()
        except BaseException:
            count.failed += 1
            count.in_flight -= 1
            raise
        if isinstance(result, Awaitable):
            return _ended(count, result)
        count.in_flight -= 1
        return result


async def _ended(count: Count, pending: Awaitable[T]) -> T:
    try:
        return await pending
    except BaseException:
        count.failed += 1
        raise
    finally:
        count.in_flight -= 1


def make(next: Backend, arguments: Arguments) -> Backend:
    """Make the filter from the text of a namespace."""
    return CountFilter(next)
