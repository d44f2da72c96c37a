"""`nvmeof-target --control`: the socket of a target that serves, from its start to its end."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmeof.cli.exit_codes import EXIT_FAILED
from nvmeof.target.__main__ import main

NQN = "nqn.2026-01.org.example:file"


@contextmanager
def serving(*options: str) -> Iterator[subprocess.Popen[str]]:
    """A target in another process, once it has said what it serves."""
    command = [sys.executable, "-m", "nvmeof.target", "-o", "json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            json.loads(process.stdout.readline())
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def ctl(path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> Any:
        capsys.readouterr()
        code = main(["ctl", "-s", str(path), *arguments])
        said = capsys.readouterr()
        return (code, json.loads(said.out)) if "json" in arguments else (code, said.out + said.err)

    return call


def test_the_socket_is_there_while_the_target_serves(path: Path, ctl: Any) -> None:
    options = ("-t", "tcp", "-l", "127.0.0.1:0", "--ramdisk", "1M", "--control", str(path))
    with serving(*options) as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ctl("status", "-o", "json")[1]["pid"] == process.pid
        second = subprocess.run(
            [sys.executable, "-m", "nvmeof.target", *options], capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode == EXIT_FAILED and "another process listens at" in second.stderr
        assert "Traceback" not in second.stderr
        assert ctl("save")[1] == ("nvmeof-target: the target was started without --config: give the path of a file\n")
    assert not path.exists()
    code, said = ctl("status")
    assert code == EXIT_FAILED and "there is no control socket" in said


def test_the_file_is_read_again_and_written(path: Path, tmp_path: Path, ctl: Any) -> None:
    file = tmp_path / "target.json"
    document: dict[str, Any] = {
        "version": 1,
        "subsystems": [{"nqn": NQN, "namespaces": [{"nsid": 1, "storage": "ramdisk:1M"}]}],
        "ports": [{"portid": 1, "transport": "tcp", "host": "127.0.0.1", "port": 0}],
    }
    file.write_text(json.dumps(document))
    with serving("-c", str(file), "--control", str(path)) as process:
        document["subsystems"][0]["namespaces"].append({"nsid": 2, "storage": "ramdisk:2M"})
        document["subsystems"][0]["max_io_queues"] = 3
        document["ports"][0]["referrals"] = [{"traddr": "192.0.2.9"}]
        file.write_text(json.dumps(document))
        code, said = ctl("reload", "-o", "json")
        assert code == 0
        assert said == [
            f"{NQN}: namespace 2 added",
            f"{NQN}: limits of queues or controller identifiers changed",
            "port 1: referrals changed",
        ]
        file.write_text("{")
        code, text = ctl("reload")
        assert code == 2 and "no JSON" in text
        assert ctl("namespace", "disable", "2")[0] == 0
        assert ctl("save", "-o", "json")[1]["path"] == str(file)
        saved = json.loads(file.read_text())["subsystems"][0]
        assert [each.get("enabled", True) for each in saved["namespaces"]] == [True, False]
        assert ctl("reload") == (0, "none\n"), "what was saved is what the target is"
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert ctl("status")[0] == 0, "SIGHUP reads the file again, too"
