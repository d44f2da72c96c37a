"""Batches over several paths of the model: how they are divided, and where they go when paths fail."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from nvmeof.errors import NvmeStatusError
from nvmeof.host import sqe_builders
from nvmeof.host.batch import BATCH_WINDOW, IoBatch
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.multipath.head import NoPathError
from nvmeof.host.multipath.iopolicy import IOPOLICIES
from nvmeof.host.queue import CommandSeries, Queue, Request
from nvmeof.spec.enums import AnaState
from nvmeof.spec.status import Status, status_field

from .driven import block, drive
from .model import BLOCK_BYTES, ModelDevice, Volume

BLOCKS = 1024
FAULT = status_field(Status.WRITE_FAULT, dnr=True)


class Device(ModelDevice):
    """A device that records how many commands each path was given at once."""

    def __init__(self, ports: int) -> None:
        super().__init__(ports, Volume(1, blocks=BLOCKS))
        self.batches: list[tuple[str, int]] = []

    def send_batch(self, queue: Queue, batch: CommandSeries, cids: Sequence[int], requests: Sequence[Request]) -> None:
        self.batches.append((queue.options.traddr, len(requests)))
        super().send_batch(queue, batch, cids, requests)


def pattern(count: int) -> list[memoryview]:
    return [memoryview(block(lba % 250 + 1)) for lba in range(count)]


def writes(count: int) -> IoBatch:
    return IoBatch(sqe_builders.write(1, 0, 1), range(count), pattern(count), write=True)


@pytest.mark.parametrize(
    ("policy", "shares"),
    [
        ("numa", {"p0": 32}),
        ("round-robin", {"p0": 8, "p1": 8, "p2": 8, "p3": 8}),
        ("queue-depth", {"p0": 8, "p1": 8, "p2": 8, "p3": 8}),
        ("service-time", {"p0": 8, "p1": 8, "p2": 8, "p3": 8}),
    ],
)
def test_each_path_gets_its_share_as_one_batch(policy: str, shares: dict[str, int]) -> None:
    device = Device(4)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.write_many(range(32), b"".join(pattern(32)))
        assert dict(device.batches) == shares and len(device.batches) == len(shares)
        assert await namespace.read_many(range(32)) == b"".join(pattern(32))
        assert sum(member.figures.ios for member in subsystem.paths) == 64
        assert sum(member.figures.bytes for member in subsystem.paths) == 64 * BLOCK_BYTES
        assert all(member.depth == 0 and member.outstanding_bytes == 0 for member in subsystem.paths)

    drive(device, body, iopolicy=policy)


def test_a_slower_path_gets_less_of_a_batch_by_queue_depth() -> None:
    device = Device(2)
    device.ports[1].delay = 0.01

    async def body(subsystem: HostSubsystem) -> None:
        await subsystem.namespace(1).read_many([lba % BLOCKS for lba in range(2000)])
        fast, slow = (member.figures.ios for member in subsystem.paths)
        assert fast + slow == 2000 and fast > 2 * slow > 0

    drive(device, body, iopolicy="queue-depth")


@pytest.mark.parametrize("policy", IOPOLICIES)
@pytest.mark.parametrize(("queues", "queue_size"), [(1, 2), (3, 5), (2, 128)])
def test_windows_and_commands_that_wait_for_an_identifier(policy: str, queues: int, queue_size: int) -> None:
    device = Device(3)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        order = random.Random(1).sample(range(BLOCKS), 500)
        data = [block(lba % 250 + 1) for lba in order]
        await asyncio.gather(
            namespace.write_many(order[:300], data[:300]), namespace.write_many(order[300:], data[300:])
        )
        for lba, expected in zip(order, data, strict=True):
            assert device.volumes[1].data[lba * BLOCK_BYTES :][:BLOCK_BYTES] == expected
        assert await namespace.read_many(order) == b"".join(data)

    drive(device, body, iopolicy=policy, nr_io_queues=queues, queue_size=queue_size)


def test_at_most_a_window_is_outstanding() -> None:
    device = Device(2)
    device.identify["maxcmd"] = 256

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        reading = asyncio.ensure_future(namespace.read_many([lba % BLOCKS for lba in range(1000)]))
        deepest = 0
        while not reading.done():
            deepest = max(deepest, sum(member.depth for member in subsystem.paths))
            await asyncio.sleep(0.0001)
        assert deepest == BATCH_WINDOW

    drive(device, body, iopolicy="round-robin", queue_size=200)


@pytest.mark.parametrize("policy", IOPOLICIES)
def test_parts_go_on_over_the_other_path(policy: str) -> None:
    device = Device(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        for port in (0, 1, 0):
            device.volumes[1].data[:] = bytes(len(device.volumes[1].data))
            batch = writes(200)
            writing = asyncio.ensure_future(namespace.port.io_batch(batch))
            await asyncio.sleep(0.0025)
            device.cut(port)
            await writing
            assert device.volumes[1].data[: 200 * BLOCK_BYTES] == b"".join(pattern(200)) and not batch.unfinished
            assert await namespace.read_many(range(200)) == b"".join(pattern(200))
            await asyncio.sleep(15)  # reconnected

    drive(device, body, iopolicy=policy, quiesce_tmo=0)


def test_parts_that_a_path_refuses_go_on_over_the_other_one() -> None:
    device = Device(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        device.ports[0].ana[1] = AnaState.INACCESSIBLE  # no event: the host learns of it by the refusals
        await namespace.write_many(range(100), b"".join(pattern(100)))
        assert await namespace.read_many(range(100)) == b"".join(pattern(100))
        assert subsystem.paths[0].figures.failovers and not subsystem.paths[0].figures.ios
        device.ports[1].statuses = [status_field(Status.INTERNAL_ERROR)] * 3  # retried on the same path
        assert await namespace.read_many(range(100)) == b"".join(pattern(100))
        assert subsystem.paths[1].figures.retries == 3

    drive(device, body, iopolicy="round-robin")


def test_the_rest_of_a_batch_after_an_error() -> None:
    device = Device(1)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        batch = writes(200)
        device.ports[0].statuses = [FAULT] * BATCH_WINDOW
        with pytest.raises(NvmeStatusError, match="Write Fault"):
            await namespace.port.io_batch(batch)
        assert sorted(batch.unfinished) == list(range(200)) and not batch.unknown
        batch = writes(200)
        device.ports[0].statuses = [FAULT]
        with pytest.raises(NvmeStatusError, match="Write Fault"):
            await namespace.port.io_batch(batch)
        done = [lba for lba in range(200) if any(device.volumes[1].data[lba * BLOCK_BYTES :][:BLOCK_BYTES])]
        assert sorted([*batch.unfinished, *done]) == list(range(200))
        assert len(done) in (BATCH_WINDOW - 1, BATCH_WINDOW * 3 // 2 - 1)
        await namespace.port.io_batch(batch.rest())
        assert device.volumes[1].data[: 200 * BLOCK_BYTES] == b"".join(pattern(200))

    drive(device, body, queue_size=128)


def test_a_batch_without_a_path() -> None:
    device = Device(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        batch = writes(200)
        writing = asyncio.ensure_future(namespace.port.io_batch(batch))
        await asyncio.sleep(0.0005)
        for port in (0, 1):
            device.ports[port].up = False
            device.cut(port)
        with pytest.raises(NoPathError, match="no path to namespace 1"):
            await writing
        assert sorted(batch.unfinished) == list(range(200))
        with pytest.raises(NoPathError):
            await namespace.read_many([1, 2])

    drive(device, body, ctrl_loss_tmo=0, quiesce_tmo=0, iopolicy="round-robin")


def test_a_batch_waits_behind_a_write_of_unknown_outcome() -> None:
    device = Device(2)
    device.identify["cqt"] = 2500
    device.ports[0].linger = 2.0

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        first = asyncio.ensure_future(namespace.write(3, block(1)))
        await asyncio.sleep(0.0002)
        device.ports[0].up = False
        device.cut(0)
        await asyncio.sleep(0)
        second = asyncio.ensure_future(namespace.write_many(range(6), block(2) * 6))
        await asyncio.sleep(1.0)
        assert not first.done() and not second.done()
        data = device.volumes[1].data
        assert data[: 3 * BLOCK_BYTES] == block(2) * 3 and data[3 * BLOCK_BYTES : 4 * BLOCK_BYTES] == block(0)
        await asyncio.gather(first, second)
        assert data[: 6 * BLOCK_BYTES] == block(2) * 6
        assert subsystem.core.heads[0].waiting == 0

    drive(device, body)


@pytest.mark.parametrize("moment", [0.0, 0.0005, 0.0015, 0.003])
@pytest.mark.parametrize("held", [False, True])
def test_a_cancelled_batch_leaves_nothing_behind(moment: float, held: bool) -> None:
    device = Device(2)
    if held:
        device.give_back = lambda request: False  # type: ignore[method-assign]

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        into = bytearray(300 * BLOCK_BYTES)
        reading = asyncio.ensure_future(namespace.read_many(range(300), into=into))
        await asyncio.sleep(moment)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        if held:
            assert all(member.depth == 0 for member in subsystem.paths)
        into[:] = bytes(len(into))
        await asyncio.sleep(1)
        assert not any(into)
        assert all(member.depth == 0 and member.outstanding_bytes == 0 for member in subsystem.paths)
        await namespace.write_many(range(10), b"".join(pattern(10)))
        assert await namespace.read_many(range(10)) == b"".join(pattern(10))

    drive(device, body, iopolicy="round-robin")


def test_parts_are_used_again() -> None:
    device = Device(2)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        used: Counter[int] = Counter()
        send = device.send_batch

        def spy(queue: Queue, batch: CommandSeries, cids: Sequence[int], requests: Sequence[Request]) -> None:
            used.update(map(id, requests))
            send(queue, batch, cids, requests)

        device.send_batch = spy  # type: ignore[method-assign]
        for _ in range(5):
            await namespace.read_many(range(40))
        assert len(used) == 40

    drive(device, body, iopolicy="round-robin")


def test_random_batches_beside_faults() -> None:
    """Reads and writes of whole batches while paths are cut and ANA states change: the contents are right at the
    end.
    """
    chance = random.Random(7)
    device = Device(3)

    async def writer(namespace: Any, first: int) -> None:
        for generation in itertools.count(1):
            values = [block((first + generation + at) % 250 + 1) for at in range(100)]
            await namespace.write_many(range(first, first + 100), values)
            assert await namespace.read_many(range(first, first + 100)) == b"".join(values)
            if generation == 60:
                return

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        working = asyncio.gather(*(writer(namespace, first) for first in (0, 100, 200)))
        while not working.done():
            await asyncio.sleep(chance.choice([0.0003, 0.002, 0.01]))
            port = chance.randrange(3)
            if chance.random() < 0.3:
                device.cut(port)
            else:
                device.set_ana(port, chance.choice([AnaState.OPTIMIZED, AnaState.NON_OPTIMIZED, AnaState.INACCESSIBLE]))
            if chance.random() < 0.5:
                for each in range(3):
                    device.set_ana(each, AnaState.OPTIMIZED)
                await asyncio.sleep(chance.choice([0.0, 3.0]))
        await working
        assert all(member.depth == 0 and member.outstanding_bytes == 0 for member in subsystem.paths)

    drive(device, body, iopolicy="round-robin", quiesce_tmo=0, reconnect_delay=2.0, ctrl_loss_tmo=-1)
