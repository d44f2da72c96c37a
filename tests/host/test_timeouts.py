"""Keep-alive, timeouts and Aborts, with a clock that the test sets."""

from __future__ import annotations

from typing import Any

import pytest

from nvmeof.errors import NvmeofError, OutcomeUnknown
from nvmeof.host.queue import Queue, Request
from nvmeof.host.timeouts import Timeouts
from nvmeof.spec.enums import AdminOpcode
from nvmeof.spec.status import Status, status_field

from .test_queue import Noted, Recorder, options


class Bench:
    """An admin queue and one I/O queue over a device that records calls."""

    def __init__(self, **changes: Any) -> None:
        self.device = Recorder()
        chosen = options(**changes)
        self.admin = Queue(self.device, chosen, 0, 8, reserved=2, timeout=chosen.admin_timeout)
        self.io = Queue(self.device, chosen, 1, 16, timeout=chosen.io_timeout)
        self.lost: list[tuple[int, NvmeofError]] = []
        self.timeouts = Timeouts(self.admin, lambda: (self.admin, self.io), self._lost)

    def _lost(self, queue: Queue, error: NvmeofError) -> None:
        self.lost.append((queue.qid, error))
        for each in (self.admin, self.io):
            each.fail(error)

    def sent(self, opcode: int) -> list[Request]:
        return [each for each in self.device.sent_requests if each.sqe[0] == opcode and each.queue.qid == 0]

    def run(self, start: float, end: float, step: float = 0.25) -> None:
        now = start
        while now <= end:
            self.timeouts.check(now)
            now += step

    def answer(self, request: Request, result: int = 0, status: int = 0) -> None:
        request.done(result, status_field(status))


def test_keep_alive_fires_twice_within_kato() -> None:
    bench = Bench()
    bench.timeouts.set_keep_alive(0.0, 8.0, traffic_based=False)
    assert bench.timeouts.next_deadline <= 4.0
    for now in (3.9, 4.0):
        bench.timeouts.check(now)
    (first,) = bench.sent(AdminOpcode.KEEP_ALIVE)
    bench.answer(first)
    bench.timeouts.check(8.0)
    assert len(bench.sent(AdminOpcode.KEEP_ALIVE)) == 2


def test_traffic_takes_the_place_of_keep_alive_only_where_agreed() -> None:
    for traffic_based, expected in ((True, 0), (False, 1)):
        bench = Bench()
        bench.timeouts.set_keep_alive(0.0, 8.0, traffic_based=traffic_based)
        for now in (1.0, 2.0, 3.0, 4.0):
            request = Noted()
            bench.io.submit(request)
            bench.answer(request)
            bench.timeouts.check(now)
        assert len(bench.sent(AdminOpcode.KEEP_ALIVE)) == expected
    bench = Bench()
    bench.timeouts.set_keep_alive(0.0, 8.0, traffic_based=True)
    bench.timeouts.check(2.0)
    assert len(bench.sent(AdminOpcode.KEEP_ALIVE)) == 1  # no traffic


def test_a_keep_alive_without_answer_ends_the_association() -> None:
    bench = Bench()
    bench.timeouts.set_keep_alive(0.0, 4.0, traffic_based=False)
    bench.run(0.0, 5.0)
    assert not bench.lost
    bench.run(5.25, 9.0)
    assert [qid for qid, _ in bench.lost] == [0]
    assert "was not answered in time" in str(bench.lost[0][1])
    assert len(bench.sent(AdminOpcode.KEEP_ALIVE)) == 1  # never two at a time


def test_a_refused_keep_alive_ends_the_association() -> None:
    bench = Bench()
    bench.timeouts.set_keep_alive(0.0, 4.0, traffic_based=False)
    bench.timeouts.check(2.0)
    bench.answer(bench.sent(AdminOpcode.KEEP_ALIVE)[0], status=Status.INVALID_FIELD)
    assert "refused Keep Alive" in str(bench.lost[0][1])


def test_stopping_keep_alive() -> None:
    bench = Bench()
    bench.timeouts.set_keep_alive(0.0, 4.0, traffic_based=False)
    bench.timeouts.stop_keep_alive()
    bench.run(0.0, 20.0)
    assert not bench.sent(AdminOpcode.KEEP_ALIVE)


@pytest.mark.parametrize("where", ["io", "admin"])
def test_a_timeout_ends_the_association_at_once(where: str) -> None:
    """As in nvme-tcp; with ticks of a second a timeout is noticed within two ticks."""
    bench = Bench(io_timeout=4.0, admin_timeout=4.0)
    bench.timeouts.check(100.0)
    stuck, other = Noted(), Noted()
    (bench.io if where == "io" else bench.admin).submit(stuck)
    bench.run(100.25, 102.0)
    bench.io.submit(other)
    bench.run(102.25, 103.75)
    assert not bench.lost
    bench.run(104.0, 106.0)
    assert not bench.sent(AdminOpcode.ABORT)
    ((qid, error),) = bench.lost
    assert qid == (1 if where == "io" else 0) and "was not answered in time" in str(error)
    assert all(isinstance(each.outcome[0], OutcomeUnknown) for each in (stuck, other))


