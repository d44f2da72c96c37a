"""What is kept for the next process, damaged: one sentence that says how to go on, or it is served all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.target.__main__ import EXIT_USAGE, main
from nvmeof.target.backend.file_keeper import FileKeeper
from nvmeof.target.backend.ramdisk import Ramdisk
from tests.target.harness import Target
from tests.target.media_tools import Durable, kept, submit
from tests.target.test_nvm import read

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NSID_1 = "3b241101-e2bb-4255-8caf-4136c566a962"
OF_A_FILE: dict[str, Any] = {
    "format": {"block_bytes": 4096, "erase": 0},
    "features": {"84.0": {"dwords": [1, 0, 0, 0, 0], "data": None, "dw0": 1, "value": None}},
    "uncorrectable": {"block_bytes": 512, "ranges": [[1, 2]]},
    "sanitize": {"state": "failed", "cdw10": 2, "cdw11": 0, "left": False},
    "reservations": {"generation": 1, "type": 1, "holder": "00" * 16, "registrants": {"00" * 16: 5}},
}
OF_A_SUBSYSTEM: dict[str, Any] = {
    "history": {"generation": 3, "events": [[4, "0000000000000000", 65535, None, "MC4xLjAgICA="]]},
    "lifetime": {
        "power_cycles": 1, "unsafe_shutdowns": 0, "power_on_seconds": 1.5, "busy_seconds": 0.0, "clean": True,
        "errors": 0, "namespaces": {NSID_1: {"reads": 5}}, "gone": {"writes": 3},
    },
    "self-test": {"results": [[1, 0, 5, 0, 0, 0, 0, 0]], "running": [1]},
    "features": {"0b.0": {"dwords": [256, 0, 0, 0, 0], "data": None, "dw0": 256, "value": None}},
    "telemetry": {"areas": ["x" * 512, "y" * 512, "z" * 512], "generation": 1, "reason": "r", "available": True},
    "sanitize": {"state": "failed", "cdw10": 2, "cdw11": 0, "left": False, "namespaces": [[NSID_1, "x"]]},
}  # fmt: skip


def parts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, each in inner for found in parts(each, (*path, key))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    if isinstance(value, dict):
        return {key: replaced(each, path[1:], by) if key == path[0] else each for key, each in value.items()}
    return [replaced(each, path[1:], by) if key == path[0] else each for key, each in enumerate(value)]


def serves(of_subsystem: dict[str, Any], of_namespace: dict[str, Any]) -> bool:
    """Whether it starts and answers with that; else it has said why."""
    subsystem, namespace = Durable(), Durable()
    subsystem._values, namespace._values = dict(of_subsystem), dict(of_namespace)
    try:
        target = Target(kept(Ramdisk("64K"), namespace), keeper=subsystem)
        pending = target.subsystem.power_on(0.0)
        target.subsystem.resume(target.runtime)
    except ConfigurationError as error:
        assert "memory keeps as" in str(error) and "to go on without" in str(error)
        return False
    assert pending is not None
    admin = target.admin()
    for page, length in ((2, 512), (5, 4096), (6, 564), (7, 512), (8, 2048), (0xE, 512), (0x81, 512)):
        admin.log_page(page, length)
    for fid in (0x0B, 0x84):
        submit(target, admin, 0x0A, nsid=1, cdw10=fid)
    read(target.io(admin), 0, 1)
    target.runtime.settle()
    target.subsystem.power_off(1.0)
    return True


def test_what_is_sound_is_served() -> None:
    assert serves({}, {})
    for section, value in OF_A_SUBSYSTEM.items():
        assert serves({section: value}, {})
    for section, value in OF_A_FILE.items():
        if section != "format":
            assert serves({}, {section: value})


FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(st.data(), JSON)
def test_any_part_of_what_a_subsystem_keeps_may_be_anything(data: st.DataObject, junk: Any) -> None:
    """Counts and events are not worth a target that does not start."""
    section = data.draw(st.sampled_from(sorted(OF_A_SUBSYSTEM)))
    path = data.draw(st.sampled_from(parts(OF_A_SUBSYSTEM[section])))
    served = serves({section: replaced(OF_A_SUBSYSTEM[section], path, junk)}, {})
    assert served or section == "sanitize"


@FUZZ
@given(st.data(), JSON)
def test_any_part_of_what_a_file_keeps_may_be_anything(data: st.DataObject, junk: Any) -> None:
    section = data.draw(st.sampled_from(sorted(OF_A_FILE)))
    path = data.draw(st.sampled_from(parts(OF_A_FILE[section])))
    serves({}, {section: replaced(OF_A_FILE[section], path, junk)})


@pytest.mark.parametrize("section", sorted(OF_A_FILE))
@pytest.mark.parametrize("junk", [5, "x", {}, {"x": 1}])
def test_what_protects_data_is_not_forgotten_unsaid(tmp_path: Path, capsys: Any, section: str, junk: Any) -> None:
    if section == "features":
        junk = {"84.0": junk} if junk != "x" else junk
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8192))
    beside = tmp_path / "disk.nvmeof"
    beside.write_text(json.dumps({"nvmeof": 1, "kept": {section: junk}}))
    assert main(["-t", "tcp", "-l", "127.0.0.1:0", "--file", str(disk)]) == EXIT_USAGE
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"what {beside} keeps as {section!r} cannot be read" in said and said.endswith("to go on without")


@pytest.mark.parametrize("field", ["cdw10", "cdw11"])
@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_command_that_there_is_not(field: str, value: int) -> None:
    assert not serves({}, {"sanitize": {**OF_A_FILE["sanitize"], field: value}}) or field == "cdw10"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        '{"nvmeof":1}',
        '{"nvmeof":2,"kept":{}}',
        '{"nvmeof":1,"kept":[1]}',
        "[" * 100000,
        '{"nvmeof":1,"kept":{"a":NaN}}',
        "\x00" * 512,
    ],
)
def test_a_file_that_is_no_keeper(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=rf"{path} .*to start anew"):
        FileKeeper(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=rf"{path} .*to start anew"):
        FileKeeper(path)
