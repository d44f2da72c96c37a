import errno
import struct
from dataclasses import replace

import pytest

from nvmeof.spec.status import Status
from nvmeof.target.namespaces import unreadable as unreadable_blocks
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.backend_tools import Hidden
from tests.target.commands.test_nvm import BLOCKS, Broken, io_queue, last_error, ranges, read, rw, write
from tests.target.harness import Target


def mark(queue, slba: int, blocks: int, **fields):
    return queue.command(0x04, **rw(slba, blocks, **fields))


def unreadable(queue, slba: int, blocks: int) -> bool:
    """Check that all commands that read return the same status."""
    statuses = [
        read(queue, slba, blocks).status,
        queue.command(0x0C, **rw(slba, blocks)).status,
        queue.command(0x05, bytes(512 * blocks), **rw(slba, blocks)).status,
    ]
    assert statuses in ([Status.UNRECOVERED_READ_ERROR] * 3, [0, 0, 0], [0, 0, Status.COMPARE_FAILURE])
    return statuses[0] != 0


def test_marked_blocks_cannot_be_read():
    queue = io_queue()
    assert mark(queue, 10, 5).status == 0
    completion = read(queue, 8, 3)
    assert (completion.status, completion.dnr, completion.data) == (Status.UNRECOVERED_READ_ERROR, True, None)
    assert last_error(queue).lba == 8
    assert [unreadable(queue, *at) for at in ((0, 10), (10, 1), (14, 1), (15, 1), (0, 64))] == [
        False,
        True,
        True,
        False,
        True,
    ]
    namespace = queue.ctx.namespaces[1]
    assert namespace.memory is None
    assert namespace.counters.media_errors == 0, "the media has no fault"


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda queue: write(queue, 11, bytes(1024)),
        lambda queue: queue.command(0x08, **rw(11, 2)),
        lambda queue: queue.command(0x08, nsid=1, cdw10=11, cdw12=1 | 1 << 25),
        lambda queue: queue.command(0x09, ranges((11, 1), (12, 1)), nsid=1, cdw10=1, cdw11=4),
    ],
    ids=["Write", "Write Zeroes", "Write Zeroes with DEAC", "deallocate"],
)
def test_written_blocks_can_be_read_again(rewrite):
    queue = io_queue()
    mark(queue, 10, 4)
    assert rewrite(queue).status == 0
    assert [unreadable(queue, slba, 1) for slba in (10, 11, 12, 13)] == [True, False, False, True]
    assert queue.read_bytes(read(queue, 11, 2)) == bytes(1024)
    write(queue, 10, bytes(2048))
    assert not unreadable(queue, 0, 64)
    assert queue.ctx.namespaces[1].memory is not None


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_a_write_that_fails_leaves_the_mark(later):
    queue = io_queue(Broken(errno.EIO, later=later))
    mark(queue, 0, 1)
    assert write(queue, 0, bytes(512)).status == Status.WRITE_FAULT
    assert read(queue, 0, 1).status == Status.UNRECOVERED_READ_ERROR
    assert queue.ctx.namespaces[1].counters.media_errors == 1, "of the write"


def test_a_backend_that_turns_out_not_to_deallocate():
    """The old data still exists and stays unreadable, also when the hint is no longer tried."""

    class Finding(Hidden):
        able = True

        @property
        def capabilities(self):
            return replace(super().capabilities, can_deallocate=self.able)

        async def deallocate(self, offset, length):
            self.able = False

    queue = io_queue(Finding("1M"))
    write(queue, 0, b"old!" * 128)
    mark(queue, 0, 1)
    for _ in range(2):
        assert queue.command(0x09, ranges((0, 1)), nsid=1, cdw11=4).status == 0
        assert unreadable(queue, 0, 1)


def test_dataset_management_hints_leave_the_mark():
    queue = io_queue()
    mark(queue, 0, 1)
    assert queue.command(0x09, ranges((0, 1)), nsid=1, cdw11=3).status == 0
    assert unreadable(queue, 0, 1)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": BLOCKS}, Status.LBA_OUT_OF_RANGE),
        ({"cdw11": 1 << 31}, Status.LBA_OUT_OF_RANGE),
        ({"cdw12": 1 << 20}, Status.INVALID_FIELD),
        ({"nsid": 2}, Status.INVALID_FIELD),
        ({"nsid": 0}, Status.INVALID_NAMESPACE),
        ({"nsid": 1025}, Status.INVALID_NAMESPACE),
        ({"nsid": 3}, Status.NAMESPACE_WRITE_PROTECTED),
        ({"nsid": 0xFFFFFFFF}, Status.INVALID_FIELD),
        ({"cdw12": BLOCKS - 1}, Status.SUCCESS),
    ],
)
def test_write_uncorrectable_is_checked(fields, status):
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True, nsid=3))
    queue = target.io(target.admin())
    assert mark(queue, 0, 1, **fields).status == status
    assert (queue.ctx.namespaces[1].memory is None) == (status == 0)


def test_marks_are_limited(monkeypatch):
    monkeypatch.setattr(unreadable_blocks, "RANGES_MAX", 3)
    queue = io_queue()
    assert [mark(queue, slba, 1).status for slba in (0, 2, 4)] == [0, 0, 0]
    completion = mark(queue, 6, 1)
    assert (completion.status, completion.dnr) == (Status.CAPACITY_EXCEEDED, True)
    assert not unreadable(queue, 6, 1)


def test_refreshed_and_marked():
    queue = io_queue()
    namespace = queue.ctx.namespaces[1]
    mark(queue, 0, 1)
    namespace.refresh()
    assert namespace.memory is None
    write(queue, 0, bytes(512))
    assert namespace.memory is not None


@pytest.mark.parametrize(
    "replace_one",
    [
        lambda queue, slba: write(queue, slba, bytes(512)),
        lambda queue, slba: queue.command(0x08, **rw(slba, 1)),
        lambda queue, slba: queue.command(0x09, ranges((slba, 1)), nsid=1, cdw11=4),
        lambda queue, slba: queue.command(0x19, struct.pack("<8xQH14x", 0, 0), nsid=1, cdw10=slba),
    ],
    ids=["Write", "Write Zeroes", "deallocate", "Copy"],
)
def test_writes_split_at_most_as_many_ranges_as_can_be_stored(monkeypatch, replace_one):
    """A disk of holes would have as many ranges as half its blocks."""
    monkeypatch.setattr(unreadable_blocks, "RANGES_MAX", 3)
    queue = io_queue()
    assert mark(queue, 1, 60).status == 0
    for cut in range(5):
        assert replace_one(queue, 10 + 2 * cut).status == 0
    assert len(queue.ctx.namespaces[1].unreadable_blocks.marked) == 6
    assert replace_one(queue, 40).status == Status.CAPACITY_EXCEEDED
    assert unreadable(queue, 40, 1) and not unreadable(queue, 10, 1)
    for inside in (10, 11, 1, 60, 19):  # none of these cuts a range
        assert replace_one(queue, inside).status == 0
    assert len(queue.ctx.namespaces[1].unreadable_blocks.marked) <= 6
