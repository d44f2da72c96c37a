"""A queue whose commands wait for rate limits: what a target has in place of its queues while it has any.

A command that has to wait is held with its in-capsule data; a queue that has many of them does not receive more. It
has had no effect, is found by Abort, and goes when the queue ends. Namespaces with a limit, and hosts with one, take
the general path: a template of the fast path would serve commands unseen. What is not counted is never held back:
Flush, reservations, Cancel, Fabrics commands. Halves of fused operations are counted and pass at once, since they must
stay together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, cast

from nvmeof.protocol.connection import TargetConnection
from nvmeof.protocol.events import CommandData
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.sqe import FUSE_MASK, SQE, Sqe
from nvmeof.target.commands.context import IoContext
from nvmeof.target.commands.dispatch.base import CommandSpec, Completion
from nvmeof.target.core.aborting import aborted_by_request
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.core.rate_limits import Limiter
from nvmeof.target.core.throttle import Throttle, Waiting
from nvmeof.target.queue.contract import Driver
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.fast_path import FastPath
from nvmeof.target.queue.pacing import RUNNING_MOST, Pacing
from nvmeof.target.queue.queue import TargetQueue
from nvmeof.wire import Buffer

_ZONE_APPEND: Final = 0x7D
_WITH_BYTES: Final = frozenset({NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.COMPARE, NvmOpcode.VERIFY, _ZONE_APPEND})
"""Commands whose blocks count as bytes."""
_COUNTED: Final = _WITH_BYTES | {NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT, NvmOpcode.COPY}
"""Commands that count as operations."""


class _LimitedFastPath(FastPath):
    """Learns no commands that have limits."""

    __slots__ = ()

    def learn(self, spec: CommandSpec, view: Buffer, sqe: Sqe, length: int, *, deferred: bool) -> None:
        if not cast("LimitedQueue", self._queue).limiters(sqe.nsid):
            super().learn(spec, view, sqe, length, deferred=deferred)


class _LimitedPacing(Pacing):
    """Counts commands that wait for their limits as held ones."""

    __slots__ = ()

    def look_for_crowds(self) -> None:
        queue = cast("LimitedQueue", self._queue)
        self.crowded = self.full() or len(queue.held) + len(queue.throttled) >= RUNNING_MOST
        queue.driver.hold_receiving(self.crowded)


class LimitedQueue(TargetQueue):
    """`throttle`: the target's. `throttled` has, by CID, the commands that wait for their limits."""

    fast_path_kind: ClassVar[type[FastPath]] = _LimitedFastPath
    pacing_kind: ClassVar[type[Pacing]] = _LimitedPacing

    def __init__(
        self,
        connection: TargetConnection,
        pool: BufferPool,
        detached_commands: DetachedCommands,
        driver: Driver,
        throttle: Throttle,
    ) -> None:
        self.throttle = throttle
        self.throttled: dict[int, tuple[Sqe, Waiting]] = {}
        self._paid: set[int] = set()  # CIDs of commands that passed, and have not begun
        super().__init__(connection, pool, detached_commands, driver)

    def limiters(self, nsid: int) -> tuple[Limiter, ...]:
        """Return the limits of commands for a namespace, the one that hosts share first."""
        ctx = self.ctx
        if not isinstance(ctx, IoContext):
            return ()
        namespace = ctx.namespaces.get(nsid)
        if namespace is None:
            return ()
        found = (namespace.limiter, ctx.view.limiter)
        return tuple(each for each in found if each is not None)

    def begin(self, view: memoryview, capsule: CommandData | None) -> None:
        if not self.ctx.qid or view[0] not in _COUNTED:
            super().begin(view, capsule)
            return
        sqe = SQE.unpack_from(view)
        limiters = self.limiters(sqe.nsid)
        if sqe.cid in self.busy or not limiters:
            super().begin(view, capsule)
            return
        if sqe.cid not in self._paid:
            size = self._size_bytes(sqe)
            if sqe.flags & FUSE_MASK or self.fused.first is not None:
                self.throttle.charge(limiters, size)
            elif not self.throttle.admit(limiters, size):
                self._hold(sqe, view, capsule, limiters, size)
                return
        self._paid.discard(sqe.cid)
        super().begin(view, capsule)
        if not self.closed and self.staging.reads and self.staging.reads[-1][0].cid == sqe.cid:
            self._paid.add(sqe.cid)  # it waits for memory, and is begun again then

    def _size_bytes(self, sqe: Sqe) -> int:
        if sqe.opcode not in _WITH_BYTES:
            return 0
        return sqe.transfer_blocks << self.ctx.namespaces[sqe.nsid].block_shift

    def _hold(
        self, sqe: Sqe, view: memoryview, capsule: CommandData | None, limiters: tuple[Limiter, ...], size: int
    ) -> None:
        raw = memoryview(bytes(view))
        if capsule is not None:
            capsule = CommandData(raw, memoryview(bytes(capsule.data)), capsule.digest_ok)
        self.busy.add(sqe.cid)
        if self.trace is not None:
            self.trace.held(sqe.cid)
        waiting = self.throttle.wait(self.ctx.host_nqn, limiters, size, self._passing(sqe.cid, raw, capsule))
        self.throttled[sqe.cid] = (sqe, waiting)
        self.pacing.look_for_crowds()

    def _passing(self, cid: int, raw: memoryview, capsule: CommandData | None) -> Callable[[], None]:
        def begin() -> None:
            del self.throttled[cid]
            self.busy.discard(cid)
            self._paid.add(cid)
            self.command(raw, capsule)
            if not self.closed:
                if self.pacing.crowded:
                    self.pacing.look_for_crowds()
                self.driver.wake()

        return begin

    def complete(self, sqe: Sqe, completion: Completion) -> None:
        self._paid.discard(sqe.cid)
        super().complete(sqe, completion)

    # -- aborts and endings --------------------------------------------------------------------------------------

    def commands(self) -> dict[int, int]:
        return {**super().commands(), **{cid: sqe.nsid for cid, (sqe, _) in self.throttled.items()}}

    def abort(self, cid: int) -> bool:
        if cid not in self.throttled:
            return super().abort(cid)
        sqe, waiting = self.throttled.pop(cid)
        waiting.cancel()
        self.refuse(sqe, aborted_by_request())
        if self.pacing.crowded:
            self.pacing.look_for_crowds()
        self.driver.wake()
        return True

    def abort_namespace(self, nsid: int) -> None:
        for cid, (sqe, _) in list(self.throttled.items()):
            if sqe.nsid == nsid:
                self.ctx.preempted.add(cid)
                self.abort(cid)
        super().abort_namespace(nsid)

    def drain(self) -> bool:
        self._drop_throttled()
        return super().drain()

    def _end(self, reason: str, *, fault: bool = False) -> None:
        self._drop_throttled()
        super()._end(reason, fault=fault)

    def _drop_throttled(self) -> None:
        for _, waiting in self.throttled.values():
            waiting.cancel()
        self.throttled.clear()
