"""docs/architecture.md agrees with the code: its diagram is that of the table, its example runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from nvmeof.protocol.states import diagram

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_the_diagram_is_drawn_from_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in TEXT, "put the output of nvmeof.protocol.states.diagram() in its place"


def test_the_example_runs() -> None:
    [example] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "docs/architecture.md", "exec"), names)
    for name in ("ours", "theirs"):
        names[name].close()  # type: ignore[attr-defined]


def test_the_files_that_it_names_exist() -> None:
    names = re.findall(r"`(?:nvmeof/)?((?:target|host|transport|protocol|pdu|spec|aio)/[\w/]+\.py)`", TEXT)
    assert names
    for name in names:
        assert (ROOT / "nvmeof" / name).exists(), name


def test_the_modules_that_it_names_exist() -> None:
    for package, rest in re.findall(r"`(?:nvmeof\.)?(target|transport|protocol|pdu|spec)((?:\.\w+)+)", TEXT):
        first = rest[1:].partition(".")[0]
        base = ROOT / "nvmeof" / package
        assert first.startswith("send_") or (base / first).is_dir() or (base / f"{first}.py").exists(), package + rest


def test_the_map_is_made_from_the_imports() -> None:
    made = subprocess.run([sys.executable, ROOT / "tools" / "module_map.py", "--check"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def _defined() -> set[str]:
    """Return every name that the package defines: classes, functions, arguments, attributes, constants, and modules."""
    names: set[str] = set()
    for path in (ROOT / "nvmeof").rglob("*.py"):
        names |= {path.stem, path.parent.name}
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    names.add(node.name)
                case ast.Name(ctx=ast.Store()):
                    names.add(node.id)
                case ast.Attribute(ctx=ast.Store()):
                    names.add(node.attr)
                case ast.arg():
                    names.add(node.arg)
    return names


MEMBER = r"(?:[A-Z]\w*\.)?_?[a-z]\w*_\w+|[A-Z]\w+\.\w+|[A-Z]+[a-z]\w*[A-Z]\w*"
"""How classes and members look in the text: `Namespace.read`, `OperationFilter`, `send_reads`."""


def test_the_members_that_it_names_exist() -> None:
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    words = [word for code in re.findall(r"`([^`\n]+)`", prose) for word in re.findall(r"[\w./-]+", code)]
    members = [word for word in words if re.fullmatch(MEMBER, word) and not word.startswith("My")]
    assert {"Namespace.read", "OperationFilter", "send_reads"} <= set(members)
    defined = _defined()
    assert [word for word in members if not set(word.split(".")) <= defined] == []
