"""Identify data structures: the controller's, and helpers for lists (NVMe Base, Identify command).

Field names are the specification's in lower case. Values are raw; what is 0's-based or a power of two says so, and the
helpers convert. Namespace structures are declared in :mod:`nvmeof.spec.identify_namespace` and are here by name too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import construct as c

from nvmeof.spec.enums import IDENTIFY_BYTES, NSID_ALL, Cns, NamespaceIdType
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE as IDENTIFY_NAMESPACE
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE_INDEPENDENT as IDENTIFY_NAMESPACE_INDEPENDENT
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE_NVM as IDENTIFY_NAMESPACE_NVM
from nvmeof.spec.identify_namespace import LBA_FORMAT as LBA_FORMAT
from nvmeof.wire import U8, U16, U32, U64, U128, Bits, Buffer, PaddedText

POWER_STATE = c.Struct(
    "mp" / U16,
    c.Padding(1),
    "flags" / U8,
    "enlat" / U32,
    "exlat" / U32,
    "rrt" / U8,
    "rrl" / U8,
    "rwt" / U8,
    "rwl" / U8,
    "idlp" / U16,
    "ips" / U8,
    c.Padding(1),
    "actp" / U16,
    "apws" / U8,
    "epfrt" / U8,
    "fqvt" / U8,
    "epfvt" / U8,
    "epfrts_fqvts" / U8,
    "epfvts" / U8,
    c.Padding(4),
)
"""Power state descriptor, 32 bytes. ``flags``: bit 0 MXPS (``mp`` in 0.0001 W, else 0.01 W), bit 1 non-operational.
``epfrts_fqvts``: scales of EPFRT (bits 3:0) and FQVT (bits 7:4)."""

IDENTIFY_CONTROLLER = c.Struct(
    "vid" / U16,
    "ssvid" / U16,
    "sn" / PaddedText(20, b" "),
    "mn" / PaddedText(40, b" "),
    "fr" / PaddedText(8, b" "),
    "rab" / U8,
    "ieee" / c.Bytes(3),
    "cmic" / U8,
    "mdts" / U8,
    "cntlid" / U16,
    "ver" / U32,
    "rtd3r" / U32,
    "rtd3e" / U32,
    "oaes" / U32,
    "ctratt" / U32,
    "rrls" / U16,
    "bpcap" / U8,
    c.Padding(1),
    "nssl" / U32,
    c.Padding(2),
    "plsi" / U8,
    "cntrltype" / U8,
    "fguid" / c.Bytes(16),
    "crdt1" / U16,
    "crdt2" / U16,
    "crdt3" / U16,
    "crcap" / U8,
    "ciu" / U8,
    "cirn" / c.Bytes(8),
    c.Padding(109),
    "nvmsr" / U8,
    "vwci" / U8,
    "mec" / U8,
    # Admin command set attributes, bytes 256 to 511
    "oacs" / U16,
    "acl" / U8,
    "aerl" / U8,
    "frmw" / U8,
    "lpa" / U8,
    "elpe" / U8,
    "npss" / U8,
    "avscc" / U8,
    "apsta" / U8,
    "wctemp" / U16,
    "cctemp" / U16,
    "mtfa" / U16,
    "hmpre" / U32,
    "hmmin" / U32,
    "tnvmcap" / U128,
    "unvmcap" / U128,
    "rpmbs" / U32,
    "edstt" / U16,
    "dsto" / U8,
    "fwug" / U8,
    "kas" / U16,
    "hctma" / U16,
    "mntmt" / U16,
    "mxtmt" / U16,
    "sanicap" / U32,
    "hmminds" / U32,
    "hmmaxd" / U16,
    "nsetidmax" / U16,
    "endgidmax" / U16,
    "anatt" / U8,
    "anacap" / U8,
    "anagrpmax" / U32,
    "nanagrpid" / U32,
    "pels" / U32,
    "domainid" / U16,
    "kpioc" / U8,
    c.Padding(1),
    "mptfawr" / U16,
    c.Padding(6),
    "megcap" / U128,
    "tmpthha" / U8,
    c.Padding(1),
    "cqt" / U16,
    c.Padding(124),
    # NVM command set attributes, bytes 512 to 703 and on
    "sqes" / U8,
    "cqes" / U8,
    "maxcmd" / U16,
    "nn" / U32,
    "oncs" / U16,
    "fuses" / U16,
    "fna" / U8,
    "vwc" / U8,
    "awun" / U16,
    "awupf" / U16,
    "icsvscc" / U8,
    "nwpc" / U8,
    "acwu" / U16,
    "cdfs" / U16,
    "sgls" / U32,
    "mnan" / U32,
    "maxdna" / U128,
    "maxcna" / U32,
    "oaqd" / U32,
    "rhiri" / U8,
    "hirt" / U8,
    "cmmrtd" / U16,
    "nmmrtd" / U16,
    "minmrtg" / U8,
    "maxmrtg" / U8,
    "trattr" / U8,
    c.Padding(1),
    "mcudmq" / U16,
    "mnsudmq" / U16,
    "mcmr" / U16,
    "nmcmr" / U16,
    "mcdqpc" / U16,
    c.Padding(180),
    "subnqn" / PaddedText(256),
    c.Padding(768),
    # Fabrics, bytes 1792 to 2047
    "ioccsz" / U32,
    "iorcsz" / U32,
    "icdoff" / U16,
    "fcatt" / U8,
    "msdbd" / U8,
    "ofcs" / U16,
    "dctype" / U8,
    "ccrl" / U8,
    c.Padding(240),
    "psd" / POWER_STATE[32],
    "vs" / c.Bytes(1024),
)
"""CNS 01h, 4096 bytes.

