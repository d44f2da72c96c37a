"""The effect of Preempt and Abort on the commands of a queue."""

import pytest

from nvmeof.spec.reservations import pack_keys
from nvmeof.spec.status import Status
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.storage.base import Lease
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import IN_CAPSULE, READ, WRITE, io_sqe, make_sqe
from tests.protocol.wire import sent
from tests.target.backend_tools import Hidden
from tests.target.harness import HOSTID, Pending, Target
from tests.target.queue.queue_wire import Wire, r2ts, statuses, with_admin
from tests.target.reservation_hosts import ACQUIRE, REGISTER, Host
from tests.target.reservation_model import EA, WE

OTHER = 3


def reserved(*backends, pool: BufferPool | None = None) -> tuple[Target, Wire, Host]:
    """Return a queue of the host that holds the reservation, and another registrant."""
    target = with_admin(*backends)
    wire = Wire(target, pool=pool or BufferPool(64 << 10, reserve_bytes=0))
    for cid, opcode, keys, cdw10 in ((90, REGISTER, pack_keys(0, 5), 0), (91, ACQUIRE, pack_keys(5, 0), EA << 8)):
        sqe = make_sqe(cid, opcode, nsid=1, length=16, sgl=IN_CAPSULE, cdw10=cdw10)
        assert statuses(wire.feed(wire.capsule(sqe, keys))) == [(cid, 0)]
    host = Host(target, OTHER)
    assert host.hostid != HOSTID
    assert host.register(7).status == 0
    return target, wire, host


def preempt(host: Host, *, abort: bool = True):
    return host.start(ACQUIRE, pack_keys(7, 5), (2 if abort else 1) | EA << 8)


def test_commands_that_wait_for_memory_are_aborted():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    target, wire, host = reserved(Hidden("1M"), Hidden("1M"), pool=pool)
    held = pool.take(56 << 10)
    for cid, nsid in ((0, 1), (1, 2), (2, 1)):
        assert not wire.feed(wire.capsule(make_sqe(cid, WRITE, nsid=nsid, length=4096, cdw12=7)))
    assert preempt(host).status == 0
    assert statuses(sent(wire.connection)) == [(0, Status.ABORTED_PREEMPT), (2, Status.ABORTED_PREEMPT)]
    log = target.subsystem.controllers[1].error_log
    assert [entry.status_field >> 1 & 0x7FF for entry in log.newest()][:2] == [Status.ABORTED_PREEMPT] * 2
    assert not wire.queue.ctx.preempted
    pool.give(held)
    assert [cid for cid, _, _ in r2ts(sent(wire.connection))] == [1]


@pytest.mark.parametrize("backend", [Ramdisk, Hidden])
def test_data_in_flight_is_not_written(backend):
    target, wire, host = reserved(backend("1M"))
    before = bytes(target.subsystem.namespaces[1].backend.acquire_read(0, 8192).view)
    out = wire.feed(wire.capsule(io_sqe(0, WRITE, 0, 8)) + wire.capsule(io_sqe(1, WRITE, 8, 8)))
    asked = r2ts(out)
    assert len(asked) == 2
    assert preempt(host).status == 0
    for cid, ttag, length in asked:
        answer = statuses(wire.feed(wire.h2c(cid, ttag, 0, b"\xaa" * length)))
        assert answer in ([(cid, Status.ABORTED_PREEMPT)], [(cid, Status.RESERVATION_CONFLICT)])
    assert bytes(target.subsystem.namespaces[1].backend.acquire_read(0, 8192).view) == before
    assert not wire.queue.ctx.preempted


def test_without_abort_the_reservation_refuses():
    _, wire, host = reserved(Hidden("1M"))
    asked = r2ts(wire.feed(wire.capsule(io_sqe(0, WRITE, 0, 8))))
    assert preempt(host, abort=False).status == 0
    (cid, ttag, length) = asked[0]
    assert statuses(wire.feed(wire.h2c(cid, ttag, 0, bytes(length)))) == [(0, Status.RESERVATION_CONFLICT)]


class Slow(Hidden):
    """A backend whose reads complete when the test says so."""

    gate = False

    def acquire_read(self, offset: int, length: int):
        return self._later(super().acquire_read(offset, length))

    async def _later(self, lease: Lease) -> Lease:
        backend = self

        class Opened:
            def __await__(self):
                while not backend.gate:
                    yield

        await Opened()
        return lease


@pytest.mark.parametrize("lost", [False, True])
def test_commands_in_progress_are_waited_for(lost):
    """Also commands whose connection has ended."""
    backend = Slow("1M")
    _, wire, host = reserved(backend)
    wire.feed(wire.capsule(io_sqe(0, READ, 0, 8)))
    ((read, done),) = wire.driver.spawned
    if lost:
        wire.queue.lost("the cable is out")
    command = preempt(host)
    assert isinstance(command, Pending)
    assert command.step() is None
    backend.gate = True
    done(read.step())
    completion = command.step()
    assert completion is not None
    assert completion.status == 0


@pytest.mark.parametrize("rtype", [WE, EA])
def test_the_fast_path_ends_with_the_reservation(rtype):
    """Reads and writes admitted by a token are checked again, and then admitted by a token again."""
    target = with_admin(Ramdisk("1M"))
    wire = Wire(target)
    host = Host(target, OTHER)

    def both(start: int) -> list[int]:
        commands = [io_sqe(cid, READ, 0, 8) for cid in range(start, start + 3)]
        out = statuses(wire.feed(b"".join(wire.capsule(sqe) for sqe in commands)))
        write = make_sqe(start + 3, WRITE, nsid=1, length=512, sgl=IN_CAPSULE)
        out += statuses(wire.feed(b"".join(wire.capsule(write, bytes(512)) for _ in range(1))))
        return [status for _, status in out]

    assert not any(both(0)) and not any(both(4))
    assert host.register(7).status == host.acquire(rtype, 7).status == 0
    conflict = Status.RESERVATION_CONFLICT
    assert [status for status in both(8) if status] == ([conflict] if rtype == WE else [conflict] * 4)
    assert host.release(rtype, 7).status == 0
    assert not any(both(12)) and not any(both(16))
