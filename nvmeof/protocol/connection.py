"""The queue connection: a class for each of its two ends; no sockets, no clock.

Its driver does four things, in any order that its socket allows:

- receive into ``next_buffer()`` and call ``bytes_received(n, now)``; handle the events before the next receive, for
  their views point into the receive buffer;
- give ``data_to_send()`` to one ``sendmsg`` and call ``bytes_sent(n)``, in one step without waiting in between;
- stop receiving while ``want_read`` is false, wait for the socket to take data while ``want_write`` is true;
- call ``eof_received()``, and ``close()`` at the end, after which all buffers are free.

What the peer does wrong comes as a ``ProtocolFailure``, with the TermReq queued: send it, then close the socket.
"""

from __future__ import annotations

from typing import TypeAlias

from .config import ConnectionConfig, Tap
from .host import HostConnection
from .states import State
from .target import TargetConnection

__all__ = ["Connection", "ConnectionConfig", "HostConnection", "State", "Tap", "TargetConnection"]

Connection: TypeAlias = HostConnection | TargetConnection
"""Either end; what both have is :class:`nvmeof.protocol.engine.Engine`."""
