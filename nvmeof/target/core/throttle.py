"""Lets commands pass that are within their limits, and the others later: in time shares that are fair between hosts.

A command has one or two limiters: its namespace's, which hosts share, and its host's. Commands of one host that have
the same limiters are a *flow*, and keep their order. Of the flows that wait for one limiter the next to pass is the one
that was served least, by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a tag is the time for which a
flow has used the limiter up, and one that begins to wait starts from the tag that was served last. Nobody overtakes a
flow that waits for the shared limiter; one that waits for its host's own does not stop others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from nvmeof.runtime import Runtime, TimerHandle
from nvmeof.target.core.rate_limits import Limiter

PASS_MOST: Final = 64
"""Commands that pass in one step; others pass in the next turns of the event loop."""
IDLE_FLOWS_MOST: Final = 256
"""Flows that wait for nothing, whose tags are remembered."""


class Waiting:
    """A command that waits. `cancel` lets it never pass."""

    __slots__ = ("begin", "size_bytes")

    def __init__(self, size_bytes: int, begin: Callable[[], object]) -> None:
        self.size_bytes = size_bytes
        self.begin: Callable[[], object] | None = begin

    def cancel(self) -> None:
        """Forget the command."""
        self.begin = None


class _Flow:
    __slots__ = ("limiters", "number", "tag", "waiting")

    def __init__(self, limiters: tuple[Limiter, ...], number: int) -> None:
        self.limiters = limiters
        self.number = number
        self.tag = 0.0
        self.waiting: deque[Waiting] = deque()

    def head(self) -> Waiting | None:
        """Return the first command that waits still."""
        while self.waiting and self.waiting[0].begin is None:
            self.waiting.popleft()
        return self.waiting[0] if self.waiting else None


class Throttle:
    """The waiting commands of a target. `runtime` has the clock and the timers."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._flows: dict[tuple[Hashable, tuple[Limiter, ...]], _Flow] = {}
        self._groups: dict[Limiter, list[tuple[float, int, _Flow]]] = {}  # heaps of flows that wait, by first limiter
        self._numbers = count()
        self._timer: TimerHandle | None = None
        self._due = 0.0
        self._serving = False

    @property
    def waiting(self) -> int:
        """How many commands wait."""
        return sum(
            each.begin is not None for heap in self._groups.values() for _, _, flow in heap for each in flow.waiting
        )

    def admit(self, limiters: tuple[Limiter, ...], size_bytes: int) -> bool:
        """Let a command pass now; False: it has to wait, for its limits or behind others that do."""
        if self._groups and limiters[0] in self._groups:
            return False
        now = self._runtime.now()
        if any(limiter.wait(size_bytes, now) for limiter in limiters):
            return False
        self.charge(limiters, size_bytes)
        return True

    def charge(self, limiters: tuple[Limiter, ...], size_bytes: int) -> None:
        """Count a command that passes in any case."""
        for limiter in limiters:
            limiter.take(size_bytes)

    def wait(
        self, owner: Hashable, limiters: tuple[Limiter, ...], size_bytes: int, begin: Callable[[], object]
    ) -> Waiting:
        """Call `begin` when a command may pass that `admit` did not let; `owner` is its host."""
        key = (owner, limiters)
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= IDLE_FLOWS_MOST:
                self._flows = {each: found for each, found in self._flows.items() if found.waiting}
            flow = self._flows[key] = _Flow(limiters, next(self._numbers))
        waiting = Waiting(size_bytes, begin)
        flow.waiting.append(waiting)
        if len(flow.waiting) == 1:
            flow.tag = max(flow.tag, limiters[0].virtual)
            heappush(self._groups.setdefault(limiters[0], []), (flow.tag, flow.number, flow))
        if not self._serving:
            now = self._runtime.now()
            self._arm(now, max(limiter.wait(size_bytes, now) for limiter in limiters))
        return waiting

    # -- serving -------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Let those commands pass that may: at a timer, or after a limit was changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now, soonest = self._runtime.now(), float("inf")
        passing: list[Callable[[], object]] = []
        for limiter in list(self._groups):
            soonest = min(soonest, self._serve_group(limiter, now, passing))
            self._groups[limiter] = heap = self._groups.pop(limiter)  # behind all others: they take turns
            if not heap:
                del self._groups[limiter]
        self._serving = True
        try:
            for begin in passing:
                begin()
        finally:
            self._serving = False
        if self._groups:
            self._arm(now, 0.0 if len(passing) >= PASS_MOST else soonest)

    def _serve_group(self, limiter: Limiter, now: float, passing: list[Callable[[], object]]) -> float:
        """Let flows of one first limiter pass; return in how many seconds the next one may."""
        heap, aside, soonest = self._groups[limiter], [], float("inf")
        while heap and len(passing) < PASS_MOST:
            _, _, flow = heap[0]
            head = flow.head()
            if head is None or head.begin is None:
                heappop(heap)
                continue
            waits = [each.wait(head.size_bytes, now) for each in flow.limiters]
            if any(waits):
                soonest = min(soonest, max(waits))
                if waits[0]:
                    break
                aside.append(heappop(heap))  # its own limit: others do not wait for that
                continue
            heappop(heap)
            flow.waiting.popleft()
            self.charge(flow.limiters, head.size_bytes)
            limiter.virtual = max(limiter.virtual, flow.tag)
            flow.tag += limiter.cost_seconds(head.size_bytes)
            passing.append(head.begin)
            if flow.head() is not None:
                heappush(heap, (flow.tag, flow.number, flow))
        heap += aside
        heapify(heap)
        return soonest

    def _arm(self, now: float, seconds: float) -> None:
        """Let the timer fire in so many seconds, unless it does earlier."""
        if self._timer is not None:
            if self._due <= now + seconds:
                return
            self._timer.cancel()
        if seconds == float("inf"):  # begun while it was served: it is looked at in the next turn
            seconds = 0.0
        self._due = now + seconds
        self._timer = self._runtime.call_later(seconds, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.serve()
