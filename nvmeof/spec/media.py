"""Commands that are about the media: Format NVM, Sanitize, Device Self-test, Get LBA Status, and their log pages.

Field names are the specification's in lower case, values raw unless a class says otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar

import construct as c

from nvmeof.wire import U8, U16, U32, U64, Bits, Buffer, build


class SecureErase(IntEnum):
    """SES of Format NVM."""

    NONE = 0
    USER_DATA = 1
    CRYPTOGRAPHIC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatNvm:
    """CDW10 of Format NVM. ``upper``: bits 5:4 of the format index, which count only with LBAFEE."""

    index: int
    upper: int = 0
    mset: bool = False
    pi: int = 0
    pil: bool = False
    ses: int = SecureErase.NONE

    BITS: ClassVar[Bits] = Bits(4, lbafl=4, mset=1, pi=3, pil=1, ses=3, lbafu=2, _14=18)

    @classmethod
    def decode(cls, cdw10: int) -> FormatNvm:
        """Decode CDW10."""
        raw = cls.BITS.decode(cdw10)
        return cls(
            index=raw["lbafl"],
            upper=raw["lbafu"],
            mset=bool(raw["mset"]),
            pi=raw["pi"],
            pil=bool(raw["pil"]),
            ses=raw["ses"],
        )


class SanitizeAction(IntEnum):
    """SANACT of Sanitize."""

    EXIT_FAILURE_MODE = 1
    BLOCK_ERASE = 2
    OVERWRITE = 3
    CRYPTO_ERASE = 4
    EXIT_MEDIA_VERIFICATION = 5


class Sanicap(IntFlag):
    """Sanitize Capabilities, Identify Controller bytes 331:328. Bits 31:30 are NODMMAS."""

    CRYPTO_ERASE = 1 << 0
    BLOCK_ERASE = 1 << 1
    OVERWRITE = 1 << 2
    VERIFICATION = 1 << 3
    NO_DEALLOCATE_INHIBITED = 1 << 29
    MEDIA_NOT_MODIFIED_AFTER = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SanitizeCommand:
    """CDW10 and CDW11 of Sanitize. ``passes``: 1 to 16 of Overwrite. ``pattern``: 4 bytes as written."""

    action: int
    ause: bool = False
    passes: int = 1
    invert: bool = False
    ndas: bool = False
    emvs: bool = False
    pattern: bytes = bytes(4)

    BITS: ClassVar[Bits] = Bits(4, sanact=3, ause=1, owpass=4, oipbp=1, ndas=1, emvs=1, _11=21)

    @classmethod
    def decode(cls, cdw10: int, cdw11: int = 0) -> SanitizeCommand:
        """Decode the command's dwords."""
        raw = cls.BITS.decode(cdw10)
        return cls(
            action=raw["sanact"],
            ause=bool(raw["ause"]),
            passes=raw["owpass"] or 16,
            invert=bool(raw["oipbp"]),
            ndas=bool(raw["ndas"]),
            emvs=bool(raw["emvs"]),
            pattern=struct.pack("<I", cdw11),
        )

    @property
    def patterns(self) -> list[bytes]:
        """What Overwrite writes, pass by pass; with inversion the last pass always writes the pattern itself."""
        inverted = bytes(byte ^ 0xFF for byte in self.pattern)
        if not self.invert:
            return [self.pattern] * self.passes
        return [self.pattern if (self.passes - number) % 2 else inverted for number in range(self.passes)]


class SanitizeOutcome(IntEnum):
    """SOS: SSTAT bits 2:0 of the Sanitize Status log."""

    NEVER = 0
    SUCCESS = 1
    IN_PROGRESS = 2
    FAILED = 3
    SUCCESS_UNEXPECTED_DEALLOCATION = 4


SSTAT = Bits(2, sos=3, opc=5, gde=1, mvcncld=1, _10=6)
"""SSTAT of the Sanitize Status log: outcome, completed overwrite passes, Global Data Erased."""
SSI = Bits(1, sans=4, fails=4)
"""SSI of the Sanitize Status log: the state, and in a failure state the one that failed."""
SPROG_NONE = 0xFFFF
"""SPROG while nothing is in progress."""
NO_ESTIMATE = 0xFFFFFFFF


class SelfTestCode(IntEnum):
    """STC of Device Self-test, and Current Device Self-test Operation of its log page."""

    NONE = 0
    SHORT = 1
    EXTENDED = 2
    HOST_INITIATED_REFRESH = 3
    VENDOR_SPECIFIC = 0xE
    ABORT = 0xF


class SelfTestResult(IntEnum):
    """Device Self-test Status bits 3:0 of a result."""

    SUCCESS = 0x0
    ABORTED_BY_COMMAND = 0x1
    ABORTED_BY_RESET = 0x2
    ABORTED_BY_REMOVAL = 0x3
    ABORTED_BY_FORMAT = 0x4
    FATAL_ERROR = 0x5
    FAILED_UNKNOWN_SEGMENT = 0x6
    FAILED_SEGMENT = 0x7
    ABORTED_UNKNOWN = 0x8
    ABORTED_BY_SANITIZE = 0x9
    NOT_USED = 0xF


