"""The fused Compare and Write of a namespace: against our target over every transport, and halves that go wrong."""

from __future__ import annotations

import asyncio
import os

import pytest

from nvmeof import CompareFailed, LocalProtocolError, NvmeofError, NvmeStatusError, OutcomeUnknown, Ramdisk
from nvmeof.host import blocking
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.queue import Request
from nvmeof.spec.enums import AnaState, NvmOpcode
from nvmeof.spec.sqe import Sqe
from nvmeof.spec.status import Status
from tests.conformance.rawhost import until

from .blocking_target import serving
from .conftest import HOSTNQN, Connect
from .fake_device import BLOCK_BYTES, FakeDevice
from .multipath.driven import drive
from .multipath.model import BLOCK_BYTES as MODEL_BLOCK_BYTES
from .multipath.model import ModelDevice
from .multipath.test_with_target import pair as two_paths
from .test_with_target import TRANSPORTS, pair


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [512, 4096, 32768])
async def test_expected_data_is_replaced_and_other_data_stays(transport: str, size: int) -> None:
    async with pair(transport, nr_io_queues=2) as (_, controller):
        namespace = controller.namespace(1)
        old, new = os.urandom(size), bytearray(os.urandom(size))
        await namespace.write(16, old)
        await namespace.compare_and_write(16, old, new, fua=True)
        assert await namespace.read(16, size // 512) == new
        with pytest.raises(CompareFailed, match="do not hold what was expected: nothing was written") as caught:
            await namespace.compare_and_write(16, old, bytes(size))
        assert caught.value.status == Status.COMPARE_FAILURE
        assert await namespace.read(16, size // 512) == new


async def test_the_operation_is_atomic_over_all_connections() -> None:
    """Several connections increment a counter: no increment is lost."""
    async with pair(nr_io_queues=3, queue_size=8) as (_, controller):
        namespace = controller.namespace(1)
        raised = 0

        async def raise_it() -> None:
            nonlocal raised
            for _ in range(25):
                while True:
                    old = await namespace.read(0)
                    new = (int.from_bytes(old[:8], "little") + 1).to_bytes(8, "little") + old[8:]
                    try:
                        await namespace.compare_and_write(0, old, new)
                    except CompareFailed:
                        continue
                    raised += 1
                    break

        await asyncio.gather(*(raise_it() for _ in range(12)))
        assert raised == 300 == int.from_bytes((await namespace.read(0))[:8], "little")


async def test_invalid_pairs() -> None:
    async with pair() as (_, controller):
        namespace = controller.namespace(1)
        with pytest.raises(LocalProtocolError, match="512 bytes are expected and 1024 are to be written"):
            await namespace.compare_and_write(0, bytes(512), bytes(1024))
        with pytest.raises(LocalProtocolError, match="no multiple of the block size"):
            await namespace.compare_and_write(0, bytes(100), bytes(100))
        with pytest.raises(LocalProtocolError, match="are more than one Compare and Write takes"):
            size = controller.max_transfer_bytes * 2
            await namespace.compare_and_write(0, bytes(size), bytes(size))
        with pytest.raises(NvmeStatusError) as caught:
            await namespace.compare_and_write(namespace.size_blocks, bytes(512), bytes(512))
        assert caught.value.status == Status.LBA_OUT_OF_RANGE and not isinstance(caught.value, CompareFailed)
    async with pair("tcp", queue_size=2) as (_, controller):
        with pytest.raises(LocalProtocolError, match="connect with a larger queue_size"):
            await controller.namespace(1).compare_and_write(0, bytes(512), bytes(512))


async def test_a_controller_without_it(device: FakeDevice, connected: Connect) -> None:
    device.identify["fuses"] = 0
    namespace = (await connected()).namespace(1)
    with pytest.raises(NvmeofError, match=r"has no Compare and Write \(FUSES\)"):
        await namespace.compare_and_write(0, bytes(BLOCK_BYTES), bytes(BLOCK_BYTES))


def hold(device: FakeDevice, *opcodes: int) -> None:
    """Leave the I/O commands of some opcodes without an answer, in ``device.held``."""

    def intercept(request: Request, sqe: Sqe) -> str | None:
        if request.queue.qid and sqe.opcode in opcodes:
            device.held.append(request)
            return None
        return "default"

    device.intercept = intercept


@pytest.mark.parametrize("queue_size", [3, 4, 16])
async def test_the_halves_are_neighbours_on_a_busy_queue(
    device: FakeDevice, connected: Connect, queue_size: int
) -> None:
    device.identify["fuses"] = 1
    controller = await connected(queue_size=queue_size)
    namespace = controller.namespace(1)
    await namespace.refresh()
    order: list[tuple[int, int]] = []
    send = device.send_req

    def spy(request, more):  # type: ignore[no-untyped-def]
        if request.queue.qid:
            order.append((request.sqe[0], request.sqe[1] & 3))
        send(request, more)

    device.send_req = spy  # type: ignore[method-assign]
    hold(device, NvmOpcode.READ, NvmOpcode.COMPARE, NvmOpcode.WRITE)
    reads = [asyncio.ensure_future(namespace.read(lba)) for lba in range(10)]
    pairs = [
        asyncio.ensure_future(namespace.compare_and_write(lba, bytes(BLOCK_BYTES), bytes(BLOCK_BYTES)))
        for lba in range(3)
    ]
    late = [asyncio.ensure_future(namespace.read(lba)) for lba in range(10)]
    for _ in range(200):
        await asyncio.sleep(0)
        held, device.held = device.held, []
        for request in held:
            device.complete(request, 0, 0)
    await asyncio.wait_for(asyncio.gather(*reads, *pairs, *late), 10)
    halves = [at for at, (_, fuse) in enumerate(order) if fuse == 1]
    assert len(halves) == 3 and len(order) == 26
    assert all(order[at : at + 2] == [(NvmOpcode.COMPARE, 1), (NvmOpcode.WRITE, 2)] for at in halves)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (Status.ABORTED_FAILED_FUSED, Status.NAMESPACE_WRITE_PROTECTED, "^Write failed: .*Write Protected"),
        (Status.UNRECOVERED_READ_ERROR, Status.ABORTED_FAILED_FUSED, "^Compare failed: .*Unrecovered Read"),
        (0, Status.WRITE_FAULT, "^Write failed: .*Write Fault"),
    ],
)
async def test_the_error_is_that_of_the_half_that_failed(
    device: FakeDevice, connected: Connect, first: int, second: int, words: str
) -> None:
    device.identify["fuses"] = 1
    namespace = (await connected()).namespace(1)
    await namespace.refresh()
    for order in ((0, 1), (1, 0)):
        hold(device, NvmOpcode.COMPARE, NvmOpcode.WRITE)
        pairing = asyncio.ensure_future(namespace.compare_and_write(0, bytes(BLOCK_BYTES), bytearray(BLOCK_BYTES)))
        await until(lambda: len(device.held) == 2)
        held, device.held = device.held, []
        for at in order:
            assert not pairing.done()
            device.complete(held[at], 0, (first, second)[at])
        with pytest.raises(NvmeStatusError, match=words):
            await pairing


