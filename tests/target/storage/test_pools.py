import asyncio
import errno
import json
import os
import re
from pathlib import Path

import pytest

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.spec.enums import Csi
from nvmeof.spec.namespace_management import NAMESPACE_CREATE
from nvmeof.spec.status import Status
from nvmeof.target.server import Target, TargetConfig
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.pools import POOL_FILE, FilePool, RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.management import NewNamespace
from nvmeof.target.subsystem.namespace_kinds import STANDARD_KINDS, NamespaceKind
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.target.storage.pool_tools import HOST, MEGABYTE, NQN, Life, files


async def test_created_namespaces_are_found_again(tmp_path):
    async with Life(tmp_path / "pool") as life:
        assert await life.create() == 1
        assert await life.create(2 * MEGABYTE, block_bytes=4096, shared=False) == 2
        assert await life.create() == 3
        await life.delete(1)
        await life.write(2, b"data" * 1024)
        await life.attach(2)
        await life.attach(3)
        await life.detach(3)
        before = await life.state()
        assert before[1] == [2] and before[2] == 7 * MEGABYTE
        assert before[0][2][2:5] == (512, 4096, False)
    async with Life(tmp_path / "pool") as life:
        assert await life.state() == before
        assert await life.create() == 1
        assert life.subsystem.attachments.attached(HOST, 2) and not life.subsystem.attachments.attached("other", 2)
    async with Life(tmp_path / "pool", "1M") as life:
        assert life.subsystem.unallocated_bytes == 0, "less capacity than there is in use"
        with pytest.raises(CommandError) as refused:
            await life.create(4096)
        assert refused.value.status == Status.NAMESPACE_INSUFFICIENT_CAPACITY


async def test_configured_namespaces_do_not_take_their_places(tmp_path):
    async with Life(tmp_path) as life:
        assert await life.create() == 1
    async with Life(tmp_path, configured=True) as life:
        assert sorted(life.subsystem.namespaces) == [1, 2] and life.member.attached.keys() == {2}
        await life.detach(2)
        await life.attach(1)
    async with Life(tmp_path, configured=True) as life:
        assert life.member.attached.keys() == {1}, "also of configured ones it is remembered"
        with pytest.raises(ConfigurationError, match="exists already"):
            life.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nsid=1))
    async with Life(tmp_path) as life:
        assert life.subsystem.attachments.to_json() == [{"host": HOST, "attached": [1], "detached": []}]


async def test_files_are_sparse_and_go_with_their_namespaces(tmp_path):
    async with Life(tmp_path, "1T") as life:
        nsid = await life.create(1 << 39)
        name = str(life.subsystem.namespaces[nsid].uuid)
        assert (tmp_path / f"{name}.namespace").stat().st_size == 1 << 39
        assert (tmp_path / f"{name}.namespace").stat().st_blocks < 1024
        await life.delete(nsid)
        assert files(tmp_path) == [POOL_FILE]


async def test_a_pool_is_used_by_one_process(tmp_path):
    async with Life(tmp_path):
        with pytest.raises(ConfigurationError, match="is in use by another process"):
            await FilePool(tmp_path, "1M").acquire()
    await FilePool(tmp_path, "1M").acquire()


async def test_pools_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot use"):
        FilePool(tmp_path / "file", "1M")
    with pytest.raises(ConfigurationError, match="not a size"):
        FilePool(tmp_path, "much")
    (tmp_path / POOL_FILE).write_text("{")
    with pytest.raises(ConfigurationError, match="is not a state file of this version"):
        FilePool(tmp_path, "1M")


@pytest.mark.parametrize(
    "kept",
    [
        7,
        {},
        {"namespaces": [{}], "unused": [], "hosts": []},
        {"namespaces": [], "unused": ["../../etc/passwd"], "hosts": []},
        {"namespaces": [], "unused": [], "hosts": [{"host": "x"}]},
        {"namespaces": [], "unused": [], "hosts": 5},
    ],
)
async def test_damaged_state_is_reported(tmp_path, kept):
    (tmp_path / POOL_FILE).write_text(json.dumps({"nvmeof": 1, "kept": {"namespaces": kept}}))
    with pytest.raises(ConfigurationError, match="is damaged"):
        await Life(tmp_path).__aenter__()


async def test_an_unknown_command_set_and_a_lost_file_are_reported(tmp_path):
    async with Life(tmp_path) as life:
        await life.create()
        path = life.pool.path(str(life.subsystem.namespaces[1].uuid))
    text = (tmp_path / POOL_FILE).read_text()
    edited = re.sub(r'"sha256": "\w+", ', "", text.replace('"csi": 0', '"csi": 77'))
    (tmp_path / POOL_FILE).write_text(edited)
    with pytest.raises(ConfigurationError, match="I/O command set 77"):
        await Life(tmp_path).__aenter__()
    (tmp_path / POOL_FILE).write_text(text)
    path.rename(tmp_path / "away")
    with pytest.raises(ConfigurationError, match=r"is not there.*put it back, or take it out of there"):
        await Life(tmp_path).__aenter__()


