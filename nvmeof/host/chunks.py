"""A large range piece by piece, with the next pieces on their way while one is looked at.

This module knows neither commands nor namespaces: it is given the function that reads one piece.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

from nvmeof.errors import LocalProtocolError


async def read_pieces(
    pieces: Iterable[tuple[int, int]], read: Callable[[int, bytearray], Awaitable[None]], ahead: int
) -> AsyncGenerator[bytearray, None]:
    """Yield a buffer for each of ``pieces`` (where it begins, its length in bytes), in their order.

    ``read(begin, buffer)`` fills one. Up to ``ahead`` pieces after the current one are read at the same time. The
    first error ends the iteration; what is under way then, or when the iteration is given up, is cancelled.
    """
    if ahead < 0:
        raise LocalProtocolError(f"a read-ahead of {ahead} pieces: give 0 or more")
    todo = iter(pieces)
    under_way: deque[tuple[asyncio.Task[None], bytearray]] = deque()

    async def fill(begin: int, buffer: bytearray) -> None:
        await read(begin, buffer)

    def start() -> bool:
        piece = next(todo, None)
        if piece is None:
            return False
        begin, length = piece
        buffer = bytearray(length)
        under_way.append((asyncio.create_task(fill(begin, buffer)), buffer))
        return True

    try:
        while len(under_way) <= ahead and start():
            pass
        while under_way:
            task, buffer = under_way[0]
            await task
            under_way.popleft()
            start()
            yield buffer
    finally:
        for task, _ in under_way:
            task.cancel()
        if under_way:
            await asyncio.gather(*(task for task, _ in under_way), return_exceptions=True)
