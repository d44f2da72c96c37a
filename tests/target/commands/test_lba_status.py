import errno
import mmap
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import AnaState
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.target.commands.media.lba_status import SCAN_BYTES
from nvmeof.target.core.block_ranges import BlockRanges
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.backend_tools import killed
from tests.target.commands.test_nvm import read, write
from tests.target.harness import CC_DISABLED, CC_ENABLE, Target
from tests.target.media_tools import Durable, Flawed, execute_in_loop, file_target, finish, kept, location

ALLOCATED, SCAN, TRACKED = 0x02, 0x10, 0x11


def lba_status(target, admin, action=TRACKED, slba=0, length=0, *, dwords=1024, nsid=1):
    sqe = admin.sqe(
        0x86,
        length=dwords * 4,
        nsid=nsid,
        cdw10=slba & 0xFFFFFFFF,
        cdw11=slba >> 32,
        cdw12=dwords - 1,
        cdw13=length | action << 24,
    )
    return finish(target, admin.submit(sqe))


def parsed(admin, completion):
    """Return CMPC and the entries: start, blocks, status."""
    data = admin.read_bytes(completion)
    count, cmpc = struct.unpack_from("<IB", data)
    entries = [struct.unpack_from("<QIxB2x", data, 8 + 16 * i) for i in range(count)]
    return cmpc, [(start, blocks + 1, status) for start, blocks, status in entries]


def log(admin):
    """Return LSGC, ESTULB, and by NSID the ranges."""
    data = admin.read_bytes(admin.log_page(0x0E, 4096))
    length, elements, blocks, generation = struct.unpack_from("<IIIxxH", data)
    found, position = {}, 16
    for _ in range(elements):
        nsid, count, action = struct.unpack_from("<IIB", data, position)
        assert action == TRACKED
        ranges = [struct.unpack_from("<QI", data, position + 16 + 16 * i) for i in range(count)]
        found[nsid] = [(start, number + 1) for start, number in ranges]
        position += 16 + 16 * count
    assert position == length
    return generation, blocks, found


def mark(io, slba, blocks, nsid=1):
    return io.command(0x04, nsid=nsid, cdw10=slba, cdw12=blocks - 1)


@pytest.mark.parametrize("action", [SCAN, TRACKED])
def test_marks(action):
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    assert parsed(admin, lba_status(target, admin, action)) == (2, [])
    mark(io, 10, 5)
    mark(io, 2047, 1)
    assert parsed(admin, lba_status(target, admin, action)) == (2, [(10, 5, 3), (2047, 1, 3)])
    assert parsed(admin, lba_status(target, admin, action, 12, 100)) == (2, [(12, 3, 3)])
    assert parsed(admin, lba_status(target, admin, action, 12, 1)) == (2, [(12, 1, 3)])
    assert parsed(admin, lba_status(target, admin, action, 15)) == (2, [(2047, 1, 3)])
    write(io, 12, bytes(512))
    assert parsed(admin, lba_status(target, admin, action)) == (2, [(10, 2, 3), (13, 2, 3), (2047, 1, 3)])


@pytest.mark.parametrize(
    ("dwords", "shown", "cmpc"),
    [(1, 0, 1), (2, 0, 1), (5, 0, 1), (6, 1, 1), (9, 1, 1), (10, 2, 1), (14, 3, 2), (99, 3, 2)],
)
def test_room(dwords, shown, cmpc):
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    for slba in (1, 3, 5):
        mark(io, slba, 1)
    completion = lba_status(target, admin, dwords=dwords)
    assert len(completion.data) == dwords * 4
    if dwords > 1:
        assert parsed(admin, completion) == (cmpc, [(1, 1, 3), (3, 1, 3), (5, 1, 3)][:shown])


