"""The offload device against our own target: data, limits, routes, doorbells, buffers and refusals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nvmeof import (
    ConfigurationError,
    ConnectionLost,
    LocalProtocolError,
    NvmeStatusError,
    Ramdisk,
    Target,
    TransportError,
)
from nvmeof.host import sqe_builders
from nvmeof.host.client import DEVICES, HostController, connect
from nvmeof.host.device_registry import QUEUE_OPS, DeviceRegistry
from nvmeof.host.offload import device as device_module
from nvmeof.host.offload.device import OFFLOAD, OffloadDevice
from nvmeof.host.offload.layout import MAX_TRANSFER_BYTES, RingWriter
from nvmeof.host.offload.link import OffloadLink
from nvmeof.host.requests import Command
from nvmeof.spec.enums import NvmOpcode
from nvmeof.trace import CommandCompleted
from tests.conformance.rawhost import until

from ..conftest import HOSTNQN

BLOCK = 512
MIB = 1 << 20


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    async with Target(namespaces=[Ramdisk("16M")], listen="127.0.0.1:0", trtype="tcp") as served:
        yield served


async def offloaded(target: Target, **options: Any) -> HostController:
    address = target.address
    chosen = {"subnqn": target.subnqn, "transport": OFFLOAD, "hostnqn": HOSTNQN, **options}
    return await connect(address.host, address.port, **chosen)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pid_of(device: OffloadDevice) -> int:
    pid = device.process_id()
    assert pid is not None
    return pid


# -- data


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("sqflow", [False, True])
async def test_data_of_every_kind_of_buffer(target: Target, digests: bool, sqflow: bool) -> None:
    options = {"hdr_digest": digests, "data_digest": digests, "disable_sqflow": not sqflow, "nr_io_queues": 2}
    data = os.urandom(3 * MIB)
    async with await offloaded(target, **options) as controller:
        namespace = controller.namespace(1)
        await namespace.write(8, data)
        assert await namespace.read(8, len(data) // BLOCK) == data
        into = bytearray(len(data))
        await namespace.read_into(8, memoryview(into).cast("B"))
        assert into == data
        with controller.take_buffer(len(data)) as buffer:
            await namespace.read_into(8, buffer.view)
            assert buffer.view == data
            buffer.view[:MIB] = bytes(MIB)
            await namespace.write(8, buffer.view[:MIB])
            await namespace.write(8 + MIB // BLOCK, buffer.view[MIB : 2 * MIB].toreadonly())
        assert await namespace.read(8, len(data) // BLOCK) == bytes(MIB) + data[MIB:]


async def test_batches(target: Target) -> None:
    """In one buffer, in many, and in the device's; more than one window of a batch, in no order."""
    count, data = 200, os.urandom(200 * 4096)
    lbas = [(index * 37 % count) * 8 for index in range(count)]
    async with await offloaded(target) as controller:
        namespace = controller.namespace(1)
        await namespace.write_many(lbas, data, 8)
        assert await namespace.read_many(lbas, 8) == data
        many = [bytearray(4096) for _ in lbas]
        await namespace.read_many(lbas, 8, into=many)
        assert b"".join(many) == data
        with controller.take_buffer(len(data)) as buffer:
            await namespace.read_many(lbas, 8, into=buffer.view)
            assert buffer.view == data
            pieces = [buffer.view[at : at + 4096] for at in range(0, len(data), 4096)]
            for each in pieces:
                each[:8] = b"\0" * 8
            await namespace.write_many(lbas, pieces, 8)
            mixed = [*pieces[:100], *many[100:]]
            await namespace.read_many(lbas, 8, into=mixed)
        expected = b"".join(bytes(8) + data[at + 8 : at + 4096] for at in range(0, len(data), 4096))
        assert b"".join(map(bytes, mixed[100:])) == expected[100 * 4096 :]
        assert await namespace.read_many(lbas, 8) == expected


async def test_an_error_status_leaves_the_buffer_alone(target: Target) -> None:
    async with await offloaded(target) as controller:
        namespace = controller.namespace(1)
        await namespace.refresh()
        into = bytearray(b"x" * 4096)
        with pytest.raises(NvmeStatusError, match="LBA Out Of Range"):
            await namespace.read_into(namespace.size_blocks, into)
        assert into == b"x" * 4096
        with pytest.raises(NvmeStatusError, match="LBA Out Of Range"):
            await namespace.read_many([0, namespace.size_blocks], 8, into=bytearray(8192))


