"""The Persistent Event log page, 0Dh (NVMe Base 2.x): its header, and the events that it holds.

Field names are the specification's in lower case, values raw. A timestamp is the 8 bytes of Feature 0Eh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import construct as c

from nvmeof.wire import U8, U16, U32, U64, U128, Buffer, PaddedText, build


class EventType(IntEnum):
    """Types of persistent events; bit numbers of the Supported Events Bitmap too."""

    SMART_SNAPSHOT = 0x01
    FIRMWARE_COMMIT = 0x02
    TIMESTAMP_CHANGE = 0x03
    POWER_ON_OR_RESET = 0x04
    HARDWARE_ERROR = 0x05
    CHANGE_NAMESPACE = 0x06
    FORMAT_START = 0x07
    FORMAT_COMPLETION = 0x08
    SANITIZE_START = 0x09
    SANITIZE_COMPLETION = 0x0A
    SET_FEATURE = 0x0B
    TELEMETRY_CREATED = 0x0C
    THERMAL_EXCURSION = 0x0D
    SANITIZE_MEDIA_VERIFICATION = 0x0E


EVENT_REVISION: dict[int, int] = {EventType.CHANGE_NAMESPACE: 2}
"""Event Type Revision where it is not 1."""


class HardwareErrorCode(IntEnum):
    """The code of an NVM Subsystem Hardware Error event."""

    CRITICAL_WARNING = 0x06
    UNSAFE_SHUTDOWN = 0x08
    CONTROLLER_FATAL_STATUS = 0x09
    MEDIA_AND_DATA_INTEGRITY = 0x0A


class LogAction(IntEnum):
    """Log Specific Parameter bits 1:0 of Get Log Page."""

    READ = 0
    ESTABLISH_AND_READ = 1
    RELEASE = 2
    ESTABLISH_AND_READ_HEADER = 3


HEADER_BYTES = 512
HEADER = c.Struct(
    "lid" / U8,
    c.Padding(3),
    "tnev" / U32,
    "tll" / U64,
    "lrev" / U8,
    c.Padding(1),
    "lhl" / U16,
    "tstmp" / c.Bytes(8),
    "poh" / U128,
    "pwrcc" / U64,
    "vid" / U16,
    "ssvid" / U16,
    "sn" / PaddedText(20, b" "),
    "mn" / PaddedText(40, b" "),
    "subnqn" / PaddedText(256),
    "gnum" / U16,
    "rci" / U32,
    c.Padding(102),
    "seb" / c.Bytes(32),
)
"""512 bytes. ``tnev``: number of events; ``tll``: length of everything; ``lhl``: header length from byte 20 on;
``gnum``: changes with the reporting context; ``rci``: see :data:`RCI_CONTEXT_EXISTS`."""
LOG_REVISION = 3
HEADER_LENGTH_FIELD = HEADER_BYTES - 20
RCI_CONTEXT_EXISTS = 1 << 18
RCI_SUBSYSTEM_PORT = 1 << 16
"""Reporting Context Information: a context was there already, made through the subsystem port of bits 15:0."""

EVENT_HEADER_BYTES = 24
EVENT_HEADER = c.Struct(
    "etype" / U8,
    "etrev" / U8,
    "ehl" / U8,
    "ehai" / U8,
    "cntlid" / U16,
    "ets" / c.Bytes(8),
    "pelpid" / U16,
    c.Padding(4),
    "vsil" / U16,
    "el" / U16,
)
"""``ehl``: header length from byte 3 on; ``el``: what follows the header, vendor specific information included."""
EHAI_SUBSYSTEM_PORT = 1
EHAI_NO_PORT = 3

POWER_ON_OR_RESET = c.Struct("fr" / PaddedText(8, b" "))
RESET_INFORMATION = c.Struct(
    "cntlid" / U16,
    "fact" / U8,
    "opip" / U8,
    c.Padding(12),
    "cpwrc" / U32,
    "poms" / U64,
    "cts" / c.Bytes(8),
)
"""Event 04h: the firmware revision, then a descriptor of 36 bytes for each controller."""

TIMESTAMP_CHANGE = c.Struct("ptstp" / c.Bytes(8), "msr" / U64)
HARDWARE_ERROR = c.Struct("nssheec" / U16, c.Padding(2))
CHANGE_NAMESPACE = c.Struct(
    "nmcdw10" / U32,
    c.Padding(4),
    "nsze" / U64,
    c.Padding(8),
    "ncap" / U64,
    "flbas" / U8,
    "dps" / U8,
    "nmic" / U8,
    c.Padding(1),
    "anagrpid" / U32,
    "nvmsetid" / U16,
    "endgid" / U16,
    "nsid" / U32,
)
"""Event 06h, 48 bytes."""
FORMAT_START = c.Struct("nsid" / U32, "fna" / U8, c.Padding(3), "fcdw10" / U32)
FORMAT_COMPLETION = c.Struct("nsid" / U32, "sfpi" / U8, "fstat" / U8, "cinfo" / U16, "info" / U16, c.Padding(2))
"""Event 08h, 12 bytes. ``info``: the status field of the completion (phase bit included)."""
SANITIZE_START = c.Struct("sanicap" / U32, "scdw10" / U32, "scdw11" / U32)
SANITIZE_COMPLETION = c.Struct("sprog" / U16, "sstat" / U16, "cinfo" / U16, c.Padding(2))
SET_FEATURE = c.Struct("sfel" / U32)
"""Event 0Bh: the layout, then dwords of the command from CDW10 on, its data, and DW0 of its completion."""
SET_FEATURE_LOGGED_DW0 = 1 << 3
SET_FEATURE_MEMORY_SHIFT = 16
THERMAL_EXCURSION = c.Struct("otmp" / U8, "thresh" / U8)


@dataclass(frozen=True, slots=True)
class PersistentEvent:
    """One event. ``portid`` None: not of any port. ``data``: what its type defines."""

    type: int
    timestamp: bytes
    cntlid: int
    portid: int | None
    data: bytes

    def encode(self) -> bytes:
        """Encode the event as in the log page."""
        header = build(
            EVENT_HEADER,
            etype=self.type,
            etrev=EVENT_REVISION.get(self.type, 1),
            ehl=EVENT_HEADER_BYTES - 3,
            ehai=EHAI_NO_PORT if self.portid is None else EHAI_SUBSYSTEM_PORT,
            cntlid=self.cntlid,
            ets=self.timestamp,
            pelpid=self.portid or 0,
            el=len(self.data),
        )
        return header + self.data

    @property
    def length_bytes(self) -> int:
        """The event's bytes in the log page."""
        return EVENT_HEADER_BYTES + len(self.data)


