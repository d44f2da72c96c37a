"""A queue whose commands wait for rate limits, on a clock that the test sets."""

from __future__ import annotations

import pytest

from nvmeof.spec.status import Status
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.core.rate_limits import Limiter, RateLimit
from nvmeof.target.core.throttle import Throttle
from nvmeof.target.queue.limited import LimitedQueue
from nvmeof.target.queue.pacing import RUNNING_MOST
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import FLUSH, READ, TRANSPORT, WRITE, make_sqe
from tests.protocol.wire import sent
from tests.target.backend_tools import Hidden
from tests.target.core.test_throttle import run_until
from tests.target.harness import Target
from tests.target.queue.queue_wire import Wire, r2ts, statuses
from tests.target.queue.test_fused import FIRST, SECOND, half

BLOCK = 512


class Limited:
    """A target with two namespaces, the first of which has a limit of `operations` per second and a burst of two."""

    def __init__(self, *, operations: int = 20, host: RateLimit | None = None, hidden: bool = False, **options) -> None:
        backends = [Hidden("1M") if hidden else Ramdisk("1M") for _ in range(2)]
        self.target = Target(*backends, host_limit=host)
        self.runtime = self.target.runtime
        if operations:
            limit = RateLimit(operations_per_second=operations, burst_seconds=2 / operations)
            self.target.subsystem.namespaces[1].limiter = Limiter(limit)
        self.throttle = Throttle(self.runtime)
        self.admin = self.target.admin()
        self.wire = Wire(self.target, throttle=self.throttle, **options)
        assert isinstance(self.wire.queue, LimitedQueue)
        self.queue: LimitedQueue = self.wire.queue

    def read(self, cid: int, nsid: int = 1) -> bytes:
        return self.wire.capsule(make_sqe(cid, READ, nsid=nsid, length=BLOCK))

    def write(self, cid: int, data: bytes, nsid: int = 1) -> bytes:
        sqe = make_sqe(cid, WRITE, nsid=nsid, length=len(data), cdw12=len(data) // BLOCK - 1, sgl=0x01)
        return self.wire.capsule(sqe, data)

    def after(self, seconds: float) -> list[tuple[int, int]]:
        """What has completed when so much time has passed."""
        run_until(self.runtime, self.runtime.time + seconds)
        return statuses(sent(self.wire.connection))


def test_commands_wait_and_complete_in_their_order_at_the_rate() -> None:
    limited = Limited()
    assert statuses(limited.wire.feed(b"".join(map(limited.read, range(6))))) == [(0, 0), (1, 0)]
    assert limited.queue.commands() == dict.fromkeys(range(2, 6), 1)
    assert limited.after(0.049) == []
    assert limited.after(0.002) == [(2, 0)]
    assert limited.after(0.1) == [(3, 0), (4, 0)]
    assert limited.after(1.0) == [(5, 0)]
    assert limited.queue.commands() == {}


def test_other_namespaces_are_served_meanwhile_by_the_fast_path() -> None:
    limited = Limited()
    limited.wire.feed(b"".join(map(limited.read, range(4))))
    assert statuses(limited.wire.feed(limited.read(10, 2) + limited.read(11, 2))) == [(10, 0), (11, 0)]
    template = limited.queue.fast_path._read
    assert template is not None and template.nsid == 2


def test_data_of_the_capsule_is_kept_while_its_write_waits() -> None:
    limited = Limited(operations=2)
    commands = [limited.write(cid, bytes([cid]) * BLOCK) for cid in range(1, 4)]
    assert statuses(limited.wire.feed(b"".join(commands))) == [(1, 0), (2, 0)]
    limited.wire.feed(limited.write(9, b"x" * BLOCK, nsid=2) * 1)  # the receive buffer has other bytes by now
    assert limited.after(0.6) == [(3, 0)]
    memory = limited.target.subsystem.namespaces[1].backend.memory
    assert memory is not None and memory[:BLOCK] == bytes([3]) * BLOCK


def test_a_write_without_its_data_asks_for_it_when_it_may_pass() -> None:
    limited = Limited(operations=2)
    limited.wire.feed(limited.read(1) + limited.read(2))
    sqe = make_sqe(3, WRITE, nsid=1, length=8192, sgl=TRANSPORT, cdw12=15)
    assert limited.wire.feed(limited.wire.capsule(sqe)) == b""
    assert limited.queue.pool.used_bytes == 0
    run_until(limited.runtime, limited.runtime.time + 0.6)
    assert len(r2ts(sent(limited.wire.connection))) == 1


def test_bytes_are_counted_by_blocks_and_a_host_has_one_limit_for_all_namespaces() -> None:
    limited = Limited(operations=0, host=RateLimit(bytes_per_second=4 * BLOCK, burst_seconds=0.5))
    commands = limited.read(1) + limited.read(2, 2) + limited.read(3) + limited.read(4, 2)
    assert statuses(limited.wire.feed(commands)) == [(1, 0), (2, 0)]
    assert limited.after(0.26) == [(3, 0)]
    assert limited.after(0.25) == [(4, 0)]


def test_what_is_not_counted_never_waits() -> None:
    limited = Limited()
    limited.wire.feed(b"".join(map(limited.read, range(4))))
    assert statuses(limited.wire.feed(limited.wire.capsule(make_sqe(9, FLUSH, nsid=1)))) == [(9, 0)]


def test_a_fused_pair_stays_together() -> None:
    limited = Limited(operations=2)
    limited.wire.feed(limited.read(1) + limited.read(2))
    pair = half(limited.wire, 3, FIRST, bytes(BLOCK)) + half(limited.wire, 4, SECOND, bytes(BLOCK))
    assert statuses(limited.wire.feed(pair)) == [(3, 0), (4, 0)]
    limited.wire.feed(limited.read(5))
    assert limited.after(1.4) == []  # both were counted
    assert limited.after(0.2) == [(5, 0)]


def test_a_waiting_command_can_be_aborted_and_its_cid_used_again() -> None:
    limited = Limited(operations=2)
    limited.wire.feed(b"".join(map(limited.read, range(1, 5))))
    assert limited.queue.abort(3)
    assert statuses(sent(limited.wire.connection)) == [(3, Status.ABORTED_BY_REQUEST)]
    limited.wire.feed(limited.read(3))
    assert limited.after(0.6) == [(4, 0)]
    assert limited.after(0.5) == [(3, 0)]
    assert not limited.queue.abort(77)


def test_a_cid_in_use_is_refused_and_the_command_that_has_it_goes_on() -> None:
    limited = Limited(operations=2)
    limited.wire.feed(b"".join(map(limited.read, range(1, 4))))
    assert statuses(limited.wire.feed(limited.read(3))) == [(3, Status.COMMAND_ID_CONFLICT)]
    assert limited.after(0.6) == [(3, 0)]


def test_preempt_and_abort_ends_those_that_wait() -> None:
    limited = Limited(operations=2)
    limited.wire.feed(b"".join(map(limited.read, range(1, 5))))
    limited.queue.abort_namespace(1)
    assert statuses(sent(limited.wire.connection)) == [(3, Status.ABORTED_PREEMPT), (4, Status.ABORTED_PREEMPT)]
    assert limited.throttle.waiting == 0


def test_a_queue_with_many_that_wait_receives_no_more_and_again_later() -> None:
    limited = Limited(operations=1000, entries=RUNNING_MOST + 32)
    limited.wire.feed(b"".join(map(limited.read, range(RUNNING_MOST + 2))))
    assert limited.wire.driver.held_back
    assert len(limited.after(0.02)) >= 10
    assert not limited.wire.driver.held_back


@pytest.mark.parametrize("how", ["closed", "drained"])
def test_what_waits_goes_with_its_queue(how: str) -> None:
    limited = Limited(operations=2)
    limited.wire.feed(b"".join(map(limited.read, range(1, 9))))
    assert limited.throttle.waiting == 6
    if how == "closed":
        limited.queue.close("the end")
    else:
        assert limited.queue.drain()
    assert limited.throttle.waiting == 0
    assert limited.after(100.0) == []
    assert limited.queue.commands() == {}


def test_a_command_that_waits_for_memory_afterwards_is_counted_once() -> None:
    pool = BufferPool(8192, reserve_bytes=0)
    limited = Limited(operations=2, hidden=True, pool=pool)
    taken = pool.take(8192)
    assert taken is not None
    limited.wire.feed(limited.read(1))
    assert limited.queue.staging.reads
    pool.give(taken)
    assert not limited.queue.staging.reads
    for pending, done in limited.wire.driver.spawned:
        assert pending.completion is not None
        done(pending.completion)
    assert statuses(sent(limited.wire.connection)) == [(1, 0)]
    assert limited.throttle.admit((limited.target.subsystem.namespaces[1].limiter,), 0)  # the second of the burst


def test_a_limit_that_is_taken_back_lets_the_fast_path_learn() -> None:
    limited = Limited()
    limited.wire.feed(limited.read(1))
    assert limited.queue.fast_path._read is None
    limited.target.subsystem.namespaces[1].limiter = None
    limited.wire.feed(limited.read(2))
    assert limited.queue.fast_path._read is not None
