"""A namespace over all of its paths: the :class:`~nvmeof.host.io_port.IoPort` that joins them.

A command goes over the path that the I/O policy chooses. Where no path can be used but one may come back, the command
waits on the requeue list; where none can come back, the command fails with :class:`NoPathError`. A command that failed
on its path goes over another one, or is retried, by the rules of :mod:`nvmeof.host.multipath.disposition`; a command
whose connection was lost, by those of :mod:`nvmeof.host.replay`.

Source: nvme_ns_head_submit_bio, nvme_available_path, nvme_failover_req and nvme_requeue_work of
drivers/nvme/host/multipath.c (Linux 6.12).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from math import inf
from typing import Protocol, TypeVar, cast

from nvmeof.errors import CommandNotExecuted, ConnectionLost, NvmeofError, TransportError
from nvmeof.host.batch import IoBatch
from nvmeof.host.io_port import NvmLimits
from nvmeof.host.multipath import disposition
from nvmeof.host.multipath.batches import BatchPart, run_head_batch
from nvmeof.host.multipath.cutting import Cut, can_be_cut
from nvmeof.host.multipath.disposition import Disposition
from nvmeof.host.multipath.facts import HeadFacts
from nvmeof.host.multipath.identity import NamespaceView
from nvmeof.host.multipath.iopolicy import IOPOLICIES, IoPolicy, best
from nvmeof.host.multipath.member import Member, NamespacePath
from nvmeof.host.multipath.requests import HeadCommand, HeadFused, HeadRequest, RequestPath, give_up, run_transfer
from nvmeof.host.replay import UnsettledWrites, changed_blocks, replay_at
from nvmeof.host.requests import DEFAULT_OPTIONS, CommandPart, RequestOptions, error_of
from nvmeof.host.results import IdentifyNamespace
from nvmeof.runtime import Future, Runtime, TimerHandle
from nvmeof.wire import Buffer

log = logging.getLogger("nvmeof.host")

T = TypeVar("T")


class NoPathError(ConnectionLost):
    """There is no path to the namespace, and none that may come back."""


class Owner(Protocol):
    """The Protocol of a head's subsystem."""

    subnqn: str
    runtime: Runtime

    @property
    def iopolicy(self) -> str:
        """Name of the I/O policy."""
        ...

    @property
    def none_left(self) -> str:
        """The reason why no path is left, for a message."""
        ...

    async def on_any_path(self, head: NamespaceHead, call: Callable[[Member], Awaitable[T]]) -> T:
        """Run ``call`` over any path of ``head``: over another one where a connection is lost."""
        ...


