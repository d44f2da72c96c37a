"""The backend ``rbd:POOL/IMAGE`` against a real cluster of one node."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.namespace import status_of_os_error
from nvmeof.target.storage.kinds import make_backend
from nvmeof.target.storage.namespace_text import parse_namespace_text
from nvmeof.target.storage.rbd import library
from nvmeof.target.storage.rbd.backend import RbdBackend
from nvmeof.target.storage.rbd.image import ImageName
from nvmeof.target.storage.remote import OutcomeUnknownError
from tests.ceph import Cluster, need_ceph

SIZE = 64 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need_ceph()
    made = Cluster(tmp_path_factory.mktemp("ceph"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def image(cluster: Cluster) -> Iterator[Cluster]:
    cluster.create("disk", SIZE)
    yield cluster
    cluster.in_pool("rbd.RBD().remove(pool, 'disk')")


@asynccontextmanager
async def opened(cluster: Cluster, name: str = "rbd/disk", **options: Any) -> AsyncIterator[RbdBackend]:
    backend = RbdBackend(name, conf=str(cluster.conf), **options)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def read(backend: RbdBackend, offset: int, length: int) -> bytes:
    lease = await backend.acquire_read(offset, length)
    try:
        return bytes(lease.view)
    finally:
        lease.release()


async def test_every_operation(image: Cluster) -> None:
    async with opened(image) as backend:
        assert backend.capabilities.size_bytes == SIZE and not backend.capabilities.volatile_cache
        data = os.urandom(1 << 20)
        await backend.write(8192, memoryview(data), fua=True)
        assert await read(backend, 4096, len(data) + 8192) == bytes(4096) + data + bytes(4096)
        await backend.write_zeroes(8192, 512, deallocate=False)
        await backend.deallocate(16384, 4096)  # less than the granularity of discards
        assert await read(backend, 8192, 16384) == bytes(512) + data[512:8192] + bytes(4096) + data[12288:16384]
        await backend.flush()
        await backend.copy(12288, 0, 4096)
        assert await backend.compare(0, memoryview(data)[4096:8192])
        await asyncio.gather(*(backend.write(index << 16, memoryview(data)[:65536]) for index in range(64)))
        assert await read(backend, 63 << 16, 65536) == data[:65536]


async def test_compare_and_write_is_that_of_the_cluster(image: Cluster) -> None:
    async with opened(image) as one, opened(image) as other:
        zero, old = bytes(512), bytes(512)

        async def count(backend: RbdBackend, value: int) -> int:
            new = bytes([value]) * 512
            return int(await backend.compare_and_write(512, memoryview(zero), memoryview(new)))

        done = await asyncio.gather(*(count(backend, value) for value in range(1, 9) for backend in (one, other)))
        assert sum(done) == 1 and await read(one, 512, 512) != old
        with pytest.raises(OSError, match="512 bytes as one"):
            await one.compare_and_write(0, memoryview(bytes(4096)), memoryview(bytes(4096)))


async def test_another_target_reads_written_data(image: Cluster) -> None:
    async with opened(image) as one, opened(image) as other:
        for index in range(20):
            await one.write(4096, memoryview(bytes([index]) * 4096))
            assert await read(other, 4096, 4096) == bytes([index]) * 4096


async def test_a_resize_by_others(image: Cluster) -> None:
    async with opened(image) as backend:
        await asyncio.to_thread(image.in_pool, f"rbd.Image(pool, 'disk').resize({SIZE // 2})")
        with pytest.raises(OSError, match="has become shorter") as raised:
            await backend.write(SIZE - 4096, memoryview(bytes(4096)))
        assert status_of_os_error(raised.value, writing=True) == (Status.LBA_OUT_OF_RANGE, True)
        assert f"become shorter, from {SIZE} to {SIZE // 2}" in backend.revalidate()
        await asyncio.to_thread(image.in_pool, f"rbd.Image(pool, 'disk').resize({SIZE})")
        assert "grown" in backend.revalidate() and backend.revalidate() == ""


async def test_a_snapshot_is_read_only(image: Cluster) -> None:
    async with opened(image) as backend:
        await backend.write(0, memoryview(b"before" + bytes(506)))
        await asyncio.to_thread(image.in_pool, "rbd.Image(pool, 'disk').create_snap('s')")
        await backend.write(0, memoryview(b"after." + bytes(506)))
        async with opened(image, "rbd/disk@s") as snapshot:
            assert not snapshot.capabilities.can_write
            assert (await read(snapshot, 0, 512))[:6] == b"before"
        await asyncio.to_thread(image.in_pool, "rbd.Image(pool, 'disk').remove_snap('s')")


async def test_a_fenced_client_opens_the_image_again(image: Cluster) -> None:
    async with opened(image) as backend:
        await backend.write(0, memoryview(b"x" * 4096))
        await asyncio.to_thread(image.blocklist_all)
        with pytest.raises(OSError) as raised:
            for _ in range(1000):
                await backend.write(0, memoryview(b"y" * 4096))
        assert raised.value.errno == errno.ESHUTDOWN
        assert status_of_os_error(raised.value, writing=True) == (Status.NAMESPACE_NOT_READY, False)
        assert backend._reopening is not None
        await backend._reopening
        await backend.write(0, memoryview(b"z" * 4096))
        assert await read(backend, 0, 4096) == b"z" * 4096


async def test_an_osd_that_does_not_answer(image: Cluster) -> None:
    async with opened(image, timeout=2.0) as backend:
        await backend.write(0, memoryview(b"x" * 4096))
        image.osd.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(OutcomeUnknownError, match="not known"):
                await backend.write(0, memoryview(b"y" * 4096))
            with pytest.raises(TimeoutError):
                await read(backend, 0, 4096)
        finally:
            image.osd.send_signal(signal.SIGCONT)
        assert await read(backend, 4096, 4096) == bytes(4096)


async def test_images_that_cannot_be_opened(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the image rbd/none: No such file"):
        await RbdBackend("rbd/none", conf=str(cluster.conf)).open()
    with pytest.raises(ConfigurationError, match="the pool none: No such file"):
        await RbdBackend("none/disk", conf=str(cluster.conf)).open()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await RbdBackend("rbd/disk", conf=str(tmp_path / "none")).open()


def test_names() -> None:
    assert str(ImageName.parse("pool/space/disk@snap")) == "pool/space/disk@snap"
    for text in ("disk", "pool/", "pool/disk@", "a/b/c/d"):
        with pytest.raises(ConfigurationError, match="write rbd:POOL/IMAGE"):
            ImageName.parse(text)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    library.load.cache_clear()
    monkeypatch.setattr(library.c, "CDLL", missing)
    with pytest.raises(ConfigurationError, match="install the Debian package librbd1"):
        make_backend(parse_namespace_text("rbd:pool/disk"))
    library.load.cache_clear()
