"""Atomic writes as Identify reports them (AWUN, NAWUN, NACWU), with queues that read and write at the same time."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest

from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.target.namespaces.namespace import ATOMIC_WRITE_BYTES
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import C2H, IN_CAPSULE, READ, WRITE, io_sqe, make_sqe
from tests.protocol.wire import sent, split
from tests.target.backend_tools import Hidden
from tests.target.harness import Target
from tests.target.namespaces.test_namespace_model import Queue
from tests.target.queue.queue_wire import r2ts

UNIT = ATOMIC_WRITE_BYTES // 512
COPY = 0x19


def two_queues(backend, dgst=0):
    target = Target(backend)
    target.admin()
    return target, [Queue(target, qid, dgst) for qid in (1, 2)]


def data_of(out):
    return b"".join(pdu[24:] for pdu in split(out) if pdu[0] == C2H)


def warm(queue, blocks):
    """Give the queue's fast path templates of writes and reads of so many blocks."""
    for _ in range(2):
        for cid, ttag, length in r2ts(queue.feed(queue.capsule(io_sqe(90, WRITE, 1000, blocks)))):
            queue.feed(queue.h2c(cid, ttag, 0, bytes(length)))
        queue.feed(queue.capsule(io_sqe(91, READ, 1000, blocks)))


def test_the_units_agree():
    assert ATOMIC_WRITE_BYTES == 32 * 1024
    admin = Target().admin()
    assert IDENTIFY_NAMESPACE.parse(admin.read_bytes(admin.identify(0, 1))).nawun + 1 == UNIT


@pytest.mark.parametrize("backend", [Ramdisk, Hidden])
@pytest.mark.parametrize("fast_path", [False, True])
@pytest.mark.parametrize("size", [512, 1000, 5000])
def test_no_reader_sees_a_part_of_an_atomic_write(backend, fast_path, size):
    """Its data comes in pieces; between any two of them another queue reads the range, and some before and behind."""
    _, (writer, reader) = two_queues(backend("1M"))
    if fast_path:
        warm(writer, UNIT)
    [(cid, ttag, length)] = r2ts(writer.feed(writer.capsule(io_sqe(1, WRITE, 8, UNIT))))
    raw = writer.h2c(cid, ttag, 0, b"x" * length)
    seen = set()
    for at in range(0, len(raw), size):
        writer.feed(raw[at : at + size])
        data = data_of(reader.feed(reader.capsule(io_sqe(2, READ, 0, UNIT + 16))))
        assert not any(data[:4096]) and not any(data[-4096:])
        seen.add(data[4096:-4096])
    assert seen == {bytes(length), b"x" * length}


@pytest.mark.parametrize("backend", [Ramdisk, Hidden])
def test_overlapping_atomic_writes_come_one_after_the_other(backend):
    """The example of the specification: whatever the order of their data, the result is no mixture."""
    for seed in range(20):
        chance = random.Random(seed)
        _, queues = two_queues(backend("1M"))
        parts = []
        for number, queue in enumerate(queues):
            warm(queue, UNIT)
            [(cid, ttag, length)] = r2ts(queue.feed(queue.capsule(io_sqe(1, WRITE, number, UNIT))))
            raw = queue.h2c(cid, ttag, 0, bytes([number + 1]) * length)
            parts.append([(queue, raw[at : at + 3000]) for at in range(0, len(raw), 3000)])
        while any(parts):
            chosen = chance.choice([each for each in parts if each])
            queue, part = chosen.pop(0)
            queue.feed(part)
        data = data_of(queues[0].feed(queues[0].capsule(io_sqe(2, READ, 0, UNIT + 1))))
        blocks = [data[at] for at in range(0, len(data), 512)]
        assert blocks in ([1] * UNIT + [2], [1] + [2] * UNIT)


