"""Identify data structures of namespaces (NVMe Base and NVM Command Set, Identify Namespace).

Field names are the specification's in lower case, values raw.
"""

from __future__ import annotations

import construct as c

from nvmeof.wire import U8, U16, U32, U64, U128, Bits

LBA_FORMATS = 64

LBA_FORMAT = c.Struct("ms" / U16, "lbads" / U8, "rp" / U8)
"""One LBA format: metadata bytes, data size as a power of two, relative performance (0 best)."""

IDENTIFY_NAMESPACE = c.Struct(
    "nsze" / U64,
    "ncap" / U64,
    "nuse" / U64,
    "nsfeat" / U8,
    "nlbaf" / U8,
    "flbas" / U8,
    "mc" / U8,
    "dpc" / U8,
    "dps" / U8,
    "nmic" / U8,
    "rescap" / U8,
    "fpi" / U8,
    "dlfeat" / U8,
    "nawun" / U16,
    "nawupf" / U16,
    "nacwu" / U16,
    "nabsn" / U16,
    "nabo" / U16,
    "nabspf" / U16,
    "noiob" / U16,
    "nvmcap" / U128,
    "npwg" / U16,
    "npwa" / U16,
    "npdg" / U16,
    "npda" / U16,
    "nows" / U16,
    "mssrl" / U16,
    "mcl" / U32,
    "msrc" / U8,
    "kpios" / U8,
    "nulbaf" / U8,
    c.Padding(1),
    "kpiodaag" / U32,
    c.Padding(4),
    "anagrpid" / U32,
    c.Padding(3),
    "nsattr" / U8,
    "nvmsetid" / U16,
    "endgid" / U16,
    "nguid" / c.Bytes(16),
    "eui64" / c.Bytes(8),
    "lbaf" / LBA_FORMAT[LBA_FORMATS],
    "vs" / c.Bytes(3712),
)
"""CNS 00h and 11h, 4096 bytes.

``nsze ncap nuse noiob mcl mssrl``: logical blocks. 0's-based: ``nlbaf nawun nawupf nacwu nabsn nabspf npwg npwa npdg
npda nows msrc``. ``nguid eui64``: big-endian bytes, as printed. ``dlfeat`` bits 2:0: 1 when deallocated blocks read 0.
"""

FLBAS = Bits(1, format_low=4, extended_metadata=1, format_high=2, _7=1)
"""FLBAS: index of the format in use (low and high bits), metadata interleaved or apart."""


def format_index(flbas: int) -> int:
    """Return the index of the LBA format in use."""
    raw = FLBAS.decode(flbas)
    return raw["format_low"] | raw["format_high"] << 4


def flbas_field(index: int) -> int:
    """Return FLBAS for the LBA format ``index`` (0 to 63), metadata apart."""
    return FLBAS.encode(format_low=index & 0xF, format_high=index >> 4)


FPI_SUPPORTED = 1 << 7
"""FPI bit 7: bits 6:0 are the percentage of a Format NVM that remains."""
DLFEAT_READS_ZEROES = 0x01
"""DLFEAT bits 2:0: a deallocated block reads as zeroes."""
DLFEAT_WRITE_ZEROES_DEALLOCATES = 1 << 3
"""DLFEAT bit 3: Write Zeroes may deallocate (DEAC)."""

IDENTIFY_NAMESPACE_NVM = c.Struct(
    "lbstm" / U64,
    "pic" / U8,
    "pifa" / U8,
    c.Padding(2),
    "elbaf" / U32[LBA_FORMATS],
    "npdgl" / U32,
    "nprg" / U32,
    "npra" / U32,
    "nors" / U32,
    "npdal" / U32,
    "lbapss" / U32,
    "tlbaag" / U32,
    c.Padding(3800),
)
"""CNS 05h with the NVM command set: storage tags, extended LBA formats, preferred granularities."""

IDENTIFY_NAMESPACE_INDEPENDENT = c.Struct(
    "nsfeat" / U8,
    "nmic" / U8,
    "rescap" / U8,
    "fpi" / U8,
    "anagrpid" / U32,
    "nsattr" / U8,
    c.Padding(1),
    "nvmsetid" / U16,
    "endgid" / U16,
    "nstat" / U8,
    "kpios" / U8,
    "maxkt" / U16,
    c.Padding(2),
    "rgrpid" / U32,
    c.Padding(4072),
)
"""CNS 08h: what is independent of the I/O command set. ``nstat`` bit 0: ready for I/O. NSFEAT bits: see below."""

INDEPENDENT_NSFEAT_UID_REUSE = 1 << 3
INDEPENDENT_NSFEAT_ROTATIONAL = 1 << 4
INDEPENDENT_NSFEAT_VOLATILE_WRITE_CACHE_ABSENT = 1 << 5
"""VWCNP: this namespace has no volatile write cache although the controller may have one."""
NSTAT_READY = 1 << 0
