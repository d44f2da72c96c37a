"""The isolation benchmark: its parts, and one very short run of the processes. No time is judged here."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import wireformat as w
from benchmarks.__main__ import main
from benchmarks.isolation.plan import BASELINE, MISBEHAVIOURS, SCENARIOS, misbehaving
from benchmarks.isolation.report import check_goals
from benchmarks.isolation.run import STREAMS, Figures, Threads, Watch, Window, _add, got, percentile, summarize
from benchmarks.isolation.wire import Stream, completes, failed, h2c_data
from benchmarks.session import BenchmarkError


def pdu(kind: int, flags: int = 0, payload: bytes = b"", status: int = 0) -> bytes:
    head = w.COMMON_HEADER.pack(kind, flags, 24, 24 if payload else 0, 24 + len(payload))
    return head + bytes(14) + struct.pack("<H", status) + payload


def test_stream_finds_pdus_whatever_the_pieces() -> None:
    sent = [pdu(w.C2H_DATA, w.LAST_PDU, b"x" * 5000), pdu(w.CAPSULE_RESP), pdu(w.C2H_DATA, w.SUCCESS, b"y" * 3)]
    whole = b"".join(sent)
    for size in (1, 7, 24, 1000, len(whole)):
        stream = Stream()
        heads = [head for at in range(0, len(whole), size) for head in stream.feed(whole[at : at + size])]
        assert heads == [each[:24] for each in sent]
    stream = Stream()
    assert not list(stream.feed(whole[:5023])), "a PDU of which a byte is missing"
    assert len(list(stream.feed(whole[5023:5024]))) == 1


def test_the_pdus_that_complete_a_command() -> None:
    assert not completes(pdu(w.C2H_DATA, w.LAST_PDU))
    assert completes(pdu(w.C2H_DATA, w.SUCCESS))
    assert completes(pdu(w.CAPSULE_RESP))
    assert failed(pdu(w.CAPSULE_RESP, status=0x4004))
    assert not failed(pdu(w.CAPSULE_RESP, status=1)), "the phase bit is no status"
    with pytest.raises(BenchmarkError, match="FES"):
        completes(pdu(w.C2H_TERM))


def test_an_r2t_is_answered_whole_in_pieces() -> None:
    r2t = w.COMMON_HEADER.pack(w.R2T, 0, 24, 0, 24) + struct.pack("<HHII4x", 7, 9, 0, 1000)
    payload = memoryview(bytes(range(250)) * 4)
    pieces = list(h2c_data(r2t, payload, 3))
    assert b"".join(bytes(part) for _, part in pieces) == payload
    assert [header[1] & w.LAST_PDU for header, _ in pieces] == [0, 0, w.LAST_PDU]
    assert [struct.unpack_from("<HHII", header, 8) for header, _ in pieces] == [
        (7, 9, 0, 333),
        (7, 9, 333, 333),
        (7, 9, 666, 334),
    ]


def test_scenarios() -> None:
    assert misbehaving(BASELINE) == set()
    assert misbehaving("all") == {each.number for each in MISBEHAVIOURS} == set(range(1, 8))
    assert [len(misbehaving(name)) for name in SCENARIOS] == [1] * 7 + [7]


def test_a_threads_wait_for_its_own_process_is_not_lost() -> None:
    before = Threads(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert got(before, Threads(1.0, 0.5, 0.1, 0.1, 0.3, 0.0)) == 1.0
    assert got(before, Threads(1.0, 0.5, 0.25, 0.0, 0.0, 0.0)) == pytest.approx(0.5 / 0.75)
    assert got(before, Threads(1.0, 0.9, 0.0, 0.0, 0.0, 0.1)) == pytest.approx(0.9)


def test_percentile() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([], 0.99) == 0.0


def figures_of(latencies: dict[str, list[list[float]]], dropped: bool) -> Figures:
    watch = Watch(0)
    watch.windows = [Window(0.0, 1.0, 0.5 if dropped else 1.0, 0.1), Window(1.0, 2.0, 1.0, 0.1)]
    figures = Figures()
    _add(figures, watch, {"realtime": True, **latencies}, [{} for _ in MISBEHAVIOURS], 0)
    return figures


def test_samples_of_dropped_seconds_do_not_count() -> None:
    samples = {name: [[0.5, 9000.0], [1.5, 100.0], [1.0005, 1000.0]] for name in STREAMS}
    kept = figures_of(samples, dropped=True)
    assert kept.latencies_us["file read"] == [100.0], "what reached into the dropped second is dropped too"
    assert sorted(figures_of(samples, dropped=False).latencies_us["file read"]) == [100.0, 1000.0, 9000.0]


def test_a_stall_is_never_dropped() -> None:
    stalled = figures_of({name: [[7.0, 6.5e6]] for name in STREAMS}, dropped=True)
    assert stalled.latencies_us["ramdisk read"] == [6.5e6]


@pytest.mark.parametrize(("latency", "reached"), [(299.0, True), (301.0, False)])
def test_goals(latency: float, reached: bool) -> None:
    baseline = figures_of({name: [[1.5, 100.0]] for name in STREAMS}, dropped=False)
    scenario = figures_of({name: [[1.5, latency]] for name in STREAMS}, dropped=False)
    row = {"build": "this", "scenario": "bytes"} | summarize(scenario, baseline)
    assert [goal["reached"] for goal in check_goals([row])] == [reached]
    assert not check_goals([row | {"build": "before"}])


@pytest.mark.timing
def test_one_short_run(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    arguments = ["--only", "isolation", "--case", "bytes", "--seconds", "2", "--pairs", "1", "--output", str(output)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    rows = json.loads(output.read_text())["isolation"]
    assert [row["scenario"] for row in rows] == [BASELINE, "bytes"]
    assert not any(row["errors"] for row in rows), rows
    offered = rows[1]["offered"][0]
    assert offered["bytes"]["segments"] > 100, "it misbehaves"
    assert offered["reads"]["commands"] > 10, "the others behave"
    assert not [name for name, counts in offered.items() if counts.get("error") or counts.get("failed")]
