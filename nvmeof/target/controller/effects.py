"""What the commands of a queue bring about in their controller, its subsystem, and other associations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from nvmeof.runtime import Future, settled
from nvmeof.spec.enums import FeatureId
from nvmeof.spec.status import status_field
from nvmeof.target.controller.controller import Controller
from nvmeof.target.controller.error_reporting import command_failed, report
from nvmeof.target.core.queue_control import QueueControl
from nvmeof.target.core.tables import Tables
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Notice, Outcome
from nvmeof.target.projection.effects import Refusal


class QueueEffects:
    """The `Effects` of a queue whose controller lives in the same process.

    `trtype` is that of the port which the queue was connected by.
    """

    __slots__ = ("_qid", "_queue", "_tables", "_trtype", "begun", "controller", "done")

    def __init__(self, tables: Tables, controller: Controller, qid: int, queue: QueueControl, trtype: int) -> None:
        self.controller = controller
        self._tables = tables
        self._qid = qid
        self._queue = queue
        self._trtype = trtype
        lifetime = controller.subsystem.lifetime
        self.begun: Callable[[float], None] = lifetime.begin
        self.done: Callable[[float], None] = lifetime.end

    def refused(self, refusal: Refusal) -> None:
        """Note a refused command in the Error Information log, and look whether there is more to it."""
        controller, error = self.controller, refusal.error
        controller.error_log.add(
            sqid=self._qid,
            cid=refusal.cid,
            status_field=status_field(error.status, error.dnr, True),
            error_location=error.error_location,
            lba=refusal.lba,
            nsid=refusal.nsid,
            trtype=self._trtype,
            opcode=refusal.opcode,
            csi=refusal.csi,
            command_specific=error.command_specific,
        )
        controller.subsystem.lifetime.errors += 1
        command_failed(self._tables, controller, error)

    def written(self) -> None:
        """End the sanitizer's state Global Data Erased."""
        self.controller.subsystem.sanitizer.written()

    def ended(self, reason: str, *, fault: bool = False) -> None:
        """Detach the queue from its controller; with the admin queue the association ends."""
        if fault:
            report(self._tables, self.controller, f"queue {self._qid} ended: {reason}")
        self.controller.detach_queue(self._qid, self._queue, reason)

    # Reservations (NVMe Base, Reservations)

    def change_reservation(
        self, namespace: Namespace, outcome: Outcome, *, abort: bool = False
    ) -> Awaitable[None] | None:
        """Apply the outcome; when it is durable, notify the hosts concerned, and end the commands that a preemption
        aborts."""
        pending = namespace.reservations.change(outcome.state)
        if pending is None:
            return self._consequences(namespace, outcome, abort)
        return self._when_kept(namespace, outcome, pending, abort)

    async def _when_kept(self, namespace: Namespace, outcome: Outcome, pending: Awaitable[None], abort: bool) -> None:
        await pending
        await settled(self._consequences(namespace, outcome, abort))

    def _consequences(self, namespace: Namespace, outcome: Outcome, abort: bool) -> Awaitable[None] | None:
        for notice in outcome.notices:
            self._notify(namespace, notice)
        if not abort or not outcome.preempted:
            return None
        for each in list(self.controller.subsystem.controllers.values()):
            if each.hostid in outcome.preempted:
                each.abort_namespace(namespace.nsid)
        finished: Future[None] = self.controller.runtime.create_future()
        done = partial(finished.set_result, None)
        return finished if namespace.in_progress.watch(outcome.preempted, done) else None

    def _notify(self, namespace: Namespace, notice: Notice) -> None:
        subsystem = self.controller.subsystem
        if subsystem.namespaces.get(namespace.nsid) is not namespace:
            return
        mask = namespace.features.get((FeatureId.RESERVATION_NOTIFICATION_MASK, 0))
        if mask is not None and mask.dw0 & 1 << notice.kind:
            return
        for each in list(subsystem.controllers.values()):
            if each.hostid in notice.hosts and namespace.nsid in each.attached:
                each.reservation_changed(namespace.nsid, notice.kind)
