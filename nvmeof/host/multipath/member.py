"""One controller of a subsystem and the namespaces through it, across the controller's associations.

A :class:`Member` is what multipath adds to a path of :mod:`nvmeof.host.path`: the ANA states that the controller
reports, outstanding commands and throughput. A :class:`NamespacePath` is a namespace through that controller (Linux:
struct nvme_ns, the hidden nvmeXcYnZ); the head of the namespace has one for each of its paths.

Must not know which path a policy chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from nvmeof.errors import CommandNotExecuted, NvmeofError
from nvmeof.host.admin_commands import AdminCommands
from nvmeof.host.batch import IoBatch
from nvmeof.host.controller import Controller
from nvmeof.host.io_port import NvmLimits
from nvmeof.host.multipath.ana import AnaFollower
from nvmeof.host.multipath.batches import BatchPart
from nvmeof.host.multipath.disposition import retry_delay
from nvmeof.host.multipath.facts import MemberFacts, NamespacePathFacts
from nvmeof.host.multipath.identity import NamespaceView
from nvmeof.host.multipath.iopolicy import NON_OPTIMIZED, OPTIMIZED, UNKNOWN_RATE, UNUSABLE
from nvmeof.host.multipath.requests import HeadRequest
from nvmeof.host.path import Path
from nvmeof.host.queue import Queue, Request
from nvmeof.host.results import AnaLog, IdentifyController
from nvmeof.runtime import Runtime
from nvmeof.spec.enums import AnaState

RATE_SHARE: Final = 0.125
"""Weight of one command in the estimate of a path's throughput."""
RATE_STALE_SECONDS: Final = 1.0
"""An estimate that no command has confirmed for so long is dropped: the path is tried again."""
FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 2.0
"""Bounds of the pause before the ANA log is read again, where it did not explain an ANA error."""
_ACCESS: Final = {AnaState.OPTIMIZED: OPTIMIZED, AnaState.NON_OPTIMIZED: NON_OPTIMIZED}


@dataclass(slots=True)
class PathFigures:
    """The traffic of a path. ``bytes``: data of the commands that succeeded."""

    ios: int = 0
    bytes: int = 0
    errors: int = 0
    """Commands completed with another status than success."""
    retries: int = 0
    """Commands sent again on the same path."""
    failovers: int = 0
    """Commands that went from this path to another one."""

    def add(self, other: PathFigures) -> None:
        """Add another path's figures to these."""
        self.ios += other.ios
        self.bytes += other.bytes
        self.errors += other.errors
        self.retries += other.retries
        self.failovers += other.failovers


