"""The two kinds of requests that callers wait for: one command with a future, and a transfer of many commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import cast

from nvmeof.errors import CommandNotExecuted, LocalProtocolError, NvmeofError
from nvmeof.host.queue import Queue, Request, outcome_unknown
from nvmeof.runtime import Future, Runtime
from nvmeof.spec.command_names import command_name
from nvmeof.spec.enums import FABRICS_OPCODE
from nvmeof.spec.status import status_error
from nvmeof.wire import Buffer

TRANSFER_WINDOW = 32
"""Commands of one large transfer that are submitted at a time; the others follow as these complete."""

AbortFunction = Callable[[Request], None]
"""Sends an Abort for an outstanding request."""

CommandPart = tuple[bytes, Buffer | None, memoryview | None]
"""One command of a transfer: its SQE, the data that goes to the controller, and where the controller's data lands."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How one command is sent and waited for; what it is and its buffers are arguments of their own."""

    timeout: float | None = None
    """Seconds until the command's time is up; None: the queue's own (``io_timeout``, ``admin_timeout``)."""
    priority: bool = False
    """Use the identifiers that are reserved for keep-alive and Abort, when no others are free."""
    hold: bool = True
    """Give a cancelled caller its buffers back before the cancellation is raised."""
    abortable: bool = True
    """With ``abort_first``: send an Abort when the command's time is up (not for Connect and Disconnect)."""


DEFAULT_OPTIONS = RequestOptions()


def error_of(request: Request, status: int, result: int) -> NvmeofError:
    """Make the error of a completion other than success; its message begins with the command's name."""
    opcode = request.sqe[0]
    fabrics = opcode == FABRICS_OPCODE
    name = command_name(request.queue.qid, opcode, request.sqe[4] if fabrics else None)
    return status_error(status, name, dw0=result & 0xFFFFFFFF, fabrics=fabrics)