@pytest.mark.parametrize("how", ["missing", "empty", "without its section"])
async def test_namespaces_whose_list_is_lost(tmp_path, how):
    """A lost list does not count as an empty one."""
    async with Life(tmp_path) as life:
        await life.create()
    metadata_store = tmp_path / POOL_FILE
    before = sorted(each.name for each in tmp_path.iterdir() if each != metadata_store)
    metadata_store.unlink()
    if how != "missing":
        metadata_store.write_text("" if how == "empty" else '{"nvmeof": 2, "kept": {}}')
    expected = "is not a state file of this version" if how == "empty" else "does not name them: put pool.json back"
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=expected):
            await Life(tmp_path).__aenter__()
    assert metadata_store.exists() == (how != "missing")
    assert sorted(each.name for each in tmp_path.iterdir() if each != metadata_store) == before


async def test_lost_metadata_of_a_namespace(tmp_path):
    """Without its metadata the namespace would have other blocks, and no protection."""
    async with Life(tmp_path) as life:
        await life.create()
        path = life.pool.path(str(life.subsystem.namespaces[1].uuid))
    beside = path.with_name(path.name + ".nvmeof")
    beside.rename(tmp_path / "away")
    with pytest.raises(ConfigurationError, match=rf"{beside} is not there.*put it back"):
        await Life(tmp_path).__aenter__()
    (tmp_path / "away").rename(beside)
    async with Life(tmp_path) as life:
        assert list(life.subsystem.namespaces) == [1]


async def test_unknown_files_are_left_alone(tmp_path, caplog):
    other = tmp_path / "3b241101-e2bb-4255-8caf-4136c566a962.namespace"
    async with Life(tmp_path) as life:
        await life.create()
    other.write_bytes(b"valuable")
    async with Life(tmp_path) as life:
        assert list(life.subsystem.namespaces) == [1] and f"{other} is not named in" in caplog.text
        await life.delete(1)
        await life.create()
        await life.delete(1)
    assert other.read_bytes() == b"valuable"


@pytest.mark.parametrize(("code", "status"), [(28, Status.NAMESPACE_INSUFFICIENT_CAPACITY), (5, Status.INTERNAL_ERROR)])
async def test_storage_that_cannot_be_made(tmp_path, monkeypatch, code, status):
    def fails(*_):
        raise OSError(code, os.strerror(code))

    async with Life(tmp_path) as life:
        monkeypatch.setattr(os, "ftruncate", fails)
        with pytest.raises(CommandError) as refused:
            await life.create()
        assert refused.value.status == status
        assert files(tmp_path) == [POOL_FILE] and not life.subsystem.namespaces
        monkeypatch.undo()
        assert await life.create() == 1


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (OSError(5, "Input/output error"), Status.INTERNAL_ERROR),
        (ConfigurationError("no"), Status.NAMESPACE_INSUFFICIENT_CAPACITY),
        (CommandError(Status.INVALID_FORMAT), Status.INVALID_FORMAT),
    ],
)
async def test_a_kind_that_cannot_be_made(tmp_path, monkeypatch, failure, status):
    def fails(*_, **__):
        raise failure

    async with Life(tmp_path) as life:
        monkeypatch.setitem(STANDARD_KINDS, Csi.NVM, NamespaceKind(Csi.NVM, STANDARD_KINDS[Csi.NVM].check, fails))
        with pytest.raises(CommandError) as refused:
            await life.create()
        assert refused.value.status == status
        assert files(tmp_path) == [POOL_FILE] and not life.subsystem.namespaces and not life.manager.nsids
        monkeypatch.undo()
        assert await life.create() == 1
        monkeypatch.setitem(STANDARD_KINDS, Csi.NVM, NamespaceKind(Csi.NVM, STANDARD_KINDS[Csi.NVM].check, fails))
    with pytest.raises(type(failure)):
        await Life(tmp_path).__aenter__()


async def test_a_namespace_configured_later_gets_another_nsid(tmp_path):
    async with Life(tmp_path) as life:
        creating = asyncio.ensure_future(life.create())
        await asyncio.sleep(0)
        left = life.subsystem.unallocated_bytes
        assert left == 9 * MEGABYTE, "it is taken already"
        assert life.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"))).nsid == 2
        with pytest.raises(ConfigurationError, match="exists already"):
            life.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nsid=1))
        assert await creating == 1
        assert list(life.subsystem.namespaces) == [1, 2]


