"""Changes through the control are in the audit log: who made them, what they were, what was refused, and no secret."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nvmeof.errors import TransportError
from nvmeof.security.secret import generate_secret
from nvmeof.target.audit_log import AuditLog
from nvmeof.target.control import Control, ControlClient, ControlError, ControlServer
from nvmeof.target.control import client as client_module
from nvmeof.target.control import server as server_module
from nvmeof.target.control.jsonrpc import Code, RpcError
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.transport.unix import PeerCredentials
from tests.target.control.tools import HOST

SECRET = generate_secret().to_text()


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def audited(path: Path) -> Target:
    return Target(namespaces=[Ramdisk("1M")], trtype="tcp", audit=AuditLog(path))


async def test_a_client_of_the_socket(tmp_path: Path) -> None:
    log, socket = tmp_path / "audit", tmp_path / "control.sock"
    async with (
        audited(log) as target,
        ControlServer(Control(target), socket),
        ControlClient(socket) as client,
    ):
        await client.call("status")
        await client.call("host.keys", {"host": HOST, "dhchap_key": SECRET})
        await client.call("namespace.add", {"storage": "ramdisk:1M", "nsid": 7})
        with pytest.raises(ControlError):
            await client.call("namespace.add", {"storage": "ramdisk:1M", "nsid": 7})
        with pytest.raises(ControlError):
            await client.call("host.keys", {"host": HOST, "dhchap_key": SECRET[:-9]})
    keys, added, again, broken = entries(log)
    who = f"user {os.geteuid()}, process {os.getpid()}"
    assert {each["event"] for each in (keys, added, again, broken)} == {"administration"}
    assert {each["peer"] for each in (keys, added, again, broken)} == {who}
    assert [each["outcome"] for each in (keys, added, again, broken)] == ["granted", "granted", "refused", "refused"]
    assert keys["verb"] == "host.keys" and json.loads(keys["params"]) == {"host": HOST, "dhchap_key": "…"}
    assert json.loads(added["params"])["nsid"] == 7 and "reason" not in added
    assert again["code"] == Code.CONFIGURATION and "exists already" in again["reason"]
    assert SECRET[10:30] not in log.read_text() and "DHHC" not in log.read_text()


async def test_calls_of_a_program_and_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "audit"
    async with audited(log) as target:
        control = Control(target)
        monkeypatch.setattr(target.administration, "add_host", lambda *_, **__: 1 // 0)
        with pytest.raises(RpcError):
            await control.call("host.allow", {"host": HOST})
        with pytest.raises(RpcError):
            await control.call("host.allow", {"host": 7})
    (defect,) = entries(log)
    assert defect["peer"] == "this program" and "ZeroDivisionError" in defect["reason"]


async def test_another_user_is_in_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, socket = tmp_path / "audit", tmp_path / "control.sock"
    stranger = PeerCredentials(4711, os.geteuid() + 1000, 1)
    monkeypatch.setattr(server_module, "peer_credentials", lambda descriptor: stranger)
    async with audited(log) as target, ControlServer(Control(target), socket), ControlClient(socket) as client:
        with pytest.raises((ControlError, TransportError)):
            await client.call("namespace.remove", {"nsid": 1})
    (refused,) = entries(log)
    assert refused["peer"] == f"user {stranger.uid}, process 4711" and refused["outcome"] == "refused"


def test_lines_of_one_kind_keep_no_other_out(tmp_path: Path) -> None:
    """Who makes thousands of harmless lines does not hide by them what follows."""
    log = tmp_path / "audit"
    audit = AuditLog(log, clock=lambda: 0.0)
    for _ in range(20000):
        audit(AuditEvent.CONNECT, granted=True, peer="192.0.2.1:1")
        audit(AuditEvent.COMMAND, granted=True, peer="192.0.2.1:1", command="Namespace Write Protection Config")
    audit(AuditEvent.COMMAND, granted=True, peer="192.0.2.1:1", command="Sanitize")
    audit(AuditEvent.ADMINISTRATION, granted=True, peer="user 0, process 1", verb="subsystem.remove")
    *_, erased, removed = entries(log)
    assert erased["command"] == "Sanitize" and removed["verb"] == "subsystem.remove"
    assert len(entries(log)) < 2000


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "audit"
    audit = AuditLog(log)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
        audit(AuditEvent.CONNECT, granted=True, peer="192.0.2.1:1")
    audit(AuditEvent.CONNECT, granted=True, peer="192.0.2.1:2")
    cut, whole = log.read_text().splitlines()
    assert len(cut) == 20 and json.loads(whole)["peer"] == "192.0.2.1:2" and audit.lost == 1


async def test_a_client_tells_nothing_to_the_socket_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several users may make files, the path may be somebody else's socket, who waits for keys."""
    socket = tmp_path / "control.sock"
    async with audited(tmp_path / "audit") as target, ControlServer(Control(target), socket):
        for ours, theirs, allowed in ((1000, 1001, False), (1000, 1000, True), (1000, 0, True), (0, 1001, True)):
            monkeypatch.setattr(client_module.os, "geteuid", lambda ours=ours: ours)
            monkeypatch.setattr(client_module, "peer_credentials", lambda _, uid=theirs: PeerCredentials(1, uid, 1))
            client = ControlClient(socket)
            if allowed:
                await client.open()
            else:
                with pytest.raises(TransportError, match="socket of user 1001, who is told nothing"):
                    await client.open()
            await client.close()
