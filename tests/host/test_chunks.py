"""Pieces of a large range: reading ahead, and its end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

import pytest

from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.host.chunks import read_pieces

PIECES = [(begin, 4) for begin in range(10)]


class Reads:
    """Reads: those before `stop` complete at once, the others end slowly when they are cancelled."""

    def __init__(self, stop: int = len(PIECES)) -> None:
        self.runtime = AsyncioRuntime(logging.getLogger("test"))
        self.stop = stop
        self.in_progress: set[int] = set()
        self.may_end = asyncio.Event()

    async def read(self, begin: int, buffer: bytearray) -> None:
        self.in_progress.add(begin)
        try:
            if begin >= self.stop:
                await asyncio.Event().wait()
            if begin == 3:
                raise OSError("block 3 cannot be read")
            buffer[:] = bytes([begin]) * len(buffer)
        except asyncio.CancelledError:
            await self.may_end.wait()
            raise
        finally:
            self.in_progress.discard(begin)


async def test_the_first_error_is_raised_in_its_place() -> None:
    reads, seen = Reads(), []
    with pytest.raises(OSError, match="block 3"):
        async for piece in read_pieces(reads.runtime, PIECES, reads.read, 5):
            seen.append(bytes(piece))
    assert seen == [bytes([begin]) * 4 for begin in range(3)]


async def test_no_read_is_in_progress_after_the_loop_was_left() -> None:
    reads = Reads(stop=1)

    async def use() -> None:
        async with aclosing(read_pieces(reads.runtime, PIECES, reads.read, 2)) as pieces:
            assert await anext(pieces) == bytes(4)
            await asyncio.sleep(0)
            assert reads.in_progress == {1, 2, 3}

    task = asyncio.create_task(use())
    for _ in range(10):
        await asyncio.sleep(0)
    assert reads.in_progress == {1, 2, 3} and not task.done()
    reads.may_end.set()
    await asyncio.wait_for(task, 5)
    assert not reads.in_progress


async def test_the_wait_for_the_end_of_reads_can_be_cancelled() -> None:
    reads = Reads(stop=1)

    async def use() -> None:
        async with aclosing(read_pieces(reads.runtime, PIECES, reads.read, 2)) as pieces:
            await anext(pieces)
        raise AssertionError("the cancellation was lost")

    task = asyncio.create_task(use())
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    reads.may_end.set()
