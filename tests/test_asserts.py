"""`python -O` changes nothing: no `assert` of the package guards what comes from a peer, a file or a user."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "effect is Effect.ACCEPT_ICREQ": "the last effect that the table of states has for a target",
    "effect is Effect.ACCEPT_ICRESP": "the last effect that the table of states has for a host",
}


def narrows(test: ast.expr) -> bool:
    """Whether an assertion only tells a type checker what is so by construction: no None, an instance of a class."""
    if isinstance(test, ast.BoolOp):
        return all(map(narrows, test.values))
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return narrows(test.operand)
    if isinstance(test, ast.Call):
        return isinstance(test.func, ast.Name) and test.func.id in ("isinstance", "callable")
    if isinstance(test, ast.Compare):
        right = test.comparators[0]
        return (
            len(test.ops) == 1
            and isinstance(test.ops[0], ast.Is | ast.IsNot)
            and isinstance(right, ast.Constant)
            and right.value is None
        )
    return False


def wrong(source: str) -> Iterator[tuple[int, str]]:
    """Yield the assertions, line and text, that are more than that and in a function: those of a module are about its
    own constants."""
    tree = ast.parse(source)
    own = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and id(node) not in own and not narrows(node.test):
            text = ast.unparse(node.test)
            if text not in ALLOWED:
                yield node.lineno, text
        if isinstance(node, ast.Name) and node.id == "__debug__":
            yield node.lineno, "__debug__"


def test_no_assertion_guards_input() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}: raise an error in place of it"
        for path in sorted((ROOT / "nvmeof").rglob("*.py"))
        for line, text in wrong(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("assert SIZE == 8", 0),
        ("def f(x):\n    assert x is not None and not isinstance(x, int)", 0),
        ("def f(x):\n    assert len(x) == 8", 1),
        ("def f(x):\n    assert x is not None and x.size < 8", 1),
        ("def f(x):\n    if __debug__:\n        check(x)", 1),
    ],
)
def test_what_is_found(source: str, count: int) -> None:
    assert len([*wrong(source)]) == count


@pytest.mark.parametrize("harness", ["commands", "target"])
def test_hostile_input_without_assertions(harness: str) -> None:
    """The harnesses raise, they do not assert."""
    told = subprocess.run(
        [sys.executable, "-O", "-m", "tests.fuzz", "--harness", harness, "--minutes", "0.03", "--seed", "1"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    assert "PDUs" in told.stdout
