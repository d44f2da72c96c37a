import mmap
import os
import time
from pathlib import Path

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.backend_tools import read, settled

PAGE = mmap.PAGESIZE


def resident_pages() -> int:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1])


def test_a_ramdisk_is_sparse_and_releases_memory():
    size = 256 << 20
    before = resident_pages()
    disk = Ramdisk(size)
    assert resident_pages() - before < 2000
    part = 64 << 20
    disk.write(0, memoryview(bytes([7]) * part))
    used = resident_pages()
    disk.deallocate(PAGE // 2, part - PAGE)
    assert used - resident_pages() > (part // PAGE) * 0.9
    assert disk.memory[PAGE // 2 - 1] == 7 and disk.memory[PAGE // 2] == 0
    assert disk.memory[part - PAGE // 2 - 1] == 0 and disk.memory[part - PAGE // 2] == 7


def test_a_ramdisk_may_be_larger_than_memory():
    disk = Ramdisk("2T")
    assert len(disk.memory) == 2 << 40
    disk.write((2 << 40) - 512, memoryview(b"x" * 512))
    assert disk.memory[-1] == ord("x")


@pytest.mark.parametrize("deallocate", [True, False])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 512),
        (512, 512),
        (0, PAGE),
        (PAGE, PAGE),
        (512, PAGE),
        (PAGE - 512, 2 * PAGE),
        (0, 5 * PAGE + 512),
        (5 * PAGE, 512),
    ],
)
async def test_zeroing_touches_exactly_its_range(offset, length, deallocate):
    disk = Ramdisk(5 * PAGE + 512)
    disk.write(0, memoryview(b"\xff" * (5 * PAGE + 512)))
    await settled(disk.write_zeroes(offset, length, deallocate=deallocate))
    expected = bytearray(b"\xff" * (5 * PAGE + 512))
    expected[offset : offset + length] = bytes(length)
    assert await read(disk, 0, len(expected)) == expected


async def test_long_zeroing():
    disk = Ramdisk("1M")
    disk.write(0, memoryview(os.urandom(1 << 20)))
    disk.write_zeroes(512, (1 << 20) - 1024, deallocate=False)
    assert not any(disk.memory[512:-512]) and any(disk.memory[:512]) and any(disk.memory[-512:])


def test_resize_keeps_content_and_old_views():
    disk = Ramdisk("1M")
    disk.write((1 << 20) - 512, memoryview(b"e" * 512))
    old = disk.acquire_read((1 << 20) - 512, 512)
    disk.resize(2 << 20)
    assert disk.capabilities.size_bytes == len(disk.memory) == 2 << 20
    assert disk.memory[(1 << 20) - 1] == ord("e") and disk.memory[1 << 20] == 0
    disk.resize(512)
    assert len(disk.memory) == 512 and bytes(old.view) == b"e" * 512
    with pytest.raises(OSError):
        disk.resize(513)


@pytest.mark.parametrize("pagemap", [True, False])
def test_resize_keeps_everything_and_stays_sparse(monkeypatch, pagemap):
    size = 64 << 20
    disk = Ramdisk(size + 512)
    written = {0: b"a", PAGE: b"b", 5 * PAGE - 512: b"c", size // 2 + 512: b"d", size: b"e"}
    for offset, value in written.items():
        disk.write(offset, memoryview(value * 512))
    assert not any(disk.acquire_read(size // 4, 1 << 20).view), "pages that were only read"
    if not pagemap:
        monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    disk.resize(size * 2)
    monkeypatch.undo()
    before = resident_pages()
    disk.resize(size * 4)
    assert resident_pages() - before < 1000
    for offset, value in written.items():
        assert bytes(disk.memory[offset : offset + 512]) == value * 512
    assert not any(disk.memory[size + 512 : size + (1 << 20)])
    assert sum(any(disk.memory[at : at + 512]) for at in range(0, 8 * PAGE, 512)) == 3


def test_resizing_a_huge_disk_is_quick():
    disk = Ramdisk("128G")
    disk.write(1 << 36, memoryview(b"x" * 512))
    started = time.monotonic()
    disk.resize(3 << 36)
    assert time.monotonic() - started < 10
    assert disk.memory[(1 << 36) + 511] == ord("x")


@pytest.mark.parametrize(
    ("size", "block_bytes"), [("1000", 512), ("0", 512), ("-5", 512), ("lots", 512), ("512", 4096), ("1M", 520)]
)
def test_impossible_ramdisks(size, block_bytes):
    with pytest.raises(ConfigurationError):
        Ramdisk(size, block_bytes=block_bytes)


async def test_closing_frees_the_pages():
    disk = Ramdisk("64M")
    disk.write(0, memoryview(b"\1" * (64 << 20)))
    used = resident_pages()
    await disk.open()
    await disk.close()
    await disk.close()
    assert used - resident_pages() > (60 << 20) // PAGE
