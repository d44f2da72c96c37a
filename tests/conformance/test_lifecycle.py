"""Associations from their beginning to their end, with commands in flight at each end."""

from __future__ import annotations

import asyncio

import pytest

from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import (
    CAP,
    CC,
    CC_DISABLED,
    CC_ENABLED,
    CC_SHUTDOWN,
    CSTS,
    FLUSH,
    IN_CAPSULE,
    READ,
    VS,
    WRITE,
    RawHost,
    admin,
    association,
    causes,
    connect_data,
    healthy,
    io,
    io_sqe,
    make_sqe,
    running,
    until,
)
from tests.conformance.slow import SlowBackend

OPCODE, SEQUENCE = 0x01, 0x0C
AER = 0x0C
KEEP_ALIVE = 0x18
NEVER = 3600.0
OTHER = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"


async def _write_in_flight(host: RawHost, cid: int = 9, slba: int = 0, value: int = 0xEE) -> None:
    await host.send(host.capsule(io_sqe(cid, WRITE, slba, 1, sgl=IN_CAPSULE), bytes([value]) * 512))


async def test_the_whole_life(trtype):
    async with running(trtype) as target:
        host = await RawHost.open(target)
        await host.connect(kato=5000)
        assert await host.get_property(CAP, wide=True) & 0xFFFF == 1023
        assert await host.get_property(VS) >= 0x10300
        assert await host.get_property(CSTS) == 0
        await host.set_property(CC, CC_ENABLED)
        assert await host.get_property(CSTS) == 1
        queue = await io(target, host.cntlid)
        assert (await queue.write(0, b"a" * 512)).status == 0
        assert (await host.set_property(CC, CC_SHUTDOWN)).status == 0
        assert await host.get_property(CSTS) >> 2 & 3 == 2, "shutdown complete"
        assert (await queue.read(0, 1)).status == SEQUENCE
        await host.set_property(CC, CC_DISABLED)
        await queue.ended()
        assert await host.get_property(CSTS) == 0
        await host.set_property(CC, CC_ENABLED)
        queue = await io(target, host.cntlid)
        assert (await queue.read(0, 1)).data == b"a" * 512
        # Disconnect ends the I/O queue only
        assert (await queue.call(make_sqe(3, 0x7F, nsid=8))).status == 0
        await queue.ended()
        assert await host.get_property(CSTS) == 1


async def test_keep_alive_expires(trtype, log):
    async with running(trtype) as target:
        silent = await association(target, queues=2, kato=1500)
        lively = await association(target, queues=1, kato=1500, hostnqn=OTHER)
        for _ in range(30):  # commands on an I/O queue are signs of life as well as Keep Alive on the admin queue
            await asyncio.sleep(0.1)
            assert (await lively[1].read(0, 1)).status == 0
        for host in silent:
            await host.ended()
        assert len(target.subsystems[target.subnqn].controllers) == 1
        assert len(causes(log.records, "keep alive timeout: no command for 1.5 s")) == 3
        for _ in range(20):
            await asyncio.sleep(0.1)
            assert (await lively[0].call(make_sqe(4, KEEP_ALIVE))).status == 0
        assert (await lively[1].read(0, 1)).status == 0


async def test_keep_alive_expires_with_writes_in_flight():
    """The host can connect again only when outstanding writes have ended."""
    backend = SlowBackend()
    async with running(namespaces=[backend]) as target:
        hosts = await association(target, kato=300)
        await _write_in_flight(hosts[1])
        for host in hosts:
            await host.ended()
        again = await RawHost.open(target)
        connecting = asyncio.ensure_future(again.connect())
        await asyncio.sleep(0.1)
        assert not connecting.done()
        backend.gate.set()
        await asyncio.wait_for(connecting, 20)


CONNECT_SECONDS = 1.0  # more than a loaded machine lets pass between two PDUs


