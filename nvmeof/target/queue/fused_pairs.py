"""The part of a target's queue that brings the halves of fused operations together.

The first half waits until the next command is there. When that is the second half, the data of both is collected, and
they are executed as one. An error of one half is its status, and the other half is aborted; a half whose neighbour is
no half is aborted as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.protocol.events import CommandData
from nvmeof.spec.sqe import FUSE_FIRST, FUSE_SECOND, Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import CommandSpec, Completion
from nvmeof.target.commands.io.fused import (
    FUSED_OPCODES,
    Completions,
    compare_and_write,
    failed_fused,
    mismatch,
    missing_fused,
)
from nvmeof.target.commands.table import check_again, execute, prepare
from nvmeof.target.core.aborting import abandon, aborted_by_request
from nvmeof.target.core.owner import OWNER
from nvmeof.target.core.pool import class_bytes
from nvmeof.target.queue.capsule import capsule_data
from nvmeof.target.queue.contract import InFlight
from nvmeof.target.queue.fast_path import FastPath
from nvmeof.target.queue.staging import Staging


@dataclass(slots=True, eq=False)
class Half:
    """One command of two. `data` is None until all of it has arrived; `lent` is the pool's buffer that holds it, if
    any."""

    sqe: Sqe
    spec: CommandSpec | None = None
    length: int = 0
    data: memoryview | None = None
    lent: memoryview | None = None
    error: CommandError | None = None
    completed: bool = False

    @property
    def settled(self) -> bool:
        """Whether the half has ended."""
        return self.data is not None or self.error is not None


@dataclass(slots=True, eq=False)
class Pair:
    """Both halves. `aborted` is the one that an Abort command named while they were being executed."""

    ctx: IoContext
    first: Half
    second: Half
    running: bool = False
    aborted: Half | None = None
    detached: bool = False  # it is executed after its queue has ended


class FusedPairs:
    """The halves of one queue that wait for each other or are executed together."""

    __slots__ = ("_fast_path", "_queue", "_staging", "first", "pairs")

    def __init__(self, queue: InFlight, staging: Staging, fast_path: FastPath) -> None:
        self._queue = queue
        self._staging = staging
        self._fast_path = fast_path
        self.first: Half | None = None
        """A first half; its second half should be the next command."""
        self.pairs: dict[int, Pair] = {}
        """By the CIDs of halves without a completion."""

    # Commands

    def take(self, sqe: Sqe, capsule: CommandData | None) -> bool:
        """Take a half of a fused operation; False for a command that is none, or cannot be one."""
        first, self.first = self.first, None
        fuse = sqe.fuse
        conflict = sqe.cid in self._queue.busy
        if first is not None and (fuse != FUSE_SECOND or conflict):
            self._refuse_half(first, missing_fused())
            first = None
        ctx = self._queue.ctx
        if not fuse or not isinstance(ctx, IoContext):
            return False
        if conflict:
            self._queue.conflict(sqe)
            return True
        half = self._half(sqe, capsule)
        if fuse == FUSE_FIRST:
            self.first = half
            # The next command must not take the fast path past this one, a refused one included: it may part the
            # halves.
            self._fast_path.forget()
            if half.error is not None:
                self._refuse_half(half, half.error)
            else:
                self._queue.busy.add(sqe.cid)
        elif first is None or first.completed or FUSED_OPCODES.get(fuse) != sqe.opcode:
            self._no_pair(first, half)
        else:
            self._pair(ctx, first, half)
        return True

    def _half(self, sqe: Sqe, capsule: CommandData | None) -> Half:
        half = Half(sqe)
        try:
            half.spec, half.length = prepare(self._queue.ctx, sqe)
            data = capsule_data(sqe, half.length, capsule)
        except CommandError as error:
            half.error = error
        else:
            if self._queue.trace is not None:
                self._queue.trace.admitted(sqe, half.length)
            if data is not None:
                half.data, half.lent = self._staging.copy_in(data)
        return half

    def _no_pair(self, first: Half | None, second: Half) -> None:
        """Refuse a second half without a first one, or with one that could not be executed."""
        if FUSED_OPCODES.get(second.sqe.fuse) != second.sqe.opcode:
            # No such operation is supported: that is the matter of both.
            assert second.error is not None
            if first is not None:
                self._refuse_half(first, second.error)
            self._refuse_half(second, second.error)
        else:
            self._refuse_half(second, missing_fused() if first is None else failed_fused())

    def _pair(self, ctx: IoContext, first: Half, second: Half) -> None:
        error = mismatch(first.sqe, second.sqe)
        if error is not None:
            self._refuse_half(first, error)
            self._refuse_half(second, error)
            return
        pair = Pair(ctx, first, second)
        for half in (first, second):
            self.pairs[half.sqe.cid] = pair
        self._queue.busy.add(second.sqe.cid)
        self._stage_pair(pair)
        self._settle(pair)

    def _stage_pair(self, pair: Pair) -> None:
        """Ask for the data of both halves, with memory for both at once: half of it would be of no use."""
        halves = [half for half in (pair.first, pair.second) if not half.settled]
        sizes = [class_bytes(half.length) for half in halves]
        if sum(sizes) > self._queue.pool.reserve_bytes:
            for half in (pair.first, pair.second):
                self._refuse_half(half, self._too_long(half))
            return
        for index, half in enumerate(halves):
            assert half.spec is not None
            self._staging.ask(half.spec, half.sqe, half.length, 0 if index else sum(sizes))

    def _too_long(self, half: Half) -> CommandError:
        most = self._queue.pool.reserve_bytes
        return CommandError(
            Status.ATOMIC_WRITE_UNIT_EXCEEDED,
            message=f"fused commands of {half.length} bytes: both need memory at once, and {most} bytes is the most "
            "that they may have",
        )

    # Data of an R2T

    def arrived(self, cid: int, data: memoryview, lent: memoryview | None) -> None:
        """Continue with a half whose data has arrived."""
        pair = self.pairs[cid]
        half = _half_of(pair, cid)
        half.data, half.lent = data, lent
        if cid in self._queue.ctx.aborting:
            half.error = aborted_by_request()
        self._settle(pair)

    def failed(self, cid: int, error: CommandError, lent: memoryview | None) -> None:
        """Refuse a half whose data cannot be received."""
        pair = self.pairs[cid]
        half = _half_of(pair, cid)
        half.error, half.lent = error, lent
        self._settle(pair)

    # Execution

    def _settle(self, pair: Pair) -> None:
        """Execute the pair, or refuse its halves, once both have arrived."""
        first, second = pair.first, pair.second
        if not (first.settled and second.settled):
            return
        for half in (first, second):
            if half.error is None:
                assert half.spec is not None
                try:
                    check_again(self._queue.ctx, half.spec, half.sqe)
                except CommandError as error:
                    half.error = error
        pair.running = True
        OWNER.set(self._queue.share)
        if first.error is not None:
            self._refuse_half(first, first.error)
            self._refuse_half(second, failed_fused())
            return
        assert first.spec is not None and first.data is not None
        trace = self._queue.trace
        if second.error is not None:
            # The write's failure is its own: the comparison comes before it, and is not affected.
            if trace is not None:
                trace.backend_called(first.sqe)
            alone = execute(self._queue.ctx, first.spec, first.sqe, first.data)
            if isinstance(alone, Completion):
                self._end_pair(pair, (alone, self._refused(second, alone)))
            else:
                self._end_later(pair, _both(alone, lambda completion: self._refused(second, completion)))
            return
        assert second.data is not None
        if trace is not None:
            trace.backend_called(first.sqe, second.sqe)
        result = compare_and_write(pair.ctx, first.sqe, second.sqe, first.data, second.data)
        if isinstance(result, tuple):
            self._end_pair(pair, result)
        else:
            self._end_later(pair, result)

    def _refused(self, second: Half, first: Completion) -> Completion:
        """Make the completion of a second half that fails by its own error."""
        if second.completed:
            return Completion()
        assert second.error is not None
        return self._queue.ctx.refuse(second.sqe, failed_fused() if first.status else second.error)

    def _end_later(self, pair: Pair, pending: Awaitable[Completions]) -> None:
        host = self._queue.ctx.host_nqn
        namespace = self._queue.ctx.namespaces.get(pair.first.sqe.nsid)
        begun = None if namespace is None else namespace.in_progress.begin(self._queue.ctx.hostid)
        outcome: list[Completions] = []

        async def run() -> Completion:
            outcome.append(await pending)
            return outcome[0][1]

        def ended(completion: Completion) -> None:
            if self._queue.closed:
                self._release(pair)
                if pair.detached:
                    self._queue.detached_commands.done(host)
            else:
                self._queue.pending -= 1
                self._end_pair(pair, outcome[0])
                self._queue.driver.wake()
            if begun is not None:
                begun.end()

        self._queue.pending += 1
        self._queue.driver.spawn(run(), ended)

    def _end_pair(self, pair: Pair, completions: Completions) -> None:
        aborted, result = pair.aborted, list(completions)
        if aborted is not None and result[0].status == Status.ABORTED_BY_REQUEST and aborted is pair.second:
            # Neither half was executed: each completes with its status.
            result.reverse()
        for half, completion in zip((pair.first, pair.second), result, strict=True):
            self._complete_half(half, completion)

    def _refuse_half(self, half: Half, error: CommandError) -> None:
        if not half.completed:
            self._complete_half(half, self._queue.ctx.refuse(half.sqe, error))

    def _complete_half(self, half: Half, completion: Completion) -> None:
        if half.lent is not None:
            self._queue.pool.give(half.lent)
            half.lent = None
        if half.completed:
            return
        half.completed = True
        self.pairs.pop(half.sqe.cid, None)
        self._queue.complete(half.sqe, completion)

    # Endings

    def abort(self, cid: int) -> bool:
        """Abort a half, or say that it is none that can be aborted now."""
        first = self.first
        if first is not None and first.sqe.cid == cid and not first.completed:
            self._refuse_half(first, aborted_by_request())
            self._queue.driver.wake()
            return True
        pair = self.pairs.get(cid)
        if pair is None:
            return False
        half = _half_of(pair, cid)
        if pair.running:
            pair.aborted = half
            return abandon(self._queue.ctx.waiting.get(pair.first.sqe.cid))
        if cid in self._queue.transfers:
            self._queue.ctx.aborting.add(cid)  # its host goes on sending
            return False
        half.error = aborted_by_request()
        self._refuse_half(half, half.error)
        self._settle(pair)
        self._queue.driver.wake()
        return True

    def _release(self, pair: Pair) -> None:
        for half in (pair.first, pair.second):
            if half.lent is not None:
                self._queue.pool.give(half.lent)
                half.lent = None

    def drop(self) -> None:
        """Drop what has not begun, since the queue ends."""
        if self.first is not None and self.first.lent is not None:
            self._queue.pool.give(self.first.lent)
        self.first = None
        for pair in set(self.pairs.values()):
            if not pair.running:
                self._release(pair)
            elif not abandon(self._queue.ctx.waiting.get(pair.first.sqe.cid)):
                pair.detached = True
                self._queue.detached_commands.add(self._queue.ctx.host_nqn)
        self.pairs.clear()

    def commands(self) -> dict[int, int]:
        """Return the NSIDs of halves in progress, by CID."""
        found = {cid: pair.first.sqe.nsid for cid, pair in self.pairs.items()}
        if self.first is not None and not self.first.completed:
            found[self.first.sqe.cid] = self.first.sqe.nsid
        return found


def _half_of(pair: Pair, cid: int) -> Half:
    return pair.first if pair.first.sqe.cid == cid else pair.second


async def _both(first: Awaitable[Completion], second: Callable[[Completion], Completion]) -> Completions:
    completion = await first
    return completion, second(completion)
