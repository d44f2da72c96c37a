"""Files that are opened: sizes, locks, metadata, names, and files that cannot be served."""

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.target.storage.file import FileBackend
from tests.target.backend_tools import read


async def opened(path: Path, **options) -> FileBackend:
    backend = FileBackend(path, **options)
    await backend.open()
    return backend


async def test_sizes(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(10_000))
    backend = await opened(path, block_bytes=4096)
    assert backend.capabilities.size_bytes == 8192
    assert backend.capabilities.volatile_cache and backend.capabilities.can_write
    await backend.close()
    backend = await opened(path, size="1M")
    assert backend.capabilities.size_bytes == 1 << 20 == path.stat().st_size
    assert path.stat().st_blocks * 512 < 1 << 20, "extended sparse"
    await backend.open()
    backend.resize(2 << 20)
    assert path.stat().st_size == 2 << 20 == backend.capabilities.size_bytes
    with pytest.raises(OSError):
        backend.resize(100)
    await backend.close()
    await backend.close()


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (lambda path: None, {}, "does not exist"),
        (lambda path: path.mkdir(), {"read_only": True}, "neither a regular file nor a block device"),
        (lambda path: path.write_bytes(b""), {}, "smaller than one block"),
        (lambda path: path.write_bytes(bytes(512)), {"block_bytes": 4096}, "smaller than one block"),
        (lambda path: path.write_bytes(bytes(512)), {"size": "1M", "read_only": True}, "is read-only"),
        (lambda path: path.mkdir(), {}, "neither a regular file nor a block device"),
    ],
)
async def test_files_that_cannot_be_served(tmp_path, make, options, text):
    path = tmp_path / "disk"
    make(path)
    with pytest.raises(ConfigurationError, match=text):
        await opened(path, **options)


def test_capabilities_before_opening(tmp_path):
    with pytest.raises(ConfigurationError, match="not been opened"):
        _ = FileBackend(tmp_path / "disk").capabilities
    with pytest.raises(ConfigurationError, match="block size"):
        FileBackend(tmp_path / "disk", block_bytes=100)


LOCKER = """
import asyncio, sys
from nvmeof.errors import ConfigurationError
from nvmeof.target.storage.file import FileBackend
async def main():
    backend = FileBackend(sys.argv[1], read_only="ro" in sys.argv, shared="shared" in sys.argv)
    try:
        await backend.open()
    except ConfigurationError as error:
        print(error)
    else:
        print("opened")
        await backend.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("ours", "theirs", "allowed"),
    [({}, [], False), ({}, ["ro"], False), ({"read_only": True}, ["ro"], True), ({}, ["shared"], True)],
)
async def test_two_targets_and_one_file(tmp_path, ours, theirs, allowed):
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    backend = await opened(path, **ours)
    output = subprocess.run(  # noqa: ASYNC221 - nothing else runs on this loop
        [sys.executable, "-c", LOCKER, str(path), *theirs], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == ("opened" if allowed else f"{path} is in use by another process")
    await backend.close()


async def test_a_shared_file_does_not_overwrite_the_metadata_of_the_other(tmp_path):
    first = await opened(tmp_path / "disk", size="1M")
    await first.metadata_store.put("features", 1)
    second = await opened(tmp_path / "disk", shared=True)
    assert second.metadata_store.get("features") == 1 and not second.metadata_store.durable
    await first.metadata_store.put("uncorrectable", 2)
    second.metadata_store.put("sanitize", 3)
    await second.close()
    await first.close()
    third = await opened(tmp_path / "disk", shared=True)
    assert third.metadata_store.durable, "no other process has it"
    assert [third.metadata_store.get(name) for name in ("features", "uncorrectable", "sanitize")] == [1, 2, None]
    await third.close()


@pytest.mark.parametrize("suffix", [".nvmeof", ".zones"])
async def test_a_new_file_does_not_get_the_metadata_of_another(tmp_path, suffix):
    """Neither reservations, marks and format, nor a pending erase."""
    beside = tmp_path / f"disk{suffix}"
    beside.write_text("x")
    with pytest.raises(ConfigurationError, match=f"{beside} belongs to .*disk, which is not there"):
        await opened(tmp_path / "disk", size="1M")
    assert [each.name for each in tmp_path.iterdir()] == [beside.name] and beside.read_text() == "x"


@pytest.mark.parametrize("read_only", [False, True])
async def test_opening_does_not_wait_for_a_fifo(tmp_path, read_only):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="neither a regular file nor"):
        await asyncio.wait_for(opened(tmp_path / "fifo", read_only=read_only), 20)


async def test_metadata_is_found_by_all_names_of_a_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    backend = await opened(tmp_path / "disk", size="1M")
    await backend.metadata_store.put("features", 1)
    await backend.close()
    backend = await opened(tmp_path / "link")
    assert backend.metadata_store.get("features") == 1
    await backend.metadata_store.put("uncorrectable", 2)
    await backend.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "disk.nvmeof", "link"]


async def test_metadata_is_not_lost_by_a_hard_link(tmp_path, caplog):
    backend = await opened(tmp_path / "disk", size="1M")
    await backend.metadata_store.put("features", 1)
    await backend.close()
    (tmp_path / "other").hardlink_to(tmp_path / "disk")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(
        ConfigurationError, match=r"other is the same file as .*/disk \(a hard link\), and .*disk\.nvmeof"
    ):
        await opened(tmp_path / "other")
    backend = await opened(tmp_path / "disk")
    assert backend.metadata_store.get("features") == 1 and not caplog.text
    await backend.close()
    (tmp_path / "elsewhere" / "third").hardlink_to(tmp_path / "disk")
    await (await opened(tmp_path / "elsewhere" / "third")).close()
    assert "third has 3 names (hard links), some in other directories" in caplog.text


async def test_a_file_that_could_not_be_made_does_not_exist(tmp_path, monkeypatch):
    def full(fd, size_bytes):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(ConfigurationError, match=r"cannot make .*disk of 1M: File too large"):
        await opened(tmp_path / "disk", size="1M")
    assert not list(tmp_path.iterdir())


async def test_the_name_of_a_new_file_is_on_the_media(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(fd):
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    backend = await opened(tmp_path / "disk", size="1M")
    assert synced == [str(tmp_path / "disk"), str(tmp_path)]
    await backend.close()


async def test_read_only_file(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(4096))
    path.chmod(0o444)
    backend = await opened(path, read_only=True)
    capabilities = backend.capabilities
    assert not (capabilities.can_write or capabilities.can_deallocate or capabilities.volatile_cache)
    assert backend.flush() is None
    assert await read(backend, 0, 4096) == path.read_bytes()
    await backend.close()
