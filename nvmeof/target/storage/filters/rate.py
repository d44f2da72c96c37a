"""``rate:bytes=100M,operations=5000``: at most so many bytes and operations in a second, a bucket for each.

An operation waits until its bytes are there; the order of the operations stays. A bucket holds what comes in a
tenth of a second, so a burst after a pause is short.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.filter import Kind, OperationFilter, call_later

T = TypeVar("T")
OPTIONS: Final = ("bytes", "operations")
SUMMARY: Final = "a limit per second: rate:bytes=100M,operations=5000"
BURST_SECONDS: Final = 0.1


class RateFilter(OperationFilter):
    """Let at most `bytes_per_second` and `operations_per_second` through (None: no limit of that kind).

    `now` is a monotonic clock in seconds.
    """

    label = "rate"

    def __init__(
        self,
        next: Backend,
        *,
        bytes_per_second: float | None = None,
        operations_per_second: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(next)
        self.bytes_per_second = bytes_per_second
        self.operations_per_second = operations_per_second
        self._now = now
        self._free_at = now() - BURST_SECONDS  # when all that was let through so far is paid for

    def around(self, kind: Kind, offset: int, length: int, call: Callable[[], T | Awaitable[T]]) -> T | Awaitable[T]:
        wait = self._pay(length)
        return call_later(wait, call) if wait > 0 else call()

    def _pay(self, length: int) -> float:
        """Charge an operation and return how many seconds it has to wait."""
        now = self._now()
        cost = max(
            length / self.bytes_per_second if self.bytes_per_second else 0.0,
            1 / self.operations_per_second if self.operations_per_second else 0.0,
        )
        start = max(self._free_at, now - BURST_SECONDS)
        self._free_at = start + cost
        return start - now


def make(next: Backend, arguments: Arguments) -> Backend:
    """Make the filter from the text of a namespace."""
    size = arguments.size("bytes")
    operations = arguments.number("operations", 0, least=1, most=1e9)
    if size is None and not operations:
        raise ConfigurationError("rate: no limit is given; write rate:bytes=100M or rate:operations=5000")
    return RateFilter(next, bytes_per_second=size, operations_per_second=operations or None)
