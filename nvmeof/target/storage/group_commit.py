"""Group commit: writes that have to reach the media and wait at the same time are committed by one fdatasync.

One group is under way at a time. What comes while it is, with all that one turn of the event loop brings, is the next
one: so a group grows with the time that the media take, as the number of hosts that wait does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from functools import partial

from nvmeof.target.storage.file_calls import FileCalls
from nvmeof.target.storage.file_runs import FileRuns
from nvmeof.target.storage.operation import Operation
from nvmeof.target.storage.threads import ThreadBatches
from nvmeof.target.storage.write_coalescer import settle


@dataclass(slots=True)
class _Write:
    """A write that waits; `after` as in `ThreadBatches.run`."""

    data: memoryview
    offset: int
    future: Operation[None]
    after: Callable[[bool], None]
    error: Exception | None = None


class GroupCommit:
    """The writes of one file that complete when they are on the media."""

    def __init__(self, file: FileCalls, runs: FileRuns, threads: ThreadBatches) -> None:
        self._file = file
        self._runs = runs
        self._threads = threads
        self._waiting: list[_Write] = []
        self._idle: list[asyncio.Future[None]] = []
        self.busy = False
        """A group is under way, or about to begin."""

    def add(self, data: memoryview, offset: int, future: Operation[None], after: Callable[[bool], None]) -> None:
        """Write ``data`` with the next group; its range is locked. ``future`` fails with `OSError`: its own, or that of
        the group's fdatasync."""
        self._waiting.append(_Write(data, offset, future, after))
        if not self.busy:
            self.busy = True
            # In a context of its own: a group belongs to no association.
            asyncio.get_running_loop().call_soon(self._begin, context=Context())

    def _begin(self) -> None:
        group, self._waiting = self._waiting, []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda result: self._ended(group, result.exception()), context=Context())
        self._threads.run(lambda: self._commit(group), done, slow=True)

    def _commit(self, group: list[_Write]) -> None:
        """Write and commit a group, in a thread. What was given up before is left out."""
        file = self._file
        live, since = [write for write in group if write.future.begin()], file.sync_failures
        if len(live) == 1:
            # By itself: nothing else that was written to the file has to wait for the media.
            self._attempt(live, lambda: file.write_fully(live[0].data, live[0].offset, sync=True))
            return
        self._write(live)
        whole = [write for write in live if write.error is None]
        if whole:
            self._attempt(whole, lambda: file.sync(since))

    def _write(self, live: list[_Write]) -> None:
        """Write a group as runs of one length, what cannot be in one by itself."""
        file, alike = self._file, dict[int, list[_Write]]()
        for write in live:
            if write.data.readonly:  # the kernel's AIO takes it by its address, which only writable memory shows
                self._attempt([write], partial(file.write_fully, write.data, write.offset))
            else:
                alike.setdefault(len(write.data), []).append(write)
        for length, writes in alike.items():
            for at in range(0, len(writes), self._runs.most):
                self._attempt(part := writes[at : at + self._runs.most], partial(self._write_run, part, length))

    def _write_run(self, part: list[_Write], length: int) -> None:
        errors = self._runs.write_now([write.data for write in part], [write.offset for write in part], length)
        for index, error in errors.items():
            part[index].error = error

    @staticmethod
    def _attempt(writes: list[_Write], call: Callable[[], None]) -> None:
        """Call, and let the writes fail with what it raises."""
        try:
            call()
        except Exception as error:
            for write in writes:
                write.error = error

    def _ended(self, group: list[_Write], failure: BaseException | None) -> None:
        for write in group:
            error = failure or write.error
            waited_for = not write.future.done()
            write.after(waited_for and error is None)
            if not waited_for:
                continue
            if error is None:
                write.future.set_result(None)
            else:
                write.future.set_exception(error)
        if self._waiting:
            self._begin()
        else:
            self.busy = False
            settle(self._idle, None)
            self._idle.clear()

    async def finish(self) -> None:
        """Wait until no write waits."""
        if self.busy:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(waiting)
            await waiting
