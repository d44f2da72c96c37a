"""The states that decide which commands a queue takes: its own, and those of its controller."""

from __future__ import annotations

from enum import Enum
from typing import Final


class ControllerState(Enum):
    """Where a queue's controller stands, as a command sees it (NVMe Base, CC and CSTS)."""

    # Members are looked up in tables for every command; Enum's own hash is a Python function.
    __hash__ = object.__hash__

    DISABLED = "disabled"  # CC.EN = 0
    READY = "ready"  # CC.EN = 1, CSTS.RDY = 1
    SHUTDOWN = "shutdown"  # CSTS.SHST is 01b or 10b
    FAILED = "failed"  # CSTS.CFS = 1
    GONE = "gone"  # the association has ended; its queues are being closed


class QueueState(Enum):
    """Where a queue stands between its Connect and its first command (NVMe Base, NVMe In-band Authentication)."""

    __hash__ = object.__hash__

    UNCONNECTED = "unconnected"  # no Connect has succeeded on it yet
    CONNECTED = "connected"  # its host has to authenticate, and has not begun to
    AUTHENTICATING = "authenticating"  # an authentication transaction is in progress
    READY = "ready"


LIVE_STATES: Final = frozenset(ControllerState) - {ControllerState.GONE}
READY_ONLY: Final = frozenset({ControllerState.READY})
QUEUE_READY_ONLY: Final = frozenset({QueueState.READY})
UNCONNECTED_ONLY: Final = frozenset({QueueState.UNCONNECTED})
AUTHENTICATION_STATES: Final = frozenset(QueueState) - {QueueState.UNCONNECTED}
"""The states in which a queue takes authentication commands; one that is ready may be authenticated again."""
