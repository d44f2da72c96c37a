"""The record of owners: its file, its lock, and processes that have ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvmeof.errors import TransportError
from nvmeof.transport.paths import ownership
from nvmeof.transport.paths.model import PathEndpoint, PathFlag
from nvmeof.transport.paths.ownership import PERMANENT, Ledger, OwnedEndpoint, OwnedSetting, Record


def entry(*holders: str) -> OwnedEndpoint:
    return OwnedEndpoint("10.1.2.1", "eth1", None, int(PathFlag.SIGNAL), list(holders))


def test_the_file_exists_as_long_as_an_entry_is_held(tmp_path: Path) -> None:
    ledger = Ledger("target", directory=tmp_path)
    with ledger.transaction():
        pass
    assert not ledger.path.exists()
    with ledger.transaction() as record:
        record.endpoints.append(entry(ledger.holder))
        record.settings["limits"] = OwnedSetting([2, 0], [8, 8], [ledger.holder])
    again = Ledger("another", directory=tmp_path)
    with again.transaction() as record:
        assert record.endpoints == [entry(ledger.holder)]
        assert record.settings["limits"].before == [2, 0]
        assert record.holders[ledger.holder]["pid"] == os.getpid()
        assert record.dead() == []
        record.endpoints.clear()
        record.settings.clear()
    assert not ledger.path.exists()


def test_many_processes_at_once(tmp_path: Path) -> None:
    """Each process adds an entry and removes it, fifty times: no entry is lost, and at last the file is removed."""
    code = (
        "import sys, pathlib\n"
        "from nvmeof.transport.paths.ownership import *\n"
        "ledger = Ledger('target', directory=pathlib.Path(sys.argv[1]))\n"
        "for n in range(50):\n"
        "    with ledger.transaction() as record:\n"
        "        record.endpoints.append(OwnedEndpoint(ledger.holder, None, n, 1, [ledger.holder]))\n"
        "    with ledger.transaction() as record:\n"
        "        mine = record.find((ledger.holder, n))\n"
        "        assert mine is not None\n"
        "        record.endpoints.remove(mine)\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [child.wait(40) for child in children] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_an_ended_process_is_found(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from nvmeof.transport.paths.ownership import *\n"
        "ledger = Ledger('target', directory=pathlib.Path(sys.argv[1]))\n"
        "with ledger.transaction() as record:\n"
        "    record.endpoints.append(OwnedEndpoint('10.1.2.1', None, None, 1, [ledger.holder]))\n"
        "print(ledger.holder)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    holder = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    with Ledger("next", directory=tmp_path).transaction() as record:
        assert record.dead() == [holder]


def test_a_reused_process_id_is_no_holder(tmp_path: Path) -> None:
    ledger = Ledger("target", directory=tmp_path)
    with ledger.transaction() as record:
        record.endpoints.append(entry(ledger.holder))
    data = json.loads(ledger.path.read_text())
    data["holders"][ledger.holder]["started"] += 1
    ledger.path.write_text(json.dumps(data))
    with Ledger("next", directory=tmp_path).transaction() as record:
        assert record.dead() == [ledger.holder]


def test_a_process_of_another_pid_namespace_counts_as_alive(tmp_path: Path) -> None:
    ledger = Ledger("target", directory=tmp_path)
    with ledger.transaction() as record:
        record.endpoints.append(entry(ledger.holder))
    data = json.loads(ledger.path.read_text())
    data["holders"][ledger.holder] |= {"started": 1, "pid_namespace": 1}
    ledger.path.write_text(json.dumps(data))
    with Ledger("next", directory=tmp_path).transaction() as record:
        assert record.dead() == []


def test_entries_of_a_command_are_permanent(tmp_path: Path) -> None:
    ledger = Ledger("command line", permanent=True, directory=tmp_path)
    with ledger.transaction() as record:
        record.endpoints.append(entry(ledger.holder))
        record.holders[PERMANENT]["started"] = 1
    with Ledger("next", directory=tmp_path).transaction() as record:
        assert record.dead() == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9}', '{"version": 1, "holders": {}}', "null"])
def test_a_damaged_record_is_moved_aside(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger("target", directory=tmp_path)
    ledger.path.write_text(content)
    with ledger.transaction() as record:
        assert record == Record(holders={ledger.holder: record.holders[ledger.holder]})
    assert ledger.path.with_suffix(".damaged").read_text() == content
    assert "damaged" in caplog.text


def test_the_file_is_written_when_the_block_fails(tmp_path: Path) -> None:
    ledger = Ledger("target", directory=tmp_path)
    with pytest.raises(ZeroDivisionError), ledger.transaction() as record:
        record.endpoints.append(entry(ledger.holder))
        raise ZeroDivisionError
    assert Record.from_json(ledger.path.read_text()).endpoints == [entry(ledger.holder)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"flags": PathFlag.SIGNAL | PathFlag.BACKUP}, True),
        ({"flags": PathFlag.SUBFLOW}, False),
        ({"device": None, "flags": PathFlag.IMPLICIT}, True),
        ({"device": "eth2"}, False),
        ({"port": 1}, False),
    ],
)
def test_successors_are_distinguished(change: dict[str, object], expected: bool) -> None:
    values = {"address": "10.1.2.1", "device": "eth1", "flags": PathFlag.SIGNAL, **change}
    assert entry().is_still(PathEndpoint(**values)) is expected  # type: ignore[arg-type]


def test_a_directory_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NVMEOF_STATE_DIR", str(tmp_path / "mine"))
    assert ownership.state_directory() == tmp_path / "mine"
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    for name in ("file", "missing/deep"):
        monkeypatch.setenv("NVMEOF_STATE_DIR", str(tmp_path / name))
        with pytest.raises(TransportError, match="no directory"):
            ownership.state_directory()