class Member:
    """A controller of a subsystem. ``number``: of the controller, in the order in which controllers were added."""

    def __init__(self, path: Path[Controller], number: int, runtime: Runtime) -> None:
        options = path.options
        self.path = path
        self.number = number
        self.name = f"{options.transport} {options.traddr}:{options.trsvcid}"
        self.runtime = runtime
        self.controller: Controller | None = None
        """The association whose controller was checked, and its namespaces joined; None before the first."""
        self.info: IdentifyController | None = None
        self.ana: AnaFollower | None = None
        self.ana_error: NvmeofError | None = None
        """The error of the last ANA log, where it could not be used."""
        self.namespaces: dict[int, NamespacePath] = {}
        self.refused: dict[int, NvmeofError] = {}
        """Namespaces that are left out on this path, and why."""
        self.depth = 0
        self.outstanding_bytes = 0
        self.timed = False
        self.max_transfer_bytes = 0
        self.last_limits: NvmLimits | None = None
        """The limits that were last read; None before the first read."""
        self._rate = UNKNOWN_RATE
        self._rated_at = 0.0
        self._gone = PathFigures()

    def __repr__(self) -> str:
        return f"<Member {self.name}: {self.path.state.value}>"

    @property
    def usable(self) -> bool:
        """Whether commands can be sent: the association is live and was checked."""
        controller = self.controller
        return controller is not None and controller is self.path.controller and controller.error is None

    @property
    def may_come_back(self) -> bool:
        """Whether commands may wait for this controller."""
        return self.path.may_come_back

    @property
    def quiesced_at(self) -> float:
        """The time from which the last association executes no further command; see :meth:`Path.quiesced_at`."""
        return self.runtime.now() if self.controller is None else self.path.quiesced_at(self.controller)

    @property
    def why(self) -> str:
        """The state and its reason, for a message."""
        error = self.path.error
        state = "past fast_io_fail_tmo" if self.path.failfast_expired else self.path.state.value
        return f"{state} ({error})" if error is not None else state

    @property
    def commands(self) -> AdminCommands:
        """The admin commands of the live association. Raises CommandNotExecuted where there is none."""
        return self._live().commands

    async def nvm_limits(self) -> NvmLimits:
        """Return the limits of Write Zeroes and Dataset Management over this controller."""
        self.last_limits = await self._live().nvm_limits()
        return self.last_limits

    def _live(self) -> Controller:
        if self.controller is None or not self.usable:
            raise CommandNotExecuted(f"the path {self.name} is {self.why}; the command was not sent")
        return self.controller

    def retry_delay(self, status: int) -> float:
        """Return the seconds until a command that was completed with that status word is retried."""
        info = self.info
        return 0.0 if info is None else retry_delay(status, (info.crdt1, info.crdt2, info.crdt3))

    def pick_queue(self) -> Queue:
        """Return the queue for the next command. Raises CommandNotExecuted where there is no live association."""
        if self.controller is None:
            raise CommandNotExecuted(f"the path {self.name} is {self.why}; the command was not sent")
        return self.controller.association.pick_queue()

    def abort(self, request: Request) -> None:
        """Send an Abort for an outstanding request."""
        if self.controller is not None:
            self.controller.association.abort(request)

    def update(self) -> None:
        """Tell all namespaces through this controller whether it can be used, and how."""
        for path in self.namespaces.values():
            path.update()

    def drop(self, path: NamespacePath) -> None:
        """Take a namespace out; its figures stay in those of the controller."""
        if self.namespaces.get(path.nsid) is path:
            del self.namespaces[path.nsid]
            self._gone.add(path.figures)

    @property
    def figures(self) -> PathFigures:
        """The traffic of this controller, all namespaces together."""
        total = PathFigures()
        for figures in (self._gone, *(path.figures for path in self.namespaces.values())):
            total.add(figures)
        return total

    def describe(self) -> MemberFacts:
        """Return the path's state and traffic."""
        figures, rate = self.figures, self.bytes_per_second
        return {
            "name": self.name,
            "path": self.path.describe(),
            "usable": self.usable,
            "outstanding": self.depth,
            "outstanding_bytes": self.outstanding_bytes,
            "bytes_per_second": round(rate) if self.timed and rate else None,
            "ios": figures.ios,
            "bytes": figures.bytes,
            "errors": figures.errors,
            "retries": figures.retries,
            "failovers": figures.failovers,
            "namespaces": [self.namespaces[nsid].describe() for nsid in sorted(self.namespaces)],
            "left_out": {str(nsid): str(error) for nsid, error in sorted(self.refused.items())},
        }

    # -- throughput

    @property
    def bytes_per_second(self) -> float:
        """Estimated throughput; 0 without a fresh estimate."""
        if not self.depth and self.runtime.now() - self._rated_at > RATE_STALE_SECONDS:
            return UNKNOWN_RATE
        return self._rate

    def rate(self, request: HeadRequest) -> None:
        """Update the estimate of the path's throughput: during a command, the path carried all bytes outstanding with
        it.
        """
        now = self.runtime.now()
        seconds = now - request.started
        if seconds > 0 and request.size_bytes:
            sample = request.ahead_bytes / seconds
            fresh = self._rate and now - self._rated_at <= RATE_STALE_SECONDS
            self._rate = self._rate + (sample - self._rate) * RATE_SHARE if fresh else sample
            self._rated_at = now


def state_word(state: int) -> str:
    """Return an ANA state as nvme-cli writes it, such as ``non-optimized``."""
    return AnaState(state).name.lower().replace("_", "-")


class PathHead(Protocol):
    """The Protocol of a path's namespace head."""

    paths: list[NamespacePath]

    def kick(self) -> None:
        """Look again at the commands that wait."""
        ...

    def remove(self, path: NamespacePath) -> None:
        """Take a path out."""
        ...

    def update_limits(self) -> None:
        """Determine the limits of all paths again."""
        ...

    def improved(self, optimized: bool) -> None:
        """Note that a path has become usable, or a better one."""
        ...


