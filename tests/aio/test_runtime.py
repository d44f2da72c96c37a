"""The runtime on asyncio and the fake one of the tests: the contract that the logic of both ends relies on."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextvars import Context, ContextVar, copy_context
from functools import partial

import pytest

from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.runtime import Runtime, pause, settled, sleep
from tests.fake_runtime import FakeRuntime

LOGGER = logging.getLogger("nvmeof.test")


def test_both_fulfil_the_protocol() -> None:
    def accept(runtime: Runtime) -> None:
        for name in ("create_future", "call_later", "now", "in_turn", "spawn", "in_thread"):
            assert callable(getattr(runtime, name))

    accept(FakeRuntime())
    asyncio.run(_accept_asyncio(accept))


async def _accept_asyncio(accept) -> None:
    accept(AsyncioRuntime(LOGGER))


async def test_an_error_in_the_background_is_logged_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    runtime = AsyncioRuntime(LOGGER)
    done = runtime.create_future()

    async def fail() -> None:
        raise ValueError("no such block")

    async def succeed() -> None:
        await pause(runtime)
        done.set_result(None)

    runtime.spawn(fail())
    runtime.spawn(succeed())
    await done
    assert [record.getMessage() for record in caplog.records] == ["background task failed: ValueError: no such block"]
    await runtime.stop()
    assert not runtime.tasks


async def test_stop_cancels_and_waits() -> None:
    runtime = AsyncioRuntime(LOGGER)
    ended: list[str] = []

    async def wait() -> None:
        try:
            await runtime.create_future()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    runtime.spawn(wait())
    await asyncio.sleep(0)
    await runtime.stop()
    assert ended == ["cleaned up"]
    await runtime.stop()


async def test_stop_from_a_background_task_does_not_wait_for_itself() -> None:
    runtime = AsyncioRuntime(LOGGER)
    task = runtime.spawn(runtime.stop())
    await asyncio.wait_for(task, 20)


async def test_the_context_of_background_work() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody")
    variable.set("a command")

    def context() -> Context:
        made = copy_context()
        made.run(variable.set, "the target")
        return made

    seen: list[str] = []

    async def look() -> None:
        seen.append(variable.get())

    await AsyncioRuntime(LOGGER).spawn(look())
    await AsyncioRuntime(LOGGER, background_context=context).spawn(look())
    assert seen == ["a command", "the target"]
    assert variable.get() == "a command"


async def test_turns_are_those_of_their_owner() -> None:
    asked: list[object] = []

    def in_turn(owner, callback) -> None:
        asked.append(owner)
        callback()

    await pause(AsyncioRuntime(LOGGER, in_turn=in_turn), "a host")
    assert asked == ["a host"]


async def test_a_thread_computes_while_the_loop_goes_on() -> None:
    runtime = AsyncioRuntime(LOGGER)
    go_on = threading.Event()
    result = runtime.in_thread(partial(go_on.wait, 10))
    await asyncio.sleep(0)
    assert not result.done()
    go_on.set()
    assert await result is True
    with pytest.raises(ZeroDivisionError):
        await runtime.in_thread(lambda: 1 // 0)


async def test_settled_and_sleep() -> None:
    runtime = AsyncioRuntime(LOGGER)
    later = runtime.create_future()
    runtime.call_later(0, partial(later.set_result, 2))
    assert (await settled(1), await settled(later)) == (1, 2)
    before = runtime.now()
    await sleep(runtime, 0.01)
    assert runtime.now() - before >= 0.0099


def test_sleep_follows_the_clock_of_its_runtime() -> None:
    runtime = FakeRuntime()
    woken: list[float] = []

    async def work() -> None:
        await sleep(runtime, 5)
        woken.append(runtime.now())
        woken.append(await runtime.in_thread(lambda: 7))

    runtime.spawn(work())
    runtime.settle()
    assert not woken
    runtime.time += 5
    runtime.settle()
    assert woken == [1005.0, 7]


def test_a_cancelled_sleep_leaves_no_timer() -> None:
    runtime = FakeRuntime()
    coroutine = sleep(runtime, 5)
    coroutine.send(None)
    coroutine.close()
    assert [timer.cancelled for timer in runtime.timers] == [True]
