"""The work of both hosts: run the load, record each change of a path, and end on request when all paths are back.

Runs in the guest too, with nothing but Python's library.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .load import Device, VerifyingLoad

POLL_SECONDS = 0.02
WELL_SECONDS = 2.0
"""Seconds for which all paths must have been usable."""


@dataclass(frozen=True)
class Order:
    """A host's order, as JSON on its command line."""

    nqn: str
    addresses: list[str]
    run: int
    first: int
    blocks: int
    stop: str
    """A file that appears when the event is over; it has the seconds that the host waits further for all paths."""
    ports: list[int] = field(default_factory=lambda: [4420, 4420])
    """The port of each address."""


Snapshot = dict[str, str]
"""The visible state of paths and namespace: ``10.78.1.2 state`` is ``live``, for instance."""


class Timeline:
    """Changes of a snapshot over time, and the paths that carried commands."""

    def __init__(self, look: Callable[[], Snapshot], carried: Callable[[], dict[str, int]]) -> None:
        self.changes: list[tuple[float, str, str]] = []
        self.carried: list[tuple[float, str, int]] = []
        self.now: Snapshot = {}
        self._look, self._count = look, carried
        self._before: dict[str, int] = {}

    def poll(self) -> None:
        """Take one snapshot."""
        at, seen = time.time(), self._look()
        for key in self.now.keys() | seen.keys():
            if self.now.get(key) != seen.get(key):
                self.changes.append((at, key, seen.get(key, "gone")))
        self.now = seen
        for path, count in self._count().items():
            if count > self._before.get(path, count):
                self.carried.append((at, path, count - self._before[path]))
            self._before[path] = count


async def attend(order: Order, device: Device, timeline: Timeline) -> dict[str, Any]:
    """Run the load until the order's file comes and the paths are what they were before, or time is up."""
    load = VerifyingLoad(device, order.run, order.first, order.blocks)
    await load.fill()
    timeline.poll()
    at_first = timeline.now
    load.start()
    print("ready", flush=True)
    told_at = well_since = None
    limit = 0.0
    while True:
        timeline.poll()
        now = time.time()
        if told_at is None and (limit := told(order.stop)):
            told_at = now
        well_since = (well_since or now) if timeline.now == at_first else None
        if told_at is not None:
            recovered = well_since is not None and now - max(well_since, told_at) > WELL_SECONDS
            if recovered or now - told_at > limit:
                break
        await asyncio.sleep(POLL_SECONDS)
    await asyncio.wait_for(load.stop(), 60)
    compared = await load.verify() if not load.errors else 0
    return {**load.result(), "compared": compared, "changes": timeline.changes, "carried": timeline.carried}


def told(stop: str) -> float:
    """Return the number in the order's file, 0 without the file."""
    try:
        return float(Path(stop).read_text() or 0)
    except OSError:
        return 0.0


def order_of(text: str) -> Order:
    """Read an order from the command line."""
    return Order(**json.loads(text))
