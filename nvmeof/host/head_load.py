"""A load on a namespace over several paths: as :mod:`nvmeof.host.load`, through the namespace's head.

Every command takes the path that the I/O policy chooses, and survives its failure, as it does for other users of the
namespace; futures and tasks are left out.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from array import array
from collections.abc import Callable
from itertools import cycle

from nvmeof.errors import NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.load import ADDRESSES, Figures
from nvmeof.host.multipath.head import NamespaceHead
from nvmeof.host.multipath.requests import HeadRequest
from nvmeof.host.namespace import Namespace


class HeadLoad:
    """``depth`` requests on ``namespace``, each sent again as soon as it completes, until :meth:`stop`.

    Used as :class:`nvmeof.host.load.Load` is; ``namespace`` is one of a subsystem, and identified.
    """

    def __init__(self, namespace: Namespace, pattern: str, size_bytes: int, depth: int) -> None:
        head = namespace.port
        assert isinstance(head, NamespaceHead)
        self.head = head
        self.latencies_ns = array("q")
        self.running = True
        self.error: NvmeofError | None = None
        """The error of the command that ended the load."""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the load has ended and no request is under way."""
        self.active = 0
        self.next_sqe = _sqes(namespace, pattern, size_bytes // namespace.block_bytes)
        self._depth = depth
        self._size_bytes = size_bytes
        self._write = pattern.endswith("write")
        self._opened = 0.0

    def start(self) -> None:
        """Submit the first requests."""
        data = os.urandom(self._size_bytes) if self._write else None
        for _ in range(self._depth):
            into = None if self._write else memoryview(bytearray(self._size_bytes))
            self.active += 1
            LoadRequest(self, data, into).send()
            if not self.running:
                break

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

    def over(self, error: NvmeofError | None) -> None:
        """Count one request as ended."""
        self.active -= 1
        if error is not None:
            self.error = self.error or error
            self.running = False
        self._finish()

    def _finish(self) -> None:
        if not self.active and not self.running and not self.finished.done():
            self.finished.set_result(None)


class LoadRequest(HeadRequest):
    """One of the requests that are always under way."""

    __slots__ = ("load", "sent_ns")

    def __init__(self, load: HeadLoad, data_out: bytes | None, data_in: memoryview | None) -> None:
        super().__init__(load.head, b"", data_out, data_in)
        self.load = load
        self.sent_ns = 0

    def send(self) -> None:
        """Submit with the next address, as a new command."""
        self.sqe = self.load.next_sqe()
        self.retries = 0
        self.repeated = False
        self.sent_ns = time.perf_counter_ns()
        self.carrier.submit(self)

    def ended(self, result: int, error: NvmeofError | None) -> None:
        load = self.load
        load.latencies_ns.append(time.perf_counter_ns() - self.sent_ns)
        if error is None and load.running:
            self.send()
        else:
            load.over(error)


def _sqes(namespace: Namespace, pattern: str, blocks: int) -> Callable[[], bytes]:
    """Return a function that gives one command after the other."""
    slots = namespace.size_blocks // blocks
    if pattern.startswith("rand"):
        starts = [random.randrange(slots) * blocks for _ in range(min(ADDRESSES, slots * 4))]
    else:
        starts = [slot * blocks for slot in range(min(ADDRESSES, slots))]
    make = sqe_builders.write if pattern.endswith("write") else sqe_builders.read
    return cycle([make(namespace.nsid, start, blocks) for start in starts]).__next__
