"""The part of a target's queue that ends commands before they are done: for Abort, Cancel, Preempt and Abort."""

from __future__ import annotations

from nvmeof.spec.sqe import SQE
from nvmeof.target.core.aborting import abandon, aborted_by_request
from nvmeof.target.queue.contract import InFlight
from nvmeof.target.queue.deferred import DeferredCommand, command_of, nsid_of, shortened
from nvmeof.target.queue.fused_pairs import FusedPairs
from nvmeof.target.queue.staging import Staging


class Aborts:
    """Finds commands wherever they are in a queue, and ends those that can be ended."""

    __slots__ = ("_fused", "_queue", "_staging")

    def __init__(self, queue: InFlight, staging: Staging, fused: FusedPairs) -> None:
        self._queue = queue
        self._staging = staging
        self._fused = fused

    def commands(self) -> dict[int, int]:
        """Return the NSIDs of the commands in progress, by CID."""
        found = {cid: nsid_of(transfer) for cid, transfer in self._queue.transfers.items()}
        found.update((wanted.transfer.cid, nsid_of(wanted.transfer)) for wanted in self._staging.waiting)
        found.update((sqe.cid, sqe.nsid) for sqe, _, _ in self._staging.reads)
        found.update((cid, nsid) for cid, (nsid, _) in self._queue.running.items())
        found.update(self._fused.commands())
        return found

    def abort(self, cid: int) -> bool:
        """Abort a command so that it has no further effect; return False for an unknown CID, or when it cannot end at
        once. These end at once: commands that are held back or wait for memory for their data, halves of a fused
        operation that wait for each other, and what a backend has not begun. What works in several steps, or has yet to
        receive data that was asked for into a separate buffer, ends at its next step (`QueueContext.aborting`). A Write
        whose data goes straight to the namespace goes on: some of it is there.
        """
        queue = self._queue
        waiting = self._staging.end_waiting(cid)
        if waiting is not None:
            if cid in self._fused.pairs:
                self._fused.failed(cid, aborted_by_request(), None)
            else:
                queue.refuse(command_of(waiting)[1], aborted_by_request())
            queue.driver.wake()
            self._staging.waiting_changed()
            return True
        if cid in self._fused.commands():
            return self._fused.abort(cid)
        if (cid not in self._queue.busy and self._abort_held(cid)) or (
            self._staging.reads and self._staging.abort_read(cid)
        ):
            return True
        transfer = self._queue.transfers.get(cid)
        if transfer is not None:
            if isinstance(transfer.context, DeferredCommand) or shortened(transfer)[0].runs is not None:
                self._queue.ctx.aborting.add(cid)
            return False
        if cid not in self._queue.running or cid not in self._queue.ctx.waiting:
            return False
        if abandon(self._queue.ctx.waiting[cid]):
            return True
        self._queue.ctx.aborting.add(cid)
        return False

    def _abort_held(self, cid: int) -> bool:
        for item in self._queue.held:
            sqe = SQE.unpack_from(item[0])
            if sqe.cid == cid:
                self._queue.held.remove(item)
                self._queue.refuse(sqe, aborted_by_request())
                self._queue.driver.wake()
                return True
        return False

    def abort_namespace(self, nsid: int) -> None:
        """Preempt and Abort: end the commands for a namespace as `abort` does, with another status. Writes whose data
        goes straight to the namespace write nothing more: their admission tokens were invalidated, and are checked
        again when the data has arrived.
        """
        for cid, other in self.commands().items():
            if other == nsid:
                self._queue.ctx.preempted.add(cid)
                self.abort(cid)
