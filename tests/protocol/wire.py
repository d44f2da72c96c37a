"""An independent writer of PDUs, and connections to write them to: bare ``struct``, not the package's encoder."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nvmeof.pdu.digest import crc32c_table
from nvmeof.protocol.connection import Connection, ConnectionConfig, HostConnection, TargetConnection
from nvmeof.protocol.events import ProtocolFailure, Ready
from nvmeof.protocol.transfers import R2tTransfer

HDGSTF, DDGSTF, LAST, SUCCESS = 1, 2, 4, 8
READ, WRITE = 2, 1


def crc(data: bytes) -> bytes:
    return struct.pack("<I", crc32c_table(data))


@dataclass(frozen=True)
class Framing:
    """The form of a peer's PDUs."""

    header_digest: bool = False
    data_digest: bool = False
    pda: int = 4

    def pdu(self, kind: int, flags: int, body: bytes, data: bytes = b"") -> bytes:
        """Return a valid PDU of this framing."""
        hlen = 8 + len(body)
        end = hlen + (4 if self.header_digest else 0)
        flags |= HDGSTF if self.header_digest else 0
        pdo = 0
        plen = end
        if data:
            pdo = -(-end // self.pda) * self.pda
            plen = pdo + len(data)
            if self.data_digest:
                flags |= DDGSTF
                plen += 4
        header = struct.pack("<BBBBI", kind, flags, hlen, pdo, plen) + body
        out = header + (crc(header) if self.header_digest else b"")
        if data:
            out = out.ljust(pdo, b"\0") + data + (crc(data) if self.data_digest else b"")
        return out

    def command(self, cid: int, opcode: int = READ, length: int = 0, data: bytes = b"") -> bytes:
        sgl = struct.pack("<QI3xB", 0, len(data) or length, 0x01 if data else 0x5A)
        return self.pdu(4, 0, struct.pack("<BBHI16x", opcode, 0x40, cid, 1) + sgl + bytes(24), data)

    def response(self, cid: int, status: int = 0, sqhd: int = 0, sqid: int = 1, dw0: int = 0, dw1: int = 0) -> bytes:
        return self.pdu(5, 0, struct.pack("<IIHHHH", dw0, dw1, sqhd, sqid, cid, status))

    def h2c(self, cid: int, ttag: int, offset: int, data: bytes, last: bool = True) -> bytes:
        body = struct.pack("<HHII4x", cid, ttag, offset, len(data))
        return self.pdu(6, LAST if last else 0, body, data)

    def c2h(self, cid: int, offset: int, data: bytes, flags: int = LAST) -> bytes:
        return self.pdu(7, flags, struct.pack("<H2xII4x", cid, offset, len(data)), data)

    def r2t(self, cid: int, ttag: int, offset: int, length: int) -> bytes:
        return self.pdu(9, 0, struct.pack("<HHII4x", cid, ttag, offset, length))


def icreq(pfv: int = 0, hpda: int = 0, dgst: int = 0, maxr2t: int = 0) -> bytes:
    return struct.pack("<BBBBIHBBI112x", 0, 0, 128, 0, 128, pfv, hpda, dgst, maxr2t)


def icresp(pfv: int = 0, cpda: int = 0, dgst: int = 0, maxh2cdata: int = 65536) -> bytes:
    return struct.pack("<BBBBIHBBI112x", 1, 0, 128, 0, 128, pfv, cpda, dgst, maxh2cdata)


def term_req(kind: int, fes: int, fei: int = 0, data: bytes = b"") -> bytes:
    return struct.pack("<BBBBIHI10x", kind, 0, 24, 0, 24 + len(data), fes, fei) + data


FRAMINGS = [Framing(), Framing(True, False, 12), Framing(False, True, 128), Framing(True, True, 12)]
"""Each value of each field, and each pair of digests; test_bytewise.py and test_fuzz.py draw from all of them."""
PLAIN, BOTH = Framing(), Framing(True, True)


def unfinished(connection: Connection) -> object:
    """Return what still waits for data or a completion."""
    return connection._requests if isinstance(connection, HostConnection) else connection._r2ts.open


@dataclass
class Arrived:
    """The expected value of an `R2tTransfer`, once it has become an event."""

    cid: int
    context: object
    ok: bool = True
    data: memoryview | None = None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, R2tTransfer)
        return (self.cid, self.context, self.ok, self.data) == (other.cid, other.context, other.ok, other.data)


