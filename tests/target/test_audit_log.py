"""The audit log: who connected, was refused, proved what, and changed what; never a secret, never too much."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

import nvmeof
from nvmeof.errors import ConfigurationError, NvmeStatusError
from nvmeof.security.dhchap_controller import HostKeys
from nvmeof.security.secret import generate_secret
from nvmeof.target.audit_log import AuditLog
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.storage.pools import RamdiskPool
from tests.conformance.rawhost import HOSTNQN, RawHost, admin, make_sqe, running, until
from tests.target.commands.test_authentication import authenticate, host, receive, send
from tests.target.harness import HOST, NQN, Target
from tests.target.management_tools import create

OTHER = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def audited(path: Path, **options: Any) -> Target:
    one = Target(**options)
    one.registry.peer_log.audit = AuditLog(path)
    return one


def test_connects_and_refusals(path: Path) -> None:
    one = audited(path, allowed_hosts=frozenset({HOST}))
    queue = one.queue()
    queue.ctx.peer = "192.0.2.7:1234"
    queue.connect()
    one.queue().try_connect(hostnqn=OTHER)
    one.queue().try_connect(subnqn='nqn.2026-01.org.example:none\n"')
    one.queue().try_connect(subnqn=b"n" * 256)
    accepted, forbidden, unknown, endless = lines(path)
    assert accepted.pop("time").endswith("Z")
    assert accepted == {
        "event": "connect", "outcome": "granted", "peer": "192.0.2.7:1234", "host": HOST, "subsystem": NQN,
        "queue": 0, "cntlid": queue.controller.cntlid,
    }  # fmt: skip
    assert forbidden["outcome"] == unknown["outcome"] == endless["outcome"] == "refused"
    assert (forbidden["host"], forbidden["subsystem"]) == (OTHER, NQN) and "not allowed" in forbidden["reason"]
    assert unknown["subsystem"].endswith('none\n"') and "no subsystem" in unknown["reason"]
    assert endless["status"] == "0x182" and "host" not in endless
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_authentication_and_no_secret(path: Path) -> None:
    secret, wrong = generate_secret(), generate_secret()
    one = audited(path, host_keys=((HOST, HostKeys(secret)),))
    queue = one.queue()
    queue.connect()
    authenticate(queue, host(secret))
    queue = one.queue()
    queue.connect()
    exchange = host(wrong)
    send(queue, exchange.negotiate())
    send(queue, asyncio.run(exchange.reply(bytes(receive(queue).data))))
    receive(queue)
    _, good, _, bad = lines(path)
    assert (good["event"], good["outcome"], good["host"]) == ("authentication", "granted", HOST)
    assert (bad["event"], bad["outcome"]) == ("authentication", "refused") and "secrets do not match" in bad["reason"]
    text = path.read_text()
    assert secret.to_text()[10:30] not in text and wrong.to_text()[10:30] not in text and "DHHC" not in text


def test_commands_that_change_what_others_see(path: Path) -> None:
    one = audited(path, pool=RamdiskPool("4M"), managing_hosts=frozenset({HOST}))
    queue, other = one.admin(), one.admin(hostnqn=OTHER)
    path.write_text("")
    assert create(queue).status == 0
    assert create(queue, nsze=1 << 30).status != 0
    assert create(other).status == 0x23
    assert queue.set_feature(0x84, 1, nsid=1).status == 0
    queue.identify(1)
    made, too_large, forbidden, protected = lines(path)
    assert (made["command"], made["outcome"], made["status"], made["host"]) == (
        "Namespace Management", "granted", "0x0", HOST,
    )  # fmt: skip
    assert (too_large["outcome"], forbidden["outcome"]) == ("refused", "refused")
    assert (forbidden["status"], forbidden["host"]) == ("0x23", OTHER)
    assert (protected["command"], protected["nsid"]) == ("Namespace Write Protection Config", 1)


def test_what_one_address_causes_is_bounded(path: Path) -> None:
    times = [0.0]
    audit = AuditLog(path, clock=lambda: times[0], wall_clock=lambda: 0.0)
    for port in range(5000):
        audit(AuditEvent.CONNECT, granted=False, peer=f"192.0.2.9:{port}")
    assert 10 < len(lines(path)) < 200
    audit(AuditEvent.COMMAND, granted=True, peer="192.0.2.9:1", command="Sanitize", status="0x0")
    audit(AuditEvent.CONNECT, granted=False, peer="192.0.2.10:1")
    assert [each["peer"] for each in lines(path)[-2:]] == ["192.0.2.9:1", "192.0.2.10:1"], "others are not left out"
    times[0] = 3600.0
    audit(AuditEvent.CONNECT, granted=False, peer="192.0.2.9:2")
    assert lines(path)[-1]["left_out"] > 4000 and lines(path)[-1]["time"] == "1970-01-01T00:00:00.000Z"


def test_a_file_that_was_renamed_is_opened_again(path: Path) -> None:
    audit = AuditLog(path)
    audit(AuditEvent.CONNECT, granted=True, peer="a:1")
    path.rename(path.with_suffix(".1"))
    audit(AuditEvent.CONNECT, granted=True, peer="b:1")
    audit.reopen()
    audit(AuditEvent.CONNECT, granted=True, peer="c:1")
    audit.close()
    audit.close()
    assert [each["peer"] for each in lines(path.with_suffix(".1"))] == ["a:1", "b:1"]
    assert [each["peer"] for each in lines(path)] == ["c:1"]


def test_a_log_that_cannot_be_written_is_one_line_and_serves_on(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="cannot write the audit log"):
        AuditLog(tmp_path / "no" / "such")
    audit = AuditLog(path)
    monkeypatch.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for _ in range(5):
        audit(AuditEvent.CONNECT, granted=True, peer="a:1")
    assert audit.lost == 5
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "No space left on device" in record.getMessage()
    path.unlink()
    path.mkdir()
    audit.reopen()
    assert "cannot be opened again" in caplog.text


async def test_of_a_running_target(path: Path) -> None:
    async with running("tcp", audit=AuditLog(path)) as target:
        first = await admin(target)
        assert (await first.call(make_sqe(3, 0x80, nsid=1))).status == 0
        stranger = await RawHost.open(target)
        await stranger.try_connect(subnqn="nqn.2026-01.org.example:none")
        stranger.close()
        first.close()
    connect, formatted, refused = lines(path)
    assert connect["peer"].startswith("127.0.0.1:") and connect["host"] == HOSTNQN
    assert (formatted["command"], formatted["outcome"]) == ("Format NVM", "granted")
    assert refused["outcome"] == "refused"


async def test_the_command_line_and_sighup(path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvmeof.target", "-t", "tcp", "-l", "127.0.0.1:0", "--ramdisk", "1M", "-o", "json",
        "--audit-log", str(path), "--managing-host", OTHER, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        told = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        async with await nvmeof.connect(
            "127.0.0.1", told["listeners"][0]["port"], subnqn=told["subnqn"], transport="tcp", hostnqn=HOST
        ) as controller:
            with pytest.raises(NvmeStatusError) as caught:
                await controller.admin(make_sqe(0, 0x80, nsid=1))
            assert caught.value.status == 0x23
            old = path.with_suffix(".1")
            path.rename(old)  # noqa: ASYNC240
            process.send_signal(signal.SIGHUP)
            await until(path.exists)
        assert any(each["event"] == "command" and each["outcome"] == "refused" for each in lines(old))
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
