"""A load on a namespace: requests that are sent again as soon as they complete, and figures of what they did.

One step below :class:`nvmeof.host.namespace.Namespace`: the requests use the queues directly, so that the protocol and
the device are measured, not futures and tasks. What completes in one turn of the event loop is sent again in one batch.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import cast

from nvmeof.errors import NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.namespace import Namespace
from nvmeof.host.queue import CommandSeries, Queue, Request
from nvmeof.host.requests import error_of

PATTERNS = ("randread", "read", "randwrite", "write")
ADDRESSES = 65536
"""Start blocks that are drawn beforehand and then used in turn."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of the commands completed in a window of ``seconds``."""

    ios: int
    seconds: float
    block_bytes: int
    latencies_ns: Sequence[int]
    """Of all commands, ascending."""

    @property
    def iops(self) -> float:
        """Commands per second."""
        return self.ios / self.seconds

    @property
    def megabytes_per_second(self) -> float:
        """Payload in 10^6 bytes per second."""
        return self.ios * self.block_bytes / self.seconds / 1e6

    def latency_us(self, share: float) -> float:
        """Return the microseconds within which ``share`` of the commands completed; 1 for the slowest; 0 when there
        were none."""
        if not self.ios:
            return 0.0
        return self.latencies_ns[min(int(self.ios * share), self.ios - 1)] / 1000


