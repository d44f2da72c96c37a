"""Features: literals and units, round trips."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.features import (
    FEATURE_DATA_BYTES,
    HOST_BEHAVIOR_SUPPORT,
    HOST_MEMORY_BUFFER_ATTRIBUTES,
    LBA_RANGE_TYPE,
    TIMESTAMP,
    Arbitration,
    AsyncEventConfig,
    ErrorRecovery,
    FeatureCapabilities,
    GetFeatures,
    HostIdentifierAttributes,
    InterruptCoalescing,
    InterruptVectorConfiguration,
    IoCommandSetProfile,
    KeepAliveTimer,
    NumberOfQueues,
    PowerManagement,
    ReservationNotificationMask,
    ReservationPersistence,
    SetFeatures,
    TemperatureThreshold,
    VolatileWriteCache,
    WriteAtomicityNormal,
    build_timestamp,
    parse_timestamp,
)
from nvmeof.wire import build, layout

CODECS: list[tuple[Any, Any, int]] = [
    (GetFeatures, GetFeatures(fid=0x0B, sel=3), 0x30B),
    (SetFeatures, SetFeatures(fid=0x07, save=True), 0x80000007),
    (Arbitration, Arbitration(burst=8, low_weight=1, medium_weight=2, high_weight=256), 0xFF010003),
    (Arbitration, Arbitration(), 7),
    (PowerManagement, PowerManagement(power_state=31, workload_hint=2), 0x5F),
    (TemperatureThreshold, TemperatureThreshold(kelvin=343, sensor=15, under=True), 0x1F0157),
    (ErrorRecovery, ErrorRecovery(limit_seconds=1.5, dulbe=True), 0x1000F),
    (VolatileWriteCache, VolatileWriteCache(enabled=True), 1),
    (NumberOfQueues, NumberOfQueues(submission_queues=4, completion_queues=128), 0x7F0003),
    (InterruptCoalescing, InterruptCoalescing(threshold=8, time_seconds=0.001), 0xA07),
    (InterruptVectorConfiguration, InterruptVectorConfiguration(vector=3, coalescing_disabled=True), 0x10003),
    (WriteAtomicityNormal, WriteAtomicityNormal(disabled=True), 1),
    (KeepAliveTimer, KeepAliveTimer(timeout_seconds=5), 5000),
    (HostIdentifierAttributes, HostIdentifierAttributes(extended=True), 1),
    (IoCommandSetProfile, IoCommandSetProfile(index=511), 511),
    (ReservationPersistence, ReservationPersistence(persist=True), 1),
]


@pytest.mark.parametrize(("cls", "value", "raw"), CODECS, ids=lambda item: getattr(item, "__name__", ""))
def test_literals(cls: Any, value: Any, raw: int) -> None:
    assert value.encode() == raw
    assert cls.decode(raw) == value


@pytest.mark.parametrize("cls", sorted({row[0] for row in CODECS}, key=lambda cls: cls.__name__))
@given(raw=st.integers(0, 2**32 - 1))
def test_decode_then_encode_keeps_the_known_bits(cls: Any, raw: int) -> None:
    known = sum(mask << shift for shift, mask in cls.BITS.fields.values())
    value = cls.decode(raw)
    again = value.encode()
    assert cls.decode(again) == value
    if cls is not TemperatureThreshold:  # reserved THSEL values are read as "over"
        assert again == raw & known


def test_values_that_cannot_be_encoded() -> None:
    for burst in (0, 3, 128):
        with pytest.raises(ValueError, match="power of two"):
            Arbitration(burst=burst).encode()
    with pytest.raises(ValueError, match="nsqr"):
        NumberOfQueues(submission_queues=0).encode()
    with pytest.raises(ValueError, match="fid"):
        GetFeatures(fid=256).encode()


def test_a_short_keep_alive_does_not_become_none() -> None:
    assert KeepAliveTimer(timeout_seconds=0.0001).encode() == 1
    assert KeepAliveTimer(timeout_seconds=0).encode() == 0
    assert KeepAliveTimer(timeout_seconds=4.999).encode() == 4999


def test_the_configuration_of_linux() -> None:
    assert AsyncEventConfig(0x900) == AsyncEventConfig.NAMESPACE_ATTRIBUTE | AsyncEventConfig.ANA_CHANGE
    assert AsyncEventConfig.DISCOVERY_LOG == 0x80000000
    assert AsyncEventConfig.FIRMWARE_ACTIVATION == 0x200
    assert FeatureCapabilities.CHANGEABLE == 4
    assert int(ReservationNotificationMask.RESERVATION_PREEMPTED) == 8


def test_sizes_and_offsets_of_data_structures() -> None:
    assert TIMESTAMP.sizeof() == 8
    assert layout(TIMESTAMP) == {"milliseconds": (0, 6), "attributes": (6, 1)}
    assert HOST_BEHAVIOR_SUPPORT.sizeof() == 512
    assert layout(HOST_BEHAVIOR_SUPPORT) == {
        "acre": (0, 1), "etdas": (1, 1), "lbafee": (2, 1), "hdisns": (3, 1), "cdfe": (4, 2),
    }  # fmt: skip
    assert LBA_RANGE_TYPE.sizeof() == 64
    assert layout(LBA_RANGE_TYPE) == {
        "type": (0, 1), "attributes": (1, 1), "slba": (16, 8), "nlb": (24, 8), "guid": (32, 16),
    }  # fmt: skip
    assert HOST_MEMORY_BUFFER_ATTRIBUTES.sizeof() == 4096
    assert layout(HOST_MEMORY_BUFFER_ATTRIBUTES) == {
        "hsize": (0, 4), "hmdlal": (4, 4), "hmdlau": (8, 4), "hmdlec": (12, 4),
    }  # fmt: skip
    assert FEATURE_DATA_BYTES[0x0E] == 8
    assert FEATURE_DATA_BYTES[0x16] == 512
    assert FEATURE_DATA_BYTES[0x81] == 16


def test_timestamp() -> None:
    data = build_timestamp(1.5)
    assert data == b"\xdc\x05\0\0\0\0\x02\0"
    assert parse_timestamp(data) == 1.5
    assert build_timestamp(0, origin=0, stopped=True)[6] == 1


def test_host_behavior_support() -> None:
    data = build(HOST_BEHAVIOR_SUPPORT, acre=1, lbafee=1)
    assert data[:4] == b"\1\0\1\0"
    assert len(data) == 512
