"""The import contracts of pyproject.toml: each of them fails when its rule is broken.

The package is copied, every rule is broken in the copy, and import-linter has to name every broken import.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

VIOLATIONS = {
    # upward imports
    "spec.sqe": ["nvmeof.pdu.header"],
    "protocol.host": ["nvmeof.aio.runtime"],
    "host.options": ["nvmeof.target.core.states"],
    "host.queue": ["nvmeof.host.controller"],
    "target.core.pool": ["nvmeof.target.storage.base"],
    "target.namespaces.namespace": ["nvmeof.target.controller.controller"],
    "target.server": ["nvmeof.target.control.control"],
    "target.projection.effects": ["nvmeof.target.subsystem.subsystem"],
    "target.commands.io.nvm": ["nvmeof.target.commands.identify.identify", "nvmeof.target.controller.controller"],
    "transport.tcp": ["nvmeof.spec.enums"],
    # sockets, event loops, clocks and threads
    "address": ["socket", "time"],
    "cli.types": ["socket"],
    "host.results": ["asyncio"],
    "host.identity": ["threading"],
    "host.multipath.ana": ["time"],
    "target.controller.controller": ["asyncio"],
    "target.slow_commands": ["time"],
    "target.subsystem.subsystem": ["nvmeof.transport.base"],
    "spec.enums": ["datetime"],
}
CYCLES = [
    ("transport.sockets", "transport.tcp"),
    ("target.storage.arguments", "target.storage.kinds"),
    ("host.cli.output", "host.cli.show"),
]
NEW_MODULES = {
    "host.new_module": "Layers of the host",
    "target.new_module": "Layers of the target",
    "target.commands.new_module": "Groups of the target's commands",
    "new_module": "Layers of the package",
}


def _path(package: Path, module: str) -> Path:
    path = package.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _append(package: Path, module: str, line: str) -> None:
    path = _path(package, module)
    path.write_text(path.read_text() + f"\n{line}\n")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return import-linter's report on a copy of the package in which every rule is broken."""
    if find_spec("importlinter") is None:
        pytest.skip("needs import-linter: pip install -e '.[lint]'")
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "nvmeof", copy / "nvmeof", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for module, imported in VIOLATIONS.items():
        for each in imported:
            _append(copy / "nvmeof", module, f"import {each}")
    for module, other in CYCLES:
        _append(copy / "nvmeof", module, "from typing import TYPE_CHECKING")
        _append(copy / "nvmeof", module, f"if TYPE_CHECKING:\n    import nvmeof.{other}")
    for module in NEW_MODULES:
        _path(copy / "nvmeof", module).write_text("")
    linter = (
        "import sys; from importlinter.cli import lint_imports_command; sys.path.insert(0, '.'); lint_imports_command()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", linter, "--no-cache"],
        cwd=copy,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "1000"},
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    "violation", [f"nvmeof.{module} -> {each}" for module, imported in VIOLATIONS.items() for each in imported]
)
def test_an_import_against_the_rules_is_found(report: str, violation: str) -> None:
    assert re.search(re.escape(violation) + r"\b", report)


@pytest.mark.parametrize("module", [module for module, _ in CYCLES])
def test_a_cycle_for_type_checking_is_found(report: str, module: str) -> None:
    package = module.rpartition(".")[0]
    assert f"No cycles are allowed in nvmeof.{package}." in report


@pytest.mark.parametrize(("module", "contract"), NEW_MODULES.items())
def test_a_new_module_must_have_its_place(report: str, module: str, contract: str) -> None:
    name = module.rpartition(".")[2]
    part = report[report.index("Broken contracts") :]
    assert re.search(rf"{re.escape(contract)}[^\n]*\n-+\n(?:.*\n)*?.*{name}", part)
