"""A queue without sockets: held commands, staging, endings, and its time of the event loop."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from nvmeof.spec.status import Status
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.core.slices import LONG_SECONDS, Slices
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.pacing import HOLD_BYTES, RUNNING_MOST
from nvmeof.target.queue.staging import READ_AHEAD_BYTES, SPARE_BYTES
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.conformance.rawhost import (
    FLUSH,
    READ,
    RESPONSE,
    TRANSPORT,
    WRITE,
    WRITE_ZEROES,
    io_sqe,
    make_sqe,
)
from tests.protocol.wire import sent, split
from tests.target.backend_tools import Hidden
from tests.target.harness import HOST, Target
from tests.target.queue.queue_wire import (
    OK,
    SIZE,
    Command,
    Wire,
    r2ts,
    statuses,
    two_namespaces,
    wire_of_reads,
    with_admin,
)


def test_held_commands_wait_for_room_in_the_backends():
    wire = wire_of_reads(512 << 10, 64)
    queue, spec = wire.queue, object()
    waiting = len(queue.held)
    assert waiting
    queue.running.update({1000 + number: (1, spec) for number in range(RUNNING_MOST)})
    wire.connection.data_to_send()
    wire.connection.bytes_sent(wire.connection.backlog_bytes)
    queue.resume()
    assert len(queue.held) == waiting
    queue.running.popitem()
    queue.resume()
    assert len(queue.held) < waiting


def test_commands_are_held_while_much_is_to_be_sent():
    """One receive brings many long Reads: the bytes that their answers hold are bounded, and all arrive in order."""
    length, count = 512 << 10, 64
    wire = wire_of_reads(length, count)
    connection, queue = wire.connection, wire.queue
    taken = HOLD_BYTES // length  # with their headers that is a little more
    assert len(queue.held) == count - taken
    assert HOLD_BYTES < connection.backlog_bytes <= HOLD_BYTES + length + 1024
    queue.resume()
    assert len(queue.held) == count - taken, "nothing has gone yet"
    answers = b""
    while connection.want_write:
        answers += b"".join(map(bytes, connection.data_to_send()))[:length]
        connection.bytes_sent(min(length, connection.backlog_bytes))
        queue.resume()
        assert connection.backlog_bytes <= HOLD_BYTES + length + 1024
    assert not queue.held
    responses = [pdu for pdu in split(answers) if pdu[0] == RESPONSE]
    assert [struct.unpack_from("<HH", pdu, 20) for pdu in responses] == [(cid, 0) for cid in range(count)]


def test_an_abort_ends_a_held_command():
    wire = wire_of_reads(512 << 10, 64)
    connection, queue = wire.connection, wire.queue
    held = len(queue.held)
    assert not queue.abort(0), "it is done"
    assert queue.abort(50) and not queue.abort(50)
    assert len(queue.held) == held - 1 and wire.driver.wakes
    answers = b""
    while connection.want_write:
        answers += sent(connection)
        queue.resume()
    fields = dict(struct.unpack_from("<HH", pdu, 20) for pdu in split(answers) if pdu[0] == RESPONSE)
    statuses = {cid: field >> 1 & 0x7FF for cid, field in fields.items()}
    assert statuses == {cid: Status.ABORTED_BY_REQUEST if cid == 50 else 0 for cid in range(64)}


@pytest.mark.parametrize("how", ["lost", "drain"])
def test_held_commands_end_with_their_queue(how):
    wire = wire_of_reads(512 << 10, 64)
    connection, queue = wire.connection, wire.queue
    assert queue.held
    if how == "lost":
        queue.lost("gone")
    else:
        assert queue.drain()
    assert not queue.held
    backlog = connection.backlog_bytes
    queue.resume()
    assert connection.backlog_bytes == backlog


@pytest.mark.parametrize("closed", [False, True])
async def test_a_write_does_not_go_on_in_another_namespace(closed):
    """Data before the replacement of the namespace went to the old one: a success would hide the loss of half of the
    data.
    """
    target = Target(Ramdisk(4 * SIZE))
    target.admin()
    wire = Wire(target)
    size = 72 * 512
    write = [make_sqe(cid, WRITE, nsid=1, length=size, sgl=TRANSPORT, cdw12=71) for cid in range(2)]
    for sqe in write[:1]:  # the template
        [(_, ttag, _)] = r2ts(wire.feed(wire.capsule(sqe)))
        assert statuses(wire.feed(wire.h2c(0, ttag, 0, b"a" * size))) == [(0, 0)]
    [(_, ttag, _)] = r2ts(wire.feed(wire.capsule(write[1])))
    pdu = wire.h2c(1, ttag, 0, b"b" * size)
    half = 24 + size // 2
    assert wire.feed(pdu[:half]) == b""
    subsystem = wire.target.subsystem
    old = subsystem.remove_namespace(1)
    assert bytes(old.backend.memory[:512]) == b"b" * 512, "more than is collected first: it goes straight to memory"
    if closed:
        await old.backend.close()
    added = subsystem.add_namespace(NamespaceConfig(backend=Ramdisk(4 * SIZE), nsid=1))
    assert statuses(wire.feed(pdu[half:])) == [(1, 0x82)]
    assert not any(added.backend.memory)
    assert wire.queue.busy == set() and wire.queue.transfers == {}


@pytest.mark.parametrize("backend", [Ramdisk, Hidden])
@pytest.mark.parametrize("opcode", [WRITE, 0x05])
@pytest.mark.parametrize("length", [4096, 64 << 10])
def test_blocks_of_another_size_while_data_is_in_flight(backend, opcode, length):
    """A format happens in between: the same bytes would be other blocks, and fewer or more of them, than the command
    names.
    """
    wire = Wire(with_admin(backend("1M")))
    subsystem = wire.target.subsystem
    memory = getattr(subsystem.namespaces[1].backend, "ramdisk", subsystem.namespaces[1].backend)
    sizes = [512, 4096]
    for cid, now in enumerate(reversed(sizes)):
        blocks = length // sizes[cid]
        [(_, ttag, asked)] = r2ts(wire.feed(wire.capsule(io_sqe(cid, opcode, 8, blocks, length=length))))
        assert asked == length
        memory.set_block_bytes(now)
        subsystem.attributes_changed(subsystem.namespaces[1])
        assert statuses(wire.feed(wire.h2c(cid, ttag, 0, b"a" * length))) == [(cid, 0x0F)]
        assert not any(memory.memory)
    assert wire.queue.busy == set() and wire.pool.used_bytes == 0


def test_staging_waits_for_memory_and_goes_on_in_order():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    wire = Wire(with_admin(Hidden("1M")), pool=pool)
    held = pool.take(56 << 10)
    out = wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 16 * cid, 16)) for cid in range(4)))
    asked = r2ts(out)
    assert not asked, "64 KiB are taken by the 56"
    assert held is not None
    pool.give(held)
    assert wire.driver.wakes == 1
    asked = r2ts(sent(wire.connection))
    assert [cid for cid, _, _ in asked] == [0, 1, 2, 3]
    wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 0, 16)) for cid in range(4, 8)))
    assert not r2ts(sent(wire.connection)), "half of the pool for one host"
    done = []
    while asked:
        cid, ttag, length = asked.pop(0)
        out = wire.feed(wire.h2c(cid, ttag, 0, bytes([cid]) * length)) + sent(wire.connection)
        done += statuses(out)
        asked += r2ts(out)
    assert done == [(cid, 0) for cid in range(8)]
    assert pool.used_bytes == 0


def test_a_command_that_waits_for_memory_can_be_aborted():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    target = Target(Hidden("1M"))
    admin = target.admin()
    wire = Wire(target, pool=pool)

    def abort(cid: int, sqid: int = 1) -> bool:
        completion = admin.command(0x08, cdw10=sqid | cid << 16)
        assert completion.status == 0
        return completion.dw0 == 0

    held = pool.take(56 << 10)
    lengths = [8, 80, 8, 8]
    assert not wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 0, blocks)) for cid, blocks in enumerate(lengths)))
    assert abort(0) and abort(2)
    assert not abort(0) and not abort(2) and not abort(9) and not abort(1, sqid=2) and not abort(1, sqid=0)
    assert statuses(sent(wire.connection)) == [(0, 0x07), (2, 0x07)]
    assert sorted(wire.queue.busy) == [1, 3]
    assert not wire.feed(wire.capsule(io_sqe(2, WRITE, 0, 1))), "the CID is free again, and its command waits"
    pool.give(held)
    asked = r2ts(sent(wire.connection))
    assert [cid for cid, _, _ in asked] == [1], "64 KiB are all of the pool"
    assert not abort(1), "its host sends data now; it ends when that is there"
    cid, ttag, length = asked[0]
    out = wire.feed(wire.h2c(cid, ttag, 0, bytes(length))) + sent(wire.connection)
    assert statuses(out) == [(1, 0x07)]
    for cid, ttag, length in r2ts(out):
        assert statuses(wire.feed(wire.h2c(cid, ttag, 0, bytes(length)))) == [(cid, OK)]
    assert not wire.queue.busy and pool.used_bytes == 0 and not pool._waiters


def test_a_shorter_command_goes_on_when_the_one_before_it_is_aborted():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    target = Target(Hidden("1M"))
    admin = target.admin()
    wire = Wire(target, pool=pool)
    held = pool.take(32 << 10)
    other = pool.take(16 << 10)
    wire.feed(wire.capsule(io_sqe(0, WRITE, 0, 64)) + wire.capsule(io_sqe(1, WRITE, 0, 16)))
    assert wire.queue.busy == {0, 1}
    assert admin.command(0x08, cdw10=1).dw0 == 0
    out = sent(wire.connection)
    assert statuses(out) == [(0, 0x07)] and [cid for cid, _, _ in r2ts(out)] == [1]
    assert not pool._waiters
    pool.give(held)
    pool.give(other)


@pytest.mark.parametrize("how", ["lost", "closed", "eof", "garbage"])
def test_the_end_of_a_queue_releases_everything(how):
    pool = BufferPool(1 << 20)
    target = with_admin(Hidden("1M"))
    wire = Wire(target, pool=pool)
    wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 0, 64)) for cid in range(12)))
    assert pool.used_bytes == 12 * (32 << 10)
    if how == "lost":
        wire.queue.lost("the cable is out")
    elif how == "closed":
        wire.queue.close("the controller was reset")
    elif how == "eof":
        wire.queue.handle(wire.connection.eof_received(), 0.0)
    else:
        wire.feed(b"\xff" * 8)
    assert pool.used_bytes == 0 and len(wire.driver.ended) == 1
    assert 1 not in next(iter(target.subsystem.controllers.values())).queues
    wire.queue.lost("again")
    assert len(wire.driver.ended) == 1
    held = pool.take(1 << 20)
    assert held is not None
    pool.give(held)  # no command waits
    assert pool.used_bytes == 0


def test_reads_wait_while_much_is_to_be_sent():
    """Data that a host does not receive is not read: at most the read-ahead and one command is held."""
    length, count = 256 << 10, 64
    wire = wire_of_reads(length, count, Hidden, pool=BufferPool(64 << 20))
    connection, queue, pool = wire.connection, wire.queue, wire.pool
    taken = READ_AHEAD_BYTES // length  # with their headers that is a little more
    assert len(queue.staging.reads) == count - taken
    assert taken * length <= pool.used_bytes <= taken * length + SPARE_BYTES + 1024
    queue.resume()
    assert len(queue.staging.reads) == count - taken, "nothing has gone yet"
    answers = b""
    while connection.want_write:
        answers += b"".join(map(bytes, connection.data_to_send()))[:length]
        connection.bytes_sent(min(length, connection.backlog_bytes))
        queue.resume()
        assert connection.backlog_bytes <= READ_AHEAD_BYTES + length + 1024
        assert pool.used_bytes <= READ_AHEAD_BYTES + length + SPARE_BYTES
        queue.staging.settle()
        assert pool.used_bytes <= connection.backlog_bytes
    assert not queue.staging.reads and not queue.busy and pool.used_bytes == 0
    responses = [pdu for pdu in split(answers) if pdu[0] == RESPONSE]
    assert [struct.unpack_from("<HH", pdu, 20) for pdu in responses] == [(cid, 0) for cid in range(count)]


def test_no_more_is_received_while_many_commands_are_held():
    """Each command may hold a copy of its data."""
    wire = wire_of_reads(512 << 10, RUNNING_MOST)
    queue, connection = wire.queue, wire.connection
    assert queue.held and not queue.pacing.crowded
    for cid in range(RUNNING_MOST, 2 * RUNNING_MOST):
        queue.command(memoryview(io_sqe(cid, READ, 0, 1024)), None)
    assert len(queue.held) >= RUNNING_MOST and queue.pacing.crowded
    assert wire.driver.held_back and wire.driver.waiting
    while connection.want_write:
        sent(connection)
        queue.resume()
    assert not queue.held and not queue.pacing.crowded and not wire.driver.held_back


def test_reads_wait_for_memory():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    target = with_admin(Hidden("1M"))
    wire = Wire(target, pool=pool)
    held = pool.take(64 << 10)
    reads = b"".join(wire.capsule(io_sqe(cid, READ, 0, 16)) for cid in range(4))
    assert not wire.feed(reads) and wire.queue.commands() == dict.fromkeys(range(4), 1)
    assert statuses(wire.feed(wire.capsule(io_sqe(3, FLUSH, 0, 1)))) == [(3, Status.COMMAND_ID_CONFLICT)]
    assert statuses(wire.feed(wire.capsule(make_sqe(9, FLUSH, nsid=1)))) == [(9, 0)], "others do not wait"
    assert wire.queue.abort(2) and not wire.queue.abort(2)
    assert statuses(sent(wire.connection)) == [(2, Status.ABORTED_BY_REQUEST)]
    assert held is not None
    pool.give(held)
    assert wire.driver.wakes
    assert statuses(sent(wire.connection)) == [(0, 0), (1, 0), (3, 0)]
    wire.queue.staging.settle()
    assert not wire.queue.busy and pool.used_bytes == 0


@pytest.mark.parametrize("how", ["lost", "drain"])
def test_waiting_reads_end_with_their_queue(how):
    wire = wire_of_reads(512 << 10, 16, Hidden, pool=BufferPool(4 << 20))
    queue, pool = wire.queue, wire.pool
    assert queue.staging.reads
    if how == "lost":
        queue.lost("gone")
        wire.connection.close()  # as the driver does
        queue.staging.settle()
    else:
        assert queue.drain()
        sent(wire.connection)
        queue.staging.settle()
    queue.resume()
    assert not queue.staging.reads and pool.used_bytes == 0 and not pool._waiters


def test_a_command_that_goes_on_after_the_end_is_detached():
    detached_commands = DetachedCommands()
    target = with_admin(Ramdisk("1M"))
    backend = target.subsystem.namespaces[1].backend

    class Gate:
        opened = False

        def __await__(self):
            while not self.opened:
                yield self

    gate = Gate()
    backend.flush = lambda: gate  # type: ignore[method-assign]
    backend.write_zeroes = lambda *_, **options: gate  # type: ignore[method-assign]
    wire = Wire(target, detached_commands=detached_commands)
    assert statuses(wire.feed(wire.capsule(make_sqe(4, FLUSH, nsid=1)))) == []
    assert statuses(wire.feed(wire.capsule(make_sqe(5, WRITE_ZEROES, nsid=1)))) == []
    [(flushing, flushed), (pending, done)] = wire.driver.spawned
    assert wire.queue.pending == 2
    resumed: list[int] = []
    assert not detached_commands.wait(HOST, lambda: resumed.append(1))
    wire.queue.lost("gone")
    assert detached_commands.wait(HOST, lambda: resumed.append(1))
    assert not detached_commands.wait("another host", lambda: resumed.append(2))
    gate.opened = True
    completion = flushing.step()
    assert completion is not None
    flushed(completion)
    assert not resumed, "a Flush changes no data: nothing waits for it"
    completion = pending.step()
    assert completion is not None
    done(completion)
    assert resumed == [1]
    assert not detached_commands.wait(HOST, lambda: resumed.append(3))
    assert not wire.connection.want_write or sent(wire.connection) == b""


def test_drain_begins_nothing_and_ends_begun_commands():
    wire = Wire(with_admin(Ramdisk("1M")))
    [(cid, ttag, length)] = r2ts(wire.feed(wire.capsule(io_sqe(3, WRITE, 0, 8))))
    assert not wire.queue.drain() and wire.queue.receiving
    assert wire.feed(wire.capsule(io_sqe(4, READ, 0, 8)) * 3 + Command(WRITE, 5).bytes(wire)) == b""
    assert statuses(wire.feed(wire.h2c(cid, ttag, 0, bytes(length)))) == [(3, 0)]
    assert wire.queue.drain() and not wire.queue.receiving


# -- the event loop's time


class HandLoop:
    """An event loop whose clock moves with every reading, and whose callbacks the test calls."""

    def __init__(self, step: float) -> None:
        self.time, self.step = 0.0, step
        self.soon: list[Callable[[], None]] = []
        self.slices = Slices(lambda callback: self.soon.append(callback), self.clock)

    def clock(self) -> float:
        self.time += self.step
        return self.time

    def turn(self) -> None:
        callbacks, self.soon = self.soon, []
        for callback in callbacks:
            callback()


def flushes(wire: Wire, cids: range) -> bytes:
    return b"".join(wire.capsule(make_sqe(cid, FLUSH, nsid=1)) for cid in cids)


def answered(out: bytes) -> list[int]:
    return [struct.unpack_from("<H", pdu, 20)[0] for pdu in split(out)]


def test_one_receive_occupies_the_loop_for_a_bounded_time():
    """100 commands take the general path, each for a tenth of a queue's share of a turn."""
    wire = Wire(two_namespaces())
    loop = HandLoop(LONG_SECONDS / 10)
    wire.queue.pacing.slices = loop.slices
    done = [answered(wire.feed(flushes(wire, range(100))))]
    assert 1 < len(done[0]) < 20
    assert len(wire.queue.held) == 100 - len(done[0])
    while loop.soon:
        loop.turn()
        done.append(answered(sent(wire.connection)))
        assert len(done[-1]) < 20
    assert [cid for turn in done for cid in turn] == list(range(100)), "in their order"
    assert wire.driver.wakes, "what comes later is sent"
    assert not wire.queue.held


def test_held_commands_precede_later_ones():
    wire = Wire(two_namespaces())
    loop = HandLoop(LONG_SECONDS / 10)
    wire.queue.pacing.slices = loop.slices
    out = answered(wire.feed(flushes(wire, range(30)))) + answered(wire.feed(flushes(wire, range(30, 40))))
    while loop.soon:
        loop.turn()
        out += answered(sent(wire.connection))
    assert out == list(range(40))


def test_a_queue_that_ends_with_commands_held_goes_on_with_none():
    wire = Wire(two_namespaces())
    loop = HandLoop(LONG_SECONDS / 10)
    wire.queue.pacing.slices = loop.slices
    wire.feed(flushes(wire, range(100)))
    wire.queue.lost("gone")
    while loop.soon:
        loop.turn()
    assert not sent(wire.connection)
    assert not wire.queue.held
