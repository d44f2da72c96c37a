"""A path over a network that drops, stalls, refuses and comes back: a state machine without event loop or clock."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvmeof.errors import CommandNotExecuted, ConnectionLost, LocalProtocolError, OutcomeUnknown, TransportError
from nvmeof.host import sqe_builders
from nvmeof.host.path import PathState
from nvmeof.host.queue import Request
from nvmeof.spec.sqe import Sqe

from .path_bench import Outcome, PathBench

DELAY = 2.0
TICK = 1.0
IO_TIMEOUT = 6.0
REFUSED = TransportError("connection refused")
DOWN = (PathState.RESETTING, PathState.CONNECTING)


class PathMachine(RuleBasedStateMachine):
    """One path, and callers that send a command over it when it is usable."""

    @initialize(
        ctrl_loss_tmo=st.sampled_from([-1.0, 0.0, 7.0, 60.0]), fast_io_fail_tmo=st.sampled_from([None, 0.0, 5.0])
    )
    def connect(self, ctrl_loss_tmo: float, fast_io_fail_tmo: float | None) -> None:
        self.bench = PathBench(
            reconnect_delay=DELAY,
            ctrl_loss_tmo=ctrl_loss_tmo,
            fast_io_fail_tmo=fast_io_fail_tmo,
            connect={"queue_size": 4},
        )
        self.path = self.bench.path
        self.bench.device.intercept = self._intercept
        self.mute = False
        self.deleted = False
        self.executed = 0
        self.connecting_since = 0.0
        self.path.on_change.append(self._changed)
        self.bench.connect()
        self.waiting: list[Outcome[object]] = []
        self.commands: list[tuple[float, Outcome[int]]] = []
        self.resets: list[Outcome[None]] = []

    def _intercept(self, request: Request, sqe: Sqe) -> tuple[int, int] | str | None:
        if self.mute:
            return None
        self.executed += bool(request.queue.qid and sqe.opcode == sqe_builders.WRITE)
        return "default"

    def _changed(self) -> None:
        if self.path.state is PathState.CONNECTING and not self.path.failfast_expired:
            self.connecting_since = self.bench.runtime.time

    # -- the network

    @rule()
    def the_target_comes_back(self) -> None:
        self.bench.device.down, self.mute = None, False
        if self.bench.device.silent is not None:
            silent, self.bench.device.silent = self.bench.device.silent, None
            silent.set_result(None)
            self.bench.runtime.settle()

    @rule()
    def connections_are_refused(self) -> None:
        self.bench.device.down = REFUSED

    @rule()
    def nothing_is_answered(self) -> None:
        """Stop all answers: half open, or a target that hangs."""
        self.mute = True

    @rule()
    def new_connections_stall(self) -> None:
        if self.bench.device.silent is None:
            self.bench.device.silent = self.bench.runtime.create_future()

    @rule(qid=st.integers(0, 1))
    def a_connection_is_reset(self, qid: int) -> None:
        controller = self.path.controller
        if controller is not None:
            list(controller.queues())[qid].report_err(ConnectionLost("connection reset by peer"))
            self.bench.runtime.settle()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.1, 6.0, 15.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.pass_time(seconds)

    # -- callers

    @rule()
    def somebody_waits_for_the_path(self) -> None:
        self.waiting.append(self.bench.start(self.path.usable()))

    @rule(count=st.integers(1, 6))
    def commands_are_sent(self, count: int) -> None:
        for _ in range(count):
            self.commands.append((self.bench.runtime.time, self.bench.start(self._command())))

    async def _command(self) -> int:
        controller = await self.path.usable()
        return await controller.io(sqe_builders.write(1, 0, 1), data_out=bytes(512))

    @rule()
    def the_controller_is_reset(self) -> None:
        live = self.path.state is PathState.LIVE
        resetting = self.bench.start(self.path.reset())
        if live:
            self.resets.append(resetting)
        else:
            assert isinstance(resetting.error, LocalProtocolError)

    @precondition(lambda self: len(self.bench.path.outages) > 2)
    @rule()
    def the_path_is_deleted(self) -> None:
        self.deleted = self.deleted or self.path.state is not PathState.DEAD
        self.bench.start(self.path.delete())

    # -- invariants

    @invariant()
    def live_is_having_a_controller(self) -> None:
        assert (self.path.state is PathState.LIVE) == (self.path.controller is not None)
        if self.path.controller is not None:
            assert self.path.controller.error is None

    @invariant()
    def nobody_waits_without_hope(self) -> None:
        pending = [each for each in self.waiting if not each.done]
        if pending:
            assert self.path.state in DOWN and not self.path.failfast_expired
        for each in self.waiting:
            assert each.error is None or isinstance(each.error, CommandNotExecuted)

    @invariant()
    def attempts_are_bounded(self) -> None:
        most = self.path.recovery.max_reconnects
        if most is not None and self.path.state in DOWN:
            assert self.path.reconnects <= max(most, 1)  # a reset connects once, whatever ctrl_loss_tmo says
        times = self.bench.device.attempts
        assert times == sorted(times)

    @invariant()
    def fast_io_fail_comes_in_time(self) -> None:
        limit = self.path.recovery.fast_io_fail_tmo
        if self.path.state is PathState.CONNECTING and limit is not None:
            assert self.path.failfast_expired or self.bench.runtime.time <= self.connecting_since + limit + 0.01
        if self.path.state is PathState.LIVE or limit is None:
            assert not self.path.failfast_expired

    @invariant()
    def a_command_that_is_out_ends_in_time(self) -> None:
        for begun, command in self.commands:
            if not command.done and self.path.state is PathState.LIVE:
                since = max([begun, *(each.reconnected_at or 0.0 for each in self.path.outages)])
                # two rounds on the queue of three, for requests that waited for an identifier
                assert self.bench.runtime.time - since <= 2 * (IO_TIMEOUT + 2 * TICK)

    @invariant()
    def commands_end_as_they_should(self) -> None:
        done = [command for _, command in self.commands if command.done]
        good = sum(command.error is None for command in done)
        assert good <= self.executed
        for command in done:
            assert command.error is None or isinstance(command.error, OutcomeUnknown | CommandNotExecuted)

    @invariant()
    def a_loss_is_told_once(self) -> None:
        dead = self.path.state is PathState.DEAD
        assert len(self.bench.lost) == (dead and not self.deleted)

    @invariant()
    def outages_have_an_end_or_are_the_last(self) -> None:
        outages = list(self.path.outages)
        assert all(each.reconnected_at is not None for each in outages[:-1])
        if outages and self.path.state is PathState.LIVE:
            assert outages[-1].reconnected_at is not None

    def teardown(self) -> None:
        """Restore the network: the path is live again, or is dead for good; nothing waits, nothing leaks."""
        if not hasattr(self, "commands"):
            return
        self.the_target_comes_back()
        self.bench.pass_time(60.0)
        assert self.path.state in (PathState.LIVE, PathState.DEAD)
        assert all(each.done for each in (*self.waiting, *self.resets)) and all(each.done for _, each in self.commands)
        calls = self.bench.device.calls
        live = self.path.state is PathState.LIVE
        assert calls.count("setup_ctrl") - calls.count("release_ctrl") == live
        self.bench.run(self.path.delete())
        assert calls.count("setup_ctrl") == calls.count("release_ctrl")


PathMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestPath = PathMachine.TestCase
