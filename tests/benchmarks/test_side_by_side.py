"""The side-by-side command and the scripted host: short runs, whose counts must be consistent. No time is judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import instructions, side_by_side
from benchmarks.side_by_side import QUEUES_EACH, Side

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = """
from benchmarks.driven_target import CASES, COMMANDS, FILE_CASES, DrivenTarget
target = DrivenTarget()
for case in CASES + FILE_CASES:
    once = target.case(case)
    assert once() == once() == COMMANDS
target.close()
"""


def test_a_side_counts_per_io_and_weights_longer_runs() -> None:
    side = Side()
    side.add(1.0, 0.5, 1_000_000)
    side.add(6.0, 3.0, 3_000_000)
    assert side.user == [1.0, 2.0] and side.both == [1.5, 3.0]
    assert side.pooled == pytest.approx(7 / 4)


def test_a_figure_above_its_goal_is_reported_and_sets_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert side_by_side._judge([("a", 1.05), ("b", 1.051)], 1.05) == 2
    assert capsys.readouterr().out == "above 1.05: b: 1.051\n"
    assert side_by_side._judge([("a", 1.05)], 1.05) == 0


def test_every_case_of_the_scripted_host_ends_all_of_its_commands() -> None:
    """Run in another process, since it registers a transport."""
    done = subprocess.run([sys.executable, "-c", ROUNDS], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.timing
def test_idle_connections_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["idle", "--against", str(ROOT), "--rounds", "1", "--transport", "tcp"]
    code = side_by_side.main([*arguments, "--connections", str(2 * (1 + QUEUES_EACH))])
    figures = capsys.readouterr().out.splitlines()[1].split()
    assert code in (0, 2) and figures[:3] == ["tcp,", "32", "connections"]
    assert 10 < float(figures[4]) < 1000 and 10 < float(figures[5]) < 1000


@pytest.mark.timing
def test_the_host_is_measured_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert side_by_side.main(["host", "--against", str(ROOT), "--rounds", "1", "--seconds", "0.1"]) in (0, 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:9]] == [
        f"{way}-{op}-{size >> 10}k-d{depth}"
        for way in ("awaitable", "bench")
        for op, size, depth in side_by_side.HOST_CASES
    ]


def test_a_checkout_without_a_target_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nvmeof").mkdir()
    (tmp_path / "nvmeof" / "__init__.py").touch()
    assert side_by_side.main(["idle", "--against", str(tmp_path), "--rounds", "1", "--transport", "tcp"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


PROFILE = """\
version: 1
positions: line
events: Ir
fn=(1) run
10 100
+2 20
cfi=(2) memmove.S
cfn=(2) __memcpy_avx_unaligned_erms
calls=3 0
* 5000
-1 3
fn=(2)
7 4000
9 1000
fn=(1)
cfn=(3) memory_item
calls=1 7
12 50
fn=(3)
1 40
totals: 5163
"""


def test_instructions_that_copy_memory_are_left_out() -> None:
    assert instructions._without_copies(PROFILE) == 100 + 20 + 3 + 40
