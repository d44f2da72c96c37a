"""Compare and Write: every arrangement of the halves, their data and their faults, and of commands between them."""

from __future__ import annotations

import asyncio
import struct

import pytest

from nvmeof.spec.enums import AnaState
from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.target.core.pool import BufferPool, MemoryShare
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.storage.base import SourceError
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.conformance.rawhost import C2H, IN_CAPSULE, READ, TRANSPORT, WRITE, crc, io_sqe, make_sqe
from tests.protocol.wire import sent, split
from tests.target.backend_tools import AsyncDriver, Hidden
from tests.target.harness import Target, controller_of
from tests.target.queue.queue_wire import Wire, r2ts, statuses

COMPARE, FLUSH = 0x05, 0x00
FIRST, SECOND = 0x41, 0x42
OK, FIELD, TRANSPORT_ERROR, RANGE, PROTECTED, NAMESPACE = 0, 0x02, 0x22, 0x80, 0x20, 0x0B
ABORTED, FAILED, MISSING, DIFFERS, UNREADABLE, WRITE_FAULT = 0x07, 0x09, 0x0A, 0x285, 0x281, 0x280
A, B, C = (bytes([value]) * 512 for value in b"abc")


def half(wire, cid, flags, data=b"", *, opcode=None, slba=0, nsid=1, asked=False, **fields):
    """Return one half; `asked`: its data is sent after an R2T."""
    opcode = opcode if opcode is not None else COMPARE if flags == FIRST else WRITE
    blocks = len(data) // 512
    sgl = TRANSPORT if asked else IN_CAPSULE
    sqe = io_sqe(cid, opcode, slba, blocks, nsid=nsid, flags=flags, sgl=sgl, **fields)
    return wire.capsule(sqe, b"" if asked else data)


def make(backend=None, **options) -> Wire:
    target = Target(backend or Ramdisk("64K"), Ramdisk("64K"))
    target.admin()
    return Wire(target, **options)


def content(wire, slba=0, blocks=1, nsid=1):
    out = wire.feed(wire.capsule(io_sqe(99, READ, slba, blocks, nsid=nsid)))
    [data] = [pdu[24:] for pdu in split(out) if pdu[0] == C2H]
    return data


def give(wire, out, values):
    """Send the data that R2Ts in `out` ask for."""
    return b"".join(wire.feed(wire.h2c(cid, ttag, 0, values[cid][:length])) for cid, ttag, length in r2ts(out))