0's-based: ``acl aerl elpe npss awun awupf acwu``. ``mdts``: power of two in units of CAP.MPSMIN, 0 for no limit.
``ioccsz``, ``iorcsz``: units of 16 bytes. ``kas``: units of 100 ms. ``cdfs``: Copy descriptor formats.
"""

IDENTIFY_CONTROLLER_NVM = c.Struct(
    "vsl" / U8,
    "wzsl" / U8,
    "wusl" / U8,
    "dmrl" / U8,
    "dmrsl" / U32,
    "dmsl" / U64,
    "kpiocap" / U8,
    "wzdsl" / U8,
    "aocs" / U16,
    "ver" / U32,
    "lbamqf" / U8,
    c.Padding(4071),
)
"""CNS 06h with the NVM command set: limits of Verify, Write Zeroes, Write Uncorrectable and Dataset Management.

``vsl wzsl wusl wzdsl``: powers of two in units of CAP.MPSMIN, 0 for no limit; ``dmrl``: ranges, ``dmrsl``: blocks per
range, ``dmsl``: blocks per command, 0 for no limit.
"""

IO_COMMAND_SETS = c.Struct("combinations" / U64[512])
"""CNS 1Ch: each combination is a bitmap of I/O command set identifiers; zero ends the list."""

CONTROLLER_LIST_MAX = 2047
CONTROLLER_LIST = c.Struct("numids" / U16, "ids" / U16[CONTROLLER_LIST_MAX])
"""CNS 12h and 13h: controller identifiers, ascending."""

NAMESPACE_LIST_MAX = 1024
NAMESPACE_LIST = c.Struct("nsids" / U32[NAMESPACE_LIST_MAX])
"""CNS 02h, 07h, 10h: namespace identifiers, ascending; zero ends the list."""

_NAMESPACE_LIST = struct.Struct(f"<{NAMESPACE_LIST_MAX}I")


def build_namespace_list(nsids: Iterable[int], after: int = 0) -> bytes:
    """Build the active namespace list, 4096 bytes: the smallest 1024 of ``nsids`` above ``after`` (the command's
    NSID)."""
    chosen = sorted(nsid for nsid in nsids if nsid > after)[:NAMESPACE_LIST_MAX]
    return _NAMESPACE_LIST.pack(*chosen, *(0 for _ in range(NAMESPACE_LIST_MAX - len(chosen))))


def parse_namespace_list(data: Buffer) -> list[int]:
    """Parse the identifiers up to the first zero; ``struct.error`` when ``data`` is shorter than 4096 bytes."""
    result: list[int] = []
    for nsid in _NAMESPACE_LIST.unpack_from(data):
        if nsid == 0:
            break
        result.append(nsid)
    return result


def valid_namespace_list_start(nsid: int) -> bool:
    """Return whether ``nsid`` may start a namespace list: FFFFFFFEh and FFFFFFFFh may not (Invalid Namespace or
    Format)."""
    return nsid < NSID_ALL - 1


def build_controller_list(cntlids: Iterable[int], first: int = 0) -> bytes:
    """Build a controller list, 4096 bytes: the smallest 2047 of ``cntlids`` from ``first`` (the command's CNTID) up."""
    chosen = sorted(cntlid for cntlid in cntlids if cntlid >= first)[:CONTROLLER_LIST_MAX]
    return struct.pack(f"<H{len(chosen)}H", len(chosen), *chosen).ljust(IDENTIFY_BYTES, b"\0")


def parse_controller_list(data: Buffer) -> list[int]:
    """Parse the identifiers of a controller list; ``struct.error`` when it is shorter than it says."""
    (count,) = struct.unpack_from("<H", data)
    return list(struct.unpack_from(f"<{count}H", data, 2))


NAMESPACE_DESCRIPTOR_HEADER = c.Struct("nidt" / U8, "nidl" / U8, c.Padding(2))
"""CNS 03h: type and length of one namespace identification descriptor; the identifier follows."""

_DESCRIPTOR_LENGTHS = {
    NamespaceIdType.EUI64: 8,
    NamespaceIdType.NGUID: 16,
    NamespaceIdType.UUID: 16,
    NamespaceIdType.CSI: 1,
}


@dataclass(frozen=True, slots=True)
class NamespaceDescriptor:
    """One identifier of a namespace. ``nid``: its bytes; EUI64, NGUID and UUID are big-endian as printed."""

    nidt: int
    nid: bytes


def build_namespace_descriptors(descriptors: Iterable[NamespaceDescriptor]) -> bytes:
    """Build the descriptor list, 4096 bytes. ``ValueError`` for an identifier of the wrong length or too many."""
    parts: list[bytes] = []
    for item in descriptors:
        wanted = _DESCRIPTOR_LENGTHS.get(NamespaceIdType(item.nidt))
        if len(item.nid) != wanted:
            raise ValueError(f"an identifier of type {item.nidt} has {wanted} bytes, not {len(item.nid)}")
        parts.append(NAMESPACE_DESCRIPTOR_HEADER.build({"nidt": item.nidt, "nidl": len(item.nid)}) + item.nid)
    data = b"".join(parts)
    if len(data) > IDENTIFY_BYTES:
        raise ValueError("the namespace descriptors do not fit in 4096 bytes")
    return data.ljust(IDENTIFY_BYTES, b"\0")


def parse_namespace_descriptors(data: Buffer) -> list[NamespaceDescriptor]:
    """Parse the descriptors up to the terminating zero length, or up to one that is cut; unknown types too."""
    return list(_descriptors(bytes(data)))


def _descriptors(data: bytes) -> Iterator[NamespaceDescriptor]:
    position = 0
    header_bytes = NAMESPACE_DESCRIPTOR_HEADER.sizeof()
    while position + header_bytes <= len(data):
        header = NAMESPACE_DESCRIPTOR_HEADER.parse(data[position : position + header_bytes])
        start, end = position + header_bytes, position + header_bytes + header.nidl
        if header.nidl == 0 or end > len(data):
            return
        yield NamespaceDescriptor(header.nidt, data[start:end])
        position = end


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifyCommand:
    """CDW10, CDW11 and CDW14 of Identify. ``cntid``: controller; ``cnssi``: what the CNS takes (NVM set, domain)."""

    cns: int = Cns.CONTROLLER
    cntid: int = 0
    cnssi: int = 0
    csi: int = 0
    uuid_index: int = 0

    @classmethod
    def decode(cls, cdw10: int, cdw11: int, cdw14: int = 0) -> IdentifyCommand:
        """Decode the command's dwords."""
        low, high = _IDENTIFY_CDW10.decode(cdw10), _IDENTIFY_CDW11.decode(cdw11)
        return cls(cns=low["cns"], cntid=low["cntid"], cnssi=high["cnssi"], csi=high["csi"], uuid_index=cdw14 & 0x7F)

    def encode(self) -> tuple[int, int, int]:
        """Return CDW10, CDW11 and CDW14."""
        return (
            _IDENTIFY_CDW10.encode(cns=self.cns, cntid=self.cntid),
            _IDENTIFY_CDW11.encode(cnssi=self.cnssi, csi=self.csi),
            self.uuid_index,
        )


_IDENTIFY_CDW10 = Bits(4, cns=8, _8=8, cntid=16)
_IDENTIFY_CDW11 = Bits(4, cnssi=16, _16=8, csi=8)


def mdts_bytes(mdts: int, mpsmin_bytes: int = 4096) -> int | None:
    """Return the largest transfer in bytes that MDTS allows; None for no limit. Also for VSL, WZSL, WUSL."""
    return mpsmin_bytes << mdts if mdts else None


def mdts_field(limit_bytes: int | None, mpsmin_bytes: int = 4096) -> int:
    """Return MDTS for the largest power of two up to ``limit_bytes``; None gives 0, no limit.

    ``ValueError`` below two pages, which MDTS cannot express.
    """
    if limit_bytes is None:
        return 0
    exponent = (limit_bytes // mpsmin_bytes).bit_length() - 1
    if exponent < 1:
        raise ValueError(f"MDTS cannot be as small as {limit_bytes} bytes with pages of {mpsmin_bytes}")
    return exponent
