import errno
import os
import struct

import pytest

from nvmeof.errors import CommandError
from nvmeof.spec.enums import AnaState
from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.status import Status
from nvmeof.target.commands.dispatch.base import Decoded
from nvmeof.target.commands.io import copy as copy_module
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.backend_tools import Hidden
from tests.target.commands.test_nvm import BLOCKS, ERRORS, Broken, Recording, io_queue, last_error, read, write
from tests.target.harness import IN_CAPSULE, Pending, Target


def copy(queue, slba: int, *sources: tuple[int, int], extra: int = 0, **fields):
    data = b"".join(struct.pack("<8xQH14x", start, blocks - 1) for start, blocks in sources)
    return copy_by(queue, slba, data, extra, **fields)


def across(queue, slba: int, *sources: tuple[int, int, int], extra: int = 0, options: int = 0, **fields):
    """Return descriptors of format 2h: NSID, first block, blocks."""
    layout = "<I4xQHHHH8x"
    data = b"".join(struct.pack(layout, nsid, start, blocks - 1, 0, 0, options) for nsid, start, blocks in sources)
    return copy_by(queue, slba, data, 2 << 8 | extra, **fields)


def copy_by(queue, slba: int, data: bytes, extra: int = 0, **fields):
    cdw12 = len(data) // 32 - 1 | extra
    fields = {"nsid": 1, "cdw10": slba & 0xFFFFFFFF, "cdw11": slba >> 32, "cdw12": cdw12, **fields}
    return queue.command(0x19, data, **fields)


def enabled(target: Target):
    """Return an admin queue whose host has enabled format 2h, and an I/O queue."""
    admin = target.admin()
    assert admin.set_feature(0x16, data=struct.pack("<4xH506x", 1 << 2)).status == 0
    return admin, target.io(admin)


@pytest.fixture(params=[Ramdisk, Hidden])
def queue(request):
    return io_queue(request.param("1M"))


def test_copy_of_several_ranges(queue):
    data = os.urandom(512 * 100)
    write(queue, 0, data)
    assert copy(queue, 200, (50, 10), (0, 1), (50, 10), (99, 1), sgl_type=IN_CAPSULE).status == 0
    expected = data[25600:30720] + data[:512] + data[25600:30720] + data[-512:] + bytes(512)
    assert queue.read_bytes(read(queue, 200, 23)) == expected
    assert queue.read_bytes(read(queue, 0, 100)) == data
    assert not any(queue.read_bytes(read(queue, 100, 100)))


@pytest.mark.parametrize(
    ("slba", "sources", "good"),
    [
        (10, [(0, 10), (20, 10)], False),
        (10, [(0, 10), (30, 10)], True),
        (10, [(0, 10), (20, 1)], False),
        (10, [(0, 10), (21, 1)], True),
        (10, [(0, 11)], False),
        (10, [(10, 1)], False),
        (10, [(21, 11)], True),
        (10, [(20, 11)], False),
        (0, [(1, 1)], True),
    ],
)
@pytest.mark.parametrize("large", [1, 100], ids=["at once", "range by range"])
def test_sources_that_overlap_the_destination(slba, sources, good, large):
    """Format 2h forbids overlap. Format 0h leaves it to the host: each block is one of its sources' blocks."""
    target = Target(Ramdisk("8M"))
    _, queue = enabled(target)
    slba, sources = slba * large, [(at * large, blocks * large) for at, blocks in sources]
    data = os.urandom(512 * 64 * large)
    for at in range(0, 64 * large, 64):
        write(queue, at, data[at * 512 : at * 512 + 32768])
    before = bytes(target.subsystem.namespaces[1].memory)
    total = sum(blocks for _, blocks in sources)
    completion = across(queue, slba, *[(1, at, blocks) for at, blocks in sources])
    assert (completion.status, completion.dw0) == (0 if good else Status.OVERLAPPING_IO_RANGE, 0)
    copied = b"".join(data[512 * at : 512 * (at + blocks)] for at, blocks in sources)
    memory = target.subsystem.namespaces[1].memory
    assert memory[512 * slba : 512 * (slba + total)] == (copied if good else before[512 * slba : 512 * (slba + total)])
    memory[:] = before
    assert copy(queue, slba, *sources).status == 0
    if good or len(sources) == 1:
        assert memory[512 * slba : 512 * (slba + total)] == copied


