"""The text form that secrets of DH-HMAC-CHAP and keys of TLS have in common: ``PREFIX:hh:BASE64:``.

BASE64 is the key and its CRC-32, little-endian (NVMe Base, DH-HMAC-CHAP secret representation; NVMe/TCP Transport, PSK
interchange format).
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass

from nvmeof.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Interchange:
    """One such form, and what is said of a text that has not got it.

    ``numbers``: the values of hh. ``kind``: what the text should be; ``number``: what hh is, with its values; ``key``:
    what BASE64 is; ``form``: how such a text looks.
    """

    prefix: str
    numbers: tuple[str, ...]
    kind: str
    number: str
    key: str
    form: str

    def parse(self, text: str) -> tuple[int, bytes]:
        """Return hh and the key. Raises `ConfigurationError`, in whose message there is nothing of the key."""
        parts = text.strip().split(":")
        if len(parts) != 4 or parts[0] != self.prefix or parts[3]:
            raise ConfigurationError(f"this is no {self.kind}: {self.form}")
        if parts[1] not in self.numbers:
            raise ConfigurationError(f"{self.number}: {self.form}")
        try:
            data = base64.b64decode(parts[2], validate=True)
        except binascii.Error:
            raise ConfigurationError(f"{self.key} is no base64: {self.form}") from None
        key, check = data[:-4], data[-4:]
        # Bits of the last character that stand for nothing count too: an encoder leaves them zero.
        if zlib.crc32(key).to_bytes(4, "little") != check or base64.b64encode(data).decode() != parts[2]:
            raise ConfigurationError(f"{self.key} has a wrong checksum: a character was changed or lost")
        return int(parts[1]), key

    def to_text(self, number: int, key: bytes) -> str:
        """Return the text of hh and a key."""
        check = zlib.crc32(key).to_bytes(4, "little")
        return f"{self.prefix}:{number:02x}:{base64.b64encode(key + check).decode()}:"
