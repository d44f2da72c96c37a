"""Reservations as hosts see them: notifications, features, and Identify."""

import struct

import pytest

from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE, IDENTIFY_NAMESPACE_INDEPENDENT
from nvmeof.spec.reservations import RegisterAction
from nvmeof.spec.sqe import SQE
from nvmeof.spec.status import Status
from tests.target.commands.test_nvm import last_error
from tests.target.harness import Pending, Target
from tests.target.reservation_hosts import KEYS, LOG, Host, kinds, reserved
from tests.target.reservation_model import EA, WE, WERO

INVALID = Status.INVALID_FIELD
REGISTRATION_PREEMPTED, RELEASED, PREEMPTED = 1, 2, 3

# Notifications


def test_registration_preempted():
    hosts = reserved(WE)
    second_admin, _ = hosts[0].connect()
    assert hosts[1].preempt(WE, KEYS[1], KEYS[0]).status == 0
    assert hosts[0].notices() == [(1, REGISTRATION_PREEMPTED, 0, 1)]
    assert kinds(hosts[0], second_admin) == [REGISTRATION_PREEMPTED]
    assert kinds(hosts[1]) == kinds(hosts[2]) == []


def test_a_controller_that_is_not_attached_gets_no_notification():
    hosts = reserved(WE)
    second_admin, _ = hosts[0].connect()
    second_admin.controller.detach(1)
    assert hosts[1].preempt(WE, KEYS[1], KEYS[0]).status == 0
    assert (kinds(hosts[0]), kinds(hosts[0], second_admin)) == ([REGISTRATION_PREEMPTED], [])


def test_reservation_released():
    hosts = reserved(WERO)
    assert hosts[2].register(KEYS[2]).status == 0
    assert hosts[0].release(WERO, KEYS[0]).status == 0
    assert [kinds(host) for host in hosts] == [[], [RELEASED], [RELEASED]]
    assert hosts[0].acquire(WERO, KEYS[0]).status == 0
    assert hosts[0].register(action=RegisterAction.UNREGISTER, crkey=KEYS[0]).status == 0
    assert [kinds(host) for host in hosts] == [[], [RELEASED], [RELEASED]]


def test_reservation_preempted():
    hosts = reserved(EA)
    assert hosts[1].clear(KEYS[1]).status == 0
    assert [kinds(host) for host in hosts] == [[PREEMPTED], [], []]


def test_the_counts_of_notifications():
    hosts = reserved(WERO)
    for _ in range(3):
        assert hosts[0].release(WERO, KEYS[0]).status == 0
        assert hosts[0].acquire(WERO, KEYS[0]).status == 0
    assert hosts[1].notices() == [(1, RELEASED, 2, 1), (2, RELEASED, 1, 1), (3, RELEASED, 0, 1)]
    assert hosts[0].release(WERO, KEYS[0]).status == 0
    assert hosts[1].notices() == [(4, RELEASED, 0, 1)]
    assert hosts[0].acquire(WERO, KEYS[0]).status == hosts[0].release(WERO, KEYS[0]).status == 0
    # a reset empties the queue and restarts the count
    hosts[1].admin.set_property(0x14, 0x460060)
    hosts[1].admin.set_property(0x14, 0x460061)
    assert hosts[1].notices() == []
    assert hosts[0].acquire(WERO, KEYS[0]).status == hosts[0].release(WERO, KEYS[0]).status == 0
    assert hosts[1].notices() == [(1, RELEASED, 0, 1)]


def test_pages_in_pieces():
    hosts = reserved(WERO)
    for _ in range(2):
        assert hosts[0].release(WERO, KEYS[0]).status == hosts[0].acquire(WERO, KEYS[0]).status == 0
    admin = hosts[1].admin
    pieces = [admin.read_bytes(admin.log_page(LOG, 16, offset)) for offset in range(0, 64, 16)]
    assert struct.unpack("<QBBxxI48x", b"".join(pieces)) == (1, RELEASED, 1, 1)
    assert admin.read_bytes(admin.log_page(LOG, 128))[:16] == struct.pack("<QBBxxI", 2, RELEASED, 0, 1)


def event(host: Host) -> Pending:
    pending = host.admin.submit(host.admin.sqe(0x0C))
    if not isinstance(pending, Pending):
        raise AssertionError(f"an event was waiting: {pending.dw0:#x}")
    return pending


