"""Files, sizes, addresses and block sizes with surprises: reported in a sentence, or stored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmeof import FileBackend, Ramdisk, Target
from nvmeof.errors import ConfigurationError
from nvmeof.target.subsystem.config import PortConfig, SubsystemConfig, TargetConfig

NQN = "nqn.2026-01.org.example:disk"


async def opened(path: Path, **options: object) -> FileBackend:
    """Open a file, and close it; return the backend."""
    backend = FileBackend(path, **options)  # type: ignore[arg-type]
    await backend.open()
    await backend.close()
    return backend


async def test_a_partial_last_block_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1_000_100))
    backend = await opened(path)
    assert backend.capabilities.size_bytes == 1953 * 512
    assert caplog.messages == [f"{path}: its last 164 bytes are not served: less than a block of 512 bytes"]


async def test_a_size_below_the_files_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 << 20))
    backend = await opened(path, size="1M")
    assert backend.capabilities.size_bytes == 1 << 20
    assert path.stat().st_size == 2 << 20
    assert caplog.messages == [f"{path} has 2097152 bytes: only the first 1M are served, as the size says"]


async def test_an_ordinary_file_is_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await opened(tmp_path / "disk", size="1M")
    await opened(tmp_path / "disk")
    await opened(tmp_path / "disk", size="2M")
    assert caplog.messages == []


async def test_a_block_size_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    assert (await opened(path, size="1M", block_bytes=4096)).capabilities.block_bytes == 4096
    assert (await opened(path)).capabilities.block_bytes == 4096
    assert (await opened(path, read_only=True)).capabilities.block_bytes == 4096
    assert (await opened(path, block_bytes=4096)).capabilities.block_bytes == 4096
    with pytest.raises(ConfigurationError, match=r"has blocks of 4096 bytes.*leave the block size out"):
        await opened(path, block_bytes=512)


async def test_the_default_block_size_leaves_no_file_behind(tmp_path: Path) -> None:
    await opened(tmp_path / "disk", size="1M", block_bytes=512)
    assert os.listdir(tmp_path) == ["disk"]  # noqa: PTH208


async def test_a_block_size_that_cannot_be_stored_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    await opened(path, size="1M")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("nvmeof.target.storage.json_file_store.JsonFileStore._replace", full)
    assert (await opened(path, block_bytes=4096)).capabilities.block_bytes == 4096
    assert any("block size cannot be stored" in line for line in caplog.messages)


@pytest.mark.parametrize("link", [False, True])
async def test_a_file_given_twice_is_reported(tmp_path: Path, link: bool) -> None:
    path, other = tmp_path / "disk", tmp_path / "other"
    path.write_bytes(bytes(1 << 20))
    if link:
        other.symlink_to(path)
    target = Target(namespaces=[FileBackend(path), FileBackend(other if link else path)])
    with pytest.raises(ConfigurationError, match="served already by this process: give each file once"):
        await target.start()
    await opened(path)  # nothing of it remains


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (("127.0.0.1", 4420), ("127.0.0.1", 4420), r"127\.0\.0\.1:4420 is given twice"),
        (("0.0.0.0", 4420), ("127.0.0.1", 4420), r"0\.0\.0\.0:4420 stands for all addresses, 127\.0\.0\.1 among them"),
        (("::1", 4420), ("::", 4420), r"\[::\]:4420 stands for all addresses, ::1 among them"),
        (("*", 4420), ("127.0.0.1", 4420), r"\*:4420 stands for all addresses, 127\.0\.0\.1 among them"),
        (("127.0.0.1", 0), ("127.0.0.1", 0), None),
        (("127.0.0.1", 4420), ("127.0.0.2", 4420), None),
        (("127.0.0.1", 4420), ("0.0.0.0", 4421), None),
        (("name-a", 4420), ("name-b", 4420), None),
    ],
)
def test_an_address_given_twice_is_reported(first: tuple[str, int], second: tuple[str, int], said: str | None) -> None:
    ports = tuple(PortConfig(host=host, port=port) for host, port in (first, second))
    if said is None:
        TargetConfig(subsystems=(SubsystemConfig(nqn=NQN),), ports=ports)
        return
    with pytest.raises(ConfigurationError, match=said):
        TargetConfig(subsystems=(SubsystemConfig(nqn=NQN),), ports=ports)


async def test_more_memory_than_exists_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async with Target(namespaces=[Ramdisk("1G"), Ramdisk("64T")]):
        pass
    [said] = [line for line in caplog.messages if "memory" in line]
    assert said.startswith("the ramdisks hold 65537G together, and this machine has ")
    caplog.clear()
    async with Target(namespaces=[Ramdisk("64M")]):
        pass
    assert not [line for line in caplog.messages if "memory" in line]
