"""Commands that survive the path over which they were sent: one alone with a future, and many as one transfer.

A :class:`HeadRequest` is given to a :class:`Carrier` (a namespace's head), which gives it to a queue of the path that
its policy chooses. When that path fails, the same request goes to another one: the caller sees one command.

Must not know policies, ANA or how paths come and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from nvmeof.errors import LocalProtocolError, NvmeofError
from nvmeof.host.fused import FusedOutcome, SecondHalf
from nvmeof.host.queue import Request
from nvmeof.host.replay import Extent, changed_blocks
from nvmeof.host.requests import DEFAULT_OPTIONS, TRANSFER_WINDOW, CommandPart, RequestOptions
from nvmeof.runtime import Future, Runtime
from nvmeof.wire import Buffer


class RequestPath(Protocol):
    """The Protocol of a request's path."""

    def finished(self, request: HeadRequest) -> None:
        """Count a command that was completed with success."""
        ...

    def left(self, request: HeadRequest) -> None:
        """Count a command that is no longer outstanding and did not succeed on this path."""
        ...

    def abort(self, request: HeadRequest) -> None:
        """Send an Abort for an outstanding command."""
        ...


class Carrier(Protocol):
    """The Protocol of the head that carries a request."""

    def submit(self, request: HeadRequest, more: bool = False) -> None:
        """Send the request over a path, queue it until there is one, or end it with an error. Never raises."""
        ...

    def refused(self, request: HeadRequest, path: RequestPath, status: int, result: int) -> None:
        """Decide the next step of a request that was completed on ``path`` with an error: the CQE's status word."""
        ...

    def lost(self, request: HeadRequest, path: RequestPath, error: NvmeofError) -> None:
        """Decide the next step of a request whose path was lost."""
        ...

    def done(self, request: HeadRequest) -> None:
        """Take note that a ``repeated`` request has succeeded."""
        ...

    def abandoned(self, request: HeadRequest) -> None:
        """Take note that a ``repeated`` request is over without success: an old copy may still be executed."""
        ...

    def withdraw(self, request: HeadRequest) -> bool:
        """Take back a request that is on no path; False where it is on one."""
        ...

    def outlived(self, request: HeadRequest) -> None:
        """Take note that a request is outstanding whose caller has been cancelled: it may yet be executed."""
        ...


class Pieces(Protocol):
    """The Protocol of the pieces into which a request was cut."""

    def cancel(self) -> bool:
        """Give all pieces up; return whether their buffers are free at once."""
        ...


