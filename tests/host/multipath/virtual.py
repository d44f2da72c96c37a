"""An event loop with virtual time: when nothing else is to be done, the next timer fires at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """A selector that never waits: the time that it should wait passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing is left to be done, and no timer runs: something waits for ever")
            self.time += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; `time()` is virtual."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)
        # a timer is due when its time has come exactly: sums of floats come out a little early
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.virtual.time


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time. Raises RuntimeError for a wait that never ends."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(coroutine)
    finally:
        leftover = asyncio.all_tasks(loop)
        for task in leftover:
            task.cancel()
        if leftover:
            loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
