"""The target under a service manager: a process with its sockets and its notification socket, as systemd makes them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeof import connect
from nvmeof.errors import TransportError
from nvmeof.transport import service_manager
from nvmeof.transport.mptcp import IPPROTO_MPTCP, why_no_mptcp
from nvmeof.transport.service_manager import ServiceManager, receive_sockets, take_inherited

NQN = "nqn.2026-01.io.nvmeof:target"


class Manager:
    """A service manager: it passes sockets as descriptors 3 and up, and gets what the service tells."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.path))
        self.notify.settimeout(20)
        self.process: subprocess.Popen[str] | None = None

    def run(self, *arguments: str, sockets: dict[str, socket.socket] | None = None, watchdog: float = 0) -> None:
        """Start a target. The shell gives LISTEN_PID the number of the process that it becomes."""
        sockets = sockets or {}
        moves = "".join(f" {3 + n}<&{each.fileno() + 100}" for n, each in enumerate(sockets.values()))
        descriptors = [os.dup2(each.fileno(), each.fileno() + 100) for each in sockets.values()]
        command = f'LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0" -m nvmeof.target "$@"{moves}'
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.path),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(sockets),
            **({"WATCHDOG_USEC": str(int(watchdog * 1e6))} if watchdog else {}),
        }
        try:
            self.process = subprocess.Popen(
                ["bash", "-c", command, sys.executable, "--ramdisk", "1M", "--no-uvloop", *arguments],
                env=environment, pass_fds=descriptors, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        finally:
            for each in descriptors:
                os.close(each)

    def told(self) -> dict[str, str]:
        """The next message."""
        return dict(line.split("=", 1) for line in self.notify.recv(4096).decode().splitlines())

    def stop(self) -> tuple[int, str]:
        """End the service; its exit code and its log."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.communicate()
    made.notify.close()


def listening(protocol: int = socket.IPPROTO_TCP) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


async def read_once(port: int, transport: str) -> bytes:
    async with await connect("127.0.0.1", port, subnqn=NQN, transport=transport) as controller:
        return bytes(await controller.namespace(1).read(0, 1))


def test_ready_reload_watchdog_and_stop(manager: Manager, tmp_path: Path) -> None:
    file = tmp_path / "target.json"
    subsystem = {"nqn": NQN, "namespaces": [{"nsid": 1, "storage": "ramdisk:1M"}]}
    port = {"transport": "tcp", "host": "127.0.0.1", "port": 0}
    document = {"version": 1, "subsystems": [subsystem], "ports": [port]}
    file.write_text(json.dumps(document))
    sys_argv = ["--config", str(file)]
    manager.notify.settimeout(20)
    environment = {**os.environ, "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
    manager.process = subprocess.Popen(
        [sys.executable, "-m", "nvmeof.target", "--no-uvloop", *sys_argv], env=environment, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    ready = manager.told()
    assert ready["READY"] == "1" and ready["STATUS"].startswith("1 subsystems at 127.0.0.1:")
    assert [manager.told() for _ in range(3)] == [{"WATCHDOG": "1"}] * 3
    document["subsystems"].append({"nqn": f"{NQN}-2"})  # type: ignore[attr-defined]
    file.write_text(json.dumps(document))
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.process.send_signal(signal.SIGHUP)
    told = [each for each in (manager.told() for _ in range(8)) if "WATCHDOG" not in each][:2]
    assert told[0]["RELOADING"] == "1"
    assert before <= int(told[0]["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert told[1]["READY"] == "1" and told[1]["STATUS"].startswith("2 subsystems")
    code, _ = manager.stop()
    assert code == 0
    while "STOPPING" not in (last := manager.told()):
        assert last == {"WATCHDOG": "1"}


def test_a_stuck_event_loop_is_silent(manager: Manager) -> None:
    manager.run("-l", "127.0.0.1:0", "-t", "tcp", watchdog=0.4)
    assert manager.told()["READY"] == "1"
    assert manager.told() == {"WATCHDOG": "1"}
    assert manager.process is not None
    manager.process.send_signal(signal.SIGSTOP)  # as a loop that does not turn
    manager.notify.settimeout(0.6)
    with pytest.raises(TimeoutError):
        for _ in range(3):  # one may be under way
            manager.told()
    manager.process.send_signal(signal.SIGCONT)
    manager.notify.settimeout(20)
    assert manager.told() == {"WATCHDOG": "1"}


@pytest.mark.parametrize("transport", ["tcp", "mptcp"])
@pytest.mark.parametrize("given", [True, False])
def test_sockets_of_the_manager_are_served(manager: Manager, transport: str, given: bool) -> None:
    if transport == "mptcp" and why_no_mptcp():
        pytest.skip(f"needs MPTCP: {why_no_mptcp()}")
    with listening(IPPROTO_MPTCP if transport == "mptcp" else socket.IPPROTO_TCP) as sock, listening() as discovery:
        port = sock.getsockname()[1]
        arguments = ["-l", f"127.0.0.1:{port}", "-t", transport] if given else []
        sockets = {"nvme": sock} if given else {"nvme": sock, "discovery": discovery}
        manager.run(*arguments, sockets=sockets)
        assert manager.told()["READY"] == "1"
        assert asyncio.run(read_once(port, transport)) == bytes(512)
        if not given:
            with pytest.raises(Exception, match=r"(?i)subnqn"):
                asyncio.run(read_once(discovery.getsockname()[1], "tcp"))
        code, log = manager.stop()
    assert code == 0, log


def test_a_socket_of_another_protocol_is_one_sentence(manager: Manager) -> None:
    with listening() as sock:
        port = sock.getsockname()[1]
        manager.run("-l", f"127.0.0.1:{port}", "-t", "mptcp", sockets={"nvme": sock})
        assert manager.process is not None
        _, log = manager.process.communicate(timeout=20)
    assert manager.process.returncode == 1
    assert log.splitlines()[-1].endswith("write SocketProtocol=mptcp in the socket unit")


def test_a_socket_that_nobody_needs_is_closed_and_said(manager: Manager) -> None:
    with listening() as sock:
        manager.run("-l", "127.0.0.1:0", "-t", "tcp", "--log-format", "json", sockets={"nvme": sock})
        assert manager.told()["READY"] == "1"
        _, log = manager.stop()
        lines = [json.loads(line) for line in log.splitlines()]
        assert any(f":{sock.getsockname()[1]} is used by no port" in line["message"] for line in lines)
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert lines[-1]["message"] == "stopped" and lines[-1]["level"] == "info"


# -- in this process


def test_nothing_happens_without_a_manager() -> None:
    manager = ServiceManager.from_environment({})
    assert not manager.there
    manager.ready()
    assert receive_sockets({}) == []
    assert receive_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "7"}) == []  # of another process


def test_the_environment_is_not_handed_on() -> None:
    environment = {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    environment |= {"LISTEN_FDS": "0", "X": "y"}
    manager = ServiceManager.from_environment(environment)
    assert manager.there and manager.watchdog_seconds == 0  # the watchdog is another process'
    manager.tell("READY=1")  # nobody is there: dropped
    manager.close()
    receive_sockets(environment)
    assert environment == {"X": "y"}


def test_an_abstract_notification_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0nvmeof-test-notify")
        manager = ServiceManager.from_environment({"NOTIFY_SOCKET": "@nvmeof-test-notify", "WATCHDOG_USEC": "500000"})
        manager.ready("here")
        assert sock.recv(100) == b"READY=1\nSTATUS=here"
        assert manager.watchdog_seconds == 0.5
        manager.close()


@pytest.mark.parametrize("kind", ["not listening", "datagrams", "both families", "a file"])
def test_descriptors_that_are_no_such_sockets(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if kind == "a file":
        descriptor = os.open(tmp_path / "x", os.O_CREAT | os.O_RDWR)
    elif kind == "both families":
        sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        descriptor = sock.detach()
    else:
        descriptor = socket.socket(type=socket.SOCK_DGRAM if kind == "datagrams" else socket.SOCK_STREAM).detach()
    monkeypatch.setattr(service_manager, "FIRST_DESCRIPTOR", descriptor)
    try:
        with pytest.raises(TransportError, match="of the service manager"):
            receive_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    finally:
        os.close(descriptor)
    assert take_inherited("tcp", ("127.0.0.1", 1)) is None
