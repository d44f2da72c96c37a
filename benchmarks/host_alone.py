"""The host by itself: a peer that answers 4 KiB reads from a recording, so that only the host's work is counted.

The host connects to a target over the memory transport. After that the endpoint of its I/O queue is given other
`sendmsg` and `recv_into`, which answer each burst of reads at once: C2HData and a response per command, in order. A few
hundred instructions per command are the peer's, nearly all of them the copy of the data, as the kernel's would be.
"""

from __future__ import annotations

import asyncio
import inspect
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import nvmeof
from nvmeof.host.load import Load

SIZE: Final = 4096
DEPTH: Final = 32
BLOCKS: Final = SIZE // 512
COMMANDS: Final = 128
"""Commands of one round of a case."""
CAPSULE_BYTES: Final = 72
DATA_HEADER: Final = struct.Struct("<BBBBIHHII4x")
RESPONSE: Final = struct.Struct("<BBBBIIIHHHH")
CASES: Final = (
    "host alone, awaited 4 KiB reads at depth 32",
    "host alone, 4 KiB reads of a Load at depth 32",
    "host alone, 4 KiB reads in batches of 32",
)


class RecordedPeer:
    """Answers reads of `SIZE` bytes; `success`: without responses, by the flag in the data's header."""

    def __init__(self, endpoint: Any, loop: asyncio.AbstractEventLoop, *, success: bool = False) -> None:
        flags = 0x0C if success else 0x04
        data = DATA_HEADER.pack(7, flags, 24, 24, 24 + SIZE, 0, 0, 0, SIZE) + bytes(SIZE)
        self._one = data if success else data + RESPONSE.pack(5, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0)
        self._cid_offsets = (8,) if success else (8, len(data) + 20)
        self._answers: dict[int, bytearray] = {}
        self._waiting: list[memoryview] = []
        self._loop = loop
        self._reader: Callable[[], object] | None = None
        self._scheduled = False
        self._read = endpoint._reader
        endpoint.sendmsg, endpoint.recv_into = self.sendmsg, self.recv_into

    def sendmsg(self, buffers: Sequence[Any]) -> int:
        """Take capsules, and have their answers ready."""
        raw = b"".join(buffers)
        count, stride = len(raw) // CAPSULE_BYTES, len(self._one)
        answer = self._answers.get(count)
        if answer is None or self._waiting:
            answer = bytearray(self._one * count)
            self._answers.setdefault(count, answer)
        for offset in self._cid_offsets:
            answer[offset::stride] = raw[10::CAPSULE_BYTES]
            answer[offset + 1 :: stride] = raw[11::CAPSULE_BYTES]
        self._waiting.append(memoryview(answer))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)
        return len(raw)

    def recv_into(self, buffer: memoryview) -> int:
        """Give what is ready."""
        if not self._waiting:
            raise BlockingIOError
        first = self._waiting[0]
        n = min(len(first), len(buffer))
        buffer[:n] = first[:n]
        if n < len(first):
            self._waiting[0] = first[n:]
        else:
            del self._waiting[0]
        return n

    def _run(self) -> None:
        self._scheduled = False
        if self._waiting:
            self._read()
            if self._waiting and not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._run)


class HostAlone:
    """A host whose I/O queue is answered by a `RecordedPeer`, on an event loop of its own."""

    def __init__(self, *, success: bool = False, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.SelectorEventLoop()
        self._loop.run_until_complete(self._start(success))

    async def _start(self, success: bool) -> None:
        self._target = nvmeof.Target(namespaces=[nvmeof.Ramdisk("64M")], trtype="memory", listen="memory:0")
        await self._target.start()
        address = self._target.address
        self._controller = await nvmeof.connect(
            address.host,
            address.port,
            subnqn=self._target.subnqn,
            transport="memory",
            hostnqn="nqn.2026-01.org.example:host-alone",
            keep_alive_tmo=0,
        )
        self._namespace = self._controller.namespace(1)
        await self._namespace.refresh()
        link: Any = self._controller.io_queues[0].private
        self._peer = RecordedPeer(link.endpoint, self._loop, success=success)

    def case(self, name: str) -> Callable[[], int] | None:
        """Return a function that runs one round of a case and returns the number of its commands.

        None where the package that is measured lacks the form.
        """
        if name == CASES[0]:
            return self._awaited()
        if name == CASES[1]:
            return self._load() if "ios" in inspect.signature(Load).parameters else None
        return self._batches() if hasattr(self._namespace, "read_many") else None

    def _awaited(self) -> Callable[[], int]:
        async def worker(index: int, buffer: memoryview) -> None:
            namespace = self._namespace
            for number in range(index, COMMANDS, DEPTH):
                await namespace.read_into(number * BLOCKS, buffer)

        buffers = [memoryview(bytearray(SIZE)) for _ in range(DEPTH)]

        async def round_() -> None:
            await asyncio.gather(*map(worker, range(DEPTH), buffers))

        return self._once(round_)

    def _load(self) -> Callable[[], int]:
        async def round_() -> None:
            load = Load(self._namespace, self._controller.io_queues, "read", SIZE, DEPTH, ios=COMMANDS)
            load.start()
            await load.finished

        return self._once(round_)

    def _batches(self) -> Callable[[], int]:
        namespace: Any = self._namespace
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

    def close(self) -> None:
        """Drop the connections, and stop the target."""
        self._loop.run_until_complete(self._target.stop())
        self._loop.run_until_complete(self._controller.disconnect())
        self._loop.close()
