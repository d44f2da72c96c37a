"""Secrets of DH-HMAC-CHAP in the form that nvme-cli and nvmetcli use: ``DHHC-1:hh:BASE64:``.

BASE64 is the key (32, 48 or 64 bytes) and its CRC-32, little-endian. ``hh`` names how the key is transformed before it
is used (NVMe Base, DH-HMAC-CHAP secret representation): 00 not at all, 01 with SHA-256, 02 with SHA-384, 03 with
SHA-512.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.security.interchange import Interchange
from nvmeof.spec.auth import HashId

PREFIX: Final = "DHHC-1"
KEY_SIZES: Final = (32, 48, 64)
_TRANSFORM_SUFFIX: Final = b"NVMe-over-Fabrics"
_FORM: Final = Interchange(
    prefix=PREFIX,
    numbers=("00", "01", "02", "03"),
    kind="DH-HMAC-CHAP secret",
    number="the transformation of a secret is 00, 01, 02 or 03",
    key="the key of this secret",
    form=f"a secret has the form {PREFIX}:hh:BASE64: as gen-dhchap-key makes it",
)
_MAX_FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Secret:
    """A DH-HMAC-CHAP secret; neither its ``repr`` nor its ``str`` shows the key.

    ``transform``: the hash function that the key is transformed with; None: it is used as it is. ``source``: where it
    came from, ``file:PATH`` or ``env:NAME``, to be saved in its place; empty for a secret that was given as such.
    """

    key: bytes = field(repr=False)
    transform: HashId | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.key) not in KEY_SIZES:
            raise ConfigurationError(f"a DH-HMAC-CHAP key has 32, 48 or 64 bytes, not {len(self.key)}")
        if self.transform is not None and self.transform.size != len(self.key):
            raise ConfigurationError(
                f"a key that {self.transform.name} transforms has {self.transform.size} bytes, not {len(self.key)}"
            )

    def __str__(self) -> str:
        return self.source or f"{PREFIX} secret of {len(self.key)} bytes"

    def to_text(self) -> str:
        """Return the secret itself as ``DHHC-1:hh:BASE64:``."""
        return _FORM.to_text(self.transform or 0, self.key)

    def transformed(self, nqn: str) -> bytes:
        """Return the key as the host or controller of this NQN uses it."""
        if self.transform is None:
            return self.key
        return hmac.digest(self.key, nqn.encode() + _TRANSFORM_SUFFIX, self.transform.name)


def generate_secret(size: int = 32, *, transform: HashId | None = None) -> Secret:
    """Make a random secret of 32, 48 or 64 bytes; with ``transform``, of the size that belongs to it."""
    return Secret(secrets.token_bytes(size if transform is None else transform.size), transform)


def parse_secret(text: str, source: str = "") -> Secret:
    """Read ``DHHC-1:hh:BASE64:``. Raises `ConfigurationError`, in whose message there is nothing of the key."""
    number, key = _FORM.parse(text)
    return Secret(key, HashId(number) if number else None, source)


def load_secret(source: str) -> Secret:
    """Read a secret from ``file:PATH``, from ``env:NAME``, or from the text itself.

    Raises `ConfigurationError` for one that cannot be had or read. A file that others may read is refused, as ssh does.
    """
    text = read_source(source)
    return parse_secret(text, "" if text is source else source)


def read_source(source: str) -> str:
    """Return the text that ``file:PATH`` or ``env:NAME`` stands for; the text itself where it is neither.

    Raises `ConfigurationError` for one that cannot be had, and for a file that others may read.
    """
    kind, _, rest = source.partition(":")
    if kind == "file":
        return _private_text(Path(rest))
    if kind == "env":
        text = os.environ.get(rest)
        if text is None:
            raise ConfigurationError(f"the environment has no {rest}: set it to the secret, or give file:PATH")
        return text
    return source


def _private_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(f"others may read the secret in {path}: chmod 600 {path}")
            data = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigurationError(f"the secret in {path} cannot be read: {error.strerror}") from None
    return data.decode("ascii", "replace")