@pytest.mark.parametrize("dgst", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 24, 600, 40000, 70000])
def test_a_read_that_is_sent_in_parts_is_one_reader(dgst, taken):
    """The rest of a payload that the socket took in part is of the same moment."""
    target, (reader, writer) = two_queues(Ramdisk("1M"), dgst)
    blocks = UNIT * 2
    connection = reader.connection
    request = b"".join(reader.capsule(io_sqe(cid, READ, 0, blocks)) for cid in (1, 2, 3))
    buffer = connection.next_buffer()
    buffer[: len(request)] = request
    reader.queue.handle(connection.bytes_received(len(request), 0.0), 0.0)
    out = b"".join(bytes(each) for each in connection.data_to_send())[:taken]
    connection.bytes_sent(len(out))
    for value in (1, 2):
        data = bytes([value]) * (UNIT * 512)
        for at in (0, UNIT // 2):
            for cid, ttag, length in r2ts(writer.feed(writer.capsule(io_sqe(5, WRITE, at, UNIT)))):
                writer.feed(writer.h2c(cid, ttag, 0, data[:length]))
        part = b"".join(bytes(each) for each in connection.data_to_send())[:taken]
        connection.bytes_sent(len(part))
        out += part
    out += sent(connection)
    for pdu in split(out):
        if pdu[0] != C2H:
            continue
        data = pdu[24 : 24 + blocks * 512]
        blocks_seen = [data[at * 512] for at in range(blocks)]
        half = UNIT // 2
        states = ([0] * UNIT * 2, [1] * UNIT + [0] * UNIT, [1] * (UNIT + half) + [0] * half)
        later = ([2] * UNIT + [1] * half + [0] * half, [2] * (UNIT + half) + [0] * half)
        assert blocks_seen in (*states, *later)
    assert target.subsystem.namespaces[1].memory[0] == 2


@pytest.mark.parametrize("nowait", [False, True])
async def test_a_files_readers_and_writers(tmp_path, nowait):
    """With real threads, each read, compare or copy sees a write of a unit whole."""
    backend = FileBackend(tmp_path / "disk", size="1M", workers=4)
    await backend.open()
    if not nowait:
        backend._read_nowait = backend._write_nowait = False
    size = ATOMIC_WRITE_BYTES
    torn = []

    async def write(value: int) -> None:
        for step in range(30):
            result = backend.write(0, memoryview(bytes([value + step % 2]) * size), fua=step % 7 == 0)
            if result is not None:
                await result
            await asyncio.sleep(0)

    async def read() -> None:
        for _ in range(60):
            result = backend.acquire_read(0, size)
            lease = result if not hasattr(result, "__await__") else await result
            torn.append(len(set(bytes(lease.view[::512]))))
            lease.release()
            await asyncio.sleep(0)

    async def replace() -> None:
        """Count by compare-and-write: no increment is lost."""
        for _ in range(20):
            while True:
                lease = backend.acquire_read(size, 512)
                lease = lease if not hasattr(lease, "__await__") else await lease
                old = bytes(lease.view)
                lease.release()
                new = struct.pack("<I508x", struct.unpack_from("<I", old)[0] + 1)
                if await backend.compare_and_write(size, memoryview(old), memoryview(new)):
                    break

    await asyncio.gather(write(1), write(11), read(), read(), replace(), replace(), replace())
    assert set(torn) == {1}
    lease = backend.acquire_read(size, 512)
    lease = lease if not hasattr(lease, "__await__") else await lease
    assert struct.unpack_from("<I", lease.view)[0] == 60
    lease.release()
    await backend.close()


async def test_a_copy_within_the_unit_is_one_write():
    """Its sources are read, then all is written in one step; another queue sees none of it before."""
    target, (copier, reader) = two_queues(Hidden("1M"))
    backend = target.subsystem.namespaces[1].backend
    seen = []
    write = backend.write

    def watch(offset, data, *, fua=False):
        seen.append((data_of(reader.feed(reader.capsule(io_sqe(7, READ, 500, UNIT)))), len(data)))
        return write(offset, data, fua=fua)

    for at in (0, 100):
        copier.feed(copier.capsule(io_sqe(1, WRITE, at, 16, sgl=IN_CAPSULE), b"x" * 8192))
    backend.write = watch
    data = b"".join(struct.pack("<8xQH14x", at, 15) for at in (0, 100, 0, 100))
    copier.feed(copier.capsule(make_sqe(3, COPY, nsid=1, length=128, sgl=IN_CAPSULE, cdw10=500, cdw12=3), data))
    await asyncio.wait(copier.driver.tasks)
    assert seen == [(bytes(32768), 32768)]
    assert data_of(reader.feed(reader.capsule(io_sqe(8, READ, 500, UNIT)))) == b"x" * 32768
