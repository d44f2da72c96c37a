"""Zoned namespaces in files: many outstanding writes, failures, flushes, kills and losses of power."""

import asyncio
import errno
import os
import shutil
from pathlib import Path

import pytest

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneState
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import ZoneInput
from nvmeof.target.namespaces.zoned import ZonedNamespace, make_namespace
from nvmeof.target.storage import zone_file
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.storage.zone_store import MemoryZoneStore
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.target.backend_tools import settled

NQN = "nqn.2026-01.org.example:disk"
IDENTIFIERS = NamespaceIdentifiers.derive(NQN, 1)
BLOCK = 512
ZONE = 64
GEOMETRY = ZoneGeometry(zone_bytes=ZONE * BLOCK, extension_bytes=64)


def data(letter: str, blocks: int = 1) -> memoryview:
    return memoryview(letter.encode() * BLOCK * blocks)


class Slow(Ramdisk):
    """A backend whose writes and flushes complete when, and as, the test says."""

    def __init__(self) -> None:
        super().__init__("1M")
        self.pending: list[asyncio.Future] = []

    def _later(self):
        future = asyncio.get_running_loop().create_future()
        self.pending.append(future)
        return future

    def write(self, offset, data, *, fua=False):
        assert not fua, "a write pointer needs more than that"

        async def later():
            await self._later()
            Ramdisk.write(self, offset, data)

        return later()


async def start(*operations):
    """Start tasks, and run them as far as they can proceed."""
    tasks = [asyncio.ensure_future(operation) for operation in operations]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def end(backend, number, error=None):
    future = backend.pending[number]
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(OSError(error, os.strerror(error)))
    for _ in range(4):
        await asyncio.sleep(0)


@pytest.fixture
def slow():
    return Slow()


class Told(ZonedNamespace):
    """A namespace that records its reported zones in `told`."""


@pytest.fixture
def zoned(slow):
    made = Told(1, slow, IDENTIFIERS, GEOMETRY)
    made.told = []
    made.zone_changed = made.told.append
    return made


async def read(namespace, slba, nlb):
    lease = await settled(namespace.read(slba, nlb))
    try:
        return bytes(lease.view)
    finally:
        lease.release()


async def test_many_outstanding_writes_of_one_zone(slow, zoned):
    """Each write takes its place when it begins, whichever ends first; data of a write that has not ended is not
    readable.
    """
    first, second = zoned.write(0, data("a")), zoned.write(1, data("b"))
    where, third = zoned.append(0, data("c", 2))
    assert where == 2 and zoned.zones.zones[0].pointer == 4
    with pytest.raises(CommandError) as refused:
        zoned.write(1, data("x"))
    assert refused.value.status == Status.ZONE_INVALID_WRITE
    tasks = await start(first, second, third)
    await end(slow, 2)
    assert tasks[2].done() and not tasks[0].done()
    assert await read(zoned, 2, 4) == bytes(data("c", 2)) + bytes(2 * BLOCK)
    await end(slow, 1)
    await end(slow, 0)
    assert await read(zoned, 0, 4) == bytes(data("a")) + bytes(data("b")) + bytes(data("c", 2))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_failed_writes_with_nothing_behind_them_move_the_pointer_back(slow, zoned, order):
    tasks = await start(zoned.write(0, data("a")), zoned.write(1, data("b")))
    await end(slow, order[0], errno.ENOSPC)
    zone = zoned.zones.zones[0]
    with pytest.raises(CommandError) as refused:
        zoned.append(0, data("x"))
    assert (refused.value.status, refused.value.dnr) == (Status.COMMAND_INTERRUPTED, False)
    await end(slow, order[1], errno.ENOSPC)
    for task in tasks:
        assert task.exception().status == Status.CAPACITY_EXCEEDED
    assert (zone.pointer, zone.written, zone.state) == (0, 0, ZoneState.IMPLICITLY_OPENED)
    assert zoned.told == []
    (task,) = await start(zoned.write(0, data("c")))
    await end(slow, 2)
    assert task.result() is None and await read(zoned, 0, 2) == bytes(data("c")) + bytes(BLOCK)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_gap_before_what_was_written_makes_a_zone_read_only(slow, zoned, order):
    tasks = await start(zoned.write(0, data("a")), zoned.write(1, data("b")))
    for number in order:
        await end(slow, number, errno.EIO if number == 0 else None)
    assert tasks[0].exception().status == Status.WRITE_FAULT and tasks[1].exception() is None
    assert zoned.zones.zones[0].state is ZoneState.READ_ONLY and zoned.told == [0]
    assert await read(zoned, 1, 1) == bytes(data("b"))
    assert zoned.zones.store.load()[0].state is ZoneState.READ_ONLY


async def test_a_write_that_fills_a_zone_and_fails(slow, zoned):
    tasks = await start(zoned.write(ZONE, data("a", ZONE)))
    zone = zoned.zones.zones[1]
    assert zone.state is ZoneState.FULL
    assert zone.record.state is ZoneState.CLOSED, "it is not stored as full yet"
    await end(slow, 0, errno.EIO)
    assert tasks[0].exception() and (zone.state, zone.pointer) == (ZoneState.CLOSED, ZONE) and zoned.told == []


