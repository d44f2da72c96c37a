"""The device's process: takes commands from a ring, speaks NVMe/TCP by the software queue, and answers in another ring.

Started by :mod:`nvmeof.host.offload.process`, as ``python -m nvmeof.host.offload.engine MEMORY REQUESTS COMPLETIONS``:
the descriptors of the shared memory and of the two doorbells. Control messages are lines of JSON on standard input,
answers to them on standard output; the process ends when its input does, at whatever point its parent has died.
"""

from __future__ import annotations

import asyncio
import json
import logging
import mmap
import os
import signal
import sys
from collections.abc import Sequence
from itertools import chain
from struct import Struct
from typing import Any, Final
from uuid import UUID

from nvmeof.aio.runloop import run
from nvmeof.errors import LocalProtocolError, NvmeofError
from nvmeof.host.offload.layout import (
    COMPLETION_BYTES,
    COMPLETIONS_MAX,
    READ,
    SUBMISSION_BYTES,
    WHOLE,
    WRITE,
    Kind,
    RingReader,
    RingRecord,
    RingWriter,
    series_items,
)
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import Queue
from nvmeof.host.socket_queue import SocketQueue, SocketQueueDevice

log = logging.getLogger("nvmeof.host")

TRANSPORT: Final = "tcp"
"""The transport that the device speaks."""
_SQE: Final = Struct("64s")
_CONTROL_BYTES: Final = 1 << 16


class EngineQueue(Queue):
    """A queue whose commands the application keeps: CIDs are its, and completions go to it as they are."""

    __slots__ = ("engine", "link", "slot", "under_way")

    def __init__(self, engine: Engine, slot: int, options: ConnectOptions, fields: dict[str, Any]) -> None:
        super().__init__(
            engine.device, options, fields["qid"], fields["entries"], capsule_bytes=fields["capsule_bytes"]
        )
        self.engine = engine
        self.slot = slot
        self.link: SocketQueue | None = None
        self.under_way = 0
        self.on_error = engine.queue_error

    def complete(self, entries: Sequence[tuple[int, int, int, int]]) -> None:
        """Answer in the ring."""
        self.under_way -= len(entries)
        self.engine.completed(self, entries)


