"""Bring up a queue pair the short way: a blocking NVMe/TCP host, just enough to hand a socket to a load loop."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks import wireformat as w

IPPROTO_MPTCP = 262
TCP_IS_MPTCP = 43
MPTCP_INFO_LEVEL, MPTCP_INFO = 284, 1
HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:62656e63-686d-4172-8b73-000000000001"
HOST_ID = bytes.fromhex("62656e63686d41728b73000000000001")
DYNAMIC_CNTLID = 0xFFFF
CC_ENABLE = 0x460061  # IOCQES 4, IOSQES 6, CSS 6 (all supported I/O command sets), EN
CC_ENABLE_NVM = 0x460001  # the same with CSS 0 (NVM command set)


class BenchmarkError(Exception):
    """Something that makes a measurement impossible, in one sentence for the user."""


def connect_command(subnqn: str, qid: int, sqsize: int, cattr: int, cntlid: int, host: int = 1) -> tuple[bytes, bytes]:
    """The SQE and the in-capsule data of a Connect; KATO is 0. ``host`` is the host's number, 1 to 9."""
    data = HOST_ID[:-1] + bytes([host]) + struct.pack("<H", cntlid) + bytes(238)
    data += subnqn.encode().ljust(256, b"\0") + (HOST_NQN[:-1] + str(host)).encode().ljust(256, b"\0") + bytes(256)
    sqe = struct.pack("<BBHB19xQI3xB", w.FABRICS, w.PSDT_SGL, 0, w.CONNECT, 0, len(data), w.IN_CAPSULE)
    return sqe + struct.pack("<HHHBxI12x", 0, qid, sqsize, cattr, 0), data


