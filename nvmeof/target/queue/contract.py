"""What a queue of a target needs of whoever drives it, and what the parts of the queue need of the queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from nvmeof.errors import CommandError
from nvmeof.protocol.connection import TargetConnection
from nvmeof.protocol.events import CommandData
from nvmeof.protocol.transfers import R2tTransfer
from nvmeof.spec.sqe import Sqe
from nvmeof.target.commands.admin_context import AnyContext
from nvmeof.target.commands.dispatch.base import CommandSpec
from nvmeof.target.core.completion import Completion
from nvmeof.target.core.pool import BufferPool, MemoryShare
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.tracing import CommandTrace


class Driver(Protocol):
    """What a queue needs of whoever owns its socket and the event loop."""

    def spawn(self, pending: Awaitable[Completion], done: Callable[[Completion], None]) -> None:
        """Wait for ``pending`` (to its end, whatever happens to the queue), then call ``done``."""
        ...

    def wake(self) -> None:
        """There is something to send that was not asked for by what was just received."""
        ...

    def wait_for_room(self) -> None:
        """Commands wait until some of the output has gone, or memory is counted for it: tell when it has."""
        ...

    def hold_receiving(self, crowded: bool) -> None:
        """Receive no more while ``crowded``."""
        ...

    def finish(self, reason: str, *, fault: bool = False) -> None:
        """The queue has come to its end: send what is queued, then close the socket. ``fault``: somebody did wrong."""
        ...


class InFlight(Protocol):
    """What the parts of a queue need of it: the commands in flight, and how a command begins and ends."""

    ctx: AnyContext
    connection: TargetConnection
    driver: Driver
    pool: BufferPool
    share: MemoryShare
    detached_commands: DetachedCommands
    closed: bool
    busy: set[int]
    """CIDs in use: of commands that did not complete at once."""
    transfers: dict[int, R2tTransfer]
    """By CID: data that the host was asked for."""
    running: dict[int, tuple[int, CommandSpec]]
    """NSID and row by CID: commands that their handler has begun and not completed."""
    held: list[tuple[memoryview, CommandData | None]]
    """Commands that wait until enough of what is to be sent has gone."""
    pending: int
    """Commands that are being worked on, Asynchronous Event Requests included."""
    trace: CommandTrace | None
    """Where events are reported to; None: nobody listens."""

    def command(self, view: memoryview, capsule: CommandData | None) -> None:
        """Begin a command by the general path, or hold it while too much waits to be sent."""
        ...

    def begin(self, view: memoryview, capsule: CommandData | None) -> None:
        """Begin a command by the general path now."""
        ...

    def complete(self, sqe: Sqe, completion: Completion) -> None:
        """End a command: its CID is free, and its completion is queued."""
        ...

    def refuse(self, sqe: Sqe, error: CommandError) -> None:
        """End a command with an error."""
        ...

    def conflict(self, sqe: Sqe) -> None:
        """Refuse a command whose CID is in use; the one that uses it goes on."""
        ...

    def late(self) -> bool:
        """Tell whether the queue has had its share of this turn of the event loop."""
        ...

    def paused(self) -> bool:
        """Tell whether no command may begin, since its namespaces are being changed."""
        ...

    def go_on_in_turn(self) -> None:
        """Take what is held when it is the queue's turn again."""
        ...