@pytest.mark.parametrize("asked", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("backend", [Ramdisk, Hidden])
@pytest.mark.parametrize("size", [1 << 30, 50])
def test_both_halves_are_executed_as_one(backend, asked, size):
    wire = make(backend("64K"))
    for cid, (compare, data, expected) in enumerate(
        [(bytes(512), A, [OK, OK]), (B, C, [DIFFERS, FAILED]), (A * 1, B, [OK, OK])]
    ):
        cids = (2 * cid, 2 * cid + 1)
        out = wire.feed(half(wire, cids[0], FIRST, compare, asked=asked[0]), size)
        assert not out, "the first waits for the second"
        out = wire.feed(half(wire, cids[1], SECOND, data, asked=asked[1]), size)
        assert len(r2ts(out)) == sum(asked)
        out += give(wire, out, {cids[0]: compare, cids[1]: data})
        assert statuses(out) == list(zip(cids, expected, strict=True))
        assert content(wire) == (data if expected[0] == OK else A)
    assert not wire.queue.busy and not wire.queue.fused.pairs and wire.pool.used_bytes == 0
    counters = wire.target.subsystem.namespaces[1].counters
    assert (counters.writes, counters.blocks_written) == (2, 2)


def test_the_answers_come_in_any_order_of_the_data():
    wire = make()
    out = wire.feed(half(wire, 1, FIRST, bytes(1024), asked=True) + half(wire, 2, SECOND, A + B, asked=True))
    asked = {cid: (ttag, length) for cid, ttag, length in r2ts(out)}
    assert not statuses(wire.feed(wire.h2c(2, asked[2][0], 0, A + B))) and content(wire, 0, 2) == bytes(1024)
    other = wire.feed(wire.capsule(io_sqe(3, WRITE, 1, 1, sgl=IN_CAPSULE), C))
    assert statuses(other) == [(3, OK)], "what comes before the comparison is seen by it"
    assert statuses(wire.feed(wire.h2c(1, asked[1][0], 0, bytes(1024)))) == [(1, DIFFERS), (2, FAILED)]
    assert content(wire, 0, 2) == bytes(512) + C


NEIGHBOURS = [(READ, 0x40), (WRITE, 0x40), (FLUSH, 0x40), (COMPARE, 0x40), (COMPARE, FIRST)]


@pytest.mark.parametrize(("opcode", "flags"), NEIGHBOURS)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_a_first_half_without_its_second(opcode, flags, together, warm):
    """The next command, on the fast path or not, is no second half; the Write that follows has no first."""
    wire = make()
    if warm:  # the fast path has templates of these commands
        for _ in range(2):
            wire.feed(wire.capsule(io_sqe(50, READ, 0, 1)))
            wire.feed(wire.capsule(io_sqe(51, WRITE, 0, 1, sgl=IN_CAPSULE), bytes(512)))
    sqe = {FLUSH: make_sqe(2, FLUSH, nsid=1)}.get(opcode)
    if sqe is None:
        moved = TRANSPORT if opcode == READ else IN_CAPSULE
        sqe = io_sqe(2, opcode, 0, 1, sgl=moved, flags=flags)
    between = wire.capsule(sqe, b"" if opcode in (READ, FLUSH) else bytes(512))
    parts = [half(wire, 1, FIRST, bytes(512)), between, half(wire, 3, SECOND, A)]
    out = wire.feed(b"".join(parts)) if together else b"".join(wire.feed(part) for part in parts)
    found = dict(statuses(out))
    assert found.pop(1) == MISSING
    if flags == FIRST:
        assert found == {2: OK, 3: OK}
    else:
        assert found.pop(3) == MISSING
        assert not any(found.values())
        assert content(wire) == bytes(512)
    assert not wire.queue.busy and wire.pool.used_bytes == 0


def test_a_second_half_without_its_first():
    wire = make()
    for asked in (False, True):
        assert statuses(wire.feed(half(wire, 1, SECOND, A, asked=asked))) == [(1, MISSING)]
    assert content(wire) == bytes(512)


@pytest.mark.parametrize(
    ("first", "second", "location"),
    [
        ({"nsid": 1}, {"nsid": 2}, 4),
        ({"slba": 1}, {"slba": 2}, 40),
        ({"data": A}, {"data": A + B}, 48),
        ({"slba": 126, "data": A}, {"slba": 128, "data": A}, 40),
    ],
)
def test_halves_of_different_ranges(first, second, location):
    wire = make()
    sent_first = half(wire, 1, FIRST, **{"data": bytes(512), **first})
    out = wire.feed(sent_first + half(wire, 2, SECOND, **{"data": A, **second}))
    assert statuses(out) == [(1, FIELD), (2, FIELD)]
    log = controller_of(wire.queue.ctx).error_log.newest()
    assert [entry.error_location for entry in log[:2]] == [location] * 2
    assert wire.pool.used_bytes == 0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({}, {"opcode": COMPARE}, [FIELD, FIELD]),
        ({}, {"opcode": READ, "asked": True}, [FIELD, FIELD]),
        ({}, {"opcode": FLUSH, "length": 0, "sgl": TRANSPORT, "asked": True}, [FIELD, FIELD]),
        ({"opcode": WRITE}, {}, [FIELD, FAILED]),
        ({"opcode": READ, "asked": True}, {}, [FIELD, FAILED]),
        ({"opcode": 0x7E}, {}, [0x01, FAILED]),
        ({"nsid": 9}, {"nsid": 9}, [FIELD, FAILED]),
        ({"nsid": 0}, {"nsid": 0}, [NAMESPACE, FAILED]),
        ({"slba": 200}, {"slba": 200}, [RANGE, FAILED]),
        ({"length": 513}, {}, [0x0F, FAILED]),
        ({}, {"length": 513}, [OK, 0x0F]),
        ({"data": B}, {"length": 513}, [DIFFERS, FAILED]),
        ({"data": B, "asked": True}, {"length": 513}, [DIFFERS, FAILED]),
        ({}, {"cdw12": 1 << 20}, [OK, FIELD]),
        ({"nsid": 3}, {"nsid": 3}, [OK, PROTECTED]),
    ],
)
def test_errors_of_one_half(first, second, expected):
    wire = make()
    wire.target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("64K"), read_only=True, nsid=3))
    out = b""
    parts = []
    for cid, flags, fields in ((1, FIRST, first), (2, SECOND, second)):
        fields = {"data": bytes(512) if cid == 1 else A, **fields}
        sgl = fields.pop("sgl", None)
        if sgl is not None:
            fields.pop("asked")
            parts.append(wire.capsule(make_sqe(cid, fields["opcode"], nsid=1, flags=flags)))
            continue
        parts.append(half(wire, cid, flags, **fields))
    out = wire.feed(b"".join(parts))
    out += give(wire, out, {1: first.get("data", b"")})
    assert statuses(out) == list(zip((1, 2), expected, strict=True))
    assert content(wire) == bytes(512)
    assert not wire.queue.busy and not wire.queue.fused.pairs and wire.pool.used_bytes == 0


