"""Connect options and the host's identity."""

from __future__ import annotations

import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.host import identity
from nvmeof.host.identity import host_identity
from nvmeof.host.options import ConnectKeywords, ConnectOptions

from .test_queue import options


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"traddr": ""}, "address"),
        ({"trsvcid": 0}, "port must be between 1 and 65535"),
        ({"trsvcid": 65536}, "port"),
        ({"nr_io_queues": 0}, "number of I/O queues must be between 1"),
        ({"queue_size": 1}, "queue size must be between 2"),
        ({"queue_size": 4097}, "queue size"),
        ({"keep_alive_tmo": -1}, "keep-alive"),
        ({"io_timeout": 0}, "io_timeout must be more than 0"),
        ({"admin_timeout": float("nan")}, "admin_timeout"),
        ({"tos": 256}, "type of service"),
    ],
)
def test_refused_values(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        options(**change)


def test_given_options_and_changes() -> None:
    assert "queue_size" not in options().given()
    assert {"queue_size", "tos"} <= options(queue_size=8, tos=4).given()
    changed = options(queue_size=8).with_changes(queue_size=9)
    assert changed.queue_size == 9


def test_the_keywords_of_connect_are_the_options() -> None:
    named = {"traddr", "trsvcid", "transport", "subnqn", "hostnqn", "hostid"}
    assert {each.name for each in fields(ConnectOptions)} == named | set(ConnectKeywords.__annotations__)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(identity, "SYSTEM_DIRECTORY", tmp_path / "etc")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_an_identity_is_made_once_and_kept(home: Path) -> None:
    first = host_identity()
    assert first == host_identity()
    assert first[0] == f"nqn.2014-08.org.nvmexpress:uuid:{first[1]}"
    assert (home / "config/nvmeof/hostnqn").read_text().strip() == first[0]


def test_the_systems_identity_comes_first(home: Path) -> None:
    host_identity()
    (home / "etc").mkdir()
    (home / "etc/hostnqn").write_text("nqn.2026-01.org.example:system\n")
    (home / "etc/hostid").write_text("8d2dd4ff-6cf3-4b6e-a8ab-6b33dbef0d05\n")
    assert host_identity() == ("nqn.2026-01.org.example:system", uuid.UUID("8d2dd4ff-6cf3-4b6e-a8ab-6b33dbef0d05"))


def test_of_a_given_name_the_identifier_is_derived(home: Path) -> None:
    value = uuid.UUID(int=5)
    assert host_identity(f"nqn.2014-08.org.nvmexpress:uuid:{value}")[1] == value
    one, two = host_identity("nqn.2026-01.org.example:a"), host_identity("nqn.2026-01.org.example:b")
    assert one == host_identity("nqn.2026-01.org.example:a")
    assert one[1] != two[1]
    assert host_identity("nqn.2026-01.org.example:a", str(value))[1] == value


def test_malformed_identities(home: Path) -> None:
    with pytest.raises(ConfigurationError, match="host NQN"):
        host_identity("not a name")
    with pytest.raises(ConfigurationError, match="host identifier is no UUID"):
        host_identity(hostid="seven")
    (home / "etc").mkdir()
    (home / "etc/hostnqn").write_text("nonsense\n")
    with pytest.raises(ConfigurationError, match="etc/hostnqn"):
        host_identity()


def test_an_identity_that_cannot_be_kept(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / "config").write_text("a file, not a directory")
    nqn, value = host_identity()
    assert nqn.endswith(str(value))
    assert "for this time only" in caplog.text
