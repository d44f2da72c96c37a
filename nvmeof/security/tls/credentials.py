"""What each end brings to a handshake: a host its key, a target the keys that an identity can mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nvmeof.errors import ConfigurationError
from nvmeof.security.tls.hello import HelloError, parse_hello
from nvmeof.security.tls.key import Derivation, Psk, TlsKey
from nvmeof.security.tls.suites import AES_256_GCM, CHACHA20, SUITES, Suite, choose
from nvmeof.spec.auth import HashId


class Attempt(NamedTuple):
    """One handshake: its PSK, the cipher suites that are offered with it, and how the PSK was derived."""

    psk: Psk
    suites: tuple[Suite, ...]
    derivation: Derivation


Lookup = Callable[[str], Sequence[Psk]]
"""Returns the PSKs that an identity can mean; none for an identity that is not known."""


@dataclass(frozen=True, slots=True)
class TlsCredentials:
    """What a host connects with: ``TlsCredentials(load_tls_key("file:tls.key"))``. ``repr`` does not show the key.

    ``version``: of the identity, 0 or 1. ``derivation``: how the key is derived, None for both ways in turn: a kernel's
    target whose keys are from libnvme 1.14 or older (Debian 13's nvme-cli) knows `Derivation.LIBNVME_1_14` alone.
    ``suites``: the cipher suites that are offered.
    """

    key: TlsKey
    version: int = 1
    derivation: Derivation | None = None
    suites: tuple[Suite, ...] = SUITES
    _worked: list[tuple[Derivation, tuple[Suite, ...]]] = field(
        default_factory=list, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.version not in (0, 1):
            raise ConfigurationError(f"a PSK identity has the version 0 or 1, not {self.version}")
        if not self._groups():
            names = ", ".join(each.name for each in self.suites)
            raise ConfigurationError(f"none of the cipher suites fits a key for {self.key.cipher_hash.name}: {names}")

    def _groups(self) -> list[tuple[Suite, ...]]:
        """Return the suites of each handshake that is tried: one hash function each, the key's own first."""
        sha256 = tuple(each for each in self.suites if each.hash_name == HashId.SHA256.name)
        if self.key.cipher_hash is HashId.SHA256:
            return [sha256] if sha256 else []
        # Linux's tlshd makes the binder of a 48-byte key with SHA-256, and takes CHACHA20 then.
        sha256 = tuple(sorted(sha256, key=lambda each: each is not CHACHA20))
        return [each for each in ((AES_256_GCM,) if AES_256_GCM in self.suites else (), sha256) if each]

    def attempts(self, hostnqn: str, subnqn: str) -> list[Attempt]:
        """Return the handshakes to try, in order: the one that worked last is the first."""
        found = []
        for derivation in tuple(Derivation) if self.derivation is None else (self.derivation,):
            psk = self.key.psk(hostnqn, subnqn, version=self.version, derivation=derivation)
            found += [Attempt(psk, suites, derivation) for suites in self._groups()]
        return sorted(found, key=lambda each: (each.derivation, each.suites) not in self._worked)

    def worked(self, attempt: Attempt) -> None:
        """Take note of an attempt that has worked."""
        self._worked[:] = [(attempt.derivation, attempt.suites)]


def match_hello(message: bytes, lookup: Lookup, suites: Sequence[Suite]) -> tuple[Psk, Suite]:
    """Return the PSK that a ClientHello proves to have, and the cipher suite for it. Raises `HelloError`."""
    hello = parse_hello(message)
    known = ""
    for offered in hello.offered:
        for psk in lookup(offered.identity):
            known = offered.identity
            if not hello.binder_matches(offered, psk.key):
                continue
            suite = choose(suites, hello.suites, offered.hash_name)
            if suite is None:
                raise HelloError(f"it offers no cipher suite of {offered.hash_name} that is allowed here")
            return psk, suite
    if known:
        raise HelloError(f"its TLS key is not the one of {printable(known)}")
    names = ", ".join(printable(each.identity) for each in hello.offered) or "with a binder of 32 or 48 bytes"
    raise HelloError(f"its PSK identity is not known here: {names}")


def printable(identity: str) -> str:
    """Return an identity in a form that is safe for a line of the log: its digest is left out, it is not needed."""
    text = " ".join(identity.split(" ")[:3])[:480]
    return text if text.isprintable() else repr(text)