async def test_a_lost_pair_is_of_unknown_outcome(device: FakeDevice, connected: Connect) -> None:
    device.identify["fuses"] = 1
    namespace = (await connected()).namespace(1)
    await namespace.refresh()
    hold(device, NvmOpcode.COMPARE, NvmOpcode.WRITE)
    pairing = asyncio.ensure_future(namespace.compare_and_write(0, bytes(BLOCK_BYTES), bytes(BLOCK_BYTES)))
    await until(lambda: len(device.held) == 2)
    device.complete(device.held[0], 0, 0)
    device.break_queue(1)
    with pytest.raises(OutcomeUnknown):
        await pairing


async def test_a_cancelled_pair_releases_its_buffers(device: FakeDevice, connected: Connect) -> None:
    device.identify["fuses"] = 1
    controller = await connected()
    namespace = controller.namespace(1)
    await namespace.refresh()
    hold(device, NvmOpcode.COMPARE, NvmOpcode.WRITE)
    pairing = asyncio.ensure_future(namespace.compare_and_write(0, bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)))
    await until(lambda: len(device.held) == 2)
    pairing.cancel()
    await asyncio.sleep(0.01)
    for request in device.held:
        device.complete(request, 0, 0)
    with pytest.raises(asyncio.CancelledError):
        await pairing
    assert not controller.io_queues[0].requests


# -- over several paths


async def test_over_two_paths_of_our_target() -> None:
    async with two_paths(iopolicy="round-robin") as (target, subsystem):
        namespace = subsystem.namespace(1)
        old, new = os.urandom(512), os.urandom(512)
        await namespace.write(8, old)
        for portid in (1, 2):
            target.administration.set_ana_state(AnaState.INACCESSIBLE, portid=portid)
            await namespace.compare_and_write(8, old, new)
            assert await namespace.read(8) == new
            with pytest.raises(CompareFailed):
                await namespace.compare_and_write(8, old, new)
            old, new = new, old
            target.administration.set_ana_state(AnaState.OPTIMIZED, portid=portid)


class PairDevice(ModelDevice):
    """A model with a fused Compare and Write."""

    def __init__(self) -> None:
        super().__init__(2)
        self.identify["fuses"] = 1


def test_a_pair_goes_over_another_path_only_where_it_was_not_executed() -> None:
    device = PairDevice()

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        old, new = bytes(MODEL_BLOCK_BYTES), b"\x05" * MODEL_BLOCK_BYTES
        device.ports[0].ana[1] = AnaState.INACCESSIBLE
        await namespace.compare_and_write(0, old, new)
        assert device.ports[1].executed == 2 and subsystem.paths[0].figures.failovers == 1
        pairing = asyncio.ensure_future(namespace.compare_and_write(0, new, old))
        await asyncio.sleep(0.0005)
        device.cut(1)
        device.ports[0].ana[1] = AnaState.OPTIMIZED
        with pytest.raises(OutcomeUnknown):
            await pairing
        await asyncio.sleep(15)
        assert all(member.depth == 0 and member.outstanding_bytes == 0 for member in subsystem.paths)

    drive(device, body, quiesce_tmo=0)


def test_a_pair_waits_for_a_path() -> None:
    device = PairDevice()

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        for port in (0, 1):
            device.ports[port].up = False
            device.cut(port)
        pairing = asyncio.ensure_future(
            namespace.compare_and_write(0, bytes(MODEL_BLOCK_BYTES), b"\x05" * MODEL_BLOCK_BYTES)
        )
        await asyncio.sleep(20)
        assert not pairing.done()
        device.ports[1].up = True
        await asyncio.wait_for(pairing, 20)
        assert device.volumes[1].data[0] == 5

    drive(device, body)


def test_from_the_blocking_api() -> None:
    with (
        serving(Ramdisk("1M")) as target,
        blocking.connect(
            target.address.host, target.address.port, transport="tcp", subnqn=target.subnqn, hostnqn=HOSTNQN
        ) as controller,
    ):
        namespace = controller.namespace(1)
        namespace.compare_and_write(0, bytes(512), b"\x07" * 512)
        assert namespace.read(0) == b"\x07" * 512
        with pytest.raises(CompareFailed):
            namespace.compare_and_write(0, bytes(512), bytes(512))
