"""A host made of bytes: it sends whatever a test wants, over any transport, and reads PDUs back.

Nothing here comes from the package's own encoders: layouts are bare `struct`. Every wait has a bound.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nvmeof.pdu.digest import crc32c_table
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.transport import Address, Endpoint, SocketOptions, get

SECONDS = 30.0
HOSTNQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
HOSTID = bytes(range(16))
ICREQ, ICRESP, H2C_TERM, C2H_TERM, CAPSULE, RESPONSE, H2C, C2H, R2T = 0, 1, 2, 3, 4, 5, 6, 7, 9
HDGSTF, DDGSTF, LAST, SUCCESS = 1, 2, 4, 8
IN_CAPSULE, TRANSPORT = 0x01, 0x5A
FLUSH, WRITE, READ, WRITE_ZEROES = 0, 1, 2, 8
CC_ENABLED, CC_DISABLED, CC_SHUTDOWN = 0x460061, 0x460060, 0x464061
CAP, VS, CC, CSTS = 0x00, 0x08, 0x14, 0x1C


def crc(data: bytes) -> bytes:
    return struct.pack("<I", crc32c_table(data))


def icreq(pfv: int = 0, hpda: int = 0, dgst: int = 0, maxr2t: int = 0, *, hlen: int = 128, plen: int = 128) -> bytes:
    return struct.pack("<BBBBIHBBI112x", ICREQ, 0, hlen, 0, plen, pfv, hpda, dgst, maxr2t)


def make_sqe(
    cid: int, opcode: int, *, nsid: int = 0, length: int = 0, sgl: int = TRANSPORT, address: int = 0, flags: int = 0x40,
    cdw10: int = 0, cdw11: int = 0, cdw12: int = 0, cdw13: int = 0,
) -> bytes:  # fmt: skip
    return struct.pack("<BBHI16xQI3xB4I8x", opcode, flags, cid, nsid, address, length, sgl, cdw10, cdw11, cdw12, cdw13)


def io_sqe(cid: int, opcode: int, slba: int, nlb: int, *, nsid: int = 1, block_bytes: int = 512, **fields: Any):
    values = {"length": nlb * block_bytes, "cdw12": nlb - 1, **fields}
    return make_sqe(cid, opcode, nsid=nsid, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32, **values)


def connect_data(subnqn: str | bytes, hostnqn: str | bytes = HOSTNQN, hostid: bytes = HOSTID, cntlid: int = 0xFFFF):
    names = [name.encode() if isinstance(name, str) else name for name in (subnqn, hostnqn)]
    return struct.pack("<16sH238x256s256s256x", hostid, cntlid, *names)


@dataclass(frozen=True)
class Pdu:
    kind: int
    flags: int
    hlen: int
    pdo: int
    raw: bytes
    data: bytes

    def fields(self, layout: str) -> tuple[Any, ...]:
        """Return the fields behind the common header."""
        return struct.unpack_from("<" + layout, self.raw, 8)


@dataclass(frozen=True)
class Cqe:
    dw0: int
    dw1: int
    sqhd: int
    sqid: int
    cid: int
    status: int
    dnr: bool
    data: bytes = b""


class RawHost:
    """One connection. `endpoint` is for tests that break the protocol."""

    opened: ClassVar[list[RawHost]] = []  # closed by a fixture, whether the test passed or not

    def __init__(self, endpoint: Endpoint, subnqn: str) -> None:
        self.opened.append(self)
        self.endpoint = endpoint
        self.subnqn = subnqn
        self.header_digest = self.data_digest = False
        self.icresp: tuple[int, ...] = ()
        self.cntlid = 0xFFFF
        self._received = bytearray()

    @classmethod
    def close_all(cls) -> None:
        """Close the connections that tests left open."""
        for host in cls.opened:
            host.close()
        cls.opened.clear()

    @classmethod
    async def open(
        cls, target: Target, *, handshake: bool = True, dgst: int = 0, hpda: int = 0, maxr2t: int = 0,
        address: Address | None = None, options: SocketOptions | None = None, transport: str | None = None,
    ) -> RawHost:  # fmt: skip
        where = address or target.address
        kind = transport or target.config.ports[0].transport
        host = cls(await get(kind).connect(where.host, where.port, options or SocketOptions()), target.subnqn)
        if handshake:
            await host.handshake(dgst=dgst, hpda=hpda, maxr2t=maxr2t)
        return host

    async def handshake(self, *, dgst: int = 0, hpda: int = 0, maxr2t: int = 0) -> None:
        await self.send(icreq(dgst=dgst, hpda=hpda, maxr2t=maxr2t))
        response = await self.pdu()
        assert response.kind == ICRESP and len(response.raw) == 128
        self.icresp = response.fields("HBBI")
        self.header_digest, self.data_digest = bool(self.icresp[2] & 1), bool(self.icresp[2] & 2)

    # -- bytes

    async def _ready(self, register: Any) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        register(lambda: future.done() or future.set_result(None))
        try:
            await asyncio.wait_for(future, SECONDS)
        finally:
            register(None)

    async def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.endpoint.sendmsg([rest]) :]
            except BlockingIOError:
                await self._ready(self.endpoint.set_writer)

    async def receive(self, size: int = 1 << 18) -> bytes:
        """Return received bytes: empty at the end of the stream, also when the target has reset it."""
        buffer = bytearray(size)
        while True:
            try:
                return bytes(buffer[: self.endpoint.recv_into(buffer)])
            except BlockingIOError:
                await self._ready(self.endpoint.set_reader)
            except ConnectionError:
                return b""

    async def exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            part = await self.receive()
            if not part:
                raise EOFError(f"the target closed; {bytes(self._received)!r} was left")
            self._received += part
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def pdu(self) -> Pdu:
        head = await self.exactly(8)
        kind, flags, hlen, pdo, plen = struct.unpack("<BBBBI", head)
        assert 8 <= plen <= 1 << 24, plen
        raw = head + await self.exactly(plen - 8)
        if flags & HDGSTF:
            assert raw[hlen : hlen + 4] == crc(raw[:hlen]), "header digest"
        data = raw[pdo : plen - (4 if flags & DDGSTF else 0)] if pdo else b""
        if flags & DDGSTF and pdo:
            assert raw[-4:] == crc(data), "data digest"
        return Pdu(kind, flags, hlen, pdo, raw, data)

    async def ended(self) -> None:
        """Check that the target closes the connection, and sends nothing before."""
        assert not self._received
        part = await self.receive()
        assert part == b"", part

    async def terminated(self, fes: int, fei: int | None = None) -> Pdu:
        """Check that the target sends a TermReq and closes."""
        pdu = await self.pdu()
        assert pdu.kind == C2H_TERM, pdu
        found = pdu.fields("HI")
        assert found[0] == fes and fei in (None, found[1]), found
        await self.ended()
        self.close()
        return pdu

    def close(self) -> None:
        self.endpoint.close()

    def abort(self) -> None:
        self.endpoint.abort()

    # -- PDUs

    def frame(
        self, kind: int, body: bytes, data: bytes = b"", *, flags: int = 0, pdo: int | None = None,
        bad_header: int = 0, bad_data: int = 0, **lies: int,
    ) -> bytes:  # fmt: skip
        """Build a PDU, correct unless a field is overridden: `hlen`, `plen`, `pdo`, digests xored with `bad_header`,
        `bad_data`.
        """
        hlen = 8 + len(body)
        end = hlen + 4 * self.header_digest
        flags |= HDGSTF * self.header_digest
        where, plen = 0, end
        if data:
            where = -(-end // 4) * 4
            plen = where + len(data) + 4 * self.data_digest
            flags |= DDGSTF * self.data_digest
        fields = {"flags": flags, "hlen": hlen, "pdo": where if pdo is None else pdo, "plen": plen, **lies}
        raw = struct.pack("<BBBBI", kind, fields["flags"], fields["hlen"], fields["pdo"], fields["plen"]) + body
        if self.header_digest:
            raw += struct.pack("<I", crc32c_table(raw) ^ bad_header)
        if data:
            raw = raw.ljust(where, b"\0") + data
            if self.data_digest:
                raw += struct.pack("<I", crc32c_table(data) ^ bad_data)
        return raw

    def capsule(self, sqe: bytes, data: bytes = b"", **lies: int) -> bytes:
        return self.frame(CAPSULE, sqe, data, **lies)

    def h2c(self, cid: int, ttag: int, offset: int, data: bytes, *, last: bool = True, **lies: int) -> bytes:
        datal = lies.pop("datal", len(data))
        body = struct.pack("<HHII4x", cid, ttag, offset, datal)
        return self.frame(H2C, body, data, flags=LAST if last else 0, **lies)

    # -- commands

    async def completion(self, cid: int | None = None) -> Cqe:
        """Return the next completion, with the data that came before it."""
        data = b""
        while True:
            pdu = await self.pdu()
            if pdu.kind == C2H:
                got, offset, length = pdu.fields("H2xII")
                assert offset == len(data) and length == len(pdu.data)
                data += pdu.data
                if pdu.flags & SUCCESS:
                    assert cid in (None, got)
                    return Cqe(0, 0, 0, 0, got, 0, False, data)
                continue
            assert pdu.kind == RESPONSE, pdu
            dw0, dw1, sqhd, sqid, got, status = pdu.fields("IIHHHH")
            assert cid in (None, got), (cid, got)
            return Cqe(dw0, dw1, sqhd, sqid, got, status >> 1 & 0x7FF, bool(status >> 15), data)

    async def r2t(self, cid: int) -> tuple[int, int, int]:
        """Return TTAG, offset and length of the next R2T."""
        pdu = await self.pdu()
        assert pdu.kind == R2T, pdu
        got, ttag, offset, length = pdu.fields("HHII")
        assert got == cid
        return ttag, offset, length

    async def call(self, sqe: bytes, data: bytes = b"") -> Cqe:
        await self.send(self.capsule(sqe, data))
        return await self.completion(int.from_bytes(sqe[2:4], "little"))

    async def try_connect(
        self, *, qid: int = 0, sqsize: int = 31, recfmt: int = 0, cattr: int = 0, kato: int = 0, cid: int = 0,
        subnqn: str | bytes | None = None, **data: Any,
    ) -> Cqe:  # fmt: skip
        sqe = make_sqe(
            cid, 0x7F, nsid=1, length=1024, sgl=IN_CAPSULE, cdw10=recfmt | qid << 16, cdw11=sqsize | cattr << 16,
            cdw12=kato,
        )  # fmt: skip
        return await self.call(sqe, connect_data(self.subnqn if subnqn is None else subnqn, **data))

    async def connect(self, **fields: Any) -> int:
        """Connect; return the CNTLID."""
        completion = await self.try_connect(**fields)
        assert completion.status == 0, hex(completion.status)
        self.cntlid = completion.dw0 & 0xFFFF
        return self.cntlid

    async def set_property(self, offset: int, value: int, cid: int = 1) -> Cqe:
        return await self.call(make_sqe(cid, 0x7F, nsid=0, cdw11=offset, cdw12=value))

    async def get_property(self, offset: int, *, wide: bool = False) -> int:
        completion = await self.call(make_sqe(1, 0x7F, nsid=4, cdw10=int(wide), cdw11=offset))
        assert completion.status == 0
        return completion.dw0 | completion.dw1 << 32

    async def read(self, slba: int, nlb: int, cid: int = 1, **fields: Any) -> Cqe:
        return await self.call(io_sqe(cid, READ, slba, nlb, **fields))

    async def write(self, slba: int, data: bytes, cid: int = 1, *, in_capsule: bool = True, **fields: Any) -> Cqe:
        nlb = len(data) // 512
        if in_capsule:
            return await self.call(io_sqe(cid, WRITE, slba, nlb, sgl=IN_CAPSULE, **fields), data)
        await self.send(self.capsule(io_sqe(cid, WRITE, slba, nlb, **fields)))
        ttag, offset, length = await self.r2t(cid)
        await self.send(self.h2c(cid, ttag, offset, data[offset : offset + length]))
        return await self.completion(cid)


async def admin(target: Target, *, enable: bool = True, dgst: int = 0, **connect: Any) -> RawHost:
    """Return a connected (and enabled) admin queue."""
    host = await RawHost.open(target, dgst=dgst)
    await host.connect(**connect)
    if enable:
        assert (await host.set_property(CC, CC_ENABLED)).status == 0
        assert await host.get_property(CSTS) & 1
    return host


async def io(target: Target, cntlid: int, qid: int = 1, *, dgst: int = 0, options: SocketOptions | None = None,
             maxr2t: int = 0, **connect: Any) -> RawHost:  # fmt: skip
    """Return a connected I/O queue."""
    host = await RawHost.open(target, dgst=dgst, options=options, maxr2t=maxr2t)
    await host.connect(qid=qid, cntlid=cntlid, **connect)
    return host


async def association(target: Target, *, queues: int = 1, **fields: Any) -> list[RawHost]:
    """Return an admin queue and its I/O queues."""
    first = await admin(target, **fields)
    return [first, *[await io(target, first.cntlid, qid, **fields) for qid in range(1, queues + 1)]]


async def healthy(target: Target) -> None:
    """Check that another host is served from its first byte to its last."""
    hosts = await association(target)
    completion = await hosts[1].read(0, 1)
    assert completion.status == 0 and len(completion.data) == 512
    for host in hosts:
        host.close()


def open_files() -> set[str]:
    """Return the sockets and files that this process has open, by descriptor."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue
    return found


async def until(condition: Any, seconds: float = SECONDS) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(trtype: str = "memory", *, check: bool = True, **options: Any) -> AsyncIterator[Target]:
    """Run a target; check afterwards that it holds nothing."""
    options.setdefault("namespaces", [Ramdisk("1M")])
    options.setdefault("listen", "memory:0" if trtype == "memory" else "127.0.0.1:0")
    await asyncio.sleep(0)
    before = open_files()
    target = Target(trtype=trtype, **options)
    async with target:
        yield target
        RawHost.close_all()
        if check:
            await until(lambda: target.pool.used_bytes == 0)
    assert not target.drivers and not target.tasks
    if check:
        assert target.pool.used_bytes == 0
        assert all(not subsystem.controllers for subsystem in target.subsystems.values())
    left = {entry for entry in open_files() - before if "socket" in entry}
    assert not left


def causes(records: Iterable[Any], text: str) -> list[str]:
    """Return the log lines that hold a cause; a traceback in any is an error."""
    for record in records:
        assert record.exc_info is None, record.getMessage()
    return [record.getMessage() for record in records if text in record.getMessage()]
