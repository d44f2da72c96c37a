"""A short run of the benchmark of a connection's first MiB; no rate is judged here."""

from __future__ import annotations

import pytest

from benchmarks import start
from benchmarks.processes import Cores, mptcp_available

pytestmark = pytest.mark.timing


@pytest.mark.skipif(not mptcp_available(), reason="this kernel has no MPTCP")
def test_both_transports_and_directions_side_by_side() -> None:
    result = start.run(Cores(None, None), start.Plan(rounds=1, bare_rounds=1, steady_bytes=1 << 22, size_bytes=1 << 24))
    assert [(s["direction"], s["transport"]) for s in result["samples"]] == [
        ("read", "tcp"),
        ("read", "mptcp"),
        ("write", "tcp"),
        ("write", "mptcp"),
    ]
    for row in result["rows"]:
        for part in (*start.PARTS, "bare_steady", "bare_deep"):
            assert row[part]["ratio"] == pytest.approx(row[part]["mptcp"] / row[part]["tcp"])
    assert [goal["value"] for goal in start.goals(result)] == [
        row[part]["ratio"] for row in result["rows"] for part in start.PARTS
    ]
