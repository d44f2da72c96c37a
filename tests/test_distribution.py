"""The distribution is nvmeof-mptcp; another project's is called nvmeof and installs into the same directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nvmeof
import nvmeof_mptcp

ROOT = Path(nvmeof.__file__).parents[1]


def run(directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code that finds its packages in `directory`."""
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=directory, capture_output=True, text=True, check=False
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Install the parts of the packages that imports need."""
    for name in ("nvmeof", "nvmeof_mptcp"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / name / "__init__.py", tmp_path / name)
    shutil.copy(ROOT / "nvmeof" / "version.py", tmp_path / "nvmeof")
    return tmp_path


def test_no_warning_where_it_is_alone(installed: Path) -> None:
    (installed / "nvmeof_mptcp-0.1.0.dist-info").mkdir()
    done = run(installed, "import nvmeof, nvmeof_mptcp; assert not nvmeof_mptcp.overwritten()")
    assert (done.returncode, done.stderr) == (0, "")


def test_warns_when_the_other_one_is_installed_beside(installed: Path) -> None:
    (installed / "nvmeof-2026.10.22.dist-info").mkdir()
    done = run(installed, "import nvmeof")
    assert done.returncode == 0
    assert "RuntimeWarning" in done.stderr
    assert "pip uninstall nvmeof nvmeof-mptcp" in done.stderr


@pytest.mark.parametrize("command", ["target", "host"])
def test_commands_refuse_when_the_other_one_has_overwritten_the_package(installed: Path, command: str) -> None:
    (installed / "nvmeof" / "__init__.py").write_text("from nvmeof.protocol import NotThere\n")
    done = run(installed, f"import sys, nvmeof_mptcp; sys.exit(nvmeof_mptcp.{command}())")
    assert done.returncode == 1
    assert done.stderr.startswith(f"nvmeof-{command}: {installed / 'nvmeof'}")
    assert "Traceback" not in done.stderr


def test_commands_run_the_programs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (nvmeof_mptcp.target, nvmeof_mptcp.host):
        monkeypatch.setattr(sys, "argv", ["command", "--version"])
        assert command() == 0
        assert nvmeof.__version__ in capsys.readouterr().out


def test_no_text_recommends_the_other_distribution() -> None:
    wrong = re.compile(r"pip install[^\n]*\bnvmeof(?!-mptcp|_mptcp)(\[|'|\b)")
    listed = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    listed += [path for name in ("nvmeof", "benchmarks", "examples") for path in (ROOT / name).rglob("*.py")]
    assert [str(path) for path in listed if wrong.search(path.read_text())] == []
