"""The part of a target's queue that limits how fast it begins commands on the general path.

One receive may bring hundreds of them. Those beyond the limits are held (``TargetQueue.held``) and begin in their
order: when enough of the output has gone, when backends have completed others, or in the queue's next turn of the event
loop.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from nvmeof.protocol.config import BACKLOG_BYTES
from nvmeof.protocol.events import CommandData
from nvmeof.spec.sqe import SQE
from nvmeof.target.core.slices import LONG_SECONDS, Slices
from nvmeof.target.queue.contract import InFlight

RUNNING_MOST: Final = 128
"""While an I/O queue has this many commands in its backends, or any queue so many that are held, further ones are not
received: each may hold a copy of its data."""
HOLD_BYTES: Final = BACKLOG_BYTES
"""While more than this is to be sent, no further command takes the general path: the answer to each, a log page for
instance, may be as long as MDTS."""


class Pacing:
    """The limits of one queue: commands in backends, bytes to be sent, time in this turn of the event loop."""

    __slots__ = ("_in_turn", "_late_at", "_queue", "crowded", "slices")

    def __init__(self, queue: InFlight) -> None:
        self._queue = queue
        self.crowded = False
        """True while no more commands should be received, until some have ended."""
        self.slices: Slices | None = None
        """The shared slices of the event loop's time; None: no sharing."""
        self._late_at = 0.0  # when the general path has used its share of this turn; 0: not yet
        self._in_turn = False  # the queue's next turn was asked for

    @property
    def owner(self) -> Hashable:
        """Who takes turns with others for the event loop's time: the host, or what is at an address before Connect."""
        ctx = self._queue.ctx
        return ctx.host_nqn or ctx.peer.rpartition(":")[0]

    def hold(self, view: memoryview, capsule: CommandData | None) -> None:
        """Hold a copy of a command, and of its data in the capsule, until it may begin."""
        queue = self._queue
        raw = memoryview(bytes(view))
        if capsule is not None:
            capsule = CommandData(raw, memoryview(bytes(capsule.data)), capsule.digest_ok)
        queue.held.append((raw, capsule))
        queue.driver.wait_for_room()
        if queue.trace is not None:
            queue.trace.held(SQE.unpack_from(raw).cid)
        self.look_for_crowds()
        self.go_on_in_turn()

    def look_for_crowds(self) -> None:
        """Stop receiving while there are as many commands as there may be, or receive again."""
        self.crowded = self.full() or len(self._queue.held) >= RUNNING_MOST
        self._queue.driver.hold_receiving(self.crowded)

    def full(self) -> bool:
        """Return whether the backends have their most commands of this queue; an admin queue must always receive
        Aborts."""
        return len(self._queue.running) >= RUNNING_MOST and self._queue.ctx.qid > 0

    def new_turn(self) -> None:
        """Begin to count the time of a turn of the event loop."""
        self._late_at = 0.0

    def late(self) -> bool:
        """Return whether the queue has used its share of this turn of the event loop."""
        slices = self.slices
        if slices is None:
            return False
        if not self._late_at:
            self._late_at = slices.clock() + LONG_SECONDS
            return False
        return slices.clock() > self._late_at

    def go_on_in_turn(self) -> None:
        """Begin held commands in the queue's next turn."""
        if self.slices is not None and not self._in_turn:
            self._in_turn = True
            self.slices.add(self.owner, self._go_on)

    def _go_on(self) -> None:
        self._in_turn = False
        self._late_at = 0.0
        self._queue.go_on()