class HeadRequest(Request):
    """One command for a namespace. ``path``: its current path; None while it waits for one."""

    __slots__ = (
        "ahead_bytes",
        "avoid",
        "cancelled",
        "carrier",
        "cut",
        "extent",
        "path",
        "quiesced_at",
        "released",
        "repeated",
        "retries",
        "size_bytes",
        "started",
    )

    def __init__(
        self,
        carrier: Carrier,
        sqe: bytes,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> None:
        # what Request does, without the call: one object is made for every command
        self.sqe = sqe
        self.data_out = data_out
        self.data_in = data_in
        self.cid = -1
        self.priority = False
        self.aborted = False
        self.epoch = 0.0
        self.timeout = -1.0
        self.carrier = carrier
        self.path: RequestPath | None = None
        self.size_bytes = len(data_in) if data_in is not None else len(data_out) if data_out is not None else 0
        self.avoid: RequestPath | None = None
        """The path on which the request has just failed, although the path looks usable."""
        self.retries = 0
        self.started = 0.0
        """When the request was sent, where the policy needs the time."""
        self.ahead_bytes = 0
        """Bytes outstanding on its path at that time, its own included."""
        self.repeated = False
        """An old copy of the request may yet be executed: overlapping requests are held back."""
        self.extent: Extent | None = None
        """The blocks that the request changes, where they matter."""
        self.quiesced_at = 0.0
        """When no old copy can be executed any longer, by the runtime's clock."""
        self.cancelled = False
        self.cut: Pieces | None = None
        """The request is on no path: several smaller commands do its work."""
        self.released: Future[None] | None = None
        if options is not DEFAULT_OPTIONS:
            self.priority = options.priority
            self.aborted = not options.abortable
            if options.timeout is not None:
                self.timeout = options.timeout

    @property
    def blamed(self) -> Request:
        """The command that an error is about."""
        return self

    def completed(self, result: int, status: int) -> None:
        path = self.path
        if path is None:
            raise LocalProtocolError("the completed command is on no path")
        self.path = None
        if status < 2:
            path.finished(self)
            if self.repeated:
                self.carrier.done(self)
            self.ended(result, None)
        else:
            path.left(self)
            self.carrier.refused(self, path, status, result)

    def failed(self, error: NvmeofError) -> None:
        path = self.path
        if path is None:
            raise LocalProtocolError("the lost command is on no path")
        self.path = None
        path.left(self)
        self.carrier.lost(self, path, error)

    def give_up(self, error: NvmeofError) -> None:
        """End the request with an error, without a further try."""
        if self.repeated:
            self.carrier.abandoned(self)
        self.ended(0, error)

    def ended(self, result: int, error: NvmeofError | None) -> None:
        """End the command with DW0 | DW1 << 32, or with its error; the buffers are the caller's again."""
        raise NotImplementedError

    def cancel(self) -> bool:
        """Give the command up, since the caller was cancelled. Return whether its buffers are free at once.

        Otherwise :meth:`ended` is called later, when the path has released them.
        """
        self.cancelled = True
        if self.cut is not None:
            return self.cut.cancel()
        if self.carrier.withdraw(self):
            if self.repeated:
                self.carrier.abandoned(self)
            return True
        path = self.path
        assert path is not None
        if self.cid < 0 and self.queue.withdraw(self):
            self.path = None
            path.left(self)
            if self.repeated:
                self.carrier.abandoned(self)
            return True
        self.carrier.outlived(self)
        path.abort(self)
        return self.cid < 0 or self.queue.device.give_back(self)


class HeadCommand(HeadRequest):
    """One command; ``future`` gets DW0 | DW1 << 32, or the error."""

    __slots__ = ("future",)

    future: Future[int]

    def ended(self, result: int, error: NvmeofError | None) -> None:
        future = self.future
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        released = self.released
        if released is not None and not released.done():
            released.set_result(None)


class HeadFused(HeadCommand):
    """A fused operation: the request is its first half, and ends when both have ended.

    The operation goes over another path only where it was not executed: its path was lost before sending, or refused it
    with an ANA state.
    """

    __slots__ = ("_outcome", "_write", "second")

    def __init__(self, carrier: Carrier, halves: tuple[bytes, bytes], compare: Buffer, write: Buffer) -> None:
        super().__init__(carrier, halves[0], compare)
        self.size_bytes += len(write)
        self.second = self._write = SecondHalf(halves[1], write, self._settle)
        self.extent = changed_blocks(halves[1])
        self._outcome = FusedOutcome()

    @property
    def blamed(self) -> Request:
        """The half whose status is that of the pair."""
        return self._outcome.blamed or self

    def completed(self, result: int, status: int) -> None:
        self._settle(self, result, status, None)

    def failed(self, error: NvmeofError) -> None:
        if self._outcome.neither_left(self._write):
            super().failed(error)
        else:
            self._settle(self, 0, 0, error)

    def _settle(self, half: Request, result: int, status: int, error: NvmeofError | None) -> None:
        outcome = self._outcome
        if not outcome.note(half, result, status, error):
            return
        if outcome.lost is not None:
            self._outcome = FusedOutcome()
            super().failed(outcome.lost)
        else:
            super().completed(outcome.result, outcome.status)
            self._outcome = FusedOutcome()

    def cancel(self) -> bool:
        second = self._write
        if self.cid < 0 <= second.cid and self.path is not None:  # one half has ended
            self.cancelled = True
            self.carrier.outlived(self)
            return second.queue.device.give_back(second)
        first_is_free = super().cancel()
        return (second.cid < 0 or second.queue.device.give_back(second)) and first_is_free


async def give_up(runtime: Runtime, command: HeadCommand, *, hold: bool) -> None:
    """End a command whose caller has been cancelled, wherever it is.

    With ``hold`` its buffers, where it has any that can change, are the caller's own again when this returns.
    """
    free = command.cancel()
    held = command.data_in is not None or not isinstance(command.data_out, bytes | None)
    while hold and held and not free and (command.path is not None or command.cut is not None):
        command.released = runtime.create_future()
        try:
            await command.released
        except BaseException:
            continue  # the caller raises the first cancellation anyway


class HeadTransfer:
    """A large operation as many commands, a window of them at a time, each over the path that is best then.

    After the first error no further command is sent; ``future`` is done when all sent commands have ended.
    """

    __slots__ = ("_carrier", "_error", "_outstanding", "_parts", "future", "result")

    def __init__(self, runtime: Runtime, carrier: Carrier, parts: Iterator[CommandPart]) -> None:
        self.future: Future[int] = runtime.create_future()
        self.result = 0
        self._carrier = carrier
        self._parts = parts
        self._outstanding: dict[_Part, None] = {}
        self._error: NvmeofError | None = None

    def start(self) -> None:
        """Submit the first window."""
        for part in [_Part(self, self._carrier, each) for each in islice(self._parts, TRANSFER_WINDOW)]:
            if self._error is not None:
                break
            self._outstanding[part] = None
            self._carrier.submit(part)
        self._finish()

    def part_ended(self, part: _Part, result: int, error: NvmeofError | None) -> None:
        """Send the next command after one has ended, or end."""
        self._outstanding.pop(part, None)
        self.result |= result
        if error is not None:
            self._error = self._error or error
        if self._error is None:
            following = next(self._parts, None)
            if following is not None:
                following_part = _Part(self, self._carrier, following)
                self._outstanding[following_part] = None
                self._carrier.submit(following_part)
                return
        self._finish()

    def _finish(self) -> None:
        if self._outstanding or self.future.done():
            return
        if self._error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self._error)

    def stop(self) -> bool:
        """Cancel: send nothing more, and give up sent requests. Return whether all buffers are free."""
        self._error = self._error or LocalProtocolError("the transfer was cancelled")
        # first the waiting requests: the slots that Aborts free must not send them
        for waiting in (True, False):
            for part in list(self._outstanding):
                if (part.cid < 0) is waiting and part.cancel():
                    self._outstanding.pop(part, None)
        return not self._outstanding

    @property
    def idle(self) -> bool:
        """No command is outstanding: the buffers are free."""
        return not self._outstanding


class _Part(HeadRequest):
    """One command of a transfer."""

    __slots__ = ("transfer",)

    def __init__(self, transfer: HeadTransfer, carrier: Carrier, part: CommandPart) -> None:
        super().__init__(carrier, *part)
        self.transfer = transfer

    def ended(self, result: int, error: NvmeofError | None) -> None:
        self.transfer.part_ended(self, result, error)


async def run_transfer(
    runtime: Runtime,
    carrier: Carrier,
    parts: Iterator[CommandPart],
    *,
    hold: bool,
) -> int:
    """Run all ``parts``; the first error is raised when all others have ended. Cancelling works as in `give_up`."""
    transfer = HeadTransfer(runtime, carrier, parts)
    transfer.start()
    try:
        return await transfer.future
    except NvmeofError:
        raise
    except BaseException:
        transfer.stop()
        while hold and not transfer.idle:
            transfer.future = runtime.create_future()
            try:
                await transfer.future
            except BaseException:
                continue
        raise
