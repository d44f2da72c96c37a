"""Log pages and the Get Log Page command (NVMe Base, Get Log Page). The Discovery log is in its own module.

Field names are the specification's in lower case, values raw; SMART counters are 128-bit integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import construct as c

from nvmeof.wire import U8, U16, U32, U64, U128, Bits, Buffer, PaddedText, build

SUPPORTED_LOG_PAGES = c.Struct("lids" / U32[256])
"""Log page 00h, 1024 bytes: per LID, bit 0 supported, bit 1 index offset supported, bits 31:16 LID specific."""
LSUPP = 1 << 0
IOS = 1 << 1
LIDSP_SHIFT = 16

ERROR_INFORMATION_ENTRY = c.Struct(
    "error_count" / U64,
    "sqid" / U16,
    "cid" / U16,
    "status" / U16,
    "parameter_error_location" / U16,
    "lba" / U64,
    "nsid" / U32,
    "vs" / U8,
    "trtype" / U8,
    "csi" / U8,
    "opcode" / U8,
    "cs" / U64,
    "trtype_specific" / U16,
    c.Padding(21),
    "log_page_version" / U8,
)
"""Log page 01h: one entry, 64 bytes, newest first. ``status``: as in the CQE, phase bit included."""

SMART_HEALTH = c.Struct(
    "critical_warning" / U8,
    "composite_temperature" / U16,
    "available_spare" / U8,
    "available_spare_threshold" / U8,
    "percentage_used" / U8,
    "endurance_group_critical_warning" / U8,
    c.Padding(25),
    "data_units_read" / U128,
    "data_units_written" / U128,
    "host_read_commands" / U128,
    "host_write_commands" / U128,
    "controller_busy_time" / U128,
    "power_cycles" / U128,
    "power_on_hours" / U128,
    "unsafe_shutdowns" / U128,
    "media_errors" / U128,
    "error_log_entries" / U128,
    "warning_temperature_time" / U32,
    "critical_temperature_time" / U32,
    "temperature_sensors" / U16[8],
    "tmt1_transitions" / U32,
    "tmt2_transitions" / U32,
    "tmt1_time" / U32,
    "tmt2_time" / U32,
    c.Padding(280),
)
"""Log page 02h, 512 bytes. Temperatures in kelvin; data units are 1000 blocks of 512 bytes, rounded up."""
DATA_UNIT_BYTES = 512_000

FIRMWARE_SLOT = c.Struct("afi" / U8, c.Padding(7), "frs" / PaddedText(8, b" ")[7], c.Padding(448))
"""Log page 03h, 512 bytes. ``afi`` bits 2:0: active slot, bits 6:4: slot after the next reset."""

CHANGED_NAMESPACES_MAX = 1024
CHANGED_NAMESPACES = c.Struct("nsids" / U32[CHANGED_NAMESPACES_MAX])
"""Log page 04h, 4096 bytes: ascending, zero ends the list; FFFFFFFFh alone when there are more than 1024."""

COMMANDS_SUPPORTED_AND_EFFECTS = c.Struct("acs" / U32[256], "iocs" / U32[256], c.Padding(2048))
"""Log page 05h, 4096 bytes: :class:`~nvmeof.spec.flags.CommandEffects` per admin and per I/O opcode."""

SELF_TEST_RESULT = c.Struct(
    "status" / U8,
    "segment" / U8,
    "valid" / U8,
    c.Padding(1),
    "power_on_hours" / U64,
    "nsid" / U32,
    "failing_lba" / U64,
    "sct" / U8,
    "sc" / U8,
    "vs" / c.Bytes(2),
)
DEVICE_SELF_TEST = c.Struct("operation" / U8, "completion" / U8, c.Padding(2), "results" / SELF_TEST_RESULT[20])
"""Log page 06h, 564 bytes."""

ANA_HEADER = c.Struct("chgcnt" / U64, "ngrps" / U16, c.Padding(6))
ANA_GROUP = c.Struct(
    "grpid" / U32, "nnsids" / U32, "chgcnt" / U64, "state" / U8, c.Padding(15), "nsids" / U32[c.this.nnsids]
)
"""Log page 0Ch: a header of 16 bytes, then descriptors of 32 bytes with their NSIDs."""
ANA_HEADER_BYTES = 16
ANA_GROUP_BYTES = 32
ANA_LSP_GROUPS_ONLY = 1
"""LSP bit 0 (RGO): descriptors without their NSIDs."""

FEATURES_SUPPORTED_AND_EFFECTS = c.Struct("fids" / U32[256])
"""Log page 12h, 1024 bytes: :class:`~nvmeof.spec.flags.CommandEffects` per feature identifier."""

RESERVATION_NOTIFICATION = c.Struct(
    "log_page_count" / U64,
    "type" / U8,
    "available" / U8,
    c.Padding(2),
    "nsid" / U32,
    c.Padding(48),
)
"""Log page 80h, 64 bytes."""

SANITIZE_STATUS = c.Struct(
    "sprog" / U16,
    "sstat" / U16,
    "scdw10" / U32,
    "eto" / U32,
    "etbe" / U32,
    "etce" / U32,
    "etond" / U32,
    "etbend" / U32,
    "etcend" / U32,
    "etpvds" / U32,
    "ssi" / U8,
    c.Padding(475),
)
"""Log page 81h, 512 bytes. Times in seconds, FFFFFFFFh for no estimate. ``ssi``: state, and the one that failed."""

_CDW10 = Bits(4, lid=8, lsp=7, rae=1, numdl=16)
_CDW11 = Bits(4, numdu=16, lsi=16)
_CDW14 = Bits(4, uuid_index=7, _7=16, ot=1, csi=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetLogPage:
    """The dwords of Get Log Page, in converted units.

    ``length_bytes``: from NUMD, which is 0's-based dwords. ``offset_bytes``: LPO (an index where ``index_offset``).
    ``retain``: RAE, leave the asynchronous event as it is. ``lsp``, ``lsi``: log specific parameter and identifier.
    """

    lid: int
    length_bytes: int
    offset_bytes: int = 0
    lsp: int = 0
    lsi: int = 0
    retain: bool = False
    csi: int = 0
    uuid_index: int = 0
    index_offset: bool = False

    @classmethod
    def decode(cls, cdw10: int, cdw11: int, cdw12: int, cdw13: int, cdw14: int = 0) -> GetLogPage:
        """Decode the command's dwords."""
        low, mid, high = _CDW10.decode(cdw10), _CDW11.decode(cdw11), _CDW14.decode(cdw14)
        return cls(
            lid=low["lid"],
            length_bytes=((low["numdl"] | mid["numdu"] << 16) + 1) * 4,
            offset_bytes=cdw12 | cdw13 << 32,
            lsp=low["lsp"],
            lsi=mid["lsi"],
            retain=bool(low["rae"]),
            csi=high["csi"],
            uuid_index=high["uuid_index"],
            index_offset=bool(high["ot"]),
        )

    def encode(self) -> tuple[int, int, int, int, int]:
        """Return CDW10 to CDW14. ``ValueError`` for a length that is no multiple of 4, or a value too large."""
        if self.length_bytes < 4 or self.length_bytes % 4:
            raise ValueError(f"a log page is read in multiples of 4 bytes, not {self.length_bytes}")
        numd = self.length_bytes // 4 - 1
        return (
            _CDW10.encode(lid=self.lid, lsp=self.lsp, rae=self.retain, numdl=numd & 0xFFFF),
            _CDW11.encode(numdu=numd >> 16, lsi=self.lsi),
            self.offset_bytes & 0xFFFFFFFF,
            self.offset_bytes >> 32,
            _CDW14.encode(uuid_index=self.uuid_index, ot=self.index_offset, csi=self.csi),
        )


