"""Writing of state: one write at a time; changes that come during a write are merged into the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable


def settle(waiters: Iterable[asyncio.Future[None]], error: BaseException | None) -> None:
    """Complete the waiting futures, or fail them with `error`."""
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


class WriteCoalescer:
    """Merges writes. `begin` takes the changes up to now and returns a call that writes them, in a thread."""

    def __init__(self, begin: Callable[[], Callable[[], None]]) -> None:
        self._begin = begin
        self._waiters: list[asyncio.Future[None]] = []
        self._saving: asyncio.Task[None] | None = None

    def save(self) -> asyncio.Future[None]:
        """Schedule a write. The future ends when the changes up to now are written, or with `OSError`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiters.append(future)
        if self._saving is None:
            self._saving = loop.create_task(self._save())
        return future

    async def finish(self) -> None:
        """Wait for what is being written."""
        if self._saving is not None:
            await self._saving

    async def _save(self) -> None:
        while self._waiters:
            waiters, self._waiters = self._waiters, []
            call = self._begin()
            error: OSError | None = None
            try:
                await asyncio.to_thread(call)
            except OSError as caught:
                error = caught
            settle(waiters, error)
        self._saving = None
