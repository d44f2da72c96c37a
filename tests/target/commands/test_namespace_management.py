import struct

import pytest

from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.log_pages import ERROR_INFORMATION_ENTRY
from nvmeof.spec.status import Status
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import IN_CAPSULE, Pending, Target, TestQueue
from tests.target.management_tools import (
    ALL,
    ATTACH,
    MANAGE,
    FailingStore,
    active,
    allocated,
    attach,
    attached,
    bit,
    capacity,
    controller_list,
    create,
    create_data,
    delete,
    detach,
    error,
    read,
    write,
)

DATA = 24


@pytest.fixture
def target():
    return Target(pool=RamdiskPool("10M"))


@pytest.fixture
def queue(target):
    return target.admin()


# The life of a namespace


def test_a_namespace_is_created_attached_used_detached_and_deleted(target, queue):
    io = target.io(queue)
    before = capacity(queue)
    assert before == (11 << 20, 10 << 20)
    created = create(queue)
    assert (created.status, created.dw0) == (0, 2)
    assert allocated(queue) == [1, 2] and active(queue) == [1] and attached(queue, 2) == []
    assert capacity(queue) == (11 << 20, 9 << 20)
    assert read(io, 2).status == Status.INVALID_FIELD
    assert not any(queue.read_bytes(queue.identify(0, 2)))
    seen = IDENTIFY_NAMESPACE.parse(queue.read_bytes(queue.identify(0x11, 2)))
    assert (seen.nsze, seen.ncap, seen.nmic, seen.nvmcap, seen.endgid, seen.anagrpid) == (2048, 2048, 1, 1 << 20, 1, 1)
    assert any(seen.nguid)

    assert attach(queue, 2).status == 0
    assert active(queue) == [1, 2] and attached(queue, 2) == [1]
    assert queue.identify(3, 2).status == 0
    assert write(io, 2, b"nvme" * 128).status == 0
    assert io.read_bytes(read(io, 2)) == b"nvme" * 128

    assert detach(queue, 2).status == 0
    assert active(queue) == [1] and allocated(queue) == [1, 2]
    assert read(io, 2).status == write(io, 2, bytes(512)).status == Status.INVALID_FIELD
    assert attach(queue, 2).status == 0
    assert io.read_bytes(read(io, 2)) == b"nvme" * 128, "what it holds stays"

    assert delete(queue, 2).status == 0
    assert active(queue) == allocated(queue) == [1] and capacity(queue) == before
    assert read(io, 2).status == Status.INVALID_FIELD
    again = create(queue)
    assert again.dw0 == 2 and attach(queue, 2).status == 0
    assert not any(io.read_bytes(read(io, 2))), "a new one is empty"
    other = IDENTIFY_NAMESPACE.parse(queue.read_bytes(queue.identify(0, 2)))
    assert other.nguid != seen.nguid, "and not taken for the old one"


def test_without_a_pool_there_is_no_management():
    queue = Target().admin()
    for completion in (create(queue), delete(queue, 1), attach(queue, 1), detach(queue, 1)):
        assert completion.status == Status.INVALID_OPCODE
    data = IDENTIFY_CONTROLLER.parse(queue.read_bytes(queue.identify(1)))
    assert not data.oacs & 8 and not data.ctratt & 1 << 7 and data.anacap == 0x1F and data.unvmcap == 0
    assert queue.identify(0, ALL).status == Status.INVALID_NAMESPACE
    assert queue.identify(5, ALL).status == Status.INVALID_NAMESPACE


def test_identify_reports_namespace_management(queue):
    data = IDENTIFY_CONTROLLER.parse(queue.read_bytes(queue.identify(1)))
    assert data.oacs & 8 and data.ctratt & (1 << 7 | 1 << 4) == 1 << 7 | 1 << 4 and data.anacap == 0x9F
    effects = queue.read_bytes(queue.log_page(5, 4096))
    for opcode in (MANAGE, ATTACH):
        (entry,) = struct.unpack_from("<I", effects, opcode * 4)
        assert entry & 0b1001 == 0b1001, "supported, and the namespaces change"
    assert target_discovery_knows_nothing()


