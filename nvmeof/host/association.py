"""An association's queues: submitting commands to them, the timer that watches over them, and their common end.

What is done with them, from Connect to shutdown, is :class:`nvmeof.host.controller.Controller`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from nvmeof.errors import LocalProtocolError, NvmeofError
from nvmeof.host.admin_commands import AdminCommands
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import Queue, QueueDevice, Request
from nvmeof.host.requests import Command, execute, run_transfer
from nvmeof.host.runtime import Runtime, Timer
from nvmeof.host.timeouts import Timeouts
from nvmeof.spec.enums import CNTLID_DYNAMIC
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


class Association(AdminCommands):
    """The queues of one controller on ``device``, and the commands that go through them."""

    def __init__(self, device: QueueDevice, options: ConnectOptions, runtime: Runtime) -> None:
        self.device = device
        self.options = options
        self.runtime = runtime
        self.state = HostState.NEW
        self.error: NvmeofError | None = None
        """Why the association ended."""
        self.cntlid = CNTLID_DYNAMIC
        self.admin_queue: Queue | None = None
        self.io_queues: list[Queue] = []
        self.on_lost: list[Callable[[NvmeofError], object]] = []
        """Called once when the association is lost, not when it is ended in order."""
        self.timeouts: Timeouts | None = None
        self._next_queue = 0
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.cntlid:#x} of {self.options.subnqn}: {self.state.value}>"

    async def _create(self, queue: Queue) -> None:
        if self.error is not None:
            raise self.error
        queue.epoch = self.runtime.now()
        queue.on_error = self._queue_error
        await self.device.create_queue(queue)
        if queue.error is not None:
            # lost with the association while it was being made: nobody else knows of it
            self.device.drain_queue(queue)
            self.device.destroy_queue(queue)
            raise queue.error

    # -- commands

    @property
    def _admin(self) -> Queue:
        if self.admin_queue is None:
            raise LocalProtocolError("the controller is not connected")
        return self.admin_queue

    def queues(self) -> Iterator[Queue]:
        """All queues, the admin queue first."""
        if self.admin_queue is not None:
            yield self.admin_queue
        yield from self.io_queues

    async def admin(
        self,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        timeout: float | None = None,
        priority: bool = False,
    ) -> int:
        return await self._execute(
            self._admin, sqe, data_out=data_out, data_in=data_in, timeout=timeout, priority=priority
        )

    async def io(
        self,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        timeout: float | None = None,
        hold: bool = True,
    ) -> int:
        """Send one I/O command on the next queue; DW0 | DW1 << 32 of its completion."""
        command = Command(self.runtime.create_future(), sqe, data_out, data_in)
        if timeout is not None:
            command.timeout = timeout
        return await execute(self.runtime, self.pick_queue(), command, self.abort, hold=hold)

    async def _execute(
        self,
        queue: Queue,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        timeout: float | None = None,
        priority: bool = False,
        abortable: bool = True,
    ) -> int:
        command = Command(self.runtime.create_future(), sqe, data_out, data_in)
        command.priority = priority
        command.aborted = not abortable
        if timeout is not None:
            command.timeout = timeout
        return await execute(self.runtime, queue, command, self.abort)

    async def io_transfer(self, parts: Iterator[Any], *, hold: bool = True) -> int:
        """Many I/O commands as one operation: ``parts`` yields ``(sqe, data_out, data_in)``."""
        return await run_transfer(self.runtime, self.pick_queue, parts, self.abort, hold=hold)

    def pick_queue(self) -> Queue:
        """The I/O queue for the next command: they take turns."""
        queues = self.io_queues
        if len(queues) == 1:
            return queues[0]
        if not queues:
            raise self.error or LocalProtocolError("this controller has no I/O queues")
        index = self._next_queue = (self._next_queue + 1) % len(queues)
        return queues[index]

    def abort(self, request: Request) -> None:
        """Send an Abort for an outstanding request."""
        if self.timeouts is not None:
            self.timeouts.abort(request)

    # -- timeouts

    def _keep_alive(self, traffic_based: bool) -> None:
        """Start keep-alive, and the timer anew: it may have been set for later."""
        assert self.timeouts is not None
        if self.options.keep_alive_tmo:
            self.timeouts.set_keep_alive(self.runtime.now(), self.options.keep_alive_tmo, traffic_based=traffic_based)
            self._on_timer()

    def _on_timer(self) -> None:
        """Call :meth:`Timeouts.check`, and come back when it wants to be called again."""
        timeouts = self.timeouts
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

    def _queue_error(self, queue: Queue, error: NvmeofError) -> None:
        """A queue is broken: the association ends, since a controller outlives none of its queues here."""
        if self.state in (HostState.FAILED, HostState.CLOSED):
            return
        if self.state is HostState.CLOSING and queue.qid:
            # deleted by our Disconnect: the controller may close the connection before we do
            self._close_queue(queue, error)
            return
        was, self.state = self.state, HostState.FAILED
        self.error = error
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

    def _close_queue(self, queue: Queue, error: NvmeofError) -> None:
        if queue.error is None:
            queue.fail(error)
            self.device.destroy_queue(queue)

    async def _free(self, error: NvmeofError) -> None:
        if self.state is not HostState.FAILED:
            self._close_queues(error)
            self.state = HostState.CLOSED
            self.error = self.error or error
        await self.device.release_ctrl(self.options)

    def describe(self) -> list[dict[str, Any]]:
        """One mapping per queue, the admin queue first: ``qid``, entries, load, and what the device says now."""
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
