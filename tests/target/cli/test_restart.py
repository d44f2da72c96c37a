"""A target is restarted under hosts: real processes, over TCP and MPTCP, and each way in which it can go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nvmeof import Ramdisk, Target, connect
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.host_subsystem import HostSubsystem, connect_multipath
from nvmeof.host.namespace import Namespace
from nvmeof.target.cli import restart, serve
from nvmeof.target.control.client import ControlUsageError
from nvmeof.transport.mptcp import why_no_mptcp
from tests.interop.survive.load import VerifyingLoad
from tests.target.cli.restarting import NQN, POINTS, Restarting, alive, configuration, restarting, until

BLOCK = b"from before".ljust(512, b"\0")
MPTCP = pytest.param("mptcp", marks=pytest.mark.skipif(why_no_mptcp() is not None, reason="needs MPTCP in this kernel"))


class HeadDevice:
    """A namespace of the host for a verifying load. Implements `tests.interop.survive.load.Device`."""

    failure = NvmeofError

    def __init__(self, head: Namespace, clock: Clock) -> None:
        self._head = head
        self._clock = clock
        self.block_bytes = 512
        self.completed: list[float] = []

    async def read(self, first: int, blocks: int) -> bytes:
        data = bytes(await self._head.read(first, blocks))
        self.completed.append(self._clock.now)
        return data

    async def write(self, first: int, data: bytes) -> None:
        await self._head.write(first, data)
        self.completed.append(self._clock.now)


class Clock:
    """A clock that stands still while this process is stopped, as everything on a machine that is busy may be."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = 0.0
        self._last = time.monotonic()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            passed, self._last = now - self._last, now
            self.now += min(passed, 0.05)
            self.stopped += max(0.0, passed - 0.05)


@asynccontextmanager
async def host_of(target: Restarting, transport: str = "tcp") -> AsyncIterator[HostSubsystem]:
    where = f"127.0.0.1:{await target.port()}"
    async with await connect_multipath(
        where, subnqn=NQN, transport=transport, reconnect_delay=0.2, ctrl_loss_tmo=60, quiesce_tmo=0
    ) as subsystem:
        yield subsystem


def cntlid(host: HostSubsystem) -> int:
    controller = host.paths[0].path.controller
    assert controller is not None
    return controller.cntlid


@pytest.mark.timing
@pytest.mark.parametrize("transport", ["tcp", MPTCP])
async def test_a_verifying_load_goes_on_through_restarts(tmp_path: Path, transport: str) -> None:
    file = configuration(tmp_path, transport)
    async with restarting(tmp_path, "--config", str(file)) as target, host_of(target, transport) as host:
        clock = Clock()
        ticking = asyncio.create_task(clock.run())
        devices = [HeadDevice(host.namespace(nsid), clock) for nsid in (1, 2, 3)]
        loads = [VerifyingLoad(each, 7, 0, 1024, workers=2, pause_seconds=0.002) for each in devices]
        for load in loads:
            await load.fill()
            load.start()
        used, pauses, pid = [cntlid(host)], list[float](), await target.pid()
        for _ in range(3):
            await asyncio.sleep(0.3)
            await target.call("restart")
            ready = clock.now
            pid = await target.pid(other_than=pid)
            await until(
                lambda since=ready: all(each.completed[-1] > since + 0.15 for each in devices), 20, lambda: target.log
            )
            first = [next(at for at in each.completed if at > ready + 0.15) for each in devices]
            gaps = [max(b - a for a, b in zip(each.completed, each.completed[1:], strict=False)) for each in devices]
            pauses.append(max(*gaps, max(first) - ready))
            used.append(cntlid(host))
            for each in devices:
                del each.completed[:-1]
        ticking.cancel()
        for load in loads:
            await load.stop()
            assert await load.verify() == 1024
            assert (load.errors, load.wrong) == ([], [])
            assert load.writes > 20
    seconds = ", ".join(f"{each:.2f} s" for each in pauses)
    print(f"{transport}: longest pauses {seconds}; CNTLIDs {used}; this process stood still for {clock.stopped:.1f} s")
    assert len(set(used)) == len(used), "a controller ID of before was given out again"
    assert max(pauses) < 1.0, target.log
    assert len(target.pids) == 4


