"""A namespace over an I/O port that is no controller."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.errors import ConnectionLost
from nvmeof.host.batch import IoBatch
from nvmeof.host.io_port import IoPort, NvmLimits
from nvmeof.host.namespace import Namespace
from nvmeof.host.requests import DEFAULT_OPTIONS, CommandPart, RequestOptions
from nvmeof.host.results import IdentifyNamespace
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.sqe import SQE
from nvmeof.wire import Buffer, build

from .conftest import Connect
from .fake_device import FakeDevice


class Memory:
    """The I/O of one namespace, in memory: no queue, no connection, no controller."""

    subnqn = "nqn.2026-01.org.example:memory"
    max_transfer_bytes = 4096

    def __init__(self) -> None:
        self.runtime = AsyncioRuntime(logging.getLogger("test"))
        self.data = bytearray(64 * 512)
        self.sent: list[int] = []
        self.held: list[bool] = []

    async def io(
        self,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        command = SQE.unpack_from(sqe)
        self.sent.append(command.opcode)
        self.held.append(options.hold)
        start, end = command.slba * 512, (command.slba + command.transfer_blocks) * 512
        if command.opcode == NvmOpcode.READ:
            assert data_in is not None
            data_in[:] = self.data[start:end]
        elif command.opcode == NvmOpcode.WRITE:
            assert data_out is not None
            self.data[start:end] = data_out
        return 0

    async def io_transfer(self, parts: Iterator[CommandPart], *, hold: bool = True) -> int:
        for sqe, data_out, data_in in parts:
            await self.io(sqe, data_out=data_out, data_in=data_in, options=RequestOptions(hold=hold))
        return 0

    async def io_batch(self, batch: IoBatch) -> None:
        await self.io_transfer(batch.parts(), hold=batch.hold)

    async def execute_admin(
        self,
        sqe: bytes,
        /,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        raise AssertionError("no admin command is needed for reading and writing")

    async def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        return IdentifyNamespace.parse(build(IDENTIFY_NAMESPACE, nsze=64, ncap=64, lbaf=[{"lbads": 9}]))

    async def nvm_limits(self) -> NvmLimits:
        return NvmLimits()


class Failover:
    """The smallest multipath head: it uses the second port where the first has lost its connection."""

    def __init__(self, *ports: IoPort) -> None:
        self.ports = ports
        self.subnqn = ports[0].subnqn
        self.runtime = ports[0].runtime
        self.max_transfer_bytes = min(each.max_transfer_bytes for each in ports)
        self.identify_namespace = ports[-1].identify_namespace
        self.nvm_limits = ports[-1].nvm_limits
        self.io_transfer = ports[-1].io_transfer
        self.io_batch = ports[-1].io_batch
        self.execute_admin = ports[-1].execute_admin

    async def io(
        self,
        sqe: bytes,
        *,
        data_out: Buffer | None = None,
        data_in: memoryview | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> int:
        for port in self.ports[:-1]:
            try:
                return await port.io(sqe, data_out=data_out, data_in=data_in, options=options)
            except ConnectionLost:
                continue
        return await self.ports[-1].io(sqe, data_out=data_out, data_in=data_in, options=options)


async def test_a_namespace_needs_nothing_but_its_port() -> None:
    memory = Memory()
    namespace = Namespace(memory, 1)
    await namespace.write(3, b"\x5a" * 512 * 20)  # three commands of 4,096 bytes at most
    assert memory.sent == [NvmOpcode.WRITE] * 3
    assert await namespace.read(22, 2) == b"\x5a" * 512 + bytes(512)
    await namespace.write_zeroes(3, 1)
    await namespace.deallocate([(5, 2)])
    await namespace.flush()
    await namespace.write_many([40, 2], b"\x01" * 512 + b"\x02" * 512)
    assert await namespace.read_many([2, 40, 3]) == b"\x02" * 512 + b"\x01" * 512 + b"\x5a" * 512
    assert memory.sent[3:] == [
        NvmOpcode.READ,
        NvmOpcode.WRITE_ZEROES,
        NvmOpcode.DATASET_MANAGEMENT,
        NvmOpcode.FLUSH,
        *[NvmOpcode.WRITE] * 2,
        *[NvmOpcode.READ] * 3,
    ]
    pieces = [piece async for piece in namespace.chunks(22, 3, chunk_bytes=512)]
    assert pieces == [b"\x5a" * 512, bytes(512), bytes(512)]


async def test_only_a_buffer_of_the_caller_is_held() -> None:
    memory = Memory()
    namespace = Namespace(memory, 1)
    await namespace.read(0)
    await namespace.read_into(0, bytearray(512))
    await namespace.write(0, bytes(512))
    await namespace.write(0, bytearray(512))
    assert memory.held == [False, True, False, True]


async def test_a_head_over_two_controllers(connected: Connect, device: FakeDevice) -> None:
    """I/O goes on over the other port when the first has lost its controller."""
    controller, other = await connected(), Memory()
    namespace = Namespace(Failover(controller, other), 1)
    await namespace.write(0, b"\x11" * 512)
    assert device.memory[:512] == b"\x11" * 512 and not other.sent
    device.break_queue(1)
    await namespace.write(0, b"\x22" * 512)
    assert other.data[:512] == b"\x22" * 512
    with pytest.raises(ConnectionLost):
        await controller.namespace(1).write(0, bytes(512))
