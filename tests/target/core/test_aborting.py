"""Awaits that an abort can end, and their remains."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable

import pytest

from nvmeof.target.core.aborting import AbortableAwait, Uninterruptible, abandon
from nvmeof.target.storage.operation import Operation


async def _given_up(kind: str) -> None:
    operation: Operation[int] = Operation()
    waiting: dict[int, object] = {}
    pending = AbortableAwait(waiting, 7, operation) if kind == "abortable" else Uninterruptible(operation)

    async def command(pending: Awaitable[int]) -> str:
        try:
            await pending
        except OSError as error:
            return str(error.errno)
        return "done"

    running = asyncio.ensure_future(command(pending))
    await asyncio.sleep(0)
    if kind == "abortable":
        assert abandon(waiting[7])
    else:
        operation.set_exception(OSError(125, "given up"))
    del operation, pending
    assert await running == "125" and not waiting


@pytest.mark.parametrize("kind", ["abortable", "uninterruptible"])
async def test_an_aborted_command_leaves_nothing_to_the_collector(kind: str) -> None:
    """The future refers to the error, the error to its traceback, and the traceback to the frames that awaited the
    future.
    """
    gc.collect()
    gc.disable()
    try:
        await _given_up(kind)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = {type(each).__name__ for each in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kinds & {"Operation", "AbortableAwait", "Uninterruptible", "OSError"}