class Engine:
    """All queues of one device, on the running event loop."""

    def __init__(self, memory: memoryview, requests: int, completions: int) -> None:
        self.device = SocketQueueDevice()
        self.queues: dict[int, EngineQueue] = {}
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self._memory = memory
        self._requests = requests
        self._in = RingReader(memory, 0, SUBMISSION_BYTES, requests)
        self._out = RingWriter(memory, SUBMISSION_BYTES, COMPLETION_BYTES, completions)
        self._will_ring = False
        self._creating: dict[int, asyncio.Task[None]] = {}
        self._input = bytearray()

    async def serve(self) -> None:
        """Serve until standard input ends. Raises what a defect here, or the application, leads to."""
        os.set_blocking(sys.stdin.fileno(), False)
        self.loop.add_reader(self._requests, self._guarded, self._on_doorbell)
        self.loop.add_reader(sys.stdin.fileno(), self._guarded, self._on_control)
        self._say({"ready": True})
        await self.ended
        for queue in self.queues.values():
            self.device.drain_queue(queue)
            self.device.destroy_queue(queue)

    def _guarded(self, handle: Any) -> None:
        """End with what ``handle`` raises: the application sees the end of the process as that of all queues."""
        try:
            handle()
        except Exception as error:
            if not self.ended.done():
                self.ended.set_exception(error)

    # -- control

    def _say(self, answer: dict[str, Any]) -> None:
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")

    def _on_control(self) -> None:
        data = os.read(sys.stdin.fileno(), _CONTROL_BYTES)
        if not data:
            if not self.ended.done():
                self.ended.set_result(None)
            return
        self._input += data
        *lines, rest = self._input.split(b"\n")
        self._input = rest
        for line in lines:
            message = json.loads(line)
            if "create" in message:
                slot = message["slot"]
                self._creating[slot] = self.loop.create_task(self._create(slot, message["create"]))
            else:
                self.loop.create_task(self._destroy(message["destroy"]))

    async def _create(self, slot: int, fields: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"slot": slot}
        try:
            chosen = {**fields["options"], "transport": TRANSPORT}
            options = ConnectOptions(**{**chosen, "hostid": UUID(chosen["hostid"])})
            queue = EngineQueue(self, slot, options, fields)
            await self.device.create_queue(queue)
            queue.link = queue.private  # type: ignore[assignment]
            self.queues[slot] = queue
            answer["peer"] = self.device.peer_address(queue)
            answer["facts"] = self.device.describe(queue)
        except NvmeofError as error:
            answer["error"], answer["message"] = type(error).__name__, str(error)
        finally:
            del self._creating[slot]
        self._say(answer)

    async def _destroy(self, slot: int) -> None:
        creating = self._creating.get(slot)
        if creating is not None:
            creating.cancel()
            await asyncio.wait([creating])
        queue = self.queues.pop(slot, None)
        if queue is not None:
            self.device.drain_queue(queue)
            self.device.destroy_queue(queue)
        self._say({"slot": slot, "destroyed": True})

    # -- commands

    def _on_doorbell(self) -> None:
        """Give all announced commands to their connections, and send once for each of these."""
        self._in.listen()
        touched: dict[EngineQueue, None] = {}
        for record in self._in.records():
            queue = self.queues.get(record[2])
            if record[0] == Kind.DRAIN:
                if queue is not None:
                    self.device.drain_queue(queue)
                self._out.signal(Kind.DRAINED, record[2])
                self._out.ring()
                continue
            link = None if queue is None else queue.link
            if queue is None or link is None or link.driver.closed:
                continue  # it is broken, and the application will hear of that
            try:
                if record[0] == Kind.SERIES:
                    self._series(queue, link, record)
                else:
                    self._command(queue, link, record)
            except LocalProtocolError as error:
                queue.report_err(error)
                continue
            touched[queue] = None
        for queue in touched:
            assert queue.link is not None
            queue.link.driver.flush()

    def _command(self, queue: EngineQueue, link: SocketQueue, record: RingRecord) -> None:
        _, flags, _, cid, size, offset, at = record
        memory = self._memory
        data = memory[offset : offset + size] if flags else None
        queue.under_way += 1
        (sqe,) = _SQE.unpack_from(memory, at)
        if flags == READ:
            link.connection.send_command(cid, sqe, None, data)
        else:
            link.connection.send_command(cid, sqe, data)

    def _series(self, queue: EngineQueue, link: SocketQueue, record: RingRecord) -> None:
        _, flags, _, count, size, offset, at = record
        memory, whole = self._memory, flags & WHOLE != 0
        items = series_items(count, whole=whole).unpack_from(memory, at + _SQE.size)
        offsets = range(offset, offset + count * size, size) if whole else items[2 * count :]
        places = [memory[each : each + size] for each in offsets]
        queue.under_way += count
        send = link.connection.send_writes if flags & WRITE else link.connection.send_reads
        send(items[count : 2 * count], _SQE.unpack_from(memory, at)[0], items[:count], places)

    # -- completions

    def completed(self, queue: EngineQueue, entries: Sequence[tuple[int, int, int, int]]) -> None:
        """Answer commands; the doorbell rings at once for a queue that has nothing else to do, else with whatever
        comes in the same turn of the loop."""
        for first in range(0, len(entries), COMPLETIONS_MAX):
            some = entries[first : first + COMPLETIONS_MAX]
            cids, statuses, low, high = zip(*some, strict=True)
            if any(statuses) or any(low) or any(high):
                self._out.completions(queue.slot, list(chain.from_iterable(some)), len(some))
            else:
                self._out.good(queue.slot, cids)
        if not queue.under_way:
            self._out.ring()
        elif not self._will_ring:
            self._will_ring = True
            self.loop.call_soon(self._ring)

    def _ring(self) -> None:
        self._will_ring = False
        self._out.ring()

    def queue_error(self, queue: Queue, error: NvmeofError) -> None:
        """Report a broken queue; nothing of it moves after this."""
        assert isinstance(queue, EngineQueue)
        queue.error = error
        self.device.drain_queue(queue)
        self._out.signal(Kind.ERROR, queue.slot, str(error).encode())
        self._out.ring()


async def _serve(memory: memoryview, requests: int, completions: int) -> None:
    await Engine(memory, requests, completions).serve()


def main(arguments: Sequence[str]) -> None:
    """Run the device over the descriptors that the arguments name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent, which the terminal asks too
    logging.basicConfig(level=logging.WARNING, format="offload device: %(message)s")
    descriptor, requests, completions = map(int, arguments)
    mapping = mmap.mmap(descriptor, 0)
    os.close(descriptor)
    try:
        run(_serve(memoryview(mapping), requests, completions))
    except Exception as error:
        # the application reports the end of this process as that of its queues
        log.error("internal error: %s: %s", type(error).__name__, error)
        log.debug("where that happened", exc_info=error)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
