"""Media commands, reservations and zones of a namespace against our own target; events as an iterator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof import AsyncEvent, HostController, Namespace, NamespaceConfig, NvmeStatusError, Ramdisk, Target, connect
from nvmeof.errors import ConnectionLost, LocalProtocolError
from nvmeof.host.block_ranges import copy_commands
from nvmeof.host.results import IdentifyNamespace, LbaStatusRange
from nvmeof.spec.enums import AsyncNoticeInfo, NvmOpcode
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.media import LbaStatus, LbaStatusAction
from nvmeof.spec.reservations import ReservationType
from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneAttributes, ZoneState
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.wire import build
from tests.conformance.rawhost import until

from .conftest import HOSTNQN, Connect
from .fake_device import FakeDevice


@asynccontextmanager
async def pair(*namespaces: Any, hosts: int = 1, **options: Any) -> AsyncIterator[tuple[Target, list[HostController]]]:
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(
            Target(namespaces=namespaces or [Ramdisk("16M")], trtype="memory", listen="target:0")
        )
        where = {"transport": "memory", "subnqn": target.subnqn, "hostnqn": HOSTNQN, **options}
        yield (
            target,
            [
                await stack.enter_async_context(
                    await connect(target.address.host, target.address.port, hostid=uuid.UUID(int=number + 1), **where)
                )
                for number in range(hosts)
            ],
        )


@pytest.fixture
async def namespace() -> AsyncIterator[Namespace]:
    async with pair() as (_, (controller,)):
        yield controller.namespace(1)


async def test_compare(namespace: Namespace) -> None:
    data = os.urandom(3 << 20)  # several commands
    await namespace.write(7, data)
    assert await namespace.compare(7, data)
    assert not await namespace.compare(8, data)
    assert not await namespace.compare(7, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(LocalProtocolError, match="no multiple"):
        await namespace.compare(7, data[:100])
    with pytest.raises(NvmeStatusError) as caught:
        await namespace.compare(namespace.size_blocks, bytes(512))
    assert caught.value.status == Status.LBA_OUT_OF_RANGE


async def test_unreadable_blocks(namespace: Namespace) -> None:
    assert await namespace.lba_status() == []
    await namespace.verify(0, 30000)
    await namespace.write_uncorrectable(100, 5)
    await namespace.write_uncorrectable(20000, 1)
    with pytest.raises(NvmeStatusError) as caught:
        await namespace.verify(90, 30)
    assert caught.value.status == Status.UNRECOVERED_READ_ERROR
    marked = LbaStatus.MAY_FAIL | LbaStatus.WRITTEN_UNCORRECTABLE
    assert await namespace.lba_status() == [LbaStatusRange(100, 5, marked), LbaStatusRange(20000, 1, marked)]
    assert await namespace.lba_status(102, 1000) == [LbaStatusRange(102, 3, marked)]
    assert await namespace.lba_status(0, 102) == [LbaStatusRange(100, 2, marked)]
    await namespace.write(100, bytes(5 * 512))
    assert await namespace.lba_status(action=LbaStatusAction.SCAN) == [LbaStatusRange(20000, 1, marked)]


async def test_lba_status_of_many_ranges(namespace: Namespace) -> None:
    for lba in range(0, 1400, 2):
        await namespace.write_uncorrectable(lba, 1)
    found = await namespace.lba_status()
    assert [each.lba for each in found] == list(range(0, 1400, 2))
    assert [each.lba for each in await namespace.lba_status(0, 1200)] == list(range(0, 1200, 2))


async def test_copy(namespace: Namespace) -> None:
    data = os.urandom(64 * 512)
    await namespace.write(0, data)
    await namespace.copy(1000, [(10, 4), (0, 2), (60, 4)], fua=True)
    assert await namespace.read(1000, 10) == b"".join(data[a * 512 : b * 512] for a, b in [(10, 14), (0, 2), (60, 64)])
    # more ranges than one command takes, and more blocks
    await namespace.copy(2000, [(number % 64, 1) for number in range(300)])
    assert await namespace.read(2000, 300) == b"".join(
        data[number % 64 * 512 : (number % 64 + 1) * 512] for number in range(300)
    )
    with pytest.raises(NvmeStatusError, match="Copy failed"):
        await namespace.copy(0, [(namespace.size_blocks, 1)])


async def test_copy_across_namespaces() -> None:
    async with pair(Ramdisk("1M"), Ramdisk("1M")) as (_, (controller,)):
        first, second = controller.namespace(1), controller.namespace(2)
        await first.write(5, b"\x77" * 512)
        with pytest.raises(NvmeStatusError, match="Copy failed"):
            await second.copy(9, [(5, 1)], from_nsid=1)
        behavior = bytearray(512)
        behavior[4] = 1 << 2  # CDFE: format 2h
        await controller.set_feature(0x16, 0, data=bytes(behavior))
        await second.copy(9, [(5, 1)], from_nsid=1)
        assert await second.read(9) == b"\x77" * 512


@given(
    sources=st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1000)), max_size=12),
    mssrl=st.integers(1, 300),
    mcl=st.integers(1, 500),
    msrc=st.integers(0, 5),
)
def test_copies_obey_the_limits_and_lose_nothing(
    sources: list[tuple[int, int]], mssrl: int, mcl: int, msrc: int
) -> None:
    info = IdentifyNamespace.parse(build(IDENTIFY_NAMESPACE, nsze=1, mssrl=mssrl, mcl=mcl, msrc=msrc))
    wanted = [source + offset for source, blocks in sources for offset in range(blocks)]
    copied: list[int] = []
    for lba, ranges in copy_commands(77, sources, info):
        assert lba == 77 + len(copied)
        assert 0 < len(ranges) <= msrc + 1 and sum(blocks for _, blocks in ranges) <= mcl
        assert all(0 < blocks <= mssrl for _, blocks in ranges)
        copied += [source + offset for source, blocks in ranges for offset in range(blocks)]
    assert copied == wanted


async def test_dataset_management(device: FakeDevice, connected: Connect) -> None:
    namespace = (await connected()).namespace(1)
    await namespace.dataset_management([(1, 2)], integral_read=True, integral_write=True)
    await namespace.deallocate([(1, 150), (900, 1)])  # at most 2 ranges of 100 blocks in one command
    sent = device.sent(NvmOpcode.DATASET_MANAGEMENT)
    assert [(sqe.cdw10, sqe.cdw11) for sqe in sent] == [(0, 3), (1, 4), (0, 4)]
    await namespace.dataset_management([])
    assert len(device.sent(NvmOpcode.DATASET_MANAGEMENT)) == 3


async def test_reservations() -> None:
    async with pair(hosts=2) as (_, (one, two)):
        ours, theirs = one.namespace(1).reservations, two.namespace(1).reservations
        await ours.register(0x11)
        await theirs.register(0x22, persist=False)
        await ours.acquire(0x11, ReservationType.WRITE_EXCLUSIVE)
        report = await ours.report()
        assert [(each.key, each.holder) for each in report.registrants] == [(0x11, True), (0x22, False)]
        assert report.rtype == ReservationType.WRITE_EXCLUSIVE and not report.persistent
        with pytest.raises(NvmeStatusError) as caught:
            await two.namespace(1).write(0, bytes(512))
        assert caught.value.status == Status.RESERVATION_CONFLICT
        await theirs.preempt(0x22, 0x11, ReservationType.EXCLUSIVE_ACCESS, abort=True)
        report = await theirs.report()
        assert [(each.key, each.holder) for each in report.registrants] == [(0x22, True)]
        with pytest.raises(NvmeStatusError):
            await one.namespace(1).read(0)
        await theirs.replace(0x22, 0x33)
        await theirs.release(0x33, ReservationType.EXCLUSIVE_ACCESS)
        assert (await theirs.report()).rtype == 0
        await ours.register(0x44, ignore_existing=True)
        await ours.unregister(0x44)
        await theirs.clear(0x33)
        assert (await ours.report()).registrants == ()


def zoned(**options: Any) -> NamespaceConfig:
    return NamespaceConfig(backend=Ramdisk("4M"), zoned=ZoneGeometry(zone_bytes=65536, **options))


async def test_zones() -> None:
    async with pair(zoned(extension_bytes=64)) as (_, (controller,)):
        namespace = controller.namespace(1)
        zones = namespace.zones
        every = await zones.report()
        assert len(every) == 64 and {zone.state for zone in every} == {ZoneState.EMPTY}
        assert [zone.start for zone in every] == list(range(0, 64 * 128, 128))
        assert (await zones.info()).lbafe[0].zsze == 128
        assert await zones.append(128, b"\x01" * 1024) == 128
        assert await zones.append(128, b"\x02" * 512, fua=True) == 130
        assert await namespace.read(129, 2) == b"\x01" * 512 + b"\x02" * 512
        (zone,) = await zones.report(200, limit=1)
        assert (zone.start, zone.write_pointer, zone.state) == (128, 131, ZoneState.IMPLICITLY_OPENED)
        await zones.open(256)
        await zones.close(256)
        await zones.close(128)
        await zones.finish(384)
        await zones.set_extension(512, b"\x5a" * 64)
        states = {zone.start: zone.state for zone in await zones.report() if zone.state != ZoneState.EMPTY}
        assert states == {
            128: ZoneState.CLOSED,
            256: ZoneState.CLOSED,
            384: ZoneState.FULL,
            512: ZoneState.CLOSED,
        }
        assert [zone.start for zone in await zones.report(state=ZoneState.CLOSED)] == [128, 256, 512]
        assert [zone.write_pointer for zone in await zones.report(384, limit=1)] == [None]
        (extended,) = await zones.report(512, limit=1, extended=True)
        assert extended.extension == b"\x5a" * 64 and extended.attributes & ZoneAttributes.EXTENSION_VALID
        await zones.reset(128)
        await zones.reset()
        assert {zone.state for zone in await zones.report()} == {ZoneState.EMPTY}
        assert await zones.changed() == []
        with pytest.raises(LocalProtocolError, match="descriptor extension of 64 bytes, not 3"):
            await zones.set_extension(0, b"abc")
        with pytest.raises(LocalProtocolError, match="no multiple"):
            await zones.append(0, b"abc")
        with pytest.raises(LocalProtocolError, match="in several pieces"):
            await zones.append(0, bytes(64 << 20))
        with pytest.raises(NvmeStatusError):
            await zones.offline(0)


async def test_a_report_of_many_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmeof.host.zones.REPORT_BYTES", 64 * 11)
    async with pair(zoned()) as (_, (controller,)):
        zones = controller.namespace(1).zones
        await zones.finish(128 * 40)
        assert [zone.start for zone in await zones.report(130)] == list(range(128, 64 * 128, 128))
        assert [zone.start for zone in await zones.report(limit=25)] == list(range(0, 25 * 128, 128))
        assert [zone.start for zone in await zones.report(state=ZoneState.FULL)] == [128 * 40]


async def test_a_namespace_without_zones_is_an_error(namespace: Namespace) -> None:
    with pytest.raises(NvmeStatusError):
        await namespace.zones.report()


# -- large ranges


@pytest.mark.parametrize("read_ahead", [0, 1, 7])
@pytest.mark.parametrize("chunk_bytes", [1, 5000, 1 << 20, 1 << 26])
async def test_chunks(namespace: Namespace, read_ahead: int, chunk_bytes: int) -> None:
    await namespace.refresh()
    blocks = 20 if chunk_bytes == 1 else 3000
    data = os.urandom(blocks * 512)
    await namespace.write(5, data)
    parts = [part async for part in namespace.chunks(5, blocks, chunk_bytes=chunk_bytes, read_ahead=read_ahead)]
    assert b"".join(parts) == data
    assert {len(part) for part in parts[:-1]} <= {max(chunk_bytes // 512, 1) * 512}
    assert [part async for part in namespace.chunks(namespace.size_blocks)] == []
    assert len(b"".join([part async for part in namespace.chunks()])) == namespace.size_bytes


async def test_chunks_beyond_the_end_and_of_nothing(namespace: Namespace) -> None:
    with pytest.raises(NvmeStatusError, match="out of range"):
        async for _ in namespace.chunks(1, 1 << 40):
            raise AssertionError("nothing is read")
    with pytest.raises(LocalProtocolError, match="read-ahead of -1"):
        async for _ in namespace.chunks(read_ahead=-1):
            raise AssertionError("nothing is read")


async def test_chunks_that_are_cancelled(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    namespace = controller.namespace(1)
    async with contextlib.aclosing(namespace.chunks(chunk_bytes=512, read_ahead=5)) as chunks:
        await anext(chunks)
        device.hold(NvmOpcode.READ)
        for _ in range(5):
            await anext(chunks)
        await until(lambda: device.held)
    assert controller.io_queues[0].load == 0
    device.intercept = lambda request, sqe: (0, Status.UNRECOVERED_READ_ERROR) if sqe.slba == 3 else "default"
    seen = 0
    with pytest.raises(NvmeStatusError, match="Unrecovered"):
        async for _ in namespace.chunks(chunk_bytes=512):
            seen += 1
    assert seen == 3 and controller.io_queues[0].load == 0


# -- events


async def test_events_are_an_iterator() -> None:
    async with pair() as (target, (controller,)):
        events = aiter(controller.events)
        assert await target.add_namespace(Ramdisk("1M")) == 2
        event = await asyncio.wait_for(anext(events), 20)
        assert (event.type, event.info) == (2, AsyncNoticeInfo.NAMESPACE_ATTRIBUTE_CHANGED)
        await target.remove_namespace(2)
        seen: list[AsyncEvent] = []

        async def watch() -> None:
            async for each in events:
                seen.append(each)

        watching = asyncio.create_task(watch())
        await until(lambda: seen)
        await controller.disconnect()
        await asyncio.wait_for(watching, 20)  # the iterator ends in order
        assert [each async for each in controller.events] == []


async def test_events_end_with_the_loss(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    events = aiter(controller.events)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    device.raise_event(2, 0, 0)
    assert (await waiting).type == 2
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    device.break_queue(0)
    with pytest.raises(ConnectionLost, match="broke queue 0"):
        await waiting
