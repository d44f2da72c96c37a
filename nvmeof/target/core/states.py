"""The states that decide which commands a queue takes."""

from __future__ import annotations

from enum import Enum


class ControllerState(Enum):
    """Where a queue's controller stands, as a command sees it (NVMe Base, CC and CSTS)."""

    # Members are looked up in tables for every command; Enum's own hash is a Python function.
    __hash__ = object.__hash__

    UNCONNECTED = "unconnected"  # no Connect has succeeded on this queue yet
    DISABLED = "disabled"  # CC.EN = 0
    READY = "ready"  # CC.EN = 1, CSTS.RDY = 1
    SHUTDOWN = "shutdown"  # CSTS.SHST is 01b or 10b
    FAILED = "failed"  # CSTS.CFS = 1
    GONE = "gone"  # the association has ended; its queues are being closed


CONNECTED_STATES = frozenset(ControllerState) - {ControllerState.UNCONNECTED, ControllerState.GONE}
READY_ONLY = frozenset({ControllerState.READY})
UNCONNECTED_ONLY = frozenset({ControllerState.UNCONNECTED})
