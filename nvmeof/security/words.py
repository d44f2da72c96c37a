"""Words for hash functions and Diffie-Hellman groups: those of nvmet's ``dhchap_hash`` and ``dhchap_dhgroup``."""

from __future__ import annotations

from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.spec.auth import DhGroupId, HashId

HASH_WORDS: Final = {"hmac(sha256)": HashId.SHA256, "hmac(sha384)": HashId.SHA384, "hmac(sha512)": HashId.SHA512}
GROUP_WORDS: Final = {group.name.lower(): group for group in DhGroupId}
HASH_NAMES: Final = tuple(each.name.lower() for each in HashId)


def hash_word(hash_id: HashId) -> str:
    """Return nvmet's word for a hash function."""
    return f"hmac({hash_id.name.lower()})"


def parse_hash(text: str) -> HashId:
    """Read ``sha256`` or nvmet's ``hmac(sha256)``. Raises `ConfigurationError`."""
    word = text.lower()
    found = HASH_WORDS.get(word) or HASH_WORDS.get(f"hmac({word})")
    if found is None:
        raise ConfigurationError(f"a hash function of DH-HMAC-CHAP is {', '.join(HASH_NAMES)}, not {text!r}")
    return found


def parse_group(text: str) -> DhGroupId:
    """Read ``null`` or ``ffdhe2048`` to ``ffdhe8192``. Raises `ConfigurationError`."""
    found = GROUP_WORDS.get(text.lower())
    if found is None:
        raise ConfigurationError(f"a group of DH-HMAC-CHAP is {', '.join(GROUP_WORDS)}, not {text!r}")
    return found
