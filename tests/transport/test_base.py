"""Addresses, options and the registry."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.transport import Address, ConnectionInfo, MemoryTransport, SocketOptions, SubflowInfo, base


@pytest.mark.parametrize(
    "values",
    [
        {"tos": 256},
        {"tos": -1},
        {"priority": -1},
        {"sndbuf_bytes": 0},
        {"rcvbuf_bytes": 1 << 31},
        {"connect_timeout_seconds": 0.0},
        {"connect_timeout_seconds": float("nan")},
        {"backlog": 0},
    ],
)
def test_options_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SocketOptions(**values)


def test_connection_info_becomes_json() -> None:
    here, there = Address("::1", 1), Address("::1", 2)
    info = ConnectionInfo(
        transport="mptcp", protocol="tcp", local=here, peer=there, subflows=(SubflowInfo(local=here, peer=there),)
    )
    result = json.loads(json.dumps(info.as_dict()))
    assert result["local"] == "[::1]:1"
    assert result["subflows"][0]["peer"] == "[::1]:2"
    assert result["protocol"] == "tcp"


class Other(MemoryTransport):
    name = "other"
    trtype = 77


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(base, "_transports", dict(base._transports))
    monkeypatch.setattr(base, "_plugins_loaded", True)
    codes = {name: transport.trtype for name, transport in base._transports.items()}
    yield
    for name, code in codes.items():
        base._transports[name].trtype = code


def test_registry_has_ours() -> None:
    assert {"tcp", "mptcp", "memory"} <= set(base.names())
    assert [base.get(name).trtype for name in ("tcp", "mptcp", "memory")] == [3, 4, 254]
    assert base.get(3) is base.get("tcp")
    assert base.get(4).name == "mptcp"


@pytest.mark.usefixtures("registry")
def test_registry_accepts_one_more_and_refuses_a_duplicate() -> None:
    other = Other()
    base.register(other)
    assert base.get(77) is other is base.get("other")
    with pytest.raises(ConfigurationError, match="registered already"):
        base.register(Other())
    twin = Other()
    twin.name = "twin"
    with pytest.raises(ConfigurationError, match="taken by 'other'"):
        base.register(twin)


@pytest.mark.usefixtures("registry")
def test_trtype_code_is_configurable() -> None:
    base.set_trtype_code("mptcp", 200)
    assert base.get(200).name == "mptcp"
    with pytest.raises(ConfigurationError, match="unknown transport type 4"):
        base.get(4)
    with pytest.raises(ConfigurationError, match="taken by 'tcp'"):
        base.set_trtype_code("mptcp", 3)
    for code in (0, 256):
        with pytest.raises(ConfigurationError, match="between 1 and 255"):
            base.set_trtype_code("mptcp", code)
    base.set_trtype_code("mptcp", 200)


def test_unknown_transport_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown transport 'rdma': known are .*mptcp \(4\).*tcp \(3\)"):
        base.get("rdma")


class EntryPoint:
    """The used part of an entry point of importlib.metadata."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self.loaded = name, repr(value), value

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.mark.usefixtures("registry")
def test_plugins_load_lazily_and_a_broken_one_is_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def entry_points(*, group: str) -> list[EntryPoint]:
        asked.append(group)
        return [
            EntryPoint("absent", ModuleNotFoundError("No module named 'absent'")),
            EntryPoint("number", 5),
            EntryPoint("tcp", base.get("tcp")),  # the built-in ones are not replaced
            EntryPoint("other", Other),
        ]

    monkeypatch.setattr(base, "_plugins_loaded", False)
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert base.get("tcp").name == "tcp"
    assert asked == []
    assert base.get("other").trtype == 77
    assert base.names() == ["memory", "mptcp", "other", "tcp"]
    assert asked == ["nvmeof.transports"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "'absent' was skipped: ModuleNotFoundError" in said[0]
    assert not any("\n" in line for line in said)
