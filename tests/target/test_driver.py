"""One socket, one queue: partial sends, tiny receives, turns, and the order of ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import struct
import threading
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from nvmeof.protocol.connection import TargetConnection
from nvmeof.target.driver import BATCHING, printable
from nvmeof.target.server import Target
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.transport import SocketOptions
from nvmeof.transport.memory import MemoryTransport
from tests.conformance.rawhost import (
    FLUSH,
    IN_CAPSULE,
    READ,
    WRITE,
    RawHost,
    association,
    connect_data,
    io_sqe,
    make_sqe,
    running,
    until,
)
from tests.target.backend_tools import Hidden

FORMAT, LBA_STATUS, DATASET_MANAGEMENT = 0x80, 0x86, 0x09


@pytest.fixture(autouse=True)
def left_open():
    yield
    RawHost.close_all()


@pytest.fixture
def tiny(monkeypatch):
    """Let every receive give at most seven bytes."""

    transport = MemoryTransport(max_chunk_bytes=7)
    monkeypatch.setattr("nvmeof.transport.base._transports", {"memory": transport})


@pytest.mark.parametrize("dgst", [0, 3])
@pytest.mark.parametrize("capacity", [1, 100, 5000])
async def test_partial_sends(dgst, capacity):
    """The socket takes a byte, or a hundred, at a time: nothing is lost, repeated or torn."""
    size = 4096 if capacity > 1 else 512
    async with running(options=SocketOptions(sndbuf_bytes=capacity)) as target:
        hosts = await association(target, dgst=dgst)
        data = bytes(range(256)) * (size // 256)
        for cid in range(3):
            assert (await hosts[1].write(0, data, cid)).status == 0
        for _ in range(3):
            await hosts[1].send(b"".join(hosts[1].capsule(io_sqe(cid, READ, 0, size // 512)) for cid in range(4)))
            for cid in range(4):
                completion = await hosts[1].completion(cid)
                assert completion.status == 0 and completion.data == data


@pytest.mark.parametrize("dgst", [0, 3])
async def test_tiny_receives(tiny, dgst):
    async with running(namespaces=[Ramdisk("1M")]) as target:
        hosts = await association(target, dgst=dgst)
        data = bytes(range(256)) * 160
        assert (await hosts[1].write(0, data, in_capsule=False)).status == 0
        assert (await hosts[1].write(100, data[:4096])).status == 0
        assert (await hosts[1].read(0, 80)).data == data
        assert (await hosts[1].read(100, 8)).data == data[:4096]


async def test_a_partly_sent_read_is_not_torn():
    """A payload whose header the socket took is not torn by a later write: each block is of one value."""
    async with running(options=SocketOptions(sndbuf_bytes=700)) as target:
        hosts = await association(target, queues=2)
        assert (await hosts[1].write(0, b"a" * 8192)).status == 0
        await hosts[1].send(hosts[1].capsule(io_sqe(1, READ, 0, 16)))
        await asyncio.sleep(0.01)
        assert (await hosts[2].write(0, b"b" * 8192)).status == 0
        data = (await hosts[1].completion(1)).data
        blocks = [set(data[at : at + 512]) for at in range(0, 8192, 512)]
        assert all(len(block) == 1 for block in blocks)


async def test_a_host_that_floods_does_not_starve_others():
    """A socket is read a bounded number of times before other sockets are read."""
    async with running(namespaces=[Ramdisk("1M")]) as target:
        hosts = await association(target, queues=2)
        flood = hosts[1].capsule(make_sqe(1, 0x7E, nsid=1)) * 400
        calls = 0
        driver = next(driver for driver in target.drivers if driver.queue.ctx.qid == 1)
        receive = driver.endpoint.recv_into

        def counted(buffer):
            nonlocal calls
            calls += 1
            return receive(buffer)

        driver.endpoint.recv_into = counted
        hosts[1].endpoint.sendmsg([flood] * 30)
        driver.driver.readable()
        assert 1 <= calls <= BATCHING.reads


async def test_a_host_that_receives_everything_does_not_starve_others():
    """The bytes of one send are bounded, also to a socket that never blocks."""
    async with running(check=False, namespaces=[Ramdisk("4M")]) as target:
        hosts = await association(target)
        driver = next(driver for driver in target.drivers if driver.queue.ctx.qid == 1)
        sent: list[int] = []

        def taken(buffers):
            sent.append(min(1 << 20, sum(map(len, buffers))))
            return sent[-1]

        driver.endpoint.sendmsg = taken
        hosts[1].endpoint.sendmsg([b"".join(hosts[1].capsule(io_sqe(cid, READ, 0, 2048)) for cid in range(31))])
        driver.driver.readable()
        assert sum(sent) <= 2 * (BATCHING.send_bytes + (1 << 20)) < 31 << 20
        await until(lambda: sum(sent) >= 31 << 20)
        assert not driver.connection.want_write


async def test_the_admin_queue_goes_last():
    """A host watches its admin queue: when it ends, the I/O queues have ended."""
    async with running() as target:
        hosts = await association(target, queues=2, kato=0)
        order: list[int] = []
        for driver in target.drivers:
            qid, finish = driver.queue.ctx.qid, driver.finish
            driver.queue.driver = type(
                "Spy",
                (),
                {
                    "finish": lambda _, reason, *, fault=False, q=qid, f=finish: (order.append(q), f(reason)),
                    "wake": lambda _: None,
                    "spawn": driver.spawn,
                },
            )()
        target.registry.end_all("the end")
        assert order == [2, 1, 0]
        for host in hosts:
            await host.ended()
        await until(lambda: not target.drivers)


class Held(Hidden):
    """A backend that erases and verifies when the test says so."""

    def __init__(self, size):
        super().__init__(size)
        self.go_on = asyncio.Event()
        self.asked = 0

    async def _later(self):
        self.asked += 1
        await self.go_on.wait()

    def write_zeroes(self, offset, length, *, deallocate, fua=False):
        return self._later()

    def verify(self, offset, length):
        return self._later()


async def test_a_host_comes_back_while_its_namespace_is_being_formatted():
    """The host waits only for its old commands on I/O queues: an erase may take hours, and overtakes nothing."""
    backend = Held("64M")
    async with running(namespaces=[backend]) as target:
        hosts = await association(target)
        await hosts[0].send(hosts[0].capsule(make_sqe(1, FORMAT, nsid=1)))
        await until(lambda: backend.asked)
        hosts[0].close()
        hosts[1].close()
        hosts = await association(target)
        assert (await hosts[1].read(0, 1)).status == 0x84, "Format In Progress"
        await hosts[1].send(hosts[1].capsule(io_sqe(3, FLUSH, 0, 1, length=0)))
        assert (await hosts[1].completion(3)).status == 0
        backend.go_on.set()
        await until(lambda: target.subsystems[target.subnqn].namespaces[1].blocked_status is None)
        assert (await hosts[1].read(0, 1)).status == 0


async def test_a_scan_without_a_waiter_ends():
    backend = Held("64M")
    async with running(namespaces=[backend]) as target:
        hosts = await association(target)
        await hosts[0].send(hosts[0].capsule(make_sqe(1, LBA_STATUS, nsid=1, length=64, cdw12=15, cdw13=0x10 << 24)))
        await until(lambda: backend.asked)
        hosts[0].close()
        await until(lambda: not target.drivers)
        backend.go_on.set()
        await until(lambda: not target.tasks)
        assert backend.asked == 1, "of sixteen pieces"


def test_names_for_the_log():
    assert printable("nqn.2026-01.org.example:a") == "nqn.2026-01.org.example:a"
    assert printable("a\nb\x1b[31m") == "'a\\nb\\x1b[31m'"


async def test_cancelled_commands_of_several_operations(tmp_path, recwarn):
    """At the target's end: results that were not awaited yet cause no warning."""
    backend = FileBackend(tmp_path / "disk", size="1M", workers=1)
    go_on = threading.Event()
    target = Target(namespaces=[backend], trtype="memory", listen="memory:0")
    await target.start()
    hosts = await association(target)
    blocked = backend._open_threads().submit(lambda: go_on.wait(10))
    deallocations = b"".join(struct.pack("<IIQ", 0, 8, 16 * number) for number in range(4))
    sqe = make_sqe(1, DATASET_MANAGEMENT, nsid=1, length=64, sgl=IN_CAPSULE, cdw10=3, cdw11=4)
    await hosts[1].send(hosts[1].capsule(sqe, deallocations))
    await until(lambda: target.tasks)
    stopping = asyncio.ensure_future(target.stop(drain_seconds=0.05))
    await asyncio.sleep(0.2)
    go_on.set()
    await blocked
    await stopping
    gc.collect()
    assert not [str(each.message) for each in recwarn if "never awaited" in str(each.message)]


