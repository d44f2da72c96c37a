"""Saved connections, and URLs in place of addresses, on the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeof import Ramdisk, Target
from nvmeof.errors import ConfigurationError
from nvmeof.host.__main__ import main
from nvmeof.host.config_files import saved
from nvmeof.host.url import TargetUrl

from .blocking_target import serving


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with serving(Ramdisk("1M"), Ramdisk("2M"), trtype="tcp") as found:
        yield found


@pytest.fixture(autouse=True)
def own_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_names_are_saved_found_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saved", "list"]) == 0
    assert "no connection is saved" in capsys.readouterr().err
    assert main(["saved", "add", "lab", "nvme+tcp://192.0.2.1/nqn.a?nsid=3"]) == 0
    assert main(["saved", "list", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == {"Connections": [{"Name": "lab", "URL": "nvme+tcp://192.0.2.1/nqn.a?nsid=3"}]}
    assert saved.find_target("lab") == TargetUrl.parse("nvme+tcp://192.0.2.1/nqn.a?nsid=3")
    assert saved.connections_file().stat().st_mode & 0o777 == 0o600
    assert main(["saved", "remove", "lab"]) == 0
    assert main(["saved", "remove", "lab"]) == 2
    assert "no connection is saved as 'lab'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"lab": "tcp://h"}', "\xff"])
def test_a_file_of_another_form_is_one_sentence(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    saved.connections_file().parent.mkdir(parents=True)
    saved.connections_file().write_bytes(text.encode("latin-1"))
    assert main(["id-ctrl", "lab"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "connections.json" in captured.err


@pytest.mark.parametrize("name", ["", "1st", "a/b", "a:b", "-x", "ä"])
def test_ambiguous_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name"):
        saved.check_name(name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["id-ctrl"], "Missing option '-a' / '--traddr', or a TARGET"),
        (["id-ctrl", "lab"], "neither a URL"),
        (["id-ctrl", "nvme+tcp://h/a", "-a", "h"], "give the target once"),
        (["discover", "nvme+tcp://h/a?path=i"], "has several paths"),
        (["id-ctrl", "nvme+tcp://h/a?x=1"], "unknown option 'x'"),
        (["saved", "add", "lab", "h"], "is not a target's URL"),
    ],
)
def test_invalid_urls_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1


def test_a_url_stands_for_its_options(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"nvme+tcp://127.0.0.1:{target.address.port}"
    assert main(["id-ns", f"{place}/{target.subnqn}?nsid=2", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["nsid"] == 2
    assert main(["id-ns", f"{place}/{target.subnqn}?nsid=2", "-N", "1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["nsid"] == 1  # an option has precedence over the URL
    assert main(["discover", place, "-o", "json"]) == 0
    assert target.subnqn in capsys.readouterr().out
    assert main(["list-subsys", f"{place}/{target.subnqn}?path=localhost:{target.address.port}", "-o", "json"]) == 0
    (host,) = json.loads(capsys.readouterr().out)
    assert len(host["Subsystems"][0]["Paths"]) == 2


def test_connect_saves_its_target(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["-t", "tcp", "-a", "127.0.0.1", "-a", "localhost", "-s", str(target.address.port), "-n", target.subnqn]
    more = ["-Q", "32", "--timeout", "7", "--iopolicy", "round-robin", "--save", "lab"]
    command = [sys.executable, "-m", "nvmeof.host", "connect", *where, *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("connected;") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "disconnected\n"
    assert process.returncode == 0
    assert saved.find_target("lab") == TargetUrl.parse(
        f"nvme+tcp://127.0.0.1:{target.address.port}/{target.subnqn}?path=localhost:{target.address.port}"
        "&iopolicy=round-robin&queue_size=32&io_timeout=7&admin_timeout=7"
    )
    capsys.readouterr()
    assert main(["list-subsys", "lab", "-o", "json"]) == 0
    (host,) = json.loads(capsys.readouterr().out)
    assert host["Subsystems"][0]["IOPolicy"] == "round-robin"
