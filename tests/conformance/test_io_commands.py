"""Compare, Verify, Write Uncorrectable and Copy as a host sends them, on memory and on a file, from two queues."""

from __future__ import annotations

import asyncio
import os
import struct

import pytest

from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import IN_CAPSULE, WRITE, RawHost, association, io_sqe, make_sqe, running

WRITE_UNCORRECTABLE, COMPARE, VERIFY, COPY = 0x04, 0x05, 0x0C, 0x19
UNRECOVERED, DIFFERS, FAILED_FUSED = 0x281, 0x285, 0x09


@pytest.fixture(params=["memory", "file"])
async def queues(request, tmp_path):
    backend = Ramdisk("1M") if request.param == "memory" else FileBackend(tmp_path / "disk", size="1M")
    async with running(namespaces=[backend]) as target:
        hosts = await association(target, queues=2)
        yield hosts[1], hosts[2]
        for host in hosts:
            host.close()


async def send_data(host: RawHost, sqe: bytes, data: bytes) -> int:
    """Send the data that the target asks for; return the status of the command."""
    await host.send(host.capsule(sqe))
    cid = int.from_bytes(sqe[2:4], "little")
    ttag, offset, length = await host.r2t(cid)
    await host.send(host.h2c(cid, ttag, offset, data[offset : offset + length]))
    return (await host.completion(cid)).status


async def test_compare_with_data_in_the_capsule_and_asked_for(queues):
    first, second = queues
    data = os.urandom(4096)
    assert (await first.write(3, data)).status == 0
    other = data[:-1] + bytes([data[-1] ^ 1])
    for sent, status in ((data, 0), (other, DIFFERS), (data, 0)):
        assert (await second.call(io_sqe(5, COMPARE, 3, 8, sgl=IN_CAPSULE), sent)).status == status
        assert await send_data(second, io_sqe(6, COMPARE, 3, 8), sent) == status


async def test_blocks_marked_on_one_queue_cannot_be_read_on_the_other(queues):
    first, second = queues
    for cid in range(3):
        assert (await first.write(0, b"w" * 4096, cid)).status == 0
        assert (await second.read(0, 8, cid)).status == 0
    assert (await first.call(io_sqe(1, WRITE_UNCORRECTABLE, 2, 3, length=0))).status == 0
    for host in queues:
        assert (await host.read(0, 8)).status == UNRECOVERED
        assert (await host.read(0, 2)).data == b"w" * 1024
        assert (await host.call(io_sqe(1, VERIFY, 0, 8, length=0))).status == UNRECOVERED
        assert (await host.call(io_sqe(1, COMPARE, 0, 8, sgl=IN_CAPSULE), b"w" * 4096)).status == UNRECOVERED
    assert (await second.write(2, b"x" * 1536)).status == 0
    for host in queues:
        assert (await host.read(0, 8)).data == b"w" * 1024 + b"x" * 1536 + b"w" * 1536
        assert (await host.call(io_sqe(1, VERIFY, 0, 2048, length=0))).status == 0


async def test_copy(queues):
    first, second = queues
    data = os.urandom(8192)
    assert (await first.write(0, data)).status == 0
    ranges = b"".join(struct.pack("<8xQH14x", slba, nlb - 1) for slba, nlb in ((8, 8), (0, 4)))
    sqe = make_sqe(2, COPY, nsid=1, length=len(ranges), sgl=IN_CAPSULE, cdw10=100, cdw12=1)
    assert (await second.call(sqe, ranges)).status == 0
    assert (await first.read(100, 13)).data == data[4096:] + data[:2048] + bytes(512)
    assert await send_data(second, make_sqe(2, COPY, nsid=1, length=64, cdw10=200, cdw12=1), ranges) == 0
    assert (await first.read(200, 12)).data == data[4096:] + data[:2048]
    # The second range overlaps the destination: ranges within the atomic unit are read before any of them is written.
    completion = await second.call(make_sqe(2, COPY, nsid=1, length=64, sgl=IN_CAPSULE, cdw10=2, cdw12=1), ranges)
    assert (completion.status, completion.dw0) == (0, 0)
    assert (await first.read(0, 14)).data == data[:1024] + data[4096:] + data[:2048]


async def test_fused_increments_from_two_queues(queues):
    """Both queues increment a counter by Compare and Write: no increment is lost, in any order."""

    async def step(host, cid: int, data: tuple[bytes, bytes], asked: bool) -> list[int]:
        """Increment; return the statuses of both halves, whose CIDs are `cid` and the next."""
        kind = {} if asked else {"sgl": IN_CAPSULE}
        compare = io_sqe(cid, COMPARE, 9, 1, flags=0x41, **kind)
        write = io_sqe(cid + 1, WRITE, 9, 1, flags=0x42, **kind)
        if asked:
            await host.send(host.capsule(compare) + host.capsule(write))
            for number in (cid, cid + 1):
                ttag, _, _ = await host.r2t(number)
                await host.send(host.h2c(number, ttag, 0, data[number - cid]))
        else:
            await host.send(host.capsule(compare, data[0]) + host.capsule(write, data[1]))
        return [(await host.completion(number)).status for number in (cid, cid + 1)]

    async def count(host, cid: int, asked: bool) -> None:
        for _ in range(12):
            statuses: list[int] = []
            while statuses != [0, 0]:
                old = (await host.read(9, 1, cid)).data
                new = (int.from_bytes(old[:8], "little") + 1).to_bytes(8, "little") + bytes(504)
                statuses = await step(host, cid + 1, (old, new), asked)
                assert statuses in ([0, 0], [DIFFERS, FAILED_FUSED])

    first, second = queues
    await asyncio.gather(count(first, 10, False), count(second, 20, True))
    assert int.from_bytes((await first.read(9, 1)).data[:8], "little") == 24
