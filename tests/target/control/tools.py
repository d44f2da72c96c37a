"""A target with a control socket, for the tests of this folder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from nvmeof.target.control import Control, ControlServer
from nvmeof.target.control.process import Hooks
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk

NQN = "nqn.2026-01.io.nvmeof:target"
OTHER = "nqn.2026-01.org.example:other"
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"


@asynccontextmanager
async def controlled(path: Path, *, hooks: Hooks | None = None, **options: Any) -> AsyncIterator[ControlServer]:
    """A target of one ramdisk on TCP, with its control socket; `options` are those of the server."""
    async with (
        Target(namespaces=[Ramdisk("1M")], trtype="tcp") as target,
        ControlServer(Control(target, hooks), path, **options) as server,
    ):
        yield server


@contextmanager
def served(path: Path) -> Iterator[None]:
    """The same in a thread, for command lines, which have event loops of their own."""
    ready, failures = threading.Event(), list[BaseException]()
    state: dict[str, Any] = {}

    async def serve() -> None:
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        async with controlled(path):
            ready.set()
            await state["stop"].wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failures.append(error)
        ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(20)
        assert not failures, failures
        yield
    finally:
        if not failures:
            state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(20)
    assert not failures, failures