class Command(Request):
    """One command; ``future`` gets DW0 | DW1 << 32, or the error."""

    __slots__ = ("future", "released")

    def __init__(
        self,
        future: Future[int],
        sqe: bytes,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> None:
        # what Request does, without the call: there is one of these for every command that is awaited
        self.sqe = sqe
        self.data_out = data_out
        self.data_in = data_in
        self.cid = -1
        self.epoch = 0.0
        self.future = future
        self.released: Future[None] | None = None
        if options is DEFAULT_OPTIONS:
            self.priority = self.aborted = False
            self.timeout = -1.0
        else:
            self.priority = options.priority
            self.aborted = not options.abortable
            self.timeout = -1.0 if options.timeout is None else options.timeout

    def completed(self, result: int, status: int) -> None:
        future = self.future
        if not future.done():
            if status < 2:
                future.set_result(result)
            else:
                future.set_exception(error_of(self, status, result))
        if self.released is not None:
            _release(self.released)

    def failed(self, error: NvmeofError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
        if self.released is not None:
            _release(self.released)


def _release(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def execute(runtime: Runtime, queue: Queue, command: Command, abort: AbortFunction, *, hold: bool = True) -> int:
    """Submit ``command`` and wait for DW0 | DW1 << 32. Raises what the command or its queue failed with.

    When the caller is cancelled, the command is aborted; with ``hold`` its buffers, where it has any that can change,
    are the caller's own again when the cancellation is raised: at once where the device can give them back, else with
    the completion or the end of the queue.
    """
    queue.submit(command)
    try:
        return await command.future
    except NvmeofError:
        raise
    except BaseException:
        await give_up(runtime, command, abort, hold=hold)
        raise


async def give_up(runtime: Runtime, command: Command, abort: AbortFunction, *, hold: bool) -> None:
    """End a command whose caller has been cancelled, as `execute` describes."""
    if command.cid < 0:
        command.queue.withdraw(command)
        return
    abort(command)
    held = command.data_in is not None or not isinstance(command.data_out, bytes | None)
    if hold and held and command.cid >= 0 and not command.queue.device.give_back(command):
        command.released = runtime.create_future()
        await _wait_released(runtime, command)


async def _wait_released(runtime: Runtime, command: Command) -> None:
    """Wait until the command is over, through further cancellations: the first one is raised by the caller anyway."""
    while command.cid >= 0:
        try:
            assert command.released is not None
            await command.released
        except BaseException:
            if command.cid < 0:
                return
            command.released = runtime.create_future()


class Transfer:
    """A large operation as many commands, a window of them at a time, over one queue or several.

    ``parts`` yields ``(sqe, data_out, data_in)``. After the first error no further part goes out; ``future`` is done
    when all that did go out has ended, so that the buffers are free then.
    """

    __slots__ = ("_error", "_executed", "_outstanding", "_parts", "_pick", "future", "result")

    def __init__(self, runtime: Runtime, pick: Callable[[], Queue], parts: Iterator[CommandPart]) -> None:
        self.future: Future[int] = runtime.create_future()
        self._parts = parts
        self._pick = pick
        self._outstanding: dict[Part, None] = {}  # in the order of submission, in which a cancellation aborts them
        self._error: BaseException | None = None
        self._executed = False  # one of the commands at least has had its effect, or may have
        self.result = 0

    def start(self) -> None:
        """Submit the first window; an error, that of a queue that is gone too, ends up in ``future``."""
        window = [(self._pick(), part) for part in islice(self._parts, TRANSFER_WINDOW)]
        for index, (queue, part) in enumerate(window):
            # a device may hold its doorbell back only where the next request surely reaches it
            more = index + 1 < len(window) and window[index + 1][0] is queue and queue.room > 1
            if not self._submit(queue, part, more):
                break
        self._finish()

    def _submit(self, queue: Queue, part: CommandPart, more: bool) -> bool:
        request = Part(self, *part)
        self._outstanding[request] = None
        try:
            queue.submit(request, more)
        except NvmeofError as error:
            self._outstanding.pop(request, None)
            self._error = self._error or error
            return False
        return True

    def part_done(self, part: Part, error: NvmeofError | None, result: int) -> None:
        """Note that one part has ended."""
        self._outstanding.pop(part, None)
        if error is None or not isinstance(error, CommandNotExecuted):
            self._executed = True
        if error is not None:
            self._error = self._error or error
        self.result |= result
        if self._error is None:
            following = next(self._parts, None)
            if following is not None and self._submit(self._pick(), following, False):
                return
        self._finish()

    def _finish(self) -> None:
        if self._outstanding or self.future.done():
            return
        error = self._error
        if error is None:
            self.future.set_result(self.result)
            return
        if isinstance(error, CommandNotExecuted) and self._executed and error.__cause__ is not None:
            # true of that command, and not of the whole
            error = outcome_unknown(cast(NvmeofError, error.__cause__))
        self.future.set_exception(error)

    def stop(self, abort: AbortFunction) -> None:
        """Cancel: send nothing more, take back what waits, abort what is out."""
        self._error = self._error or LocalProtocolError("the transfer was cancelled")
        for part in list(self._outstanding):
            # first what waits: the slots that Aborts free must not send it
            if part.cid < 0 and part.queue.withdraw(part):
                self._outstanding.pop(part, None)
        for part in list(self._outstanding):
            abort(part)
            if part.cid < 0 or part.queue.device.give_back(part):
                self._outstanding.pop(part, None)

    @property
    def idle(self) -> bool:
        """No part is outstanding: the buffers are free."""
        return not self._outstanding


class Part(Request):
    """One command of a :class:`Transfer`."""

    __slots__ = ("transfer",)

    def __init__(self, transfer: Transfer, sqe: bytes, data_out: Buffer | None, data_in: memoryview | None) -> None:
        super().__init__(sqe, data_out, data_in)
        self.transfer = transfer

    def completed(self, result: int, status: int) -> None:
        self.transfer.part_done(self, error_of(self, status, result) if status >= 2 else None, result)

    def failed(self, error: NvmeofError) -> None:
        self.transfer.part_done(self, error, 0)


async def run_transfer(
    runtime: Runtime,
    pick: Callable[[], Queue],
    parts: Iterator[CommandPart],
    abort: AbortFunction,
    *,
    hold: bool = True,
) -> int:
    """Run all ``parts``; the first error is raised when all others have ended. Cancelling works as in `execute`."""
    transfer = Transfer(runtime, pick, parts)
    transfer.start()
    try:
        return await transfer.future
    except NvmeofError:
        raise
    except BaseException:
        transfer.stop(abort)
        while hold and not transfer.idle:
            transfer.future = runtime.create_future()
            try:
                await transfer.future
            except BaseException:
                continue
        raise