def test_commands_that_cannot_be_fused():
    wire = make()
    for opcode, flags in ((READ, FIRST), (WRITE, FIRST), (READ, 0x43), (WRITE, 0x43), (COMPARE, 0x43)):
        assert statuses(wire.feed(half(wire, 1, flags, A, opcode=opcode, asked=opcode == READ))) == [(1, FIELD)]
        assert controller_of(wire.queue.ctx).error_log.newest()[0].error_location == 1
    assert statuses(wire.feed(half(wire, 1, SECOND, A, opcode=COMPARE))) == [(1, FIELD)]
    target = Target()
    for flags in (FIRST, SECOND, 0x43):
        admin = target.admin()
        completion = admin.command(0x06, length=4096, cdw10=1, flags=flags)
        assert completion.status == FIELD and admin.controller.error_log.newest()[0].error_location == 1


@pytest.mark.parametrize(("bad", "expected"), [(0, [TRANSPORT_ERROR, FAILED]), (1, [OK, TRANSPORT_ERROR])])
@pytest.mark.parametrize("asked", [False, True])
def test_a_wrong_data_digest(bad, expected, asked):
    wire = make(dgst=2)
    out = b""
    for index, (flags, data) in enumerate(((FIRST, bytes(512)), (SECOND, A))):
        capsule = half(wire, index, flags, data, asked=asked)
        if index == bad and not asked:
            capsule = capsule[:-1] + bytes([capsule[-1] ^ 1])
        out += wire.feed(capsule)
    for cid, ttag, _ in r2ts(out):
        pdu = wire.h2c(cid, ttag, 0, (bytes(512), A)[cid])
        out += wire.feed(pdu[:-1] + bytes([pdu[-1] ^ 1]) if cid == bad else pdu)
    assert statuses(out) == list(zip((0, 1), expected, strict=True))
    assert wire.target.subsystem.namespaces[1].memory[:512] == bytes(512)
    assert wire.pool.used_bytes == 0
    assert crc(b"123456789") == struct.pack("<I", 0xE3069283)


def test_the_namespace_changes_while_the_data_comes():
    for what, expected in (
        ("remove", [FIELD, FAILED]),
        ("inaccessible", [0x302, FAILED]),
        ("shrink", [RANGE, FAILED]),
    ):
        wire = make()
        out = wire.feed(half(wire, 1, FIRST, bytes(512), slba=127, asked=True) + half(wire, 2, SECOND, A, slba=127))
        subsystem = wire.target.subsystem
        if what == "remove":
            subsystem.remove_namespace(1)
        elif what == "shrink":
            subsystem.resize_namespace(1, 32 << 10)
        else:
            subsystem.set_ana_state(AnaState.INACCESSIBLE)
        assert statuses(give(wire, out, {1: bytes(512)})) == list(zip((1, 2), expected, strict=True))
        assert wire.pool.used_bytes == 0


class Failing(Hidden):
    """A backend that cannot read, or cannot write."""

    def __init__(self, size, error):
        super().__init__(size)
        self.error = error

    def compare_and_write(self, offset, compare, data, *, fua=False):
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SourceError(5, "no"), [UNREADABLE, FAILED]),
        (OSError(5, "no"), [OK, WRITE_FAULT]),
        (OSError(28, "no"), [OK, 0x81]),
        (OSError(95, "no"), [FIELD, FAILED]),
        (ZeroDivisionError("a defect"), [0x06, FAILED]),
    ],
)
def test_errors_of_the_backend(error, expected):
    wire = make(Failing("64K", error))
    out = wire.feed(half(wire, 1, FIRST, bytes(512)) + half(wire, 2, SECOND, A))
    assert statuses(out) == list(zip((1, 2), expected, strict=True))
    assert wire.pool.used_bytes == 0


def test_uncorrectable_blocks_cannot_be_compared():
    wire = make()
    assert statuses(wire.feed(wire.capsule(make_sqe(1, 0x04, nsid=1)))) == [(1, OK)]
    out = wire.feed(half(wire, 1, FIRST, bytes(512)) + half(wire, 2, SECOND, A))
    assert statuses(out) == [(1, UNREADABLE), (2, FAILED)]


def test_the_same_cid_for_both_halves():
    wire = make()
    out = wire.feed(half(wire, 1, FIRST, bytes(512)) + half(wire, 1, SECOND, A))
    assert statuses(out) == [(1, MISSING), (1, 0x03)]
    out = wire.feed(half(wire, 1, FIRST, bytes(512), asked=True) + half(wire, 2, SECOND, A))
    assert statuses(wire.feed(half(wire, 2, FIRST, bytes(512)))) == [(2, 0x03)]
    assert statuses(give(wire, out, {1: bytes(512)})) == [(1, OK), (2, OK)]