def open_socket(
    host: str, port: int, *, mptcp: bool, congestion: str | None, timeout_seconds: float = 10.0
) -> socket.socket:
    """Connect with NODELAY on; raises `BenchmarkError` with the cause."""
    kind = "mptcp" if mptcp else "tcp"
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP if mptcp else 0)
    except OSError as error:
        raise BenchmarkError(f"this kernel gives no {kind} socket: {error.strerror or error}") from error
    try:
        if congestion:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        sock.settimeout(timeout_seconds)
        sock.connect((host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        sock.close()
        raise BenchmarkError(f"cannot connect to {host}:{port} over {kind}: {error.strerror or error}") from error
    return sock


def protocol_in_use(sock: socket.socket) -> str:
    """``mptcp`` or ``tcp``: what the connection really is (a fallback to TCP is silent)."""
    with contextlib.suppress(OSError):
        if sock.getsockopt(MPTCP_INFO_LEVEL, MPTCP_INFO, 96):
            return "mptcp"
    with contextlib.suppress(OSError):
        if sock.getsockopt(socket.IPPROTO_TCP, TCP_IS_MPTCP):
            return "mptcp"
    return "tcp"


@dataclass
class Reply:
    """One command's outcome; ``wire_bytes`` is all that came back for it, framing included."""

    dw0: int = 0
    dw1: int = 0
    status: int = 0
    data: bytearray = field(default_factory=bytearray)
    wire_bytes: int = 0
    data_pdus: int = 0
    success_flag: bool = False


class Stream(Protocol):
    """What a queue needs of its socket."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv_into(self, buffer: memoryview, /) -> int: ...
    def close(self) -> None: ...


class Queue:
    """One connection: handshake, then one command at a time."""

    def __init__(self, sock: Stream, *, header_digest: bool = False, data_digest: bool = False) -> None:
        self.sock = sock
        self.cid = 0
        self.framing = w.Framing()
        digests = header_digest | data_digest << 1
        body = w.INITIALIZE.pack(0, 0, digests, 0)
        sock.sendall(w.COMMON_HEADER.pack(w.ICREQ, 0, 128, 0, 128) + body)
        pdu_type, _, reply = self._receive()
        if pdu_type != w.ICRESP:
            raise BenchmarkError(f"the target answered ICReq with PDU type {pdu_type}")
        _, cpda, granted, maxh2cdata = w.INITIALIZE.unpack_from(reply, 8)
        if granted != digests:
            raise BenchmarkError(f"digests {digests:#x} were asked for and the target granted {granted:#x}")
        self.framing = w.Framing(header_digest, data_digest, 4 * (cpda + 1), maxh2cdata)

    def _exactly(self, count: int) -> bytearray:
        buffer = bytearray(count)
        view = memoryview(buffer)
        try:
            while view:
                taken = self.sock.recv_into(view)
                if not taken:
                    raise BenchmarkError("the target closed the connection")
                view = view[taken:]
        except TimeoutError as error:
            raise BenchmarkError("the target did not answer in time") from error
        except OSError as error:
            raise BenchmarkError(f"the connection to the target broke: {error.strerror or error}") from error
        return buffer

    def _receive(self) -> tuple[int, int, bytearray]:
        head = self._exactly(8)
        pdu_type, flags, _, _, plen = w.COMMON_HEADER.unpack(head)
        pdu = head + self._exactly(plen - 8)
        if pdu_type == w.C2H_TERM:
            fes, fei = struct.unpack_from("<HI", pdu, 8)
            raise BenchmarkError(f"the target ended the connection with C2HTermReq, FES {fes}, FEI {fei}")
        return pdu_type, flags, pdu

    def command(self, sqe: bytes, data: bytes = b"") -> Reply:
        """Send one SQE (its CID is overwritten) with in-capsule ``data``; R2T is answered from ``data`` too."""
        self.cid = (self.cid + 1) % 0xFF00
        sqe = sqe[:2] + struct.pack("<H", self.cid) + sqe[4:]
        in_capsule = sqe[39] == w.IN_CAPSULE
        head = self.framing.head(w.CAPSULE_CMD, sqe, len(data) if in_capsule else 0)
        self.sock.sendall(head + (data + self.framing.tail(data) if in_capsule and data else b""))
        reply = Reply()
        while True:
            pdu_type, flags, pdu = self._receive()
            reply.wire_bytes += len(pdu)
            if pdu_type == w.CAPSULE_RESP:
                reply.dw0, reply.dw1, _, _, _, reply.status = w.CQE.unpack_from(pdu, 8)
                return reply
            if pdu_type == w.C2H_DATA:
                length = w.DATA_HEADER.unpack_from(pdu)[8]
                payload = pdu[pdu[3] : pdu[3] + length]
                if flags & w.DDGSTF and self.framing.tail(payload) != pdu[pdu[3] + length :]:
                    raise BenchmarkError("the target sent data with a wrong data digest")
                reply.data += payload
                reply.data_pdus += 1
                reply.success_flag = bool(flags & w.SUCCESS)
                if reply.success_flag:
                    return reply
            elif pdu_type == w.R2T:
                self._answer_r2t(pdu, data)
            else:
                raise BenchmarkError(f"the target sent PDU type {pdu_type} in answer to a command")

    def _answer_r2t(self, pdu: bytearray, data: bytes) -> None:
        *_, cccid, ttag, offset, length = w.DATA_HEADER.unpack_from(pdu)
        while length:
            piece = data[offset : offset + min(length, self.framing.maxh2cdata_bytes)]
            if not piece:
                raise BenchmarkError("the target's R2T asks for more than the command holds")
            length -= len(piece)
            header = struct.pack("<HHII4x", cccid, ttag, offset, len(piece))
            head = self.framing.head(w.H2C_DATA, header, len(piece), 0 if length else w.LAST_PDU)
            self.sock.sendall(head + piece + self.framing.tail(piece))
            offset += len(piece)

    def expect(self, what: str, sqe: bytes, data: bytes = b"") -> Reply:
        reply = self.command(sqe, data)
        if reply.status >> 1:
            sct, sc = reply.status >> 9 & 7, reply.status >> 1 & 0xFF
            raise BenchmarkError(f"{what} failed with status code type {sct:#x}, status code {sc:#04x}")
        return reply

    def connect(self, subnqn: str, qid: int, sqsize: int, cattr: int, cntlid: int, host: int = 1) -> int:
        """Fabrics Connect as the host of that number (1 to 9); returns the CNTLID."""
        sqe, data = connect_command(subnqn, qid, sqsize, cattr, cntlid, host)
        return self.expect(f"Connect of queue {qid}", sqe, data).dw0 & 0xFFFF

    def property_get(self, offset: int, size: int = 4) -> int:
        sqe = struct.pack("<BBHB34xB", w.FABRICS, w.PSDT_SGL, 0, w.PROPERTY_GET, w.TRANSPORT_SGL)
        sqe += struct.pack("<B3xI16x", size == 8, offset)
        reply = self.expect(f"Property Get of {offset:#x}", sqe)
        return reply.dw0 | (reply.dw1 << 32 if size == 8 else 0)

    def property_set(self, offset: int, value: int) -> None:
        sqe = struct.pack("<BBHB34xB", w.FABRICS, w.PSDT_SGL, 0, w.PROPERTY_SET, w.TRANSPORT_SGL)
        self.expect(f"Property Set of {offset:#x}", sqe + struct.pack("<B3xIQ8x", 0, offset, value))

    def identify(self, cns: int, nsid: int) -> bytearray:
        sqe = w.SQE.pack(w.IDENTIFY, w.PSDT_SGL, 0, nsid, 0, 0, 0, 0, 4096, w.TRANSPORT_SGL, cns, 0, 0, 0, 0, 0)
        data = self.expect(f"Identify (CNS {cns})", sqe).data
        if len(data) != 4096:
            raise BenchmarkError(f"Identify (CNS {cns}) returned {len(data)} bytes")
        return data


@dataclass
class Session:
    """An enabled controller: its admin queue and one I/O queue, with what the load loop has to know."""

    admin: Queue
    io: Queue
    entries: int
    flow_control: bool
    incapsule_bytes: int
    mdts_bytes: int
    block_bytes: int
    size_bytes: int

    def close(self) -> None:
        self.io.sock.close()
        self.admin.sock.close()


@dataclass(frozen=True)
class SessionOptions:
    host: str
    port: int
    subnqn: str
    mptcp: bool = False
    congestion: str | None = None
    header_digest: bool = False
    data_digest: bool = False
    flow_control: bool = False
    depth: int = 32
    nsid: int = 1
    timeout_seconds: float = 10.0


def open_session(options: SessionOptions) -> Session:
    """Connect, enable the controller, identify namespace ``nsid``, connect I/O queue 1."""
    with contextlib.ExitStack() as sockets:

        def dial() -> socket.socket:
            sock = open_socket(
                options.host,
                options.port,
                mptcp=options.mptcp,
                congestion=options.congestion,
                timeout_seconds=options.timeout_seconds,
            )
            return sockets.enter_context(sock)

        session = bring_up(options, dial)
        sockets.pop_all()  # from here on they are the session's to close
    return session


def bring_up(options: SessionOptions, dial: Callable[[], Stream]) -> Session:
    """As `open_session`, over streams of any kind: `dial` is called for the admin queue and then for the I/O queue."""
    admin = Queue(dial())
    cntlid = admin.connect(options.subnqn, 0, 31, 0, DYNAMIC_CNTLID)
    cap = admin.property_get(0, 8)
    admin.property_set(0x14, CC_ENABLE if cap >> 43 & 1 else CC_ENABLE_NVM)
    deadline = time.monotonic() + options.timeout_seconds
    while not admin.property_get(0x1C) & 1:
        if time.monotonic() > deadline:
            raise BenchmarkError("the controller did not become ready")
        time.sleep(0.001)
    controller = admin.identify(1, 0)
    namespace = admin.identify(0, options.nsid)
    queues = w.SQE.pack(w.SET_FEATURES, w.PSDT_SGL, 0, 0, 0, 0, 0, 0, 0, w.TRANSPORT_SGL, 7, 0, 0, 0, 0, 0)
    admin.expect("Set Features (Number of Queues)", queues)
    entries = min((cap & 0xFFFF) + 1, max(options.depth + 1, 128))
    io = Queue(dial(), header_digest=options.header_digest, data_digest=options.data_digest)
    io.connect(options.subnqn, 1, entries - 1, 0 if options.flow_control else 4, cntlid)
    lba_format = struct.unpack_from("<I", namespace, 128 + 4 * (namespace[26] & 15))[0]
    block_bytes = 1 << (lba_format >> 16 & 0xFF)
    return Session(
        admin=admin,
        io=io,
        entries=entries,
        flow_control=options.flow_control,
        incapsule_bytes=max(0, struct.unpack_from("<I", controller, 1792)[0] * 16 - 64),
        mdts_bytes=4096 << controller[77] if controller[77] else 1 << 30,
        block_bytes=block_bytes,
        size_bytes=struct.unpack_from("<Q", namespace)[0] * block_bytes,
    )
