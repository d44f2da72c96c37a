"""Multipath under random faults of a model network: no I/O lost or wrong, and none executed twice where that matters.

Everything above the queue contract is real: heads, policies, recovery, associations. Time is virtual, so that every
timer of the host runs, and runs are reproducible.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvmeof.errors import CommandNotExecuted, NvmeofError, OutcomeUnknown
from nvmeof.host.device_registry import DeviceRegistry
from nvmeof.host.host_subsystem import HostSubsystem, PathAddress, connect_multipath
from nvmeof.host.multipath.iopolicy import IOPOLICIES
from nvmeof.host.namespace import Namespace
from nvmeof.spec.enums import AnaState, LogPageId
from nvmeof.spec.sqe import SQE, Sqe

from .model import BLOCK_BYTES, COUNT, SUBNQN, ModelDevice, Volume
from .virtual import VirtualLoop

PORTS = 3
PLACES = 8
LARGE_BLOCKS = 700
"""Several commands of MDTS (256 blocks)."""
BATCH_BLOCKS = 100
"""More than a batch has outstanding."""
STRIDE = 1024
LINGER = 2.0
STALL = 12.0
"""Longer than two keep alive intervals."""
LATEST = 1.5 + STALL
"""How long a sent command may be in flight."""
ports = st.integers(0, PORTS - 1)
states = st.sampled_from([AnaState.OPTIMIZED, AnaState.NON_OPTIMIZED, AnaState.INACCESSIBLE, AnaState.CHANGE])


class Place:
    """Some blocks with one writer, and the contents that they may have."""

    def __init__(self, lba: int, blocks: int, *, batches: bool = False) -> None:
        self.lba = lba
        self.blocks = blocks
        self.batches = batches
        """Blocks are written and read one by one, as a batch."""
        self.possible = {0}
        self.task: asyncio.Task[Any] | None = None


class Faults(RuleBasedStateMachine):
    """The host's I/O and the network's faults, in any order."""

    cqt_ms = 0
    linger = 0.0

    @initialize(policy=st.sampled_from(list(IOPOLICIES)))
    def connect(self, policy: str) -> None:
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.problems: list[str] = []
        self.loop.set_exception_handler(lambda loop, context: self.problems.append(str(context)))
        self.device = ModelDevice(PORTS, Volume(1, blocks=STRIDE * (PLACES + 1)), cqt_ms=self.cqt_ms)
        for port in self.device.ports:
            port.linger = self.linger
        sizes = [1] * (PLACES - 4) + [BATCH_BLOCKS] * 2 + [LARGE_BLOCKS] * 2
        self.places = [Place(at * STRIDE, blocks, batches=blocks == BATCH_BLOCKS) for at, blocks in enumerate(sizes)]
        self.writes_given_up: dict[int, float] = {}
        self.value = 0
        self.counted: dict[int, asyncio.Task[Any]] = {}
        self.given_up: dict[int, float] = {}
        self.policy = policy
        self.subsystem = self.run(self._connect())
        self.namespace: Namespace = self.subsystem.namespace(1)
        self.run(self.namespace.refresh())

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def _connect(self) -> HostSubsystem:
        return await connect_multipath(
            *(PathAddress(f"p{port}") for port in range(PORTS)),
            subnqn=SUBNQN, transport="model", hostnqn="nqn.2026-01.org.example:host", iopolicy=self.policy,
            registry=DeviceRegistry(self.device), ctrl_loss_tmo=-1.0, reconnect_delay=3.0, queue_size=16,
        )  # fmt: skip

    # -- I/O

    @rule(at=st.integers(0, PLACES - 1))
    def write(self, at: int) -> None:
        place = self.places[at]
        if place.task is None or place.task.done():
            self.value += 1
            place.possible.add(self.value)
            place.task = self.loop.create_task(self._write(place, self.value))

    async def _write(self, place: Place, value: int) -> None:
        block = struct.pack("<Q", value) * (BLOCK_BYTES // 8)
        try:
            if place.batches:
                lbas = range(place.lba, place.lba + place.blocks)
                await self.namespace.write_many(lbas, [block] * place.blocks)
            else:
                await self.namespace.write(place.lba, block * place.blocks)
        except asyncio.CancelledError:
            self.writes_given_up[value] = self.loop.time()
            raise
        place.possible = {value}

    @rule(at=st.integers(0, PLACES - 1), seconds=st.sampled_from([0.0005, 0.01, 2.0, 20.0]))
    def write_within(self, at: int, seconds: float) -> None:
        """Write with a deadline, much later than which nothing may be written."""
        self.write(at)
        task = self.places[at].task
        if task is not None and not task.done():
            self.loop.call_later(seconds, task.cancel)

    @rule(at=st.integers(0, PLACES - 1))
    def read(self, at: int) -> None:
        place = self.places[at]
        if place.task is None or place.task.done():
            place.task = self.loop.create_task(self._read(place))

    async def _read(self, place: Place) -> None:
        into = bytearray(place.blocks * BLOCK_BYTES)
        if place.batches:
            await self.namespace.read_many(range(place.lba, place.lba + place.blocks), into=into)
        else:
            await self.namespace.read_into(place.lba, into)
        found = set(struct.unpack(f"<{len(into) // 8}Q", into))
        assert found <= place.possible, f"blocks from {place.lba} on hold {found} where {place.possible} was written"
        if len(place.possible) == 1:
            assert found == place.possible

    @rule()
    def count(self) -> None:
        key = len(self.counted) + 1
        self.counted[key] = self.loop.create_task(
            self.namespace.port.io(SQE.pack(Sqe(opcode=COUNT, nsid=1, cdw10=key)))
        )

    @rule(at=st.integers(0, PLACES - 1), port=ports, gap=st.sampled_from([0.0, 0.0005, 0.01]), cancelled=st.booleans())
    def write_again_after_a_cut(self, at: int, port: int, gap: float, cancelled: bool) -> None:
        """Cut the connection of a write in flight; write the same blocks again at once."""
        self.write(at)
        self.run(asyncio.sleep(gap))
        self.cut(port)
        if cancelled:
            self.cancel(at)
        self.pass_time(0.01)
        self.write(at)
        self.pass_time(0.01)

    @rule(at=st.integers(0, PLACES - 1))
    def cancel(self, at: int) -> None:
        task = self.places[at].task
        if task is not None:
            task.cancel()

    @precondition(lambda self: self.counted)
    @rule()
    def cancel_a_count(self) -> None:
        key = max(self.counted)
        if not self.counted[key].done():
            self.counted[key].cancel()
            self.given_up[key] = self.loop.time()

    @rule(seconds=st.sampled_from([0.0005, 0.0015, 0.01, 0.5, 3.0, 12.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # -- faults

    @rule(port=ports)
    def cut(self, port: int) -> None:
        self.run(self._at_once(self.device.cut, port))

    @rule(port=ports)
    def take_down(self, port: int) -> None:
        self.device.ports[port].up = False
        self.run(self._at_once(self.device.cut, port))

    @rule()
    def restart(self) -> None:
        """Restart the target, which forgets the controller identifiers that it gave before."""
        for port in range(PORTS):
            self.cut(port)
        self.device.next_cntlid = 1

    @rule()
    def grow(self) -> None:
        """Make the namespace larger, and report it by every controller."""
        volume = self.device.volumes[1]
        volume.blocks += 1
        volume.data += bytes(BLOCK_BYTES)
        for port in range(PORTS):
            self.run(self._at_once(self.device.raise_event, port, 2, 0, LogPageId.CHANGED_NAMESPACES))

    @rule(port=ports, what=st.sampled_from(["loses_requests", "loses_answers"]))
    def half_open(self, port: int, what: str) -> None:
        setattr(self.device.ports[port], what, True)

    @rule(port=ports)
    def stall(self, port: int) -> None:
        """Hold all traffic for so long that a keep-alive is lost, then let it go on."""
        self.device.ports[port].delay = STALL
        self.run(asyncio.sleep(0.01))
        self.device.ports[port].delay = 0.001

    @rule(port=ports, mdts=st.sampled_from([1, 2, 5]))
    def reconnect_with_other_limits(self, port: int, mdts: int) -> None:
        """Replace the controller by one with a smaller or larger MDTS."""
        self.device.ports[port].identify = {"mdts": mdts}
        self.run(self._at_once(self.device.cut, port))

    @rule(port=ports, seconds=st.sampled_from([0.0005, 0.02, 1.5]))
    def slow_down(self, port: int, seconds: float) -> None:
        self.device.ports[port].delay = seconds

    @rule(port=ports)
    def heal(self, port: int) -> None:
        where = self.device.ports[port]
        if where.loses_requests or where.loses_answers:
            # bytes are not lost from the middle of a stream: a connection that lost some is closed
            self.run(self._at_once(self.device.cut, port))
        where.up, where.loses_requests, where.loses_answers, where.delay = True, False, False, 0.001

    @rule(port=ports, state=states, event=st.booleans())
    def ana(self, port: int, state: AnaState, event: bool) -> None:
        if event:
            self.run(self._at_once(self.device.set_ana, port, state))
        else:
            self.device.ports[port].ana[1] = state

    @rule(policy=st.sampled_from(list(IOPOLICIES)))
    def change_policy(self, policy: str) -> None:
        self.subsystem.iopolicy = policy

    @rule(port=ports)
    def remove_or_add(self, port: int) -> None:
        self.run(self._remove_or_add(port))

    async def _at_once(self, function: Any, *arguments: Any) -> None:
        function(*arguments)

    async def _remove_or_add(self, port: int) -> None:
        member = next((each for each in self.subsystem.paths if each.path.options.traddr == f"p{port}"), None)
        if member is None:
            try:
                await self.subsystem.add_path(PathAddress(f"p{port}"))
            except NvmeofError:
                pass
        elif len(self.subsystem.paths) > 1:
            await self.subsystem.remove_path(member)

    # -- invariants

    @invariant()
    def nothing_is_counted_wrong(self) -> None:
        for member in getattr(self, "subsystem", None).paths if hasattr(self, "subsystem") else ():
            assert member.depth >= 0 and member.outstanding_bytes >= 0
        assert not getattr(self, "problems", None), self.problems

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            if hasattr(self, "subsystem"):
                self.run(self._end())
            assert not self.problems, self.problems
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _end(self) -> None:
        """Restore the network; all I/O ends without an error, and the data is what was written last."""
        for port in range(PORTS):
            where = self.device.ports[port]
            if where.loses_requests or where.loses_answers:
                self.device.cut(port)
            where.up, where.loses_requests, where.loses_answers, where.delay = True, False, False, 0.001
            self.device.set_ana(port, AnaState.OPTIMIZED)
        tasks = [place.task for place in self.places if place.task is not None]
        await asyncio.wait([*tasks, *self.counted.values(), asyncio.ensure_future(asyncio.sleep(0))], timeout=300)
        for task in tasks:
            assert task.done(), "I/O was lost"
            if not task.cancelled():
                task.result()
        await asyncio.sleep(30)
        for place in self.places:
            await self._read(place)
        assert self.namespace.size_blocks == self.device.volumes[1].blocks
        for member in self.subsystem.paths:
            assert member.usable and member.namespaces[1].access, f"{member.name} is not used again: {member.why}"
            assert member.depth == 0 and member.outstanding_bytes == 0, f"{member} still counts commands"
        for head in self.subsystem.core.heads:
            assert head.waiting == 0
        self._check_counts()
        self._check_deadlines()
        await self.subsystem.disconnect()

    def _check_deadlines(self) -> None:
        for value, at in self.writes_given_up.items():
            late = self.device.written_at.get(value, 0.0) - at
            assert late <= LATEST + self.linger, f"write {value} was executed {late} s after it was given up"

    def _check_counts(self) -> None:
        for key, task in self.counted.items():
            assert task.done(), "a command that must not be done twice was lost"
            done = self.device.counts[key]
            assert done <= 1, f"command {key} was done {done} times"
            if key in self.given_up:
                late = self.device.counted_at.get(key, 0.0) - self.given_up[key]
                assert late <= LATEST + self.linger, "a command was executed after it was given up"
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                assert done == 1
            elif isinstance(error, CommandNotExecuted):
                assert done == 0
            else:
                assert isinstance(error, OutcomeUnknown), error


class LateFaults(Faults):
    """The same with a target that executes received commands for two seconds more, and reports it (CQT)."""

    cqt_ms = 2500
    linger = LINGER


COMMON = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False
)
TestFaults = pytest.mark.timeout(300)(Faults.TestCase)
TestFaults.settings = COMMON
TestLateFaults = pytest.mark.timeout(300)(LateFaults.TestCase)
TestLateFaults.settings = COMMON