@pytest.mark.parametrize(
    ("slba", "sources", "status"),
    [
        (BLOCKS - 2, [(0, 2)], Status.SUCCESS),
        (BLOCKS - 2, [(0, 3)], Status.LBA_OUT_OF_RANGE),
        (BLOCKS - 2, [(0, 2), (0, 1)], Status.LBA_OUT_OF_RANGE),
        (BLOCKS, [(0, 1)], Status.LBA_OUT_OF_RANGE),
        ((1 << 64) - 1, [(0, 1)], Status.LBA_OUT_OF_RANGE),
        (0, [(BLOCKS - 1, 1)], Status.SUCCESS),
        (0, [(BLOCKS - 1, 2)], Status.LBA_OUT_OF_RANGE),
        (0, [(5, 1), ((1 << 64) - 1, 1)], Status.LBA_OUT_OF_RANGE),
    ],
)
def test_ranges(queue, slba, sources, status):
    write(queue, 5, b"x" * 512)
    assert copy(queue, slba, *sources).status == status
    if status:
        assert queue.read_bytes(read(queue, 0, 1)) == bytes(512), "nothing was begun"


def test_the_limits_are_those_of_identify(monkeypatch):
    target = Target(Ramdisk("64M"), Ramdisk("64M", block_bytes=4096))
    admin = target.admin()
    controller = IDENTIFY_CONTROLLER.parse(admin.read_bytes(admin.identify(1)))
    assert controller.cdfs == 0b101
    assert controller.oncs & 0b111 << 8 == 0b111 << 8, "Copy, as one write, and always a fast one"
    limits = IDENTIFY_NAMESPACE.parse(admin.read_bytes(admin.identify(0, 1)))
    large = IDENTIFY_NAMESPACE.parse(admin.read_bytes(admin.identify(0, 2)))
    assert (limits.mssrl, limits.mcl, limits.msrc) == (8192, 32768, 127)
    assert (large.mssrl, large.mcl, large.msrc) == (1024, 4096, 127)
    queue = target.io(admin)
    assert copy(queue, 0, (50000, limits.mssrl)).status == 0
    assert copy(queue, 0, (50000, limits.mssrl + 1)).status == Status.COMMAND_SIZE_LIMIT_EXCEEDED
    assert copy(queue, 0, *[(50000, limits.mssrl)] * 4).status == 0
    assert copy(queue, 0, *[(50000, limits.mssrl)] * 4, (50000, 1)).status == Status.COMMAND_SIZE_LIMIT_EXCEEDED
    assert copy(queue, 0, *[(50000, 1)] * 128).status == 0
    assert copy(queue, 0, *[(50000, 1)] * 129).status == Status.COMMAND_SIZE_LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"extra": 1 << 8}, Status.INVALID_FIELD),
        ({"extra": 2 << 8}, Status.INVALID_FIELD),
        ({"extra": 3 << 8}, Status.INVALID_FIELD),
        ({"extra": 4 << 8}, Status.INVALID_FIELD),
        ({"extra": 15 << 8}, Status.INVALID_FIELD),
        ({"extra": 1 << 16}, Status.INVALID_FIELD),
        ({"extra": 1 << 19}, Status.INVALID_FIELD),
        ({"extra": 1 << 20}, Status.INVALID_FIELD),
        ({"extra": 1 << 23}, Status.INVALID_FIELD),
        ({"extra": 0xFF << 24 | 0xF << 12}, Status.SUCCESS),
        ({"cdw12": 1}, Status.DATA_SGL_LENGTH_INVALID),
        ({"sgl_length": 129 * 32}, Status.DATA_SGL_LENGTH_INVALID),
        ({"nsid": 2}, Status.INVALID_FIELD),
        ({"nsid": 0}, Status.INVALID_NAMESPACE),
        ({"nsid": 1025}, Status.INVALID_NAMESPACE),
        ({"nsid": 0xFFFFFFFF}, Status.INVALID_FIELD),
        ({"nsid": 3}, Status.NAMESPACE_WRITE_PROTECTED),
    ],
)
def test_copy_is_checked(fields, status):
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True, nsid=3))
    assert copy(target.io(target.admin()), 0, (8, 1), **fields).status == status


