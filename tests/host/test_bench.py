"""`bench`: mixes, sizes, rates, amounts, verifying, fio's JSON, histograms, curves and comparisons."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof import Ramdisk, Target, connect
from nvmeof.errors import ConfigurationError
from nvmeof.host.__main__ import main
from nvmeof.host.cli.bench import mix_of, sizes_of
from nvmeof.host.cli.bench_plot import curves
from nvmeof.host.cli.bench_result import at, comparison, histogram, histogram_lines, latency_json, load
from nvmeof.host.mixed_load import Mix, MixedLoad, VerifyError
from nvmeof.host.namespace import Namespace

from .blocking_target import serving


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with serving(Ramdisk("4M"), trtype="tcp") as found:
        yield found


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def url(target: Target) -> str:
    return f"nvme+tcp://127.0.0.1:{target.address.port}/{target.subnqn}"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("4k", [(4096, 1)]),
        ("4k-16k", [(4096, 1), (8192, 1), (16384, 1)]),
        ("4k-4k", [(4096, 1)]),
        ("3k-10k", [(3072, 1), (6144, 1), (10240, 1)]),
        ("4k/70:64k/30", [(4096, 70), (65536, 30)]),
    ],
)
def test_sizes(text: str, sizes: list[tuple[int, int]]) -> None:
    assert sizes_of(text) == sizes


@pytest.mark.parametrize("text", ["64k-4k", "0-4k", "4k/50", "4k/x:8k/50", "4k/0:8k/100"])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--block-size"):
        sizes_of(text)


def test_one_kind_of_command_needs_no_mix() -> None:
    options = {
        "rw": "randread", "block_size": "4k", "depth": 4, "rwmixread": 70, "size": None, "rate": None,
        "rate_iops": None, "verify": None,
    }  # fmt: skip
    assert mix_of(options) is None
    assert mix_of({**options, "rw": "write", "rate": 5}) == Mix(
        sizes=[(4096, 1)], read_percent=0, random=False, depth=4, bytes_per_second=5
    )
    mixed = mix_of({**options, "rw": "randrw"})
    assert mixed is not None and mixed.read_percent == 70


async def _load(target: Target, mix: Mix, seconds: float) -> MixedLoad:
    async with await connect(url(target)) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        found = MixedLoad(namespace, mix)
        found.start()
        found.open_window()
        await asyncio.wait([found.finished], timeout=seconds)
        found.close_window()
        found.stop()
        await found.finished
        if found.error is not None:
            raise found.error
        if mix.verify:
            await found.verify_written()
        return found


async def test_a_mix_has_both_kinds_and_all_sizes(target: Target) -> None:
    mix = Mix(sizes=[(512, 1), (4096, 1)], read_percent=50, depth=4, limit_bytes=300 * 2304)
    found = await _load(target, mix, 30)
    assert found.reads.ios > 50 < found.writes.ios
    for each in (found.reads, found.writes):
        assert 512 * each.ios < each.bytes < 4096 * each.ios
        assert len(each.latencies_ns) == each.ios and list(each.latencies_ns) == sorted(each.latencies_ns)
    assert mix.limit_bytes <= found.reads.bytes + found.writes.bytes <= mix.limit_bytes + 4 * 4096


async def test_a_rate_is_not_exceeded(target: Target) -> None:
    began = time.perf_counter()
    found = await _load(target, Mix(sizes=[(4096, 1)], depth=8, ios_per_second=200, limit_bytes=100 * 4096), 30)
    assert found.reads.ios >= 99 and time.perf_counter() - began > 0.4


async def test_data_is_verified(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = Mix(sizes=[(512, 1), (4096, 1)], read_percent=30, depth=8, limit_bytes=1 << 20, verify=True)
    found = await _load(target, mix, 30)
    assert found.verified > 50
    write = Namespace.write

    async def corrupt(self: Namespace, lba: int, data: memoryview, *, fua: bool = False) -> None:
        await write(self, lba, bytes([data[0] ^ 1]) + bytes(data[1:]), fua=fua)

    monkeypatch.setattr(Namespace, "write", corrupt)
    with pytest.raises(VerifyError, match="have CRC32C"):
        await _load(target, mix, 30)


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300))
def test_histograms_count_each_command_once(values: list[int]) -> None:
    ordered = sorted(values)
    classes = histogram(ordered)
    assert sum(number for _, _, number in classes) == len(ordered)
    assert classes[0][2] and classes[-1][2]
    for (low, high, _), (following, _, _) in pairwise(classes):
        assert low < high == following
    assert len(list(histogram_lines(ordered))) == len(classes)
    told = latency_json(ordered)
    assert (told["min"], told["max"], told["N"]) == (ordered[0], ordered[-1], len(ordered))
    assert told["percentile"]["50.000000"] == at(ordered, 0.5)


def test_json_has_fios_names_and_results_are_compared(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    for name, more in (("a", []), ("b", ["--rw", "randrw", "-b", "512-4k", "--write-anyway", "--verify", "crc32c"])):
        assert main(["bench", url(target), "--runtime", "0.3", "-d", "4", "-o", "json", *more]) == 0
        Path(f"{name}.json").write_text(capsys.readouterr().out)
    told = json.loads(Path("b.json").read_text())
    (job,) = told["jobs"]
    assert job["job options"]["bs"] == "512-4k" and told["verified"] > 0
    for each in (job["read"], job["write"]):
        assert each["io_bytes"] and each["total_ios"] == each["clat_ns"]["N"] > 0
        assert sum(each["clat_ns"]["bins"].values()) == each["total_ios"]
    assert main(["bench", "--compare", "a.json", "b.json"]) == 0
    text = capsys.readouterr().out
    assert "read IOPS" in text and "ratio" in text and "CPU us per I/O" in text
    rows = comparison(load("a.json"), load("a.json"))
    assert {each["ratio"] for each in rows} == {1.0}
    (name, points), *_ = curves(load("b.json"), "b")
    assert name == "b read" and points == sorted(points)


def test_plots(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    command = ["bench", url(target), "--runtime", "0.2", "-d", "4", "--histogram", "--plot"]
    assert main([*command, "lat.svg"]) == 0
    assert "read latencies:" in capsys.readouterr().out
    assert Path("lat.svg").read_text().lstrip().startswith("<?xml")
    assert main([*command, "lat.doc"]) == 2
    assert "end it with .svg or .png" in capsys.readouterr().err
    assert main([*command, "no/lat.svg"]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option"),
        (["--compare", "none", "none"], "none cannot be read"),
        (["--compare", "text", "text"], "no result of bench"),
        (["URL", "--rw", "randrw"], "give --write-anyway"),
        (["URL", "-b", "4k/50"], "the percentages must add up to 100"),
        (["URL", "-b", "many"], "is not a size"),
    ],
)
def test_invalid_options(arguments: list[str], words: str, target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text").write_text("{}")
    assert main(["bench", *(url(target) if each == "URL" else each for each in arguments)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
