"""Files that are served past the page cache."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nvmeof.errors import ConfigurationError
from nvmeof.runtime import settled
from nvmeof.target.storage import direct_io
from nvmeof.target.storage.base import Lease, RunErrors
from nvmeof.target.storage.direct_io import DirectFile, alignment_of
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.kinds import make_backend
from nvmeof.target.storage.namespace_text import parse_namespace_text

BLOCK = 4096


@pytest_asyncio.fixture
async def backend(tmp_path: Path) -> AsyncIterator[FileBackend]:
    made = FileBackend(tmp_path / "image", size=64 * BLOCK, direct=True)
    try:
        await made.open()
    except ConfigurationError as error:
        pytest.skip(f"{error}: set TMPDIR to a folder on a disk")
    yield made
    await made.close()


async def read(backend: FileBackend, offset: int, length: int) -> bytes:
    lease: Lease = await settled(backend.acquire_read(offset, length))
    data = bytes(lease.view)
    lease.release()
    return data


async def test_written_data_is_read_back_whatever_its_alignment(backend: FileBackend) -> None:
    direct = backend.direct
    assert direct is not None and direct.alignment in (512, 4096)
    odd = os.urandom(3 * 512)
    whole = os.urandom(5 * BLOCK)
    await settled(backend.write(BLOCK, memoryview(whole)))
    await settled(backend.write(2 * BLOCK + 512, memoryview(odd)))
    expected = bytearray(whole)
    expected[BLOCK + 512 : BLOCK + 512 + len(odd)] = odd
    assert await read(backend, BLOCK, 5 * BLOCK) == expected
    assert await read(backend, 2 * BLOCK + 512, len(odd)) == odd
    await settled(backend.write(0, memoryview(bytes(BLOCK)), fua=True))
    await settled(backend.flush())
    assert await settled(backend.compare(BLOCK, memoryview(expected)))


async def test_more_than_one_piece(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_io, "PIECE_BYTES", 2 * BLOCK)  # of the threads that start from here on
    data = os.urandom(13 * BLOCK)
    await settled(backend.write(0, memoryview(data)))
    assert await read(backend, 0, len(data)) == data


async def test_a_run_of_writes(backend: FileBackend) -> None:
    assert backend.runs is not None
    assert backend.runs.read([0], BLOCK) is None  # a thread waits for the device
    for length in (BLOCK, 512):
        ended: asyncio.Future[RunErrors] = asyncio.get_running_loop().create_future()
        buffers = [memoryview(bytearray(bytes([number]) * length)) for number in (1, 2, 3)]
        assert backend.runs.write(buffers, [0, 9 * length, 5 * length], length, ended.set_result)
        assert await ended == {}
        assert [(await read(backend, at * length, length))[-1] for at in (0, 9, 5)] == [1, 2, 3]


async def test_a_request_that_the_kernel_finds_unaligned_goes_by_the_page_cache(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: DirectFile, *arguments: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(DirectFile, "read", refuse)
    monkeypatch.setattr(DirectFile, "write", refuse)
    await settled(backend.write(0, memoryview(b"n" * BLOCK)))
    assert await read(backend, 0, BLOCK) == b"n" * BLOCK


async def test_a_file_system_without_o_direct_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    backend = FileBackend(tmp_path / "image", size=BLOCK, direct=True)
    with pytest.raises(ConfigurationError, match=r"cannot be served past the page cache .*leave 'direct' out"):
        await backend.open()


def test_the_text_of_a_namespace(tmp_path: Path) -> None:
    backend = make_backend(parse_namespace_text(f"file:{tmp_path}/image,size=1M,direct"))
    assert ("direct", None) in backend.to_text().backend.options


def test_the_kernel_says_how_to_align(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert alignment_of(fd) == 4096  # a folder has no O_DIRECT
    finally:
        os.close(fd)
