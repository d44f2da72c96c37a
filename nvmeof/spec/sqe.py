"""The submission queue entry, 64 bytes (NVMe Base, Common Command Format; Fabrics capsules use SGL1 for data)."""

from __future__ import annotations

from dataclasses import dataclass

import construct as c

from nvmeof.wire import U8, U16, U32, U64, Record


class _Decoded:
    """Room for what a reader makes of a command, so that it is made once."""

    __slots__ = ("_decoded",)

    _decoded: object

    @property
    def decoded(self) -> object:
        """The decoded command; None before."""
        return getattr(self, "_decoded", None)

    def keep_decoded(self, value: object) -> None:
        """Keep the decoded form of the command."""
        self._decoded = value


FUSE_MASK = 0x3
FUSE_FIRST = 1
FUSE_SECOND = 2
PSDT_SHIFT = 6
"""Of `Sqe.flags`: where each command is looked at, this is cheaper than the properties."""


@dataclass(slots=True)
class Sqe(_Decoded):
    """One command. Values are raw, 0's-based ones too; the properties give converted units.

    ``flags``: FUSE in bits 1:0, PSDT in bits 7:6. ``sgl_*``: SGL1; ``sgl_type`` as in :class:`nvmeof.spec.sgl.SglType`.
    """

    opcode: int = 0
    flags: int = 0
    cid: int = 0
    nsid: int = 0
    cdw2: int = 0
    cdw3: int = 0
    mptr: int = 0
    sgl_address: int = 0
    sgl_length: int = 0
    sgl_type: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0

    @property
    def fuse(self) -> int:
        """0 normal, 1 first, 2 second command of a fused operation."""
        return self.flags & FUSE_MASK

    @property
    def psdt(self) -> int:
        """PRP or SGL for Data Transfer, see :class:`nvmeof.spec.sgl.Psdt`."""
        return self.flags >> PSDT_SHIFT

    @property
    def fctype(self) -> int:
        """The Fabrics command type, where the opcode is 7Fh: byte 4."""
        return self.nsid & 0xFF

    @property
    def slba(self) -> int:
        """First logical block of an NVM command: CDW10 and CDW11."""
        return self.cdw10 | self.cdw11 << 32

    @property
    def transfer_blocks(self) -> int:
        """How many logical blocks an NVM command is about: NLB, 0's-based in CDW12 bits 15:0."""
        return (self.cdw12 & 0xFFFF) + 1


SQE: Record[Sqe] = Record(
    c.Struct(
        "opcode" / U8,
        "flags" / U8,
        "cid" / U16,
        "nsid" / U32,
        "cdw2" / U32,
        "cdw3" / U32,
        "mptr" / U64,
        "sgl_address" / U64,
        "sgl_length" / U32,
        c.Padding(3),
        "sgl_type" / U8,
        "cdw10" / U32,
        "cdw11" / U32,
        "cdw12" / U32,
        "cdw13" / U32,
        "cdw14" / U32,
        "cdw15" / U32,
    ),
    Sqe,
)
SQE_BYTES = 64


# Bits of CDW12 of Read, Write, Compare, Write Zeroes (NVM Command Set, the figures of each command)
CDW12_LIMITED_RETRY = 1 << 31
CDW12_FUA = 1 << 30
CDW12_PRACT = 1 << 29
CDW12_PRINFO_SHIFT = 26
CDW12_PRINFO_MASK = 0xF << 26
CDW12_DEALLOCATE = 1 << 25
"""Write Zeroes: DEAC, deallocate where that leaves zeroes."""
CDW12_STORAGE_TAG_CHECK = 1 << 24
CDW12_NAMESPACE_ZEROES = 1 << 23
"""Write Zeroes: NSZ, the whole namespace."""
CDW12_EXTENSION_TYPE_SHIFT = 16
CDW12_EXTENSION_TYPE_MASK = 0xF << CDW12_EXTENSION_TYPE_SHIFT
"""CETYPE, as for Key Per I/O."""

# Bits of CDW11 of Dataset Management
DSM_INTEGRAL_READ = 1 << 0
DSM_INTEGRAL_WRITE = 1 << 1
DSM_DEALLOCATE = 1 << 2
DSM_RANGE_BYTES = 16
DSM_MAX_RANGES = 256


@dataclass(slots=True)
class DsmRange:
    """One range of Dataset Management: context attributes, length in logical blocks (1-based), first block."""

    attributes: int = 0
    length_blocks: int = 0
    slba: int = 0


DSM_RANGE: Record[DsmRange] = Record(
    c.Struct("attributes" / U32, "length_blocks" / U32, "slba" / U64),
    DsmRange,
)

# CDW12 of Copy (NVM Command Set, Copy command); PRINFOW, STCW, FUA and LR are where other commands have theirs
COPY_FORMAT_SHIFT = 8
COPY_PRINFOR_SHIFT = 12
COPY_PRINFOR_MASK = 0xF << COPY_PRINFOR_SHIFT
COPY_STORAGE_TAG_CHECK_READ = 1 << 25
COPY_RANGE_BYTES = 32
COPY_FAST_ONLY = 1 << 15
"""SOPT of format 2h: FCO, copy only if that is no slower than the host would be."""


@dataclass(slots=True)
class CopyRange:
    """One source range of Copy, descriptor formats 0h and 2h. ``nlb`` is 0's-based.

    ``snsid`` and ``options`` (SOPT) are those of format 2h, reserved in format 0h.
    """

    snsid: int = 0
    slba: int = 0
    nlb: int = 0
    extension_type: int = 0
    extension_value: int = 0
    options: int = 0
    reference_tag: int = 0
    application_tag: int = 0
    application_tag_mask: int = 0

    @property
    def blocks(self) -> int:
        """How many logical blocks."""
        return self.nlb + 1


COPY_RANGE: Record[CopyRange] = Record(
    c.Struct(
        "snsid" / U32,
        c.Padding(4),
        "slba" / U64,
        "nlb" / U16,
        "extension_type" / U16,
        "extension_value" / U16,
        "options" / U16,
        "reference_tag" / U32,
        "application_tag" / U16,
        "application_tag_mask" / U16,
    ),
    CopyRange,
)