def test_a_scan_finds_unreadable_blocks():
    backend = Flawed("16M")
    target = Target(backend)
    admin = target.admin()
    backend.bad_blocks = {0, 5, 6, 20000, 32767}
    assert parsed(admin, lba_status(target, admin)) == (2, [])
    assert parsed(admin, lba_status(target, admin, SCAN, 5, 1)) == (2, [(5, 1, 1)])
    expected = [(0, 1, 1), (5, 2, 1), (20000, 1, 1), (32767, 1, 1)]
    assert parsed(admin, lba_status(target, admin, SCAN)) == (2, expected)
    assert parsed(admin, lba_status(target, admin)) == (2, expected)
    mark(target.io(admin), 6, 1)
    assert parsed(admin, lba_status(target, admin, slba=5, length=2)) == (2, [(5, 1, 1), (6, 1, 3)])


def test_a_scan_ends_with_its_queue():
    target = Target(Ramdisk(3 * SCAN_BYTES))
    admin = target.admin()
    scan = admin.submit(admin.sqe(0x86, length=4096, nsid=1, cdw12=1023, cdw13=SCAN << 24))
    assert scan.step() is None, "one piece after the other"
    admin.ctx.detach("closed")
    assert finish(target, scan).status == Status.ABORTED_SQ_DELETION


def test_a_scan_ends_when_the_data_is_full():
    backend = Flawed("64M")
    target = Target(backend)
    admin = target.admin()
    backend.bad_blocks = set(range(0, 1000, 2))
    assert parsed(admin, lba_status(target, admin, SCAN, dwords=6)) == (1, [(0, 1, 1)])
    assert len(target.subsystem.namespaces[1].unreadable_blocks.failing) < 10


@pytest.mark.parametrize("opcode", [0x02, 0x05, 0x0C])
def test_blocks_that_failed_for_a_host_are_listed_until_written(opcode):
    backend = Flawed("1M")
    backend.memory, shown = None, backend.memory
    target = Target(backend)
    backend.memory = shown
    admin = target.admin()
    io = target.io(admin)
    backend.bad_blocks = {9}
    data = bytes(512 * 4) if opcode == 0x05 else None
    length = 2048 if opcode != 0x0C else 0
    assert io.command(opcode, data, length=length, nsid=1, cdw10=8, cdw12=3).status == Status.UNRECOVERED_READ_ERROR
    assert parsed(admin, lba_status(target, admin)) == (2, [(8, 4, 1)])
    write(io, 8, bytes(512 * 2))
    assert parsed(admin, lba_status(target, admin)) == (2, [(10, 2, 1)])


