import itertools
from collections.abc import Callable

import pytest

from nvmeof.spec.properties import (
    CC_OFFSET,
    CSTS_OFFSET,
    NSSD_ABRUPT,
    NSSD_NORMAL,
    NSSD_OFFSET,
    NSSR_OFFSET,
    NSSR_RESET,
)
from nvmeof.spec.status import Status
from nvmeof.target.core.states import ControllerState
from nvmeof.target.storage.base import Backend, Capabilities
from tests.fake_runtime import FakeFuture
from tests.target.harness import CC_DISABLED, CC_ENABLE, Pending, Target, TestQueue

SHN_NORMAL, SHN_ABRUPT = 1 << 14, 2 << 14
RDY, CFS, SHST_COMPLETE, NSSRO, ST = 1, 2, 2 << 2, 1 << 4, 1 << 6
BAD = CC_ENABLE | 1 << 7  # MPS of 8 KiB, which CAP does not have


def in_state(state: ControllerState) -> TestQueue:
    queue = Target().queue()
    queue.connect()
    if state is ControllerState.READY:
        queue.set_property(CC_OFFSET, CC_ENABLE)
    elif state is ControllerState.SHUTDOWN:
        queue.set_property(CC_OFFSET, CC_ENABLE)
        queue.set_property(CC_OFFSET, CC_ENABLE | SHN_NORMAL)
    elif state is ControllerState.FAILED:
        queue.set_property(CC_OFFSET, BAD)
    assert queue.ctx.state is state
    return queue


# Writes of CC, and the state and CSTS that follow: every state with every kind of write.
DISABLED, READY = ControllerState.DISABLED, ControllerState.READY
SHUTDOWN, FAILED = ControllerState.SHUTDOWN, ControllerState.FAILED
WRITES = {
    "disable": CC_DISABLED,
    "enable": CC_ENABLE,
    "enable badly": BAD,
    "enabled, shut down": CC_ENABLE | SHN_NORMAL,
    "enabled, shut down abruptly": CC_ENABLE | SHN_ABRUPT,
    "disabled, shut down": CC_DISABLED | SHN_NORMAL,
    "failed, shut down": BAD | SHN_NORMAL,
}
OUTCOMES = {
    (DISABLED, "disable"): (DISABLED, 0),
    (DISABLED, "enable"): (READY, RDY),
    (DISABLED, "enable badly"): (FAILED, CFS),
    (DISABLED, "enabled, shut down"): (SHUTDOWN, RDY | SHST_COMPLETE),
    (DISABLED, "enabled, shut down abruptly"): (SHUTDOWN, RDY | SHST_COMPLETE),
    (DISABLED, "disabled, shut down"): (SHUTDOWN, SHST_COMPLETE),
    (READY, "disable"): (DISABLED, 0),
    (READY, "enable"): (READY, RDY),
    (READY, "enable badly"): None,  # a field that cannot be changed now is refused
    (READY, "enabled, shut down"): (SHUTDOWN, RDY | SHST_COMPLETE),
    (READY, "enabled, shut down abruptly"): (SHUTDOWN, RDY | SHST_COMPLETE),
    (READY, "disabled, shut down"): (SHUTDOWN, SHST_COMPLETE),
    (SHUTDOWN, "disable"): (DISABLED, 0),
    (SHUTDOWN, "enable"): (SHUTDOWN, RDY | SHST_COMPLETE),  # only a reset leaves this state
    (SHUTDOWN, "enable badly"): None,
    (SHUTDOWN, "enabled, shut down"): (SHUTDOWN, RDY | SHST_COMPLETE),
    (SHUTDOWN, "enabled, shut down abruptly"): (SHUTDOWN, RDY | SHST_COMPLETE),
    (SHUTDOWN, "disabled, shut down"): (SHUTDOWN, SHST_COMPLETE),
    (FAILED, "disable"): (DISABLED, 0),
    (FAILED, "enable"): None,
    (FAILED, "enable badly"): (FAILED, CFS),
    (FAILED, "enabled, shut down"): None,
    (FAILED, "enabled, shut down abruptly"): None,
    (FAILED, "failed, shut down"): (FAILED, CFS | SHST_COMPLETE),
    (DISABLED, "failed, shut down"): (FAILED, CFS | SHST_COMPLETE),
    (READY, "failed, shut down"): None,
    (SHUTDOWN, "failed, shut down"): None,
    (FAILED, "disabled, shut down"): (SHUTDOWN, SHST_COMPLETE),
}


