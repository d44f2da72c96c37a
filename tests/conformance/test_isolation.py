"""The shares of one host in common resources (docs/isolation.md): once with a silent host, once with a slow one.

`greedy` is the host that holds as much as it can; `other`, another association, must be served at once. The bounds in
seconds measure nothing: without shares `other` would not be served at all.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from nvmeof.protocol.config import BACKLOG_BYTES
from nvmeof.spec.status import Status
from nvmeof.target import connections
from nvmeof.target.core.fifo_lock import FifoLock
from nvmeof.target.core.owner import OWNER
from nvmeof.target.projection.association import COPIES_MOST
from nvmeof.target.queue.queue import RUNNING_MOST
from nvmeof.target.server import Target
from nvmeof.target.simple_config import simple_config
from nvmeof.target.storage.file import WORKERS, FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import PortConfig, SubsystemConfig, TargetConfig
from tests.conformance.rawhost import (
    IN_CAPSULE,
    READ,
    WRITE,
    RawHost,
    admin,
    association,
    causes,
    io,
    io_sqe,
    make_sqe,
    until,
)
from tests.conformance.sharing import (
    AT_ONCE,
    MIB,
    OTHER,
    SMALL,
    answer_slowly,
    behaving,
    served,
    target_of,
    without_runs,
)


class Gate:
    """A gate for a file's system calls on one range: they wait, as on a slow disk."""

    def __init__(self, backend: FileBackend, end: int) -> None:
        self.open = threading.Event()
        self.begun = 0
        backend._write_nowait = backend._read_nowait = False
        for name in ("_read_fully", "_write_fully"):
            setattr(backend, name, self._gated(getattr(backend, name), end))

    def _gated(self, call: Callable[..., None], end: int) -> Callable[..., None]:
        def gated(view: memoryview, offset: int, *rest: Any) -> None:
            if offset < end:
                self.begun += 1
                assert self.open.wait(30)
            call(view, offset, *rest)

        return gated


@pytest.mark.parametrize("hogs", [1, 5])
async def test_reads_that_are_not_received(tmp_path, manner, hogs):
    async with target_of(FileBackend(tmp_path / "disk", size=16 * MIB)) as target:
        greedy = []
        for _ in range(hogs):
            first = await admin(target)
            greedy += [await io(target, first.cntlid, qid, options=SMALL) for qid in range(1, 7)]
        async with behaving(manner, greedy):
            for host in greedy:
                await host.send(b"".join(host.capsule(io_sqe(cid, READ, 0, 2048)) for cid in range(16)))
            await until(lambda: all(driver.queue.staging.reads for driver in target.drivers if driver.queue.ctx.qid))
            await served(target)
            assert target.pool.used_bytes <= target.pool.limit_bytes + target.pool.reserve_bytes
            if hogs == 1:
                assert target.pool.used_bytes <= target.pool.limit_bytes // 2 + MIB


async def test_reads_of_memory_that_are_not_received(manner):
    """Their output is the namespace's own memory: it takes nothing from the share of other queues, and is not copied
    except for a partly sent rest.
    """
    async with target_of(Ramdisk(16 * MIB)) as target:
        first = await admin(target)
        greedy = [await io(target, first.cntlid, qid, options=SMALL) for qid in range(1, 7)]
        connections = [driver.connection for driver in target.drivers if driver.queue.ctx.qid]
        async with behaving(manner, greedy):
            for cids in (range(16), range(16, 32)):  # nothing of the second sixteen is received
                for host in greedy:
                    await host.send(b"".join(host.capsule(io_sqe(cid, READ, 0, 2048)) for cid in cids))
                await until(lambda: not any(connection.want_read for connection in connections))
                assert all(BACKLOG_BYTES < connection.out.pending_bytes < 17 * MIB for connection in connections)
            await served(target)
            assert all(connection.out.pending_bytes < 17 * MIB for connection in connections)
            assert target.pool.used_bytes <= target.pool.reserve_bytes


