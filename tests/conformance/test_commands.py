"""Commands that must be refused, each with its status; the queue goes on."""

from __future__ import annotations

import pytest

from nvmeof.protocol.connection import ConnectionConfig
from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from tests.conformance.rawhost import (
    FLUSH,
    IN_CAPSULE,
    READ,
    TRANSPORT,
    WRITE,
    WRITE_ZEROES,
    admin,
    association,
    causes,
    healthy,
    io,
    io_sqe,
    make_sqe,
    running,
)

OPCODE, FIELD, CONFLICT, NAMESPACE, SEQUENCE = 0x01, 0x02, 0x03, 0x0B, 0x0C
SGL_LENGTH, SGL_TYPE, SGL_OFFSET, RANGE = 0x0F, 0x11, 0x16, 0x80
BLOCKS = (1 << 20) // 512

REFUSED = {
    "read at the end": (io_sqe(7, READ, BLOCKS, 1), RANGE),
    "read over the end": (io_sqe(7, READ, BLOCKS - 1, 2), RANGE),
    "read at 2^64-1": (io_sqe(7, READ, (1 << 64) - 1, 1), RANGE),
    "write zeroes over the end": (io_sqe(7, WRITE_ZEROES, BLOCKS - 1, 2, length=0), RANGE),
    "write by R2T over the end": (io_sqe(7, WRITE, BLOCKS - 8, 16), RANGE),
    "longer than MDTS": (io_sqe(7, READ, 0, 32), FIELD),
    "write longer than MDTS": (io_sqe(7, WRITE, 0, 32), FIELD),
    "65,536 blocks": (io_sqe(7, READ, 0, 65536), FIELD),
    "longer than its SGL": (io_sqe(7, READ, 0, 2, length=512), SGL_LENGTH),
    "SGL of nothing": (io_sqe(7, READ, 0, 2, length=0), SGL_LENGTH),
    "shorter than its SGL": (io_sqe(7, WRITE, 0, 1, length=1024), SGL_LENGTH),
    "in-capsule SGL without data": (io_sqe(7, WRITE, 0, 1, sgl=IN_CAPSULE), SGL_LENGTH),
    "read into the capsule": (io_sqe(7, READ, 0, 1, sgl=IN_CAPSULE), SGL_TYPE),
    "keyed SGL": (io_sqe(7, READ, 0, 1, sgl=0x40), SGL_TYPE),
    "SGL segment": (io_sqe(7, WRITE, 0, 1, sgl=0x20), SGL_TYPE),
    "PRPs": (io_sqe(7, READ, 0, 1, flags=0), FIELD),
    "fused": (io_sqe(7, READ, 0, 1, flags=0x41), FIELD),
    "opcode": (io_sqe(7, 0x7E, 0, 1), OPCODE),
    "vendor specific": (io_sqe(7, 0xC0, 0, 1), OPCODE),
    "admin opcode": (make_sqe(7, 0x06, length=4096, cdw10=1), OPCODE),
    "fabrics type": (make_sqe(7, 0x7F, nsid=0x55), OPCODE),
    "property get": (make_sqe(7, 0x7F, nsid=4, cdw11=0x1C), OPCODE),
    "NSID 0": (io_sqe(7, READ, 0, 1, nsid=0), NAMESPACE),
    "NSID 2": (io_sqe(7, READ, 0, 1, nsid=2), FIELD),
    "NSID FFFFFFFFh": (io_sqe(7, READ, 0, 1, nsid=0xFFFFFFFF), FIELD),
    "flush of NSID 9": (make_sqe(7, FLUSH, nsid=9), FIELD),
}


@pytest.fixture
async def small():
    """Run a target whose MDTS is 8 KiB; return an admin queue and an I/O queue."""
    subsystem = SubsystemConfig(
        nqn="nqn.2026-01.org.example:small",
        namespaces=(NamespaceConfig(backend=Ramdisk("1M")),),
        max_transfer_bytes=8192,
    )
    ports = (PortConfig(transport="memory", host="small", port=0),)
    async with Target(TargetConfig(subsystems=(subsystem,), ports=ports)) as target:
        hosts = await association(target)
        yield target, hosts[1]
        for host in hosts:
            host.close()


