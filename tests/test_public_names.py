"""What programs import from `nvmeof`: each name is documented, and the examples run."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nvmeof
from nvmeof.errors import ConfigurationError

ROOT = Path(nvmeof.__file__).parents[1]


def test_all_is_what_there_is() -> None:
    assert set(nvmeof.__all__) <= set(dir(nvmeof))
    assert nvmeof.__all__ == sorted(nvmeof.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Disk'"):
        _ = nvmeof.Disk  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", nvmeof.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    value = getattr(nvmeof, name)
    documentation = inspect.getdoc(value) or ""
    assert re.match(r"[A-Z][^`]", documentation), documentation  # a sentence, not the name of an argument
    if not inspect.isclass(value):
        return
    members = [
        (member, found)
        for member, found in inspect.getmembers(value)
        if not member.startswith("_") and (inspect.isfunction(found) or isinstance(found, property))
    ]
    assert [member for member, found in members if not inspect.getdoc(found)] == []


@pytest.mark.parametrize("name", ["Target", "connect", "discover", "Namespace"])
def test_what_everybody_uses_has_an_example(name: str) -> None:
    assert "::\n" in (inspect.getdoc(getattr(nvmeof, name)) or "")


def examples() -> list[tuple[str, str]]:
    """Return the Python examples of the documents that are programs, by file."""
    found = []
    for path in (
        ROOT / "README.md",
        ROOT / "docs/howto/library.md",
        ROOT / "docs/howto/zones.md",
        ROOT / "docs/howto/trace.md",
        ROOT / "docs/howto/running-target.md",
    ):
        for code in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
            found.append((path.name, code))
    return found


@pytest.mark.parametrize(("name", "code"), examples())
def test_examples_run(tmp_path: Path, name: str, code: str) -> None:
    assert "asyncio.run(main(" in code, f"an example of {name} is no program"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:nvmeof", "-c", code.replace("/tmp/", f"{tmp_path}/")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout


@pytest.mark.parametrize("size", [1.5, None, b"1M", [], True, "1X"])
def test_what_is_no_size_is_said(size: object) -> None:
    with pytest.raises(ConfigurationError):
        nvmeof.Ramdisk(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option",
    [
        {"nr_io_queues": "2"}, {"queue_size": None}, {"keep_alive_tmo": "5"}, {"io_timeout": "30"}, {"tos": "low"},
        {"connect_timeout": None}, {"connect_timeout": 0},
    ],
)  # fmt: skip
async def test_what_is_no_option_is_said(option: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        await nvmeof.connect("127.0.0.1", 1, subnqn="nqn.2026-01.org.example:disk", **option)  # type: ignore[arg-type]
