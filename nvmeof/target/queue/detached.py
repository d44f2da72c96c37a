"""Commands that go on when their connection has gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nvmeof.spec.connect import CONNECT_DATA
from nvmeof.spec.nqn import terminated_nqn, unnamed_host
from nvmeof.wire import layout

_HOSTNQN: Final = slice(layout(CONNECT_DATA)["hostnqn"][0], sum(layout(CONNECT_DATA)["hostnqn"]))


def connecting_host(data: memoryview) -> str | None:
    """Return the host that a Connect's data names: its NQN, or one made of its identifier where that is empty; None
    for a name that is not terminated, with which Connect fails (NVMe over Fabrics, Connect Data)."""
    name = bytes(data[_HOSTNQN])
    if name[0] and not terminated_nqn(name):
        return None
    return name.split(b"\0", 1)[0].decode(errors="backslashreplace") or unnamed_host(bytes(data[:16]))


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
