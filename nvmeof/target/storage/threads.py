"""A few threads for system calls that block: handed over in batches, answered with one wake-up per batch.

The threads are shared out by owner, as memory is: an owner gets one more as long as it has no more of them than are
idle, so that one alone keeps half of them busy, and a thread is left for the next.

`concurrent.futures` is not used: there, the submitter waits until a further thread runs, which with a busy core is
several milliseconds of the event loop, and its futures and locks cost more than a small write.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias, TypeVar, cast

from nvmeof.target.core.owner import OWNER
from nvmeof.target.storage.operation import Operation
from nvmeof.target.storage.syscalls import yield_cpu

logger = logging.getLogger(__name__)
T = TypeVar("T")
After: TypeAlias = Callable[[bool], None]
_Item: TypeAlias = "tuple[Callable[[], object], asyncio.Future[object], After, bool]"
_Result: TypeAlias = "tuple[asyncio.Future[object], After, object, Exception | None]"
_BATCH = 32
_BATCH_AMONG_OTHERS = 4
"""While others wait as well."""


_GIVE_WAY_FIRST = 3
_GIVE_WAY_EVERY = 8
"""So often, and then every so many times, the loop gives way to threads that are not done."""


class _Here(threading.local):
    """Of the event loop that runs in this thread."""

    batches = 0
    """Handed to threads and not yet done, of all files together."""
    asked = 0
    """How often they were asked for since the last one was handed over."""


_here = _Here()


def give_way() -> None:
    """Let threads go first that have something to do for the event loop of this thread.

    A loop that never waits keeps a thread from running for as long as the scheduler allows, where both have one core,
    and gives the interpreter's lock away for moments only. A thread that is not done soon waits for its disk, and
    giving way to it would only serve the other programs of this machine.
    """
    if _here.batches:
        _here.asked += 1
        if _here.asked <= _GIVE_WAY_FIRST or not _here.asked % _GIVE_WAY_EVERY:
            yield_cpu()


def _nothing(delivered: bool) -> None:
    """Do nothing: the default of `after`, for a call that leaves no buffer to be freed."""


class _Batch(NamedTuple):
    """What is handed to a thread; `grow`: it starts another thread first, since it was the last one without work."""

    loop: asyncio.AbstractEventLoop
    owner: object
    items: list[_Item]
    grow: bool


def _outcome(call: Callable[[], object]) -> tuple[object, Exception | None]:
    """Return the result of a call, or its error.

    An `OSError` becomes a status, and its traceback is dropped: the frames of the call refer to the future that is to
    get the error, and such a circle would wait for the collector.
    """
    try:
        return call(), None
    except OSError as error:
        return None, error.with_traceback(None)
    except Exception as error:
        return None, error


class ThreadBatches:
    """Runs callables in at most `workers` threads; what is submitted in one step is handed over together.

    There is always a thread more than are busy, up to `workers`.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._name = name
        self._handed: SimpleQueue[_Batch | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._asked_for = 1  # threads that run, or that a running thread was asked to start
        self._workers = workers
        self._start_thread()
        self._busy = 0
        self._busy_for: dict[object, int] = {}  # by owner
        self._queues: dict[object, deque[_Item]] = {}  # by owner, whose turn is next first
        self._scheduled = False
        self._waiting: list[asyncio.Future[None]] = []

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Run `call` in a thread; its result or exception arrives in the future."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.run(call, future)
        return future

    def run(
        self, call: Callable[[], T], future: asyncio.Future[T], after: After = _nothing, *, slow: bool = False
    ) -> None:
        """Run `call` in a thread and complete the caller's `future`. A `slow` call is handed over alone: nothing waits
        behind it.

        `after(delivered)` is called on the loop once the thread is done with it, also when the future was cancelled
        before (`delivered` False, as for an exception): what the thread used may only be freed there.
        """
        loop = asyncio.get_running_loop()
        owner = OWNER.get()
        queue = self._queues.get(owner)
        if queue is None:
            queue = self._queues[owner] = deque()
        queue.append((call, cast("asyncio.Future[object]", future), after, slow))
        if not self._scheduled and self._busy < self._workers:
            self._scheduled = True
            loop.call_soon(self._dispatch, loop)

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        while self._queues and self._busy < self._workers:
            owner = next((owner for owner in self._queues if self._most(owner) > 0), self)
            if owner is self:
                return  # each of them has its share
            queue = self._queues.pop(owner)
            most = _BATCH_AMONG_OTHERS if self._queues else _BATCH
            share = min(most, -(-len(queue) // self._most(owner)))
            batch = [queue.popleft()]
            while len(batch) < share and not batch[0][3] and not queue[0][3]:
                batch.append(queue.popleft())
            if queue:
                self._queues[owner] = queue  # behind the others
            self._busy += 1
            self._busy_for[owner] = self._busy_for.get(owner, 0) + 1
            grow = self._busy == self._asked_for < self._workers
            self._asked_for += grow
            _here.batches += 1
            _here.asked = 0
            self._handed.put(_Batch(loop, owner, batch, grow))

    def _most(self, owner: object) -> int:
        """Return the number of threads that an owner may have."""
        idle = self._workers - self._busy
        if owner is None:
            return idle
        return (idle - self._busy_for.get(owner, 0) + 1) // 2

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        """Serve the jobs, in a thread, until the pool is closed."""
        while (batch := self._handed.get()) is not None:
            if batch.grow:
                try:
                    self._start_thread()
                except RuntimeError as error:
                    logger.warning("%s: no further thread for its file (%s): it is slower", self._name, error)
            self._run(batch.loop, batch.owner, batch.items)
            del batch  # not referenced until the next one comes

    def _run(self, loop: asyncio.AbstractEventLoop, owner: object, batch: list[_Item]) -> None:
        results: list[_Result] = []
        for call, future, after, _ in batch:
            if isinstance(future, Operation) and not future.begin():
                results.append((future, after, None, None))  # given up; what it had is freed on the loop
                continue
            results.append((future, after, *_outcome(call)))
        try:
            loop.call_soon_threadsafe(self._finish, loop, owner, results)
        except RuntimeError:
            pass  # the loop was closed before: no future is awaited

    def _finish(self, loop: asyncio.AbstractEventLoop, owner: object, results: list[_Result]) -> None:
        self._busy -= 1
        _here.batches -= 1
        busy = self._busy_for.pop(owner) - 1
        if busy:
            self._busy_for[owner] = busy
        for future, after, result, error in results:
            waited_for = not future.done()
            after(waited_for and error is None)
            if not waited_for:
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        if self._queues:
            self._dispatch(loop)
        elif not self._busy:
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)
            self._waiting.clear()

    async def idle(self) -> None:
        """Wait for all that was submitted."""
        while self._busy or self._queues:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    async def close(self) -> None:
        """Wait for all that was submitted, then end the threads."""
        await self.idle()
        for _ in range(self._workers):
            self._handed.put(None)
        for thread in self._threads:
            thread.join()
