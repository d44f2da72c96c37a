"""In-band authentication through the whole stack: our host and our target, both command lines, reconnects."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmeof import AuthenticationError, ConfigurationError, Ramdisk, Target, connect, connect_multipath, discover
from nvmeof.host.authentication import HostAuthentication
from nvmeof.host.cli import services
from nvmeof.host.cli.secrets import host_credentials
from nvmeof.host.config_files.config_json import read_config
from nvmeof.host.config_files.discovery_conf import parse_discovery_conf
from nvmeof.host.options import ConnectOptions
from nvmeof.host.path import is_final
from nvmeof.host.queue import Queue
from nvmeof.security.dh_groups import usable_groups
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.dhchap_host import HostCredentials
from nvmeof.security.secret import generate_secret
from nvmeof.spec.auth import MessageId
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig

from .conftest import HOSTNQN

NQN = "nqn.2026-01.org.example:disk"
KEY, CONTROLLER_KEY = generate_secret(48), generate_secret(64)


@asynccontextmanager
async def serving(*, transport: str = "tcp", keys: HostKeys | None = None, **options: Any) -> AsyncIterator[Target]:
    subsystem = SubsystemConfig(
        nqn=NQN,
        namespaces=(NamespaceConfig(backend=Ramdisk("4M")),),
        host_keys=((HOSTNQN, keys or HostKeys(KEY, CONTROLLER_KEY)),),
        **options,
    )
    ports = (
        PortConfig(transport=transport, host="127.0.0.1", port=0),
        PortConfig(transport=transport, host="127.0.0.2", port=0),
    )
    async with Target(config=TargetConfig(subsystems=(subsystem,), ports=ports)) as target:
        yield target


def where(target: Target, transport: str = "tcp", **options: Any) -> dict[str, Any]:
    address = target.address
    named = {"transport": transport, "subnqn": NQN, "hostnqn": HOSTNQN}
    return {"traddr": address.host, "trsvcid": address.port, **named, **options}


@pytest.mark.parametrize("transport", ["tcp", "mptcp"])
@pytest.mark.parametrize("group", usable_groups()[:2])
async def test_in_both_directions_on_every_queue(transport: str, group: Any) -> None:
    async with serving(transport=transport, keys=HostKeys(KEY, CONTROLLER_KEY, group=group)) as target:
        credentials = HostCredentials(KEY, CONTROLLER_KEY)
        async with await connect(**where(target, transport, nr_io_queues=3, dhchap=credentials)) as controller:
            namespace = controller.namespace(1)
            reading = asyncio.gather(*(namespace.read(0, 8) for _ in range(64)))
            await controller.authenticate()
            assert all(data == bytes(4096) for data in await reading)
            assert KEY.to_text().split(":")[2] not in json.dumps(controller.describe(), default=str)


@pytest.mark.parametrize(
    ("credentials", "says"),
    [
        (None, "demands authentication: give the host's secret with --dhchap-secret"),
        (HostCredentials(generate_secret(48)), "queue 0 failed: the controller refuses it: the secrets do not match"),
        (HostCredentials(KEY, generate_secret()), "the controller could not prove that it has its secret"),
    ],
)
async def test_refusals(credentials: HostCredentials | None, says: str) -> None:
    async with serving() as target:
        with pytest.raises(AuthenticationError, match=says) as caught:
            await connect(**where(target, dhchap=credentials))
        assert NQN in str(caught.value) and is_final(caught.value)
        assert not target.subsystem(NQN).controllers or await _gone(target)


async def test_a_controller_that_closes_the_connection_at_failure2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nvmet of Linux 6.12 does, without an answer: the host still tells why it does not go on."""

    async def close(self: HostAuthentication, queue: Queue, message: bytes) -> None:
        if message[1] == MessageId.FAILURE2:
            target.connections.abort("as nvmet")
        await send(self, queue, message)

    send = HostAuthentication._send
    monkeypatch.setattr(HostAuthentication, "_send", close)
    async with serving() as target:
        with pytest.raises(AuthenticationError, match="could not prove that it has its secret"):
            await connect(**where(target, dhchap=HostCredentials(KEY, generate_secret())))


async def _gone(target: Target) -> bool:
    for _ in range(100):
        if not target.subsystem(NQN).controllers:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_host_without_keys_where_they_are_required() -> None:
    async with serving(authentication_required=True) as target:
        with pytest.raises(Exception, match=r"Connect Invalid Parameters|does not exist|SUBNQN"):
            await connect(**where(target, hostnqn=HOSTNQN.replace("1", "2")))


async def test_a_controller_that_demands_nothing_proves_nothing() -> None:
    """Somebody in the place of the target, who has no secret, would say just that."""
    other = HOSTNQN.replace("1", "2")
    async with serving() as target:
        with pytest.raises(AuthenticationError, match="the controller proves nothing") as caught:
            await connect(**where(target, hostnqn=other, dhchap=HostCredentials(KEY, CONTROLLER_KEY)))
        assert is_final(caught.value)
        async with await connect(**where(target, hostnqn=other, dhchap=HostCredentials(KEY))) as controller:
            assert await controller.namespace(1).read(0, 1)
        found = where(target, dhchap=HostCredentials(KEY, CONTROLLER_KEY))
        del found["subnqn"]
        assert [each.subnqn for each in await discover(**found) if each.is_nvm]


