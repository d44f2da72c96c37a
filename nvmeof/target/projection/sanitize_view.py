"""What commands know of a subsystem's sanitize operation."""

from __future__ import annotations

from enum import Enum


class SanitizeState(Enum):
    """Where a sanitize operation stands (NVMe Base, Sanitize Operation State Machine)."""

    IDLE = "idle"
    RESTRICTED_PROCESSING = "restricted processing"
    UNRESTRICTED_PROCESSING = "unrestricted processing"
    RESTRICTED_FAILURE = "restricted failure"
    UNRESTRICTED_FAILURE = "unrestricted failure"

    @property
    def processing(self) -> bool:
        return self in (SanitizeState.RESTRICTED_PROCESSING, SanitizeState.UNRESTRICTED_PROCESSING)

    @property
    def failure(self) -> bool:
        return self in (SanitizeState.RESTRICTED_FAILURE, SanitizeState.UNRESTRICTED_FAILURE)


class SanitizeView:
    """The state, and whether nothing has been written since the last operation erased everything (SSTAT.GDE).

    One for all associations of a subsystem; only its `Sanitizer` changes it.
    """

    __slots__ = ("erased", "state")

    def __init__(self) -> None:
        self.state = SanitizeState.IDLE
        self.erased = False
