"""The public names of `nvmeof`: each is documented, and the examples run."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nvmeof
from nvmeof.errors import ConfigurationError

ROOT = Path(nvmeof.__file__).parents[1]


def test_all_lists_every_name() -> None:
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
def test_the_most_used_names_have_an_example(name: str) -> None:
    assert "::\n" in (inspect.getdoc(getattr(nvmeof, name)) or "")


def examples() -> list[tuple[str, str]]:
    """Return the Python examples of the documents that are programs, by file."""
    found = []
    for path in (
        ROOT / "README.md",
        ROOT / "docs/howto/library.md",
        ROOT / "docs/howto/discovery.md",
        ROOT / "docs/howto/zones.md",
        ROOT / "docs/howto/trace.md",
        ROOT / "docs/howto/metrics.md",
        ROOT / "docs/howto/running-target.md",
        ROOT / "docs/howto/control.md",
    ):
        for code in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
            found.append((path.name, code))
    return found


def host_api_examples() -> list[str]:
    """Return the Python examples of docs/host-api.md, which use a target that is running."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/host-api.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def running_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the target of docs/host-api.md by its own command line, on a free port; yield the port."""
    text = (ROOT / "docs/host-api.md").read_text()
    found = re.search(r"^nvmeof-target (.*)$", text, re.MULTILINE)
    assert found is not None
    options = found[1].replace(":4420", ":0").split()
    with (tmp_path_factory.mktemp("target") / "log").open("w") as log:
        target = subprocess.Popen(
            [sys.executable, "-m", "nvmeof.target", *options, "-o", "json"], stdout=subprocess.PIPE, stderr=log
        )
    assert target.stdout is not None
    with target.stdout:
        yield json.loads(target.stdout.readline())["listeners"][0]["port"]
        target.terminate()
        assert target.wait(timeout=60) == 0


@pytest.mark.parametrize("code", host_api_examples())
def test_examples_of_the_hosts_api_run(running_target: int, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code.replace("4420", str(running_target))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout


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
def test_an_invalid_size_is_explained(size: object) -> None:
    with pytest.raises(ConfigurationError):
        nvmeof.Ramdisk(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option",
    [
        {"nr_io_queues": "2"}, {"queue_size": None}, {"keep_alive_tmo": "5"}, {"io_timeout": "30"}, {"tos": "low"},
        {"connect_timeout": None}, {"connect_timeout": 0},
    ],
)  # fmt: skip
async def test_an_unknown_option_is_explained(option: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        await nvmeof.connect("127.0.0.1", 1, subnqn="nqn.2026-01.org.example:disk", **option)  # type: ignore[arg-type]
