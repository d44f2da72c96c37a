import asyncio
import errno
import os
import subprocess
import sys

import pytest

from nvmeof.target.core.pool import BufferPool
from nvmeof.target.storage import syscalls
from nvmeof.target.storage.base import Lease, SourceError
from nvmeof.target.storage.file import FileBackend
from tests.conformance.rawhost import until
from tests.target.backend_tools import read, settled, write


@pytest.fixture
async def disk(tmp_path):
    backend = FileBackend(tmp_path / "disk", size="1M")
    await backend.open()
    yield backend
    await backend.close()


async def test_write_then_read(disk):
    data = os.urandom(8192)
    await write(disk, 4096, memoryview(data))
    assert await read(disk, 4096, 8192) == data
    assert await read(disk, 0, 4096) == bytes(4096)
    assert (disk.path.read_bytes())[4096:12288] == data


async def test_compare_in_pieces_without_the_pool(disk):
    data = bytearray(os.urandom(600_000))
    await write(disk, 512, memoryview(data))
    disk._pool = BufferPool(8192)
    assert disk._pool.take(8192) is not None, "no memory is left"
    assert await disk.compare(512, memoryview(data)) is True
    for position in (0, (1 << 18) - 1, 1 << 18, len(data) - 1):
        data[position] ^= 1
        assert await disk.compare(512, memoryview(data)) is False
        data[position] ^= 1


async def test_compare_sees_all_or_nothing_of_a_write(disk):
    """A compare waits for writes that arrived before it, and delays those that arrive after it."""
    size = 1 << 19
    old, new, last = (memoryview(bytes([value]) * size) for value in (0, 1, 2))
    disk._write_nowait = False
    results = [
        disk.write(0, new),
        disk.compare(0, new),
        disk.compare(0, old),
        disk.write(0, last),
        disk.compare(0, last),
    ]
    assert await asyncio.gather(*results) == [None, True, False, None, True]


async def test_compare_with_a_file_that_became_shorter(disk):
    os.truncate(disk.path, 4096)
    assert await disk.compare(0, memoryview(bytes(4096))) is True
    with pytest.raises(OSError, match="shorter") as error:
        await disk.compare(4096, memoryview(bytes(512)))
    assert error.value.errno == errno.EIO


async def test_copy_in_pieces_without_the_pool(disk):
    data = os.urandom(400_384)
    await write(disk, 512, memoryview(data))
    disk._pool = BufferPool(8192)
    assert disk._pool.take(8192) is not None, "no memory is left"
    await disk.copy(512, 1 << 19, len(data), fua=True)
    content = disk.path.read_bytes()
    assert content[1 << 19 : (1 << 19) + len(data)] == content[512 : 512 + len(data)] == data
    assert not any(content[(1 << 19) + len(data) :])


async def test_copies_in_opposite_directions_wait_for_each_other_and_for_writes(disk):
    """The result is that of one after the other, in the order of their arrival."""
    size = 1 << 18
    first, second, third = (memoryview(bytes([value]) * size) for value in (1, 2, 3))
    disk._write_nowait = False
    operations = [
        disk.write(0, first),
        disk.write(size, second),
        disk.copy(0, size, size),
        disk.compare(size, first),
        disk.write(0, third),
        disk.copy(size, 2 * size, size),
        disk.copy(0, size, size),
        disk.copy(size, 0, size),
        disk.compare(2 * size, first),
        disk.compare(0, third),
    ]
    results = await asyncio.wait_for(asyncio.gather(*operations), 10)
    assert [result for result in results if result is not None] == [True, True, True]
    assert len(disk._ranges) == 0