def target_discovery_knows_nothing() -> bool:
    queue = Target(pool=RamdiskPool("1M")).discovery()
    return create(queue).status == attach(queue, 1).status == Status.INVALID_OPCODE


# Create


@pytest.mark.parametrize(
    ("fields", "status", "location"),
    [
        ({}, Status.SUCCESS, None),
        ({"flbas": 1, "nsze": 256}, Status.SUCCESS, None),
        ({"anagrpid": 1, "endgid": 1, "nmic": 0}, Status.SUCCESS, None),
        ({"flbas": 0x10}, Status.SUCCESS, None),
        ({"cdw10": 2}, Status.INVALID_FIELD, bit(40)),
        ({"cdw10": 15}, Status.INVALID_FIELD, bit(40)),
        ({"nsid": 1}, Status.INVALID_FIELD, bit(4)),
        ({"nsid": ALL}, Status.INVALID_FIELD, bit(4)),
        ({"cdw11": 1 << 24}, Status.IO_COMMAND_SET_NOT_SUPPORTED, bit(44, 24)),
        ({"cdw11": 0xFF << 24}, Status.IO_COMMAND_SET_NOT_SUPPORTED, bit(44, 24)),
        ({"nmic": 2}, Status.INVALID_FIELD, DATA),
        ({"nvmsetid": 1}, Status.INVALID_FIELD, DATA),
        ({"endgid": 2}, Status.INVALID_FIELD, DATA),
        ({"lbstm": 1}, Status.INVALID_FIELD, DATA),
        ({"nphndls": 1}, Status.INVALID_FIELD, DATA),
        ({"anagrpid": 33}, Status.ANA_GROUP_ID_INVALID, DATA),
        ({"flbas": 2}, Status.INVALID_FORMAT, DATA),
        ({"flbas": 0x20}, Status.INVALID_FORMAT, DATA),
        ({"dps": 1}, Status.INVALID_FORMAT, DATA),
        ({"nsze": 0}, Status.INVALID_FIELD, DATA),
        ({"nsze": 8, "ncap": 9}, Status.INVALID_FIELD, DATA),
        ({"nsze": 8, "ncap": 7}, Status.THIN_PROVISIONING_NOT_SUPPORTED, DATA),
        ({"nsze": 8, "ncap": 0}, Status.THIN_PROVISIONING_NOT_SUPPORTED, DATA),
        ({"nsze": 20481}, Status.NAMESPACE_INSUFFICIENT_CAPACITY, DATA),
        ({"nsze": (1 << 64) - 1}, Status.NAMESPACE_INSUFFICIENT_CAPACITY, DATA),
    ],
)
def test_create_is_checked(queue, fields, status, location):
    completion = create(queue, **fields)
    assert completion.status == status
    assert allocated(queue) == ([1] if status else [1, 2])
    if location is not None:
        assert error(queue).error_location == location
        assert capacity(queue) == (11 << 20, 10 << 20) and completion.dw0 == 0


def test_the_error_log_names_the_missing_space(queue):
    assert create(queue, nsze=30001).status == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    entry = ERROR_INFORMATION_ENTRY.parse(queue.read_bytes(queue.log_page(1, 64)))
    assert entry.cs == 3751 * 4096, "in whole units of allocation"


def test_capacity_is_allocated_in_units(queue):
    assert create(queue, nsze=1).status == 0
    assert capacity(queue)[1] == (10 << 20) - 4096
    assert create(queue, nsze=20472).status == 0 and capacity(queue)[1] == 0
    assert create(queue, nsze=1).status == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert delete(queue, 2).status == 0 and create(queue, nsze=8).status == 0


