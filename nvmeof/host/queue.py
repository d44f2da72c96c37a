"""The host's I/O queue contract: the level that the Linux series "NVMeTCP Offload ULP" cuts at.

The controller above gives whole commands to a :class:`QueueDevice` and gets whole completions back; connections, PDUs,
digests and sockets are the device's affair. The software device (:mod:`nvmeof.host.socket_queue`) is one of them; an
offload engine, or a test's in-memory controller, is another. The eight operations and the device's limits carry the
series' names:

====================  ================================================================================================
``claim_dev``         can this device reach that address? The first registered device that says yes is used
``setup_ctrl``        a controller is about to be created on the device
``release_ctrl``      it is gone, after all its queues
``create_queue``      connect, and do the transport's handshake (ICReq, ICResp); Fabrics Connect comes as a request
``send_req``          take one command; ``more`` says that another follows at once, so that a doorbell may wait
                      (``send_batch``, optional: several that differ in CID, SLBA and buffer alone)
``poll_queue``        reap completions now, without waiting for an event
``drain_queue``       stop: afterwards this queue delivers no completion, and touches no buffer
``destroy_queue``     free it
====================  ================================================================================================

Upcalls: :meth:`Request.done` with ``(result, status)``, exactly once per request unless the queue is drained first (or
:meth:`Queue.complete` for several, :meth:`Queue.complete_good` for several that are alike), and
:meth:`Queue.report_err`. A request's buffers belong to the device from ``send_req`` until one of these two ends, or
until a device that can do so gives them back early (``give_back``, optional: the caller was cancelled).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol, cast

from nvmeof.errors import (
    CommandNotExecuted,
    ConnectionLost,
    LocalProtocolError,
    NvmeofError,
    OutcomeUnknown,
    TransportError,
)
from nvmeof.host.buffers import DeviceBuffer
from nvmeof.host.facts import QueueFacts
from nvmeof.host.options import ConnectOptions
from nvmeof.host.tracing import CommandTrace
from nvmeof.wire import Buffer

_group_of: Callable[[object], Group | None] = attrgetter("group")


class Group(Protocol):
    """Several requests with one owner."""

    def completed_together(self, requests: list[Request]) -> None:
        """These have completed without an error; a result other than 0 is not told."""
        ...


class Request:
    """One command on its way: 64 bytes of SQE and at most one data buffer.

    CID, PSDT and SGL1 of ``sqe`` are filled in by the device. ``data_out`` goes to the controller; ``data_in`` is
    where the controller's data is to land. A subclass says in :meth:`completed` and :meth:`failed` what comes next.
    """

    __slots__ = ("aborted", "cid", "data_in", "data_out", "epoch", "priority", "queue", "sqe", "timeout")

    queue: Queue
    group: Group | None = None
    """Called, in place of `completed`, for all its requests that have succeeded together; None: no group."""
    second: Request | None = None
    """Of the first half of a fused operation the other half, which leaves right behind it."""

    def __init__(self, sqe: bytes, data_out: Buffer | None = None, data_in: memoryview | None = None) -> None:
        self.sqe = sqe
        self.data_out = data_out
        self.data_in = data_in
        self.cid = -1
        self.priority = False
        self.aborted = False
        self.epoch = 0.0
        self.timeout = -1.0
        """Seconds, 0 for never (an asynchronous event request); negative: the queue's own."""

    def done(self, result: int, status: int) -> None:
        """Complete the request; upcall of the device. ``result``: DW0 | DW1 << 32. ``status``: the CQE's status word, 0
        for success."""
        self.queue._finished(self, status)
        self.completed(result, status)

    def completed(self, result: int, status: int) -> None:
        """Handle the completion; a ``status`` below 2 means success (bit 0 is the phase: no meaning over fabrics)."""
        raise NotImplementedError

    def failed(self, error: NvmeofError) -> None:
        """Fail the request: its queue is gone, or it was withdrawn before it was sent. The buffers are the caller's
        again."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class CommandSeries:
    """Reads or Writes of one length, as :meth:`QueueDevice.send_batch` gets them beside their requests.

    ``sqe``: that of all of them; its SLBA counts for nothing. ``buffers``: the data of each, equally long. ``whole``:
    one view of all data, where the buffers are its pieces, one behind the other.
    """

    sqe: bytes
    slbas: Sequence[int]
    buffers: Sequence[memoryview]
    write: bool = False
    whole: memoryview | None = None


class QueueLink(Protocol):
    """A device's own object for one queue, such as its connection: ``create_queue`` puts it into ``queue.private``."""

    def send(self, request: Request, more: bool) -> None:
        """Take one command, as ``send_req``."""
        ...

    def stop(self) -> None:
        """Stop, as ``drain_queue``: no upcall follows."""
        ...

    def close(self) -> None:
        """Free the queue's resources, as ``destroy_queue``."""
        ...


