"""Timeouts, Aborts, keep-alive and cancellation together: a state machine over a fake runtime and a fake device.

There is no event loop and no clock: callers are coroutines that the runtime steps, time passes when a rule says so, and
completions come in any order, also between a cancellation and the moment at which the caller sees it.
"""

from __future__ import annotations

import heapq
import itertools
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvmeof.errors import ConnectionLost, NvmeofError, NvmeStatusError
from nvmeof.host import sqe_builders
from nvmeof.host.association import Association, HostState
from nvmeof.host.queue import Queue, Request
from nvmeof.host.requests import CommandPart, RequestOptions, run_transfer
from nvmeof.spec.enums import AdminOpcode
from nvmeof.spec.status import Status, status_field

from .fake_device import FakeDevice
from .test_queue import options

ADMIN_TIMEOUT = 8.0
IO_TIMEOUT = 4.0
KATO = 6.0
TICK = 1.0
"""The tick of `Timeouts` with these times."""


class FakeFuture:
    """A future without an event loop, with asyncio's rules for cancelled ones."""

    def __init__(self) -> None:
        self.waiter: Caller | None = None
        self.outcome: tuple[Any, BaseException | None] | None = None

    def done(self) -> bool:
        return self.outcome is not None

    def _end(self, result: Any, error: BaseException | None) -> None:
        assert self.outcome is None, "a future is done once"
        self.outcome = (result, error)
        if self.waiter is not None:
            self.waiter.wake()

    def set_result(self, result: Any) -> None:
        self._end(result, None)

    def set_exception(self, exception: BaseException) -> None:
        self._end(None, exception)

    def cancel(self) -> bool:
        if self.outcome is not None:
            return False
        self._end(None, CancelledError())
        return True

    def __await__(self) -> Generator[FakeFuture, None, Any]:
        if self.outcome is None:
            yield self
        assert self.outcome is not None
        result, error = self.outcome
        if error is not None:
            raise error
        return result


