"""A group of commands whose modules are imported when a command is used, and not to list them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from importlib import import_module
from typing import Any, Final

import click

_MARGIN: Final = 6
"""What click's own listing keeps free beside the longest name."""


class LazyGroup(click.Group):
    """A group that knows names and summaries of its commands by itself.

    `lazy`: by name the module, whose ``COMMANDS`` has the command, and the first sentence of its help.
    """

    def __init__(self, *arguments: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **attributes: Any) -> None:
        self._lazy = dict(lazy or {})
        self._loaded: MutableMapping[str, click.Command] = {}
        super().__init__(*arguments, **attributes)

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """All commands; their modules are imported for that."""
        for name in self._lazy:
            self._load(name)
        return self._loaded

    @commands.setter
    def commands(self, commands: MutableMapping[str, click.Command]) -> None:
        self._loaded = commands

    def _load(self, name: str) -> click.Command | None:
        if name not in self._loaded and name in self._lazy:
            for command in import_module(self._lazy[name][0]).COMMANDS:
                self._loaded[command.name] = command
        return self._loaded.get(name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, without importing anything."""
        return sorted({*self._lazy, *self._loaded})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, and import its module."""
        return self._load(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names and summaries."""
        names = self.list_commands(ctx)
        limit = formatter.width - _MARGIN - max(map(len, names), default=0)
        rows = [(name, click.Command(name, help=self.summary(name)).get_short_help_str(limit)) for name in names]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def summary(self, name: str) -> str:
        """Return the first sentence of a command's help, as the table has it."""
        return self._lazy[name][1]
