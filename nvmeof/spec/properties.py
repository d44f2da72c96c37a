"""Controller properties (NVMe Base, Controller Properties), which a fabrics host reads and writes by command.

Each class decodes one property to converted units and encodes it back; its ``BITS`` is the declaration.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, NamedTuple

from nvmeof.wire import Bits

CAP_OFFSET = 0x00
VS_OFFSET = 0x08
CC_OFFSET = 0x14
CSTS_OFFSET = 0x1C
NSSR_OFFSET = 0x20
NSSD_OFFSET = 0x64
CRTO_OFFSET = 0x68

NSSR_RESET = 0x4E564D65
"""The value ("NVMe") that resets the NVM subsystem when written to NSSR."""
NSSD_NORMAL = 0x4E726D6C
"""The value ("Nrml") that shuts the NVM subsystem down when written to NSSD."""
NSSD_ABRUPT = 0x41627074
"""The value ("Abpt") that shuts the NVM subsystem down abruptly."""

VERSION_1_2 = 0x010200
VERSION_1_3 = 0x010300
VERSION_1_4 = 0x010400
VERSION_2_0 = 0x020000
VERSION_2_1 = 0x020100

TIMEOUT_UNIT_SECONDS = 0.5
"""The unit of CAP.TO and CRTO."""


class PropertyInfo(NamedTuple):
    """One property of a fabrics controller. ``size``: 4 or 8 bytes."""

    name: str
    size: int
    readable: bool
    writable: bool


PROPERTIES: dict[int, PropertyInfo] = {
    CAP_OFFSET: PropertyInfo("CAP", 8, True, False),
    VS_OFFSET: PropertyInfo("VS", 4, True, False),
    CC_OFFSET: PropertyInfo("CC", 4, True, True),
    # NSSRO could be cleared by a write, but exists only where NSSR does
    CSTS_OFFSET: PropertyInfo("CSTS", 4, True, False),
    NSSR_OFFSET: PropertyInfo("NSSR", 4, True, True),
    NSSD_OFFSET: PropertyInfo("NSSD", 4, True, True),
    CRTO_OFFSET: PropertyInfo("CRTO", 4, True, False),
}
"""Offset to property, for those that NVMe over Fabrics has. NSSR and NSSD only where CAP says so."""


class CapCss(IntEnum):
    """Bits of CAP.CSS."""

    NVM = 1 << 0
    IO_COMMAND_SETS = 1 << 6
    NO_IO_COMMAND_SET = 1 << 7


class CcCss(IntEnum):
    """Values of CC.CSS: the I/O command set(s) that the host selects."""

    NVM = 0
    ALL_SUPPORTED = 6
    ADMIN_ONLY = 7


class Shn(IntEnum):
    """CC.SHN: shutdown notification."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2


class Shst(IntEnum):
    """CSTS.SHST: shutdown status."""

    NORMAL = 0
    OCCURRING = 1
    COMPLETE = 2


class Crms(IntEnum):
    """Bits of CAP.CRMS: controller ready modes."""

    WITH_MEDIA = 1 << 0
    INDEPENDENT_OF_MEDIA = 1 << 1


