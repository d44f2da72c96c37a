"""Every state of a zone, and what each thing that happens makes of it: the one place where that is written down.

A row is what happens, a column a zone's state, a cell the state that follows or the status of the refusal (ZNS Command
Set, Zone State Machine). A row of the controller's own has no cell where that cannot happen.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneSendAction, ZoneState

E = ZoneState.EMPTY
IO = ZoneState.IMPLICITLY_OPENED
EO = ZoneState.EXPLICITLY_OPENED
C = ZoneState.CLOSED
F = ZoneState.FULL
RO = ZoneState.READ_ONLY
OFF = ZoneState.OFFLINE

NO = Status.INVALID_ZONE_STATE_TRANSITION
IS_FULL = Status.ZONE_IS_FULL
IS_RO = Status.ZONE_IS_READ_ONLY
IS_OFF = Status.ZONE_IS_OFFLINE


class ZoneInput(Enum):
    """An input of a zone's state machine."""

    READ = "a block is read"
    WRITE = "blocks are written at the write pointer"
    OPEN = "Open Zone"
    CLOSE = "Close Zone"
    FINISH = "Finish Zone"
    RESET = "Reset Zone"
    TAKE_OFFLINE = "Offline Zone"
    SET_EXTENSION = "Set Zone Descriptor Extension"
    FILL = "the write pointer has reached the zone's capacity"
    UNFILL = "what was to fill it could not be written"
    RELEASE = "another zone needs what this one has open"
    DEGRADE = "it can no longer be written"
    LOSE = "it can no longer be read"
    RESTART = "the target was started again"


COLUMNS: Final = (E, IO, EO, C, F, RO, OFF)

_ROWS: Final[dict[ZoneInput, tuple[ZoneState | Status | None, ...]]] = {
    #                         empty  impl.  expl.  closed full      read only  offline
    ZoneInput.READ:          (E,     IO,    EO,    C,     F,        RO,        IS_OFF),
    ZoneInput.WRITE:         (IO,    IO,    EO,    IO,    IS_FULL,  IS_RO,     IS_OFF),
    ZoneInput.OPEN:          (EO,    EO,    EO,    EO,    NO,       NO,        NO),
    ZoneInput.CLOSE:         (NO,    C,     C,     C,     NO,       NO,        NO),
    ZoneInput.FINISH:        (F,     F,     F,     F,     F,        NO,        NO),
    ZoneInput.RESET:         (E,     E,     E,     E,     E,        NO,        NO),
    ZoneInput.TAKE_OFFLINE:  (NO,    NO,    NO,    NO,    NO,       OFF,       OFF),
    ZoneInput.SET_EXTENSION: (C,     NO,    NO,    NO,    NO,       NO,        NO),
    ZoneInput.FILL:          (None,  F,     F,     None,  None,     None,      None),
    ZoneInput.UNFILL:        (None,  None,  None,  None,  C,        None,      None),
    ZoneInput.RELEASE:       (None,  C,     None,  None,  None,     None,      None),
    ZoneInput.DEGRADE:       (RO,    RO,    RO,    RO,    RO,       RO,        OFF),
    ZoneInput.LOSE:          (OFF,   OFF,   OFF,   OFF,   OFF,      OFF,       OFF),
    ZoneInput.RESTART:       (E,     C,     C,     C,     F,        RO,        OFF),
}  # fmt: skip

TRANSITIONS: Final[dict[ZoneInput, dict[ZoneState, ZoneState | Status]]] = {
    what: {state: cell for state, cell in zip(COLUMNS, row, strict=True) if cell is not None}
    for what, row in _ROWS.items()
}

OPEN_STATES: Final = frozenset({IO, EO})
"""They count against MOR."""
ACTIVE_STATES: Final = frozenset({IO, EO, C})
"""They count against MAR."""

ACTIONS: Final[dict[int, ZoneInput]] = {
    ZoneSendAction.CLOSE: ZoneInput.CLOSE,
    ZoneSendAction.FINISH: ZoneInput.FINISH,
    ZoneSendAction.OPEN: ZoneInput.OPEN,
    ZoneSendAction.RESET: ZoneInput.RESET,
    ZoneSendAction.OFFLINE: ZoneInput.TAKE_OFFLINE,
    ZoneSendAction.SET_EXTENSION: ZoneInput.SET_EXTENSION,
}

SELECTED: Final[dict[ZoneInput, frozenset[ZoneState]]] = {
    ZoneInput.CLOSE: frozenset({IO, EO}),
    ZoneInput.FINISH: frozenset({IO, EO, C}),
    ZoneInput.OPEN: frozenset({C}),
    ZoneInput.RESET: frozenset({IO, EO, C, F}),
    ZoneInput.TAKE_OFFLINE: frozenset({RO}),
}
"""Which zones an action is about when it is for all of them (Select All)."""
