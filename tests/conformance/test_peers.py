"""Hosts that stop in the middle, never start, or come in large numbers."""

from __future__ import annotations

import asyncio
import resource
import tracemalloc

import pytest

from nvmeof.protocol.config import BACKLOG_BYTES
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.transport import SocketOptions, get
from tests.conformance.rawhost import (
    R2T,
    READ,
    RESPONSE,
    WRITE,
    RawHost,
    admin,
    association,
    causes,
    healthy,
    icreq,
    io,
    io_sqe,
    make_sqe,
    open_files,
    running,
    until,
)
from tests.target.backend_tools import Hidden


@pytest.mark.parametrize("sent", ["nothing", "half an ICReq", "ICReq", "half a Connect"])
async def test_a_peer_that_never_connects_is_closed_in_time(trtype, log, sent):
    async with running(trtype, connect_seconds=0.2) as target:
        host = await RawHost.open(target, handshake=False)
        if sent == "half an ICReq":
            await host.send(icreq()[:77])
        elif sent != "nothing":
            await host.handshake()
        if sent == "half a Connect":
            await host.send(host.capsule(bytes(64), bytes(1024))[:200])
        await host.ended()
        assert len(causes(log.records, "no Connect within 0.2 s")) == 1
        await until(lambda: not target.drivers)
        await healthy(target)


async def test_a_connected_queue_is_not_closed_by_the_connect_timeout():
    async with running(connect_seconds=1.0) as target:
        hosts = await association(target)
        await asyncio.sleep(1.2)
        assert (await hosts[1].read(0, 1)).status == 0


async def test_a_peer_that_stops_in_the_middle_of_a_pdu_delays_no_other(trtype):
    async with running(trtype) as target:
        hosts = await association(target, queues=2)
        await hosts[1].send(hosts[1].capsule(io_sqe(1, WRITE, 0, 64)))
        ttag, _, _ = await hosts[1].r2t(1)
        await hosts[1].send(hosts[1].h2c(1, ttag, 0, bytes(64 * 512))[:20000])
        await hosts[2].send(hosts[2].capsule(io_sqe(1, READ, 0, 1))[:40])
        await healthy(target)
        assert target.pool.used_bytes
        hosts[2].abort()
        assert (await hosts[0].get_property(0x1C)) & 1
        hosts[1].close()
        await until(lambda: target.pool.used_bytes == 0)


async def test_a_stopped_peer_is_ended_by_its_keep_alive_timeout(log):
    """Commands are half sent: their staging memory is returned."""
    async with running() as target:
        hosts = await association(target, kato=300)
        await hosts[1].send(hosts[1].capsule(io_sqe(1, WRITE, 0, 64)))
        ttag, _, _ = await hosts[1].r2t(1)
        await hosts[1].send(hosts[1].h2c(1, ttag, 0, bytes(64 * 512))[:20000])
        await until(lambda: target.pool.used_bytes)
        for host in hosts:
            await host.ended()
        await until(lambda: not target.drivers and not target.pool.used_bytes)
        assert len(causes(log.records, "keep alive timeout")) == len(hosts), "one line per connection"


async def _flood(host: RawHost, sqe: bytes, commands: int) -> int:
    """Send commands and read nothing until the target takes no more; return how many it took, at least in part."""
    data = host.capsule(sqe) * 64
    for sent in range(0, commands, 64):
        try:
            await asyncio.wait_for(host.send(data), 0.3)
        except TimeoutError:
            return sent
    return commands


async def test_a_peer_that_stops_reading(trtype):
    """4 GiB are requested and never received. The target stops taking commands, and buffers next to nothing."""
    options = SocketOptions(sndbuf_bytes=65536, rcvbuf_bytes=65536)
    async with running(trtype, namespaces=[Ramdisk("8M")], options=options) as target:
        first = await admin(target)
        host = await io(target, first.cntlid, sqsize=1023, options=options)  # one receive never brings more than that
        sqe = io_sqe(1, READ, 0, 256)
        tracemalloc.start()
        taken = await _flood(host, sqe, 32768)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken < 32768, "the target went on reading commands"
        # the memory transport's own buffers are Python's, sockets' are the kernel's
        assert peak < BACKLOG_BYTES + (6 << 20), peak
        driver = next(driver for driver in target.drivers if driver.queue.ctx.qid == 1)
        assert not driver.connection.want_read
        assert driver.connection.backlog_bytes > BACKLOG_BYTES
        await healthy(target)
        # the peer reads again: everything comes
        for _ in range(100):
            completion = await host.completion(1)
            assert completion.status == 0 and len(completion.data) == 131072
        host.abort()
        await until(lambda: len(target.drivers) == 1)
        first.close()


