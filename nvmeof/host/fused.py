"""Compare and Write: two commands that a controller executes as one, sent one behind the other on one queue.

The first half compares, the second one writes, and is executed only where the comparison has succeeded. The pair ends
when both halves have ended, with one error at most. Source: NVM Command Set, Fused Operation.
"""

from __future__ import annotations

from collections.abc import Callable

from nvmeof.errors import NvmeofError
from nvmeof.host.queue import Queue, Request
from nvmeof.host.requests import AbortFunction, error_of
from nvmeof.runtime import Future, Runtime
from nvmeof.spec.sqe import FUSE_FIRST, FUSE_SECOND
from nvmeof.spec.status import Status, split_status
from nvmeof.wire import Buffer

_FLAGS_AT = 1


def as_halves(compare: bytes, write: bytes) -> tuple[bytes, bytes]:
    """Return the two SQEs marked as the halves of one operation."""
    halves = []
    for sqe, mark in ((compare, FUSE_FIRST), (write, FUSE_SECOND)):
        half = bytearray(sqe)
        half[_FLAGS_AT] |= mark
        halves.append(bytes(half))
    return halves[0], halves[1]


class FusedOutcome:
    """What the halves of a pair have ended with. ``blamed``: the half whose ``status`` is the pair's."""

    __slots__ = ("blamed", "ended", "lost", "result", "status")

    def __init__(self) -> None:
        self.ended = 0
        self.status = 0
        self.result = 0
        self.blamed: Request | None = None
        self.lost: NvmeofError | None = None

    def note(self, half: Request, result: int, status: int, error: NvmeofError | None = None) -> bool:
        """Take one half's end; True when both have ended. A half that was aborted since the other one has failed says
        nothing of its own."""
        self.ended += 1
        if error is not None:
            self.lost = self.lost or error
        elif status >= 2 and (self.blamed is None or split_status(self.status)[0] == Status.ABORTED_FAILED_FUSED):
            self.status, self.result, self.blamed = status, result, half
        return self.ended == 2

    def neither_left(self, second: Request) -> bool:
        """Whether the pair, whose first half has failed, was still waiting: the second half will not be heard of."""
        return not self.ended and second.cid < 0


class SecondHalf(Request):
    """The Write of a pair; ``settle`` is called with its end."""

    __slots__ = ("settle",)

    def __init__(
        self, sqe: bytes, data: Buffer, settle: Callable[[Request, int, int, NvmeofError | None], None]
    ) -> None:
        super().__init__(sqe, data)
        self.settle = settle

    def completed(self, result: int, status: int) -> None:
        self.settle(self, result, status, None)

    def failed(self, error: NvmeofError) -> None:
        self.settle(self, 0, 0, error)


class FusedCommand(Request):
    """The Compare of a pair, and the pair itself; ``future`` is done when both halves have ended."""

    __slots__ = ("future", "outcome", "second", "write")

    def __init__(self, future: Future[None], first: bytes, second: bytes, compare: Buffer, write: Buffer) -> None:
        super().__init__(first, compare)
        self.future = future
        self.outcome = FusedOutcome()
        self.second = self.write = SecondHalf(second, write, self._settle)

    def completed(self, result: int, status: int) -> None:
        self._settle(self, result, status, None)

    def failed(self, error: NvmeofError) -> None:
        if self.outcome.neither_left(self.write):
            self.outcome.ended += 1
        self._settle(self, 0, 0, error)

    def _settle(self, half: Request, result: int, status: int, error: NvmeofError | None) -> None:
        outcome = self.outcome
        if not outcome.note(half, result, status, error) or self.future.done():
            return
        if outcome.lost is not None:
            self.future.set_exception(outcome.lost)
        elif outcome.blamed is not None:
            self.future.set_exception(error_of(outcome.blamed, outcome.status, outcome.result))
        else:
            self.future.set_result(None)

    @property
    def buffers_free(self) -> bool:
        """Whether the device holds no buffer of the pair; it is asked to give them back."""
        return all(half.cid < 0 or half.queue.device.give_back(half) for half in (self, self.write))


async def run_fused(runtime: Runtime, queue: Queue, halves: tuple[bytes, bytes], compare: Buffer, write: Buffer,
                    abort: AbortFunction, *, hold: bool) -> None:  # fmt: skip
    """Send a pair, and wait for both of its halves. Cancelling is as for one command.

    Raises the error of the half that failed first.
    """
    pair = FusedCommand(runtime.create_future(), *halves, compare, write)
    queue.submit_fused(pair)
    try:
        await pair.future
    except NvmeofError:
        raise
    except BaseException:
        if pair.cid < 0 and not pair.outcome.ended and queue.withdraw(pair):
            raise
        for half in (pair, pair.write):
            if half.cid >= 0:
                abort(half)
        while hold and not pair.buffers_free:
            pair.future = runtime.create_future()
            try:
                await pair.future
            except BaseException:
                continue
        raise
