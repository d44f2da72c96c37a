"""Damaged stored state: one sentence that says how to continue, or the target is served nevertheless."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.cli.exit_codes import EXIT_USAGE
from nvmeof.errors import ConfigurationError
from nvmeof.target.__main__ import main
from nvmeof.target.cli.options import Options, make_target
from nvmeof.target.storage import kept_document
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.commands.test_nvm import read
from tests.target.harness import Target
from tests.target.media_tools import Durable, kept, submit

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
    """Yield the path to every part of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, each in inner for found in parts(each, (*path, key))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    if isinstance(value, dict):
        return {key: replaced(each, path[1:], by) if key == path[0] else each for key, each in value.items()}
    return [replaced(each, path[1:], by) if key == path[0] else each for key, each in enumerate(value)]


def serves(of_subsystem: dict[str, Any], of_namespace: dict[str, Any]) -> bool:
    """Return whether the target starts and answers; if not, check its error."""
    subsystem, namespace = Durable(), Durable()
    subsystem._values, namespace._values = dict(of_subsystem), dict(of_namespace)
    try:
        target = Target(kept(Ramdisk("64K"), namespace), metadata_store=subsystem)
        pending = target.subsystem.power_on(0.0)
        target.subsystem.resume(target.runtime)
    except ConfigurationError as error:
        assert "of memory is invalid" in str(error) and "to continue without it" in str(error)
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


def test_valid_state_is_served() -> None:
    assert serves({}, {})
    for section, value in OF_A_SUBSYSTEM.items():
        assert serves({section: value}, {})
    for section, value in OF_A_FILE.items():
        if section != "format":
            assert serves({}, {section: value})


FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(st.data(), JSON)
def test_any_part_of_a_subsystems_state_may_be_anything(data: st.DataObject, junk: Any) -> None:
    """Damaged counts and events must not prevent a start."""
    section = data.draw(st.sampled_from(sorted(OF_A_SUBSYSTEM)))
    path = data.draw(st.sampled_from(parts(OF_A_SUBSYSTEM[section])))
    served = serves({section: replaced(OF_A_SUBSYSTEM[section], path, junk)}, {})
    assert served or section == "sanitize"


@FUZZ
@given(st.data(), JSON)
def test_any_part_of_a_files_metadata_may_be_anything(data: st.DataObject, junk: Any) -> None:
    section = data.draw(st.sampled_from(sorted(OF_A_FILE)))
    path = data.draw(st.sampled_from(parts(OF_A_FILE[section])))
    serves({}, {section: replaced(OF_A_FILE[section], path, junk)})


@pytest.mark.parametrize("section", sorted(OF_A_FILE))
@pytest.mark.parametrize("junk", [5, "x", {}, {"x": 1}])
def test_state_that_protects_data_is_not_dropped_silently(tmp_path: Path, capsys: Any, section: str, junk: Any) -> None:
    if section == "features":
        junk = {"84.0": junk} if junk != "x" else junk
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8192))
    beside = tmp_path / "disk.nvmeof"
    beside.write_text(json.dumps({"nvmeof": 1, "kept": {section: junk}}))
    assert main(["-t", "tcp", "-l", "127.0.0.1:0", "--file", str(disk)]) == EXIT_USAGE
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"section {section!r} of {beside} is invalid" in said and said.endswith("to continue without it")


@pytest.mark.parametrize("field", ["cdw10", "cdw11"])
@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_an_unknown_command(field: str, value: int) -> None:
    assert not serves({}, {"sanitize": {**OF_A_FILE["sanitize"], field: value}}) or field == "cdw10"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        '{"nvmeof":1}',
        '{"nvmeof":3,"kept":{}}',
        '{"nvmeof":true,"kept":{}}',
        '{"nvmeof":2,"kept":{},"x":1}',
        '{"nvmeof":2,"kept":{"reservqtions":{}}}',
        '{"nvmeof":2,"sha256":5,"kept":{}}',
        '{"nvmeof":2,"kept":{},"kept":{}}',
        '{"nvmeof":1,"kept":[1]}',
        "[" * 100000,
        '{"nvmeof":1,"kept":{"a":NaN}}',
        "\x00" * 512,
    ],
)
def test_a_file_that_is_no_metadata_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=rf"{path} .*to start with empty state"):
        JsonFileStore(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=rf"{path} .*to start with empty state"):
        JsonFileStore(path)


def changed_bits(data: bytes) -> Iterator[bytes]:
    """Yield each single-bit change."""
    for index in range(len(data)):
        for bit in range(8):
            yield data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :]


