"""The runtime of both ends on asyncio: :class:`nvmeof.runtime.Runtime` on an event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from contextvars import Context, copy_context
from typing import Any, Final, TypeVar

T = TypeVar("T")

STOP_SECONDS: Final = 1.0
"""How long `stop` waits for background work that has been cancelled."""


class AsyncioRuntime:
    """Futures, timers and the clock of an event loop, background tasks and threads. Implements `Runtime`.

    ``logger``: where errors of background work are reported. ``loop``: the running one unless given.
    ``in_turn``: shares out the time for long work among its owners; without one, each piece of work is done in the
    next turn of the loop. ``background_context``: makes the context variables of background work.
    """

    def __init__(
        self,
        logger: logging.Logger,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        in_turn: Callable[[Hashable, Callable[[], object]], object] | None = None,
        background_context: Callable[[], Context] = copy_context,
    ) -> None:
        self.loop = loop or asyncio.get_running_loop()
        self.create_future: Callable[[], asyncio.Future[Any]] = self.loop.create_future
        self.call_later: Callable[[float, Callable[[], object]], asyncio.TimerHandle] = self.loop.call_later
        self.now: Callable[[], float] = self.loop.time
        self.tasks: set[asyncio.Task[object]] = set()
        """The background tasks."""
        self._logger = logger
        self._in_turn = in_turn
        self._background_context = background_context

    def in_turn(self, owner: Hashable, callback: Callable[[], object], /) -> None:
        """Call back when it is the owner's turn to go on with long work."""
        if self._in_turn is None:
            self.loop.call_soon(callback)
        else:
            self._in_turn(owner, callback)

    def spawn(self, coroutine: Coroutine[Any, Any, object], /) -> asyncio.Task[object]:
        """Run a coroutine in the background: what it raises is logged, and `stop` cancels it."""
        task = self._background_context().run(self.loop.create_task, coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def start(self, coroutine: Coroutine[Any, Any, T], /) -> asyncio.Task[T]:
        """Run a coroutine beside the caller, in the caller's context; the caller awaits it or cancels it."""
        return self.loop.create_task(coroutine)

    def in_thread(self, function: Callable[[], T], /) -> asyncio.Future[T]:
        """Run a function in a thread of the loop's pool."""
        return self.loop.run_in_executor(None, function)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._logger.error("background task failed: %s: %s", type(error).__name__, error)

    async def stop(self) -> None:
        """Cancel the background tasks, and wait at most `STOP_SECONDS` for their end."""
        tasks = [task for task in self.tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
