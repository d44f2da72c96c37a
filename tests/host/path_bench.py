"""A path over the fake device on a runtime that a test steps: no event loop, no clock, no socket."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from nvmeof.errors import NvmeofError
from nvmeof.host.controller import Controller
from nvmeof.host.options import RecoveryOptions
from nvmeof.host.path import Path, PathState
from nvmeof.host.queue import Queue

from ..fake_runtime import FakeFuture, FakeRuntime
from .fake_device import FakeDevice
from .test_queue import options

T = TypeVar("T")


class Outcome(Generic[T]):
    """The result of a coroutine, once it has one."""

    def __init__(self) -> None:
        self.done = False
        self.value: T | None = None
        self.error: Exception | None = None

    async def take(self, coroutine: Coroutine[Any, Any, T]) -> None:
        try:
            self.value = await coroutine
        except Exception as error:
            self.error = error
        self.done = True

    def get(self) -> T:
        assert self.done, "it has not ended"
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class PathDevice(FakeDevice):
    """The fake controller, whose connections a test can forbid (`down`) or leave without an answer (`silent`)."""

    def __init__(self, runtime: FakeRuntime, **identify: Any) -> None:
        super().__init__(**identify)
        self.call_soon = lambda function, *args: runtime.call_later(0.0, partial(function, *args))
        self.runtime = runtime
        self.down: NvmeofError | None = None
        self.silent: FakeFuture | None = None
        self.attempts: list[float] = []
        """The times of connection attempts of the admin queue."""

    async def create_queue(self, queue: Queue) -> None:
        if queue.qid == 0:
            self.attempts.append(self.runtime.time)
        if self.silent is not None:
            await self.silent
        if self.down is not None:
            raise self.down
        await super().create_queue(queue)


class PathBench:
    """A path over the fake device, stepped by the test."""

    def __init__(self, *, identify: dict[str, Any] | None = None, connect: Any = None, **recovery: Any) -> None:
        self.runtime = FakeRuntime()
        self.device = PathDevice(self.runtime, **(identify or {}))
        times = {"io_timeout": 6.0, "admin_timeout": 6.0, "keep_alive_tmo": 4.0, "connect_timeout": 3.0}
        self.options = options(transport="fake", **{**times, **(connect or {})})
        self.path: Path[Controller] = Path(
            self.options,
            lambda: Controller(self.device, self.options, self.runtime),
            self.runtime,
            RecoveryOptions(**recovery),
        )
        self.states: list[str] = []
        self.path.on_change.append(lambda: self.states.append(self.path.state.value))
        self.lost: list[NvmeofError] = []
        self.path.on_lost.append(self.lost.append)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Outcome[T]:
        """Begin a coroutine, and run it until it waits for time."""
        outcome: Outcome[T] = Outcome()
        self.runtime.spawn(outcome.take(coroutine))
        self.runtime.settle()
        return outcome

    def run(self, coroutine: Coroutine[Any, Any, T], seconds: float = 100.0) -> T:
        """Run a coroutine to its end."""
        outcome = self.start(coroutine)
        end = self.runtime.time + seconds
        while not outcome.done:
            assert self.runtime.time < end, "it does not end"
            self.pass_time(0.1)
        return outcome.get()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.runtime.time + seconds
        self.runtime.settle()
        while True:
            due = [timer.when for timer in self.runtime.timers if not timer.cancelled and timer.when <= end]
            if not due:
                break
            self.runtime.time = max(self.runtime.time, min(due))
            self.runtime.settle()
        self.runtime.time = end
        self.runtime.settle()

    def connect(self) -> PathBench:
        self.run(self.path.connect())
        assert self.path.state is PathState.LIVE
        self.states.clear()
        self.device.attempts.clear()
        return self

    def break_it(self, down: NvmeofError | None = None) -> None:
        """Lose the association; with `down` no further connection succeeds."""
        self.device.down = down
        self.device.break_queue(0)
        self.runtime.settle()
