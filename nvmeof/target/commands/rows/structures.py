"""What a row of Identify is, and what an I/O command set says there of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nvmeof.spec.identify import IdentifyCommand
from nvmeof.target.commands.admin_context import AdminContext
from nvmeof.target.controller.controller import Controller
from nvmeof.target.namespaces.namespace import Namespace

Builder = Callable[[AdminContext, Controller, IdentifyCommand, int], bytes]


@dataclass(frozen=True, slots=True)
class IdentifySpec:
    """A row. `build(ctx, controller, command, nsid)` makes the 4096 bytes; `csi`: of the command set that is named."""

    cns: int
    name: str
    build: Builder
    csi: bool = False
    discovery: bool = False


@dataclass(frozen=True, slots=True)
class CommandSetStructures:
    """An I/O command set's own structures. `namespace(None)` is what all of its namespaces have in common."""

    csi: int
    namespace: Callable[[Namespace | None], bytes]
    controller: Callable[[Controller], bytes]


class IdentifyTable(dict[int, IdentifySpec]):
    """The data structures of Identify, by CNS."""


class CommandSetTable(dict[int, CommandSetStructures]):
    """The I/O command sets that every controller has, by CSI."""
