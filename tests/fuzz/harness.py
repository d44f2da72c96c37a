"""What a harness is, and what it demands: an input in, the number of its PDUs out, or an AssertionError."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, ClassVar, Final

from nvmeof.target.commands import table

GROWTH_BYTES: Final = 24 << 10
"""How much more memory each round of some fifty inputs may hold than the round before: what is kept of each has a
limit that a few rounds do not reach (a history, a log)."""


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


def growth(harness: Harness, inputs: list[bytes], *, rounds: int = 4) -> int:
    """Return by how many bytes the memory of the process grows with every round of the same inputs, at the least.

    What is made once and kept, such as a buffer for the next connection, is in one of the rounds and not in all.
    """
    for data in inputs:
        harness.run(data)
    gc.collect()
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(rounds + 1):
            for data in inputs:
                harness.run(data)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
        return min(after - before for before, after in pairwise(sizes))
    finally:
        tracemalloc.stop()
