"""Keys of TLS: the interchange form, and the identities and PSKs that are derived of them."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.security.tls.key import (
    IDENTITY_BYTES_MOST,
    Derivation,
    TlsKey,
    expand,
    expand_label,
    extract,
    generate_tls_key,
    load_tls_key,
    parse_identity,
    parse_tls_key,
)
from nvmeof.spec.auth import HashId

HOST, SUBSYSTEM = "nqn.psk-test-host", "nqn.psk-test-subsys"
KEY_32 = bytes.fromhex("5512dbb6737d0106f65975b773dfb011ffc344bcf442e2dd6d8bc4870b5d5b03")
KEY_48 = KEY_32 + KEY_32[16:]
SHORT = bytes(20)
SHA256, SHA384 = TlsKey(KEY_32), TlsKey(KEY_48, HashId.SHA384)


def test_interchange_form_of_libnvme() -> None:
    """The strings that libnvme's own tests have for these keys."""
    assert SHA256.to_text() == "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:"
    assert TlsKey(KEY_32, None).to_text() == "NVMeTLSkey-1:00:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:"
    assert SHA384.to_text() == (
        "NVMeTLSkey-1:02:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwP/w0S89ELi3W2LxIcLXVsDn8kXZQ==:"
    )


@pytest.mark.parametrize(
    ("key", "derivation", "digest"),
    [
        (SHA256, Derivation.RFC8446, "iSbjiStwJ/1TrTvDlt2fjFmzvsytOJelidNnA+X5lEU="),
        (SHA256, Derivation.LIBNVME_1_14, "66GuqV08TsAGII39teWUfwQwizjv06Jy8jOcX3NAAzM="),
        (SHA384, Derivation.RFC8446, "QhW2+Rp6RzHlNtCslyRxMnwJ11tKKhz8JCAQpQ+XUD8f9td1VeH5h53yz2wKJG1a"),
        (SHA384, Derivation.LIBNVME_1_14, "RsKmYJ3nAn1ApjjMloJFbAkLPivONDAX/xW327YBUsn2eGShXSjCZvBaOxscLqmz"),
    ],
)
def test_identities_of_libnvme(key: TlsKey, derivation: Derivation, digest: str) -> None:
    """The identities that libnvme's tests have, of its present and of its older derivation."""
    head = f"R{key.cipher_hash:02} {HOST} {SUBSYSTEM}"
    assert key.identity(HOST, SUBSYSTEM, derivation=derivation) == f"NVMe1{head} {digest}"
    assert key.identity(HOST, SUBSYSTEM, version=0, derivation=derivation) == f"NVMe0{head}"


