"""Manual pages (roff, section 1) made from a command's help: the same words, with their headings in bold."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

_COLUMNS = 200
"""Help is laid out this wide, so that no sentence is broken; man breaks lines itself."""


def pages(program: str, command: click.Command, version: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of the page of each command: ``nvmeof-host-bench.1``."""
    yield from _pages(command, click.Context(command, info_name=program), version)


def _pages(command: click.Command, ctx: click.Context, version: str) -> Iterator[tuple[str, str]]:
    name = ctx.command_path.replace(" ", "-")
    yield f"{name}.1", page(name, command, ctx, version)
    if isinstance(command, click.Group):
        for each in command.list_commands(ctx):
            sub = command.get_command(ctx, each)
            if sub is not None and not sub.hidden:
                yield from _pages(sub, click.Context(sub, info_name=each, parent=ctx), version)


def page(name: str, command: click.Command, ctx: click.Context, version: str) -> str:
    """Return one page."""
    ctx.max_content_width, ctx.terminal_width = _COLUMNS, _COLUMNS
    usage, _, rest = command.get_help(ctx).partition("\n\n")
    summary = command.get_short_help_str(200).rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "1" "" "nvmeof {version}" "User Commands"',
        ".SH NAME",
        f"{_escaped(name)} \\- {_escaped(summary)}",
        ".SH SYNOPSIS",
        _escaped(" ".join(usage.removeprefix("Usage: ").split())),
        ".SH DESCRIPTION",
        *_body(rest),
        ".SH EXIT STATUS",
        "0 when all went well, 1 when something could not be done, 2 for wrong usage, 130 when SIGINT ended it.",
    ]
    parent = ctx.parent
    if parent is not None:
        lines += [".SH SEE ALSO", f"{_escaped(parent.command_path.replace(' ', '-'))}(1)"]
    return "\n".join(lines) + "\n"


def _body(text: str) -> Iterator[str]:
    """Yield the description, then each section with its list of options or commands."""
    for line in text.splitlines():
        heading = re.fullmatch(r"(\S.*):", line)
        item = re.fullmatch(r"  (\S.*?)(?:  +(\S.*))?", line)
        if heading:
            yield f'.SH "{_escaped(heading[1].upper())}"'
        elif not line.strip():
            yield ".PP"
        elif item and (line.startswith("  -") or item[2]):
            yield from (".TP", f"\\fB{_escaped(item[1])}\\fR")
            if item[2]:
                yield _escaped(item[2])
        else:
            yield _escaped(line.strip())


def _escaped(text: str) -> str:
    """Return text that roff prints as it is."""
    quoted = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{quoted}" if quoted.startswith((".", "'")) else quoted
