"""Many Reads or Writes of one length as one operation: one future, one build of all capsules, one send.

What :meth:`nvmeof.host.namespace.Namespace.read_many` and ``write_many`` give to an ``IoPort``. Each command still is a
separate :class:`Request` to timeouts, Aborts and completions; these objects are used again from batch to batch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from nvmeof.errors import CommandNotExecuted, NvmeofError
from nvmeof.host.queue import CommandSeries, Queue, Request, outcome_unknown
from nvmeof.host.requests import AbortFunction, CommandPart, error_of
from nvmeof.runtime import Future, Runtime
from nvmeof.spec.sqe import SQE

BATCH_WINDOW = 64
"""Commands of one batch that are under way at a time; when half of them have completed, as many follow."""
IDLE_PARTS = 256
"""How many requests that have served batches wait for others."""
_SLBA = struct.Struct("<Q")
_SLBA_AT = SQE.offsets["cdw10"]


@dataclass(slots=True)
class IoBatch:
    """Reads or Writes that differ in their first block and their buffer alone.

    ``sqe``: that of all of them; its SLBA counts for nothing. ``buffers``: equally long, contiguous views of bytes,
    those of Reads writable. ``hold``: a cancelled caller gets its buffers back before the cancellation is raised.
    ``whole``: one view of all data, where the buffers are its pieces, one behind the other.
    ``unfinished``: after an error, the places in the batch of the commands that failed, were lost, or were not sent.
    ``unknown``: of these, those that were sent and lost with their queue: whether they took place is not known.
    """

    sqe: bytes
    slbas: Sequence[int]
    buffers: Sequence[memoryview]
    write: bool = False
    hold: bool = True
    whole: memoryview | None = None
    unfinished: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.slbas)

    def sqe_of(self, index: int) -> bytes:
        """Return the whole SQE of one command."""
        sqe = self.sqe
        return sqe[:_SLBA_AT] + _SLBA.pack(self.slbas[index]) + sqe[_SLBA_AT + _SLBA.size :]

    def parts(self) -> Iterator[CommandPart]:
        """Yield the commands one by one, for a port that has only ``io_transfer``."""
        for index, buffer in enumerate(self.buffers):
            yield self.sqe_of(index), buffer if self.write else None, None if self.write else buffer

    def series(self, indexes: Sequence[int]) -> CommandSeries:
        """Return the commands at ``indexes``, ascending, as a queue takes them."""
        first, end = indexes[0], indexes[-1] + 1
        if end - first == len(indexes):
            whole = self.whole
            if whole is not None and len(indexes) < len(self):
                size = len(self.buffers[0])
                whole = whole[first * size : end * size]
            return CommandSeries(self.sqe, self.slbas[first:end], self.buffers[first:end], self.write, whole)
        slbas, buffers = self.slbas, self.buffers
        return CommandSeries(
            self.sqe, [slbas[index] for index in indexes], [buffers[index] for index in indexes], self.write
        )

    def rest(self) -> IoBatch:
        """Return a batch of the ``unfinished`` commands, to be sent again where that is allowed."""
        slbas, buffers = self.slbas, self.buffers
        return IoBatch(
            self.sqe,
            [slbas[index] for index in self.unfinished],
            [buffers[index] for index in self.unfinished],
            self.write,
            self.hold,
        )


class BatchPart(Request):
    """One command of a batch that is under way. It serves another one afterwards, unless an Abort may name it."""

    __slots__ = ("_aborted", "group", "index")

    def __init__(self) -> None:
        self.cid = -1
        self.priority = False
        self.timeout = -1.0
        self._aborted = False
        self.group: BatchRun
        self.index = 0

    if not TYPE_CHECKING:  # to a type checker these are the attributes of Request

        @property
        def sqe(self) -> bytes:
            """The SQE, built on demand: for an error, a timeout, a trace."""
            return self.group.batch.sqe_of(self.index)

        @property
        def data_in(self) -> memoryview | None:
            batch = self.group.batch
            return None if batch.write else batch.buffers[self.index]

        @property
        def data_out(self) -> memoryview | None:
            batch = self.group.batch
            return batch.buffers[self.index] if batch.write else None

    @property
    def aborted(self) -> bool:
        """An Abort names it: then it must not serve another batch."""
        return self._aborted

    @aborted.setter
    def aborted(self, aborted: bool) -> None:
        self._aborted = aborted
        self.group.reusable = False

    def completed(self, result: int, status: int) -> None:
        run = self.group
        if status >= 2:
            run.part_failed(self, error_of(self, status, result))
        run.outstanding -= 1
        if run.outstanding <= run.advance_at:
            run.advance()

    def failed(self, error: NvmeofError) -> None:
        run = self.group
        run.part_lost(self, error)
        run.outstanding -= 1
        if run.outstanding <= run.advance_at:
            run.advance()


class BatchRun:
    """A batch on its way over one queue or several.

    After the first error no further command is sent; ``future`` is done when all that were sent have ended.

    ``idle``: requests to use, where those that served this batch go back to.
    """

    __slots__ = (
        "_held",
        "_idle",
        "_next",
        "_not_executed",
        "_parts",
        "_pick",
        "_waiting",
        "advance_at",
        "batch",
        "error",
        "future",
        "outstanding",
        "reusable",
    )

    def __init__(self, runtime: Runtime, pick: Callable[[], Queue], batch: IoBatch, idle: list[BatchPart]) -> None:
        self.batch = batch
        self.future: Future[None] = runtime.create_future()
        self.outstanding = 0
        self.advance_at = 0
        """Down to how many outstanding commands nothing has to be done."""
        self.error: BaseException | None = None
        self.reusable = True
        self._held: list[BatchPart] | None = None  # cancelled: those whose buffers the device still has
        self._pick = pick
        self._next = 0
        self._not_executed = 0
        self._waiting: BatchPart | None = None  # has no identifier yet
        self._idle = idle
        count = min(len(batch), BATCH_WINDOW)
        self._parts = idle[-count:]
        del idle[-count:]
        for part in self._parts:
            part.group = self
        while len(self._parts) < count:
            part = BatchPart()
            part.group = self
            self._parts.append(part)

    def completed_together(self, requests: list[Request]) -> None:
        """Count commands that have succeeded, and go on."""
        self.outstanding -= len(requests)
        if self.outstanding <= self.advance_at:
            self.advance()

    def advance(self) -> None:
        """Send as many commands as the window has room for, or end."""
        if self._held is not None:
            if not self.held and not self.future.done():
                self.future.set_result(None)
            return
        more = self.error is None and self._next < len(self.batch)
        if more:
            self._send()
            more = self.error is None and self._next < len(self.batch)
        if self.outstanding:
            self.advance_at = self.outstanding // 2 if more else 0
        else:
            self._end()

    def _send(self) -> None:
        parts = [part for part in self._parts if part.cid < 0] if self.outstanding else self._parts
        sent, total = 0, min(len(parts), len(self.batch) - self._next)
        try:
            while sent < total:
                queue = self._pick()
                count = min(queue.room, total - sent)
                if count:
                    self._send_some(queue, parts[sent : sent + count])
                    sent += count
                    continue
                if not self.outstanding:
                    self._send_one(queue, parts[sent])
                return
        except NvmeofError as error:
            self.error = self.error or error

    def _send_some(self, queue: Queue, parts: list[BatchPart]) -> None:
        batch, first = self.batch, self._next
        end = first + len(parts)
        for index, part in enumerate(parts, first):
            part.index = index
        queue.submit_batch(batch.series(range(first, end)), parts)
        self.outstanding += len(parts)
        self._next = end

    def _send_one(self, queue: Queue, part: BatchPart) -> None:
        """Wait for a command identifier, as any other request does, when the queue has none free."""
        part.index = self._next
        queue.submit(part)
        self._waiting = part
        self.outstanding += 1
        self._next += 1

    def part_failed(self, part: BatchPart, error: NvmeofError) -> None:
        """Note that one command has failed or was lost; it counts as ended after this."""
        self.batch.unfinished.append(part.index)
        self.error = self.error or error
        self.advance_at = 0

    def part_lost(self, part: BatchPart, error: NvmeofError) -> None:
        """Note that one command was lost with its queue, sent or not."""
        if isinstance(error, CommandNotExecuted):
            self._not_executed += 1
        else:
            self.batch.unknown.append(part.index)
        self.part_failed(part, error)

    def _end(self) -> None:
        error = self.error
        if error is not None:
            self.batch.unfinished += range(self._next, len(self.batch))
            if (
                isinstance(error, CommandNotExecuted)
                and self._next > self._not_executed
                and error.__cause__ is not None
            ):
                # true of that command, and not of the whole
                error = outcome_unknown(cast(NvmeofError, error.__cause__))
            self.future.set_exception(error)
            return
        if self.reusable and len(self._idle) < IDLE_PARTS:
            self._idle += self._parts
        self.future.set_result(None)

    def stop(self, abort: AbortFunction) -> None:
        """Cancel: send nothing more, take back what waits, abort what is out. What is left of it is :attr:`held`."""
        self._held = []
        self.advance_at = len(self.batch)
        if self._waiting is not None and self._waiting.cid < 0:
            self._waiting.queue.withdraw(self._waiting)
        outstanding = [part for part in self._parts if part.cid >= 0]
        for part in outstanding:
            abort(part)
            if part.cid >= 0 and not part.queue.device.give_back(part):
                self._held.append(part)

    @property
    def held(self) -> bool:
        """Whether a device still has a buffer of a batch that was stopped."""
        return any(part.cid >= 0 for part in self._held or ())


async def run_batch(
    runtime: Runtime, pick: Callable[[], Queue], batch: IoBatch, abort: AbortFunction, idle: list[BatchPart]
) -> None:
    """Run a batch; the first error is raised when all else that was sent has ended. Cancelling is as for one command.

    ``pick``: the queue for the next commands. ``idle``: requests that other batches have used, and may use again.
    """
    if not len(batch):
        return
    run = BatchRun(runtime, pick, batch, idle)
    run.advance()
    try:
        await run.future
    except NvmeofError:
        raise
    except BaseException:
        run.stop(abort)
        while batch.hold and run.held:
            run.future = runtime.create_future()
            try:
                await run.future
            except BaseException:
                continue
        raise
