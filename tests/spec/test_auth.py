"""The messages of DH-HMAC-CHAP: layouts as Linux declares them, and codes."""

from __future__ import annotations

import construct as c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.spec.auth import (
    CHALLENGE,
    NEGOTIATE,
    REPLY,
    SUCCESS1,
    SUCCESS2,
    DhGroupId,
    FailureExplanation,
    HashId,
    MessageId,
    build_failure,
    build_negotiate,
    explanation_text,
    message_kind,
)

HEAD = {"auth_type": 1, "t_id": 0x0201}


def test_negotiate_as_linux_lays_it_out():
    message = build_negotiate(0x0201, (HashId.SHA256, HashId.SHA512), (DhGroupId.NULL, DhGroupId.FFDHE8192))
    assert len(message) == 72
    assert message[:8] == bytes([0, 0, 0, 0, 0x01, 0x02, 0, 1])
    assert message[8:12] == bytes([1, 0, 2, 2])  # AUTHID, reserved, HALEN, DHLEN
    assert message[12:14] == bytes([1, 3]) and message[42:44] == bytes(
        [0, 5]
    )  # the groups begin at the 31st identifier


def test_challenge_as_linux_lays_it_out():
    message = CHALLENGE.build(
        {
            **HEAD, "auth_id": 1, "hl": 32, "hash_id": 1, "group_id": 0, "dhvlen": 0, "seqnum": 0x04030201,
            "cval": b"c" * 32, "dhval": b"",
        }
    )  # fmt: skip
    assert message == bytes([1, 1, 0, 0, 1, 2, 32, 0, 1, 0, 0, 0, 1, 2, 3, 4]) + b"c" * 32


@pytest.mark.parametrize(("hl", "dhvlen"), [(32, 0), (48, 256), (64, 1024)])
def test_reply_has_room_for_a_challenge_that_is_not_valid(hl, dhvlen):
    fields = {"hl": hl, "cvalid": 0, "dhvlen": dhvlen, "seqnum": 0, "rval": b"r" * hl, "cval": bytes(hl)}
    message = REPLY.build({**HEAD, "auth_id": 2, **fields, "dhval": b"d" * dhvlen})
    assert len(message) == 16 + 2 * hl + dhvlen
    assert message[8] == 0 and message[10:12] == dhvlen.to_bytes(2, "little")


def test_success_and_failure():
    success = SUCCESS1.build({**HEAD, "auth_id": 3, "hl": 32, "rvalid": 1, "rval": b"r" * 32})
    assert success[:16] == bytes([1, 3, 0, 0, 1, 2, 32, 0, 1, *bytes(7)]) and len(success) == 48
    assert len(SUCCESS2.build({**HEAD, "auth_id": 4})) == 16
    failure = build_failure(MessageId.FAILURE1, 0x0201, FailureExplanation.HASH_NOT_USABLE)
    assert failure == bytes([0, 0xF1, 0, 0, 1, 2, 1, 4])


@given(st.binary(max_size=80))
def test_no_bytes_but_construct_errors(data):
    for layout in (NEGOTIATE, CHALLENGE, REPLY, SUCCESS1, SUCCESS2):
        try:
            layout.parse(data)
        except c.ConstructError:
            continue
    if len(data) >= 6:
        assert message_kind(data)[2] == int.from_bytes(data[4:6], "little")


def test_words_for_every_explanation():
    assert all(explanation_text(each) for each in FailureExplanation)
    assert explanation_text(0x77) == "reason code explanation 0x77"
    assert [each.size for each in HashId] == [32, 48, 64]
