"""What a queue of a target requires of its driver, and what the parts of the queue require of the queue."""

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
from nvmeof.target.queue.watching import QueueWatcher


class Driver(Protocol):
    """The owner of the queue's socket and event loop, as the queue sees it."""

    def spawn(self, pending: Awaitable[Completion], done: Callable[[Completion], None]) -> None:
        """Wait for ``pending`` (to its end, whatever happens to the queue), then call ``done``."""
        ...

    def wake(self) -> None:
        """Send output that was not caused by the bytes received just now."""
        ...

    def wait_for_room(self) -> None:
        """Call back when some output was sent, or memory is counted for it: commands wait for that."""
        ...

    def hold_receiving(self, crowded: bool) -> None:
        """Stop receiving while ``crowded``."""
        ...

    def finish(self, reason: str, *, fault: bool = False) -> None:
        """End the queue: send what is queued, then close the socket. ``fault``: one side broke the protocol, for the
        log."""
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
    """The transfers of data that the host was asked for, by CID."""
    running: dict[int, tuple[int, CommandSpec]]
    """NSID and row by CID: commands that their handler has begun and not completed."""
    held: list[tuple[memoryview, CommandData | None]]
    """Commands that wait until enough of what is to be sent has gone."""
    detached: set[int]
    """CIDs of commands that go on although the queue has ended."""
    pending: int
    """Commands that are being worked on, Asynchronous Event Requests included."""
    trace: QueueWatcher | None
    """Who is told of the commands; None: nobody."""

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

    def go_on_with(self, transfer: R2tTransfer) -> None:
        """Continue a command of the fast path, whose data has arrived in memory of the pool, on the general path."""
        ...

    def resume(self) -> None:
        """Take commands that were held, as far as there is room for them."""
        ...

    def paused(self) -> bool:
        """Return whether no command may begin, since its namespaces are being changed."""
        ...

    def go_on(self) -> None:
        """Begin what was held, if any, and send what came of it."""
        ...