@pytest.mark.parametrize(
    ("fields", "status", "where"),
    [
        ({"action": 0}, Status.INVALID_FIELD, 55),
        ({"action": 1}, Status.INVALID_FIELD, 55),
        ({"action": 0x12}, Status.INVALID_FIELD, 55),
        ({"slba": 2048}, Status.LBA_OUT_OF_RANGE, 40),
        ({"slba": 2000, "length": 49}, Status.LBA_OUT_OF_RANGE, 40),
        ({"slba": 1 << 63}, Status.LBA_OUT_OF_RANGE, 40),
        ({"nsid": 0}, Status.INVALID_NAMESPACE, 4),
        ({"nsid": 1025}, Status.INVALID_NAMESPACE, 4),
        ({"nsid": 2}, Status.INVALID_FIELD, 4),
        ({"nsid": 0xFFFFFFFF}, Status.INVALID_FIELD, 4),
        ({"dwords": (1 << 20) // 4 + 1}, Status.INVALID_FIELD, 48),
        ({"slba": 2000, "length": 48}, Status.SUCCESS, None),
    ],
)
@pytest.mark.parametrize("action", [SCAN, TRACKED])
def test_refusals(fields, status, where, action):
    target = Target()
    admin = target.admin()
    assert lba_status(target, admin, **{"action": action, **fields}).status == status
    if where is not None:
        assert location(admin) == where


def test_inaccessible():
    target = Target()
    admin = target.admin()
    target.subsystem.set_ana_state(AnaState.INACCESSIBLE)
    assert lba_status(target, admin).status == Status.ANA_INACCESSIBLE


# The log page and its event


def test_the_log_page():
    backend = Flawed("1M")
    target = Target(Ramdisk("1M"), backend, Ramdisk("1M"))
    admin = target.admin()
    io = target.io(admin)
    assert log(admin) == (0, 0, {})
    mark(io, 7, 3)
    backend.bad_blocks = {3, 9}
    lba_status(target, admin, SCAN, nsid=2)
    assert log(admin) == (3, 5, {1: [(7, 3)], 2: [(3, 1), (9, 1)]})


def alert(admin):
    return admin.submit(admin.sqe(0x0C))


def test_alerts_keep_to_their_interval():
    backend = Flawed("1M")
    target = Target(backend)
    admin = target.admin()
    assert admin.get_feature(0x15).dw0 == 10 | 10 << 16
    completion = admin.set_feature(0x15, 50 | 7 << 16)
    assert (completion.status, completion.dw0) == (0, 50 | 10 << 16)
    assert admin.get_feature(0x15).dw0 == 50 | 10 << 16, "LSIPI is read-only"
    assert admin.set_feature(0x0B, 1 << 13).status == 0
    events = [alert(admin) for _ in range(3)]

    def scan(block):
        backend.bad_blocks.add(block)
        lba_status(target, admin, SCAN, block, 1)

    scan(1)
    assert events[0].step().dw0 == 0x0E0502
    scan(1)
    scan(3)
    target.runtime.time += 4
    target.runtime.settle()
    assert events[1].step() is None, "not before the host has read the page"
    log(admin)  # which starts the interval again
    scan(5)
    target.runtime.time += 4.9
    target.runtime.settle()
    assert events[1].step() is None
    target.runtime.time += 0.2
    target.runtime.settle()
    assert events[1].step().dw0 == 0x0E0502
    log(admin)
    scan(5)
    target.runtime.time += 100
    target.runtime.settle()
    assert events[2].step() is None, "nothing new"


def test_a_reset_drops_a_pending_alert():
    backend = Flawed("1M")
    target = Target(backend)
    admin = target.admin()
    admin.set_feature(0x15, 50)
    admin.set_feature(0x0B, 1 << 13)
    first, event = alert(admin), alert(admin)
    for block in (1, 3):
        backend.bad_blocks.add(block)
        lba_status(target, admin, SCAN, block, 1)
    assert first.step() is not None
    log(admin)
    admin.set_property(CC_OFFSET, CC_DISABLED)
    assert event.step().status == Status.ABORTED_BY_REQUEST
    admin.set_property(CC_OFFSET, CC_ENABLE)
    admin.set_feature(0x0B, 1 << 13)
    event = alert(admin)
    target.runtime.time += 60
    target.runtime.settle()
    assert event.step() is None, "what was found before the reset is in the page, and no event of after it"
    backend.bad_blocks.add(5)
    lba_status(target, admin, SCAN, 5, 1)
    assert event.step().dw0 == 0x0E0502, "at once: no interval has begun"


def test_no_alert_for_marks_of_the_host_or_without_the_feature():
    backend = Flawed("1M")
    target = Target(backend)
    admin = target.admin()
    event = alert(admin)
    backend.bad_blocks = {1}
    lba_status(target, admin, SCAN)
    assert event.step() is None
    admin.set_feature(0x0B, 1 << 13)
    mark(target.io(admin), 5, 1)
    assert event.step() is None


# Marks persist over a restart


def test_marks_are_stored():
    metadata_store = Durable()
    target = Target(kept(Ramdisk("1M"), metadata_store))
    io = target.io(target.admin())
    for slba, blocks in ((5, 10), (100, 1), (2040, 8)):
        assert finish(target, io.submit(io.sqe(0x04, nsid=1, cdw10=slba, cdw12=blocks - 1))).status == 0
    done = finish(target, io.submit(io.sqe(0x01, bytes(1024), nsid=1, cdw10=7, cdw12=1), bytes(1024)))
    assert done.status == 0
    target = Target(kept(Ramdisk("1M"), metadata_store))
    admin = target.admin()
    io = target.io(admin)
    expected = [(5, 2, 3), (9, 6, 3), (100, 1, 3), (2040, 8, 3)]
    assert parsed(admin, lba_status(target, admin)) == (2, expected)
    assert read(io, 5, 1).status == Status.UNRECOVERED_READ_ERROR
    assert read(io, 7, 2).status == 0
    target = Target(kept(Ramdisk("1020K"), metadata_store))
    admin = target.admin()
    assert parsed(admin, lba_status(target, admin)) == (2, [(5, 2, 3), (9, 6, 3), (100, 1, 3)])


def test_a_mark_that_cannot_be_stored():
    metadata_store = Durable()
    target = Target(kept(Ramdisk("1M"), metadata_store))
    io = target.io(target.admin())
    metadata_store.error = OSError(28, "full")
    assert mark(io, 5, 1).status == Status.CAPACITY_EXCEEDED
    metadata_store.error = None
    assert finish(target, io.submit(io.sqe(0x04, nsid=1, cdw10=5, cdw12=0))).status == 0
    metadata_store.error = OSError(5, "broken")
    pending = io.submit(io.sqe(0x01, bytes(512), nsid=1, cdw10=5, cdw12=0), bytes(512))
    assert finish(target, pending).status == Status.WRITE_FAULT


@pytest.mark.parametrize(
    "nonsense",
    [1, "x", [[1]], {"block_bytes": 512}]
    + [{"block_bytes": 512, "ranges": each} for each in (1, [[1]], [["a", "b"]], [[-5, 3]], [[7, 7]], [None])]
    + [{"block_bytes": float("inf"), "ranges": [[1, 2]]}],
)
def test_stored_marks_that_are_invalid_are_an_error(nonsense):
    """The old data of marked blocks must not be readable again."""
    metadata_store = Durable()
    metadata_store._values["uncorrectable"] = nonsense
    with pytest.raises(ConfigurationError, match="section 'uncorrectable' of"):
        Target(kept(Ramdisk("1M"), metadata_store))


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(512, 4096, [(1, 3)]), (4096, 512, [(72, 136)]), (512, 512, [(9, 17)])]
)
def test_marks_are_of_the_same_bytes_with_blocks_of_another_size(before, after, expected):
    metadata_store = Durable()
    target = Target(kept(Ramdisk("1M", block_bytes=before), metadata_store))
    assert mark(target.io(target.admin()), 9, 8).status == 0
    target = Target(kept(Ramdisk("1M", block_bytes=after), metadata_store))
    assert list(target.subsystem.namespaces[1].unreadable_blocks.marked) == expected


