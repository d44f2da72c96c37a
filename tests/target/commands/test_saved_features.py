"""Saved features: over resets, restarts and crashes; and rows that complete later."""

from __future__ import annotations

import asyncio
import errno
import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest

from nvmeof.errors import CommandError
from nvmeof.spec.status import Status
from nvmeof.target.commands.rows.features import FeatureSpec, Scope, Value, current_value
from nvmeof.target.commands.table import execute, prepare
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.namespaces.feature_values import Saved, forget, load, load_all, save
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.target.commands.test_features import ALL, LABEL, ONE_RANGE
from tests.target.harness import FEATURES, NQN, Pending, Target, TestQueue

# Rows that complete later


def test_a_value_that_is_set_later(monkeypatch):
    order: list[str] = []

    async def later(controller, sqe, data):
        order.append(f"{sqe.nsid}:{bytes(data)[0] if data else None}")
        return 0 if sqe.nsid else 42

    def check(controller, sqe):
        if sqe.cdw11 == 9 and sqe.nsid == 2:
            raise CommandError(Status.FEATURE_NOT_CHANGEABLE)

    for fid, scope in ((0xD0, Scope.NAMESPACE), (0xD1, Scope.SUBSYSTEM)):
        read = lambda controller, sqe: Value(1)  # noqa: E731
        row = FeatureSpec(fid, "Slow", read, read, later, scope=scope, saveable=True, check=check)
        monkeypatch.setitem(FEATURES, fid, row)
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    admin = target.admin()
    assert admin.set_feature(0xD0, 1, nsid=ALL).status == 0 and order == ["1:None", "2:None"]
    assert admin.set_feature(0xD0, 9, nsid=ALL).status == Status.FEATURE_NOT_CHANGEABLE and len(order) == 2
    assert admin.set_feature(0xD1, 1, save=True).dw0 == 42
    assert load(target.subsystem.metadata_store, 0xD1) is not None


class SlowStore(MemoryStore):
    """A metadata store that fails, at once or later."""

    def __init__(self, target: Target, *, later: bool) -> None:
        super().__init__()
        self.target = target
        self.later = later
        self.future: Any = None

    def put(self, section, value):
        super().put(section, value)
        if section != "features":
            return None
        if not self.later:
            raise OSError(errno.ENOSPC, "no space")
        self.future = self.target.runtime.create_future()
        return self._wait()

    async def _wait(self):
        result = await self.future
        if result is not None:
            raise result


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("works", [False, True])
def test_a_save_that_takes_time_or_fails(later, works):
    target = Target()
    metadata_store = target.subsystem.metadata_store = SlowStore(target, later=later)
    admin = target.admin()
    result = admin.submit(admin.sqe(0x09, cdw10=0x0A | 1 << 31, cdw11=1))
    if later:
        assert isinstance(result, Pending) and result.completion is None
        metadata_store.future.set_result(None if works else OSError(errno.EIO, "it broke"))
        result = result.step()
        if works:
            assert result.status == 0
            return
    assert result.status == Status.INTERNAL_ERROR and not result.dnr
    assert admin.get_feature(0x0A).dw0 == 0, "it has no effect"


# Stored values


def test_values_survive_a_restart(tmp_path):
    crashed, after = tmp_path / "crashed", tmp_path / "after"
    crashed.mkdir()
    (crashed / "disk").write_bytes(bytes(1 << 20))

    async def change_and_save(admin: TestQueue, fid: int, value: int, data: bytes | None, nsid: int) -> None:
        sqe = admin.sqe(0x09, data, nsid=nsid, cdw10=fid | 1 << 31, cdw11=value)
        row, _ = prepare(admin.ctx, sqe)
        pending = execute(admin.ctx, row, sqe, None if data is None else memoryview(data))
        assert inspect.isawaitable(pending) and (await pending).status == 0

    async def life(directory: Path, *, first: bool) -> None:
        backend = FileBackend(directory / "disk")
        await backend.open()
        admin = Target(backend, metadata_store=JsonFileStore(directory / "state")).admin()
        if first:
            for fid, value, data in ((0x05, 100, None), (0x03, 1, ONE_RANGE), (0x1F, 0, LABEL)):
                await change_and_save(admin, fid, value, data, 1)
            await change_and_save(admin, 0x01, 3, None, 0)
        assert admin.get_feature(0x05, nsid=1).dw0 == 100 and admin.get_feature(0x01).dw0 == 3
        assert admin.get_feature(0x03, nsid=1, length=4096).data == ONE_RANGE
        assert admin.get_feature(0x1F, 2, nsid=1, length=256).data == LABEL
        if first:
            shutil.copytree(directory, after)  # as a crash at this moment would leave the file
        await backend.close()

    asyncio.run(life(crashed, first=True))
    asyncio.run(life(after, first=False))


def test_foreign_content_is_no_value():
    metadata_store = MemoryStore()
    saved = Saved((1, 2, 3, 4, 5), b"data", Value(7, b"value"))
    save(metadata_store, 0x04, 1, saved)
    assert (
        load(metadata_store, 0x04, 1) == saved
        and load(metadata_store, 0x04) is None
        and load_all(metadata_store) == [(4, saved)]
    )
    whole = metadata_store.get("features")["04.1"]
    for entry in ({}, None, [], {**whole, "dw0": "x"}, {**whole, "data": "zz"}, {**whole, "dwords": None}):
        metadata_store.put("features", {"04.1": entry})
        assert load(metadata_store, 0x04, 1) is None and load_all(metadata_store) == []
    for name in ("", "x", "zz.0", "004.0"):
        metadata_store.put("features", {name: whole})
        assert load_all(metadata_store) == []
    metadata_store.put("features", 5)
    assert load(metadata_store, 0x04) is None


def test_a_removed_feature_loses_all_of_its_values():
    metadata_store = MemoryStore()
    saved = Saved((1, 0, 0, 0, 0), None, Value(7))
    values = {(0x1F, 0): Value(1), (0x1F, 2): Value(2), (0x05, 0): Value(3)}
    for fid, selector in values:
        save(metadata_store, fid, selector, saved)
    forget(values, metadata_store, 0x1F)
    assert values == {(0x05, 0): Value(3)} and load_all(metadata_store) == [(0x05, saved)]
    forget(values, metadata_store, 0x1F)
    forget(values, metadata_store, 0x05)
    assert not values and metadata_store.get("features") is None


def test_saved_values_that_are_no_longer_valid():
    """The target is configured in another way, or is a discovery controller: the defaults remain."""
    target = Target()
    metadata_store = target.subsystem.metadata_store
    for fid, value in ((0x04, 3 << 16), (0x06, 0), (0x81, 1), (0x05, 1), (0xEE, 1), (0x0A, 1)):
        save(metadata_store, fid, 0, Saved((value, 0, 0, 0, 0), None, Value(value)))
    admin = target.admin()
    assert admin.get_feature(0x04).dw0 == 343 and admin.get_feature(0x0A).dw0 == 1
    assert current_value(FEATURES, admin.controller, 0x0A).dw0 == 1
    discovery = Subsystem(SubsystemConfig(nqn=NQN, namespaces=(NamespaceConfig(backend=Ramdisk("1M")),)))
    discovery.discovery = True
    discovery.metadata_store = metadata_store
    target.registry.subsystems.clear()
    target.registry.add_subsystem(discovery)
    assert target.admin().controller.features.values == {}