async def test_more_data_than_the_device_has_buffers_for(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "STAGING_BYTES", 1)  # one piece of 32 MiB
    async with await offloaded(target, registry=DeviceRegistry(OffloadDevice())) as controller:
        namespace = controller.namespace(1)
        data = os.urandom(16 * MIB)
        await namespace.write(0, data)
        buffers = [bytearray(MIB) for _ in range(80)]
        link = controller.io_queues[0].private
        assert isinstance(link, OffloadLink)
        reads = [
            asyncio.ensure_future(namespace.read_into(index % 16 * 2048, each)) for index, each in enumerate(buffers)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert link._waiting, "some of them wait for buffers"
        await asyncio.gather(*reads)
        for index, each in enumerate(buffers):
            assert each == data[index % 16 * MIB : (index % 16 + 1) * MIB]
        assert not link._waiting and not link._staged


async def test_a_cancelled_read_releases_its_buffer_at_once(target: Target) -> None:
    async with await offloaded(target) as controller:
        namespace = controller.namespace(1)
        await namespace.write(0, b"\1" * 4096)
        into = bytearray(4096)
        read = asyncio.ensure_future(namespace.read_into(0, into))
        await asyncio.sleep(0)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        into[:] = b"\2" * 4096
        assert await namespace.read(0, 8) == b"\1" * 4096
        assert into == b"\2" * 4096


# -- limits


async def test_no_command_is_longer_than_the_device_allows(target: Target) -> None:
    sizes: list[int] = []

    def trace(event: object) -> None:
        if isinstance(event, CommandCompleted) and event.queue.qid and event.opcode == NvmOpcode.READ:
            sizes.append(event.data_bytes)

    class Small(OffloadDevice):
        max_hw_sectors = 65536

    async with await offloaded(target, trace=trace, registry=DeviceRegistry(Small())) as controller:
        assert controller.max_transfer_bytes == 65536
        await controller.namespace(1).read(0, 2 * MIB // BLOCK)
    assert sizes == [65536] * 32


async def test_passthru_beyond_the_limit_is_refused_before_it_is_sent(target: Target) -> None:
    async with await offloaded(target) as controller:
        with pytest.raises(ConfigurationError, match=f"tcp_offload transfers {MAX_TRANSFER_BYTES} bytes at once, not"):
            await controller.io_passthru(2, nsid=1, data_bytes=MAX_TRANSFER_BYTES + 1)
        await controller.namespace(1).read(0)


async def test_more_queue_entries_than_the_device_has_room_for(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "COMMANDS_MAX", 100)
    with pytest.raises(
        TransportError, match="has room for 100 queue entries, and 32 are in use: ask for smaller queues"
    ):
        await offloaded(target)
    async with await offloaded(target, queue_size=64) as controller:
        await controller.namespace(1).read(0)


# -- addresses and interfaces


async def test_the_local_address_and_interface_are_respected(target: Target) -> None:
    async with await offloaded(target, host_traddr="127.0.0.2", host_iface="lo") as controller:
        assert all(each["local"].startswith("127.0.0.2:") for each in controller.describe())
    with pytest.raises(TransportError, match=r"no route to 127.0.0.1 from 192.0.2.77"):
        await offloaded(target, host_traddr="192.0.2.77")
    with pytest.raises(ConfigurationError, match="there is no network interface 'nowhere0'"):
        await offloaded(target, host_iface="nowhere0")


async def test_a_device_claims_the_addresses_that_its_interfaces_reach(target: Target) -> None:
    other, right = OffloadDevice(["nowhere0"]), OffloadDevice(["lo"])
    with pytest.raises(ConfigurationError, match=r"no queue device reaches 127.0.0.1 over tcp_offload"):
        await offloaded(target, registry=DeviceRegistry(other))
    async with await offloaded(target, registry=DeviceRegistry(other, right)) as controller:
        assert controller.device is right
    address = target.address
    with pytest.raises(TransportError, match="does not lead over this offload device"):
        await connect(
            "localhost", address.port, subnqn=target.subnqn, transport=OFFLOAD, registry=DeviceRegistry(other)
        )


async def test_nothing_listens_there() -> None:
    with pytest.raises(TransportError, match=r"connection refused by 127.0.0.1:1: is a target listening there\?"):
        await connect("127.0.0.1", 1, subnqn="nqn.2026-01.org.example:x", transport=OFFLOAD)
    device = next(each for each in DEVICES if isinstance(each, OffloadDevice))
    assert device.process_id() is None


def test_registration_without_an_operation_or_a_required_option_is_refused() -> None:
    for op in QUEUE_OPS:
        lacking = type("Lacking", (OffloadDevice,), {op: None})()
        with pytest.raises(ConfigurationError, match=f"lacks {op}"):
            DeviceRegistry(lacking)
    lacking = type("Lacking", (OffloadDevice,), {"max_segments": None})()
    with pytest.raises(ConfigurationError, match="lacks max_segments"):
        DeviceRegistry(lacking)


async def test_a_required_option_that_is_missing(target: Target) -> None:
    class Picky(OffloadDevice):
        required_opts = frozenset({"host_iface"})

    registry = DeviceRegistry(Picky())
    with pytest.raises(ConfigurationError, match="the queue device tcp_offload needs the option host_iface"):
        await offloaded(target, registry=registry)
    async with await offloaded(target, registry=registry, host_iface="lo"):
        pass


# -- doorbells


async def test_more_holds_the_doorbell_back(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[int] = []
    ring = RingWriter.ring

    def count(self: RingWriter) -> None:
        rung.append(self._pending)
        ring(self)

    async with await offloaded(target) as controller:
        loop, queue = asyncio.get_running_loop(), controller.io_queues[0]
        monkeypatch.setattr(RingWriter, "ring", count)
        into = [memoryview(bytearray(512)) for _ in range(3)]
        futures = [loop.create_future() for _ in into]
        for index, (future, view) in enumerate(zip(futures, into, strict=True)):
            queue.submit(Command(future, sqe_builders.read(1, index, 1), data_in=view), more=index < 2)
            assert rung == []
        await asyncio.gather(*futures)
        assert rung == [15], "one doorbell for three records of five units"
        rung.clear()
        queue.submit(Command(last := loop.create_future(), sqe_builders.read(1, 0, 1), data_in=into[0]))
        assert rung == [5], "the first command of an idle queue goes out at once"
        await last
        monkeypatch.setattr(RingWriter, "ring", ring)


async def test_polling_needs_no_event_loop(target: Target) -> None:
    """The target runs in this loop: completions are in the ring before the event loop is notified."""
    async with await offloaded(target) as controller:
        queue = controller.io_queues[0]
        link = queue.private
        assert isinstance(link, OffloadLink)
        assert controller.device.poll_queue(queue) == 0
        loop = asyncio.get_running_loop()
        loop.remove_reader(link.process._completions)
        future = loop.create_future()
        queue.submit(Command(future, sqe_builders.flush(1)))
        polled = 0
        async with asyncio.timeout(20):
            while not polled:
                await asyncio.sleep(0.001)
                polled = controller.device.poll_queue(queue)
        assert polled == 1 and future.done() and not queue.requests
        loop.add_reader(link.process._completions, link.process._on_doorbell)


# -- the device's process


async def test_one_process_serves_all_controllers_and_ends_with_the_last(target: Target) -> None:
    device = OffloadDevice()
    registry = DeviceRegistry(device)
    first = await offloaded(target, registry=registry)
    pid = pid_of(device)
    assert alive(pid)
    async with await offloaded(target, registry=registry) as second:
        assert pid_of(device) == pid
        await first.disconnect()
        await second.namespace(1).read(0)
    assert device.process_id() is None and not alive(pid)
    async with await offloaded(target, registry=registry):
        assert pid_of(device) != pid


async def test_the_pool(target: Target) -> None:
    device = OffloadDevice(pool_bytes=1)  # 32 MiB, the least
    async with await offloaded(target, registry=DeviceRegistry(device)) as controller:
        whole = controller.take_buffer(32 * MIB)
        with pytest.raises(LocalProtocolError, match=r"the pool of the offload device has no 4096 bytes left: release"):
            controller.take_buffer(4096)
        whole.release()
        whole.release()
        buffer = controller.take_buffer(4096)
        read = asyncio.ensure_future(controller.namespace(1).read_into(0, buffer.view))
        while not controller.io_queues[0].requests:  # noqa: ASYNC110, it may be over in no time
            await asyncio.sleep(0)
        with pytest.raises(LocalProtocolError, match="a command is under way with this buffer: release it afterwards"):
            buffer.release()
        await read
        buffer.release()
        assert len(buffer.view) == 0
        later = controller.take_buffer(4096)
    later.view[:] = bytes(4096)  # the file outlives the process
    later.release()
    with pytest.raises(ConfigurationError, match="a device buffer has 1 to"):
        device.take_buffer(0)
    with pytest.raises(ConfigurationError, match="the pool of an offload device has 1 to"):
        OffloadDevice(pool_bytes=0)


async def test_a_software_queue_takes_such_buffers_too(target: Target) -> None:
    async with await offloaded(target, transport="tcp") as controller, await offloaded(target) as other:
        with controller.take_buffer(4096) as mine, other.take_buffer(4096) as theirs:
            mine.view[:] = b"\7" * 4096
            await controller.namespace(1).write(0, mine.view)
            await controller.namespace(1).read_into(0, theirs.view)
            assert theirs.view == mine.view


async def test_a_target_that_goes_away_is_a_queue_error(target: Target) -> None:
    async with await offloaded(target, keep_alive_tmo=0) as controller:
        lost: list[Exception] = []
        controller.on_lost.append(lost.append)
        await target.stop(drain_seconds=0.1)
        await until(lambda: bool(lost))
        assert isinstance(lost[0], ConnectionLost) and "127.0.0.1" in str(lost[0])
