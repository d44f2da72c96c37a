"""Pre-shared keys that DH-HMAC-CHAP has made: secure channel concatenation (NVMe Base, NVMe/TCP Transport)."""

from __future__ import annotations

from typing import Final

from nvmeof.security.tls.key import Psk

LIFE_SECONDS: Final = 3600.0
"""How long a key is good for new connections, as in Linux's keyring."""
MOST_KEYS: Final = 1024
"""Beyond it the oldest is forgotten; only hosts that have authenticated themselves make any."""


class GeneratedPsks:
    """The generated PSKs of a target by their identities, which name host, subsystem and the digest of the key."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[Psk, float]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, psk: Psk, now: float) -> None:
        """Take a key from now on."""
        self._keys.pop(psk.identity, None)
        self._keys[psk.identity] = psk, now + LIFE_SECONDS
        if len(self._keys) > MOST_KEYS:
            del self._keys[next(iter(self._keys))]

    def forget(self, hostnqn: str) -> None:
        """Take no key of a host any longer: what it authenticates itself with has changed."""
        for identity in [each for each in self._keys if each.split(" ")[1] == hostnqn]:
            del self._keys[identity]

    def forget_subsystem(self, subnqn: str) -> None:
        """Take no key for a subsystem any longer: another one may have its name later, with other hosts."""
        for identity in [each for each in self._keys if each.split(" ")[2] == subnqn]:
            del self._keys[identity]

    def find(self, identity: str, now: float) -> list[Psk]:
        """Return the key of an identity, if it is good still."""
        found = self._keys.get(identity)
        if found is None:
            return []
        if now >= found[1]:
            del self._keys[identity]
            return []
        return [found[0]]
