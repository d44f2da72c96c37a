"""Zoned namespaces: many outstanding writes, their failures, and the order of data and zones on the media."""

import asyncio
import errno
import os

import pytest

from nvmeof.errors import CommandError
from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneState
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import ZoneInput
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.storage.zone_store import MemoryZoneStore
from tests.target.backend_tools import settled
from tests.target.namespaces.zoned_tools import BLOCK, GEOMETRY, IDENTIFIERS, ZONE, data, read


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
async def test_a_gap_before_written_data_makes_a_zone_read_only(slow, zoned, order):
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
async def test_the_order_of_data_and_zones_on_the_media(operation, done):
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
