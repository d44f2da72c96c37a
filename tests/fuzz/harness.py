"""What a harness is, and what it demands: an input in, the number of its PDUs out, or an AssertionError."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

from nvmeof.target.commands import table

GROWTH_BYTES: Final = 256 << 10
"""How much more memory may be held after many inputs than after a few: caches, and what the allocator's own
granularity makes of it."""


class Violation(AssertionError):
    """An invariant does not hold."""


class Faults(logging.Handler):
    """What the product's code says of its own defects, which it survives: here each is a failure."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and record.exc_info[0] is not None:
            error = record.exc_info[1]
            self.found.append(f"{record.getMessage()}: {type(error).__name__}: {error}")

    def check(self) -> None:
        if self.found:
            found, self.found = self.found, []
            raise Violation("; ".join(found[:3]))


class Harness:
    """One thing that takes bytes from a peer. `run` is called with each input; `close` at the end.

    A new one is a subclass with a `name`, given to `register`: the engine, the test and the corpus find it there.
    """

    name: ClassVar[str]
    seeds: ClassVar[Iterable[bytes]] = (b"", bytes(64), bytes(range(256)))
    """Inputs to begin with, beside those in the corpus."""

    def __init__(self) -> None:
        self.faults = Faults()
        self._logger = logging.getLogger("nvmeof")
        self._before = self._logger.level, self._logger.propagate
        self._logger.addHandler(self.faults)
        self._logger.setLevel(logging.DEBUG)
        self._logger.propagate = False
        self._failed: Any = table._failed
        table._failed = self._command_failed  # type: ignore[assignment]

    def _command_failed(self, ctx: Any, spec: Any, sqe: Any, error: Exception) -> Any:
        self.faults.found.append(f"{spec.name}: {type(error).__name__}: {error}")
        return self._failed(ctx, spec, sqe, error)

    def run(self, data: bytes) -> int:
        """Do what an input says, check the invariants, return how many PDUs (or messages) it was."""
        count = self.one(data)
        self.faults.check()
        return count

    def one(self, data: bytes) -> int:
        raise NotImplementedError

    def close(self) -> None:
        """Release everything."""
        table._failed = self._failed
        self._logger.removeHandler(self.faults)
        self._logger.setLevel(self._before[0])
        self._logger.propagate = self._before[1]


HARNESSES: dict[str, Callable[[], Harness]] = {}
"""All of them, by name."""


def register(kind: type[Harness]) -> type[Harness]:
    """Make a harness known."""
    HARNESSES[kind.name] = kind
    return kind


def growth(harness: Harness, inputs: list[bytes], *, rounds: int = 3) -> int:
    """Return by how many bytes the memory of the process has grown in the last rounds of the same inputs."""
    for data in inputs:
        harness.run(data)
    gc.collect()
    tracemalloc.start()
    try:
        for data in inputs:  # what is made once, and what is kept of the last one
            harness.run(data)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(rounds):
            for data in inputs:
                harness.run(data)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
