import errno
import struct
from dataclasses import replace

import pytest

from nvmeof.spec.enums import AnaState
from nvmeof.spec.status import Status
from nvmeof.target.storage.base import Backend, Capabilities, Lease
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import IN_CAPSULE, Pending, Target, TestQueue

BLOCKS = 2048  # of 512 bytes


def io_queue(*backends: Backend, **options) -> TestQueue:
    target = Target(*(backends or (Ramdisk("1M"),)), **options)
    return target.io(target.admin())


def rw(slba: int, blocks: int, **fields):
    return {"nsid": 1, "cdw10": slba & 0xFFFFFFFF, "cdw11": slba >> 32, "cdw12": blocks - 1, **fields}


def read(queue: TestQueue, slba: int, blocks: int, block_bytes: int = 512, **fields):
    return queue.command(0x02, length=blocks * block_bytes, **rw(slba, blocks, **fields))


def write(queue: TestQueue, slba: int, data: bytes, block_bytes: int = 512, **fields):
    return queue.command(0x01, data, **rw(slba, len(data) // block_bytes, **fields))


def last_error(queue: TestQueue):
    return queue.controller.error_log.newest()[0]


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_write_then_read(block_bytes):
    queue = io_queue(Ramdisk("1M", block_bytes=block_bytes))
    data = bytes(range(256)) * (block_bytes * 3 // 256)
    assert write(queue, 5, data, block_bytes).status == 0
    assert queue.read_bytes(read(queue, 4, 5, block_bytes)) == bytes(block_bytes) + data + bytes(block_bytes)
    counters = queue.ctx.namespaces[1].counters
    assert (counters.reads, counters.writes, counters.blocks_read, counters.blocks_written) == (1, 1, 5, 3)


def test_read_of_memory_is_not_stable():
    assert read(io_queue(), 0, 1).stable is False


@pytest.mark.parametrize(
    ("slba", "blocks", "good"),
    [
        (0, 2048, True),
        (2047, 1, True),
        (2048, 1, False),
        (2047, 2, False),
        (1 << 63, 1, False),
        ((1 << 64) - 1, 1, False),
    ],
)
def test_block_ranges(slba, blocks, good):
    queue = io_queue()
    expected = 0 if good else Status.LBA_OUT_OF_RANGE
    assert read(queue, slba, blocks).status == expected
    assert write(queue, slba, bytes(512 * blocks)).status == expected
    assert queue.command(0x08, **rw(slba, blocks)).status == expected
    if not good:
        entry = last_error(queue)
        assert (entry.error_location, entry.lba, entry.nsid, entry.sqid, entry.opcode) == (40, slba, 1, 1, 8)


def test_mdts():
    queue = io_queue(max_transfer_bytes=8192)
    assert read(queue, 0, 16).status == 0
    assert read(queue, 0, 17).status == Status.INVALID_FIELD
    assert last_error(queue).error_location == 48
    assert write(queue, 0, bytes(8704)).status == Status.INVALID_FIELD
    assert queue.command(0x08, **rw(0, 2048)).status == 0, "Write Zeroes moves no data"


@pytest.mark.parametrize(
    ("nsid", "status"),
    [
        (0, Status.INVALID_NAMESPACE),
        (2, Status.INVALID_FIELD),
        (1024, Status.INVALID_FIELD),
        (1025, Status.INVALID_NAMESPACE),
        (0xFFFFFFFE, Status.INVALID_NAMESPACE),
        (0xFFFFFFFF, Status.INVALID_FIELD),
    ],
)
@pytest.mark.parametrize("opcode", [0x01, 0x02, 0x08, 0x09])
def test_namespaces_that_do_not_exist(nsid, status, opcode):
    queue = io_queue()
    assert queue.command(opcode, length=512, nsid=nsid).status == status
    assert last_error(queue).error_location == 4


@pytest.mark.parametrize("opcode", [0x12, 0x1D, 0x7D, 0x80, 0xFF])
def test_opcodes_that_do_not_exist(opcode):
    queue = io_queue()
    assert queue.command(opcode, nsid=1).status == Status.INVALID_OPCODE
    assert last_error(queue).error_location == 0


def test_admin_commands_do_not_exist_on_io_queues():
    assert io_queue().command(0x06, length=4096, cdw10=1).status == Status.INVALID_OPCODE


@pytest.mark.parametrize("flags", [0x41, 0x42, 0x43])
def test_fused_operations_are_refused(flags):
    queue = io_queue()
    assert read(queue, 0, 1, flags=flags).status == Status.INVALID_FIELD
    assert last_error(queue).error_location == 1


@pytest.mark.parametrize("flags", [0x00, 0x80, 0xC0])
def test_data_must_be_described_by_sgls(flags):
    queue = io_queue()
    assert read(queue, 0, 1, flags=flags).status == Status.INVALID_FIELD
    assert last_error(queue).error_location == 1 | 6 << 8


@pytest.mark.parametrize(
    ("opcode", "fields", "status"),
    [
        (0x02, {"sgl_length": 1024}, Status.DATA_SGL_LENGTH_INVALID),
        (0x02, {"sgl_length": 0}, Status.DATA_SGL_LENGTH_INVALID),
        (0x01, {"sgl_length": 511}, Status.DATA_SGL_LENGTH_INVALID),
        (0x02, {"sgl_type": IN_CAPSULE}, Status.SGL_DESCRIPTOR_TYPE_INVALID),
        (0x02, {"sgl_type": 0x00}, Status.SGL_DESCRIPTOR_TYPE_INVALID),
        (0x01, {"sgl_type": 0x40}, Status.SGL_DESCRIPTOR_TYPE_INVALID),
        (0x01, {"sgl_type": IN_CAPSULE, "sgl_address": 8192}, Status.SGL_OFFSET_INVALID),
    ],
)
def test_sgls(opcode, fields, status):
    assert io_queue().command(opcode, length=512, **rw(0, 1, **fields)).status == status


def test_in_capsule_data_up_to_its_limit():
    queue = io_queue(incapsule_bytes=4096)
    assert write(queue, 0, bytes(4096), sgl_type=IN_CAPSULE).status == 0
    assert write(queue, 0, bytes(4608), sgl_type=IN_CAPSULE).status == Status.SGL_OFFSET_INVALID


@pytest.mark.parametrize("deallocate", [0, 1 << 25])
def test_write_zeroes(deallocate):
    queue = io_queue()
    write(queue, 0, b"\xff" * 512 * 100)
    assert queue.command(0x08, nsid=1, cdw10=3, cdw12=89 | deallocate).status == 0
    data = queue.read_bytes(read(queue, 0, 100))
    assert data == b"\xff" * 512 * 3 + bytes(512 * 90) + b"\xff" * 512 * 7


def ranges(*items: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<IIQ", 0, length, slba) for slba, length in items)


def test_deallocate_with_a_whole_page_in_the_capsule():
    queue = io_queue()
    write(queue, 0, b"\xff" * 512 * 64)
    data = ranges((1, 2), (10, 20)).ljust(4096, b"\0")
    assert queue.command(0x09, data, nsid=1, cdw10=1, cdw11=4, sgl_type=IN_CAPSULE).status == 0
    left = queue.read_bytes(read(queue, 0, 64))
    assert [index for index in range(64) if not any(left[512 * index : 512 * index + 512])] == [1, 2, *range(10, 30)]


def test_deallocate_256_ranges():
    queue = io_queue()
    write(queue, 0, b"\xff" * 512 * 512)
    assert queue.command(0x09, ranges(*((2 * i, 1) for i in range(256))), nsid=1, cdw10=255, cdw11=4).status == 0
    left = queue.read_bytes(read(queue, 0, 512))
    assert left == (bytes(512) + b"\xff" * 512) * 256


def test_deallocate_checks_every_range_before_the_first():
    queue = io_queue()
    write(queue, 0, b"\xff" * 512)
    completion = queue.command(0x09, ranges((0, 1), (BLOCKS, 1)), nsid=1, cdw10=1, cdw11=4)
    assert completion.status == Status.LBA_OUT_OF_RANGE
    assert queue.read_bytes(read(queue, 0, 1)) == b"\xff" * 512


def test_dataset_management_hints_have_no_effect():
    queue = io_queue()
    write(queue, 0, b"\xff" * 512)
    assert queue.command(0x09, ranges((0, 1)), nsid=1, cdw10=0, cdw11=3).status == 0
    assert queue.read_bytes(read(queue, 0, 1)) == b"\xff" * 512
    assert queue.command(0x09, ranges((0, 0)), nsid=1, cdw10=0, cdw11=4).status == 0, "a range of no blocks"


def test_dataset_management_lengths():
    queue = io_queue()
    assert queue.command(0x09, bytes(16), nsid=1, cdw10=1, cdw11=4).status == Status.DATA_SGL_LENGTH_INVALID
    assert queue.command(0x09, length=8192, nsid=1, cdw11=4).status == Status.DATA_SGL_LENGTH_INVALID


def test_flush_one_and_all():
    queue = io_queue(Ramdisk("1M"), Ramdisk("1M"))
    assert queue.command(0x00, nsid=1).status == 0
    assert queue.command(0x00, nsid=0xFFFFFFFF).status == 0
    assert queue.command(0x00, nsid=3).status == Status.INVALID_FIELD
    assert queue.command(0x00, nsid=0).status == Status.INVALID_NAMESPACE


def test_read_only_namespace():
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True))
    queue = target.io(target.admin())
    assert read(queue, 0, 1, nsid=2).status == 0
    assert write(queue, 0, bytes(512), nsid=2).status == Status.NAMESPACE_WRITE_PROTECTED
    assert queue.command(0x08, **rw(0, 1, nsid=2)).status == Status.NAMESPACE_WRITE_PROTECTED
    assert queue.command(0x09, ranges((0, 1)), nsid=2, cdw11=4).status == Status.NAMESPACE_WRITE_PROTECTED
    assert queue.command(0x00, nsid=2).status == 0


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (AnaState.NON_OPTIMIZED, Status.SUCCESS),
        (AnaState.INACCESSIBLE, Status.ANA_INACCESSIBLE),
        (AnaState.PERSISTENT_LOSS, Status.ANA_PERSISTENT_LOSS),
        (AnaState.CHANGE, Status.ANA_TRANSITION),
    ],
)
def test_asymmetric_access(state, status):
    target = Target()
    queue = target.io(target.admin())
    target.subsystem.set_ana_state(state)
    completion = read(queue, 0, 1)
    assert (completion.status, completion.dnr) == (status, False)
    if state is not AnaState.PERSISTENT_LOSS:  # a state without an end
        target.subsystem.set_ana_state(AnaState.OPTIMIZED)
        assert read(queue, 0, 1).status == 0


