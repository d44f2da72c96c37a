import errno

import pytest

from nvmeof.spec.status import Status
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.backend_tools import Hidden
from tests.target.commands.test_nvm import BLOCKS, ERRORS, Broken, io_queue, last_error, rw, write
from tests.target.harness import IN_CAPSULE, Target


def compare(queue, slba: int, data: bytes, **fields):
    return queue.command(0x05, data, **rw(slba, len(data) // 512, **fields))


@pytest.mark.parametrize("backend", [Ramdisk, Hidden])
@pytest.mark.parametrize("fields", [{}, {"sgl_type": IN_CAPSULE}])
def test_compare(backend, fields):
    queue = io_queue(backend("1M"))
    data = bytes(range(256)) * 6
    write(queue, 5, data)
    assert compare(queue, 5, data, **fields).status == 0
    assert compare(queue, 4, bytes(512) + data + bytes(512), **fields).status == 0
    for position in (0, 511, 512, len(data) - 1):
        other = bytearray(data)
        other[position] ^= 1
        completion = compare(queue, 5, bytes(other), **fields)
        assert (completion.status, completion.dnr, completion.more) == (Status.COMPARE_FAILURE, True, True)
        assert last_error(queue).lba == 5
    counters = queue.ctx.namespaces[1].counters
    assert (counters.reads, counters.blocks_read, counters.media_errors) == (6, 3 + 5 + 4 * 3, 0)


def test_compare_changes_nothing():
    queue = io_queue()
    write(queue, 0, b"a" * 1024)
    assert compare(queue, 0, b"b" * 1024).status == Status.COMPARE_FAILURE
    assert compare(queue, 0, b"a" * 1024).status == 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": BLOCKS}, Status.LBA_OUT_OF_RANGE),
        ({"cdw11": 1 << 31}, Status.LBA_OUT_OF_RANGE),
        ({"cdw12": 16, "sgl_length": 8704}, Status.INVALID_FIELD),
        ({"cdw12": 1}, Status.DATA_SGL_LENGTH_INVALID),
        ({"sgl_type": 0x40}, Status.SGL_DESCRIPTOR_TYPE_INVALID),
        ({"nsid": 2}, Status.INVALID_FIELD),
        ({"nsid": 0}, Status.INVALID_NAMESPACE),
        ({"nsid": 1025}, Status.INVALID_NAMESPACE),
        ({"nsid": 0xFFFFFFFF}, Status.INVALID_FIELD),
        ({"cdw12": 1 << 31 | 1 << 30}, Status.SUCCESS),
    ],
)
def test_compare_is_checked(fields, status):
    queue = io_queue(max_transfer_bytes=8192)
    assert compare(queue, 0, bytes(512), **fields).status == status


def test_compare_with_a_read_only_namespace():
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True))
    queue = target.io(target.admin())
    assert compare(queue, 0, bytes(512), nsid=2).status == 0


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("code", "status", "dnr"),
    [(row[0], row[1], row[3]) for row in ERRORS],
    ids=[errno.errorcode[row[0]] for row in ERRORS],
)
def test_backend_errors(code, status, dnr, later):
    queue = io_queue(Broken(code, later=later))
    completion = compare(queue, 0, bytes(512))
    assert (completion.status, completion.dnr) == (status, dnr)


def test_a_namespace_that_is_removed_while_data_is_in_flight():
    from nvmeof.target.commands.table import execute, prepare

    target = Target()
    queue = target.io(target.admin())
    sqe = queue.sqe(0x05, bytes(512), nsid=1)
    spec, length = prepare(queue.ctx, sqe)
    target.subsystem.remove_namespace(1)
    assert execute(queue.ctx, spec, sqe, memoryview(bytearray(length))).status == Status.INVALID_FIELD
