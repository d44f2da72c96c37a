"""What a command handler may know: its queue, and through it the association, the subsystem and the namespaces.

One `QueueContext` belongs to one queue. A handler never reaches into another queue; what is shared by an association
is in its controller.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from nvmeof.errors import CommandError
from nvmeof.spec.enums import FABRICS_OPCODE
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import status_field
from nvmeof.target.completion import Completion
from nvmeof.target.controller import Controller
from nvmeof.target.inventory import Inventory, PortInfo
from nvmeof.target.namespace import Namespace
from nvmeof.target.runtime import Future, Runtime, TimerHandle
from nvmeof.target.states import ControllerState
from nvmeof.target.subsystem import Subsystem

logger = logging.getLogger(__name__)


class QueueHandle(Protocol):
    """What a controller may do to one of its queues: end it (the queue then calls `QueueContext.detach`), or abort a
    command; False when there is none of that CID that can be aborted.
    """

    def close(self, reason: str) -> None: ...

    def abort(self, cid: int) -> bool: ...


@dataclass(slots=True)
class QueueCounters:
    """What happened on one queue."""

    commands: int = 0
    errors: int = 0


class QueueContext:
    """`queue` is what the controller closes when the association ends. Until Connect succeeds, `controller` is None."""

    __slots__ = (
        "controller",
        "counters",
        "entries",
        "flow_control",
        "host_nqn",
        "hostid",
        "inventory",
        "namespaces",
        "peer",
        "port",
        "qid",
        "queue",
        "runtime",
        "subsystem",
    )

    def __init__(
        self, runtime: Runtime, inventory: Inventory, port: PortInfo, queue: QueueHandle, *, peer: str = ""
    ) -> None:
        self.runtime = runtime
        self.inventory = inventory
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

    @property
    def state(self) -> ControllerState:
        """Decides which commands are legal now."""
        controller = self.controller
        return ControllerState.UNCONNECTED if controller is None else controller.state

    @property
    def epoch(self) -> int:
        """Changes whenever namespaces come, go or change their size."""
        return 0 if self.subsystem is None else self.subsystem.epoch

    def on_command(self, now: float) -> None:
        """Call once per batch of commands: traffic restarts the keep-alive timer (TBKAS)."""
        controller = self.controller
        if controller is not None:
            controller.touch(now)

    def refuse(self, sqe: Sqe, error: CommandError) -> Completion:
        """The completion of a refused command; an entry of the Error Information log goes with it, and a log line.

        What is refused before Connect keeps a host from working at all: that is a warning.
        """
        self.counters.errors += 1
        controller = self.controller
        logger.log(
            logging.WARNING if controller is None else logging.DEBUG, "%s: command refused: %s", self.peer, error
        )
        if controller is not None:
            controller.error_log.add(
                sqid=self.qid,
                cid=sqe.cid,
                status_field=status_field(error.status, error.dnr, True),
                error_location=error.error_location,
                lba=sqe.slba if self.qid and sqe.opcode != FABRICS_OPCODE else 0,
                nsid=0 if sqe.opcode == FABRICS_OPCODE else sqe.nsid,
                trtype=self.port.trtype,
                opcode=sqe.opcode,
            )
        return Completion(error.status, error.dnr, error.dw0, more=controller is not None)

    def detach(self, reason: str) -> None:
        """The queue has gone: forget it; with the admin queue the whole association ends. Harmless when repeated."""
        controller, self.controller = self.controller, None
        if controller is not None:
            controller.detach_queue(self.qid, self.queue, reason)


__all__ = ["Future", "PortInfo", "QueueContext", "QueueCounters", "QueueHandle", "Runtime", "TimerHandle"]