class Queue:
    """One queue pair as the controller sees it: command identifiers, what is outstanding, and what has to wait.

    ``entries`` are the queue's SQ entries, of which one always stays free. ``reserved`` of the remaining identifiers
    are reserved for priority requests (keep-alive, Abort). ``private`` is the device's own; nothing else looks into it.
    """

    __slots__ = (
        "_backlog",
        "_for_fused",
        "_free",
        "_named",
        "_reserved",
        "_reserved_from",
        "_urgent",
        "capsule_bytes",
        "completed",
        "device",
        "entries",
        "epoch",
        "error",
        "flow_control",
        "on_error",
        "options",
        "private",
        "qid",
        "requests",
        "timeout",
        "trace",
    )

    def __init__(
        self,
        device: QueueDevice,
        options: ConnectOptions,
        qid: int,
        entries: int,
        *,
        reserved: int = 0,
        timeout: float = 30.0,
        capsule_bytes: int = 64 + 8192,
    ) -> None:
        self.device = device
        self.options = options
        self.qid = qid
        self.entries = entries
        self.flow_control = not options.disable_sqflow
        self.capsule_bytes = capsule_bytes
        """Largest command capsule that the controller takes: IOCCSZ * 16; 8 KiB of data on an admin queue."""
        self.timeout = timeout
        self.epoch = 0.0
        """The time of the last look at the clock: stamps requests without reading it for each."""
        self.completed = 0
        self.error: NvmeofError | None = None
        self.on_error: Callable[[Queue, NvmeofError], None] | None = None
        self.private: QueueLink | None = None
        self.trace: CommandTrace | None = None
        """The trace that events are reported to; None: no trace."""
        self.requests: dict[int, Request] = {}
        """Outstanding requests by CID; the device takes them from here."""
        # first in, first out: a CID rests as long as possible, so that a duplicate completion finds no command
        self._reserved_from = entries - 1 - reserved
        self._free: deque[int] = deque(range(self._reserved_from))
        self._reserved: deque[int] = deque(range(self._reserved_from, entries - 1))
        self._named: dict[int, bool] = {}  # CIDs that an Abort under way names, and whether they are free but for it
        self._for_fused: int | None = None  # an identifier for the pair at the head of the backlog, which wants two
        self._backlog: deque[Request] = deque()
        self._urgent: deque[Request] = deque()

    def __repr__(self) -> str:
        return f"<Queue {self.qid}: {len(self.requests)} of {self.entries - 1} outstanding>"

    @property
    def waiting(self) -> int:
        """Requests that wait for a command identifier."""
        return len(self._backlog) + len(self._urgent)

    @property
    def room(self) -> int:
        """How many requests would go out at once."""
        return len(self._free)

    @property
    def load(self) -> int:
        """Requests outstanding and waiting."""
        return len(self.requests) + len(self._backlog)

    def submit(self, request: Request, more: bool = False) -> None:
        """Send a request, or queue it until an identifier is free.

        Raises the error of a queue that is gone, as :class:`CommandNotExecuted` where that was a loss.
        """
        if self.error is not None:
            raise not_executed(self.error)
        request.queue = self
        if request.priority:
            identifiers, backlog = self._reserved or self._free, self._urgent
        else:
            identifiers, backlog = self._free, self._backlog
        if not identifiers:
            backlog.append(request)
            return
        self._send(request, identifiers.popleft(), more)

    def submit_batch(self, batch: CommandSeries, requests: Sequence[Request]) -> None:
        """Send at most :attr:`room` requests at once, which are ``batch``. Raises as :meth:`submit` does."""
        if self.error is not None:
            raise not_executed(self.error)
        take, epoch = self._free.popleft, self.epoch
        cids = [take() for _ in requests]
        for cid, request in zip(cids, requests, strict=True):
            request.queue = self
            request.cid = cid
            request.epoch = epoch
        self.requests.update(zip(cids, requests, strict=True))
        if self.trace is not None:
            for cid, request in zip(cids, requests, strict=True):
                self.trace.sent(cid, request.sqe, request.data_out, request.data_in)
        self.device.send_batch(self, batch, cids, requests)

    def submit_fused(self, first: Request) -> None:
        """Send the halves of a fused operation, ``first`` and ``first.second``, one right behind the other, or queue
        them until two identifiers are free. Raises as :meth:`submit` does, and :class:`LocalProtocolError` for a queue
        that never has two.
        """
        if self.error is not None:
            raise not_executed(self.error)
        second = first.second
        assert second is not None
        if self._reserved_from < 2:
            raise LocalProtocolError(
                f"a queue of {self.entries} entries takes one command at a time, and a fused operation has two: "
                "connect with a larger queue_size"
            )
        first.queue = second.queue = self
        if self._backlog or len(self._free) < 2:
            self._backlog.append(first)
        else:
            self._send_fused(first, self._free.popleft(), self._free.popleft())

    def _send_fused(self, first: Request, cid: int, second_cid: int) -> None:
        assert first.second is not None
        self._send(first, cid, True)
        self._send(first.second, second_cid, False)

    def _send(self, request: Request, cid: int, more: bool) -> None:
        request.cid = cid
        request.epoch = self.epoch
        self.requests[cid] = request
        if self.trace is not None:
            self.trace.sent(cid, request.sqe, request.data_out, request.data_in)
        self.device.send_req(request, more)

    def _finished(self, request: Request, status: int) -> None:
        cid = request.cid
        if self.requests.pop(cid, None) is None:
            raise LocalProtocolError(f"a request on queue {self.qid} was completed twice")
        request.cid = -1
        self.completed += 1
        if self.trace is not None:
            self.trace.completed(cid, request.sqe, request.data_out, request.data_in, status)
        if cid in self._named:
            self._named[cid] = True
        else:
            self._reuse(cid)

    def complete(self, entries: Sequence[tuple[int, int, int, int]]) -> None:
        """Complete several requests at once; upcall of the device: (CID, status, DW0, DW1), as in :meth:`Request.done`.

        An unknown CID ends it: an earlier completion has torn the queue down.
        """
        requests, free = self.requests, self._free
        named, urgent, backlog = self._named, self._urgent, self._backlog
        reserved_from, traced, count = self._reserved_from, self.trace is not None, 0
        owner: Group | None = None
        together: list[Request] = []
        try:
            for cid, status, dw0, dw1 in entries:
                request = requests.get(cid)
                if request is None:
                    break
                if traced or named or urgent or backlog or cid >= reserved_from:
                    request.done(dw0 | dw1 << 32, status)
                    continue
                del requests[cid]
                request.cid = -1
                count += 1
                free.append(cid)
                group = request.group
                if group is None or status >= 2:
                    request.completed(dw0 | dw1 << 32, status)
                    continue
                if group is not owner:
                    if owner is not None:
                        owner.completed_together(together)
                    owner, together = group, []
                together.append(request)
        finally:
            self.completed += count
            if owner is not None:
                owner.completed_together(together)

    def complete_good(self, cids: Sequence[int]) -> None:
        """Complete requests that have succeeded with result 0; upcall of the device, as :meth:`complete`."""
        requests = self.requests
        found = list(map(requests.get, cids))
        if (
            None in found  # an earlier completion has torn the queue down
            or self.trace is not None
            or self._named
            or self._urgent
            or self._backlog
            or max(cids) >= self._reserved_from
            or len(groups := set(map(_group_of, found))) != 1
            or (group := groups.pop()) is None
        ):
            self.complete([(cid, 0, 0, 0) for cid in cids])
            return
        together = cast(list[Request], found)
        for cid, request in zip(cids, together, strict=True):
            del requests[cid]
            request.cid = -1
        self._free.extend(cids)
        self.completed += len(cids)
        group.completed_together(together)

    def _reuse(self, cid: int) -> None:
        if self._urgent:
            self._send(self._urgent.popleft(), cid, False)
        elif cid >= self._reserved_from:
            self._reserved.append(cid)
        elif self._backlog:
            request = self._backlog[0]
            if request.second is None:
                self._backlog.popleft()
                self._send(request, cid, False)
            elif self._for_fused is None:
                self._for_fused = cid
            else:
                other, self._for_fused = self._for_fused, None
                self._backlog.popleft()
                self._send_fused(request, other, cid)
        else:
            self._free.append(cid)

    def abort_sent(self, cid: int) -> None:
        """Reserve an identifier that an Abort names until `abort_over`: another command with it would be aborted."""
        self._named[cid] = False

    def abort_over(self, cid: int) -> None:
        """Release the identifier of an Abort that has completed."""
        if self._named.pop(cid, False) and self.error is None:
            self._reuse(cid)

    def withdraw(self, request: Request) -> bool:
        """Take back a request that has not gone out yet; False when it has."""
        for backlog in (self._backlog, self._urgent):
            if request in backlog:
                backlog.remove(request)
                if request.second is not None and self._for_fused is not None:
                    cid, self._for_fused = self._for_fused, None
                    self._reuse(cid)
                return True
        return False

    def expired(self, now: float) -> Iterator[Request]:
        """Yield outstanding requests whose time is up, oldest first."""
        for request in list(self.requests.values()):
            timeout = self.timeout if request.timeout < 0 else request.timeout
            if timeout and now - request.epoch >= timeout:
                yield request

    def report_err(self, error: NvmeofError) -> None:
        """Report a broken queue; upcall of the device. The controller starts its recovery; later reports are
        dropped."""
        if self.error is None and self.on_error is not None:
            self.on_error(self, error)

    def fail(self, error: NvmeofError) -> None:
        """Drain the queue, and fail all outstanding and waiting requests with ``error``, later ones too.

        Where ``error`` is the loss of a connection, requests that were sent fail with :class:`OutcomeUnknown`, others
        with :class:`CommandNotExecuted`.
        """
        if self.error is not None:
            return
        self.error = error
        self.device.drain_queue(self)
        if self.trace is not None:
            self.trace.ended(str(error))
        sent = list(self.requests.values())
        waiting = [*self._urgent, *self._backlog]
        self.requests.clear()
        self._urgent.clear()
        self._backlog.clear()
        for orphans, failure in ((sent, outcome_unknown(error)), (waiting, not_executed(error))):
            for request in orphans:
                request.cid = -1
                request.failed(failure)


