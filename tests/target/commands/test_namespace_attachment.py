"""Namespace Attachment: which controllers have a namespace, what outlives them, and the events of a change."""

import pytest

from nvmeof.spec.enums import AnaState, Csi
from nvmeof.spec.identify import IDENTIFY_CONTROLLER, parse_controller_list, parse_namespace_list
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.target.namespaces.namespace import Namespace, NamespaceIdentifiers
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import CC_ENABLE, Pending, Target, TestQueue
from tests.target.management_tools import (
    ALL,
    OTHER_HOST,
    active,
    attach,
    attached,
    create,
    delete,
    detach,
    error,
    read,
)

DATA = 24


@pytest.fixture
def target():
    return Target(pool=RamdiskPool("10M"))


@pytest.fixture
def queue(target):
    return target.admin()


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
