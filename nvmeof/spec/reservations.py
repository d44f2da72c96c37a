"""Reservations: command dwords, data structures and numbers (NVMe Base 2.x, Reservations and the four commands).

A registrant is a host, known by its 128-bit host identifier; reservation keys are 64-bit numbers of its choice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar

import construct as c

from nvmeof.wire import U8, U16, U32, U64, Bits, Buffer, Record, build

KEY_MAX = (1 << 64) - 1
HOST_ID_BYTES = 16
CNTLID_NONE = 0xFFFF
"""CNTLID in a Reservation Report: the registrant has no controller at the moment."""


class ReservationType(IntEnum):
    """RTYPE: what a reservation keeps others from, and who the others are."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 6


ALL_REGISTRANTS = frozenset(
    {ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS}
)
"""Types whose holders are all registrants."""


class RegisterAction(IntEnum):
    """RREGA."""

    REGISTER = 0
    UNREGISTER = 1
    REPLACE = 2


class AcquireAction(IntEnum):
    """RACQA."""

    ACQUIRE = 0
    PREEMPT = 1
    PREEMPT_AND_ABORT = 2


class ReleaseAction(IntEnum):
    """RRELA."""

    RELEASE = 0
    CLEAR = 1


class Cptpl(IntEnum):
    """Change Persist Through Power Loss State; 1 is reserved."""

    NO_CHANGE = 0
    CLEAR = 2
    SET = 3


class Rescap(IntFlag):
    """Reservation Capabilities, a byte of Identify Namespace (CNS 00h and 08h)."""

    PERSIST_THROUGH_POWER_LOSS = 1 << 0
    WRITE_EXCLUSIVE = 1 << 1
    EXCLUSIVE_ACCESS = 1 << 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 1 << 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 1 << 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 1 << 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 1 << 6
    IGNORE_EXISTING_KEY_1_3 = 1 << 7
    """IEKEY means what it does since NVMe 1.3."""


ALL_TYPES = sum((Rescap(1 << rtype) for rtype in ReservationType), Rescap(0))


class NotificationType(IntEnum):
    """The type of a notice in log page 80h; its value is also the bit of Feature 82h that masks it."""

    EMPTY = 0
    REGISTRATION_PREEMPTED = 1
    RESERVATION_RELEASED = 2
    RESERVATION_PREEMPTED = 3


