"""A target in another thread, for tests of the blocking API."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nvmeof import Target


@contextmanager
def serving(*namespaces: Any, **options: Any) -> Iterator[Target]:
    """Serve within the ``with`` block; yield the target, of which only constant attributes may be read."""
    ready, ends = threading.Event(), threading.Event()
    made: list[tuple[Target, asyncio.AbstractEventLoop, asyncio.Event]] = []
    failures: list[BaseException] = []

    async def serve() -> None:
        stop = asyncio.Event()
        target = Target(namespaces=namespaces, **{"listen": "127.0.0.1:0", **options})
        await target.start()
        try:
            made.append((target, asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()
        finally:
            await target.stop(drain_seconds=0.1)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()
            ends.set()

    thread = threading.Thread(target=run, name="target")
    thread.start()
    ready.wait()
    if failures:
        raise failures[0]
    target, loop, stop = made[0]
    try:
        yield target
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
    if failures:
        raise failures[0]
