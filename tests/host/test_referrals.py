"""Referrals: each service is asked once, however services refer to each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.address import Address
from nvmeof.errors import TransportError
from nvmeof.host.discovery import DiscoveryEntry, DiscoveryLog
from nvmeof.host.referrals import DiscoveryService, ServiceLog, follow_referrals
from nvmeof.spec.discovery import Eflags
from nvmeof.spec.enums import DISCOVERY_NQN, SubType

SUBNQN = "nqn.2026-01.org.example:disk"


def entry(port: object, subtype: int, traddr: str = "192.0.2.1", eflags: int = 0) -> DiscoveryEntry:
    return DiscoveryEntry(
        trtype=3, adrfam=1, subtype=subtype, treq=0, portid=1, cntlid=0xFFFF, asqsz=32, trsvcid=str(port),
        subnqn=SUBNQN if subtype == SubType.NVM else DISCOVERY_NQN, traddr=traddr, eflags=eflags, sectype=0,
    )  # fmt: skip


def refer(port: object, **changes: object) -> DiscoveryEntry:
    return entry(port, SubType.REFERRAL, **changes)  # type: ignore[arg-type]


def disk(port: int) -> DiscoveryEntry:
    return entry(port, SubType.NVM)


class Services:
    """Discovery services: logs by port; a port without a log does not answer."""

    def __init__(self, **logs: list[DiscoveryEntry]) -> None:
        self.logs = {int(name[1:]): log for name, log in logs.items()}
        self.asked: list[int] = []
        self.peer = ""

    async def read(self, service: DiscoveryService) -> ServiceLog:
        assert service.trsvcid is not None
        self.asked.append(service.trsvcid)
        if service.trsvcid not in self.logs:
            raise TransportError("connection refused")
        aliases = (Address(self.peer, service.trsvcid),) if self.peer else ()
        return ServiceLog(DiscoveryLog(self.logs[service.trsvcid]), aliases)


FIRST = DiscoveryService("192.0.2.1", 1)


async def test_entries_come_in_the_place_of_their_referral() -> None:
    services = Services(p1=[disk(11), refer(2), disk(12)], p2=[disk(21), refer(3), disk(11)], p3=[disk(31)])
    found = await follow_referrals(FIRST, services.read)
    assert [each.port for each in found.entries] == [11, 21, 31, 12]
    assert [str(each) for each in found.services] == ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"]
    assert found.left_out == []


async def test_a_service_that_refers_to_itself() -> None:
    services = Services(p1=[refer(1), disk(11), refer(1), entry(1, SubType.CURRENT_DISCOVERY)])
    found = await follow_referrals(FIRST, services.read)
    assert services.asked == [1]
    assert found.left_out == ["left out a referral of 192.0.2.1:1: it leads to the same service"]
    assert [each.subtype for each in found.entries] == [SubType.NVM, SubType.CURRENT_DISCOVERY]


async def test_services_that_refer_to_each_other() -> None:
    services = Services(p1=[refer(2), disk(11)], p2=[refer(1), refer(1), disk(21)])
    found = await follow_referrals(FIRST, services.read)
    assert services.asked == [1, 2]
    assert found.left_out == ["left out the referral of 192.0.2.1:2 to 192.0.2.1:1: that service was asked already"]
    assert [each.port for each in found.entries] == [21, 11]


async def test_a_name_is_identified_by_its_address() -> None:
    services = Services(p1=[refer(1), disk(11)])
    services.peer = "192.0.2.1"
    found = await follow_referrals(DiscoveryService("Storage.example.org", 1), services.read)
    assert services.asked == [1]
    assert found.left_out == ["left out a referral of Storage.example.org:1: it leads to the same service"]


async def test_a_service_with_the_same_information_is_not_asked() -> None:
    services = Services(p1=[refer(2, eflags=Eflags.DUPLICATE_RETURNED_INFORMATION)])
    found = await follow_referrals(FIRST, services.read)
    assert (services.asked, found.left_out) == ([1], [])


async def test_a_referral_that_leads_nowhere() -> None:
    services = Services(p1=[refer(2), refer("x"), disk(11)])
    found = await follow_referrals(FIRST, services.read)
    assert found.left_out == [
        "left out the referral of 192.0.2.1:1 to 192.0.2.1:2: connection refused",
        f"left out a referral of 192.0.2.1:1: the discovery entry of {DISCOVERY_NQN} has no port number: 'x'",
    ]
    assert [each.port for each in found.entries] == [11]
    with pytest.raises(TransportError):
        await follow_referrals(DiscoveryService("192.0.2.1", 9), services.read)


async def test_referrals_without_end() -> None:
    services = Services(**{f"p{port}": [refer(port + 1), disk(port)] for port in range(1, 200)})
    found = await follow_referrals(FIRST, services.read, max_services=5)
    assert services.asked == [1, 2, 3, 4, 5]
    assert found.left_out == ["left out the referral of 192.0.2.1:5 to 192.0.2.1:6: 5 services were asked already"]


@given(st.dictionaries(st.integers(1, 6), st.lists(st.integers(1, 7), max_size=5), min_size=1))
async def test_any_graph_of_referrals_ends(web: dict[int, list[int]]) -> None:
    services = Services(**{f"p{port}": [disk(port), *map(refer, others)] for port, others in web.items()})
    start = min(web)
    found = await follow_referrals(DiscoveryService("192.0.2.1", start), services.read)
    reached, todo = {start}, [start]
    while todo:
        new = [each for each in web.get(todo.pop(), []) if each not in reached]
        reached |= set(new)
        todo += new
    assert sorted(services.asked) == sorted(reached), "each service that is reached was asked, once"
    assert {each.port for each in found.entries} == reached & set(web)