async def test_no_connect_is_refused_meanwhile(tmp_path: Path) -> None:
    refused, made = list[str](), 0
    async with restarting(tmp_path, "--config", str(configuration(tmp_path))) as target:
        port, going = await target.port(), True

        async def knock() -> None:
            nonlocal made
            while going:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    made += 1
                except OSError as error:
                    refused.append(str(error))
                await asyncio.sleep(0.002)

        knocking = asyncio.create_task(knock())
        pid = await target.pid()
        for _ in range(2):
            await target.call("restart")
            pid = await target.pid(other_than=pid)
        going = False
        await knocking
        async with await connect("127.0.0.1", port, subnqn=NQN, transport="tcp") as controller:
            await controller.namespace(1).write(0, BLOCK)
    assert refused == [] and made > 50


async def test_a_wrong_file_leaves_everything_as_it_was(tmp_path: Path) -> None:
    file = configuration(tmp_path)
    async with restarting(tmp_path, "--config", str(file)) as target, host_of(target) as host:
        before, pid = cntlid(host), await target.pid()
        good = file.read_text()
        file.write_text(good.replace('"transport": "tcp"', '"transport": "pigeon"'))
        with pytest.raises(ControlUsageError, match="pigeon"):
            await target.call("restart")
        os.kill(pid, signal.SIGUSR2)
        await target.logged("SIGUSR2: no restart")
        assert await target.pid() == pid
        await host.namespace(1).write(0, BLOCK)
        assert cntlid(host) == before, "the association was ended"
        file.write_text(good.replace('"ports": [', '"ports": [{"transport": "tcp", "host": "203.0.113.1", "port": 1},'))
        await target.call("restart")  # the address is asked for when everything else is open
        await target.logged(f"and process {pid} serves on: cannot listen on 203.0.113.1:1")
        assert bytes(await host.namespace(1).read(0, 1)) == BLOCK
        file.write_text(good)
        assert await target.pid() == pid
        await target.call("restart")
        await target.pid(other_than=pid)
        assert bytes(await host.namespace(1).read(0, 1)) == BLOCK


@pytest.mark.parametrize("point", POINTS)
async def test_the_new_process_is_killed(tmp_path: Path, point: str) -> None:
    async with restarting(tmp_path, "--config", str(configuration(tmp_path))) as target, host_of(target) as host:
        for nsid in (1, 2, 3):
            await host.namespace(nsid).write(0, BLOCK)
        pid, used = await target.pid(), cntlid(host)
        target.end_at(point)
        if point == "checking":
            with pytest.raises(ControlUsageError, match=r"ended before it was ready \(signal SIGKILL"):
                await target.call("restart")
        else:
            await target.call("restart")
            await target.logged(f"and process {pid} serves on")
        for nsid in (1, 2, 3):
            assert bytes(await host.namespace(nsid).read(0, 1)) == BLOCK
            await host.namespace(nsid).write(1, BLOCK[::-1])
        assert await target.pid() == pid
        assert (cntlid(host) == used) is (point == "checking")
        target.end_at("")  # and it can be restarted still
        await target.call("restart")
        await target.pid(other_than=pid)
        for nsid in (1, 2, 3):
            assert bytes(await host.namespace(nsid).read(0, 2)) == BLOCK + BLOCK[::-1]


async def test_signals_in_the_middle_of_a_restart(tmp_path: Path) -> None:
    async with restarting(tmp_path, "--config", str(configuration(tmp_path))) as target:
        pid = await target.pid()
        target.end_at("slow")
        os.kill(pid, signal.SIGUSR2)
        await target.logged("starts and checks its configuration")
        os.kill(pid, signal.SIGUSR2)
        await target.logged("SIGUSR2: a restart is under way already")
        os.kill(pid, signal.SIGINT)
        await target.logged(f"SIGINT: the restart is given up, and process {pid} serves on")
        new = int(target.log.split("restart: process ")[1].split()[0])
        await until(lambda: not alive(new), 10, lambda: f"process {new} runs still")
        assert await target.pid() == pid
        os.kill(pid, signal.SIGUSR2)
        await until(lambda: target.log.count("starts and checks") == 2, 20, lambda: target.log)
        os.kill(pid, signal.SIGTERM)
        await asyncio.to_thread(target.process.wait, 20)
        second = int(target.log.split("restart: process ")[2].split()[0])
        await until(lambda: not alive(second), 10, lambda: f"process {second} runs still")
        assert target.process.returncode == 0