@pytest.mark.parametrize("how", ["close", "abort", "admin only"])
async def test_old_writes_end_before_a_new_association_is_answered(trtype, how):
    """Another host is not delayed by these writes."""
    backend = SlowBackend()
    async with running(trtype, namespaces=[backend], connect_seconds=CONNECT_SECONDS) as target:
        hosts = await association(target)
        await _write_in_flight(hosts[1], 1, slba=0, value=1)
        await _write_in_flight(hosts[1], 2, slba=1, value=2)
        await until(lambda: backend.begun == 2)
        if how == "admin only":
            hosts[0].close()
            await hosts[1].ended()
        else:
            for host in hosts:
                host.abort() if how == "abort" else host.close()
        await until(lambda: not target.drivers)
        again = await RawHost.open(target)
        connecting = asyncio.ensure_future(again.connect())
        other = await RawHost.open(target)
        await other.connect(hostnqn=OTHER)
        await asyncio.sleep(CONNECT_SECONDS + 0.2)
        assert not connecting.done() and not backend.writes, "the connect timeout is for hosts that do nothing"
        backend.gate.set()
        await asyncio.wait_for(connecting, 20)
        assert sorted(backend.writes) == [0, 512], "finished before the answer"
        await again.set_property(CC, CC_ENABLED)
        queue = await io(target, again.cntlid)
        assert (await queue.write(0, b"n" * 512)).status == 0
        assert (await queue.read(0, 2)).data == b"n" * 512 + b"\x02" * 512


async def test_a_host_that_closes_while_it_waits_for_its_old_writes():
    backend = SlowBackend()
    async with running(namespaces=[backend]) as target:
        hosts = await association(target)
        await _write_in_flight(hosts[1])
        await until(lambda: backend.begun)
        hosts[0].abort()
        await hosts[1].ended()
        again = await RawHost.open(target)
        connecting = asyncio.ensure_future(again.try_connect())
        await asyncio.sleep(0.05)
        connecting.cancel()
        again.abort()
        await asyncio.sleep(0.05)
        backend.gate.set()
        await until(lambda: not target.tasks and not target.drivers)
        assert not target.subsystems[target.subnqn].controllers
        await healthy(target)


async def test_two_connects_that_waited_make_one_controller():
    backend = SlowBackend()
    async with running(namespaces=[backend]) as target:
        hosts = await association(target)
        await _write_in_flight(hosts[1])
        await until(lambda: backend.begun)
        hosts[0].abort()
        await hosts[1].ended()
        again = await RawHost.open(target)
        tasks = [asyncio.ensure_future(again.try_connect(cid=1))]
        await asyncio.sleep(0.02)
        sqe = make_sqe(2, 0x7F, nsid=1, length=1024, sgl=IN_CAPSULE, cdw11=31)
        await again.send(again.capsule(sqe, connect_data(target.subnqn)))
        await asyncio.sleep(0.02)
        backend.gate.set()
        assert (await tasks[0]).status == 0
        assert (await again.completion(2)).status == OPCODE
        assert len(target.subsystems[target.subnqn].controllers) == 1


async def test_writes_without_their_data_are_dropped(trtype):
    async with running(trtype) as target:
        hosts = await association(target)
        assert (await hosts[1].write(0, b"o" * 4096)).status == 0
        await hosts[1].send(hosts[1].capsule(io_sqe(1, WRITE, 0, 8)))
        ttag, _, _ = await hosts[1].r2t(1)
        await hosts[1].send(hosts[1].h2c(1, ttag, 0, b"n" * 4096)[:-1])
        for host in hosts:
            host.close()
        again = await association(target)
        assert (await again[1].read(0, 8)).data == b"o" * 4096
        await until(lambda: not target.pool.used_bytes)  # over MPTCP an end may be noticed after the next beginning


@pytest.mark.parametrize("how", ["reset", "admin lost", "disconnect"])
async def test_the_end_with_io_in_flight(trtype, how):
    backend = SlowBackend(slow_reads=True)
    async with running(trtype, namespaces=[backend]) as target:
        hosts = await association(target)
        await _write_in_flight(hosts[1], 1)
        await hosts[1].send(hosts[1].capsule(io_sqe(2, READ, 8, 8)))
        await hosts[1].send(hosts[1].capsule(io_sqe(3, WRITE, 0, 8)))
        await hosts[1].r2t(3)
        await until(lambda: backend.begun == 2)
        if how == "reset":
            await hosts[0].set_property(CC, CC_DISABLED)
        elif how == "admin lost":
            hosts[0].abort()
        else:
            await hosts[1].send(hosts[1].capsule(make_sqe(4, 0x7F, nsid=8)))
            assert (await hosts[1].completion(4)).status == 0
        await hosts[1].ended()
        await until(lambda: all(driver.queue.ctx.qid == 0 for driver in target.drivers))
        backend.gate.set()
        await until(lambda: not target.tasks and not target.pool.used_bytes)
        assert backend.writes == [0]
        if how == "reset":
            await hosts[0].set_property(CC, CC_ENABLED)
            queue = await io(target, hosts[0].cntlid)
            assert (await queue.read(0, 1)).data == b"\xee" * 512
        await healthy(target)