def test_error_locations(queue):
    for extra, bit in ((1 << 8, 8), (2 << 8, 8), (1 << 17, 16), (1 << 21, 20)):
        copy(queue, 0, (8, 1), extra=extra)
        assert last_error(queue).error_location == (48 + bit // 8) | (bit % 8) << 8


def test_uncorrectable_blocks(queue):
    """A source with such blocks is not copied, nor any other source of a Copy within the atomic unit."""
    write(queue, 0, b"y" * 512 * 8)
    assert queue.command(0x04, nsid=1, cdw10=4, cdw12=0).status == 0
    completion = copy(queue, 100, (0, 4), (5, 1), (2, 3), (6, 1))
    assert (completion.status, completion.dw0) == (Status.UNRECOVERED_READ_ERROR, 0)
    assert queue.read_bytes(read(queue, 100, 6)) == bytes(512 * 6)
    assert copy(queue, 4, (0, 1)).status == 0
    assert queue.read_bytes(read(queue, 0, 8)) == b"y" * 512 * 8


def test_the_first_range_that_was_not_copied():
    """Beyond the atomic unit ranges are copied one by one, and DW0 is the number of the first that failed."""
    for across_namespaces in (False, True):
        target = Target(Ramdisk("1M"), Ramdisk("1M"))
        _, queue = enabled(target)
        for nsid in (1, 2):
            assert write(queue, 0, b"y" * 512 * 300, nsid=nsid).status == 0
            assert queue.command(0x04, nsid=nsid, cdw10=250, cdw12=0).status == 0
        sources = [(0, 60), (100, 60), (200, 60), (0, 1)]
        if across_namespaces:
            completion = across(queue, 1000, *[(2, *item) for item in sources])
        else:
            completion = copy(queue, 1000, *sources)
        assert (completion.status, completion.dw0) == (Status.UNRECOVERED_READ_ERROR, 2)
        assert queue.read_bytes(read(queue, 1000, 121)) == b"y" * 512 * 120 + bytes(512)
        assert target.subsystem.namespaces[1].counters.copies == 0


@pytest.mark.parametrize("kinds", [(Ramdisk, Ramdisk), (Hidden, Ramdisk), (Ramdisk, Hidden)])
@pytest.mark.parametrize("blocks", [1, 64, 65, 1500])
def test_copy_across_namespaces(kinds, blocks):
    target = Target(*(kind("2M") for kind in kinds))
    _, queue = enabled(target)
    data = [os.urandom(512 * 2000) for _ in kinds]
    for nsid in (1, 2):
        assert write(queue, 0, data[nsid - 1], nsid=nsid).status == 0
    assert across(queue, 2100, (2, 10, blocks), (1, 0, 3), (2, 7, 1)).status == 0
    expected = data[1][5120 : 5120 + blocks * 512] + data[0][:1536] + data[1][3584:4096]
    assert queue.read_bytes(read(queue, 2100, blocks + 4)) == expected
    counters = [target.subsystem.namespaces[nsid].counters for nsid in (1, 2)]
    assert [(each.copies, each.writes, each.blocks_written, each.blocks_copied) for each in counters] == [
        (1, 1, 2000, blocks + 4), (0, 1, 2000, 0)
    ]  # fmt: skip


@pytest.mark.parametrize("options", [0, 1 << 15, 0xFFFF])
def test_every_copy_is_a_fast_copy(options):
    _, queue = enabled(Target(Ramdisk("1M"), Ramdisk("1M")))
    assert across(queue, 0, (2, 0, 1), (1, 9, 1), options=options).status == 0


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ((0, 0, 1), Status.INVALID_NAMESPACE),
        ((0xFFFFFFFF, 0, 1), Status.INVALID_NAMESPACE),
        ((1025, 0, 1), Status.INVALID_NAMESPACE),
        ((1024, 0, 1), Status.INVALID_FIELD),
        ((3, 0, 1), Status.INCOMPATIBLE_NAMESPACE),
        ((2, 2048, 1), Status.LBA_OUT_OF_RANGE),
        ((2, 2047, 2), Status.LBA_OUT_OF_RANGE),
        ((2, 1 << 63, 1), Status.LBA_OUT_OF_RANGE),
        ((1, 100, 1), Status.OVERLAPPING_IO_RANGE),
        ((1, 101, 1), Status.OVERLAPPING_IO_RANGE),
        ((1, 102, 1), Status.SUCCESS),
        ((2, 100, 1), Status.SUCCESS),
        ((4, 0, 1), Status.SUCCESS),
    ],
)
def test_sources_of_other_namespaces_are_checked(source, status):
    target = Target(Ramdisk("1M"), Ramdisk("1M"), Ramdisk("1M", block_bytes=4096))
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True, nsid=4))
    _, queue = enabled(target)
    write(queue, 100, b"z" * 512)
    completion = across(queue, 100, (2, 0, 1), source)
    assert (completion.status, completion.dw0) == (status, 0)
    assert queue.read_bytes(read(queue, 100, 1)) == (b"z" * 512 if status else bytes(512)), "all or nothing"


