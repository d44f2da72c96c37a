"""Floors for what `benchmarks.floor` leaves out: the digests of a case, and the reading and writing of a file.

The same bytes, the same sockets and one process, as there; one receive and one send per batch. With ``--digests`` every
digest that a target has to check or to make is computed, over the same bytes; nothing is looked at beyond that. With
``--file`` every request is a pread or pwrite at a random place of that file, and ``--direct`` opens it with O_DIRECT:
then the reading and writing is aligned, and done by ``--threads`` threads, which answer for themselves.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import socket
import sys
import threading
from collections import deque
from queue import SimpleQueue
from typing import Any, Final

from benchmarks.floor import IOV_MAX, SLICES, WINDOW_BYTES, make_memory
from benchmarks.session import IPPROTO_MPTCP
from benchmarks.wireformat import CAPSULE_BYTES, RESPONSE_BYTES, crc32c

SLAB_BYTES: Final = 1 << 21
ALIGN_BYTES: Final = 4096
DIGEST_BYTES: Final = 4
HEADER_WINDOW_BYTES: Final = 4096
"""How much of what follows a payload is received with it, and so copied when a payload begins in it."""


def _places(size_bytes: int, length: int, seed: int = 2) -> list[int]:
    """Random places of ``length`` bytes, aligned to their own length."""
    rng = random.Random(seed)
    return [rng.randrange(size_bytes // length) * length for _ in range(SLICES)]


def _digest(data: Any) -> bytes:
    return crc32c(data).to_bytes(DIGEST_BYTES, "little")


class Storage:
    """Where payloads are: memory, or a file that is read and written at random places."""

    def __init__(self, size_bytes: int, path: str | None, *, direct: bool) -> None:
        self.size_bytes = size_bytes
        self.memory = None if path else memoryview(make_memory(size_bytes))
        self.fd = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0)) if path else -1
        self.slab = memoryview(mmap.mmap(-1, SLAB_BYTES))


class Places:
    """Random places of one length, over and over."""

    def __init__(self, size_bytes: int, length: int) -> None:
        self._places = _places(size_bytes, length)
        self._at = 0

    def take(self, count: int) -> list[int]:
        """Return the next ``count`` places, at most `SLICES`."""
        if self._at + count > len(self._places):
            self._at = 0
        self._at += count
        return self._places[self._at - count : self._at]


def _send(sock: socket.socket, parts: list[Any], size: int) -> None:
    taken = sock.sendmsg(parts)
    if taken != size:
        sock.sendall(b"".join(parts)[taken:])


# -- digests of a case in memory -------------------------------------------------------------------------------------


def digest_reads(sock: socket.socket, hello: dict[str, Any], storage: Storage) -> None:
    """Check the header digest of each request; make those of the header and the data of each reply."""
    assert storage.memory is not None
    payload, request = hello["payload_bytes"], hello["request_bytes"]
    head, tail = bytes.fromhex(hello["data_head"]), bytes.fromhex(hello["data_tail"])[DIGEST_BYTES:]
    plain, padding = head[:RESPONSE_BYTES], head[RESPONSE_BYTES + DIGEST_BYTES :]
    memory, places = storage.memory, Places(storage.size_bytes, payload)
    buffer = memoryview(bytearray(1 << 16))
    unit, owed = len(head) + payload + DIGEST_BYTES + len(tail), 0
    while received := sock.recv_into(buffer[owed:]):
        owed += received
        count = min(owed // request, IOV_MAX // 4)
        parts: list[Any] = []
        for number, place in enumerate(places.take(count)):
            at = number * request
            crc32c(buffer[at : at + CAPSULE_BYTES])
            data = memory[place : place + payload]
            parts += (plain + _digest(plain) + padding, data, _digest(data) + tail)
        if parts:
            _send(sock, parts, count * unit)
        owed -= count * request
        buffer[:owed] = buffer[count * request : count * request + owed]


def digest_writes(sock: socket.socket, hello: dict[str, Any], storage: Storage) -> None:
    """Check the digests of header and data of each request, then copy the data to its place."""
    assert storage.memory is not None
    payload, request = hello["payload_bytes"], hello["request_bytes"]
    response = bytes.fromhex(hello["response"])
    plain = response[:RESPONSE_BYTES]
    start = request - DIGEST_BYTES - payload
    memory, places, slab, owed = storage.memory, Places(storage.size_bytes, payload), storage.slab[:WINDOW_BYTES], 0
    while received := sock.recv_into(slab[owed:]):
        owed += received
        count = owed // request
        answers = []
        for number, place in enumerate(places.take(count)):
            at = number * request
            crc32c(slab[at : at + CAPSULE_BYTES])
            data = slab[at + start : at + start + payload]
            crc32c(data)
            memory[place : place + payload] = data
            answers.append(plain + _digest(plain))
        if answers:
            sock.sendall(b"".join(answers))
        owed -= count * request
        slab[:owed] = slab[count * request : count * request + owed]


def digest_r2t_writes(sock: socket.socket, hello: dict[str, Any], storage: Storage) -> None:
    """As `benchmarks.floor.serve_r2t_writes`, each payload straight to its place, all digests computed."""
    assert storage.memory is not None
    capsule, data_pdu, payload = hello["request_bytes"], hello["data_pdu_bytes"], hello["payload_bytes"]
    r2t, response = bytes.fromhex(hello["r2t"])[:RESPONSE_BYTES], bytes.fromhex(hello["response"])[:RESPONSE_BYTES]
    before = data_pdu - payload - DIGEST_BYTES
    expected = deque([capsule] * hello["depth"])
    memory, places = storage.memory, Places(storage.size_bytes, payload)
    window = memoryview(bytearray(HEADER_WINDOW_BYTES))
    have, place, rest, crc = 0, 0, 0, 0
    while True:
        if rest:
            received = sock.recvmsg_into([memory[place + payload - rest : place + payload], window[have:]])[0]
            here = min(received, rest)
            at = place + payload - rest
            crc = crc32c(memory[at : at + here], crc)  # type: ignore[call-arg]
            rest -= here
            have += received - here
        else:
            received = sock.recv_into(window[have:])
            have += received
        if not received:
            return
        out, used = b"", 0
        while not rest:
            size = expected[0] if expected else 0
            if size == capsule and have - used >= capsule:
                crc32c(window[used : used + CAPSULE_BYTES])
                out += r2t + _digest(r2t)
                used += expected.popleft()
                expected.append(data_pdu)
            elif size == data_pdu and have - used >= before:
                crc32c(window[used : used + RESPONSE_BYTES])
                used += before
                (place,) = places.take(1)
                here = min(have - used, payload)
                memory[place : place + here] = window[used : used + here]
                crc = crc32c(memory[place : place + here])
                used, rest = used + here, payload - here
                expected[0] = DIGEST_BYTES
            elif size == DIGEST_BYTES and have - used >= DIGEST_BYTES:
                out += response + _digest(response)
                used += expected.popleft()
                expected.append(capsule)
            else:
                break
        have -= used
        window[:have] = window[used : used + have]
        if out:
            sock.sendall(out)


# -- a file ----------------------------------------------------------------------------------------------------------


def file_reads(sock: socket.socket, hello: dict[str, Any], storage: Storage) -> None:
    """A pread for each request; all replies of a batch in one send."""
    payload, request = hello["payload_bytes"], hello["request_bytes"]
    head, tail = bytes.fromhex(hello["data_head"]), bytes.fromhex(hello["data_tail"])
    places, slab, fd = Places(storage.size_bytes, payload), storage.slab, storage.fd
    views = [slab[at : at + payload] for at in range(0, len(slab) - payload + 1, payload)][: IOV_MAX // 3]
    parts: list[Any] = [part for view in views for part in ((head, view, tail) if tail else (head, view))]
    per_reply, unit = 3 if tail else 2, len(head) + payload + len(tail)
    buffer, owed = bytearray(1 << 16), 0
    while received := sock.recv_into(buffer):
        owed += received
        while owed >= request:
            count = min(owed // request, len(views))
            for view, place in zip(views, places.take(count), strict=False):
                os.preadv(fd, [view], place)
            _send(sock, parts[: count * per_reply], count * unit)
            owed -= count * request


def file_writes(sock: socket.socket, hello: dict[str, Any], storage: Storage) -> None:
    """A pwrite for each request; all responses of a batch in one send."""
    payload, request = hello["payload_bytes"], hello["request_bytes"]
    response = bytes.fromhex(hello["response"])
    start, places, slab, fd, owed = request - payload, Places(storage.size_bytes, payload), storage.slab, storage.fd, 0
    while received := sock.recv_into(slab[owed:WINDOW_BYTES]):
        owed += received
        count = owed // request
        for number, place in enumerate(places.take(count)):
            at = number * request + start
            os.pwrite(fd, slab[at : at + payload], place)
        if count:
            sock.sendall(response * count)
        owed -= count * request
        slab[:owed] = slab[count * request : count * request + owed]


def file_r2t_writes(sock: socket.socket, hello: dict[str, Any], storage: Storage) -> None:
    """Commands are answered with R2T, data with a pwrite and a response."""
    capsule, data_pdu, payload = hello["request_bytes"], hello["data_pdu_bytes"], hello["payload_bytes"]
    r2t, response = bytes.fromhex(hello["r2t"]), bytes.fromhex(hello["response"])
    expected = deque([capsule] * hello["depth"])
    places, slab, fd = Places(storage.size_bytes, payload), storage.slab, storage.fd
    have = used = 0
    while received := sock.recv_into(slab[have:]):
        have += received
        out = b""
        while expected and have - used >= expected[0]:
            size = expected.popleft()
            if size == capsule:
                out += r2t
                expected.append(data_pdu)
            else:
                os.pwrite(fd, slab[used + size - payload : used + size], places.take(1)[0])
                out += response
                expected.append(capsule)
            used += size
        if out:
            sock.sendall(out)
        if used == have:
            have = used = 0
        elif len(slab) - have < data_pdu:
            rest = have - used
            slab[:rest] = bytes(slab[used:have])
            have, used = rest, 0


# -- a file without the page cache -----------------------------------------------------------------------------------


class Threads:
    """Threads that each take a part of a batch, and send its replies in one go."""

    def __init__(self, count: int) -> None:
        self.jobs: SimpleQueue[Any] = SimpleQueue()
        self.lock = threading.Lock()
        self.count = count
        for _ in range(count):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            call, argument = self.jobs.get()
            try:
                call(argument)
            except OSError:
                return

    def share(self, call: Any, jobs: list[Any]) -> None:
        """Give each thread its share of a batch."""
        step = max(1, -(-len(jobs) // self.count))
        for at in range(0, len(jobs), step):
            self.jobs.put((call, jobs[at : at + step]))


def direct(sock: socket.socket, hello: dict[str, Any], storage: Storage, threads: int) -> None:
    """Read or write a file with O_DIRECT: aligned buffers, in threads."""
    payload, request, mode = hello["payload_bytes"], hello["request_bytes"], hello["mode"]
    head, tail = bytes.fromhex(hello["data_head"]), bytes.fromhex(hello["data_tail"])
    response, places, fd = bytes.fromhex(hello["response"]), Places(storage.size_bytes, payload), storage.fd
    pool, size = Threads(threads), -(-payload // ALIGN_BYTES) * ALIGN_BYTES
    slab = memoryview(mmap.mmap(-1, size * (hello["depth"] + 1)))
    free = deque(slab[at : at + payload] for at in range(0, len(slab) - size + 1, size))

    def answer(parts: list[Any], views: list[Any]) -> None:
        with pool.lock:
            _send(sock, parts, sum(map(len, parts)))
        free.extend(views)

    def read(jobs: list[Any]) -> None:
        for view, place in jobs:
            os.preadv(fd, [view], place)
        answer([p for view, _ in jobs for p in (head, view, tail)], [view for view, _ in jobs])

    def write(jobs: list[Any]) -> None:
        for view, place in jobs:
            os.pwritev(fd, [view], place)
        answer([response] * len(jobs), [view for view, _ in jobs])

    window, owed, start = memoryview(bytearray(WINDOW_BYTES)), 0, request - payload
    if mode == "r2t":
        raise SystemExit("the floor with O_DIRECT reads, and writes data that comes in capsules")
    while received := sock.recv_into(window[owed:]):
        owed += received
        count = min(owed // request, len(free))
        jobs = [(free.popleft(), place) for place in places.take(count)]
        if mode == "write":
            for number, (view, _) in enumerate(jobs):
                view[:] = window[number * request + start : (number + 1) * request]
        pool.share(write if mode == "write" else read, jobs)
        owed -= count * request
        window[:owed] = window[count * request : count * request + owed]


DIGESTS = {"read": digest_reads, "write": digest_writes, "r2t": digest_r2t_writes}
FILES = {"read": file_reads, "write": file_writes, "r2t": file_r2t_writes}


def _handle(sock: socket.socket, storage: Storage, options: argparse.Namespace) -> None:
    """Serve one connection to its end; it begins as that of `benchmarks.floor`."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock.makefile("rb", buffering=0) as file:
        line = file.readline()
    if not line:
        return
    hello = json.loads(line)
    sock.sendall(b"!")
    try:
        if options.direct:
            direct(sock, hello, storage, options.threads)
        elif options.file:
            FILES[hello["mode"]](sock, hello, storage)
        else:
            DIGESTS[hello["mode"]](sock, hello, storage)
    except ConnectionError:
        return


def main(argv: list[str] | None = None) -> None:
    """Serve until killed. The bound port is the first line on standard output."""
    parser = argparse.ArgumentParser(prog="benchmarks.floor_storage", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size-bytes", type=int, default=1 << 28)
    parser.add_argument("--digests", action="store_true", help="compute the digests of the case")
    parser.add_argument("--file", help="read and write this file")
    parser.add_argument("--direct", action="store_true", help="without the page cache")
    parser.add_argument("--threads", type=int, default=8, help="with --direct")
    parser.add_argument("--mptcp", action="store_true")
    options = parser.parse_args(argv)
    if options.digests == bool(options.file):
        parser.error("give either --digests or --file")
    storage = Storage(options.size_bytes, options.file, direct=options.direct)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP if options.mptcp else 0)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        sock, _ = listener.accept()
        with sock:
            _handle(sock, storage, options)


if __name__ == "__main__":
    main()
