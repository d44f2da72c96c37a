"""Paths as text, limits, and messages; all without the kernel."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.transport import Address
from nvmeof.transport.paths import interfaces
from nvmeof.transport.paths.interfaces import Interface
from nvmeof.transport.paths.keeper import carries, stalled
from nvmeof.transport.paths.model import (
    Limits,
    PathEndpoint,
    PathFlag,
    PathPrivilegeError,
    PathRole,
    PathSpec,
    parse_limits,
    parse_path,
)
from nvmeof.transport.paths.session import PathOptions
from nvmeof.transport.tcp_info import SubflowInfo


def test_flags_are_the_kernels() -> None:
    values = {"SIGNAL": 1, "SUBFLOW": 2, "BACKUP": 4, "FULLMESH": 8, "IMPLICIT": 16, "LAMINAR": 32}
    assert {flag.name: flag.value for flag in PathFlag} == values
    assert PathFlag(6).words == "subflow backup"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("10.1.2.1", PathSpec("10.1.2.1")),
        ("10.1.2.1%eth1", PathSpec("10.1.2.1", "eth1")),
        (" 10.1.2.1%eth1,backup", PathSpec("10.1.2.1", "eth1", backup=True)),
        ("10.1.2.1,fullmesh,backup", PathSpec("10.1.2.1", None, True, True)),
        ("10.1.2.1,mark=0x10,congestion=reno", PathSpec("10.1.2.1", mark=16, congestion="reno")),
        ("[2001:db8::1]%eth0", PathSpec("2001:db8::1", "eth0")),
        ("[2001:db8::1%eth0]", PathSpec("2001:db8::1", "eth0")),
        ("2001:0db8::0:1", PathSpec("2001:db8::1")),
    ],
)
def test_paths_as_text(text: str, spec: PathSpec) -> None:
    assert parse_path(text) == spec


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not an IP address"),
        ("host", "is not an IP address"),
        ("10.1.2.1%", "no interface after"),
        ("10.1.2.1,bakup", "'bakup'"),
        ("10.1.2.1,mark=x", "is no mark"),
        ("10.1.2.1,mark", "'mark'"),
        ("10.1.2.1,backup=1", "'backup=1'"),
        ("0.0.0.0", "not an address of one interface"),
        ("ff02::1", "not an address of one interface"),
    ],
)
def test_bad_paths_get_a_sentence(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        parse_path(text)
    with pytest.raises(ConfigurationError):
        PathOptions(paths=(text,))


@given(st.text(max_size=40))
def test_any_text_is_a_path_or_a_configuration_error(text: str) -> None:
    try:
        spec = parse_path(text)
    except ConfigurationError:
        return
    ipaddress.ip_address(spec.address)


def test_a_target_has_no_fullmesh() -> None:
    assert parse_path("10.1.1.1,fullmesh").endpoint(PathRole.SUBFLOW).flags == PathFlag.SUBFLOW | PathFlag.FULLMESH
    with pytest.raises(ConfigurationError, match="fullmesh"):
        parse_path("10.1.1.1,fullmesh").endpoint(PathRole.SIGNAL)


@pytest.mark.parametrize("text", ["fe80::1%eth0", "fe80::1", "febf::1,backup"])
def test_a_link_local_address_is_not_announced(text: str) -> None:
    with pytest.raises(ConfigurationError, match="announce another address of that interface"):
        parse_path(text).endpoint(PathRole.SIGNAL)
    assert parse_path(text).endpoint(PathRole.SUBFLOW).address.startswith("fe")
    assert parse_path("169.254.7.7").endpoint(PathRole.SIGNAL), "has no interface in it, and is connected to"


def test_a_link_local_address_without_interface_is_asked_for_one() -> None:
    with pytest.raises(ConfigurationError, match="write fe80::1%INTERFACE"):
        interfaces.device_of("fe80::1")


@pytest.mark.parametrize("text", ["8", "8,9", "a,b", "", "-1,2", "1,2,3"])
def test_bad_limits(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_limits(text)


def test_limits() -> None:
    assert parse_limits("8, 0") == Limits(8, 0)
    assert Limits(3, 8).at_least(Limits(5, 2)) == Limits(5, 8)


def test_lines_for_an_administrator() -> None:
    endpoint = PathEndpoint(address="10.1.2.1", device="eth1", port=4421, flags=PathFlag.SIGNAL | PathFlag.BACKUP)
    assert endpoint.command() == "ip mptcp endpoint add 10.1.2.1 dev eth1 port 4421 signal backup"
    error = PathPrivilegeError("this", [endpoint.command(), Limits(8, 8).command()])
    assert isinstance(error, TransportError)
    assert str(error).count("CAP_NET_ADMIN") == 1
    assert error.commands[1] == "ip mptcp limits set subflows 8 add_addr_accepted 8"
    assert all(line in str(error) for line in error.commands)


# -- interfaces

KNOWN = {
    "lo": Interface(1, "lo", True, True, ("127.0.0.1", "::1")),
    "eth0": Interface(2, "eth0", True, False, ("10.1.1.1", "2001:db8::1")),
    "eth1": Interface(3, "eth1", True, False, ("10.1.2.1", "10.1.2.9")),
    "eth2": Interface(4, "eth2", False, False, ("10.1.3.1",)),
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "interfaces", lambda: KNOWN)
    monkeypatch.setattr(interfaces, "source_for", lambda peer: ("10.1.2.1", "eth1"))


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("listening", "expected"),
    [
        (["0.0.0.0"], ["10.1.1.1", "10.1.2.1"]),
        (["10.1.1.1"], ["10.1.1.1", "10.1.2.1"]),
        (["0.0.0.0", "::"], ["10.1.1.1", "2001:db8::1", "10.1.2.1"]),
        (["::"], ["2001:db8::1"]),
        (["127.0.0.1"], []),
        (["localhost", "::1"], []),
    ],
)
def test_addresses_that_auto_announces(listening: list[str], expected: list[str]) -> None:
    found = interfaces.auto_signal([Address(host, 4420) for host in listening])
    assert [each.address for each in found] == expected


@pytest.mark.usefixtures("known")
def test_addresses_from_which_auto_connects() -> None:
    assert interfaces.auto_subflow("10.1.2.7") == [PathSpec("10.1.2.1", "eth1"), PathSpec("10.1.1.1", "eth0")]
    assert interfaces.auto_subflow("127.0.0.1") == []
    assert interfaces.auto_subflow("2001:db8::7") == [PathSpec("2001:db8::1", "eth0")]


@pytest.mark.parametrize(
    ("address", "hosts", "expected"),
    [
        ("10.1.1.1", ["0.0.0.0"], True),
        ("10.1.1.1", [""], False),
        ("10.1.1.1", ["10.1.1.1"], True),
        ("10.1.1.1", ["10.1.1.2", "::"], False),
        ("2001:db8::1", ["::"], True),
        ("2001:db8::1", ["2001:0db8::0001"], True),
    ],
)
def test_whether_a_listener_takes_an_address(address: str, hosts: list[str], expected: bool) -> None:
    assert interfaces.covered(address, [Address(host, 1) for host in hosts]) is expected


@pytest.mark.parametrize(
    ("address", "device", "expected"),
    [
        ("10.1.1.1", "eth0", True),
        ("10.1.1.1", None, True),
        ("10.1.1.1", "eth1", False),
        ("10.1.3.1", "eth2", False),
        ("10.1.3.1", None, False),
        ("10.1.4.1", "eth9", False),
    ],
)
def test_paths_that_carry(address: str, device: str | None, expected: bool) -> None:
    assert carries(PathEndpoint(address=address, device=device), KNOWN) is expected


# -- subflows that lead nowhere

BUSY = {"unacked_segments": 3, "timeouts": 3, "last_ack_received_ms": 2500}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"unacked_segments": 0}, False),
        ({"timeouts": 2}, False),
        ({"last_ack_received_ms": 100}, False),
        ({"state": "SYN_SENT"}, False),
        ({"timeouts": None}, False),
    ],
)
def test_stalled(change: dict[str, object], expected: bool) -> None:
    here = Address("10.1.1.1", 1)
    values = {"state": "ESTABLISHED", **BUSY, **change}
    assert stalled(SubflowInfo(local=here, peer=here, **values)) is expected  # type: ignore[arg-type]