def test_a_source_that_this_host_may_not_read():
    asked = []

    def gate(ctx, spec, sqe):
        asked.append((spec.name, sqe.opcode, sqe.nsid))
        if sqe.nsid == 2:
            raise CommandError(Status.RESERVATION_CONFLICT)

    target = Target(Ramdisk("1M"), Ramdisk("1M"), tables=standard_tables(admission=(gate,)))
    _, queue = enabled(target)
    asked.clear()
    assert across(queue, 0, (2, 0, 1)).status == Status.RESERVATION_CONFLICT
    assert asked == [("Copy", 0x19, 1), ("Read", 2, 2)]
    target.subsystem.move_namespace(2, 2)
    target.subsystem.set_ana_state(AnaState.INACCESSIBLE, 2)
    pending = across(queue, 0, (2, 0, 1))
    assert pending.status == Status.ANA_INACCESSIBLE


def test_format_2h_has_to_be_enabled():
    target = Target()
    admin = target.admin()
    queue = target.io(admin)
    assert across(queue, 0, (1, 8, 1)).status == Status.INVALID_FIELD
    assert last_error(queue).error_location == 49
    for cdfe in (1 << 3, 1 << 4, 1 << 2 | 1 << 3, 1 << 15):
        assert admin.set_feature(0x16, data=struct.pack("<4xH506x", cdfe)).status == Status.INVALID_FIELD
    assert admin.set_feature(0x16, data=struct.pack("<4xH506x", 1 << 2)).status == 0
    assert across(queue, 0, (1, 8, 1)).status == 0
    assert copy(queue, 0, (8, 1)).status == 0, "format 0h stays"
    assert admin.set_feature(0x16, data=bytes(512)).status == 0
    assert across(queue, 0, (1, 8, 1)).status == Status.INVALID_FIELD


def test_command_extensions_of_a_range_are_refused(queue):
    data = struct.pack("<8xQHH12x", 8, 0, 1)
    assert copy_by(queue, 0, data).status == Status.INVALID_FIELD


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("code", "on_read", "on_write", "dnr"), ERRORS, ids=[errno.errorcode[item[0]] for item in ERRORS]
)
def test_backend_errors(code, on_read, on_write, dnr, later):
    class Readable(Broken):
        def acquire_read(self, offset, length):
            return Ramdisk(4096).acquire_read(0, length)

    completion = copy(io_queue(Broken(code, later=later)), 0, (8, 1))
    assert (completion.status, completion.dnr) == (on_read, dnr)
    completion = copy(io_queue(Readable(code, later=later)), 0, (8, 1))
    assert (completion.status, completion.dnr) == (on_write, dnr)


def test_force_unit_access():
    class Remembering(Recording):
        def copy(self, source, destination, length, *, fua=False):
            self.fua.append(fua)
            return super().copy(source, destination, length, fua=fua)

    backend = Remembering()
    target = Target(backend)
    admin = target.admin()
    queue = target.io(admin)
    copy(queue, 0, (8, 1))
    copy(queue, 0, (8, 1), extra=1 << 30)
    admin.set_feature(0x06, 0)
    copy(queue, 0, (8, 1))
    assert backend.fua == [False, True, True]


