"""A load on a namespace: requests that are sent again as soon as they complete, and figures of what they did.

One step below :class:`nvmeof.host.namespace.Namespace`: the requests use the queues directly, so that the protocol and
the device are measured, not futures and tasks.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

from nvmeof.errors import NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.namespace import Namespace
from nvmeof.host.queue import Queue, Request
from nvmeof.host.requests import error_of

PATTERNS = ("randread", "read", "randwrite", "write")
ADDRESSES = 65536
"""Start blocks that are drawn beforehand and then used in turn."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What completed in a window of ``seconds``."""

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
        """Microseconds within which ``share`` of the commands completed; 1 for the slowest; 0 when there were none."""
        if not self.ios:
            return 0.0
        return self.latencies_ns[min(int(self.ios * share), self.ios - 1)] / 1000


class Load:
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
    the queue for the next command; by default a request stays on its queue (see :func:`round_robin`). ``next_sqe``, an
    attribute, gives the next command and may be replaced.
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
    ) -> None:
        self.latencies_ns = array("q")
        self.running = True
        self.error: NvmeofError | None = None
        """What a command failed with, which ended the load."""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the load has ended and no request is under way."""
        self.active = 0
        self.next_queue = next_queue
        self.next_sqe = _sqes(namespace, pattern, size_bytes // namespace.block_bytes)
        self._queues = list(queues)
        self._depth = depth
        self._size_bytes = size_bytes
        self._write = pattern.endswith("write")
        self._opened = 0.0

    def start(self, ramp_seconds: float = 0.0) -> None:
        """Submit the first requests, at once or spread over ``ramp_seconds``, so that TCP's windows can grow."""
        data = os.urandom(self._size_bytes) if self._write else None
        loop, count = asyncio.get_running_loop(), self._depth * len(self._queues)
        for index in range(count):
            queue = self._queues[index // self._depth]
            if ramp_seconds:
                loop.call_later(ramp_seconds * index / count, self._add, queue, data, False)
            else:
                self._add(queue, data, (index + 1) % self._depth != 0 and queue.room > 1)

    def _add(self, queue: Queue, data: bytes | None, more: bool) -> None:
        if not self.running:
            return
        self.active += 1
        request = LoadRequest(self, data, None if self._write else memoryview(bytearray(self._size_bytes)))
        if self.next_queue is None:
            request.send(queue, more)
        else:
            request.send(self.next_queue())

    def open_window(self) -> None:
        """Count from now on."""
        self.latencies_ns = array("q")
        self._opened = time.perf_counter()

    def close_window(self) -> Figures:
        """Return the figures of what completed since :meth:`open_window`; what completes later counts no more."""
        seconds, latencies = time.perf_counter() - self._opened, self.latencies_ns
        self.latencies_ns = array("q")
        return Figures(len(latencies), seconds, self._size_bytes, sorted(latencies))

    def stop(self) -> None:
        """Send nothing more; ``finished`` is done when all have completed."""
        self.running = False
        self._finish()

    def ended(self, error: NvmeofError | None) -> None:
        """Count one request as over for good."""
        self.active -= 1
        if error is not None:
            self.error = self.error or error
            self.running = False
        self._finish()

    def _finish(self) -> None:
        if not self.active and not self.running and not self.finished.done():
            self.finished.set_result(None)


class LoadRequest(Request):
    """One of the requests that are always under way."""

    __slots__ = ("load", "started_ns")

    def __init__(self, load: Load, data_out: bytes | None, data_in: memoryview | None) -> None:
        super().__init__(b"", data_out, data_in)
        self.load = load
        self.started_ns = 0

    def send(self, queue: Queue, more: bool = False) -> None:
        """Submit with the next address."""
        self.sqe = self.load.next_sqe()
        self.started_ns = time.perf_counter_ns()
        try:
            queue.submit(self, more)
        except NvmeofError as error:
            self.load.ended(error)

    def completed(self, result: int, status: int) -> None:
        load = self.load
        load.latencies_ns.append(time.perf_counter_ns() - self.started_ns)
        if status >= 2:
            load.ended(error_of(self, status, result))
        elif load.running:
            next_queue = load.next_queue
            self.send(self.queue if next_queue is None else next_queue())
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


def _sqes(namespace: Namespace, pattern: str, blocks: int) -> Callable[[], bytes]:
    """Return a function that gives one command after the other."""
    slots = namespace.size_blocks // blocks
    if pattern.startswith("rand"):
        starts = [random.randrange(slots) * blocks for _ in range(min(ADDRESSES, slots * 4))]
    else:
        starts = [slot * blocks for slot in range(min(ADDRESSES, slots))]
    make = sqe_builders.write if pattern.endswith("write") else sqe_builders.read
    return cycle([make(namespace.nsid, start, blocks) for start in starts]).__next__
