"""Short runs of every part: the figures exist and their counts are consistent. No time is judged here."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import codec, connection, floor, generator, loopback, native, procstat
from benchmarks.__main__ import main
from benchmarks.cases import GOALS, Case, full_grid, quick_grid
from benchmarks.loopback import Side, is_quiet

pytestmark = pytest.mark.timing
SIZE_BYTES = 1 << 22
COMMON = ["--wait", "poll", "--seconds", "0.1", "--warmup", "0.02", "--span-bytes", str(SIZE_BYTES)]


def test_codec() -> None:
    results = codec.run(quick=True)
    assert {r["name"] for r in results} >= {"SQE parse", "SQE build", "CQE parse", "C2HData build"}
    for r in results:
        assert r["construct_ns"] > r["derived_ns"] > 0, r
        assert r["struct_ns"] > 0


def test_connection() -> None:
    results = {r["name"]: r for r in connection.run(quick=True)}
    assert results["commands in"]["sent_bytes_per_batch"] == 0
    assert results["commands in, data out in batches"]["sent_bytes_per_batch"] == 32 * (24 + 4096)
    assert results["commands in, data and responses out in batches"]["sent_bytes_per_batch"] == 32 * (48 + 4096)
    assert results["commands in, data out one by one, digests"]["sent_bytes_per_batch"] == 32 * (28 + 4096 + 4)
    assert results["the target's queue behind it, data out"]["sent_bytes_per_batch"] == 32 * (24 + 4096)
    assert results["the target's queue behind it, in-capsule writes"]["sent_bytes_per_batch"] == 32 * 24
    assert results["the target's queue behind it, in-capsule writes, digests"]["sent_bytes_per_batch"] == 32 * 28
    assert all(r["best_ns"] > 0 for r in results.values())


@pytest.fixture
def floor_port() -> Iterator[int]:
    """Serve one connection by a floor server in a thread; return its port."""
    memory = memoryview(floor.make_memory(SIZE_BYTES))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                floor.handle(sock, memory)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def generate(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    generator.main(list(arguments))
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize("engine", ["c", "python"])
@pytest.mark.parametrize(
    ("arguments", "in_bytes", "out_bytes"),
    [
        (["--op", "read"], 24 + 4096, 72),
        (["--op", "read", "--no-success"], 48 + 4096, 72),
        (["--op", "read", "--header-digest", "--data-digest"], 28 + 4096 + 4, 76),
        (["--op", "write"], 24, 72 + 4096),
        (["--op", "write", "--bs", "131072", "--depth", "8"], 48, 72 + 24 + 131072),
        (["--op", "write", "--bs", "131072", "--header-digest", "--data-digest"], 56, 76 + 28 + 131072 + 4),
    ],
)
def test_the_generator_moves_the_right_bytes(
    floor_port: int,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    arguments: list[str],
    in_bytes: int,
    out_bytes: int,
) -> None:
    if engine == "c" and native.build()[0] is None:
        pytest.skip("no C compiler")
    result = generate(capsys, "--floor", "--port", str(floor_port), "--engine", engine, *COMMON, *arguments)
    assert "error" not in result, result
    assert result["engine"] == engine
    assert result["ios"] > 0
    # commands in flight at either end of the window may be counted on one side only
    slack = 2 * result["depth"]
    assert abs(result["rx_bytes"] - result["ios"] * in_bytes) <= slack * in_bytes
    assert abs(result["tx_bytes"] - result["ios"] * out_bytes) <= slack * out_bytes
    assert result["p99_us"] >= result["p50_us"] > 0


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"", "closed the connection"),
        (struct.pack("<BBBBI", 3, 0, 24, 0, 24) + struct.pack("<HI10x", 2, 4), "FES 2, FEI 4"),
        (struct.pack("<BBBBI", 7, 0, 24, 24, 24) + bytes(16), "PDU type 7"),
    ],
)
def test_a_target_that_misbehaves_is_a_sentence(
    capsys: pytest.CaptureFixture[str], answer: bytes, sentence: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(128, socket.MSG_WAITALL)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        result = generate(capsys, "--port", str(listener.getsockname()[1]), "--subnqn", "nqn.2026-01.x:y", *COMMON)
        thread.join(10)
    assert sentence in result["error"]


def test_a_port_without_a_listener(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        result = generate(capsys, "--port", str(port), "--subnqn", "nqn.2026-01.x:y", *COMMON)
    assert "cannot connect" in result["error"]


def test_loopback_against_the_target(tmp_path: Path) -> None:
    """Measure the real target process for 0.2 s through the command line."""
    output = tmp_path / "result.json"
    arguments = ["--quick", "--only", "loopback", "--case", "tcp-read-4k-d32", "--seconds", "0.2", "--pairs", "1"]
    arguments += ["--size-mib", "8", "--wait", "poll", "--output", str(output)]
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 0, outcome.output
    report = json.loads(output.read_text())
    assert report["environment"]["kernel"]
    assert report["environment"]["loop"]
    (case,) = report["loopback"]
    assert case["name"] == "tcp-read-4k-d32"
    assert case["protocol"] == "tcp"
    assert case["success_flag"] is True, "flow control was off: no response PDU should follow the data"
    assert (case["header_digest"], case["data_digest"], case["depth"]) == (False, False, 32)
    for side in ("target", "floor"):
        figures = case[side]
        assert figures["iops"] > 0
        assert figures["mb_per_s"] == pytest.approx(figures["iops"] * 4096 / 1e6, rel=0.01)
        assert figures["p99_us"] >= figures["p50_us"] > 0
        assert figures["cpu_us"] == pytest.approx(figures["user_us"] + figures["system_us"])
        assert figures["samples"] + figures["dropped"] == len(case["samples"][side])
    assert case["iops_ratio"] == pytest.approx(case["target"]["iops"] / case["floor"]["iops"])
    assert {goal["goal"][:23] for goal in report["goals"]} == {"4 KiB random read, dept"}


def test_profile() -> None:
    outcome = CliRunner().invoke(main, ["profile", "--seconds", "0.5", "--lines", "5"])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.startswith("tcp-read-4k-d32: ")
    assert "samples; share, place, line:" in outcome.output
    outcome = CliRunner().invoke(main, ["profile", "--case", "nonsense"])
    assert outcome.exit_code == 1
    assert "there is no case 'nonsense'" in outcome.output


def test_goals_are_cases_of_both_grids() -> None:
    quick, full = quick_grid(), full_grid()
    for goal in GOALS:
        assert goal.case in quick
        assert goal.case in full
    assert len({case.name for case in full}) == len(full)


def sample(got: float = 1.0, steal: float = 0.0, ios: int = 1000) -> dict[str, Any]:
    cpu = {"got": got, "user": 0.5, "system": 0.5}
    generator_cpu = {"got": 1.0}
    return {
        "server_cpu": cpu,
        "generator_cpu": generator_cpu,
        "steal_seconds": steal,
        "elapsed_seconds": 1.0,
        "ios": ios,
    }


def test_noisy_samples_are_dropped() -> None:
    assert is_quiet(sample())
    assert not is_quiet(sample(got=0.89))
    assert not is_quiet(sample(steal=0.2))
    side = Side()
    side.add(sample(got=0.5))
    assert side.usable == side.samples, "without a quiet one, all that there is"
    side.add(sample())
    assert side.usable == side.quiet == [sample()]
    side.add(sample(ios=700))
    assert side.usable == [sample()], "the same work cost much more CPU time: the machine was slow"
    side.add(sample(ios=900))
    assert len(side.usable) == 2


def test_cpu_share() -> None:
    before = procstat.CpuReading(10.0, 100, 200, 5.0, 1.0)
    after = procstat.CpuReading(11.0, 125, 275, 5.9, 1.1)
    use = procstat.cpu_between(before, after)
    assert use.user == pytest.approx(0.225)
    assert use.system == pytest.approx(0.675)
    assert use.busy == pytest.approx(0.9)
    assert use.got == pytest.approx(0.9)


def test_goal_verdicts() -> None:
    result = {"name": Case("read", 4096, 32).name, "target_user_us": 1.3, "iops_ratio": 0.5, "noisy": False}
    verdicts = {goal["goal"]: goal["reached"] for goal in loopback.check_goals([result])}
    assert verdicts == {GOALS[0].text: False, GOALS[1].text: True}


def test_compare(tmp_path: Path) -> None:
    for name, ns in (("a.json", 100.0), ("b.json", 150.0)):
        (tmp_path / name).write_text(json.dumps({"connection": [{"name": "commands in", "best_ns": ns}]}))
    outcome = CliRunner().invoke(main, ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert outcome.exit_code == 0
    assert "1.50" in outcome.output
    (tmp_path / "b.json").write_text("[1]")
    outcome = CliRunner().invoke(main, ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert outcome.exit_code == 1
    assert "is no result of these benchmarks" in outcome.output
    assert "Traceback" not in outcome.output