def test_abort_first_aborts_and_then_ends_the_association() -> None:
    bench = Bench(io_timeout=4.0, abort_first=True)
    bench.timeouts.check(100.0)
    stuck, fine = Noted(), Noted()
    bench.io.submit(stuck)
    bench.io.submit(fine)
    bench.answer(fine)
    bench.run(100.25, 103.75)
    assert not bench.sent(AdminOpcode.ABORT)
    bench.run(104.0, 105.5)
    (abort,) = bench.sent(AdminOpcode.ABORT)
    assert int.from_bytes(abort.sqe[40:44], "little") == 1 | stuck.cid << 16
    bench.answer(abort, result=1)  # not aborted
    bench.run(105.75, 108.0)
    assert not bench.lost
    bench.run(108.25, 110.5)
    assert [qid for qid, _ in bench.lost] == [1]
    (outcome,) = stuck.outcome
    assert isinstance(outcome, OutcomeUnknown) and outcome.__cause__ is bench.lost[0][1]


def test_abort_first_costs_only_the_command_where_the_abort_works() -> None:
    bench = Bench(io_timeout=4.0, abort_first=True)
    stuck = Noted()
    bench.timeouts.check(0.0)
    bench.io.submit(stuck)
    bench.run(0.25, 6.0)
    bench.answer(stuck, status=Status.ABORTED_BY_REQUEST)
    bench.answer(bench.sent(AdminOpcode.ABORT)[0])
    bench.run(6.25, 30.0)
    assert not bench.lost
    assert stuck.outcome == [(0, status_field(Status.ABORTED_BY_REQUEST))]


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_outstanding_aborts_are_limited_by_acl(limit: int) -> None:
    bench = Bench()
    bench.timeouts.set_abort_limit(limit)
    requests = [Noted() for _ in range(5)]
    for request in requests:
        bench.io.submit(request)
    for request in requests:
        bench.timeouts.abort(request)
        bench.timeouts.abort(request)  # a second request changes nothing
    assert bench.timeouts.aborts == limit
    bench.answer(requests[4])  # over before its turn: needs no Abort
    for _ in range(5):
        for abort in [each for each in bench.sent(AdminOpcode.ABORT) if each.cid >= 0]:
            bench.answer(abort)
    assert bench.timeouts.aborts == (5 if limit > 4 else 4)


def test_an_ended_request_is_not_aborted() -> None:
    bench = Bench()
    request = Noted()
    bench.io.submit(request)
    bench.answer(request)
    bench.timeouts.abort(request)
    assert bench.timeouts.aborts == 0


def test_a_caller_that_gives_up_shortly_before_the_timeout_does_not_end_the_association() -> None:
    """The Abort that it sends gets as much time as one after a timeout."""
    bench = Bench(io_timeout=4.0)
    bench.timeouts.check(0.0)
    stuck = Noted()
    bench.io.submit(stuck)
    bench.run(0.25, 4.75)
    assert not bench.timeouts.aborts
    bench.timeouts.abort(stuck)
    bench.run(5.0, 8.5)
    assert not bench.lost
    bench.run(8.75, 11.0)
    assert [qid for qid, _ in bench.lost] == [1]


def test_an_identifier_that_an_abort_names_is_not_used_again_before_the_abort_is_over() -> None:
    """The Abort uses another connection: the aborted command may have ended, and the next one arrived, before it."""
    bench = Bench()
    cancelled, *others = [Noted() for _ in range(16)]
    for request in (cancelled, *others):
        bench.io.submit(request)  # the last one has to wait for an identifier
    cid = cancelled.cid
    bench.timeouts.abort(cancelled)
    bench.answer(cancelled)
    assert others[-1].cid < 0, "would be what the Abort hits"
    bench.answer(others[0])
    assert others[-1].cid >= 0
    (abort,) = bench.sent(AdminOpcode.ABORT)
    late = Noted()
    bench.io.submit(late)
    assert late.cid < 0
    bench.answer(abort, result=1)
    assert late.cid == cid


def test_an_abort_that_is_over_first_holds_nothing() -> None:
    bench = Bench()
    request = Noted()
    room = bench.io.room
    bench.io.submit(request)
    bench.timeouts.abort(request)
    bench.answer(bench.sent(AdminOpcode.ABORT)[0])
    bench.answer(request, status=Status.ABORTED_BY_REQUEST)
    assert bench.io.room == room
