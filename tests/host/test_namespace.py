"""Namespaces over the in-memory device: data, splitting, cancellation."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import LocalProtocolError, NvmeofError, NvmeStatusError
from nvmeof.host.namespace import Namespace
from nvmeof.spec.enums import AdminOpcode, NvmOpcode
from nvmeof.spec.status import Status
from tests.conformance.rawhost import until

from .conftest import Connect
from .fake_device import BLOCK_BYTES, FakeDevice


async def test_written_data_is_read(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    namespace = controller.namespace(1)
    data = os.urandom(3 * BLOCK_BYTES)
    await namespace.write(5, data, fua=True)
    assert device.fua
    assert await namespace.read(5, 3) == data
    into = bytearray(2 * BLOCK_BYTES)
    await namespace.read_into(6, memoryview(into))
    assert into == data[BLOCK_BYTES:]
    await namespace.write(6, bytearray(BLOCK_BYTES))
    assert not device.fua
    assert await namespace.read(6) == bytes(BLOCK_BYTES)
    await namespace.flush()
    assert device.sent(NvmOpcode.FLUSH)[0].nsid == 1
    assert (namespace.block_bytes, namespace.size_bytes) == (BLOCK_BYTES, 4096 * BLOCK_BYTES)


async def test_large_transfers_are_split_by_mdts(device: FakeDevice, connected: Connect) -> None:
    device.identify["mdts"] = 1  # 8 KiB, 16 blocks
    controller = await connected(nr_io_queues=2)
    namespace = controller.namespace(1)
    data = os.urandom(1000 * BLOCK_BYTES)
    await namespace.write(7, data)
    writes = device.sent(NvmOpcode.WRITE)
    assert len(writes) == 63
    assert {sqe.transfer_blocks for sqe in writes} == {16, 8}
    assert device.memory[7 * BLOCK_BYTES : 1007 * BLOCK_BYTES] == data
    assert await namespace.read(7, 1000) == data
    # both queues took part
    assert {qid for qid, sqe in device.log if sqe.opcode == NvmOpcode.READ} == {1, 2}


async def test_the_devices_limit_counts_too(device: FakeDevice, connected: Connect) -> None:
    device.max_hw_sectors = 4096
    namespace = (await connected()).namespace(1)
    await namespace.read(0, 20)
    assert [sqe.transfer_blocks for sqe in device.sent(NvmOpcode.READ)] == [8, 8, 4]


async def test_a_doorbell_waits_only_if_a_request_follows(device: FakeDevice, connected: Connect) -> None:
    device.identify["mdts"] = 1
    namespace = (await connected(queue_size=5)).namespace(1)
    await namespace.refresh()
    device.more.clear()
    await namespace.read(0, 16 * 6)
    # four fit the queue; the last one that is sent at once says that none follows
    assert device.more[:4] == [True, True, True, False]
    assert not any(device.more[4:])


async def test_optimal_io_boundary(device: FakeDevice, connected: Connect) -> None:
    device.namespace["noiob"] = 64
    namespace = (await connected()).namespace(1)
    await namespace.read(60, 200)
    assert [(sqe.slba, sqe.transfer_blocks) for sqe in device.sent(NvmOpcode.READ)] == [
        (60, 4),
        (64, 64),
        (128, 64),
        (192, 64),
        (256, 4),
    ]
    device.namespace["noiob"] = 1  # invalid: not followed
    await namespace.refresh()
    device.log.clear()
    await namespace.read(0, 10)
    assert len(device.log) == 1


@given(st.integers(0, 1 << 63), st.integers(1, 5000), st.integers(1, 300), st.integers(0, 300))
def test_splitting_covers_the_range_once(lba: int, blocks: int, most: int, boundary: int) -> None:
    namespace = Namespace(None, 1)  # type: ignore[arg-type]
    namespace._max_blocks, namespace._boundary_blocks = most, boundary
    position = lba
    for start, count in namespace.split(lba, blocks):
        assert start == position
        assert 1 <= count <= most
        if boundary:
            assert start // boundary == (start + count - 1) // boundary
        position += count
    assert position == lba + blocks


async def test_zeroes_and_deallocation(device: FakeDevice, connected: Connect) -> None:
    device.memory[:] = b"\xff" * len(device.memory)
    namespace = (await connected()).namespace(1)
    await namespace.write_zeroes(10, 20, deallocate=True)
    assert device.memory[10 * 512 : 30 * 512] == bytes(20 * 512)
    assert device.memory[30 * 512] == 0xFF
    assert device.sent(NvmOpcode.WRITE_ZEROES)[0].cdw12 >> 25 == 1
    # the fake takes two ranges of 100 blocks at most (DMRL, DMRSL)
    await namespace.deallocate([(100, 250), (1000, 1)])
    assert [sqe.cdw10 + 1 for sqe in device.sent(NvmOpcode.DATASET_MANAGEMENT)] == [2, 2]
    assert device.memory[100 * 512 : 350 * 512] == bytes(250 * 512)
    assert device.memory[1000 * 512 : 1001 * 512] == bytes(512)
    assert device.memory[1001 * 512] == 0xFF
    await namespace.deallocate([])
    assert len(device.sent(AdminOpcode.IDENTIFY)) == 3  # the limits were read once


async def test_write_zeroes_beyond_nlb(device: FakeDevice, connected: Connect) -> None:
    sent: list[tuple[int, int]] = []

    def note(request: Any, sqe: Any) -> Any:
        if sqe.opcode == NvmOpcode.WRITE_ZEROES and request.queue.qid:
            sent.append((sqe.slba, sqe.transfer_blocks))
            return 0, 0
        return "default"

    namespace = (await connected()).namespace(1)
    device.intercept = note
    await namespace.write_zeroes(1, 65537)
    assert sent == [(1, 65536), (65537, 1)]


async def test_errors_of_single_and_split_commands(device: FakeDevice, connected: Connect) -> None:
    device.identify["mdts"] = 1
    namespace = (await connected()).namespace(1)
    with pytest.raises(NvmeStatusError, match=r"(?i)Read failed: LBA out of range") as caught:
        await namespace.read(4096)
    assert caught.value.status == Status.LBA_OUT_OF_RANGE
    with pytest.raises(NvmeStatusError, match=r"(?i)LBA out of range"):
        await namespace.read(4000, 200)
    # a command beyond the end of the namespace is not sent: nothing is partly written
    device.log.clear()
    for operation in (
        lambda: namespace.write(4095, bytes(512 * 2000)),
        lambda: namespace.read_into(4095, bytearray(512 * 2000)),
        lambda: namespace.read(0, 10**14),  # more than memory has room for
        lambda: namespace.read_many([0, 7], 10**14),
        lambda: namespace.write_many([4095], bytes(512 * 2000), 2000),
    ):
        with pytest.raises(NvmeStatusError, match=r"LBA out of range.*4096 blocks") as caught:
            await operation()
        assert caught.value.status == Status.LBA_OUT_OF_RANGE and caught.value.dnr
    assert not device.sent(NvmOpcode.WRITE) and not device.sent(NvmOpcode.READ)


async def test_after_the_first_error_no_more_parts_go_out(device: FakeDevice, connected: Connect) -> None:
    device.identify["mdts"] = 1
    namespace = (await connected()).namespace(1)
    await namespace.refresh()
    device.memory = device.memory[: 4000 * BLOCK_BYTES]  # less than the field says
    device.log.clear()
    with pytest.raises(NvmeStatusError):
        await namespace.write(3999, bytes(512 * 97))
    assert len(device.log) == 7
    device.log.clear()
    with pytest.raises(NvmeStatusError):
        await namespace.write(2000, bytes(512 * 2096))
    assert len(device.log) < 140


async def test_a_range_is_checked_again_when_the_namespace_has_grown(device: FakeDevice, connected: Connect) -> None:
    device.identify["mdts"] = 1
    namespace = (await connected()).namespace(1)
    device.namespace["nsze"] = 100
    await namespace.refresh()
    device.namespace["nsze"] = 4096
    assert len(await namespace.read(0, 4096)) == 4096 * 512
    assert namespace.size_blocks == 4096


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n: n.read(0, 0), "0 blocks"),
        (lambda n: n.read(-1, 1), "no range"),
        (lambda n: n.write(0, b""), "0 blocks"),
        (lambda n: n.write(0, bytes(100)), "100 bytes are no multiple of the block size"),
        (lambda n: n.write((1 << 64) - 1, bytes(1024)), "no range"),
        (lambda n: n.read_into(0, memoryview(bytes(512))), "writable"),
        (lambda n: n.write_zeroes(0, 0), "no range"),
        (lambda n: n.deallocate([(0, 0)]), "no range"),
    ],
)
async def test_misuse(device: FakeDevice, connected: Connect, call: Any, words: str) -> None:
    namespace = (await connected()).namespace(1)
    await namespace.refresh()
    device.log.clear()
    with pytest.raises(LocalProtocolError, match=words):
        await call(namespace)
    assert not [sqe for qid, sqe in device.log if qid]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nsze": 0}, "no active namespace 1"),
        ({"lbaf": [{"lbads": 3}]}, r"2\^3"),
        ({"lbaf": [{"lbads": 9, "ms": 8}]}, "metadata"),
        ({"lbaf": [{"lbads": 20}]}, "takes 131072 at most"),
    ],
)
async def test_namespaces_that_cannot_be_used(
    device: FakeDevice, connected: Connect, change: dict[str, Any], words: str
) -> None:
    device.namespace.update(change)
    with pytest.raises(NvmeofError, match=words):
        await (await connected()).namespace(1).read(0)


async def test_missing_namespace(device: FakeDevice, connected: Connect) -> None:
    with pytest.raises(NvmeStatusError, match="no active namespace 9"):
        await (await connected()).namespace(9).read(0)


async def test_views_of_other_formats(device: FakeDevice, connected: Connect) -> None:
    namespace = (await connected()).namespace(1)
    await namespace.write(0, memoryview(bytes(range(256)) * 2).cast("I"))
    into = memoryview(bytearray(512)).cast("H")
    await namespace.read_into(0, into)
    assert bytes(into) == bytes(range(256)) * 2


async def test_a_cancelled_read_into_keeps_the_buffer_until_the_completion(
    device: FakeDevice, connected: Connect
) -> None:
    controller = await connected(queue_size=4)
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.READ)
    into = bytearray(512)
    task = asyncio.create_task(namespace.read_into(0, into))
    await until(lambda: device.held)
    # an Abort that aborts nothing: the read goes on
    held = device.held.pop()
    task.cancel()
    await until(lambda: device.sent(AdminOpcode.ABORT))
    assert [(sqe.cdw10 & 0xFFFF, sqe.cdw10 >> 16) for sqe in device.sent(AdminOpcode.ABORT)] == [(1, held.cid)]
    assert not task.done()
    assert held.cid in controller.io_queues[0].requests  # the slot is not used again
    task.cancel()  # a second cancellation changes nothing
    await asyncio.sleep(0.01)
    assert not task.done()
    device.complete(held, 0, 0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert controller.io_queues[0].room == 3


async def test_a_cancelled_read_is_aborted(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.READ)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await namespace.read(0, 1)
    await until(lambda: not device.held and not controller.io_queues[0].load)
    assert len(device.sent(AdminOpcode.ABORT)) == 1
    device.intercept = None
    assert await namespace.read(0, 1) == bytes(512)


async def test_cancelling_a_command_that_was_not_sent_sends_no_abort(device: FakeDevice, connected: Connect) -> None:
    controller = await connected(queue_size=2)
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.READ)
    first = asyncio.create_task(namespace.read(0))
    second = asyncio.create_task(namespace.read_into(1, bytearray(512)))
    await until(lambda: device.held)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert not device.sent(AdminOpcode.ABORT)
    device.complete(device.held.pop(), 0, 0)
    await first
    assert len(device.sent(NvmOpcode.READ)) == 1


async def test_a_cancelled_transfer_aborts_its_parts_and_sends_no_more(device: FakeDevice, connected: Connect) -> None:
    device.identify["mdts"] = 1
    controller = await connected(queue_size=9)
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.WRITE)
    task = asyncio.create_task(namespace.write(0, bytearray(512 * 16 * 100)))
    await until(lambda: len(device.held) == 8)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # four Aborts at a time (ACL 3), the others after these
    assert len(device.sent(AdminOpcode.ABORT)) == 8
    assert controller.io_queues[0].load == 0
    assert len(device.sent(NvmOpcode.WRITE)) == 8


async def test_many_in_flight(device: FakeDevice, connected: Connect) -> None:
    controller = await connected(nr_io_queues=3, queue_size=8)
    namespace = controller.namespace(1)
    for lba in range(200):
        device.memory[lba * 512] = lba
    results = await asyncio.gather(*(namespace.read(lba) for lba in range(200)))
    assert [result[0] for result in results] == list(range(200))
