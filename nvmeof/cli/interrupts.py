"""Ctrl-C while a coroutine runs: it is cancelled and has :data:`GRACE_SECONDS` to end in order; exit code 130."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, TypeVar

from nvmeof.cli.early import EXIT_INTERRUPTED

T = TypeVar("T")

GRACE_SECONDS: Final = 2.0
"""How long an orderly end may take after SIGINT: closing a controller that answers takes milliseconds."""


class _Interrupt:
    """What SIGINT does to a coroutine: the first cancels it, a second raises, and after a while the process ends."""

    def __init__(self, program: str) -> None:
        self.count = 0
        self._program = program
        self._task: asyncio.Task[Any] | None = None

    async def watch(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        return await coroutine

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 or self._task is None:
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, self._over)
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        # the signal interrupts the loop between two callbacks or within one: cancelling waits for the next turn
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    def _over(self, number: int, frame: FrameType | None) -> None:
        with suppress(OSError, ValueError):
            if select.select([], [2], [], 0)[1]:
                os.write(2, f"{self._program}: interrupted, without an orderly end\n".encode())
        os._exit(EXIT_INTERRUPTED)


@contextmanager
def regular_end() -> Iterator[None]:
    """Make SIGINT the regular end of what is awaited in the block: it ends the block, not the program."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.uncancel():
            raise


@contextmanager
def unhurried() -> Iterator[None]:
    """Suspend the time limit after SIGINT for the block; the limit restarts at its end."""
    # another's timer, as that of a test's own limit, is left alone
    limited = getattr(signal.getsignal(signal.SIGALRM), "__func__", None) is _Interrupt._over
    if limited:
        signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)


def run(program: str, coroutine: Coroutine[Any, Any, T], runner: Callable[[Coroutine[Any, Any, T]], T]) -> T:
    """Run a coroutine so that SIGINT ends it. Raises KeyboardInterrupt when it was cancelled by one.

    A coroutine that catches the CancelledError and returns has made SIGINT its regular end. `runner` is
    :func:`asyncio.run` or what takes its place.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return runner(coroutine)
    interrupt = _Interrupt(program)
    signal.signal(signal.SIGINT, interrupt)
    try:
        return runner(interrupt.watch(coroutine))
    except asyncio.CancelledError:
        if interrupt.count:
            raise KeyboardInterrupt from None
        raise
    finally:
        if interrupt.count:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
