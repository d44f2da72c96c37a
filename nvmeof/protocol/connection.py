"""The queue connection: one class, two roles, no sockets, no clock.

Whoever drives it does four things, in any order that its socket allows:

- receive into ``next_buffer()`` and tell ``bytes_received(n, now)``; handle the events before the next receive, for
  their views point into the receive buffer;
- give ``data_to_send()`` to one ``sendmsg`` and tell ``bytes_sent(n)``, in one step without waiting in between;
- stop receiving while ``want_read`` is false, wait for the socket to take data while ``want_write`` is true;
- tell ``eof_received()``, and ``close()`` at the end, after which all buffers are free.

What the peer does wrong comes as a ``ProtocolFailure``, with the TermReq queued: send it, then close the socket.
"""

from __future__ import annotations

from typing import Any

from .config import ConnectionConfig, Role, Tap
from .events import Event
from .host import HostSide
from .states import Effect, State
from .target import TargetSide

__all__ = ["Connection", "ConnectionConfig", "Role", "State", "Tap"]


class Connection(HostSide, TargetSide):
    """One NVMe/TCP queue connection, as a host or as a target."""

    __slots__ = ()

    def __init__(self, role: Role, config: ConnectionConfig, receive_buffer: bytearray | None = None) -> None:
        super().__init__(role, config, receive_buffer)
        # Functions, not methods of this object: those would keep it alive in a cycle.
        self._take_run = TargetSide._take_commands if role is Role.TARGET else HostSide._take_responses
        self._payload_done = TargetSide._h2c_data_done if role is Role.TARGET else HostSide._c2h_data_done

    def _receive_data(self, pdu: memoryview, length: int) -> tuple[Any, memoryview]:
        if self.role is Role.TARGET:
            return self._receive_h2c_data(pdu, length)
        return self._receive_c2h_data(pdu, length)

    def _receive(self, effect: Effect, pdu: memoryview, offset: int, length: int, events: list[Event]) -> None:
        if effect is Effect.RECEIVE_COMMAND:
            self._receive_command(pdu, offset, length, events)
        elif effect is Effect.RECEIVE_RESPONSE:
            self._receive_response(pdu, events)
        elif effect is Effect.RECEIVE_R2T:
            self._receive_r2t(pdu)
        elif effect is Effect.ACCEPT_ICREQ:
            self._accept_icreq(pdu, events)
        elif effect is Effect.ACCEPT_ICRESP:
            self._accept_icresp(pdu, events)
        else:
            super()._receive(effect, pdu, offset, length, events)
