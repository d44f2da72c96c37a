"""A load on a namespace over several paths: as :mod:`nvmeof.host.load`, through the namespace's head.

Every command takes the path that the I/O policy chooses, and survives its failure, as it does for other users of the
namespace; futures and tasks are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import cycle

from nvmeof.errors import NvmeofError
from nvmeof.host import sqe_builders
from nvmeof.host.load import MeasuredLoad, first_blocks
from nvmeof.host.multipath.head import NamespaceHead
from nvmeof.host.multipath.requests import HeadRequest
from nvmeof.host.namespace import Namespace


class HeadLoad(MeasuredLoad):
    """``depth`` requests on ``namespace``, each sent again as soon as it completes, until :meth:`stop`.

    Used as :class:`nvmeof.host.load.Load` is; ``namespace`` is one of a subsystem, and identified.
    """

    def __init__(self, namespace: Namespace, pattern: str, size_bytes: int, depth: int) -> None:
        head = namespace.port
        assert isinstance(head, NamespaceHead)
        super().__init__(size_bytes)
        self.head = head
        self.next_sqe = _sqes(namespace, pattern, size_bytes // namespace.block_bytes)
        self._depth = depth
        self._write = pattern.endswith("write")

    def start(self) -> None:
        """Submit the first requests."""
        data = os.urandom(self._size_bytes) if self._write else None
        for _ in range(self._depth):
            into = None if self._write else memoryview(bytearray(self._size_bytes))
            self.active += 1
            LoadRequest(self, data, into).send()
            if not self.running:
                break


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
            load.ended(error)


def _sqes(namespace: Namespace, pattern: str, blocks: int) -> Callable[[], bytes]:
    """Return a function that gives one command after the other."""
    make = sqe_builders.write if pattern.endswith("write") else sqe_builders.read
    return cycle([make(namespace.nsid, start, blocks) for start in first_blocks(namespace, pattern, blocks)]).__next__
