"""What the host's sans-asyncio half asks of its surroundings: futures, timers, a clock and background coroutines.

The layer above implements it (:class:`nvmeof.host.client.AsyncioRuntime`), so that nothing down here imports asyncio
or reads a clock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Future(Protocol[T]):
    """The part of ``asyncio.Future`` that is used."""

    def __await__(self) -> Generator[Any, None, T]: ...
    def set_result(self, result: T, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...
    def done(self) -> bool: ...
    def cancel(self) -> bool: ...


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> object: ...


class Runtime(Protocol):
    """Futures, timers and a monotonic clock in seconds."""

    def now(self) -> float: ...
    def create_future(self) -> Future[Any]: ...
    def call_later(self, delay_seconds: float, callback: Callable[[], object], /) -> Timer: ...
    def spawn(self, coroutine: Coroutine[Any, Any, object], /) -> object:
        """Run in the background; whatever it raises must not be lost silently."""
        ...


async def sleep(runtime: Runtime, seconds: float) -> None:
    """Wait ``seconds``."""
    future = runtime.create_future()
    timer = runtime.call_later(seconds, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        timer.cancel()