@pytest.mark.parametrize("case", REFUSED)
async def test_a_command_that_is_refused(small, case):
    """A command is refused on both paths: as the first command, and after others that gave the fast path its
    template.
    """
    target, host = small
    sqe, status = REFUSED[case]
    assert (await host.call(sqe)).status == status
    for cid in range(3):
        assert (await host.write(5, b"w" * 512, cid)).status == 0
        assert (await host.read(5, 1, cid)).data == b"w" * 512
    assert (await host.call(sqe)).status == status
    assert (await host.read(5, 1)).data == b"w" * 512
    assert target.pool.used_bytes == 0


@pytest.mark.parametrize(
    ("sqe", "data", "status"),
    [
        (io_sqe(7, WRITE, 0, 2, sgl=IN_CAPSULE), bytes(512), SGL_LENGTH),
        (io_sqe(7, WRITE, 0, 1, sgl=IN_CAPSULE, address=1 << 40), bytes(1024), SGL_OFFSET),
        (io_sqe(7, WRITE, 0, 1, sgl=IN_CAPSULE, address=513), bytes(1024), SGL_LENGTH),
        (io_sqe(7, WRITE, BLOCKS, 1, sgl=IN_CAPSULE), bytes(512), RANGE),
        (io_sqe(7, WRITE, 0, 1), bytes(512), SGL_LENGTH),
        (io_sqe(7, READ, 0, 1), bytes(512), SGL_LENGTH),
        (make_sqe(7, FLUSH, nsid=1), bytes(512), SGL_LENGTH),
    ],
)
async def test_data_in_a_capsule_that_does_not_fit_its_command(small, sqe, data, status):
    _, host = small
    for _ in range(2):
        await host.send(host.capsule(sqe, data))
        assert (await host.completion(7)).status == status
        for cid in range(3):
            assert (await host.write(0, b"x" * 512, cid)).status == 0
            assert (await host.read(0, 1, cid)).data == b"x" * 512


async def test_excess_data_in_a_capsule_changes_nothing(small):
    _, host = small
    await host.send(host.capsule(io_sqe(7, WRITE, 0, 1, sgl=IN_CAPSULE), b"y" * 1024))
    assert (await host.completion(7)).status == 0
    assert (await host.read(0, 2)).data == b"y" * 512 + bytes(512)


async def test_unknown_admin_commands(trtype):
    async with running(trtype) as target:
        host = await admin(target)
        for opcode, status in ((0x55, OPCODE), (0xC1, OPCODE), (0x0D, OPCODE)):
            assert (await host.call(make_sqe(3, opcode))).status == status
        assert (await host.call(make_sqe(3, 0x02, length=512, cdw10=0xFE | 127 << 16))).status == 0x109
        assert (await host.call(make_sqe(3, 0x06, length=4096, cdw10=0xEE))).status == FIELD
        assert (await host.call(make_sqe(3, 0x06, length=4096, nsid=7, cdw10=0))).data == bytes(4096)  # not active
        assert (await host.call(make_sqe(3, 0x06, length=4096, nsid=0xFFFFFFF0, cdw10=0))).status == NAMESPACE
        assert (await host.call(make_sqe(3, 0x7F, nsid=0, cdw11=0x00, cdw12=1))).status == FIELD  # Property Set CAP
        host.close()


async def test_a_duplicate_cid_is_refused_and_the_first_command_completes(trtype, log):
    async with running(trtype) as target:
        hosts = await association(target)
        host = hosts[1]
        for cid in range(3):
            assert (await host.read(0, 8, cid)).status == 0
        await host.send(host.capsule(io_sqe(9, WRITE, 0, 8)))
        ttag, _, _ = await host.r2t(9)
        await host.send(host.capsule(io_sqe(9, WRITE, 0, 8)))
        assert (await host.completion(9)).status == CONFLICT
        # a run of reads: the fast path checks CIDs as well
        await host.send(b"".join(host.capsule(io_sqe(cid, READ, 0, 8)) for cid in (8, 9, 10)))
        statuses = {}
        for _ in range(3):
            completion = await host.completion()
            statuses[completion.cid] = completion.status
        assert statuses == {8: 0, 9: CONFLICT, 10: 0}
        await host.send(host.capsule(io_sqe(9, WRITE, 0, 8, sgl=IN_CAPSULE), bytes(4096)))
        assert (await host.completion(9)).status == CONFLICT
        await host.send(host.h2c(9, ttag, 0, b"z" * 4096))
        assert (await host.completion(9)).status == 0
        assert (await host.read(0, 8, 9)).data == b"z" * 4096
        for each in hosts:
            each.close()