@dataclass(frozen=True, slots=True)
class AnaGroup:
    """One ANA group. ``state``: :class:`~nvmeof.spec.enums.AnaState`."""

    grpid: int
    state: int
    chgcnt: int = 0
    nsids: tuple[int, ...] = field(default=())


def build_ana_log(chgcnt: int, groups: Iterable[AnaGroup], *, groups_only: bool = False) -> bytes:
    """Build the ANA log page. ``groups_only``: without the NSIDs (RGO)."""
    ordered = list(groups)
    parts = [build(ANA_HEADER, chgcnt=chgcnt, ngrps=len(ordered))]
    for group in ordered:
        nsids = [] if groups_only else list(group.nsids)
        parts.append(
            ANA_GROUP.build(
                {
                    "grpid": group.grpid,
                    "nnsids": len(nsids),
                    "chgcnt": group.chgcnt,
                    "state": group.state,
                    "nsids": nsids,
                }
            )
        )
    return b"".join(parts)


def parse_ana_log(data: Buffer) -> tuple[int, list[AnaGroup]]:
    """Change count and groups. ``ValueError`` when the page is shorter than its counts say."""
    raw = bytes(data)
    try:
        header = ANA_HEADER.parse(raw[:ANA_HEADER_BYTES])
        groups: list[AnaGroup] = []
        position = ANA_HEADER_BYTES
        for _ in range(header.ngrps):
            # the count is the peer's: compare it with the data's length before anything is read
            (nnsids,) = struct.unpack_from("<I", raw, position + 4)
            end = position + ANA_GROUP_BYTES + 4 * nnsids
            if end > len(raw):
                raise ValueError(f"the ANA log ends at byte {len(raw)}, within a group of {nnsids} namespaces")
            group = ANA_GROUP.parse(raw[position:end])
            groups.append(AnaGroup(group.grpid, group.state & 0xF, group.chgcnt, tuple(group.nsids)))
            position = end
    except (c.ConstructError, struct.error) as error:
        raise ValueError("the ANA log is shorter than its number of groups") from error
    return header.chgcnt, groups


def build_changed_namespaces(nsids: Iterable[int]) -> bytes:
    """Log page 04h: ascending NSIDs, or FFFFFFFFh alone for more than 1024."""
    ordered = sorted(nsids)
    return build(CHANGED_NAMESPACES, nsids=[0xFFFFFFFF] if len(ordered) > CHANGED_NAMESPACES_MAX else ordered)


def build_supported_log_pages(lids: Mapping[int, int]) -> bytes:
    """Log page 00h from LID to its dword: :data:`LSUPP`, :data:`IOS`, the LID specific parameter in bits 31:16."""
    return build(SUPPORTED_LOG_PAGES, lids=[lids.get(lid, 0) for lid in range(256)])


def build_effects(admin: Mapping[int, int], io: Mapping[int, int]) -> bytes:
    """Log page 05h from opcode to effects, for admin and I/O commands."""
    return build(
        COMMANDS_SUPPORTED_AND_EFFECTS,
        acs=[int(admin.get(opcode, 0)) for opcode in range(256)],
        iocs=[int(io.get(opcode, 0)) for opcode in range(256)],
    )
