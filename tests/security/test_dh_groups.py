"""The groups of RFC 7919, compared with OpenSSL's, and the exchange in them."""

from __future__ import annotations

import base64
import shutil
import subprocess

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.security import dh_groups
from nvmeof.security.dh_groups import KeyPair, check_usable, prime, usable_groups
from nvmeof.spec.auth import DhGroupId

GROUPS = list(DhGroupId)[1:]
needs_gmpy2 = pytest.mark.skipif(not dh_groups.exchange_available(), reason="needs gmpy2 (the extra auth)")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("group", GROUPS)
def test_primes_are_those_of_openssl(group):
    made = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "DH", "-pkeyopt", f"group:{group.name.lower()}"],
        capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    # a private key in PKCS#8, whose parameters are the prime and the generator
    encoded = base64.b64decode("".join(made.splitlines()[1:-1]))
    assert prime(group).to_bytes(group.bits // 8, "big") in encoded


@needs_gmpy2
@pytest.mark.parametrize("group", GROUPS)
def test_both_sides_share(group):
    one, other = KeyPair(group), KeyPair(group)
    assert len(one.public) == group.bits // 8
    assert one.shared(other.public) == other.shared(one.public) != one.shared(one.public)


@needs_gmpy2
@pytest.mark.parametrize("value", [0, 1, prime(DhGroupId.FFDHE2048) - 1, prime(DhGroupId.FFDHE2048), 1 << 2048])
def test_values_that_reveal_the_secret(value):
    with pytest.raises(ValueError, match="does not allow"):
        KeyPair(DhGroupId.FFDHE2048).shared(value.to_bytes(257, "big"))


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(dh_groups, "exchange_available", lambda: False)
    assert usable_groups() == (DhGroupId.NULL,)
    check_usable(DhGroupId.NULL)
    with pytest.raises(ConfigurationError, match=r"ffdhe3072 needs gmpy2: pip install"):
        check_usable(DhGroupId.FFDHE3072)
