"""Connect options and the host's identity."""

from __future__ import annotations

import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.host import identity
from nvmeof.host.identity import host_identity
from nvmeof.host.options import ConnectKeywords, ConnectOptions, distinct_paths

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
        ({"io_timeout": 0}, "io_timeout must be a number of seconds, more than 0, not 0"),
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


# -- paths -------------------------------------------------------------------------------------------------------------

PATH_FIELDS: dict[str, list[Any]] = {
    "transport": ["tcp", "mptcp"],
    "traddr": ["192.0.2.1", "192.0.2.2", "2001:db8::1", "target.example"],
    "trsvcid": [4420, 8009],
    "subnqn": ["nqn.2026-01.org.example:a", "nqn.2026-01.org.example:b"],
    "hostnqn": ["nqn.2026-01.org.example:h", "nqn.2026-01.org.example:i"],
    "hostid": [uuid.UUID(int=1), uuid.UUID(int=2)],
    "host_traddr": [None, "192.0.2.9", "192.0.2.10"],
    "host_iface": [None, "eth0", "eth1"],
}
SPELLINGS = {
    "2001:db8::1": ["2001:DB8::1", "2001:db8:0:0:0:0:0:1", "[2001:db8::1]"],
    "192.0.2.1": ["::ffff:192.0.2.1"],
    "192.0.2.9": ["::ffff:c000:209"],
    "target.example": ["Target.EXAMPLE", "target.example."],
}
path = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in PATH_FIELDS.items()})
other_options = st.fixed_dictionaries(
    {"nr_io_queues": st.integers(1, 8), "queue_size": st.integers(2, 256), "hdr_digest": st.booleans()}
)


@given(path, path, other_options, other_options, st.data())
def test_a_path_is_identified_by_its_fields_alone(
    first: dict[str, Any], second: dict[str, Any], some: dict[str, Any], more: dict[str, Any], data: st.DataObject
) -> None:
    def spelled(value: Any) -> Any:
        return data.draw(st.sampled_from([value, *SPELLINGS.get(value, ())])) if isinstance(value, str) else value

    one = options(**first, **some)
    same = options(**{name: spelled(value) for name, value in first.items()}, **more)
    other = options(**second, **some)
    assert one.same_path(one)
    assert one.same_path(same)
    assert same.same_path(one)
    assert one.same_path(other) == other.same_path(one) == (first == second)


@pytest.mark.parametrize("name", PATH_FIELDS)
def test_each_field_makes_another_path(name: str) -> None:
    base = {field: values[0] for field, values in PATH_FIELDS.items()}
    for value in PATH_FIELDS[name][1:]:
        assert not options(**base).same_path(options(**{**base, name: value}))


def test_two_connects_that_differ_only_in_transport_are_two_paths() -> None:
    tcp = options(traddr="192.0.2.1", transport="tcp")
    mptcp = tcp.with_changes(transport="mptcp")
    assert not tcp.same_path(mptcp)
    assert distinct_paths([mptcp, tcp, mptcp, tcp]) == [mptcp, tcp]


@given(st.lists(path))
def test_distinct_paths_keep_the_first_of_each(places: list[dict[str, Any]]) -> None:
    candidates = [options(**place, queue_size=index + 2) for index, place in enumerate(places)]
    found = distinct_paths(candidates)
    firsts = [each for index, each in enumerate(candidates) if places.index(places[index]) == index]
    assert found == firsts


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(identity, "SYSTEM_DIRECTORY", tmp_path / "etc")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_an_identity_is_made_once_and_stored(home: Path) -> None:
    first = host_identity()
    assert first == host_identity()
    assert first[0] == f"nqn.2014-08.org.nvmexpress:uuid:{first[1]}"
    assert (home / "config/nvmeof/hostnqn").read_text().strip() == first[0]


def test_of_two_simultaneous_identities_one_is_stored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = uuid.uuid4, []

    def late() -> uuid.UUID:
        made.append(make())
        if len(made) == 1:
            made.append(uuid.UUID(host_identity()[0].rpartition(":")[2]))  # another process at the same time
        return made[0]

    monkeypatch.setattr(uuid, "uuid4", late)
    value = uuid.UUID(int=7)
    nqn, hostid = host_identity(hostid=str(value))
    assert hostid == value, "what was given stays"
    assert (home / "config/nvmeof/hostnqn").read_text().strip() == nqn == host_identity()[0]
    assert sorted(each.name for each in (home / "config/nvmeof").iterdir()) == ["hostid", "hostnqn"]


def test_an_empty_file_is_no_identity(home: Path) -> None:
    (home / "config/nvmeof").mkdir(parents=True)
    (home / "config/nvmeof/hostnqn").write_text("\n")
    nqn, hostid = host_identity()
    assert nqn == f"nqn.2014-08.org.nvmexpress:uuid:{hostid}"
    assert host_identity() == (nqn, hostid)


def test_the_systems_identity_comes_first(home: Path) -> None:
    host_identity()
    (home / "etc").mkdir()
    (home / "etc/hostnqn").write_text("nqn.2026-01.org.example:system\n")
    (home / "etc/hostid").write_text("8d2dd4ff-6cf3-4b6e-a8ab-6b33dbef0d05\n")
    assert host_identity() == ("nqn.2026-01.org.example:system", uuid.UUID("8d2dd4ff-6cf3-4b6e-a8ab-6b33dbef0d05"))


def test_the_identifier_is_derived_from_a_given_name(home: Path) -> None:
    value = uuid.UUID(int=5)
    assert host_identity(f"nqn.2014-08.org.nvmexpress:uuid:{value}")[1] == value
    one, two = host_identity("nqn.2026-01.org.example:a"), host_identity("nqn.2026-01.org.example:b")
    assert one == host_identity("nqn.2026-01.org.example:a")
    assert one[1] != two[1]
    assert host_identity("nqn.2026-01.org.example:a", str(value))[1] == value


def test_malformed_identities(home: Path) -> None:
    with pytest.raises(ConfigurationError, match="host NQN"):
        host_identity("not a\nname")
    with pytest.raises(ConfigurationError, match="host identifier is no UUID"):
        host_identity(hostid="seven")
    (home / "etc").mkdir()
    (home / "etc/hostnqn").write_text("n" * 224)
    with pytest.raises(ConfigurationError, match="etc/hostnqn"):
        host_identity()


@pytest.mark.parametrize(
    "name", ["testhost", "host with blanks", "nqn.2014-08.org.nvmexpress:uuid:" + "1" * 32, "h" * 223]
)
def test_names_in_the_files_of_nvme_cli_are_taken_as_they_are(home: Path, name: str) -> None:
    (home / "etc").mkdir()
    (home / "etc/hostnqn").write_text(f"{name}\n# a second line, which libnvme does not read either\n")
    assert host_identity()[0] == name
    assert host_identity(name)[0] == name


def test_an_identity_that_cannot_be_stored(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / "config").write_text("a file, not a directory")
    nqn, value = host_identity()
    assert nqn.endswith(str(value))
    assert "for this time only" in caplog.text