async def test_more_commands_than_the_queue_holds_end_it(trtype, log):
    """Commands that wait for data stay outstanding: the queue of four is full, then exceeded."""
    async with running(trtype) as target:
        first = await admin(target)
        host = await io(target, first.cntlid, sqsize=3)
        for cid in range(4):
            await host.send(host.capsule(io_sqe(cid, WRITE, 0, 8)))
            await host.r2t(cid)
        assert target.pool.used_bytes
        await host.send(host.capsule(io_sqe(4, WRITE, 0, 8)))
        await host.terminated(2)
        assert len(causes(log.records, "more than the 4 commands that the submission queue holds")) == 1
        assert target.pool.used_bytes == 0
        await healthy(target)
        first.close()


async def test_a_full_queue_in_one_segment(trtype):
    async with running(trtype) as target:
        first = await admin(target)
        host = await io(target, first.cntlid, sqsize=127)
        for _ in range(3):
            await host.send(b"".join(host.capsule(io_sqe(cid, READ, cid, 1)) for cid in range(128)))
            assert {(await host.completion()).cid for _ in range(128)} == set(range(128))
        for each in (first, host):
            each.close()


async def test_a_read_only_namespace():
    namespace = NamespaceConfig(backend=Ramdisk("1M"), read_only=True)
    async with running(namespaces=[namespace]) as target:
        hosts = await association(target)
        for in_capsule in (True, False):
            sgl = IN_CAPSULE if in_capsule else TRANSPORT
            sqe = io_sqe(1, WRITE, 0, 1, sgl=sgl)
            assert (await hosts[1].call(sqe, b"n" * 512 if in_capsule else b"")).status == 0x20
        assert (await hosts[1].read(0, 1)).data == bytes(512)
        for host in hosts:
            host.close()


async def test_a_namespace_that_is_removed_while_data_is_in_flight():
    async with running() as target:
        hosts = await association(target)
        host = hosts[1]
        await host.send(host.capsule(io_sqe(1, WRITE, 0, 8)))
        ttag, _, _ = await host.r2t(1)
        await target.remove_namespace(1)
        await host.send(host.h2c(1, ttag, 0, bytes(4096)))
        assert (await host.completion(1)).status == FIELD
        assert (await host.read(0, 1)).status == FIELD
        assert await target.add_namespace(Ramdisk("2M")) == 1
        assert (await host.read(4095, 1)).status == 0
        for each in hosts:
            each.close()


async def test_r2ts_up_to_maxr2t_and_h2cdata_in_pieces():
    async with running(connection=ConnectionConfig(r2t_bytes=4096)) as target:
        first = await admin(target)
        host = await io(target, first.cntlid, maxr2t=2)  # three at once
        data = bytes(range(256)) * 80  # 20 KiB: five R2Ts
        await host.send(host.capsule(io_sqe(1, WRITE, 16, 40)))
        asked = [await host.r2t(1) for _ in range(3)]
        answered = 0
        while asked:
            ttag, offset, length = asked.pop(0)
            assert (offset, length) == (answered, 4096)
            for start in range(offset, offset + length, 1024):
                last = start + 1024 == offset + length
                await host.send(host.h2c(1, ttag, start, data[start : start + 1024], last=last))
            answered += length
            if answered + len(asked) * 4096 < len(data):
                asked.append(await host.r2t(1))
        assert (await host.completion(1)).status == 0
        assert (await host.read(16, 40)).data == data
        for each in (first, host):
            each.close()
