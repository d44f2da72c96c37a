"""What the commands of an association know of it: who its host is, its limits, and what its controller projects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nvmeof.target.core.fifo_lock import FifoLock
from nvmeof.target.core.pool import MemoryShare
from nvmeof.target.core.rate_limits import Limiter
from nvmeof.target.core.states import ControllerState
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.projection.ana_access import AnaAccess
from nvmeof.target.projection.namespace_table import NamespaceTable
from nvmeof.target.projection.sanitize_view import SanitizeView

COPIES_MOST: Final = 8
"""Copy commands of an association that are in progress at a time; others wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of commands: `transfer_bytes` is MDTS, `incapsule_bytes` what an I/O capsule may carry."""

    transfer_bytes: int
    incapsule_bytes: int
    max_namespaces: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What a controller lets its commands know of itself from one epoch to the next.

    `namespaces`: the active ones. `write_cache` is Feature 06h: whether a write may complete before it is on
    non-volatile media. `copy_formats` is CDFE of Host Behavior Support: the formats of Copy that the host enabled.
    """

    state: ControllerState
    namespaces: Mapping[int, Namespace]
    ana: AnaAccess
    write_cache: bool = True
    copy_formats: int = 0


class Activity:
    """Whether commands have come: all that Keep Alive is to know of a queue (NVMe Base, Traffic Based Keep Alive)."""

    __slots__ = ("heard",)

    def __init__(self) -> None:
        self.heard = False


class AssociationView:
    """One association, for the queues that one process serves of it.

    What the constructor takes does not change; `change` takes over what does. `memory`: what the I/O queues hold of
    the target's memory for data. `copies`: who copies now. `limiter`: the rate limit of the host (None: no limit).
    """

    __slots__ = (
        "activity",
        "ana",
        "cntlid",
        "copies",
        "copy_formats",
        "host_nqn",
        "hostid",
        "limiter",
        "limits",
        "memory",
        "namespaces",
        "sanitize",
        "state",
        "subnqn",
        "write_cache",
    )

    def __init__(
        self,
        *,
        cntlid: int,
        subnqn: str,
        host_nqn: str,
        hostid: bytes,
        limits: Limits,
        sanitize: SanitizeView | None = None,
        activity: Activity | None = None,
    ) -> None:
        self.cntlid = cntlid
        self.subnqn = subnqn
        self.host_nqn = host_nqn
        self.hostid = hostid
        self.limits = limits
        self.sanitize = SanitizeView() if sanitize is None else sanitize
        self.activity = Activity() if activity is None else activity
        self.namespaces = NamespaceTable()
        self.copies = FifoLock(COPIES_MOST)
        self.memory = MemoryShare()
        self.state = ControllerState.DISABLED
        self.ana = AnaAccess()
        self.write_cache = True
        self.copy_formats = 0
        self.limiter: Limiter | None = None

    def apply(self, epoch: int, projection: Projection) -> None:
        """Take a projection over while the namespace table is paused. Raises `ValueError` as its `apply` does."""
        self.namespaces.apply(epoch, projection.namespaces)
        self.state = projection.state
        self.ana = projection.ana
        self.write_cache = projection.write_cache
        self.copy_formats = projection.copy_formats

    def change(self, projection: Projection) -> None:
        """Pause, take over the projection of the next epoch, and resume: for queues of the controller's own process."""
        table = self.namespaces
        table.pause()
        self.apply(table.epoch + 1, projection)
        table.resume()
