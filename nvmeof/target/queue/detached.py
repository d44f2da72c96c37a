"""Commands that go on when their connection has gone."""

from __future__ import annotations

from collections.abc import Callable


class DetachedCommands:
    """Commands that outlived their connection, by host.

    A host that comes back must not be overtaken by its own old writes: its new association waits for them.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def add(self, host_nqn: str) -> None:
        """Count a command of this host that goes on without a connection."""
        self._counts[host_nqn] = self._counts.get(host_nqn, 0) + 1

    def done(self, host_nqn: str) -> None:
        """Note that one of the host's commands has ended."""
        left = self._counts.pop(host_nqn) - 1
        if left:
            self._counts[host_nqn] = left
            return
        for resume in self._waiting.pop(host_nqn, ()):
            resume()

    def wait(self, host_nqn: str, resume: Callable[[], None]) -> bool:
        """Return whether the host has such commands; if so, call ``resume`` when the last one has ended."""
        if host_nqn not in self._counts:
            return False
        self._waiting.setdefault(host_nqn, []).append(resume)
        return True
