"""The cipher suites of TLS 1.3 that NVMe/TCP uses, and which of them a handshake takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nvmeof.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Suite:
    """A cipher suite: the name that OpenSSL and RFC 8446 have, its number, and its hash function."""

    name: str
    number: int
    hash_name: str


AES_128_GCM: Final = Suite("TLS_AES_128_GCM_SHA256", 0x1301, "SHA256")
AES_256_GCM: Final = Suite("TLS_AES_256_GCM_SHA384", 0x1302, "SHA384")
CHACHA20: Final = Suite("TLS_CHACHA20_POLY1305_SHA256", 0x1303, "SHA256")
SUITES: Final = (AES_128_GCM, AES_256_GCM, CHACHA20)
"""All of them, in the order of preference where nothing else is said. NVMe/TCP demands the first two; the third is
what Linux negotiates with a key of SHA-384, whose binder it makes with SHA-256."""


def parse_suites(text: str | Iterable[str]) -> tuple[Suite, ...]:
    """Read suites by name, with or without ``TLS_``, separated by commas or colons. Raises `ConfigurationError`."""
    names = text.replace(":", ",").split(",") if isinstance(text, str) else list(text)
    found: list[Suite] = []
    for name in names:
        word = "TLS_" + name.strip().upper().removeprefix("TLS_")
        suite = next((each for each in SUITES if each.name == word), None)
        if suite is None:
            raise ConfigurationError(
                f"a cipher suite is {', '.join(each.name for each in SUITES)}, not {name.strip()!r}"
            )
        if suite not in found:
            found.append(suite)
    return tuple(found)


def choose(allowed: Sequence[Suite], offered: Collection[int], hash_name: str) -> Suite | None:
    """Return the first allowed suite of a hash function that a client offers, None where there is none."""
    return next((each for each in allowed if each.hash_name == hash_name and each.number in offered), None)
