"""The part of a target's queue that takes memory for data on its way, and lets commands wait for it.

A command for which there is no memory has not begun: it has had no effect, waits in its queue, and goes when the queue
ends. Memory is counted by association (`nvmeof.target.core.pool`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.dispatch.base import CommandSpec
from nvmeof.target.core.aborting import aborted_by_request
from nvmeof.target.core.pool import class_bytes
from nvmeof.target.queue.contract import InFlight
from nvmeof.target.queue.deferred import NO_BUFFER, DeferredCommand
from nvmeof.target.queue.pacing import Pacing

READ_AHEAD_BYTES: Final = 1 << 20
"""A Read that takes memory begins only while at most this many bytes wait to be sent: data for a host that does not
receive is not read."""
SPARE_BYTES: Final = 512 << 10
"""How much more is counted than a command needs, for the next ones."""


@dataclass(slots=True, eq=False)
class Wanted:
    """A command that waits for memory for its data. `together_bytes`: what must be free before it takes any."""

    transfer: R2tTransfer
    length: int
    together_bytes: int


class Staging:
    """The memory of one queue: what its commands wait for and what they hold."""

    __slots__ = ("_continuing", "_pacing", "_pool", "_queue", "_read_wanted", "counted", "reading", "reads", "waiting")

    def __init__(self, queue: InFlight, pacing: Pacing) -> None:
        self._queue = queue
        self._pacing = pacing
        self._pool = queue.pool
        # Two lists, since they are mostly empty: a deque takes 700 bytes then, of each connection.
        self.waiting: list[Wanted] = []
        """Commands that wait for memory for their data from the host."""
        self.reads: list[tuple[Sqe, memoryview, int]] = []
        """Commands that wait for memory for what they read, or until what was read before has been sent."""
        self.counted = 0
        """Bytes that are counted as held by the share for what the queue reads and sends."""
        self.reading = 0
        """Bytes of commands that are reading."""
        self._read_wanted = False  # the pool calls when there is memory
        self._continuing = False

    # Data from the host

    def copy_in(self, data: memoryview) -> tuple[memoryview, memoryview | None]:
        """Return a copy of in-capsule data, and the pool's memory that holds it."""
        buffer = self._pool.take(len(data), self._queue.share)
        if buffer is None:  # the queue's `crowded` bounds the number of these copies
            return memoryview(bytearray(data)), None
        buffer[:] = data
        return buffer, buffer

    def ask(self, spec: CommandSpec, sqe: Sqe, length: int, together_bytes: int = 0) -> None:
        """Ask the host for a command's data, or wait for memory to put it into."""
        transfer = R2tTransfer(sqe.cid, NO_BUFFER, DeferredCommand(spec, sqe))
        wanted = Wanted(transfer, length, max(class_bytes(length), together_bytes))
        if self.waiting or not self._grant(wanted):
            if not self.waiting:
                self._wait(wanted)
            self.waiting.append(wanted)

    def request(self, transfer: R2tTransfer, length: int) -> bool:
        """Stage the data of a Write that took the fast path, unless other commands wait for memory already."""
        return not self.waiting and self._grant(Wanted(transfer, length, class_bytes(length)))

    def _grant(self, wanted: Wanted, *, fits: bool = False) -> bool:
        if not fits and not self._pool.fits(wanted.together_bytes, self._queue.share):
            return False
        transfer = wanted.transfer
        buffer = self._pool.take(wanted.length, self._queue.share, fits=True)
        assert buffer is not None
        transfer.buffer = buffer
        self._queue.transfers[transfer.cid] = transfer
        self._queue.connection.ask(transfer)
        return True

    def _wait(self, wanted: Wanted) -> None:
        self._pool.when_free(self._retry, wanted.together_bytes, self._queue.share)

    def _retry(self) -> None:
        """Serve the waiters after memory was released, or the first waiter was removed."""
        asked = fits = False
        while self.waiting and self._grant(self.waiting[0], fits=fits):
            wanted = self.waiting.pop(0)
            # The other half of a pair, whose memory was counted with that of the first.
            fits = wanted.together_bytes > class_bytes(wanted.length)
            asked = True
        if self.waiting:
            self._wait(self.waiting[0])
        if asked:
            self._queue.driver.wake()

    # Data to the host

    def reserve(self, sqe: Sqe, view: memoryview, length: int) -> bool:
        """Count the memory for what a command reads; False: it waits for that, or until what is read has been sent.

        What is counted covers what is being read and what waits to be sent, with a little to spare, so that most
        commands find theirs counted already. One that does not complete at once adds to what is being read.
        """
        backlog = self._queue.connection.out.pending_bytes
        needed = backlog + self.reading + length
        if (
            backlog <= READ_AHEAD_BYTES
            and (not self.reads or self._continuing)
            and (needed <= self.counted or self._count(needed))
        ):
            return True
        self._queue.busy.add(sqe.cid)
        self.reads.append((sqe, memoryview(bytes(view)), length))
        self._queue.driver.wait_for_room()
        if backlog <= READ_AHEAD_BYTES and not self._continuing:
            self._wait_to_read()
        return False

    def reserve_run(self, length: int) -> bool:
        """Count the memory for what is read at once, as `reserve`; False: nothing is counted, and nothing waits."""
        backlog = self._queue.connection.out.pending_bytes
        needed = backlog + self.reading + length
        return backlog <= READ_AHEAD_BYTES and not self.reads and (needed <= self.counted or self._count(needed))

    def _count(self, needed: int) -> bool:
        queue, more = self._queue, needed - self.counted
        if self._pool.reserve(more + SPARE_BYTES, queue.share):
            self.counted = needed + SPARE_BYTES
        elif self._pool.reserve(more, queue.share):
            self.counted = needed
        else:
            return False
        queue.driver.wait_for_room()
        return True

    def settle(self) -> None:
        """Give back what is counted beyond what is being read and what waits to be sent."""
        needed = self._queue.connection.out.pending_bytes + self.reading
        rest = self.counted - needed
        if rest > 0:
            self.counted = needed
            self._pool.release(rest, self._queue.share)

    def read_ended(self, length: int) -> None:
        """Note that the data of a Read is queued for sending, or that there is none."""
        self.reading -= length
        if self._queue.closed:
            self.settle()

    def _wait_to_read(self) -> None:
        if not self._read_wanted:
            self._read_wanted = True
            needed = self._queue.connection.backlog_bytes + self.reading + self.reads[0][2] - self.counted
            self._pool.when_free(self._read_memory_free, needed, self._queue.share)

    def _read_memory_free(self) -> None:
        self._read_wanted = False
        self.continue_reads()
        self._queue.driver.wake()

    def continue_reads(self) -> None:
        """Begin commands that waited, in their order, as long as there is memory and the host takes what is sent."""
        self._continuing = True
        try:
            while self.reads and not self._queue.closed and self._queue.connection.backlog_bytes <= READ_AHEAD_BYTES:
                if self._queue.paused():
                    return
                if self._pacing.late():
                    self._pacing.go_on_in_turn()
                    return
                sqe, view, length = self.reads[0]
                needed = self._queue.connection.backlog_bytes + self.reading + length
                if needed > self.counted and not self._pool.fits(needed - self.counted, self._queue.share):
                    self._wait_to_read()
                    return
                self.reads.pop(0)
                self._queue.busy.discard(sqe.cid)
                self._queue.begin(view, None)
        finally:
            self._continuing = False

    def abort_read(self, cid: int) -> bool:
        """End a command that waits to read; False when there is none of that CID."""
        for item in self.reads:
            if item[0].cid == cid:
                self.reads.remove(item)
                self._queue.refuse(item[0], aborted_by_request())
                self._queue.driver.wake()
                return True
        return False

    def end_waiting(self, cid: int) -> R2tTransfer | None:
        """Take a command from those that wait for memory for their data; None when there is none of that CID."""
        for wanted in self.waiting:
            if wanted.transfer.cid == cid:
                self.waiting.remove(wanted)
                return wanted.transfer
        return None

    def waiting_changed(self) -> None:
        """Look again: the command that is first now may need less memory."""
        self._pool.forget(self._retry)
        self._retry()

    # Endings

    def drop_waiting(self) -> None:
        """Forget the commands that have not begun."""
        self._pool.forget(self._retry)
        self._pool.forget(self._read_memory_free)
        self._read_wanted = False
        self.waiting.clear()
        self.reads.clear()
