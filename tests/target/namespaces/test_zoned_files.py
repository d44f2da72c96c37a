"""Zoned namespaces in files: flushes, failed syncs, kills and losses of power."""

import asyncio
import errno
import os
import shutil
from pathlib import Path

import pytest

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneState
from nvmeof.target.namespaces.namespace import Namespace
from nvmeof.target.namespaces.zone_states import ZoneInput
from nvmeof.target.namespaces.zoned import ZonedNamespace, make_namespace
from nvmeof.target.storage import zone_file
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.target.backend_tools import settled
from tests.target.namespaces.zoned_tools import BLOCK, GEOMETRY, IDENTIFIERS, NQN, ZONE, data, read


class Machine:
    """A file namespace whose process or power can end at any time: the files of that moment are copied."""

    def __init__(self, directory, monkeypatch):
        self.directory = directory
        self.boots = 1
        self.lives = 0
        monkeypatch.setattr(zone_file, "boot_id", lambda: bytes([self.boots]) * 16)

    async def start(self, **options):
        self.backend = FileBackend(self.path, size="1M", **options)
        await self.backend.open()
        self.namespace = ZonedNamespace(1, self.backend, IDENTIFIERS, GEOMETRY)
        return self.namespace

    @property
    def path(self):
        return self.directory / str(self.lives) / "disk"

    async def again(self, how="stop"):
        """Stop the target, kill it, or cut its power; then start it again."""
        old = self.path.parent
        if how == "stop":
            await self.backend.close()
        self.lives += 1
        shutil.copytree(old, self.path.parent)
        if how != "stop":
            await self.backend.close()
        self.boots += how == "power"
        return await self.start()

    async def end(self):
        await self.backend.close()


@pytest.fixture
async def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path, monkeypatch)
    made.path.parent.mkdir()
    await made.start()
    yield made
    await made.end()


async def write(namespace, slba, letter, blocks=1, **options):
    await settled(namespace.write(slba, data(letter, blocks), **options))


def seen(namespace, count=6):
    return [(zone.state.name, zone.pointer - zone.start) for zone in namespace.zones.zones[:count]]


@pytest.mark.parametrize("how", ["stop", "kill", "power"])
async def test_flushed_data_is_stored(machine, how):
    namespace = machine.namespace
    await write(namespace, 0, "a", 3)
    await write(namespace, ZONE, "b", ZONE)
    await settled(namespace.manage(ZoneInput.OPEN, 2 * ZONE))
    await write(namespace, 3 * ZONE, "c", 2)
    await settled(namespace.manage(ZoneInput.FINISH, 3 * ZONE))
    await settled(namespace.set_extension(4 * ZONE, b"e" * 64))
    await write(namespace, 5 * ZONE, "d")
    await settled(namespace.flush())
    assert not namespace.zones.dirty
    namespace = await machine.again(how)
    assert seen(namespace) == [("CLOSED", 3), ("FULL", ZONE), ("EMPTY", 0), ("FULL", 2), ("CLOSED", 0), ("CLOSED", 1)]
    assert await read(namespace, 0, 4) == bytes(data("a", 3)) + bytes(BLOCK)
    assert await read(namespace, 3 * ZONE, 3) == bytes(data("c", 2)) + bytes(BLOCK)
    assert namespace.zones.store.extension(4) == b"e" * 64 and namespace.zones.zones[4].attributes == 0x80
    await write(namespace, 3, "x")
    assert await read(namespace, 2, 2) == bytes(data("a")) + bytes(data("x"))


@pytest.mark.parametrize(("how", "blocks"), [("stop", 5), ("kill", 5), ("power", 3)])
async def test_data_that_was_not_flushed(machine, how, blocks):
    namespace = machine.namespace
    await write(namespace, 0, "a", 3)
    await settled(namespace.flush())
    await write(namespace, 3, "b", 2)
    await write(namespace, ZONE, "c", ZONE)
    namespace = await machine.again(how)
    full = ("EMPTY", 0) if how == "power" else ("FULL", ZONE)
    assert seen(namespace, 2) == [("CLOSED", blocks), full]
    expected = (bytes(data("a", 3)) + bytes(data("b", 2)))[: blocks * BLOCK]
    assert await read(namespace, 0, 6) == expected.ljust(6 * BLOCK, b"\0")