async def test_copy_reports_the_failure(disk, monkeypatch):
    os.truncate(disk.path, 4096)
    with pytest.raises(SourceError) as error:
        await disk.copy(8192, 0, 512)
    assert error.value.errno == errno.EIO
    monkeypatch.setattr(os, "pwritev", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full") as error:
        await disk.copy(0, 2048, 512)
    assert not isinstance(error.value, SourceError)
    assert len(disk._ranges) == 0


async def test_verify_reads_everything_without_the_pool(disk):
    disk._pool = BufferPool(8192)
    assert disk._pool.take(8192) is not None, "no memory is left"
    await disk.verify(512, (1 << 20) - 512)
    os.truncate(disk.path, 1 << 19)
    await disk.verify(0, 1 << 19)
    with pytest.raises(OSError, match="shorter") as error:
        await disk.verify(0, (1 << 19) + 512)
    assert error.value.errno == errno.EIO


async def test_reads_of_cached_pages_need_no_thread(disk, monkeypatch):
    await write(disk, 0, memoryview(os.urandom(65536)))
    lease = disk.acquire_read(0, 65536)
    if not isinstance(lease, Lease):
        (await lease).release()
        pytest.skip("no RWF_NOWAIT for reads on this file system")
    assert lease.stable
    lease.release()
    lease.release()
    assert disk._pool.used_bytes == 0


async def test_unsupported_nowait_is_not_tried_again_but_eagain_is(disk, monkeypatch):
    calls: list[int] = []
    failure = [errno.EAGAIN]
    real = os.preadv

    def preadv(fd, buffers, offset, flags=0):
        calls.append(flags)
        if flags & os.RWF_NOWAIT:
            raise OSError(failure[0], "refused")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    await read(disk, 0, 512)
    await read(disk, 0, 512)
    assert calls == [os.RWF_NOWAIT, 0, os.RWF_NOWAIT, 0]
    failure[0] = errno.EOPNOTSUPP
    calls.clear()
    await read(disk, 0, 512)
    await read(disk, 0, 512)
    assert calls == [os.RWF_NOWAIT, 0, 0]


@pytest.mark.parametrize("taken", [4096, 1000, 0])
async def test_writes_without_a_thread_where_the_file_system_can(disk, monkeypatch, taken):
    """ext4 refuses RWF_NOWAIT for writes; others take all, a part, or return EAGAIN."""
    calls: list[int] = []
    real = os.pwritev

    def pwritev(fd, buffers, offset, flags=0):
        calls.append(flags)
        if not flags:
            return real(fd, buffers, offset)
        if not taken:
            raise OSError(errno.EAGAIN, "would block")
        return real(fd, [buffers[0][:taken]], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    data = os.urandom(4096)
    result = disk.write(512, memoryview(data))
    assert (result is None) == (taken == 4096)
    await settled(result)
    assert await read(disk, 512, 4096) == data
    assert calls == ([os.RWF_NOWAIT] if taken == 4096 else [os.RWF_NOWAIT, 0])
    calls.clear()
    await write(disk, 0, memoryview(bytes(512)))
    assert calls[0] == os.RWF_NOWAIT, "still tried"


async def test_partial_reads_and_writes_are_continued(disk, monkeypatch):
    real_read, real_write = os.preadv, os.pwritev
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset, flags=0: real_read(fd, [buffers[0][:700]], offset, flags)
    )
    monkeypatch.setattr(
        os, "pwritev", lambda fd, buffers, offset, flags=0: real_write(fd, [buffers[0][:1000]], offset, flags)
    )
    data = os.urandom(4096)
    await write(disk, 512, memoryview(data))
    assert await read(disk, 512, 4096) == data
    await write(disk, 512, memoryview(data[::-1]), fua=True)
    assert await read(disk, 512, 4096) == data[::-1]


async def test_force_unit_access_uses_dsync_or_falls_back(disk, monkeypatch):
    calls: list[str] = []
    supported = [True]
    real_write, real_sync = os.pwritev, os.fdatasync

    def pwritev(fd, buffers, offset, flags=0):
        calls.append("dsync" if flags & os.RWF_DSYNC else "write")
        if flags and not supported[0]:
            raise OSError(errno.EOPNOTSUPP, "refused")
        return real_write(fd, buffers, offset, flags)

    def fdatasync(fd):
        calls.append("sync")
        real_sync(fd)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    disk._write_nowait = False
    await write(disk, 0, memoryview(bytes(512)))
    await write(disk, 0, memoryview(bytes(512)), fua=True)
    assert calls == ["write", "dsync"]
    supported[0] = False
    calls.clear()
    await write(disk, 0, memoryview(bytes(512)), fua=True)
    await write(disk, 0, memoryview(bytes(512)), fua=True)
    assert calls == ["dsync", "write", "sync", "write", "sync"]
    calls.clear()
    await disk.flush()
    await disk.write_zeroes(0, 512, deallocate=False, fua=True)
    assert calls[0] == "sync" and calls[-1] == "sync"


@pytest.mark.parametrize("deallocate", [True, False])
@pytest.mark.parametrize("fallocate_works", [True, False])
async def test_write_zeroes(disk, monkeypatch, deallocate, fallocate_works):
    if not fallocate_works:

        def refuse(fd, offset, length):
            raise OSError(errno.EOPNOTSUPP, "refused")

        monkeypatch.setattr(syscalls, "zero_range", refuse)
        monkeypatch.setattr(syscalls, "punch_hole", refuse)
    await write(disk, 0, memoryview(b"\xff" * 65536))
    await disk.write_zeroes(512, 60000 // 512 * 512, deallocate=deallocate)
    data = await read(disk, 0, 65536)
    assert data[:512] == b"\xff" * 512 and data[512 + 59904 :] == b"\xff" * (65536 - 512 - 59904)
    assert not any(data[512 : 512 + 59904])


async def test_deallocate_releases_space(disk):
    await write(disk, 0, memoryview(b"\xff" * (1 << 20)))
    await disk.flush()
    before = disk.path.stat().st_blocks
    await disk.deallocate(0, 1 << 19)
    assert disk.path.stat().st_blocks < before
    assert await read(disk, 0, 1 << 19) == bytes(1 << 19)


async def test_deallocate_that_the_file_system_lacks_is_a_hint_ignored(disk, monkeypatch):
    def refuse(fd, offset, length):
        raise OSError(errno.EOPNOTSUPP, "refused")

    monkeypatch.setattr(syscalls, "punch_hole", refuse)
    await write(disk, 0, memoryview(b"\xff" * 512))
    assert disk.capabilities.can_deallocate
    await disk.deallocate(0, 512)
    assert not disk.capabilities.can_deallocate
    assert await read(disk, 0, 512) == b"\xff" * 512


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_errors_are_passed_on_and_release_everything(disk, monkeypatch, code):
    def fail(*args):
        raise OSError(code, "broken")

    monkeypatch.setattr(os, "pwritev", fail)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError) as caught:
        await write(disk, 0, memoryview(bytes(512)))
    assert caught.value.errno == code
    with pytest.raises(OSError):
        await settled(disk.acquire_read(0, 512))
    disk._read_nowait = False
    with pytest.raises(OSError):
        await settled(disk.acquire_read(0, 512))
    assert disk._pool.used_bytes == 0 and len(disk._ranges) == 0


async def test_a_file_that_was_cut_fails_reads_with_eio(disk):
    os.truncate(disk.path, 4096)
    with pytest.raises(OSError) as caught:
        await read(disk, 0, 8192)
    assert caught.value.errno == errno.EIO


async def test_a_reader_never_sees_half_a_write(disk):
    size = 65536
    patterns = [bytes([value]) * size for value in range(1, 9)]
    await write(disk, 0, memoryview(patterns[0]))
    writes = [disk.write(0, memoryview(pattern)) for pattern in patterns]
    reads = [asyncio.ensure_future(read(disk, 0, size)) for _ in range(8)]
    for data in await asyncio.gather(*reads):
        assert len(set(data)) == 1
    await asyncio.gather(*(item for item in writes if item is not None))
    assert await read(disk, 0, size) == patterns[-1], "overlapping writes keep their order"


async def test_many_disjoint_operations_at_once(disk):
    data = os.urandom(1 << 20)
    await asyncio.gather(*(write(disk, i, memoryview(data)[i : i + 4096]) for i in range(0, 1 << 20, 4096)))
    parts = await asyncio.gather(*(read(disk, i, 8192) for i in range(0, 1 << 20, 8192)))
    assert b"".join(parts) == data
    assert len(disk._ranges) == 0 and disk._pool.used_bytes == 0


async def test_reads_wait_for_memory(tmp_path):
    pool = BufferPool(8192)
    backend = FileBackend(tmp_path / "disk", size="1M", pool=pool)
    await backend.open()
    leases = [await settled(backend.acquire_read(0, 4096)) for _ in range(2)]
    waiting = [asyncio.ensure_future(backend.acquire_read(0, 4096)) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert not any(item.done() for item in waiting)
    leases[0].release()
    first = await asyncio.wait_for(waiting[0], 20)
    assert not waiting[1].done()
    first.release()
    (await asyncio.wait_for(waiting[1], 20)).release()
    leases[1].release()
    assert pool.used_bytes == 0
    await backend.close()


async def test_cancelling_frees_buffers_and_ranges_only_when_the_thread_is_done(disk, monkeypatch):
    import threading

    proceed, entered = threading.Event(), threading.Event()
    real = os.preadv

    def preadv(fd, buffers, offset, flags=0):
        if flags:
            raise OSError(errno.EAGAIN, "not cached")
        entered.set()
        proceed.wait(5)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    pending = disk.acquire_read(0, 4096)
    await asyncio.to_thread(entered.wait, 5)
    pending.cancel()
    await asyncio.sleep(0)
    assert disk._pool.used_bytes == 4096 and len(disk._ranges) == 1
    proceed.set()
    await disk.flush()
    await until(lambda: disk._pool.used_bytes == 0 and len(disk._ranges) == 0)


async def test_flushes_that_wait_share_the_next_one(disk, monkeypatch):
    import threading

    calls: list[int] = []
    proceed, entered = threading.Event(), threading.Event()
    real = os.fdatasync

    def fdatasync(fd):
        calls.append(fd)
        entered.set()
        proceed.wait(5)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    first = disk.flush()
    await asyncio.to_thread(entered.wait, 5)
    others = [disk.flush() for _ in range(10)]
    await asyncio.wait_for(write(disk, 0, memoryview(bytes(512))), 20)
    assert not first.done() and not any(item.done() for item in others)
    proceed.set()
    await asyncio.gather(first, *others)
    assert len(calls) == 2, "those who came after the first had begun need one more"


async def test_a_failed_flush_fails_for_all_waiters(disk, monkeypatch, caplog):
    def fail(fd):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", fail)
    results = await asyncio.gather(*(disk.flush() for _ in range(3)), return_exceptions=True)
    assert [result.errno for result in results] == [errno.EIO] * 3
    await disk.close()
    assert "flush failed: broken" in caplog.text


async def test_operations_after_closing(disk):
    await disk.close()
    for call in (lambda: disk.write(0, memoryview(bytes(512))), disk.flush):
        with pytest.raises(OSError) as caught:
            await settled(call())
        assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError):
        await settled(disk.acquire_read(0, 512))
    assert disk._pool.used_bytes == 0


FULL = """
import asyncio, errno, resource, sys
from nvmeof.errors import CommandError
from nvmeof.spec.status import Status
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
async def main():
    backend = FileBackend(sys.argv[1], size="1M")
    await backend.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    namespace = Namespace(1, backend, NamespaceIdentifiers.derive("nqn.2026-01.org.example:disk", 1))
    await namespace.write(0, memoryview(bytes(65536)))
    try:
        await namespace.write(127, memoryview(bytes(8192)))
    except CommandError as error:
        print(Status(error.status).name, error)
    await backend.close()
asyncio.run(main())
"""


async def test_a_real_shortage_of_space_is_capacity_exceeded(tmp_path):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FULL, str(tmp_path / "disk"), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert output.decode().startswith("CAPACITY_EXCEEDED writing to namespace 1")


async def test_a_read_that_waits_for_memory_fails_when_the_backend_is_closed(tmp_path):
    pool = BufferPool(8192)
    backend = FileBackend(tmp_path / "disk", size="1M", pool=pool)
    await backend.open()
    held = backend.acquire_read(0, 8192)
    lease = held if isinstance(held, Lease) else await held
    waiting, given_up = backend.acquire_read(8192, 8192), backend.acquire_read(0, 8192)
    assert not isinstance(waiting, Lease) and not isinstance(given_up, Lease)
    given_up.cancel()
    await asyncio.wait_for(backend.close(), 20)
    lease.release()
    with pytest.raises(OSError, match="closed"):
        await asyncio.wait_for(waiting, 20)
    assert pool.used_bytes == 0
