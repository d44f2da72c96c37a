"""The authentication of one queue's host, from the queue's Connect to its end."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from nvmeof.runtime import Runtime
from nvmeof.security.dhchap_controller import ControllerExchange, HostKeys, Step
from nvmeof.security.tls.key import TlsKey
from nvmeof.target.core.audit import AuditEvent
from nvmeof.target.core.connection_limits import AddressShares
from nvmeof.target.core.fifo_lock import FifoLock
from nvmeof.target.core.log_rate import PeerLog, left_out_text
from nvmeof.target.core.queue_control import QueueControl
from nvmeof.target.core.states import QueueState

T = TypeVar("T")
AUTHENTICATION_SECONDS: Final = 30.0
"""How long a host may take from its Connect until it has authenticated itself."""
MOST_PENDING: Final = 128
"""How many queues of a target may be connected and not authenticated, shared out by address; a Connect beyond is
answered with "busy"."""
MOST_TRANSACTIONS: Final = 4
"""How often a host may begin without having authenticated itself once."""

logger = logging.getLogger("nvmeof.target.authentication")


class AuthenticationLimits:
    """What unauthenticated hosts take of a target: how many queues, by address, and one exponentiation at a time."""

    def __init__(self) -> None:
        self._shares = AddressShares(MOST_PENDING)
        self.computing = FifoLock()

    @property
    def pending(self) -> int:
        """How many queues wait for their host's authentication."""
        return self._shares.taken

    def full(self, peer: str) -> bool:
        """Return whether no further queue of a peer, ``192.0.2.1:4420``, may wait for its host's authentication."""
        return not self._shares.has_room(_address(peer))

    def begin(self, peer: str) -> bool:
        """Count a queue that waits; False where that peer has its share."""
        return self._shares.take(_address(peer))

    def end(self, peer: str) -> None:
        """Take note that a queue which was counted waits no longer."""
        self._shares.give(_address(peer))


def _address(peer: str) -> str:
    return peer.rpartition(":")[0] or peer