@pytest.mark.parametrize("way", ["write", "append", "zeroes"])
async def test_force_unit_access_commits_the_whole_zone(machine, way):
    namespace = machine.namespace
    await write(namespace, 0, "a", 3)
    if way == "write":
        await write(namespace, 3, "b", fua=True)
    elif way == "append":
        assert (await settled(namespace.append(0, data("b"), fua=True)[1])) is None
    else:
        await settled(namespace.write_zeroes(3, 1, deallocate=False, fua=True))
    assert seen(await machine.again("power"), 1) == [("CLOSED", 4)]


@pytest.mark.parametrize("how", ["kill", "power"])
async def test_a_completed_reset_is_stored(machine, how):
    namespace = machine.namespace
    for zone in range(4):
        await write(namespace, zone * ZONE, "a", 8)
    await settled(namespace.flush())
    await settled(namespace.manage(ZoneInput.RESET, ZONE))
    await settled(namespace.manage(ZoneInput.RESET, 2 * ZONE))
    await write(namespace, 2 * ZONE, "n", 2)
    namespace = await machine.again(how)
    assert seen(namespace, 4) == [
        ("CLOSED", 8), ("EMPTY", 0), ("EMPTY", 0) if how == "power" else ("CLOSED", 2), ("CLOSED", 8),
    ]  # fmt: skip
    assert await read(namespace, ZONE, 8) == bytes(8 * BLOCK)
    await settled(namespace.manage(ZoneInput.RESET, 0, select_all=True))
    assert seen(await machine.again(how), 4) == [("EMPTY", 0)] * 4


async def test_data_written_while_a_reset_is_stored_stays(machine):
    namespace = machine.namespace
    await write(namespace, 0, "a", 8)
    resetting = asyncio.ensure_future(namespace.manage(ZoneInput.RESET, 0))
    await asyncio.sleep(0)
    await write(namespace, 0, "n", 2)
    await resetting
    assert await read(namespace, 0, 8) == bytes(data("n", 2)) + bytes(6 * BLOCK)
    resetting = asyncio.ensure_future(namespace.manage(ZoneInput.RESET, 0))
    await asyncio.sleep(0)
    assert namespace.manage(ZoneInput.RESET, 0) is None, "it is empty"
    await resetting
    assert await read(namespace, 0, 8) == bytes(8 * BLOCK)


async def test_a_flush_that_a_reset_overtakes(machine, monkeypatch):
    """The flush must not commit what was before the reset."""
    namespace = machine.namespace
    await write(namespace, 0, "a", 8)
    release = asyncio.Event()
    flush_backend = machine.backend.flush

    async def slowly():
        await release.wait()
        await flush_backend()

    monkeypatch.setattr(machine.backend, "flush", slowly)
    flushing = asyncio.ensure_future(namespace.flush())
    await asyncio.sleep(0)
    await settled(namespace.manage(ZoneInput.RESET, 0))
    release.set()
    await flushing
    assert seen(await machine.again("power"), 1) == [("EMPTY", 0)]


async def test_a_flush_stores_only_the_pointers_of_its_beginning(machine, monkeypatch):
    namespace = machine.namespace
    await write(namespace, 0, "a", 8)
    committed = []
    commit = namespace.zones.store.commit

    def told(records):
        committed.append(dict(records))
        return commit(records)

    monkeypatch.setattr(namespace.zones.store, "commit", told)
    flushing = asyncio.ensure_future(namespace.flush())
    await asyncio.sleep(0)
    await write(namespace, 8, "b", 8)
    await flushing
    assert [records[0].written for records in committed] == [8] and 0 in namespace.zones.dirty
    await settled(namespace.flush())
    assert committed[-1][0].written == 16 and not namespace.zones.dirty


