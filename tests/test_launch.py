"""Commands are printed in the form in which they can be called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nvmeof.launch import command_line


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of the programs of an environment, with the commands in it."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("nvmeof-target", "nvmeof-host"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    return programs


def test_name_alone_where_the_shell_finds_it(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(environment))
    assert command_line("host") == "nvmeof-host"


def test_path_where_the_environment_is_not_entered(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(environment.parents[1])
    assert command_line("target") == "venv/bin/nvmeof-target"
    monkeypatch.chdir("/")
    assert command_line("target").endswith("/venv/bin/nvmeof-target")


def test_path_where_the_shell_finds_that_of_another_environment(
    environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "nvmeof-host").write_text("#!/bin/sh\n")
    (other / "nvmeof-host").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    monkeypatch.chdir(environment)
    assert command_line("host") == "./nvmeof-host"


def test_module_where_it_is_not_installed(environment: Path) -> None:
    (environment / "nvmeof-host").unlink()
    assert command_line("host") == f"{sys.executable} -m nvmeof.host"
