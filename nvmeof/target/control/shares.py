"""The share of the event loop's time that all clients of the control socket have together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

OTHERS: Final = 4
"""For each second that clients take, hosts have so many."""
_MOST_SECONDS: Final = 0.05
"""A request counts as no more: while a verb waits, others use the thread's time."""


class Shares:
    """Lets requests begin in the order in which they come, and pauses in proportion to what the last one has taken."""

    def __init__(self) -> None:
        self._line = asyncio.Lock()
        self._free_at = 0.0

    async def turn(self) -> None:
        """Wait until it is the caller's turn."""
        loop = asyncio.get_running_loop()
        async with self._line:
            left = self._free_at - loop.time()
            await asyncio.sleep(max(0.0, left))

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the CPU time of the block as taken."""
        began = time.thread_time()
        try:
            yield
        finally:
            taken = min(time.thread_time() - began, _MOST_SECONDS)
            now = asyncio.get_running_loop().time()
            self._free_at = max(now, self._free_at) + OTHERS * taken
