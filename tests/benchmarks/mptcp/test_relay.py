"""The relay of examples/: bytes and ends of streams pass from each end to the other."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

RELAY = Path(__file__).resolve().parents[3] / "examples" / "mptcp_relay.py"
IPPROTO_MPTCP = 262


def have_mptcp() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP):
        return True
    return False


@pytest.fixture(params=["tcp", "mptcp"])
def far(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Listen behind the relay."""
    if request.param == "mptcp" and not have_mptcp():
        pytest.skip("this kernel opens no MPTCP sockets")
    protocol = IPPROTO_MPTCP if request.param == "mptcp" else socket.IPPROTO_TCP
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4)
        listener.settimeout(10)
        yield listener


@contextlib.contextmanager
def relay(connect: str) -> Iterator[tuple[str, int]]:
    process = subprocess.Popen(
        [sys.executable, str(RELAY), "--listen", "tcp:127.0.0.1:0", "--connect", connect],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("relaying tcp 127.0.0.1:"), line
            yield "127.0.0.1", int(line.split()[2].rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    assert "Traceback" not in err + out


def name_of(listener: socket.socket) -> str:
    kind = listener.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    return f"{'mptcp' if kind == IPPROTO_MPTCP else 'tcp'}:127.0.0.1:{listener.getsockname()[1]}"


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def test_bytes_and_ends_pass_in_both_directions(far: socket.socket) -> None:
    up, down = random.Random(1).randbytes(5_000_001), random.Random(2).randbytes(3_000_003)
    with relay(name_of(far)) as address, socket.create_connection(address, 10) as near:
        near.settimeout(20)
        peer, _ = far.accept()
        with peer:
            peer.settimeout(20)
            arrived: list[bytes] = []
            reader = threading.Thread(target=lambda: arrived.append(read_all(peer)))
            reader.start()
            near.sendall(up)
            near.shutdown(socket.SHUT_WR)
            reader.join(20)
            assert arrived == [up]
            answer = threading.Thread(target=lambda: (peer.sendall(down), peer.shutdown(socket.SHUT_WR)))
            answer.start()
            assert read_all(near) == down, "the other direction still works after one has ended"
            answer.join(20)


def test_a_slow_reader_holds_the_writer_back(far: socket.socket) -> None:
    with relay(name_of(far)) as address, socket.create_connection(address, 10) as near:
        peer, _ = far.accept()
        with peer:
            near.settimeout(0.5)
            sent = 0
            with pytest.raises(TimeoutError):
                while sent < 1 << 30:
                    sent += near.send(bytes(1 << 20))
            assert sent < 1 << 28
            peer.settimeout(10)
            assert peer.recv(1 << 16)


def test_a_relay_without_a_listener_behind_it_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with relay(f"tcp:127.0.0.1:{port}") as address, socket.create_connection(address, 10) as near:
        near.settimeout(10)
        assert near.recv(1) == b""


def test_bad_address_is_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, str(RELAY), "--listen", "tcp:1.2.3.4", "--connect", "udp:127.0.0.1:1"],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not tcp:ADDRESS:PORT or mptcp:ADDRESS:PORT" in done.stderr
