#!/usr/bin/env python3
"""Run commands in the guest for a driver outside: `python3 /job/agent.py PORT`, reached through `guest --fwd`.

One connection is one command, so that several run side by side. The driver sends a 4-byte little-endian length and
that much bash; the agent answers with messages of one type byte, a 4-byte length and that much payload: `o` is
output (both streams, as it comes), `x` the exit status in decimal, after which it closes. The command ends when the
driver closes the connection.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading


def receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise ConnectionError("closed early")
        data += part
    return data


def watch(connection: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    """End the command's whole process group when the driver goes away."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def serve(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        script = receive(connection, struct.unpack("<I", receive(connection, 4))[0])
        process = subprocess.Popen(
            ["bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=watch, args=(connection, process), daemon=True).start()
        assert process.stdout is not None
        while part := os.read(process.stdout.fileno(), 65536):
            connection.sendall(b"o" + struct.pack("<I", len(part)) + part)
        status = b"%d" % process.wait()
        connection.sendall(b"x" + struct.pack("<I", len(status)) + status)


def main() -> None:
    with socket.create_server(("", int(sys.argv[1])), backlog=16) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
