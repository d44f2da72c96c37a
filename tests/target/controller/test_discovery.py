from dataclasses import replace

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.spec.discovery import DISCOVERY_LOG_HEADER, parse_discovery_entries
from nvmeof.spec.enums import DISCOVERY_NQN
from nvmeof.target.controller.discovery import LOGS_CACHED, discovery_log, read_discovery_log
from nvmeof.target.subsystem.config import PortConfig, SubsystemConfig
from nvmeof.target.subsystem.registry import PortInfo
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.target.harness import HOST, NQN, Target

OTHER = "nqn.2026-01.org.example:other"


def log(target: Target, seen: PortInfo | None = None, host: str = HOST):
    data = discovery_log(target.registry, seen or target.port.seen_at("192.0.2.1", 4420), host)
    header = DISCOVERY_LOG_HEADER.parse(data)
    entries = parse_discovery_entries(data[1024:])
    assert header.numrec == len(entries) and header.recfmt == 0
    return header.genctr, entries


def port(portid: int, traddr: str, trsvcid: str = "4420", **fields) -> PortInfo:
    return PortInfo(portid=portid, transport="tcp", trtype=3, traddr=traddr, trsvcid=trsvcid, **fields)


def test_a_wildcard_listener_answers_with_the_address_that_was_used():
    _, entries = log(Target())
    current, subsystem = entries
    assert (current.subtype, current.subnqn, current.eflags) == (3, DISCOVERY_NQN, 2)
    assert (subsystem.subtype, subsystem.subnqn) == (2, NQN)
    for entry in entries:
        assert (entry.traddr, entry.trsvcid) == ("192.0.2.1", "4420")
        assert (entry.trtype, entry.adrfam, entry.treq, entry.portid, entry.cntlid) == (3, 1, 4, 1, 0xFFFF)
        assert entry.asqsz >= 32 and entry.tsas[0] == 0


def test_linux_reads_it_in_three_parts():
    queue = Target().discovery()
    header = queue.read_bytes(queue.log_page(0x70, 20))
    assert int.from_bytes(header[8:16], "little") == 2
    entries = parse_discovery_entries(queue.read_bytes(queue.log_page(0x70, 2048, 1024)))
    assert [entry.subnqn for entry in entries] == [DISCOVERY_NQN, NQN]
    assert queue.read_bytes(queue.log_page(0x70, 20)) == header


def test_ports_and_families():
    target = Target()
    target.registry.add_port(port(2, "::", "4421"))
    target.registry.add_port(port(3, "198.51.100.7", "4422"))
    target.registry.add_port(port(4, "0.0.0.0", "8009", discovery_only=True))
    _, entries = log(target)
    assert [(entry.portid, entry.traddr) for entry in entries[1:]] == [(1, "192.0.2.1"), (3, "198.51.100.7")]
    _, entries = log(target, target.registry.ports[2].seen_at("2001:db8::1", 4421))
    assert [(entry.portid, entry.traddr, entry.adrfam) for entry in entries[1:]] == [
        (2, "2001:db8::1", 2),
        (3, "198.51.100.7", 1),
    ]
    _, entries = log(target, target.registry.ports[4].seen_at("192.0.2.9", 8009))
    assert entries[0].trsvcid == "8009" and [entry.traddr for entry in entries[1:]] == ["192.0.2.9", "198.51.100.7"]


def test_advertised_addresses_have_precedence():
    target = Target()
    target.registry.remove_port(1)
    public = port(1, "0.0.0.0", advertised=("203.0.113.5",), advertise_port=4444)
    target.registry.add_port(public)
    _, entries = log(target, public.seen_at("10.0.0.1", 4420))
    assert {(entry.traddr, entry.trsvcid) for entry in entries} == {("203.0.113.5", "4444")}


def test_transport_numbers_are_the_ports():
    target = Target()
    target.registry.add_port(replace(port(7, "192.0.2.7"), transport="mptcp", trtype=4))
    _, entries = log(target)
    assert [entry.trtype for entry in entries] == [3, 3, 4, 3]


def test_a_host_sees_only_what_it_may_use():
    target = Target()
    target.registry.add_subsystem(Subsystem(SubsystemConfig(nqn=OTHER, allowed_hosts=frozenset({HOST}))))
    assert [entry.subnqn for entry in log(target)[1]] == [DISCOVERY_NQN, NQN, OTHER]
    assert [entry.subnqn for entry in log(target, host=OTHER)[1]] == [DISCOVERY_NQN, NQN]


