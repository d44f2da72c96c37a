"""Abort and Cancel: commands that end at once, later or not at all; and that an aborted command has no effect."""

from __future__ import annotations

import asyncio
import struct
import threading

import pytest

from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneState
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.operation import Operation
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.conformance.rawhost import FLUSH, IN_CAPSULE, READ, TRANSPORT, WRITE, WRITE_ZEROES, io_sqe, make_sqe, until
from tests.protocol.wire import sent
from tests.target.backend_tools import AsyncDriver, Hidden
from tests.target.harness import HOST, Target, controller_of
from tests.target.queue.queue_wire import Wire, r2ts, statuses

COMPARE, VERIFY, DSM, COPY, CANCEL, ZONE_APPEND = 0x05, 0x0C, 0x09, 0x19, 0x18, 0x7D
OK, ABORTED = 0, 0x07
BLOCK = bytes(512)
SINGLE, MULTIPLE = 0, 1


def connect(target: Target, **options) -> Wire:
    wire = Wire(target, **options)
    wire.driver = wire.queue.driver = AsyncDriver()
    return wire


async def drained(wire: Wire) -> bytes:
    """Return the output until all commands are done."""
    while wire.driver.tasks:
        await asyncio.wait(wire.driver.tasks)
        await asyncio.sleep(0)
    out = sent(wire.connection)
    wire.queue.staging.settle()  # as the driver does
    return out


class Slow(FileBackend):
    """A file whose threads the test can hold."""

    def __init__(self, path, **options):
        super().__init__(path, size="1M", workers=1, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)

    def hold(self) -> Operation[None]:
        """Keep the only thread busy until the gate opens."""
        self.gate.clear()
        operation: Operation[None] = Operation()

        def wait() -> None:
            self.begun.release()
            assert self.gate.wait(10)

        self._open_threads().run(wait, operation)
        return operation

    async def held(self) -> Operation[None]:
        operation = self.hold()
        await asyncio.to_thread(self.begun.acquire)
        return operation


@pytest.fixture
async def slow(tmp_path):
    backend = Slow(tmp_path / "disk")
    await backend.open()
    backend._write_nowait = backend._read_nowait = False
    yield backend
    backend.gate.set()
    await backend.close()


def one(opcode: int) -> tuple[bytes, bytes]:
    """Return a command with its data in the capsule."""
    moves = opcode in (WRITE, COMPARE)
    if opcode in (FLUSH, DSM):
        return make_sqe(7, opcode, nsid=1), b""
    sqe = io_sqe(7, opcode, 8, 1, sgl=IN_CAPSULE if moves else TRANSPORT, length=512 if moves or opcode == READ else 0)
    return sqe, (b"x" * 512 if opcode == WRITE else BLOCK) if moves else b""


@pytest.mark.parametrize("opcode", [READ, WRITE, COMPARE, VERIFY, WRITE_ZEROES, FLUSH])
@pytest.mark.parametrize("how", ["abort", "cancel", "cancel all"])
async def test_abort_of_a_command_that_no_thread_has_begun(slow, opcode, how):
    """In the threads' queue, or waiting for a range that another operation has locked."""
    target = Target(slow)
    admin = target.admin()
    wire = connect(target)
    holder = await slow.held()
    assert not wire.feed(wire.capsule(*one(opcode)))
    await asyncio.sleep(0)
    assert wire.queue.commands() == {7: 1}
    if how == "abort":
        assert admin.command(0x08, cdw10=1 | 7 << 16).dw0 == 0
        assert admin.command(0x08, cdw10=1 | 7 << 16).dw0 == 1, "it has ended"
        out = b""
    else:
        multiple = how == "cancel all"
        cid = 0xFFFF if multiple else 7
        out = wire.feed(wire.capsule(make_sqe(9, CANCEL, nsid=1, cdw10=1 | cid << 16, cdw11=multiple)))
        assert struct.unpack_from("<I", out, 8)[0] == 1
    out += await drained(wire)
    assert (7, ABORTED) in statuses(out)
    slow.gate.set()
    await holder
    await slow._open_threads().submit(lambda: None)
    lease = await slow.acquire_read(0, 8192)
    assert not any(lease.view), "nothing of it was done"
    lease.release()
    assert not len(slow._ranges) and slow._pool.used_bytes == 0 and wire.pool.used_bytes == 0
    assert not wire.queue.busy and not wire.queue.ctx.waiting and not wire.queue.ctx.aborting


