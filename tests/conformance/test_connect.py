"""Connect that must be refused: status, DW0, and one line that names the cause."""

from __future__ import annotations

import pytest

from nvmeof.target.server import Target
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from tests.conformance.rawhost import (
    CC,
    CC_DISABLED,
    CC_ENABLED,
    HOSTNQN,
    IN_CAPSULE,
    TRANSPORT,
    RawHost,
    admin,
    association,
    causes,
    connect_data,
    healthy,
    io,
    make_sqe,
    running,
)

OPCODE, SEQUENCE, FORMAT, INVALID = 0x01, 0x0C, 0x180, 0x182
DATA = 1 << 16  # IATTR: the parameter is in the data
OTHER = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555"
DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"

# what is asked for, status, DW0, the cause in the log
ADMIN_REFUSED = {
    "wrong SUBNQN": ({"subnqn": "nqn.2026-01.org.example:none"}, INVALID, DATA | 256, "no subsystem"),
    "empty SUBNQN": ({"subnqn": ""}, INVALID, DATA | 256, "SUBNQN is empty"),
    "endless SUBNQN": ({"subnqn": b"n" * 256}, INVALID, DATA | 256, "SUBNQN is empty or not terminated"),
    "endless HOSTNQN": ({"hostnqn": b"\xff" * 256}, INVALID, DATA | 512, "HOSTNQN is not terminated"),
    "CNTLID of its own": ({"cntlid": 1}, INVALID, DATA | 16, "allocated dynamically"),
    "CNTLID FFFEh": ({"cntlid": 0xFFFE}, INVALID, DATA | 16, "0xfffe"),
    "SQSIZE 0": ({"sqsize": 0}, INVALID, 44, "SQSIZE 0"),
    "SQSIZE too large": ({"sqsize": 65535}, INVALID, 44, "65536 entries is larger than 4096"),
    "record format": ({"recfmt": 1}, FORMAT, 0, "record format 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADMIN_REFUSED)
async def test_an_admin_connect_that_is_refused(trtype, log, case):
    fields, status, dw0, cause = ADMIN_REFUSED[case]
    async with running(trtype) as target:
        host = await RawHost.open(target)
        completion = await host.try_connect(**fields)
        assert (completion.status, completion.dw0, completion.dnr) == (status, dw0, True)
        lines = causes(log.records, cause)
        assert len(lines) == 1 and "command refused" in lines[0]
        assert not target.subsystems[target.subnqn].controllers
        await host.connect(), "and the connection can still be used"
        host.close()
        await healthy(target)


IO_REFUSED = {
    "QID too large": ({"qid": 129}, INVALID, 42, "queue 129 is beyond the 128"),
    "CNTLID of no controller": ({"cntlid": 77}, INVALID, DATA | 16, "has no controller 77"),
    "CNTLID dynamic": ({"cntlid": 0xFFFF}, INVALID, DATA | 16, "has no controller 65535"),
    "SQSIZE 0": ({"sqsize": 0}, INVALID, 44, "SQSIZE 0"),
    "SQSIZE beyond MQES": ({"sqsize": 1024}, INVALID, 44, "1025 entries is larger than 1024"),
    "no HOSTNQN": ({"hostnqn": ""}, INVALID, DATA | 512, "is not the one of controller"),
    "another HOSTNQN": ({"hostnqn": OTHER}, INVALID, DATA | 512, "is not the one of controller"),
    "another subsystem": ({"subnqn": "nqn.2026-01.org.example:none"}, INVALID, DATA | 256, "no subsystem"),
    "Discovery": ({"subnqn": DISCOVERY}, INVALID, 42, "a discovery controller has no I/O queues"),
    "record format": ({"recfmt": 0xFFFF}, FORMAT, 0, "record format 65535"),
}


@pytest.mark.parametrize("case", IO_REFUSED)
async def test_an_io_connect_that_is_refused(trtype, log, case):
    fields, status, dw0, cause = IO_REFUSED[case]
    async with running(trtype) as target:
        first = await admin(target)
        host = await RawHost.open(target)
        completion = await host.try_connect(**{"qid": 1, "cntlid": first.cntlid, **fields})
        assert (completion.status, completion.dw0, completion.dnr) == (status, dw0, True)
        assert len(causes(log.records, cause)) == 1
        await host.connect(qid=1, cntlid=first.cntlid)
        assert (await host.read(0, 1)).status == 0
        first.close()
        await host.ended()
        host.close()


async def test_a_host_that_is_not_allowed(trtype, log):
    async with running(trtype, allowed_hosts=[OTHER]) as target:
        host = await RawHost.open(target)
        completion = await host.try_connect()
        assert (completion.status, completion.dw0, completion.dnr) == (INVALID, DATA | 256, True)
        lines = causes(log.records, "is not allowed to use")
        assert len(lines) == 1 and HOSTNQN in lines[0] and target.subnqn in lines[0]
        await host.connect(hostnqn=OTHER)
        host.close()


async def test_an_io_queue_before_the_controller_is_enabled(trtype, log):
    async with running(trtype) as target:
        first = await admin(target, enable=False)
        host = await RawHost.open(target)
        assert (await host.try_connect(qid=1, cntlid=first.cntlid)).status == SEQUENCE
        assert len(causes(log.records, "before controller 1 is ready (disabled)")) == 1
        await first.set_property(CC, CC_ENABLED)
        await host.connect(qid=1, cntlid=first.cntlid)
        await first.set_property(CC, CC_DISABLED)
        await host.ended()
        for each in (first, host):
            each.close()


async def test_a_duplicate_qid(trtype, log):
    async with running(trtype) as target:
        hosts = await association(target)
        second = await RawHost.open(target)
        completion = await second.try_connect(qid=1, cntlid=hosts[0].cntlid)
        assert (completion.status, completion.dnr) == (SEQUENCE, True)
        assert len(causes(log.records, "queue 1 exists already")) == 1
        assert (await hosts[1].read(0, 1)).status == 0, "the first goes on"
        hosts[1].close()
        third = None
        for _ in range(50):  # the target may learn of the end a little later
            third = await RawHost.open(target)
            if (await third.try_connect(qid=1, cntlid=hosts[0].cntlid)).status == 0:
                break
            third.close()
        assert third is not None and (await third.read(0, 1)).status == 0
        for each in (hosts[0], second, third):
            each.close()


async def test_a_second_connect_on_a_queue(log):
    async with running() as target:
        host = await admin(target)
        for qid, cntlid in ((0, 0xFFFF), (1, host.cntlid)):
            completion = await host.try_connect(qid=qid, cntlid=cntlid)
            assert (completion.status, completion.dnr) == (OPCODE, True)
        assert len(target.subsystems[target.subnqn].controllers) == 1
        host.close()


@pytest.mark.parametrize("in_capsule", [True, False])
async def test_two_connects_under_way_at_once_make_one_controller(in_capsule):
    """Both pass the checks before data; the second finds the queue connected when its data arrives."""
    async with running() as target:
        host = await RawHost.open(target)
        data = connect_data(target.subnqn)
        sgl = IN_CAPSULE if in_capsule else TRANSPORT
        sqes = [make_sqe(cid, 0x7F, nsid=1, length=1024, sgl=sgl, cdw11=31) for cid in (1, 2)]
        if in_capsule:
            await host.send(b"".join(host.capsule(sqe, data) for sqe in sqes))
        else:
            await host.send(b"".join(host.capsule(sqe) for sqe in sqes))
            ttags = [(await host.r2t(cid))[0] for cid in (1, 2)]
            await host.send(b"".join(host.h2c(cid, ttag, 0, data) for cid, ttag in zip((1, 2), ttags, strict=True)))
        assert (await host.completion(1)).status == 0
        assert (await host.completion(2)).status == OPCODE
        assert len(target.subsystems[target.subnqn].controllers) == 1
        host.close()


async def test_connect_data_by_r2t_and_commands_before_connect(log):
    async with running() as target:
        host = await RawHost.open(target)
        assert (await host.call(make_sqe(1, 0x06, length=4096, cdw10=1))).status == SEQUENCE  # Identify
        assert (await host.call(make_sqe(2, 0x7F, nsid=4, cdw11=0x1C))).status == SEQUENCE  # Property Get
        await host.send(host.capsule(make_sqe(3, 0x7F, nsid=1, length=1024, cdw11=31)))
        ttag, _, length = await host.r2t(3)
        await host.send(host.h2c(3, ttag, 0, connect_data(target.subnqn)[:length]))
        assert (await host.completion(3)).status == 0
        host.close()


async def test_connect_whose_data_is_of_the_wrong_length(log):
    async with running() as target:
        host = await RawHost.open(target)
        sqe = make_sqe(1, 0x7F, nsid=1, length=512, sgl=IN_CAPSULE, cdw11=31)
        assert (await host.call(sqe, bytes(512))).status == 0x0F
        sqe = make_sqe(2, 0x7F, nsid=1, length=1024, sgl=IN_CAPSULE, cdw11=31)
        assert (await host.call(sqe, bytes(512))).status == 0x0F
        assert len(causes(log.records, "Connect moves 1024 bytes, its SGL describes 512")) == 1
        assert len(causes(log.records, "512 bytes are in a capsule whose SGL says 1024")) == 1
        host.close()


async def test_names_that_would_forge_log_lines(log):
    """A name may hold line ends and escapes, which must not reach the log unescaped."""
    async with running() as target:
        name = "nqn.2026-01.org.example:a\n12:00:00 forged\x1b[31m"
        host = await RawHost.open(target)
        assert (await host.try_connect(hostnqn=name)).status == INVALID
        assert (await host.try_connect(subnqn="x\ny")).status == INVALID
        host.close()
    assert len(log.messages) >= 2
    assert all(message.isprintable() for message in log.messages), log.messages


async def test_sq_flow_control_on_and_off():
    """Off: SQHD of Connect is FFFFh, and reads end with the SUCCESS flag instead of a CQE."""
    async with running() as target:
        first = await admin(target)
        for qid, cattr in ((1, 0), (2, 4)):
            host = await RawHost.open(target)
            completion = await host.try_connect(qid=qid, cntlid=first.cntlid, cattr=cattr, sqsize=3)
            assert completion.status == 0 and (completion.sqhd == 0xFFFF) == bool(cattr)
            heads = [(await host.read(0, 1, cid)).sqhd for cid in range(6)]
            assert heads == ([0] * 6 if cattr else [2, 3, 0, 1, 2, 3]), heads
            host.close()
        first.close()


async def test_cntlids_are_not_reused_at_once():
    async with running() as target:
        seen = []
        for _ in range(3):
            host = await admin(target)
            seen.append(host.cntlid)
            host.close()
        assert seen == [1, 2, 3]


async def test_several_subsystems_and_hosts_at_once():
    subsystems = tuple(
        SubsystemConfig(
            nqn=f"nqn.2026-01.org.example:{name}",
            namespaces=(NamespaceConfig(backend=Ramdisk("1M")),),
            allowed_hosts=frozenset({HOSTNQN}) if name == "mine" else None,
        )
        for name in ("mine", "all")
    )
    config = TargetConfig(subsystems=subsystems, ports=(PortConfig(transport="memory", host="several", port=0),))
    async with Target(config) as target:
        mine = await admin(target, subnqn=subsystems[0].nqn)
        shared = await admin(target, subnqn=subsystems[1].nqn, hostnqn=OTHER)
        queue = await io(target, mine.cntlid, subnqn=subsystems[0].nqn)
        assert (await queue.write(0, b"m" * 512)).status == 0
        other = await RawHost.open(target)
        completion = await other.try_connect(qid=1, cntlid=mine.cntlid, subnqn=subsystems[1].nqn)
        assert completion.status == INVALID, "a controller of another subsystem"
        await other.connect(qid=1, cntlid=shared.cntlid, subnqn=subsystems[1].nqn, hostnqn=OTHER)
        assert (await other.read(0, 1)).data == bytes(512)
        for each in (mine, shared, queue, other):
            each.close()
