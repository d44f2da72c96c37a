"""connect-all, discover without an address, and config: the services that are asked, and the connections that are
made.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nvmeof import HostSubsystem, PortConfig, Ramdisk, Target
from nvmeof.host import identity
from nvmeof.host.__main__ import main
from nvmeof.host.cli.discovery import Connections
from nvmeof.host.cli.services import Asked
from nvmeof.host.config_files import files
from nvmeof.host.config_files.config_json import read_config
from nvmeof.host.referrals import DiscoveryService
from nvmeof.target.subsystem.config import SubsystemConfig

from .conftest import HOSTNQN
from .fake_device import SUBNQN

OTHER = "nqn.2026-01.org.example:other"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return this user's directory of configuration, without /etc/nvme."""
    for module in (files, identity):
        monkeypatch.setattr(module, "SYSTEM_DIRECTORY", tmp_path / "etc")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = tmp_path / "config" / "nvmeof"
    made.mkdir(parents=True)
    yield made


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    async with Target(namespaces=[Ramdisk("1M")], trtype="tcp", listen="127.0.0.1:0") as made:
        yield made


def asked(target: Target, **options: Any) -> Asked:
    where = {"traddr": "127.0.0.1", "trsvcid": target.address.port, "transport": "tcp", "hostnqn": HOSTNQN}
    return Asked({**where, **options}, "")


def paths(held: Connections) -> dict[str, list[int]]:
    return {
        nqn: [member.path.options.trsvcid for member in subsystem.paths] for nqn, subsystem in held.subsystems.items()
    }


async def test_all_paths_are_connected_once_and_new_ones_join(target: Target) -> None:
    first = target.address.port
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        held = Connections(stack, "normal")
        service = asked(target)
        await held.take(service)
        assert paths(held) == {target.subnqn: [first]}
        subsystem = held.subsystems[target.subnqn]
        assert subsystem.options.disable_sqflow, "all entries allow it"
        await held.take(service)
        assert paths(held) == {target.subnqn: [first]}, "what is connected stays as it is"
        await target.administration.add_port(PortConfig(host="127.0.0.1", port=0))
        await held.take(service)
        assert held.subsystems[target.subnqn] is subsystem
        assert len(paths(held)[target.subnqn]) == 2
        assert held.failures == []


class Shown(Connections):
    """The events that two subsystems are connected, and that output was shown a second time."""

    def __init__(self, stack: AsyncExitStack, output: str, *, persistent: bool = False) -> None:
        super().__init__(stack, output, persistent=persistent)
        self.both = asyncio.Event()
        self.again = asyncio.Event()
        self.shown = 0

    def show(self, subsystem: HostSubsystem) -> None:
        super().show(subsystem)
        self.shown += 1
        if self.shown == 2:
            self.again.set()
        if len(self.subsystems) == 2:
            self.both.set()


async def test_persistent_follows_the_log(target: Target) -> None:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        held = Shown(stack, "json")
        service = asked(target)
        found = await held.take(service)
        follower = asyncio.create_task(held.follow(found.services[0], service))
        await target.administration.add_subsystem(SubsystemConfig(nqn=OTHER))
        target.administration.link_all_subsystems(1)
        await held.both.wait()
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
    assert set(held.subsystems) == {target.subnqn, OTHER}


async def test_a_target_that_was_away_for_long_is_found_again(target: Target) -> None:
    port = target.address.port
    options = {"reconnect_delay": 0.05, "ctrl_loss_tmo": 60}
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        held = Shown(stack, "normal", persistent=True)
        service = asked(target, **options)
        found = await held.take(service)
        first = held.subsystems[target.subnqn]
        (member,) = first.paths
        follower = asyncio.create_task(held.follow(found.services[0], service))
        await first.remove_path(member)
        held.subsystems.pop(target.subnqn)
        await target.stop()
        async with Target(namespaces=[Ramdisk("1M")], trtype="tcp", listen=f"127.0.0.1:{port}"):
            await held.again.wait()
            assert held.subsystems[target.subnqn] is not first
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
            await stack.aclose()
        assert not held.over.is_set()


async def test_a_service_that_cannot_be_followed_is_reported(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        held = Connections(stack, "normal")
        await held.follow(DiscoveryService("127.0.0.1", 1), asked(target, reconnect_delay=0.01, ctrl_loss_tmo=0.02))
    assert "follows the discovery service at 127.0.0.1:1 no more: connection refused" in capsys.readouterr().err


def run(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def test_nothing_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("discover", "connect-all"):
        assert run(command) == 2
        assert "no address was given, and discovery.conf and config.json name none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("discovery.conf", "# ours\n-t tcp -a 127.0.0.1 -s 70000\n", "line 2: "),
        ("discovery.conf", "--traddr\n", "line 1: --traddr needs a value behind it"),
        ("config.json", "[\n{]", "line 2: not JSON"),
        ("config.json", '[{"hostnqn": "a",\n"subsystems": 1}]', "line 2: subsystems must be a list, not 1"),
    ],
)
def test_wrong_files_are_one_sentence(
    directory: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, sentence: str
) -> None:
    (directory / name).write_text(text)
    assert run("connect-all") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nvmeof-host: {directory / name}, ")
    assert sentence in line


