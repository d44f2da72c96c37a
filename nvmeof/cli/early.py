"""Ctrl-C while modules are imported: nothing to undo, no traceback. This module imports next to nothing."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Final

EXIT_INTERRUPTED: Final = 130
"""The exit code of a shell for a command that SIGINT ended: 128 + 2."""


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)


def exit_at_interrupt() -> None:
    """End the process at SIGINT until :func:`raise_at_interrupt`, unless a handler of SIGINT is set."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_at_interrupt() -> None:
    """Let SIGINT raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
