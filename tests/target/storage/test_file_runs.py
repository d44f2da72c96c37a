"""Runs of a file: the requests that they do and leave, and their locks."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.storage import kernel_aio
from nvmeof.target.storage.base import RunErrors, SizeChangedError
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.file_runs import FileRuns
from nvmeof.target.storage.kernel_aio import AioCalls, Calls, PlainCalls, address_of
from nvmeof.target.storage.ranges import RangeLocks

BLOCK = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    made.write_bytes(b"".join(bytes([number]) * BLOCK for number in range(64)))
    return made


def runs_of(backend: FileBackend) -> FileRuns:
    assert isinstance(backend.runs, FileRuns)
    return backend.runs


def buffer_of(data: bytes) -> memoryview:
    return memoryview(bytearray(data))


def content(path: Path) -> bytes:
    return path.read_bytes()


async def written(
    backend: FileBackend, buffers: Sequence[memoryview], offsets: Sequence[int], length: int = BLOCK
) -> RunErrors:
    ended: asyncio.Future[RunErrors] = asyncio.get_running_loop().create_future()
    assert runs_of(backend).write(buffers, offsets, length, ended.set_result)
    return await ended


def made(kind: str, fd: int, *, write: bool) -> Calls:
    if kind == "plain":
        return PlainCalls(fd, write=write)
    try:
        return AioCalls(fd, write=write)
    except OSError as error:
        pytest.skip(f"this kernel has no AIO for this process ({error.strerror}): allow io_setup")


@pytest.mark.parametrize("kind", ["aio", "plain"])
def test_many_requests_in_one_call(kind: str, path: Path) -> None:
    slab = memoryview(mmap.mmap(-1, 3 * BLOCK))
    first = address_of(slab)
    addresses = [first, first + BLOCK, first + 2 * BLOCK]
    fd = os.open(path, os.O_RDWR)
    try:
        reads, writes = made(kind, fd, write=False), made(kind, fd, write=True)
        assert reads.run(addresses, [BLOCK] * 3, [5 * BLOCK, BLOCK, 63 * BLOCK]) is None
        assert [slab[at * BLOCK] for at in range(3)] == [5, 1, 63]
        assert writes.run(addresses[:2], [BLOCK] * 2, [7 * BLOCK, 9 * BLOCK]) is None
        assert path.read_bytes()[7 * BLOCK : 10 * BLOCK : BLOCK] == bytes([5, 8, 1])
        # the end of the file is in the second, and the third lies beyond it
        assert reads.run(addresses, [BLOCK] * 3, [0, 63 * BLOCK + 512, 64 * BLOCK]) == [BLOCK, BLOCK - 512, 0]
        reads.close()
        writes.close()
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["aio", "plain"])
def test_a_request_that_fails_has_its_errno(kind: str, path: Path) -> None:
    slab = memoryview(mmap.mmap(-1, BLOCK))
    fd = os.open(path, os.O_RDONLY)
    try:
        writes = made(kind, fd, write=True)
        (result,) = writes.run([address_of(slab)], [BLOCK], [0]) or [0]
        assert result in (-errno.EBADF, -errno.EAGAIN)
        writes.close()
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["aio", "plain"])
async def test_reads_and_writes_of_a_run(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "plain":
        monkeypatch.setattr(kernel_aio, "_NUMBERS", {})
    backend = FileBackend(path, block_bytes=BLOCK)
    await backend.open()
    runs = runs_of(backend)
    found = runs.read([3 * BLOCK, 4 * BLOCK, 9 * BLOCK], BLOCK)
    assert found is not None and found[1] == []
    assert found[0][::BLOCK].tolist() == [3, 4, 9]
    runs.release(found[0])
    # one buffer with neighbours in it, and each in a separate buffer
    assert await written(backend, [buffer_of(b"a" * BLOCK + b"b" * BLOCK)], [8 * BLOCK, 9 * BLOCK]) == {}
    assert await written(backend, [buffer_of(b"c" * BLOCK), buffer_of(b"d" * BLOCK)], [2 * BLOCK, 0]) == {}
    held = content(path)
    assert [held[at * BLOCK] for at in (8, 9, 2, 0)] == list(b"abcd")
    await backend.close()
    assert runs.read([0], BLOCK) is None
    assert not runs.write([buffer_of(bytes(BLOCK))], [0], BLOCK, lambda errors: None)


async def test_a_file_that_has_become_shorter_fails_only_requests_beyond_its_end(path: Path) -> None:
    backend = FileBackend(path, block_bytes=BLOCK)
    await backend.open()
    os.truncate(path, 32 * BLOCK)
    found = runs_of(backend).read([BLOCK, 40 * BLOCK], BLOCK)
    assert found is not None and found[1] == [1]
    runs_of(backend).release(found[0])
    errors = await written(backend, [buffer_of(b"x" * 2 * BLOCK)], [BLOCK, 40 * BLOCK])
    assert list(errors) == [1] and isinstance(errors[1], SizeChangedError)
    assert len(content(path)) == 32 * BLOCK and content(path)[BLOCK] == ord("x")
    await backend.close()


async def test_overlapping_requests_are_left_to_single_operations(path: Path) -> None:
    backend = FileBackend(path, block_bytes=BLOCK)
    await backend.open()
    runs = runs_of(backend)
    assert not runs.write([buffer_of(bytes(2 * BLOCK))], [0, 512], BLOCK, lambda errors: None)
    pending = asyncio.ensure_future(written(backend, [buffer_of(b"z" * 2 * BLOCK)], [0, 6 * BLOCK]))
    await asyncio.sleep(0)
    assert runs.read([2 * BLOCK, 6 * BLOCK], BLOCK) is None
    assert not runs.write([buffer_of(bytes(BLOCK))], [6 * BLOCK], BLOCK, lambda errors: None)
    between = runs.read([2 * BLOCK, 3 * BLOCK], BLOCK)  # within the outer bounds of the run, but not part of it
    assert between is not None
    runs.release(between[0])
    # a single operation waits for the run, and sees all of it
    lease = backend.acquire_read(6 * BLOCK, BLOCK)
    assert not isinstance(lease, memoryview)
    assert bytes((await lease).view[:2]) == b"zz"  # type: ignore[misc]
    assert await pending == {}
    await backend.close()


async def test_an_error_of_one_write_is_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FileBackend(path, block_bytes=BLOCK)
    await backend.open()

    def run(self: object, addresses: Sequence[int], lengths: Sequence[int], offsets: Sequence[int]) -> list[int]:
        return [BLOCK, -errno.ENOSPC, 512]

    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if offset == 20 * BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(fd, buffers[0], offset)

    monkeypatch.setattr(AioCalls, "run", run)
    monkeypatch.setattr(PlainCalls, "run", run)
    monkeypatch.setattr(os, "pwritev", pwritev)
    errors = await written(backend, [buffer_of(b"q" * 3 * BLOCK)], [0, 20 * BLOCK, 30 * BLOCK])
    assert list(errors) == [1] and errors[1].errno == errno.ENOSPC
    assert content(path)[30 * BLOCK : 31 * BLOCK] == bytes([30]) * 512 + b"q" * (BLOCK - 512)
    await backend.close()


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6), st.booleans()), max_size=6),
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(1, 4),
    st.booleans(),
)
def test_a_run_waits_like_a_single_request(
    singles: list[tuple[int, int, bool]], runs: list[list[int]], offsets: list[int], length: int, exclusive: bool
) -> None:
    locks = RangeLocks()
    held: list[tuple[int, int, bool]] = []
    for start, size, writing in singles:
        if not locks.busy(start, start + size, exclusive=writing):
            locks.acquire(start, start + size, exclusive=writing)
            held.append((start, start + size, writing))

    def waits(start: int, end: int, writing: bool) -> bool:
        return any(start < e and s < end and (w or writing) for s, e, w in held)

    def expected(starts: list[int], writing: bool) -> bool:
        return any(waits(start, start + length, writing) for start in starts)

    for starts in runs:
        apart = all(b - a >= length for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False))
        free = apart and not expected(starts, True)
        assert (locks.try_run(starts, length) is not None) == free
        if free:
            held += [(start, start + length, True) for start in starts]
    assert locks.run_busy(offsets, length, exclusive=exclusive) == expected(offsets, exclusive)
    for start in offsets:
        assert locks.busy(start, start + 3, exclusive=exclusive) == waits(start, start + 3, exclusive)
