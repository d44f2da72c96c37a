"""Turns: operations that must not overlap, in the order of their arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nvmeof.target.core.runtime import Future, Runtime


class _Waiter:
    __slots__ = ("future", "granted")

    def __init__(self, future: Future[None]) -> None:
        self.future = future
        self.granted = False


class FifoLock:
    """A lock for what waits in between, on whatever event loop it runs."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[_Waiter] = deque()

    @asynccontextmanager
    async def turn(self, runtime: Runtime) -> AsyncIterator[None]:
        """Wait for one's turn, and let the next have theirs afterwards."""
        await self._take(runtime)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, runtime: Runtime) -> None:
        if not self._taken:
            self._taken = True
            return
        waiter = _Waiter(runtime.create_future())
        self._waiting.append(waiter)
        try:
            await waiter.future
        except BaseException:  # given up while it waited
            if waiter.granted:
                self._pass_on()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.future.done():
                waiter.granted = True
                waiter.future.set_result(None)
                return
        self._taken = False
