"""What the target's logic needs of the world that runs it: futures, timers and the time.

The layer that owns an event loop passes an object of this shape in; nothing below it imports asyncio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


async def settled(result: T | Awaitable[T]) -> T:
    """What an operation gives, at once or later."""
    return await result if isinstance(result, Awaitable) else result


class Future(Awaitable[T], Protocol[T]):
    """A result that comes later; `asyncio.Future` has this shape."""

    def set_result(self, result: T, /) -> None: ...

    def done(self) -> bool: ...

    def cancel(self) -> bool: ...


class TimerHandle(Protocol):
    """A timer that was started; `asyncio.TimerHandle` has this shape."""

    def cancel(self) -> None: ...


class Runtime(Protocol):
    """Futures, timers and a monotonic clock in seconds."""

    def create_future(self) -> Future[Any]: ...

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> TimerHandle: ...

    def now(self) -> float: ...

    def run(self, coroutine: Coroutine[Any, Any, None], /) -> None:
        """Run it in the background, as nobody's command; when the target stops, it is cancelled."""
        ...
