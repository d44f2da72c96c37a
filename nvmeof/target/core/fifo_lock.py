"""A lock for what awaits in between; those who wait for it take turns by owner."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nvmeof.runtime import Future, Runtime
from nvmeof.target.core.owner import OWNER


class _Waiter:
    __slots__ = ("future", "granted")

    def __init__(self, future: Future[None]) -> None:
        self.future = future
        self.granted = False


class FifoLock:
    """FIFO lock for coroutines that await while they hold it; independent of the event loop.

    `most`: how many may hold it at a time. Each owner (`nvmeof.target.core.owner`) has a separate line, served in the
    order of arrival, and the lines take turns: an owner of one request waits for at most one of each other owner.
    """

    def __init__(self, most: int = 1) -> None:
        self._free = most
        self._lines: dict[object, deque[_Waiter]] = {}  # whose turn is next first

    @asynccontextmanager
    async def turn(self, runtime: Runtime) -> AsyncIterator[None]:
        """Wait for one's turn, and let the next have theirs afterwards."""
        await self._take(runtime)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, runtime: Runtime) -> None:
        if self._free:
            self._free -= 1
            return
        waiter, owner = _Waiter(runtime.create_future()), OWNER.get()
        self._lines.setdefault(owner, deque()).append(waiter)
        try:
            await waiter.future
        except BaseException:  # given up while it waited
            line = self._lines.get(owner)
            if waiter.granted:
                self._pass_on()
            elif line is not None and waiter in line:
                line.remove(waiter)
                if not line:
                    del self._lines[owner]
            raise

    def _pass_on(self) -> None:
        while self._lines:
            owner = next(iter(self._lines))
            line = self._lines.pop(owner)
            waiter = line.popleft()
            if line:
                self._lines[owner] = line  # behind the others
            if not waiter.future.done():
                waiter.granted = True
                waiter.future.set_result(None)
                return
        self._free += 1
