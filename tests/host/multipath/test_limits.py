"""Paths whose controllers take less than the others: outstanding commands are cut, later ones are split for all
paths.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from nvmeof.errors import NvmeStatusError
from nvmeof.host import sqe_builders
from nvmeof.host.host_subsystem import HostSubsystem, PathAddress
from nvmeof.host.multipath.iopolicy import IOPOLICIES
from nvmeof.host.queue import Request
from nvmeof.spec.enums import AnaState, NvmOpcode
from nvmeof.spec.sqe import SQE, Sqe
from nvmeof.spec.status import Status, status_field

from .driven import connected, drive
from .model import BLOCK_BYTES, ModelDevice, ModelPort, Volume
from .virtual import run

LARGE_BLOCKS = 256
"""MDTS 5 of the model."""
SMALL_BLOCKS = 16
"""MDTS 1: 8 KiB."""


class StrictDevice(ModelDevice):
    """A device that refuses commands beyond a port's MDTS, and records the sizes of commands."""

    def __init__(self, ports: int, **keywords: Any) -> None:
        super().__init__(ports, Volume(1, blocks=4096), **keywords)
        self.sizes: list[list[int]] = [[] for _ in range(ports)]

    def _io(self, port: ModelPort, request: Request, sqe: Sqe) -> tuple[int, int]:
        if sqe.opcode in (NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.COMPARE):
            self.sizes[port.number].append(sqe.transfer_blocks)
            data = request.data_in if sqe.opcode == NvmOpcode.READ else request.data_out
            assert data is not None and len(data) == sqe.transfer_blocks * BLOCK_BYTES
            if sqe.transfer_blocks * BLOCK_BYTES > 4096 << int(port.identify.get("mdts", 5)):
                return 0, Status.INVALID_FIELD
        return super()._io(port, request, sqe)

    def contents(self, blocks: int) -> bytes:
        return bytes(self.volumes[1].data[: blocks * BLOCK_BYTES])


def with_small_second(ports: int = 2, **keywords: Any) -> StrictDevice:
    device = StrictDevice(ports, **keywords)
    device.ports[1].identify = {"mdts": 1}
    return device


@pytest.mark.parametrize("policy", IOPOLICIES)
def test_the_smallest_limit_holds_when_a_path_is_added_and_ends_when_it_is_removed(policy: str) -> None:
    device = with_small_second()
    data = os.urandom(600 * BLOCK_BYTES)

    async def whole() -> None:
        async with await connected(device, 0, iopolicy=policy) as subsystem:
            namespace = subsystem.namespace(1)
            await namespace.write(0, data)
            assert device.sizes[0] == [256, 256, 88]
            member = await subsystem.add_path(PathAddress("p1"))
            assert subsystem.core.heads[0].max_transfer_bytes == SMALL_BLOCKS * BLOCK_BYTES
            for sizes in device.sizes:
                sizes.clear()
            await namespace.write(0, data[::-1])
            await namespace.write_many([0, 300], data, 300)
            assert device.contents(600) == data and await namespace.read(0, 600) == data
            rest = {300 % SMALL_BLOCKS, 600 % SMALL_BLOCKS}
            assert {size for sizes in device.sizes for size in sizes} <= {SMALL_BLOCKS} | rest
            await subsystem.remove_path(member)
            device.sizes[0].clear()
            assert await namespace.read(0, 600) == data
            assert device.sizes[0] == [256, 256, 88]

    run(whole())


@pytest.mark.parametrize("policy", IOPOLICIES)
@pytest.mark.parametrize("gap", [0.0005, 0.0015])
def test_outstanding_commands_are_cut_when_they_fail_over_to_a_smaller_path(policy: str, gap: float) -> None:
    device = StrictDevice(2)
    data = os.urandom(700 * BLOCK_BYTES)

    async def body(subsystem: HostSubsystem) -> None:
        namespace = subsystem.namespace(1)
        await namespace.write(0, data)
        # the second controller comes back with a smaller limit while the first one has large commands
        device.ports[1].identify = {"mdts": 1}
        device.cut(1)
        for kind in ("read", "write", "batch"):
            new = os.urandom(len(data))
            device.ports[1].up = False
            into = bytearray(len(data))
            work: Any
            await asyncio.sleep(15)
            device.cut(1)
            await asyncio.sleep(0.1)
            if kind == "read":
                work = namespace.read_into(0, into)
            elif kind == "write":
                work = namespace.write(0, new)
            else:
                work = namespace.write_many(range(0, 700, 70), new, 70)
            working = asyncio.ensure_future(work)
            device.ports[1].up = True
            await asyncio.sleep(gap)
            device.ports[0].up = False
            device.cut(0)
            await asyncio.sleep(15)
            await asyncio.wait_for(working, 60)
            if kind == "read":
                assert into == data
            else:
                data_now = new
                assert device.contents(700) == data_now
                await namespace.write(0, data)
            device.ports[0].up = True
            await asyncio.sleep(15)
        assert all(member.depth == 0 and member.outstanding_bytes == 0 for member in subsystem.paths)
        assert subsystem.core.heads[0].waiting == 0

    drive(device, body, iopolicy=policy, quiesce_tmo=0, ctrl_loss_tmo=-1)


