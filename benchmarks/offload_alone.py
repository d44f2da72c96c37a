"""The application's side of the offload device by itself: a device that answers reads at once, in the same process.

The host connects through a real device. After that its ring to the device is given another doorbell, which answers all
that was written as the device would: one record of completions for each turn. A few hundred instructions per round are
the peer's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Final

import nvmeof
from nvmeof.host.offload import layout

SIZE: Final = 4096
DEPTH: Final = 32
BLOCKS: Final = SIZE // 512
COMMANDS: Final = 128
"""Commands of one round of a case."""
CASES: Final = (
    "offload, application alone, awaited 4 KiB reads at depth 32",
    "offload, application alone, 4 KiB reads in batches of 32",
)


class AnsweringRing(layout.RingWriter):
    """A ring whose doorbell answers the commands of one queue, with success, in the next turn of the loop."""

    __slots__ = ("_answers", "_asked", "_loop", "_process")

    def __init__(self, process: Any, memory: memoryview, loop: asyncio.AbstractEventLoop) -> None:
        requests, answers = os.eventfd(0, os.EFD_NONBLOCK), process._completions
        super().__init__(memory, 0, layout.SUBMISSION_BYTES, requests)
        self._asked = layout.RingReader(memory, 0, layout.SUBMISSION_BYTES, requests)
        self._answers = layout.RingWriter(memory, layout.SUBMISSION_BYTES, layout.COMPLETION_BYTES, answers)
        process._in = layout.RingReader(memory, layout.SUBMISSION_BYTES, layout.COMPLETION_BYTES, answers)
        self._process = process
        self._loop = loop

    def ring(self) -> None:
        """Answer what has been written."""
        if not self.pending:
            return
        super().ring()
        self._asked.listen()
        cids: list[int] = []
        slot = 0
        for kind, flags, slot, count, _, _, at in self._asked.records():  # noqa: B007
            if kind == layout.COMMAND_KIND:
                cids.append(count)
            else:
                items = layout.series_items(count, whole=flags & layout.WHOLE != 0)
                cids += items.unpack_from(self._memory, at + 64)[count : 2 * count]
        self._answers.good(slot, cids)
        self._answers.ring()
        self._loop.call_soon(self._process._on_doorbell)


class OffloadAlone:
    """A host on the offload device, whose I/O is answered by an `AnsweringRing`, on an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.SelectorEventLoop()
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._target = nvmeof.Target(namespaces=[nvmeof.Ramdisk("64M")], trtype="tcp", listen="127.0.0.1:0")
        await self._target.start()
        address = self._target.address
        self._controller = await nvmeof.connect(
            address.host,
            address.port,
            subnqn=self._target.subnqn,
            transport="tcp_offload",
            hostnqn="nqn.2026-01.org.example:offload-alone",
            keep_alive_tmo=0,
            io_timeout=1e6,
            admin_timeout=1e6,
        )
        self._namespace = self._controller.namespace(1)
        await self._namespace.refresh()
        process: Any = self._controller.io_queues[0].private.process  # type: ignore[union-attr]
        self._loop.remove_reader(process._completions)
        process.out = AnsweringRing(process, process._memory, self._loop)

    def case(self, name: str) -> Callable[[], int]:
        """Return a function that runs one round of a case and returns the number of its commands."""
        return self._awaited() if name == CASES[0] else self._batches()

    def _awaited(self) -> Callable[[], int]:
        async def worker(index: int, buffer: memoryview) -> None:
            namespace = self._namespace
            for number in range(index, COMMANDS, DEPTH):
                await namespace.read_into(number * BLOCKS, buffer)

        buffers = [memoryview(bytearray(SIZE)) for _ in range(DEPTH)]

        async def round_() -> None:
            await asyncio.gather(*map(worker, range(DEPTH), buffers))

        return self._once(round_)

    def _batches(self) -> Callable[[], int]:
        namespace = self._namespace
        into = bytearray(SIZE * DEPTH)
        starts = [number * BLOCKS for number in range(COMMANDS)]

        async def round_() -> None:
            for first in range(0, COMMANDS, DEPTH):
                await namespace.read_many(starts[first : first + DEPTH], BLOCKS, into=into)

        return self._once(round_)

    def _once(self, round_: Callable[[], Any]) -> Callable[[], int]:
        def once() -> int:
            self._loop.run_until_complete(round_())
            return COMMANDS

        return once
