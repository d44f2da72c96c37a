"""The output of the commands: tables, key-value lines and JSON on stdout, progress and remarks on stderr.

Strings that a controller sends are never trusted: control characters and markup do not reach the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from nvmeof.cli import streams
from nvmeof.cli.tables import PIPE_COLUMNS as PIPE_COLUMNS
from nvmeof.cli.tables import clean as clean
from nvmeof.cli.tables import console as console
from nvmeof.cli.tables import plain_json as plain_json
from nvmeof.cli.tables import print_fields as print_fields
from nvmeof.cli.tables import print_json as print_json
from nvmeof.cli.tables import print_table as print_table
from nvmeof.cli.tables import size as size


def remark(text: str) -> None:
    """Print one line on stderr."""
    streams.remark("nvmeof-host", text)


def hexdump(data: bytes) -> Iterator[str]:
    """Yield sixteen bytes per line: offset, hex, printable characters."""
    for start in range(0, len(data), 16):
        piece = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"{start:04x}: {piece.hex(' '):<47}  {text}"


def block_size(value_bytes: int) -> str:
    """Format a block size: ``512 B``, ``4 KiB``."""
    return f"{value_bytes >> 10} KiB" if value_bytes >= 1024 and value_bytes % 1024 == 0 else f"{value_bytes} B"


def transport_in_use(facts: Mapping[str, Any]) -> str:
    """Return the transport of a queue as it is now: ``mptcp (4 subflows)``, ``tcp (asked for mptcp)``, ``tcp, TLS``."""
    asked, actual = facts.get("transport", "?"), facts.get("protocol")
    secured = ", TLS" if facts.get("tls") else ""
    if actual is None or actual == asked:
        subflows = len(facts.get("subflows") or ())
        text = f"{asked} ({subflows} subflow{'s' if subflows != 1 else ''})" if asked == "mptcp" else str(asked)
        return text + secured
    return f"{actual} (asked for {asked}){secured}"


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
