"""NBD URIs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.nbd.uri import NbdUri

TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("nbd://192.0.2.1", NbdUri("", "192.0.2.1")),
        ("nbd://[2001:db8::1]:1234/a%20b", NbdUri("a b", "2001:db8::1", 1234)),
        ("nbds://host/x", NbdUri("x", "host", tls=True)),
        ("nbd+unix:///disk?socket=/run/a%20b.sock", NbdUri("disk", path="/run/a b.sock")),
        ("nbd+unix:///?socket=x", NbdUri(path="x")),
        ("nbds+unix:///d?socket=/s&tls-certificates=/pki",
         NbdUri("d", path="/s", tls=True, parameters=(("tls-certificates", "/pki"),))),
        ("nbd://host//abs/path", NbdUri("/abs/path", "host")),
    ],
)  # fmt: skip
def test_forms(text: str, uri: NbdUri) -> None:
    assert NbdUri.parse(text) == uri
    assert NbdUri.parse(str(uri)) == uri


@given(export=TEXT, path=TEXT.filter(bool), tls=st.booleans(), host=st.sampled_from(["h", "192.0.2.7", "::1"]))
def test_text_and_back(export: str, path: str, tls: bool, host: str) -> None:
    for uri in (NbdUri(export, path=path, tls=tls), NbdUri(export, host, 4321, tls=tls)):
        assert NbdUri.parse(str(uri)) == uri


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://host", "begins with none of"),
        ("disk.img", "begins with none of"),
        ("nbd://host:99999", "is no NBD URI"),
        ("nbd+unix:///x", "names no socket"),
        ("nbd+unix://host/x?socket=/s", "three slashes"),
        ("nbd://host/x?socket=/s", r"write nbd\+unix: for one"),
        ("nbd://host/x#y", "fragment"),
    ],
)
def test_invalid_uris(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        NbdUri.parse(text)
