"""What a queue of a target needs of whoever owns its socket and the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from nvmeof.target.core.completion import Completion


class Driver(Protocol):
    """What a queue needs of whoever owns its socket and the event loop."""

    def spawn(self, pending: Awaitable[Completion], done: Callable[[Completion], None]) -> None:
        """Wait for ``pending`` (to its end, whatever happens to the queue), then call ``done``."""
        ...

    def wake(self) -> None:
        """There is something to send that was not asked for by what was just received."""
        ...

    def finish(self, reason: str, *, fault: bool = False) -> None:
        """The queue has come to its end: send what is queued, then close the socket. ``fault``: somebody did wrong."""
        ...