class SelfTestValid(IntFlag):
    """Valid Diagnostic Information of a result."""

    NSID = 1 << 0
    FLBA = 1 << 1
    SCT = 1 << 2
    SC = 1 << 3


SELF_TEST_RESULTS = 20
DSTO_ONE_AT_A_TIME = 1
"""DSTO bit 0: one device self-test at a time in the whole subsystem."""

NWPC_WRITE_PROTECT = 1 << 0
"""NWPC bit 0: the states No Write Protect and Write Protect. The other states would need an RPMB that controls them."""


class WriteProtection(IntEnum):
    """WPS of Feature 84h."""

    NONE = 0
    PROTECTED = 1
    UNTIL_POWER_CYCLE = 2
    PERMANENT = 3


class LbaStatusAction(IntEnum):
    """ATYPE of Get LBA Status."""

    ALLOCATED = 0x02
    SCAN = 0x10
    TRACKED = 0x11


class LbaStatus(IntFlag):
    """Status byte of an LBA Status Descriptor."""

    MAY_FAIL = 1 << 0
    WRITTEN_UNCORRECTABLE = 1 << 1


class LbaStatusCompletion(IntEnum):
    """CMPC of Get LBA Status."""

    NO_INDICATION = 0
    MORE = 1
    COMPLETE = 2


LBA_STATUS_HEADER = c.Struct("nlsd" / U32, "cmpc" / U8, c.Padding(3))
LBA_STATUS_DESCRIPTOR = c.Struct("dslba" / U64, "nlb" / U32, c.Padding(1), "status" / U8, c.Padding(2))
"""One range of Get LBA Status. ``nlb`` is 0's-based."""
LBA_STATUS_HEADER_BYTES = 8
LBA_STATUS_DESCRIPTOR_BYTES = 16
_BLOCKS_MAX = 1 << 32

LBA_STATUS_LOG_HEADER = c.Struct("lslplen" / U32, "nlslne" / U32, "estulb" / U32, c.Padding(2), "lsgc" / U16)
LBA_STATUS_NAMESPACE = c.Struct("neid" / U32, "nlrd" / U32, "ratype" / U8, c.Padding(7))
LBA_STATUS_RANGE = c.Struct("rslba" / U64, "rnlb" / U32, c.Padding(4))
"""Log page 0Eh: a header, then per namespace an element and its ranges; 16 bytes each."""


def split_range(start: int, end: int) -> Iterable[tuple[int, int]]:
    """Return a range of blocks as start and count, in parts whose count fits 32 bits 0's-based."""
    while start < end:
        count = min(end - start, _BLOCKS_MAX)
        yield start, count
        start += count


def build_lba_status(entries: Sequence[tuple[int, int, int]], cmpc: int) -> bytes:
    """Build the data of Get LBA Status. ``entries``: start, number of blocks, status."""
    parts = [build(LBA_STATUS_HEADER, nlsd=len(entries), cmpc=cmpc)]
    parts += [
        LBA_STATUS_DESCRIPTOR.build({"dslba": start, "nlb": count - 1, "status": int(status)})
        for start, count, status in entries
    ]
    return b"".join(parts)


def parse_lba_status(data: Buffer) -> tuple[int, list[tuple[int, int, int]]]:
    """Return CMPC, and the entries that are there in full: start, number of blocks, status. ``StreamError`` for no
    header."""
    raw = bytes(data)
    header = LBA_STATUS_HEADER.parse(raw)
    there = min(header.nlsd, (len(raw) - LBA_STATUS_HEADER_BYTES) // LBA_STATUS_DESCRIPTOR_BYTES)
    entries = []
    for index in range(there):
        entry = LBA_STATUS_DESCRIPTOR.parse(raw[LBA_STATUS_HEADER_BYTES + index * LBA_STATUS_DESCRIPTOR_BYTES :])
        entries.append((entry.dslba, entry.nlb + 1, entry.status))
    return header.cmpc, entries


def build_lba_status_log(namespaces: Sequence[tuple[int, Sequence[tuple[int, int]]]], generation: int) -> bytes:
    """Log page 0Eh. ``namespaces``: NSID, and its ranges of blocks (start, number) that may not be recoverable."""
    elements = []
    for nsid, ranges in namespaces:
        elements.append(build(LBA_STATUS_NAMESPACE, neid=nsid, nlrd=len(ranges), ratype=LbaStatusAction.TRACKED))
        elements += [LBA_STATUS_RANGE.build({"rslba": start, "rnlb": count - 1}) for start, count in ranges]
    body = b"".join(elements)
    blocks = sum(count for _, ranges in namespaces for _, count in ranges)
    header = build(
        LBA_STATUS_LOG_HEADER,
        lslplen=LBA_STATUS_LOG_HEADER.sizeof() + len(body),
        nlslne=len(namespaces),
        estulb=min(blocks, NO_ESTIMATE - 1),
        lsgc=generation & 0xFFFF,
    )
    return header + body
