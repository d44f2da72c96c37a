"""A host and a target in one process over the memory transport: what the drivers of both ends cost, without a kernel.

The cases of `benchmarks.instructions` that go through an event loop. Nothing but public names is used, so that the
same file runs against another checkout of the package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import nvmeof

BLOCK_BYTES: Final = 512
CASES: Final[dict[str, tuple[int, int]]] = {
    "both ends over memory, 4 KiB reads one by one": (4096, 1),
    "both ends over memory, 4 KiB reads at depth 32": (4096, 32),
}
"""By name: bytes of each command, and how many are under way at once. Nothing here may take so long that the time for
which one connection is read plays a part: the count would vary."""
COMMANDS: Final = 32
"""Commands of one round of a case."""


class BothEnds:
    """A target with a ramdisk and a host that is connected to it, on an event loop of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.SelectorEventLoop()
        self._target: Any = None
        self._controller: Any = None
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._target = nvmeof.Target(namespaces=[nvmeof.Ramdisk("64M")], trtype="memory", listen="memory:0")
        await self._target.start()
        address = self._target.address
        self._controller = await nvmeof.connect(
            address.host,
            address.port,
            subnqn=self._target.subnqn,
            transport="memory",
            hostnqn="nqn.2026-01.org.example:both-ends",
            keep_alive_tmo=0,
        )
        self._namespace = self._controller.namespace(1)
        await self._namespace.refresh()

    def case(self, name: str) -> Callable[[], int]:
        """Return a function that runs one round of a case and returns the number of its commands."""
        size, depth = CASES[name]
        buffers = [memoryview(bytearray(size)) for _ in range(depth)]
        blocks = size // BLOCK_BYTES

        async def worker(index: int) -> None:
            namespace, buffer = self._namespace, buffers[index]
            for number in range(index, COMMANDS, depth):
                await namespace.read_into(number * blocks, buffer)

        async def round_() -> None:
            if depth == 1:
                await worker(0)
            else:
                await asyncio.gather(*map(worker, range(depth)))

        def once() -> int:
            self._loop.run_until_complete(round_())
            return COMMANDS

        return once

    def close(self) -> None:
        """Disconnect, and stop the target."""
        self._loop.run_until_complete(self._controller.disconnect())
        self._loop.run_until_complete(self._target.stop())
        self._loop.close()