class Caller:
    """A task: its coroutine is stepped when its future is done, or when the task is cancelled."""

    def __init__(self, runtime: FakeRuntime, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.runtime = runtime
        self.coroutine = coroutine
        self.waits_for: FakeFuture | None = None
        self.must_cancel = False
        self.scheduled = False
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.wake()

    def wake(self) -> None:
        if not self.scheduled and not self.ended:
            self.scheduled = True
            self.runtime.ready.append(self)

    def cancel(self) -> None:
        if self.ended:
            return
        if self.waits_for is None or not self.waits_for.cancel():
            self.must_cancel = True
            self.wake()

    def step(self) -> None:
        self.scheduled, self.waits_for = False, None
        try:
            if self.must_cancel:
                self.must_cancel = False
                future = self.coroutine.throw(CancelledError())
            else:
                future = self.coroutine.send(None)
        except StopIteration as stop:
            self.ended, self.result = True, stop.value
        except BaseException as error:
            self.ended, self.error = True, error
        else:
            self.waits_for, future.waiter = future, self
            if future.done():
                self.wake()


class Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeRuntime:
    """A runtime whose test decides when time passes and when callers run."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.ready: deque[Caller] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._number = itertools.count()
        self.create_future = FakeFuture

    def now(self) -> float:
        return self.time

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (self.time + delay, next(self._number), timer))
        return timer

    def spawn(self, coroutine: Coroutine[Any, Any, object], /) -> Caller:
        return Caller(self, coroutine)

    def run_ready(self) -> None:
        while self.ready:
            self.ready.popleft().step()

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while self._timers and self._timers[0][0] <= end:
            self.time, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
        self.time = end


class Wire(FakeDevice):
    """A device that answers only when the test says so, and checks the guarantees that a device has."""

    def __init__(self, runtime: FakeRuntime, gives_back: bool) -> None:
        super().__init__(8)
        self.runtime = runtime
        self.gives_back = gives_back
        self.out: dict[tuple[int, int], Request] = {}
        self.sent_at: dict[Request, float] = {}
        self.returned: set[Request] = set()
        self.sent_requests: list[Request] = []
        self.most_aborts = 0

    def send_req(self, request: Request, more: bool) -> None:
        qid = request.queue.qid
        assert qid not in self.drained, "a command after the queue was drained"
        assert (qid, request.cid) not in self.out, "two commands with one identifier"
        for abort in self.aborts():
            assert self.named(abort) != (qid, request.cid), "an Abort under way would hit the wrong command"
        self.out[qid, request.cid] = request
        self.sent_at[request] = self.runtime.time
        self.sent_requests.append(request)
        self.most_aborts = max(self.most_aborts, len(self.aborts()))
        assert len(self.of(AdminOpcode.KEEP_ALIVE)) <= 1

    def of(self, opcode: int) -> list[Request]:
        return [each for (qid, _), each in self.out.items() if not qid and each.sqe[0] == opcode]

    def aborts(self) -> list[Request]:
        return self.of(AdminOpcode.ABORT)

    @staticmethod
    def named(abort: Request) -> tuple[int, int]:
        dword = int.from_bytes(abort.sqe[40:44], "little")
        return dword & 0xFFFF, dword >> 16

    def finish(self, request: Request, result: int, status: int) -> None:
        del self.out[request.queue.qid, request.cid]
        request.done(result, status_field(status))

    def give_back(self, request: Request) -> bool:
        assert request.queue.qid not in self.drained and self.out[request.queue.qid, request.cid] is request
        if self.gives_back:
            self.returned.add(request)
        return self.gives_back

    def drain_queue(self, queue: Queue) -> None:
        super().drain_queue(queue)
        for key in [key for key in self.out if key[0] == queue.qid]:
            del self.out[key]


class HostMachine(RuleBasedStateMachine):
    """Callers with commands on an admin queue and two small I/O queues, and a controller that answers as it likes."""

    @initialize(
        gives_back=st.booleans(),
        limit=st.integers(1, 3),
        traffic_based=st.booleans(),
        keep_alive=st.booleans(),
        abort_first=st.booleans(),
    )
    def connect(self, gives_back: bool, limit: int, traffic_based: bool, keep_alive: bool, abort_first: bool) -> None:
        self.runtime = FakeRuntime()
        self.device = Wire(self.runtime, gives_back)
        self.callers: list[Caller] = []
        self.cancelled: set[Caller] = set()
        self.taken_back: set[bytes] = set()  # commands whose caller was cancelled before they were sent
        self.commands: dict[Caller, tuple[list[bytes], bool]] = {}  # the caller's, and whether it owns a buffer
        self.number = 0
        self.limit = limit
        self.lost: list[NvmeofError] = []
        self.abort_first = abort_first
        chosen = options(
            io_timeout=IO_TIMEOUT,
            admin_timeout=ADMIN_TIMEOUT,
            keep_alive_tmo=KATO if keep_alive else 0,
            abort_first=abort_first,
        )
        self.association = Association(self.device, chosen, self.runtime)
        self.association.on_lost.append(self.lost.append)
        admin = Queue(self.device, chosen, 0, 8, reserved=2, timeout=ADMIN_TIMEOUT)
        self._run(self.association.create_admin_queue(admin))
        for qid in (1, 2):
            self._run(self.association.create_io_queue(Queue(self.device, chosen, qid, 5, timeout=IO_TIMEOUT)))
        self.rooms = [queue.room for queue in self.association.queues()]
        self.association.state = HostState.LIVE
        self.association.timeouts.set_abort_limit(limit)
        self.association.start_keep_alive(traffic_based=traffic_based)

    def _run(self, coroutine: Coroutine[Any, Any, object]) -> None:
        caller = Caller(self.runtime, coroutine)
        self.runtime.run_ready()
        assert caller.ended and caller.error is None

    def _start(self, coroutine: Coroutine[Any, Any, object]) -> Caller:
        caller = Caller(self.runtime, coroutine)
        self.callers.append(caller)
        return caller

    def _lba(self) -> int:
        """Return an LBA that identifies a command."""
        self.number += 1
        return self.number

    @property
    def live(self) -> bool:
        return self.association.state is HostState.LIVE

    # -- programs

    @rule(
        data=st.sampled_from(["in", "bytes", "bytearray", "none"]),
        hold=st.booleans(),
        timeout=st.sampled_from([None, 2.0, 20.0]),
        admin=st.booleans(),
        turn=st.booleans(),
    )
    def command(self, data: str, hold: bool, timeout: float | None, admin: bool, turn: bool) -> None:
        sqe = sqe_builders.read(1, self._lba(), 1)
        association = self.association
        caller = self._start(
            association.execute(
                association.admin_queue if admin else association.pick_queue(),
                sqe,
                data_out={"bytes": bytes(512), "bytearray": bytearray(512)}.get(data),
                data_in=memoryview(bytearray(512)) if data == "in" else None,
                options=RequestOptions(hold=hold, timeout=timeout),
            )
        )
        self.commands[caller] = ([sqe], hold and data in ("in", "bytearray"))
        self._turn(turn)

    @rule(count=st.integers(1, 12), hold=st.booleans(), turn=st.booleans())
    def transfer(self, count: int, hold: bool, turn: bool) -> None:
        parts: list[CommandPart] = [(sqe_builders.write(1, self._lba(), 1), bytearray(512), None) for _ in range(count)]
        association = self.association
        caller = self._start(
            run_transfer(self.runtime, association.pick_queue, iter(parts), association.abort, hold=hold)
        )
        self.commands[caller] = ([sqe for sqe, _, _ in parts], hold)
        self._turn(turn)

    @precondition(lambda self: any(not caller.ended for caller in self.callers))
    @rule(data=st.data(), turn=st.booleans())
    def cancel(self, data: st.DataObject, turn: bool) -> None:
        caller = data.draw(st.sampled_from([caller for caller in self.callers if not caller.ended]))
        self.cancelled.add(caller)
        caller.cancel()
        self._turn(turn)

    # -- the controller

    @precondition(lambda self: self.device.out)
    @rule(data=st.data(), status=st.sampled_from([0, Status.INTERNAL_ERROR]), turn=st.booleans())
    def answer(self, data: st.DataObject, status: int, turn: bool) -> None:
        waiting = [each for each in self.device.out.values() if each not in self.device.aborts()]
        if waiting:
            request = data.draw(st.sampled_from(waiting))
            refused = status and request in self.device.of(AdminOpcode.KEEP_ALIVE)
            self.device.finish(request, 0, status)
            assert not refused or not self.live
        self._turn(turn)

    @precondition(lambda self: self.device.aborts())
    @rule(data=st.data(), works=st.booleans(), first=st.booleans(), turn=st.booleans())
    def answer_abort(self, data: st.DataObject, works: bool, first: bool, turn: bool) -> None:
        """Complete the Abort and the command that it ends in either order, as they use two connections."""
        abort = data.draw(st.sampled_from(self.device.aborts()))
        victim = self.device.out.get(self.device.named(abort)) if works else None
        if victim is not None and first:
            self.device.finish(victim, 0, Status.ABORTED_BY_REQUEST)
        self.device.finish(abort, 0 if works else 1, 0)
        if victim is not None and not first:
            self.device.finish(victim, 0, Status.ABORTED_BY_REQUEST)
        self._turn(turn)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.5]), turn=st.booleans())
    def time_passes(self, seconds: float, turn: bool) -> None:
        self.runtime.advance(seconds)
        self._turn(turn)

    @rule(beats=st.integers(1, 12))
    def time_passes_with_keep_alive_answered(self, beats: int) -> None:
        """Let time pass at a live controller, which answers Keep Alive."""
        for _ in range(beats):
            self.runtime.advance(0.5)
            for request in self.device.of(AdminOpcode.KEEP_ALIVE):
                self.device.finish(request, 0, 0)
        self._turn(True)

    @precondition(lambda self: self.number > 8)
    @rule(index=st.integers(0, 2), turn=st.booleans())
    def connection_lost(self, index: int, turn: bool) -> None:
        list(self.association.queues())[index].report_err(ConnectionLost("the connection was lost"))
        self._turn(turn)

    def _turn(self, turn: bool) -> None:
        if turn:
            self.runtime.run_ready()

    # -- invariants

    @invariant()
    def no_more_aborts_than_the_controller_takes(self) -> None:
        assert self.device.most_aborts <= self.limit

    @invariant()
    def a_command_is_out_for_its_timeout_or_two_at_most(self) -> None:
        """Check commands: one timeout until the Abort of a cancelled caller or of `abort_first`, one for the Abort.

        Each is noticed by the tick after the next.
        """
        for request, when in self.device.sent_at.items():
            if self.device.out.get((request.queue.qid, request.cid)) is not request:
                continue
            timeout = request.queue.timeout if request.timeout < 0 else request.timeout
            age = self.runtime.time - when
            assert age <= 2 * timeout + 4 * TICK
            if age > timeout + 2 * TICK:
                assert request.aborted or request.priority

    @invariant()
    def a_lost_association_leaves_nobody_waiting(self) -> None:
        assert len(self.lost) == (not self.live)
        if not self.live and not self.runtime.ready:
            assert not self.device.out
            assert self.device.drained == {0, 1, 2}
            assert all(caller.ended for caller in self.callers)

    @invariant()
    def callers_end_as_they_should(self) -> None:
        for caller in self.callers:
            if caller.ended and caller.error is not None:
                if isinstance(caller.error, CancelledError):
                    assert caller in self.cancelled
                else:
                    assert isinstance(caller.error, NvmeStatusError | ConnectionLost)

    @invariant()
    def a_cancelled_caller_has_its_buffers(self) -> None:
        """Check that the commands of a cancelled caller have ended or released their buffers, unless it still waits."""
        if self.runtime.ready:
            return
        out = {request.sqe: request for request in self.device.out.values()}
        sent = {request.sqe for request in self.device.sent_requests}
        assert not sent & self.taken_back
        for caller in self.cancelled:
            sqes, held = self.commands[caller]
            if caller.ended and isinstance(caller.error, CancelledError):
                self.taken_back.update(sqe for sqe in sqes if sqe not in sent)
            requests = [out[sqe] for sqe in sqes if sqe in out]
            assert all(request.aborted for request in requests)
            if held and self.device.gives_back:
                assert self.device.returned.issuperset(requests)
            assert caller.ended == (not requests or not held or self.device.gives_back)

    def teardown(self) -> None:
        """Answer everything: each caller ends, and each identifier is free again."""
        if not hasattr(self, "runtime"):
            return
        self.runtime.run_ready()
        while self.live and self.device.out:
            for request in list(self.device.out.values()):
                if self.device.out.get((request.queue.qid, request.cid)) is request:
                    self.device.finish(request, 0, 0)
            self.runtime.run_ready()
        assert all(caller.ended for caller in self.callers)
        if self.live:
            assert [queue.room for queue in self.association.queues()] == self.rooms
            assert not any(queue.load or queue.waiting for queue in self.association.queues())


TestHost = HostMachine.TestCase
TestHost.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
