"""Every state of a queue connection and every transition, for both roles, in one table.

The table knows no side: each role starts in another state, and the other role's inputs are never legal for it. An input
that a state has no row for is a PDU sequence error when the peer caused it, a
:class:`~nvmeof.errors.LocalProtocolError` when we did. The diagrams in ``docs/architecture.md`` are drawn from here
(:func:`diagram`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from ..pdu.header import PduType


class State(Enum):
    """Where a connection stands."""

    # Members are looked up in tables for every PDU; Enum's own hash is a Python function.
    __hash__ = object.__hash__

    HOST_NEW = "host: not started"
    HOST_WAIT_ICRESP = "host: ICReq sent"
    HOST_READY = "host: ready"
    TARGET_WAIT_ICREQ = "target: waiting for ICReq"
    TARGET_READY = "target: ready"
    TERMINATING = "TermReq queued"
    CLOSED = "closed"


class Input(Enum):
    """An input of a connection."""

    # Members are looked up in tables for every PDU; Enum's own hash is a Python function.
    __hash__ = object.__hash__

    START = "start"
    ICREQ = "ICReq received"
    ICRESP = "ICResp received"
    CAPSULE_CMD = "CapsuleCmd received"
    CAPSULE_RESP = "CapsuleResp received"
    H2C_DATA = "H2CData received"
    C2H_DATA = "C2HData received"
    R2T = "R2T received"
    H2C_TERM_REQ = "H2CTermReq received"
    C2H_TERM_REQ = "C2HTermReq received"
    PEER_ERROR = "peer broke a rule"
    EOF = "end of stream"
    TERMINATE = "terminate"
    FLUSHED = "TermReq taken by the socket"
    CLOSE = "close"


class Effect(Enum):
    """An effect of a transition on the connection."""

    SEND_ICREQ = "send_icreq"
    ACCEPT_ICREQ = "accept_icreq"
    ACCEPT_ICRESP = "accept_icresp"
    RECEIVE_COMMAND = "receive_command"
    RECEIVE_RESPONSE = "receive_response"
    RECEIVE_DATA = "receive_data"
    RECEIVE_R2T = "receive_r2t"
    RECEIVE_TERM_REQ = "receive_term_req"
    SEND_TERM_REQ = "send_term_req"
    REPORT_EOF = "report_eof"
    NOTHING = "nothing"


Transition = tuple[Effect, State]

_ENDINGS: Final[dict[Input, Transition]] = {
    Input.PEER_ERROR: (Effect.SEND_TERM_REQ, State.TERMINATING),
    Input.TERMINATE: (Effect.SEND_TERM_REQ, State.TERMINATING),
    Input.EOF: (Effect.REPORT_EOF, State.CLOSED),
    Input.CLOSE: (Effect.NOTHING, State.CLOSED),
}

RECEIVED: Final[dict[int, Input]] = {
    PduType.ICREQ: Input.ICREQ,
    PduType.ICRESP: Input.ICRESP,
    PduType.H2C_TERM_REQ: Input.H2C_TERM_REQ,
    PduType.C2H_TERM_REQ: Input.C2H_TERM_REQ,
    PduType.CAPSULE_CMD: Input.CAPSULE_CMD,
    PduType.CAPSULE_RESP: Input.CAPSULE_RESP,
    PduType.H2C_DATA: Input.H2C_DATA,
    PduType.C2H_DATA: Input.C2H_DATA,
    PduType.R2T: Input.R2T,
}

TRANSITIONS: Final[dict[State, dict[Input, Transition]]] = {
    State.HOST_NEW: {
        Input.START: (Effect.SEND_ICREQ, State.HOST_WAIT_ICRESP),
        **_ENDINGS,
    },
    State.HOST_WAIT_ICRESP: {
        Input.ICRESP: (Effect.ACCEPT_ICRESP, State.HOST_READY),
        Input.C2H_TERM_REQ: (Effect.RECEIVE_TERM_REQ, State.CLOSED),
        **_ENDINGS,
    },
    State.HOST_READY: {
        Input.CAPSULE_RESP: (Effect.RECEIVE_RESPONSE, State.HOST_READY),
        Input.C2H_DATA: (Effect.RECEIVE_DATA, State.HOST_READY),
        Input.R2T: (Effect.RECEIVE_R2T, State.HOST_READY),
        Input.C2H_TERM_REQ: (Effect.RECEIVE_TERM_REQ, State.CLOSED),
        **_ENDINGS,
    },
    State.TARGET_WAIT_ICREQ: {
        Input.ICREQ: (Effect.ACCEPT_ICREQ, State.TARGET_READY),
        Input.H2C_TERM_REQ: (Effect.RECEIVE_TERM_REQ, State.CLOSED),
        **_ENDINGS,
    },
    State.TARGET_READY: {
        Input.CAPSULE_CMD: (Effect.RECEIVE_COMMAND, State.TARGET_READY),
        Input.H2C_DATA: (Effect.RECEIVE_DATA, State.TARGET_READY),
        Input.H2C_TERM_REQ: (Effect.RECEIVE_TERM_REQ, State.CLOSED),
        **_ENDINGS,
    },
    State.TERMINATING: {
        # Bytes of the peer are ignored from here on.
        **dict.fromkeys((*RECEIVED.values(), Input.TERMINATE), (Effect.NOTHING, State.TERMINATING)),
        Input.FLUSHED: (Effect.NOTHING, State.CLOSED),
        Input.EOF: (Effect.REPORT_EOF, State.CLOSED),
        Input.CLOSE: (Effect.NOTHING, State.CLOSED),
    },
    State.CLOSED: {
        **dict.fromkeys((*RECEIVED.values(), Input.EOF, Input.CLOSE), (Effect.NOTHING, State.CLOSED)),
    },
}

READY: Final = frozenset({State.HOST_READY, State.TARGET_READY})
ENDED: Final = frozenset({State.TERMINATING, State.CLOSED})
"""What arrives is discarded, and nothing more is queued."""


def diagram() -> str:
    """Return the table as a Mermaid state diagram, one arrow per pair of states."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for state, row in TRANSITIONS.items():
        for happened, (_, after) in row.items():
            arrows.setdefault((state, after), []).append(happened.value)
    lines = ["stateDiagram-v2", "    [*] --> HOST_NEW", "    [*] --> TARGET_WAIT_ICREQ"]
    for (before, after), labels in arrows.items():
        if before is after and before in (State.TERMINATING, State.CLOSED):
            continue
        lines.append(f"    {before.name} --> {after.name}: {', '.join(labels)}")
    lines.append("    CLOSED --> [*]")
    return "\n".join(lines)
