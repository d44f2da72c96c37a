"""Writes with FUA that wait at the same time: one fdatasync for all, whose failure each of them gets."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from nvmeof.runtime import settled
from nvmeof.target.storage import kernel_aio
from nvmeof.target.storage.file import FileBackend

BLOCK = 4096


@pytest_asyncio.fixture
async def backend(tmp_path: Path) -> AsyncIterator[FileBackend]:
    made = FileBackend(tmp_path / "image", size=64 * BLOCK, block_bytes=BLOCK)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[OSError | None]], list[str]]:
    """Let the next syncs fail as given; return the list of calls."""

    def install(failures: list[OSError | None]) -> list[str]:
        calls: list[str] = []
        write, sync = os.pwritev, os.fdatasync

        def pwritev(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
            calls.append("dsync" if flags & os.RWF_DSYNC else "write")
            return write(fd, buffers, offset, flags)

        def fdatasync(fd: int) -> None:
            calls.append("sync")
            if failures and (failure := failures.pop(0)) is not None:
                raise failure
            sync(fd)

        monkeypatch.setattr(kernel_aio, "_NUMBERS", {})  # each write of a run by a pwritev
        monkeypatch.setattr(os, "pwritev", pwritev)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        return calls

    return install


def fua(backend: FileBackend, number: int) -> asyncio.Future[None]:
    data = memoryview(bytearray([number]) * BLOCK)
    return asyncio.ensure_future(settled(backend.write(number * BLOCK, data, fua=True)))


def content(backend: FileBackend) -> bytes:
    return backend.path.read_bytes()


async def test_a_single_write_syncs_its_own_range(
    backend: FileBackend, syncs: Callable[[list[OSError | None]], list[str]]
) -> None:
    calls = syncs([])
    await fua(backend, 3)
    assert calls == ["dsync"] and content(backend)[3 * BLOCK] == 3


async def test_writes_of_one_turn_of_the_loop_share_a_sync(
    backend: FileBackend, syncs: Callable[[list[OSError | None]], list[str]]
) -> None:
    calls = syncs([])
    await asyncio.gather(*(fua(backend, number) for number in range(1, 33)))
    assert calls.count("write") == 32 and calls.count("sync") == 1 and calls[-1] == "sync"
    assert content(backend)[::BLOCK][:33] == bytes(range(33))


async def test_a_failed_sync_fails_each_write_of_the_group_and_is_counted_once(
    backend: FileBackend, syncs: Callable[[list[OSError | None]], list[str]]
) -> None:
    syncs([OSError(errno.EIO, os.strerror(errno.EIO))])
    results = await asyncio.gather(*(fua(backend, number) for number in (1, 2, 3)), return_exceptions=True)
    assert [getattr(result, "errno", None) for result in results] == [errno.EIO] * 3
    assert backend.sync_failures == 1
    await asyncio.gather(*(fua(backend, number) for number in (1, 2)))  # the next group is another one
    assert backend.sync_failures == 1


@pytest.mark.parametrize("together", [1, 3])
async def test_a_sync_of_others_that_fails_meanwhile_fails_a_write(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """The kernel takes pages of a failed sync for clean: the sync of the write itself would succeed without them."""
    written, failed, calls = threading.Event(), threading.Event(), list[int]()

    def fdatasync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            assert written.wait(10)
            failed.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        written.set()
        assert failed.wait(10)
        while not backend.sync_failures:
            time.sleep(0.001)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    backend._write_dsync = False
    flushing = asyncio.ensure_future(settled(backend.flush()))
    while not calls:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    results = await asyncio.gather(*(fua(backend, number) for number in range(together)), return_exceptions=True)
    assert [getattr(result, "errno", None) for result in results] == [errno.EIO] * together
    with pytest.raises(OSError, match="Input/output"):
        await flushing
    assert backend.sync_failures == 1


async def test_a_write_that_fails_fails_no_other(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwritev

    def pwritev(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset == 2 * BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, buffers, offset, flags)

    monkeypatch.setattr(kernel_aio, "_NUMBERS", {})
    monkeypatch.setattr(os, "pwritev", pwritev)
    results = await asyncio.gather(*(fua(backend, number) for number in (1, 2, 3)), return_exceptions=True)
    assert [getattr(result, "errno", None) for result in results] == [None, errno.ENOSPC, None]


async def test_writes_during_a_sync_are_the_next_group_and_nothing_else_waits(
    backend: FileBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, began, sync = threading.Event(), asyncio.Event(), os.fdatasync
    loop, syncs = asyncio.get_running_loop(), []

    def slow(fd: int) -> None:
        syncs.append(fd)
        loop.call_soon_threadsafe(began.set)
        assert go.wait(20)
        sync(fd)

    other = FileBackend(tmp_path / "other", size=64 * BLOCK, block_bytes=BLOCK)
    await other.open()
    monkeypatch.setattr(os, "fdatasync", slow)
    first = [fua(backend, number) for number in (1, 2)]
    await began.wait()
    later = [fua(backend, number) for number in range(3, 40)]
    # reads and writes of this file and of another one go on
    (await settled(backend.acquire_read(50 * BLOCK, BLOCK))).release()
    await settled(backend.write(51 * BLOCK, memoryview(bytes(BLOCK))))
    await settled(other.write(0, memoryview(bytes(BLOCK)), fua=True))
    (await settled(other.acquire_read(0, BLOCK))).release()
    assert not any(write.done() for write in (*first, *later)) and len(syncs) == 1
    go.set()
    await asyncio.gather(*first, *later)
    assert len(syncs) == 2
    await other.close()


async def test_closing_waits_for_a_group_and_for_operations_behind_its_range(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "image", size=64 * BLOCK, block_bytes=BLOCK)
    await backend.open()
    writes = [fua(backend, 1), fua(backend, 1), fua(backend, 2)]
    await asyncio.sleep(0)
    await backend.close()
    assert all(write.done() and write.exception() is None for write in writes)


async def test_a_write_cancelled_before_its_group_begins_is_not_written(backend: FileBackend) -> None:
    waiting = backend.write(5 * BLOCK, memoryview(b"x" * BLOCK), fua=True)
    assert waiting is not None and waiting.abandon()  # type: ignore[attr-defined]
    await fua(backend, 6)
    with pytest.raises(OSError) as caught:
        await waiting
    assert caught.value.errno == errno.ECANCELED
    assert content(backend)[5 * BLOCK] == 0
    await settled(backend.write(5 * BLOCK, memoryview(b"y" * BLOCK), fua=True))  # its range is unlocked