def test_the_generation_counter_counts_every_change():
    target = Target()
    generations = [log(target)[0]]
    for change in (
        lambda: target.registry.add_port(port(2, "192.0.2.2")),
        lambda: target.registry.add_subsystem(Subsystem(SubsystemConfig(nqn=OTHER))),
        lambda: target.registry.set_allowed_hosts(OTHER, frozenset()),
        lambda: target.registry.remove_subsystem(OTHER),
        lambda: target.registry.remove_port(2),
    ):
        change()
        generations.append(log(target)[0])
    assert generations == sorted(set(generations))
    target.registry.remove_port(2)
    assert log(target)[0] == generations[-1], "nothing changed"


def test_the_registry_refuses_invalid_entries():
    target = Target()
    for call in (
        lambda: target.registry.add_subsystem(target.subsystem),
        lambda: target.registry.remove_subsystem(OTHER),
        lambda: target.registry.add_port(target.port),
    ):
        with pytest.raises(ConfigurationError):
            call()


def test_removing_a_subsystem_ends_its_associations():
    target = Target()
    admin = target.admin()
    target.registry.remove_subsystem(NQN)
    assert admin.closed == ["the subsystem was removed"]
    discovery = target.discovery()
    target.registry.end_all("the target stops")
    assert discovery.closed == ["the target stops"]


@pytest.mark.parametrize(
    ("forms", "told"),
    [
        (("own",), [(4, 0)]),
        (("own", "tcp"), [(4, 0), (3, 0)]),
        (("tcp",), [(3, 0)]),
        (("tsas",), [(3, 1)]),
        (("own", "tcp", "tsas", "tcp"), [(4, 0), (3, 0), (3, 1)]),
    ],
)
def test_an_mptcp_port_is_announced_in_the_configured_forms(forms, told):
    target = Target()
    target.registry.remove_port(1)
    mptcp = PortInfo(portid=1, transport="mptcp", trtype=4, traddr="0.0.0.0", trsvcid="4420", advertise_as=forms)
    target.registry.add_port(mptcp)
    _, entries = log(target, mptcp.seen_at("192.0.2.1", 4420))
    subsystems = [(entry.trtype, entry.tsas[1]) for entry in entries if entry.subnqn == NQN]
    assert subsystems == told
    assert [(entry.trtype, entry.tsas[1]) for entry in entries if entry.subnqn == DISCOVERY_NQN] == told


def test_a_tcp_port_is_announced_once_whatever_is_configured():
    target = Target()
    target.registry.remove_port(1)
    target.registry.add_port(port(1, "0.0.0.0", advertise_as=("own", "tcp")))
    _, entries = log(target)
    assert [entry.trtype for entry in entries] == [3, 3]  # the discovery service and the subsystem


def test_a_form_that_does_not_exist():
    with pytest.raises(ConfigurationError, match="own, tcp, tsas"):
        PortConfig(advertise_as=("rdma",))


def test_a_page_is_built_once_per_generation_host_and_form(monkeypatch):
    target, built = Target(), []

    def counted(*arguments, **options):
        built.append((arguments[2], *options.values()))
        return discovery_log(*arguments, **options)

    monkeypatch.setattr("nvmeof.target.controller.discovery.discovery_log", counted)
    for number in range(100):
        target.registry.add_subsystem(Subsystem(SubsystemConfig(nqn=f"nqn.2026-01.org.example:{number}")))
    first, second = target.discovery(), target.discovery(hostnqn=HOST + "0")
    whole = discovery_log(target.registry, first.ctx.port, HOST)
    for _ in range(2):
        pieces = [first.read_bytes(first.log_page(0x70, 4096, at)) for at in range(0, len(whole), 4096)]
        assert b"".join(pieces)[: len(whole)] == whole
    assert built == [(HOST, False, False)]
    for queue in (second, first):
        queue.read_bytes(queue.log_page(0x70, 1024))
        queue.read_bytes(queue.log_page(0x70, 1024, lsp=1))
    assert built == [(HOST, False, False), (HOST + "0", False, False), (HOST + "0", True, False), (HOST, True, False)]
    target.registry.remove_subsystem(NQN)
    assert NQN.encode() not in first.read_bytes(first.log_page(0x70, 1 << 17)) and len(built) == 5


