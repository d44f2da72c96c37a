"""Metadata that must outlive a process: stored beside the data, replaced atomically, failures reported."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.target.storage import kept_document
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.ramdisk import Ramdisk


def opened(path: Path) -> JsonFileStore:
    return JsonFileStore(path, sections="abn")


async def test_stored_values_are_found_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "disk.nvmeof"
    metadata_store = opened(path)
    assert metadata_store.durable and metadata_store.get("a") is None
    await metadata_store.put("a", {"x": [1, 2]})
    await metadata_store.put("b", 7)
    assert opened(path).get("a") == {"x": [1, 2]}
    assert opened(path).get("b") == 7
    await metadata_store.put("b", None)
    assert opened(path).get("b") is None
    assert not (tmp_path / (metadata_store.path.name + ".new")).exists()


async def test_an_empty_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "disk.nvmeof"
    metadata_store = opened(path)
    await metadata_store.put("a", 1)
    await metadata_store.put("a", None)
    assert not path.exists()
    await metadata_store.put("a", None)


async def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    metadata_store = opened(tmp_path / "k")
    await metadata_store.put("a", 1)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    (tmp_path / "k").chmod(0o640)
    await metadata_store.put("a", 2)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o640
    (tmp_path / "link").symlink_to(tmp_path / "k")
    await opened(tmp_path / "link").put("b", 3)
    assert (tmp_path / "link").is_symlink() and opened(tmp_path / "k").get("b") == 3


async def test_only_one_process_opens_it(tmp_path: Path) -> None:
    """A second process that replaced the file by its own state would undo the changes of the first."""
    path = tmp_path / "state"
    first, second = opened(path), opened(path)
    first.hold()
    first.hold()
    for value in (1, 2, None):
        await first.put("a", value)
        with pytest.raises(ConfigurationError, match=f"{path} is in use by another process"):
            second.hold()
    await first.put("b", 3)
    await first.release()
    second.hold()
    assert second.get("b") == 3, "read again"
    with pytest.raises(ConfigurationError, match="in use"):
        first.hold()
    await second.release()
    assert not (tmp_path / "state.new").exists()


@pytest.mark.parametrize("where", ["away/state", ".", "/proc/self/x"])
def test_places_where_nothing_can_be_stored(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot use .* as a state file|is not a state file of this version"):
        opened(tmp_path / where).hold()


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for path in (tmp_path / "fifo", tmp_path / "huge", Path("/dev/zero")):
        with pytest.raises(
            ConfigurationError, match=r"too large to be a state file of this version|not a regular file"
        ):
            opened(path)


async def test_values_stored_at_once_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata_store = opened(tmp_path / "k")
    texts: list[str | None] = []
    real = JsonFileStore._replace

    def replace(self: JsonFileStore, text: str | None) -> None:
        texts.append(text)
        real(self, text)

    monkeypatch.setattr(JsonFileStore, "_replace", replace)
    await asyncio.gather(*(metadata_store.put("n", value) for value in range(50)))
    assert len(texts) <= 2
    assert opened(metadata_store.path).get("n") == 49


async def test_a_failure_is_reported_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata_store = opened(tmp_path / "k")
    await metadata_store.put("a", 1)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        await metadata_store.put("a", 2)
    monkeypatch.undo()
    assert opened(metadata_store.path).get("a") == 1
    assert not (tmp_path / (metadata_store.path.name + ".new")).exists()
    assert metadata_store.get("a") == 1, "it was withdrawn"
    await metadata_store.put("b", 3)
    assert opened(metadata_store.path).get("a") == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"nvmeof": 1}', '{"nvmeof": 99, "kept": {}}', '{"nvmeof": 1, "kept": 5}']
)
def test_a_broken_file_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="k "):
        opened(path)
    assert path.read_text() == text


async def test_a_file_namespace_stores_metadata_beside_its_file(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / "disk.img", size="1M")
    await backend.open()
    saved = backend.metadata_store.put("reservations", [1])
    await backend.close()  # waits for the write
    assert saved is not None
    await saved
    assert json.loads((tmp_path / "disk.img.nvmeof").read_text())["kept"] == {"reservations": [1]}
    again = FileBackend(tmp_path / "disk.img")
    await again.open()
    assert again.metadata_store.get("reservations") == [1]
    await again.close()


async def test_a_store_in_memory_reports_that_it_is_not_durable(tmp_path: Path) -> None:
    ramdisk = Ramdisk("1M")
    assert ramdisk.metadata_store.put("a", 1) is None
    assert ramdisk.metadata_store.get("a") == 1
    assert not ramdisk.metadata_store.durable
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    read_only = FileBackend(tmp_path / "disk.img", read_only=True)
    await read_only.open()
    assert not read_only.metadata_store.durable
    await read_only.close()
    elsewhere = FileBackend(tmp_path / "disk.img", kept=tmp_path / "state.json")
    await elsewhere.open()
    put = elsewhere.metadata_store.put("features", {})
    assert put is not None
    await put
    await elsewhere.close()
    assert (tmp_path / "state.json").exists()


class Crash(BaseException):
    """The process ends at this point."""


CALLS = [(os, "open"), (os, "fsync"), (os, "link"), (os, "fchmod"), (os, "dup2"), (Path, "replace"), (Path, "unlink")]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_the_end_at_any_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool, after: bool) -> None:
    """The file has the old or the new values, before and after each system call."""
    values: list[dict[str, int]] = [{"a": 1}, {"a": 2, "b": 3}, {}, {"a": 4}]
    for number in range(1, 200):
        path = tmp_path / str(number) / "k"
        path.parent.mkdir()
        metadata_store, kept, wanted = opened(path), {}, {}
        left = number

        def count(real: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if not left and not after:
                    raise Crash
                result = real(*arguments, **options)
                if not left:
                    raise Crash
                return result

            return call

        with monkeypatch.context() as patched:
            for where, name in CALLS:
                patched.setattr(where, name, count(getattr(where, name)))
            try:
                if held:
                    metadata_store.hold()
                for wanted in values:
                    metadata_store._replace(kept_document.build(wanted) if wanted or held else None)
                    kept = wanted
            except Crash:
                pass
        again = opened(path)
        assert again.values in (kept, wanted)
        metadata_store._let_go()
        again.hold()
        assert again.values in (kept, wanted)
        again._let_go()
        if left > 0:
            assert number > 10
            return
    raise AssertionError("it never comes to its end")


async def test_the_order_that_a_loss_of_power_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content of the new file is on the media before it has the name, and the name before the write is reported."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(fd: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        fsync(fd)

    def replaced(self: Path, target: Path) -> Path:
        done.append(f"name {target.name}")
        return replace(self, target)

    metadata_store = opened(tmp_path / "k")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    await metadata_store.put("a", 1)
    assert done == ["sync k.new", "name k", f"sync {tmp_path.name}"]
    done.clear()
    await metadata_store.put("a", None)
    assert done == [f"sync {tmp_path.name}"] and not metadata_store.path.exists()
