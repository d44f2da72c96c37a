"""Behaviour of other hosts that must be served: each test does on the wire what one such host does."""

from __future__ import annotations

import pytest

from nvmeof.target.server import Target
from nvmeof.target.simple_config import DEFAULT_SUBNQN
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from tests.conformance.rawhost import (
    CC,
    CC_ENABLED,
    CC_SHUTDOWN,
    CSTS,
    FLUSH,
    HOSTNQN,
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

OPCODE, CONFLICT = 0x01, 0x03
RESERVATION_REPORT = 0x0E
MEMORY_PORT = PortConfig(transport="memory", host="memory", port=0)
DATA = 1 << 16  # IATTR: the parameter is in the data


def aer(cid: int) -> bytes:
    return make_sqe(cid, 0x0C)


# -- names


async def test_a_host_without_a_name_is_served_where_any_host_is(trtype, log):
    """256 zero bytes for HOSTNQN, as a benchmark of the field sends by default."""
    async with running(trtype) as target:
        first = await admin(target, hostnqn="")
        queue = await io(target, first.cntlid, hostnqn="")
        assert (await queue.write(0, b"n" * 512)).status == 0
        assert (await queue.read(0, 1)).data == b"n" * 512
        lines = causes(log.records, "no HOSTNQN, HOSTID 00010203-0405-0607-0809-0a0b0c0d0e0f")
        assert len(lines) == 2 and "queue 0 of controller" in lines[0] and "queue 1 of controller" in lines[1]
        stranger = await RawHost.open(target)
        completion = await stranger.try_connect(qid=2, cntlid=first.cntlid)
        assert (completion.status, completion.dw0) == (0x182, DATA | 512), "a host with a name is another one"
        for each in (first, queue, stranger):
            each.close()
        await healthy(target)


async def test_a_host_without_a_name_is_not_an_allowed_host(log):
    stand_in = "(no HOSTNQN, HOSTID 00010203-0405-0607-0809-0a0b0c0d0e0f)"
    async with running(allowed_hosts=[HOSTNQN, stand_in]) as target:
        host = await RawHost.open(target)
        completion = await host.try_connect(hostnqn="")
        assert (completion.status, completion.dw0, completion.dnr) == (0x182, DATA | 256, True)
        assert len(causes(log.records, "HOSTID 00010203")) == 1
        host.close()


@pytest.mark.parametrize("name", ["h", "host-1", "nqn.2016-06.org.example.node1_1", "ä" * 111, "h" * 223])
async def test_a_name_may_be_any_host_name(name):
    async with running(subnqn=name, allowed_hosts=[name]) as target:
        hosts = await association(target, hostnqn=name)
        assert (await hosts[1].read(0, 1)).status == 0
        assert hosts[0].cntlid == 1
        for each in hosts:
            each.close()


# -- a HOSTID for each Connect


async def test_a_host_with_another_hostid_for_each_queue(trtype, log):
    """The controller's own counts on every queue: for a reservation it is one host."""
    async with running(trtype) as target:
        first = await admin(target)
        queues = [await io(target, first.cntlid, qid, hostid=bytes([qid]) * 16) for qid in (1, 2, 3)]
        key = (0).to_bytes(8, "little") + (7).to_bytes(8, "little")
        register = io_sqe(1, 0x0D, 0, 1, length=16, sgl=1, cdw12=0)[:40] + bytes(24)
        assert (await queues[0].call(register, key)).status == 0
        # Acquire, Write Exclusive, with the key that another queue has registered
        acquire = make_sqe(2, 0x11, nsid=1, length=16, sgl=1, cdw10=1 << 8)
        assert (await queues[1].call(acquire, (7).to_bytes(8, "little") + bytes(8))).status == 0
        for queue in queues:
            assert (await queue.write(0, b"q" * 512)).status == 0
        assert len(causes(log.records, "is used for all queues")) == 1, "reported once"
        report = await queues[2].call(make_sqe(3, RESERVATION_REPORT, nsid=1, length=64 + 64, cdw10=31, cdw11=1))
        assert report.status == 0
        assert int.from_bytes(report.data[5:7], "little") == 1, "one host"
        assert report.data[64 + 16 : 64 + 32] == bytes(range(16)), "by the HOSTID of the admin queue"
        for each in (first, *queues):
            each.close()


# -- Asynchronous Event Requests that their host forgets


async def test_a_cid_that_a_waiting_event_request_holds(trtype, log):
    """A user-space host forgets its event requests before it shuts the controller down, and uses their CIDs again."""
    async with running(trtype) as target:
        host = await admin(target, sqsize=7)
        for cid in (3, 4):
            await host.send(host.capsule(aer(cid)))
        completion = await host.call(make_sqe(3, 0x7F, nsid=4, cdw11=CC))
        assert (completion.status, completion.dw0) == (0, CC_ENABLED)
        assert len(causes(log.records, "is used anew: forgotten")) == 1
        controller = target.subsystems[target.subnqn].controllers[host.cntlid]
        assert controller.events.held == 1
        for _ in range(3):  # again with the request that is left, and with a new one each time
            assert (await host.call(make_sqe(4, 0x18))).status == 0
            await host.send(host.capsule(aer(4)))
        assert (await host.call(make_sqe(4, 0x7F, nsid=0, cdw11=CC, cdw12=CC_SHUTDOWN))).status == 0
        assert (await host.get_property(CSTS)) >> 2 & 3 == 2, "its shutdown goes to its end"
        assert controller.events.held == 0
        driver = next(iter(target.drivers))
        assert driver.queue.pending == 0 and driver.connection.in_flight == 0
        host.close()
        await healthy(target)


async def test_an_event_goes_to_the_request_that_is_left():
    async with running() as target:
        host = await admin(target)
        await host.send(host.capsule(make_sqe(1, 0x09, cdw10=0x0B, cdw11=1 << 8)))  # Namespace Attribute Notices
        assert (await host.completion(1)).status == 0
        await host.send(host.capsule(aer(3)) + host.capsule(aer(4)))
        assert (await host.call(make_sqe(3, 0x18))).status == 0
        target.subsystems[target.subnqn].resize_namespace(1, 2 << 20)
        event = await host.completion()
        assert (event.cid, event.dw0) == (4, 0x40002)
        host.close()


async def test_a_new_event_request_replaces_the_one_with_its_cid():
    async with running() as target:
        host = await admin(target)
        for _ in range(6):  # more than AERL: all but the last are forgotten
            await host.send(host.capsule(aer(3)))
        assert (await host.call(make_sqe(1, 0x18))).status == 0
        assert target.subsystems[target.subnqn].controllers[host.cntlid].events.held == 1
        host.close()


async def test_a_cid_of_a_command_that_moves_data_is_still_refused():
    async with running() as target:
        host = await admin(target)
        timestamp = make_sqe(3, 0x09, length=8, cdw10=0x0E)
        await host.send(host.capsule(timestamp))
        ttag, _, _ = await host.r2t(3)
        completion = await host.call(make_sqe(3, 0x18))
        assert (completion.status, completion.dnr) == (CONFLICT, False), "with another CID it would have gone through"
        await host.send(host.h2c(3, ttag, 0, bytes(8)))
        assert (await host.completion(3)).status == 0
        host.close()


# -- limits that a target is configured with


async def test_a_target_without_a_limit_for_transfers():
    """MDTS 0, as nvmet has it by default: a write of 8 MiB, and one that memory does not allow."""
    subsystem = SubsystemConfig(
        nqn=DEFAULT_SUBNQN,
        namespaces=(NamespaceConfig(backend=Ramdisk("256M", block_bytes=4096)),),
        max_transfer_bytes=0,
        incapsule_bytes=0,
    )
    async with Target(TargetConfig(subsystems=(subsystem,), ports=(MEMORY_PORT,))) as target:
        hosts = await association(target)
        identify = await hosts[0].call(make_sqe(1, 0x06, length=4096, cdw10=1))
        assert identify.data[77] == 0, "MDTS"
        assert int.from_bytes(identify.data[1792:1796], "little") == 4, "IOCCSZ: an SQE and no data"
        size, data = 8 << 20, bytes(range(256)) * (8 << 12)
        await hosts[1].send(hosts[1].capsule(io_sqe(1, WRITE, 0, size // 4096, block_bytes=4096)))
        ttag, offset, length = await hosts[1].r2t(1)
        assert (offset, length) == (0, size)
        pieces = range(0, size, 131072)
        for start in pieces:
            piece = data[start : start + 131072]
            await hosts[1].send(hosts[1].h2c(1, ttag, start, piece, last=start == pieces[-1]))
        assert (await hosts[1].completion(1)).status == 0
        read = await hosts[1].read(0, size // 4096, block_bytes=4096)
        assert read.status == 0 and read.data == data
        too_much = await hosts[1].read(0, 65536, block_bytes=4096)
        assert (too_much.status, too_much.dnr) == (0x02, True)
        for each in hosts:
            each.close()


async def test_no_data_in_capsules():
    """`--in-capsule 0`: all data by R2T; a capsule with data ends the connection, as its length is out of range."""
    subsystem = SubsystemConfig(
        nqn=DEFAULT_SUBNQN, namespaces=(NamespaceConfig(backend=Ramdisk("1M")),), incapsule_bytes=0
    )
    async with Target(TargetConfig(subsystems=(subsystem,), ports=(MEMORY_PORT,))) as target:
        hosts = await association(target)
        assert (await hosts[1].write(0, b"r" * 512, in_capsule=False)).status == 0
        assert (await hosts[1].read(0, 1)).data == b"r" * 512
        await hosts[1].send(hosts[1].capsule(io_sqe(2, WRITE, 0, 1, sgl=1), b"c" * 512))
        await hosts[1].terminated(1, 4)
        hosts[0].close()


async def test_two_targets_that_serve_one_subsystem_give_different_controller_identifiers():
    """Linux refuses equal ones: "Duplicate cntlid 1"."""

    def config(first: int, last: int) -> TargetConfig:
        subsystem = SubsystemConfig(
            nqn=DEFAULT_SUBNQN,
            namespaces=(NamespaceConfig(backend=Ramdisk("1M")),),
            cntlid_min=first,
            cntlid_max=last,
        )
        return TargetConfig(subsystems=(subsystem,), ports=(MEMORY_PORT,))

    async with Target(config(1, 2)) as one, Target(config(3, 0xFFEF)) as other:
        hosts = [await admin(one), await admin(one), await admin(other)]
        assert [host.cntlid for host in hosts] == [1, 2, 3]
        late = await RawHost.open(one)
        completion = await late.try_connect()
        assert (completion.status, completion.dnr) == (0x181, False), "busy: the range is used up"
        hosts[0].close()
        await until(lambda: len(one.subsystems[DEFAULT_SUBNQN].controllers) == 1)
        assert await late.connect() == 1, "and free again"
        for each in (*hosts, late):
            each.close()


async def test_log_pages_that_lpa_announces_can_be_read():
    """LPA bit 5 stands for log pages 00h, 05h, 12h and 13h."""
    async with running() as target:
        for subnqn in (target.subnqn, "nqn.2014-08.org.nvmexpress.discovery"):
            host = await admin(target, subnqn=subnqn)
            identify = await host.call(make_sqe(1, 0x06, length=4096, cdw10=1))
            assert identify.data[261] & 1 << 5
            supported = (await host.call(make_sqe(1, 0x02, length=1024, cdw10=255 << 16))).data
            for lid in (0x00, 0x05, 0x12, 0x13):
                assert supported[4 * lid] & 1, hex(lid)
                page = await host.call(make_sqe(1, 0x02, length=1024, cdw10=lid | 255 << 16))
                assert page.status == 0 and len(page.data) == 1024
            host.close()


# -- PDO 0 in PDUs with data


@pytest.mark.parametrize("dgst", [0, 1, 2, 3])
async def test_data_with_pdo_0_follows_the_header(trtype, log, dgst):
    async with running(trtype) as target:
        first, host = await association(target, dgst=dgst)
        for cid, kind in enumerate((1, 3)):  # without and with others in one receive
            data = bytes([65 + cid]) * 512
            sqes = [io_sqe(10 * cid + i, WRITE, i, 1, sgl=1) for i in range(kind)]
            await host.send(b"".join(host.capsule(sqe, data, pdo=0) for sqe in sqes))
            assert [(await host.completion()).status for _ in sqes] == [0] * kind
            assert (await host.read(0, kind)).data == data * kind
        await host.send(host.capsule(io_sqe(3, WRITE, 8, 128)))
        ttag, _, length = await host.r2t(3)
        body = bytes(range(256)) * (length // 256)
        await host.send(host.h2c(3, ttag, 0, body[:4096], last=False, pdo=0))
        await host.send(host.h2c(3, ttag, 4096, body[4096:], pdo=0))
        assert (await host.completion(3)).status == 0
        assert (await host.read(8, 128)).data == body
        lines = causes(log.records, "with data and PDO 0")
        assert len(lines) == 1 and "CAPSULE_CMD" in lines[0]
        for each in (first, host):
            each.close()


# -- data


async def test_the_last_h2cdata_without_last_pdu(trtype, log):
    async with running(trtype) as target:
        first, host = await association(target)
        for cid, pieces in ((1, 1), (2, 4)):
            await host.send(host.capsule(io_sqe(cid, WRITE, 0, 16)))
            ttag, _, length = await host.r2t(cid)
            data, step = bytes([cid]) * length, length // pieces
            for start in range(0, length, step):
                await host.send(host.h2c(cid, ttag, start, data[start : start + step], last=False))
            assert (await host.completion(cid)).status == 0
            assert (await host.read(0, 16)).data == data
        assert len(causes(log.records, "without LAST_PDU")) == 1
        for each in (first, host):
            each.close()


async def test_in_capsule_data_at_an_offset():
    """The address of an in-capsule SGL is an offset (SGLS bit 20); the fast path for writes must honour it."""
    async with running() as target:
        first, host = await association(target)
        for cid in range(4):
            assert (await host.write(cid, bytes([0x10 + cid]) * 512, cid)).status == 0
        for cid in range(4):  # the same length, in a capsule with as much before it
            sqe = io_sqe(cid, WRITE, cid, 1, sgl=1, address=512)
            assert (await host.call(sqe, bytes(512) + bytes([cid + 1]) * 512)).status == 0
        assert (await host.read(0, 4)).data == b"".join(bytes([cid + 1]) * 512 for cid in range(4))
        for address, status in ((513, 0x0F), (8192, 0x16), (1 << 63, 0x16)):
            sqe = io_sqe(5, WRITE, 0, 1, sgl=1, address=address)
            assert (await host.call(sqe, bytes(1024))).status == status
        for each in (first, host):
            each.close()


async def test_connect_with_a_whole_page_of_data():
    async with running() as target:
        host = await RawHost.open(target)
        data = connect_data(target.subnqn)
        completion = await host.call(
            make_sqe(1, 0x7F, nsid=1, length=4096, sgl=1, cdw11=31), data + b"what follows is not looked at".ljust(3072)
        )
        assert completion.status == 0
        host.close()


# -- Fabrics commands where they do not belong


@pytest.mark.parametrize("fctype", [0x00, 0x01, 0x04, 0x02, 0xC0])
async def test_fabrics_commands_on_an_io_queue(fctype):
    """Property Set and Get, Connect, and unknown types."""
    async with running() as target:
        hosts = await association(target)
        completion = await hosts[1].call(make_sqe(5, 0x7F, nsid=fctype, cdw11=CSTS))
        assert (completion.status, completion.dnr) == (OPCODE, True)
        assert (await hosts[1].read(0, 1)).status == 0
        for each in hosts:
            each.close()


# -- DNR


@pytest.mark.parametrize(
    ("commands", "status"),
    [
        ([(0x05, 0x01)], 0x0A),  # the first half alone, followed by another command
        ([(0x01, 0x02)], 0x0A),  # the second half alone
        ([(0x05, 0x01), (0x01, 0x02)], 0x09),  # a comparison that fails
    ],
)
async def test_halves_of_a_fused_operation_may_be_sent_again(commands, status):
    async with running() as target:
        hosts = await association(target)
        sqes = [
            io_sqe(cid, opcode, 0, 1, sgl=1, flags=0x40 | fuse) for cid, (opcode, fuse) in enumerate(commands, start=1)
        ]
        await hosts[1].send(b"".join(hosts[1].capsule(sqe, b"x" * 512) for sqe in sqes))
        await hosts[1].send(hosts[1].capsule(make_sqe(9, FLUSH, nsid=1)))
        completions = {(got := await hosts[1].completion()).cid: got for _ in range(len(sqes) + 1)}
        assert (completions[len(sqes)].status, completions[len(sqes)].dnr) == (status, False)
        assert completions[9].status == 0
        for each in hosts:
            each.close()
