"""The part of a target's queue that ends commands before they are done: for Abort, Cancel, Preempt and Abort."""

from __future__ import annotations

from collections import deque

from nvmeof.errors import CommandError
from nvmeof.protocol.connection import TargetConnection
from nvmeof.protocol.events import CommandData
from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.sqe import SQE
from nvmeof.target.commands.dispatch.base import CommandSpec
from nvmeof.target.core.aborting import abandon, aborted_by_request
from nvmeof.target.queue.fast_path import DeferredCommand, command_of, nsid_of
from nvmeof.target.queue.staging import StagedCommands


class AbortableCommands(StagedCommands):
    """Between what takes memory for commands and the queue."""

    def __init__(self, connection: TargetConnection) -> None:
        super().__init__(connection)
        self._running: dict[
            int, tuple[int, CommandSpec]
        ] = {}  # NSID and row by CID: those that did not complete at once
        self.held: deque[tuple[memoryview, CommandData | None]] = deque()
        """Commands that wait until enough of what is to be sent has gone; see ``resume``."""

    def commands(self) -> dict[int, int]:
        """NSID by CID of the commands in progress."""
        found = {cid: nsid_of(transfer) for cid, transfer in self._transfers.items()}
        found.update((wanted.transfer.cid, nsid_of(wanted.transfer)) for wanted in self._waiting)
        found.update((sqe.cid, sqe.nsid) for sqe, _, _ in self.reads)
        found.update((cid, nsid) for cid, (nsid, _) in self._running.items())
        found.update(self._fused_commands())
        return found

    def abort(self, cid: int) -> bool:
        """End a command that has no effect from then on; False when there is none of that CID, or not so at once.

        At once end: commands that are held back or wait for memory for their data, halves of a fused operation that
        wait for each other, and what a backend has not begun. What works in several steps, or has yet to receive data
        that was asked for into memory of its own, ends when it comes to it (`CommandContext.aborting`). A Write whose
        data goes straight to the namespace goes on: some of it is there.
        """
        waiting = next((wanted for wanted in self._waiting if wanted.transfer.cid == cid), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            self._end_waiting(waiting.transfer, aborted_by_request())
            self.driver.wake()
            # The next one may need less memory.
            self.pool.forget(self._retry)
            self._retry()
            return True
        if cid in self._fused_commands():
            return self._abort_half(cid)
        if (cid not in self._busy and self._abort_held(cid)) or (self.reads and self._abort_read(cid)):
            return True
        transfer = self._transfers.get(cid)
        if transfer is not None:
            if isinstance(transfer.context, DeferredCommand):
                self.ctx.aborting.add(cid)
            return False
        if cid not in self._running or cid not in self.ctx.waiting:
            return False
        if abandon(self.ctx.waiting[cid]):
            return True
        self.ctx.aborting.add(cid)
        return False

    def _abort_held(self, cid: int) -> bool:
        for item in self.held:
            sqe = SQE.unpack_from(item[0])
            if sqe.cid == cid:
                self.held.remove(item)
                self._complete(sqe, self.ctx.refuse(sqe, aborted_by_request()))
                self.driver.wake()
                return True
        return False

    def abort_namespace(self, nsid: int) -> None:
        """Preempt and Abort: end the commands for a namespace as `abort` does, with a status of their own.

        Of those whose data is on its way straight to the namespace nothing more reaches it: its permits were withdrawn,
        and they are checked again when the data is there.
        """
        for cid, other in self.commands().items():
            if other == nsid:
                self.ctx.preempted.add(cid)
                self.abort(cid)

    def _end_waiting(self, transfer: R2tTransfer, error: CommandError) -> None:
        """End a command that has waited for memory, and is not among those who wait any more."""
        _, sqe = command_of(transfer)
        if sqe.cid in self._pairs:
            self._half_failed(sqe.cid, error, None)
        else:
            self._complete(sqe, self.ctx.refuse(sqe, error))
