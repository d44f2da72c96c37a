"""Runs of commands with equally long data in their capsules."""

from __future__ import annotations

import pytest

from nvmeof.protocol.events import CommandData, CommandDataRun, ProtocolFailure
from tests.events import one_by_one

from .wire import WRITE, Framing, commands, feed, ready_target

FRAMINGS = [Framing(), Framing(True, False, 12), Framing(False, True, 128), Framing(True, True, 12)]


def payload(cid: int, length: int) -> bytes:
    return bytes([cid + 1]) * length


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_run_has_each_command_with_its_data(framing: Framing) -> None:
    target = ready_target(framing)
    stream = b"".join(framing.command(cid, WRITE, data=payload(cid, 512)) for cid in range(6))
    stream += framing.command(6, WRITE, data=payload(6, 1024)) + framing.command(7)
    events = feed(target, stream)
    assert [type(event).__name__ for event in events] == ["CommandDataRun", "CommandData", "CommandBatch"]
    run = events[0]
    assert isinstance(run, CommandDataRun) and (run.count, run.length) == (6, 512)
    assert [bytes(data) for data in run.data()] == [payload(cid, 512) for cid in range(6)]
    single = [event for event in one_by_one(events) if isinstance(event, CommandData)]
    assert [bytes(event.data) for event in single] == [payload(cid, 512) for cid in range(6)] + [payload(6, 1024)]
    assert commands([*one_by_one(events)]) == list(range(8)) and target.in_flight == 8


def test_few_commands_are_no_run() -> None:
    framing = Framing()
    stream = b"".join(framing.command(cid, WRITE, data=bytes(512)) for cid in range(3))
    assert all(isinstance(event, CommandData) for event in feed(ready_target(framing), stream))


@pytest.mark.parametrize("wrong", [0, 2, 4])
def test_with_a_wrong_data_digest_among_them_they_are_no_run(wrong: int) -> None:
    framing = Framing(True, True)
    pdus = [bytearray(framing.command(cid, WRITE, data=payload(cid, 512))) for cid in range(5)]
    pdus[wrong][-1] ^= 1
    events = feed(ready_target(framing), b"".join(pdus))
    assert [event.digest_ok for event in events if isinstance(event, CommandData)] == [cid != wrong for cid in range(5)]


def test_commands_before_a_wrong_header_digest_are_served() -> None:
    framing = Framing(True, False)
    pdus = [bytearray(framing.command(cid, WRITE, data=payload(cid, 512))) for cid in range(6)]
    pdus[4][72] ^= 1
    events = feed(ready_target(framing), b"".join(pdus))
    assert isinstance(events[-1], ProtocolFailure)
    assert commands([*one_by_one(events)]) == [0, 1, 2, 3]


def test_no_more_than_the_queue_holds() -> None:
    framing, target = Framing(), ready_target(Framing())
    target.entries = 5
    events = feed(target, b"".join(framing.command(cid, WRITE, data=bytes(64)) for cid in range(6)))
    assert isinstance(events[0], CommandDataRun) and events[0].count == 5
    assert isinstance(events[-1], ProtocolFailure)