async def test_a_storm_of_connects_leaves_the_loop_to_others():
    """However many Connects come at once, one turn of the loop begins at most as many as fit in a slice."""
    async with running() as target:
        slices = target.slices
        slices.slice_seconds = 0.0  # room for nothing at once, and for one piece per turn
        storm = [await RawHost.open(target) for _ in range(12)]
        seen = [0]

        def count() -> int:
            return sum(len(subsystem.controllers) for subsystem in target.subsystems.values())

        data = connect_data(target.subnqn)
        for host in storm:
            await host.send(host.capsule(make_sqe(0, 0x7F, nsid=1, length=1024, sgl=IN_CAPSULE, cdw11=31), data))
        for _ in range(2000):
            await asyncio.sleep(0)
            seen.append(count())
            if seen[-1] == len(storm):
                break
        steps = [after - before for before, after in pairwise(seen)]
        assert seen[-1] == len(storm)
        assert max(steps) == 1


async def test_a_storm_of_connections_leaves_the_loop_to_others():
    """One turn of the loop accepts at most as many as fit in a slice."""
    async with running("tcp") as target:
        target.slices.slice_seconds = 0.0
        storm = [socket.create_connection(("127.0.0.1", target.address.port)) for _ in range(12)]
        seen = [0]
        for _ in range(5000):
            await asyncio.sleep(0)
            seen.append(len(target.drivers))
            if seen[-1] == len(storm):
                break
        assert seen[-1] == len(storm)
        assert max(after - before for before, after in pairwise(seen)) == 1
        for sock in storm:
            sock.close()


