"""What command lines print: tables, key-value lines and JSON on stdout.

Strings that a peer sends are never trusted: control characters and markup do not reach the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

BAR_WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"
PIPE_COLUMNS = 240
"""Width assumed where stdout is no terminal: wide enough that no table line is folded."""


def clean(value: object) -> str:
    """Return ``value`` as text without control characters (an escape sequence in a serial number, say)."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(value))


def console() -> Console:
    """Return a console on stdout."""
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if terminal else PIPE_COLUMNS, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """Print JSON on stdout; bytes as hex."""
    print(json.dumps(plain_json(value), indent=2, ensure_ascii=True))


def plain_json(value: Any) -> Any:
    """Convert ``value`` to types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items() if key != "_io"}
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = (), key: str | None = None
) -> None:
    """Print an aligned table without frame; the columns in ``right`` are right-aligned.

    No value is ever broken over two lines, so that each can be copied. Where the terminal is too narrow for the table,
    the column ``key`` (an NQN) has a separate line above the rest of its row; where that is still too wide, each row
    becomes a block: its key, then ``name : value`` lines.
    """
    terminal = console()
    cells: list[list[str]] = [list(map(clean, row)) for row in rows]
    lines = _aligned(headings, cells, right)
    room = terminal.width if terminal.is_terminal else PIPE_COLUMNS
    if key in headings and _width(lines) > room:
        at = headings.index(key)
        others = [name for name in headings if name != key]
        lines = _aligned(others, [row[:at] + row[at + 1 :] for row in cells], right)
        if _width(lines) + 2 <= room:
            above = [str(key), *(row[at] for row in cells)]
            _print_lines(
                terminal, [each for pair in zip(above, lines, strict=True) for each in (pair[0], f"  {pair[1]}")], 2
            )
            return
    if terminal.is_terminal and _width(lines) > room:
        for number, row in enumerate(cells):
            if number:
                print()
            fields = dict(zip(headings, row, strict=True))
            if key is not None:
                print(fields.pop(key).strip())
            print_fields((f"  {name.strip()}", value) for name, value in fields.items())
        return
    _print_lines(terminal, _aligned(headings, cells, right), 1)


def _aligned(headings: Sequence[str], rows: list[list[str]], right: Sequence[str]) -> list[str]:
    widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            " " * (width - cell_len(cell)) + cell if name in right else cell + " " * (width - cell_len(cell))
            for name, cell, width in zip(headings, cells, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(headings), *map(line, rows)]


def _width(lines: list[str]) -> int:
    return max(map(cell_len, lines))


def _print_lines(terminal: Console, lines: list[str], headings: int) -> None:
    for number, line in enumerate(lines):
        if number < headings and terminal.is_terminal:
            terminal.print(Text(line, style="bold"), soft_wrap=True)
        else:
            print(line)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print ``name : value`` lines."""
    shown = [(name, clean(value)) for name, value in fields]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}} : {value}")


def size(value_bytes: float) -> str:
    """Format bytes for a person, in decimal units as disks have them: ``1.07 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value_bytes) < 1000:
            return f"{value_bytes:.0f} {unit}" if unit == "B" else f"{value_bytes:.2f} {unit}"
        value_bytes /= 1000
    return f"{value_bytes:.2f} PB"


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of `width` characters for a share of 0 to 1, in steps of an eighth of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)
