"""The experiments' arithmetic, the load and the reports, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.mptcp import (
    aggregation,
    failover,
    filecopy,
    foreign,
    lab,
    loss,
    multipath,
    multipath_failover,
    publish,
    selftest,
    sender,
    unequal,
)
from benchmarks.mptcp.__main__ import FULL, IN_GUEST, MODULES, QUICK, main
from benchmarks.mptcp.load import Verifier
from nvmeof.errors import NvmeofError

MODULE_LIST = (aggregation, selftest, filecopy, loss, failover, unequal, foreign, multipath, multipath_failover)


def test_longest_pause() -> None:
    assert failover.longest_pause([0.5, 0.6, 2.0], 2.5) == pytest.approx((1.4, 0.6))
    assert failover.longest_pause([], 3.0) == (3.0, 0.0)
    assert failover.longest_pause([-1.0, 1.0, 9.0], 2.0) == pytest.approx((1.0, 0.0))


def test_time_until_a_restored_link_carries_again() -> None:
    per_sample = failover.RATE_MBIT / 8 * 1e6 * 0.1
    busy = [0, 1, 2, 2, 2, 2, 2.05, 3, 4, 5]
    samples = [(index / 10, [int(step * per_sample), 0]) for index, step in enumerate(busy)]
    events = [(0.2, "cut", 1), (0.4, "restored", 1), (0.4, "restored", 2)]
    assert failover.again(events, samples, ()) == [pytest.approx(0.3), None]
    assert failover.again(events, samples, (2,)) == [pytest.approx(0.3)]
    assert failover._worst([0.3, None]) == "0.30 (1 of 2 never)"
    assert failover._worst([]) == "-"


def test_rate_after_a_link_is_back() -> None:
    """Each link's own cut counts, cuts at one time are one, and a window ends at the next event."""
    events = [(4.0, "cut", 1), (8.0, "restored", 1), (12.0, "cut", 2), (16.0, "restored", 2)]
    times = [*spread(0, 4, 40), *spread(8, 12, 20), *spread(16, 25, 90)]
    assert failover._after(events, times, 30.0) == [pytest.approx(0.5, abs=0.05), pytest.approx(2.0, abs=0.15)]
    events = [(4.0, "cut", 1), (4.1, "cut", 2), (7.0, "restored", 1), (7.1, "restored", 2)]
    assert failover._after(events, [*spread(0, 4, 40), *spread(7, 20, 130)], 20.0) == [
        pytest.approx(1.0, abs=0.05),
        pytest.approx(1.0, abs=0.05),
    ]


def spread(early: float, late: float, count: int) -> list[float]:
    return [early + (late - early) * index / count for index in range(count)]


def failover_row(keeper: bool, megabytes: float, after: float, **values: Any) -> dict[str, Any]:
    row = {"scenario": "one after another", "keeper": keeper, "megabytes": megabytes, "longest_pause_seconds": 1.0,
           "lost_bytes": 0, "errors": [], "dropped_by_kernel": 1, "again_seconds": [0.1], "after_share": [1.0, after],
           "most_subflows": 4, "samples": [], "events": []}  # fmt: skip
    return row | values


def test_several_runs_are_reported_as_medians_and_worst_cases() -> None:
    several = [failover_row(True, megabytes, megabytes / 100) for megabytes in (90.0, 70.0, 80.0)]
    several[1]["most_subflows"], several[1]["longest_pause_seconds"] = 5, 2.5
    row = failover._together(several)
    assert (row["megabytes"], row["after_share"], row["dropped_by_kernel"]) == (80.0, 0.8, 3)
    assert (row["most_subflows"], row["longest_pause_seconds"], row["worst_pause_seconds"]) == (5, 1.0, 2.5)
    assert len(row["runs"]) == 3
    assert "samples" not in row["runs"][0]


def test_a_path_keeper_that_costs_throughput_misses_its_goals() -> None:
    alone = failover._together([failover_row(False, 100.0, 1.0)])
    cases = ((97.0, 0.8, 4, 0), (96.0, 0.8, 4, 1), (97.0, 0.7, 4, 1), (97.0, 0.8, 5, 1))
    for megabytes, after, subflows, missed in cases:
        kept = failover._together([failover_row(True, megabytes, after, most_subflows=subflows)])
        goals = failover.goals({"rows": [alone, kept]})
        assert sum(not goal["reached"] for goal in goals) == missed


class Memory:
    """The part of a namespace that the verifier needs; `broken`: the slot of which each read has one bit flipped."""

    block_bytes = 512

    def __init__(self, broken: int | None = None, failing: bool = False) -> None:
        self.blocks: dict[int, bytes] = {}
        self.broken, self.failing = broken, failing
        self.writes = 0

    async def write(self, block: int, data: bytes) -> None:
        self.writes += 1
        if self.failing:
            raise NvmeofError("no")
        self.blocks[block] = data

    async def read(self, block: int, blocks: int) -> bytes:
        data = self.blocks[block]
        assert len(data) == blocks * 512
        return bytes([data[0] ^ 1]) + data[1:] if block == self.broken else data


