"""What a host must do in time: keep-alive, command timeouts, and the Aborts that cancelled callers send.

A command that is not answered in time ends the association at once, whatever queue it is on, as in Linux's nvme-tcp
(nvme_tcp_timeout, drivers/nvme/host/tcp.c). With ``abort_first`` it is aborted, and has as much time again.

A machine without a clock: :meth:`Timeouts.check` gets the time, :attr:`Timeouts.next_deadline` says when it wants to
be called again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from nvmeof.errors import ConnectionLost, NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.queue import Queue, Request
from nvmeof.spec.status import split_status

log = logging.getLogger("nvmeof.host")

TICK_SECONDS = 1.0
"""How often outstanding commands are looked through, at most; shorter where a timeout is short."""
TICKS_PER_TIMEOUT = 4


class BackgroundCommand(Request):
    """A priority command that no caller waits for: Keep Alive or Abort.

    ``then(result, status)`` is called when it is over; ``result`` is None when it was lost with its queue.
    """

    __slots__ = ("then",)

    def __init__(self, sqe: bytes, timeout: float, then: Callable[[int | None, int], None]) -> None:
        super().__init__(sqe)
        self.priority = True
        self.timeout = timeout
        self.then = then

    def completed(self, result: int, status: int) -> None:
        self.then(result, status)

    def failed(self, error: NvmeofError) -> None:
        self.then(None, 0)


class Timeouts:
    """Keep-alive, timeouts and Aborts of one controller.

    ``queues`` gives all its queues, the admin queue included; ``lost(queue, error)`` is called for a queue that no
    longer answers. The times, and whether an Abort comes first, are those of the admin queue's options.
    """

    def __init__(
        self, admin: Queue, queues: Callable[[], Iterable[Queue]], lost: Callable[[Queue, NvmeofError], None]
    ) -> None:
        options = admin.options
        self._admin = admin
        self._queues = queues
        self._lost = lost
        self._abort_first = options.abort_first
        self._tick = min(TICK_SECONDS, min(options.io_timeout, options.admin_timeout) / TICKS_PER_TIMEOUT)
        self._next_tick = 0.0
        self._kato = 0.0
        self._keep_alive_period = 0.0
        self._next_keep_alive = float("inf")
        self._traffic_based = False
        self._seen = 0
        self._keep_alive_out = False
        self._aborts_free = 1
        self._aborts_waiting: deque[Request] = deque()
        self.keep_alives = 0
        """Keep Alive commands sent."""
        self.aborts = 0
        """Abort commands sent."""

    @property
    def next_deadline(self) -> float:
        """When :meth:`check` is to be called next."""
        return min(self._next_tick, self._next_keep_alive)

    def check(self, now: float) -> None:
        """Abort or fail the commands that are overdue at ``now``, and send a keep-alive if due."""
        for queue in self._queues():
            queue.epoch = now
        if now >= self._next_keep_alive:
            self._keep_alive(now)
        if now >= self._next_tick:
            self._next_tick = now + self._tick
            for queue in list(self._queues()):
                self._check_queue(queue, now)

    # -- keep-alive

    def set_keep_alive(self, now: float, kato_seconds: float, *, traffic_based: bool) -> None:
        """Start keep-alive. With ``traffic_based`` (CTRATT.TBKAS) any completed command counts as one.

        The timer is fired twice, traffic-based four times, within KATO, so that a single lost keep-alive does
        not end the association.
        """
        self._kato = kato_seconds
        self._traffic_based = traffic_based
        self._keep_alive_period = kato_seconds / (4 if traffic_based else 2)
        self._next_keep_alive = now + self._keep_alive_period
        self._seen = self._completions()

    def stop_keep_alive(self) -> None:
        """Stop keep-alive, since the controller is being shut down."""
        self._next_keep_alive = float("inf")

    def _completions(self) -> int:
        return sum(queue.completed for queue in self._queues())

    def _keep_alive(self, now: float) -> None:
        self._next_keep_alive = now + self._keep_alive_period
        seen = self._completions()
        traffic, self._seen = seen != self._seen, seen
        if self._keep_alive_out or (self._traffic_based and traffic) or self._admin.error is not None:
            return
        self._keep_alive_out = True
        self.keep_alives += 1
        self._admin.submit(BackgroundCommand(sqe_builders.keep_alive(), self._kato, self._kept_alive))

    def _kept_alive(self, result: int | None, status: int) -> None:
        self._keep_alive_out = False
        if result is not None and status >= 2:
            self._lost(
                self._admin, ConnectionLost(f"the controller refused Keep Alive: {split_status(status)[0]:#05x}")
            )

    # -- timeouts

    def _check_queue(self, queue: Queue, now: float) -> None:
        # requests carry the time of the tick before them, so one tick more must pass
        for request in queue.expired(now - self._tick):
            if queue.error is not None:
                return
            if request.aborted or request.priority or not self._abort_first:
                what = "Keep Alive or Abort" if request.priority else f"a command ({request.sqe[0]:#04x})"
                self._lost(queue, ConnectionLost(f"{what} on queue {queue.qid} was not answered in time"))
                return
            log.warning("command %#06x on queue %d timed out: aborting it", request.cid, queue.qid)
            self.abort(request)

    # -- Abort

    def set_abort_limit(self, commands_at_once: int) -> None:
        """Set how many Aborts the controller takes at a time (ACL + 1)."""
        self._aborts_free = max(commands_at_once, 1)

    def abort(self, request: Request) -> None:
        """Send an Abort for an outstanding request; the request ends by its own completion, aborted or not."""
        if request.cid < 0 or request.aborted or self._admin.error is not None:
            return
        request.aborted = True
        request.epoch = request.queue.epoch  # the Abort gets a timeout's time to work
        if self._aborts_free:
            self._send_abort(request)
        else:
            self._aborts_waiting.append(request)

    def _send_abort(self, request: Request) -> None:
        self._aborts_free -= 1
        self.aborts += 1
        queue, cid = request.queue, request.cid
        queue.abort_sent(cid)
        done = partial(self._abort_done, queue, cid)
        self._admin.submit(BackgroundCommand(sqe_builders.abort(queue.qid, cid), self._admin.timeout, done))

    def _abort_done(self, queue: Queue, cid: int, result: int | None, status: int) -> None:
        self._aborts_free += 1
        queue.abort_over(cid)
        if result is None:
            self._aborts_waiting.clear()
        while self._aborts_waiting and self._aborts_free:
            request = self._aborts_waiting.popleft()
            if request.cid >= 0:
                self._send_abort(request)
