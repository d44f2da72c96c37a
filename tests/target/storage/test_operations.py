"""Operations that can be abandoned, copies onto themselves, and compare-and-write, of all backends."""

from __future__ import annotations

import asyncio
import errno
import os
from functools import partial

import pytest

from nvmeof.target.storage.base import SourceError
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.operation import Operation
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.storage.threads import ThreadBatches
from tests.target.backend_tools import Hidden, read, settled, write


class Later(Hidden):
    """A backend whose reads and writes complete later, as one of a third party may."""

    async def _lease(self, offset, length):
        await asyncio.sleep(0)
        return self.ramdisk.acquire_read(offset, length)

    def acquire_read(self, offset, length):
        return self._lease(offset, length)

    async def _write(self, offset, data):
        await asyncio.sleep(0)
        self.ramdisk.write(offset, data)

    def write(self, offset, data, *, fua=False):
        return self._write(offset, data)


class WritesLater(Later):
    def acquire_read(self, offset, length):
        return self.ramdisk.acquire_read(offset, length)


@pytest.fixture(params=["ramdisk", "hidden", "file", "writes later"])
async def backend(request, tmp_path):
    kinds = {
        "ramdisk": lambda: Ramdisk("1M"),
        "hidden": lambda: Hidden("1M"),
        "writes later": lambda: WritesLater("1M"),
        "file": lambda: FileBackend(tmp_path / "disk", size="1M"),
    }
    made = kinds[request.param]()
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("source", "destination", "length"),
    [(0, 512, 300 << 10), (512, 0, 300 << 10), (0, 0, 4096), (0, 300 << 10, 300 << 10), (1 << 19, 513 << 10, 1 << 18)],
)
async def test_a_copy_onto_its_own_source(backend, source, destination, length):
    data = bytearray(os.urandom(1 << 20))
    await write(backend, 0, memoryview(bytes(data)))
    await settled(backend.copy(source, destination, length))
    data[destination : destination + length] = bytes(data[source : source + length])
    assert await read(backend, 0, 1 << 20) == data


async def test_compare_and_write(backend):
    old, new = os.urandom(8192), os.urandom(8192)
    assert await settled(backend.compare_and_write(512, memoryview(old), memoryview(new))) is False
    assert await read(backend, 512, 8192) == bytes(8192)
    assert await settled(backend.compare_and_write(512, memoryview(bytes(8192)), memoryview(old), fua=True)) is True
    assert await settled(backend.compare_and_write(512, memoryview(old), memoryview(new))) is True
    assert await read(backend, 512, 8192) == new


async def test_read_into(backend):
    data = os.urandom(8192)
    await write(backend, 4096, memoryview(data))
    buffer = bytearray(8192)
    await settled(backend.read_into(4096, memoryview(buffer)))
    assert buffer == data


async def test_a_backend_that_reads_later():
    backend = Later("1M")
    buffer = bytearray(512)
    await settled(backend.read_into(0, memoryview(buffer)))
    with pytest.raises(OSError, match="as one") as error:
        await settled(backend.compare_and_write(0, memoryview(bytes(512)), memoryview(bytes(512))))
    assert error.value.errno == errno.EOPNOTSUPP


async def test_an_error_of_the_source_is_distinguished(tmp_path, monkeypatch):
    backend = FileBackend(tmp_path / "disk", size="1M")
    await backend.open()

    def fail(*args):
        raise OSError(errno.EIO, "no")

    block = memoryview(bytes(512))
    monkeypatch.setattr(backend, "_write_fully", fail)
    with pytest.raises(OSError, match="no") as error:
        await backend.compare_and_write(0, block, block)
    assert not isinstance(error.value, SourceError)
    monkeypatch.setattr(backend, "_read_fully", fail)
    with pytest.raises(SourceError):
        await backend.compare_and_write(0, block, block)
    monkeypatch.undo()
    await backend.close()
    broken = Hidden("1M")
    monkeypatch.setattr(broken, "acquire_read", fail)
    with pytest.raises(SourceError):
        broken.compare_and_write(0, block, block)


# Operations


async def test_an_operation_is_begun_or_abandoned_once():
    operation: Operation[None] = Operation()
    assert operation.begin() and not operation.begin() and not operation.abandon()
    with pytest.raises(OSError, match="ancel"):
        operation.check()
    other: Operation[None] = Operation()
    other.check()
    assert other.abandon() and not other.abandon() and not other.begin()
    with pytest.raises(OSError, match="ancel") as error:
        await other
    assert error.value.errno == errno.ECANCELED


async def test_a_half_done_operation_is_not_abandoned():
    operation: Operation[None] = Operation()
    operation.half_done = True
    assert not operation.abandon()
    operation.check()
    assert operation.begin()


async def test_threads_and_abandons_at_the_same_time():
    """At any moment: an abandoned operation was not executed, and an executed one not abandoned."""
    threads = ThreadBatches(4, "test")
    for _ in range(20):
        done: list[int] = []
        operations: list[Operation[None]] = [Operation() for _ in range(40)]
        freed: list[bool] = []
        for number, operation in enumerate(operations):
            threads.run(partial(done.append, number), operation, freed.append)
        await asyncio.sleep(0)
        abandoned = {number for number, operation in enumerate(operations) if number % 3 and operation.abandon()}
        results = await asyncio.gather(*operations, return_exceptions=True)
        await threads.submit(lambda: None)
        assert {number for number, result in enumerate(results) if isinstance(result, OSError)} == abandoned
        assert sorted([*done, *abandoned]) == list(range(40))
        assert len(freed) == 40 and freed.count(False) == len(abandoned)
    await threads.close()


async def test_an_abandoned_operation_releases_its_lock(tmp_path):
    backend = FileBackend(tmp_path / "disk", size="1M", workers=1)
    await backend.open()
    lock = backend._ranges.acquire(0, 4096, exclusive=True)
    waiting = backend.verify(0, 512)
    behind = backend.write_zeroes(0, 8192, deallocate=False)
    assert waiting.abandon()
    backend._ranges.release(lock)
    await behind
    assert not len(backend._ranges)
    with pytest.raises(OSError, match="ancel"):
        await waiting
    await backend.close()