def test_ports_that_this_host_cannot_use(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "discovery.conf").write_text("-t tcp -a 192.0.2.1 --tls\n-t rdma -a 192.0.2.2\n")
    assert run("discover") == 2
    told, _ = capsys.readouterr().err.splitlines()
    assert told == (
        f"nvmeof-host: left out 192.0.2.1 of {directory / 'discovery.conf'}, line 1: this host does not have its tls"
    )


def test_services_that_do_not_answer(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "discovery.conf"
    path.write_text("-t tcp -a 127.0.0.1 -s 1\n")
    assert run("discover") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nvmeof-host: connection refused by 127.0.0.1:1")
    path.write_text("-t tcp -a 127.0.0.1 -s 1 --tos=-1\n-t tcp -a 127.0.0.1 -s 2\n")
    for command in ("discover", "connect-all"):
        assert run(command) == 1
        one, two, end = capsys.readouterr().err.splitlines()
        assert one.startswith(f"nvmeof-host: could not ask 127.0.0.1 of {path}, line 1: connection refused")
        assert two.startswith(f"nvmeof-host: could not ask 127.0.0.1 of {path}, line 2: connection refused")
        assert end == "nvmeof-host: none of the 2 discovery services could be asked"
    assert run("discover", "--persistent") == 1
    *_, end = capsys.readouterr().err.splitlines()
    assert end == "nvmeof-host: all 2 discovery services are lost"


def test_an_unusable_value_is_reported_with_its_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "discovery.conf"
    path.write_text("# ours\n-t tcp -a 127.0.0.1 -s 1 --tos=900\n")
    assert run("discover") == 2
    assert capsys.readouterr().err.startswith(f"nvmeof-host: {path}, line 2: the type of service must be between")


def test_config(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "config.json"
    where = ("-q", HOSTNQN, "-n", SUBNQN, "-t", "tcp", "-a", "192.0.2.1", "-s", 4420)
    assert run("config", "-M", "-O", *where, "-i", 4, "-g") == 0
    assert not path.exists(), "--dump writes nothing"
    (host,) = json.loads(capsys.readouterr().out)
    (port,) = host["subsystems"][0]["ports"]
    assert port == {
        "transport": "tcp", "traddr": "192.0.2.1", "trsvcid": "4420", "hdr_digest": True, "nr_io_queues": 4,
    }  # fmt: skip
    assert run("config", "-M", "-U", *where, "-i", 4) == 0
    config = read_config(path)
    config.hosts[0].other["hostsymname"] = "ours"
    path.write_text(json.dumps(config.as_json()))
    assert run("config", "--modify", "--update", *where, "--keep-alive-tmo", 7, "-l", -1) == 0
    (changed,) = read_config(path).hosts
    assert changed.subsystems[0].ports[0].options == {"nr_io_queues": 4, "keep_alive_tmo": 7, "ctrl_loss_tmo": -1}
    assert changed.other == {"hostsymname": "ours"}
    capsys.readouterr()
    assert run("config", "-O", "-J", "none") == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing to do: give --dump"),
        (("-M", "-O", "-a", "192.0.2.1"), "--modify needs a subsystem and its address"),
        (("-M", "-O", "-a", "192.0.2.1", "-n", SUBNQN, "-k", "0.5"), "has whole seconds: --keep-alive-tmo"),
    ],
)
def test_wrong_arguments_of_config(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("config", *arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(
    any((files.SYSTEM_DIRECTORY / name).exists() for name in ("discovery.conf", "config.json")),
    reason="needs a machine without nvme-cli's files in /etc/nvme, which a program started here reads first",
)
async def test_the_commands_hold_and_end_in_order(target: Target, directory: Path, tmp_path: Path) -> None:
    (directory / "config.json").write_text(
        json.dumps(
            [
                {
                    "hostnqn": HOSTNQN,
                    "subsystems": [
                        {"nqn": SUBNQN, "ports": [{"transport": "tcp", "traddr": "127.0.0.1", "trsvcid": "1"}]}
                    ],
                }
            ]
        )
    )
    (directory / "discovery.conf").write_text(f"-t tcp -a 127.0.0.1 -s {target.address.port} --persistent\n")
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvmeof.host", "connect-all",
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdout is not None
    async with asyncio.timeout(120):
        lines = []
        while not lines or not lines[-1].startswith("connected"):
            line = await program.stdout.readline()
            assert line, lines
            lines.append(line.decode())
        program.send_signal(signal.SIGTERM)
        rest, told = await program.communicate()
    assert program.returncode == 0
    assert lines[0] == f"nvme-subsys0 - NQN={target.subnqn}\n"
    assert rest == b"disconnected\n"
    assert f"could not ask 127.0.0.1 of {directory / 'config.json'}: connection refused" in told.decode()


async def test_raw_is_the_page(target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("-t", "tcp", "-a", "127.0.0.1", "-s", target.address.port)
    path = tmp_path / "page"
    assert await asyncio.to_thread(run, "discover", *where, "-r", path) == 0
    assert path.stat().st_size == 3 * 1024
    assert target.subnqn.encode() in path.read_bytes()
    assert await asyncio.to_thread(run, "discover", *where, "-r", tmp_path) == 2
    assert await asyncio.to_thread(run, "discover", *where, "-r", path, "--referrals") == 2
    assert "--raw takes the log of one service" in capsys.readouterr().err
