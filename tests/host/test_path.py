"""A path across its associations: states, timers, the end of attempts, and notifications. The test sets the time."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import (
    CommandNotExecuted,
    ConfigurationError,
    ConnectionLost,
    LocalProtocolError,
    NvmeofError,
    NvmeStatusError,
    OutcomeUnknown,
    TransportError,
)
from nvmeof.host import sqe_builders
from nvmeof.host.controller import Controller
from nvmeof.host.options import RecoveryOptions
from nvmeof.host.path import TRANSITIONS, PathState, is_final
from nvmeof.spec.enums import NvmOpcode
from nvmeof.spec.status import Status

from .path_bench import PathBench

REFUSED = TransportError("connection refused")


def test_a_loss_is_followed_by_attempts_at_reconnect_delay_until_one_works() -> None:
    bench = PathBench(reconnect_delay=2.0).connect()
    old = bench.path.controller
    noticed = bench.runtime.time
    bench.break_it(REFUSED)
    assert bench.states == ["resetting", "connecting"] and bench.path.controller is None
    bench.pass_time(1.9)
    assert bench.device.attempts == []  # the first attempt comes after a whole delay, as in Linux
    bench.pass_time(2.2)
    assert bench.device.attempts == [noticed + 2.0, noticed + 4.0]
    bench.device.down = None
    bench.pass_time(2.2)
    assert bench.states == ["resetting", "connecting", "live"]
    assert bench.path.controller is not None and bench.path.controller is not old
    assert bench.path.reconnects == 0 and bench.path.error is None and not bench.lost
    (outage,) = bench.path.describe()["outages"]
    assert outage["noticed_at"] == noticed and outage["attempts"] == 3
    assert outage["reconnected_at"] == pytest.approx(noticed + 6.0, abs=0.3)
    assert "the fake broke queue 0" in outage["reason"]


@pytest.mark.parametrize(
    ("ctrl_loss_tmo", "delay", "attempts"), [(5.0, 10.0, 1), (5.0, 1.0, 5), (4.1, 2.0, 3), (0.0, 10.0, 0)]
)
def test_ctrl_loss_tmo_is_rounded_up_to_whole_delays(ctrl_loss_tmo: float, delay: float, attempts: int) -> None:
    bench = PathBench(reconnect_delay=delay, ctrl_loss_tmo=ctrl_loss_tmo).connect()
    bench.break_it(REFUSED)
    waiting = bench.start(bench.path.usable())
    bench.pass_time(delay * attempts + 0.1)
    assert len(bench.device.attempts) == attempts
    assert bench.path.state is PathState.DEAD and bench.states[-2:] == ["deleting", "dead"]
    assert len(bench.lost) == 1
    with pytest.raises(CommandNotExecuted, match=r"is d.*not sent"):
        waiting.get()
    bench.pass_time(100.0)
    assert len(bench.device.attempts) == attempts and len(bench.lost) == 1


def test_minus_one_means_no_end() -> None:
    bench = PathBench(reconnect_delay=1.0, ctrl_loss_tmo=-1).connect()
    bench.break_it(REFUSED)
    bench.pass_time(1000.5)
    assert len(bench.device.attempts) == 1000 and bench.path.state is PathState.CONNECTING and not bench.lost


@pytest.mark.parametrize(
    ("status", "dnr", "final"),
    [
        (Status.CONNECT_INVALID_PARAMETERS, True, True),
        (Status.CONNECT_INVALID_PARAMETERS, False, True),
        (Status.CONNECT_INVALID_HOST, False, True),
        (Status.CONNECT_CONTROLLER_BUSY, False, False),
        (Status.CONNECT_CONTROLLER_BUSY, True, True),
        (Status.INTERNAL_ERROR, False, False),
    ],
)
def test_a_refusal_for_good_ends_the_attempts(status: Status, dnr: bool, final: bool) -> None:
    bench = PathBench(reconnect_delay=1.0).connect()
    bench.device.connect_result = lambda qid: (0, status)
    error = NvmeStatusError(status, dnr=dnr)
    assert is_final(error) is final
    bench.break_it(error if dnr else None)
    bench.pass_time(10.0)
    assert (bench.path.state is PathState.DEAD) is final
    assert (len(bench.lost) == 1) is final
    assert len(bench.device.attempts) == (1 if final else 10)


def test_fast_io_fail_fails_waiting_commands_and_reconnecting_goes_on() -> None:
    bench = PathBench(reconnect_delay=2.0, fast_io_fail_tmo=3.0).connect()
    bench.break_it(REFUSED)
    waiting = bench.start(bench.path.usable())
    bench.pass_time(2.9)
    assert not waiting.done and bench.path.may_come_back
    bench.pass_time(0.2)
    with pytest.raises(CommandNotExecuted, match="fast_io_fail_tmo"):
        waiting.get()
    assert bench.path.state is PathState.CONNECTING and bench.path.failfast_expired
    with pytest.raises(CommandNotExecuted):
        bench.run(bench.path.usable())
    bench.device.down = None
    bench.pass_time(3.0)
    assert bench.path.state is PathState.LIVE and not bench.path.failfast_expired
    assert bench.run(bench.path.usable()) is bench.path.controller
    (outage,) = bench.path.describe()["outages"]
    assert outage["failfast_at"] == pytest.approx(outage["noticed_at"] + 3.0)


def test_without_fast_io_fail_commands_wait_for_the_path() -> None:
    bench = PathBench(reconnect_delay=2.0).connect()
    bench.break_it(REFUSED)
    waiting = [bench.start(bench.path.usable()) for _ in range(3)]
    bench.pass_time(100.0)
    assert not any(each.done for each in waiting)
    bench.device.down = None
    bench.pass_time(3.0)
    assert {each.get() for each in waiting} == {bench.path.controller}


def test_the_first_connect_is_not_tried_again() -> None:
    bench = PathBench(reconnect_delay=1.0)
    bench.device.down = REFUSED
    with pytest.raises(TransportError, match="connection refused"):
        bench.run(bench.path.connect())
    assert bench.states == ["connecting", "deleting", "dead"] and not bench.lost
    bench.pass_time(10.0)
    assert len(bench.device.attempts) == 1
    with pytest.raises(LocalProtocolError, match="connected once"):
        bench.run(bench.path.connect())
    assert bench.device.calls.count("setup_ctrl") == bench.device.calls.count("release_ctrl") == 1


def test_wrong_cntlids_on_io_queues_are_one_clear_error() -> None:
    bench = PathBench()
    bench.device.connect_result = lambda qid: (7 if qid == 0 else 8, 0)
    with pytest.raises(TransportError, match=r"I/O queue 1 was connected to controller 0x8 in place of 0x7"):
        bench.run(bench.path.connect())
    # the same later: attempts that fail, until ctrl_loss_tmo
    bench = PathBench(reconnect_delay=1.0, ctrl_loss_tmo=3.0).connect()
    bench.device.connect_result = lambda qid: (7 if qid == 0 else 8, 0)
    bench.break_it()
    bench.pass_time(5.0)
    assert bench.path.state is PathState.DEAD and len(bench.device.attempts) == 3
    (error,) = bench.lost
    assert "not our peer" in str(error)


def test_a_silent_target_does_not_hang_a_path() -> None:
    bench = PathBench(reconnect_delay=1.0, ctrl_loss_tmo=2.0).connect()
    bench.device.intercept = lambda request, sqe: None
    bench.break_it()
    waiting = bench.start(bench.path.usable())
    bench.pass_time(20.0)  # two attempts of connect_timeout each
    assert bench.path.state is PathState.DEAD and len(bench.device.attempts) == 2
    with pytest.raises(CommandNotExecuted, match="not answered in time"):
        waiting.get()


def test_requests_of_a_lost_association_end_with_their_outcome() -> None:
    bench = PathBench(connect={"queue_size": 2}).connect()
    bench.device.hold(NvmOpcode.WRITE)
    controller = bench.run(bench.path.usable())
    sqe = sqe_builders.write(1, 0, 1)
    sent = bench.start(controller.io(sqe, data_out=bytes(512)))
    waiting = bench.start(controller.io(sqe, data_out=bytes(512)))
    bench.break_it()
    assert isinstance(sent.error, OutcomeUnknown) and isinstance(waiting.error, CommandNotExecuted)
    with pytest.raises(CommandNotExecuted):
        bench.run(controller.io(sqe, data_out=bytes(512)))


def test_reset_disables_the_controller_and_connects_at_once() -> None:
    bench = PathBench(reconnect_delay=10.0, identify={"cqt": 500}).connect()
    old = bench.path.controller
    assert old is not None and bench.path.quiesced_at(old) == float("inf")
    before = bench.runtime.time
    bench.run(bench.path.reset())
    assert bench.states == ["resetting", "connecting", "live"] and bench.runtime.time < before + 1.0
    assert bench.path.controller is not old
    assert old.quiesced and bench.path.quiesced_at(old) < before + 1.0
    assert bench.device.calls.count("setup_ctrl") == 2 and bench.device.calls.count("release_ctrl") == 1


def test_a_reset_whose_first_attempt_fails_reports_it_and_tries_again() -> None:
    bench = PathBench(reconnect_delay=2.0).connect()
    bench.device.down = REFUSED
    with pytest.raises(TransportError, match="refused"):
        bench.run(bench.path.reset())
    assert bench.path.state is PathState.CONNECTING
    with pytest.raises(LocalProtocolError, match="only a live path can be reset"):
        bench.run(bench.path.reset())
    bench.device.down = None
    bench.pass_time(2.5)
    assert bench.path.state is PathState.LIVE


def test_a_reset_of_a_controller_that_no_longer_answers_ends() -> None:
    bench = PathBench(reconnect_delay=1.0, identify={"cqt": 500}).connect()
    old = bench.path.controller
    assert old is not None
    bench.device.intercept = lambda request, sqe: None
    resetting = bench.start(bench.path.reset())
    bench.pass_time(6.0)
    bench.device.intercept = None
    bench.pass_time(6.0)
    assert resetting.done and bench.path.state is PathState.LIVE
    assert not old.quiesced  # not confirmed: its commands may still be executed for that long
    ended_at = old.association.ended_at
    assert ended_at is not None and bench.path.quiesced_at(old) == ended_at + 2 * 4.0 + 0.5


@pytest.mark.parametrize("when", ["live", "connecting", "attempting", "new"])
def test_delete_ends_the_path_in_every_state(when: str) -> None:
    bench = PathBench(reconnect_delay=1.0)
    if when != "new":
        bench.connect()
    if when in ("connecting", "attempting"):
        bench.break_it(REFUSED)
    if when == "attempting":
        bench.device.down = None
        bench.device.intercept = lambda request, sqe: None
        bench.pass_time(1.1)
        assert len(bench.device.attempts) == 1
    waiting = bench.start(bench.path.usable()) if when in ("connecting", "attempting") else None
    bench.device.intercept = bench.device.intercept if when == "attempting" else None
    bench.run(bench.path.delete())
    assert bench.path.state is PathState.DEAD and bench.path.controller is None and not bench.lost
    if waiting is not None:
        with pytest.raises(CommandNotExecuted):
            waiting.get()
    attempts = len(bench.device.attempts)
    bench.run(bench.path.delete())
    bench.pass_time(30.0)
    assert len(bench.device.attempts) == attempts
    assert bench.device.calls.count("setup_ctrl") == bench.device.calls.count("release_ctrl")


def test_the_preparation_of_an_association_can_fail() -> None:
    bench = PathBench(reconnect_delay=1.0, ctrl_loss_tmo=2.0).connect()
    prepared: list[Controller] = []

    async def prepare(controller: Controller) -> None:
        assert bench.path.state is PathState.CONNECTING
        prepared.append(controller)
        if len(prepared) == 1:
            raise NvmeofError("not this one")

    bench.path.prepare.append(prepare)
    bench.break_it()
    bench.pass_time(1.2)
    assert bench.path.state is PathState.CONNECTING and str(bench.path.error) == "not this one"
    bench.pass_time(1.2)
    assert bench.path.state is PathState.LIVE and bench.path.controller is prepared[1]
    calls = bench.device.calls
    assert calls.count("setup_ctrl") == calls.count("release_ctrl") + 1  # nothing stays of the refused association


def test_a_path_that_is_deleted_while_its_association_is_prepared_does_not_come_back() -> None:
    bench = PathBench(reconnect_delay=1.0).connect()
    held = bench.runtime.create_future()

    async def prepare(controller: Controller) -> None:
        await held

    bench.path.prepare.append(prepare)
    bench.break_it()
    bench.pass_time(1.5)
    bench.run(bench.path.delete())
    assert bench.path.state is PathState.DEAD
    held.set_result(None)
    bench.pass_time(1.0)
    assert bench.path.state is PathState.DEAD and bench.path.controller is None
    assert bench.device.calls.count("setup_ctrl") == bench.device.calls.count("release_ctrl")


def test_an_unexpected_error_of_an_attempt_is_one_more_failed_attempt(caplog: pytest.LogCaptureFixture) -> None:
    bench = PathBench(reconnect_delay=1.0, ctrl_loss_tmo=2.0).connect()

    async def prepare(controller: Controller) -> None:
        raise KeyError("oops")

    bench.path.prepare.append(prepare)
    bench.break_it()
    bench.pass_time(3.0)
    assert bench.path.state is PathState.DEAD
    assert "internal error: KeyError" in str(bench.lost[0])


def test_a_keep_alive_that_is_not_answered_starts_recovery() -> None:
    bench = PathBench(reconnect_delay=1.0).connect()
    bench.device.intercept = lambda request, sqe: None
    bench.pass_time(2.0 + 4.0 + 2 * 1.0 + 0.1)  # half of KATO until it is sent, KATO, and ticks
    assert len(bench.path.outages) == 1
    assert "Keep Alive" in bench.path.outages[0].reason


@given(st.lists(st.sampled_from(list(PathState)), max_size=12))
def test_states_change_as_linux_lets_them(wanted: list[PathState]) -> None:
    bench = PathBench()
    path = bench.path
    for state in wanted:
        was = path.state
        assert path._change(state) is (was in TRANSITIONS.get(state, frozenset()))
        assert path.state is (state if was in TRANSITIONS.get(state, frozenset()) else was)


def test_nothing_leaves_dead_and_everything_can_reach_it() -> None:
    for state, sources in TRANSITIONS.items():
        assert PathState.DEAD not in sources, state
    reachable = {PathState.NEW}
    while True:
        more = {state for state, sources in TRANSITIONS.items() if sources & reachable} - reachable
        if not more:
            break
        reachable |= more
    assert reachable == set(PathState)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("reconnect_delay",), (0, -1, float("nan"), "5", True)),
        *product(("ctrl_loss_tmo",), (-2, float("inf"))),
        *product(("fast_io_fail_tmo", "quiesce_tmo"), (-1, float("nan"))),
    ],
)
def test_invalid_times_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be a number of seconds"):
        RecoveryOptions(**{name: value})


def test_a_listener_may_read_every_attribute_of_the_path() -> None:
    bench = PathBench(reconnect_delay=1.0, ctrl_loss_tmo=1.0).connect()
    seen: list[tuple[str, bool, bool]] = []
    path = bench.path
    path.on_change.append(lambda: seen.append((path.state.value, path.controller is not None, path.may_come_back)))
    bench.break_it()
    bench.pass_time(1.5)
    bench.break_it(ConnectionLost("down"))
    bench.pass_time(3.0)
    assert seen == [
        ("resetting", False, True), ("connecting", False, True), ("live", True, True),
        ("resetting", False, True), ("connecting", False, True), ("deleting", False, False), ("dead", False, False),
    ]  # fmt: skip
