"""Configuration files in their three forms: their meaning, and the errors of wrong files."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import AnaState
from nvmeof.target.configuration.files import (
    FORMS,
    form_of,
    format_configuration,
    read_configuration,
    write_configuration,
)
from nvmeof.target.configuration.nvmetcli import from_nvmetcli, to_nvmetcli
from nvmeof.target.configuration.schema import schema
from nvmeof.target.document import from_document, to_document
from nvmeof.target.subsystem.config import Referral
from tests.target.test_document import everything

ROOT = Path(__file__).parents[3]
ONE, TWO = (f"nqn.2026-01.org.example:{name}" for name in ("one", "two"))
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
NVMET: dict[str, Any] = {
    "hosts": [{"nqn": HOST}],
    "ports": [
        {
            "addr": {
                "adrfam": "ipv4", "traddr": "192.0.2.1", "treq": "not specified", "trsvcid": "4420", "trtype": "tcp",
                "tsas": "none",
            },
            "ana_groups": [
                {"ana": {"state": "optimized"}, "grpid": 1}, {"ana": {"state": "inaccessible"}, "grpid": 2},
            ],
            "param": {"inline_data_size": "16384", "pi_enable": "0"},
            "portid": 1,
            "referrals": [
                {"name": "other", "addr": {"adrfam": "ipv4", "traddr": "192.0.2.9", "trsvcid": "8009", "trtype": "tcp"}}
            ],
            "subsystems": [ONE],
        },
        {"addr": {"trtype": "rdma", "traddr": "192.0.2.2", "trsvcid": "4420"}, "portid": 2},
    ],
    "subsystems": [
        {
            "allowed_hosts": [HOST],
            "attr": {
                "allow_any_host": "0", "cntlid_max": "65519", "cntlid_min": "10", "ieee_oui": "0x000000",
                "model": "Linux", "qid_max": "16", "serial": "5cdf0f6d3d0f9c9a", "version": "2.1",
            },
            "namespaces": [
                {
                    "ana_grpid": 2, "ana": {"grpid": "2"}, "enable": 1, "nsid": 3, "resv": {"enable": "0"},
                    "device": {
                        "path": "/srv/a, b.img", "nguid": "00000000-0000-0000-0000-000000000000",
                        "uuid": "6c616200-0000-4000-8000-000000000001",
                    },
                },
                {"enable": 0, "nsid": 4, "device": {"path": "/dev/null"}},
            ],
            "nqn": ONE,
            "passthru": [{"device": {"path": "/dev/nvme0"}, "clear_ids": 0}],
        },
        {"nqn": TWO, "attr": {"allow_any_host": "1"}, "allowed_hosts": [], "namespaces": []},
    ],
}  # fmt: skip
"""The output of nvmetcli's save on Linux 6.12 with reservations, with names and addresses of examples."""


def test_nvmetcli(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(NVMET))
    loaded = read_configuration(path)
    config = loaded.settings.config
    one, two = config.subsystems
    assert (one.nqn, one.serial, one.model, one.max_io_queues) == (ONE, "5cdf0f6d3d0f9c9a", "Linux", 16)
    assert (one.cntlid_min, one.cntlid_max, one.allowed_hosts) == (10, 65519, frozenset({HOST}))
    assert two.allowed_hosts is None and not two.namespaces
    (namespace,) = one.namespaces
    assert (namespace.nsid, namespace.anagrpid, namespace.nguid) == (3, 2, None)
    assert str(namespace.uuid) == "6c616200-0000-4000-8000-000000000001"
    assert namespace.backend.to_text().backend.value == "/srv/a, b.img"
    (port,) = config.ports
    assert (port.portid, port.transport, port.host, port.port) == (1, "tcp", "192.0.2.1", 4420)
    assert port.ana == ((2, AnaState.INACCESSIBLE),) and port.subsystems == frozenset({ONE})
    assert port.referrals == (Referral(traddr="192.0.2.9", name="other"),)
    assert one.incapsule_bytes == two.incapsule_bytes == 16384
    assert sorted(loaded.remarks) == [
        f"{ONE}: namespace 4 is left out: it is not enabled",
        f"{ONE}: passthru is left out: this target has no NVMe device to pass commands to",
        "port 2 is left out: its transport is rdma; tcp and mptcp are here",
    ]


