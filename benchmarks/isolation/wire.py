"""What the hosts of the isolation benchmark share: associations, PDUs cut out of a stream, commands and pace."""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence

from benchmarks import wireformat as w
from benchmarks.isolation.plan import OTHER_SIZE_BYTES, SIZE_BYTES
from benchmarks.session import CC_ENABLE_NVM, DYNAMIC_CNTLID, BenchmarkError, Queue

LBA_BYTES = 512
RAMDISK, FILE = 1, 2
DATA_BYTES = SIZE_BYTES // 2
"""The lower half of a namespace belongs to the seven hosts, the upper half to the one that is measured."""
OTHER_DATA_BYTES = OTHER_SIZE_BYTES // 8
ENTRIES = 128
IN_CAPSULE_BYTES = 8192
NO_FLOW_CONTROL = 4
PDU_BYTES = 24
ANSWER_SECONDS = 10.0


class Stream:
    """PDUs cut out of the bytes that a connection brings: their first 24 bytes, once all of the PDU is there."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._head = b""
        self._rest = 0

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Yield the head of each PDU that ends in ``data``."""
        pending = self._pending
        pending += data
        while True:
            if not self._head:
                if len(pending) < PDU_BYTES:
                    return
                self._head = bytes(pending[:PDU_BYTES])
                self._rest = int.from_bytes(self._head[4:8], "little") - PDU_BYTES
                del pending[:PDU_BYTES]
            here = min(self._rest, len(pending))
            del pending[:here]
            self._rest -= here
            if self._rest:
                return
            head, self._head = self._head, b""
            yield head


def completes(head: bytes) -> bool:
    """Whether a PDU is the last one of a command. Raises `BenchmarkError` for a TermReq."""
    if head[0] == w.C2H_TERM:
        raise BenchmarkError(f"the target ended the connection: FES {head[8]}")
    return head[0] == w.CAPSULE_RESP or (head[0] == w.C2H_DATA and bool(head[1] & w.SUCCESS))


def failed(head: bytes) -> bool:
    """Whether a PDU is a response with a status other than success."""
    return head[0] == w.CAPSULE_RESP and bool(int.from_bytes(head[22:24], "little") >> 1)


def io_capsule(opcode: int, cid: int, nsid: int, offset: int, size: int, payload: bytes = b"") -> bytes:
    """A Read or Write of ``size`` bytes at ``offset``, with in-capsule ``payload`` if there is one."""
    sgl = w.IN_CAPSULE if payload else w.TRANSPORT_SGL
    sqe = w.rw_sqe(opcode, cid, nsid, offset // LBA_BYTES, size // LBA_BYTES, size, sgl)
    return w.Framing().head(w.CAPSULE_CMD, sqe, len(payload)) + payload


def h2c_data(r2t: bytes, payload: memoryview, pieces: int = 1) -> Iterator[tuple[bytes, memoryview]]:
    """The H2CData PDUs that answer an R2T: header and data of each."""
    cccid, ttag, offset, length = struct.unpack_from("<HHII", r2t, 8)
    piece = length // pieces
    for number in range(pieces):
        last = number == pieces - 1
        at = number * piece
        here = length - at if last else piece
        header = struct.pack("<HHII4x", cccid, ttag, offset + at, here)
        yield w.Framing().head(w.H2C_DATA, header, here, w.LAST_PDU if last else 0), payload[at : at + here]


class Connection:
    """A queue that is up, for several commands at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stream = Stream()

    def exchange(self, capsules: Sequence[bytes], payload: memoryview | None = None) -> int:
        """Send commands, answer their R2Ts, receive everything; returns how many failed."""
        self.sock.sendall(b"".join(capsules))
        left, wrong = len(capsules), 0
        while left:
            data = self.sock.recv(1 << 20)
            if not data:
                raise BenchmarkError("the target closed the connection")
            for head in self.stream.feed(data):
                if head[0] == w.R2T and payload is not None:
                    for header, part in h2c_data(head, payload):
                        self.sock.sendall(header)
                        self.sock.sendall(part)
                elif completes(head):
                    left -= 1
                    wrong += failed(head)
        return wrong

    def arrived(self, most: int = 1 << 18) -> list[bytes]:
        """The PDUs that end in what is there, of so many bytes at most, without waiting."""
        if not select.select([self.sock], [], [], 0)[0]:  # MSG_DONTWAIT would wait: the socket has a timeout
            return []
        data = self.sock.recv(most)
        if not data:
            raise BenchmarkError("the target closed the connection")
        return list(self.stream.feed(data))

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def dial(port: int) -> socket.socket:
    """A TCP connection to the target, which is on loopback always."""
    sock = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Host:
    """A host of the target: its number, what is left of its time, and its counts."""

    def __init__(self, port: int, number: int) -> None:
        self.port = port
        self.number = number
        self.until = float("inf")
        self.counts: dict[str, int] = {}
        self.random = random.Random(number)
        self._admins: list[Queue] = []  # an association lives as long as its admin queue

    def count(self, name: str, n: int = 1) -> None:
        """Count something that was done, for the report."""
        self.counts[name] = self.counts.get(name, 0) + n

    @property
    def over(self) -> bool:
        """Whether the time of this host is over."""
        return time.monotonic() >= self.until

    def pace(self, per_second: float) -> Iterator[int]:
        """Yield at most so often, until the end. What was missed is not made up for."""
        step, due, number = 1 / per_second, time.monotonic(), 0
        while not self.over:
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            elif wait < -step:
                due = time.monotonic()
            yield number
            number += 1
            due += step

    def connect_admin(self, subnqn: str, *, enable: bool = True) -> tuple[Queue, int]:
        """An admin queue and its CNTLID."""
        queue = Queue(dial(self.port))
        cntlid = queue.connect(subnqn, 0, 31, 0, DYNAMIC_CNTLID, self.number)
        if enable:
            queue.property_set(0x14, CC_ENABLE_NVM)
        self._admins.append(queue)
        return queue, cntlid

    def connect_io(self, subnqn: str, cntlid: int, qid: int) -> Connection:
        """An I/O queue, without flow control."""
        queue = Queue(dial(self.port))
        queue.connect(subnqn, qid, ENTRIES - 1, NO_FLOW_CONTROL, cntlid, self.number)
        assert isinstance(queue.sock, socket.socket)
        return Connection(queue.sock)

    def offset(self, size: int) -> int:
        """A random offset in the half of a namespace that is the hosts'."""
        return self.random.randrange(DATA_BYTES // size) * size