def test_marks_beyond_the_end_do_not_matter():
    metadata_store = Durable()
    metadata_store._values["uncorrectable"] = {"block_bytes": 512, "ranges": [[5000, 6000]]}
    target = Target(kept(Ramdisk("1M"), metadata_store))
    assert not target.subsystem.namespaces[1].unreadable_blocks.marked


@pytest.mark.parametrize("was_killed", [False, True])
@pytest.mark.parametrize("way", ["write", "zeroes", "deallocate", "copy"])
async def test_a_file_stores_its_marks(tmp_path, was_killed, way):
    path = tmp_path / "disk"
    backend, target = await file_target(path, size="1M")
    admin = target.admin()
    io = target.io(admin)
    assert (await execute_in_loop(io, 0x04, nsid=1, cdw10=8, cdw12=15)).status == 0
    await backend.close() if not was_killed else killed(backend)
    again = FileBackend(path)
    await again.open()
    target = Target(again)
    io = target.io(target.admin())
    assert read(io, 8, 16).status == Status.UNRECOVERED_READ_ERROR
    commands = {
        "write": (0x01, bytes(4096), {"cdw10": 8, "cdw12": 7}),
        "zeroes": (0x08, None, {"cdw10": 8, "cdw12": 7}),
        "deallocate": (0x09, struct.pack("<IIQ", 0, 8, 8), {"cdw11": 4}),
        "copy": (0x19, struct.pack("<8xQH14x", 100, 7), {"cdw10": 8}),
    }
    opcode, data, fields = commands[way]
    assert (await execute_in_loop(io, opcode, data, nsid=1, **fields)).status == 0
    await again.close() if not was_killed else killed(again)
    last = FileBackend(path)
    await last.open()
    io = Target(last).io(target.admin()) if False else Target(last)
    assert list(io.subsystem.namespaces[1].unreadable_blocks.marked) == [(16, 24)]
    await last.close()
    await again.close()
    await backend.close()