def test_formats(target, queue):
    assert create(queue, flbas=1, nsze=16).status == attach(queue, 2).status == 0
    data = IDENTIFY_NAMESPACE.parse(queue.read_bytes(queue.identify(0, 2)))
    assert (data.nsze, data.flbas, data.lbaf[data.flbas].lbads, data.nvmcap) == (16, 1, 12, 65536)


def test_identifiers_run_out():
    queue = Target(pool=RamdiskPool("10M"), max_namespaces=3).admin()
    assert [create(queue, nsze=8).dw0 for _ in range(2)] == [2, 3]
    assert create(queue, nsze=8).status == Status.NAMESPACE_ID_UNAVAILABLE
    assert delete(queue, 2).status == 0 and create(queue, nsze=8).dw0 == 2


def test_an_nsid_is_not_used_again_before_its_commands_have_ended(target, queue):
    create(queue)
    attach(queue, 2)
    io = target.io(queue)
    io.ctx.queue.in_progress[7] = 2
    delete(queue, 2)
    assert create(queue).dw0 == 3, "what is on its way to the old one must not reach a new one"
    del io.ctx.queue.in_progress[7]
    assert create(queue).dw0 == 2
    queue.ctx.queue.in_progress[1] = 4  # an admin command
    assert create(queue).dw0 == 4


