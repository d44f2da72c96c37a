"""A target's queue in this process, without sockets or an event loop: bytes in, bytes out, by function call."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any

from benchmarks import wireformat as w
from benchmarks.session import HOST_NQN, BenchmarkError, SessionOptions, Stream, bring_up
from nvmeof.protocol.connection import ConnectionConfig, TargetConnection
from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.queue import TargetQueue
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from nvmeof.wire import Buffer

SUBNQN = "nqn.2026-01.io.nvmeof:inprocess"
NOW = 0.0
_DATA_PDU = struct.Struct("<BBBBIHHII4x")  # R2T and H2CData: header, CCCID, TTAG, offset, length


def _plenty() -> int:
    return 1 << 30


class _NoTimer:
    def cancel(self) -> None:
        """There is nothing to stop."""


class _Runtime:
    """Time stands still, and nothing may wait: a ramdisk completes at once."""

    def create_future(self) -> Any:
        raise BenchmarkError("a command wants to wait, and nothing here can")

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> _NoTimer:
        return _NoTimer()

    def now(self) -> float:
        return NOW

    def in_turn(self, owner: Hashable, callback: Callable[[], object], /) -> None:
        raise BenchmarkError("a command wants to take turns, and nothing here can")

    def spawn(self, coroutine: Coroutine[Any, Any, object], /) -> None:
        coroutine.close()
        raise BenchmarkError("something wants to run in the background, and nothing here can")

    def start(self, coroutine: Coroutine[Any, Any, Any], /) -> Any:
        coroutine.close()
        raise BenchmarkError("something wants to run beside its caller, and nothing here can")

    def in_thread(self, function: Callable[[], Any], /) -> Any:
        raise BenchmarkError("something wants to run in a thread, and nothing here can")


class InProcessQueue(Stream):
    """One connection and its `TargetQueue`; to `benchmarks.session` it looks like a connected socket."""

    def __init__(self, registry: TargetRegistry, port: PortInfo, pool: BufferPool, digests: bool) -> None:
        config = ConnectionConfig(header_digest=digests, data_digest=digests)
        self.connection = TargetConnection(config)
        self.queue = TargetQueue(self.connection, pool, DetachedCommands(), self)
        self.queue.ctx = ConnectContext(_Runtime(), registry, port, self.queue, peer=HOST_NQN)
        self._out = bytearray()

    # what the queue asks of its driver
    def spawn(self, pending: Awaitable[Completion], done: Callable[[Completion], None]) -> None:
        raise BenchmarkError("a command did not complete at once")

    def wake(self) -> None:
        """Output is taken after every input anyway."""

    def wait_for_room(self) -> None:
        """What waits goes on after every output anyway."""

    def hold_receiving(self, crowded: bool) -> None:
        """The cases are received whatever they lead to."""

    def finish(self, reason: str, *, fault: bool = False) -> None:
        """The connection has no socket to close."""

    # what a session asks of its socket
    def sendall(self, data: Buffer, /) -> None:
        view = memoryview(data)
        while view:
            buffer = self.connection.next_buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            self.queue.handle(self.connection.bytes_received(count, NOW), NOW)
        for part in self.connection.data_to_send():
            self._out += part
        self.connection.bytes_sent(self.connection.backlog_bytes)

    def recv_into(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        del self._out[:count]
        return count

    def close(self) -> None:
        self.queue.lost("closed")
        self.connection.close()

    def exchange(self, batch: bytes) -> int:
        """Put a batch of capsules in and take the answers out, uncopied; returns their size in bytes."""
        self._put(batch)
        return self._take()

    def _put(self, data: bytes) -> None:
        connection, at, size = self.connection, 0, len(data)
        while at < size:
            buffer = connection.next_buffer()
            count = min(len(buffer), size - at)
            buffer[:count] = data[at : at + count]
            at += count
            self.queue.handle(connection.bytes_received(count, NOW), NOW)

    def _take(self) -> int:
        connection = self.connection
        sent = sum(map(len, connection.data_to_send()))
        connection.bytes_sent(sent)
        return sent

    def exchange_writes(self, batch: bytes, length: int) -> int:
        """As `exchange`, for Writes of ``length`` bytes each that wait for their R2Ts.

        Each receive brings the rest of a payload and the header of the next one, as a busy socket does. The payloads
        are where they belong, for nobody touches them. Making the headers, the host's part, is in the time.
        """
        self._put(batch)
        asked = b"".join(self.connection.data_to_send())
        self.connection.bytes_sent(len(asked))
        head_bytes = _DATA_PDU.size
        headers = [
            _DATA_PDU.pack(w.H2C_DATA, w.LAST_PDU, head_bytes, head_bytes, head_bytes + length, cid, ttag, 0, length)
            for _, _, _, _, _, cid, ttag, _, _ in _DATA_PDU.iter_unpack(asked)
        ]
        headers.append(b"")
        self._put(headers[0])
        connection, sent = self.connection, 0
        for turn, header in enumerate(headers[1:]):
            place, behind = connection.next_buffer(_plenty), connection.behind
            if len(place) != length or behind is None:
                raise BenchmarkError("a payload is not received in place, in one go")
            behind[: len(header)] = header
            self.queue.handle(connection.bytes_received(length + len(header), NOW), NOW)
            if turn % 2:
                sent += self._take()
        return sent + self._take()


def open_queue(size_bytes: int, *, digests: bool = False, flow_control: bool = False) -> InProcessQueue:
    """An I/O queue of an enabled controller whose namespace 1 is a ramdisk, ready for commands."""
    registry = TargetRegistry(standard_tables())
    namespaces = (NamespaceConfig(backend=Ramdisk(size_bytes)),)
    registry.add_subsystem(Subsystem(SubsystemConfig(nqn=SUBNQN, namespaces=namespaces)))
    port = PortInfo(portid=1, transport="tcp", trtype=3, traddr="127.0.0.1", trsvcid="4420")
    registry.add_port(port)
    pool = BufferPool()
    queues: list[InProcessQueue] = []

    def dial() -> InProcessQueue:
        queues.append(InProcessQueue(registry, port, pool, digests))
        return queues[-1]

    options = SessionOptions(
        "memory", 0, SUBNQN, header_digest=digests, data_digest=digests, flow_control=flow_control, depth=127
    )
    bring_up(options, dial)
    return queues[-1]