async def test_reconnecting_authenticates_again_and_a_changed_secret_ends_it() -> None:
    async with serving() as target:
        chosen = where(target, dhchap=HostCredentials(KEY))
        subsystem = await connect_multipath(chosen.pop("traddr"), reconnect_delay=0.1, ctrl_loss_tmo=5, **chosen)
        async with subsystem:
            (namespace,) = await subsystem.namespaces()
            await namespace.write(0, b"k" * 4096)
            end_all(target)
            assert await namespace.read(0, 8) == b"k" * 4096
            target.administration.set_host_keys(HOSTNQN, HostKeys(generate_secret()))
            end_all(target)
            with pytest.raises(Exception, match=r"no path|path|lost"):
                await asyncio.wait_for(namespace.read(0, 8), 5)


def end_all(target: Target) -> None:
    for controller in list(target.subsystem(NQN).controllers.values()):
        controller.destroy("ended by the test")


def test_options_that_name_secrets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert host_credentials(None, None) is None
    with pytest.raises(ConfigurationError, match="give --dhchap-secret too"):
        host_credentials(None, KEY.to_text())
    monkeypatch.setenv("SECRET", KEY.to_text())
    assert host_credentials("env:SECRET", None) == HostCredentials(KEY)
    assert not capsys.readouterr().err
    assert host_credentials(KEY.to_text(), "env:SECRET") == HostCredentials(KEY, KEY)
    assert "every user can read the secret of --dhchap-secret" in capsys.readouterr().err
    monkeypatch.setattr("getpass.getpass", lambda prompt: KEY.to_text())
    assert host_credentials("prompt", None) == HostCredentials(KEY)


def test_secrets_of_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    port = {"transport": "tcp", "traddr": "192.0.2.1", "trsvcid": "8009"}
    one = {"nqn": DISCOVERY_NQN, "ports": [port, {**port, "dhchap_key": CONTROLLER_KEY.to_text()}]}
    path.write_text(json.dumps([{"hostnqn": HOSTNQN, "dhchap_key": KEY.to_text(), "subsystems": [one]}]))
    (_, first), (_, second) = services._of_config(read_config(path), None)
    assert services._usable(first, "there")["dhchap_secret"] == KEY
    assert services._usable(second, "there")["dhchap_secret"] == CONTROLLER_KEY
    (line,) = parse_discovery_conf(f"-t tcp -a 192.0.2.1 -S {KEY.to_text()} -C {CONTROLLER_KEY.to_text()}\n", "conf")
    chosen = services._usable(line.options, "conf, line 1")
    credentials = host_credentials(chosen["dhchap_secret"], chosen["dhchap_ctrl_secret"])
    assert credentials == HostCredentials(KEY, CONTROLLER_KEY)
    assert "dhchap_secret" not in services._usable({"dhchap_key": "none"}, "there")
    with pytest.raises(ConfigurationError, match="conf, line 1: the key of this secret"):
        services._usable({"dhchap_secret": KEY.to_text()[:-4] + "AA=:"}, "conf, line 1")


def test_options_are_shown_without_the_secret() -> None:
    options = ConnectOptions(
        traddr="192.0.2.1",
        subnqn=NQN,
        hostnqn=HOSTNQN,
        hostid=__import__("uuid").UUID(int=1),
        dhchap=HostCredentials(KEY),
    )
    assert KEY.key.hex() not in repr(options) and repr(KEY.key) not in repr(options)


def _program(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nvmeof.host", *arguments],
        env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def test_command_lines(tmp_path: Path) -> None:
    made = await asyncio.to_thread(_program, "gen-dhchap-key", "-m", "2")
    path = tmp_path / "host.key"
    path.write_text(made.stdout)
    path.chmod(0o600)
    checked = await asyncio.to_thread(_program, "check-dhchap-key", "-k", f"file:{path}")
    assert checked.stdout == "the secret is good: 48 bytes, transformed with SHA384\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvmeof.target", "-t", "tcp", "-l", "127.0.0.1:0", "--ramdisk", "4M", "-n", NQN,
        "--dhchap-key", f"{HOSTNQN}=file:{path}", "--require-authentication", "-o", "json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        told = json.loads(await process.stdout.readline())
        there = ["-t", "tcp", "-a", "127.0.0.1", "-s", str(told["listeners"][0]["port"]), "-n", NQN, "-q", HOSTNQN]
        good = await asyncio.to_thread(_program, "id-ctrl", *there, "-S", f"file:{path}", "-o", "json")
        assert json.loads(good.stdout)["subnqn"] == NQN and not good.stderr
        bad = await asyncio.to_thread(_program, "id-ctrl", *there)
        assert bad.returncode == 1 and bad.stderr.count("\n") == 1 and "--dhchap-secret" in bad.stderr
        wrong = {"WRONG": generate_secret().to_text()}
        bad = await asyncio.to_thread(_program, "id-ctrl", *there, "-S", "env:WRONG", environment=wrong)
        assert bad.returncode == 1 and "the secrets do not match" in bad.stderr and "Traceback" not in bad.stderr
    finally:
        process.terminate()
        _, log = await process.communicate()
    assert made.stdout.split(":")[2] not in log.decode()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dhchap-key", "secret"], "HOSTNQN=file:PATH"),
        (["--dhchap-key", f"{HOSTNQN}={KEY.to_text()}"], "can be read by every user: give file:PATH or env:NAME"),
        (["--dhchap-key", f"{HOSTNQN}=env:NOT_THERE"], "the environment has no NOT_THERE"),
        (["--dhchap-ctrl-key", f"{HOSTNQN}=env:SECRET"], "give --dhchap-key for it too"),
        (["--dhchap-hash", "md5"], "sha256"),
    ],
)
def test_target_options_that_are_wrong(options: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nvmeof.target", *options],
        env={**os.environ, "SECRET": KEY.to_text()}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert KEY.to_text().split(":")[2] not in done.stderr