def test_hkdf_of_rfc_5869() -> None:
    """Test cases 1 and 3 of RFC 5869, the second with the salt of zeros that is used here."""
    secret = bytes.fromhex("0b" * 22)
    assert expand("SHA256", extract("SHA256", secret), b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )
    pseudo = bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
    assert expand("SHA256", pseudo, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"), 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_expand_label_of_rfc_8448() -> None:
    """RFC 8448, section 3: the server's handshake traffic key."""
    secret = bytes.fromhex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
    key = expand_label("SHA256", secret, "key", b"", 16, Derivation.RFC8446)
    assert key.hex() == "3fce516009c21727d0f2e4e86ee403bc"


def test_tls_psks_differ_by_all_that_they_are_made_of() -> None:
    made = {
        each.psk(host, nqn, version=version, derivation=derivation).key
        for each in (SHA256, TlsKey(KEY_32, None))
        for host in (HOST, "nqn.other")
        for nqn in (SUBSYSTEM, "nqn.other")
        for version in (0, 1)
        for derivation in Derivation
    }
    assert len(made) == 32
    assert {len(each) for each in made} == {32} and len(SHA384.psk(HOST, SUBSYSTEM).key) == 48


@given(st.sampled_from([(None, 32), (None, 48), (HashId.SHA256, 32), (HashId.SHA384, 48)]), st.data())
def test_a_key_survives_its_text(form: tuple[HashId | None, int], data: st.DataObject) -> None:
    key = TlsKey(data.draw(st.binary(min_size=form[1], max_size=form[1])), form[0])
    assert parse_tls_key(f" {key.to_text()}\n") == key


@given(st.integers(16, 58), st.sampled_from("ABCDabcd0189+/"))
def test_a_changed_character_is_noticed(place: int, character: str) -> None:
    text = SHA256.to_text()
    changed = text[:place] + character + text[place + 1 :]
    if changed != text:
        with pytest.raises(ConfigurationError):
            parse_tls_key(changed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "form NVMeTLSkey-1:hh:BASE64:"),
        ("DHHC-1:01:AAAA:", "this is no TLS key"),
        ("NVMeTLSkey-1:03:AAAA:", "00, 01 or 02"),
        ("NVMeTLSkey-1:01:%%%%:", "no base64"),
        (SHA256.to_text().replace("VRL", "VRM"), "a character was changed or lost"),
        ("NVMeTLSkey-1:02:" + SHA256.to_text()[16:], "48 bytes, not 32"),
        (f"NVMeTLSkey-1:00:{base64.b64encode(SHORT + zlib.crc32(SHORT).to_bytes(4, 'little')).decode()}:", "32 or 48"),
    ],
)  # fmt: skip
def test_wrong_keys(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        parse_tls_key(text)
    assert "VRL" not in str(caught.value)


def test_nothing_shows_a_key(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_text(SHA256.to_text())
    path.chmod(0o600)
    key = load_tls_key(f"file:{path}")
    psk = key.psk(HOST, SUBSYSTEM)
    shown = f"{key} {key!r} {psk!r} {SHA256} {SHA256!r}"
    assert str(path) in shown and "VRL" not in shown and repr(KEY_32)[2:12] not in shown and repr(psk.key) not in shown
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        load_tls_key(f"file:{path}")


def test_a_version_1_identity_tells_the_derivation_and_one_of_version_0_does_not() -> None:
    for derivation in Derivation:
        psk = SHA256.psk(HOST, SUBSYSTEM, derivation=derivation)
        assert SHA256.candidates(psk.identity, HOST, SUBSYSTEM) == [psk]
    both = SHA256.candidates(SHA256.identity(HOST, SUBSYSTEM, version=0), HOST, SUBSYSTEM)
    assert len(both) == 2 and len({each.key for each in both}) == 2
    assert not SHA256.candidates(SHA384.identity(HOST, SUBSYSTEM), HOST, SUBSYSTEM)
    assert not SHA256.candidates(generate_tls_key().identity(HOST, SUBSYSTEM), HOST, SUBSYSTEM)


def test_the_longest_identity() -> None:
    identity = SHA384.identity("nqn." + "h" * 219, "nqn." + "s" * 219)
    assert len(identity) == IDENTITY_BYTES_MOST


@given(st.text(max_size=600))
def test_any_text_as_an_identity(text: str) -> None:
    for each in (text, f"NVMe1R01 {text}", f"NVMe0R02 {text} x"):
        fields = parse_identity(each)
        assert fields is None or fields.hostnqn


@pytest.mark.parametrize(
    "text", ["", "NVMe1R01 a b", "NVMe0R01 a b c", "NVMe2R01 a b c", "NVMe1R03 a b c", "NVMe1X01 a b c"]
)
def test_identities_of_another_form(text: str) -> None:
    assert parse_identity(text) is None


def test_identity_fields() -> None:
    fields = parse_identity(f"NVMe1G02 {HOST} {SUBSYSTEM} digest")
    assert fields is not None
    assert (fields.version, fields.kind, fields.hash_id, fields.hostnqn, fields.subnqn) == (
        1, "G", HashId.SHA384, HOST, SUBSYSTEM,
    )  # fmt: skip


@pytest.mark.parametrize(("hmac", "size"), [(1, 32), (2, 48)])
def test_command_line(hmac: int, size: int) -> None:
    def program(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nvmeof.host", *arguments],
            env={**os.environ, "KEY": key}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    key = program("gen-tls-key", "-m", str(hmac)).stdout.strip()
    name = HashId(hmac).name
    said = program("check-tls-key", "-k", "env:KEY", key=key)
    assert said.stdout == f"the key is good: {size} bytes, configured, for {name}\n"
    said = program("check-tls-key", "-d", "env:KEY", "-n", HOST, "-c", SUBSYSTEM, key=key)
    assert said.stdout.strip() == parse_tls_key(key).identity(HOST, SUBSYSTEM) and not said.stderr
    said = program("check-tls-key", "-k", "env:KEY", "-n", HOST, "-c", SUBSYSTEM, "-I", "0", "-C", key=key)
    assert said.stdout == f"NVMe0R0{hmac} {HOST} {SUBSYSTEM}\n"
    bad = program("check-tls-key", "-k", "env:KEY", key=key[:-4] + "AA=:")
    assert bad.returncode and key[16:30] not in bad.stderr and bad.stderr.count("\n") == 1