def oversized(read: bool, data: bytearray) -> dict[str, Any]:
    """Send a command of 64 blocks, which is outstanding when a small path becomes the only one."""
    make = sqe_builders.read if read else sqe_builders.write
    sqe = make(1, 16, 64)
    return {"sqe": sqe, "data_in": memoryview(data)} if read else {"sqe": sqe, "data_out": data}


@pytest.mark.parametrize("read", [True, False])
def test_a_command_larger_than_the_only_path_takes(read: bool) -> None:
    device = with_small_second()
    device.volumes[1].data[:] = os.urandom(len(device.volumes[1].data))

    async def body(subsystem: HostSubsystem) -> None:
        port = subsystem.namespace(1).port
        data = bytearray(os.urandom(64 * BLOCK_BYTES))
        await port.io(**oversized(read, data))  # over the path that takes it, whole
        assert device.sizes[0] == [64]
        device.set_ana(0, AnaState.INACCESSIBLE)
        await asyncio.sleep(0.1)
        data[:] = os.urandom(len(data))
        await port.io(**oversized(read, data))
        assert device.volumes[1].data[16 * BLOCK_BYTES : 80 * BLOCK_BYTES] == data
        assert device.sizes[1] == [SMALL_BLOCKS] * 4
        # the controller refuses what cannot be cut, with its own error
        with pytest.raises(NvmeStatusError, match="Invalid Field"):
            await port.io(sqe_builders.compare(1, 16, 64), data_out=data)

    drive(device, body)


def test_a_cut_command_that_fails_and_one_that_is_cancelled() -> None:
    device = with_small_second()

    async def body(subsystem: HostSubsystem) -> None:
        port = subsystem.namespace(1).port
        device.set_ana(0, AnaState.INACCESSIBLE)
        await asyncio.sleep(0.1)
        data = bytearray(64 * BLOCK_BYTES)
        device.ports[1].statuses = [status_field(Status.WRITE_FAULT, dnr=True)]
        with pytest.raises(NvmeStatusError, match="Write Fault"):
            await port.io(**oversized(False, data))
        for give_back in (True, False):
            device.give_back = lambda request, free=give_back: free  # type: ignore[method-assign]
            for moment in (0.0, 0.0005, 0.0015):
                reading = asyncio.ensure_future(port.io(**oversized(True, data)))
                await asyncio.sleep(moment)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
                if not give_back:
                    assert all(member.depth == 0 for member in subsystem.paths)
                await asyncio.sleep(1)
                assert all(member.depth == 0 and member.outstanding_bytes == 0 for member in subsystem.paths)

    drive(device, body)


def test_a_cut_write_of_unknown_outcome_holds_back_overlapping_ones() -> None:
    device = StrictDevice(2, cqt_ms=2500)
    device.ports[0].linger = 2.0
    old, new = os.urandom(64 * BLOCK_BYTES), os.urandom(64 * BLOCK_BYTES)

    async def body(subsystem: HostSubsystem) -> None:
        port = subsystem.namespace(1).port
        first = asyncio.ensure_future(port.io(sqe_builders.write(1, 0, 64), data_out=old))
        await asyncio.sleep(0.0005)
        device.ports[0].up = False
        device.cut(0)
        # the other controller comes back with a smaller limit
        device.ports[1].identify = {"mdts": 1}
        device.cut(1)
        await asyncio.sleep(0)
        second = asyncio.ensure_future(port.io(sqe_builders.write(1, 8, 16), data_out=new[: 16 * BLOCK_BYTES]))
        await asyncio.gather(first, second)
        expected = bytearray(old)
        expected[8 * BLOCK_BYTES : 24 * BLOCK_BYTES] = new[: 16 * BLOCK_BYTES]
        await asyncio.sleep(5)
        assert device.contents(64) == bytes(expected)
        assert set(device.sizes[1]) == {SMALL_BLOCKS}
        assert subsystem.core.heads[0].waiting == 0

    drive(device, body, ctrl_loss_tmo=-1)


def test_pieces_name_the_right_blocks() -> None:
    device = with_small_second()

    async def body(subsystem: HostSubsystem) -> None:
        device.set_ana(0, AnaState.INACCESSIBLE)
        await asyncio.sleep(0.1)
        head = subsystem.core.heads[0]
        sqe = sqe_builders.write(1, 5, 36, fua=True)
        seen: list[Sqe] = []
        execute = device._io

        def spy(port: ModelPort, request: Request, decoded: Sqe) -> tuple[int, int]:
            seen.append(SQE.unpack_from(request.sqe))
            return execute(port, request, decoded)

        device._io = spy  # type: ignore[method-assign]
        await head.io(sqe, data_out=bytes(36 * BLOCK_BYTES))
        found = sorted((each.slba, each.transfer_blocks, each.cdw12 >> 16) for each in seen)
        fua = SQE.unpack_from(sqe).cdw12 >> 16
        assert fua and found == [(5, 16, fua), (21, 16, fua), (37, 4, fua)]

    drive(device, body)