async def test_what_was_changed_by_control_and_in_the_file(tmp_path: Path) -> None:
    file = configuration(tmp_path)
    async with restarting(tmp_path, "--config", str(file)) as target:
        pid, port = await target.pid(), await target.port()
        await target.call("namespace.add", storage="ramdisk:1M,keep", nsid=9)
        await target.call("ana.set", state="non-optimized", group=1, portid=1)
        document = json.loads(file.read_text())
        document["max_connections"] = 77  # which a reload refuses
        document["subsystems"][0]["model"] = "another model"
        file.write_text(json.dumps(document))
        await target.call("restart")
        await target.pid(other_than=pid)
        saved = await target.call("config")
        assert saved["max_connections"] == 77 and saved["subsystems"][0]["model"] == "another model"
        assert [each["nsid"] for each in saved["subsystems"][0]["namespaces"]] == [1, 2, 3, 9]
        assert saved["ports"][0]["ana"] == {"1": "non-optimized"} and saved["ports"][0]["port"] == port
        assert await target.call("reload") == []


async def test_the_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
        arguments = ["--config", str(configuration(tmp_path))]
        async with restarting(tmp_path, *arguments, environment=environment) as target:
            pid = await target.pid()
            os.kill(pid, signal.SIGUSR2)
            new = await target.pid(other_than=pid)
            told = list[str]()
            while "READY=1" not in told[1:]:
                told += notify.recv(4096).decode().splitlines()
            main = told.index(f"MAINPID={new}")
            assert "READY=1" in told[:main] and "READY=1" in told[main:], "READY of the new process is not from MAINPID"
            assert not any(line.startswith("STOPPING") for line in told)


@pytest.mark.parametrize("options", [["--ramdisk", "4M", "--keep-ramdisks"], ["--ramdisk", "4M"]])
async def test_a_target_of_the_command_line(tmp_path: Path, options: list[str]) -> None:
    async with restarting(tmp_path, "-t", "tcp", "-l", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *options) as target:
        pid, port = await target.pid(), await target.port()
        async with await connect("127.0.0.1", port, subnqn=NQN, transport="tcp") as controller:
            await controller.namespace(1).write(0, BLOCK)
        await target.call("restart")
        await target.pid(other_than=pid)
        assert await target.port() == port
        async with await connect("127.0.0.1", port, subnqn=NQN, transport="tcp") as controller:
            assert bytes(await controller.namespace(1).read(0, 1)) == BLOCK


# -- what refuses a restart before it begins --------------------------------------------------------------------------


async def test_ramdisks_that_do_not_fit_twice_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Target(namespaces=[Ramdisk("1M"), Ramdisk("1M", keep=True)], trtype="tcp") as target:
        serve.check_memory(target)
        copied = serve.copied_bytes
        monkeypatch.setattr(serve, "copied_bytes", lambda backend: copied(backend) << 40)
        serve.check_memory(target)  # nothing was written
        for namespace in target.subsystems[target.subnqn].namespaces.values():
            namespace.backend.write(0, memoryview(BLOCK))
        with pytest.raises(ConfigurationError, match=r"of ramdisks have to be copied.* ramdisk:SIZE,keep"):
            serve.check_memory(target)
        await target.remove_namespace(1)
        serve.check_memory(target)  # the other is handed over as it is


async def test_the_first_process_of_a_container_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = restart.Restarts({}, dict)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ConfigurationError, match="start another container"):
        await restarts.restart()
    assert not restarts.under_way


async def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = restart.Restarts({}, dict)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ConfigurationError, match="/nowhere/python cannot be started: No such file"):
        await restarts.restart()
    monkeypatch.undo()
    monkeypatch.setattr("sys.orig_argv", ["python", "-c", "raise SystemExit(3)"])
    with pytest.raises(ConfigurationError, match=r"ended before it was ready \(exit code 3\)"):
        await restarts.restart()
    assert not restarts.under_way


async def test_a_process_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = restart.Restarts({}, dict)
    monkeypatch.setattr("sys.orig_argv", ["python", "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(restart, "READY_SECONDS", 0.3)
    with pytest.raises(ConfigurationError, match=r"not ready after 0\.3 s"):
        await restarts.restart()