def _power(value: int, base: int) -> int:
    """Return the exponent of ``value`` above ``base``, both powers of two."""
    exponent = value.bit_length() - base.bit_length()
    if exponent < 0 or base << exponent != value:
        raise ValueError(f"{value} is not {base} times a power of two")
    return exponent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """Controller Capabilities.

    ``mqes_entries``: largest queue (CAP.MQES is 0's-based). ``timeout_seconds``: how long CSTS.RDY may take to follow
    CC.EN (units of 0.5 s). ``mpsmin_bytes``, ``mpsmax_bytes``: memory page sizes; MDTS is in units of the former.
    ``dstrd_bytes``: doorbell stride. ``css``: :class:`CapCss` bits. ``crms``: :class:`Crms` bits.
    """

    mqes_entries: int = 128
    cqr: bool = False
    ams: int = 0
    timeout_seconds: float = 0.0
    dstrd_bytes: int = 4
    nssrs: bool = False
    css: int = CapCss.NVM
    bps: bool = False
    cps: int = 0
    mpsmin_bytes: int = 4096
    mpsmax_bytes: int = 4096
    pmrs: bool = False
    cmbs: bool = False
    nsss: bool = False
    crms: int = 0
    nsses: bool = False

    BITS: ClassVar[Bits] = Bits(
        8, mqes=16, cqr=1, ams=2, _19=5, to=8, dstrd=4, nssrs=1, css=8, bps=1, cps=2, mpsmin=4, mpsmax=4, pmrs=1,
        cmbs=1, nsss=1, crms=2, nsses=1, _62=2,
    )  # fmt: skip

    @classmethod
    def decode(cls, value: int) -> Cap:
        """Decode the 64-bit property."""
        raw = cls.BITS.decode(value)
        return cls(
            mqes_entries=raw["mqes"] + 1,
            cqr=bool(raw["cqr"]),
            ams=raw["ams"],
            timeout_seconds=raw["to"] * TIMEOUT_UNIT_SECONDS,
            dstrd_bytes=4 << raw["dstrd"],
            nssrs=bool(raw["nssrs"]),
            css=raw["css"],
            bps=bool(raw["bps"]),
            cps=raw["cps"],
            mpsmin_bytes=4096 << raw["mpsmin"],
            mpsmax_bytes=4096 << raw["mpsmax"],
            pmrs=bool(raw["pmrs"]),
            cmbs=bool(raw["cmbs"]),
            nsss=bool(raw["nsss"]),
            crms=raw["crms"],
            nsses=bool(raw["nsses"]),
        )

    def encode(self) -> int:
        """Return the 64-bit property; the timeout is rounded up. ``ValueError`` for what does not fit."""
        return self.BITS.encode(
            mqes=self.mqes_entries - 1,
            cqr=self.cqr,
            ams=self.ams,
            to=-int(-self.timeout_seconds // TIMEOUT_UNIT_SECONDS),
            dstrd=_power(self.dstrd_bytes, 4),
            nssrs=self.nssrs,
            css=self.css,
            bps=self.bps,
            cps=self.cps,
            mpsmin=_power(self.mpsmin_bytes, 4096),
            mpsmax=_power(self.mpsmax_bytes, 4096),
            pmrs=self.pmrs,
            cmbs=self.cmbs,
            nsss=self.nsss,
            crms=self.crms,
            nsses=self.nsses,
        )


@dataclass(frozen=True, slots=True, order=True)
class Vs:
    """Version, comparable: ``Vs(2, 1) >= Vs(1, 4)``."""

    major: int = 0
    minor: int = 0
    tertiary: int = 0

    BITS: ClassVar[Bits] = Bits(4, ter=8, mnr=8, mjr=16)

    @classmethod
    def decode(cls, value: int) -> Vs:
        """Decode the 32-bit property, or Identify Controller's VER."""
        raw = cls.BITS.decode(value)
        return cls(raw["mjr"], raw["mnr"], raw["ter"])

    def encode(self) -> int:
        """Return the 32-bit property."""
        return self.BITS.encode(mjr=self.major, mnr=self.minor, ter=self.tertiary)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" + (f".{self.tertiary}" if self.tertiary else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cc:
    """Controller Configuration.

    ``mps_bytes``: memory page size. ``iosqes_bytes``, ``iocqes_bytes``: I/O queue entry sizes (64 and 16; 1 where the
    field is 0). ``css``: :class:`CcCss`. ``shn``: :class:`Shn`. ``crime``: ready independent of media.
    """

    en: bool = False
    css: int = CcCss.NVM
    mps_bytes: int = 4096
    ams: int = 0
    shn: int = Shn.NONE
    iosqes_bytes: int = 64
    iocqes_bytes: int = 16
    crime: bool = False

    BITS: ClassVar[Bits] = Bits(4, en=1, _1=3, css=3, mps=4, ams=3, shn=2, iosqes=4, iocqes=4, crime=1, _25=7)

    @classmethod
    def decode(cls, value: int) -> Cc:
        """Decode the 32-bit property."""
        raw = cls.BITS.decode(value)
        return cls(
            en=bool(raw["en"]),
            css=raw["css"],
            mps_bytes=4096 << raw["mps"],
            ams=raw["ams"],
            shn=raw["shn"],
            iosqes_bytes=1 << raw["iosqes"],
            iocqes_bytes=1 << raw["iocqes"],
            crime=bool(raw["crime"]),
        )

    def encode(self) -> int:
        """Return the 32-bit property. ``ValueError`` for what does not fit."""
        return self.BITS.encode(
            en=self.en,
            css=self.css,
            mps=_power(self.mps_bytes, 4096),
            ams=self.ams,
            shn=self.shn,
            iosqes=_power(self.iosqes_bytes, 1),
            iocqes=_power(self.iocqes_bytes, 1),
            crime=self.crime,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Csts:
    """Controller Status. ``shst``: :class:`Shst`. ``cfs``: fatal. ``st``: the shutdown is of the whole subsystem."""

    rdy: bool = False
    cfs: bool = False
    shst: int = Shst.NORMAL
    nssro: bool = False
    pp: bool = False
    st: bool = False

    BITS: ClassVar[Bits] = Bits(4, rdy=1, cfs=1, shst=2, nssro=1, pp=1, st=1, _7=25)

    @classmethod
    def decode(cls, value: int) -> Csts:
        """Decode the 32-bit property."""
        raw = cls.BITS.decode(value)
        return cls(
            rdy=bool(raw["rdy"]),
            cfs=bool(raw["cfs"]),
            shst=raw["shst"],
            nssro=bool(raw["nssro"]),
            pp=bool(raw["pp"]),
            st=bool(raw["st"]),
        )

    def encode(self) -> int:
        """Return the 32-bit property."""
        return self.BITS.encode(rdy=self.rdy, cfs=self.cfs, shst=self.shst, nssro=self.nssro, pp=self.pp, st=self.st)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crto:
    """Controller Ready Timeouts, both in seconds: with media, and independent of media (units of 0.5 s)."""

    crwmt_seconds: float = 0.0
    crimt_seconds: float = 0.0

    BITS: ClassVar[Bits] = Bits(4, crwmt=16, crimt=16)

    @classmethod
    def decode(cls, value: int) -> Crto:
        """Decode the 32-bit property."""
        raw = cls.BITS.decode(value)
        return cls(crwmt_seconds=raw["crwmt"] * TIMEOUT_UNIT_SECONDS, crimt_seconds=raw["crimt"] * TIMEOUT_UNIT_SECONDS)

    def encode(self) -> int:
        """Return the 32-bit property; rounded up."""
        return self.BITS.encode(
            crwmt=-int(-self.crwmt_seconds // TIMEOUT_UNIT_SECONDS),
            crimt=-int(-self.crimt_seconds // TIMEOUT_UNIT_SECONDS),
        )