def test_a_namespace_that_is_removed_while_data_is_in_flight():
    from nvmeof.target.commands.table import execute, prepare

    target = Target()
    queue = target.io(target.admin())
    sqe = queue.sqe(0x01, bytes(512), nsid=1)
    spec, length = prepare(queue.ctx, sqe)
    target.subsystem.remove_namespace(1)
    assert execute(queue.ctx, spec, sqe, memoryview(bytearray(length))).status == Status.INVALID_FIELD


class Broken(Backend):
    """A backend that fails with one error, at once or later."""

    description = "broken"
    capabilities = Capabilities(size_bytes=1 << 20, can_deallocate=True, volatile_cache=True)

    def __init__(self, code: int, *, later: bool) -> None:
        self.code, self.later = code, later

    def _fail(self, *args, **kwargs):
        error = OSError(self.code, "broken")
        if not self.later:
            raise error

        async def fail() -> Lease:
            raise error

        return fail()

    acquire_read = write = write_zeroes = deallocate = flush = resize = _fail


ERRORS = [
    (errno.ENOSPC, Status.INTERNAL_ERROR, Status.CAPACITY_EXCEEDED, True),
    (errno.EDQUOT, Status.INTERNAL_ERROR, Status.CAPACITY_EXCEEDED, True),
    (errno.EIO, Status.UNRECOVERED_READ_ERROR, Status.WRITE_FAULT, True),
    (errno.EROFS, Status.INTERNAL_ERROR, Status.NAMESPACE_WRITE_PROTECTED, True),
    (errno.EBADF, Status.NAMESPACE_NOT_READY, Status.NAMESPACE_NOT_READY, False),
    (errno.ENXIO, Status.NAMESPACE_NOT_READY, Status.NAMESPACE_NOT_READY, False),
    (errno.ENOMEM, Status.INTERNAL_ERROR, Status.INTERNAL_ERROR, False),
    (errno.EINVAL, Status.INTERNAL_ERROR, Status.INTERNAL_ERROR, True),
]


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("code", "on_read", "on_write", "dnr"), ERRORS, ids=[errno.errorcode[item[0]] for item in ERRORS]
)
def test_backend_errors(code, on_read, on_write, dnr, later):
    queue = io_queue(Broken(code, later=later))
    completion = read(queue, 0, 1)
    assert (completion.status, completion.dnr, completion.more) == (on_read, dnr, True)
    for command in (
        lambda: write(queue, 0, bytes(512)),
        lambda: queue.command(0x08, **rw(0, 1)),
        lambda: queue.command(0x00, nsid=1),
        lambda: queue.command(0x00, nsid=0xFFFFFFFF),
        lambda: queue.command(0x09, ranges((0, 1), (5, 1)), nsid=1, cdw10=1, cdw11=4),
    ):
        completion = command()
        assert (completion.status, completion.dnr) == (on_write, dnr)
    media = queue.ctx.namespaces[1].counters.media_errors
    assert (media > 0) == (code == errno.EIO)


