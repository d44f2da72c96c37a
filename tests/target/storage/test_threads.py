"""The threads of a file: their number, and the order of waiting calls."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from nvmeof.target.storage import threads as module
from nvmeof.target.storage.threads import ThreadBatches, give_way
from tests.conformance.rawhost import until


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """Clear the owner that a test before may have set, since an owner gets a share of the threads."""
    monkeypatch.setattr(module, "OWNER", ContextVar("owner", default=None))


@pytest.fixture
async def threads():
    made = ThreadBatches(4, "test")
    yield made
    await made.close()
    assert not any(thread.is_alive() for thread in made._threads)


async def test_one_thread_more_than_busy_ones_is_started(threads):
    go_on = threading.Event()
    waiting = []
    for busy in range(4):
        most = min(busy + 1, 4)
        await until(lambda most=most: len(threads._threads) == most)  # a thread without work starts one more
        begun = threading.Event()

        def call(begun: threading.Event = begun) -> None:
            begun.set()
            assert go_on.wait(60)

        waiting.append(threads.submit(call))
        assert await asyncio.to_thread(begun.wait, 60)
    assert len(threads._threads) == 4, "and no more than it may have"
    more = threads.submit(lambda: 7)
    go_on.set()
    await asyncio.gather(*waiting)
    assert await more == 7 and len(threads._threads) == 4


async def test_submitting_does_not_wait_for_a_thread_to_start(threads, monkeypatch):
    """A busy core may take milliseconds for a start, which is left to another thread."""
    starters = []
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        starters.append(threading.current_thread())
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    go_on = threading.Event()
    calls = [threads.submit(lambda: go_on.wait(60)) for _ in range(2)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*calls)
    await threads.close()
    assert starters and threading.current_thread() not in starters


async def test_work_goes_on_without_a_thread_that_cannot_be_started(threads, monkeypatch, caplog):
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert await asyncio.gather(*(threads.submit(lambda n=n: n) for n in range(100))) == list(range(100))
    assert len(threads._threads) == 1
    assert "no further thread for its file" in caplog.text


async def test_threads_can_be_closed_while_calls_wait(threads):
    results = [threads.submit(lambda n=n: n) for n in range(50)]
    await threads.close()
    assert [each.result() for each in results] == list(range(50))


async def test_threads_go_first_only_where_they_have_something_to_do(threads, monkeypatch):
    yielded = []
    monkeypatch.setattr(module, "yield_cpu", lambda: yielded.append(1))
    give_way()
    assert not yielded
    go_on = threading.Event()
    call = threads.submit(lambda: go_on.wait(60))
    await asyncio.sleep(0)
    for _ in range(3):
        give_way()
    assert len(yielded) == 3
    for _ in range(16):
        give_way()
    assert len(yielded) == 5, "a thread that is not done soon waits for its disk: seldom from then on"
    go_on.set()
    await call
    give_way()
    assert len(yielded) == 5


async def test_a_thread_runs_while_the_loop_goes_round(threads):
    """The turns of the loop follow at once, without waiting; the work of a thread is done nevertheless."""
    done = threads.submit(threading.get_ident)
    for _ in range(10_000):
        if done.done():
            break
        give_way()
        await asyncio.sleep(0)
    assert done.done() and done.result() != threading.get_ident()
