"""NVMe over shaped links in network namespaces: all links are used, no byte is lost when one is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mptcp import lab

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.timing


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    reason = lab.missing()
    if reason:
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.mptcp.scenario"],
        cwd=ROOT, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert "error" not in found, found
    return found


def test_four_paths_carry_more_than_two_and_a_half_times_one(measured: dict[str, Any]) -> None:
    assert measured["mptcp"]["protocols"] == ["mptcp"]
    assert measured["tcp"]["protocols"] == ["tcp"]
    assert measured["mptcp"]["mb_per_s"] > 2.5 * measured["tcp"]["mb_per_s"], measured


def test_every_link_carries_its_part(measured: dict[str, Any]) -> None:
    carried = measured["mptcp"]["link_mb"]
    assert len(carried) == 4
    assert min(carried) > 0.1 * sum(carried), carried
    assert measured["tcp"]["link_mb"][1:] == pytest.approx([0, 0, 0], abs=0.1)


def test_links_have_their_rate(measured: dict[str, Any]) -> None:
    assert 3 < measured["tcp"]["mb_per_s"] < 7, "50 Mbit/s are 6.25 MB/s raw"
    assert measured["bare"] < 4 * 6.25 * 1.15


def test_both_sides_use_the_stated_congestion_control(measured: dict[str, Any]) -> None:
    assert measured["mptcp"]["congestion"] == measured["tcp"]["congestion"] == [measured["congestion"]]


def test_a_cut_link_costs_no_byte(measured: dict[str, Any]) -> None:
    verify = measured["verify"]
    assert verify["lost_bytes"] == 0
    assert verify["errors"] == []
    assert len(verify["times"]) > 4
