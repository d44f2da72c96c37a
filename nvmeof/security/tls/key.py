"""Pre-shared keys of NVMe/TCP in their interchange form, and what TLS makes of them: identities and TLS PSKs.

::

    NVMeTLSkey-1:hh:BASE64:        BASE64: 32 or 48 bytes, and their CRC-32, little-endian

``hh``: 00 the key is a *retained* PSK; 01 (SHA-256, 32 bytes) or 02 (SHA-384, 48 bytes) it is a *configured* one, and
the retained PSK of a host is derived from it. With H the hash function and L its length in bytes::

    retained = Expand-Label(Extract(0, configured), "HostNQN", hostnqn, L)
    digest   = base64(HMAC-H(retained, hostnqn + " " + subnqn + " NVMe-over-Fabrics"))
    identity = "NVMe0R" hh " " hostnqn " " subnqn                        version 0
               "NVMe1R" hh " " hostnqn " " subnqn " " digest             version 1
    TLS PSK  = Expand-Label(Extract(0, retained), "nvme-tls-psk", identity            (version 0)
                                                                  hh " " digest (version 1), L)

Sources: NVMe/TCP Transport, PSK interchange format, retained PSK derivation, TLS PSK and PSK identity derivation;
RFC 5869 (Extract, Expand), RFC 8446, section 7.1 (Expand-Label). libnvme up to 1.14 writes the info block of
Expand-Label in another way: see `Derivation`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.security.interchange import Interchange
from nvmeof.security.secret import read_source
from nvmeof.spec.auth import HashId

PREFIX: Final = "NVMeTLSkey-1"
SIZES: Final = {HashId.SHA256: 32, HashId.SHA384: 48}
IDENTITY_BYTES_MOST: Final = 521
"""A version 1 identity of SHA-384 with two NQNs of 223 bytes."""
_FORM: Final = Interchange(
    prefix=PREFIX,
    numbers=("00", "01", "02"),
    kind="TLS key",
    number="the hash function of a TLS key is 00, 01 or 02",
    key="this TLS key",
    form=f"a TLS key has the form {PREFIX}:hh:BASE64: as gen-tls-key makes it",
)
_SUFFIX: Final = "NVMe-over-Fabrics"


class Derivation(Enum):
    """The info block of HKDF-Expand-Label."""

    RFC8446 = "rfc8446"
    """Length (16 bits, big-endian), length of the label, label, length of the context, context: the kernel of Linux,
    libnvme 1.16 and later."""
    LIBNVME_1_14 = "libnvme-1.14"
    """Length (16 bits, little-endian), label, context: libnvme up to 1.14, nvme-cli's ``--compat``."""


@dataclass(frozen=True, slots=True)
class Psk:
    """A pre-shared key of TLS: what a handshake needs. ``repr`` does not show the key."""

    identity: str
    key: bytes = field(repr=False)


def expand_label(hash_name: str, secret: bytes, label: str, context: bytes, size: int, derivation: Derivation) -> bytes:
    """Return HKDF-Expand-Label of ``secret``, ``size`` bytes."""
    full = b"tls13 " + label.encode()
    if derivation is Derivation.RFC8446:
        # RFC 8446 has no context above 255 bytes; a version 0 identity may be longer: the low byte of its length stands
        info = size.to_bytes(2, "big") + bytes([len(full)]) + full + bytes([len(context) & 0xFF]) + context
    else:
        info = size.to_bytes(2, "little") + full + context
    return expand(hash_name, secret, info, size)


def extract(hash_name: str, secret: bytes) -> bytes:
    """Return HKDF-Extract of ``secret`` with a salt of zeros (RFC 5869, section 2.2)."""
    return hmac.digest(bytes(hashlib.new(hash_name).digest_size), secret, hash_name)


def expand(hash_name: str, secret: bytes, info: bytes, size: int) -> bytes:
    """Return HKDF-Expand: ``size`` bytes (RFC 5869, section 2.3)."""
    done = block = b""
    for counter in range(1, 256):
        block = hmac.digest(secret, block + info + bytes([counter]), hash_name)
        done += block
        if len(done) >= size:
            break
    return done[:size]