def test_memory_runs_out(queue, monkeypatch):
    def no_memory(self, size_bytes):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(Ramdisk, "_new_map", no_memory)
    assert create(queue).status == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    monkeypatch.setattr(RamdiskPool, "create", lambda self, *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert create(queue).status == Status.INTERNAL_ERROR
    monkeypatch.undo()
    assert create(queue).dw0 == 2 and capacity(queue)[1] == 9 << 20


@pytest.mark.parametrize("length", [512, 4092, 4100, 8192])
def test_the_length_of_the_data(queue, length):
    assert queue.command(MANAGE, bytes(length)).status == Status.DATA_SGL_LENGTH_INVALID
    assert queue.command(ATTACH, bytes(length), nsid=1).status == Status.DATA_SGL_LENGTH_INVALID
    assert queue.command(MANAGE, create_data(), sgl_type=IN_CAPSULE).status == 0


# Delete


@pytest.mark.parametrize(
    ("nsid", "status"),
    [
        (0, Status.INVALID_NAMESPACE),
        (1, Status.OPERATION_DENIED),
        (3, Status.INVALID_FIELD),
        (1024, Status.INVALID_FIELD),
        (1025, Status.INVALID_NAMESPACE),
        (0xFFFFFFFE, Status.INVALID_NAMESPACE),
        (ALL, Status.OPERATION_DENIED),
    ],
)
def test_delete_is_checked(queue, nsid, status):
    create(queue)
    assert delete(queue, nsid).status == status
    assert error(queue).error_location == 4
    assert allocated(queue) == [1, 2]


def test_delete_all():
    target = Target(pool=RamdiskPool("10M"))
    target.subsystem.remove_namespace(1)
    queue = target.admin()
    assert delete(queue, ALL).status == 0, "of none"
    for _ in range(3):
        create(queue)
    attach(queue, 2)
    assert delete(queue, ALL).status == 0
    assert allocated(queue) == active(queue) == [] and capacity(queue) == (10 << 20, 10 << 20)


def test_a_write_protected_namespace_is_not_deleted(target, queue):
    create(queue)
    attach(queue, 2)
    assert queue.set_feature(0x84, 1, nsid=2).status == 0
    assert delete(queue, 2).status == Status.NAMESPACE_WRITE_PROTECTED
    assert allocated(queue) == [1, 2]


def test_a_configured_namespace_can_be_detached_but_not_deleted(queue):
    assert detach(queue, 1).status == 0 and active(queue) == []
    assert delete(queue, 1).status == Status.OPERATION_DENIED
    assert attach(queue, 1).status == 0 and active(queue) == [1]


# One operation at a time, each stored before it becomes visible


def failing(fails: bool = True) -> tuple[Target, FailingStore]:
    pool = RamdiskPool("10M")
    pool.metadata_store = metadata_store = FailingStore(fails)
    return Target(pool=pool), metadata_store


def test_a_change_that_cannot_be_stored_does_not_happen():
    target, metadata_store = failing(False)
    queue = target.admin()
    assert create(queue).dw0 == 2
    kept = metadata_store.values["namespaces"]
    metadata_store.fails = True
    for completion in (create(queue), delete(queue, 2), attach(queue, 2), detach(queue, 1)):
        assert completion.status == Status.INTERNAL_ERROR and not completion.dnr
        assert allocated(queue) == [1, 2] and active(queue) == [1] and attached(queue, 2) == []
        assert metadata_store.values["namespaces"] == kept, "the next stored value is not the failed one"
    metadata_store.fails = False
    assert attach(queue, 2).status == 0 and active(queue) == [1, 2]


class Slow:
    """A metadata store that completes when the test says so."""

    durable = True

    def __init__(self, target: Target) -> None:
        self.target = target
        self.values = {}
        self.futures = []

    def get(self, section):
        return self.values.get(section)

    def put(self, section, value):
        self.values[section] = value
        if section != "namespaces":
            return None
        future = self.target.runtime.create_future()
        self.futures.append(future)
        return future


def slow_target() -> tuple[Target, TestQueue, Slow]:
    pool = RamdiskPool("10M")
    target = Target(pool=pool)
    queue = target.admin()
    create(queue)
    pool.metadata_store = Slow(target)
    return target, queue, pool.metadata_store


def submit_attach(queue: TestQueue, nsid: int, *cntlids: int, sel: int = 0) -> Pending:
    data = controller_list(*cntlids)
    pending = queue.submit(queue.sqe(ATTACH, data, nsid=nsid, cdw10=sel), data)
    assert isinstance(pending, Pending)
    return pending


def test_operations_wait_for_each_other():
    _, queue, metadata_store = slow_target()
    first = submit_attach(queue, 2, 1)
    second = submit_attach(queue, 2, 1)
    third = submit_attach(queue, 2, 1, sel=1)
    assert first.completion is second.completion is third.completion is None and active(queue) == [1]
    metadata_store.futures[0].set_result(None)
    assert first.step().status == 0 and active(queue) == [1, 2]
    assert second.step().status == Status.NAMESPACE_ALREADY_ATTACHED
    assert third.step() is None and active(queue) == [1, 2]
    metadata_store.futures[1].set_result(None)
    assert third.step().status == 0 and active(queue) == [1]


def test_a_cancelled_operation_delays_no_other():
    _, queue, metadata_store = slow_target()
    first = submit_attach(queue, 2, 1)
    given_up = [submit_attach(queue, 2, 1, sel=1) for _ in range(2)]
    last = submit_attach(queue, 2, 1, sel=1)
    given_up[0].close()
    metadata_store.futures[0].set_result(None)
    assert first.step().status == 0
    given_up[1].close()  # its turn had come
    assert last.step() is None
    metadata_store.futures[1].set_result(None)
    assert last.step().status == 0 and active(queue) == [1]


def test_events_while_an_operation_is_stored():
    target, queue, metadata_store = slow_target()
    second = target.admin()
    pending = submit_attach(queue, 2, 1, 2)
    second.controller.destroy("gone")
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M")))
    metadata_store.futures[0].set_result(None)
    assert pending.step().status == 0
    assert active(queue) == [1, 2, 3] and attached(queue, 2) == [1]
    assert active(target.admin()) == [1, 2, 3], "a namespace added in between is attached by default"
    pending = submit_attach(queue, 3, 1, sel=1)
    target.subsystem.remove_namespace(3)
    metadata_store.futures[1].set_result(None)
    assert pending.step().status == Status.INVALID_FIELD and active(queue) == [1, 2]


def test_the_persistent_event_log_has_the_changes(target, queue):
    before = len(target.subsystem.history)
    create(queue)
    delete(queue, 2)
    assert len(target.subsystem.history) == before + 2
