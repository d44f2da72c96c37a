"""Reads a ClientHello before TLS does: which PSKs it offers, with binders of which hash, and which cipher suites.

A TLS library chooses the cipher suite first and then drops a PSK of another hash function. So a server reads the
ClientHello itself, finds the PSK that the client means, and lets the library have one suite of that PSK's hash. The
binder is verified here too, which tells two keys of one identity apart, and keeps strangers away from the library.

Source: RFC 8446, sections 4.1.2 (ClientHello), 4.2.11 (pre_shared_key, its binders), 5.1 (records), 7.1 (keys).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nvmeof.errors import NvmeofError
from nvmeof.security.tls.key import Derivation, expand_label, extract

HANDSHAKE_RECORD: Final = 0x16
CLIENT_HELLO: Final = 1
HELLO_BYTES_MOST: Final = 16 * 1024
"""The longest ClientHello that is read; those of real clients have 300 to 2,000 bytes."""
IDENTITIES_MOST: Final = 8
"""Each takes some HMACs for each key that it can mean; Linux and OpenSSL offer one."""
_PRE_SHARED_KEY: Final = 41
_SUPPORTED_VERSIONS: Final = 43
_TLS_1_3: Final = b"\x03\x04"
_BINDER_HASHES: Final = {32: "SHA256", 48: "SHA384"}


class HelloError(NvmeofError):
    """A ClientHello that is broken, or that offers nothing which can be used; one sentence that says what it lacks."""


@dataclass(frozen=True, slots=True)
class OfferedPsk:
    """An identity of a ClientHello, its binder, and the hash function that the binder's length tells."""

    identity: str
    binder: bytes
    hash_name: str


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a server needs of a ClientHello. `signed`: the bytes that binders are made of, up to the binders."""

    suites: tuple[int, ...]
    offered: tuple[OfferedPsk, ...]
    signed: bytes

    def binder_matches(self, psk: OfferedPsk, key: bytes) -> bool:
        """Return whether a key is the one that the binder of an offered PSK was made with."""
        name = psk.hash_name
        empty = hashlib.new(name).digest()
        size = len(empty)
        early = extract(name, key)
        binder_key = expand_label(name, early, "ext binder", empty, size, Derivation.RFC8446)
        finished = expand_label(name, binder_key, "finished", b"", size, Derivation.RFC8446)
        made = hmac.digest(finished, hashlib.new(name, self.signed).digest(), name)
        return hmac.compare_digest(made, psk.binder)


class _Reader:
    """Takes fields off the front of bytes; raises HelloError where there are too few."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise HelloError("its ClientHello is cut short")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))


def complete_hello(data: bytes | bytearray) -> bytes | None:
    """Return the ClientHello message at the start of received records, with its header; None: more is needed.

    Raises `HelloError` for what is no ClientHello, or too long a one.
    """
    message, at = bytearray(), 0
    while at + 5 <= len(data):
        if data[at] != HANDSHAKE_RECORD or data[at + 1] != 3:
            raise HelloError("it does not begin with a TLS handshake record")
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if not size or size > HELLO_BYTES_MOST:
            raise HelloError(f"its first TLS record claims {size} bytes")
        message += data[at + 5 : at + 5 + size]
        at += 5 + size
        if message and message[0] != CLIENT_HELLO:
            raise HelloError("its first TLS message is no ClientHello")
        if len(message) >= 4:
            length = 4 + int.from_bytes(message[1:4], "big")
            if length > HELLO_BYTES_MOST:
                raise HelloError(f"its ClientHello claims {length} bytes, more than {HELLO_BYTES_MOST}")
            if len(message) >= length:
                return bytes(message[:length])
    if len(data) > HELLO_BYTES_MOST + 1024:
        raise HelloError("its ClientHello is spread over too many records")
    return None


def parse_hello(message: bytes) -> ClientHello:
    """Read a ClientHello. Raises `HelloError` for one that is broken, is not of TLS 1.3, or offers no PSK."""
    reader = _Reader(message)
    reader.take(4 + 2 + 32)  # header, legacy version, random
    reader.vector(1)  # legacy session id
    suites = reader.vector(2)
    reader.vector(1)  # compression
    if not reader.left:
        raise HelloError("it does not offer TLS 1.3")
    extensions = dict(_extensions(reader))
    if _TLS_1_3 not in _pairs(extensions.get(_SUPPORTED_VERSIONS, b"")[1:]):
        raise HelloError("it does not offer TLS 1.3")
    if _PRE_SHARED_KEY not in extensions:
        raise HelloError("it offers no pre-shared key")
    if next(reversed(extensions)) != _PRE_SHARED_KEY:
        raise HelloError("its pre_shared_key is not the last extension")
    offered, binder_bytes = _offered(extensions[_PRE_SHARED_KEY])
    numbers = tuple(int.from_bytes(each, "big") for each in _pairs(suites))
    return ClientHello(numbers, offered, message[: len(message) - binder_bytes])


def _pairs(data: bytes) -> list[bytes]:
    return [data[at : at + 2] for at in range(0, len(data) - 1, 2)]


def _extensions(reader: _Reader) -> Iterator[tuple[int, bytes]]:
    inner = _Reader(reader.vector(2))
    while inner.left:
        kind = inner.number(2)
        yield kind, inner.vector(2)


def _offered(extension: bytes) -> tuple[tuple[OfferedPsk, ...], int]:
    """Return the offered PSKs, and the length of the list of binders with its length field."""
    reader = _Reader(extension)
    names = _Reader(reader.vector(2))
    identities: list[bytes] = []
    while names.left:
        identities.append(names.vector(2))
        names.take(4)  # obfuscated age
    binder_bytes = reader.left
    inner = _Reader(reader.vector(2))
    binders: list[bytes] = []
    while inner.left:
        binders.append(inner.vector(1))
    if len(binders) != len(identities) or reader.left:
        raise HelloError("its pre_shared_key has not one binder for each identity")
    if len(identities) > IDENTITIES_MOST:
        raise HelloError(f"it offers {len(identities)} identities, more than {IDENTITIES_MOST}")
    return (
        tuple(
            OfferedPsk(name.decode("utf-8", "replace"), binder, _BINDER_HASHES[len(binder)])
            for name, binder in zip(identities, binders, strict=True)
            if len(binder) in _BINDER_HASHES
        ),
        binder_bytes,
    )