SMALL: dict[str, dict[str, Any]] = {
    "PATH.nvmeof": OF_A_FILE,
    "--state": {name: OF_A_SUBSYSTEM[name] for name in ("history", "lifetime", "features", "sanitize")},
    "pool.json": {"namespaces": {"namespaces": [], "unused": [NSID_1], "hosts": []}, "history": {"events": []}},
}


@pytest.mark.parametrize("kind", SMALL)
def test_every_bit_and_every_length(tmp_path: Path, kind: str) -> None:
    """The file is read right, or refused with a sentence that names it: never another value."""
    path, right = tmp_path / "kept", SMALL[kind]
    data = kept_document.build(right).encode()
    path.write_bytes(data)
    assert JsonFileStore(path).values == right
    refused = 0
    for damaged in (*changed_bits(data), *(data[:length] for length in range(len(data)))):
        path.write_bytes(damaged)
        try:
            assert JsonFileStore(path).values == right
        except ConfigurationError as error:
            assert str(error).startswith(f"{path} ") and "start with empty state" in str(error)
            refused += 1
    assert refused >= 9 * len(data) - 16, "but for white space at the end"


@pytest.mark.parametrize("known", [True, False])
def test_a_document_without_a_checksum_is_accepted_once(tmp_path: Path, caplog: Any, known: bool) -> None:
    """A document of the first version or edited by hand; not one with unknown parts, by damage or of a newer
    version.
    """
    disk, beside = tmp_path / "disk", tmp_path / "disk.nvmeof"
    disk.write_bytes(bytes(8192))
    old = json.dumps({"nvmeof": 1, "kept": {"format" if known else "formbt": {"block_bytes": 4096}}}, indent=1)
    beside.write_text(old)

    async def block_bytes() -> int:
        backend = FileBackend(disk)
        await backend.open()
        await backend.close()
        return backend.capabilities.block_bytes

    if not known:
        with pytest.raises(ConfigurationError, match=r"disk\.nvmeof has a section 'formbt', which is unknown"):
            asyncio.run(block_bytes())
        assert beside.read_text() == old
        return
    assert asyncio.run(block_bytes()) == 4096
    assert f"{beside} has no checksum: it is taken as it is" in caplog.text
    assert kept_document.parse(beside.read_text(), {"format"}) == ({"format": {"block_bytes": 4096}}, True)
    caplog.clear()
    assert asyncio.run(block_bytes()) == 4096 and not caplog.text


def test_a_newer_version_is_distinguished_from_damage(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text('{"nvmeof": 3, "kept": {"zeal": 1}}')
    with pytest.raises(ConfigurationError, match=rf"{path} was written by a newer version of nvmeof"):
        JsonFileStore(path)


@pytest.mark.parametrize("what", ["nvmeof", "zones"])
def test_a_link_to_nothing_is_no_empty_file(tmp_path: Path, what: str) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    beside = tmp_path / f"disk.{what}"
    beside.symlink_to(tmp_path / "away")
    option = f"{tmp_path / 'disk'}{',zoned,zone-size=64K' if what == 'zones' else ''}"
    with pytest.raises(ConfigurationError, match=rf"{beside} is a link to {tmp_path / 'away'}, which is not there"):
        asyncio.run(served(option))
    assert not (tmp_path / "away").exists()


async def served(option: str) -> None:
    """Start the target, and end it in order."""
    async with make_target(Options(trtype="tcp", listen=("127.0.0.1:0",), file=(option,))):
        pass


STARTS_EMPTY = {
    "lifetime": "is invalid; some counters start from zero",
    "features": "is only partly valid; the other values are the defaults",
}
"""The log's line about a section, where it differs from that of an unreadable one."""


@pytest.mark.parametrize(
    ("section", "kept"),
    [
        ("lifetime", 5),
        ("lifetime", {"power_cycles": "x"}),
        ("lifetime", {"namespaces": {NSID_1: {"reads": -1}}}),
        ("features", 5),
        ("features", {"0b.0": {}}),
        ("history", {"events": [5]}),
        ("self-test", {"results": 5}),
        ("telemetry", {"areas": 5}),
    ],
)
def test_state_that_starts_empty_is_a_line_of_the_log(caplog: Any, section: str, kept: Any) -> None:
    assert serves(OF_A_SUBSYSTEM, {}) and not caplog.text
    assert serves({section: kept}, {})
    assert STARTS_EMPTY.get(section, "cannot be read") in caplog.text