async def test_reads_and_writes_precede_a_storm_of_connects(tmp_path):
    """Turns of the loop in which I/O was served are followed by one without a slice."""
    async with running(namespaces=[FileBackend(tmp_path / "disk", size="1M")]) as target:
        hosts = await association(target)
        slices, order = target.slices, []
        finish = hosts[1].capsule(io_sqe(1, READ, 0, 8))
        for number in range(3):
            slices.add("storm", partial(order.append, number))
        slices.io.served = False
        await hosts[1].send(finish)
        [driver] = [driver for driver in target.drivers if driver.queue.ctx.qid == 1]
        driver.driver.readable()
        assert slices.io.served, "an I/O queue reports that it was served"
        slices._turn()
        assert not order
        slices._turn()
        assert order
        assert (await hosts[1].completion(1)).status == 0


async def test_the_end_of_a_large_association_leaves_the_loop_to_others():
    """Its queues end at once; a few of its connections are closed per turn of the loop."""
    async with running() as target:
        hosts = await association(target, queues=12)
        target.slices.slice_seconds = 0.0
        target.registry.end_all("the end")
        assert all(driver.queue.closed and not driver.driver.receiving for driver in target.drivers)
        left = [len(target.drivers)]
        assert left[0] >= len(hosts) - 1
        while target.drivers:
            await asyncio.sleep(0)
            left.append(len(target.drivers))
        assert max(before - after for before, after in pairwise(left)) == 1
        for host in hosts:
            await host.ended()


@pytest.mark.parametrize("end", ["silent", "admin", "io", "file", "given up", "failed", "reset"])
async def test_a_connection_that_has_ended_leaves_nothing_to_the_collector(tmp_path, end):
    """A reference cycle waits for the collector, which stops the loop for long when there are many."""
    backend = FileBackend(tmp_path / "disk", size="1M")
    async with running("tcp", namespaces=[backend]) as target:
        await _one_connection(target, backend, end)  # objects that are made once exist now
        gc.collect()
        gc.disable()
        try:
            await _one_connection(target, backend, end)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            kinds = {type(each).__module__ + "." + type(each).__name__ for each in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert not {kind for kind in kinds if kind.startswith(("nvmeof.target", "nvmeof.protocol"))}


async def _one_connection(target: Target, backend: FileBackend, end: str) -> None:
    if end == "silent":
        hosts = [await RawHost.open(target)]
    else:
        hosts = await association(target, queues=0 if end == "admin" else 2)
    if end in ("file", "given up", "failed"):
        go_on, write = threading.Event(), backend._write_fully

        def late(*given: Any) -> None:
            go_on.wait(10)
            if end == "failed":
                raise OSError(errno.ECANCELED, "given up")
            write(*given)

        if end != "file":
            backend._write_fully = late
        await hosts[1].send(hosts[1].capsule(io_sqe(1, WRITE, 0, 8, sgl=IN_CAPSULE), bytes(4096)))
        if end == "file":
            assert (await hosts[1].completion(1)).status == 0
        else:
            await until(lambda: any(driver.queue.running for driver in target.drivers))
    for host in hosts:
        if end == "reset":
            host.endpoint.abort()
        else:
            host.close()
    await until(lambda: not target.drivers)
    if end in ("given up", "failed"):
        go_on.set()
        backend._write_fully = write
    await until(lambda: not target.tasks)
    del hosts
    RawHost.close_all()
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_long_receive_does_not_starve_others(monkeypatch):
    """A socket that always has more is read for a bounded time, whatever the number of receives."""
    async with running() as target:
        hosts = await association(target)
        [driver] = [driver for driver in target.drivers if driver.queue.ctx.qid == 1]
        now, calls = 0.0, 0

        def clock():
            return now

        def endless(buffer):
            nonlocal now, calls
            now += BATCHING.read_seconds / 4
            calls += 1
            buffer[:] = bytes(len(buffer))
            return len(buffer)

        driver.driver._clock = clock
        driver.endpoint.recv_into = endless
        monkeypatch.setattr(TargetConnection, "bytes_received", lambda connection, n, now: [])
        driver.driver.readable()
        assert 2 <= calls <= 6
        assert hosts
