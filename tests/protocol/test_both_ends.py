"""Both roles joined by a pipe that cuts anywhere: random commands in every setting, and nothing is left over."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvmeof.protocol.connection import Connection, ConnectionConfig, HostConnection, State, TargetConnection
from nvmeof.protocol.events import CommandBatch, CommandData, Completions, Ready
from nvmeof.protocol.transfers import R2tTransfer
from tests.events import one_by_one

from .wire import READ, WRITE, sqe, unfinished

FLUSH = 0
ENTRIES = 8
MOST_BYTES = 100_000
ALIGNMENTS = st.sampled_from([4, 8, 12, 64, 128])
SIZES = st.one_of(st.integers(1, 600), st.sampled_from([4095, 4096, 4097, 32767, 32768, 65536, MOST_BYTES]))


class Pipe:
    """One direction: takes bytes like the sender's socket, gives bytes like the receiver's socket."""

    def __init__(self, sender: Connection, receiver: Connection) -> None:
        self.sender = sender
        self.receiver = receiver
        self.inside = bytearray()

    def push(self, limit: int) -> None:
        """Do one ``sendmsg`` that takes up to ``limit`` bytes."""
        if self.sender.want_write:
            taken = 0
            for buffer in self.sender.data_to_send():
                part = memoryview(buffer)[: limit - taken]
                self.inside += part
                taken += len(part)
                if taken == limit:
                    break
            self.sender.bytes_sent(taken)

    def pull(self, limit: int) -> list[Any]:
        """Do one ``recv_into`` of up to ``limit`` bytes."""
        if not self.inside or not self.receiver.want_read:
            return []
        buffer = self.receiver.next_buffer()
        count = min(limit, len(buffer), len(self.inside))
        buffer[:count] = self.inside[:count]
        del self.inside[:count]
        return self.receiver.bytes_received(count, 0.0)


class BothEnds(RuleBasedStateMachine):
    """The target keeps a store by CID slot; each command's effect is known beforehand."""

    @initialize(
        digests=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
        hpda=ALIGNMENTS,
        cpda=ALIGNMENTS,
        maxr2t=st.sampled_from([1, 2, 5]),
        r2t_bytes=st.sampled_from([None, 4, 500, 5000, 40_000]),
        maxh2cdata=st.sampled_from([4096, 8192, 1 << 20]),
        incapsule=st.sampled_from([0, 100, 8192]),
        flow_control=st.booleans(),
        seed=st.integers(0, 1 << 32),
    )
    def connect(
        self,
        digests: tuple[bool, bool, bool, bool],
        hpda: int,
        cpda: int,
        maxr2t: int,
        r2t_bytes: int | None,
        maxh2cdata: int,
        incapsule: int,
        flow_control: bool,
        seed: int,
    ) -> None:
        if r2t_bytes == 4:
            maxr2t, self.largest = 5, 600
        else:
            self.largest = MOST_BYTES
        self.host = HostConnection(ConnectionConfig(
                header_digest=digests[0], data_digest=digests[1], pda_bytes=hpda, maxr2t=maxr2t,
                incapsule_bytes=incapsule,
            ),
        )  # fmt: skip
        self.target = TargetConnection(ConnectionConfig(
                header_digest=digests[2], data_digest=digests[3], pda_bytes=cpda, maxh2cdata_bytes=maxh2cdata,
                r2t_bytes=r2t_bytes, incapsule_bytes=incapsule,
            ),
        )  # fmt: skip
        self.random = random.Random(seed)
        self.there = Pipe(self.host, self.target)
        self.back = Pipe(self.target, self.host)
        self.flow_control = flow_control
        self.ready = 0
        self.held: deque[tuple[int, Any]] = deque()  # commands that the target has not answered
        self.expected: dict[int, Any] = {}  # commands that the host waits for
        self.readable: dict[int, bytes] = {}
        self.released = 0
        self.leases = 0
        self.completed = 0
        self.host.start()
        self.move()

    # -- the events of each end

    def target_events(self, events: list[Any]) -> None:
        for event in one_by_one(events):
            if isinstance(event, Ready):
                self.target.set_queue(1, ENTRIES, flow_control=self.flow_control)
                self.target._announce_disabled = False
            elif isinstance(event, CommandBatch):
                for index in range(event.count):
                    self.arrived(bytes(event.view[index * event.stride + 8 :][:64]))
            elif isinstance(event, CommandData):
                assert event.digest_ok
                cid = int.from_bytes(event.sqe[2:4], "little")
                assert bytes(event.data) == self.expected[cid]
                self.held.append((cid, None))
            elif isinstance(event, R2tTransfer):
                assert event.ok
                assert event.context == self.expected[event.cid]
                self.held.append((event.cid, None))
            else:
                raise AssertionError(event)

    def arrived(self, command: bytes) -> None:
        cid = int.from_bytes(command[2:4], "little")
        length = int.from_bytes(command[32:36], "little")
        if command[0] == WRITE:
            buffer = bytearray(length)
            self.target.request_data(cid, memoryview(buffer), buffer)
        elif command[0] == READ:
            assert length == len(self.readable[cid])
            self.held.append((cid, self.readable[cid]))
        else:
            self.held.append((cid, None))

    def host_events(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Ready):
                self.ready += 1
            elif isinstance(event, Completions):
                for cid, status, _, _ in event.entries:
                    assert status == 0
                    expected = self.expected.pop(cid)
                    if cid in self.readable:
                        assert expected == self.readable.pop(cid)
                    self.completed += 1
            else:
                raise AssertionError(event)

    def release(self) -> None:
        self.released += 1

    def answer(self) -> None:
        """Complete the oldest waiting command."""
        cid, data = self.held.popleft()
        if data is None:
            self.target.send_completion(cid)
            return
        view = memoryview(bytearray(data))
        kind = self.random.randrange(3)
        if kind == 0:
            self.leases += 1
            self.target.send_read(cid, view, release=self.release, stable=True)
        elif kind == 1:
            self.target.send_read(cid, view)
        else:
            self.target.send_reads([cid], [view], len(view))

    def move(self) -> None:
        """Move bytes until nothing moves."""
        moved = True
        while moved:
            moved = False
            for pipe, handle in ((self.there, self.target_events), (self.back, self.host_events)):
                pipe.push(1 << 30)
                while pipe.inside:
                    moved = True
                    handle(pipe.pull(1 << 30))

    # -- rules

    @precondition(lambda self: len(self.expected) < ENTRIES)
    @rule(opcode=st.sampled_from([READ, WRITE, FLUSH]), size=SIZES, in_capsule=st.sampled_from([None, False]),
          cids=st.randoms(use_true_random=False))  # fmt: skip
    def command(self, opcode: int, size: int, in_capsule: bool | None, cids: random.Random) -> None:
        size = min(size, self.largest)
        cid = cids.choice([c for c in (0, 1, 2, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 5, 6, 7) if c not in self.expected])
        data = self.random.randbytes(size)
        if opcode == READ:
            into = bytearray(size)
            self.expected[cid] = into
            self.readable[cid] = data
            self.host.send_command(cid, sqe(READ), data_in=memoryview(into))
        elif opcode == WRITE:
            self.expected[cid] = data
            self.host.send_command(cid, sqe(WRITE), data, in_capsule=in_capsule)
        else:
            self.expected[cid] = None
            self.host.send_command(cid, sqe(FLUSH))

    @rule(limit=st.integers(0, 100_000))
    def host_sends(self, limit: int) -> None:
        self.there.push(limit)

    @rule(limit=st.integers(0, 100_000))
    def target_sends(self, limit: int) -> None:
        self.back.push(limit)

    @rule(limit=st.integers(1, 40_000))
    def target_receives(self, limit: int) -> None:
        self.target_events(self.there.pull(limit))

    @rule(limit=st.integers(1, 40_000))
    def host_receives(self, limit: int) -> None:
        self.host_events(self.back.pull(limit))

    @precondition(lambda self: self.held)
    @rule()
    def target_answers(self) -> None:
        self.answer()

    @precondition(lambda self: len(self.held) > 1)
    @rule()
    def order_changes(self) -> None:
        self.held.rotate(1)

    @invariant()
    def in_flight_is_what_is_not_answered(self) -> None:
        if hasattr(self, "host"):
            assert self.ready == 1
            assert len(self.held) <= self.target.in_flight <= ENTRIES
            assert self.host.outstanding == len(self.expected)
            assert self.released <= self.leases

    def teardown(self) -> None:
        if not hasattr(self, "host"):
            return
        for _ in range(2 * ENTRIES):
            self.move()
            while self.held:
                self.answer()
        assert not self.expected
        assert not self.readable
        assert self.target.in_flight == 0
        assert self.target.asked_bytes == 0
        for connection in (self.host, self.target):
            assert connection.backlog_bytes == 0
            assert connection.large_expected == 0
            assert not unfinished(connection)
            assert not connection.out._releases
            assert not connection.out.ready
            assert connection._payload is None
            assert connection._payload_owner is None
        assert self.released == self.leases
        assert {self.host.state, self.target.state} == {State.HOST_READY, State.TARGET_READY}


BothEnds.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestBothEnds = BothEnds.TestCase
