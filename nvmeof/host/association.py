"""An association's queues: submitting commands to them, the timer that watches over them, and their common end.

What is done with them, from Connect to shutdown, is :class:`nvmeof.host.controller.Controller`'s; this module must not
know a command by its opcode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum

from nvmeof.address import Address
from nvmeof.errors import LocalProtocolError, NvmeofError
from nvmeof.host.facts import QueueFacts
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import Queue, QueueDevice, Request
from nvmeof.host.requests import DEFAULT_OPTIONS, Command, RequestOptions, execute
from nvmeof.host.timeouts import Timeouts
from nvmeof.host.tracing import CommandTrace
from nvmeof.runtime import Runtime, TimerHandle
from nvmeof.spec.enums import CNTLID_DYNAMIC
from nvmeof.trace import Side, Trace, TracedQueue
from nvmeof.wire import Buffer

log = logging.getLogger("nvmeof.host")


class HostState(Enum):
    """Where an association is."""

    NEW = "new"
    CONNECTING = "connecting"
    LIVE = "live"
    CLOSING = "closing"
    CLOSED = "closed"
    FAILED = "failed"


class Association:
    """The queues of one controller on ``device``, and the commands that go through them."""

    def __init__(
        self, device: QueueDevice, options: ConnectOptions, runtime: Runtime, trace: Trace | None = None
    ) -> None:
        self._trace = trace
        self.device = device
        self.options = options
        self.runtime = runtime
        self.state = HostState.NEW
        self.error: NvmeofError | None = None
        """Why the association ended."""
        self.ended_at: float | None = None
        """When its end was noticed, or asked for; None while it has not ended."""
        self.held = False
        """``setup_ctrl`` of the device has been called, and ``release_ctrl`` has not."""
        self.cntlid = CNTLID_DYNAMIC
        self.io_queues: list[Queue] = []
        self.on_lost: list[Callable[[NvmeofError], object]] = []
        """Called once when the association is lost, not when it is ended in order."""
        self._admin_queue: Queue | None = None
        self._timeouts: Timeouts | None = None
        self._next_queue = 0
        self._timer: TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.cntlid:#x} of {self.options.subnqn}: {self.state.value}>"

    # -- queues

    @property
    def admin_queue(self) -> Queue:
        """The admin queue. Raises LocalProtocolError before there is one."""
        if self._admin_queue is None:
            raise LocalProtocolError("the controller is not connected")
        return self._admin_queue

    def queues(self) -> Iterator[Queue]:
        """Yield all queues, the admin queue first."""
        if self._admin_queue is not None:
            yield self._admin_queue
        yield from self.io_queues

    async def create_admin_queue(self, queue: Queue) -> None:
        """Connect the admin queue's transport, and start the timer. Raises what ``create_queue`` of the device does."""
        self._admin_queue = queue
        await self._create(queue)
        self._timeouts = Timeouts(queue, self.queues, self.queue_error)
        self._on_timer()

    async def create_io_queue(self, queue: Queue) -> None:
        """Connect an I/O queue's transport. Raises what ``create_queue`` of the device does."""
        self.io_queues.append(queue)
        await self._create(queue)

    async def _create(self, queue: Queue) -> None:
        if self.error is not None:
            raise self.error
        queue.epoch = self.runtime.now()
        queue.on_error = self.queue_error
        if self._trace is not None:
            queue.trace = self._trace_of(queue, self._trace)
        await self.device.create_queue(queue)
        if queue.error is not None:
            # lost with the association while it was being made: it has no other reference
            self.device.drain_queue(queue)
            self.device.destroy_queue(queue)
            raise queue.error

    def _trace_of(self, queue: Queue, trace: Trace) -> CommandTrace:
        options = queue.options
        peer = str(Address(options.traddr, options.trsvcid))
        traced = TracedQueue(Side.HOST, peer, queue.qid, self.cntlid, options.subnqn, options.hostnqn)
        return CommandTrace(trace, traced, self.runtime.now)

    # -- commands

    async def execute(
        self,
        queue: Queue,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        """Send one command on ``queue``; return DW0 | DW1 << 32 of its completion.

        Raises :class:`NvmeStatusError` when it fails, :class:`ConnectionLost` when the queue died.
        """
        command = Command(self.runtime.create_future(), sqe, data_out, data_in, options)
        return await execute(self.runtime, queue, command, self.abort, hold=options.hold)

    def pick_queue(self) -> Queue:
        """Return the I/O queue for the next command, in round robin."""
        queues = self.io_queues
        if len(queues) == 1:
            return queues[0]
        if not queues:
            raise self.error or LocalProtocolError("this controller has no I/O queues")
        index = self._next_queue = (self._next_queue + 1) % len(queues)
        return queues[index]

    def abort(self, request: Request) -> None:
        """Send an Abort for an outstanding request."""
        if self._timeouts is not None:
            self._timeouts.abort(request)

    # -- timeouts

    @property
    def timeouts(self) -> Timeouts:
        """Keep-alive, command timeouts and Aborts. Raises LocalProtocolError before the admin queue is connected."""
        if self._timeouts is None:
            raise LocalProtocolError("the controller is not connected")
        return self._timeouts

    def start_keep_alive(self, *, traffic_based: bool) -> None:
        """Start keep-alive and restart its timer, which may have been set for later."""
        if self.options.keep_alive_tmo:
            now = self.runtime.now()
            self.timeouts.set_keep_alive(now, self.options.keep_alive_tmo, traffic_based=traffic_based)
            self._on_timer()

    def _on_timer(self) -> None:
        """Call :meth:`Timeouts.check`, and come back when it wants to be called again."""
        timeouts = self._timeouts
        if timeouts is None or self.state in (HostState.CLOSED, HostState.FAILED):
            return
        now = self.runtime.now()
        timeouts.check(now)
        if self.error is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.runtime.call_later(max(timeouts.next_deadline - now, 0.001), self._on_timer)

    # -- the end

    def queue_error(self, queue: Queue, error: NvmeofError) -> None:
        """End the association: ``queue`` is broken, and a controller outlives none of its queues here."""
        if self.state in (HostState.FAILED, HostState.CLOSED):
            return
        if self.state is HostState.CLOSING and queue.qid:
            # deleted by our Disconnect: the controller may close the connection before we do
            self.close_queue(queue, error)
            return
        was, self.state = self.state, HostState.FAILED
        self.error = error
        self.ended_at = self.runtime.now()
        if was is HostState.LIVE:
            log.warning("lost the controller %#x of %s: %s", self.cntlid, self.options.subnqn, error)
        self._close_queues(error)
        if was in (HostState.LIVE, HostState.CLOSING):
            for callback in list(self.on_lost):
                callback(error)

    def _close_queues(self, error: NvmeofError) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queues = [queue for queue in self.queues() if queue.error is None]
        for queue in queues:
            queue.fail(error)
        for queue in reversed(queues):
            self.device.destroy_queue(queue)

    def close_queue(self, queue: Queue, error: NvmeofError) -> None:
        """Fail the outstanding requests of one queue with ``error``, and free the queue."""
        if queue.error is None:
            queue.fail(error)
            self.device.destroy_queue(queue)

    async def free(self, error: NvmeofError) -> None:
        """Close all queues, unless a loss has done that, and release the device, once; later commands get ``error``."""
        if self.state is not HostState.FAILED:
            self._close_queues(error)
            self.state = HostState.CLOSED
            self.error = self.error or error
            self.ended_at = self.ended_at or self.runtime.now()
        if self.held:
            self.held = False
            await self.device.release_ctrl(self.options)

    def describe(self) -> list[QueueFacts]:
        """Return one mapping per queue, the admin queue first: ``qid``, entries, load, and the device's present
        facts."""
        return [
            {
                "qid": queue.qid,
                "entries": queue.entries,
                "outstanding": len(queue.requests),
                "completed": queue.completed,
                **self.device.describe(queue),
            }
            for queue in self.queues()
        ]
