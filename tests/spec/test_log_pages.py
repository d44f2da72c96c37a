"""Log pages: sizes and offsets against the specification, Get Log Page's dwords, the ANA log."""

from __future__ import annotations

import construct as c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.flags import CommandEffects
from nvmeof.spec.log_pages import (
    ANA_HEADER,
    CHANGED_NAMESPACES,
    COMMANDS_SUPPORTED_AND_EFFECTS,
    DEVICE_SELF_TEST,
    ERROR_INFORMATION_ENTRY,
    FEATURES_SUPPORTED_AND_EFFECTS,
    FIRMWARE_SLOT,
    RESERVATION_NOTIFICATION,
    SANITIZE_STATUS,
    SELF_TEST_RESULT,
    SMART_HEALTH,
    SUPPORTED_LOG_PAGES,
    AnaGroup,
    GetLogPage,
    build_ana_log,
    build_changed_namespaces,
    build_effects,
    build_supported_log_pages,
    parse_ana_log,
)
from nvmeof.wire import build, layout

STRUCTURES: list[tuple[str, c.Struct, int, dict[str, int]]] = [
    ("supported", SUPPORTED_LOG_PAGES, 1024, {"lids": 0}),
    (
        "error",
        ERROR_INFORMATION_ENTRY,
        64,
        {
            "error_count": 0, "sqid": 8, "cid": 10, "status": 12, "parameter_error_location": 14, "lba": 16,
            "nsid": 24, "vs": 28, "trtype": 29, "csi": 30, "opcode": 31, "cs": 32, "trtype_specific": 40,
            "log_page_version": 63,
        },
    ),
    (
        "smart",
        SMART_HEALTH,
        512,
        {
            "critical_warning": 0, "composite_temperature": 1, "available_spare": 3, "available_spare_threshold": 4,
            "percentage_used": 5, "endurance_group_critical_warning": 6, "data_units_read": 32,
            "data_units_written": 48, "host_read_commands": 64, "host_write_commands": 80,
            "controller_busy_time": 96, "power_cycles": 112, "power_on_hours": 128, "unsafe_shutdowns": 144,
            "media_errors": 160, "error_log_entries": 176, "warning_temperature_time": 192,
            "critical_temperature_time": 196, "temperature_sensors": 200, "tmt1_transitions": 216,
            "tmt2_transitions": 220, "tmt1_time": 224, "tmt2_time": 228,
        },
    ),
    ("firmware", FIRMWARE_SLOT, 512, {"afi": 0, "frs": 8}),
    ("changed", CHANGED_NAMESPACES, 4096, {"nsids": 0}),
    ("effects", COMMANDS_SUPPORTED_AND_EFFECTS, 4096, {"acs": 0, "iocs": 1024}),
    ("features", FEATURES_SUPPORTED_AND_EFFECTS, 1024, {"fids": 0}),
    ("ana", ANA_HEADER, 16, {"chgcnt": 0, "ngrps": 8}),
    (
        "self-test result",
        SELF_TEST_RESULT,
        28,
        {
            "status": 0, "segment": 1, "valid": 2, "power_on_hours": 4, "nsid": 12, "failing_lba": 16, "sct": 24,
            "sc": 25, "vs": 26,
        },
    ),
    ("self-test", DEVICE_SELF_TEST, 564, {"operation": 0, "completion": 1, "results": 4}),
    ("reservation", RESERVATION_NOTIFICATION, 64, {"log_page_count": 0, "type": 8, "available": 9, "nsid": 12}),
    (
        "sanitize",
        SANITIZE_STATUS,
        512,
        {
            "sprog": 0, "sstat": 2, "scdw10": 4, "eto": 8, "etbe": 12, "etce": 16, "etond": 20, "etbend": 24,
            "etcend": 28, "etpvds": 32, "ssi": 36,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "declaration", "size", "offsets"), STRUCTURES, ids=[row[0] for row in STRUCTURES])
def test_size_and_offsets(name: str, declaration: c.Struct, size: int, offsets: dict[str, int]) -> None:
    assert declaration.sizeof() == size
    assert {field: offset for field, (offset, _) in layout(declaration).items()} == offsets


@given(st.integers(0, 2**128 - 1), st.integers(0, 0xFFFF))
def test_smart_counters_are_128_bits(count: int, kelvin: int) -> None:
    data = build(SMART_HEALTH, data_units_read=count, composite_temperature=kelvin, temperature_sensors=[300])
    assert data[32:48] == count.to_bytes(16, "little")
    assert data[1:3] == kelvin.to_bytes(2, "little")
    assert SMART_HEALTH.parse(data).data_units_read == count


def test_firmware_slots_are_text() -> None:
    data = build(FIRMWARE_SLOT, afi=1, frs=["0.1.0"])
    assert data[8:16] == b"0.1.0   "
    assert FIRMWARE_SLOT.parse(data).frs[0] == "0.1.0"


@pytest.mark.parametrize(
    ("dwords", "lid", "length", "offset"),
    [
        ((0x00040070, 0, 0, 0), 0x70, 20, 0),
        ((0x007F0002, 0, 0, 0), 0x02, 512, 0),
        ((0x03FF0070, 0, 0x400, 0), 0x70, 4096, 0x400),
        ((0xFFFF0005, 0xFFFF, 0, 1), 0x05, 1 << 34, 1 << 32),
    ],
)
def test_get_log_page_dwords(dwords: tuple[int, int, int, int], lid: int, length: int, offset: int) -> None:
    command = GetLogPage.decode(*dwords)
    assert (command.lid, command.length_bytes, command.offset_bytes) == (lid, length, offset)
    assert command.encode() == (*dwords, 0)


@given(
    lid=st.integers(0, 255),
    dwords=st.integers(1, 1 << 32),
    offset=st.integers(0, 2**64 - 1),
    lsp=st.integers(0, 127),
    lsi=st.integers(0, 0xFFFF),
    retain=st.booleans(),
    csi=st.integers(0, 255),
)
def test_get_log_page_round_trip(
    lid: int, dwords: int, offset: int, lsp: int, lsi: int, retain: bool, csi: int
) -> None:
    command = GetLogPage(
        lid=lid, length_bytes=4 * dwords, offset_bytes=offset, lsp=lsp, lsi=lsi, retain=retain, csi=csi
    )
    assert GetLogPage.decode(*command.encode()) == command


@pytest.mark.parametrize("length", [0, 2, 6, -4])
def test_a_log_page_is_read_in_dwords(length: int) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        GetLogPage(lid=2, length_bytes=length).encode()


GROUPS = st.lists(
    st.builds(
        AnaGroup,
        grpid=st.integers(1, 2**32 - 1),
        state=st.sampled_from([1, 2, 3, 4, 15]),
        chgcnt=st.integers(0, 2**64 - 1),
        nsids=st.lists(st.integers(1, 2**32 - 1), max_size=5).map(tuple),
    ),
    max_size=4,
)


@given(st.integers(0, 2**64 - 1), GROUPS)
def test_ana_log_round_trip(chgcnt: int, groups: list[AnaGroup]) -> None:
    data = build_ana_log(chgcnt, groups)
    assert len(data) == 16 + sum(32 + 4 * len(group.nsids) for group in groups)
    assert parse_ana_log(data + bytes(64)) == (chgcnt, groups)


def test_ana_log_as_bytes() -> None:
    data = build_ana_log(2, [AnaGroup(1, 3, 7, (5, 6))])
    assert data[:16].hex() == "02000000000000000100000000000000"
    assert data[16:48].hex() == "0100000002000000070000000000000003" + "00" * 15
    assert data[48:].hex() == "0500000006000000"
    assert len(build_ana_log(2, [AnaGroup(1, 3, 7, (5, 6))], groups_only=True)) == 48


@pytest.mark.parametrize("cut", [0, 8, 15, 20, 47, 51])
def test_a_cut_ana_log_is_refused(cut: int) -> None:
    data = build_ana_log(2, [AnaGroup(1, 3, 7, (5, 6))])
    with pytest.raises(ValueError, match="ANA log"):
        parse_ana_log(data[:cut])


def test_an_ana_log_with_an_absurd_count_is_refused_at_once() -> None:
    data = bytearray(build_ana_log(2, [AnaGroup(1, 1)]))
    data[20:24] = b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="4294967295 namespaces"):
        parse_ana_log(data)


def test_changed_namespaces() -> None:
    data = build_changed_namespaces({7, 3})
    assert len(data) == 4096
    assert data[:12] == b"\3\0\0\0\7\0\0\0\0\0\0\0"
    assert build_changed_namespaces(range(1, 1025))[-4:] == (1024).to_bytes(4, "little")
    too_many = build_changed_namespaces(range(1, 1026))
    assert too_many == b"\xff\xff\xff\xff" + bytes(4092)


def test_supported_log_pages() -> None:
    data = build_supported_log_pages({0: 1, 2: 1, 0x70: 0x50003})
    assert data[4 * 0x70 : 4 * 0x70 + 4] == b"\3\0\5\0"
    assert [lid for lid in range(256) if data[4 * lid]] == [0, 2, 0x70]
    assert len(data) == 1024


def test_effects() -> None:
    data = build_effects({6: CommandEffects.SUPPORTED}, {1: CommandEffects.SUPPORTED | 2})
    assert len(data) == 4096
    assert data[24:28] == b"\1\0\0\0"
    assert data[1028:1032] == b"\3\0\0\0"
    assert sum(data) == 4