async def test_r2ts_that_are_not_answered(tmp_path, manner):
    disks = (Ramdisk(16 * MIB), FileBackend(tmp_path / "disk", size=16 * MIB))
    async with target_of(*disks) as target:
        first = await admin(target)
        greedy = [await io(target, first.cntlid, qid, options=SMALL) for qid in range(1, 7)]

        for host in greedy:
            await host.send(b"".join(host.capsule(io_sqe(cid, WRITE, 0, 2048, nsid=2)) for cid in range(16)))
        answering = [asyncio.create_task(answer_slowly(host)) for host in greedy if manner == "slow"]
        await until(lambda: target.pool.used_bytes >= target.pool.limit_bytes // 2)
        for nsid in (1, 2):
            await served(target, nsid=nsid)
        assert target.pool.used_bytes <= target.pool.limit_bytes // 2 + MIB
        for task in answering:
            task.cancel()


async def test_a_host_comes_back_at_once(tmp_path, manner):
    """Commands of its old queues that had not begun are dropped; the host need not wait for begun Reads either."""
    async with target_of(FileBackend(tmp_path / "disk", size=16 * MIB)) as target:
        first, *greedy = await association(target, queues=4)
        async with behaving(manner, greedy):
            for host in greedy:
                await host.send(b"".join(host.capsule(io_sqe(cid, READ, 0, 2048)) for cid in range(16)))
            await until(lambda: target.pool.used_bytes > 4 * MIB)
        for host in (first, *greedy):
            host.close()
        async with asyncio.timeout(AT_ONCE):
            hosts = await association(target)
            assert (await hosts[1].read(0, 8)).status == 0


async def test_a_connect_waits_for_writes_that_have_begun_alone(tmp_path):
    backend = FileBackend(tmp_path / "disk", size=16 * MIB)
    async with target_of(backend) as target:
        without_runs(target)
        gate = Gate(backend, 8 * MIB)
        first, host = await association(target)
        await host.send(b"".join(host.capsule(io_sqe(cid, WRITE, 8 * cid, 8, sgl=IN_CAPSULE), b"w" * 4096)
                                 for cid in range(24)))  # fmt: skip
        await until(lambda: gate.begun == WORKERS // 2)
        first.close()
        host.close()
        await until(lambda: not target.drivers)
        again = await RawHost.open(target)
        connecting = asyncio.create_task(again.connect())
        await served_beside(target)
        assert not connecting.done()
        gate.open.set()
        async with asyncio.timeout(AT_ONCE):
            await connecting
        assert gate.begun <= WORKERS // 2, "the others have been given up"


async def served_beside(target: Target) -> None:
    """Check that another host uses the fast part of the file, by threads."""
    hosts = await association(target, **OTHER)
    async with asyncio.timeout(AT_ONCE):
        assert (await hosts[1].write(16384, b"v" * 4096)).status == 0
        assert (await hosts[1].read(16384, 8)).data == b"v" * 4096
    for host in hosts:
        host.close()


@pytest.mark.parametrize("hogs", [1, 3])
@pytest.mark.parametrize("opcode", [READ, WRITE])
async def test_the_threads_of_a_file(tmp_path, opcode, hogs):
    """A host whose blocks are slow occupies half of the threads, and its queue for threads holds up no other host."""
    backend = FileBackend(tmp_path / "disk", size=16 * MIB)
    async with target_of(backend) as target:
        without_runs(target)
        gate = Gate(backend, 8 * MIB)
        for number in range(hogs):
            _, *greedy = await association(target, queues=4, hostid=bytes([number]) * 16)
            for index, host in enumerate(greedy):
                for cid in range(30):
                    at = 8 * (30 * (4 * number + index) + cid)
                    sgl = {"sgl": IN_CAPSULE} if opcode == WRITE else {}
                    data = b"w" * 4096 if opcode == WRITE else b""
                    await host.send(host.capsule(io_sqe(cid, opcode, at, 8, **sgl), data))
        # each gets half of what the ones before it have left
        await until(lambda: gate.begun >= {1: 4, 3: 7}[hogs] - 1)
        await served_beside(target)
        gate.open.set()


@pytest.mark.parametrize("hogs", [1, 3])
async def test_the_threads_of_a_file_whose_runs_are_slow(tmp_path, hogs):
    """The same with writes that are handed over to threads as runs."""
    backend = FileBackend(tmp_path / "disk", size=16 * MIB)
    async with target_of(backend) as target:
        open_, begun, runs = threading.Event(), [], backend.runs
        write_now = runs.write_now

        def gated(buffers, offsets, length):
            if min(offsets) < 8 * MIB:
                begun.append(offsets)
                open_.wait(30)
            return write_now(buffers, offsets, length)

        runs.write_now = gated
        for number in range(hogs):
            _, *greedy = await association(target, queues=4, hostid=bytes([number]) * 16)
            for index, host in enumerate(greedy):
                for cid in range(30):
                    at = 8 * (30 * (4 * number + index) + cid)
                    await host.send(host.capsule(io_sqe(cid, WRITE, at, 8, sgl=IN_CAPSULE), b"w" * 4096))
        await until(lambda: len(begun) >= {1: 4, 3: 7}[hogs] - 1)
        await served_beside(target)
        open_.set()


async def test_range_locks_of_a_file(tmp_path):
    """With more commands than the table of locks holds, a host's commands wait in a separate queue."""
    backend = FileBackend(tmp_path / "disk", size=16 * MIB)
    async with target_of(backend) as target:
        without_runs(target)
        gate = Gate(backend, 8 * MIB)
        _, *greedy = await association(target, queues=8, sqsize=127)
        for host in greedy:
            await host.send(b"".join(host.capsule(io_sqe(cid, READ, 8 * cid, 8)) for cid in range(100)))
        await until(lambda: len(backend._ranges) == 800)
        await served_beside(target)
        gate.open.set()


async def test_commands_in_the_backends_of_one_queue(tmp_path):
    """No more commands are received while many are in progress: each holds its data."""
    backend = FileBackend(tmp_path / "disk", size=16 * MIB)
    async with target_of(backend) as target:
        without_runs(target)
        gate = Gate(backend, 16 * MIB)
        _, greedy = await association(target, sqsize=1023)
        sending = asyncio.create_task(
            greedy.send(b"".join(greedy.capsule(io_sqe(cid, WRITE, 16 * cid, 16, sgl=IN_CAPSULE), b"w" * 8192)
                                 for cid in range(1000)))
        )  # fmt: skip
        queue = next(driver.queue for driver in target.drivers if driver.queue.ctx.qid)
        await until(lambda: queue.crowded and queue.pending >= RUNNING_MOST)
        await asyncio.sleep(0.1)
        assert queue.pending < RUNNING_MOST + 40  # what one receive brings
        gate.open.set()
        for _ in range(1000):
            assert (await greedy.completion()).status == 0
        await sending
        assert not queue.crowded


async def test_log_pages_that_are_not_received(manner):
    async with target_of(Ramdisk(MIB)) as target:
        greedy = [await admin(target, sqsize=127) for _ in range(4)]
        async with behaving(manner, greedy):
            for host in greedy:
                page = [make_sqe(cid, 0x02, length=MIB, cdw10=0xFFFF << 16 | 1, cdw11=3) for cid in range(64)]
                await host.send(b"".join(map(host.capsule, page)))
            await until(lambda: all(driver.queue.staging.reads for driver in target.drivers))
            await served(target)
            assert target.pool.used_bytes <= target.pool.limit_bytes


async def test_the_discovery_log_of_many_subsystems(manner):
    """Hosts read the log in pieces, in a loop: a piece costs next to nothing."""
    subsystems = tuple(SubsystemConfig(nqn=f"nqn.2026-01.org.example:{number}") for number in range(1000))
    ports = (PortConfig(host="127.0.0.1", port=0),)
    discovery = "nqn.2014-08.org.nvmexpress.discovery"
    async with Target(TargetConfig(subsystems=subsystems, ports=ports), options=SMALL) as target:
        greedy = await admin(target, subnqn=discovery, sqsize=127)

        def piece(cid: int, offset: int) -> bytes:
            return make_sqe(cid, 0x02, length=4096, cdw10=1023 << 16 | 0x70) + bytes(0) if not offset else (
                make_sqe(cid, 0x02, length=4096, cdw10=1023 << 16 | 0x70)[:48] + offset.to_bytes(8, "little") + bytes(8)
            )  # fmt: skip

        async with behaving(manner, [greedy]):
            await greedy.send(b"".join(greedy.capsule(piece(cid, 4096 * cid)) for cid in range(127)))
            other = await admin(target, subnqn=discovery, **OTHER)
            async with asyncio.timeout(AT_ONCE):
                whole = [await other.call(piece(1, at)) for at in range(0, 1001 << 10, 4096)]
        assert all(completion.status == 0 for completion in whole)
        assert b"".join(completion.data for completion in whole).count(b"nqn.2026-01.org.example:") == 1000
        RawHost.close_all()


async def test_fused_commands_get_memory_for_both_at_once(tmp_path, manner):
    """One host holds all it can get; memory for only one of two halves would be useless."""
    async with target_of(FileBackend(tmp_path / "disk", size=16 * MIB)) as target:
        _, greedy = await association(target)
        await greedy.send(b"".join(greedy.capsule(io_sqe(cid, WRITE, 0, 2048)) for cid in range(16)))
        await until(lambda: target.pool.used_bytes >= target.pool.limit_bytes // 2)
        answering = asyncio.create_task(answer_slowly(greedy)) if manner == "slow" else None
        _, host = await association(target, **OTHER)
        blocks = 2048
        for cid, opcode, fuse in ((1, 0x05, 0x41), (2, WRITE, 0x42)):
            await host.send(host.capsule(io_sqe(cid, opcode, 0, blocks, flags=fuse)))
        async with asyncio.timeout(AT_ONCE):
            asked = [await host.r2t(1), await host.r2t(2)]
        for cid, (ttag, _, length) in enumerate(asked, 1):
            await host.send(host.h2c(cid, ttag, 0, bytes(length)))
        assert [(await host.completion(cid)).status for cid in (1, 2)] == [0, 0]
        if answering is not None:
            answering.cancel()


async def test_fused_commands_that_are_too_long_are_refused(tmp_path):
    path = tmp_path / "disk"
    subsystem = simple_config(
        [FileBackend(path, size=16 * MIB)], "nqn.2026-01.org.example:long", "tcp", "127.0.0.1:0", None
    ).subsystems[0]
    subsystem = SubsystemConfig(nqn=subsystem.nqn, namespaces=subsystem.namespaces, max_transfer_bytes=4 * MIB)
    ports = (PortConfig(host="127.0.0.1", port=0),)
    async with Target(TargetConfig(subsystems=(subsystem,), ports=ports, staging_bytes=16 * MIB)) as target:
        _, host = await association(target)
        for cid, opcode, fuse in ((1, 0x05, 0x41), (2, WRITE, 0x42)):
            await host.send(host.capsule(io_sqe(cid, opcode, 0, 8192, flags=fuse)))
        statuses = [await host.completion(cid) for cid in (1, 2)]
        assert [each.status for each in statuses] == [Status.ATOMIC_WRITE_UNIT_EXCEEDED] * 2
        assert all(each.dnr for each in statuses)
        assert (await host.read(0, 8192)).status == 0
        RawHost.close_all()


async def test_silent_hosts_are_ended_when_one_that_has_nothing_waits(tmp_path, monkeypatch, log):
    """As many associations are ended as the reserve needs; those that still move data stay."""
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.5)
    async with target_of(FileBackend(tmp_path / "disk", size=16 * MIB), staging_bytes=4 * MIB) as target:
        _, slow = await association(target)
        await slow.send(slow.capsule(io_sqe(0, WRITE, 0, 2048)))
        slow_ttag, _, _ = await slow.r2t(0)
        for number in range(6):
            _, silent = await association(target, hostid=bytes([number]) * 16)
            await silent.send(silent.capsule(io_sqe(0, WRITE, 0, 2048)))
        await until(lambda: target.pool.starving)
        hosts = await association(target, **OTHER)
        reading = asyncio.create_task(hosts[1].read(0, 2048))
        cid = 0
        while not reading.done():
            await slow.send(slow.h2c(cid, slow_ttag, 0, bytes(MIB)))
            assert (await slow.completion(cid)).status == 0
            cid += 1
            await slow.send(slow.capsule(io_sqe(cid, WRITE, 0, 2048)))
            slow_ttag, _, _ = await slow.r2t(cid)
            await asyncio.sleep(0.1)
        assert (await reading).status == 0
        assert causes(log.records, "others wait for the memory")


async def test_namespace_management_takes_turns_by_host():
    """A host with many requests does not delay one with few."""
    lock, order = FifoLock(), []
    runtime = SimpleNamespace(create_future=asyncio.get_running_loop().create_future)

    async def operation(owner: str) -> None:
        OWNER.set(owner)
        async with lock.turn(runtime):
            order.append(owner)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(operation("greedy")) for _ in range(10)]
    tasks.append(asyncio.create_task(operation("other")))
    await asyncio.gather(*tasks)
    assert order[:3] == ["greedy", "greedy", "other"] and order.count("greedy") == 10


async def test_copies_of_one_host(tmp_path):
    """At most a few copies are in progress at a time, since each may have a buffer."""
    backend = FileBackend(tmp_path / "disk", size=16 * MIB)
    async with target_of(backend) as target:
        without_runs(target)
        gate = Gate(backend, 8 * MIB)
        first, greedy = await association(target)
        count, source = 24, struct.pack("<8xQHHI8x", 0, 7, 0, 0)
        for cid in range(count):
            sqe = make_sqe(cid, 0x19, nsid=1, length=32, sgl=IN_CAPSULE, cdw10=8 * cid + 64)
            await greedy.send(greedy.capsule(sqe, source))
        [controller] = target.subsystems[target.subnqn].controllers.values()
        await until(lambda: sum(map(len, controller.view.copies._lines.values())) == count - COPIES_MOST)
        await served_beside(target)
        gate.open.set()
        assert sorted([(await greedy.completion()).status for _ in range(count)]) == [0] * count
        assert first.cntlid == controller.cntlid and controller.view.copies._free == COPIES_MOST
