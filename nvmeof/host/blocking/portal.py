"""The event loop behind the blocking API: a separate thread, and how other threads run coroutines on it.

This module must not know NVMe: it runs coroutines.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, Final, Generic, TypeVar

from nvmeof.aio.runloop import loop_factory
from nvmeof.errors import ConnectionLost, LocalProtocolError

T = TypeVar("T")
InnerT = TypeVar("InnerT")

STOP_SECONDS: Final = 2.0
"""How long the end of the program waits for the event loop."""
_END: Final = object()


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel everything that runs, what other threads have just begun too."""
    await asyncio.sleep(0)
    while tasks := asyncio.all_tasks(loop) - {asyncio.current_task(loop)}:
        for task in tasks:
            task.cancel()
        _, left = await asyncio.wait(tasks, timeout=STOP_SECONDS / 2)
        if left:
            return


class Portal:
    """An event loop in a thread that is started when it is first needed, and ends with the program.

    A call from any thread waits until its coroutine has ended. An exception in the waiting thread, such as the
    KeyboardInterrupt of Ctrl-C, cancels the coroutine, waits until that has ended, and goes on; a second one does not
    wait. After a fork the child has a new loop, and no connection of the parent's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is not None and self._pid == os.getpid():
            if threading.current_thread() is self._thread:
                raise LocalProtocolError("a blocking call from a callback of the event loop would wait for itself")
            return loop
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                make = loop_factory() or asyncio.new_event_loop
                self._loop, self._pid = make(), os.getpid()
                self._thread = threading.Thread(target=self._serve, args=(self._loop,), name="nvmeof", daemon=True)
                self._thread.start()
                atexit.register(self.stop)
            return self._loop

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(_end_tasks(loop))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    def stop(self) -> None:
        """End the loop and its thread; calls that wait raise :class:`ConnectionLost`. The next call starts a new
        loop."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or self._pid != os.getpid():
                return
            self._loop = self._thread = None
            atexit.unregister(self.stop)
            loop.call_soon_threadsafe(loop.stop)
        thread.join(STOP_SECONDS)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop's thread, and return what it returns or raise what it raises."""
        try:
            loop = self._running()
        except BaseException:
            coroutine.close()
            raise
        done: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = loop.create_task(coroutine)
            tasks.append(task)
            task.add_done_callback(end)

        def end(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                done.set_exception(ConnectionLost("the blocking API's event loop has ended"))
            elif (error := task.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(task.result())

        def cancel() -> None:
            if tasks:
                tasks[0].cancel()
            elif not done.done():  # it was interrupted before it began
                coroutine.close()
                done.set_exception(ConnectionLost("the call was cancelled"))

        try:
            loop.call_soon_threadsafe(begin)
            return done.result()
        except BaseException as error:
            if isinstance(error, RuntimeError) and loop.is_closed():
                coroutine.close()
                raise ConnectionLost("the blocking API's event loop has ended") from None
            if not done.done():
                loop.call_soon_threadsafe(cancel)
                done.exception()  # until it has ended; a second interrupt gets out of here
            raise

    def run_function(self, function: Callable[..., T], /, *args: Any, **keywords: Any) -> T:
        """Call a function in the loop's thread, where what belongs to the loop may be touched."""

        async def call() -> T:
            return function(*args, **keywords)

        return self.run(call())

    def iterate(self, items: AsyncIterator[T]) -> Generator[T, None, None]:
        """Iterate over an asynchronous iterator; a generator is closed with the iteration."""

        async def following() -> Any:
            return await anext(items, _END)

        async def close(generator: AsyncGenerator[T, None]) -> None:
            await generator.aclose()

        try:
            while (item := self.run(following())) is not _END:
                yield item
        finally:
            if isinstance(items, AsyncGenerator):
                self.run(close(items))


PORTAL: Final = Portal()
"""The loop that all of the blocking API shares."""


class Blocking(Generic[InnerT]):
    """A blocking face of an object of the asyncio API, which is ``wrapped``."""

    __slots__ = ("__weakref__", "_pid", "_wrapped")

    def __init__(self, wrapped: InnerT) -> None:
        self._wrapped = wrapped
        self._pid = os.getpid()

    @property
    def wrapped(self) -> InnerT:
        """The object of the asyncio API. Raises LocalProtocolError in a process that was forked after it was made."""
        if self._pid != os.getpid():
            raise LocalProtocolError(
                "this connection was made before a fork and belongs to the parent process: connect again in this one"
            )
        return self._wrapped

    def __repr__(self) -> str:
        return f"<blocking {self._wrapped!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocking) and other._wrapped is self._wrapped

    def __hash__(self) -> int:
        return hash(id(self._wrapped))
