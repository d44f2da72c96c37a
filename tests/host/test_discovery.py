"""Reading Discovery logs, valid and invalid ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import NvmeofError
from nvmeof.host.discovery import DiscoveryEntry, read_discovery_log
from nvmeof.spec.discovery import DISCOVERY_LOG_HEADER, build_discovery_entry, build_discovery_log
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.wire import build

from .conftest import Connect
from .fake_device import SUBNQN, FakeDevice


def entries(count: int) -> list[bytes]:
    return [
        build_discovery_entry(
            trtype=4 if index % 2 else 3,
            adrfam=1,
            subtype=2,
            trsvcid="4420 ",
            subnqn=f"{SUBNQN}{index}",
            traddr="192.0.2.1",
        )
        for index in range(count)
    ]


class Log:
    def __init__(self, *versions: bytes) -> None:
        self.versions = list(versions)
        self.reads: list[tuple[int, int]] = []

    async def __call__(self, length_bytes: int, offset: int) -> bytes:
        self.reads.append((length_bytes, offset))
        if offset == 0 and len(self.reads) > 1 and len(self.versions) > 1:
            self.versions.pop(0)
        return self.versions[0][offset : offset + length_bytes].ljust(length_bytes, b"\0")


async def test_all_entries() -> None:
    log = Log(build_discovery_log(3, entries(10)))
    found = await read_discovery_log(log)
    assert [entry.subnqn for entry in found] == [f"{SUBNQN}{index}" for index in range(10)]
    assert [entry.transport for entry in found[:2]] == ["tcp", "mptcp"]
    assert found[0].trsvcid == "4420"
    assert found[0].is_nvm
    assert found[0].as_dict()["family"] == "ipv4"
    assert log.reads == [(1024, 0), (4096, 1024), (4096, 5120), (2048, 9216), (1024, 0)]


async def test_an_empty_log() -> None:
    assert await read_discovery_log(Log(build_discovery_log(1, []))) == []


async def test_a_log_that_changes_is_read_again() -> None:
    found = await read_discovery_log(Log(build_discovery_log(1, entries(3)), build_discovery_log(2, entries(5))))
    assert len(found) == 5


async def test_a_log_that_changes_without_end() -> None:
    versions = [build_discovery_log(index, entries(1)) for index in range(100)]
    with pytest.raises(NvmeofError, match="changed 10 times"):
        await read_discovery_log(Log(*versions))


async def test_invalid_headers() -> None:
    with pytest.raises(NvmeofError, match="claims 18446744073709551615 entries"):
        await read_discovery_log(Log(build(DISCOVERY_LOG_HEADER, numrec=(1 << 64) - 1)))
    with pytest.raises(NvmeofError, match="record format 7"):
        await read_discovery_log(Log(build(DISCOVERY_LOG_HEADER, recfmt=7)))


def entry(**changes: object) -> DiscoveryEntry:
    base = {
        "trtype": 77, "adrfam": 99, "subtype": 2, "treq": 0, "portid": 1, "cntlid": 0xFFFF, "asqsz": 32,
        "trsvcid": "4420", "subnqn": SUBNQN, "traddr": "0.0.0.0", "eflags": 0, "sectype": 0,
    }  # fmt: skip
    return DiscoveryEntry(**{**base, **changes})  # type: ignore[arg-type]


def test_unknown_numbers_are_shown_as_such() -> None:
    assert (entry().transport, entry().family, entry().kind) == ("77", "99", "nvm")


@pytest.mark.parametrize(
    ("traddr", "asked", "where"),
    [
        ("0.0.0.0", "192.0.2.7", "192.0.2.7"),
        ("::", "2001:db8::1", "2001:db8::1"),
        ("", "192.0.2.7", "192.0.2.7"),
        ("192.0.2.8", "192.0.2.7", "192.0.2.8"),
        ("storage.example.org", "192.0.2.7", "storage.example.org"),
    ],
)
def test_a_wildcard_stands_for_the_address_that_was_asked(traddr: str, asked: str, where: str) -> None:
    found = entry(traddr=traddr).read_from(asked, "eth0")
    assert (found.traddr, found.address) == (traddr, where)
    assert found == entry(traddr=traddr), "where a log was read from makes no other entry"
    assert found.as_dict() == entry(traddr=traddr).as_dict()


def test_a_link_local_address_takes_the_interface_of_the_connection() -> None:
    for told in ("fe80::1", "fe80::1%there", "[fe80::1]"):
        assert entry(traddr=told).read_from("name", "eth0").address == "fe80::1%eth0"
    assert entry(traddr="fe80::1").read_from("192.0.2.1", "").address == "fe80::1"
    assert entry(traddr="2001:db8::1").read_from("fe80::1%eth0", "eth0").address == "2001:db8::1"


def test_ports_of_entries() -> None:
    assert entry(trsvcid="04420").port == 4420
    for wrong in ("", "nvme", "70000"):
        with pytest.raises(NvmeofError, match="has no port number"):
            _ = entry(trsvcid=wrong).port


async def test_the_interface_of_the_connection_reaches_the_entries(device: FakeDevice, connected: Connect) -> None:
    device.identify.update(cntrltype=2, oaes=0, ioccsz=0, ofcs=0)
    device.discovery_log = build_discovery_log(
        1, [build_discovery_entry(trtype=3, adrfam=2, subtype=2, trsvcid="1", subnqn=SUBNQN, traddr="fe80::7")]
    )
    options = {"subnqn": DISCOVERY_NQN, "discovery": True, "nr_io_queues": 0, "keep_alive_tmo": 0}
    controller = await connected(**options)
    assert [each.address for each in await controller.discovery_log()] == ["fe80::7"]
    device.peer_address = lambda queue: "fe80::1%eth3"  # type: ignore[method-assign]
    assert [each.address for each in await controller.discovery_log()] == ["fe80::7%eth3"]


async def test_a_discovery_controller(device: FakeDevice, connected: Connect) -> None:
    device.identify.update(cntrltype=2, oaes=0, ioccsz=0, ofcs=0)
    controller = await connected(subnqn=DISCOVERY_NQN, discovery=True, nr_io_queues=0, keep_alive_tmo=0)
    assert not controller.io_queues
    assert [each.subnqn for each in await controller.discovery_log()] == [SUBNQN]


@given(st.integers(0, 255), st.integers(0, 255))
def test_any_security_has_a_text(treq: int, sectype: int) -> None:
    text = entry(treq=treq, sectype=sectype).security
    assert text.startswith(("none", "tls 1.2", "tls 1.3")[sectype] if sectype < 3 else str(sectype))
    assert entry(treq=treq).requires_tls == (treq & 3 == 1) == text.endswith(", required")
