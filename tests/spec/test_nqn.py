"""NVMe Qualified Names."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.spec.nqn import check_nqn, nqn_uuid, terminated_nqn, uuid_nqn, validate_nqn

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
        ("nqn.2014-08.com.example:a\nb", "printed"),
        ("nqn.2014-08.com.example:a\0b", "printed"),
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


def test_names_elsewhere_need_only_length_and_print() -> None:
    assert check_nqn("testnqn") == "testnqn"
    assert check_nqn("x" * 223)
    for bad in ("", "x" * 224, "a\tb", "\ud800"):
        with pytest.raises(ConfigurationError):
            check_nqn(bad)


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
def test_any_field_of_a_peer_is_judged(field: bytes) -> None:
    end = field.find(b"\0")
    assert terminated_nqn(field) == (1 <= end <= 223)


def test_field_limits() -> None:
    assert terminated_nqn(b"x" * 223 + bytes(33))
    assert not terminated_nqn(b"x" * 224 + bytes(32))
    assert not terminated_nqn(b"x" * 256)
    assert not terminated_nqn(bytes(256))