@pytest.mark.parametrize(
    ("state", "write"), list(itertools.product((DISABLED, READY, SHUTDOWN, FAILED), WRITES)), ids=str
)
def test_every_state_and_cc_write(state, write):
    queue = in_state(state)
    before = queue.get_property(CC_OFFSET).dw0
    outcome = OUTCOMES[state, write]
    completion = queue.set_property(CC_OFFSET, WRITES[write])
    if outcome is None:
        assert completion.status == Status.INVALID_FIELD
        assert queue.controller.error_log.newest()[0].error_location == 48 | 7 << 8
        assert queue.ctx.state is state and queue.get_property(CC_OFFSET).dw0 == before
    else:
        assert completion.status == 0 and (queue.ctx.state, queue.csts) == outcome
        assert queue.get_property(CC_OFFSET).dw0 == WRITES[write]
    assert not queue.closed, "the admin queue stays"


@pytest.mark.parametrize("state", [DISABLED, SHUTDOWN, FAILED])
@pytest.mark.parametrize("opcode", [0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18])
def test_admin_commands_need_a_ready_controller(state, opcode):
    assert in_state(state).command(opcode, length=4096).status == Status.COMMAND_SEQUENCE_ERROR


@pytest.mark.parametrize("state", [DISABLED, READY, SHUTDOWN, FAILED])
def test_properties_are_read_in_every_state(state):
    assert in_state(state).get_property(CSTS_OFFSET).status == 0


# The value of every property does not depend on the state.
PROPERTY_ANSWERS = [
    # offset, size attribute, Property Get, Property Set
    (0x00, 1, 0, Status.INVALID_FIELD),
    (0x00, 0, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x08, 0, 0, Status.INVALID_FIELD),
    (0x08, 1, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x0C, 0, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x14, 1, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x14, 0, 0, 0),
    (0x1C, 0, 0, 0),
    (0x1C, 1, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x20, 0, 0, 0),
    (0x20, 1, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x24, 0, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x28, 1, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x64, 0, 0, 0),
    (0x64, 1, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x68, 0, 0, Status.INVALID_FIELD),
    (0x15, 0, Status.INVALID_FIELD, Status.INVALID_FIELD),
    (0x1000, 0, Status.INVALID_FIELD, Status.INVALID_FIELD),
]


@pytest.mark.parametrize("state", [DISABLED, READY, SHUTDOWN, FAILED])
@pytest.mark.parametrize(("offset", "attrib", "on_get", "on_set"), PROPERTY_ANSWERS)
def test_every_state_and_property(state, offset, attrib, on_get, on_set):
    queue = in_state(state)
    cc = queue.get_property(CC_OFFSET).dw0
    assert queue.get_property(offset, attrib).status == on_get
    assert queue.set_property(offset, cc, attrib).status == on_set
    assert queue.ctx.state is state


@pytest.mark.parametrize(
    "cc",
    [
        CC_ENABLE | 1 << 7,  # MPS 8 KiB
        CC_ENABLE | 1 << 11,  # AMS weighted round robin
        CC_ENABLE & ~(7 << 4) | 7 << 4,  # CSS: no I/O command set
        CC_ENABLE & ~(7 << 4) | 1 << 4,  # CSS reserved
        CC_ENABLE & ~(15 << 16) | 7 << 16,  # IOSQES 128
        CC_ENABLE & ~(15 << 20) | 5 << 20,  # IOCQES 32
    ],
)
def test_configurations_that_cannot_be_enabled(cc):
    queue = Target().queue()
    queue.connect()
    queue.set_property(CC_OFFSET, cc)
    assert queue.csts == CFS and queue.ctx.state is FAILED
    queue.set_property(CC_OFFSET, 0)
    queue.set_property(CC_OFFSET, CC_ENABLE)
    assert queue.csts == RDY, "a reset gets the controller out of it"


@pytest.mark.parametrize("cc", [CC_ENABLE, CC_ENABLE & ~(7 << 4)])
def test_both_command_set_selections_work(cc):
    queue = Target().queue()
    queue.connect()
    queue.set_property(CC_OFFSET, cc)
    assert queue.csts == RDY


def test_discovery_controller_needs_no_entry_sizes():
    queue = Target().queue()
    queue.connect(subnqn="nqn.2014-08.org.nvmexpress.discovery")
    queue.set_property(CC_OFFSET, 1)
    assert queue.csts == RDY


