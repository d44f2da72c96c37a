"""Every place in the target that refuses a command is reached by a test: a pytest plugin that checks it.

While tests run, the place of each `CommandError` that is made (and each `Completion` with a status) is recorded. At the
end the places are compared with the source. A place that was never reached is a failure with `--all-refusals`; without
the option the plugin does nothing.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

import nvmeof.target
from nvmeof.errors import CommandError
from nvmeof.target.core.completion import Completion

ROOT: Final = Path(nvmeof.target.__path__[0])
_DEPTH: Final = 4  # a refusal may be made by helpers of its module
Place = tuple[str, int]  # the file's path below the target's folder, and a line

reached: set[Place] = set()


def _factories(tree: ast.Module) -> set[str]:
    """Return the functions of a module that make a CommandError for others."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.returns is not None and _name(node.returns) == "CommandError":
            found.add(node.name)
    return found


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _has_status(call: ast.Call) -> bool:
    values = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "status")]
    return any(isinstance(value, ast.Attribute) and _name(value.value) == "Status" for value in values)


def places() -> Iterator[tuple[Place, str]]:
    """Return where the target's source makes a refusal, and that line."""
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        lines = text.splitlines()
        makers = {"CommandError"} | _factories(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if _name(node.func) in makers or (_name(node.func) == "Completion" and _has_status(node)):
                if "unreachable" in lines[node.lineno - 1]:
                    continue
                yield (path.relative_to(ROOT).as_posix(), node.lineno), lines[node.lineno - 1].strip()


def _watch(cls: type[Any]) -> None:
    make = cast(Callable[..., None], cls.__init__)
    prefix = str(ROOT) + "/"

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            frame = sys._getframe(1)
            for _ in range(_DEPTH):
                name = frame.f_code.co_filename
                if name.startswith(prefix):
                    reached.add((name[len(prefix) :], frame.f_lineno))
                if frame.f_back is None:
                    break
                frame = frame.f_back
        make(self, *args, **kwargs)

    cls.__init__ = made


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-refusals", action="store_true", help="fail unless every refusal in the target was provoked by a test"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--all-refusals"):
        _watch(CommandError)
        _watch(Completion)
        config.pluginmanager.register(_Report(config), "refusals")


class _Report:
    """Collects the places that the workers reached, and reports the others."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.missing: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        for file, line in json.loads(getattr(node, "workeroutput", {}).get("refusals", "[]")):
            reached.add((file, line))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        output = getattr(self.config, "workeroutput", None)
        if output is not None:  # a worker reports; the main process decides
            output["refusals"] = json.dumps(sorted(reached))
            return
        self.missing = [f"{file}:{line}: {text}" for (file, line), text in places() if (file, line) not in reached]
        if self.missing and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.missing:
            terminalreporter.section("refusals that no test provoked")
            for line in self.missing:
                terminalreporter.line(f"nvmeof/target/{line}")
