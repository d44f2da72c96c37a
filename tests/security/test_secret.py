"""Secrets: their text form, their sources, and that no output shows them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import pickle
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.security.secret import Secret, generate_secret, load_secret, parse_secret
from nvmeof.spec.auth import HashId

NQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
KEY = bytes(range(32))
TEXT = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:"

keys = st.sampled_from([32, 48, 64]).flatmap(lambda size: st.binary(min_size=size, max_size=size))


@given(keys, st.booleans())
def test_text_and_back(key, transformed):
    secret = Secret(key, HashId([32, 48, 64].index(len(key)) + 1) if transformed else None)
    assert parse_secret(secret.to_text()) == secret


def test_the_checksum_is_zlib_crc32_little_endian():
    assert Secret(KEY).to_text() == TEXT
    assert base64.b64decode(TEXT.split(":")[2])[32:] == zlib.crc32(KEY).to_bytes(4, "little")


@given(st.data())
def test_a_changed_character_is_noticed(data):
    text = generate_secret(48).to_text()
    place = data.draw(st.integers(10, len(text) - 4))
    other = data.draw(st.sampled_from("ABCabc019+/"))
    changed = text[:place] + other + text[place + 1 :]
    if changed == text:
        return
    with pytest.raises(ConfigurationError) as caught:
        parse_secret(changed)
    assert text.split(":")[2][:20] not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no DH-HMAC-CHAP secret"),
        ("secret", "no DH-HMAC-CHAP secret"),
        (TEXT[:-1], "no DH-HMAC-CHAP secret"),
        (TEXT.replace(":00:", ":04:"), "transformation"),
        (TEXT.replace(":00:", ":02:"), "SHA384 transforms has 48 bytes, not 32"),
        (TEXT.replace("AAEC", "A*EC"), "base64"),
        ("DHHC-1:00:AAAAAAAA:", "checksum"),
        ("DHHC-1:00:AAAAAA==:", "32, 48 or 64 bytes, not 0"),
    ],
)
def test_errors_do_not_show_the_key(text, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        parse_secret(text)
    assert "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9" not in str(caught.value)


def test_the_key_is_not_shown():
    secret = parse_secret(TEXT)
    for text in (repr(secret), str(secret), f"{secret}", str({"secret": secret})):
        assert KEY.hex() not in text and "AAECAwQ" not in text and "\\x01\\x02" not in text
    assert pickle.loads(pickle.dumps(secret)) == secret


def test_transformation():
    assert Secret(KEY).transformed(NQN) == KEY
    secret = Secret(bytes(48), HashId.SHA384)
    wanted = hmac.new(bytes(48), (NQN + "NVMe-over-Fabrics").encode(), hashlib.sha384).digest()
    assert secret.transformed(NQN) == wanted


def test_sources(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_text(f"{TEXT}\n")
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match=f"others may read .*: chmod 600 {path}"):
        load_secret(f"file:{path}")
    path.chmod(0o600)
    secret = load_secret(f"file:{path}")
    assert secret.key == KEY and secret.source == str(secret) == f"file:{path}"
    monkeypatch.setenv("DISK_SECRET", TEXT)
    assert load_secret("env:DISK_SECRET") == secret == load_secret(TEXT)
    with pytest.raises(ConfigurationError, match="the environment has no OTHER"):
        load_secret("env:OTHER")
    with pytest.raises(ConfigurationError, match=r"/missing cannot be read: No such file"):
        load_secret(f"file:{tmp_path}/missing")
    (tmp_path / "blob").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "blob").chmod(0o600)
    with pytest.raises(ConfigurationError, match="no DH-HMAC-CHAP secret"):
        load_secret(f"file:{tmp_path}/blob")