@pytest.mark.parametrize("asked", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("full", [False, True])
def test_abort_of_a_half_that_waits_for_data(asked, which, full):
    """The half ends at once unless its data is already being sent; the other half ends separately."""
    if asked == (False, False):
        return
    target = Target(Ramdisk("64K"))
    admin = target.admin()
    pool = BufferPool(16 << 10, reserve_bytes=8 << 10)
    wire = Wire(target, pool=pool)
    held = [pool.take(16 << 10), pool.take(8 << 10, MemoryShare())] if full else []
    in_capsule = {}
    out = wire.feed(half(wire, 1, FIRST, bytes(512), asked=asked[0]) + half(wire, 2, SECOND, A, asked=asked[1]))
    outstanding = {cid for cid, _, _ in r2ts(out)}
    at_once = admin.command(0x08, cdw10=1 | which << 16).dw0 == 0
    assert at_once is (which not in outstanding)
    out += sent(wire.connection)
    for view in held:
        pool.give(view)
    for _ in range(3):
        out += sent(wire.connection)
    in_capsule = {1: bytes(512), 2: A}
    answered = give(wire, out, in_capsule) + sent(wire.connection)
    out += answered
    out += give(wire, answered, in_capsule)
    expected = {1: ABORTED, 2: FAILED} if which == 1 else {1: OK, 2: ABORTED}
    assert dict(statuses(out)) == expected
    assert len(statuses(out)) == 2
    assert target.subsystem.namespaces[1].memory[:512] == bytes(512)
    assert not wire.queue.busy and not wire.queue.fused.pairs and pool.used_bytes == 0 and not wire.queue.ctx.aborting


def test_abort_of_a_first_half_that_waits():
    target = Target(Ramdisk("64K"))
    admin = target.admin()
    wire = Wire(target)
    wire.feed(half(wire, 1, FIRST, bytes(512)))
    assert wire.queue.commands() == {1: 1}
    assert admin.command(0x08, cdw10=1 | 1 << 16).dw0 == 0
    assert admin.command(0x08, cdw10=1 | 1 << 16).dw0 == 1
    assert statuses(sent(wire.connection)) == [(1, ABORTED)]
    assert statuses(wire.feed(half(wire, 2, SECOND, A))) == [(2, FAILED)]


def test_the_queue_ends_with_halves_in_it():
    for asked, second in ((False, False), (True, True), (False, True)):
        wire = make()
        wire.feed(half(wire, 1, FIRST, bytes(512), asked=asked))
        if second:
            wire.feed(half(wire, 2, SECOND, A, asked=True))
            assert set(wire.queue.commands()) == {1, 2}
        wire.queue.lost("gone")
        assert wire.pool.used_bytes == 0 and not wire.queue.fused.pairs and wire.queue.fused.first is None


def test_a_drained_queue_begins_no_pair():
    wire = make()
    wire.feed(half(wire, 1, FIRST, bytes(512)))
    assert wire.queue.drain()
    assert not wire.feed(half(wire, 2, SECOND, A))


def test_identify_reports_fused_operations():
    target = Target()
    admin = target.admin()
    assert IDENTIFY_CONTROLLER.parse(admin.read_bytes(admin.identify(1))).fuses == 1


async def test_in_a_zone_the_write_goes_to_the_write_pointer():
    target = Target(Ramdisk("64K"))
    geometry = ZoneGeometry(zone_bytes=32 * 512)
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("64K"), zoned=geometry))
    target.admin()
    wire = Wire(target)
    wire.driver = wire.queue.driver = AsyncDriver()

    async def fuse(slba, compare, data):
        place = {"slba": slba, "nsid": 2}
        out = wire.feed(half(wire, 1, FIRST, compare, **place) + half(wire, 2, SECOND, data, **place))
        if wire.driver.tasks:
            await asyncio.wait(wire.driver.tasks)
            await asyncio.sleep(0)
            out += sent(wire.connection)
        return statuses(out)

    assert await fuse(0, B, A) == [(1, DIFFERS), (2, FAILED)]
    assert await fuse(0, bytes(512), A) == [(1, OK), (2, OK)]
    assert await fuse(0, A, B) == [(1, OK), (2, 0x1BC)], "Zone Invalid Write is the write's, the data was the same"
    assert await fuse(0, C, B) == [(1, DIFFERS), (2, FAILED)]
    assert await fuse(2, bytes(512), B) == [(1, OK), (2, 0x1BC)]
    assert await fuse(1, bytes(512), B) == [(1, OK), (2, OK)]
    assert content(wire, 0, 2, nsid=2) == A + B