async def verify(memory: Memory) -> Verifier:
    verifier = Verifier(memory, 4096, 2, 3)  # type: ignore[arg-type]
    write = memory.write

    async def write_and_end(block: int, data: bytes) -> None:
        if memory.writes > 20:
            verifier.running = False
        await write(block, data)

    memory.write = write_and_end  # type: ignore[method-assign]
    await verifier.run(5.0)
    return verifier


async def test_the_verifier_accepts_right_data() -> None:
    verifier = await verify(Memory())
    assert verifier.errors == [] and verifier.lost_bytes == 0
    assert len(verifier.times) > 20


async def test_the_verifier_finds_a_wrong_byte() -> None:
    verifier = await verify(Memory(broken=8))
    assert verifier.lost_bytes >= 1
    assert not verifier.errors


async def test_the_verifier_counts_failed_commands() -> None:
    verifier = await verify(Memory(failing=True))
    assert set(verifier.errors) == {"no"}
    assert not verifier.times


def test_contents_differ_by_slot_and_generation() -> None:
    verifier = Verifier(Memory(), 4096, 1, 1)  # type: ignore[arg-type]
    seen = {verifier.contents(slot, generation) for slot in range(8) for generation in range(8)}
    assert len(seen) == 64
    assert {len(each) for each in seen} == {4096}


def test_links_in_words() -> None:
    assert lab.describe([lab.Link(100)] * 4) == "4 x 100 Mbit/s"
    assert lab.describe([lab.Link(20, 5, 0.005)]) == "1 x 20 Mbit/s, 5 ms each way, 0.5 % loss"


def test_an_unavailable_congestion_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "congestion_controls", lambda: ["reno"])
    assert lab.choose_congestion(None) == "reno"
    with pytest.raises(lab.LabError, match="cubic is not available; reno are"):
        lab.choose_congestion("cubic")


def test_published_figures() -> None:
    assert list(aggregation.PUBLISHED.values()) == [11.08, 22.32, 33.24, 43.39, 54.46, 65.63, 73.14, 88.25]
    assert loss.PUBLISHED["mptcp", 0.005] == (428, 431)
    assert filecopy.PUBLISHED["mptcp"] == (88.25, 14.35)


def test_experiments_have_names_and_forms() -> None:
    assert set(MODULES) == {module.NAME for module in MODULE_LIST}
    assert set(QUICK) <= set(FULL)
    assert not set(QUICK) & set(IN_GUEST), "the short form needs no virtual machine"
    assert set(IN_GUEST.values()) <= set(MODULES)


def aggregation_result() -> dict[str, Any]:
    rows = []
    for transport in ("mptcp", "tcp"):
        for paths in (1, 2, 8):
            rate = 11.7 * (paths if transport == "mptcp" else 1)
            rows.append({
                "paths": paths, "transport": transport, "read": rate, "write": rate * 0.9, "bare_read": rate,
                "bare_write": rate, "subflows": [paths], "link_mb": [1.0] * paths, "dropped_by_kernel": 0,
                "runs": {"read": [rate], "write": [rate]},
            })  # fmt: skip
    result = {"links": "8 x 100 Mbit/s", "depth": 64, "rows": rows, "title": aggregation.TITLE, "seconds": 1,
              "expected": "x", "congestion_control": "cubic", "quick": True,
              "environment": {"kernel": "6.1", "python": "CPython 3.11", "cpus": 2}}  # fmt: skip
    return result | {"seen": aggregation.seen(result), "goals": aggregation.goals(result)}


def test_goals_of_the_aggregation() -> None:
    goals = {goal["goal"]: goal["reached"] for goal in aggregation_result()["goals"]}
    assert goals["8 paths, read: share of 8 x one path at least 0.88"]
    assert goals["8 paths, write: share of 8 x one path at least 0.88"], "of one path's own rate"
    assert goals["8 paths, read: share of the bare sender at least 0.95"]
    assert not goals["8 paths, write: share of the bare sender at least 0.95"]


def test_the_output_of_an_experiment(tmp_path: Path) -> None:
    result = aggregation_result()
    publish.keep(aggregation, result, tmp_path, "aggregation")
    assert json.loads((tmp_path / "aggregation.json").read_text())["rows"] == result["rows"]
    text = (tmp_path / "aggregation.md").read_text()
    assert "![Bandwidth over 1 to 8 paths of 100 Mbit/s](aggregation.png)" in text
    assert "88.25" in text and "**Expected.**" in text and "**Seen.**" in text


def test_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png, svg = publish.draw(aggregation, aggregation_result(), tmp_path, "aggregation")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "published" in svg.read_text()


def test_unknown_experiment() -> None:
    outcome = CliRunner().invoke(main, ["nonsense"])
    assert outcome.exit_code == 1
    assert "there is no experiment 'nonsense'" in outcome.output


def test_the_bare_sender_counts_the_bytes_of_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.1, 0.6, 0.7, 0.8, 1.7])
    monkeypatch.setattr(sender, "time", SimpleNamespace(monotonic=lambda: next(now)))
    source = SimpleNamespace(recv_into=lambda buffer: 1000)
    total, seconds = sender.count(source, 0.5, 1.0)  # type: ignore[arg-type]
    assert (total, seconds) == (3000, pytest.approx(1.1))
