"""The part of the fast path that serves runs of a backend which does many like reads or writes at once: a file.

A run is checked by its template, as commands on memory are. Unlike these it may fail, each command by itself, and a run
of writes is under way for a while: its commands are in use and running until the backend is done. What the backend
does not take as a run goes on the general path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.sqe import SQE
from nvmeof.target.commands.context import IoContext
from nvmeof.target.core.owner import OWNER
from nvmeof.target.namespaces.inflight import InflightCommand
from nvmeof.target.queue.contract import InFlight
from nvmeof.target.queue.deferred import CommandTemplate
from nvmeof.target.queue.pacing import RUNNING_MOST, Pacing
from nvmeof.target.queue.staging import Staging
from nvmeof.target.storage.base import RunErrors, Runs
from nvmeof.wire import Buffer

RUN_BYTES: Final = 512 << 10
"""How much one run moves, at the most: its memory is one piece."""


class RunPath:
    """The runs of one queue. `arrived`: Writes whose data has come, each in memory of the pool, in one receive."""

    __slots__ = ("_pacing", "_queue", "_staging", "arrived")

    def __init__(self, queue: InFlight, staging: Staging, pacing: Pacing) -> None:
        self._queue = queue
        self._pacing = pacing
        self._staging = staging
        self.arrived: list[tuple[CommandTemplate, int, R2tTransfer]] = []

    def _general(self, template: CommandTemplate, cid: int, slba: int) -> None:
        """Take one Read on the general path."""
        self._queue.command(memoryview(SQE.pack(template.sqe(cid, slba))), None)

    # -- reads ---------------------------------------------------------------------------------------------------

    def read(self, template: CommandTemplate, runs: Runs, cids: Sequence[int], slbas: Sequence[int]) -> None:
        """Serve Reads that are like the template; none of their CIDs is in use."""
        most = max(1, min(runs.most, RUN_BYTES // template.length))
        for at in range(0, len(cids), most):
            if self._queue.closed:
                return
            self._read_run(template, runs, cids[at : at + most], slbas[at : at + most])

    def _read_run(self, template: CommandTemplate, runs: Runs, cids: Sequence[int], slbas: Sequence[int]) -> None:
        queue, length, count = self._queue, template.length, len(cids)
        found = None
        if template.admission_token.valid and self._staging.reserve_run(length * count):
            shift = template.shift
            found = runs.read([slba << shift for slba in slbas], length)
        if found is None:
            for cid, slba in zip(cids, slbas, strict=True):
                if queue.closed:
                    return
                self._general(template, cid, slba)
            return
        whole, missing = found
        view = whole.toreadonly()  # what the socket does not take at once need not be copied
        data: list[Buffer] = [view[at : at + length] for at in range(0, count * length, length)]
        served: Sequence[int] = cids
        if missing:
            lacking = frozenset(missing)
            served = [cid for index, cid in enumerate(cids) if index not in lacking]
            data = [part for index, part in enumerate(data) if index not in lacking]
        count = len(served)
        counters = template.namespace.counters
        counters.reads += count
        counters.blocks_read += count * template.blocks
        queue.ctx.counters.commands += count
        queue.connection.send_reads(served, data, length)
        queue.connection.out.when_taken(lambda: runs.release(whole))
        if queue.trace is not None:
            queue.trace.served(template.word & 0xFF, template.nsid, served, length)
        for index in missing:
            if queue.closed:
                return
            self._general(template, cids[index], slbas[index])

    # -- writes --------------------------------------------------------------------------------------------------

    def write(
        self, template: CommandTemplate, runs: Runs, cids: list[int], slbas: list[int], data: Sequence[memoryview]
    ) -> int:
        """Begin Writes whose data is in the receive buffer; return how many of them, from the first on, a run has
        taken."""
        most = max(1, min(runs.most, RUN_BYTES // template.length))
        for at in range(0, len(cids), most):
            queue, length, part = self._queue, template.length, slice(at, at + most)
            buffer = queue.pool.take(length * len(data[part]), queue.share)
            if buffer is None:
                return at
            for index, view in enumerate(data[part]):
                buffer[index * length : (index + 1) * length] = view
            if not self._begin(template, runs, [buffer], cids[part], slbas[part]):
                queue.pool.give(buffer)
                return at
        return len(cids)

    def write_arrived(self) -> None:
        """Begin the Writes whose data has come."""
        arrived = self.arrived[:]
        self.arrived.clear()
        queue = self._queue
        while arrived:
            template = arrived[0][0]
            runs = template.runs
            assert runs is not None
            most = max(1, min(runs.most, RUN_BYTES // template.length))
            here = [item for item in arrived if item[0] is template][:most]
            arrived = [item for item in arrived if item not in here]
            buffers = [item[2].buffer for item in here]
            cids, slbas = [item[2].cid for item in here], [item[1] for item in here]
            if queue.closed:
                for buffer in buffers:
                    queue.pool.give(buffer)
            elif not (
                template.admission_token.valid
                and queue.ctx.aborting.isdisjoint(cids)
                and self._begin(template, runs, buffers, cids, slbas)
            ):
                for item in here:
                    queue.go_on_with(item[2])

    def _begin(
        self,
        template: CommandTemplate,
        runs: Runs,
        buffers: list[memoryview],
        cids: Sequence[int],
        slbas: Sequence[int],
    ) -> bool:
        queue, ctx, shift, count = self._queue, self._queue.ctx, template.shift, len(cids)
        assert isinstance(ctx, IoContext)
        OWNER.set(queue.share)
        run = _WriteRun(self._queue, self._pacing, ctx, template, buffers, cids, slbas)
        if not runs.write(buffers, [slba << shift for slba in slbas], template.length, run.done):
            return False
        run.begun = template.namespace.in_progress.begin(ctx.hostid)
        ctx.effects.begun(ctx.runtime.now())
        counters = template.namespace.counters
        counters.writes += count
        counters.blocks_written += count * template.blocks
        ctx.counters.commands += count
        queue.busy.update(cids)
        running = (template.nsid, template.spec)
        queue.running.update((cid, running) for cid in cids)
        queue.pending += count
        if queue.trace is not None:
            queue.trace.begun(template.word & 0xFF, template.nsid, cids, template.length)
        if len(queue.running) >= RUNNING_MOST:
            self._pacing.look_for_crowds()
        return True


class _WriteRun:
    """Writes that a backend has under way."""

    __slots__ = ("_buffers", "_cids", "_ctx", "_pacing", "_queue", "_slbas", "_template", "begun")

    begun: InflightCommand

    def __init__(
        self,
        queue: InFlight,
        pacing: Pacing,
        ctx: IoContext,
        template: CommandTemplate,
        buffers: list[memoryview],
        cids: Sequence[int],
        slbas: Sequence[int],
    ) -> None:
        self._queue, self._pacing, self._ctx, self._template = queue, pacing, ctx, template
        self._buffers, self._cids, self._slbas = buffers, cids, slbas

    def done(self, errors: RunErrors) -> None:
        """Complete the commands, those that have failed with their errors."""
        queue, ctx, cids = self._queue, self._ctx, self._cids
        for buffer in self._buffers:
            queue.pool.give(buffer)
        ctx.effects.done(ctx.runtime.now())
        for cid in cids:
            del queue.running[cid]
        if queue.closed:
            for cid in cids:
                if cid in queue.detached:
                    queue.detached_commands.done(ctx.host_nqn)
        else:
            queue.pending -= len(cids)
            self._complete(errors)
            if self._pacing.crowded:
                self._pacing.look_for_crowds()
            if queue.held:
                queue.resume()
            queue.driver.wake()
        self.begun.end()

    def _complete(self, errors: RunErrors) -> None:
        queue, ctx, template = self._queue, self._ctx, self._template
        done: Sequence[int] = self._cids
        if errors:
            done = [cid for index, cid in enumerate(done) if index not in errors]
        queue.busy.difference_update(done)
        for late in (ctx.aborting, ctx.preempted):
            if late:
                late.difference_update(done)
        if done:
            queue.connection.send_completions(done)
            if queue.trace is not None:
                queue.trace.ended_together(template.word & 0xFF, template.nsid, done, template.length)
        for index, error in errors.items():
            if not queue.closed:
                sqe = template.sqe(self._cids[index], self._slbas[index])
                queue.refuse(sqe, template.namespace.failed(error, writing=True))
