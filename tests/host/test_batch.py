"""Batches and vectors of a namespace over the in-memory device: data, windows, errors, cancellation."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import CommandNotExecuted, LocalProtocolError, NvmeStatusError, OutcomeUnknown
from nvmeof.host import sqe_builders
from nvmeof.host.batch import BATCH_WINDOW, IoBatch
from nvmeof.host.buffers import BlockVector
from nvmeof.spec.enums import AdminOpcode, NvmOpcode
from nvmeof.spec.sqe import CDW12_FUA
from nvmeof.spec.status import Status
from tests.conformance.rawhost import until

from .conftest import Connect
from .fake_device import BLOCK_BYTES, FakeDevice


def block(number: int) -> bytes:
    """Return the content of one block."""
    return number.to_bytes(4, "little") * (BLOCK_BYTES // 4)


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("queue_size", [2, 16, 64])
async def test_many_reads_and_writes(device: FakeDevice, connected: Connect, queues: int, queue_size: int) -> None:
    namespace = (await connected(nr_io_queues=queues, queue_size=queue_size)).namespace(1)
    order = [number * 37 % 300 * 2 for number in range(300)]
    await namespace.write_many(order, b"".join(block(lba) + block(lba + 1) for lba in order), 2)
    assert device.memory[: 600 * BLOCK_BYTES] == b"".join(map(block, range(600)))
    data = await namespace.read_many(order[:200], 2)
    assert data == b"".join(block(lba) + block(lba + 1) for lba in order[:200])
    assert len(device.sent(NvmOpcode.WRITE)) == 300 and len(device.sent(NvmOpcode.READ)) == 200
    into = bytearray(BLOCK_BYTES * 3)
    view = await namespace.read_many([5, 1, 9], into=into)
    assert view == into == block(5) + block(1) + block(9)
    buffers = [bytearray(BLOCK_BYTES) for _ in range(2)]
    assert not await namespace.read_many([8, 3], into=buffers)
    assert buffers == [block(8), block(3)]
    await namespace.write_many([3, 8], [block(1), bytearray(block(2))], fua=True)
    assert [bool(sqe.cdw12 & CDW12_FUA) for sqe in device.sent(NvmOpcode.WRITE)[-2:]] == [True, True]
    assert await namespace.read_many([]) == b""
    await namespace.write_many([], b"")


async def test_a_batch_is_submitted_in_one_piece(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    namespace = controller.namespace(1)
    await namespace.refresh()
    before = len(device.more)
    await namespace.read_many(range(10))
    assert device.more[before:] == [True] * 9 + [False]


async def test_a_batch_larger_than_one_command_takes(device: FakeDevice, connected: Connect) -> None:
    device.identify["mdts"] = 1  # 16 blocks
    namespace = (await connected()).namespace(1)
    data = os.urandom(40 * BLOCK_BYTES * 2)
    await namespace.write_many([100, 0], data, 40)
    assert device.memory[100 * BLOCK_BYTES : 140 * BLOCK_BYTES] == data[: 40 * BLOCK_BYTES]
    assert await namespace.read_many([100, 0], 40) == data
    assert {sqe.transfer_blocks for sqe in device.sent(NvmOpcode.READ)} == {16, 8}


async def test_the_window_bounds_outstanding_commands(device: FakeDevice, connected: Connect) -> None:
    device.cap = type(device.cap)(mqes_entries=256, timeout_seconds=1.0)
    device.identify["maxcmd"] = 256
    controller = await connected(queue_size=256)
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.READ)
    reading = asyncio.create_task(namespace.read_many(range(1000)))
    await until(lambda: device.held)
    assert len(device.held) == BATCH_WINDOW
    done = 0
    while done < 1000:
        held, device.held = device.held, []
        for request in held:
            assert request.data_in is not None
            request.data_in[:] = bytes(device.memory[:BLOCK_BYTES])
            device.complete(request, 0, 0)
            done += 1
            assert controller.io_queues[0].load <= BATCH_WINDOW
    assert await reading == bytes(1000 * BLOCK_BYTES)


async def test_the_first_error_is_raised_when_all_have_ended(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.READ)
    batch = IoBatch(b"", [], [])
    run = controller.io_batch

    async def spy(chosen: IoBatch) -> None:
        nonlocal batch
        batch = chosen
        await run(chosen)

    controller.io_batch = spy  # type: ignore[method-assign]
    reading = asyncio.create_task(namespace.read_many(range(100)))
    await until(lambda: len(device.held) == 63)
    held = device.held
    device.complete(held[40], 0, Status.UNRECOVERED_READ_ERROR)
    for index, request in enumerate(held):
        if index != 40:
            assert not reading.done()
            device.complete(request, 0, 0)
    with pytest.raises(NvmeStatusError, match="Read failed: ") as caught:
        await reading
    assert caught.value.status == Status.UNRECOVERED_READ_ERROR
    assert len(device.sent(NvmOpcode.READ)) == 63  # none was sent after the error
    assert sorted(batch.unfinished) == [40, *range(63, 100)]
    rest = batch.rest()
    assert rest.slbas == [40, *range(63, 100)] and len(rest.buffers) == 38
    device.intercept = None
    await run(rest)
    assert device.sent(NvmOpcode.READ)[-1].slba == 99


async def test_a_queue_that_is_lost_fails_the_batch(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.WRITE)
    writing = asyncio.create_task(namespace.write_many(range(100), bytes(100 * BLOCK_BYTES)))
    await until(lambda: device.held)
    device.break_queue(1)
    with pytest.raises(OutcomeUnknown, match="broke queue 1"):
        await writing
    with pytest.raises(CommandNotExecuted, match="broke queue 1"):
        await namespace.read_many([1, 2])


async def test_commands_lost_before_and_after_sending_are_distinguished(device: FakeDevice, connected: Connect) -> None:
    controller = await connected(queue_size=4)
    device.hold(NvmOpcode.WRITE)
    buffers = [memoryview(bytes(BLOCK_BYTES))] * 5
    batch = IoBatch(sqe_builders.write(1, 0, 1), range(5), buffers, write=True)
    writing = asyncio.create_task(controller.io_batch(batch))
    await until(lambda: len(device.held) == 3)
    device.complete(device.held.pop(0), 0, 0)  # goes on with half of what completes
    device.break_queue(1)
    with pytest.raises(OutcomeUnknown):
        await writing
    assert batch.unknown == [1, 2] and batch.unfinished == [1, 2, 3, 4]


async def test_a_cancelled_batch(device: FakeDevice, connected: Connect) -> None:
    """No further command is sent, sent ones are aborted, and the buffers are free when the cancellation is raised."""
    controller = await connected()
    namespace = controller.namespace(1)
    await namespace.refresh()
    into = bytearray(200 * BLOCK_BYTES)
    device.hold(NvmOpcode.READ)
    reading = asyncio.create_task(namespace.read_many(range(200), into=into))
    await until(lambda: device.held)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not device.held and controller.io_queues[0].load == 0
    assert len(device.sent(NvmOpcode.READ)) == 63
    assert len(device.sent(AdminOpcode.ABORT)) == 63
    device.intercept = None
    device.memory[:] = b"\x55" * len(device.memory)
    assert await namespace.read_many([1, 2]) == b"\x55" * 2 * BLOCK_BYTES  # with other requests
    assert not any(into)


async def test_a_batch_that_waits_for_an_identifier_is_taken_back(device: FakeDevice, connected: Connect) -> None:
    controller = await connected(queue_size=2)
    namespace = controller.namespace(1)
    await namespace.refresh()
    device.hold(NvmOpcode.READ)
    first = asyncio.create_task(namespace.read(0))
    await until(lambda: device.held)
    second = asyncio.create_task(namespace.read_many(range(3)))
    await until(lambda: controller.io_queues[0].waiting)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert not controller.io_queues[0].waiting
    device.complete(device.held.pop(), 0, 0)
    assert await first == bytes(BLOCK_BYTES)
    assert len(device.sent(NvmOpcode.READ)) == 1


async def test_requests_are_used_again_unless_an_abort_may_name_them(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    namespace = controller.namespace(1)
    await namespace.refresh()
    seen: list[Any] = []
    device.intercept = lambda request, sqe: (seen.append(request), "default")[1] if request.queue.qid else "default"
    await namespace.read_many(range(4))
    await namespace.read_many(range(4))
    assert set(map(id, seen[:4])) == set(map(id, seen[4:]))
    aborted = seen[0]
    device.hold(NvmOpcode.READ)
    reading = asyncio.create_task(namespace.read_many(range(4)))
    await until(lambda: len(device.held) == 4)
    aborted.aborted = True  # as a timeout does
    for request in list(device.held):
        device.complete(request, 0, 0)
    await reading
    seen.clear()
    device.intercept = lambda request, sqe: (seen.append(request), "default")[1] if request.queue.qid else "default"
    await namespace.read_many(range(64))
    assert aborted not in seen


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.read_many([1, 2], into=bytearray(512)), "need a buffer of 1024 bytes, not 512"),
        (lambda n: n.read_many([1, 2], into=[bytearray(512)]), "2 addresses need as many buffers, not 1"),
        (lambda n: n.read_many([1], into=[bytearray(100)]), "takes 512 bytes, and one has 100"),
        (lambda n: n.read_many([1], into=[bytes(512)]), "must be writable"),
        (lambda n: n.read_many([-1]), "no range"),
        (lambda n: n.read_many([1, 1 << 64]), "no range"),
        (lambda n: n.write_many([1], bytes(100)), "not 100"),
        (lambda n: n.readv(0, [bytearray(100), bytearray(100)]), "no multiple of the block size"),
        (lambda n: n.readv(0, [bytes(512)]), "must be writable"),
        (lambda n: n.writev(0, []), "no range"),
        (lambda n: n.writev(0, [memoryview(bytes(2048))[::2]]), "contiguous"),
    ],
)
async def test_an_invalid_batch_is_explained(connected: Connect, call: Any, message: str) -> None:
    namespace = (await connected()).namespace(1)
    with pytest.raises(LocalProtocolError, match=message):
        await call(namespace)


async def test_vectors(device: FakeDevice, connected: Connect) -> None:
    namespace = (await connected()).namespace(1)
    data = os.urandom(8 * BLOCK_BYTES)
    cuts = [0, 100, 100, 612, 3 * 512, 5 * 512, 5 * 512 + 1, 8 * 512]
    parts = [data[a:b] for a, b in itertools.pairwise(cuts)]
    await namespace.writev(10, parts, fua=True)
    assert device.memory[10 * BLOCK_BYTES : 18 * BLOCK_BYTES] == data
    into = [bytearray(len(part)) for part in parts]
    await namespace.readv(10, into)
    assert into == parts
    with pytest.raises(NvmeStatusError, match="out of range"):
        await namespace.writev(4090, [bytes(512)] * 10)
    assert len(device.sent(NvmOpcode.WRITE)) == len(device.sent(NvmOpcode.READ))


@given(sizes=st.lists(st.integers(0, 40), max_size=12), block_bytes=st.integers(1, 16))
def test_a_vector_is_its_buffers_in_their_order(sizes: list[int], block_bytes: int) -> None:
    sizes.append(-sum(sizes) % block_bytes)
    data = os.urandom(sum(sizes))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    views = [memoryview(data)[at : at + size] for at, size in zip(starts, sizes, strict=True)]
    medium = bytearray(len(data))
    for first, view in BlockVector(views, block_bytes, gather=True).parts:
        assert len(view) % block_bytes == 0
        medium[first * block_bytes : first * block_bytes + len(view)] = view
    assert medium == data
    into = [bytearray(size) for size in sizes]
    vector = BlockVector([memoryview(each) for each in into], block_bytes, gather=False)
    covered = 0
    for first, view in vector.parts:
        view[:] = medium[first * block_bytes : first * block_bytes + len(view)]
        covered += len(view)
    vector.scatter()
    assert covered == len(data) and b"".join(into) == data
