"""The seven hosts: what each does wrong, and what its well-behaved twin does at the same rate.

A host is a process of its own on the load's core. It connects, says ``ready``, waits for a line, goes on for so many
seconds, and prints its counts. Everything is bounded in rate, number and time, and goes to loopback only.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks import wireformat as w
from benchmarks.isolation.plan import DISCOVERY_NQN, MISBEHAVIOURS, OTHER_SUBNQN, SUBNQN, Misbehaviour
from benchmarks.isolation.wire import (
    FILE,
    OTHER_DATA_BYTES,
    RAMDISK,
    Connection,
    Host,
    completes,
    dial,
    h2c_data,
    io_capsule,
)
from benchmarks.session import CC_ENABLE_NVM, DYNAMIC_CNTLID, BenchmarkError, Queue, connect_command

MIB = 1 << 20
SLOW_BYTES_PER_SECOND = 2 * MIB
GRACE_SECONDS = 15

Run = Callable[[], None]


def _nsid(number: int) -> int:
    return FILE if number % 2 else RAMDISK


# The twins


def behave(host: Host, what: Misbehaviour) -> Run:
    """The same number of commands and bytes, in the ordinary way: everything is received, every R2T answered."""
    _, cntlid = host.connect_admin(SUBNQN)
    queue = host.connect_io(SUBNQN, cntlid, 1)
    opcode = w.WRITE if what.operation == "write" else w.READ
    size = what.size_bytes
    payload = memoryview(host.random.randbytes(size))
    inline = bytes(payload) if opcode == w.WRITE and size <= 8192 else b""

    def run() -> None:
        for number in host.pace(what.per_second / what.depth):
            host.count("commands", what.depth)
            host.count(
                "failed",
                queue.exchange(
                    [
                        io_capsule(opcode, cid, _nsid(number), host.offset(size), size, inline)
                        for cid in range(what.depth)
                    ],
                    payload,
                ),
            )

    return run


# What they do wrong


def reads_not_received(host: Host) -> Run:
    """32 reads of 1 MiB of the file on each of eight queues: four are never received, four at 2 MiB/s together."""
    _, cntlid = host.connect_admin(SUBNQN)
    queues = [host.connect_io(SUBNQN, cntlid, qid) for qid in range(1, 9)]
    slow = queues[4:]

    def read(queue: Connection, cid: int) -> None:
        host.count("commands")
        queue.sock.sendall(io_capsule(w.READ, cid, FILE, host.offset(MIB), MIB))

    def run() -> None:
        for queue in queues:
            for cid in range(32):
                read(queue, cid)
        piece = 64 << 10
        for number in host.pace(SLOW_BYTES_PER_SECOND / piece):
            queue = slow[number % len(slow)]
            for head in queue.arrived(piece):
                if completes(head):
                    host.count("received")
                    read(queue, head[8] if head[0] == w.C2H_DATA else head[20])

    return run


def r2ts_not_answered(host: Host) -> Run:
    """100 writes of 1 MiB on each of four queues, never answered; 32 on a fifth, whose data comes at 2 MiB/s."""
    _, cntlid = host.connect_admin(SUBNQN)
    silent = [host.connect_io(SUBNQN, cntlid, qid) for qid in range(1, 5)]
    slow = host.connect_io(SUBNQN, cntlid, 5)
    payload = memoryview(host.random.randbytes(MIB))

    def write(queue: Connection, cid: int) -> None:
        host.count("commands")
        queue.sock.sendall(io_capsule(w.WRITE, cid, _nsid(cid), host.offset(MIB), MIB))

    def run() -> None:
        for queue in silent:
            for cid in range(100):
                write(queue, cid)
        for cid in range(32):
            write(slow, cid)
        pieces: list[tuple[bytes, memoryview]] = []
        for _ in host.pace(SLOW_BYTES_PER_SECOND / (64 << 10)):
            for head in slow.arrived():
                if head[0] == w.R2T:
                    pieces += h2c_data(head, payload, 16)
                elif completes(head):
                    host.count("written")
                    write(slow, head[20])
            if pieces:
                header, part = pieces.pop(0)
                slow.sock.sendall(header)
                slow.sock.sendall(part)

    return run


def discovery_loop(host: Host) -> Run:
    """The Discovery log over and over, in pieces of 4 KiB, four at a time."""
    admin, _ = host.connect_admin(DISCOVERY_NQN)
    assert isinstance(admin.sock, socket.socket)
    queue = Connection(admin.sock)
    pieces = 200 * 1024 // 4096

    def run() -> None:
        for number in host.pace(250):
            capsules = []
            for cid in range(4):
                offset = (4 * number + cid) % pieces * 4096
                cdw10 = 0x70 | 1023 << 16
                sqe = w.SQE.pack(0x02, w.PSDT_SGL, cid, 0, 0, 0, 0, 0, 4096, w.TRANSPORT_SGL, cdw10, 0, offset, 0, 0, 0)
                capsules.append(w.Framing().head(w.CAPSULE_CMD, sqe))
            host.count("commands", 4)
            host.count("failed", queue.exchange(capsules))

    return run


def connect_storm(host: Host) -> Run:
    """32 connections at once, ten times a second: ICReq, Connect and away; of each eight one says nothing at all."""
    icreq = w.COMMON_HEADER.pack(w.ICREQ, 0, 128, 0, 128) + w.INITIALIZE.pack(0, 0, 0, 0)
    sqe, data = connect_command(SUBNQN, 0, 31, 0, DYNAMIC_CNTLID, host.number)
    connect = w.Framing().head(w.CAPSULE_CMD, sqe, len(data)) + data

    def burst() -> None:
        storm = [dial(host.port) for _ in range(32)]
        host.count("connections", len(storm))
        try:
            speaking = [sock for number, sock in enumerate(storm) if number % 8]
            for sock in speaking:
                sock.sendall(icreq)
            for sock in speaking:
                sock.recv(128, socket.MSG_WAITALL)
                sock.sendall(connect)
            for sock in speaking:
                if len(sock.recv(24, socket.MSG_WAITALL)) == 24:
                    host.count("connected")
        finally:
            for sock in storm:
                sock.close()

    def run() -> None:
        for _ in host.pace(10):
            try:
                burst()
            except OSError:
                host.count("failed")

    return run


def byte_by_byte(host: Host) -> Run:
    """Reads, and now and then a write with its data in the capsule, a segment per byte, 15,000 bytes per second."""
    _, cntlid = host.connect_admin(SUBNQN)
    queue = host.connect_io(SUBNQN, cntlid, 1)

    def run() -> None:
        capsules = [io_capsule(w.READ, cid, _nsid(cid), host.offset(4096), 4096) for cid in range(20)]
        capsules.append(io_capsule(w.WRITE, 20, RAMDISK, host.offset(512), 512, host.random.randbytes(512)))
        stream = b"".join(capsules)
        at = 0
        for _ in host.pace(1000):
            for byte in range(at, at + 15):
                queue.sock.send(stream[byte % len(stream) :][:1])
            at = (at + 15) % len(stream)
            host.count("segments", 15)
            host.count("completed", sum(completes(head) for head in queue.arrived()))

    return run


COPY = 0x19
COPY_RANGE_BYTES = 4 * MIB


def _copy(cid: int, nsid: int) -> bytes:
    """16 MiB from the first quarter of a namespace to the second."""
    blocks, sgl = COPY_RANGE_BYTES // 512, w.IN_CAPSULE
    ranges = b"".join(struct.pack("<8xQH14x", number * blocks, blocks - 1) for number in range(4))
    sqe = w.SQE.pack(
        COPY,
        w.PSDT_SGL,
        cid,
        nsid,
        0,
        0,
        0,
        0,
        len(ranges),
        sgl,
        4 * blocks,
        0,
        len(ranges) // 32 - 1,
        0,
        0,
        0,
    )
    return w.Framing().head(w.CAPSULE_CMD, sqe, len(ranges)) + ranges


SANITIZE, SANITIZE_LOG = 0x84, 0x81
OVERWRITE_ONCE = 0x1B  # action 3 (overwrite), AUSE, OWPASS 1


def copies_and_sanitize(host: Host) -> Run:
    """Copies of 16 MiB, ten a second on each of two namespaces; and the other subsystem is sanitized all the time."""
    _, cntlid = host.connect_admin(SUBNQN)
    queue = host.connect_io(SUBNQN, cntlid, 1)
    other, other_cntlid = host.connect_admin(OTHER_SUBNQN)
    other_queue = host.connect_io(OTHER_SUBNQN, other_cntlid, 1)
    payload = memoryview(host.random.randbytes(MIB))

    def sanitize() -> None:
        command = w.SQE.pack(
            SANITIZE, w.PSDT_SGL, 0, 0, 0, 0, 0, 0, 0, w.TRANSPORT_SGL, OVERWRITE_ONCE, 0xA5A5A5A5, 0, 0, 0, 0
        )
        log = w.SQE.pack(
            2, w.PSDT_SGL, 0, 0xFFFFFFFF, 0, 0, 0, 0, 512, w.TRANSPORT_SGL, SANITIZE_LOG | 127 << 16, 0, 0, 0, 0, 0
        )
        for _ in host.pace(4):
            for offset in range(0, OTHER_DATA_BYTES, MIB):  # so that there is something to overwrite
                host.count("failed", other_queue.exchange([io_capsule(w.WRITE, 0, 1, offset, MIB)], payload))
            host.count("sanitize operations")
            other.expect("Sanitize", command)
            while not host.over and other.expect("the Sanitize Status log", log).data[2] & 7 == 2:
                time.sleep(0.01)

    def run() -> None:
        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                sanitize()
            except (BenchmarkError, OSError) as error:
                failures.append(error)

        second = threading.Thread(target=guarded)
        second.start()
        try:
            for number in host.pace(20):
                host.count("copies")
                host.count("failed", queue.exchange([_copy(0, _nsid(number))]))
        finally:
            second.join()
        if failures:
            raise BenchmarkError(f"Sanitize: {failures[0]}")

    return run


ABORT = 0x08


def aborts_and_resets(host: Host) -> Run:
    """Reads and unanswered writes, aborted; then the connection, the controller or all is reset; ten times a second."""

    def associate() -> tuple[Queue, Connection, int]:
        queue, cntlid = host.connect_admin(SUBNQN)
        assert isinstance(queue.sock, socket.socket)
        return queue, Connection(queue.sock), cntlid

    state = associate()

    def cycle(number: int) -> None:
        nonlocal state
        queue, admin, cntlid = state
        io = host.connect_io(SUBNQN, cntlid, 1)
        reads = [io_capsule(w.READ, cid, _nsid(cid), host.offset(128 << 10), 128 << 10) for cid in range(32)]
        writes = [io_capsule(w.WRITE, cid, _nsid(cid), host.offset(MIB), MIB) for cid in range(32, 48)]
        io.sock.sendall(b"".join(reads + writes))
        host.count("commands", 48)
        aborts = [
            w.SQE.pack(ABORT, w.PSDT_SGL, cid, 0, 0, 0, 0, 0, 0, w.TRANSPORT_SGL, 1 | cid << 16, 0, 0, 0, 0, 0)
            for cid in range(24, 48)
        ]
        host.count("aborts", len(aborts))
        admin.exchange([w.Framing().head(w.CAPSULE_CMD, sqe) for sqe in aborts])
        if number % 3 == 1:
            host.count("controller resets")
            queue.property_set(0x14, CC_ENABLE_NVM & ~1)
            queue.property_set(0x14, CC_ENABLE_NVM)
        host.count("connection resets")
        io.reset()
        if number % 3 == 2:
            host.count("association resets")
            admin.reset()
            state = associate()

    def run() -> None:
        nonlocal state
        for number in host.pace(10):
            try:
                cycle(number)
            except (BenchmarkError, OSError):  # the last queue is not gone yet, for instance
                host.count("failed")
                state[1].reset()
                state = associate()

    return run


MISBEHAVE: dict[str, Callable[[Host], Run]] = {
    "reads": reads_not_received,
    "r2ts": r2ts_not_answered,
    "discovery": discovery_loop,
    "connects": connect_storm,
    "bytes": byte_by_byte,
    "copies": copies_and_sanitize,
    "resets": aborts_and_resets,
}


def _lines() -> Iterator[str]:
    while line := sys.stdin.readline():
        yield line


def main(argv: list[str] | None = None) -> int:
    """Prints ``ready``, waits for a line with the seconds, prints the counts as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=sorted(MISBEHAVE))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--behave", action="store_true")
    options = parser.parse_args(argv)
    what = next(each for each in MISBEHAVIOURS if each.name == options.name)
    host = Host(options.port, what.number)
    try:
        run = behave(host, what) if options.behave else MISBEHAVE[what.name](host)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for line in _lines():
            seconds = float(line)
            signal.alarm(int(seconds) + GRACE_SECONDS)  # whatever happens, it ends
            host.until = time.monotonic() + seconds
            run()
            break
        result: dict[str, object] = dict(host.counts)
    except (BenchmarkError, OSError) as error:
        result = host.counts | {"error": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
