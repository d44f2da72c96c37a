"""What a queue tells whoever watches its commands: the trace hook, counters, or both.

A queue without a watcher has None in its place, and each place that could tell something costs one test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.core.completion import Completion


class QueueWatcher(Protocol):
    """A watcher of one queue's commands. It is called in the middle of the work, and must be quick.

    A command may be looked at several times, for it may wait for its turn or for memory: it is admitted once.
    """

    def connected(self, ctx: CommandContext) -> None:
        """Note that the queue's Connect has succeeded."""
        ...

    def held(self, cid: int) -> None:
        """Note that a command waits that has not been looked at yet."""
        ...

    def admitted(self, sqe: Sqe, data_bytes: int) -> None:
        """Note that a command has passed its checks."""
        ...

    def backend_called(self, *sqes: Sqe) -> None:
        """Note that a command, or a fused pair, is given to its backend."""
        ...

    def completed(self, sqe: Sqe, completion: Completion) -> None:
        """Note that a completion was queued, that of a refused command too."""
        ...

    def forget(self, cid: int) -> None:
        """Forget a command that is never going to have a completion, although its queue goes on."""
        ...

    def asked(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        """Note a Write of the fast path with an R2T."""
        ...

    def begun(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        """Note that Writes are given to their backend as one run."""
        ...

    def ended_together(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        """Note the end of Writes that a backend has done as one run."""
        ...

    def written(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        """Note the end of a Write with an R2T: its data is in the namespace."""
        ...

    def served(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        """Note commands that were served together in one step, after they were."""
        ...

    def ended(self, reason: str) -> None:
        """Note the end of the queue."""
        ...


class BothWatchers:
    """Two watchers as one: implements `QueueWatcher`."""

    __slots__ = ("_one", "_other")

    def __init__(self, one: QueueWatcher, other: QueueWatcher) -> None:
        self._one = one
        self._other = other

    def connected(self, ctx: CommandContext) -> None:
        self._one.connected(ctx)
        self._other.connected(ctx)

    def held(self, cid: int) -> None:
        self._one.held(cid)
        self._other.held(cid)

    def admitted(self, sqe: Sqe, data_bytes: int) -> None:
        self._one.admitted(sqe, data_bytes)
        self._other.admitted(sqe, data_bytes)

    def backend_called(self, *sqes: Sqe) -> None:
        self._one.backend_called(*sqes)
        self._other.backend_called(*sqes)

    def completed(self, sqe: Sqe, completion: Completion) -> None:
        self._one.completed(sqe, completion)
        self._other.completed(sqe, completion)

    def forget(self, cid: int) -> None:
        self._one.forget(cid)
        self._other.forget(cid)

    def asked(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        self._one.asked(opcode, nsid, cid, data_bytes)
        self._other.asked(opcode, nsid, cid, data_bytes)

    def begun(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        self._one.begun(opcode, nsid, cids, data_bytes)
        self._other.begun(opcode, nsid, cids, data_bytes)

    def ended_together(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        self._one.ended_together(opcode, nsid, cids, data_bytes)
        self._other.ended_together(opcode, nsid, cids, data_bytes)

    def written(self, opcode: int, nsid: int, cid: int, data_bytes: int) -> None:
        self._one.written(opcode, nsid, cid, data_bytes)
        self._other.written(opcode, nsid, cid, data_bytes)

    def served(self, opcode: int, nsid: int, cids: Sequence[int], data_bytes: int) -> None:
        self._one.served(opcode, nsid, cids, data_bytes)
        self._other.served(opcode, nsid, cids, data_bytes)

    def ended(self, reason: str) -> None:
        self._one.ended(reason)
        self._other.ended(reason)