def test_reset_closes_io_queues_and_drops_features_and_requests():
    target = Target()
    admin = target.admin()
    first, second = target.io(admin, 1), target.io(admin, 2)
    admin.set_feature(0x0B, 0x900)
    request = admin.submit(admin.sqe(0x0C))
    admin.set_property(CC_OFFSET, CC_DISABLED)
    assert first.closed == second.closed == ["the controller was reset"]
    assert request.step().status == Status.ABORTED_BY_REQUEST
    admin.set_property(CC_OFFSET, CC_ENABLE)
    assert admin.get_feature(0x0B).dw0 == 0
    assert target.io(admin, 1).controller is admin.controller


def test_late_detach_of_a_closed_queue_does_not_remove_its_successor():
    target = Target()
    admin = target.admin()
    old = target.io(admin, 1)
    admin.set_property(CC_OFFSET, CC_DISABLED)
    admin.set_property(CC_OFFSET, CC_ENABLE)
    new = target.io(admin, 1)
    old.ctx.detach("its connection went later")
    assert admin.controller.queues[1] is new.ctx.queue


class SlowFlush(Backend):
    """A backend whose flush the test completes."""

    def __init__(self) -> None:
        self.flushes: list[FakeFuture] = []

    capabilities = Capabilities(size_bytes=1 << 20, volatile_cache=True)
    description = "slow"

    def acquire_read(self, offset, length):
        raise NotImplementedError

    write = write_zeroes = deallocate = resize = acquire_read

    def flush(self):
        self.flushes.append(FakeFuture())
        return self.flushes[-1]


def test_shutdown_completes_after_the_flush():
    backend = SlowFlush()
    admin = Target(backend).admin()
    write = admin.submit(admin.sqe(0x7F, nsid=0, cdw11=CC_OFFSET, cdw12=CC_ENABLE | SHN_NORMAL))
    assert isinstance(write, Pending) and write.completion is None
    assert admin.csts == RDY | 1 << 2
    backend.flushes[0].set_result(None)
    assert write.step().status == 0
    assert admin.csts == RDY | SHST_COMPLETE


def test_shutdown_overtaken_by_a_reset_does_not_complete_the_next():
    backend = SlowFlush()
    admin = Target(backend).admin()
    first = admin.submit(admin.sqe(0x7F, nsid=0, cdw11=CC_OFFSET, cdw12=CC_ENABLE | SHN_NORMAL))
    admin.set_property(CC_OFFSET, CC_DISABLED)
    admin.set_property(CC_OFFSET, CC_ENABLE)
    backend.flushes[0].set_result(None)
    assert first.step().status == 0
    assert admin.csts == RDY


def test_read_only_bits_of_cc_stay_zero():
    queue = Target().queue()
    queue.connect()
    queue.set_property(CC_OFFSET, CC_ENABLE | 0xFF00000E)
    assert queue.csts == RDY and queue.get_property(CC_OFFSET).dw0 == CC_ENABLE


def test_a_reserved_shutdown_is_refused():
    admin = Target().admin()
    assert admin.set_property(CC_OFFSET, CC_ENABLE | 3 << 14).status == Status.INVALID_FIELD
    assert admin.controller.error_log.newest()[0].error_location == 49 | 6 << 8
    assert admin.csts == RDY


def test_a_disabled_controller_that_was_shut_down_is_enabled_without_shn_only():
    admin = Target().admin()
    admin.set_property(CC_OFFSET, CC_DISABLED | SHN_NORMAL)
    assert admin.csts == SHST_COMPLETE
    admin.set_property(CC_OFFSET, CC_ENABLE | SHN_NORMAL)
    assert admin.csts == SHST_COMPLETE and admin.ctx.state is SHUTDOWN
    admin.set_property(CC_OFFSET, CC_DISABLED)
    assert admin.csts == 0
    admin.set_property(CC_OFFSET, CC_DISABLED | SHN_ABRUPT)
    admin.set_property(CC_OFFSET, CC_ENABLE)
    assert admin.csts == RDY and admin.ctx.state is READY


def test_entry_sizes_may_be_set_after_enabling_but_before_io_queues():
    target = Target()
    admin = target.queue()
    cntlid = admin.connect()
    bare = CC_ENABLE & ~(0xFF << 16)
    admin.set_property(CC_OFFSET, bare)
    assert admin.csts == RDY
    for sizes in (0, 6 << 16, 4 << 20, 6 << 16 | 5 << 20):
        assert admin.set_property(CC_OFFSET, bare | sizes).status == 0
        assert target.queue().try_connect(qid=1, cntlid=cntlid).status == Status.COMMAND_SEQUENCE_ERROR
    admin.set_property(CC_OFFSET, CC_ENABLE)
    target.io(admin)
    assert admin.set_property(CC_OFFSET, bare).status == Status.INVALID_FIELD
    assert admin.controller.error_log.newest()[0].error_location == 50 | 1 << 8