class QueueAuthentication:
    """Decides when a queue is ready, and when it ends since its host is not who it says.

    `reauthentication_seconds`: how long an authentication is good; 0: for the queue's life. A host that does not repeat
    it in time is named in the log, and its queue ends. `channel` takes the TLS key that a host has made; None: none can
    be made. `only_channel`: the queue is for that alone, and is never ready for other commands.

    `keys_now` returns what the host has to authenticate itself with at that time; None: it has nothing, and must not.
    A host that has begun with keys that are others in the end has not authenticated itself.
    """

    def __init__(
        self,
        runtime: Runtime,
        limits: AuthenticationLimits,
        queue: QueueControl,
        keys_now: Callable[[], HostKeys | None],
        peer_log: PeerLog,
        *,
        peer: str,
        hostnqn: str,
        subnqn: str,
        qid: int,
        reauthentication_seconds: float,
        channel: Callable[[TlsKey], object] | None = None,
        only_channel: bool = False,
    ) -> None:
        self._channel = channel
        self._only_channel = only_channel
        self._runtime = runtime
        self._limits = limits
        self._queue = queue
        self._peer_log, self._peer = peer_log, peer
        self._names = hostnqn, subnqn, qid
        self._who = f"host {hostnqn} of {subnqn}, queue {qid}"
        self._reauthentication_seconds = reauthentication_seconds
        self._keys_now = keys_now
        self._exchange = ControllerExchange(
            keys_now,
            hostnqn=hostnqn,
            subnqn=subnqn,
            in_thread=self._in_thread,
            concatenates=channel is not None,
            must_concatenate=only_channel,
        )
        self._pending = True
        self._counted = limits.begin(peer)  # Connect has looked whether there is room
        self._busy = False
        self._transactions = 0
        self._timer = runtime.call_later(AUTHENTICATION_SECONDS, self._late)

    @property
    def busy(self) -> bool:
        """Return whether a message is being worked on: the next one has to wait for its completion."""
        return self._busy

    @property
    def text(self) -> str:
        """Return what was agreed on, for a report; empty before."""
        return "" if self._pending else self._exchange.chosen

    def _in_thread(self, function: Callable[[], T]) -> Awaitable[T]:
        return self._compute(function)

    async def _compute(self, function: Callable[[], T]) -> T:
        async with self._limits.computing.turn(self._runtime):
            return await self._runtime.in_thread(function)

    async def receive(self, message: bytes) -> None:
        """Take a message of Authentication Send."""
        self._busy = True
        try:
            if self._pending:
                self._queue.set_state(QueueState.AUTHENTICATING)
            await self._exchange.receive(message)
        finally:
            self._busy = False
        self._settle()

    def message(self) -> bytes:
        """Return the message of Authentication Receive."""
        if self._exchange.step is Step.CHALLENGE:
            self._transactions += 1
        message = self._exchange.message()
        self._settle()
        return message

    @property
    def ending(self) -> str:
        """Return why the queue ends once the present completion is sent; empty where it goes on."""
        if self._exchange.step is Step.FAILED:
            return f"authentication failed: {self._exchange.failure}"
        if self._pending and self._transactions > MOST_TRANSACTIONS:
            return f"the host began {self._transactions} authentications and finished none"
        return ""

    def _settle(self) -> None:
        step = self._exchange.step
        if step is Step.FAILED:
            self._timer.cancel()
            self._warn(f"authentication failed: {self._exchange.failure}")
        elif step is Step.DONE and self._exchange.keys != self._keys_now():
            self._timer.cancel()
            self._exchange.generated = None
            self._warn("authentication failed: the host's keys were changed meanwhile; its connection is closed")
            self._queue.close("the host's keys were changed while it authenticated itself")
        elif step is Step.DONE:
            self._succeeded()

    def _succeeded(self) -> None:
        self._timer.cancel()
        self._tell(True, self._exchange.chosen)
        both = ", the controller too" if self._exchange.bidirectional else ""
        key = self._exchange.generated
        if key is not None and self._channel is not None:
            self._channel(key)
            both += ", with a key for TLS"
        logger.info("%s: authenticated (%s%s)", self._who, self._exchange.chosen, both)
        if self._only_channel:
            self._release()
            self._timer = self._runtime.call_later(AUTHENTICATION_SECONDS, self._stays)
            return
        if self._pending:
            self._release()
            self._queue.set_state(QueueState.READY)
        if self._reauthentication_seconds:
            self._timer = self._runtime.call_later(self._reauthentication_seconds, self._late)

    def _late(self) -> None:
        seconds = AUTHENTICATION_SECONDS if self._pending else self._reauthentication_seconds
        self._warn(f"not authenticated within {seconds:g} s; its connection is closed")
        self._queue.close(f"the host did not authenticate itself within {seconds:g} s")

    def _stays(self) -> None:
        self._queue.close("the host has its key for TLS, and goes on in clear")

    def _tell(self, granted: bool, text: str) -> None:
        audit = self._peer_log.audit
        if audit is not None:
            hostnqn, subnqn, qid = self._names
            audit(
                AuditEvent.AUTHENTICATION,
                granted=granted,
                peer=self._peer,
                host=hostnqn,
                subsystem=subnqn,
                queue=qid,
                reason=text,
            )

    def _warn(self, text: str) -> None:
        self._tell(False, text)
        left_out = self._peer_log.strangers.admit(self._peer, self._runtime.now())
        if left_out is not None:
            logger.warning("%s: %s%s", self._who, text, left_out_text(left_out))

    def _release(self) -> None:
        self._pending = False
        if self._counted:
            self._counted = False
            self._limits.end(self._peer)

    def ended(self) -> None:
        """Let go when the queue has ended."""
        self._timer.cancel()
        self._release()
