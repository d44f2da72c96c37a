"""What the target's logic needs of the world that runs it: futures, timers and the time.

The layer that owns an event loop passes an object of this shape in; nothing below it imports asyncio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


async def settled(result: T | Awaitable[T]) -> T:
    """What an operation gives, at once or later."""
    return await result if isinstance(result, Awaitable) else result


async def pause(runtime: Runtime, owner: Hashable = None) -> None:
    """Let the event loop serve everybody else, between two pieces of long work; owners of such work take turns."""
    future: Future[None] = runtime.create_future()
    runtime.in_turn(owner, lambda: None if future.done() else future.set_result(None))
    await future


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

    def in_turn(self, owner: Hashable, callback: Callable[[], object], /) -> None:
        """Call back when it is the owner's turn to go on with long work: one piece per turn of the event loop."""
        ...

    def run(self, coroutine: Coroutine[Any, Any, None], /) -> None:
        """Run it in the background, as nobody's command; when the target stops, it is cancelled."""
        ...
