"""The output of the commands: tables, key-value lines and JSON on stdout, progress and remarks on stderr.

Strings that a controller sends are never trusted: control characters and markup do not reach the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from nvmeof.cli import streams

PIPE_COLUMNS = 240
"""Width assumed where stdout is no terminal: wide enough that no table line is folded."""


def clean(value: object) -> str:
    """Return ``value`` as text without control characters (an escape sequence in a serial number, say)."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(value))


def console() -> Console:
    """Return a console on stdout."""
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if terminal else PIPE_COLUMNS, highlight=False, markup=False)


def remark(text: str) -> None:
    """Print one line on stderr."""
    streams.remark("nvmeof-host", text)


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


def hexdump(data: bytes) -> Iterator[str]:
    """Yield sixteen bytes per line: offset, hex, printable characters."""
    for start in range(0, len(data), 16):
        piece = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"{start:04x}: {piece.hex(' '):<47}  {text}"


def size(value_bytes: float) -> str:
    """Format bytes for a person, in decimal units as disks have them: ``1.07 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value_bytes) < 1000:
            return f"{value_bytes:.0f} {unit}" if unit == "B" else f"{value_bytes:.2f} {unit}"
        value_bytes /= 1000
    return f"{value_bytes:.2f} PB"


def block_size(value_bytes: int) -> str:
    """Format a block size: ``512 B``, ``4 KiB``."""
    return f"{value_bytes >> 10} KiB" if value_bytes >= 1024 and value_bytes % 1024 == 0 else f"{value_bytes} B"


def transport_in_use(facts: Mapping[str, Any]) -> str:
    """Return the transport of a queue as it is now: ``mptcp (4 subflows)``, ``tcp (asked for mptcp)``."""
    asked, actual = facts.get("transport", "?"), facts.get("protocol")
    if actual is None or actual == asked:
        subflows = len(facts.get("subflows") or ())
        return f"{asked} ({subflows} subflow{'s' if subflows != 1 else ''})" if asked == "mptcp" else str(asked)
    return f"{actual} (asked for {asked})"


@contextmanager
def progress(what: str, total_bytes: int | None) -> Iterator[Any]:
    """Yield a callable that takes the number of further bytes done; draw a bar on stderr where that is a terminal.

    ``total_bytes`` None: the end is not known.
    """
    if not sys.stderr.isatty():
        yield lambda more: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda more: bar.advance(task, more)


@contextmanager
def live_line() -> Iterator[Callable[[str], None]]:
    """Yield a callable that replaces a line on stderr, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    terminal = Console(stderr=True, highlight=False, markup=False)

    def show(text: str) -> None:
        print(f"\r{clean(text)[: terminal.width - 1]:<{terminal.width - 1}}\r", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        show("")
