"""Each subcommand against our own target; its JSON beside the output of nvme-cli 2.13 for an equal target.

``nvme_cli.json`` is the output of nvme-cli on Linux 7.3.4, connected to a target with the namespaces of the one here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from nvmeof import NamespaceConfig, Ramdisk, RamdiskPool, Target, ZoneGeometry
from nvmeof.host.__main__ import cli, main
from nvmeof.host.cli.structures import text_of
from tests.interop.checks_json import differences

from .blocking_target import serving

THEIRS = json.loads((Path(__file__).parent / "nvme_cli.json").read_text())
PLAIN, ZONED = 1, 2


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    zoned = NamespaceConfig(backend=Ramdisk("16M"), zoned=ZoneGeometry(zone_bytes=1 << 20))
    with serving(Ramdisk("64M"), zoned, trtype="tcp", pool=RamdiskPool("64M")) as found:
        yield found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")  # one host for all commands


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    monkeypatch.chdir(tmp_path)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(target: Target, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(line: str, nsid: int | None = None) -> tuple[int, str, str]:
        query = "" if nsid is None else f"?nsid={nsid}"
        url = f"nvme+tcp://127.0.0.1:{target.address.port}/{target.subnqn}{query}"
        code = main([*line.split(), url])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


STRUCTURES = [
    ("supported-log-pages", "supported-log-pages", None, ()),
    ("fw-log", "fw-log", None, ()),
    ("changed-ns-list-log", "changed-ns-list-log", None, ()),
    ("changed-alloc-ns-list-log", "", None, ()),
    ("fid-support-effects-log", "fid-support-effects-log", None, ()),
    ("mi-cmd-support-effects-log", "mi-cmd-support-effects-log", None, ()),
    ("resv-notif-log", "resv-notif-log", None, ()),
    ("sanitize-log", "sanitize-log", None, ()),
    ("effects-log", "effects-log", None, ()),
    ("self-test-log", "self-test-log", None, ()),
    ("endurance-log", "endurance-log", None, ("data_units_read", "host_read_cmds")),
    ("persistent-event-log", "", None, ()),
    ("lba-status-log", "lba-status-log", None, ()),
    ("list-ns", "list-ns", None, ()),
    ("list-ctrl", "list-ctrl", None, ("ctrl_id",)),
    ("ns-descs", "ns-descs", PLAIN, ()),
    ("nvm-id-ctrl", "nvm-id-ctrl", None, ()),
    ("nvm-id-ns", "nvm-id-ns", PLAIN, ()),
    ("cmdset-ind-id-ns", "cmdset-ind-id-ns", PLAIN, ()),
    ("id-iocs", "", None, ()),
    ("id-uuid", "id-uuid", None, ()),
    ("id-ns-granularity", "id-ns-granularity", None, ()),
    ("list-endgrp", "list-endgrp", None, ()),
    ("get-lba-status", "", PLAIN, ()),
    ("resv-report", "resv-report", PLAIN, ()),
    # nvme-cli does not read these two over fabrics
    ("show-regs", "show-regs", None, ("nssd", "crto")),
    ("zns id-ctrl", "zns-id-ctrl", None, ()),
    ("zns id-ns", "zns-id-ns", ZONED, ()),
    ("zns report-zones -d 3", "zns-report", ZONED, ()),
    ("zns changed-zone-list", "zns-changed", ZONED, ()),
]


@pytest.mark.parametrize(("line", "theirs", "nsid", "own"), STRUCTURES, ids=[each[0] for each in STRUCTURES])
def test_structures(line: str, theirs: str, nsid: int | None, own: tuple[str, ...], run: Run) -> None:
    code, output, error = run(f"{line} -o json", nsid)
    assert (code, error) == (0, "")
    found = json.loads(output)
    if theirs:
        assert list(differences(THEIRS[theirs], found, frozenset(own))) == []
    code, text, error = run(line, nsid)
    assert code == 0 and text.strip() and "{" not in text and "\\x" not in text
    code, raw, error = run(f"{line} -o binary", nsid) if line == "list-ns" else (0, "\1", "")
    assert raw[0] == "\1"


ACTIONS = [
    ("flush", PLAIN, "flushed namespace 1"),
    ("write-zeroes --start-block 8 --blocks 8", PLAIN, "zeroed 8 blocks"),
    ("verify --blocks 16", PLAIN, "verified 16 blocks"),
    ("write-uncor --start-block 100 --blocks 2", PLAIN, "made 2 blocks"),
    ("copy --sdlba 200 --slbs 0,8 --blocks 7,7", PLAIN, "copied 16 blocks"),
    ("dsm --ad --slbs 0,16 --blocks 8,8", PLAIN, "deallocated 16 blocks in 2 ranges"),
    ("dsm --idr --slbs 0 --blocks 8", PLAIN, "described 8 blocks"),
    ("resv-register --nrkey 0x1234", PLAIN, "registered with namespace 1"),
    ("resv-acquire --crkey 0x1234 --rtype 1", PLAIN, "acquired namespace 1"),
    ("resv-release --crkey 0x1234 --rtype 1", PLAIN, "released namespace 1"),
    ("resv-register --rrega 1 --crkey 0x1234", PLAIN, "withdrew the registration of namespace 1"),
    ("zns open-zone --start-lba 0", ZONED, "open: zone 0"),
    ("zns close-zone --start-lba 0", ZONED, "close: zone 0"),
    ("zns finish-zone --start-lba 0", ZONED, "finish: zone 0"),
    ("zns reset-zone --select-all", ZONED, "reset: all zones"),
    ("zns zone-mgmt-send --zsa 4 --start-lba 0", ZONED, "action 0x4 done"),
    ("format -N 1 --force", None, "formatted namespace 1 with format 0"),
    ("set-feature --feature-id 5 -V 10 -N 1", None, "set-feature:0x05"),
    ("set-property -O 0x14 -V 0x460061", None, "set-property: 14"),
    ("get-property -O 8", None, "20100"),
    ("device-self-test --wait", None, "found nothing wrong"),
    ("admin-passthru --opcode 6 --cdw10 1 -l 4096", None, "Admin Command Identify is Success"),
    ("io-passthru --opcode 2 -N 1 -l 512", None, "IO Command Read is Success"),
]


@pytest.mark.parametrize(("line", "nsid", "words"), ACTIONS, ids=[each[0] for each in ACTIONS])
def test_actions(line: str, nsid: int | None, words: str, run: Run) -> None:
    code, output, error = run(line, nsid)
    assert code == 0, error
    assert words in output + error
    if "passthru" not in line:
        code, output, _ = run(f"{line} -o json", nsid) if line.startswith("get-") else (0, "{}", "")
        assert code == 0 and isinstance(json.loads(output), dict)


def test_the_holder_in_the_reservation_report(run: Run) -> None:
    assert run("resv-register --nrkey 0x1234 --iekey", PLAIN)[0] == 0
    assert run("resv-acquire --crkey 0x1234 --rtype 1", PLAIN)[0] == 0
    found = json.loads(run("resv-report -o json", PLAIN)[1])
    assert list(differences(THEIRS["resv-report3"], found, frozenset({"gen", "hostid"}))) == []
    assert run("resv-release --crkey 0x1234 --rrela 1", PLAIN)[0] == 0


def test_namespaces_are_created_attached_and_deleted(run: Run) -> None:
    code, output, error = run("create-ns --size 4M --attach -o json")
    assert code == 0, error
    nsid = json.loads(output)["nsid"]
    listed = json.loads(run("list-ns --all -o json")[1])["nsid_list"]
    assert {"nsid": nsid} in listed
    # attached to the controllers of this host, of which the command's was one
    assert run(f"detach-ns -N {nsid}")[0] == 0
    assert {"nsid": nsid} not in json.loads(run("list-ns -o json")[1])["nsid_list"]
    assert run(f"attach-ns -N {nsid}")[0] == 0
    assert run(f"detach-ns -N {nsid}")[0] == 0
    assert run(f"delete-ns -N {nsid}")[0] == 0
    assert {"nsid": nsid} not in json.loads(run("list-ns --all -o json")[1])["nsid_list"]


def test_compare_takes_files_and_reports_where_they_differ(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"a" * 3000)
    assert run("write -d data", PLAIN)[0] == 0
    assert run("compare -d data", PLAIN)[0] == 0
    (tmp_path / "data").write_bytes(b"a" * 2999 + b"b")
    code, _, error = run("compare -d data", PLAIN)
    assert code == 1 and "differ in blocks 0 to 5" in error
    (tmp_path / "data").write_bytes(b"a" * 3000)
    code, _, error = run("compare -z 4096 -d data", PLAIN)
    assert code == 2 and "3000 bytes" in error


def test_zones_are_appended_to_and_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(4096))
    assert run("zns reset-zone --select-all", ZONED)[0] == 0
    assert run("zns open-zone --start-lba 0", ZONED)[0] == 0
    code, output, _ = run("zns zone-append --zslba 0 -d data -o json", ZONED)
    assert code == 0 and json.loads(output) == {"lba": 0, "blocks": 8}
    found = json.loads(run("zns report-zones -d 3 -o json", ZONED)[1])
    assert list(differences(THEIRS["zns-report2"], found, frozenset())) == []
    everything = json.loads(run("zns report-zones -o json", ZONED)[1])["zone_list"]
    assert [each["slba"] for each in everything] == list(range(0, 32768, 2048))
    code, _, error = run("zns offline-zone --start-lba 0", ZONED)
    assert (code == 1 and "Invalid Zone State Transition" in error) or "zone state" in error.lower()
    code, _, error = run("zns set-zone-desc --start-lba 2048 -d data", ZONED)
    assert code == 2 and "descriptor extension of 0 bytes" in error


def test_sanitize_asks_before_it_deletes(run: Run) -> None:
    code, _, error = run("sanitize --sanact 2")
    assert code == 2 and "give --force" in error
    code, _, error = run("format -N 1")
    assert code == 2 and "give --force" in error
    assert run("sanitize --sanact 2 --force")[0] == 0
    while json.loads(run("sanitize-log -o json")[1])["nvme0"]["sprog"] != 0xFFFF:
        pass
    found = json.loads(run("sanitize-log -o json")[1])
    assert list(differences(THEIRS["sanitize-log2"], found, frozenset())) == []


def test_telemetry_goes_to_a_file(run: Run, tmp_path: Path) -> None:
    assert run("telemetry-log -O telemetry")[0] == 0
    data = (tmp_path / "telemetry").read_bytes()
    assert data[0] == 7 and len(data) % 512 == 0 and len(data) > 512


def test_topology(run: Run) -> None:
    found = json.loads(run("show-topology -o json")[1])
    own = frozenset({"HostNQN", "HostID", "NQN", "Address"})
    assert list(differences(THEIRS["show-topology"], found, own)) == []
    assert re.search(r"NSID 1.*\n.*optimized", run("show-topology")[1])


def test_each_subcommand_is_in_the_suite() -> None:
    elsewhere = {
        "discover", "connect", "connect-all", "list", "list-subsys", "id-ctrl", "id-ns", "gen-hostnqn", "config",
        "smart-log", "error-log", "ana-log", "get-log", "get-feature", "read", "write", "bench", "mptcpize",
        "saved list", "saved add", "saved remove", "cp", "gen-dhchap-key", "check-dhchap-key",
        "gen-tls-key", "check-tls-key",
        "man", "completion", "export",
    }  # fmt: skip
    here = {*(each[0] for each in STRUCTURES), *(each[0] for each in ACTIONS)}
    text = Path(__file__).read_text()
    for name, _ in _commands():
        if name.startswith("paths "):
            continue  # test_paths_cli.py
        tried = any(line == name or line.startswith(f"{name} ") for line in here)
        assert tried or name in elsewhere or f'"{name} ' in text, f"{name} is in no test"


def _commands() -> Iterator[tuple[str, click.Command]]:
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {each}", sub) for each, sub in command.commands.items())
        else:
            yield name, command


def test_nested_values_are_lines() -> None:
    value: Any = {"a": 1, "long name": "x", "list": [{"b": 2}, {"c": 3, "d": {}}], "empty": [], "words": ["x", "y"]}
    assert list(text_of(value)) == [
        "a         : 1", "long name : x", "list:", "  b : 2", "  [1]", "    c : 3", "    d:", "empty : none",
        "words:", "  x", "  y",
    ]  # fmt: skip
