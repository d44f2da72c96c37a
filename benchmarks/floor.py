"""The floor: a server that moves a case's bytes through a bare recv_into/sendmsg loop and understands none of them.

It answers by counting: so many bytes in, so many fixed reply bytes (and slices of its memory) out. What a target
achieves can be held against it, since both run in one Python process against the same load generator.
One connection at a time; each begins with one line of JSON that tells the sizes (see workload.floor_hello).
"""

from __future__ import annotations

import argparse
import json
import mmap
import random
import socket
import sys
from collections import deque
from typing import Any

from benchmarks.session import IPPROTO_MPTCP

SLICES = 16384
WINDOW_BYTES = 1 << 18
SCRATCH_BYTES = 1 << 16
IOV_MAX = 1024


def make_memory(size_bytes: int) -> mmap.mmap:
    """Anonymous memory, every page of it touched: an untouched page would be read from the one zero page."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    chunk = random.Random(1).randbytes(1 << 20)
    for at in range(0, size_bytes, len(chunk)):
        memory[at : at + len(chunk)] = chunk[: size_bytes - at]
    return memory


def _slices(memory: memoryview, length: int, align: int, seed: int = 2) -> list[memoryview]:
    rng = random.Random(seed)
    places = max(1, (len(memory) - length) // align + 1)
    count = min(SLICES, max(64, len(memory) // length))
    return [memory[at : at + length] for at in (rng.randrange(places) * align for _ in range(count))]


def serve_reads(sock: socket.socket, hello: dict[str, Any], memory: memoryview) -> None:
    """`request_bytes` in, one reply head, a slice of memory and the reply's tail out; a batch is one sendmsg."""
    payload_bytes, request_bytes = hello["payload_bytes"], hello["request_bytes"]
    head, tail = bytes.fromhex(hello["data_head"]), bytes.fromhex(hello["data_tail"])
    parts: list[bytes | memoryview] = []
    for view in _slices(memory, payload_bytes, payload_bytes):
        parts += (head, view, tail) if tail else (head, view)
    per_reply = 3 if tail else 2
    unit = len(head) + payload_bytes + len(tail)
    most = IOV_MAX // per_reply
    buffer = bytearray(SCRATCH_BYTES)
    recv_into, sendmsg = sock.recv_into, sock.sendmsg
    owed = at = 0
    while received := recv_into(buffer):
        owed += received
        while owed >= request_bytes:
            count = min(owed // request_bytes, most)
            end = at + count * per_reply
            if end > len(parts):
                at, end = 0, count * per_reply
            taken = sendmsg(parts[at:end])
            if taken != count * unit:
                sock.sendall(b"".join(parts[at:end])[taken:])
            at = end
            owed -= count * request_bytes


def serve_writes(sock: socket.socket, hello: dict[str, Any], memory: memoryview) -> None:
    """Whatever comes goes straight into memory; one response for every `request_bytes`."""
    request_bytes = hello["request_bytes"]
    response = bytes.fromhex(hello["response"])
    replies = memoryview(response * 4096)
    views = _slices(memory, min(WINDOW_BYTES, len(memory)), 4096)
    recv_into, send = sock.recv_into, sock.sendall
    owed = at = 0
    while received := recv_into(views[at]):
        at = (at + 1) % len(views)
        owed += received
        if owed >= request_bytes:
            count, owed = divmod(owed, request_bytes)
            send(replies[: count * len(response)])


def serve_r2t_writes(sock: socket.socket, hello: dict[str, Any], memory: memoryview) -> None:
    """Commands are answered with R2T, data with a response; what comes next follows from what was sent."""
    capsule, data = hello["request_bytes"], hello["data_pdu_bytes"]
    r2t, response = bytes.fromhex(hello["r2t"]), bytes.fromhex(hello["response"])
    expected = deque([capsule] * hello["depth"])
    views = _slices(memory, min(WINDOW_BYTES, len(memory)), 4096)
    recv_into, send = sock.recv_into, sock.sendall
    owed = at = 0
    while received := recv_into(views[at]):
        at = (at + 1) % len(views)
        owed += received
        out = b""
        while expected and owed >= expected[0]:
            size = expected.popleft()
            owed -= size
            if size == capsule:
                out += r2t
                expected.append(data)
            else:
                out += response
                expected.append(capsule)
        if out:
            send(out)


SERVE = {"read": serve_reads, "write": serve_writes, "r2t": serve_r2t_writes}


def handle(sock: socket.socket, memory: memoryview) -> None:
    """One connection, to its end."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            return
        line += byte
    hello = json.loads(line)
    sock.sendall(b"!")
    try:
        SERVE[hello["mode"]](sock, hello, memory)
    except ConnectionError:
        return


def main(argv: list[str] | None = None) -> None:
    """Serve until killed. The bound port is the first line on standard output."""
    parser = argparse.ArgumentParser(prog="benchmarks.floor")
    parser.add_argument("--size-bytes", type=int, default=1 << 30)
    parser.add_argument("--mptcp", action="store_true")
    parser.add_argument("--congestion")
    options = parser.parse_args(argv)
    memory = memoryview(make_memory(options.size_bytes))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP if options.mptcp else 0)
    if options.congestion:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.congestion.encode())
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        sock, _ = listener.accept()
        with sock:
            handle(sock, memory)


if __name__ == "__main__":
    main()