async def test_many_long_log_pages_at_once(trtype):
    """Hundreds of pages of 1 MiB are requested in one receive; queued output stays small, and all pages arrive."""
    options = SocketOptions(sndbuf_bytes=65536, rcvbuf_bytes=65536)
    pages, length = 200, 1 << 20
    async with running(trtype, options=options) as target:
        host = await admin(target, sqsize=1023)
        data = b"".join(
            host.capsule(make_sqe(cid, 0x02, length=length, cdw10=(length // 4 - 1 & 0xFFFF) << 16 | 1, cdw11=3))
            for cid in range(pages)
        )
        tracemalloc.start()
        await host.send(data)
        driver = next(iter(target.drivers))
        await until(lambda: driver.queue.staging.reads)
        for cid in range(pages):
            completion = await host.completion(cid)
            assert completion.status == 0 and len(completion.data) == length
            del completion
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < BACKLOG_BYTES + (12 << 20), peak
        await healthy(target)
        host.close()


async def test_a_peer_that_stops_reading_completions(trtype):
    """The completions of commands without data are bounded as well."""
    options = SocketOptions(sndbuf_bytes=32768, rcvbuf_bytes=32768)
    async with running(trtype, options=options) as target:
        first = await admin(target)
        host = await io(target, first.cntlid, sqsize=1023, options=options)  # one receive never brings more than that
        taken = await _flood(host, io_sqe(1, 0x7E, 0, 1), 1 << 17)
        assert taken < 1 << 17
        driver = next(driver for driver in target.drivers if driver.queue.ctx.qid == 1)
        assert driver.connection.backlog_bytes < 1 << 20
        await healthy(target)
        host.abort()
        first.close()


async def test_one_queue_cannot_take_all_staging_memory():
    """A host asks for writes and sends no data; another host's write goes through at once."""
    subsystem = SubsystemConfig(nqn="nqn.2026-01.org.example:pool", namespaces=(NamespaceConfig(backend=Hidden("8M")),))
    ports = (PortConfig(transport="memory", host="pool", port=0),)
    config = TargetConfig(subsystems=(subsystem,), ports=ports, staging_bytes=8 << 20)
    async with Target(config) as target:
        greedy = (await association(target))[1]
        await greedy.send(b"".join(greedy.capsule(io_sqe(cid, WRITE, 0, 2048)) for cid in range(16)))
        ttags = {}
        for cid in range(4):
            ttags[cid] = (await greedy.r2t(cid))[0]
        assert target.pool.used_bytes == (8 << 20) // 2
        other = (await association(target))[1]
        assert (await other.write(0, b"o" * 65536, in_capsule=False)).status == 0
        # the greedy host goes on when it sends the data that it was asked for
        done: set[int] = set()
        while len(done) < 16:
            while ttags:
                cid, ttag = ttags.popitem()
                await greedy.send(greedy.h2c(cid, ttag, 0, bytes(1 << 20)))
            pdu = await greedy.pdu()
            if pdu.kind == R2T:
                cid, ttag = pdu.fields("HH")
                ttags[cid] = ttag
            else:
                assert pdu.kind == RESPONSE and pdu.fields("14xH")[0] == 0
                done.add(pdu.fields("12xH")[0])
        assert target.pool.used_bytes == 0


async def test_queues_wait_for_staging_memory_in_turn():
    """Five queues want more than exists; all data is written in the end."""
    subsystem = SubsystemConfig(
        nqn="nqn.2026-01.org.example:wait", namespaces=(NamespaceConfig(backend=Ramdisk("8M")),)
    )
    ports = (PortConfig(transport="memory", host="wait", port=0),)
    config = TargetConfig(subsystems=(subsystem,), ports=ports, staging_bytes=4 << 20)
    async with Target(config) as target:
        hosts = (await association(target, queues=5))[1:]

        async def writer(host: RawHost, value: int) -> None:
            await host.send(b"".join(host.capsule(io_sqe(cid, WRITE, cid * 256, 256)) for cid in range(8)))
            done = 0
            while done < 8:
                pdu = await host.pdu()
                if pdu.kind == R2T:
                    cid, ttag, _, length = pdu.fields("HHII")
                    await host.send(host.h2c(cid, ttag, 0, bytes([value]) * length))
                else:
                    assert pdu.kind == RESPONSE and pdu.fields("14xH")[0] == 0
                    done += 1

        await asyncio.wait_for(asyncio.gather(*(writer(host, n) for n, host in enumerate(hosts, 1))), 20)
        assert target.pool.used_bytes == 0
        data = (await hosts[0].read(0, 2048)).data
        # writes of more than 32 KiB are visible by whole blocks
        assert all(
            1 <= data[at] <= 5 and data[at : at + 512] == data[at : at + 1] * 512 for at in range(0, 1 << 20, 512)
        )


async def test_a_thousand_connections_opened_and_left(trtype, log):
    """Some hosts send nothing, some shake hands, some stop in an ICReq; half of them close, the others time out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    count = min(1000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2)  # both ends are in this process
    try:
        files = len(open_files())
        async with running(trtype, connect_seconds=1.5) as target:
            before = len(open_files())
            endpoints = []
            for index in range(count):
                endpoint = await get(trtype).connect(target.address.host, target.address.port, SocketOptions())
                if index % 3:
                    endpoint.sendmsg([icreq()[: 128 if index % 3 == 1 else 50]])
                endpoints.append(endpoint)
            await until(lambda: len(target.drivers) > count * 0.9 or "no Connect" in log.text)
            await healthy(target)
            for index, endpoint in enumerate(endpoints[::2]):
                endpoint.abort() if index % 2 else endpoint.close()
            await until(lambda: not target.drivers)
            for endpoint in endpoints:
                endpoint.close()
            assert len(open_files()) <= before
            assert target.pool.used_bytes == 0
            lines = causes(log.records, "connection ended before Connect")
            assert len(lines) < 40, "one peer does not fill the log"
            await healthy(target)
        assert len(open_files()) <= files
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_connections_that_are_reset_at_once(trtype):
    async with running(trtype) as target:
        for index in range(50):
            host = await RawHost.open(target, handshake=False)
            if index % 2:
                await host.send(icreq())
            host.abort()
        await until(lambda: not target.drivers)
        await healthy(target)