async def test_a_command_received_with_the_end_of_its_queue_is_not_begun(slow):
    """The task of the command has not even started when the queue ends."""
    target = Target(slow)
    target.admin()
    wire = connect(target)
    holder = await slow.held()
    assert not wire.feed(wire.capsule(*one(WRITE)))
    wire.queue.lost("gone")
    assert not wire.queue.ctx.waiting
    await drained(wire)
    assert not wire.queue.detached_commands.wait(HOST, lambda: None)
    slow.gate.set()
    await holder
    await slow._open_threads().submit(lambda: None)
    lease = await slow.acquire_read(0, 8192)
    assert not any(lease.view), "nothing of it was done"
    lease.release()


async def test_abort_of_a_command_that_waits_for_a_locked_range(slow):
    target = Target(slow)
    admin = target.admin()
    wire = connect(target)
    lock = slow._ranges.acquire(0, 8192, exclusive=True)
    wire.feed(wire.capsule(*one(WRITE)))
    wire.feed(wire.capsule(io_sqe(8, READ, 8, 1)))
    await asyncio.sleep(0)
    assert admin.command(0x08, cdw10=1 | 7 << 16).dw0 == 0
    assert statuses(await asyncio.wait_for(_until(wire, 1), 20)) == [(7, ABORTED)]
    slow._ranges.release(lock)
    out = await drained(wire)
    assert not statuses(out)[0][1] if statuses(out) else out
    assert not len(slow._ranges)


async def _until(wire: Wire, count: int) -> bytes:
    out = b""
    while len(statuses(out)) < count:
        await asyncio.sleep(0.001)
        out += sent(wire.connection)
    return out


async def test_a_command_that_a_thread_has_begun_completes(slow, monkeypatch):
    """A single system call is executed, and the status reports it, despite the Abort."""
    target = Target(slow)
    admin = target.admin()
    wire = connect(target)
    begun, go_on = threading.Event(), threading.Event()
    write = slow._write_fully

    def slowly(*args):
        begun.set()
        assert go_on.wait(10)
        write(*args)

    monkeypatch.setattr(slow, "_write_fully", slowly)
    wire.feed(wire.capsule(*one(WRITE)))
    assert await asyncio.to_thread(begun.wait, 10)
    assert admin.command(0x08, cdw10=1 | 7 << 16).dw0 == 1
    go_on.set()
    assert statuses(await drained(wire)) == [(7, OK)]
    assert not wire.queue.ctx.aborting


@pytest.mark.parametrize("opcode", [VERIFY, COMPARE, WRITE_ZEROES, COPY])
async def test_a_command_done_in_pieces_stops_between_two(slow, monkeypatch, opcode):
    target = Target(slow)
    admin = target.admin()
    wire = connect(target, pool=BufferPool(4 << 20))
    begun, go_on = threading.Event(), threading.Event()
    pieces = []
    name = "_write_fully" if opcode == WRITE_ZEROES else "_read_fully"
    work = getattr(slow, name)

    def slowly(*args):
        pieces.append(args)
        begun.set()
        assert go_on.wait(10)
        work(*args)

    monkeypatch.setattr(slow, name, slowly)
    if opcode == WRITE_ZEROES:
        monkeypatch.setattr(slow, "_zero_range", False)
        monkeypatch.setattr("nvmeof.target.storage.file_calls._ZEROES", bytes(4096))
    else:
        monkeypatch.setattr("nvmeof.target.storage.file_calls._PIECE_BYTES", 4096)
    if opcode == COPY:
        data = struct.pack("<8xQH14x", 0, 1023)
        sqe = make_sqe(7, COPY, nsid=1, length=32, sgl=IN_CAPSULE, cdw10=1024)
        wire.feed(wire.capsule(sqe, data))
    elif opcode == COMPARE:
        [(cid, ttag, length)] = r2ts(wire.feed(wire.capsule(io_sqe(7, COMPARE, 0, 1024))))
        wire.feed(wire.h2c(cid, ttag, 0, bytes(length)))
    else:
        wire.feed(wire.capsule(io_sqe(7, opcode, 0, 1024, length=0)))
    assert await asyncio.to_thread(begun.wait, 10)
    assert admin.command(0x08, cdw10=1 | 7 << 16).dw0 == 1, "not yet"
    go_on.set()
    assert statuses(await drained(wire)) == [(7, ABORTED)]
    assert len(pieces) == 1


async def test_copy_stops_between_ranges():
    class Stepwise(Hidden):
        """A backend that copies when the test says so."""

        def __init__(self, size):
            super().__init__(size)
            self.steps = []

        def copy(self, source, destination, length, *, fua=False):
            future = asyncio.get_running_loop().create_future()
            self.steps.append(future)
            return future

    backend = Stepwise("1M")
    target = Target(backend)
    target.admin()
    wire = connect(target)
    data = b"".join(struct.pack("<8xQH14x", start, 99) for start in (0, 100, 200))
    wire.feed(wire.capsule(make_sqe(7, COPY, nsid=1, length=96, sgl=IN_CAPSULE, cdw10=1000, cdw12=2), data))
    await asyncio.sleep(0)
    backend.steps[0].set_result(None)
    await until(lambda: len(backend.steps) == 2)
    out = wire.feed(wire.capsule(make_sqe(9, CANCEL, nsid=1, cdw10=1 | 7 << 16)))
    assert statuses(out) == [(9, OK)] and struct.unpack_from("<I", out, 8)[0] == 1 << 16, "one is eligible"
    backend.steps[1].set_result(None)
    out = await drained(wire)
    assert statuses(out) == [(7, ABORTED)] and struct.unpack_from("<I", out, 8)[0] == 2, "DW0: two were copied"
    assert len(backend.steps) == 2 and not wire.queue.ctx.aborting


