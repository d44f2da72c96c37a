"""The part of a target's queue that takes memory for data on its way, and lets commands wait for it.

A command for which there is no memory has not begun: it has had no effect, waits in its queue, and goes when the queue
ends. Memory is counted by association (`nvmeof.target.core.pool`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from nvmeof.errors import CommandError
from nvmeof.protocol.connection import TargetConnection
from nvmeof.protocol.events import CommandData
from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.dispatch.base import CommandSpec
from nvmeof.target.core.aborting import aborted_by_request
from nvmeof.target.core.pool import MemoryShare, class_bytes
from nvmeof.target.queue.fast_path import NO_BUFFER, DeferredCommand
from nvmeof.target.queue.fused_pairs import FusedCommands, Half, Pair

READ_AHEAD_BYTES: Final = 1 << 20
"""A Read that takes memory begins only while no more than this waits to be sent: what a host does not take is not
read."""
SPARE_BYTES: Final = 512 << 10
"""How much more is counted than a command needs, for the next ones."""


@dataclass(slots=True, eq=False)
class Wanted:
    """A command that waits for memory for its data. `together_bytes`: what must be free before it takes any."""

    transfer: R2tTransfer
    length: int
    together_bytes: int


class StagedCommands(FusedCommands):
    """Between what brings fused commands together and what aborts commands."""

    def __init__(self, connection: TargetConnection) -> None:
        super().__init__(connection)
        self.share = MemoryShare()
        """What the queue's memory is counted by: the association's, from an I/O queue's Connect on."""
        self._waiting: deque[Wanted] = deque()
        self.reads: deque[tuple[Sqe, memoryview, int]] = deque()
        """Commands that wait for memory for what they read, or until what was read before has been sent."""
        self.counted = 0
        """Bytes that are counted as held by the share for what the queue reads and sends."""
        self._reading = 0  # bytes of commands that are reading
        self._read_wanted = False  # the pool calls when there is memory
        self._continuing = False

    def _admit(self, view: memoryview, capsule: CommandData | None) -> None:
        raise AssertionError("the queue does that")

    def _late(self) -> bool:
        raise AssertionError("the queue does that")

    def _go_on_in_turn(self) -> None:
        raise AssertionError("the queue does that")

    # Data from the host

    def _copy_in(self, data: memoryview) -> tuple[memoryview, memoryview | None]:
        """A copy of in-capsule data, and the pool's memory that it is in."""
        buffer = self.pool.take(len(data), self.share)
        if buffer is None:  # the queue's `crowded` bounds how much of this there can be
            return memoryview(bytearray(data)), None
        buffer[:] = data
        return buffer, buffer

    def _allocate_staging(self, spec: CommandSpec, sqe: Sqe, length: int, together_bytes: int = 0) -> None:
        """Ask the host for a command's data, or wait for memory to put it into."""
        transfer = R2tTransfer(sqe.cid, NO_BUFFER, DeferredCommand(spec, sqe))
        wanted = Wanted(transfer, length, max(class_bytes(length), together_bytes))
        if self._waiting or not self._grant(wanted):
            if not self._waiting:
                self._wait(wanted)
            self._waiting.append(wanted)

    def _stage_pair(self, pair: Pair) -> None:
        """Ask for the data of both halves, with memory for both at once: half of it would be of no use."""
        halves = [half for half in (pair.first, pair.second) if not half.settled]
        sizes = [class_bytes(half.length) for half in halves]
        if sum(sizes) > self.pool.reserve_bytes:
            for half in (pair.first, pair.second):
                self._refuse_half(half, self._too_long(half))
            return
        for index, half in enumerate(halves):
            assert half.spec is not None
            self._allocate_staging(half.spec, half.sqe, half.length, 0 if index else sum(sizes))

    def _too_long(self, half: Half) -> CommandError:
        return CommandError(
            Status.ATOMIC_WRITE_UNIT_EXCEEDED,
            message=f"fused commands of {half.length} bytes: both need memory at once, and {self.pool.reserve_bytes} "
            "bytes is the most that they may have",
        )

    def _request(self, transfer: R2tTransfer, length: int) -> bool:
        """Stage the data of a Write that took the short cut, unless other commands wait for memory already."""
        return not self._waiting and self._grant(Wanted(transfer, length, class_bytes(length)))

    def _grant(self, wanted: Wanted, *, fits: bool = False) -> bool:
        if not fits and not self.pool.fits(wanted.together_bytes, self.share):
            return False
        transfer = wanted.transfer
        buffer = self.pool.take(wanted.length, self.share, fits=True)
        assert buffer is not None
        transfer.buffer = buffer
        self._transfers[transfer.cid] = transfer
        self.connection.ask(transfer)
        return True

    def _wait(self, wanted: Wanted) -> None:
        self.pool.when_free(self._retry, wanted.together_bytes, self.share)

    def _retry(self) -> None:
        """Memory has become free, or what waited for it first has gone."""
        asked = fits = False
        while self._waiting and self._grant(self._waiting[0], fits=fits):
            wanted = self._waiting.popleft()
            # The other half of a pair, whose memory was counted with that of the first.
            fits = wanted.together_bytes > class_bytes(wanted.length)
            asked = True
        if self._waiting:
            self._wait(self._waiting[0])
        if asked:
            self.driver.wake()

    # Data to the host

    def _reserve(self, sqe: Sqe, view: memoryview, length: int) -> bool:
        """Count the memory for what a command reads; False: it waits for that, or until what is read has been sent.

        What is counted covers what is being read and what waits to be sent, with a little to spare, so that most
        commands find theirs counted already. One that does not complete at once adds to what is being read.
        """
        backlog = self.connection.backlog_bytes
        needed = backlog + self._reading + length
        if (
            backlog <= READ_AHEAD_BYTES
            and (self._continuing or not self.reads)
            and (needed <= self.counted or self._count(needed))
        ):
            return True
        self._busy.add(sqe.cid)
        self.reads.append((sqe, memoryview(bytes(view)), length))
        if backlog <= READ_AHEAD_BYTES and not self._continuing:
            self._wait_to_read()
        return False

    def _count(self, needed: int) -> bool:
        more = needed - self.counted
        if not self.pool.reserve(more + SPARE_BYTES, self.share):
            if not self.pool.reserve(more, self.share):
                return False
            self.counted = needed
        else:
            self.counted = needed + SPARE_BYTES
        return True

    def settle(self) -> None:
        """Give back what is counted beyond what is being read and what waits to be sent."""
        rest = self.counted - self.connection.backlog_bytes - self._reading
        if rest > 0:
            self.counted -= rest
            self.pool.release(rest, self.share)

    def _read_ended(self, length: int) -> None:
        """What a command has read waits to be sent now, or there is nothing of it."""
        self._reading -= length
        if self.closed:
            self.settle()

    def _wait_to_read(self) -> None:
        if not self._read_wanted:
            self._read_wanted = True
            needed = self.connection.backlog_bytes + self._reading + self.reads[0][2] - self.counted
            self.pool.when_free(self._read_memory_free, needed, self.share)

    def _read_memory_free(self) -> None:
        self._read_wanted = False
        self._continue_reads()
        self.driver.wake()

    def _continue_reads(self) -> None:
        """Begin commands that waited, in their order, as long as there is memory and the host takes what is sent."""
        self._continuing = True
        try:
            while self.reads and not self.closed and self.connection.backlog_bytes <= READ_AHEAD_BYTES:
                if self._late():
                    self._go_on_in_turn()
                    return
                sqe, view, length = self.reads[0]
                needed = self.connection.backlog_bytes + self._reading + length
                if needed > self.counted and not self.pool.fits(needed - self.counted, self.share):
                    self._wait_to_read()
                    return
                self.reads.popleft()
                self._busy.discard(sqe.cid)
                self._admit(view, None)
        finally:
            self._continuing = False

    def _abort_read(self, cid: int) -> bool:
        """End a command that waits to read; False when there is none of that CID."""
        for item in self.reads:
            if item[0].cid == cid:
                self.reads.remove(item)
                self._complete(item[0], self.ctx.refuse(item[0], aborted_by_request()))
                self.driver.wake()
                return True
        return False

    # Endings

    def _drop_waiting(self) -> None:
        """Forget the commands that have not begun."""
        self.pool.forget(self._retry)
        self.pool.forget(self._read_memory_free)
        self._read_wanted = False
        self._waiting.clear()
        self.reads.clear()