@dataclass(slots=True, eq=False)
class NamespacePath:
    """A namespace through one controller; a :class:`~nvmeof.host.multipath.iopolicy.Candidate` of its head."""

    member: Member
    head: PathHead
    view: NamespaceView
    ana_state: int = AnaState.OPTIMIZED
    anagrpid: int = 0
    pending: bool = False
    """The ANA state is unknown, or was wrong: no command is sent until the log is read (NVME_NS_ANA_PENDING)."""
    ready: bool = True
    """The size is the head's (NVME_NS_READY)."""
    access: int = UNUSABLE
    figures: PathFigures = field(default_factory=PathFigures)
    _contradicted: int = 0
    """ANA errors that the log did not explain, in a row."""

    @property
    def nsid(self) -> int:
        """The namespace's NSID."""
        return self.view.nsid

    @property
    def may_come_back(self) -> bool:
        """Whether commands may wait for this path.

        Not for a group in persistent loss, which never ends (NVMe Base 8.1.1.7), and not for an invalid ANA log.
        """
        if self.pending and self.member.ana_error is not None:
            return False
        lost = self.ana_state == AnaState.PERSISTENT_LOSS and not self.pending
        return not lost and self.member.may_come_back

    @property
    def why(self) -> str:
        """The reason why the path cannot be used, for a message."""
        if self.member.usable:
            if self.pending and self.member.ana_error is not None:
                return f"not usable ({self.member.ana_error})"
            if self.ana_state not in _ACCESS:
                return state_word(self.ana_state)
        return self.member.why

    @property
    def depth(self) -> int:
        """Commands outstanding on the controller."""
        return self.member.depth

    @property
    def outstanding_bytes(self) -> int:
        """Bytes of the data of these commands."""
        return self.member.outstanding_bytes

    @property
    def bytes_per_second(self) -> float:
        """The controller's estimated throughput."""
        return self.member.bytes_per_second

    def describe(self) -> NamespacePathFacts:
        """Return the state and the traffic of the path."""
        return {
            "nsid": self.nsid,
            "ana_state": state_word(self.ana_state),
            "anagrpid": self.anagrpid,
            "usable": self.access != UNUSABLE,
            "ios": self.figures.ios,
            "bytes": self.figures.bytes,
            "errors": self.figures.errors,
            "retries": self.figures.retries,
            "failovers": self.figures.failovers,
        }

    def update(self) -> None:
        """Determine again how the path can be used."""
        usable = self.ready and not self.pending and self.member.usable
        before, self.access = self.access, _ACCESS.get(AnaState(self.ana_state), UNUSABLE) if usable else UNUSABLE
        if self.access > before:
            self.head.improved(self.access == OPTIMIZED)

    def take_ana(self, log: AnaLog) -> None:
        """Take the state over from a log, by the namespace, or by the group that Identify Namespace gives.

        A namespace that is in no group of the log waits for the next log.
        """
        found = next((group for group in log.groups if self.nsid in group.nsids), None)
        if found is None:
            found = next((group for group in log.groups if group.grpid == self.view.anagrpid), None)
        self.pending = found is None
        if found is not None:
            self.anagrpid, self.ana_state = found.grpid, found.state
            if found.state not in _ACCESS:
                self._contradicted = 0
        self.update()

    def ana_error(self) -> None:
        """Stop sending after an ANA error until the log was read. While the log still reports the namespace accessible,
        it is read at ever longer intervals.
        """
        if self.pending:
            return
        self.pending = True
        self.update()
        ana, runtime = self.member.ana, self.member.runtime
        if ana is None:
            # a controller without ANA that reports an ANA error: it has no log to read
            self._contradicted += 1
            runtime.call_later(self._pause, self._trust_again)
        elif self._contradicted:
            runtime.call_later(self._pause, ana.refresh)
            self._contradicted += 1
        else:
            self._contradicted = 1
            ana.refresh()

    @property
    def _pause(self) -> float:
        return min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._contradicted, 10), LONGEST_PAUSE_SECONDS)

    def _trust_again(self) -> None:
        self.pending = False
        self.update()

    # -- commands: RequestPath

    def send(self, request: HeadRequest, more: bool) -> None:
        """Give a request to a queue of the controller. Raises the error of a controller that is lost."""
        member = self.member
        queue = member.pick_queue()
        request.path = self
        member.depth += 1
        member.outstanding_bytes += request.size_bytes
        if member.timed:
            request.started = member.runtime.now()
            request.ahead_bytes = member.outstanding_bytes
        try:
            if request.second is None:
                queue.submit(request, more)
            else:
                queue.submit_fused(request)
        except NvmeofError:
            request.path = None
            self.left(request)
            raise

    def begin(self, request: HeadRequest) -> None:
        """Count a command that :meth:`send_together` is about to send."""
        member = self.member
        request.path = self
        member.depth += 1
        member.outstanding_bytes += request.size_bytes
        if member.timed:
            request.started = member.runtime.now()
            request.ahead_bytes = member.outstanding_bytes

    def send_together(
        self, parts: Sequence[BatchPart], batch: IoBatch
    ) -> tuple[Sequence[BatchPart], NvmeofError | None]:
        """Give parts of a batch, which :meth:`begin` has counted, to queues of the controller. Return the parts that a
        lost controller has not taken, and its error.
        """
        sent = 0
        try:
            while sent < len(parts):
                queue = self.member.pick_queue()
                some = parts[sent : sent + queue.room]
                if some:
                    queue.submit_batch(batch.series([part.index for part in some]), some)
                    sent += len(some)
                else:
                    queue.submit(parts[sent])  # the part waits for a command identifier
                    sent += 1
        except NvmeofError as error:
            for part in parts[sent:]:
                part.path = None
                self.left(part)
            return parts[sent:], error
        return (), None

    def finished_together(self, requests: Sequence[HeadRequest]) -> None:
        """Count commands of one length that were completed with success."""
        member, figures, count = self.member, self.figures, len(requests)
        size = requests[0].size_bytes * count
        member.depth -= count
        member.outstanding_bytes -= size
        figures.ios += count
        figures.bytes += size
        if member.timed:
            for request in requests:
                member.rate(request)

    def finished(self, request: HeadRequest) -> None:
        """Count a command that was completed with success."""
        member, figures = self.member, self.figures
        size = request.size_bytes
        member.depth -= 1
        member.outstanding_bytes -= size
        figures.ios += 1
        figures.bytes += size
        if member.timed:
            member.rate(request)

    def left(self, request: HeadRequest) -> None:
        """Count a command that is no longer outstanding and did not succeed on this path."""
        self.member.depth -= 1
        self.member.outstanding_bytes -= request.size_bytes

    def abort(self, request: HeadRequest) -> None:
        """Send an Abort for an outstanding command."""
        self.member.abort(request)
