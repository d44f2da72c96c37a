"""The command tables, filled by the modules that hold the rows.

Identify and two log pages are made from these tables while their own rows are in them, hence a module below all.
"""

from __future__ import annotations

from collections.abc import Iterable

from nvmeof.target.commands.base import CommandSpec

ADMIN: dict[int, CommandSpec] = {}
DISCOVERY: dict[int, CommandSpec] = {}
NVM: dict[int, CommandSpec] = {}
FABRICS_ADMIN: dict[int, CommandSpec] = {}
FABRICS_IO: dict[int, CommandSpec] = {}


def register(table: dict[int, CommandSpec], rows: Iterable[CommandSpec]) -> None:
    """Add rows; an opcode has one row."""
    for row in rows:
        if row.opcode in table:
            raise ValueError(f"{row.name}: opcode {row.opcode:02X}h has a row already")
        table[row.opcode] = row
