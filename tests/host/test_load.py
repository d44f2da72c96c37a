"""The load generator over the in-memory device: the queue of the next command, windows, and the end of a load."""

from __future__ import annotations

import asyncio

import pytest

from nvmeof.errors import ConnectionLost, NvmeStatusError
from nvmeof.host.load import Load, round_robin
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.status import Status

from .conftest import Connect
from .fake_device import FakeDevice


async def _stopped(load: Load) -> None:
    load.stop()
    await asyncio.wait_for(load.finished, 20)


async def test_a_request_stays_on_its_queue(device: FakeDevice, connected: Connect) -> None:
    controller = await connected(nr_io_queues=2)
    (namespace,) = await controller.namespaces()
    device.hold(NvmOpcode.READ)
    load = Load(namespace, controller.io_queues, "randread", 4096, depth=3)
    load.start()
    load.open_window()
    assert [queue.load for queue in controller.io_queues] == [3, 3]
    for _ in range(10):
        device.complete(device.held.pop(), 0, 0)
        await asyncio.sleep(0)  # a completed request is sent again in the next turn of the loop
    assert sorted(queue.load for queue in controller.io_queues) == [3, 3]
    figures = load.close_window()
    assert (figures.ios, figures.block_bytes) == (10, 4096)
    assert figures.latency_us(1.0) >= figures.latency_us(0.5) > 0
    assert {sqe.transfer_blocks for sqe in device.sent(NvmOpcode.READ)} == {8}
    load.stop()
    assert not load.finished.done()
    while device.held:
        device.complete(device.held.pop(), 0, 0)
    await asyncio.wait_for(load.finished, 20)


async def test_requests_take_turns_over_the_queues(device: FakeDevice, connected: Connect) -> None:
    controller = await connected(nr_io_queues=3)
    (namespace,) = await controller.namespaces()
    device.hold(NvmOpcode.WRITE)
    queues = controller.io_queues
    load = Load(namespace, queues, "write", 512, depth=2, next_queue=round_robin(queues))
    load.start()
    assert [request.queue.qid for request in device.held] == [1, 2, 3, 1, 2, 3]
    for request in [each for each in device.held if each.queue.qid == 2]:
        device.held.remove(request)
        device.complete(request, 0, 0)
    assert [request.queue.qid for request in device.held][-2:] == [1, 2]
    # a sequential load begins at block 0
    assert [sqe.slba for sqe in device.sent(NvmOpcode.WRITE)][:4] == [0, 1, 2, 3]
    device.intercept = None
    while device.held:
        device.complete(device.held.pop(), 0, 0)
    await _stopped(load)


async def test_a_full_queue_is_passed_over(connected: Connect) -> None:
    controller = await connected(nr_io_queues=2, queue_size=2)
    namespace = controller.namespace(1)
    await namespace.refresh()
    first, second = controller.io_queues
    pick = round_robin([first, second])
    load = Load(namespace, [first], "read", 512, depth=1)
    load.start()
    assert not first.room and [pick(), pick()] == [second, second]
    await _stopped(load)


async def test_an_error_ends_the_load(device: FakeDevice, connected: Connect) -> None:
    controller = await connected()
    (namespace,) = await controller.namespaces()
    device.intercept = lambda request, sqe: (0, Status.INTERNAL_ERROR) if sqe.opcode == NvmOpcode.READ else "default"
    load = Load(namespace, controller.io_queues, "read", 512, depth=4)
    load.start()
    await asyncio.wait_for(load.finished, 20)
    assert isinstance(load.error, NvmeStatusError) and load.error.status == Status.INTERNAL_ERROR


@pytest.mark.parametrize("ramp_seconds", [0.0, 0.02])
async def test_a_lost_queue_ends_the_load(device: FakeDevice, connected: Connect, ramp_seconds: float) -> None:
    controller = await connected(nr_io_queues=2)
    (namespace,) = await controller.namespaces()
    device.hold(NvmOpcode.READ)
    load = Load(namespace, controller.io_queues, "read", 512, depth=2)
    load.start(ramp_seconds)
    await asyncio.sleep(ramp_seconds / 2)
    device.break_queue(2)
    await asyncio.wait_for(load.finished, 20)
    assert isinstance(load.error, ConnectionLost)
