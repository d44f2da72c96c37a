"""What a controller and its commands may do to a queue."""

from __future__ import annotations

from typing import Protocol

from nvmeof.target.core.states import QueueState


class QueueControl(Protocol):
    """One queue, as its controller and its own commands know it."""

    def close(self, reason: str) -> None:
        """End the queue, which then calls its context's `detach`."""
        ...

    def set_state(self, state: QueueState) -> None:
        """Let those commands be legal from now on whose rows name this state."""
        ...

    def abort(self, cid: int) -> bool:
        """End a command, which has no effect from then on.

        False when it cannot be ended, or not at once: its CID is then in the context's `aborting`.
        """
        ...

    def commands(self) -> dict[int, int]:
        """Return the commands in progress: NSID by CID."""
        ...

    def abort_namespace(self, nsid: int) -> None:
        """End the commands for a namespace as `abort` does (for Preempt and Abort)."""
        ...