def test_a_namespace_that_shrinks_during_a_copy():
    """The checks of the start are repeated for each range."""
    target = Target()
    queue = target.io(target.admin())
    sqe = queue.sqe(0x19, bytes(32), nsid=1, cdw10=1024)
    request = Decoded(sqe, copy_module.CopyFields.parse(sqe))
    pending = copy_module.copy(queue.ctx, request, memoryview(struct.pack("<8xQH14x", 0, 0)))
    target.subsystem.resize_namespace(1, 1 << 19)
    with pytest.raises(Exception, match="blocks 1024") as error:
        pending.send(None)
    assert (error.value.status, error.value.dw0) == (Status.LBA_OUT_OF_RANGE, 0)


def test_copy_to_and_from_zones():
    geometry = ZoneGeometry(zone_bytes=128 * 512)
    target = Target(Ramdisk("1M"))
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), zoned=geometry))
    _, queue = enabled(target)
    write(queue, 0, b"c" * 512 * 200)
    assert across(queue, 128, (1, 0, 3), nsid=2).status == 0
    assert across(queue, 128, (1, 0, 3), nsid=2).status == Status.ZONE_INVALID_WRITE
    assert across(queue, 131, (1, 0, 100), nsid=2).status == 0, "in pieces"
    assert across(queue, 300, (2, 230, 4)).status == 0, "what was not written is zeroes"
    assert queue.read_bytes(read(queue, 300, 4)) == b"c" * 512 + bytes(512 * 3)
    completion = across(queue, 0, (1, 0, 100), (1, 0, 100), nsid=2)
    assert (completion.status, completion.dw0) == (Status.ZONED_BOUNDARY_ERROR, 1), "the second range ends in another"


@pytest.mark.parametrize("form", [0, 2])
def test_a_long_copy_yields_to_others(form):
    """16 MiB would delay all others for milliseconds: the copy is done in pieces, and can be aborted between two."""
    target = Target(Ramdisk("32M"), Ramdisk("32M"))
    _, queue = enabled(target)
    memory = target.subsystem.namespaces[2 if form else 1].memory
    memory[: 16 << 20] = content = os.urandom(1 << 20) * 16
    ranges = [(2, at * 8192, 8192) for at in range(4)]
    data = b"".join(struct.pack("<I4xQH14x", nsid if form else 0, at, blocks - 1) for nsid, at, blocks in ranges)
    pending = queue.submit(queue.sqe(0x19, data, nsid=1, cdw10=32768, cdw12=3 | form << 8), data)
    turns, before = 0, 0
    destination = target.subsystem.namespaces[1].memory[16 << 20 :]
    while isinstance(pending, Pending) and pending.step() is None:
        assert target.runtime.turn()
        turns += 1
        here = queue.ctx.namespaces[1].counters.blocks_copied
        assert here - before <= 512, "256 KiB at a time"
        before = here
    assert turns >= 63
    assert pending.completion.status == 0
    assert destination[: 16 << 20] == content


def test_a_long_copy_is_aborted_between_two_pieces():
    target = Target(Ramdisk("32M"))
    _, queue = enabled(target)
    data = struct.pack("<8xQH14x", 0, 8191)
    sqe = queue.sqe(0x19, data, nsid=1, cdw10=32768, cdw12=0)
    pending = queue.submit(sqe, data)
    assert isinstance(pending, Pending)
    queue.ctx.aborting.add(sqe.cid)
    while pending.step() is None:
        assert target.runtime.turn()
    assert pending.completion.status == Status.ABORTED_BY_REQUEST
    assert queue.ctx.namespaces[1].counters.blocks_copied == 512


@pytest.mark.parametrize(("slba", "source"), [(100, 0), (0, 100), (8000, 0), (0, 8000)])
def test_a_long_copy_onto_itself_is_a_memmove(slba, source):
    target = Target(Ramdisk("16M"))
    _, queue = enabled(target)
    memory = target.subsystem.namespaces[1].memory
    memory[:] = content = os.urandom(16 << 20)
    assert copy(queue, slba, (source, 8192)).status == 0
    assert memory[slba * 512 :][: 4 << 20] == content[source * 512 :][: 4 << 20]