# CDW10: bit 4 (DISNSRS) is about dispersed namespaces alone.
CDW10_IGNORE_EXISTING_KEY = 3
"""Bit of IEKEY in all three commands that have it."""
CDW10_TYPE = 8
"""Lowest bit of RTYPE in Acquire and Release."""
CDW10_PERSISTENCE = 30
"""Lowest bit of CPTPL in Register."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationCommand:
    """CDW10 of Reservation Register, Acquire and Release. ``rtype``: of the latter two; ``cptpl``: of the first."""

    action: int
    ignore_existing_key: bool = False
    rtype: int = 0
    cptpl: int = 0

    BITS: ClassVar[Bits] = Bits(4, action=3, iekey=1, _4=4, rtype=8, _16=14, cptpl=2)

    @classmethod
    def decode(cls, cdw10: int) -> ReservationCommand:
        """Decode CDW10."""
        raw = cls.BITS.decode(cdw10)
        return cls(action=raw["action"], ignore_existing_key=bool(raw["iekey"]), rtype=raw["rtype"], cptpl=raw["cptpl"])

    def encode(self) -> int:
        """Return CDW10."""
        return self.BITS.encode(action=self.action, iekey=self.ignore_existing_key, rtype=self.rtype, cptpl=self.cptpl)


@dataclass(slots=True)
class ReservationKeys:
    """Data of Register (CRKEY, NRKEY) and of Acquire (CRKEY, PRKEY)."""

    crkey: int = 0
    key: int = 0


RESERVATION_KEYS: Record[ReservationKeys] = Record(c.Struct("crkey" / U64, "key" / U64), ReservationKeys)
RESERVATION_KEYS_BYTES = 16
RELEASE_DATA_BYTES = 8
"""Data of Release: CRKEY alone."""

REPORT_EXTENDED = 1
"""EDS, bit 0 of CDW11 of Reservation Report: registrants with identifiers of 128 bits."""
REPORT_HEADER = c.Struct("gen" / U32, "rtype" / U8, "regstrnt" / U16, c.Padding(2), "ptpls" / U8, c.Padding(14))
REPORT_HEADER_BYTES = 24
REPORT_EXTENDED_HEADER_BYTES = 64
REGISTRANT = c.Struct("cntlid" / U16, "rcsts" / U8, c.Padding(5), "hostid" / c.Bytes(8), "rkey" / U64)
"""24 bytes, for hosts with identifiers of 64 bits."""
REGISTRANT_BYTES = 24
REGISTRANT_EXTENDED = c.Struct(
    "cntlid" / U16, "rcsts" / U8, c.Padding(5), "rkey" / U64, "hostid" / c.Bytes(HOST_ID_BYTES), c.Padding(32)
)
REGISTRANT_EXTENDED_BYTES = 64
RCSTS_HOLDER = 1


@dataclass(frozen=True, slots=True)
class Registrant:
    """One registrant of a report. ``hostid``: 16 bytes in the extended form, 8 in the other."""

    hostid: bytes
    key: int
    holder: bool = False
    cntlid: int = CNTLID_NONE


@dataclass(frozen=True, slots=True)
class ReservationReport:
    """The Reservation Status data structure. ``rtype`` 0: no reservation. ``count``: the number of registrants."""

    generation: int
    rtype: int
    persistent: bool
    registrants: tuple[Registrant, ...]
    count: int = -1  # -1: as many as are given

    def encode(self, *, extended: bool = True) -> bytes:
        """Encode the whole structure."""
        count = len(self.registrants) if self.count < 0 else self.count
        head = build(REPORT_HEADER, gen=self.generation, rtype=self.rtype, regstrnt=count, ptpls=self.persistent)
        parts = [head.ljust(REPORT_EXTENDED_HEADER_BYTES, b"\0") if extended else head]
        form = REGISTRANT_EXTENDED if extended else REGISTRANT
        parts += [
            build(form, cntlid=item.cntlid, rcsts=RCSTS_HOLDER if item.holder else 0, hostid=item.hostid, rkey=item.key)
            for item in self.registrants
        ]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: Buffer, *, extended: bool = True) -> ReservationReport:
        """Decode a report, which may end before its last registrant. ``ValueError`` for less than the header."""
        raw = bytes(data)
        if len(raw) < REPORT_HEADER_BYTES:
            raise ValueError(f"a reservation report has at least {REPORT_HEADER_BYTES} bytes, not {len(raw)}")
        head = REPORT_HEADER.parse(raw)
        form, size = (REGISTRANT_EXTENDED, REGISTRANT_EXTENDED_BYTES) if extended else (REGISTRANT, REGISTRANT_BYTES)
        start = REPORT_EXTENDED_HEADER_BYTES if extended else REPORT_HEADER_BYTES
        there = min(head.regstrnt, max(len(raw) - start, 0) // size)
        items = [form.parse(raw[start + i * size : start + (i + 1) * size]) for i in range(there)]
        registrants = tuple(
            Registrant(bytes(item.hostid), item.rkey, bool(item.rcsts & RCSTS_HOLDER), item.cntlid) for item in items
        )
        return cls(head.gen, head.rtype, bool(head.ptpls), registrants, head.regstrnt)


def pack_keys(crkey: int, key: int) -> bytes:
    """Build the data of Register or Acquire. ``struct.error`` for a key of more than 64 bits."""
    return RESERVATION_KEYS.pack(ReservationKeys(crkey, key))


def pack_release(crkey: int) -> bytes:
    """Build the data of Release. ``struct.error`` for a key of more than 64 bits."""
    return struct.pack("<Q", crkey)


def unpack_release(data: Buffer) -> int:
    """Return CRKEY of Release."""
    return int(struct.unpack_from("<Q", data)[0])


def mask_of(kinds: Iterable[NotificationType]) -> int:
    """Return Feature 82h with these notifications masked."""
    return sum(1 << kind for kind in set(kinds))
