"""Formats and sanitize operations over the wire, while hosts read and write as fast as they can."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nvmeof import FileBackend, NvmeStatusError, Ramdisk, Target, connect
from nvmeof.spec.status import Status

FORMAT, SANITIZE, GET_LOG_PAGE = 0x80, 0x84, 0x02
SANITIZE_LOG = 0x81 | 127 << 16


def backend_of(kind: str, directory: Path):
    return Ramdisk("32M") if kind == "ramdisk" else FileBackend(directory / "disk", size="32M")


class Load:
    """Writers and readers of 8 KiB and 256 KiB, with data in capsules and by R2T; `seen` has the statuses."""

    def __init__(self, controller) -> None:
        self.controller = controller
        self.seen: set[int] = set()
        self.running = True

    async def io(self, opcode: int, data: bytes | None, length: int, slba: int, blocks: int) -> int:
        try:
            await self.controller.io_passthru(
                opcode, nsid=1, data=data, data_bytes=length, cdw10=slba, cdw12=blocks - 1
            )
        except NvmeStatusError as error:
            return error.status
        return 0

    async def worker(self, number: int) -> None:
        position = number * 4096
        while self.running:
            for size in (8192, 262144):
                blocks = size // 512
                self.seen.add(await self.io(0x01, b"x" * size, 0, position % 8192, blocks))
                self.seen.add(await self.io(0x02, None, size, position % 8192, blocks))
            position += 512
            await asyncio.sleep(0)


async def loaded(controller, work) -> set[int]:
    load = Load(controller)
    tasks = [asyncio.create_task(load.worker(number)) for number in range(6)]
    await asyncio.sleep(0.05)
    try:
        await work()
    finally:
        load.running = False
        await asyncio.gather(*tasks)
    return load.seen


@pytest.mark.parametrize("kind", ["ramdisk", "file"])
@pytest.mark.parametrize("digests", [False, True])
async def test_sanitize_under_load(kind, digests, tmp_path):
    async with Target(namespaces=[backend_of(kind, tmp_path)], trtype="tcp") as target:
        host = {"transport": "tcp", "subnqn": target.subnqn, "hdr_digest": digests, "data_digest": digests}
        async with await connect(target.address.host, target.address.port, nr_io_queues=3, **host) as controller:

            async def sanitize() -> None:
                await controller.admin_passthru(SANITIZE, cdw10=3 | 1 << 4)
                page = bytes(512)
                while page[:2] != b"\xff\xff":
                    page = (await controller.admin_passthru(GET_LOG_PAGE, data_bytes=512, cdw10=SANITIZE_LOG)).data
                sanitizer = target.subsystems[target.subnqn].sanitizer
                assert sanitizer.outcome == 1

            seen = await loaded(controller, sanitize)
            assert seen <= {0, Status.SANITIZE_IN_PROGRESS}
            assert Status.SANITIZE_IN_PROGRESS in seen
            (namespace,) = await controller.namespaces()
            await namespace.write(0, b"y" * 512)
            assert await namespace.read(0, 1) == b"y" * 512


@pytest.mark.parametrize("kind", ["ramdisk", "file"])
@pytest.mark.parametrize("digests", [False, True])
async def test_format_under_load(kind, digests, tmp_path):
    async with Target(namespaces=[backend_of(kind, tmp_path)], trtype="tcp") as target:
        host = {"transport": "tcp", "subnqn": target.subnqn, "hdr_digest": digests, "data_digest": digests}
        async with await connect(target.address.host, target.address.port, nr_io_queues=3, **host) as controller:

            async def there() -> None:
                await controller.admin_passthru(FORMAT, nsid=1, cdw10=1 | 1 << 9)

            seen = await loaded(controller, there)
            # Writes that were sent for the old block size have data of another length.
            assert seen <= {0, Status.FORMAT_IN_PROGRESS, Status.DATA_SGL_LENGTH_INVALID, Status.INVALID_FIELD}
            assert 0 in seen
            namespace = target.subsystems[target.subnqn].namespaces[1]
            assert (namespace.block_bytes, namespace.size_blocks, namespace.blocked_status) == (4096, 8192, None)
            for slba in range(0, 8192, 64):
                result = await controller.io_passthru(0x02, nsid=1, data_bytes=4096, cdw10=slba, cdw12=0)
                assert not any(result.data)
