"""What the logic of both ends needs of the program that runs it: futures, timers, a clock, background work, threads.

The layer that owns an event loop passes an object of this shape in (:class:`nvmeof.aio.runtime.AsyncioRuntime`, or a
test's own), so that nothing below imports asyncio or reads a clock. Nothing here knows of targets, hosts or sockets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Future(Awaitable[T], Protocol[T]):
    """A result that comes later; `asyncio.Future` has this shape."""

    def set_result(self, result: T, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...

    def done(self) -> bool: ...

    def cancel(self) -> bool: ...


class Task(Awaitable[T_co], Protocol[T_co]):
    """A coroutine that runs beside others; awaited, it gives its return value. `asyncio.Task` has this shape."""

    def done(self) -> bool: ...

    def cancel(self) -> bool: ...


class TimerHandle(Protocol):
    """A timer that was started; `asyncio.TimerHandle` has this shape."""

    def cancel(self) -> None: ...


class Runtime(Protocol):
    """Futures, timers, a monotonic clock in seconds, background work and threads.

    One object per program or per part of it that ends as a whole (a target, a controller of the host).
    """

    def create_future(self) -> Future[Any]: ...

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> TimerHandle: ...

    def now(self) -> float: ...

    def in_turn(self, owner: Hashable, callback: Callable[[], object], /) -> None:
        """Call back when it is the owner's turn to go on with long work: one piece per turn of the event loop."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, object], /) -> object:
        """Run a coroutine that belongs to no command. What it raises is logged; at the end it is cancelled."""
        ...

    def start(self, coroutine: Coroutine[Any, Any, T], /) -> Task[T]:
        """Run a coroutine beside the caller, who awaits or cancels it; `spawn` is for what is not awaited."""
        ...

    def in_thread(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Run a function that computes for long in a thread; the awaitable gives what it returns, or raises."""
        ...


async def settled(result: T | Awaitable[T]) -> T:
    """Return the result of an operation, at once or later."""
    try:
        return await result if isinstance(result, Awaitable) else result
    finally:
        del result  # an error that it holds refers to this frame: the circle would wait for the collector


async def pause(runtime: Runtime, owner: Hashable = None) -> None:
    """Let the event loop serve others between two pieces of long work; the owners of such work take turns."""
    future: Future[None] = runtime.create_future()
    runtime.in_turn(owner, lambda: None if future.done() else future.set_result(None))
    await future


async def sleep(runtime: Runtime, seconds: float) -> None:
    """Wait ``seconds`` of the runtime's clock."""
    future: Future[None] = runtime.create_future()
    timer = runtime.call_later(seconds, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        timer.cancel()
