"""A target on its event loop: addresses, ports, what it offers, start and stop."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct

import pytest

from nvmeof.aio.runloop import loop_factory
from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.spec.discovery import parse_discovery_entries
from nvmeof.target.server import Target
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.transport import Address, base
from tests.conformance.rawhost import (
    HOSTNQN,
    RawHost,
    admin,
    association,
    healthy,
    io,
    make_sqe,
    open_files,
    running,
    until,
)

DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"
OTHER = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"
NQN = "nqn.2026-01.org.example:disk"


@pytest.fixture(autouse=True)
def left_open():
    yield
    RawHost.close_all()


async def discovered(target, *, address=None, hostnqn=HOSTNQN):
    """Return the records of Discovery for a host that connects to `address`: (subtype, subnqn, traddr, trsvcid, trtype,
    adrfam).
    """
    host = await RawHost.open(target, address=address)
    await host.connect(subnqn=DISCOVERY, hostnqn=hostnqn)
    await host.set_property(0x14, 0x460061)
    head = await host.call(make_sqe(2, 0x02, length=1024, cdw10=0x70 | 255 << 16))
    generation, records = struct.unpack_from("<QQ", head.data)
    body = await host.call(make_sqe(2, 0x02, length=1024 * records, cdw10=0x70 | (256 * records - 1) << 16, cdw12=1024))
    host.close()
    entries = parse_discovery_entries(body.data)
    assert len(entries) == records and generation > 0
    return [(e.subtype, e.subnqn, e.traddr, e.trsvcid, e.trtype, e.adrfam) for e in entries]


def config(*ports, **subsystem):
    subsystem.setdefault("namespaces", (NamespaceConfig(backend=Ramdisk("1M")),))
    return TargetConfig(subsystems=(SubsystemConfig(nqn=NQN, **subsystem),), ports=ports)


def tcp(host, **fields):
    return PortConfig(transport="tcp", host=host, port=0, **fields)


# -- addresses


@pytest.mark.parametrize("trtype", ["tcp", "mptcp"])
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
async def test_addresses(trtype, listen):
    async with running(trtype, listen=listen) as target:
        for address in target.addresses:
            assert address.port == target.address.port != 0
            host = await RawHost.open(target, address=address)
            await host.connect()
            own = (await discovered(target, address=address))[0]
            assert own[2:4] == (address.host, str(address.port))
            assert own[4] == base.get(trtype).trtype and own[5] == (2 if ":" in address.host else 1)


@pytest.mark.parametrize(
    ("wildcard", "used"),
    [("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::", "::1"), ("::", "127.0.0.1"), ("", "::1")],
)
async def test_a_wildcard_listener_announces_the_address_that_the_host_used(wildcard, used):
    async with Target(config(tcp(wildcard))) as target:
        port = target.address.port
        found = await discovered(target, address=Address(used, port))
        family = 2 if ":" in used else 1
        assert found == [(3, DISCOVERY, used, str(port), 3, family), (2, NQN, used, str(port), 3, family)]


async def test_a_name_is_listened_on_and_announced_as_its_addresses():
    ports = (tcp("127.0.0.1", discovery_only=True), tcp("localhost"))
    async with Target(config(*ports)) as target:
        only, *named = target.addresses
        found = await discovered(target, address=only)
        assert [(entry[2], int(entry[3])) for entry in found[1:]] == [(each.host, each.port) for each in named]
        assert named and {each.host for each in named} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("order", [1, -1])
async def test_both_wildcards_share_a_port(order):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    ports = [PortConfig(host="0.0.0.0", port=number), PortConfig(host="::", port=number)][::order]
    async with Target(config(*ports)) as target:
        for used in ("127.0.0.1", "::1"):
            found = await discovered(target, address=Address(used, number))
            assert [(entry[2], entry[5]) for entry in found[1:]] == [(used, 2 if ":" in used else 1)]


async def test_a_name_is_advertised_as_its_addresses():
    async with Target(config(tcp("0.0.0.0", advertise_host="localhost"))) as target:
        found = await discovered(target, address=Address("127.0.0.1", target.address.port))
        assert {entry[2] for entry in found} <= {"127.0.0.1", "::1"}
    with pytest.raises(TransportError, match="cannot find the address"):
        await Target(config(tcp("127.0.0.1", advertise_host="no-such-host.invalid"))).start()


async def test_a_host_that_speaks_tls_is_a_line_of_the_log(caplog):
    caplog.set_level("INFO", logger="nvmeof.target")
    context = ssl.create_default_context()
    async with running("tcp") as target:
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", target.address.port, ssl=context)
        await until(lambda: "connection ended before Connect" in caplog.text)
    assert "the other side seems to speak TLS (first byte 16h), which is not spoken here" in caplog.text


async def test_advertise_overrides_what_the_host_used():
    ports = (tcp("0.0.0.0", advertise_host="192.0.2.7", advertise_port=44200),)
    async with Target(config(*ports)) as target:
        found = await discovered(target, address=Address("127.0.0.1", target.address.port))
        assert [(entry[2], entry[3]) for entry in found] == [("192.0.2.7", "44200")] * 2


async def test_several_ports_and_a_discovery_only_one():
    ports = (tcp("127.0.0.1"), tcp("::1"), tcp("0.0.0.0"), tcp("127.0.0.1", discovery_only=True))
    async with Target(config(*ports)) as target:
        first, six, wild, only = target.addresses
        found = await discovered(target, address=only)
        assert found[0][:4] == (3, DISCOVERY, "127.0.0.1", str(only.port))
        assert [(entry[2], int(entry[3])) for entry in found[1:]] == [
            ("127.0.0.1", first.port), ("::1", six.port), ("127.0.0.1", wild.port)
        ]  # fmt: skip
        refused = await RawHost.open(target, address=only)
        assert (await refused.try_connect()).status == 0x182
        # one association over queues on different ports
        host = await RawHost.open(target, address=six)
        cntlid = await host.connect()
        await host.set_property(0x14, 0x460061)
        queue = await RawHost.open(target, address=wild)
        await queue.connect(qid=1, cntlid=cntlid)
        assert (await queue.read(0, 1)).status == 0


async def test_allowed_hosts_see_and_use_what_others_do_not():
    async with running("tcp", allowed_hosts=[HOSTNQN]) as target:
        assert len(await discovered(target)) == 2
        assert len(await discovered(target, hostnqn=OTHER)) == 1
        host = await RawHost.open(target)
        assert (await host.try_connect(hostnqn=OTHER)).status == 0x182
        first = await admin(target)
        target.registry.set_allowed_hosts(target.subnqn, frozenset({OTHER}))
        await first.ended()
        await host.connect(hostnqn=OTHER)


async def test_discovery_generation_counts_changes():
    async with running("tcp") as target:
        before = target.registry.generation
        target.registry.set_allowed_hosts(target.subnqn, frozenset({OTHER}))
        assert target.registry.generation == before + 1


# -- loops


@pytest.mark.parametrize("uvloop", [False, True])
@pytest.mark.parametrize("trtype", ["tcp", "mptcp"])
def test_both_event_loops(trtype, uvloop):
    async def main():
        async with running(trtype, namespaces=[Ramdisk("8M")]) as target:
            hosts = await association(target, queues=2)
            data = bytes(range(256)) * 4096
            assert (await hosts[1].write(0, data, in_capsule=False)).status == 0
            assert (await hosts[2].read(0, 2048)).data == data
            hosts[2].abort()
            hosts[1].close()
            await until(lambda: len(target.drivers) == 1)
            RawHost.close_all()
        return type(asyncio.get_running_loop()).__module__

    if uvloop:
        pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=loop_factory(uvloop=uvloop)) as runner:
        assert runner.run(asyncio.wait_for(main(), 30)).startswith("uvloop") == uvloop


# -- start and stop


async def test_identifiers_stay_the_same_over_restarts():
    seen = []
    for _ in range(2):
        async with running("memory") as target:
            namespace = target.subsystems[target.subnqn].namespaces[1]
            seen.append((target.subsystems[target.subnqn].config.serial_number, namespace.nguid, namespace.uuid))
    assert seen[0] == seen[1]


async def test_an_address_in_use_is_one_sentence_and_leaves_nothing_open(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = open_files()
        ports = (tcp("127.0.0.1"), PortConfig(transport="tcp", host="127.0.0.1", port=port))
        target = Target(config(*ports, namespaces=(NamespaceConfig(backend=FileBackend(path)),)))
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}.*in use") as caught:
            await target.start()
        assert "\n" not in str(caught.value)
        assert {entry for entry in open_files() - before if "eventpoll" not in entry} == set()


async def test_a_namespace_that_cannot_be_opened(tmp_path):
    target = Target(namespaces=[FileBackend(tmp_path / "absent")], trtype="memory", listen="memory:0")
    with pytest.raises((OSError, ConfigurationError)):
        await target.start()
    assert not target.listeners


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"listen": []}, "at least one address"),
        ({"listen": "127.0.0.1:99999"}, "not a port"),
        ({"subnqn": "a disk\n"}, "a disk"),
        ({"allowed_hosts": ["nobody\0"]}, "nobody"),
    ],
)
def test_options_that_cannot_be_used(options, text):
    with pytest.raises(ConfigurationError, match=text):
        Target(namespaces=[Ramdisk("1M")], **options)


async def test_an_unknown_transport_is_reported_at_the_start():
    with pytest.raises(ConfigurationError, match="unknown transport 'rdma': known are"):
        await Target(namespaces=[Ramdisk("1M")], trtype="rdma").start()


async def test_a_file_is_flushed_when_the_target_stops(tmp_path, monkeypatch):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    async with running("memory", namespaces=[FileBackend(path)]) as target:
        hosts = await association(target)
        assert (await hosts[1].write(8, b"f" * 4096)).status == 0
        flushes = []
        flush = FileBackend.flush
        monkeypatch.setattr(FileBackend, "flush", lambda self: flushes.append(1) or flush(self))
    assert flushes
    assert path.read_bytes()[4096:8192] == b"f" * 4096


async def test_a_flush_that_fails_is_one_line(caplog, monkeypatch):
    def broken(self):
        raise OSError(errno.EIO, "Input/output error")

    target = Target(namespaces=[Ramdisk("1M")], trtype="memory", listen="memory:0")
    await target.start()
    monkeypatch.setattr(Ramdisk, "flush", broken)
    await target.stop()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "ramdisk 1M: flush failed: Input/output error"
    ]


async def test_stop_twice_and_without_hosts():
    target = Target(namespaces=[Ramdisk("1M")], trtype="tcp")
    await target.start()
    await asyncio.wait_for(target.stop(drain_seconds=3600), 20)
    await asyncio.wait_for(target.stop(drain_seconds=3600), 20)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", target.address.port), 1).close()


# -- while it runs


async def test_namespaces_come_and_go_under_reads():
    async with running("tcp", namespaces=[Ramdisk("1M"), Ramdisk("2M")]) as target:
        first = await admin(target)
        queue = await io(target, first.cntlid)
        for cid in range(3):
            assert (await queue.read(0, 1, cid, nsid=2)).status == 0
        await target.remove_namespace(2)
        assert (await queue.read(0, 1, nsid=2)).status == 0x02
        assert await target.add_namespace(Ramdisk("3M")) == 2
        assert (await queue.read(6143, 1, nsid=2)).status == 0
        with pytest.raises(ConfigurationError, match="no namespace 7"):
            await target.remove_namespace(7)
        with pytest.raises(ConfigurationError, match="exists already"):
            await target.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nsid=1))
        await healthy(target)


async def test_a_deadline_is_exact_while_nothing_else_happens():
    """A keep-alive timeout is exact to the millisecond, not the second: one interval, or two with a command in one."""
    async with running("memory") as target:
        started = asyncio.get_running_loop().time()
        host = await admin(target, kato=200)
        await host.ended()
        assert 0.15 < asyncio.get_running_loop().time() - started < 0.8
