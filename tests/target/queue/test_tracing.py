"""The events of a target's queue: each step of each command once, batches together, and counts that add up."""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.target.queue.pacing import HOLD_BYTES
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.trace import (
    BackendCalled,
    CommandAdmitted,
    CommandCompleted,
    CommandEvent,
    Counts,
    Event,
    PdusMoved,
    join,
)
from tests.conformance.rawhost import C2H, FLUSH, IN_CAPSULE, R2T, READ, RESPONSE, WRITE, io_sqe, make_sqe
from tests.protocol.wire import sent, split
from tests.target.backend_tools import AsyncDriver, Hidden
from tests.target.harness import HOST, NQN, Target, controller_of
from tests.target.queue.queue_wire import BATCHES, CHANGES, Wire, change, r2ts, two_namespaces
from tests.target.queue.test_aborts import drained

E = TypeVar("E", bound=CommandEvent)
COMMAND, H2C, FABRICS = 4, 6, 0x7F
COMPARE = 0x05
OK, CONFLICT, RANGE = 0, 0x03, 0x80


class Events(list[Event]):
    """A listener that records events."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self if isinstance(event, kind)]

    def steps(self) -> list[tuple[str, list[int]]]:
        """Return name and CIDs of the events about commands, and clear the events."""
        found = [(type(event).__name__, list(event.cids)) for event in self if isinstance(event, CommandEvent)]
        self.clear()
        return found


def traced(target: Target | None = None, **options) -> tuple[Wire, Events]:
    if target is None:
        target = Target(Ramdisk("1M"))
        target.admin()
    events = Events()
    wire = Wire(target, trace=events, **options)
    return wire, events


def three(cids: list[int]) -> list[tuple[str, list[int]]]:
    return [(name, cids) for name in ("CommandAdmitted", "BackendCalled", "CommandCompleted")]


def test_connect_names_the_queue():
    wire, events = traced()
    [queue] = {event.queue for event in events}
    controller = controller_of(wire.queue.ctx)
    assert (queue.peer, queue.qid, queue.cntlid) == ("host", 1, controller.cntlid)
    assert (queue.subnqn, queue.hostnqn) == (NQN, HOST)
    [admitted], [completed] = events.of(CommandAdmitted), events.of(CommandCompleted)
    assert (admitted.opcode, admitted.fctype, admitted.nsid, admitted.data_bytes) == (FABRICS, 1, 0, 1024)
    assert (completed.opcode, completed.fctype, completed.status) == (FABRICS, 1, OK)
    assert not events.of(BackendCalled), "a Fabrics command has no backend"


@pytest.mark.parametrize("cattr", [0, 4])
@pytest.mark.parametrize("digest", [0, 3])
def test_a_run_of_reads_is_reported_once(cattr, digest):
    wire, events = traced(dgst=digest, cattr=cattr)
    wire.feed(wire.capsule(io_sqe(0, READ, 0, 8)))
    assert events.of(CommandAdmitted)[-1].cids == (0,)
    events.clear()
    out = wire.feed(b"".join(wire.capsule(io_sqe(cid, READ, cid, 8)) for cid in range(1, 31)))
    moved = [event for event in events if isinstance(event, PdusMoved)]
    assert [(event.sent, event.counts) for event in moved] == [
        (False, {COMMAND: 30}),
        (True, dict(Counter(pdu[0] for pdu in split(out)))),
    ]
    assert sum(event.size_bytes for event in moved if event.sent) == len(out)
    for event in events.of(CommandEvent):
        assert (event.opcode, event.nsid, event.data_bytes, event.count) == (READ, 1, 4096, 30)
    [completed] = events.of(CommandCompleted)
    assert (completed.status, completed.seconds) == (OK, 0.0)
    assert events.steps() == three(list(range(1, 31)))


def test_a_run_of_writes_in_capsules_is_reported_once():
    wire, events = traced()
    write = [wire.capsule(io_sqe(cid, WRITE, cid, 1, sgl=IN_CAPSULE), bytes(512)) for cid in range(12)]
    wire.feed(write[0])
    assert events.steps()[2:] == three([0])
    wire.feed(b"".join(write[1:]))
    assert events.steps() == three(list(range(1, 12)))


@pytest.mark.parametrize("blocks", [8, 256])
def test_writes_with_r2ts_are_timed(blocks):
    """Staged, and straight to the memory; the first takes the general path, the second the fast path."""
    wire, events = traced()
    events.clear()
    for cid in (5, 6):
        wire.target.runtime.time = 10.0
        out = wire.feed(wire.capsule(io_sqe(cid, WRITE, 0, blocks)))
        assert events.steps() == [("CommandAdmitted", [cid])]
        wire.target.runtime.time = 12.5
        [(_, ttag, length)] = r2ts(out)
        wire.feed(wire.h2c(cid, ttag, 0, bytes(length)))
        [called], [completed] = events.of(BackendCalled), events.of(CommandCompleted)
        assert called.at == completed.at == 12.5
        assert (completed.seconds, completed.status, completed.data_bytes) == (2.5, OK, blocks * 512)
        assert events.steps() == [("BackendCalled", [cid]), ("CommandCompleted", [cid])]


def test_a_refused_command_is_only_completed():
    wire, events = traced()
    events.clear()
    wire.feed(wire.capsule(io_sqe(3, READ, 2048, 1)))
    [completed] = events.of(CommandCompleted)
    assert (completed.status, completed.seconds, completed.opcode) == (RANGE, 0.0, READ)
    assert events.steps() == [("CommandCompleted", [3])]


def test_a_cid_in_use_leaves_the_other_command_its_time():
    wire, events = traced()
    wire.target.runtime.time = 1.0
    [(_, ttag, _)] = r2ts(wire.feed(wire.capsule(io_sqe(3, WRITE, 0, 1))))
    events.clear()
    wire.target.runtime.time = 2.0
    wire.feed(wire.capsule(make_sqe(3, FLUSH, nsid=1)))
    wire.target.runtime.time = 4.0
    wire.feed(wire.h2c(3, ttag, 0, bytes(512)))
    assert [(each.opcode, each.status, each.seconds) for each in events.of(CommandCompleted)] == [
        (FLUSH, CONFLICT, 0.0),
        (WRITE, OK, 3.0),
    ]


def test_a_waiting_command_is_admitted_once_and_its_time_counts_from_its_arrival():
    """Reads wait until the host has received others, and commands are held behind them."""
    target = Target(Hidden("8M"))
    target.admin()
    wire, events = traced(target)
    events.clear()
    size = 1 << 20
    commands = b"".join(wire.capsule(io_sqe(cid, READ, 0, size // 512)) for cid in range(HOLD_BYTES // size + 4))
    count = len(commands) // 72
    target.runtime.time = 1.0
    buffer = wire.connection.next_buffer()
    buffer[: len(commands)] = commands
    wire.queue.handle(wire.connection.bytes_received(len(commands), 0.0), 0.0)
    assert len(events.of(CommandCompleted)) < count
    target.runtime.time = 3.0
    while wire.connection.want_write:
        sent(wire.connection, 1 << 20)
        wire.queue.resume()
    completed = events.of(CommandCompleted)
    assert Counter(cid for event in events.of(CommandAdmitted) for cid in event.cids) == dict.fromkeys(range(count), 1)
    assert Counter(cid for event in completed for cid in event.cids) == dict.fromkeys(range(count), 1)
    assert {event.seconds for event in completed} == {0.0, 2.0}


async def test_a_command_that_does_not_complete_at_once(tmp_path):
    class Later(Hidden):
        async def _flush(self):
            target.runtime.time = 7.0

        def flush(self):
            return self._flush()

    target = Target(Later("1M"))
    target.admin()
    wire, events = traced(target)
    wire.driver = wire.queue.driver = AsyncDriver()
    events.clear()
    target.runtime.time = 4.0
    wire.feed(wire.capsule(make_sqe(3, FLUSH, nsid=1)))
    assert [name for name, _ in events.steps()] == ["CommandAdmitted", "BackendCalled"]
    await drained(wire)
    [completed] = events.of(CommandCompleted)
    assert (completed.cids, completed.seconds) == ((3,), 3.0)


def test_a_fused_pair_is_one_call_of_the_backend():
    wire, events = traced()
    events.clear()
    halves = [(1, COMPARE, 0x41), (2, WRITE, 0x42)]
    for cid, opcode, flags in halves:
        wire.feed(wire.capsule(io_sqe(cid, opcode, 0, 1, flags=flags, sgl=IN_CAPSULE), bytes(512)))
    assert events.steps() == [
        ("CommandAdmitted", [1]),
        ("CommandAdmitted", [2]),
        ("BackendCalled", [1, 2]),
        ("CommandCompleted", [1]),
        ("CommandCompleted", [2]),
    ]


def test_the_end_reports_unfinished_commands():
    wire, events = traced()
    wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 0, 1)) for cid in range(3)))
    wire.queue.trace.ended("the test is over")
    assert (events[-1].reason, events[-1].unfinished) == ("the test is over", 3)


@settings(max_examples=120, deadline=None)
@given(
    batches=BATCHES,
    changes=st.lists(CHANGES, min_size=4, max_size=4),
    dgst=st.integers(0, 3),
    cattr=st.sampled_from([0, 4]),
    size=st.sampled_from([1 << 30, 1000, 72]),
    hidden=st.booleans(),
)
def test_counts_add_up_to_the_commands(batches, changes, dgst, cattr, size, hidden):
    """Commands of every kind, legal and not, with changes between them, in any cuts of the stream."""
    counts, events = Counts(), Events()
    target = Target(*(Hidden(each) for each in (32768, 65536))) if hidden else two_namespaces()
    if hidden:
        target.admin()
    wire = Wire(target, dgst=dgst, cattr=cattr, trace=join(counts, events))
    commands, answers, data_pdus = Counter({FABRICS: 1}), Counter(), 0
    moved_in, moved_out = counts.received_bytes, counts.sent_bytes
    connects = counts.pdus_sent.copy()
    open_r2ts: list[tuple[int, int, int]] = []
    for batch, what in zip(batches, changes, strict=False):
        fed = b"".join(command.bytes(wire) for command in batch)
        moved_in += len(fed)
        commands.update(command.opcode for command in batch)
        out = wire.feed(fed, size)
        if not hidden:
            change(target, what)
        open_r2ts += r2ts(out)
        while len(open_r2ts) > 1:  # the data of one command never arrives
            cid, ttag, length = open_r2ts.pop(0)
            pdu = wire.h2c(cid, ttag, 0, bytes(length))
            moved_in += len(pdu)
            data_pdus += 1
            more = wire.feed(pdu, size)
            open_r2ts += r2ts(more)
            out += more
        assert not wire.driver.ended
        moved_out += len(out)
        answers.update(pdu[0] for pdu in split(out))
    waiting = wire.connection.in_flight
    assert counts.completed.total() + waiting == commands.total()
    assert all(counts.completed[opcode] <= commands[opcode] for opcode in counts.completed)
    refused = counts.completed.total() - (counts.admitted.total() - len(wire.queue.trace._admitted))
    assert 0 <= refused <= counts.failed.total()
    assert counts.backend_called.total() <= counts.admitted.total() - 1
    errors = wire.queue.ctx.counters.errors
    assert counts.failed.total() == errors
    assert counts.pdus_received == {0: 1, COMMAND: commands.total(), **({H2C: data_pdus} if data_pdus else {})}
    assert counts.pdus_sent - connects == answers
    assert (counts.received_bytes, counts.sent_bytes) == (moved_in, moved_out)
    # what was asked for, by every PDU of an answer: data alone with SUCCESS, or data and a response
    assert answers[RESPONSE] + (answers[C2H] if cattr else 0) >= counts.completed.total() - 1
    assert answers[R2T] == data_pdus + len(open_r2ts)
    assert set(wire.queue.trace._began) >= wire.queue.busy
    for event in events.of(CommandEvent):
        assert event.count and event.queue is wire.queue.trace.queue
