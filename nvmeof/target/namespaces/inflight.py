"""Commands that are being worked on for one namespace, also those whose queue has gone meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial


class InflightCommand:
    """One of them; `end` it once."""

    __slots__ = ("_all", "host", "watchers")

    def __init__(self, everything: set[InflightCommand], host: bytes) -> None:
        self._all = everything
        self.host = host
        self.watchers: list[Callable[[], None]] = []

    def end(self) -> None:
        """It has completed, or would have if its queue were still there."""
        self._all.discard(self)
        for watcher in self.watchers:
            watcher()


class InflightTable:
    """Known by the host identifiers of their hosts."""

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: set[InflightCommand] = set()

    def begin(self, host: bytes) -> InflightCommand:
        """A command that does not complete at once."""
        begun = InflightCommand(self._all, host)
        self._all.add(begun)
        return begun

    def watch(self, hosts: Collection[bytes], done: Callable[[], None]) -> bool:
        """Have `done` called when all commands of these hosts that there are now have ended; False: there are none."""
        chosen = {begun for begun in self._all if begun.host in hosts}

        def ended(begun: InflightCommand) -> None:
            chosen.discard(begun)
            if not chosen:
                done()

        for begun in chosen:
            begun.watchers.append(partial(ended, begun))
        return bool(chosen)