def feed(connection: Connection, data: bytes, step: int = 1 << 30) -> list[Any]:
    """Receive ``data``, at most ``step`` bytes at a time; return all events."""
    events: list[Any] = []
    position = 0
    while position < len(data):
        buffer = connection.next_buffer()
        part = data[position : position + min(step, len(buffer))]
        assert part, "no room to receive"
        buffer[: len(part)] = part
        position += len(part)
        events += map(frozen, connection.bytes_received(len(part), 0.0))
    return events


def frozen(event: Any) -> Any:
    """Copy an event whose views would not survive the next receive."""
    for name in ("view", "sqe", "data"):
        value = getattr(event, name, None)
        if isinstance(value, memoryview):
            setattr(event, name, memoryview(bytes(value)))
    return event


def sent(connection: Connection, limit: int = 1 << 62) -> bytes:
    """Return what the connection sends, all of it or ``limit`` bytes."""
    out = bytearray()
    while connection.want_write and limit > len(out):
        part = b"".join(bytes(buffer) for buffer in connection.data_to_send())[: limit - len(out)]
        connection.bytes_sent(len(part))
        out += part
        assert part
    return bytes(out)


def split(stream: bytes) -> Iterator[bytes]:
    """Return the PDUs of a stream."""
    while stream:
        (plen,) = struct.unpack_from("<I", stream, 4)
        assert 8 <= plen <= len(stream)
        yield stream[:plen]
        stream = stream[plen:]


def ready_target(
    framing: Framing = Framing(),
    *,
    qid: int = 1,
    entries: int = 32,
    flow_control: bool = True,
    maxr2t: int = 1,
    hpda: int = 0,
    **config: Any,
) -> Connection:
    """Return a target after handshake and Connect. ``framing`` is what it receives; it sends with HPDA ``hpda``."""
    connection = TargetConnection(
        ConnectionConfig(
            header_digest=framing.header_digest, data_digest=framing.data_digest, pda_bytes=framing.pda, **config
        ),
    )
    dgst = framing.header_digest | framing.data_digest << 1
    [event] = feed(connection, icreq(hpda=hpda, dgst=dgst, maxr2t=maxr2t - 1))
    assert isinstance(event, Ready)
    sent(connection)
    connection.set_queue(qid, entries, flow_control=flow_control)
    return connection


def ready_host(framing: Framing = Framing(), *, cpda: int = 0, maxh2cdata: int = 65536, **config: Any) -> Connection:
    """Return a host after its handshake. ``framing`` is what it receives; it sends with CPDA ``cpda``."""
    connection = HostConnection(
        ConnectionConfig(
            header_digest=framing.header_digest, data_digest=framing.data_digest, pda_bytes=framing.pda, **config
        ),
    )
    connection.start()
    sent(connection)
    dgst = framing.header_digest | framing.data_digest << 1
    [event] = feed(connection, icresp(cpda=cpda, dgst=dgst, maxh2cdata=maxh2cdata))
    assert isinstance(event, Ready)
    return connection


def sqe(opcode: int = READ) -> bytes:
    return bytes([opcode]) + bytes(63)


def failure(events: list[Any]) -> tuple[int, int]:
    """Return FES and FEI of the ProtocolFailure that ends the events."""
    event = events[-1]
    assert isinstance(event, ProtocolFailure), events
    return event.error.fes, event.error.fei


def commands(events: list[Any]) -> list[int]:
    """Return the CIDs of all commands."""
    cids: list[int] = []
    for event in events:
        if hasattr(event, "stride"):
            for index in range(event.count):
                at = index * event.stride
                cids.append(int.from_bytes(event.view[at + 10 : at + 12], "little"))
        elif hasattr(event, "sqe"):
            cids.append(int.from_bytes(event.sqe[2:4], "little"))
    return cids


@dataclass
class Released:
    """The counts of calls of release callbacks, by name."""

    counts: dict[object, int] = field(default_factory=dict)

    def callback(self, name: object) -> Callable[[], None]:
        self.counts[name] = 0

        def release() -> None:
            self.counts[name] += 1

        return release
