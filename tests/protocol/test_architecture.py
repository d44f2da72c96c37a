"""docs/architecture.md says what the code does: its diagram is the table's, its example runs."""

from __future__ import annotations

import re
from pathlib import Path

from nvmeof.protocol.states import diagram

TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()


def test_the_diagram_is_drawn_from_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in TEXT, "put the output of nvmeof.protocol.states.diagram() in its place"


def test_the_example_runs() -> None:
    [example] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "docs/architecture.md", "exec"), names)
    for name in ("ours", "theirs"):
        names[name].close()  # type: ignore[attr-defined]


def test_the_modules_that_it_names_exist() -> None:
    root = Path(__file__).parents[2] / "nvmeof"
    for package, names in re.findall(r"(target|host|transport|protocol|pdu|spec|wire)\.(\w+)", TEXT):
        if package in ("target", "host"):
            assert (root / package / f"{names}.py").exists() or names in ("start", "send_command", "send_read"), names
