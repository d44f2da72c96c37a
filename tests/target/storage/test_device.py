"""A block device as a namespace; needs root and a free loop device."""

import os
import shutil
import subprocess

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.target.storage.file import FileBackend
from tests.target.backend_tools import read, write

SIZE = 8 << 20


@pytest.fixture
def device(tmp_path):
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    attached = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if attached.returncode:
        pytest.skip(f"no loop device: {attached.stderr.strip()}")
    name = attached.stdout.strip()
    yield name, image
    subprocess.run(["losetup", "--detach", name], check=True)


async def test_everything_on_a_block_device(device):
    name, image = device
    backend = FileBackend(name)
    await backend.open()
    capabilities = backend.capabilities
    assert capabilities.size_bytes == SIZE and capabilities.can_write and not capabilities.deallocated_reads_zero
    assert backend.description == f"device {name}"
    data = os.urandom(1 << 20)
    await write(backend, 4096, memoryview(data))
    await write(backend, 0, memoryview(data[:4096]), fua=True)
    assert await read(backend, 4096, 1 << 20) == data
    await backend.write_zeroes(8192, 8192, deallocate=False)
    await backend.write_zeroes(512, 1024, deallocate=True, fua=True)
    await backend.flush()
    expected = bytearray(data[:4096] + data)
    expected[8192:16384] = bytes(8192)
    expected[512:1536] = bytes(1024)
    assert await read(backend, 0, len(expected)) == expected
    assert image.read_bytes()[: len(expected)] == expected, "flushed"
    before = image.stat().st_blocks
    await backend.deallocate(1 << 19, 1 << 19)
    assert backend.capabilities.can_deallocate and image.stat().st_blocks < before
    backend.resize(SIZE // 2)
    assert backend.capabilities.size_bytes == SIZE // 2
    with pytest.raises(OSError, match="No space"):
        backend.resize(2 * SIZE)
    await backend.close()


async def test_device_options(device):
    name, _ = device
    backend = FileBackend(name, size="4M", read_only=True)
    await backend.open()
    assert backend.capabilities.size_bytes == 4 << 20 and not backend.capabilities.can_write
    await backend.close()
    with pytest.raises(ConfigurationError, match="fewer than"):
        await FileBackend(name, size="1G").open()
