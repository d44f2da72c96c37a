"""Status values, the status word, and the text for a person."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import NvmeStatusError
from nvmeof.spec.status import (
    Status,
    describe_status,
    path_error,
    split_status,
    status_error,
    status_field,
    status_name,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SUCCESS", 0x000), ("INVALID_OPCODE", 0x001), ("INVALID_FIELD", 0x002), ("COMMAND_ID_CONFLICT", 0x003),
        ("DATA_TRANSFER_ERROR", 0x004), ("INTERNAL_ERROR", 0x006), ("ABORTED_BY_REQUEST", 0x007),
        ("ABORTED_SQ_DELETION", 0x008), ("ABORTED_FAILED_FUSED", 0x009), ("ABORTED_MISSING_FUSED", 0x00A),
        ("INVALID_NAMESPACE", 0x00B), ("COMMAND_SEQUENCE_ERROR", 0x00C), ("INVALID_SGL_SEGMENT", 0x00D),
        ("DATA_SGL_LENGTH_INVALID", 0x00F), ("SGL_DESCRIPTOR_TYPE_INVALID", 0x011), ("SGL_OFFSET_INVALID", 0x016),
        ("HOST_ID_INCONSISTENT_FORMAT", 0x018), ("KEEP_ALIVE_EXPIRED", 0x019), ("KEEP_ALIVE_INVALID", 0x01A),
        ("NAMESPACE_WRITE_PROTECTED", 0x020), ("COMMAND_INTERRUPTED", 0x021), ("TRANSIENT_TRANSPORT_ERROR", 0x022),
        ("ADMIN_COMMAND_MEDIA_NOT_READY", 0x024), ("LBA_OUT_OF_RANGE", 0x080), ("CAPACITY_EXCEEDED", 0x081),
        ("NAMESPACE_NOT_READY", 0x082), ("RESERVATION_CONFLICT", 0x083), ("FORMAT_IN_PROGRESS", 0x084),
        ("INVALID_QUEUE_ID", 0x101), ("INVALID_QUEUE_SIZE", 0x102), ("ABORT_LIMIT_EXCEEDED", 0x103),
        ("ASYNC_EVENT_LIMIT_EXCEEDED", 0x105), ("INVALID_LOG_PAGE", 0x109), ("INVALID_FORMAT", 0x10A),
        ("FEATURE_NOT_SAVEABLE", 0x10D), ("FEATURE_NOT_CHANGEABLE", 0x10E),
        ("FEATURE_NOT_NAMESPACE_SPECIFIC", 0x10F), ("OVERLAPPING_RANGE", 0x114), ("NAMESPACE_NOT_ATTACHED", 0x11A),
        ("INVALID_CONTROLLER_ID", 0x11F), ("ANA_GROUP_ID_INVALID", 0x124), ("IO_COMMAND_SET_NOT_SUPPORTED", 0x129),
        ("INVALID_IO_COMMAND_SET", 0x12C), ("CONNECT_INCOMPATIBLE_FORMAT", 0x180), ("CONNECT_CONTROLLER_BUSY", 0x181),
        ("CONNECT_INVALID_PARAMETERS", 0x182), ("CONNECT_RESTART_DISCOVERY", 0x183), ("CONNECT_INVALID_HOST", 0x184),
        ("DISCOVER_RESTART", 0x190), ("AUTHENTICATION_REQUIRED", 0x191), ("CONFLICTING_ATTRIBUTES", 0x180),
        ("INVALID_PROTECTION_INFORMATION", 0x181), ("READ_ONLY_RANGE", 0x182), ("COMMAND_SIZE_LIMIT_EXCEEDED", 0x183),
        ("ZONED_BOUNDARY_ERROR", 0x1B8), ("WRITE_FAULT", 0x280), ("UNRECOVERED_READ_ERROR", 0x281),
        ("GUARD_CHECK_ERROR", 0x282), ("COMPARE_FAILURE", 0x285), ("DEALLOCATED_OR_UNWRITTEN", 0x287),
        ("INTERNAL_PATH_ERROR", 0x300), ("ANA_PERSISTENT_LOSS", 0x301), ("ANA_INACCESSIBLE", 0x302),
        ("ANA_TRANSITION", 0x303), ("CONTROLLER_PATHING_ERROR", 0x360), ("HOST_PATHING_ERROR", 0x370),
        ("ABORTED_BY_HOST", 0x371),
    ],
)  # fmt: skip
def test_values(name: str, value: int) -> None:
    assert Status[name] == value
    assert (Status[name].sct, Status[name].sc) == (value >> 8, value & 0xFF)


def test_every_status_is_described() -> None:
    for status in Status:
        assert status.description
        assert status.description.strip() == status.description
        assert not status.description.endswith(".")
        assert f"{int(status):#05x}" in describe_status(status)
        assert 0 <= status <= 0x7FF


@given(status=st.integers(0, 0x7FF), dnr=st.booleans(), more=st.booleans())
def test_status_word_round_trip(status: int, dnr: bool, more: bool) -> None:
    field = status_field(status, dnr, more)
    assert field & 1 == 0
    assert field >> 12 & 3 == 0
    assert split_status(field) == (status, dnr, more)
    # phase and Command Retry Delay do not matter
    assert split_status(field | 1 | 3 << 12) == (status, dnr, more)


def test_status_word_literals() -> None:
    assert status_field(Status.SUCCESS) == 0
    assert status_field(Status.INVALID_OPCODE, dnr=True) == 0x8002
    assert status_field(Status.LBA_OUT_OF_RANGE, dnr=True, more=True) == 0xC100
    assert status_field(Status.CONNECT_INVALID_PARAMETERS, dnr=True) == 0x8304
    assert status_field(Status.ANA_TRANSITION) == 0x0606


def test_names_are_those_of_the_specification() -> None:
    assert status_name(0x002) == "Invalid Field in Command"
    assert status_name(0x080) == "LBA Out Of Range"
    assert status_name(0x00F) == "Data SGL Length Invalid"
    assert status_name(0x101) == "Invalid Queue Identifier"
    assert status_name(0x371) == "Command Aborted By Host"
    assert status_name(0x281) == "Unrecovered Read Error"


def test_fabrics_and_io_meanings_of_the_same_value() -> None:
    assert status_name(0x182, fabrics=True) == "Connect Invalid Parameters"
    assert status_name(0x182, fabrics=False) == "Attempted Write To Read Only Range"
    both = describe_status(0x182)
    assert "Connect Invalid Parameters" in both
    assert "Read Only" in both
    assert Status.READ_ONLY_RANGE is Status.CONNECT_INVALID_PARAMETERS


@pytest.mark.parametrize(("value", "word"), [(0x7C1, "Vendor"), (0x0C0, "Vendor"), (0x07F, "Unknown"), (0x57F, "Un")])
def test_unknown_values_are_described_too(value: int, word: str) -> None:
    assert describe_status(value).startswith(word)
    assert f"{value:#05x}" in describe_status(value)


def test_the_text_names_do_not_retry() -> None:
    assert describe_status(2, dnr=True).endswith("(0x002, do not retry)")
    assert describe_status(2).endswith("(0x002)")


def test_status_error_from_a_completion() -> None:
    error = status_error(status_field(Status.LBA_OUT_OF_RANGE, dnr=True), "Read", dw0=5)
    assert isinstance(error, NvmeStatusError)
    assert (error.status, error.dnr, error.dw0) == (0x80, True, 5)
    assert str(error).startswith("Read failed: LBA Out Of Range")
    assert str(status_error(status_field(0x281))).startswith("Unrecovered Read Error")


def test_path_errors() -> None:
    assert path_error(Status.ANA_INACCESSIBLE)
    assert path_error(Status.ABORTED_BY_HOST)
    assert not path_error(Status.WRITE_FAULT)
    assert not path_error(Status.INTERNAL_ERROR)