async def test_an_io_queue_that_is_lost_leaves_the_others(trtype, log):
    async with running(trtype) as target:
        hosts = await association(target, queues=2)
        hosts[1].abort()
        await until(lambda: len(target.drivers) == 2)
        assert (await hosts[2].read(0, 1)).status == 0
        assert await hosts[0].get_property(CSTS) == 1


async def test_shutdown_flushes():
    backend = SlowBackend()
    backend.gate.set()
    async with running(namespaces=[backend]) as target:
        hosts = await association(target)
        assert (await hosts[1].write(0, bytes(512))).status == 0
        assert (await hosts[0].set_property(CC, CC_SHUTDOWN)).status == 0
        assert backend.flushes == 1
        assert await hosts[0].get_property(CSTS) >> 2 & 3 == 2


async def test_asynchronous_events_are_held_and_go_with_the_queue(trtype):
    async with running(trtype) as target:
        host = await admin(target)
        assert (await host.call(make_sqe(1, 0x09, cdw10=0x0B, cdw11=0x100))).status == 0
        for cid in (20, 21):
            await host.send(host.capsule(make_sqe(cid, AER)))
        assert await host.get_property(CSTS) == 1
        await target.add_namespace(Ramdisk("1M"))
        event = await host.completion(20)
        assert (event.status, event.dw0) == (0, 0x040002)
        host.close()
        await until(lambda: not target.tasks and not target.drivers)


async def test_stop_waits_for_commands_in_flight(trtype, log):
    backend = SlowBackend()
    async with running(trtype, namespaces=[backend], check=False) as target:
        hosts = await association(target)
        for cid in range(4):
            await _write_in_flight(hosts[1], cid, cid, cid)
        await hosts[0].send(hosts[0].capsule(make_sqe(20, AER)))
        await until(lambda: backend.begun == 4)
        stopping = asyncio.ensure_future(target.stop(drain_seconds=NEVER))
        await asyncio.sleep(0.05)
        await _write_in_flight(hosts[1], 7, 100)  # too late: not begun
        await asyncio.sleep(0.05)
        assert not stopping.done() and not backend.closed
        backend.gate.set()
        assert [(await hosts[1].completion()).cid for _ in range(4)] == [0, 1, 2, 3]
        for host in hosts:
            await host.ended()
        await asyncio.wait_for(stopping, 20)
        assert sorted(backend.writes) == [0, 512, 1024, 1536]
        assert backend.flushes == 1 and backend.closed
        assert target.pool.used_bytes == 0
        assert len(causes(log.records, "the target is stopping")) == 2


async def test_stop_gives_up_after_a_while(log):
    """A backend that never answers does not prevent the stop."""
    backend = SlowBackend()
    async with running(namespaces=[backend], check=False) as target:
        hosts = await association(target)
        await _write_in_flight(hosts[1])
        await until(lambda: backend.begun)
        await asyncio.wait_for(target.stop(drain_seconds=0.2), 20)
        assert not backend.writes and backend.closed
        assert len(causes(log.records, "1 commands were still in progress and are given up")) == 1


async def test_stop_does_not_wait_long_for_data_that_hosts_do_not_send(monkeypatch):
    monkeypatch.setattr("nvmeof.target.server.RECEIVE_SECONDS", 0.2)
    async with running(check=False) as target:
        hosts = await association(target)
        await hosts[1].send(hosts[1].capsule(io_sqe(1, WRITE, 0, 8)))
        await hosts[1].r2t(1)
        await asyncio.wait_for(target.stop(drain_seconds=NEVER), 20)
        assert target.pool.used_bytes == 0