def test_a_write_whose_data_was_asked_for_ends_when_the_data_arrives():
    target = Target(Hidden("64K"))
    admin = target.admin()
    wire = Wire(target)
    [(cid, ttag, length)] = r2ts(wire.feed(wire.capsule(io_sqe(7, WRITE, 0, 64))))
    assert admin.command(0x08, cdw10=1 | 7 << 16).dw0 == 1
    out = wire.feed(wire.h2c(cid, ttag, 0, b"x" * length))
    assert statuses(out) == [(7, ABORTED)]
    assert not any(bytes(target.subsystem.namespaces[1].backend.ramdisk.memory))
    assert not wire.queue.busy and not wire.queue.ctx.aborting and wire.pool.used_bytes == 0


def test_an_aborted_cid_can_be_used_again():
    pool = BufferPool(16 << 10)
    target = Target(Hidden("64K"))
    admin = target.admin()
    wire = Wire(target, pool=pool)
    held = pool.take(12 << 10)
    assert not wire.feed(wire.capsule(io_sqe(7, WRITE, 0, 16)))
    assert admin.command(0x08, cdw10=1 | 7 << 16).dw0 == 0
    assert statuses(sent(wire.connection)) == [(7, ABORTED)]
    pool.give(held)
    [(cid, ttag, length)] = r2ts(wire.feed(wire.capsule(io_sqe(7, WRITE, 0, 8))))
    assert statuses(wire.feed(wire.h2c(cid, ttag, 0, b"x" * length))) == [(7, OK)]


@pytest.mark.parametrize(("which", "expected"), [(1, {1: ABORTED, 2: 0x09}), (2, {1: 0x09, 2: ABORTED})])
async def test_fused_halves_that_a_thread_has_not_begun(slow, which, expected):
    target = Target(slow)
    admin = target.admin()
    wire = connect(target)
    holder = await slow.held()
    wire.feed(wire.capsule(io_sqe(1, COMPARE, 0, 1, sgl=IN_CAPSULE, flags=0x41), BLOCK))
    wire.feed(wire.capsule(io_sqe(2, WRITE, 0, 1, sgl=IN_CAPSULE, flags=0x42), b"x" * 512))
    await until(lambda: 1 in wire.queue.ctx.waiting)
    assert wire.queue.commands() == {1: 1, 2: 1}
    assert admin.command(0x08, cdw10=1 | which << 16).dw0 == 0
    assert dict(statuses(await drained(wire))) == expected
    slow.gate.set()
    await holder
    lease = await slow.acquire_read(0, 512)
    assert not any(lease.view)
    lease.release()
    assert wire.pool.used_bytes == 0


@pytest.mark.parametrize("opcode", [WRITE, WRITE_ZEROES, ZONE_APPEND, COPY])
@pytest.mark.parametrize("how", ["abort", "cancel all", "preempted"])
async def test_a_write_that_has_its_place_in_a_zone(slow, opcode, how):
    """The write is not aborted: a gap before later writes would make the zone read only."""
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=slow, zoned=ZoneGeometry(zone_bytes=64 << 10)))
    admin = target.admin()
    wire = connect(target)
    zone = target.subsystem.namespaces[2].zones.zones[0]
    holder = await slow.held()
    data = b"x" * 512
    if opcode == COPY:
        sqe = make_sqe(7, COPY, nsid=2, length=32, sgl=IN_CAPSULE, cdw10=0)
        wire.feed(wire.capsule(sqe, struct.pack("<8xQH14x", 128, 64)))
    else:
        blocks, moved = (65, b"") if opcode == WRITE_ZEROES else (1, data)
        sgl = IN_CAPSULE if moved else TRANSPORT
        wire.feed(wire.capsule(io_sqe(7, opcode, 0, blocks, nsid=2, sgl=sgl, length=len(moved)), moved))
    await until(lambda: zone.in_flight == 1)
    if how == "abort":
        assert admin.command(0x08, cdw10=1 | 7 << 16).dw0 == 1
    elif how == "cancel all":
        wire.feed(wire.capsule(make_sqe(9, CANCEL, nsid=2, cdw10=1 | 0xFFFF << 16, cdw11=1)))
    else:
        next(iter(target.subsystem.controllers.values())).abort_namespace(2)
    wire.feed(wire.capsule(io_sqe(8, WRITE, zone.pointer, 1, nsid=2, sgl=IN_CAPSULE), data))
    slow.gate.set()
    await holder
    assert dict(statuses(await drained(wire))) == {7: OK, 8: OK}
    assert zone.state is ZoneState.IMPLICITLY_OPENED and zone.written == zone.pointer
    assert not wire.queue.ctx.aborting and not wire.queue.ctx.preempted


