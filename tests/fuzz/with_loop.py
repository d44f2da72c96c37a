"""Harnesses with an event loop: a whole target over the transport in memory, and the NBD export of a namespace."""

from __future__ import annotations

import asyncio
import struct
from contextlib import AsyncExitStack
from typing import Any, ClassVar, cast

import nvmeof
from nvmeof.host.nbd_export.disk import ExportedDisk
from nvmeof.host.nbd_export.server import NbdClientProtocol, NbdServer
from nvmeof.nbd.numbers import EXTENDED_REQUEST_MAGIC, OPTION_MAGIC, REQUEST_MAGIC
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.transport import Endpoint
from tests.conformance.rawhost import RawHost, connect_data, io_sqe, make_sqe
from tests.fuzz.bytes_reader import Reader
from tests.fuzz.harness import Harness, Violation, register
from tests.fuzz.pdus import FRAMINGS, stream
from tests.fuzz.sans_io import NEIGHBOUR, PATTERN
from tests.protocol.wire import Framing, icreq
from tests.target.harness import HOST, NQN

SECONDS = 20.0
RENEW = 300
"""Inputs for one target: what they have sanitized, deleted or protected is there again in the next."""


class WithLoop(Harness):
    """A harness whose target lives on an event loop of its own, between the inputs as well."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._unhandled)
        self._stack = AsyncExitStack()
        self._runs = 0
        self._loop.run_until_complete(self.start())

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.found.append(f"{context['message']}: {context.get('exception')!r}")

    async def start(self) -> None:
        raise NotImplementedError

    async def feed(self, reader: Reader) -> int:
        raise NotImplementedError

    def one(self, data: bytes) -> int:
        self._runs += 1
        if not self._runs % RENEW:
            self._loop.run_until_complete(self._stack.aclose())
            self._loop.run_until_complete(self.start())
        return self._loop.run_until_complete(asyncio.wait_for(self.feed(Reader(data)), SECONDS))

    def close(self) -> None:
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()
        super().close()


def two_subsystems() -> TargetConfig:
    """One that is attacked, and one of a neighbour."""
    attacked = SubsystemConfig(
        nqn=NQN, namespaces=(NamespaceConfig(backend=Ramdisk("256K")), NamespaceConfig(backend=Ramdisk("256K")))
    )
    disk = Ramdisk("64K")
    disk.write(0, memoryview(PATTERN))
    neighbour = SubsystemConfig(nqn=NEIGHBOUR, namespaces=(NamespaceConfig(backend=disk),))
    return TargetConfig(
        subsystems=(attacked, neighbour), ports=(PortConfig(transport="memory", host="memory", port=0),)
    )


@register
class WholeTarget(WithLoop):
    """A target: connections without a handshake, without a Connect, of an admin queue and of an I/O queue."""

    name: ClassVar[str] = "target"

    async def start(self) -> None:
        self.target = await self._stack.enter_async_context(Target(two_subsystems()))
        self._stack.callback(RawHost.close_all)
        self.neighbour = await self._queue(NEIGHBOUR)
        self._drivers = len(self.target.drivers)

    async def _open(self) -> RawHost:
        return await RawHost.open(self.target, handshake=False)

    async def _queue(self, subnqn: str) -> RawHost:
        admin = await self._open()
        await admin.handshake()
        admin.cntlid = await admin.connect(subnqn=subnqn, hostnqn=HOST)
        await admin.set_property(0x14, 0x460061)
        queue = await self._open()
        await queue.handshake()
        await queue.connect(subnqn=subnqn, hostnqn=HOST, qid=1, cntlid=admin.cntlid)
        return queue

    async def feed(self, reader: Reader) -> int:
        stage, framing = reader.below(5), reader.choose(FRAMINGS)
        hosts = [await self._open()]
        head = b""
        if stage:
            head += icreq(dgst=framing.header_digest | framing.data_digest << 1)
        if stage > 1:
            entry = make_sqe(0, 0x7F, nsid=1, length=1024, sgl=0x01, cdw11=31)
            head += framing.pdu(4, 0, entry, connect_data(NQN, HOST))
            head += framing.pdu(4, 0, make_sqe(1, 0x7F, nsid=0, cdw11=0x14, address=0, cdw12=0x460061))
        if stage == 4:
            hosts += [await self._io_queue(hosts[0], framing, head)]
            head = b""
        pdus = stream(reader, framing, admin=stage < 4)
        reads = reader.below(4)
        await self._send(hosts[-1].endpoint, head + b"".join(pdus), reads)
        for host in hosts:
            (host.abort if reads % 2 else host.close)()
            RawHost.opened.remove(host)
        await self._gone()
        await self._check()
        return len(pdus)

    async def _io_queue(self, admin: RawHost, framing: Framing, head: bytes) -> RawHost:
        """Bring the admin queue up, and open an I/O queue."""
        await self._send(admin.endpoint, head, 0)
        host = await self._open()
        cntlid = await self._cntlid(admin, framing)
        entry = make_sqe(0, 0x7F, nsid=1, length=1024, sgl=0x01, cdw10=1 << 16, cdw11=31)
        head = icreq(dgst=framing.header_digest | framing.data_digest << 1)
        await self._send(host.endpoint, head + framing.pdu(4, 0, entry, connect_data(NQN, HOST, cntlid=cntlid)), 0)
        return host

    @staticmethod
    async def _cntlid(admin: RawHost, framing: Framing) -> int:
        received = b""
        offset = 128 + 8
        while len(received) < offset + 4:
            received += await admin.receive()
        return int.from_bytes(received[offset : offset + 2], "little")

    async def _send(self, endpoint: Endpoint, data: bytes, reads: int) -> None:
        """Send in pieces, and take some of what comes back; a target that has closed takes no more."""
        rest, buffer = memoryview(data), bytearray(1 << 16)
        stuck = 0
        while rest and stuck < 50:
            try:
                rest = rest[endpoint.sendmsg([rest[: 1 << 14]]) :]
                stuck = 0
            except BlockingIOError:
                stuck += 1
            except (ConnectionError, OSError):
                return
            await asyncio.sleep(0)
            if reads:
                try:
                    endpoint.recv_into(buffer)
                except (BlockingIOError, ConnectionError):
                    pass
        for _ in range(3):
            await asyncio.sleep(0)

    async def _gone(self) -> None:
        """Wait until the target has forgotten the connections."""
        for _ in range(2000):
            if len(self.target.drivers) == self._drivers:
                return
            await asyncio.sleep(0)
        async with asyncio.timeout(SECONDS / 2):
            while len(self.target.drivers) != self._drivers:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def _check(self) -> None:
        read = await self.neighbour.call(io_sqe(1, 2, 0, 1))
        if read.status or read.data != PATTERN:
            raise Violation(f"the neighbour's Read ends with {read.status:#x}")
        left = [each for each in self.target.subsystems[NQN].controllers.values() if not each.gone]
        if left:
            raise Violation(f"{len(left)} controllers are left of hosts that have gone")


class Output:
    """The transport of an NBD client that takes all that it is sent."""

    def __init__(self) -> None:
        self.closed = False
        self.paused = False
        self.protocol: NbdClientProtocol | None = None

    def write(self, data: Any) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def set_write_buffer_limits(self, high: int, low: int) -> None: ...

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 40000) if name == "peername" else None

    def close(self) -> None:
        self.closed = True

    abort = close


@register
class NbdExport(WithLoop):
    """NBD's server behind its negotiation: requests of all three forms, their data, what follows it."""

    name: ClassVar[str] = "nbd"

    async def start(self) -> None:
        subsystem = SubsystemConfig(nqn=NQN, namespaces=(NamespaceConfig(backend=Ramdisk("256K")),))
        port = PortConfig(transport="tcp", host="127.0.0.1", port=0)
        target = await self._stack.enter_async_context(Target(TargetConfig(subsystems=(subsystem,), ports=(port,))))
        controller = await self._stack.enter_async_context(
            await nvmeof.connect("127.0.0.1", target.address.port, subnqn=NQN, transport="tcp", hostnqn=HOST)
        )
        disks = [ExportedDisk(each, "", oncs=controller.info.oncs) for each in await controller.namespaces()]
        self.server = NbdServer(disks, memory_bytes=1 << 20)
        self._stack.push_async_callback(self.server.close)

    async def feed(self, reader: Reader) -> int:
        extended = reader.below(3)
        options = b""
        if extended:
            options = struct.pack(">QII", OPTION_MAGIC, 11 if extended == 2 else 8, 0)
        options += struct.pack(">QIIIH", OPTION_MAGIC, 7, 6, 0, 0)
        requests = self._requests(reader, extended == 2)
        output, protocol = Output(), NbdClientProtocol(self.server)
        protocol.connection_made(cast(asyncio.Transport, output))
        await self._give(protocol, output, struct.pack(">I", 3) + options)
        for _ in range(4):
            await asyncio.sleep(0)
        await self._give(protocol, output, b"".join(requests))
        protocol.connection_lost(None)
        while self.server.tasks:
            await asyncio.wait(self.server.tasks, timeout=SECONDS)
        if self.server.clients or self.server.budget.held_bytes or self.server.negotiating.taken:
            raise Violation("a client that has gone has left something")
        return len(requests) + 2

    async def _give(self, protocol: NbdClientProtocol, output: Output, data: bytes) -> None:
        rest = memoryview(data)
        for _ in range(4000):
            if not rest or output.closed:
                return
            if output.paused:
                await asyncio.sleep(0)
                continue
            buffer = protocol.get_buffer(-1)
            count = min(len(buffer), len(rest))
            if not count:
                raise Violation("there is no room to receive")
            buffer[:count] = rest[:count]
            rest = rest[count:]
            protocol.buffer_updated(count)
            await asyncio.sleep(0)

    @staticmethod
    def _requests(reader: Reader, extended: bool) -> list[bytes]:
        found = []
        while reader.left and len(found) < 48:
            flags, command = (
                reader.choose((0, 0, 1, 4, 8, 16, 32, 0xFFFF)),
                reader.choose((0, 0, 1, 1, 2, 3, 4, 6, 7, 99)),
            )
            offset = reader.choose((0, 1, 512, 4096, (256 << 10) - 512, 256 << 10, (1 << 64) - 1))
            length = reader.choose((0, 1, 512, 4096, 65536, 1 << 20, 0xFFFFFFFF))
            magic = (EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC) if reader.below(16) else reader.number(4)
            layout = ">IHHQQQ" if extended else ">IHHQQI"
            payload = bytes(min(length, 1 << 17)) if command == 1 else reader.take(reader.below(3))
            found.append(struct.pack(layout, magic, flags, command, reader.number(2), offset, length) + payload)
        return found
