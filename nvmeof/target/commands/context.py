"""What a command handler may know: its queue, and through it the association, the subsystem and the namespaces.

One `CommandContext` belongs to one queue. A handler never reaches into another queue; what is shared by an association
is in its controller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from nvmeof.errors import CommandError
from nvmeof.runtime import Runtime
from nvmeof.spec.enums import FABRICS_OPCODE
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status, status_field
from nvmeof.target.controller.controller import Controller, Queue
from nvmeof.target.controller.error_reporting import command_failed, report
from nvmeof.target.core.aborting import aborted_by_request
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.states import ControllerState
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem

logger = logging.getLogger(__name__)


class LbaOpcodes(frozenset[int]):
    """The opcodes of I/O commands whose CDW10 and CDW11 are a logical block address."""


@dataclass(slots=True)
class QueueCounters:
    """What happened on one queue."""

    commands: int = 0
    errors: int = 0


class CommandContext:
    """`queue` is what the controller closes when the association ends. Until Connect succeeds, `controller` is None."""

    __slots__ = (
        "aborting",
        "connection",
        "controller",
        "counters",
        "entries",
        "flow_control",
        "host_nqn",
        "hostid",
        "namespaces",
        "peer",
        "port",
        "preempted",
        "qid",
        "queue",
        "registry",
        "runtime",
        "subsystem",
        "tables",
        "waiting",
    )

    def __init__(
        self, runtime: Runtime, registry: TargetRegistry, port: PortInfo, queue: Queue, *, peer: str = ""
    ) -> None:
        self.runtime = runtime
        self.registry = registry
        self.tables = registry.tables
        self.port = port
        self.queue = queue
        self.peer = peer
        self.qid = 0
        self.entries = 0  # of the submission queue; 0 until Connect
        self.flow_control = True
        self.controller: Controller | None = None
        self.subsystem: Subsystem | None = None
        self.host_nqn = ""
        self.hostid = bytes(16)
        self.namespaces: dict[int, Namespace] = {}  # the controller's own table after Connect: changes show at once
        self.counters = QueueCounters()
        self.connection: Callable[[], dict[str, object]] | None = None  # figures of what carries the queue
        self.waiting: dict[int, object] = {}  # by CID: the future that a command waits for which could be given up
        self.aborting: set[int] = set()  # CIDs of commands that shall end at the next opportunity
        self.preempted: set[int] = set()  # CIDs of commands whose end is a Preempt and Abort's doing

    @property
    def state(self) -> ControllerState:
        """Decides which commands are legal now."""
        controller = self.controller
        return ControllerState.UNCONNECTED if controller is None else controller.state

    def refuse(self, sqe: Sqe, error: CommandError) -> Completion:
        """The completion of a refused command; an entry of the Error Information log goes with it, and a log line.

        What is refused before Connect keeps a host from working at all: that is a warning.
        """
        self.counters.errors += 1
        controller = self.controller
        if error.status == Status.ABORTED_BY_REQUEST and sqe.cid in self.preempted:
            error.status = Status.ABORTED_PREEMPT
        if controller is not None:
            logger.debug("%s: command refused: %s", self.peer, error)
        else:
            left_out = self.registry.peer_log.strangers.admit(self.peer, self.runtime.now())
            if left_out is not None:
                logger.warning("%s: command refused: %s%s", self.peer, error, left_out_text(left_out))
        if controller is not None:
            controller.error_log.add(
                sqid=self.qid,
                cid=sqe.cid,
                status_field=status_field(error.status, error.dnr, True),
                error_location=error.error_location,
                lba=sqe.slba if self.qid and sqe.opcode in self.tables[LbaOpcodes] else 0,
                nsid=0 if sqe.opcode == FABRICS_OPCODE else sqe.nsid,
                trtype=self.port.trtype,
                opcode=sqe.opcode,
                csi=self._csi(sqe),
                command_specific=error.command_specific,
            )
            controller.subsystem.lifetime.errors += 1
            command_failed(self.tables, controller, error)
        return Completion(error.status, error.dnr, error.dw0, more=controller is not None)

    def check_not_aborted(self, cid: int) -> None:
        """For a command with several steps: raise Command Abort Requested when it shall not take another."""
        if cid in self.aborting:
            raise aborted_by_request("aborted between two of its steps")

    def _csi(self, sqe: Sqe) -> int:
        """The I/O command set of a refused I/O command, where its namespace tells."""
        namespace = self.namespaces.get(sqe.nsid) if self.qid and sqe.opcode != FABRICS_OPCODE else None
        return int(getattr(namespace, "csi", 0))

    def figures(self) -> dict[str, object]:
        """What there is to say of the queue."""
        counters = self.counters
        return {
            "entries": self.entries,
            "peer": self.peer,
            "flow_control": self.flow_control,
            "commands": counters.commands,
            "refused": counters.errors,
        }

    def detach(self, reason: str, *, fault: bool = False) -> None:
        """The queue has gone: forget it; with the admin queue the whole association ends. Harmless when repeated.

        `fault`: somebody did wrong.
        """
        controller, self.controller = self.controller, None
        if controller is not None:
            if fault:
                report(self.tables, controller, f"queue {self.qid} ended: {reason}")
            controller.detach_queue(self.qid, self.queue, reason)
