"""A large range piece by piece, with the next pieces on their way while one is looked at.

This module knows neither commands nor namespaces: it is given the function that reads one piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

from nvmeof.errors import LocalProtocolError
from nvmeof.runtime import Future, Runtime, Task

Read = Callable[[int, bytearray], Awaitable[None]]
"""Fills a buffer with what begins there."""


class _Piece:
    """One piece on its way. `task` ends without an exception; `error` is what its read failed with."""

    __slots__ = ("buffer", "error", "task")

    task: Task[None]

    def __init__(self, length: int) -> None:
        self.buffer = bytearray(length)
        self.error: Exception | None = None


class _Reads:
    """The reads in progress, and a way to wait for the end of all."""

    def __init__(self, runtime: Runtime, read: Read) -> None:
        self._runtime = runtime
        self._read = read
        self._count = 0
        self._ended: Future[None] | None = None

    def start(self, begin: int, length: int) -> _Piece:
        piece = _Piece(length)
        piece.task = self._runtime.start(self._fill(piece, begin))
        return piece

    async def _fill(self, piece: _Piece, begin: int) -> None:
        self._count += 1
        try:
            await self._read(begin, piece.buffer)
        except Exception as error:
            piece.error = error
        finally:
            self._count -= 1
            if not self._count and self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

    async def cancel(self, pieces: Iterable[_Piece]) -> None:
        """Cancel what is in progress, and wait until it has ended: no buffer is written from then on."""
        for piece in pieces:
            piece.task.cancel()
        if self._count:
            self._ended = self._runtime.create_future()
            await self._ended


async def read_pieces(
    runtime: Runtime, pieces: Iterable[tuple[int, int]], read: Read, ahead: int
) -> AsyncGenerator[bytearray, None]:
    """Yield a buffer for each of ``pieces`` (where it begins, its length in bytes), in their order.

    ``read(begin, buffer)`` fills one. Up to ``ahead`` pieces after the current one are read at the same time. The
    first error ends the iteration; what is in progress then, or when the iteration is given up, is cancelled.
    Raises what ``read`` raises, and :class:`LocalProtocolError` for a negative ``ahead``.
    """
    if ahead < 0:
        raise LocalProtocolError(f"a read-ahead of {ahead} pieces: give 0 or more")
    todo = iter(pieces)
    reads = _Reads(runtime, read)
    under_way: deque[_Piece] = deque()

    def start() -> bool:
        piece = next(todo, None)
        if piece is not None:
            under_way.append(reads.start(*piece))
        return piece is not None

    try:
        while len(under_way) <= ahead and start():
            pass
        while under_way:
            piece = under_way[0]
            await piece.task
            if piece.error is not None:
                raise piece.error
            under_way.popleft()
            start()
            yield piece.buffer
    finally:
        await reads.cancel(under_way)