def test_a_defect_in_a_backend_fails_one_command_only(caplog):
    class Defective(Broken):
        def _fail(self, *args, **kwargs):
            raise RuntimeError("oops")

        acquire_read = _fail

    queue = io_queue(Defective(0, later=False))
    completion = read(queue, 0, 1)
    assert completion.status == Status.INTERNAL_ERROR and completion.dnr
    assert "Read failed on queue 1: RuntimeError: oops" in caplog.text
    assert read(queue, 9999, 1).status == Status.LBA_OUT_OF_RANGE


class Recording(Ramdisk):
    """A backend that records FUA."""

    def __init__(self) -> None:
        super().__init__("1M")
        self.fua: list[bool] = []
        self._capabilities = replace(self._capabilities, volatile_cache=True)

    def write(self, offset, data, *, fua=False):
        self.fua.append(fua)
        return super().write(offset, data, fua=fua)


def test_force_unit_access_and_write_cache_switched_off():
    backend = Recording()
    target = Target(backend)
    admin = target.admin()
    queue = target.io(admin)
    write(queue, 0, bytes(512))
    queue.command(0x01, bytes(512), nsid=1, cdw12=1 << 30)
    assert admin.set_feature(0x06, 0).status == 0
    write(queue, 0, bytes(512))
    admin.set_feature(0x06, 1)
    write(queue, 0, bytes(512))
    assert backend.fua == [False, True, True, False]


