"""The floors of digests and files, the mixed load and the rows: short runs, whose counts must be consistent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import generator, mixed, native, rows
from benchmarks.processes import ROOT, SUBNQN, Cores, running_target
from benchmarks.session import BenchmarkError
from benchmarks.side_by_side import Build

SIZE_BYTES = 1 << 22
COMMON = ["--wait", "poll", "--seconds", "0.1", "--warmup", "0.02", "--span-bytes", str(SIZE_BYTES)]
DIGESTS = ["--header-digest", "--data-digest"]


@contextmanager
def floor(*arguments: str) -> Iterator[int]:
    argv = [sys.executable, "-m", "benchmarks.floor_storage", "--size-bytes", str(SIZE_BYTES), *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "floor.img"
    path.write_bytes(bytes(SIZE_BYTES))
    return str(path)


def check(capsys: pytest.CaptureFixture[str], port: int, load: list[str], in_bytes: int, out_bytes: int) -> None:
    generator.main(["--floor", "--port", str(port), *COMMON, *load])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert "error" not in result, result
    assert result["ios"] > 0
    slack = 2 * result["depth"]  # in flight at either end of the window
    assert abs(result["rx_bytes"] - result["ios"] * in_bytes) <= slack * in_bytes
    assert abs(result["tx_bytes"] - result["ios"] * out_bytes) <= slack * out_bytes


@pytest.mark.parametrize(
    ("load", "in_bytes", "out_bytes"),
    [
        (["--op", "read", *DIGESTS], 28 + 4096 + 4, 76),
        (["--op", "read", "--no-success", *DIGESTS], 28 + 4096 + 4 + 28, 76),
        (["--op", "write", *DIGESTS], 28, 76 + 4096 + 4),
        (["--op", "write", "--bs", "131072", "--depth", "8", *DIGESTS], 56, 76 + 28 + 131072 + 4),
    ],
)
def test_the_floor_with_digests_moves_the_right_bytes(
    capsys: pytest.CaptureFixture[str], load: list[str], in_bytes: int, out_bytes: int
) -> None:
    with floor("--digests") as port:
        check(capsys, port, load, in_bytes, out_bytes)


@pytest.mark.parametrize(
    ("load", "in_bytes", "out_bytes"),
    [
        (["--op", "read"], 24 + 4096, 72),
        (["--op", "read", "--no-success", "--bs", "131072", "--depth", "8"], 48 + 131072, 72),
        (["--op", "write"], 24, 72 + 4096),
        (["--op", "write", "--bs", "131072", "--depth", "8"], 48, 72 + 24 + 131072),
    ],
)
def test_the_floor_of_a_file_moves_the_right_bytes(
    capsys: pytest.CaptureFixture[str], image: str, load: list[str], in_bytes: int, out_bytes: int
) -> None:
    with floor("--file", image) as port:
        check(capsys, port, load, in_bytes, out_bytes)
    if "write" in load:
        assert any(Path(image).read_bytes())


@pytest.mark.parametrize(("op", "in_bytes", "out_bytes"), [("read", 24 + 4096, 72), ("write", 24, 72 + 4096)])
def test_the_floor_without_the_page_cache(
    capsys: pytest.CaptureFixture[str], image: str, op: str, in_bytes: int, out_bytes: int
) -> None:
    with floor("--file", image, "--direct") as port:
        check(capsys, port, ["--op", op], in_bytes, out_bytes)


def test_a_mix_is_parsed_and_an_invalid_one_is_explained() -> None:
    kinds = mixed.parse_mix("read:4096x7,fua:512@2")
    assert kinds == [mixed.Kind("read", 4096, 1, 7), mixed.Kind("fua", 512, 2, 1)]
    with pytest.raises(BenchmarkError, match="write OP:BYTES"):
        mixed.parse_mix("trim:4096")


@pytest.mark.skipif(native.build()[0] is None, reason="no C compiler: install gcc")
def test_a_mixed_load_counts_each_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    mix = "read:4096,write:4096,read:65536@2,write:65536@2,fua:8192"
    storage = ["--ramdisk", str(SIZE_BYTES), "--ramdisk", str(SIZE_BYTES)]
    with running_target("tcp", storage, None) as server:
        assert mixed.main(["--port", str(server.port), "--subnqn", SUBNQN, "--mix", mix, *COMMON]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["drained"] and result["ios"] > 0
    in_bytes = (24 + 4096) + 24 + (24 + 65536) + 48 + 24
    assert result["rx_bytes"] * 5 == pytest.approx(result["ios"] * in_bytes, abs=2 * 32 * 5 * 65560)


def test_each_row_has_its_own_name_and_its_floor() -> None:
    names = [row.name for row in rows.ROWS]
    assert len(set(names)) == len(names)
    floors = {row.name: row.floor for row in rows.ROWS}
    assert floors["write-4k-d32"] == "memory" and floors["write-4k-d32-digests"] == "digests"
    assert floors["file-xfs-write-4k-d32"] == "file" and floors["mix-70-30"] == ""


@pytest.mark.timing
def test_a_row_is_measured_with_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "SIZE_BYTES", SIZE_BYTES)
    row = next(row for row in rows.ROWS if row.name == "file-ext4-write-4k-d32")
    found = rows.measure(row, [Build("here", ROOT)], tmp_path, Cores(None, None), 1, 0.1)
    assert found["here"]["iops"] > 0 and found["floor"]["iops"] > 0
    assert found["iops_to_floor"] and found["iops_to_there"] is None
