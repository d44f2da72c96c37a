"""Features and the Get and Set Features commands (NVMe Base, Feature definitions).

A feature's attributes are CDW11 of Set Features and DW0 of Get Features' completion: one 32-bit value. Each class
decodes it to converted units and encodes it back; its ``BITS`` is the declaration. Features with a data structure
have that as a construct declaration.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar

import construct as c

from nvmeof.spec.enums import FeatureId, FeatureSelect
from nvmeof.spec.flags import Oaes
from nvmeof.wire import U8, U16, U32, Bits, Buffer, build


class FeatureCapabilities(IntFlag):
    """DW0 of Get Features with SEL = supported capabilities."""

    SAVEABLE = 1 << 0
    NAMESPACE_SPECIFIC = 1 << 1
    CHANGEABLE = 1 << 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GetFeatures:
    """CDW10 of Get Features. ``sel``: :class:`~nvmeof.spec.enums.FeatureSelect`."""

    fid: int
    sel: int = FeatureSelect.CURRENT

    BITS: ClassVar[Bits] = Bits(4, fid=8, sel=3, _11=21)

    @classmethod
    def decode(cls, cdw10: int) -> GetFeatures:
        """Decode CDW10."""
        return cls(**cls.BITS.decode(cdw10))

    def encode(self) -> int:
        """Return CDW10."""
        return self.BITS.encode(fid=self.fid, sel=self.sel)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFeatures:
    """CDW10 of Set Features. ``save``: keep the value over resets and power cycles."""

    fid: int
    save: bool = False

    BITS: ClassVar[Bits] = Bits(4, fid=8, _8=23, sv=1)

    @classmethod
    def decode(cls, cdw10: int) -> SetFeatures:
        """Decode CDW10."""
        raw = cls.BITS.decode(cdw10)
        return cls(fid=raw["fid"], save=bool(raw["sv"]))

    def encode(self) -> int:
        """Return CDW10."""
        return self.BITS.encode(fid=self.fid, sv=self.save)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arbitration:
    """Feature 01h. ``burst``: commands at once per queue, a power of two, None for no limit; weights are 1-based."""

    burst: int | None = None
    low_weight: int = 1
    medium_weight: int = 1
    high_weight: int = 1

    BITS: ClassVar[Bits] = Bits(4, ab=3, _3=5, lpw=8, mpw=8, hpw=8)

    @classmethod
    def decode(cls, value: int) -> Arbitration:
        """Decode the attributes."""
        raw = cls.BITS.decode(value)
        return cls(
            burst=None if raw["ab"] == 7 else 1 << raw["ab"],
            low_weight=raw["lpw"] + 1,
            medium_weight=raw["mpw"] + 1,
            high_weight=raw["hpw"] + 1,
        )

    def encode(self) -> int:
        """Return the attributes. ``ValueError`` for a burst that is no power of two up to 64."""
        burst = 7 if self.burst is None else self.burst.bit_length() - 1
        if self.burst is not None and (burst not in range(7) or 1 << burst != self.burst):
            raise ValueError(f"an arbitration burst is a power of two up to 64, not {self.burst}")
        return self.BITS.encode(ab=burst, lpw=self.low_weight - 1, mpw=self.medium_weight - 1, hpw=self.high_weight - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerManagement:
    """Feature 02h. ``workload_hint``: 0 to 7."""

    power_state: int = 0
    workload_hint: int = 0

    BITS: ClassVar[Bits] = Bits(4, power_state=5, workload_hint=3, _8=24)

    @classmethod
    def decode(cls, value: int) -> PowerManagement:
        """Decode the attributes."""
        return cls(**cls.BITS.decode(value))

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(power_state=self.power_state, workload_hint=self.workload_hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureThreshold:
    """Feature 04h. ``kelvin``; ``sensor``: 0 composite, 1-8, 15 all; ``under``: the under-temperature threshold."""

    kelvin: int = 0
    sensor: int = 0
    under: bool = False
    hysteresis_kelvin: int = 0

    BITS: ClassVar[Bits] = Bits(4, tmpth=16, tmpsel=4, thsel=2, tmpthh=3, _25=7)

    @classmethod
    def decode(cls, value: int) -> TemperatureThreshold:
        """Decode the attributes."""
        raw = cls.BITS.decode(value)
        return cls(kelvin=raw["tmpth"], sensor=raw["tmpsel"], under=raw["thsel"] == 1, hysteresis_kelvin=raw["tmpthh"])

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(tmpth=self.kelvin, tmpsel=self.sensor, thsel=self.under, tmpthh=self.hysteresis_kelvin)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRecovery:
    """Feature 05h. ``limit_seconds``: TLER in units of 0.1 s, 0 for no limit. ``dulbe``: error on deallocated reads."""

    limit_seconds: float = 0.0
    dulbe: bool = False

    BITS: ClassVar[Bits] = Bits(4, tler=16, dulbe=1, _17=15)

    @classmethod
    def decode(cls, value: int) -> ErrorRecovery:
        """Decode the attributes."""
        raw = cls.BITS.decode(value)
        return cls(limit_seconds=raw["tler"] / 10, dulbe=bool(raw["dulbe"]))

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(tler=round(self.limit_seconds * 10), dulbe=self.dulbe)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolatileWriteCache:
    """Feature 06h."""

    enabled: bool = False

    BITS: ClassVar[Bits] = Bits(4, wce=1, _1=31)

    @classmethod
    def decode(cls, value: int) -> VolatileWriteCache:
        """Decode the attributes."""
        return cls(enabled=bool(cls.BITS.decode(value)["wce"]))

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(wce=self.enabled)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberOfQueues:
    """Feature 07h: I/O queues asked for or allocated, 1-based (0's-based on the wire, FFFFh reserved)."""

    submission_queues: int = 1
    completion_queues: int = 1

    BITS: ClassVar[Bits] = Bits(4, nsqr=16, ncqr=16)

    @classmethod
    def decode(cls, value: int) -> NumberOfQueues:
        """Decode the attributes or the completion's DW0."""
        raw = cls.BITS.decode(value)
        return cls(submission_queues=raw["nsqr"] + 1, completion_queues=raw["ncqr"] + 1)

    def encode(self) -> int:
        """Return the attributes. ``ValueError`` for 0 queues."""
        return self.BITS.encode(nsqr=self.submission_queues - 1, ncqr=self.completion_queues - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptCoalescing:
    """Feature 08h. ``threshold``: completions, 1-based. ``time_seconds``: units of 100 us, 0 for no delay."""

    threshold: int = 1
    time_seconds: float = 0.0

    BITS: ClassVar[Bits] = Bits(4, thr=8, time=8, _16=16)

    @classmethod
    def decode(cls, value: int) -> InterruptCoalescing:
        """Decode the attributes."""
        raw = cls.BITS.decode(value)
        return cls(threshold=raw["thr"] + 1, time_seconds=raw["time"] / 10_000)

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(thr=self.threshold - 1, time=round(self.time_seconds * 10_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptVectorConfiguration:
    """Feature 09h."""

    vector: int = 0
    coalescing_disabled: bool = False

    BITS: ClassVar[Bits] = Bits(4, iv=16, cd=1, _17=15)

    @classmethod
    def decode(cls, value: int) -> InterruptVectorConfiguration:
        """Decode the attributes."""
        raw = cls.BITS.decode(value)
        return cls(vector=raw["iv"], coalescing_disabled=bool(raw["cd"]))

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(iv=self.vector, cd=self.coalescing_disabled)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteAtomicityNormal:
    """Feature 0Ah. ``disabled``: DN, the host needs no atomicity beyond AWUPF in normal operation."""

    disabled: bool = False

    BITS: ClassVar[Bits] = Bits(4, dn=1, _1=31)

    @classmethod
    def decode(cls, value: int) -> WriteAtomicityNormal:
        """Decode the attributes."""
        return cls(disabled=bool(cls.BITS.decode(value)["dn"]))

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(dn=self.disabled)


class AsyncEventConfig(IntFlag):
    """Feature 0Bh: which asynchronous events are sent.

    Bits 7:0 are SMART critical warnings; the others are those of OAES, but for Telemetry, which LPA announces.
    """

    SPARE = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY_DEGRADED = 1 << 2
    READ_ONLY = 1 << 3
    VOLATILE_BACKUP_FAILED = 1 << 4
    PERSISTENT_MEMORY_READ_ONLY = 1 << 5
    NAMESPACE_ATTRIBUTE = int(Oaes.NAMESPACE_ATTRIBUTE)
    FIRMWARE_ACTIVATION = int(Oaes.FIRMWARE_ACTIVATION)
    TELEMETRY = 1 << 10
    ANA_CHANGE = int(Oaes.ANA_CHANGE)
    PREDICTABLE_LATENCY = int(Oaes.PREDICTABLE_LATENCY)
    LBA_STATUS = int(Oaes.LBA_STATUS)
    ENDURANCE_GROUP = int(Oaes.ENDURANCE_GROUP)
    NORMAL_SHUTDOWN = int(Oaes.NORMAL_SHUTDOWN)
    TEMPERATURE_HYSTERESIS = int(Oaes.TEMPERATURE_HYSTERESIS)
    REACHABILITY_GROUP = int(Oaes.REACHABILITY_GROUP)
    REACHABILITY_ASSOCIATION = int(Oaes.REACHABILITY_ASSOCIATION)
    ALLOCATED_NAMESPACE_ATTRIBUTE = int(Oaes.ALLOCATED_NAMESPACE_ATTRIBUTE)
    ZONE_DESCRIPTOR = int(Oaes.ZONE_DESCRIPTOR)
    DISCOVERY_LOG = int(Oaes.DISCOVERY_LOG)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAliveTimer:
    """Feature 0Fh. ``timeout_seconds``: KATO is in milliseconds; 0 switches the timer off."""

    timeout_seconds: float = 0.0

    BITS: ClassVar[Bits] = Bits(4, kato=32)

    @classmethod
    def decode(cls, value: int) -> KeepAliveTimer:
        """Decode the attributes."""
        return cls(timeout_seconds=cls.BITS.decode(value)["kato"] / 1000)

    def encode(self) -> int:
        """Return the attributes; rounded up, so that a short timeout does not become none."""
        return self.BITS.encode(kato=-int(-round(self.timeout_seconds * 1000, 6) // 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIdentifierAttributes:
    """Feature 81h, attributes. ``extended``: EXHID, the data is 16 bytes rather than 8; always so over fabrics."""

    extended: bool = True

    BITS: ClassVar[Bits] = Bits(4, exhid=1, _1=31)

    @classmethod
    def decode(cls, value: int) -> HostIdentifierAttributes:
        """Decode the attributes."""
        return cls(extended=bool(cls.BITS.decode(value)["exhid"]))

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(exhid=self.extended)


@dataclass(frozen=True, slots=True, kw_only=True)
class IoCommandSetProfile:
    """Feature 19h. ``index``: the combination of Identify CNS 1Ch that is in use."""

    index: int = 0

    BITS: ClassVar[Bits] = Bits(4, index=9, _9=23)

    @classmethod
    def decode(cls, value: int) -> IoCommandSetProfile:
        """Decode the attributes."""
        return cls(**cls.BITS.decode(value))

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(index=self.index)


class ReservationNotificationMask(IntFlag):
    """Feature 82h: notifications that are *not* sent."""

    REGISTRATION_PREEMPTED = 1 << 1
    RESERVATION_RELEASED = 1 << 2
    RESERVATION_PREEMPTED = 1 << 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationPersistence:
    """Feature 83h. ``persist``: PTPL, registrations and reservations survive a power loss."""

    persist: bool = False

    BITS: ClassVar[Bits] = Bits(4, ptpl=1, _1=31)

    @classmethod
    def decode(cls, value: int) -> ReservationPersistence:
        """Decode the attributes."""
        return cls(persist=bool(cls.BITS.decode(value)["ptpl"]))

    def encode(self) -> int:
        """Return the attributes."""
        return self.BITS.encode(ptpl=self.persist)


TIMESTAMP = c.Struct("milliseconds" / c.BytesInteger(6, swapped=True), "attributes" / U8, c.Padding(1))
"""Feature 0Eh, 8 bytes: milliseconds since 1970, attributes (bit 0: may have stopped, bits 3:1: origin)."""
TIMESTAMP_BYTES = 8
TIMESTAMP_ORIGIN_RESET = 0
TIMESTAMP_ORIGIN_HOST = 1


def build_timestamp(seconds: float, *, origin: int = TIMESTAMP_ORIGIN_HOST, stopped: bool = False) -> bytes:
    """Build the Timestamp data structure; ``seconds`` since 1970 (or since the reset, with that origin)."""
    milliseconds = int(seconds * 1000) & 0xFFFF_FFFF_FFFF
    return build(TIMESTAMP, milliseconds=milliseconds, attributes=origin << 1 | stopped)


def parse_timestamp(data: Buffer) -> float:
    """Return the seconds of a Timestamp data structure."""
    return float(TIMESTAMP.parse(bytes(data)).milliseconds) / 1000


HOST_BEHAVIOR_SUPPORT = c.Struct(
    "acre" / U8,
    "etdas" / U8,
    "lbafee" / U8,
    "hdisns" / U8,
    "cdfe" / U16,
    c.Padding(506),
)
"""Feature 16h, 512 bytes: what the host enables (1 each): advanced command retry, extended telemetry data area,
LBA format extension, dispersed namespaces; ``cdfe``: Copy descriptor formats."""

LBA_RANGE_TYPE = c.Struct(
    "type" / U8,
    "attributes" / U8,
    c.Padding(14),
    "slba" / c.Int64ul,
    "nlb" / c.Int64ul,
    "guid" / c.Bytes(16),
    c.Padding(16),
)
"""Feature 03h: one of up to 64 ranges, 64 bytes. ``nlb`` is 0's-based."""

HOST_MEMORY_BUFFER_ATTRIBUTES = c.Struct("hsize" / U32, "hmdlal" / U32, "hmdlau" / U32, "hmdlec" / U32, c.Padding(4080))
"""Feature 0Dh, 4096 bytes (PCIe only)."""

NAMESPACE_ADMIN_LABEL_BYTES = 256
"""Feature 1Fh: UTF-8, terminated and filled up with NULs."""

FEATURE_DATA_BYTES: dict[int, int] = {
    FeatureId.LBA_RANGE_TYPE: 4096,
    FeatureId.AUTONOMOUS_POWER_STATE_TRANSITION: 256,
    FeatureId.HOST_MEMORY_BUFFER: 4096,
    FeatureId.TIMESTAMP: TIMESTAMP_BYTES,
    FeatureId.PREDICTABLE_LATENCY_MODE_CONFIG: 512,
    FeatureId.HOST_BEHAVIOR_SUPPORT: 512,
    FeatureId.NAMESPACE_ADMIN_LABEL: NAMESPACE_ADMIN_LABEL_BYTES,
    FeatureId.ENHANCED_CONTROLLER_METADATA: 4096,
    FeatureId.CONTROLLER_METADATA: 4096,
    FeatureId.NAMESPACE_METADATA: 4096,
    FeatureId.HOST_IDENTIFIER: 16,
}
"""Length of the data structure of features that have one (Host Identifier: extended form)."""
