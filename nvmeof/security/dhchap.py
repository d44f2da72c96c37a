"""What both ends of DH-HMAC-CHAP compute (NVMe Base, DH-HMAC-CHAP; ``drivers/nvme/common/auth.c`` of Linux)."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from nvmeof.errors import NvmeofError
from nvmeof.spec.auth import FailureExplanation, HashId

T = TypeVar("T")
_HOST = b"HostHost"
_CONTROLLER = b"Controller"


class InThread(Protocol):
    """A way to run what computes for long: :meth:`nvmeof.runtime.Runtime.in_thread`."""

    def __call__(self, function: Callable[[], Any], /) -> Awaitable[Any]: ...


class ExchangeError(NvmeofError):
    """The exchange cannot go on; ``explanation`` is what the other side is told."""

    def __init__(self, explanation: FailureExplanation, message: str = "") -> None:
        super().__init__(message or explanation.text)
        self.explanation = explanation


class SequenceNumbers:
    """S1 and S2: numbers of 32 bits that go up and are never 0. They begin anywhere."""

    def __init__(self) -> None:
        self._numbers = itertools.count(secrets.randbits(32))

    def next(self) -> int:
        """Return the next number."""
        return next(self._numbers) & 0xFFFFFFFF or self.next()


def augmented_challenge(hash_id: HashId, challenge: bytes, shared_secret: bytes | None) -> bytes:
    """Return Ca: the challenge, or with Diffie-Hellman its HMAC under the hashed shared secret."""
    if shared_secret is None:
        return challenge
    session_key = hashlib.new(hash_id.name, shared_secret).digest()
    return hmac.digest(session_key, challenge, hash_id.name)


def _response(hash_id: HashId, key: bytes, fields: tuple[bytes, int, int, int], role: bytes, names: bytes) -> bytes:
    challenge, seqnum, t_id, sc_c = fields
    head = challenge + seqnum.to_bytes(4, "little") + t_id.to_bytes(2, "little") + bytes([sc_c])
    return hmac.digest(key, head + role + names, hash_id.name)


def host_response(
    hash_id: HashId, key: bytes, *, challenge: bytes, seqnum: int, t_id: int, sc_c: int, hostnqn: str, subnqn: str
) -> bytes:
    """Return the host's response to an augmented challenge; ``key`` is the host's, transformed."""
    names = hostnqn.encode() + b"\0" + subnqn.encode()
    return _response(hash_id, key, (challenge, seqnum, t_id, sc_c), _HOST, names)


def controller_response(
    hash_id: HashId, key: bytes, *, challenge: bytes, seqnum: int, t_id: int, sc_c: int, hostnqn: str, subnqn: str
) -> bytes:
    """Return the controller's response to an augmented challenge; ``key`` is the controller's, transformed."""
    names = subnqn.encode() + b"\0" + hostnqn.encode()
    return _response(hash_id, key, (challenge, seqnum, t_id, sc_c), _CONTROLLER, names)
