"""The command tables, filled by the modules that hold the rows.

Identify and two log pages are made from these tables while their own rows are in them, hence a module below all.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping

from nvmeof.spec.enums import Csi
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.context import CommandContext
from nvmeof.target.commands.dispatch.base import CommandSpec

ADMIN: dict[int, CommandSpec] = {}
DISCOVERY: dict[int, CommandSpec] = {}
NVM: dict[int, CommandSpec] = {}
ZNS: dict[int, CommandSpec] = {}
"""What the Zoned Namespace Command Set has beside the commands of the NVM Command Set."""
FABRICS_ADMIN: dict[int, CommandSpec] = {}
FABRICS_IO: dict[int, CommandSpec] = {}

IO_COMMAND_SETS: dict[int, Mapping[int, CommandSpec]] = {Csi.NVM: NVM, Csi.ZONED: ChainMap(ZNS, NVM)}
"""The commands of each I/O command set."""


Gate = Callable[[CommandContext, CommandSpec, Sqe], None]
"""Raises `CommandError` for a command that something stands in the way of: a sanitize operation, a reservation."""

ADMISSION_CHECKS: list[Gate] = []
"""Asked in their order for every admin and I/O command that goes the whole way, once its row and its namespace are
known, and again when its data came later. What lets a Read or a Write pass must withdraw the namespace's (or the
controller's) permits when it would not any more."""


def register_gate(gate: Gate) -> None:
    """Add a gate behind the others."""
    ADMISSION_CHECKS.append(gate)


def register(table: dict[int, CommandSpec], rows: Iterable[CommandSpec]) -> None:
    """Add rows; an opcode has one row."""
    for row in rows:
        if row.opcode in table:
            raise ValueError(f"{row.name}: opcode {row.opcode:02X}h has a row already")
        table[row.opcode] = row
