"""Diffie-Hellman in the groups ffdhe2048 to ffdhe8192 of RFC 7919, whose generator is 2.

Exponentiation is that of GMP (``gmpy2``): in constant time, and without Python's global lock, so that a thread does not
stop the event loop. :func:`exchange_available` tells whether it is there.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
from functools import cache
from typing import Any, Final

from nvmeof.errors import ConfigurationError
from nvmeof.spec.auth import DhGroupId

GENERATOR: Final = 2
INSTALL: Final = "pip install 'nvmeof-mptcp[auth]'"
_OFFSETS: Final = {2048: 560316, 3072: 2625351, 4096: 5736041, 6144: 15705020, 8192: 10965728}
"""X of the primes ``2^b - 2^(b-64) + ([2^(b-130) e] + X) 2^64 - 1`` (RFC 7919, appendix A)."""
_EXPONENT_BITS: Final = {2048: 225, 3072: 275, 4096: 325, 6144: 375, 8192: 400}
"""The least bits of a secret exponent (RFC 7919, appendix A)."""
_GUARD_BITS: Final = 64


def _euler(bits: int) -> int:
    """Return the whole part of ``e * 2**bits``."""
    term = total = 1 << (bits + _GUARD_BITS)
    divisor = 1
    while term:
        term //= divisor
        total += term
        divisor += 1
    return total >> _GUARD_BITS


@cache
def prime(group: DhGroupId) -> int:
    """Return the prime of a group."""
    bits = group.bits
    return (1 << bits) - (1 << (bits - 64)) + ((_euler(bits - 130) + _OFFSETS[bits]) << 64) - 1


@cache
def exchange_available() -> bool:
    """Return whether the groups other than NULL can be used here."""
    return importlib.util.find_spec("gmpy2") is not None


def usable_groups() -> tuple[DhGroupId, ...]:
    """Return the groups that can be used here, NULL first, as Linux offers them."""
    return tuple(DhGroupId) if exchange_available() else (DhGroupId.NULL,)


def check_usable(group: DhGroupId) -> None:
    """Raise `ConfigurationError` for a group that cannot be used here."""
    if group and not exchange_available():
        raise ConfigurationError(f"the group {group.name.lower()} needs gmpy2: {INSTALL}")


def _power(base: int, exponent: int, modulus: int) -> int:
    gmpy2: Any = importlib.import_module("gmpy2")
    numbers = gmpy2.mpz(base), gmpy2.mpz(exponent), gmpy2.mpz(modulus)
    with gmpy2.context(gmpy2.get_context(), allow_release_gil=True):
        return int(gmpy2.powmod_sec(*numbers))


class KeyPair:
    """One side of an exchange: a fresh secret exponent, and the public value to send.

    Making it, and :meth:`shared`, take milliseconds to tens of them: call them in a thread.
    """

    __slots__ = ("_exponent", "_prime", "group", "public")

    def __init__(self, group: DhGroupId) -> None:
        bits = _EXPONENT_BITS[group.bits]
        self.group = group
        self._prime = prime(group)
        self._exponent = secrets.randbits(bits) | 1 << (bits - 1)
        self.public = _power(GENERATOR, self._exponent, self._prime).to_bytes(group.bits // 8, "big")
        """The public value, big-endian, as long as the prime."""

    def shared(self, peer_public: bytes) -> bytes:
        """Return the shared secret, big-endian, as long as the prime. Raises ``ValueError`` for a public value that
        would give the secret away (0, 1, p - 1) or is none of the group."""
        value = int.from_bytes(peer_public, "big")
        if not 1 < value < self._prime - 1:
            raise ValueError(f"a public value that {self.group.name.lower()} does not allow")
        return _power(value, self._exponent, self._prime).to_bytes(self.group.bits // 8, "big")
