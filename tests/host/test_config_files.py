"""discovery.conf and config.json: files are read as they were written, and errors name the line."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.host.config_files import files
from nvmeof.host.config_files.config_json import (
    ConfigFile,
    HostEntry,
    PortEntry,
    SubsystemEntry,
    format_config,
    kernel_connections,
    line_of,
    parse_config,
    read_config,
)
from nvmeof.host.config_files.discovery_conf import (
    DiscoveryLine,
    add_to_discovery_conf,
    format_discovery_conf,
    parse_discovery_conf,
)
from nvmeof.host.config_files.fabrics_options import FABRICS_OPTIONS, PORT_OPTIONS, Kind
from nvmeof.host.config_files.files import read_text, write_text

HOSTNQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
SUBNQN = "nqn.2026-01.org.example:disk"
words = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="="), min_size=1, max_size=20)
values: dict[Kind, st.SearchStrategy[str | int | bool]] = {
    Kind.TEXT: words,
    Kind.NUMBER: st.integers(-1, 1 << 32),
    Kind.FLAG: st.just(True),
}
lines = st.fixed_dictionaries(
    {"traddr": words},
    optional={option.name: values[option.kind] for option in FABRICS_OPTIONS if option.name != "traddr"},
).map(DiscoveryLine)


@given(st.lists(lines, max_size=4))
def test_discovery_conf_round_trip(written: list[DiscoveryLine]) -> None:
    assert parse_discovery_conf(format_discovery_conf(written)) == written


@given(st.text(max_size=80))
def test_any_discovery_conf_is_read_or_refused_with_its_line(text: str) -> None:
    try:
        parse_discovery_conf(text)
    except ConfigurationError as error:
        assert str(error).startswith("discovery.conf, line ")
        assert "\n" not in str(error)


def test_lines_as_nvme_cli_has_them() -> None:
    text = "# remark\n\n-t tcp -a 192.0.2.1 -s 8009 -gG -i4\n  --transport=tcp --traddr fe80::1%eth0 -l -1 --tos=0x10\n"
    first, second = parse_discovery_conf(text)
    assert first.options == {
        "transport": "tcp", "traddr": "192.0.2.1", "trsvcid": "8009", "hdr_digest": True, "data_digest": True,
        "nr_io_queues": 4,
    }  # fmt: skip
    assert second.options == {"transport": "tcp", "traddr": "fe80::1%eth0", "ctrl_loss_tmo": -1, "tos": 16}
    assert (first.line, second.line) == (3, 4)
    assert str(second) == "--transport=tcp --traddr=fe80::1%eth0 --ctrl-loss-tmo=-1 --tos=16"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("-t tcp", "no address: give one with --traddr"),
        ("-a 192.0.2.1 --frob 3", "there is no option --frob"),
        ("-a 192.0.2.1 -Z", "there is no option -Z"),
        ("-a", "-a needs a value behind it"),
        ("-a 192.0.2.1 -k often", "--keep-alive-tmo takes a whole number, not 'often'"),
        ("-a 192.0.2.1 --hdr-digest=1", "--hdr-digest takes no value"),
        ("192.0.2.1", "'192.0.2.1' is no option: options begin with - or --"),
    ],
)
def test_wrong_lines(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_discovery_conf(f"# first\n{text}\n", "/etc/nvme/discovery.conf")
    assert str(caught.value) == f"/etc/nvme/discovery.conf, line 2: {sentence}"


@pytest.mark.parametrize("value", ["", "a b", "a=b", "a\n-t"])
def test_lines_that_nvme_cli_cannot_read_are_not_written(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be in discovery\.conf"):
        format_discovery_conf([DiscoveryLine({"traddr": value})])


def test_adding_a_line_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "nvme" / "discovery.conf"
    assert add_to_discovery_conf(path, DiscoveryLine({"transport": "tcp", "traddr": "192.0.2.1"}))
    path.write_text("# ours\n-t tcp -a 192.0.2.1")
    assert not add_to_discovery_conf(path, DiscoveryLine({"transport": "tcp", "traddr": "192.0.2.1"}))
    assert add_to_discovery_conf(path, DiscoveryLine({"transport": "tcp", "traddr": "192.0.2.2", "persistent": True}))
    assert path.read_text() == "# ours\n-t tcp -a 192.0.2.1\n--transport=tcp --traddr=192.0.2.2 --persistent\n"


# -- config.json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
nqns = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)
texts = st.none() | st.text(max_size=12)
kinds = {option.name: option.kind for option in FABRICS_OPTIONS}


def unknown(*known: str) -> st.SearchStrategy[dict[str, Any]]:
    keys = st.text(max_size=6).map(lambda key: f"x{key}") | st.sampled_from(["dhchap_key", "tls_key"])
    return st.dictionaries(keys, json_values, max_size=2)


ports = st.builds(
    PortEntry,
    st.text(max_size=5),
    texts,
    texts,
    texts,
    texts,
    st.fixed_dictionaries(
        {},
        optional={
            name: st.booleans() if kinds[name] is Kind.FLAG else st.integers(-1, 1 << 31)
            for name in sorted(PORT_OPTIONS)
        },
    ),
    unknown(),
)
subsystems = st.builds(SubsystemEntry, nqns, st.lists(ports, max_size=2), unknown())
hosts = st.builds(HostEntry, nqns, texts, st.none() | st.booleans(), st.lists(subsystems, max_size=2), unknown())
configs = st.builds(ConfigFile, st.lists(hosts, max_size=2), st.none() | unknown())


@given(configs)
def test_config_round_trip(config: ConfigFile) -> None:
    assert parse_config(format_config(config)) == config


@given(json_values)
def test_any_json_is_read_or_refused_with_its_line(value: Any) -> None:
    try:
        again = parse_config(json.dumps(value, indent=1))
    except ConfigurationError as error:
        assert str(error).startswith("config.json, line ")
        assert "\n" not in str(error)
    else:
        assert again.as_json() in (value, {**value, "hosts": []} if isinstance(value, dict) else value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_config(text)
    except ConfigurationError as error:
        assert "\n" not in str(error)


FILE = f"""[
  {{
    "hostnqn": "{HOSTNQN}",
    "hostid": "11111111-2222-3333-4444-555555555555",
    "hostsymname": "ours",
    "subsystems": [
      {{
        "nqn": "{SUBNQN}",
        "application": "backup",
        "ports": [
          {{
            "transport": "tcp",
            "traddr": "192.0.2.1",
            "trsvcid": "4420",
            "dhchap_key": "none",
            "nr_io_queues": 4,
            "hdr_digest": true
          }}
        ]
      }}
    ]
  }}
]
"""


def test_the_output_of_libnvme() -> None:
    config = parse_config(FILE)
    (host,) = config.hosts
    (subsystem,) = host.subsystems
    (port,) = subsystem.ports
    assert (host.hostnqn, subsystem.nqn, port.traddr, port.trsvcid) == (HOSTNQN, SUBNQN, "192.0.2.1", "4420")
    assert port.options == {"nr_io_queues": 4, "hdr_digest": True}
    assert (host.other, subsystem.other, port.other) == (
        {"hostsymname": "ours"}, {"application": "backup"}, {"dhchap_key": "none"},
    )  # fmt: skip
    assert json.loads(format_config(config)) == json.loads(FILE)


def test_the_form_with_hosts_in_an_object() -> None:
    config = parse_config('{"version": 2, "hosts": ' + FILE + "}")
    assert config.around == {"version": 2}
    assert parse_config(format_config(config)) == config


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ('"nr_io_queues": 4', '"nr_io_queues": "4"', 16, 'nr_io_queues must be a whole number, not "4"'),
        ('"nr_io_queues": 4', '"nr_io_queues": true', 16, "nr_io_queues must be a whole number, not true"),
        ('"hdr_digest": true', '"hdr_digest": 1', 17, "hdr_digest must be true or false, not 1"),
        ('"transport": "tcp",', "", 11, "a port without its transport"),
        (f'"nqn": "{SUBNQN}"', '"nqn": ""', 8, "nqn is empty"),
        ('"traddr": "192.0.2.1"', '"traddr": null', 13, "traddr must be a text, not null"),
        ('"trsvcid": "4420",', '"trsvcid": "4420"', 15, "not JSON: Expecting ',' delimiter, at column 13"),
        (f'"hostnqn": "{HOSTNQN}",', "", 2, "a host without its hostnqn"),
    ],
)
def test_errors_of_wrong_files_name_the_line(old: str, new: str, line: int, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(FILE.replace(old, new), "/etc/nvme/config.json")
    assert str(caught.value) == f"/etc/nvme/config.json, line {line}: {sentence}"


@pytest.mark.parametrize("text", ["3", '"text"', "null"])
def test_a_file_that_is_no_list(text: str) -> None:
    with pytest.raises(ConfigurationError, match="line 1: the file must be a list"):
        parse_config(text)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        parse_config("[" * 200_000)


def test_lines_are_found_behind_nested_values() -> None:
    text = '{"a": [1,\n{"b": "x,]}"}, [\n2]],\n"c":\n {"d": 1}}'
    assert [line_of(text, place) for place in [(), ("a", 1, "b"), ("a", 2, 0), ("c",), ("c", "d")]] == [1, 2, 3, 5, 5]


def test_setting_a_port() -> None:
    config = parse_config(FILE)
    same = PortEntry("tcp", "192.0.2.1", "4420")
    assert not config.set_port(HOSTNQN, None, SUBNQN, same)
    same.options = {"queue_size": 64, "nr_io_queues": 2}
    assert config.set_port(HOSTNQN, None, SUBNQN, same)
    (port,) = config.hosts[0].subsystems[0].ports
    assert port.options == {"nr_io_queues": 2, "hdr_digest": True, "queue_size": 64}
    assert port.other == {"dhchap_key": "none"}
    assert config.set_port(HOSTNQN, None, SUBNQN, PortEntry("tcp", "192.0.2.2", "4420"))
    assert config.set_port(HOSTNQN, None, SUBNQN + "2", PortEntry("tcp", "192.0.2.2", "4420"))
    assert config.set_port("nqn.other", None, SUBNQN, PortEntry("tcp", "192.0.2.2", "4420"))
    assert [(host.hostnqn, [len(each.ports) for each in host.subsystems]) for host in config.hosts] == [
        (HOSTNQN, [2, 1]),
        ("nqn.other", [1]),
    ]


# -- files


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "new" / "config.json", tmp_path / "link.json"
    write_text(path, "[]")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    link.symlink_to(path)
    write_text(link, FILE)
    assert link.is_symlink()
    assert path.read_text() == FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in path.parent.iterdir()] == ["config.json"]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file or directory"):
        read_config(tmp_path / "none.json")
    with pytest.raises(ConfigurationError, match="cannot be written: "):
        write_text(tmp_path, "[]")
    assert list(tmp_path.iterdir()) == []
    bad = tmp_path / "config.json"
    bad.write_bytes(b"[\n\xff]")
    with pytest.raises(ConfigurationError, match="line 2: byte 0xff is not UTF-8 text"):
        read_text(bad)


def test_the_system_file_goes_before_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, own = tmp_path / "etc", tmp_path / "config" / "nvmeof"
    monkeypatch.setattr(files, "SYSTEM_DIRECTORY", system)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert files.find("config.json") is None
    assert files.own_file("config.json") == own / "config.json"
    write_text(own / "config.json", "[]")
    assert files.find("config.json") == own / "config.json"
    write_text(system / "config.json", "[]")
    assert files.own_file("config.json") == system / "config.json"


def test_the_connections_of_the_kernel(tmp_path: Path) -> None:
    def controller(name: str, **attributes: str) -> None:
        (tmp_path / name).mkdir()
        for key, value in attributes.items():
            (tmp_path / name / key).write_text(value + "\n")

    ours = {"hostnqn": HOSTNQN, "hostid": "11111111-2222-3333-4444-555555555555"}
    controller("nvme0", transport="pcie", address="0000:00:1f.0", subsysnqn="nqn.local")
    controller("nvme1", transport="tcp", address="traddr=192.0.2.1,trsvcid=8009", **ours,
               subsysnqn="nqn.2014-08.org.nvmexpress.discovery")  # fmt: skip
    controller("nvme10", transport="tcp", address="traddr=192.0.2.3,trsvcid=4420", subsysnqn=SUBNQN, **ours)
    controller("nvme2", transport="tcp", subsysnqn=SUBNQN, **ours,
               address="traddr=192.0.2.1,trsvcid=4420,host_iface=eth0,src_addr=192.0.2.9")  # fmt: skip
    assert kernel_connections(tmp_path).as_json() == [
        {
            **ours,
            "subsystems": [
                {
                    "nqn": SUBNQN,
                    "ports": [
                        {"transport": "tcp", "traddr": "192.0.2.1", "trsvcid": "4420", "host_iface": "eth0"},
                        {"transport": "tcp", "traddr": "192.0.2.3", "trsvcid": "4420"},
                    ],
                }
            ],
        }
    ]
    assert kernel_connections(tmp_path / "none") == ConfigFile()
