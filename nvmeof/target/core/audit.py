"""What an audit log is told: who connected, who was refused, who proved what, and who changed what.

What is told is never a secret: names, addresses, statuses, and sentences of the target's own.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class AuditEvent(StrEnum):
    """What has happened."""

    CONNECT = "connect"  # a Connect command, accepted or refused
    CONNECTION_REFUSED = "connection-refused"  # before any command: too many
    AUTHENTICATION = "authentication"  # of a host, succeeded or failed
    COMMAND = "command"  # that changes what other hosts see, done or refused
    ADMINISTRATION = "administration"  # a verb of the control that changes the target, done or refused


class Audit(Protocol):
    """Takes an event at once, and raises nothing.

    `granted`: whether the peer got what it wanted. `peer`: its address. `host`, `subsystem`: NQNs, as the peer gave
    them; empty where none is known. `details`: further fields, by name.
    """

    def __call__(
        self, event: AuditEvent, *, granted: bool, peer: str, host: str = "", subsystem: str = "", **details: str | int
    ) -> None: ...
