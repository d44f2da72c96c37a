"""Each system call of a workload fails once: what was told to a host is true, in this life, in the next one, and after
a loss of power."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.runtime import settled
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.storage import fault_log, zone_file
from nvmeof.target.storage.file import FileBackend
from tests.crash.workloads import (
    BLOCK,
    BLOCKS,
    IDENTIFIERS,
    UNREADABLE,
    ZONE,
    ZONES,
    Command,
    held,
    look,
    power,
    power_on,
    work,
)

PLAIN: Sequence[Sequence[Command]] = [
    [("write", 0, 4), ("fua", 4, 2), ("fua", 6, 2)],
    [("mark", 0, 3)],
    [("write", 1, 1), ("fua", 2, 1)],
    [("flush", 0, 0), ("mark", 8, 2)],
    [("zeroes", 8, 1)],
    [("write", 9, 1), ("fua", 4, 1), ("fua", 5, 1)],
    [("flush", 0, 0)],
    [("write", 12, 2)],
    [("flush", 0, 0)],
]
ZONED: Sequence[Sequence[Command]] = [
    [("append", 0, 3)], [("append", 1, 2)], [("flush", 0, 0)], [("append", 0, 2)], [("fua", 1, 2)],
    [("finish", 1, 0)], [("reset", 0, 0)], [("append", 0, 4)], [("flush", 0, 0)], [("append", 2, 1)],
    [("flush", 0, 0)],
]  # fmt: skip
CALLS = ("write", "fsync", "fdatasync", "replace", "create", "truncate", "fallocate", "unlink")
STATUSES = {Status.WRITE_FAULT, Status.CAPACITY_EXCEEDED, Status.INTERNAL_ERROR, Status.UNRECOVERED_READ_ERROR}


class Nth:
    """Lets the nth call of a kind fail, and counts them."""

    def __init__(self, kind: str, number: int, code: int) -> None:
        self.kind, self.number, self.code = kind, number, code
        self.count = 0

    def __call__(self, call: str, fd: int) -> OSError | None:
        if call != self.kind:
            return None
        self.count += 1
        return OSError(self.code, os.strerror(self.code)) if self.count == self.number else None


def play(turns: Sequence[Sequence[Command]], fails: Nth, *, zoned: bool) -> None:
    """Play a workload in which a call fails; look at what is left at the end and at some points before."""
    with pytest.MonkeyPatch.context() as patch, power(patch, ZONES * ZONE if zoned else BLOCKS) as it:
        patch.setattr(zone_file, "boot_id", lambda: b"1" * 16)
        it.journal.fails = fails
        try:
            errors = asyncio.run(work(it, turns, zoned=zoned))
        except ConfigurationError as error:  # it could not be opened: one sentence
            assert os.strerror(fails.code) in str(error) and "\n" not in str(error)
            errors = []
        statuses = {error.status for error in errors}
        assert statuses <= STATUSES | ({Status.ZONE_IS_READ_ONLY} if zoned else set()), statuses
        power_on(patch)
        patch.setattr(zone_file, "boot_id", lambda: b"2" * 16)
        for cut, image in it.images(fails.number, most=12):
            asyncio.run(look(it, cut, image, zoned=zoned))
        asyncio.run(look(it, len(it.journal.entries), it.root, zoned=zoned))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_log.FaultLog, "error", lambda self, key, text: None)


@pytest.mark.parametrize("zoned", [False, True], ids=["plain", "zoned"])
@pytest.mark.parametrize("kind", CALLS)
def test_each_call_fails_once(kind: str, zoned: bool) -> None:
    turns = ZONED if zoned else PLAIN
    number, most = 1, 1
    while number <= most:
        fails = Nth(kind, number, errno.ENOSPC if number % 3 == 2 else errno.EIO)
        play(turns, fails, zoned=zoned)
        most = max(most, fails.count)
        number += 1


async def test_a_mark_stays_when_a_sync_of_others_has_lost_what_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next sync succeeds without it, and old data would come back."""
    (tmp_path / "disk").write_bytes(b"o" * BLOCKS * BLOCK)
    backend = FileBackend(tmp_path / "disk")
    await backend.open()
    namespace, write, sync = Namespace(1, backend, IDENTIFIERS), backend.write, os.fdatasync
    await settled(namespace.mark_uncorrectable(0, 1))

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def lost(offset: int, data: memoryview, *, fua: bool = False) -> None:
        await settled(write(offset, data, fua=fua))
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(OSError):
            backend.sync(backend.sync_failures)
        monkeypatch.setattr(os, "fdatasync", sync)

    monkeypatch.setattr(backend, "write", lost)
    with pytest.raises(CommandError) as caught:
        await settled(namespace.write(0, memoryview(bytes(BLOCK))))
    assert caught.value.status == Status.WRITE_FAULT and await held(namespace, 0) == UNREADABLE
    monkeypatch.setattr(backend, "write", write)
    await settled(namespace.write(0, memoryview(bytes(BLOCK))))
    assert await held(namespace, 0) == bytes(BLOCK)
    await backend.close()