RANGES = st.lists(
    st.tuples(st.sampled_from(["mark", "fail", "forget"]), st.integers(0, 40), st.integers(1, 9)), max_size=20
)


@settings(max_examples=150, deadline=None)
@given(RANGES)
def test_ranges_against_sets(actions):
    target = Target()
    unreadable_blocks = target.subsystem.namespaces[1].unreadable_blocks
    marked: set[int] = set()
    failing: set[int] = set()
    for action, start, blocks in actions:
        some = set(range(start, start + blocks))
        if action == "mark":
            unreadable_blocks.mark(start, start + blocks)
            marked |= some
        elif action == "fail":
            before = unreadable_blocks.generation
            unreadable_blocks.fail(start, start + blocks)
            assert unreadable_blocks.generation - before == (not some <= failing)
            failing |= some
        else:
            unreadable_blocks.forget(start, start + blocks)
            marked -= some
            failing -= some
    seen = {block: by_host for start, end, by_host in unreadable_blocks.ranges(3, 45) for block in range(start, end)}
    assert seen == {block: block in marked for block in marked | failing if 3 <= block < 45}
    starts = [start for start, _, _ in unreadable_blocks.ranges(0, 100)]
    assert starts == sorted(starts)
    assert unreadable_blocks.some == bool(marked | failing)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=8), st.integers(0, 40), st.integers(1, 9))
def test_covers(items, start, blocks):
    ranges, model = BlockRanges(), set()
    for first, count in items:
        ranges.add(first, first + count)
        model |= set(range(first, first + count))
    assert ranges.covers(start, start + blocks) == (set(range(start, start + blocks)) <= model)


def test_allocated_blocks(monkeypatch):
    """Action 02h lists the blocks that may hold data: of a ramdisk, the written pages."""
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", mmap.MADV_NOHUGEPAGE)  # a huge page would be written as a whole
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    assert parsed(admin, lba_status(target, admin, ALLOCATED)) == (2, [])
    write(io, 16, bytes(512))
    write(io, 1024, bytes(512))
    assert parsed(admin, lba_status(target, admin, ALLOCATED)) == (2, [(16, 8, 0), (1024, 8, 0)])
    assert parsed(admin, lba_status(target, admin, ALLOCATED, 20, 2)) == (2, [(20, 2, 0)])
    assert parsed(admin, lba_status(target, admin, ALLOCATED, 0, 16)) == (2, [])
    assert parsed(admin, lba_status(target, admin, ALLOCATED, dwords=6)) == (1, [(16, 8, 0)])


def test_allocated_blocks_that_the_storage_cannot_tell(monkeypatch):
    target = Target()
    admin = target.admin()

    def fails(offset, length):
        raise OSError(errno.EIO, "the map is gone")

    monkeypatch.setattr(target.subsystem.namespaces[1].backend, "allocated", fails)
    assert lba_status(target, admin, ALLOCATED).status == Status.UNRECOVERED_READ_ERROR
    assert lba_status(target, admin).status == Status.SUCCESS
