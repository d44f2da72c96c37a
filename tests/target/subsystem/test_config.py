import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import format_size, parse_size
from nvmeof.target.core.admission import AdmissionToken
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig, derive_serial
from nvmeof.target.subsystem.subsystem import Subsystem

NQN = "nqn.2026-01.org.example:disk"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512", 512), ("4k", 4096), ("256M", 256 << 20), ("1GiB", 1 << 30), ("2TB", 2 << 40), ("1.5G", 3 << 29)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "1X", "-1", "0", "1 2", "1.3", "1e3", "0xg", 0, -4])
def test_invalid_sizes(text):
    with pytest.raises(ConfigurationError):
        parse_size(text)


@given(st.integers(1, 1 << 60))
def test_sizes_round_trip(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    "options",
    [
        {"nqn": ""},
        {"nqn": "x" * 224},
        {"nqn": "a\nb"},
        {"nqn": NQN, "allowed_hosts": frozenset({"me\x1b[0m"})},
        {"nqn": NQN, "serial": "x" * 21},
        {"nqn": NQN, "model": "häuschen"},
        {"nqn": NQN, "max_queue_entries": 1},
        {"nqn": NQN, "max_queue_entries": 65537},
        {"nqn": NQN, "max_io_queues": 0},
        {"nqn": NQN, "max_transfer_bytes": 5000},
        {"nqn": NQN, "max_transfer_bytes": 4096},
        {"nqn": NQN, "incapsule_bytes": 100},
        {"nqn": NQN, "cntlid_min": 0},
        {"nqn": NQN, "cntlid_max": 0xFFF0},
        {"nqn": NQN, "cntlid_min": 9, "cntlid_max": 8},
        {"nqn": NQN, "max_async_events": 0},
        {"nqn": NQN, "max_namespaces": 0},
        {"nqn": NQN, "ready_timeout_seconds": 0.1},
        {"nqn": NQN, "any_keep_alive_seconds": -1},
        {"nqn": NQN, "command_quiesce_seconds": -1},
        {"nqn": NQN, "command_quiesce_seconds": 65.536},
    ],
)
def test_impossible_subsystems(options):
    with pytest.raises(ConfigurationError):
        SubsystemConfig(**options)


def test_other_invalid_values():
    disk = Ramdisk("1M")
    for wrong in ({"nsid": 0}, {"nguid": b"x"}, {"eui64": b"x"}):
        with pytest.raises(ConfigurationError):
            NamespaceConfig(backend=disk, **wrong)
    for wrong in ({"port": 65536}, {"advertise_port": -1}, {"host": "x" * 256}):
        with pytest.raises(ConfigurationError):
            PortConfig(**wrong)
    subsystem = SubsystemConfig(nqn=NQN)
    with pytest.raises(ConfigurationError, match="configured twice"):
        TargetConfig(subsystems=(subsystem, subsystem))
    metadata_store = MemoryStore()
    two = [SubsystemConfig(nqn=f"{NQN}{n}", metadata_store=metadata_store) for n in (1, 2)]
    with pytest.raises(ConfigurationError, match="cannot share a metadata store"):
        TargetConfig(subsystems=tuple(two))
    for label in ("x" * 257, "é" * 129, "two\nlines"):
        with pytest.raises(ConfigurationError, match="label"):
            SubsystemConfig(nqn=NQN, admin_label=label)
    with pytest.raises(ConfigurationError, match="staging"):
        TargetConfig(subsystems=(subsystem,), staging_bytes=1)


def test_serial_is_stable_and_can_be_given():
    assert SubsystemConfig(nqn=NQN).serial_number == derive_serial(NQN) == derive_serial(NQN)
    assert len(derive_serial(NQN)) == 20 and derive_serial(NQN) != derive_serial(NQN + "x")
    assert SubsystemConfig(nqn=NQN, serial="S1").serial_number == "S1"


def test_namespaces_of_a_subsystem():
    first = NamespaceConfig(backend=Ramdisk("1M"), nsid=5)
    subsystem = Subsystem(SubsystemConfig(nqn=NQN, namespaces=(first,), max_namespaces=6))
    second = subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nguid=b"n" * 16, eui64=b"e" * 8))
    assert second.nsid == 1 and second.nguid == b"n" * 16 and second.eui64 == b"e" * 8
    assert list(subsystem.namespaces) == [1, 5]
    admission_token = AdmissionToken()
    second.admission_tokens.add(admission_token)
    assert subsystem.remove_namespace(1) is second
    assert list(subsystem.namespaces) == [5] and not admission_token.valid
    for call in (
        lambda: subsystem.add_namespace(first),
        lambda: subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nsid=7)),
        lambda: subsystem.remove_namespace(1),
        lambda: subsystem.resize_namespace(1, 512),
    ):
        with pytest.raises(ConfigurationError):
            call()
