"""The door through which the commands of a queue have effects beyond their namespaces and their completions."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from nvmeof.errors import CommandError
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.reservations import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A command that was refused. `nsid`, `lba` and `csi` are 0 where they do not apply."""

    error: CommandError
    cid: int
    opcode: int
    nsid: int = 0
    lba: int = 0
    csi: int = 0


class Effects(Protocol):
    """What the commands of one queue bring about elsewhere: logs, counters, events, reservations, other queues.

    Reads and writes count in the namespace's counters, which each process has and sums up.
    """

    def refused(self, refusal: Refusal) -> None:
        """Note a refused command: the Error Information log, counters, and what else comes of errors of its kind."""
        ...

    def begun(self, now: float) -> None:
        """Count Controller Busy Time: an I/O command does not complete at once. Call `done` at its end."""
        ...

    def done(self, now: float) -> None:
        """Count Controller Busy Time: the command has ended."""
        ...

    def written(self) -> None:
        """Note that data is written after a sanitize operation has erased everything."""
        ...

    def change_reservation(
        self, namespace: Namespace, outcome: Outcome, *, abort: bool = False
    ) -> Awaitable[None] | None:
        """Make a namespace's registrants and reservation what `outcome` says, and notify the hosts concerned.

        Done, now or later, when it is durable where it has to be. With `abort` the commands of preempted hosts are
        ended, and those that cannot be are waited for. Raises or ends with `CommandError` when it cannot be stored.
        """
        ...

    def ended(self, reason: str, *, fault: bool = False) -> None:
        """Note the end of the queue. `fault`: one side broke the protocol."""
        ...
