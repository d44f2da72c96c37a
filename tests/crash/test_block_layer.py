"""The fake block layer itself: what it lets a loss of power leave, and what not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmeof.target.storage import syscalls
from tests.crash.block_layer import SECTOR, Journal, everything, journal_of, nothing_more


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    (tmp_path / "file").write_bytes(bytes(2 * SECTOR))
    yield journal_of(tmp_path, monkeypatch)


def contents(
    journal: Journal, tmp_path_factory: pytest.TempPathFactory, cut: int | None = None
) -> set[tuple[bytes, ...]]:
    """First bytes of the sectors of the file, for a choice of the oldest and of the newest."""
    found = set()
    for choose in (nothing_more, everything):
        where = tmp_path_factory.mktemp("image")
        journal.image(len(journal.entries) if cut is None else cut, where, choose)
        content = (where / "file").read_bytes()
        found.add(tuple(content[at : at + 1] for at in range(0, len(content), SECTOR)))
    return found


def test_what_is_not_synced_may_be_there_or_not(journal: Journal, tmp_path: Path, tmp_path_factory) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR)
    os.pwrite(fd, b"a" * SECTOR, 0)
    assert contents(journal, tmp_path_factory) == {(b"\0", b"\0"), (b"a", b"\0")}
    os.fdatasync(fd)
    before = len(journal.entries) - 1
    assert contents(journal, tmp_path_factory) == {(b"a", b"\0")}
    assert contents(journal, tmp_path_factory, before) == {(b"\0", b"\0"), (b"a", b"\0")}, "the sync has not ended"
    os.pwritev(fd, [b"b" * SECTOR], SECTOR, os.RWF_DSYNC)
    os.pwrite(fd, b"c" * SECTOR, 0)
    assert contents(journal, tmp_path_factory) == {(b"a", b"b"), (b"c", b"b")}
    os.ftruncate(fd, SECTOR)
    assert contents(journal, tmp_path_factory) == {(b"a", b"b"), (b"c",)}
    os.close(fd)


def test_a_name_is_there_when_its_directory_was_synced(
    journal: Journal, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open(tmp_path / "new", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(b"n" * SECTOR)
        file.flush()
        (tmp_path / "new").replace(tmp_path / "file")
        assert contents(journal, tmp_path_factory) == {(b"\0", b"\0"), (b"n",)}
        syscalls.sync_directory(tmp_path)
        assert contents(journal, tmp_path_factory) == {(), (b"n",)}, "its name before its data"
        os.fsync(file.fileno())
    assert contents(journal, tmp_path_factory) == {(b"n",)}


def test_what_a_sync_has_lost_the_next_one_does_not_bring(
    journal: Journal, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR)
    os.pwrite(fd, b"a" * SECTOR, 0)
    journal.fails = lambda call, fd: OSError(5, "broken") if call == "fdatasync" else None
    with pytest.raises(OSError, match="broken"):
        os.fdatasync(fd)
    journal.fails = lambda call, fd: None
    os.pwrite(fd, b"b" * SECTOR, SECTOR)
    os.fdatasync(fd)
    assert contents(journal, tmp_path_factory) == {(b"\0", b"b"), (b"a", b"b")}
    os.pwrite(fd, b"c" * SECTOR, 0)
    os.fdatasync(fd)
    assert contents(journal, tmp_path_factory) == {(b"c", b"b")}
    os.close(fd)
