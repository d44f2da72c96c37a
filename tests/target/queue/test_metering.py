"""The meters of a queue, on a clock that the test sets: counts, latencies, buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.enums import AdminOpcode
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from nvmeof.target.core.completion import Completion
from nvmeof.target.meters import Meters
from nvmeof.target.queue.metering import BOUNDS, NOTES_MOST, CountingMeter, Kind, LatencyMeter, QueueMeter, Tally
from tests.target.harness import Target
from tests.target.queue.queue_wire import Wire

READ, WRITE = 2, 1


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Metered:
    """A meter of an I/O queue with namespace 1, whose sends the test makes."""

    def __init__(self) -> None:
        target = Target()
        target.admin()
        self.clock = Clock()
        self.meter = LatencyMeter(1, self.clock, lambda events, now: None)
        self.meter.connected(Wire(target).queue.ctx)  # type: ignore[arg-type]
        self.send = self.meter.sendmsg(len)

    def receive(self) -> None:
        self.meter.handle([], 0.0)

    def tally(self, command: str, nsid: int = 1) -> Tally:
        return dict(self.meter.figures())[Kind(nsid, command)]


def bucket_of(seconds: float) -> int:
    return next((number for number, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))


def test_a_latency_is_from_the_receive_to_the_send() -> None:
    metered = Metered()
    metered.receive()
    metered.clock.now += 0.25
    metered.meter.served(READ, 1, [5], 4096)
    metered.clock.now += 0.25
    metered.send([b"x"])
    metered.clock.now += 9
    metered.send([b"x"])  # nothing new was queued
    tally = metered.tally("read")
    assert (tally.count, tally.size_bytes, tally.seconds) == (1, 4096, 0.5)
    assert tally.buckets[bucket_of(0.5)] == 1 and sum(tally.buckets) == 1


def test_what_the_socket_has_not_taken_is_not_counted_yet_and_not_lost() -> None:
    metered = Metered()
    metered.receive()
    metered.meter.served(READ, 1, [1, 2, 3], 512)
    assert metered.meter.figures() == []
    metered.meter.ended("lost")
    tally = metered.tally("read")
    assert tally.count == 3 and sum(tally.buckets) == 0


def test_commands_that_wait_have_the_time_since_they_came() -> None:
    metered = Metered()
    meter = metered.meter
    metered.receive()
    meter.asked(WRITE, 1, 7, 512)
    meter.held(8)
    meter.begun(WRITE, 1, [9, 10], 512)
    metered.clock.now += 1
    metered.receive()
    meter.admitted(Sqe(opcode=READ, nsid=1, cid=8), 512)  # it was held: its time goes on
    meter.written(WRITE, 1, 7, 512)
    meter.ended_together(WRITE, 1, [9, 10], 512)
    meter.completed(Sqe(opcode=READ, nsid=1, cid=8, sgl_length=512), Completion())
    meter.completed(Sqe(opcode=READ, nsid=1, cid=11, sgl_length=512), Completion())
    metered.clock.now += 1
    metered.send([b"x"])
    assert metered.tally("write").buckets[bucket_of(2)] == 3
    assert metered.tally("read").buckets[bucket_of(2)] == 1
    assert metered.tally("read").buckets[bucket_of(1)] == 1


def test_a_cid_conflict_leaves_the_other_command_its_time() -> None:
    metered = Metered()
    metered.receive()
    metered.meter.admitted(Sqe(opcode=READ, nsid=1, cid=8), 512)
    metered.clock.now += 4
    metered.receive()
    metered.meter.completed(Sqe(opcode=READ, nsid=1, cid=8), Completion(status=Status.COMMAND_ID_CONFLICT))
    metered.send([b"x"])
    metered.meter.completed(Sqe(opcode=READ, nsid=1, cid=8), Completion())
    metered.send([b"x"])
    tally = metered.tally("read")
    assert tally.errors == {Status.COMMAND_ID_CONFLICT: 1}
    assert tally.buckets[0] == 1 and tally.buckets[bucket_of(4)] == 1


@pytest.mark.parametrize("kind", [CountingMeter, LatencyMeter])
def test_event_requests_are_counted_and_have_no_latency(kind: type[QueueMeter]) -> None:
    clock = Clock()
    meter: QueueMeter = CountingMeter(1) if kind is CountingMeter else LatencyMeter(1, clock, lambda events, now: None)
    meter.admitted(Sqe(opcode=AdminOpcode.ASYNC_EVENT_REQUEST, cid=1), 0)
    meter.completed(Sqe(opcode=AdminOpcode.ASYNC_EVENT_REQUEST, cid=1), Completion())
    ((found, tally),) = meter.figures()
    assert found == Kind(0, "async_event_request")
    assert tally.count == 1 and sum(tally.buckets) == 0


commands = st.lists(st.tuples(st.sampled_from([READ, WRITE]), st.integers(1, 3), st.floats(0, 30)), max_size=3)


@given(st.lists(commands, max_size=NOTES_MOST // 2))
def test_any_batches_are_counted_once_and_in_their_buckets(batches) -> None:
    metered = Metered()
    expected: dict[int, list[float]] = {READ: [], WRITE: []}
    for batch in batches:
        metered.receive()
        began = metered.clock.now
        for opcode, count, _ in batch:
            metered.meter.served(opcode, 1, range(count), 512)
        metered.clock.now += sum(seconds for _, _, seconds in batch)
        metered.send([b"x"])
        for opcode, count, _ in batch:
            expected[opcode] += [metered.clock.now - began] * count
    found = dict(metered.meter.figures())
    for opcode, name in ((READ, "read"), (WRITE, "write")):
        times = expected[opcode]
        tally = found.get(Kind(1, name), Tally(len(BOUNDS) + 1))
        assert tally.count == len(times)
        assert tally.size_bytes == 512 * len(times)
        assert tally.seconds == pytest.approx(sum(times))
        buckets = [0] * (len(BOUNDS) + 1)
        for seconds in times:
            buckets[bucket_of(seconds)] += 1
        assert tally.buckets == buckets


def test_notes_are_bounded() -> None:
    metered = Metered()
    for _ in range(10 * NOTES_MOST):
        metered.receive()
        metered.meter.served(READ, 1, [1], 512)
        metered.send([b"x"])
        assert len(metered.meter._notes) <= NOTES_MOST
    assert metered.tally("read").count == 10 * NOTES_MOST


kinds = st.tuples(st.sampled_from([READ, WRITE]), st.sampled_from([512, 4096]), st.integers(1, 40))


@given(st.lists(kinds))
def test_counters_of_any_runs(runs) -> None:
    metered, meter = Metered(), CountingMeter(1)
    meter.connected(metered.meter._ctx)
    for opcode, size, count in runs:
        if count == 1:
            meter.written(opcode, 1, 7, size)
        else:
            meter.served(opcode, 1, range(count), size)
        meter.completed(Sqe(opcode=READ, nsid=1, cid=1, sgl_length=8), Completion())
    found = dict(meter.figures())
    for opcode, name in ((READ, "read"), (WRITE, "write")):
        extra = len(runs) if opcode == READ else 0
        tally = found.get(Kind(1, name), Tally())
        mine = [(size, count) for each, size, count in runs if each == opcode]
        assert tally.count == extra + sum(count for _, count in mine)
        assert tally.size_bytes == 8 * extra + sum(size * count for size, count in mine)


def test_what_an_ended_queue_has_counted_stays() -> None:
    meters = Meters(None)
    for _ in range(3):
        meter = meters.open(1, lambda events, now: None)
        meter.written(WRITE, 0, 1, 512)
        meter.ended("")
        meters.close(meter)
        meters.close(meter)
    totals = {}
    for _ in meters.add_up(totals, lambda labels: labels):
        pass
    assert [tally.count for tally in totals.values()] == [3]