async def test_stop_under_load(trtype, monkeypatch):
    """Hosts never pause: all completed writes are stored, and the stop waits for no timeout."""
    monkeypatch.setattr("nvmeof.target.server.RECEIVE_SECONDS", NEVER)
    async with running(trtype, namespaces=[Ramdisk("8M")], check=False) as target:
        answered = 0

        async def load(host: RawHost) -> None:
            nonlocal answered
            for cid in range(16):
                await host.send(host.capsule(io_sqe(cid, WRITE, cid * 64, 64)))
            try:
                while True:
                    pdu = await host.pdu()
                    if pdu.kind == 9:
                        cid, ttag, _, length = pdu.fields("HHII")
                        await host.send(host.h2c(cid, ttag, 0, bytes(length)))
                        continue
                    cid = pdu.fields("12xH")[0]
                    answered += 1
                    await host.send(host.capsule(io_sqe(cid, WRITE, cid * 64, 64)))
            except (EOFError, OSError):
                pass

        hosts = await association(target, queues=3)
        tasks = [asyncio.ensure_future(load(host)) for host in hosts[1:]]
        await until(lambda: answered > 50)
        await asyncio.wait_for(target.stop(drain_seconds=NEVER), 20)
        await asyncio.wait_for(asyncio.gather(*tasks), 20)  # each host sees the end
        assert target.pool.used_bytes == 0


async def test_hurry_ends_a_stop_at_once(log):
    backend = SlowBackend()
    async with running(namespaces=[backend], check=False) as target:
        hosts = await association(target)
        await _write_in_flight(hosts[1])
        await until(lambda: backend.begun)
        stopping = asyncio.ensure_future(target.stop(drain_seconds=NEVER))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        target.stop_now()
        await asyncio.wait_for(stopping, 20)
        assert backend.closed


async def test_a_read_never_shows_half_a_block():
    """One queue fills a range again and again, the other reads it: every block is of one value."""
    async with running("tcp") as target:
        hosts = await association(target, queues=2)
        writer, reader = hosts[1:]
        stop = False

        async def write() -> None:
            value = 0
            while not stop:
                value = (value + 1) % 256
                if value % 2:
                    assert (await writer.write(0, bytes([value]) * 8192, value)).status == 0
                else:
                    assert (await writer.write(0, bytes([value]) * 65536, value, in_capsule=False)).status == 0

        task = asyncio.ensure_future(write())
        seen = set()
        for _ in range(60):
            await reader.send(b"".join(reader.capsule(io_sqe(cid, READ, 0, 128)) for cid in range(8)))
            for _ in range(8):
                data = (await reader.completion()).data
                for block in range(0, 65536, 512):
                    assert len(set(data[block : block + 512])) == 1, block
                seen.add(data[0])
        stop = True
        await task
        assert len(seen) > 10


async def test_flush_of_all_namespaces():
    backends = [SlowBackend(), SlowBackend()]
    async with running(namespaces=backends) as target:
        hosts = await association(target)
        assert (await hosts[1].call(make_sqe(1, FLUSH, nsid=0xFFFFFFFF))).status == 0
        assert [backend.flushes for backend in backends] == [1, 1]


async def test_a_defect_in_a_handler_costs_one_command(monkeypatch, log):
    def broken(*_):
        raise RuntimeError("a defect for the test")

    async with running() as target:
        hosts = await association(target)
        monkeypatch.setattr(Ramdisk, "flush", broken)
        assert (await hosts[1].call(make_sqe(1, FLUSH, nsid=1))).status == 0x06
        assert (await hosts[1].read(0, 1)).status == 0
        assert len(causes(log.records, "a defect for the test")) == 1
        monkeypatch.undo()


async def test_a_defect_in_the_queue_costs_one_connection(monkeypatch, log):
    def broken(*_):
        raise RuntimeError("a defect for the test")

    async with running() as target:
        hosts = await association(target, queues=2)
        driver = next(driver for driver in target.drivers if driver.queue.ctx.qid == 1)
        monkeypatch.setattr(driver.driver, "handle", broken)
        await hosts[1].send(hosts[1].capsule(io_sqe(1, READ, 0, 1)))
        await hosts[1].ended()
        assert (await hosts[2].read(0, 1)).status == 0
        assert len(causes(log.records, "internal error: RuntimeError: a defect for the test")) == 1
