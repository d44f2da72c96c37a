"""Addresses as text: reading, refusing, and writing what is read again."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.address import (
    Address,
    check_host,
    ip_of,
    is_link_local,
    is_loopback,
    is_wildcard,
    parse_port,
    split_scope,
    with_scope,
)
from nvmeof.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("1.2.3.4:4420", "1.2.3.4", 4420),
        ("1.2.3.4", "1.2.3.4", 1),
        (" 1.2.3.4:0x1144\n", "1.2.3.4", 4420),
        ("[1.2.3.4]:4420", "1.2.3.4", 4420),
        ("[::1]:8009", "::1", 8009),
        ("[::1]", "::1", 1),
        ("::1", "::1", 1),
        ("[::]:4420", "::", 4420),
        ("0:0::0", "::", 1),
        ("2001:DB8:0:0::7", "2001:db8::7", 1),
        ("2001:db8::1:4420", "2001:db8::1:4420", 1),
        ("::ffff:192.0.2.1", "192.0.2.1", 1),
        ("[::ffff:192.0.2.1]:4420", "192.0.2.1", 4420),
        ("fe80::1%eth0", "fe80::1%eth0", 1),
        ("[FE80::1%eth0]:0", "fe80::1%eth0", 0),
        ("fe80::1", "fe80::1", 1),
        ("storage.example.org:65535", "storage.example.org", 65535),
        ("node1.2b:4420", "node1.2b", 4420),
        ("localhost:4576", "localhost", 4576),
        (":4420", "", 4420),
        ("4560", "", 4560),
        ("0x1144", "", 4420),
        ("*", "*", 1),
        ("*:4420", "*", 4420),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    assert Address.parse(text, default_port=1) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write \\* for every address"),
        ("  ", "write \\* for every address"),
        ("[]:4420", "no address in its brackets"),
        ("1.2.3.4:", "no port after the colon"),
        ("[::1]:", "no port after the colon"),
        ("1.2.3.4:65536", "'65536' in '1.2.3.4:65536' is not a port"),
        ("70000", "'70000' is not a port"),
        ("9" * 5000, "is not a port"),
        ("a:" + "9" * 5000, "is not a port"),
        ("a:b", "'b' in 'a:b' is not a port"),
        ("a:-1", "'-1' in 'a:-1' is not a port"),
        ("a:0x", "'0x' in 'a:0x' is not a port"),
        ("a:٣", "is not a port"),
        ("[::1", "written \\[ADDRESS\\]:PORT"),
        ("[::1]4420", "written \\[ADDRESS\\]:PORT"),
        ("::1]", "written \\[ADDRESS\\]:PORT"),
        ("::1:99999", "written \\[ADDRESS\\]:PORT"),
        ("fe80::1%eth0:4420", "written \\[ADDRESS\\]:PORT"),
        ("1:2:3:4:5:6:7:8:4420", "written \\[ADDRESS\\]:PORT"),
        ("tcp://127.0.0.1:4420", "written \\[ADDRESS\\]:PORT"),
        ("fe80::1%", "no interface after the %"),
        ("::1%lo", "is not link-local"),
        ("2001:db8::1%eth0", "is not link-local"),
        ("192.0.2.1%eth0", "is not link-local"),
        ("storage%eth0", "only IPv6 link-local ones"),
        ("127.1", "four decimal numbers"),
        ("127.1:4420", "four decimal numbers"),
        ("010.0.0.1", "without leading zeros"),
        ("0x7f.0.0.1", "four decimal numbers"),
        ("192.0.2.256", "four decimal numbers"),
        ("192.0.2.1.", "four decimal numbers"),
        ("1.2.3.4.5", "four decimal numbers"),
    ],
)
def test_an_invalid_address_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        Address.parse(text)
    assert "\n" not in str(caught.value)


interfaces = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_.@"), min_size=1)
link_locals = st.integers(0, (1 << 64) - 1).map(lambda low: str(ipaddress.IPv6Address(0xFE80 << 112 | low)))


@given(st.ip_addresses(), st.integers(0, 65535))
def test_the_text_of_an_address_is_read_as_the_same_address(ip: Any, port: int) -> None:
    address = Address(str(ip_of(str(ip))), port)
    assert Address.parse(str(address)) == address
    assert Address.parse(f"[{ip}]:{port:#x}") == address
    assert ip_of(address.host) == ip_of(check_host(address.host))


@given(link_locals, interfaces, st.integers(0, 65535))
def test_a_link_local_address_keeps_its_interface(ip: str, interface: str, port: int) -> None:
    address = Address(f"{ip}%{interface}", port)
    assert Address.parse(str(address)) == address
    assert Address.parse(address.host, default_port=port) == address
    assert split_scope(address.host) == (ip, interface)
    assert is_link_local(address.host)
    assert with_scope(ip, interface) == address.host == with_scope(f"{ip}%other", interface)


@given(st.one_of(st.text(), st.text(alphabet="0123456789abcfx.:[]%* ")))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        address = Address.parse(text)
        assert 0 <= address.port <= 65535
        assert Address.parse(str(address)) == address
        if address.host:
            assert check_host(address.host) == address.host


@given(st.one_of(st.text(alphabet="0123456789xabcf."), st.lists(st.integers(0, 1 << 33), max_size=5).map(str)))
def test_no_number_is_an_ipv4_address_by_the_old_rules(text: str) -> None:
    """inet_aton(3) takes `4560` for 0.0.17.208 and `010.0.0.1` for 8.0.0.1; getaddrinfo(3) uses it."""
    try:
        old = socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        return
    with contextlib.suppress(ConfigurationError):
        assert check_host(text) == old


@given(st.integers(0, 65535))
def test_ports_are_decimal_or_hexadecimal(port: int) -> None:
    for form in (port, str(port), f"{port:#x}", f"{port:#X}", f" {port:05} "):
        assert parse_port(form) == port


@pytest.mark.parametrize("text", ["", "x", "0x", "0xg", "-1", "+1", "1_000", "1.0", "65536", "0x10000", "²", 65536, -1])
def test_an_invalid_port_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigurationError, match="give a number from 0 to 65535"):
        parse_port(text)


def test_kinds_of_hosts() -> None:
    assert [
        host for host in ("", "*", "0.0.0.0", "::", "[::]", "0::0", "127.0.0.1", "name") if not is_wildcard(host)
    ] == [
        "127.0.0.1",
        "name",
    ]
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("192.0.2.1", "::", "name", "")))
    assert not any(map(is_link_local, ("169.254.0.1", "::1", "fec0::1", "name", "")))
    assert with_scope("192.0.2.1", "eth0") == "192.0.2.1"
    assert with_scope("fe80::1", "") == "fe80::1"


@pytest.mark.parametrize(("host", "says"), [("127.0.0.1:4420", "address 127.0.0.1 and the port 4420 apart"),
                                            ("[::1]:4420", "address ::1 and the port 4420 apart")])  # fmt: skip
def test_a_host_with_a_port_is_explained(host: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check_host(host)