def test_subsystem_reset():
    target = Target()
    admin, other, discovery = target.admin(), target.admin(), target.discovery()
    io = target.io(admin)
    for value in (0, 0x4E564D64, 0xFFFFFFFF):
        assert admin.set_property(NSSR_OFFSET, value).status == 0
    assert admin.get_property(NSSR_OFFSET).dw0 == 0 and not io.closed and not other.closed
    admin.set_feature(0x05, 7, nsid=1)
    assert admin.set_property(NSSR_OFFSET, NSSR_RESET).status == 0
    assert io.closed and not other.closed and not admin.closed and not discovery.closed, "associations stay"
    for queue in (admin, other):
        assert queue.csts == NSSRO and queue.ctx.state is DISABLED and queue.get_property(CC_OFFSET).dw0 == 0
    assert discovery.csts == RDY
    admin.set_property(CC_OFFSET, CC_ENABLE)
    assert admin.csts == RDY | NSSRO
    again = target.admin()
    assert again.csts == RDY | NSSRO and again.get_feature(0x05, nsid=1).dw0 == 0
    assert again.set_property(CSTS_OFFSET, 0xFFFFFFEF).status == 0 and again.csts == RDY | NSSRO
    assert again.set_property(CSTS_OFFSET, NSSRO).status == 0 and again.csts == RDY
    assert target.admin().csts == RDY | NSSRO
    for access in (discovery.get_property(NSSR_OFFSET), discovery.set_property(NSSR_OFFSET, NSSR_RESET)):
        assert access.status == Status.INVALID_FIELD


@pytest.mark.parametrize("value", [NSSD_NORMAL, NSSD_ABRUPT])
def test_subsystem_shutdown(value):
    backend = SlowFlush()
    target = Target(backend)
    admin, other, discovery = target.admin(), target.admin(), target.discovery()
    io = target.io(other)
    for nothing in (0, NSSD_NORMAL + 1, NSSR_RESET):
        assert admin.set_property(NSSD_OFFSET, nothing).status == 0 and admin.csts == RDY
    assert admin.get_property(NSSD_OFFSET).dw0 == 0
    write = admin.submit(admin.sqe(0x7F, nsid=0, cdw11=NSSD_OFFSET, cdw12=value))
    assert isinstance(write, Pending) and write.completion is None
    for queue in (admin, other):
        assert queue.csts == RDY | ST | 1 << 2 and queue.ctx.state is SHUTDOWN
        assert queue.set_property(NSSD_OFFSET, value).status == 0, "it has begun already"
    assert io.command(0x00, nsid=1).status == Status.COMMAND_SEQUENCE_ERROR
    backend.flushes[0].set_result(None)
    assert write.step().status == 0 and len(backend.flushes) == 1
    assert admin.csts == other.csts == RDY | ST | SHST_COMPLETE
    assert discovery.csts == RDY
    # Only an NVM Subsystem Reset ends this state.
    for cc, ready in ((CC_ENABLE | SHN_NORMAL, RDY), (CC_DISABLED, 0), (CC_ENABLE, 0)):
        assert other.set_property(CC_OFFSET, cc).status == 0
        assert other.csts == ready | ST | SHST_COMPLETE and other.ctx.state is SHUTDOWN
    assert target.admin().csts == ST | SHST_COMPLETE
    assert admin.set_property(NSSR_OFFSET, NSSR_RESET).status == 0
    assert target.admin().csts == RDY | NSSRO
    for access in (discovery.get_property(NSSD_OFFSET), discovery.set_property(NSSD_OFFSET, NSSD_NORMAL)):
        assert access.status == Status.INVALID_FIELD


def test_a_subsystem_shutdown_overtaken_by_a_reset_is_dropped():
    backend = SlowFlush()
    target = Target(backend)
    admin = target.admin()
    write = admin.submit(admin.sqe(0x7F, nsid=0, cdw11=NSSD_OFFSET, cdw12=NSSD_NORMAL))
    admin.set_property(NSSR_OFFSET, NSSR_RESET)
    backend.flushes[0].set_result(None)
    assert write.step().status == 0
    assert target.admin().csts == RDY | NSSRO


