"""A runtime for tests of both ends that the test steps."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any


class FakeFuture:
    """A future that the test resolves; awaiting an unresolved one is an error of the test."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._done = False

    def set_result(self, result: Any) -> None:
        assert not self._done
        self.result, self._done = result, True

    def set_exception(self, exception: BaseException) -> None:
        assert not self._done
        self.error, self._done = exception, True

    def settle(self, function: Callable[[], Any]) -> None:
        """Store the function's result or error."""
        try:
            self.set_result(function())
        except Exception as error:
            self.set_exception(error)

    def done(self) -> bool:
        return self._done

    def cancel(self) -> bool:
        self._done = True
        return True

    def __await__(self) -> Generator[Any, None, Any]:
        while not self._done:
            yield self
        if self.error is not None:
            raise self.error
        return self.result


class FakeTimer:
    def __init__(self, when: float = 0.0, callback: Callable[[], object] = lambda: None) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeRuntime:
    """A runtime whose timers and background work proceed when a test calls `turn` or `settle`."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.timers: list[FakeTimer] = []
        self.background: list[Coroutine[Any, Any, object]] = []

    def create_future(self) -> FakeFuture:
        return FakeFuture()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> FakeTimer:
        timer = FakeTimer(self.time + seconds, callback)
        self.timers.append(timer)
        return timer

    def now(self) -> float:
        return self.time

    def in_turn(self, owner: object, callback: Callable[[], object]) -> None:
        self.call_later(0.0, callback)

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self.background.append(coroutine)

    def in_thread(self, function: Callable[[], Any]) -> FakeFuture:
        """Compute in the next turn."""
        future = FakeFuture()
        self.call_later(0.0, lambda: future.settle(function))
        return future

    def __del__(self) -> None:
        for coroutine in self.background:
            coroutine.close()

    def turn(self) -> bool:
        """Do all that can be done now, once; return False when there was nothing."""
        due = [timer for timer in self.timers if timer.when <= self.time]
        self.timers = [timer for timer in self.timers if timer.when > self.time]
        for timer in due:
            if not timer.cancelled:
                timer.callback()
        before = list(self.background)
        for coroutine in before:
            try:
                coroutine.send(None)
            except StopIteration:
                self.background.remove(coroutine)
        return bool(due) or self.background != before

    def settle(self) -> None:
        """Run until all work waits for a later time or another party."""
        idle = 0
        while idle < 3:
            idle = 0 if self.turn() else idle + 1