async def test_records_that_cannot_be_stored(machine, monkeypatch):
    namespace = machine.namespace

    def broken(*arguments):
        raise OSError(errno.EIO, "broken")

    operations = [
        lambda: namespace.write(0, data("a")),
        lambda: namespace.manage(ZoneInput.OPEN, ZONE),
        lambda: namespace.set_extension(2 * ZONE, bytes(64)),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(namespace.zones.store, "put", broken)
        for operation in operations:
            with pytest.raises(CommandError) as error:
                await settled(operation())
            assert error.value.status == Status.WRITE_FAULT
    with monkeypatch.context() as patch:
        patch.setattr(namespace.zones.store, "put_extension", broken)
        with pytest.raises(CommandError) as error:
            namespace.set_extension(3 * ZONE, bytes(64))
        assert error.value.status == Status.WRITE_FAULT and namespace.zones.zones[3].state is ZoneState.EMPTY
    with monkeypatch.context() as patch:
        patch.setattr(namespace.zones.store, "commit_now", broken)
        await write(namespace, 0, "a")
        for operation in (
            namespace.flush,
            lambda: namespace.manage(ZoneInput.RESET, 0),
            lambda: namespace.manage(ZoneInput.FINISH, 0),
            lambda: namespace.set_extension(2 * ZONE, bytes(64)),
        ):
            with pytest.raises(CommandError) as error:
                await settled(operation())
            assert error.value.status == Status.WRITE_FAULT
    assert seen(namespace, 3) == [("IMPLICITLY_OPENED", 1), ("EMPTY", 0), ("EMPTY", 0)], "they have no effect"
    assert await read(namespace, 0, 1) == bytes(data("a"))
    await settled(namespace.flush())
    assert not namespace.zones.dirty


@pytest.fixture
def broken(monkeypatch):
    """Return ``broken(n)``: the next n syncs of data fail."""
    fdatasync, left = os.fdatasync, [0]

    def fails(fd):
        if left[0] and Path(f"/proc/self/fd/{fd}").readlink().name == "disk":
            left[0] -= 1
            raise OSError(errno.EIO, "broken")
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", fails)

    def arm(count):
        left[0] = count

    return arm


async def failing(operation):
    with pytest.raises(CommandError) as error:
        await settled(operation())
    assert error.value.status == Status.WRITE_FAULT


@pytest.mark.parametrize("way", ["flush", "write", "finish"])
async def test_a_failed_sync_moves_write_pointers_back(machine, broken, way):
    """A later sync that succeeds does not cover the data that the failed one has lost."""
    namespace, told = machine.namespace, []
    namespace.zone_changed = told.append
    await write(namespace, 0, "a", 3)
    await write(namespace, ZONE, "c", ZONE - 1)
    await settled(namespace.flush())
    await settled(namespace.manage(ZoneInput.OPEN, 3 * ZONE))
    await write(namespace, 0 + 3, "b", 5)
    await write(namespace, 2 * ZONE - 1, "d")
    await write(namespace, 2 * ZONE, "e", 2)
    assert seen(namespace, 2) == [("IMPLICITLY_OPENED", 8), ("FULL", ZONE)]
    broken(1)
    if way == "flush":
        await failing(namespace.flush)
    elif way == "write":
        await failing(lambda: namespace.write(8, data("f"), fua=True))
    else:
        await failing(lambda: namespace.manage(ZoneInput.FINISH, 0))
    now = seen(namespace, 4)
    assert [pointer for _, pointer in now] == [3, ZONE - 1, 0, 0] and ("FULL", ZONE) not in now
    assert sorted(told) == [0, ZONE, 2 * ZONE]
    assert await read(namespace, 0, 8) == bytes(data("a", 3)) + bytes(5 * BLOCK)
    with pytest.raises(CommandError) as refused:
        namespace.write(8, data("x"))
    assert refused.value.status == Status.ZONE_INVALID_WRITE
    await settled(namespace.flush())
    await write(namespace, 3, "g", 2)
    namespace = await machine.again("power")
    assert [pointer for _, pointer in seen(namespace, 4)] == [3, ZONE - 1, 0, 0]


async def test_a_zone_that_is_written_while_a_sync_fails_is_read_only(machine, broken, monkeypatch):
    namespace, release = machine.namespace, asyncio.Event()
    await write(namespace, 0, "a", 3)
    await settled(namespace.flush())
    await write(namespace, 3, "b", 2)
    real = machine.backend.write

    async def slowly(*arguments, **options):
        await release.wait()
        await settled(real(*arguments, **options))

    monkeypatch.setattr(machine.backend, "write", slowly)
    writing = asyncio.ensure_future(settled(namespace.write(5, data("c"))))
    await asyncio.sleep(0)
    broken(1)
    await failing(namespace.flush)
    with pytest.raises(CommandError) as refused:
        namespace.write(6, data("x"))
    assert refused.value.status == Status.COMMAND_INTERRUPTED
    release.set()
    await writing
    assert seen(namespace, 1)[0][0] == "READ_ONLY"


async def test_a_sync_that_succeeds_behind_one_that_failed_stores_nothing(machine, monkeypatch):
    namespace = machine.namespace
    await write(namespace, 0, "a", 3)
    real, release = machine.backend.flush, asyncio.Event()

    async def slowly():
        await release.wait()
        await settled(real())

    monkeypatch.setattr(machine.backend, "flush", slowly)
    flushing = asyncio.ensure_future(namespace.flush())
    await asyncio.sleep(0)
    machine.backend.sync_failures += 1  # another zone's, at the same time
    release.set()
    await flushing
    assert seen(await machine.again("power"), 1) == [("EMPTY", 0)]


async def test_a_reset_that_is_not_stored_leaves_the_data_on_the_media(machine, broken, monkeypatch):
    namespace = machine.namespace
    await write(namespace, 0, "a", 3)
    await settled(namespace.flush())
    with monkeypatch.context() as patch:
        patch.setattr(namespace.zones.store, "commit_now", lambda records: (_ for _ in ()).throw(OSError(5, "broken")))
        await failing(lambda: namespace.manage(ZoneInput.RESET, 0))
    await write(namespace, 3, "b", 2)
    broken(1)
    await failing(namespace.flush)
    assert seen(namespace, 1)[0][1] == 3


async def test_erased(machine):
    namespace = machine.namespace
    await write(namespace, 0, "a", 8)
    await settled(namespace.mark_uncorrectable(8, 1))
    namespace.zones.degrade(namespace.zones.zones[2], readable=False)
    await settled(namespace.erased())
    assert seen(await machine.again("power"), 3) == [("EMPTY", 0)] * 3
    assert not machine.namespace.unreadable_blocks.some


async def test_blocks_of_another_size(machine):
    namespace = machine.namespace
    await write(namespace, 0, "a", 9)
    assert namespace.fits(4096) and not ZonedNamespace.fits(namespace, 65536)
    machine.backend.set_block_bytes(4096)
    namespace.refresh()
    assert seen(namespace, 1) == [("CLOSED", 2)] and namespace.zones.zone_blocks == 8
    assert namespace.size_blocks == 256 and len(await read(namespace, 0, 2)) == 8192


async def test_a_file_with_zones_is_not_used_without_them(machine):
    with pytest.raises(ConfigurationError, match="holds zones"):
        make_namespace(1, machine.backend, IDENTIFIERS, None)
    plain = make_namespace(1, Ramdisk("1M"), IDENTIFIERS, None)
    assert type(plain) is Namespace
    assert (plain.capacity_blocks, plain.fits(4096)) == (2048, True)


async def test_a_read_only_file(machine):
    await write(machine.namespace, 0, "a", 3)
    await machine.end()
    namespace = await machine.start(read_only=True)
    assert seen(namespace, 1) == [("CLOSED", 3)] and await read(namespace, 0, 3) == bytes(data("a", 3))
    with pytest.raises(CommandError) as error:
        namespace.manage(ZoneInput.RESET, 0)
    assert error.value.status == Status.NAMESPACE_WRITE_PROTECTED
    assert namespace.flush() is None


async def test_a_subsystem_with_a_zoned_file(tmp_path):
    backend = FileBackend(tmp_path / "disk", size="1M")
    await backend.open()
    subsystem = Subsystem(SubsystemConfig(nqn=NQN, namespaces=(NamespaceConfig(backend=backend, zoned=GEOMETRY),)))
    assert isinstance(subsystem.namespaces[1], ZonedNamespace) and subsystem.namespaces[1].csi == 2
    subsystem.resize_namespace(1, 2 << 20)
    assert len(subsystem.namespaces[1].zones) == 64
    await backend.close()
