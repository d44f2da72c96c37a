"""What a target's queue reports to the trace hook. A queue without one has None in this object's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvmeof.spec.enums import FABRICS_OPCODE
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.core.completion import Completion
from nvmeof.trace import (
    BackendCalled,
    CommandAdmitted,
    CommandCompleted,
    QueueTrace,
    Trace,
    TracedQueue,
    command_key,
)


class CommandTrace(QueueTrace):
    """Reports the commands of one queue, each step of a command once.

    A command may be looked at several times, for it may wait for its turn or for memory: it is admitted once.
    """

    __slots__ = ("_admitted",)

    def __init__(self, trace: Trace, queue: TracedQueue, now: Callable[[], float]) -> None:
        super().__init__(trace, queue, now)
        self._admitted: set[int] = set()

    def connected(self, ctx: CommandContext) -> None:
        """Name the queue after its Connect has succeeded."""
        queue = self.queue
        queue.qid = ctx.qid
        queue.hostnqn = ctx.host_nqn
        queue.cntlid = ctx.view.cntlid
        queue.subnqn = ctx.view.subnqn

    # One command

    def held(self, cid: int) -> None:
        """Note since when a command waits that has not been looked at yet."""
        self._began.setdefault(cid, self._now())

    def admitted(self, sqe: Sqe, data_bytes: int) -> None:
        """Report that a command has passed its checks."""
        cid = sqe.cid
        if cid not in self._admitted:
            now = self._now()
            self._began.setdefault(cid, now)
            self._admitted.add(cid)
            self._trace(CommandAdmitted(self.queue, now, *command_key(sqe.opcode, sqe.nsid), (cid,), data_bytes))

    def backend_called(self, *sqes: Sqe) -> None:
        """Report that a command, or a fused pair, is given to its backend; nothing for what has none."""
        first = sqes[0]
        if self.queue.qid and first.opcode != FABRICS_OPCODE:
            cids = tuple(sqe.cid for sqe in sqes)
            self._trace(BackendCalled(self.queue, self._now(), first.opcode, None, first.nsid, cids, first.sgl_length))

    def completed(self, sqe: Sqe, completion: Completion) -> None:
        """Report a completion, that of a refused command too."""
        cid, now = sqe.cid, self._now()
        began = now
        if completion.status != Status.COMMAND_ID_CONFLICT:  # else the CID is another command's, which goes on
            began = self._began.pop(cid, now)
            self._admitted.discard(cid)
        key = command_key(sqe.opcode, sqe.nsid)
        status = int(completion.status)
        self._trace(CommandCompleted(self.queue, now, *key, (cid,), sqe.sgl_length, status, now - began))

    def forget(self, cid: int) -> None:
        super().forget(cid)
        self._admitted.discard(cid)

    # The fast path

    def asked(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        """Report a Write of the fast path with an R2T."""
        now = self._began[cid] = self._now()
        self._admitted.add(cid)
        self._trace(CommandAdmitted(self.queue, now, opcode, None, nsid, (cid,), data_bytes))

    def begun(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        """Report that Writes are given to their backend as one run."""
        now, queue = self._now(), self.queue
        fresh = [cid for cid in cids if cid not in self._admitted]
        if fresh:
            self._trace(CommandAdmitted(queue, now, opcode, None, nsid, tuple(fresh), data_bytes))
        for cid in fresh:
            self._began.setdefault(cid, now)
        self._admitted.update(cids)
        self._trace(BackendCalled(queue, now, opcode, None, nsid, tuple(cids), data_bytes))

    def ended_together(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        """Report the end of Writes that a backend has done as one run."""
        now, queue = self._now(), self.queue
        for cid in cids:
            self._admitted.discard(cid)
            seconds = now - self._began.pop(cid, now)
            self._trace(CommandCompleted(queue, now, opcode, None, nsid, (cid,), data_bytes, 0, seconds))

    def written(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        """Report the end of a Write with an R2T: its data is in the namespace."""
        self._admitted.discard(cid)
        now, queue, cids = self._now(), self.queue, (cid,)
        seconds = now - self._began.pop(cid, now)
        self._trace(BackendCalled(queue, now, opcode, None, nsid, cids, data_bytes))
        self._trace(CommandCompleted(queue, now, opcode, None, nsid, cids, data_bytes, 0, seconds))

    def served(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        """Report commands that were served together in one step, after they were."""
        now, queue = self._now(), self.queue
        self._trace(CommandAdmitted(queue, now, opcode, None, nsid, cids, data_bytes))
        self._trace(BackendCalled(queue, now, opcode, None, nsid, cids, data_bytes))
        self._trace(CommandCompleted(queue, now, opcode, None, nsid, cids, data_bytes, 0, 0.0))