async def test_a_write_that_fills_a_zone_and_fails_when_another_is_active(slow):
    zoned = ZonedNamespace(1, slow, IDENTIFIERS, ZoneGeometry(zone_bytes=ZONE * BLOCK, max_active=1))
    tasks = await start(zoned.write(ZONE, data("a", ZONE)), zoned.write(0, data("b")))
    await end(slow, 0, errno.EIO)
    assert tasks[0].exception() and zoned.zones.zones[1].state is ZoneState.READ_ONLY
    await end(slow, 1)
    assert zoned.zones.active == 1 and tasks[1].exception() is None


async def test_a_write_that_is_cancelled(slow, zoned):
    tasks = await start(zoned.write(0, data("a")))
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert zoned.zones.zones[0].pointer == 0


async def test_a_write_that_fails_at_once(zoned, slow, monkeypatch):
    def broken(*arguments, **options):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(slow, "write", broken)
    for operation in (lambda: zoned.write(0, data("a")), lambda: zoned.append(0, data("a"))):
        with pytest.raises(CommandError) as error:
            operation()
        assert error.value.status == Status.WRITE_FAULT and zoned.zones.zones[0].pointer == 0


async def test_a_reset_while_writes_are_outstanding(slow, zoned):
    tasks = await start(zoned.write(0, data("a")), zoned.write(1, data("b")))
    assert zoned.manage(ZoneInput.RESET, 0) is None
    await end(slow, 0, errno.EIO)
    await end(slow, 1)
    assert tasks[0].exception() and tasks[1].exception() is None
    zone = zoned.zones.zones[0]
    assert (zone.state, zone.pointer, zone.written, zone.in_flight) == (ZoneState.EMPTY, 0, 0, 0)
    assert await read(zoned, 0, 2) == bytes(2 * BLOCK)
    (task,) = await start(zoned.write(0, data("c")))
    await end(slow, 2)
    assert task.result() is None and zone.in_flight == 0


async def test_compare_and_write(zoned, slow):
    """At the write pointer the compare reads zeroes; elsewhere the zone refuses the write."""
    with pytest.raises(CommandError) as refused:
        await settled(zoned.compare_and_write(1, memoryview(bytes(BLOCK)), data("a")))
    assert refused.value.status == Status.ZONE_INVALID_WRITE and isinstance(refused.value.__cause__, OSError)
    assert zoned.compare_and_write(0, data("x"), data("a")) is False
    (task,) = await start(zoned.compare_and_write(0, memoryview(bytes(BLOCK)), data("a")))
    await end(slow, 0)
    assert task.result() is True and await read(zoned, 0, 1) == bytes(data("a"))
    assert await settled(zoned.compare_and_write(0, data("x"), data("a"))) is False
    with pytest.raises(CommandError) as refused:
        await settled(zoned.compare_and_write(0, data("a"), data("b")))
    assert refused.value.status == Status.ZONE_INVALID_WRITE
    plain = ZonedNamespace(1, Ramdisk("1M"), IDENTIFIERS, GEOMETRY)
    assert plain.compare_and_write(0, memoryview(bytes(BLOCK)), data("a")) is True


async def test_read_into(zoned, slow):
    tasks = await start(zoned.write(0, data("a", 2)))
    await end(slow, 0)
    assert tasks[0].result() is None
    for blocks in (1, 2, 4):
        view = memoryview(bytearray(blocks * BLOCK))
        await settled(zoned.read_into(0, view))
        assert bytes(view) == (bytes(data("a", 2)) + bytes(2 * BLOCK))[: blocks * BLOCK]


class Durable(Ramdisk):
    """Memory whose zones are stored; `done` has the operations in their order."""

    def __init__(self) -> None:
        super().__init__("1M")
        self.done: list[str] = []

    def _make_zone_store(self, layout, count):
        backend = self

        class Store(MemoryZoneStore):
            durable = True

            def commit(self, records):
                backend.done.append(f"commit {sorted(records)}")

        return Store(layout, count)

    def write(self, offset, data, *, fua=False):
        self.done.append("write")
        super().write(offset, data)

    def flush(self):
        self.done.append("flush")


@pytest.mark.parametrize(
    ("operation", "done"),
    [
        (lambda n: n.write(0, data("a"), fua=True), ["write", "flush", "commit [0]"]),
        (lambda n: n.write(0, data("a")), ["write"]),
        (lambda n: n.append(0, data("a"), fua=True)[1], ["write", "flush", "commit [0]"]),
        (lambda n: n.manage(ZoneInput.FINISH, 0), ["flush", "commit [0]"]),
        (lambda n: n.manage(ZoneInput.OPEN, 0), []),
        (lambda n: n.set_extension(0, bytes(64)), ["commit [0]"]),
        (lambda n: n.manage(ZoneInput.RESET, ZONE), ["commit [1]"]),
        (lambda n: n.manage(ZoneInput.RESET, 0), []),
        (lambda n: n.manage(ZoneInput.TAKE_OFFLINE, 2 * ZONE), ["commit [2]"]),
        (lambda n: n.erased(), [f"commit {list(range(32))}"]),
    ],
)
async def test_what_is_on_the_media_and_in_which_order(operation, done):
    backend = Durable()
    namespace = ZonedNamespace(1, backend, IDENTIFIERS, GEOMETRY)
    namespace.write(ZONE, data("x"))
    namespace.zones.degrade(namespace.zones.zones[2])
    await settled(namespace.flush())
    assert backend.done == ["write", "flush", "commit [1, 2]"] and not namespace.zones.dirty
    backend.done.clear()
    await settled(operation(namespace))
    assert backend.done == done


# Files


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
async def test_force_unit_access_takes_all_of_a_zone_along(machine, way):
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
