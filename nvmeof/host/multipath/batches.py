"""Many Reads or Writes of one length over several paths: each path gets its share as one batch.

The I/O policy chooses a path for each command, as if the commands were sent one by one; those of one path leave
together. From then on each command is a :class:`~nvmeof.host.multipath.requests.HeadRequest`: after an error of its
path, or the loss of the path, the command goes on alone over another path, by the rules for all commands.

Must not know policies, ANA or how paths come and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from nvmeof.errors import LocalProtocolError, NvmeofError, OutcomeUnknown
from nvmeof.host.batch import BATCH_WINDOW, IDLE_PARTS, IoBatch
from nvmeof.host.multipath.requests import Carrier, HeadRequest, RequestPath
from nvmeof.host.queue import Request
from nvmeof.runtime import Future, Runtime


class BatchPath(RequestPath, Protocol):
    """The Protocol of a path that takes a share of a batch."""

    def finished_together(self, requests: Sequence[HeadRequest]) -> None:
        """Count commands of one length that were completed with success."""
        ...


class BatchCarrier(Carrier, Protocol):
    """The Protocol of the head that carries a batch."""

    def submit_together(self, parts: list[BatchPart], batch: IoBatch) -> None:
        """Send each of ``parts`` over the path that is best for the part, those of one path together. Never raises."""
        ...


class BatchPart(HeadRequest):
    """One command of a batch. After a success the object is used again for another command."""

    __slots__ = ("group", "index")

    def __init__(self, carrier: Carrier, run: HeadBatch) -> None:
        self.group: HeadBatch = run
        self.index = -1
        """The place in the batch; -1 while it serves no command."""
        super().__init__(carrier, b"")

    if not TYPE_CHECKING:  # to a type checker these are the attributes of Request

        @property
        def sqe(self) -> bytes:
            """Build the SQE on demand: commands that leave together need none."""
            return self.group.batch.sqe_of(self.index)

        @sqe.setter
        def sqe(self, sqe: bytes) -> None:
            """Leave the SQE to the batch, which knows the command."""

        @property
        def data_in(self) -> memoryview | None:
            batch = self.group.batch
            return None if batch.write else batch.buffers[self.index]

        @data_in.setter
        def data_in(self, data_in: memoryview | None) -> None:
            """Leave the buffer to the batch, which knows it."""

        @property
        def data_out(self) -> memoryview | None:
            batch = self.group.batch
            return batch.buffers[self.index] if batch.write else None

        @data_out.setter
        def data_out(self, data_out: memoryview | None) -> None:
            """Leave the buffer to the batch, which knows it."""

    def completed(self, result: int, status: int) -> None:
        if status >= 2:
            self.group.reusable = False
        super().completed(result, status)

    def failed(self, error: NvmeofError) -> None:
        self.group.reusable = False
        super().failed(error)

    def ended(self, result: int, error: NvmeofError | None) -> None:
        self.group.part_ended(self, error)


class HeadBatch:
    """A batch on its way over the paths of a head.

    After the first error that ends a command no further command is sent; ``future`` is done when all sent commands have
    ended. ``idle``: parts to use, and where parts return after use.
    """

    __slots__ = (
        "_advance_at",
        "_carrier",
        "_error",
        "_free",
        "_idle",
        "_next",
        "_outstanding",
        "_parts",
        "batch",
        "future",
        "reusable",
    )

    def __init__(self, runtime: Runtime, carrier: BatchCarrier, batch: IoBatch, idle: list[BatchPart]) -> None:
        self.batch = batch
        self.future: Future[None] = runtime.create_future()
        self.reusable = True
        self._carrier = carrier
        self._error: NvmeofError | None = None
        self._next = 0
        self._outstanding = 0
        self._advance_at = 0
        self._idle = idle
        size, count = len(batch.buffers[0]), min(len(batch), BATCH_WINDOW)
        self._parts = idle[-count:]
        del idle[-count:]
        for part in self._parts:
            part.group = self
            part.size_bytes = size
        while len(self._parts) < count:
            part = BatchPart(carrier, self)
            part.size_bytes = size
            self._parts.append(part)
        self._free = list(self._parts)

    def advance(self) -> None:
        """Send as many commands as the window has room for, or end."""
        total = len(self.batch)
        while self._error is None and self._next < total and self._free:
            count = min(len(self._free), total - self._next)
            parts, self._free = self._free[:count], self._free[count:]
            for index, part in enumerate(parts, self._next):
                part.index = index
            self._next += count
            self._outstanding += count
            self._advance_at = -1  # a part that ends at once must not come here again
            self._carrier.submit_together(parts, self.batch)
        if not self._outstanding:
            self._end()
        else:
            more = self._error is None and self._next < total
            self._advance_at = self._outstanding // 2 if more else 0

    def completed_together(self, requests: list[Request]) -> None:
        """Count commands that have succeeded, all on one controller, and go on."""
        parts = cast(list[BatchPart], requests)
        path = cast(BatchPath, parts[0].path)
        if not self.reusable and any(part.path is not path or part.repeated for part in parts):
            for part in parts:
                part.completed(0, 0)
            return
        path.finished_together(parts)
        for part in parts:
            part.path = None
            part.index = -1
        self._free += parts
        self._outstanding -= len(parts)
        if self._outstanding <= self._advance_at:
            self.advance()

    def part_ended(self, part: BatchPart, error: NvmeofError | None) -> None:
        """Count one command that has ended alone, and go on."""
        if error is not None:
            self.reusable = False
            self._error = self._error or error
            self.batch.unfinished.append(part.index)
            if isinstance(error, OutcomeUnknown):
                self.batch.unknown.append(part.index)
            if self._advance_at > 0:
                self._advance_at = 0
        else:
            part.retries = 0
            part.repeated = False
            part.extent = None
            part.quiesced_at = 0.0
            self._free.append(part)
        part.index = -1
        self._outstanding -= 1
        if self._outstanding <= self._advance_at:
            self.advance()

    def _end(self) -> None:
        if self.future.done():
            return
        if self._error is not None:
            self.batch.unfinished += range(self._next, len(self.batch))
            self.future.set_exception(self._error)
            return
        if self.reusable and len(self._idle) < IDLE_PARTS:
            self._idle += self._parts
        self.future.set_result(None)

    def stop(self) -> None:
        """Cancel: send nothing more, and give up the commands that were sent."""
        self._error = self._error or LocalProtocolError("the batch was cancelled")
        self.reusable = False
        self._advance_at = -1
        under_way = [part for part in self._parts if part.index >= 0]
        # first the waiting requests: the slots that Aborts free must not send them
        for waiting in (True, False):
            for part in under_way:
                if (part.cid < 0) is waiting and not part.cancelled and part.cancel():
                    part.index = -1
                    self._outstanding -= 1
        self._advance_at = 0

    @property
    def idle(self) -> bool:
        """No command is outstanding: the buffers are free."""
        return not self._outstanding


async def run_head_batch(runtime: Runtime, carrier: BatchCarrier, batch: IoBatch, idle: list[BatchPart]) -> None:
    """Run a batch; the first error is raised when all other sent commands have ended. Cancelling is as for one command.

    ``idle``: parts that batches of the head share.
    """
    if not len(batch):
        return
    run = HeadBatch(runtime, carrier, batch, idle)
    run.advance()
    try:
        await run.future
    except NvmeofError:
        raise
    except BaseException:
        run.stop()
        while batch.hold and not run.idle:
            run.future = runtime.create_future()
            try:
                await run.future
            except BaseException:
                continue
        raise
