"""Administration under live hosts: their events, and removals that have ended when they return."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.host.client import discover
from nvmeof.spec.enums import DISCOVERY_NQN, AnaState
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig
from tests.conformance.rawhost import FLUSH, READ, RawHost, association, io_sqe, make_sqe, running, until
from tests.target.backend_tools import SlowFlush

FIRST = "nqn.2026-01.io.nvmeof:target"
SECOND = "nqn.2026-01.org.example:second"
PORT = PortConfig(transport="tcp", host="127.0.0.1", port=0)
SET_FEATURES, GET_LOG, ASYNC_EVENT = 0x09, 0x02, 0x0C
DISCOVERY_CHANGED, ANA_CHANGED = 0x70F002, 0x0C0302
ENABLE = 0x460001


@pytest.fixture(autouse=True)
def left_open():
    yield
    RawHost.close_all()


def second(backend: Ramdisk | None = None) -> SubsystemConfig:
    return SubsystemConfig(nqn=SECOND, namespaces=(NamespaceConfig(backend=backend or Ramdisk("1M")),))


async def listener(target: Target, subnqn: str, events: int, portid: int = 1) -> RawHost:
    """Return an admin queue that gets some events."""
    host = await RawHost.open(target, address=target.ports[portid].listeners[0].address)
    await host.connect(subnqn=subnqn, kato=0)
    assert (await host.set_property(0x14, ENABLE)).status == 0
    assert (await host.call(make_sqe(2, SET_FEATURES, cdw10=0x0B, cdw11=events))).status == 0
    return host


async def told(host: RawHost, log: int, change: Any) -> int:
    """Return the event that a host gets after a change; the host then reads the log page, as hosts do."""
    await host.send(host.capsule(make_sqe(7, ASYNC_EVENT)))
    result = change()
    if result is not None:
        await result
    dw0 = (await host.completion(7)).dw0
    assert (await host.call(make_sqe(8, GET_LOG, length=16, cdw10=log | 3 << 16))).status == 0
    return dw0


async def offered(target: Target, portid: int = 1) -> set[tuple[str, int]]:
    """Return the NVM subsystems that Discovery reports to a host, each with its Port ID."""
    where = target.ports[portid].listeners[0].address
    entries = await discover(where.host, where.port, transport="tcp")
    return {(entry.subnqn, entry.portid) for entry in entries if entry.subnqn != DISCOVERY_NQN}


async def test_a_discovery_host_gets_an_event_of_each_change_and_finds_it_in_the_log():
    async with running("tcp") as target:
        administration = target.administration
        host = await listener(target, DISCOVERY_NQN, 1 << 31)
        changes = [
            (lambda: administration.add_port(PORT), {(FIRST, 1), (FIRST, 2)}),
            (lambda: administration.add_subsystem(second()), {(FIRST, 1), (FIRST, 2), (SECOND, 1), (SECOND, 2)}),
            (lambda: administration.unlink_subsystem(SECOND, 1), {(FIRST, 1), (FIRST, 2), (SECOND, 2)}),
            (
                lambda: administration.link_subsystem(SECOND, 1),
                {(FIRST, 1), (FIRST, 2), (SECOND, 1), (SECOND, 2)},
            ),
            (lambda: administration.remove_port(2), {(FIRST, 1), (SECOND, 1)}),
            (lambda: administration.remove_subsystem(SECOND), {(FIRST, 1)}),
            (lambda: administration.allow_any_host(False), set()),
            (lambda: administration.allow_any_host(), {(FIRST, 1)}),
        ]
        for change, found in changes:
            assert await told(host, 0x70, change) == DISCOVERY_CHANGED
            assert await offered(target) == found


async def test_hosts_of_a_port_get_events_of_ana_changes_there_alone():
    async with running("tcp") as target:
        administration = target.administration
        portid = await administration.add_port(PORT)
        here = await listener(target, FIRST, 1 << 11)
        there = await listener(target, FIRST, 1 << 11, portid)
        await here.send(here.capsule(make_sqe(7, ASYNC_EVENT)))
        change = lambda: administration.set_ana_state(AnaState.INACCESSIBLE, portid=portid)  # noqa: E731
        assert await told(there, 0x0C, change) == ANA_CHANGED
        administration.set_ana_state(AnaState.NON_OPTIMIZED, portid=1)
        assert (await here.completion(7)).dw0 == ANA_CHANGED, "its own change, not the other port's"
        await administration.remove_port(portid)
        await there.ended()
        again = await administration.add_port(PORT)
        assert again == portid and not target.subsystems[FIRST].ana.on(portid).barred, (
            "a new port starts from the default"
        )


async def test_a_port_offers_its_listed_subsystems():
    async with running("tcp") as target:
        administration = target.administration
        await administration.add_subsystem(second())
        portid = await administration.add_port(
            PortConfig(transport="tcp", host="127.0.0.1", port=0, subsystems=frozenset({SECOND}))
        )
        address = target.ports[portid].listeners[0].address
        assert await offered(target, portid) == {(FIRST, 1), (SECOND, 1), (SECOND, portid)}
        early = await RawHost.open(target, address=address)
        assert (await early.try_connect()).status == 0x182, "Connect Invalid Parameters, as for one that does not exist"
        administration.link_subsystem(FIRST, portid)
        host = await RawHost.open(target, address=address)
        await host.connect()
        with pytest.raises(ConfigurationError, match="offers"):
            administration.link_subsystem(FIRST, portid)
        elsewhere = await RawHost.open(target)
        await elsewhere.connect()
        assert await administration.unlink_subsystem(FIRST, portid) == []
        await host.ended()
        assert await elsewhere.get_property(0x08), "an association by another port goes on"
        with pytest.raises(ConfigurationError, match="does not offer"):
            await administration.unlink_subsystem(FIRST, portid)
        administration.link_all_subsystems(portid)
        assert target.administration.describe()["ports"][1]["subsystems"] is None
        back = await RawHost.open(target, address=address)
        await back.connect()


class Noted(Ramdisk):
    """A backend that records its closing."""

    closed = 0

    async def close(self) -> None:
        self.closed += 1
        await super().close()


async def test_a_removal_has_ended_when_it_returns():
    async with running("tcp") as target:
        administration, backend = target.administration, Noted("1M")
        await administration.add_subsystem(second(backend))
        portid = await administration.add_port(PORT)
        hosts = await association(target, queues=2)
        others = await association(target, queues=2, subnqn=SECOND)
        open_before = set(target.drivers)
        assert await administration.remove_subsystem(SECOND) == []
        assert backend.closed == 1 and len(target.drivers) == len(open_before) - 3 and not target.tasks
        for host in others:
            await host.ended()
        by_port = await RawHost.open(target, address=target.ports[portid].listeners[0].address)
        await by_port.connect()
        await RawHost.open(target, address=target.ports[portid].listeners[0].address)
        listeners = target.ports[portid].listeners
        assert await administration.remove_port(portid) == []
        assert all(each.describe().closed for each in listeners) and len(target.drivers) == 3
        assert (await hosts[1].read(0, 1)).status == 0


async def test_a_removal_reports_unfinished_commands_which_end_in_the_background():
    async with running("tcp") as target:
        administration, backend = target.administration, SlowFlush()
        config = SubsystemConfig(nqn=SECOND, namespaces=(NamespaceConfig(backend=backend),))
        await administration.add_subsystem(config)
        hosts = await association(target, subnqn=SECOND)
        await hosts[1].send(hosts[1].capsule(io_sqe(7, FLUSH, 0, 1, length=0)))
        await until(lambda: backend.flushes)
        left = await administration.remove_subsystem(SECOND, seconds=0.05)
        assert len(left) == 2 and "1 commands of queue 1" in left[0] and "flushed and closed still" in left[1]
        assert SECOND not in target.subsystems and not target.drivers
        with pytest.raises(ConfigurationError, match="is being removed"):
            await administration.add_subsystem(config)
        backend.go_on.set()
        await until(lambda: not target.tasks and not target._closing)
        await administration.add_subsystem(second())
        hosts = await association(target, subnqn=SECOND)
        assert (await hosts[1].call(io_sqe(7, READ, 0, 1))).status == 0


async def test_a_port_is_removed_while_a_command_runs():
    backend = SlowFlush()
    async with running("tcp", namespaces=[backend]) as target:
        administration = target.administration
        await administration.add_port(PORT)
        hosts = await association(target)
        await hosts[1].send(hosts[1].capsule(io_sqe(7, FLUSH, 0, 1, length=0)))
        await until(lambda: backend.flushes)
        left = await administration.remove_port(1, seconds=0.05)
        assert len(left) == 1 and left[0].endswith("1 commands of queue 1 are in progress still")
        for host in hosts:
            await host.ended()
        removing = asyncio.ensure_future(administration.remove_port(2, seconds=5))
        backend.go_on.set()
        assert await removing == []
        await until(lambda: not target.tasks)