# Keep alive


def test_keep_alive_timeout_ends_the_association():
    target = Target()
    admin = target.admin(kato=5000)
    controller = admin.controller
    start = target.runtime.time
    assert controller.next_deadline() == start + 5
    assert not controller.check_deadline(start + 4.99)
    assert controller.check_deadline(start + 5)
    assert admin.closed == ["keep alive timeout: no command for 5 s"] and controller.failed
    assert controller.next_deadline() is None and not controller.check_deadline(start + 50)
    assert not target.subsystem.controllers


def test_traffic_on_any_queue_counts_for_its_interval():
    """Any command in an interval counts; the next interval begins at the end of this one, not with the command."""
    target = Target()
    admin = target.admin(kato=5000)
    io = target.io(admin)
    controller = admin.controller
    start = target.runtime.time
    io.command(0x00, nsid=1)
    for end in (5, 10):
        target.runtime.time = start + end
        assert controller.next_deadline() == start + end
        if end == 5:
            assert not controller.check_deadline(target.runtime.time)
    assert controller.check_deadline(target.runtime.time)
    assert admin.closed == io.closed == ["keep alive timeout: no command for 5 s"]


@pytest.mark.parametrize("how", ["command", "feature"])
def test_keep_alive_begins_a_new_interval(how):
    target = Target()
    admin = target.admin(kato=5000)
    target.runtime.time += 4
    completion = admin.command(0x18) if how == "command" else admin.set_feature(0x0F, 5000)
    assert completion.status == 0
    assert admin.controller.next_deadline() == target.runtime.time + 5
    assert admin.controller.check_deadline(target.runtime.time + 5), "nothing was heard in the new one"


@pytest.mark.parametrize("state", [DISABLED, SHUTDOWN, FAILED])
def test_without_a_ready_controller_the_timer_is_not_active(state):
    queue = in_state(state)
    controller = queue.controller
    now = controller.runtime.now()
    assert controller.kato_ms == 5000 and controller.next_deadline() == now + 120
    controller.keep_alive()
    assert controller.check_deadline(now + 120) and queue.closed == ["not enabled, and no command for 120 s"]


def test_a_short_timeout_has_a_timer_of_its_own():
    target = Target()
    started: list[tuple[float, Callable[[], object]]] = []
    cancelled: list[int] = []

    class Timer:
        def __init__(self, number: int) -> None:
            self.number = number

        def cancel(self) -> None:
            cancelled.append(self.number)

    def call_later(seconds, callback):
        started.append((seconds, callback))
        return Timer(len(started) - 1)

    target.runtime.call_later = call_later
    admin = target.admin(kato=500)
    assert [seconds for seconds, _ in started] == [0.5]
    admin.command(0x18)
    assert cancelled == [0] and len(started) == 2
    target.runtime.time += 0.5
    admin.csts  # noqa: B018 - traffic
    started[1][1]()
    assert not admin.closed and len(started) == 3
    target.runtime.time += 0.5
    started[2][1]()
    assert admin.closed
    again = target.admin(kato=500)
    again.ctx.detach("closed")
    assert cancelled == [0, 3]


def test_the_largest_timeout_is_accepted():
    admin = Target().admin()
    admin.set_feature(0x0F, 0xFFFFFFFF)
    assert admin.get_feature(0x0F).dw0 == 0xFFFFFFFF // 100 * 100


def test_no_keep_alive_for_an_io_controller_that_asks_for_none():
    assert Target().admin(kato=0).controller.next_deadline() is None


def test_default_keep_alive_can_be_configured():
    target = Target(any_keep_alive_seconds=30)
    assert target.admin(kato=0).controller.next_deadline() == target.runtime.time + 30


def test_discovery_controller_goes_after_two_idle_minutes():
    target = Target()
    controller = target.discovery(kato=0).controller
    assert controller.next_deadline() == target.runtime.time + 120
    assert target.discovery(kato=30000).controller.next_deadline() == target.runtime.time + 30


def test_keep_alive_is_rounded_up_to_its_granularity():
    admin = Target().admin(kato=1234)
    assert admin.get_feature(0x0F).dw0 == 1300
    admin.set_feature(0x0F, 1)
    assert admin.get_feature(0x0F).dw0 == 100
    admin.set_feature(0x0F, 0)
    assert admin.controller.next_deadline() is None
    assert admin.command(0x18).status == 0


# Asynchronous events
