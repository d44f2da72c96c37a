"""Rate limits and the scheduler of commands that wait for them, on a clock that the test sets."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.target.core.rate_limits import Bucket, Limiter, RateLimit, parse_rate_limit
from nvmeof.target.core.throttle import PASS_MOST, Throttle
from tests.fake_runtime import FakeRuntime

KIB = 1024


def run_until(runtime: FakeRuntime, end: float) -> None:
    """Let timers fire in their order until a time."""
    while due := [timer.when for timer in runtime.timers if not timer.cancelled and timer.when <= end]:
        runtime.time = max(runtime.time, min(due))
        runtime.turn()
    runtime.time = end


def limiter(size: int | None = None, operations: int | None = None, burst: float = 0.1) -> Limiter:
    return Limiter(RateLimit(bytes_per_second=size, operations_per_second=operations, burst_seconds=burst))


class Host:
    """Sends commands of one size, `depth` at a time, and counts those that have passed."""

    def __init__(self, throttle: Throttle, name: str, limiters: tuple[Limiter, ...], size: int, depth: int) -> None:
        self.throttle, self.name, self.limiters, self.size = throttle, name, limiters, size
        self.passed = 0
        for _ in range(depth):
            self.send()

    def send(self) -> None:
        if self.throttle.admit(self.limiters, self.size):
            self.done()
        else:
            self.throttle.wait(self.name, self.limiters, self.size, self.done)

    def done(self) -> None:
        self.passed += 1
        # The host sends its next one when it has the completion: in a later turn.
        self.throttle._runtime.call_later(0.0, self.send)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("bytes=100M", RateLimit(bytes_per_second=100 << 20)),
        ("operations=5000,burst=2", RateLimit(operations_per_second=5000, burst_seconds=2)),
        (
            "burst=0.5,bytes=1G,operations=10",
            RateLimit(bytes_per_second=1 << 30, operations_per_second=10, burst_seconds=0.5),
        ),
    ],
)
def test_texts(text: str, limit: RateLimit) -> None:
    assert parse_rate_limit(text) == limit


@pytest.mark.parametrize(
    "text", ["", "bytes", "bytes=", "burst=1", "bytes=1M,bytes=2M", "operations=x", "speed=9", "operations=0",
             "bytes=1M,burst=0"],
)  # fmt: skip
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_rate_limit(text)


@given(
    st.floats(10, 1e6),
    st.floats(0.01, 5),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 1e6)), max_size=60),
)
def test_a_bucket_lets_no_more_pass_than_its_rate_and_one_burst(rate: float, burst: float, steps) -> None:
    bucket, now, passed, largest = Bucket(rate, burst), 100.0, 0.0, 0.0
    for pause, cost in steps:
        now += pause
        wait = bucket.wait(cost, now)
        assert wait >= 0
        now += wait
        assert bucket.wait(cost, now) <= 1e-6  # what it said was long enough
        bucket.take(cost)
        passed += cost
        largest = max(largest, cost)
    assert passed <= bucket.depth + rate * (now - 100.0) + largest + 1e-3 * passed + 1


def test_a_burst_then_the_rate() -> None:
    runtime = FakeRuntime()
    throttle = Throttle(runtime)
    host = Host(throttle, "a", (limiter(operations=100, burst=0.5),), 512, depth=32)
    run_until(runtime, runtime.time)
    assert 50 <= host.passed <= 51
    run_until(runtime, 1010.0)
    assert 1049 <= host.passed <= 1052


def test_bytes_larger_than_a_burst_pass_at_the_rate() -> None:
    runtime = FakeRuntime()
    host = Host(Throttle(runtime), "a", (limiter(size=1 << 20, burst=0.01),), 256 * KIB, depth=4)
    run_until(runtime, 1010.0)
    assert 39 <= host.passed <= 42


def test_hosts_share_a_namespace_by_bytes() -> None:
    runtime = FakeRuntime()
    throttle, shared = Throttle(runtime), limiter(size=8 << 20)
    hosts = [
        Host(throttle, "small", (shared,), 4 * KIB, depth=32),
        Host(throttle, "large", (shared,), 256 * KIB, depth=8),
        Host(throttle, "many", (shared,), 16 * KIB, depth=128),
    ]
    run_until(runtime, 1030.0)
    moved = [host.passed * host.size for host in hosts]
    assert sum(moved) == pytest.approx(30.1 * (8 << 20), rel=0.02)
    assert max(moved) < 1.1 * min(moved)


def test_a_slow_host_gets_what_it_asks_for() -> None:
    runtime = FakeRuntime()
    throttle, shared = Throttle(runtime), limiter(operations=1000)
    greedy = Host(throttle, "greedy", (shared,), 512, depth=128)
    late: list[float] = []

    def one() -> None:
        asked = runtime.time
        if throttle.admit((shared,), 512):
            late.append(0.0)
        else:
            throttle.wait("slow", (shared,), 512, lambda: late.append(runtime.time - asked))

    for second in range(1, 100):
        runtime.call_later(second * 0.1, one)
    run_until(runtime, 1012.0)
    assert len(late) == 99
    assert max(late) < 0.004  # behind one or two others, not behind 128
    assert greedy.passed > 11_000


def test_a_host_that_waits_for_its_own_limit_stops_no_other() -> None:
    runtime = FakeRuntime()
    throttle, shared = Throttle(runtime), limiter(operations=1000)
    bounded = Host(throttle, "bounded", (shared, limiter(operations=10)), 512, depth=16)
    free = Host(throttle, "free", (shared,), 512, depth=16)
    run_until(runtime, 1010.0)
    assert 100 <= bounded.passed <= 103
    assert free.passed > 9800


def test_namespaces_do_not_disturb_each_other() -> None:
    runtime = FakeRuntime()
    throttle = Throttle(runtime)
    slow = Host(throttle, "a", (limiter(operations=5),), 512, depth=64)
    fast = Host(throttle, "a", (limiter(operations=2000),), 512, depth=64)
    run_until(runtime, 1010.0)
    assert 50 <= slow.passed <= 52
    assert fast.passed > 19_900


def test_what_is_cancelled_never_passes_and_leaves_no_timer() -> None:
    runtime = FakeRuntime()
    throttle, shared = Throttle(runtime), limiter(operations=1)
    passed: Counter[str] = Counter()
    assert throttle.admit((shared,), 0)
    waiting = [throttle.wait("a", (shared,), 0, partial(passed.update, [str(n)])) for n in range(3)]
    waiting[0].cancel()
    waiting[2].cancel()
    assert throttle.waiting == 1
    run_until(runtime, 1100.0)
    assert passed == {"1": 1}
    assert throttle.waiting == 0
    assert not [timer for timer in runtime.timers if not timer.cancelled]


def test_a_higher_limit_holds_at_once() -> None:
    runtime = FakeRuntime()
    throttle, shared = Throttle(runtime), limiter(operations=1)
    host = Host(throttle, "a", (shared,), 0, depth=8)
    run_until(runtime, 1002.0)
    assert host.passed <= 4
    shared.change(RateLimit(operations_per_second=1000), runtime.time)
    throttle.serve()
    run_until(runtime, 1003.0)
    assert host.passed > 900


def test_one_step_lets_only_so_many_pass() -> None:
    runtime = FakeRuntime()
    throttle, shared = Throttle(runtime), limiter(operations=1, burst=1)
    assert throttle.admit((shared,), 0)
    passed: list[int] = []
    for n in range(3 * PASS_MOST):
        throttle.wait("a", (shared,), 0, partial(passed.append, n))
    shared.change(RateLimit(operations_per_second=10**6), runtime.time)
    runtime.time += 1
    throttle.serve()
    assert len(passed) == PASS_MOST
    run_until(runtime, runtime.time)
    assert passed == list(range(3 * PASS_MOST))  # in their order


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40), st.data())
def test_every_command_passes_once_or_is_cancelled(commands, data) -> None:
    runtime = FakeRuntime()
    throttle = Throttle(runtime)
    shared, own = [limiter(operations=50), limiter(size=4096)], [limiter(operations=20), limiter(size=9999), None]
    passed: Counter[int] = Counter()
    cancelled = set()
    for number, (host, namespace) in enumerate(commands):
        wanted = (shared[namespace % 2], own[host])
        limiters = tuple(each for each in wanted if each is not None)
        if throttle.admit(limiters, 512):
            passed[number] += 1
        else:
            waiting = throttle.wait(host, limiters, 512, partial(passed.update, [number]))
            if data.draw(st.booleans()):
                waiting.cancel()
                cancelled.add(number)
        if data.draw(st.booleans()):
            run_until(runtime, runtime.time + 0.01)
    run_until(runtime, runtime.time + 100)
    assert passed == Counter(set(range(len(commands))) - cancelled)
    assert throttle.waiting == 0
