"""Manual pages and completion scripts, which are made from the commands' help."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nvmeof.cli.manual import pages
from nvmeof.host.__main__ import cli, main


def test_each_command_has_a_page() -> None:
    found = dict(pages("nvmeof-host", cli, "1.0"))
    assert {"nvmeof-host.1", "nvmeof-host-bench.1", "nvmeof-host-zns-report-zones.1"} <= found.keys()
    text = found["nvmeof-host-cp.1"]
    for heading in (".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", '.SH "OPTIONS"', ".SH EXIT STATUS", ".SH SEE ALSO"):
        assert heading in text
    assert "\\fB\\-\\-resume FILE\\fR" in text
    for each in found.values():
        assert all(line.startswith(".") == (line[:3] in (".TH", ".SH", ".TP", ".PP")) for line in each.splitlines())


def test_pages_are_written_and_read_by_man(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", str(tmp_path / "man1")]) == 0
    assert (tmp_path / "man1" / "nvmeof-host.1").exists()
    (tmp_path / "file").touch()
    assert main(["man", str(tmp_path / "file")]) == 2
    if shutil.which("groff") is None:
        return
    page = tmp_path / "man1" / "nvmeof-host-cp.1"
    shown = subprocess.run(["groff", "-man", "-Tutf8", "-ww", page], capture_output=True, text=True, check=True)
    assert "--verify" in re.sub(r"\x1b\[\d*m|.\x08", "", shown.stdout) and not shown.stderr


def test_no_option_has_two_meanings() -> None:
    groups = [cli, *(each for each in cli.commands.values() if isinstance(each, click.Group))]
    for command in (each for group in groups for each in group.commands.values()):
        names = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        assert len(names) == len(set(names)), command.name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_NVMEOF_HOST_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_saved_connections_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["saved", "add", "laboratory", "nvme+tcp://h/a"]) == 0
    environment = {
        **os.environ,
        "_NVMEOF_HOST_COMPLETE": "bash_complete",
        "COMP_WORDS": "nvmeof-host id-ctrl lab",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "nvmeof.host"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["plain,laboratory"]
