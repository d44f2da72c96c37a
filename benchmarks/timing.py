"""Nanoseconds per call, in CPU time of the thread: what others do on the machine counts less."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

Call = Callable[[], Any]


def _loops(call: Call, seconds: float) -> int:
    loops = 1
    while True:
        spent = timeit.Timer(call, timer=time.thread_time).timeit(loops)
        if spent >= seconds / 4 or loops >= 1 << 24:
            return max(1, int(loops * seconds / max(spent, 1e-9)))
        loops *= 4


def nanoseconds(calls: Sequence[Call], *, seconds: float = 0.02, repeats: int = 7) -> list[dict[str, float]]:
    """Best and median time of each call, rounds interleaved so that all of them see the same weather.

    The best is what the code costs when nothing disturbs it; a median far above it tells of disturbance.
    """
    loops = [_loops(call, seconds) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for index, call in enumerate(calls):
            spent = timeit.Timer(call, timer=time.thread_time).timeit(loops[index])
            times[index].append(spent / loops[index] * 1e9)
    return [{"best_ns": min(t), "median_ns": median(t)} for t in times]
