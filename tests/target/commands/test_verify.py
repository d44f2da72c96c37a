import errno

import pytest

from nvmeof.spec.identify import IDENTIFY_CONTROLLER_NVM, mdts_bytes
from nvmeof.spec.status import Status
from nvmeof.target.commands.io.verify import VERIFY_LIMIT_BYTES
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.target.commands.test_nvm import BLOCKS, ERRORS, Broken, io_queue, last_error, rw
from tests.target.harness import Target


def verify(queue, slba: int, blocks: int, **fields):
    return queue.command(0x0C, **rw(slba, blocks, **fields))


def test_verify_is_counted():
    queue = io_queue()
    completion = verify(queue, 3, 7)
    assert (completion.status, completion.data) == (0, None)
    counters = queue.ctx.namespaces[1].counters
    assert (counters.reads, counters.verifies, counters.blocks_verified) == (0, 1, 7)


def test_the_limit_is_that_of_identify():
    target = Target(Ramdisk("64M"), max_transfer_bytes=8192)
    admin = target.admin()
    limits = IDENTIFY_CONTROLLER_NVM.parse(admin.read_bytes(admin.identify(6)))
    assert mdts_bytes(limits.vsl) == VERIFY_LIMIT_BYTES
    assert limits.wzsl == limits.wusl == limits.dmrl == limits.dmrsl == limits.dmsl == 0
    queue = target.io(admin)
    blocks = VERIFY_LIMIT_BYTES // 512
    assert verify(queue, 0, blocks).status == 0
    assert verify(queue, 0, blocks + 1).status == Status.INVALID_FIELD
    assert last_error(queue).error_location == 48


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": BLOCKS}, Status.LBA_OUT_OF_RANGE),
        ({"cdw11": 1 << 31}, Status.LBA_OUT_OF_RANGE),
        ({"nsid": 2}, Status.INVALID_FIELD),
        ({"nsid": 0}, Status.INVALID_NAMESPACE),
        ({"nsid": 1025}, Status.INVALID_NAMESPACE),
        ({"nsid": 0xFFFFFFFF}, Status.INVALID_FIELD),
        ({"cdw12": 1 << 31 | 1 << 30}, Status.SUCCESS),
    ],
)
def test_verify_is_checked(fields, status):
    assert verify(io_queue(), 0, 1, **fields).status == status


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("code", "status", "dnr"),
    [(row[0], row[1], row[3]) for row in ERRORS],
    ids=[errno.errorcode[row[0]] for row in ERRORS],
)
def test_backend_errors(code, status, dnr, later):
    queue = io_queue(Broken(code, later=later))
    completion = verify(queue, 0, 1)
    assert (completion.status, completion.dnr) == (status, dnr)
    assert (queue.ctx.namespaces[1].counters.media_errors == 1) == (code == errno.EIO)