@dataclass(frozen=True, slots=True)
class TlsKey:
    """A configured or retained PSK; neither its ``repr`` nor its ``str`` shows the key.

    ``hash_id``: the hash function that a retained PSK is derived with; None: the key is a retained PSK already.
    ``source``: where it came from, ``file:PATH`` or ``env:NAME``, to be saved in its place; empty for a key that was
    given as such. ``generated``: DH-HMAC-CHAP has made it; identities have ``G`` in place of ``R``. Raises
    `ConfigurationError` for a length that does not fit.
    """

    key: bytes = field(repr=False)
    hash_id: HashId | None = HashId.SHA256
    source: str = field(default="", compare=False)
    generated: bool = False

    def __post_init__(self) -> None:
        if self.hash_id is not None and self.hash_id not in SIZES:
            raise ConfigurationError(f"a TLS key is for SHA-256 or SHA-384, not for {self.hash_id.name}")
        wanted = tuple(SIZES.values()) if self.hash_id is None else (SIZES[self.hash_id],)
        if len(self.key) not in wanted:
            what = "a TLS key" if self.hash_id is None else f"a TLS key for {self.hash_id.name}"
            raise ConfigurationError(f"{what} has {' or '.join(map(str, wanted))} bytes, not {len(self.key)}")

    def __str__(self) -> str:
        return self.source or f"{PREFIX} key of {len(self.key)} bytes"

    @property
    def cipher_hash(self) -> HashId:
        """The hash function of identities and TLS PSKs."""
        if self.hash_id is not None:
            return self.hash_id
        return HashId.SHA256 if len(self.key) == SIZES[HashId.SHA256] else HashId.SHA384

    def to_text(self) -> str:
        """Return the key itself as ``NVMeTLSkey-1:hh:BASE64:``."""
        return _FORM.to_text(self.hash_id or 0, self.key)

    def retained(self, hostnqn: str, derivation: Derivation = Derivation.RFC8446) -> bytes:
        """Return the retained PSK of a host."""
        if self.hash_id is None:
            return self.key
        name = self.hash_id.name
        return expand_label(name, extract(name, self.key), "HostNQN", hostnqn.encode(), len(self.key), derivation)

    def identity(
        self, hostnqn: str, subnqn: str, *, version: int = 1, derivation: Derivation = Derivation.RFC8446
    ) -> str:
        """Return the PSK identity of a host and a subsystem, of version 0 or 1."""
        return self.psk(hostnqn, subnqn, version=version, derivation=derivation).identity

    def psk(self, hostnqn: str, subnqn: str, *, version: int = 1, derivation: Derivation = Derivation.RFC8446) -> Psk:
        """Return identity and TLS PSK of a host and a subsystem."""
        name, size = self.cipher_hash.name, len(self.key)
        retained = self.retained(hostnqn, derivation)
        identity = f"NVMe{version}{'G' if self.generated else 'R'}{self.cipher_hash:02} {hostnqn} {subnqn}"
        context = identity
        if version:
            text = f"{hostnqn} {subnqn} {_SUFFIX}".encode()
            digest = base64.b64encode(hmac.digest(retained, text, name)).decode()
            identity, context = f"{identity} {digest}", f"{self.cipher_hash:02} {digest}"
        made = expand_label(name, extract(name, retained), "nvme-tls-psk", context.encode(), size, derivation)
        return Psk(identity, made)

    def candidates(self, identity: str, hostnqn: str, subnqn: str) -> list[Psk]:
        """Return the PSKs that a peer can mean by an identity: at most one of version 1, whose digest tells the
        derivation; of version 0 one for each derivation, and only the binder tells which."""
        version = 0 if identity.startswith("NVMe0") else 1
        made = [self.psk(hostnqn, subnqn, version=version, derivation=each) for each in Derivation]
        found = [each for each in made if hmac.compare_digest(each.identity.encode(), identity.encode())]
        return found if self.hash_id is not None or not version else found[:1]


@dataclass(frozen=True, slots=True)
class IdentityFields:
    """The fields of a PSK identity: version (0, 1), ``R`` for a retained PSK or ``G`` for a generated one, NQNs."""

    version: int
    kind: str
    hash_id: HashId
    hostnqn: str
    subnqn: str


def parse_identity(identity: str) -> IdentityFields | None:
    """Read an identity; None for one that is not of NVMe's form."""
    parts = identity.split(" ")
    head = parts[0]
    if len(head) != 8 or not head.startswith("NVMe") or head[4] not in "01" or head[5] not in "RG":
        return None
    if head[6:] not in ("01", "02") or len(parts) != 3 + int(head[4]) or not all(parts):
        return None
    return IdentityFields(int(head[4]), head[5], HashId(int(head[6:])), parts[1], parts[2])


def generate_tls_key(hash_id: HashId | None = HashId.SHA256, *, size: int | None = None) -> TlsKey:
    """Make a random key: of the size that belongs to ``hash_id``, or for a retained PSK of ``size`` bytes (32, 48)."""
    return TlsKey(secrets.token_bytes(size or SIZES.get(hash_id or HashId.SHA256, 32)), hash_id)


def generated_key(hash_id: HashId, shared_secret: bytes, challenges: bytes) -> TlsKey:
    """Return the PSK that a transaction of DH-HMAC-CHAP makes: HMAC(H(g^xy); C1, C2) (NVMe Base, generated PSK).

    ``challenges``: C1 and C2 as they were sent. SHA-256 and SHA-384 alone have identities for it.
    """
    session_key = hashlib.new(hash_id.name, shared_secret).digest()
    return TlsKey(hmac.digest(session_key, challenges, hash_id.name), None, generated=True)


def parse_tls_key(text: str, source: str = "") -> TlsKey:
    """Read ``NVMeTLSkey-1:hh:BASE64:``. Raises `ConfigurationError`, in whose message there is nothing of the key."""
    number, key = _FORM.parse(text)
    return TlsKey(key, HashId(number) if number else None, source)


def load_tls_key(source: str) -> TlsKey:
    """Read a TLS key from ``file:PATH``, from ``env:NAME``, or from the text itself.

    Raises `ConfigurationError` for one that cannot be had or read, and for a file that others may read.
    """
    text = read_source(source)
    return parse_tls_key(text, "" if text is source else source)
