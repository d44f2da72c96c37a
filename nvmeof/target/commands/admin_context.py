"""What commands know beyond `CommandContext`: those of an admin queue, and the Connect that comes before either."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import ClassVar, TypeAlias

from nvmeof.errors import CommandError
from nvmeof.runtime import Runtime
from nvmeof.security.tls.key import IdentityFields
from nvmeof.spec.enums import NSID_ALL
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.context import CommandContext, IoContext, QueueContext
from nvmeof.target.controller.controller import Controller
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.log_rate import left_out_text
from nvmeof.target.core.queue_control import QueueControl
from nvmeof.target.core.states import ControllerState, QueueState
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.projection.association import Activity
from nvmeof.target.projection.namespace_table import NamespaceTable
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Figures

logger = logging.getLogger("nvmeof.target.commands.context")


class AdminContext(CommandContext):
    """An admin queue: its commands know the controller itself, its subsystem, and the target that both are in."""

    __slots__ = ("controller", "port", "registry", "subsystem")

    def __init__(self, before: ConnectContext, controller: Controller, *, entries: int, flow_control: bool) -> None:
        super().__init__(
            before,
            controller.view,
            controller.effects(0, before.queue, before.port.trtype),
            qid=0,
            entries=entries,
            flow_control=flow_control,
        )
        self.controller = controller
        self.subsystem = controller.subsystem
        self.registry = before.registry
        self.port = before.port

    def find(self, nsid: int) -> Namespace | None:
        """Return the allocated namespace of an NSID; None when there is none."""
        return self.subsystem.namespaces.get(nsid)

    def named(self, nsid: int) -> Collection[Namespace]:
        """Return the namespaces that a command's NSID names; FFFFFFFFh names all that are allocated."""
        if nsid == NSID_ALL:
            return self.subsystem.namespaces.values()
        return super().named(nsid)


class ConnectContext(QueueContext):
    """A queue before its Connect, which makes the queue's next context and leaves it in `accepted`.

    `connection` gives figures of what carries the queue, for telemetry. `secured`: the PSK identity that its TLS was
    opened with; None: it is not encrypted.
    """

    __slots__ = ("accepted", "connection", "port", "registry", "secured")

    qid: ClassVar[int] = 0
    host_nqn: ClassVar[str] = ""
    hostid: ClassVar[bytes] = bytes(16)
    namespaces: ClassVar[NamespaceTable] = NamespaceTable()
    activity: ClassVar[Activity] = Activity()
    queue_state: ClassVar[QueueState] = QueueState.UNCONNECTED
    state: ClassVar[ControllerState] = ControllerState.DISABLED  # as a controller that its Connect makes begins

    def __init__(
        self,
        runtime: Runtime,
        registry: TargetRegistry,
        port: PortInfo,
        queue: QueueControl,
        *,
        peer: str = "",
        connection: Figures | None = None,
        secured: IdentityFields | None = None,
    ) -> None:
        super().__init__(runtime, registry.tables, registry.peer_log, queue, peer)
        self.secured = secured
        self.registry = registry
        self.port = port
        self.connection = connection
        self.accepted: AdminContext | IoContext | None = None

    def refuse(self, sqe: Sqe, error: CommandError) -> Completion:
        """Return the completion of a refused command, and warn: it keeps a host from working at all."""
        self.counters.errors += 1
        self.registry.happenings.tell("refused", peer=self.peer, reason=str(error))
        left_out = self.peer_log.strangers.admit(self.peer, self.runtime.now())
        if left_out is not None:
            logger.warning("%s: command refused: %s%s", self.peer, error, left_out_text(left_out))
        return Completion(error.status, error.dnr, error.dw0)

    def detach(self, reason: str, *, fault: bool = False) -> None:
        """Do nothing when the queue ends: it has no controller."""


AnyContext: TypeAlias = ConnectContext | AdminContext | IoContext
"""The context of a queue's commands, in any state of the queue."""
