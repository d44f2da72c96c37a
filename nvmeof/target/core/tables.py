"""The tables that a target was given, each found by its type.

Must not know what a table holds: the layers above say that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")


class Tables(dict[type, Any]):
    """The tables of one target. Two targets of one process may have different ones.

    `tables[CommandTables]` is the table of that type; a target that has none raises `KeyError`.
    `nvmeof.target.commands.standard.standard_tables` makes all that the target's own commands need.
    """

    __slots__ = ()

    def __init__(self, *tables: object) -> None:
        super().__init__({type(table): table for table in tables})

    if TYPE_CHECKING:  # a dictionary's own: each command looks in here

        def __getitem__(self, kind: type[T]) -> T: ...