@pytest.mark.parametrize("how", ["dsm", "zeroes", "all"])
def test_a_long_deallocation_yields_to_others(how):
    target = Target(Ramdisk("64M"))
    queue = target.io(target.admin())
    memory = target.subsystem.namespaces[1].memory
    memory[:] = b"x" * len(memory)
    first, end = 3, (64 << 20) // 512 - (0 if how == "all" else 3)
    if how == "dsm":
        data = b"".join(struct.pack("<IIQ", 0, 1000, at) for at in (3, 1003)) + struct.pack("<IIQ", 0, end - 2003, 2003)
        pending = queue.submit(queue.sqe(0x09, data, nsid=1, cdw10=2, cdw11=4), data)
    elif how == "zeroes":
        end = first + 65536
        pending = queue.submit(queue.sqe(0x08, nsid=1, cdw10=first, cdw12=65535))
    else:
        first = 0
        pending = queue.submit(queue.sqe(0x08, nsid=1, cdw12=1 << 25 | 1 << 23))
    turns = 0
    while isinstance(pending, Pending) and pending.step() is None:
        assert target.runtime.turn()
        turns += 1
    assert turns >= (3 if how == "zeroes" else 7), "8 MiB at a time"
    assert (pending.completion.status, pending.completion.dw0) == (0, how == "all")
    assert not any(memory[first * 512 : end * 512])
    assert bytes(memory[: first * 512]) == b"x" * (first * 512)
    assert bytes(memory[end * 512 :]) == b"x" * (len(memory) - end * 512)
