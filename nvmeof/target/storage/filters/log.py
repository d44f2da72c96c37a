"""``log:level=info``: each operation is a line of the log, with its time and outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from nvmeof.target.storage.arguments import Arguments
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.filter import Kind, OperationFilter

T = TypeVar("T")
OPTIONS: Final = ("level",)
SUMMARY: Final = "operations are lines of the log: log:level=info"
logger = logging.getLogger("nvmeof.target.storage.log")
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


class LogFilter(OperationFilter):
    """Log each operation at `level` when it has ended: kind, offset and length in bytes, milliseconds, outcome."""

    label = "log"

    def __init__(self, next: Backend, level: int = logging.INFO) -> None:
        super().__init__(next)
        self.level = level

    def around(self, kind: Kind, offset: int, length: int, call: Callable[[], T | Awaitable[T]]) -> T | Awaitable[T]:
        began = time.perf_counter()
        try:
            result = call()
        except OSError as error:
            self._log(kind, offset, length, began, error)
            raise
        if isinstance(result, Awaitable):
            return self._ended(kind, offset, length, began, result)
        self._log(kind, offset, length, began, None)
        return result

    async def _ended(self, kind: Kind, offset: int, length: int, began: float, pending: Awaitable[T]) -> T:
        try:
            result = await pending
        except OSError as error:
            self._log(kind, offset, length, began, error)
            raise
        self._log(kind, offset, length, began, None)
        return result

    def _log(self, kind: Kind, offset: int, length: int, began: float, error: OSError | None) -> None:
        outcome = "ok" if error is None else f"failed: {error.strerror or error}"
        milliseconds = (time.perf_counter() - began) * 1e3
        logger.log(
            self.level,
            "%s: %s %d bytes at %d in %.3f ms: %s",
            self.description,
            kind.value,
            length,
            offset,
            milliseconds,
            outcome,
        )


def make(next: Backend, arguments: Arguments) -> Backend:
    """Make the filter from the text of a namespace."""
    return LogFilter(next, arguments.choice("level", _LEVELS, "info"))
