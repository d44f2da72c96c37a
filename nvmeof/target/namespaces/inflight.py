"""Commands in flight on one namespace, including those whose queue was deleted since."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial


class InflightCommand:
    """A command in flight on one namespace. Call `end` exactly once."""

    __slots__ = ("_all", "host", "watchers")

    def __init__(self, everything: set[InflightCommand], host: bytes) -> None:
        self._all = everything
        self.host = host
        self.watchers: list[Callable[[], None]] = []

    def end(self) -> None:
        """Note that the command has completed, or would have if its queue still existed."""
        self._all.discard(self)
        for watcher in self.watchers:
            watcher()


class InflightTable:
    """The commands in flight on one namespace, by host identifier."""

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: set[InflightCommand] = set()

    def __len__(self) -> int:
        return len(self._all)

    def begin(self, host: bytes) -> InflightCommand:
        """Note the start of a command that does not complete at once."""
        begun = InflightCommand(self._all, host)
        self._all.add(begun)
        return begun

    def watch(self, hosts: Collection[bytes], done: Callable[[], None]) -> bool:
        """Call `done` when all current commands of these hosts have ended; return False when there are none."""
        chosen = {begun for begun in self._all if begun.host in hosts}

        def ended(begun: InflightCommand) -> None:
            chosen.discard(begun)
            if not chosen:
                done()

        for begun in chosen:
            begun.watchers.append(partial(ended, begun))
        return bool(chosen)