def test_events():
    """One event until its page has been read, and another as long as there are more pages; RAE holds it back."""
    hosts = reserved(WERO)
    pending = event(hosts[1])

    def again() -> None:
        assert hosts[0].release(WERO, KEYS[0]).status == hosts[0].acquire(WERO, KEYS[0]).status == 0

    again()
    completion = pending.step()
    assert completion is not None and completion.dw0 == 6 | 0 << 8 | 0x80 << 16
    pending = event(hosts[1])
    again()
    assert pending.step() is None
    admin = hosts[1].admin
    admin.log_page(LOG, 64, rae=True)
    assert pending.step() is None
    again()
    admin.log_page(LOG, 64)  # the second of three
    assert pending.step() is not None
    pending = event(hosts[1])
    admin.log_page(LOG, 64)
    assert pending.step() is None
    again()
    assert pending.step() is not None


@pytest.mark.parametrize("bit", [1, 2, 3])
def test_masks(bit):
    acts = {
        REGISTRATION_PREEMPTED: lambda hosts: hosts[0].preempt(WERO, KEYS[0], KEYS[1]),
        RELEASED: lambda hosts: hosts[0].release(WERO, KEYS[0]),
        PREEMPTED: lambda hosts: hosts[0].clear(KEYS[0]),
    }
    for kind, act in acts.items():
        for nsid in (1, 0xFFFFFFFF):
            hosts = reserved(WERO)
            assert hosts[1].admin.set_feature(0x82, 1 << bit, nsid=nsid).status == 0
            assert hosts[0].admin.get_feature(0x82, nsid=1).dw0 == 1 << bit
            assert act(hosts).status == 0
            assert kinds(hosts[1]) == ([] if kind == bit else [kind])


def test_mask_statuses():
    admin = reserved(WE)[0].admin
    for value, bit in ((1, 0), (0x10, 4), (1 << 31, 31), (0x1F, 0)):
        assert admin.set_feature(0x82, value, nsid=1).status == INVALID
        assert last_error(admin).error_location == SQE.error_location("cdw11", bit)
    assert admin.get_feature(0x82, nsid=0xFFFFFFFF).status == INVALID
    assert last_error(admin).error_location == SQE.error_location("nsid")
    assert admin.set_feature(0x82, 2, nsid=1, save=True).status == Status.FEATURE_NOT_SAVEABLE
    assert admin.get_feature(0x82, 3, nsid=1).dw0 == 0b110


def test_persistence_of_a_ramdisk():
    """A ramdisk reports none: RESCAP, the feature and the report agree; Linux requests it nevertheless."""
    host = reserved(WE)[0]
    assert host.register(KEYS[0], cptpl=3).status == 0
    assert not host.report().persistent
    for nsid in (1, 0xFFFFFFFF):
        assert host.admin.set_feature(0x83, 1, nsid=nsid).status == INVALID
        assert last_error(host.admin).error_location == SQE.error_location("cdw11")
    assert host.admin.set_feature(0x83, 0, nsid=1).status == 0
    assert host.admin.get_feature(0x83, nsid=1).dw0 == 0
    assert host.admin.set_feature(0x83, 2, nsid=1).status == INVALID
    assert last_error(host.admin).error_location == SQE.error_location("cdw11", 1)
    assert host.admin.get_feature(0x83, nsid=0xFFFFFFFF).status == INVALID
    assert host.admin.get_feature(0x83, 3, nsid=1).dw0 == 0b110


def test_identify():
    host = Host(Target(), 0)
    controller = IDENTIFY_CONTROLLER.parse(host.admin.read_bytes(host.admin.identify(1)))
    assert controller.oncs & 1 << 5
    assert controller.ctratt & (1 | 1 << 18) == 1 | 1 << 18  # identifiers of 128 bits, which must not be 0
    namespace = IDENTIFY_NAMESPACE.parse(host.admin.read_bytes(host.admin.identify(0, 1)))
    independent = IDENTIFY_NAMESPACE_INDEPENDENT.parse(host.admin.read_bytes(host.admin.identify(8, 1)))
    assert (namespace.rescap, independent.rescap) == (0b11111110, 0b11111110)
    assert namespace.nmic & independent.nmic & 1
