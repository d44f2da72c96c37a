"""NVMe Qualified Names."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.spec.nqn import check_nqn, nqn_uuid, terminated_nqn, unnamed_host, uuid_nqn, validate_nqn

UUID = "c2c6a1a0-8f5e-4a8e-9d42-0f5d6a3b1c2d"


@pytest.mark.parametrize(
    "text",
    [
        "nqn.2026-01.io.nvmeof:target",
        "nqn.2014-08.org.nvmexpress:uuid:" + UUID,
        "nqn.2014-08.org.nvmexpress:uuid:" + UUID.upper(),
        "nqn.2014-08.com.example:nvme.host.sys.xyz",
        "nqn.2014-08.com.example:with:more:colons",
        "nqn.2016-06.io.spdk:cnode1",
        "nqn.2014-08.com.example:träger",
        DISCOVERY_NQN,
        "nqn.2014-08.com.example:" + "x" * 199,
    ],
)
def test_well_formed(text: str) -> None:
    assert validate_nqn(text) == text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("disk", "form"),
        ("iqn.2014-08.com.example:x", "form"),
        ("nqn.2014-8.com.example:x", "form"),
        ("nqn.2014-13.com.example:x", "month"),
        ("nqn.2014-00.com.example:x", "month"),
        ("nqn.2014-08.com.example", "colon"),
        ("nqn.2014-08.com.example:", "form"),
        ("nqn.2014-08..com:x", "domain"),
        ("nqn.2014-08.com..example:x", "domain"),
        ("nqn.2014-08.com_example:x", "domain"),
        ("nqn.2014-08.com.example:a\nb", "control"),
        ("nqn.2014-08.com.example:a\0b", "control"),
        ("nqn.2014-08.org.nvmexpress:uuid:1234", "UUID"),
        ("nqn.2014-08.org.nvmexpress:uuid:{" + UUID + "}", "UUID"),
        ("nqn.2014-08.com.example:" + "x" * 200, "223 bytes"),
        ("nqn.2014-08.com.example:" + "ä" * 100, "223 bytes"),
    ],
)
def test_ill_formed(text: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word) as caught:
        validate_nqn(text, "the subsystem's NQN")
    message = str(caught.value)
    assert message.startswith("the subsystem's NQN ")
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize(
    "text",
    [
        "testnqn",
        "subsystem-1",
        "nvme-ram0",
        "nqn.2016-06.org.example.node1_1",
        "nqn.2014-08.org.nvmexpress:uuid:" + "0123456789abcdef" * 2,
        "a name with blanks",
        "träger\xa0\u200e1",
        "x" * 223,
        "ä" * 111,
    ],
)
def test_names_from_outside_need_only_length_and_no_control_characters(text: str) -> None:
    assert check_nqn(text) == text


@pytest.mark.parametrize("text", ["", "x" * 224, "ä" * 112, "a\tb", "a\nb", "\x7f", "a\x85b", "a\u2028b", "\ud800"])
def test_names_that_cannot_be_sent_or_shown(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^the NQN "):
        check_nqn(text, "the NQN")


@given(st.text(max_size=230))
def test_an_accepted_name_has_no_line_break(text: str) -> None:
    try:
        check_nqn(text)
    except ConfigurationError as error:
        assert "\n" not in str(error)
    else:
        assert 1 <= len(text.encode()) <= 223
        assert len(text.splitlines()) == 1 and "\x1b" not in text


@given(st.binary(min_size=16, max_size=16))
def test_a_missing_name_has_one_substitute_per_identifier(hostid: bytes) -> None:
    name = unnamed_host(hostid)
    assert hostid.hex() in name.replace("-", "") and name.isprintable() and len(name) <= 223


@given(st.uuids())
def test_uuid_names(value: uuid.UUID) -> None:
    text = uuid_nqn(value)
    assert validate_nqn(text) == text
    assert nqn_uuid(text) == value


def test_uuid_of_other_names() -> None:
    assert nqn_uuid("nqn.2014-08.com.example:x") is None
    assert nqn_uuid("nqn.2014-08.org.nvmexpress:uuid:x") is None
    assert uuid_nqn() != uuid_nqn()


@given(st.binary(max_size=256))
def test_any_field_of_a_peer_is_accepted_or_refused(field: bytes) -> None:
    end = field.find(b"\0")
    assert terminated_nqn(field) == (1 <= end <= 223)


def test_field_limits() -> None:
    assert terminated_nqn(b"x" * 223 + bytes(33))
    assert not terminated_nqn(b"x" * 224 + bytes(32))
    assert not terminated_nqn(b"x" * 256)
    assert not terminated_nqn(bytes(256))
