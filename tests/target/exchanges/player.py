"""Feed recorded bytes of hosts to a target without sockets, and return its output byte for byte.

Time passes only while a command waits; random values are fixed. One subsystem has a ramdisk of 512-byte blocks,
one of 4096-byte blocks, a zoned one, and room for namespaces that hosts make.
"""

from __future__ import annotations

import inspect
import lzma
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

from nvmeof.protocol.connection import ConnectionConfig, TargetConnection
from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.queue import TargetQueue
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.registry import PortInfo, TargetRegistry
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.fake_runtime import FakeRuntime
from tests.target.harness import TABLES

NQN = "nqn.2026-01.org.example:recorded"
RECORDED = Path(__file__).with_name("recorded.xz")
_LONGEST_STEPS = 20_000


class Line:
    """One connection of a host: bytes in, bytes out."""

    def __init__(self, target: PlayedTarget, digests: bool) -> None:
        self.target = target
        self.connection = TargetConnection(ConnectionConfig(header_digest=digests, data_digest=digests))
        self.queue = TargetQueue(self.connection, target.pool, target.detached, self)
        seen = target.port.seen_at("192.0.2.1", 4420)
        self.queue.ctx = ConnectContext(target.runtime, target.registry, seen, self.queue, peer="192.0.2.9:50000")
        self.reason = ""

    # the driver's interface for a queue
    def spawn(self, pending: Awaitable[Completion], done: Callable[[Completion], None]) -> None:
        assert inspect.iscoroutine(pending)
        self.target.waiting.append((pending, done))

    def wake(self) -> None:
        """Do nothing: output is taken after every input anyway."""

    def wait_for_room(self) -> None:
        """Do nothing: waiting commands go on after every output anyway."""

    def hold_receiving(self, crowded: bool) -> None:
        """Do nothing: all recorded bytes are received."""

    def finish(self, reason: str, *, fault: bool = False) -> None:
        self.reason = reason

    def feed(self, data: bytes) -> bytes:
        """Give bytes to the queue; return all of its output, after all commands that can proceed have done so."""
        view, out = memoryview(data), bytearray()
        while view and not self.queue.closed:
            buffer = self.connection.next_buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            self.queue.handle(self.connection.bytes_received(count, self.target.runtime.now()), 0.0)
        self.target.settle()
        while self.connection.want_write:
            parts = self.connection.data_to_send()
            taken = b"".join(parts)
            self.connection.bytes_sent(len(taken))
            out += taken
            self.target.settle()
        return bytes(out)


class PlayedTarget:
    """The target of recording and replaying."""

    def __init__(self) -> None:
        self.runtime = FakeRuntime()
        self.registry = TargetRegistry(TABLES)
        self.pool = BufferPool()
        self.detached = DetachedCommands()
        self.waiting: list[tuple[Awaitable[Completion], Callable[[Completion], None]]] = []
        self.lines: dict[str, Line] = {}
        disks = [Ramdisk("1M"), Ramdisk("1M", block_bytes=4096), Ramdisk("4M")]
        for number, disk in enumerate(disks):
            disk.identity = f"disk {number}"
        zones = ZoneGeometry(zone_bytes=1 << 20, max_open=2, max_active=3)
        namespaces = (
            NamespaceConfig(backend=disks[0]),
            NamespaceConfig(backend=disks[1]),
            NamespaceConfig(backend=disks[2], zoned=zones),
        )
        config = SubsystemConfig(nqn=NQN, firmware="recorded", namespaces=namespaces, pool=RamdiskPool("16M"))
        self.subsystem = Subsystem(config)
        self.registry.add_subsystem(self.subsystem)
        self.port = PortInfo(portid=1, transport="tcp", trtype=3, traddr="0.0.0.0", trsvcid="4420")
        self.registry.add_port(self.port)

    def settle(self) -> None:
        """Run waiting commands and background work until nothing proceeds."""
        for _ in range(_LONGEST_STEPS):
            moved = self.runtime.turn()
            for each in list(self.waiting):
                pending, done = each
                assert inspect.iscoroutine(pending)
                try:
                    pending.send(None)
                except StopIteration as stop:
                    self.waiting.remove(each)
                    done(stop.value)
                    moved = True
            if not moved:
                return
        raise AssertionError("a command goes on for ever")

    def play(self, name: str, data: bytes) -> bytes:
        """Feed bytes to the connection of that name, which is opened when it is new; `digests` in the name enables
        digests.
        """
        if name not in self.lines:
            self.lines[name] = Line(self, "digests" in name)
        return self.lines[name].feed(data)

    def close(self) -> None:
        for pending, _ in self.waiting:
            assert inspect.iscoroutine(pending)
            pending.close()
        for line in self.lines.values():
            line.connection.close()


def fixed_uuids() -> Callable[[], uuid.UUID]:
    """Return a stand-in for `uuid.uuid4`: 1, 2, 3 …"""
    numbers = iter(range(1, 1 << 32))
    return lambda: uuid.UUID(int=next(numbers) << 64 | 4 << 76 | 0x8 << 60)


def store(exchanges: Iterable[tuple[str, bytes, bytes]], path: Path = RECORDED) -> None:
    """Write exchanges: connection, bytes of the host, bytes of the target."""
    lines = (f"{name} {asked.hex()} {answered.hex()}\n" for name, asked, answered in exchanges)
    path.write_bytes(lzma.compress("".join(lines).encode(), preset=9))


def load(path: Path = RECORDED) -> Iterator[tuple[str, bytes, bytes]]:
    """Read an exchange that `store` has written."""
    for line in lzma.decompress(path.read_bytes()).decode().splitlines():
        name, asked, answered = line.split(" ")
        yield name, bytes.fromhex(asked), bytes.fromhex(answered)