def test_nvmetcli_and_back() -> None:
    """A file written for nvmetcli is read unchanged, and has every attribute of configfs."""
    document, _ = from_nvmetcli(NVMET)
    written, remarks = to_nvmetcli(to_document(from_document(document)))
    assert remarks == []
    again, _ = from_nvmetcli(json.loads(json.dumps(written)))
    assert to_document(from_document(again)) == to_document(from_document(document))
    assert written["hosts"] == [{"nqn": HOST}]
    theirs, ours = NVMET["ports"][0], written["ports"][0]
    assert ours["addr"] == {name: value for name, value in theirs["addr"].items() if name != "tsas"}
    assert ours["ana_groups"] == theirs["ana_groups"] and ours["subsystems"] == [ONE]
    assert ours["param"] == {"inline_data_size": "16384"}
    theirs = NVMET["subsystems"][0]["attr"]
    nothing_here = ("ieee_oui", "version", "cntlid_max")  # the last has its default
    attributes = {name: value for name, value in theirs.items() if name not in nothing_here}
    assert written["subsystems"][0]["attr"] == attributes
    assert written["subsystems"][0]["namespaces"][0]["device"]["path"] == "/srv/a, b.img"
    assert written["subsystems"][1]["attr"]["allow_any_host"] == "1"


def test_settings_that_nvmetcli_lacks() -> None:
    document = {
        "version": 1,
        "subsystems": [{"nqn": ONE, "admin_label": "x", "namespaces": [{"nsid": 1, "storage": "file:/x,shared"}]}],
        "ports": [{"portid": 1, "transport": "mptcp", "host": "192.0.2.1", "port": 4420, "paths": ["auto"]}],
    }
    written, remarks = to_nvmetcli(document)
    assert sorted(remarks) == [
        f"{ONE}, namespace 1: shared is left out: nvmetcli's file has no place for it",
        f"{ONE}: admin_label is left out: nvmetcli's file has no place for it",
        "port 1: paths is left out: nvmetcli's file has no place for it",
    ]
    assert written["ports"][0]["subsystems"] == [ONE]
    document["subsystems"][0]["namespaces"][0]["storage"] = "ramdisk:1M"  # type: ignore[index]
    with pytest.raises(ConfigurationError, match="ramdisk:1M: nvmetcli knows files and devices only"):
        to_nvmetcli(document)