class NamespaceHead:
    """The I/O of one namespace over its paths. ``view``: the namespace as it was last seen."""

    def __init__(self, owner: Owner, view: NamespaceView, *, single: bool = False) -> None:
        self.owner = owner
        self.view = view
        self.single = single
        """Native multipath is off, or the NSID belongs to one controller alone: there is never a second path."""
        self.paths: list[NamespacePath] = []
        """In the order in which they were connected."""
        self.closed: NvmeofError | None = None
        self.requeued = 0
        """Commands that have waited for a path (Linux 7.2: io_requeue_no_usable_path_count)."""
        self.failed = 0
        """Commands that failed since no path was left (io_fail_no_available_path_count)."""
        self.max_transfer_bytes = 0
        """The most bytes that a command may transfer over every path, those that are being reconnected included."""
        self.on_limits: list[Callable[[], object]] = []
        """Called when `max_transfer_bytes` has changed."""
        self._runtime = owner.runtime
        self._policy: IoPolicy[NamespacePath]
        self._requeue: deque[HeadRequest] = deque()
        self._idle_parts: list[BatchPart] = []
        self._delayed: dict[HeadRequest, TimerHandle] = {}
        self._unsettled = UnsettledWrites()
        self._expiry: TimerHandle | None = None
        self._held: deque[HeadRequest] = deque()
        self._kick: TimerHandle | None = None
        self.set_policy()

    def __repr__(self) -> str:
        return f"<NamespaceHead {self.nsid} of {self.subnqn}: {len(self.paths)} paths>"

    @property
    def nsid(self) -> int:
        """The namespace's NSID."""
        return self.view.nsid

    @property
    def subnqn(self) -> str:
        """NQN of the subsystem, for messages."""
        return self.owner.subnqn

    def update_limits(self) -> None:
        """Determine again how much a command may transfer, since a path has come, gone or been connected again."""
        limit = min((path.member.max_transfer_bytes for path in self.paths), default=self.max_transfer_bytes)
        if limit != self.max_transfer_bytes:
            self.max_transfer_bytes = limit
            for listener in self.on_limits:
                listener()

    @property
    def waiting(self) -> int:
        """Commands that wait for a path, or for the time of their retry."""
        return len(self._requeue) + len(self._delayed) + len(self._held)

    def describe(self) -> HeadFacts:
        """Return how many paths there are, and how commands fared without one."""
        return {
            "nsid": self.nsid,
            "paths": len(self.paths),
            "waiting": self.waiting,
            "requeued": self.requeued,
            "failed": self.failed,
        }

    # -- paths

    def set_policy(self) -> None:
        """Choose by the subsystem's policy from now on; the state of the policy before is dropped."""
        self._policy = cast("IoPolicy[NamespacePath]", IOPOLICIES[self.owner.iopolicy]())

    def add(self, path: NamespacePath) -> None:
        """Add a path, placed in the order of the subsystem's controllers."""
        self.paths.append(path)
        self.paths.sort(key=lambda each: each.member.number)
        self.update_limits()
        path.update()
        self.kick()

    def remove(self, path: NamespacePath) -> None:
        """Take a path out. Its commands end there, and go on over other paths."""
        if path in self.paths:
            self.paths.remove(path)
            self.update_limits()
        self._policy.forget(path)
        self.kick()

    def revalidate(self, view: NamespaceView) -> None:
        """Take over the namespace's size from the path that was identified last; paths of another size wait.

        nvme_mpath_revalidate_paths.
        """
        self.view = view
        for path in self.paths:
            path.ready = (path.view.size_blocks, path.view.block_bytes) == (view.size_blocks, view.block_bytes)
            path.update()
        self._policy.forget()
        self.kick()

    def improved(self, optimized: bool) -> None:
        """Note that a path has become usable, or a better one."""
        if optimized:
            self._policy.settled(self.paths)
        self.kick()

    @property
    def usable(self) -> bool:
        """Whether a command can be sent now."""
        return any(path.access for path in self.paths)

    @property
    def available(self) -> bool:
        """Whether a path can be used, or may come back: nvme_available_path."""
        return any(path.may_come_back for path in self.paths)

    # -- IoPort

    @property
    def runtime(self) -> Runtime:
        """The runtime of the subsystem."""
        return self._runtime

    async def io(
        self,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        """Send one I/O command over the best path; return DW0 | DW1 << 32 of its completion. Raises the command's error
        on its last path, :class:`OutcomeUnknown` for one that must not be sent twice and may have been executed,
        :class:`NoPathError` when no path is left.
        """
        return await self._run(HeadCommand(self, sqe, data_out, data_in, options), hold=options.hold)

    async def io_fused(self, halves: tuple[bytes, bytes], compare: Buffer, write: Buffer, *, hold: bool = True) -> None:
        """Send the halves of a fused operation over the best path; over another path only where the operation was not
        executed. Raises as :meth:`io` does.
        """
        await self._run(HeadFused(self, halves, compare, write), hold=hold)

    async def _run(self, command: HeadCommand, *, hold: bool) -> int:
        future: Future[int] = self._runtime.create_future()
        command.future = future
        self.submit(command)
        try:
            return await future
        except NvmeofError:
            raise
        except BaseException:
            await give_up(self._runtime, command, hold=hold)
            raise

    async def io_transfer(self, parts: Iterator[CommandPart], *, hold: bool = True) -> int:
        """Send many I/O commands as one operation, each over the path that is best then; return the bitwise or of all
        results.
        """
        return await run_transfer(self._runtime, self, parts, hold=hold)

    async def io_batch(self, batch: IoBatch) -> None:
        """Send Reads or Writes of one length as one operation, each over the path that is best then: those of one path
        leave together."""
        await run_head_batch(self._runtime, self, batch, self._idle_parts)

    async def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace (CNS 00h) over any path; all zero for a namespace that is not active."""
        return await self.owner.on_any_path(self, lambda member: member.commands.identify_namespace(nsid))

    async def nvm_limits(self) -> NvmLimits:
        """Return the limits that hold on every path; a path that is being reconnected counts with the limits last
        read.
        """
        limits = [await self.owner.on_any_path(self, lambda member: member.nvm_limits())]
        for path in list(self.paths):
            member = path.member
            try:
                known = await member.nvm_limits() if member.usable else member.last_limits
            except TransportError:
                known = member.last_limits
            if known is not None:
                limits.append(known)
        return NvmLimits.common(limits)

    async def execute_admin(
        self,
        sqe: bytes,
        /,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        """Send one admin command that may be repeated over any path; return DW0 | DW1 << 32 of its completion."""

        def call(member: Member) -> Awaitable[int]:
            return member.commands.admin(sqe, data_out=data_out, data_in=data_in, options=options)

        return await self.owner.on_any_path(self, call)

    # -- Carrier: the next step of a command

    def submit(self, request: HeadRequest, more: bool = False) -> None:
        """Send a request over the path that the policy chooses; without a path, queue the request or end it."""
        if self._unsettled and self._is_behind(request):
            self._held.append(request)
            return
        path = self._choose(request)
        if path is None:
            self._without_path(request)
            return
        if request.size_bytes > self.max_transfer_bytes:
            path = self._that_takes(request, path)
            if path is None:
                return
        try:
            path.send(request, more)
        except NvmeofError as error:
            self.lost(request, path, error)

    def submit_together(self, parts: list[BatchPart], batch: IoBatch) -> None:
        """Send each part of a batch over the path that the policy chooses for it, those of one path together."""
        if self._unsettled or parts[0].size_bytes > self.max_transfer_bytes:
            for part in parts:  # some may have to wait behind a write of unknown outcome, or to be cut
                self.submit(part)
            return
        choose, paths, size = self._policy.choose, self.paths, parts[0].size_bytes
        shares: dict[NamespacePath, list[BatchPart]] = {}
        for part in parts:
            path = choose(paths, size)
            if path is None:
                self._without_path(part)
                continue
            path.begin(part)
            share = shares.get(path)
            if share is None:
                shares[path] = [part]
            else:
                share.append(part)
        for path, share in shares.items():
            left, error = path.send_together(share, batch)
            if error is not None:
                for part in left:
                    self.lost(part, path, error)

    def _choose(self, request: HeadRequest) -> NamespacePath | None:
        """Return the path for a request: not the one where it has just failed, if there is another."""
        avoid = request.avoid
        if avoid is not None:
            request.avoid = None
            others = [path for path in self.paths if path is not avoid]
            path = self._policy.choose(others, request.size_bytes)
            if path is not None:
                return path
        return self._policy.choose(self.paths, request.size_bytes)

    def _that_takes(self, request: HeadRequest, path: NamespacePath) -> NamespacePath | None:
        """Return a path for a request that exceeds the limit of some path; None: it was cut, and its pieces are sent.

        A request that cannot be cut goes to ``path``, whose controller refuses it.
        """
        size = request.size_bytes
        if size <= path.member.max_transfer_bytes:
            return path
        other = best([each for each in self.paths if each.member.max_transfer_bytes >= size])
        if other is not None or not can_be_cut(request):
            return other or path
        cut = Cut(self, request, self.max_transfer_bytes, self.view.block_bytes)
        pieces = cut.pieces
        if request.repeated:
            # each piece takes over its part of what the request held back
            for piece in pieces:
                self._leave_unsettled(piece, request.quiesced_at)
            request.repeated = False
            self._unsettled.settle(request)
        for piece in pieces:
            self.submit(piece)
        return None

    def _without_path(self, request: HeadRequest) -> None:
        if self.closed is not None:
            request.give_up(self.closed)
        elif self.available:
            if not self._requeue:
                log.info("namespace %d of %s: no usable path, I/O waits", self.nsid, self.subnqn)
            self.requeued += 1
            self._requeue.append(request)
        else:
            self.failed += 1
            request.give_up(self._no_path())

    def _no_path(self) -> NoPathError:
        reasons = "; ".join(f"{path.member.name} is {path.why}" for path in self.paths) or self.owner.none_left
        return NoPathError(f"no path to namespace {self.nsid} of {self.subnqn} is left: {reasons}")

    def refused(self, request: HeadRequest, path: RequestPath, status: int, result: int) -> None:
        """End, retry, or fail over a request that was completed with an error."""
        assert isinstance(path, NamespacePath)
        path.figures.errors += 1
        error = error_of(request.blamed, status, result)
        if request.cancelled or request.aborted or self.closed is not None:
            request.give_up(error)
            return
        opcode = request.sqe[0]
        what = disposition.decide(status, opcode, retries=request.retries)
        if what is Disposition.FAILOVER and self.single:
            what = Disposition.RETRY if request.retries < disposition.MAX_RETRIES else Disposition.COMPLETE
        if what is Disposition.COMPLETE:
            request.give_up(error)
        elif what is Disposition.RETRY:
            request.retries += 1
            path.figures.retries += 1
            self._later(request, path.member.retry_delay(status), path)
        elif disposition.is_ana_error(status):
            path.ana_error()
            self._fail_over(request, path)
        else:
            request.retries += 1
            request.avoid = path
            self._fail_over(request, path)

    def lost(self, request: HeadRequest, path: RequestPath, error: NvmeofError) -> None:
        """Fail over a request of a lost path where that is safe, else end it."""
        assert isinstance(path, NamespacePath)
        path.update()
        if request.cancelled or self.closed is not None:
            if not isinstance(error, CommandNotExecuted):
                self._leave_unsettled(request, path.member.quiesced_at)
            request.give_up(self.closed or error)
        elif isinstance(error, CommandNotExecuted):
            self._fail_over(request, path)
        elif isinstance(error, TransportError):
            self._replay(request, path, error)
        else:
            request.give_up(error)  # a defect of ours: another path would fail the same way

    def _fail_over(self, request: HeadRequest, path: NamespacePath) -> None:
        """Requeue a request for the best path: nvme_failover_req."""
        path.figures.failovers += 1
        self._policy.forget(path)
        self._requeue.append(request)
        self.kick()

    def _replay(self, request: HeadRequest, path: NamespacePath, error: NvmeofError) -> None:
        """Send a lost request that may have been executed again, where and when the rules of replay allow it."""
        quiesced_at, now = path.member.quiesced_at, self._runtime.now()
        at = replay_at(request.sqe, error, quiesced_at, self.view.ids.csi)
        self._leave_unsettled(request, quiesced_at)
        if at is None:
            request.give_up(error)
            return
        path.figures.failovers += 1
        self._policy.forget(path)
        if at > now:
            self._later(request, at - now)
        else:
            self._requeue.append(request)
            self.kick()

    def _leave_unsettled(self, request: HeadRequest, quiesced_at: float) -> None:
        """Hold back writes behind a write of which a copy may yet be executed, until ``quiesced_at`` at most."""
        if request.extent is None:
            request.extent = changed_blocks(request.sqe, request.data_out)
        if request.extent is not None:
            request.repeated, request.quiesced_at = True, max(request.quiesced_at, quiesced_at)
            self._unsettled.add(request, request.extent)

    def outlived(self, request: HeadRequest) -> None:
        """Note an outstanding request whose caller was cancelled: requests that overlap it wait for its completion."""
        self._leave_unsettled(request, request.quiesced_at)

    def abandoned(self, request: HeadRequest) -> None:
        """Note the end of a request of which an old copy may still be executed: overlapping writes wait until it
        cannot.
        """
        if request.extent is not None and request.quiesced_at > self._runtime.now():
            self._unsettled.add(request, request.extent, request.quiesced_at)
            self._watch_unsettled()
        elif self._unsettled.settle(request):
            self._release_held()

    def _watch_unsettled(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        at = self._unsettled.next_expiry
        if at != inf:
            self._expiry = self._runtime.call_later(max(at - self._runtime.now(), 0.0), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        if self._unsettled.expire(self._runtime.now()):
            self._release_held()
        self._watch_unsettled()

    def _is_behind(self, request: HeadRequest) -> bool:
        """Return whether a write overlaps one that is being sent again, or whose old copy may still be executed."""
        return self._unsettled.blocks(request.extent or changed_blocks(request.sqe, request.data_out), request)

    def done(self, request: HeadRequest) -> None:
        """Release what was held back behind a replayed request, which has ended."""
        if self._unsettled.settle(request):
            self._release_held()

    def _release_held(self) -> None:
        self._requeue.extend(self._held)
        self._held.clear()
        self.kick()

    def withdraw(self, request: HeadRequest) -> bool:
        """Take back a request that is on no path; False where it is on one."""
        timer = self._delayed.pop(request, None)
        if timer is not None:
            timer.cancel()
        elif request in self._requeue:
            self._requeue.remove(request)
        elif request in self._held:
            self._held.remove(request)
        elif request.path is not None:
            return False
        return True

    def close(self, error: NvmeofError) -> None:
        """End the head: waiting commands and all further ones fail with ``error``."""
        self.closed = error
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        for request in [*self._requeue, *self._delayed, *self._held]:
            if self.withdraw(request):
                request.give_up(error)

    # -- the requeue list

    def kick(self) -> None:
        """Send waiting requests in the next turn, since a path has come, gone or changed."""
        if self._requeue and self._kick is None:
            self._kick = self._runtime.call_later(0.0, self._run_requeue)

    def _later(self, request: HeadRequest, seconds: float, path: NamespacePath | None = None) -> None:
        """Send a request after ``seconds``: over ``path`` if it can be used then, else over the best path."""
        self._delayed[request] = self._runtime.call_later(seconds, lambda: self._again(request, path))

    def _again(self, request: HeadRequest, path: NamespacePath | None) -> None:
        if self._delayed.pop(request, None) is None:
            return
        fits = path is not None and request.size_bytes <= path.member.max_transfer_bytes
        if path is not None and path.access and fits and path in self.paths:
            try:
                path.send(request, False)
            except NvmeofError as error:
                self.lost(request, path, error)
        else:
            self.submit(request)

    def _run_requeue(self) -> None:
        self._kick = None
        waiting, self._requeue = self._requeue, deque()
        while waiting:
            self.submit(waiting.popleft())
