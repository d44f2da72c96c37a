"""A command whose effect cannot be stored has none: not now, and not after the next start."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from nvmeof.spec.reservations import pack_keys
from nvmeof.spec.status import Status
from nvmeof.target.core.metadata import KeptValue, MemoryStore, NotKeptError
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.commands.test_nvm import read, rw
from tests.target.harness import Target, TestQueue
from tests.target.media_tools import Durable, finish, kept, sanitize_log

CODES = [errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS]
LABEL = b"label".ljust(256, b"\0")


class Failing(Durable):
    """A metadata store that fails while it has an `error`, at once or `later`."""

    def __init__(self, values: dict[str, Any] | None = None, *, later: bool = False) -> None:
        super().__init__()
        self._values = dict(values or {})
        self.later = later

    def put(self, section, value):
        if self.error is None:
            return super().put(section, value)
        failure = NotKeptError(self.error.errno, "it cannot be kept")
        if not self.later:
            raise failure
        before = self._values.get(section)
        MemoryStore.put(self, section, value)
        return _FailsLater(self, section, before, failure)


class _FailsLater:
    """A result that restores the old value and fails when awaited; like a store's future it need not be awaited."""

    def __init__(self, store: Failing, section: str, before: Any, failure: NotKeptError) -> None:
        self._take_back = functools.partial(MemoryStore.put, store, section, before)
        self._failure = failure

    def __await__(self) -> Generator[Any, None, None]:
        self._take_back()
        raise self._failure
        yield


class Machine:
    """A target of one disk, whose metadata store can fail; `again` is the target of the next process."""

    def __init__(self, metadata_store: Failing, subsystem: Failing, disk: Ramdisk | None = None) -> None:
        self.metadata_store, self.subsystem_store = metadata_store, subsystem
        self.disk = disk or Ramdisk("64K")
        self.target = Target(kept(self.disk, metadata_store), metadata_store=subsystem)
        self.target.subsystem.resume(self.target.runtime)
        self.admin = self.target.admin()
        self.io = self.target.io(self.admin)

    def again(self) -> Machine:
        again = Ramdisk("64K")
        assert again.memory is not None and self.disk.memory is not None
        again.memory[:] = self.disk.memory
        return Machine(Failing(self.metadata_store._values), Failing(self.subsystem_store._values), again)

    def run(self, queue: TestQueue, opcode: int, data: bytes | None = None, **fields: Any) -> Any:
        return finish(self.target, queue.submit(queue.sqe(opcode, data, **fields), data))

    def register(self, cdw10: int = 3 << 30) -> Any:
        return self.run(self.io, 0x0D, pack_keys(0, 7), nsid=1, cdw10=cdw10)

    def seen(self) -> dict[str, Any]:
        """Return the state that a host sees. A write comes last: it changes the data, and removes a mark."""
        self.target.runtime.settle()
        report = self.run(self.io, 0x0E, nsid=1, cdw10=23, cdw11=1, length=96)
        return {
            "blocks": [read(self.io, slba, 1).status for slba in range(4)],
            "protected": self.admin.get_feature(0x84, nsid=1).dw0,
            "label": self.admin.get_feature(0x1F, nsid=1, length=256).data,
            "recovery": self.admin.get_feature(0x05, nsid=1).dw0,
            "cache": self.admin.get_feature(0x0A).dw0,
            "format": self.target.subsystem.namespaces[1].block_bytes,
            "reservation": report.status and self.io.read_bytes(report),
            "sanitize": sanitize_log(self.admin).sstat,
            "write": self.run(self.io, 0x01, bytes(512), **rw(3, 1)).status,
        }


def mark(machine: Machine, slba: int) -> Any:
    return machine.run(machine.io, 0x04, **rw(slba, 1))


def feature(fid: int, value: int = 0, data: bytes | None = None, *, save: bool = True, nsid: int = 1) -> Any:
    def command(machine: Machine) -> Any:
        return machine.run(machine.admin, 0x09, data, nsid=nsid, cdw10=fid | save << 31, cdw11=value)

    return command


PROTECT, UNPROTECT = feature(0x84, 1, save=False), feature(0x84, 0, save=False)


def nothing(machine: Machine) -> None:
    pass


def marked(machine: Machine) -> None:
    assert mark(machine, 1).status == 0


def protected(machine: Machine) -> None:
    assert PROTECT(machine).status == 0


