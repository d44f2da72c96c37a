"""The history of a subsystem: what happened to it, for the Persistent Event log. It outlives the process.

Handlers add events through `Controller.record`, which knows the time and the controller; the functions here make the
data of each type of event.
"""

from __future__ import annotations

import base64
import logging
from collections import deque
from collections.abc import Awaitable
from typing import Any, Final

from nvmeof.spec.persistent_events import (
    CHANGE_NAMESPACE,
    FORMAT_COMPLETION,
    FORMAT_START,
    HARDWARE_ERROR,
    POWER_ON_OR_RESET,
    RESET_INFORMATION,
    SANITIZE_COMPLETION,
    SANITIZE_START,
    SET_FEATURE,
    SET_FEATURE_LOGGED_DW0,
    SET_FEATURE_MEMORY_SHIFT,
    TIMESTAMP_CHANGE,
    EventType,
    HardwareErrorCode,
    PersistentEvent,
)
from nvmeof.target.core.metadata import MetadataStore
from nvmeof.wire import build

SECTION: Final = "history"
HISTORY_BYTES: Final = 64 * 1024 - 512
"""What all events take together in the log page (PELS: 64 KiB with its header); the oldest make room."""
FREQUENT_SECONDS: Final = 60.0
FREQUENT_EVENTS: Final = 32
"""So many events of one type in so many seconds; more are not written down."""
NO_CONTROLLER: Final = 0xFFFF
_DATA_BYTES_MAX: Final = 512
"""So much of a feature's data is written down; zeroes at its end are not."""

logger = logging.getLogger(__name__)


class History:
    """Events, oldest first. `generation` counts reporting contexts that were made."""

    def __init__(self, metadata_store: MetadataStore) -> None:
        self._metadata_store = metadata_store
        self._events: deque[PersistentEvent] = deque()
        self._recent: dict[int, deque[float]] = {}
        self._bytes = 0
        self.suppressed = 0
        self.generation = 0
        self._restore(metadata_store.get(SECTION))

    def _restore(self, stored: Any) -> None:
        try:
            self.generation = int((stored or {}).get("generation", 0))
            for each in (stored or {}).get("events", ()):
                self._append(_load(each))
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            logger.warning("the stored history cannot be read (%s); it goes on from here", error)

    def __len__(self) -> int:
        return len(self._events)

    @property
    def events(self) -> tuple[PersistentEvent, ...]:
        """All stored events, the oldest first."""
        return tuple(self._events)

    def add(
        self,
        kind: EventType,
        data: bytes,
        *,
        now: float,
        timestamp: bytes = bytes(8),
        cntlid: int = NO_CONTROLLER,
        portid: int | None = None,
    ) -> None:
        """Append an event. `now`: seconds on the runtime's clock; `timestamp`: as Feature 0Eh reports it."""
        recent = self._recent.setdefault(kind, deque(maxlen=FREQUENT_EVENTS))
        if len(recent) == FREQUENT_EVENTS and now - recent[0] < FREQUENT_SECONDS:
            self.suppressed += 1
            return
        recent.append(now)
        self._append(PersistentEvent(kind, timestamp, cntlid, portid, data))
        self.save()

    def next_generation(self) -> int:
        """Return the generation number (16 bits) of a new reporting context."""
        self.generation = (self.generation + 1) & 0xFFFF
        self.save()
        return self.generation

    def save(self) -> None:
        """Store all events. A failure is logged and fails no command."""
        value = {"generation": self.generation, "events": [_dump(event) for event in self._events]}
        try:
            watch(self._metadata_store.put(SECTION, value), "the history")
        except OSError as error:
            _not_kept(error, "the history")

    def _append(self, event: PersistentEvent) -> None:
        self._events.append(event)
        self._bytes += event.length_bytes
        while self._bytes > HISTORY_BYTES:
            self._bytes -= self._events.popleft().length_bytes


def watch(pending: Awaitable[None] | None, what: str) -> None:
    """Log the error of a background save."""

    def ended(future: Any) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            _not_kept(error, what)

    # A metadata store that takes time returns futures of its event loop.
    add_done_callback = getattr(pending, "add_done_callback", None)
    if add_done_callback is not None:
        add_done_callback(ended)


def _not_kept(error: BaseException, what: str) -> None:
    logger.warning("%s could not be stored: %s", what, error)


def _dump(event: PersistentEvent) -> list[Any]:
    data = base64.b64encode(event.data).decode()
    return [event.type, event.timestamp.hex(), event.cntlid, event.portid, data]


def _load(stored: list[Any]) -> PersistentEvent:
    kind, timestamp, cntlid, portid, data = stored
    return PersistentEvent(int(kind), bytes.fromhex(timestamp), int(cntlid), portid, base64.b64decode(data))


# The data of events


def power_on_or_reset(firmware: str, controllers: list[tuple[int, int, int, bytes]]) -> bytes:
    """Return the data of event 04h. Controllers as CNTLID, power cycles, power-on milliseconds and timestamp."""
    descriptors = b"".join(
        build(RESET_INFORMATION, cntlid=cntlid, cpwrc=cycles & 0xFFFFFFFF, poms=milliseconds, cts=timestamp)
        for cntlid, cycles, milliseconds, timestamp in controllers
    )
    return build(POWER_ON_OR_RESET, fr=firmware) + descriptors


def timestamp_change(before: bytes, since_reset_ms: int) -> bytes:
    """Return the data of event 03h: the timestamp as it was, and how long ago the controller was reset."""
    return build(TIMESTAMP_CHANGE, ptstp=before, msr=since_reset_ms)


def hardware_error(code: HardwareErrorCode) -> bytes:
    """Return the data of event 05h."""
    return build(HARDWARE_ERROR, nssheec=code)


def change_namespace(cdw10: int, nsid: int, **fields: int) -> bytes:
    """Return the data of event 06h, of a Namespace Management command. `fields`: `nsze`, `ncap`, `flbas`, `nmic`,
    `anagrpid`, ..."""
    return build(CHANGE_NAMESPACE, nmcdw10=cdw10, nsid=nsid, **fields)


def format_start(nsid: int, fna: int, cdw10: int) -> bytes:
    """Return the data of event 07h."""
    return build(FORMAT_START, nsid=nsid, fna=fna, fcdw10=cdw10)


def format_completion(nsid: int, status_field: int, *, failed: bool = False) -> bytes:
    """Return the data of event 08h. `status_field`: as in the CQE (phase bit included)."""
    return build(FORMAT_COMPLETION, nsid=nsid, fstat=int(failed), info=status_field)


def sanitize_start(sanicap: int, cdw10: int, cdw11: int) -> bytes:
    """Return the data of event 09h."""
    return build(SANITIZE_START, sanicap=sanicap, scdw10=cdw10, scdw11=cdw11)


def sanitize_completion(sprog: int, sstat: int) -> bytes:
    """Return the data of event 0Ah: progress and status as in the Sanitize Status log."""
    return build(SANITIZE_COMPLETION, sprog=sprog, sstat=sstat)


def set_feature(dwords: list[int], data: bytes, dw0: int) -> bytes:
    """Return the data of event 0Bh: dwords from CDW10 on (1 to 6), the data buffer, DW0 of the completion."""
    data = data[:_DATA_BYTES_MAX].rstrip(b"\0")
    layout = len(dwords) | SET_FEATURE_LOGGED_DW0 | len(data) << SET_FEATURE_MEMORY_SHIFT
    words = b"".join(dword.to_bytes(4, "little") for dword in dwords)
    return build(SET_FEATURE, sfel=layout) + words + data + dw0.to_bytes(4, "little")
