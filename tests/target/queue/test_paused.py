"""Commands that arrive while the namespaces of their association are being changed."""

from __future__ import annotations

import pytest

from nvmeof.spec.status import Status
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import make_sqe
from tests.target.harness import Target
from tests.target.queue.queue_wire import COMPARE, READ, TRANSPORT, WRITE, Wire, r2ts, sent, statuses
from tests.target.queue.test_fused import FIRST, SECOND, half

BLOCK = 512


class Paused:
    """A target with two namespaces, whose table a test pauses and changes."""

    def __init__(self, **options: object) -> None:
        self.target = Target(Ramdisk("1M"), Ramdisk("1M"))
        self.admin = self.target.admin()
        self.wire = Wire(self.target, **options)  # type: ignore[arg-type]
        self.table = self.wire.queue.ctx.namespaces

    def write(self, cid: int, slba: int, data: bytes, nsid: int = 1) -> bytes:
        sqe = make_sqe(cid, WRITE, nsid=nsid, length=len(data), cdw10=slba, cdw12=len(data) // BLOCK - 1, sgl=0x01)
        return self.wire.capsule(sqe, data)

    def asked_write(self, cid: int, slba: int, size: int, nsid: int = 1) -> bytes:
        sqe = make_sqe(cid, WRITE, nsid=nsid, length=size, sgl=TRANSPORT, cdw10=slba, cdw12=size // BLOCK - 1)
        return self.wire.capsule(sqe)

    def read(self, cid: int, slba: int = 0, nsid: int = 1) -> bytes:
        return self.wire.capsule(make_sqe(cid, READ, nsid=nsid, length=BLOCK, cdw10=slba))

    def memory(self, nsid: int = 1) -> memoryview:
        memory = self.target.subsystem.namespaces[nsid].backend.memory
        assert memory is not None
        return memory

    def apply(self, *nsids: int) -> None:
        everything = self.target.subsystem.namespaces
        self.table.apply(self.table.epoch + 1, {nsid: everything[nsid] for nsid in nsids})

    def resume(self) -> bytes:
        self.table.resume()
        return sent(self.wire.connection)


@pytest.mark.parametrize("learned", [False, True], ids=["general path", "fast path"])
def test_none_begins_and_all_go_on_in_their_order(learned):
    paused = Paused(cattr=0)
    wire = paused.wire
    if learned:
        assert statuses(wire.feed(paused.read(1) + paused.write(2, 0, bytes(BLOCK)))) == [(1, 0), (2, 0)]
    paused.table.pause()
    for cid, value in ((3, b"a"), (4, b"b"), (5, b"c")):
        assert wire.feed(paused.write(cid, 0, value * BLOCK)) == b""
    assert wire.feed(paused.read(6)) == b"" and bytes(paused.memory()[:1]) == b"\0"
    paused.apply(1, 2)
    assert sent(wire.connection) == b"" and bytes(paused.memory()[:1]) == b"\0"
    assert statuses(paused.resume()) == [(3, 0), (4, 0), (5, 0), (6, 0)]
    assert bytes(paused.memory()[:BLOCK]) == b"c" * BLOCK
    assert statuses(wire.feed(paused.write(7, 0, b"d" * BLOCK))) == [(7, 0)] and not wire.queue.held


def test_they_meet_the_table_of_the_new_epoch():
    paused = Paused(cattr=0)
    paused.table.pause()
    assert paused.wire.feed(paused.read(1, nsid=1) + paused.read(2, nsid=2)) == b""
    paused.apply(2)
    assert statuses(paused.resume()) == [(1, Status.INVALID_FIELD), (2, 0)]


@pytest.mark.parametrize("size", [BLOCK, 64 * 1024], ids=["staged", "straight to memory"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("stays", [True, False])
def test_arriving_data_waits_as_well(size, learned, stays):
    paused = Paused(cattr=0)
    wire = paused.wire
    if learned:
        [(_, ttag, _)] = r2ts(wire.feed(paused.asked_write(1, 0, size)))
        assert statuses(wire.feed(wire.h2c(1, ttag, 0, bytes(size)))) == [(1, 0)]
    [(_, ttag, _)] = r2ts(wire.feed(paused.asked_write(2, 0, size)))
    paused.table.pause()
    assert wire.feed(wire.h2c(2, ttag, 0, b"n" * size)) == b""
    assert wire.queue.receiving and not wire.queue.drain(), "it is still in progress"
    assert bytes(paused.memory()[:1]) == b"\0"
    paused.apply(*((1, 2) if stays else (2,)))
    [(cid, status)] = statuses(paused.resume())
    assert cid == 2 and bool(status) is not stays
    assert bytes(paused.memory()[:size]) == (b"n" if stays else b"\0") * size
    assert not wire.queue.transfers and not wire.queue.busy and wire.pool.used_bytes == 0


def test_data_of_an_aborted_command():
    paused = Paused(cattr=0)
    [(_, ttag, _)] = r2ts(paused.wire.feed(paused.asked_write(2, 0, BLOCK)))
    paused.table.pause()
    assert paused.wire.feed(paused.wire.h2c(2, ttag, 0, b"n" * BLOCK)) == b""
    assert paused.admin.command(0x08, cdw10=1 | 2 << 16).dw0 == 1, "not at once"
    assert statuses(paused.resume()) == [(2, Status.ABORTED_BY_REQUEST)]
    assert bytes(paused.memory()[:1]) == b"\0" and paused.wire.pool.used_bytes == 0


def test_a_held_command_is_aborted_at_once():
    paused = Paused(cattr=0)
    paused.table.pause()
    paused.wire.feed(paused.write(3, 0, b"a" * BLOCK))
    assert paused.admin.command(0x08, cdw10=1 | 3 << 16).dw0 == 0
    assert statuses(sent(paused.wire.connection)) == [(3, Status.ABORTED_BY_REQUEST)]
    assert paused.resume() == b"" and bytes(paused.memory()[:1]) == b"\0"


def test_the_halves_of_a_fused_operation():
    paused = Paused(cattr=0)
    wire = paused.wire
    out = wire.feed(half(wire, 1, FIRST, bytes(BLOCK), opcode=COMPARE))
    paused.table.pause()
    out += wire.feed(half(wire, 2, SECOND, b"f" * BLOCK, opcode=WRITE))
    assert out == b""
    assert statuses(paused.resume()) == [(1, 0), (2, 0)] and bytes(paused.memory()[:1]) == b"f"


def test_reads_that_wait_for_memory():
    paused = Paused(cattr=0, pool=BufferPool(1 << 20))
    namespace = paused.target.subsystem.namespaces[1]
    namespace.memory = None  # so that its data takes memory
    wire = paused.wire
    taken = wire.pool.take(1 << 20, wire.queue.share, fits=True)
    assert wire.feed(paused.read(1)) == b"" and wire.queue.staging.reads
    paused.table.pause()
    wire.pool.give(taken)
    assert sent(wire.connection) == b"" and wire.queue.staging.reads
    assert statuses(paused.resume()) == [(1, 0)] and not wire.queue.staging.reads


def test_a_queue_that_has_ended_is_not_woken():
    paused = Paused(cattr=0)
    wire = paused.wire
    [(_, ttag, _)] = r2ts(wire.feed(paused.asked_write(2, 0, BLOCK)))
    paused.table.pause()
    wire.feed(wire.h2c(2, ttag, 0, b"n" * BLOCK) + paused.write(3, 0, b"a" * BLOCK))
    wire.queue.lost("gone")
    assert wire.pool.used_bytes == 0
    paused.table.resume()
    assert bytes(paused.memory()[:1]) == b"\0" and wire.pool.used_bytes == 0


def test_the_admin_queue_goes_on():
    paused = Paused(cattr=0)
    paused.table.pause()
    assert paused.admin.identify(0x00, 1).status == 0
    assert paused.table.paused and paused.admin.log_page(0x02, 512).status == 0
