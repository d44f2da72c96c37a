"""Isolation: what seven misbehaving hosts take from the eighth one's latencies. See benchmarks/README.md."""

from __future__ import annotations

from benchmarks.isolation.plan import BASELINE, SCENARIOS, Plan
from benchmarks.isolation.report import check_goals, print_results
from benchmarks.isolation.run import Build, run, this_build

__all__ = ["BASELINE", "QUICK", "SCENARIOS", "Build", "Plan", "check_goals", "print_results", "run", "this_build"]

QUICK = Plan(seconds=3.0, rounds=1)