def supported_events(types: tuple[EventType, ...]) -> bytes:
    """Build the Supported Events Bitmap, 32 bytes."""
    return sum(1 << each for each in types).to_bytes(32, "little")


def parse_events(page: Buffer) -> Iterator[PersistentEvent]:
    """Yield the events of a whole log page, newest first. ``ValueError`` when lengths do not fit together."""
    raw = bytes(page)
    if len(raw) < HEADER_BYTES:
        raise ValueError(f"a Persistent Event log of {len(raw)} bytes has no whole header")
    header = HEADER.parse(raw[:HEADER_BYTES])
    position, end = header.lhl + 20, min(header.tll, len(raw))
    for _ in range(header.tnev):
        if position + EVENT_HEADER_BYTES > end:
            raise ValueError(f"an event's header at byte {position} is beyond the log's end")
        event = EVENT_HEADER.parse(raw[position : position + EVENT_HEADER_BYTES])
        start = position + event.ehl + 3
        position = start + event.el
        if position > end or event.vsil > event.el:
            raise ValueError(f"an event of {event.el} bytes at byte {start} is beyond the log's end")
        portid = event.pelpid if event.ehai & 3 == EHAI_SUBSYSTEM_PORT else None
        yield PersistentEvent(event.etype, event.ets, event.cntlid, portid, raw[start + event.vsil : position])