COMMANDS: dict[str, tuple[Callable[[Machine], Any], Callable[[Machine], Any]]] = {
    "Write Uncorrectable": (nothing, lambda machine: mark(machine, 0)),
    "another Write Uncorrectable": (marked, lambda machine: mark(machine, 0)),
    "a Write of what was marked": (marked, lambda machine: machine.run(machine.io, 0x01, bytes(512), **rw(1, 1))),
    "to protect": (nothing, PROTECT),
    "to end the protection": (protected, UNPROTECT),
    "a label": (nothing, feature(0x1F, 0, LABEL)),
    "Error Recovery, saved": (lambda machine: feature(0x05, 3)(machine), feature(0x05, 5)),
    "a controller's feature, saved": (nothing, feature(0x0A, 1, nsid=0)),
    "a registration": (nothing, lambda machine: machine.register()),
    "Format": (nothing, lambda machine: machine.run(machine.admin, 0x80, nsid=1, cdw10=1)),
    "Sanitize": (nothing, lambda machine: machine.run(machine.admin, 0x84, cdw10=2)),
}


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", COMMANDS)
def test_all_or_nothing(name: str, code: int, later: bool) -> None:
    before, command = COMMANDS[name]
    machine = Machine(Failing(later=later), Failing(later=later))
    before(machine)
    was, was_kept = (
        machine.again().seen(),
        (dict(machine.metadata_store._values), dict(machine.subsystem_store._values)),
    )
    machine.metadata_store.error = machine.subsystem_store.error = OSError(code, os.strerror(code))
    completion = command(machine)
    assert (completion.status, completion.dnr) == (Status.INTERNAL_ERROR, False)
    machine.target.runtime.settle()
    if name != "Sanitize":  # its second metadata store may have been asked to restore the old value
        for section in ("uncorrectable", "features", "reservations", "format"):
            assert machine.metadata_store.get(section) == was_kept[0].get(section)
            assert machine.subsystem_store.get(section) == was_kept[1].get(section)
    machine.metadata_store.error = machine.subsystem_store.error = None
    again = machine.again()
    assert machine.seen() == was, "now"
    assert again.seen() == was, "after the next start"
    assert command(machine).status == 0, "and it can be tried again"


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(("fid", "value", "save"), [(0x84, 1, False), (0x05, 7, True)])
def test_all_namespaces_or_none(fid: int, value: int, save: bool, later: bool) -> None:
    """Set Features for FFFFFFFFh: the first namespace has stored the value already when the second cannot."""
    stores = [Failing(later=later), Failing(later=later)]
    target = Target(*(kept(Ramdisk("64K"), store) for store in stores))
    admin = target.admin()
    fields = {"nsid": 0xFFFFFFFF, "cdw10": fid | save << 31, "cdw11": value}
    stores[1].error = OSError(errno.EIO, "broken")
    assert finish(target, admin.submit(admin.sqe(0x09, **fields))).status == Status.INTERNAL_ERROR
    assert [admin.get_feature(fid, nsid=nsid).dw0 for nsid in (1, 2)] == [0, 0]
    assert [admin.get_feature(fid, 2, nsid=nsid).dw0 for nsid in (1, 2)] == [0, 0], "saved"
    again = Target(*(kept(Ramdisk("64K"), Failing(store._values)) for store in stores)).admin()
    assert [again.get_feature(fid, nsid=nsid).dw0 for nsid in (1, 2)] == [0, 0]
    stores[1].error = None
    assert finish(target, admin.submit(admin.sqe(0x09, **fields))).status == 0
    assert [admin.get_feature(fid, nsid=nsid).dw0 for nsid in (1, 2)] == [value, value]


async def test_a_change_based_on_a_failed_one_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second change includes the first one: if it were stored, so would be a change that was reported as failed."""
    metadata_store = JsonFileStore(tmp_path / "k", sections=("a", "b"))
    changes: list[int] = []
    value = KeptValue(metadata_store, "a", (0,), list, lambda: changes.append(len(value.now)))
    await value.set((0, 1))
    real, calls = JsonFileStore._replace, 0

    def once(self: JsonFileStore, text: str | None) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.ENOSPC, "no space")
        real(self, text)

    monkeypatch.setattr(JsonFileStore, "_replace", once)
    first = asyncio.ensure_future(value.set((*value.now, 2)))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    second = asyncio.ensure_future(value.set((*value.now, 3)))  # type: ignore[arg-type]
    other = asyncio.ensure_future(metadata_store.put("b", 5))  # type: ignore[arg-type]
    results = await asyncio.gather(first, second, other, return_exceptions=True)
    assert [type(each) for each in results] == [NotKeptError, NotKeptError, type(None)]
    assert value.now == (0, 1) and metadata_store.values == {"a": [0, 1], "b": 5}
    assert JsonFileStore(metadata_store.path, sections="ab").values == {"a": [0, 1], "b": 5}
    await value.set((*value.now, 4))
    assert JsonFileStore(metadata_store.path, sections="ab").get("a") == [0, 1, 4]
    assert changes == [2, 3, 4, 2, 3]


async def test_a_name_that_is_not_on_the_media_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file had been replaced when the command failed: a kill right after that must not make the change last."""
    metadata_store = JsonFileStore(tmp_path / "k", sections="a")
    await metadata_store.put("a", 1)
    fsync = os.fsync

    def fails(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink() == tmp_path:
            raise OSError(errno.EIO, "broken")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(NotKeptError, match="broken"):
        await metadata_store.put("a", 2)
    await metadata_store.close()
    assert JsonFileStore(metadata_store.path, sections="a").get("a") == 1 == metadata_store.get("a")


async def test_failed_stores_are_one_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metadata_store = JsonFileStore(tmp_path / "k", sections="a")

    def full(self: JsonFileStore, text: str | None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JsonFileStore, "_replace", full)
    for value in range(50):
        with pytest.raises(NotKeptError):
            await metadata_store.put("a", value)
    lines = [record.message for record in caplog.records]
    assert lines == [f"cannot write {metadata_store.path}: No space left on device; nothing was changed"]