def not_executed(error: NvmeofError) -> NvmeofError:
    """Make the error of a command that was not sent when its queue ended with ``error``."""
    return _as_outcome(error, CommandNotExecuted, "the command was not sent")


def outcome_unknown(error: NvmeofError) -> NvmeofError:
    """Make the error of a command that was sent, and had no completion when its queue ended with ``error``."""
    return _as_outcome(error, OutcomeUnknown, "whether the command was executed is not known")


def _as_outcome(error: NvmeofError, kind: type[ConnectionLost], remark: str) -> NvmeofError:
    """Convert ``error`` to a ``kind``; one that is no loss (a defect, an orderly end of a queue) stays as it is."""
    if not isinstance(error, TransportError) or isinstance(error, CommandNotExecuted | OutcomeUnknown):
        return error
    failure = kind(f"{error}; {remark}")
    failure.__cause__ = error
    return failure


class QueueDevice(ABC):
    """A device that carries NVMe commands to a controller: the operations are described in the module's docstring."""

    name: str
    required_opts: frozenset[str] = frozenset()
    """Options that must be given for this device."""
    allowed_opts: frozenset[str] = frozenset()
    """Options that it takes, beside :data:`nvmeof.host.device_registry.GENERIC_OPTS` and the required ones."""
    max_hw_sectors: int = 0
    """Largest transfer of one request in **bytes** (the kernel counts 512-byte sectors); 0 for no limit."""
    max_segments: int = 1
    """Separate buffers that one request may have; requests have one."""

    @abstractmethod
    def claim_dev(self, options: ConnectOptions) -> bool:
        """Return whether the device reaches that address over that transport.

        Where it raises :class:`NvmeofError` to say why it does not, other devices are asked all the same.
        """

    @abstractmethod
    async def setup_ctrl(self, options: ConnectOptions) -> None:
        """Prepare for a controller. Raises :class:`NvmeofError` when that cannot be."""

    @abstractmethod
    async def release_ctrl(self, options: ConnectOptions) -> None:
        """Free what ``setup_ctrl`` took; all queues are destroyed already."""

    @abstractmethod
    async def create_queue(self, queue: Queue) -> None:
        """Connect and shake hands within ``options.connect_timeout``. Raises :class:`TransportError` and its kin."""

    @abstractmethod
    def send_req(self, request: Request, more: bool) -> None:
        """Take ``request`` (its ``cid`` is set); errors come through ``report_err``. Must not call ``done`` at once."""

    def send_batch(self, queue: Queue, batch: CommandSeries, cids: Sequence[int], requests: Sequence[Request]) -> None:
        """Take several requests, which differ in CID, SLBA and buffer alone. A device may do it better than one by one.

        ``cids``: those of ``requests``, in their order.
        """
        last = len(requests) - 1
        for index, request in enumerate(requests):
            self.send_req(request, index < last)

    @abstractmethod
    def poll_queue(self, queue: Queue) -> int:
        """Reap completions; returns how many there were."""

    @abstractmethod
    def drain_queue(self, queue: Queue) -> None:
        """Stop the queue: after this there is no upcall, and no buffer of a request is read or written."""

    @abstractmethod
    def destroy_queue(self, queue: Queue) -> None:
        """Free the queue: drained before."""

    def give_back(self, request: Request) -> bool:
        """Let go of the buffers of an outstanding request, whose caller has been cancelled; True when that is done.

        The request itself goes on until ``done``. A device that cannot do it keeps the caller waiting until then.
        """
        return False

    def take_buffer(self, size_bytes: int) -> DeviceBuffer:
        """Return memory that this device reads and writes without a copy. Any device takes other memory too."""
        return DeviceBuffer(memoryview(bytearray(size_bytes)))

    def peer_address(self, queue: Queue) -> str | None:
        """Return the address that a queue is connected to, numeric and with its interface; None where the device has
        none."""
        return None

    def describe(self, queue: Queue) -> QueueFacts:
        """Return the present facts of the queue's connection, for people and JSON."""
        return {"transport": self.name}
