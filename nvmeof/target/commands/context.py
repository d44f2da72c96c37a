"""What a command may know: its queue, a projection of its association, and the door for its effects.

`CommandContext` is that of a queue whose Connect has succeeded, and what handlers of both kinds of queue share;
`IoContext` is all that an I/O command gets. Neither knows a controller or a subsystem: a process that serves I/O
queues alone can make them. A handler never reaches into another queue.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.runtime import Runtime
from nvmeof.spec.enums import FABRICS_OPCODE, NSID_ALL
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.core.aborting import aborted_by_request
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.log_rate import PeerLog
from nvmeof.target.core.queue_control import QueueControl
from nvmeof.target.core.states import ControllerState, QueueState
from nvmeof.target.core.tables import Tables
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.projection.association import AssociationView
from nvmeof.target.projection.authentication import QueueAuthentication
from nvmeof.target.projection.effects import Effects, Refusal

logger = logging.getLogger(__name__)


class LbaOpcodes(frozenset[int]):
    """The opcodes of I/O commands whose CDW10 and CDW11 are a logical block address."""


@dataclass(slots=True)
class QueueCounters:
    """The counters of one queue."""

    commands: int = 0
    errors: int = 0


class QueueContext:
    """What belongs to a queue from its first byte to its last, whatever is connected.

    `queue` is what the controller closes when the association ends. `waiting` has, by CID, the future that a command
    waits for which could be given up; `aborting` the CIDs of commands that shall end at the next opportunity, and
    `preempted` those whose end is a Preempt and Abort's doing.
    """

    __slots__ = ("aborting", "counters", "peer", "peer_log", "preempted", "queue", "runtime", "tables", "waiting")

    def __init__(self, runtime: Runtime, tables: Tables, peer_log: PeerLog, queue: QueueControl, peer: str) -> None:
        self.runtime = runtime
        self.tables = tables
        self.peer_log = peer_log
        self.queue = queue
        self.peer = peer
        self.counters = QueueCounters()
        self.waiting: dict[int, object] = {}
        self.aborting: set[int] = set()
        self.preempted: set[int] = set()

    def check_not_aborted(self, cid: int) -> None:
        """Raise Command Abort Requested before the next step of a command that was aborted (NVMe Base,
        Abort command)."""
        if cid in self.aborting:
            raise aborted_by_request("aborted between two of its steps")


class CommandContext(QueueContext):
    """A queue whose Connect has succeeded.

    `before`: the queue's context until then. `view` is what its association is for its commands, and `namespaces` the
    table in it. `queue_state` decides beside the controller's state which commands are legal.
    """

    __slots__ = (
        "activity",
        "authentication",
        "detached",
        "effects",
        "entries",
        "flow_control",
        "host_nqn",
        "hostid",
        "limits",
        "namespaces",
        "qid",
        "queue_state",
        "view",
    )

    def __init__(
        self,
        before: QueueContext,
        view: AssociationView,
        effects: Effects,
        *,
        qid: int,
        entries: int,
        flow_control: bool = True,
    ) -> None:
        self.runtime = before.runtime
        self.tables = before.tables
        self.peer_log = before.peer_log
        self.queue = before.queue
        self.peer = before.peer
        self.counters = before.counters
        self.waiting = before.waiting
        self.aborting = before.aborting
        self.preempted = before.preempted
        self.view = view
        self.effects = effects
        self.qid = qid
        self.entries = entries  # of the submission queue
        self.flow_control = flow_control
        self.host_nqn = view.host_nqn
        self.hostid = view.hostid
        self.limits = view.limits
        self.namespaces = view.namespaces
        self.activity = view.activity
        self.queue_state = QueueState.READY
        self.authentication: QueueAuthentication | None = None  # None: its host need not authenticate itself
        self.detached = False

    @property
    def state(self) -> ControllerState:
        """The state of the queue's controller."""
        return self.view.state

    def find(self, nsid: int) -> Namespace | None:
        """Return the namespace that a command may name by an NSID; None when there is none."""
        return self.namespaces.get(nsid)

    def named(self, nsid: int) -> Collection[Namespace]:
        """Return the namespaces that a command's NSID names; FFFFFFFFh names all."""
        if nsid == NSID_ALL:
            return self.namespaces.values()
        namespace = self.find(nsid)
        return () if namespace is None else (namespace,)

    def refuse(self, sqe: Sqe, error: CommandError) -> Completion:
        """Return the completion of a refused command, after its effects: the Error Information log has an entry."""
        self.counters.errors += 1
        if error.status == Status.ABORTED_BY_REQUEST and sqe.cid in self.preempted:
            error.status = Status.ABORTED_PREEMPT
        logger.debug("%s: command refused: %s", self.peer, error)
        if not self.detached:
            fabrics = sqe.opcode == FABRICS_OPCODE
            lba = sqe.slba if self.qid and sqe.opcode in self.tables[LbaOpcodes] else 0
            nsid = 0 if fabrics else sqe.nsid
            refusal = Refusal(error=error, cid=sqe.cid, opcode=sqe.opcode, nsid=nsid, lba=lba, csi=self._csi(sqe))
            self.effects.refused(refusal)
        return Completion(error.status, error.dnr, error.dw0, more=True)

    def _csi(self, sqe: Sqe) -> int:
        """Return the I/O command set of a refused I/O command, from its namespace if there is one."""
        namespace = self.namespaces.get(sqe.nsid) if self.qid and sqe.opcode != FABRICS_OPCODE else None
        return int(getattr(namespace, "csi", 0))

    def figures(self) -> dict[str, object]:
        """Return the figures of the queue."""
        counters, authentication = self.counters, self.authentication
        return {
            "entries": self.entries,
            "peer": self.peer,
            "flow_control": self.flow_control,
            "commands": counters.commands,
            "refused": counters.errors,
            **({"authentication": authentication.text} if authentication is not None else {}),
        }

    def detach(self, reason: str, *, fault: bool = False) -> None:
        """Remove the queue from its controller; with the admin queue the whole association ends. No effect when
        repeated. `fault`: one side broke the protocol.
        """
        if not self.detached:
            self.detached = True
            if self.authentication is not None:
                self.authentication.ended()
            self.effects.ended(reason, fault=fault)


class IoContext(CommandContext):
    """An I/O queue: all that its commands know."""

    __slots__ = ()
