"""A line of the log stays one line, and moves no cursor, whatever a peer is called."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from nvmeof.cli.line_log import LineFormatter


def line(message: str, *arguments: object, exc_info: object = None) -> str:
    record = logging.LogRecord("nvmeof", logging.INFO, "", 0, message, arguments, exc_info)  # type: ignore[arg-type]
    return LineFormatter("12:00:00 %(message)s").format(record)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("nqn.2026-01.org.example:disk", "nqn.2026-01.org.example:disk"),
        ("a\n12:00:01 host b has authenticated itself", r"a\n12:00:01 host b has authenticated itself"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b2J\u2028\u202e", r"\x9b2J\u2028\u202e"),
        ("Grüße", "Grüße"),
    ],
)
def test_control_characters_are_escaped(name: str, shown: str) -> None:
    assert line("%s: connected", name) == f"12:00:00 {shown}: connected"


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        told = line("it failed", exc_info=sys.exc_info())
    assert told.startswith("12:00:00 it failed\nTraceback") and told.endswith("ValueError: x")


@pytest.mark.parametrize("module", ["nvmeof.host", "nvmeof.target"])
def test_both_command_lines_log_so(module: str) -> None:
    code = (
        f"import logging, click, {module}.__main__ as main\n"
        "from nvmeof.cli.line_log import LineFormatter\n"
        "try: main.cli(['--block-size', '7'] if 'target' in main.__name__ else [], standalone_mode=False)\n"
        "except click.UsageError: pass\n"
        "(handler,) = logging.getLogger().handlers\n"
        "assert type(handler.formatter) is LineFormatter\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
