"""Which ANA groups no command reaches through one port (NVMe Base, 8.1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from nvmeof.errors import CommandError
from nvmeof.spec.enums import AnaState
from nvmeof.spec.status import Status

PATH_STATUS: Final[Mapping[AnaState, Status]] = MappingProxyType(
    {
        AnaState.INACCESSIBLE: Status.ANA_INACCESSIBLE,
        AnaState.PERSISTENT_LOSS: Status.ANA_PERSISTENT_LOSS,
        AnaState.CHANGE: Status.ANA_TRANSITION,
    }
)
"""The status of commands in these states (NVMe Base, 8.1.1.6 to 8.1.1.8)."""


class Grouped(Protocol):
    """The part of a namespace that ANA needs."""

    nsid: int
    anagrpid: int


@dataclass(frozen=True, slots=True)
class AnaAccess:
    """The groups of one subsystem, seen through one port, whose state lets no command through: mostly none."""

    portid: int = 0
    barred: Mapping[int, AnaState] = field(default_factory=dict)

    def check(self, namespace: Grouped) -> None:
        """Raise the path related status of the namespace's group, unless its state lets commands through."""
        state = self.barred.get(namespace.anagrpid)
        if state is not None:
            word = state.name.lower().replace("_", "-")
            raise CommandError(
                PATH_STATUS[state],
                dnr=False,
                message=f"namespace {namespace.nsid} is in ANA group {namespace.anagrpid}, which is in the state"
                f" {word} on port {self.portid}",
            )
