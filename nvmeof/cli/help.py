"""Commands: how they are started, and help that begins with a command's own options.

Options that many commands share follow in groups.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import click


class GroupedOption(click.Option):
    """An option of a group. `brief`: help of other commands than the group's own one only names it; `named`: it does
    that, else it says nothing of it."""

    def __init__(
        self, *declarations: Any, group: str = "", brief: bool = False, named: bool = True, **attributes: Any
    ) -> None:
        super().__init__(*declarations, **attributes)
        self.group = group
        self.brief = brief
        self.named = named


class Command(click.Command):
    """A command whose help shows its own options first, then groups of those that it shares with others."""

    explained_by = ""
    """The command line that shows the options that are only named."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then each group of shared ones."""
        own: list[tuple[str, str]] = []
        groups: dict[str, list[tuple[str, str]]] = {}
        brief: dict[str, list[str]] = {}
        whole = not self.explained_by or ctx.command_path == self.explained_by.removesuffix(" --help")
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or isinstance(parameter, click.Argument):  # which the usage line shows
                continue
            group = parameter.group if isinstance(parameter, GroupedOption) else ""
            if not group:
                own.append(record)
            elif isinstance(parameter, GroupedOption) and parameter.brief and not whole:
                if parameter.named:
                    brief.setdefault(group, []).append(max(parameter.opts, key=len))
            else:
                groups.setdefault(group, []).append(record)
        if own:
            with formatter.section("Options"):
                formatter.write_dl(own)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)
                if brief.get(group):
                    formatter.write_paragraph()
                    text = f"Also {', '.join(brief[group])}: see {self.explained_by}"
                    indent = " " * formatter.current_indent
                    # an option's name is not broken at its hyphens
                    formatter.write(
                        textwrap.fill(
                            text,
                            formatter.width,
                            break_on_hyphens=False,
                            initial_indent=indent,
                            subsequent_indent=indent,
                        )
                        + "\n"
                    )


def invoke(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command with `arguments` (those of the process for None). Raises what it raises.

    As click's own `main` does, but a KeyboardInterrupt passes: click would print, which may block, before it says so.
    """
    if f"_{program.upper().replace('-', '_')}_COMPLETE" in os.environ:
        command.main(prog_name=program)  # the shell asks for completions
    with command.make_context(program, list(sys.argv[1:] if arguments is None else arguments)) as ctx:
        command.invoke(ctx)