class MeasuredLoad:
    """Requests that are sent again as they complete, as far as they are counted: what loads of every kind share."""

    def __init__(self, size_bytes: int) -> None:
        self.latencies_ns = array("q")
        self.running = True
        self.error: NvmeofError | None = None
        """The error of the command that ended the load."""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the load has ended and no request is under way."""
        self.active = 0
        self._size_bytes = size_bytes
        self._opened = 0.0

    def open_window(self) -> None:
        """Count from now on."""
        self.latencies_ns = array("q")
        self._opened = time.perf_counter()

    def close_window(self) -> Figures:
        """Return the figures of the commands completed since :meth:`open_window`; later ones are not counted."""
        seconds, latencies = time.perf_counter() - self._opened, self.latencies_ns
        self.latencies_ns = array("q")
        return Figures(len(latencies), seconds, self._size_bytes, sorted(latencies))

    def stop(self) -> None:
        """Send nothing more; ``finished`` is done when all have completed."""
        self.running = False
        self._finish()

    def ended(self, error: NvmeofError | None) -> None:
        """Count one request as ended."""
        self.active -= 1
        if error is not None:
            self.error = self.error or error
            self.running = False
        self._finish()

    def _finish(self) -> None:
        if not self.active and not self.running and not self.finished.done():
            self.finished.set_result(None)


class Load(MeasuredLoad):
    """``depth`` requests per queue on ``queues``, each sent again as soon as it completes, until :meth:`stop`.

    ::

        load = Load(namespace, controller.io_queues, "randread", 4096, depth=32)
        load.start()
        load.open_window()
        await asyncio.wait([load.finished], timeout=5)
        figures = load.close_window()
        load.stop()
        await load.finished

    ``pattern``: one of :data:`PATTERNS`. ``size_bytes``: of each command, a multiple of the block size. ``next_queue``:
    the queue for the next command, which is then sent by itself; by default a request stays on its queue (see
    :func:`round_robin`). ``ios``: ends by itself once so many commands have been sent.
    """

    def __init__(
        self,
        namespace: Namespace,
        queues: Sequence[Queue],
        pattern: str,
        size_bytes: int,
        depth: int,
        *,
        next_queue: Callable[[], Queue] | None = None,
        ios: int | None = None,
    ) -> None:
        super().__init__(size_bytes)
        self.next_queue = next_queue
        blocks = size_bytes // namespace.block_bytes
        self._slbas = cycle(first_blocks(namespace, pattern, blocks))
        self._write = pattern.endswith("write")
        make = sqe_builders.write if self._write else sqe_builders.read
        self._sqe = make(namespace.nsid, 0, blocks)
        self._make_sqe = partial(make, namespace.nsid, blocks=blocks)
        self._left = ios
        self.ready: list[LoadRequest] = []
        """Completed, and to be sent again in the next turn of the event loop."""
        self._loop = asyncio.get_running_loop()
        self._queues = list(queues)
        self._depth = depth
        self._lone = depth * len(queues) == 1

    def start(self, ramp_seconds: float = 0.0) -> None:
        """Submit the first requests, at once or spread over ``ramp_seconds``, so that TCP's windows can grow."""
        data = memoryview(os.urandom(self._size_bytes)) if self._write else None
        count = self._depth * len(self._queues)
        for index in range(count):
            queue = self._queues[index // self._depth]
            if ramp_seconds:
                self._loop.call_later(ramp_seconds * index / count, self._add, queue, data)
            else:
                self._add(queue, data)
        self._send_ready()

    def _add(self, queue: Queue, data: memoryview | None) -> None:
        if not self.running:
            return
        self.active += 1
        request = LoadRequest(self, queue, data, None if self._write else memoryview(bytearray(self._size_bytes)))
        self.again(request)

    def again(self, request: LoadRequest) -> None:
        """Send a request with the next address, or count it as over where the load has ended."""
        if self.next_queue is not None and self.running:
            self._send_one(request, self.next_queue())
        elif self._lone and self.running:  # nothing else will complete in this turn
            self._send_one(request, request.queue)
        else:
            if not self.ready:
                self._loop.call_soon(self._send_ready)
            self.ready.append(request)

    def completed_together(self, requests: list[Request]) -> None:
        """Note the latencies of commands that have succeeded, and send them again in the next turn of the loop."""
        now = time.perf_counter_ns()
        mine = cast(list[LoadRequest], requests)
        self.latencies_ns.extend([now - request.started_ns for request in mine])
        if not self.running:
            for _ in mine:
                self.ended(None)
            return
        if len(mine) == 1:
            self.again(mine[0])
            return
        if not self.ready:
            self._loop.call_soon(self._send_ready)
        self.ready += mine

    def _take(self, wanted: int) -> int:
        """Return how many of ``wanted`` commands may be sent: all, unless ``ios`` limits them."""
        if self._left is None:
            return wanted
        taken = min(wanted, self._left)
        self._left -= taken
        if not self._left:
            self.running = False
        return taken

    def _send_ready(self) -> None:
        ready, self.ready = self.ready, []
        several = len(self._queues) > 1
        while ready:
            queue, requests, ready = ready[0].queue, ready, []
            if several:
                ready = [each for each in requests if each.queue is not queue]
                requests = [each for each in requests if each.queue is queue]
            count = self._take(len(requests)) if self.running else 0
            self._send_batch(queue, requests[:count])
            for _ in requests[count:]:
                self.ended(None)

    def _send_batch(self, queue: Queue, requests: list[LoadRequest]) -> None:
        at_once = min(queue.room, len(requests))
        if at_once:
            slbas, now = list(islice(self._slbas, at_once)), time.perf_counter_ns()
            for request, slba in zip(requests, slbas, strict=False):
                request.slba = slba
                request.started_ns = now
            buffers = [request.buffer for request in requests[:at_once]]
            try:
                queue.submit_batch(CommandSeries(self._sqe, slbas, buffers, self._write), requests[:at_once])
            except NvmeofError as error:
                for _ in requests:
                    self.ended(error)
                return
        for request in requests[at_once:]:
            self._send_one(request, queue, counted=True)

    def _send_one(self, request: LoadRequest, queue: Queue, *, counted: bool = False) -> None:
        if not counted and not self._take(1):
            self.ended(None)
            return
        request.slba = next(self._slbas)
        request.started_ns = time.perf_counter_ns()
        try:
            queue.submit(request)
        except NvmeofError as error:
            self.ended(error)

    def sqe_of(self, slba: int) -> bytes:
        """Return the SQE of the load's command at ``slba``."""
        return self._make_sqe(slba)


class LoadRequest(Request):
    """One of the requests that are always under way."""

    __slots__ = ("buffer", "group", "load", "slba", "started_ns")

    def __init__(self, load: Load, queue: Queue, data_out: memoryview | None, data_in: memoryview | None) -> None:
        self.load = load
        self.group = load if load.next_queue is None else None
        self.slba = 0
        super().__init__(b"", data_out, data_in)
        self.queue = queue
        self.buffer: memoryview = data_in if data_out is None else data_out  # type: ignore[assignment]
        self.started_ns = 0

    @property
    def sqe(self) -> bytes:
        """The SQE, built on demand: commands that leave in a batch need none."""
        return self.load.sqe_of(self.slba)

    @sqe.setter
    def sqe(self, sqe: bytes) -> None:
        """The load knows the command."""

    def completed(self, result: int, status: int) -> None:
        load = self.load
        load.latencies_ns.append(time.perf_counter_ns() - self.started_ns)
        if status >= 2:
            load.ended(error_of(self, status, result))
        elif load.running:
            load.again(self)
        else:
            load.ended(None)

    def failed(self, error: NvmeofError) -> None:
        self.load.ended(error)


def round_robin(queues: Sequence[Queue]) -> Callable[[], Queue]:
    """Return a ``next_queue`` that takes turns over ``queues``, of several controllers too, as Linux's round-robin.

    A queue without room for a request is passed over while another has some.
    """
    order = list(queues)
    turn = -1

    def next_queue() -> Queue:
        nonlocal turn
        for _ in order:
            turn = (turn + 1) % len(order)
            if order[turn].room:
                break
        return order[turn]

    return next_queue


def first_blocks(namespace: Namespace, pattern: str, blocks: int) -> Sequence[int]:
    """Return the first blocks of a load's commands of ``blocks`` blocks, which are repeated in this order."""
    slots = namespace.size_blocks // blocks
    if pattern.startswith("rand"):
        return [random.randrange(slots) * blocks for _ in range(min(ADDRESSES, slots * 4))]
    return range(0, min(ADDRESSES, slots) * blocks, blocks)