async def test_storage_that_cannot_be_removed_is_removed_at_the_next_start(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    async with Life(tmp_path) as life:
        await life.create()
        with monkeypatch.context() as patches:
            patches.setattr(FilePool, "_remove_files", fails)
            await life.delete(1)
        assert not life.subsystem.namespaces and len(files(tmp_path)) > 1
    async with Life(tmp_path) as life:
        assert files(tmp_path) == [POOL_FILE] and not life.subsystem.namespaces


async def test_a_namespace_that_cannot_be_stored_leaves_no_file(tmp_path, monkeypatch):
    async with Life(tmp_path) as life:
        await life.create()
        kept = (tmp_path / POOL_FILE).read_text()
        calls = []
        real = type(life.pool.metadata_store)._replace

        def fails_from_the_second_on(self, text):
            if self is not life.pool.metadata_store:
                return real(self, text)
            calls.append(text)
            if len(calls) > 1:
                raise OSError(28, "No space left on device")
            return real(self, text)

        monkeypatch.setattr(type(life.pool.metadata_store), "_replace", fails_from_the_second_on)
        with pytest.raises(CommandError) as refused:
            await life.create()
        assert refused.value.status == Status.INTERNAL_ERROR and list(life.subsystem.namespaces) == [1]
        assert len(calls) == 3
        monkeypatch.undo()
        await life.attach(1)
        assert len([name for name in files(tmp_path) if name.endswith(".namespace")]) == 1
        assert kept != (tmp_path / POOL_FILE).read_text()
    async with Life(tmp_path) as life:
        assert list(life.subsystem.namespaces) == [1]


async def test_a_target_opens_and_closes_its_pool(tmp_path):
    config = TargetConfig(subsystems=(SubsystemConfig(nqn=NQN, pool=FilePool(tmp_path, "10M")),), ports=())
    for first in (True, False):
        async with Target(config) as target:
            subsystem = target.subsystems[NQN]
            if first:
                await subsystem.manager.create(target.runtime, NewNamespace(size_bytes=MEGABYTE, block_bytes=512))
            assert list(subsystem.namespaces) == [1]
            nsid = await target.add_namespace(Ramdisk("1M"))
            assert nsid == 2
            await target.remove_namespace(2)
            if not first:
                await target.remove_namespace(1)
                assert files(tmp_path) == [POOL_FILE]


async def test_hosts_flush_namespaces_created_later(tmp_path):
    """Hosts learn at Connect whether there is a volatile write cache."""
    async with Life(tmp_path) as life:
        assert life.subsystem.volatile_cache and not life.subsystem.namespaces
    assert not Subsystem(SubsystemConfig(nqn=NQN, pool=RamdiskPool("1M"))).volatile_cache


async def test_memory_does_not_outlive_a_target():
    config = TargetConfig(subsystems=(SubsystemConfig(nqn=NQN, pool=RamdiskPool("10M")),), ports=())
    for _ in range(2):
        async with Target(config) as target:
            manager = target.subsystems[NQN].manager
            assert await manager.create(target.runtime, NewNamespace(size_bytes=MEGABYTE, block_bytes=512)) == 1


async def test_zoned_namespaces_store_their_zones(tmp_path):
    async with Life(tmp_path, "1G") as life:
        kind = STANDARD_KINDS[Csi.ZONED]
        fields = NAMESPACE_CREATE.parse(bytes(4096))
        nsid = await life.create(512 * MEGABYTE, csi=Csi.ZONED, options=kind.check(fields, 512))
        await life.write(nsid, b"zone" * 128)
        before = await life.state()
    async with Life(tmp_path, "1G") as life:
        assert await life.state() == before
        space = life.subsystem.namespaces[nsid]
        assert space.csi == Csi.ZONED
        with pytest.raises(CommandError):
            await life.write(nsid, b"again" * 512)  # not at the write pointer
        await life.delete(nsid)
        assert files(tmp_path) == [POOL_FILE]


def test_the_name_of_a_new_directory_is_on_the_media(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
    FilePool(tmp_path / "a" / "b", "1M")
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    FilePool(tmp_path / "a" / "b", "1M")
    assert len(synced) == 2


async def test_a_full_disk_is_served(tmp_path, monkeypatch, caplog):
    """Sparse files fill the disk; a host needs access to free space."""
    async with Life(tmp_path) as life:
        await life.create()

    def full(self, text, **_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JsonFileStore, "_replace", full)
    async with Target(pool=FilePool(tmp_path, "1G"), trtype="tcp") as target:
        assert list(target.subsystems[target.subnqn].namespaces) == [1]
    assert "its state cannot be stored: No space left on device" in caplog.text


async def test_files_that_cannot_be_removed_do_not_prevent_a_start(tmp_path, monkeypatch, caplog):
    async with Life(tmp_path) as life:
        await life.create()
        monkeypatch.setattr(FilePool, "_remove_files", lambda self, path: Path("/nowhere/at/all").unlink())
        await life.create()
        await life.delete(2)
    async with Life(tmp_path) as life:
        assert list(life.subsystem.namespaces) == [1]
    assert "could not be removed" in caplog.text
    monkeypatch.undo()
    async with Life(tmp_path) as life:
        assert list(life.subsystem.namespaces) == [1]
    assert len(files(tmp_path)) == 3


async def test_a_configured_namespace_that_was_removed_leaves_nothing_to_the_next(tmp_path):
    async with Life(tmp_path, configured=True) as life:
        await life.manager.detach(life.runtime, 1, [1])
        life.subsystem.remove_namespace(1)
    async with Life(tmp_path, configured=True) as life:
        assert 1 in life.member.attached
