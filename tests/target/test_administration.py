"""Administration: additions can be removed, hosts see both, and the state can be saved and started again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nvmeof.errors import ConfigurationError, LocalProtocolError, NvmeStatusError, TransportError
from nvmeof.host.client import connect, discover
from nvmeof.spec.enums import AnaState, LogPageId
from nvmeof.spec.log_pages import parse_ana_log
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.server import Target
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig
from nvmeof.target.subsystem.hosts import Host, Hosts
from tests.conformance.rawhost import HOSTNQN, RawHost, admin, make_sqe, running

OTHER = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"
SECOND = "nqn.2026-01.org.example:second"
PORT = PortConfig(transport="tcp", host="127.0.0.1", port=0)


@pytest.fixture(autouse=True)
def left_open():
    yield
    RawHost.close_all()


def without_ports_of_chance(told: dict[str, Any]) -> str:
    for port in told["ports"]:
        del port["port"], port["listeners"]
    return json.dumps(told)


async def test_every_verb_has_its_opposite():
    """After each pair the target is what it was before."""
    async with running("tcp", allowed_hosts=[HOSTNQN]) as target:
        administration = target.administration
        before = json.dumps(administration.describe())

        async def same_again() -> None:
            assert json.dumps(administration.describe()) == before

        await administration.add_subsystem(
            SubsystemConfig(nqn=SECOND, namespaces=(NamespaceConfig(backend=Ramdisk("1M")),))
        )
        assert [each["nqn"] for each in administration.describe()["subsystems"]][1] == SECOND
        await administration.remove_subsystem(SECOND)
        await same_again()
        nsid = await administration.add_namespace(Ramdisk("1M"))
        await administration.remove_namespace(nsid)
        await same_again()
        portid = await administration.add_port(PORT)
        await administration.remove_port(portid)
        await same_again()
        administration.add_host(OTHER)
        administration.remove_host(OTHER)
        await same_again()
        administration.allow_any_host()
        administration.allow_any_host(False)
        await same_again()
        administration.move_namespace(1, 3)
        administration.move_namespace(1, 1)
        await same_again()


async def test_hosts_notice_changes():
    async with running("tcp") as target:
        administration = target.administration
        first = str(target.address)
        portid = await administration.add_port(PORT)
        second = target.ports[portid].listeners[0].address
        await administration.add_subsystem(
            SubsystemConfig(nqn=SECOND, namespaces=(NamespaceConfig(backend=Ramdisk("1M")),))
        )
        entries = await discover(second.host, second.port, transport="tcp")
        assert {each.subnqn for each in entries} >= {target.subnqn, SECOND}
        here = await admin(target)
        there = await RawHost.open(target, address=second)
        await there.connect()
        idle = await RawHost.open(target, address=second)
        other = await RawHost.open(target)
        await other.connect(subnqn=SECOND)
        await administration.remove_subsystem(SECOND)
        await other.ended()
        await administration.remove_port(portid)
        await there.ended()
        await idle.ended()
        with pytest.raises(TransportError):
            await RawHost.open(target, address=second)
        assert await here.get_property(0x1C) == 1 and str(target.address) == first
        administration.allow_any_host(False)
        await here.ended()
        administration.add_host(HOSTNQN)
        await admin(target)


async def test_errors_name_the_fault():
    async with running("tcp") as target:
        administration = target.administration
        before = json.dumps(administration.describe())
        refused = [
            (administration.add_host, (OTHER,), "any host"),
            (administration.remove_host, (OTHER,), "was not added"),
            (administration.move_namespace, (9, 1), "no namespace 9"),
            (administration.resize_namespace, (9, 1), "no namespace 9"),
        ]
        for verb, words, message in refused:
            with pytest.raises(ConfigurationError, match=message):
                verb(*words)
        with pytest.raises(ConfigurationError, match="no port 5"):
            administration.set_ana_state(AnaState.INACCESSIBLE, portid=5)
        with pytest.raises(ConfigurationError, match="1 to 32"):
            administration.set_ana_state(AnaState.INACCESSIBLE, 40)
        with pytest.raises(ConfigurationError, match="ANATT"):
            await administration.change_ana_state(AnaState.OPTIMIZED, seconds=11)
        awaited = [
            (administration.remove_path("192.0.2.1"), "not announced"),
            (administration.add_path("192.0.2.1"), "needs a port of the transport mptcp"),
            (administration.unlink_subsystem(SECOND, 1), "no subsystem"),
            (administration.unlink_subsystem(target.subnqn, 4), "no port 4"),
            (administration.add_port(PortConfig(transport="tcp", host="127.0.0.1", port=0, portid=1)), "port 1 exists"),
            (
                administration.add_port(PortConfig(transport="tcp", host="127.0.0.1", port=0, paths=("192.0.2.1",))),
                "needs the transport mptcp",
            ),
            (administration.remove_port(9), "no port 9"),
            (administration.remove_subsystem(SECOND), "no subsystem"),
            (administration.remove_namespace(9), "no namespace 9"),
            (administration.add_subsystem(SubsystemConfig(nqn=target.subnqn)), "exists already"),
            (administration.add_port(PortConfig(transport="tcp", host="127.0.0.1", port=target.address.port)), "twice"),
        ]
        for coroutine, message in awaited:
            with pytest.raises(ConfigurationError, match=message):
                await coroutine
        assert json.dumps(administration.describe()) == before
    with pytest.raises(LocalProtocolError):
        target.administration.set_ana_state(AnaState.INACCESSIBLE)


async def test_a_saved_target_starts_unchanged():
    zoned = NamespaceConfig(backend=Ramdisk("4M"), zoned=ZoneGeometry(zone_bytes=1 << 20), nsid=7)
    async with running("tcp", namespaces=[Ramdisk("1M"), zoned], pool=RamdiskPool("8M")) as target:
        administration = target.administration
        await administration.add_port(PORT)
        await administration.add_namespace(NamespaceConfig(backend=Ramdisk("2M"), read_only=True))
        administration.move_namespace(1, 4)
        administration.set_ana_state(AnaState.NON_OPTIMIZED, 4, portid=2)
        administration.allow_any_host(False)
        administration.add_host(OTHER)
        told, saved = administration.describe(), json.loads(json.dumps(administration.save()))
        identity = {nsid: each.uuid for nsid, each in target.subsystems[target.subnqn].namespaces.items()}
    async with Target.from_document(saved) as again:
        assert without_ports_of_chance(again.administration.describe()) == without_ports_of_chance(told)
        assert {nsid: each.uuid for nsid, each in again.subsystems[again.subnqn].namespaces.items()} == identity
        assert again.administration.save() == saved


async def test_a_subsystem_that_cannot_be_opened_leaves_nothing_behind(tmp_path):
    async with running("tcp") as target:
        good = Ramdisk("1M")
        config = SubsystemConfig(
            nqn=SECOND,
            namespaces=(NamespaceConfig(backend=good), NamespaceConfig(backend=FileBackend(tmp_path / "none"))),
        )
        with pytest.raises(ConfigurationError, match="does not exist"):
            await target.administration.add_subsystem(config)
        assert list(target.subsystems) == [target.subnqn] and not any(
            good in each.backends for each in target._served.values()
        )


# ANA over two ports


async def test_paths_on_the_wire():
    """Raw hosts on two ports: statuses, the event, and the log."""
    async with running("tcp", listen=["127.0.0.1:0", "127.0.0.1:0"]) as target:
        paths = {}
        for portid, port in target.ports.items():
            address = port.listeners[0].address
            first = await RawHost.open(target, address=address)
            cntlid = await first.connect()
            await first.set_property(0x14, 0x460061)
            queue = await RawHost.open(target, address=address)
            await queue.connect(qid=1, cntlid=cntlid)
            paths[portid] = (first, queue)
        administration = target.administration
        for state, status in ((2, 0), (3, 0x302), (15, 0x303), (1, 0), (4, 0x301)):
            administration.set_ana_state(AnaState(state), portid=2)
            assert (await paths[1][1].read(0, 1)).status == 0
            assert (await paths[2][1].read(0, 1)).status == status
            page = (await paths[2][0].call(make_sqe(3, 0x02, length=56, cdw10=0x0C | 13 << 16))).data
            assert page[16 + 16] == state and int.from_bytes(page[:8], "little") > 0
        administration.set_ana_state(AnaState.INACCESSIBLE, portid=1)
        assert (await paths[1][1].read(0, 1)).status == 0x302


async def test_our_host_over_two_ports():
    async with running("tcp", listen=["127.0.0.1:0", "127.0.0.1:0"]) as target:
        one, two = (port.listeners[0].address for port in target.ports.values())
        async with (
            await connect(one.host, one.port, subnqn=target.subnqn, transport="tcp") as first,
            await connect(two.host, two.port, subnqn=target.subnqn, transport="tcp") as second,
        ):
            await first.namespace(1).write(0, bytes(512) + b"\1" * 512)
            target.administration.set_ana_state(AnaState.INACCESSIBLE, portid=1)
            with pytest.raises(NvmeStatusError) as refused:
                await first.namespace(1).read(0, 2)
            assert refused.value.status == 0x302 and not refused.value.dnr
            assert bytes(await second.namespace(1).read(0, 2))[512:] == b"\1" * 512
            _, groups = parse_ana_log(await first.get_log(LogPageId.ANA, 4096, nsid=0))
            assert [(each.grpid, each.state, each.nsids) for each in groups] == [(1, 3, (1,))]
            await target.administration.change_ana_state(AnaState.OPTIMIZED, portid=1, seconds=0)
            assert bytes(await first.namespace(1).read(0, 2))[512:] == b"\1" * 512


def test_hosts():
    hosts = Hosts(None)
    assert hosts.allows("anything") and hosts.names is None and not hosts.by_nqn
    hosts = Hosts([OTHER])
    assert hosts.allows(OTHER) and not hosts.allows(HOSTNQN) and hosts.names == {OTHER}
    with pytest.raises(ConfigurationError, match="already"):
        hosts.add(Host(OTHER))
    assert hosts.remove(OTHER) == Host(OTHER) and hosts.names == frozenset()
