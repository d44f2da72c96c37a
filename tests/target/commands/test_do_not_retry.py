"""docs/do-not-retry.md against every refusal in the target's code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from nvmeof.spec.status import Status

ROOT = Path(__file__).resolve().parents[3]
NAMED = re.compile(r"\| (?:[0-9A-F]{3}h )([A-Z_]+) \|")


def documented() -> dict[bool, set[str]]:
    """Return the statuses that the document names, by DNR."""
    text = (ROOT / "docs" / "do-not-retry.md").read_text()
    _, clear, after = re.split(r"^## (?:Clear|Set).*$", text, flags=re.MULTILINE)
    return {False: set(NAMED.findall(clear)), True: set(NAMED.findall(after))}


def refusals() -> dict[bool, set[str]]:
    """Return the statuses of all `CommandError(Status.NAME, ...)` of the target, by DNR."""
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for path in (ROOT / "nvmeof" / "target").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args or ast.unparse(node.func) != "CommandError":
                continue
            name = ast.unparse(node.args[0])
            dnr = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("dnr", "True")
            if re.fullmatch(r"Status\.[A-Z_]+", name) and dnr in ("True", "False"):
                found[dnr == "True"].add(name.removeprefix("Status."))
    return found


def test_each_refusal_is_in_the_table_with_its_dnr():
    stated, coded = documented(), refusals()
    for dnr in (False, True):
        assert coded[dnr] <= stated[dnr], (dnr, coded[dnr] - stated[dnr])
        for name in stated[dnr] - coded[dnr]:
            assert name not in coded[not dnr] or name in stated[not dnr], f"{name} has DNR {not dnr} in the code"


def test_the_numbers_are_those_of_the_statuses():
    text = (ROOT / "docs" / "do-not-retry.md").read_text()
    rows = re.findall(r"\| ([0-9A-F]{3})h ([A-Z_]+) \|", text)
    assert len(rows) > 50
    for number, name in rows:
        assert Status[name] == int(number, 16), name
