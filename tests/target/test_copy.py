import errno
import os
import struct

import pytest

from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.status import Status
from nvmeof.target.backend.ramdisk import Ramdisk
from nvmeof.target.commands import copy as copy_module
from nvmeof.target.config import NamespaceConfig
from tests.target.backend_tools import Hidden
from tests.target.harness import IN_CAPSULE, Target
from tests.target.test_nvm import BLOCKS, ERRORS, Broken, Recording, io_queue, last_error, read, write


def copy(queue, slba: int, *sources: tuple[int, int], extra: int = 0, **fields):
    data = b"".join(struct.pack("<8xQH14x", start, blocks - 1) for start, blocks in sources)
    cdw12 = len(sources) - 1 | extra
    fields = {"nsid": 1, "cdw10": slba & 0xFFFFFFFF, "cdw11": slba >> 32, "cdw12": cdw12, **fields}
    return queue.command(0x19, data, **fields)


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
def test_sources_must_not_overlap_the_destination(queue, slba, sources, good):
    data = os.urandom(512 * 64)
    write(queue, 0, data)
    completion = copy(queue, slba, *sources)
    assert (completion.status, completion.dw0) == (0 if good else Status.OVERLAPPING_IO_RANGE, 0)
    copied = b"".join(data[512 * at : 512 * (at + blocks)] for at, blocks in sources)
    left = queue.read_bytes(read(queue, slba, len(copied) // 512))
    assert left == (copied if good else data[512 * slba : 512 * slba + len(copied)])


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


def test_the_limits_are_what_identify_says(monkeypatch):
    target = Target(Ramdisk("64M"), Ramdisk("64M", block_bytes=4096))
    admin = target.admin()
    controller = IDENTIFY_CONTROLLER.parse(admin.read_bytes(admin.identify(1)))
    assert controller.cdfs == 1
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
        ({"extra": 1 << 12}, Status.INVALID_FIELD),
        ({"extra": 1 << 15}, Status.INVALID_FIELD),
        ({"extra": 1 << 20}, Status.INVALID_FIELD),
        ({"extra": 1 << 24}, Status.INVALID_FIELD),
        ({"extra": 1 << 25}, Status.INVALID_FIELD),
        ({"extra": 1 << 26}, Status.INVALID_FIELD),
        ({"extra": 1 << 30 | 1 << 31}, Status.SUCCESS),
        ({"cdw12": 1}, Status.DATA_SGL_LENGTH_INVALID),
        ({"sgl_length": 129 * 32}, Status.DATA_SGL_LENGTH_INVALID),
        ({"nsid": 2}, Status.INVALID_NAMESPACE),
        ({"nsid": 0xFFFFFFFF}, Status.INVALID_NAMESPACE),
        ({"nsid": 3}, Status.NAMESPACE_WRITE_PROTECTED),
    ],
)
def test_copy_is_checked(fields, status):
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True, nsid=3))
    assert copy(target.io(target.admin()), 0, (8, 1), **fields).status == status


def test_error_locations(queue):
    for extra, bit in ((1 << 8, 8), (1 << 13, 12), (1 << 25, 25)):
        copy(queue, 0, (8, 1), extra=extra)
        assert last_error(queue).error_location == (48 + bit // 8) | (bit % 8) << 8


def test_uncorrectable_blocks(queue):
    """A source of them is not copied, and DW0 tells which it was; as the destination they can be read again."""
    write(queue, 0, b"y" * 512 * 8)
    assert queue.command(0x04, nsid=1, cdw10=4, cdw12=0).status == 0
    completion = copy(queue, 100, (0, 4), (5, 1), (2, 3), (6, 1))
    assert (completion.status, completion.dw0) == (Status.UNRECOVERED_READ_ERROR, 2)
    assert queue.read_bytes(read(queue, 100, 6)) == b"y" * 512 * 5 + bytes(512)
    assert copy(queue, 4, (0, 1)).status == 0
    assert queue.read_bytes(read(queue, 0, 8)) == b"y" * 512 * 8


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


def test_a_namespace_that_shrinks_meanwhile():
    """What was checked at the start is checked again for each range."""
    target = Target()
    queue = target.io(target.admin())
    sqe = queue.sqe(0x19, bytes(32), nsid=1, cdw10=1024)
    pending = copy_module.copy(queue.ctx, sqe, memoryview(struct.pack("<8xQH14x", 0, 0)))
    target.subsystem.resize_namespace(1, 1 << 19)
    with pytest.raises(Exception, match="blocks 1024") as error:
        pending.send(None)
    assert (error.value.status, error.value.dw0) == (Status.LBA_OUT_OF_RANGE, 0)
