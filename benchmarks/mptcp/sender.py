"""A bare sender and receiver over TCP or MPTCP: what the links carry without NVMe.

    python -m benchmarks.mptcp.sender serve --transport mptcp --listen 0.0.0.0:5001
    python -m benchmarks.mptcp.sender measure --transport mptcp --address 10.1.1.1:5001 --direction read

One thread per side and blocking sockets. `read`: the server sends and the client counts; `write`: the other way round.
The receiver counts, from `--warmup` seconds after its first byte on, for `--seconds`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import struct
import threading
import time
from typing import Any

from benchmarks.session import IPPROTO_MPTCP

PIECE_BYTES = 256 * 1024
_ORDER = struct.Struct("<cdd")
_RESULT = struct.Struct("<Qd")


def open_socket(transport: str, congestion: str | None) -> socket.socket:
    """Open a socket of a transport. Raises OSError where the kernel lacks the transport or the congestion control."""
    protocol = IPPROTO_MPTCP if transport == "mptcp" else socket.IPPROTO_TCP
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    if congestion:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    return sock


def count(sock: socket.socket, warmup_seconds: float, seconds: float) -> tuple[int, float]:
    """Return the bytes received in the window, and its length in seconds."""
    buffer = bytearray(PIECE_BYTES)
    total, first = 0, time.monotonic()
    began: float | None = None
    while True:
        received = sock.recv_into(buffer)
        now = time.monotonic()
        if not received:
            break
        if began is None:
            if now - first >= warmup_seconds:
                began = now
            continue
        total += received
        if now - began >= seconds:
            break
    return total, (now - began) if began is not None else 0.0


def flood(sock: socket.socket) -> None:
    """Send until the peer closes the connection."""
    piece = bytes(PIECE_BYTES)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(piece)


def handle(sock: socket.socket) -> None:
    """Serve one connection."""
    with sock, contextlib.suppress(OSError):
        direction, warmup, seconds = _ORDER.unpack(sock.recv(_ORDER.size, socket.MSG_WAITALL))
        if direction == b"r":
            flood(sock)
        else:
            sock.sendall(_RESULT.pack(*count(sock, warmup, seconds)))
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def measure(
    transport: str, address: tuple[str, int], direction: str, warmup: float, seconds: float, congestion: str | None
) -> dict[str, Any]:
    """Measure once; return megabytes (10^6) per second in one direction."""
    with open_socket(transport, congestion) as sock:
        sock.connect(address)
        sock.sendall(_ORDER.pack(direction[:1].encode(), warmup, seconds))
        if direction == "read":
            total, elapsed = count(sock, warmup, seconds)
        else:
            sender = threading.Thread(target=flood, args=(sock,))
            sender.start()
            total, elapsed = _RESULT.unpack(sock.recv(_RESULT.size, socket.MSG_WAITALL))
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sender.join()
    return {"direction": direction, "mb_per_s": total / elapsed / 1e6 if elapsed else 0.0, "seconds": elapsed}


def serve(transport: str, address: tuple[str, int], congestion: str | None) -> None:
    """Serve without end; print a line when the server listens."""
    with open_socket(transport, congestion) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(16)
        print("listening", flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=handle, args=(sock,), daemon=True).start()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mptcp.sender", description=__doc__)
    parser.add_argument("role", choices=["serve", "measure"])
    parser.add_argument("--transport", choices=["tcp", "mptcp"], default="mptcp")
    parser.add_argument("--listen", type=_address, default=("0.0.0.0", 5001))
    parser.add_argument("--address", type=_address, default=("127.0.0.1", 5001))
    parser.add_argument("--direction", choices=["read", "write"], default="read")
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--congestion")
    options = parser.parse_args()
    if options.role == "serve":
        with contextlib.suppress(KeyboardInterrupt):
            serve(options.transport, options.listen, options.congestion)
        return
    result = measure(
        options.transport, options.address, options.direction, options.warmup, options.seconds, options.congestion
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