def changed(place: tuple[str | int, ...], value: Any) -> Any:
    document = json.loads(json.dumps(NVMET))
    where = document
    for step in place[:-1]:
        where = where[step]
    where[place[-1]] = value
    return document


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("ports",), {}, "the document has the version None"),
        (("ports", 0), [], "ports[0] is an object"),
        (("ports", 0, "portid"), "x", "ports[0].portid is a number, not 'x'"),
        (("ports", 0, "addr"), {"trtype": "tcp"}, "ports[0].addr has no traddr: it must be given"),
        (("ports", 0, "ana_groups", 1, "ana", "state"), "up", "ports[0].ana_groups[1].ana.state is an ANA state"),
        (("ports", 0, "referrals"), "x", "ports[0].referrals is a list, not 'x'"),
        (("subsystems", 0, "attr", "cntlid_min"), "low", "subsystems[0].attr.cntlid_min is a number"),
        (("subsystems", 0, "nqn"), None, "subsystems[0] has no nqn"),
        (("subsystems", 0, "allowed_hosts"), [7], "an allowed host is an NQN, not 7"),
        (("subsystems", 0, "namespaces", 0, "device", "uuid"), "1", "device.uuid is a UUID, not '1'"),
        (("subsystems", 0, "namespaces", 0, "device"), {}, "subsystems[0].namespaces[0].device has no path"),
    ],
)
def test_nvmetcli_files_that_are_wrong(tmp_path: Path, place: Any, value: Any, words: str) -> None:
    path = tmp_path / "config.json"
    text = json.dumps(changed(place, value), indent=2)
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
        read_configuration(path)
    said = re.match(rf"{path}, line (\d+): ", str(caught.value))
    assert said, str(caught.value)
    if len(place) > 3:
        assert str(place[-1]) in text.splitlines()[int(said[1]) - 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 1\n[[subsystems]]\nnqn = 5\n", "line 3: subsystems[0].nqn is of the type str, not 5"),
        ("version = 1\n\n[[ports]]\nportid = 0\n", "line 3: ports[0]: a Port ID is 1 to 65535"),
        ("version = 1\ncolour = 1\n", "line 2: colour is no entry that is known here"),
        ("version = 1\n[[subsystems]]\nnqn = 'n'\n[[subsystems.namespaces]]\nstorage = 'disk'\n", "line 5: "),
        ("version = 2\n", "line 1: the document has the version 2"),
        ("version = 1\nversion = 1\n", "no TOML: Cannot overwrite a value (at line 2"),
        ("subsystems = [\n", "no TOML: "),
    ],
)
def test_toml_files_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "target.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(path)
    assert str(caught.value).startswith(str(path)) and words in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        read_configuration(tmp_path / "none.toml")
    for name, data, words in (
        ("blob.json", b"{\n\xff", "line 2: no UTF-8 text"),
        ("half.json", b'{"version": 1,\n', "line 2: no JSON"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("list.json", b"[]", "the document is a mapping"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigurationError, match=words):
            read_configuration(tmp_path / name)


@pytest.mark.parametrize("form", ["toml", "json"])
def test_everything_in_both_forms(tmp_path: Path, form: str) -> None:
    document = to_document(everything(tmp_path))
    path = tmp_path / f"target.{form}"
    assert write_configuration(path, document) == [] and form_of(path) == form
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_configuration(path).document == document


def test_forms() -> None:
    assert form_of(Path("/etc/nvmet/config.json")) == "nvmetcli" and form_of(Path("/x/config.json")) == "json"
    assert set(FORMS) == {"toml", "json", "nvmetcli"}
    text, _ = format_configuration({"version": 1, "subsystems": [], "ports": []}, "nvmetcli")
    assert json.loads(text) == {"hosts": [], "ports": [], "subsystems": []}


def test_a_file_is_written_as_a_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "target.json"
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        write_configuration(path, {"version": 1})
    assert list(tmp_path.iterdir()) == []


# -- the schema


def test_the_published_schema_is_the_code() -> None:
    published = json.loads((ROOT / "docs" / "target-config.schema.json").read_text())
    assert published == schema(), "python -m nvmeof.target.configuration.schema > docs/target-config.schema.json"


def test_the_schema_accepts_the_same_documents_as_the_code(tmp_path: Path) -> None:
    checker = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    checker.validate(to_document(everything(tmp_path)))
    checker.validate(from_nvmetcli(NVMET)[0])
    checker.validate({"version": 1})
    for wrong in (
        {"version": 2}, {"version": 1, "colour": 1}, {"version": 1, "subsystems": [{}]},
        {"version": 1, "subsystems": [{"nqn": "n", "namespaces": [{}]}]},
        {"version": 1, "ports": [{"ana": {"2": "up"}}]}, {"version": 1, "ports": [{"port": "4420"}]},
    ):  # fmt: skip
        assert list(checker.iter_errors(wrong)), wrong
        with pytest.raises(ConfigurationError):
            from_document(wrong)


def test_a_disabled_namespace_is_so_in_both_forms() -> None:
    namespace = {"nsid": 1, "storage": "file:/srv/a.img", "enabled": False}
    ours = {
        "version": 1,
        "subsystems": [{"nqn": "nqn.2026-01.org.example:one", "namespaces": [namespace]}],
        "ports": [],
    }
    assert from_document(ours).config.subsystems[0].namespaces[0].enabled is False
    text, remarks = format_configuration(ours, "nvmetcli")
    assert json.loads(text)["subsystems"][0]["namespaces"][0]["enable"] == 0 and remarks == []


@pytest.mark.parametrize(("treq", "policy"), [("required", "required"), ("not required", "allowed")])
def test_a_port_of_nvmetcli_with_tls(treq: str, policy: str) -> None:
    document = copy.deepcopy(NVMET)
    document["ports"][0]["addr"] |= {"treq": treq, "tsas": "tls1.3"}
    found, remarks = from_nvmetcli(document)
    assert found["ports"][0]["tls"] == policy
    assert any("keys are in no file of nvmetcli: give the subsystem tls_keys" in each for each in remarks)
    written, _ = to_nvmetcli(to_document(from_document(found)))
    assert written["ports"][0]["addr"]["treq"] == treq and written["ports"][0]["addr"]["tsas"] == "tls1.3"