# Cancel


def make_queue() -> Wire:
    """Return a queue whose commands 1 and 2 for namespace 1 and 3 for namespace 2 wait for memory."""
    pool = BufferPool(16 << 10)
    target = Target(Hidden("64K"), Hidden("64K"))
    target.admin()
    wire = Wire(target, pool=pool)
    wire.held = pool.take(16 << 10)
    for cid, nsid in ((1, 1), (2, 1), (3, 2)):
        assert not wire.feed(wire.capsule(io_sqe(cid, WRITE, 0, 16, nsid=nsid)))
    return wire


@pytest.mark.parametrize(
    ("nsid", "cid", "action", "status", "location", "ended"),
    [
        (1, 1, SINGLE, OK, None, [1]),
        (0xFFFFFFFF, 3, SINGLE, OK, None, [3]),
        (1, 4, SINGLE, OK, None, []),
        (2, 1, SINGLE, Status.INVALID_FIELD, 4, []),
        (1, 3, SINGLE, Status.INVALID_FIELD, 4, []),
        (1, 9, SINGLE, Status.INVALID_COMMAND_ID, 42, []),
        (1, 0xFFFF, MULTIPLE, OK, None, [1, 2]),
        (2, 0xFFFF, MULTIPLE, OK, None, [3]),
        (0xFFFFFFFF, 0xFFFF, MULTIPLE, OK, None, [1, 2, 3]),
        (1, 1, MULTIPLE, Status.INVALID_FIELD, 42, []),
        (1, 1, 2, Status.INVALID_FIELD, 44, []),
        (1, 1, 3, Status.INVALID_FIELD, 44, []),
        (3, 1, SINGLE, Status.INVALID_FIELD, 4, []),
        (1025, 1, SINGLE, Status.INVALID_NAMESPACE, 4, []),
        (0, 1, SINGLE, Status.INVALID_NAMESPACE, 4, []),
    ],
)
def test_cancel(nsid, cid, action, status, location, ended):
    wire = make_queue()
    out = wire.feed(wire.capsule(make_sqe(9, CANCEL, nsid=nsid, cdw10=1 | cid << 16, cdw11=action)))
    found = statuses(out)
    assert sorted(found) == sorted([*((each, ABORTED) for each in ended), (9, status)])
    if location is None:
        at = next(index for index, each in enumerate(found) if each[0] == 9) * 24
        assert struct.unpack_from("<I", out, at + 8)[0] == len(ended)
    else:
        assert controller_of(wire.queue.ctx).error_log.newest()[0].error_location == location
    wire.pool.give(wire.held)
    left = {cid for cid, _, _ in r2ts(sent(wire.connection))}
    assert left <= {1, 2, 3} - set(ended)


def test_cancel_is_for_its_own_queue():
    wire = make_queue()
    for sqid in (0, 2, 0xFFFF):
        out = wire.feed(wire.capsule(make_sqe(9, CANCEL, nsid=1, cdw10=sqid | 1 << 16)))
        assert statuses(out) == [(9, Status.INVALID_FIELD)]
        assert controller_of(wire.queue.ctx).error_log.newest()[0].error_location == 40


def test_cancel_of_fused_halves():
    target = Target(Ramdisk("64K"))
    target.admin()
    wire = Wire(target)
    wire.feed(wire.capsule(io_sqe(1, COMPARE, 0, 1, flags=0x41)))
    out = wire.feed(wire.capsule(io_sqe(2, WRITE, 0, 1, sgl=IN_CAPSULE, flags=0x42), b"x" * 512))
    asked = r2ts(out)
    out = wire.feed(wire.capsule(make_sqe(9, CANCEL, nsid=1, cdw10=1 | 0xFFFF << 16, cdw11=1)))
    assert statuses(out) == [(2, ABORTED), (9, OK)]
    assert struct.unpack_from("<I", out, 24 + 8)[0] == 1 << 16 | 1
    [(cid, ttag, length)] = asked
    assert statuses(wire.feed(wire.h2c(cid, ttag, 0, bytes(length)))) == [(1, ABORTED)]
    assert not wire.queue.fused.pairs and wire.pool.used_bytes == 0
