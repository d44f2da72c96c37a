import struct

import pytest

from nvmeof.spec.enums import AnaState, Csi
from nvmeof.spec.identify import IDENTIFY_CONTROLLER, parse_controller_list, parse_namespace_list
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.log_pages import ERROR_INFORMATION_ENTRY
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import CC_ENABLE, IN_CAPSULE, Pending, Target, TestQueue
from tests.target.management_tools import (
    ALL,
    ATTACH,
    MANAGE,
    OTHER_HOST,
    KeeperFails,
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
        assert entry & 0b1001 == 0b1001, "supported, and the inventory changes"
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


# Attach and detach


@pytest.mark.parametrize("sel", [0, 1])
@pytest.mark.parametrize(
    ("nsid", "status"),
    [
        (0, Status.INVALID_NAMESPACE),
        (3, Status.INVALID_FIELD),
        (1025, Status.INVALID_NAMESPACE),
        (ALL, Status.INVALID_NAMESPACE),
    ],
)
def test_the_nsid_of_attachment(queue, sel, nsid, status):
    assert attach(queue, nsid, sel=sel).status == status
    assert error(queue).error_location == 4


@pytest.mark.parametrize("sel", [0, 1])
@pytest.mark.parametrize(
    ("cntlids", "count"),
    [
        ((0,), 0),
        ((1,), 2048),
        ((1,), 0xFFFF),
        ((1, 1), None),
        ((2, 1), None),
        ((0,), 1),
        ((3,), None),
        ((1, 3), None),
        ((0xFFFF,), None),
    ],
)
def test_controller_lists_are_checked(target, queue, sel, cntlids, count):
    target.admin()
    create(queue)
    if sel:
        attach(queue, 2, 1, 2)
    assert attach(queue, 2, *cntlids, sel=sel, count=count).status == Status.CONTROLLER_LIST_INVALID
    assert error(queue).error_location == DATA
    assert attached(queue, 2) == ([1, 2] if sel else [])


@pytest.mark.parametrize("sel", range(2, 16))
def test_reserved_operations(queue, sel):
    assert attach(queue, 1, sel=sel).status == Status.INVALID_FIELD
    assert error(queue).error_location == 40


def test_all_or_none(target, queue):
    second, third = target.admin(), target.admin()
    create(queue)
    assert attach(queue, 2, 2).status == 0
    assert active(second) == [1, 2] and active(queue) == active(third) == [1]
    assert attach(queue, 2, 1, 2, 3).status == Status.NAMESPACE_ALREADY_ATTACHED
    assert error(queue).error_location == 4
    assert attached(queue, 2) == [2]
    assert attach(queue, 2, 1, 3).status == 0 and attached(queue, 2) == [1, 2, 3]
    assert parse_controller_list(queue.read_bytes(queue.identify(0x12, 2, cntid=2))) == [2, 3]
    assert detach(queue, 2, 2).status == 0
    assert detach(queue, 2, 1, 2).status == Status.NAMESPACE_NOT_ATTACHED
    assert error(queue).error_location == 4
    assert attached(queue, 2) == [1, 3]


def test_private_namespaces(target, queue):
    second = target.admin(hostnqn=OTHER_HOST)
    create(queue, nmic=0)
    assert IDENTIFY_NAMESPACE.parse(queue.read_bytes(queue.identify(0x11, 2))).nmic == 0
    assert queue.read_bytes(queue.identify(0x1F, 2))[1] == 0
    assert attach(queue, 2, 1, 2).status == Status.NAMESPACE_IS_PRIVATE
    assert error(queue).error_location == 4
    assert attach(queue, 2, 2).status == 0
    assert attach(queue, 2, 1).status == Status.NAMESPACE_IS_PRIVATE
    assert attach(queue, 2, 2).status == Status.NAMESPACE_ALREADY_ATTACHED
    assert active(second) == [1, 2]
    third = target.admin(hostnqn=OTHER_HOST)
    assert active(third) == [1], "the host's other controller does not get it"
    second.controller.destroy("gone")
    fourth = target.admin(hostnqn=OTHER_HOST)
    assert active(fourth) == [1, 2], "the host that had it comes back"
    fourth.controller.destroy("gone")
    assert attach(queue, 2, 1).status == 0, "it is attached to no controller"
    assert active(target.admin(hostnqn=OTHER_HOST)) == [1], "and the other controller has lost it"


def test_the_limit_of_attached_namespaces():
    target = Target(pool=RamdiskPool("10M"), max_attached=2)
    queue = target.admin()
    create(queue)
    create(queue)
    assert attach(queue, 2).status == 0
    assert attach(queue, 3).status == Status.NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED
    assert error(queue).error_location == 4
    assert IDENTIFY_CONTROLLER.parse(queue.read_bytes(queue.identify(1))).maxcna == 2
    assert detach(queue, 1).status == attach(queue, 3).status == 0 and active(queue) == [2, 3]
    for _ in range(2):
        target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M")))
    assert active(target.admin()) == [2, 3]


def test_a_lost_namespace_is_not_attached(target, queue):
    create(queue)
    target.subsystem.set_ana_state(AnaState.PERSISTENT_LOSS)
    assert attach(queue, 2).status == Status.ANA_ATTACH_FAILED
    assert error(queue).error_location == 4
    target.subsystem.move_namespace(2, 3)
    target.subsystem.set_ana_state(AnaState.INACCESSIBLE, 3)
    assert attach(queue, 2).status == 0
    assert read(target.io(queue), 2).status == Status.ANA_INACCESSIBLE


def other_set(target: Target, nsid: int) -> None:
    identifiers = NamespaceIdentifiers.derive("nqn.2026-01.org.example:disk", nsid)
    target.subsystem.insert(Namespace(nsid, Ramdisk("1M"), identifiers, csi=Csi.KEY_VALUE), attached=False)


def test_command_sets_that_are_not_enabled(target):
    other_set(target, 5)
    queue, every = target.queue(), target.queue()
    for each in (queue, every):
        each.connect()
    queue.set_property(CC_OFFSET, CC_ENABLE & ~0x70)
    assert attach(queue, 5).status == Status.IO_COMMAND_SET_NOT_ENABLED
    assert error(queue).error_location == 4
    assert attach(queue, 5, 2).status == 0, "a controller that is not enabled yet can have any"
    every.set_property(CC_OFFSET, CC_ENABLE & ~0x70)
    assert active(every) == [1] and attached(queue, 5) == [2], "attached, and not active with CC.CSS 000b"
    every.set_property(CC_OFFSET, 0)
    every.set_property(CC_OFFSET, CC_ENABLE)
    assert active(every) == [1, 5]
    assert every.ctx.namespaces is every.controller.namespaces


# State that outlives controllers


def test_a_host_finds_its_namespaces_again(target, queue):
    other = target.admin(hostnqn=OTHER_HOST)
    create(queue)
    create(queue)
    attach(queue, 2, 1)
    attach(queue, 3, 2)
    detach(queue, 1, 2)
    for each in (queue, other):
        each.controller.destroy("gone")
    assert active(target.admin()) == [1, 2]
    assert active(target.admin(hostnqn=OTHER_HOST)) == [3]
    assert active(target.admin(hostnqn="nqn.2026-01.org.example:third")) == [1]


def test_a_reset_changes_no_attachment(target, queue):
    create(queue)
    attach(queue, 2)
    detach(queue, 1)
    queue.set_property(CC_OFFSET, 0x460060)
    queue.set_property(CC_OFFSET, CC_ENABLE)
    assert active(queue) == [2]


def test_a_change_affects_one_controller_of_a_host_and_later_ones(target, queue):
    second = target.admin()
    create(queue)
    attach(queue, 2, 1)
    assert active(second) == [1] and active(target.admin()) == [1, 2]


# Events


def events(queue: TestQueue) -> list[int]:
    """Return the pending events, after reading their log pages."""
    seen = []
    while True:
        result = queue.submit(queue.sqe(0x0C))
        if isinstance(result, Pending) and result.completion is None:
            queue.controller.events.abort(queue.cid)
            result.step()
            return seen
        completion = result.completion if isinstance(result, Pending) else result
        seen.append(completion.dw0)
        page = completion.dw0 >> 16
        queue.read_bytes(queue.log_page(page, 4096))


ATTACHED_CHANGED, ALLOCATED_CHANGED = 0x040002, 0x1C0902


def changed(queue: TestQueue, page: int) -> list[int]:
    return parse_namespace_list(queue.read_bytes(queue.log_page(page, 4096, rae=True)))


def test_events_go_to_affected_controllers(target, queue):
    second = target.admin()
    for each in (queue, second):
        each.set_feature(0x0B, 1 << 8 | 1 << 19)
    create(queue)
    assert changed(queue, 4) == [] and changed(queue, 0x1C) == [2]
    assert events(queue) == events(second) == [ALLOCATED_CHANGED]
    attach(queue, 2, 2)
    assert events(queue) == [ALLOCATED_CHANGED]
    assert changed(second, 4) == [2]
    assert events(second) == [ATTACHED_CHANGED, ALLOCATED_CHANGED]
    assert changed(second, 4) == changed(second, 0x1C) == []
    attach(queue, 2, 1)
    assert events(queue) == [ATTACHED_CHANGED, ALLOCATED_CHANGED] and events(second) == [ALLOCATED_CHANGED]
    detach(queue, 2, 1)
    assert events(queue) == [ATTACHED_CHANGED, ALLOCATED_CHANGED] and events(second) == [ALLOCATED_CHANGED]
    delete(queue, 2)
    assert events(queue) == [], "who deletes knows"
    assert events(second) == [ATTACHED_CHANGED, ALLOCATED_CHANGED]


def test_events_that_were_not_asked_for(target, queue):
    create(queue)
    attach(queue, 2)
    assert events(queue) == []
    assert changed(queue, 4) == [2] and changed(queue, 0x1C) == [2], "the logs have it all the same"


# One operation at a time, each stored before it becomes visible


def failing(fails: bool = True) -> tuple[Target, KeeperFails]:
    pool = RamdiskPool("10M")
    pool.metadata_store = metadata_store = KeeperFails(fails)
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
