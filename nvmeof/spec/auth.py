"""The messages of in-band authentication with DH-HMAC-CHAP (NVMe Base, NVMe In-band Authentication).

They travel as the data of Authentication Send and Authentication Receive. Numbers are little-endian, public values of
Diffie-Hellman big-endian. Layouts and codes are also in ``include/linux/nvme.h`` of Linux.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import construct as c

from nvmeof.wire import U8, U16, U32

AUTH_SECP = 0xE9
"""Security Protocol of NVMe in the Authentication commands."""
AUTH_SPSP0 = AUTH_SPSP1 = 1
AUTH_MAX_BYTES = 4096
"""The most bytes of one message that both ends take here; the longest that exists is below 1,200 bytes."""
DHCHAP_AUTH_ID = 1
_MAX_IDS = 30


class MessageType(IntEnum):
    """AUTH_TYPE, the first byte of a message."""

    COMMON = 0
    DHCHAP = 1


class MessageId(IntEnum):
    """AUTH_ID, the second byte of a message."""

    NEGOTIATE = 0x00
    CHALLENGE = 0x01
    REPLY = 0x02
    SUCCESS1 = 0x03
    SUCCESS2 = 0x04
    FAILURE2 = 0xF0  # sent by a host
    FAILURE1 = 0xF1  # sent by a controller


class HashId(IntEnum):
    """The hash functions of HMAC."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3

    @property
    def size(self) -> int:
        """The bytes of a digest."""
        return (32, 48, 64)[self - 1]


class DhGroupId(IntEnum):
    """The Diffie-Hellman groups: none, and those of RFC 7919."""

    NULL = 0
    FFDHE2048 = 1
    FFDHE3072 = 2
    FFDHE4096 = 3
    FFDHE6144 = 4
    FFDHE8192 = 5

    @property
    def bits(self) -> int:
        """The size of the prime; 0 for NULL."""
        return (0, 2048, 3072, 4096, 6144, 8192)[self]


class SecureChannel(IntEnum):
    """SC_C: whether a TLS PSK is to be made by the transaction."""

    NONE = 0
    NEW_TLS_PSK = 2
    REPLACE_TLS_PSK = 3


FAILURE_REASON = 1
"""The only reason code of Failure1 and Failure2: authentication failure."""


class FailureExplanation(IntEnum):
    """Reason code explanation of Failure1 and Failure2."""

    FAILED = 1
    NOT_USABLE = 2
    CONCATENATION_MISMATCH = 3
    HASH_NOT_USABLE = 4
    DHGROUP_NOT_USABLE = 5
    INCORRECT_PAYLOAD = 6
    INCORRECT_MESSAGE = 7

    @property
    def text(self) -> str:
        """Words for a person."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    FailureExplanation.FAILED: "the secrets do not match",
    FailureExplanation.NOT_USABLE: "the authentication protocol is not usable",
    FailureExplanation.CONCATENATION_MISMATCH: "secure channel concatenation is demanded by one side alone",
    FailureExplanation.HASH_NOT_USABLE: "no hash function that both sides allow",
    FailureExplanation.DHGROUP_NOT_USABLE: "no Diffie-Hellman group that both sides allow",
    FailureExplanation.INCORRECT_PAYLOAD: "a message with a wrong payload",
    FailureExplanation.INCORRECT_MESSAGE: "a message that was not expected",
}


def explanation_text(code: int) -> str:
    """Return words for a reason code explanation, known or not."""
    try:
        return FailureExplanation(code).text
    except ValueError:
        return f"reason code explanation {code:#04x}"


_HEAD = ("auth_type" / U8, "auth_id" / U8, c.Padding(2), "t_id" / U16)

DESCRIPTOR = c.Struct(
    "authid" / U8,
    c.Padding(1),
    "halen" / U8,
    "dhlen" / U8,
    "hashes" / c.Bytes(_MAX_IDS),
    "groups" / c.Bytes(_MAX_IDS),
)
"""One authentication protocol that a host offers, 64 bytes."""
NEGOTIATE = c.Struct(*_HEAD, "sc_c" / U8, "napd" / U8, "protocols" / c.Array(c.this.napd, DESCRIPTOR))
CHALLENGE = c.Struct(
    *_HEAD,
    "hl" / U8,
    c.Padding(1),
    "hash_id" / U8,
    "group_id" / U8,
    "dhvlen" / U16,
    "seqnum" / U32,
    "cval" / c.Bytes(c.this.hl),
    "dhval" / c.Bytes(c.this.dhvlen),
)
REPLY = c.Struct(
    *_HEAD,
    "hl" / U8,
    c.Padding(1),
    "cvalid" / U8,
    c.Padding(1),
    "dhvlen" / U16,
    "seqnum" / U32,
    "rval" / c.Bytes(c.this.hl),
    "cval" / c.Bytes(c.this.hl),
    "dhval" / c.Bytes(c.this.dhvlen),
)
"""The place of CVAL is there also where CVALID is 0."""
SUCCESS1 = c.Struct(*_HEAD, "hl" / U8, c.Padding(1), "rvalid" / U8, c.Padding(7), "rval" / c.Bytes(c.this.hl))
SUCCESS2 = c.Struct(*_HEAD, c.Padding(10))
FAILURE = c.Struct(*_HEAD, "rescode" / U8, "explanation" / U8)
HEAD = c.Struct(*_HEAD)
"""What all messages begin with."""


def build_negotiate(t_id: int, hashes: tuple[HashId, ...], groups: tuple[DhGroupId, ...], sc_c: int = 0) -> bytes:
    """Build AUTH_Negotiate with one protocol descriptor: DH-HMAC-CHAP with these hash functions and groups."""
    descriptor = {
        "authid": DHCHAP_AUTH_ID,
        "halen": len(hashes),
        "dhlen": len(groups),
        "hashes": bytes(hashes).ljust(_MAX_IDS, b"\0"),
        "groups": bytes(groups).ljust(_MAX_IDS, b"\0"),
    }
    return NEGOTIATE.build(
        {
            "auth_type": MessageType.COMMON,
            "auth_id": MessageId.NEGOTIATE,
            "t_id": t_id,
            "sc_c": sc_c,
            "napd": 1,
            "protocols": [descriptor],
        }
    )


def build_failure(message: MessageId, t_id: int, explanation: FailureExplanation) -> bytes:
    """Build AUTH_Failure1 (of a controller) or AUTH_Failure2 (of a host)."""
    return FAILURE.build(
        {
            "auth_type": MessageType.COMMON,
            "auth_id": message,
            "t_id": t_id,
            "rescode": FAILURE_REASON,
            "explanation": explanation,
        }
    )


def message_kind(message: bytes) -> tuple[int, int, int]:
    """Return AUTH_TYPE, AUTH_ID and T_ID. Raises ``construct.ConstructError`` for a message that is too short."""
    head: Any = HEAD.parse(message)
    return head.auth_type, head.auth_id, head.t_id