def test_cached_pages_are_few():
    target = Target()
    for number in range(3 * LOGS_CACHED):
        read_discovery_log(target.registry, target.port.seen_at(f"127.0.0.{number}", 4420), HOST)
    assert len(target.registry.log_pages) == LOGS_CACHED
    newest = read_discovery_log(target.registry, target.port.seen_at(f"127.0.0.{3 * LOGS_CACHED - 1}", 4420), HOST)
    assert any(page is newest for page in target.registry.log_pages.values())


def told(target: Target, came_to: str, portid: int = 1) -> list[tuple[str, str, int]]:
    """Return address, port and family of each entry of a subsystem for a host that connected to an address of a
    port.
    """
    seen = target.registry.ports[portid]
    _, entries = log(target, seen.seen_at(came_to, seen.trsvcid))
    return [(entry.traddr, entry.trsvcid, entry.adrfam) for entry in entries if entry.subnqn == NQN]


def with_ports(*ports: PortInfo) -> Target:
    target = Target()
    target.registry.remove_port(1)
    for each in ports:
        target.registry.add_port(each)
    return target


def test_a_name_is_announced_as_the_addresses_of_the_listeners():
    target = with_ports(
        port(1, "storage", bound=("192.0.2.1", "2001:db8::1")), port(2, "192.0.2.9", "4421", bound=("192.0.2.9",))
    )
    name = [("192.0.2.1", "4420", 1), ("2001:db8::1", "4420", 2)]
    assert told(target, "192.0.2.9", 2) == [*name, ("192.0.2.9", "4421", 1)]
    assert told(target, "2001:db8::1") == [*reversed(name), ("192.0.2.9", "4421", 1)], "first where the host came to"


def test_a_wildcard_of_both_families_is_announced_in_that_of_the_host():
    target = with_ports(port(1, "::", bound=("::", "0.0.0.0")), port(2, "127.0.0.1", "4421"), port(3, "0::0", "4422"))
    assert told(target, "192.0.2.1") == [("192.0.2.1", "4420", 1)]
    assert told(target, "2001:db8::1") == [("2001:db8::1", "4420", 2), ("2001:db8::1", "4422", 2)]
    assert told(target, "2001:db8::1", 3) == told(target, "2001:db8::1")


def test_a_link_local_address_is_announced_without_its_interface_and_on_its_link_only():
    target = with_ports(
        port(1, "fe80::1%eth0"), port(2, "fe80::2%eth1", "4421"), port(3, "::", "4422"), port(4, "192.0.2.1", "4423")
    )
    assert told(target, "fe80::1%eth0") == [("fe80::1", "4420", 2), ("fe80::1", "4422", 2), ("192.0.2.1", "4423", 1)]
    assert told(target, "fe80::2%eth1", 2)[0] == ("fe80::2", "4421", 2)
    assert told(target, "fe80::9%eth1", 3)[0] == ("fe80::2", "4421", 2)
    assert told(target, "2001:db8::1", 3) == [("2001:db8::1", "4422", 2), ("192.0.2.1", "4423", 1)]
    assert told(target, "192.0.2.1", 4) == [("192.0.2.1", "4423", 1)]


def test_loopback_is_announced_on_loopback_only():
    target = with_ports(
        port(1, "127.0.0.1"), port(2, "localhost", "4421", bound=("::1",)), port(3, "192.0.2.1", "4422")
    )
    assert len(told(target, "127.0.0.1")) == 3
    assert told(target, "192.0.2.1", 3) == [("192.0.2.1", "4422", 1)]


def test_several_addresses_that_are_advertised():
    target = with_ports(port(1, "0.0.0.0", advertised=("203.0.113.5", "2001:db8::5")))
    assert told(target, "10.0.0.1") == [("203.0.113.5", "4420", 1), ("2001:db8::5", "4420", 2)]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "*"])
def test_a_wildcard_cannot_be_advertised(address):
    with pytest.raises(ConfigurationError, match="cannot be advertised"):
        PortConfig(advertise_host=address)


def test_a_transport_that_no_tcp_host_reaches_is_announced_in_its_own_form_alone():
    memory = PortInfo(portid=1, transport="memory", trtype=254, traddr="memory", trsvcid="1", plain_tcp=False)
    for forms in (memory.advertise_as, ("tcp",)):
        _, entries = log(with_ports(replace(memory, advertise_as=forms)), memory)
        assert [entry.trtype for entry in entries] == [254, 254]
