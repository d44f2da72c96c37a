"""Any sequence of I/O commands on several queues, their data coming in any order, against a bytearray and a set of
blocks that cannot be read.

A command takes effect when all of its data is there: at once in memory, and in a file in the order of arrival, for
overlapping ranges are locked in that order. Where the specification leaves the order of outstanding commands open and a
file's is another (marks, Copy, Force Unit Access), the model waits for the other commands.
"""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nvmeof.protocol.connection import ConnectionConfig, TargetConnection
from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.queue import TargetQueue
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import C2H, IN_CAPSULE, R2T, RESPONSE, SUCCESS, TRANSPORT, connect_data, icreq, make_sqe
from tests.protocol.wire import sent, split
from tests.target.backend_tools import AsyncDriver, Hidden
from tests.target.harness import HOST, HOSTID, NQN, Target
from tests.target.queue.queue_wire import Wire

BLOCKS, QUEUES = 256, 3
SIZE = BLOCKS * 512
READ, WRITE, FLUSH, UNCORRECTABLE, COMPARE, ZEROES, DSM, VERIFY, COPY = (
    0x02,
    0x01,
    0x00,
    0x04,
    0x05,
    0x08,
    0x09,
    0x0C,
    0x19,
)
FUA, DEAC, NSZ = 1 << 30, 1 << 25, 1 << 23
OK, FAILED, MISSING, UNREADABLE, DIFFERS = 0, 0x09, 0x0A, 0x281, 0x285


class Model:
    """The expected state of a namespace."""

    def __init__(self) -> None:
        self.content = bytearray(SIZE)
        self.bad: set[int] = set()

    def good(self, slba: int, blocks: int) -> bool:
        return self.bad.isdisjoint(range(slba, slba + blocks))

    def get(self, slba: int, blocks: int) -> bytes:
        return bytes(self.content[slba * 512 : (slba + blocks) * 512])

    def put(self, slba: int, data: bytes) -> None:
        self.content[slba * 512 : slba * 512 + len(data)] = data
        self.bad.difference_update(range(slba, slba + len(data) // 512))


@dataclass
class Answer:
    status: int
    dw0: int = 0
    data: bytes | None = None


@dataclass
class Command:
    """A sent command. `expected` is known once the command has taken effect, None before."""

    cid: int
    effect: Callable[[], Answer]
    data: bytes = b""
    asked: tuple[int, int] | None = None  # TTAG and length of its R2T
    here: bool = False
    other: Command | None = None  # the other half, in the second one
    expected: Answer | None = None


@dataclass
class Queue(Wire):
    """One of several queues of a controller."""

    target: Target
    qid: int
    dgst: int
    backend: Any = None
    header_digest: bool = False
    data_digest: bool = False
    outstanding: dict[int, Command] = field(default_factory=dict)
    first: Command | None = None
    reading: dict[int, bytes] = field(default_factory=dict)
    cid: int = 0

    def __post_init__(self) -> None:
        self.header_digest, self.data_digest = bool(self.dgst & 1), bool(self.dgst & 2)
        self.driver = AsyncDriver()
        self.connection = TargetConnection(ConnectionConfig(header_digest=True, data_digest=True))
        self.pool = BufferPool(4 << 20)
        self.queue = TargetQueue(self.connection, self.pool, DetachedCommands(), self.driver)
        seen = self.target.port.seen_at("192.0.2.1", 4420)
        self.queue.ctx = ConnectContext(self.target.runtime, self.target.registry, seen, self.queue)
        controller = next(iter(self.target.subsystem.controllers.values()))
        self.feed(icreq(dgst=self.dgst))
        sqe = make_sqe(0, 0x7F, nsid=1, length=1024, sgl=IN_CAPSULE, cdw10=self.qid << 16, cdw11=127 | 4 << 16)
        self.feed(self.capsule(sqe, connect_data(NQN, HOST, HOSTID, controller.cntlid)))
        assert self.queue.ctx.qid == self.qid

    def hear(self, out: bytes) -> None:
        """Take the target's output: R2Ts are recorded, completions compared with the expected ones."""
        for pdu in split(out):
            if pdu[0] == R2T:
                cid, ttag, offset, length = struct.unpack_from("<HHII", pdu, 8)
                assert offset == 0 and length == len(self.outstanding[cid].data)
                self.outstanding[cid].asked = (ttag, length)
            elif pdu[0] == C2H:
                cid = struct.unpack_from("<H", pdu, 8)[0]
                self.reading[cid] = pdu[pdu[3] : len(pdu) - (4 if self.data_digest else 0)]
                if pdu[1] & SUCCESS:
                    self.answered(cid, Answer(OK, 0, self.reading.pop(cid)))
            else:
                assert pdu[0] == RESPONSE
                cid, status = struct.unpack_from("<HH", pdu, 20)
                dw0 = struct.unpack_from("<I", pdu, 8)[0]
                self.answered(cid, Answer(status >> 1 & 0x7FF, dw0, self.reading.pop(cid, None)))

    def answered(self, cid: int, answer: Answer) -> None:
        command = self.outstanding.pop(cid)
        assert command.expected is not None, "answered before its data was there"
        assert answer == command.expected


class Commands(RuleBasedStateMachine):
    """A state machine that sends commands and data; `make` returns the backend."""

    def make(self) -> Awaitable[Any] | Any:
        return Ramdisk(SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.queues: list[Queue] = []
        self.slow = False
        self.backend: Any = None

    @initialize(dgst=st.sampled_from([0, 0, 2, 3]))
    def connect(self, dgst):
        async def connect():
            self.backend = self.make()
            await self.backend.open()
            target = Target(self.backend)
            target.admin()
            self.queues = [Queue(target, qid + 1, dgst) for qid in range(QUEUES)]

        self.loop.run_until_complete(connect())

    # Sending

    def run(self, queue: Queue, raw: bytes, *effective: Command) -> None:
        """Feed a queue; the commands take effect, in this order."""
        # A file does not order these against outstanding commands.
        settle = self.slow and bool(self.model.bad or any(getattr(each, "apart", False) for each in effective))

        async def run() -> None:
            if settle:
                await self.settled()
            for command in effective:
                command.expected = command.effect()
            queue.hear(queue.feed(raw))
            if settle or (self.slow and self.model.bad):
                await self.settled()
            else:
                await asyncio.sleep(0)
                for each in self.queues:
                    each.hear(sent(each.connection))

        self.loop.run_until_complete(run())

    async def settled(self) -> None:
        while any(queue.driver.tasks or queue.queue.running for queue in self.queues):
            tasks = [task for queue in self.queues for task in queue.driver.tasks]
            if tasks:
                await asyncio.wait(tasks)
            await asyncio.sleep(0 if tasks else 0.001)  # a run of a file has no task
        for queue in self.queues:
            queue.hear(sent(queue.connection))

    def capsule(
        self, queue: Queue, opcode: int, effect: Callable[[], Answer], data: bytes = b"", *, asked: bool = False,
        slba: int = 0, cdw11: int | None = None, cdw12: int = 0, flags: int = 0x40, length: int | None = None,
    ) -> tuple[Command, bytes]:  # fmt: skip
        queue.cid += 1
        command = Command(queue.cid, effect, data, here=not asked)
        queue.outstanding[command.cid] = command
        sqe = make_sqe(
            command.cid, opcode, nsid=1, flags=flags, sgl=IN_CAPSULE if data and not asked else TRANSPORT,
            length=len(data) if length is None else length,
            cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32 if cdw11 is None else cdw11, cdw12=cdw12,
        )  # fmt: skip
        return command, queue.capsule(sqe, b"" if asked else data)

    def send(
        self, index: int, opcode: int, effect: Callable[[], Answer], *, apart: bool = False, **fields: Any
    ) -> None:
        """Send a command that is no half: a first half before it has then no second one."""
        queue = self.queues[index]
        missed = self.miss(queue)
        command, raw = self.capsule(queue, opcode, effect, **fields)
        command.apart = apart  # type: ignore[attr-defined]
        self.run(queue, raw, *missed, *([command] if command.here else []))

    def miss(self, queue: Queue) -> list[Command]:
        first, queue.first = queue.first, None
        if first is None:
            return []
        first.effect = lambda: Answer(MISSING)
        return [first]

    # Effects

    def read_effect(self, slba, blocks):
        def effect():
            if not self.model.good(slba, blocks):
                return Answer(UNREADABLE)
            return Answer(OK, 0, self.model.get(slba, blocks))

        return effect

    def write_effect(self, slba, data, dw0=0):
        def effect():
            self.model.put(slba, data)
            return Answer(OK, dw0)

        return effect

    def compare_effect(self, slba, data):
        def effect():
            blocks = len(data) // 512
            if not self.model.good(slba, blocks):
                return Answer(UNREADABLE)
            return Answer(OK if self.model.get(slba, blocks) == data else DIFFERS)

        return effect

    # Rules

    queues_ = st.integers(0, QUEUES - 1)
    places = st.one_of(st.integers(0, 12), st.integers(0, BLOCKS - 64))
    lengths = st.sampled_from([1, 2, 3, 7, 8, 9, 16])

    @rule(index=queues_, slba=places, blocks=st.sampled_from([1, 2, 8, 9, 64]), fua=st.sampled_from([0, 0, 0, FUA]))
    def read(self, index, slba, blocks, fua):
        effect = self.read_effect(slba, blocks)
        self.send(index, READ, effect, apart=bool(fua), slba=slba, cdw12=blocks - 1 | fua, length=blocks * 512)

    @rule(index=queues_, slba=places, blocks=lengths, value=st.integers(1, 255), asked=st.booleans(),
          fua=st.sampled_from([0, 0, 0, FUA]))  # fmt: skip
    def write(self, index, slba, blocks, value, asked, fua):
        data = bytes([value]) * (blocks * 512)
        self.send(
            index, WRITE, self.write_effect(slba, data), data=data, asked=asked, slba=slba, cdw12=blocks - 1 | fua
        )

    @rule(index=queues_, slba=places, blocks=st.sampled_from([33, 64]), value=st.integers(1, 255))
    def write_much(self, index, slba, blocks, value):
        data = bytes([value]) * (blocks * 512)
        self.send(index, WRITE, self.write_effect(slba, data), data=data, asked=True, slba=slba, cdw12=blocks - 1)

    @rule(index=queues_, slba=places, blocks=lengths, equal=st.booleans(), asked=st.booleans())
    def compare(self, index, slba, blocks, equal, asked):
        data = self.model.get(slba, blocks) if equal else b"\xfe" * (blocks * 512)
        effect = self.compare_effect(slba, data)
        self.send(index, COMPARE, effect, data=data, asked=asked, slba=slba, cdw12=blocks - 1)

    @rule(index=queues_, slba=places, blocks=st.sampled_from([1, 8, 64]))
    def verify(self, index, slba, blocks):
        self.send(
            index, VERIFY, lambda: Answer(OK if self.model.good(slba, blocks) else UNREADABLE), slba=slba,
            cdw12=blocks - 1,
        )  # fmt: skip

    @rule(index=queues_, slba=places, blocks=st.sampled_from([1, 8, 13, 64]), bits=st.sampled_from([0, DEAC, FUA]))
    def write_zeroes(self, index, slba, blocks, bits):
        self.send(index, ZEROES, self.write_effect(slba, bytes(blocks * 512)), slba=slba, cdw12=blocks - 1 | bits)

    @rule(index=queues_)
    def write_zeroes_everywhere(self, index):
        self.send(index, ZEROES, self.write_effect(0, bytes(SIZE), 1), slba=1 << 40, cdw12=0xFFFF | DEAC | NSZ)

    @rule(index=queues_, ranges=st.lists(st.tuples(places, st.sampled_from([0, 1, 8, 40])), min_size=1, max_size=4),
          attributes=st.integers(0, 7), asked=st.booleans())  # fmt: skip
    def dataset_management(self, index, ranges, attributes, asked):
        def effect():
            for slba, blocks in ranges if attributes & 4 else ():
                self.model.put(slba, bytes(blocks * 512))
            return Answer(OK)

        data = b"".join(struct.pack("<IIQ", 0, blocks, slba) for slba, blocks in ranges)
        self.send(index, DSM, effect, data=data, asked=asked, slba=len(ranges) - 1, cdw11=attributes)

    @rule(index=queues_, slba=places, blocks=st.sampled_from([1, 2, 8]))
    def write_uncorrectable(self, index, slba, blocks):
        def effect():
            self.model.bad.update(range(slba, slba + blocks))
            return Answer(OK)

        self.send(index, UNCORRECTABLE, effect, apart=True, slba=slba, cdw12=blocks - 1)

    @rule(index=queues_, slba=places, blocks=lengths, opcode=st.sampled_from([WRITE, ZEROES, DSM]))
    def rewrite_what_is_marked(self, index, slba, blocks, opcode):
        self.write_uncorrectable(index, slba, min(blocks, 8))
        self.read(index, slba, blocks, 0)
        if opcode == WRITE:
            self.write(index, slba, blocks, 0x77, False, 0)
        elif opcode == ZEROES:
            self.write_zeroes(index, slba, blocks, 0)
        else:
            self.dataset_management(index, [(slba, blocks)], 4, False)
        self.read(index, slba, blocks, 0)

    @rule(index=queues_, slba=st.integers(0, BLOCKS - 128), asked=st.booleans(),
          ranges=st.lists(st.tuples(places, st.sampled_from([1, 8, 30, 40])), min_size=1, max_size=3))  # fmt: skip
    def copy(self, index, slba, ranges, asked):
        total = sum(blocks for _, blocks in ranges)

        def effect():
            if total * 512 <= 32768:
                if not all(self.model.good(*item) for item in ranges):
                    return Answer(UNREADABLE)
                self.model.put(slba, b"".join(self.model.get(*item) for item in ranges))
                return Answer(OK)
            at = slba
            for number, item in enumerate(ranges):
                if not self.model.good(*item):
                    return Answer(UNREADABLE, number)
                self.model.put(at, self.model.get(*item))
                at += item[1]
            return Answer(OK)

        data = b"".join(struct.pack("<8xQH14x", start, blocks - 1) for start, blocks in ranges)
        self.send(index, COPY, effect, apart=True, data=data, asked=asked, slba=slba, cdw12=len(ranges) - 1)

    @rule(index=queues_, blocks=st.sampled_from([8, 40]), which=st.integers(0, 2))
    def copy_with_a_fault(self, index, blocks, which):
        ranges = [(at, blocks) for at in (0, 50, 100)]
        self.write_uncorrectable(index, ranges[which][0] + 3, 1)
        self.copy(index, 128, ranges, False)

    @rule(index=queues_)
    def flush(self, index):
        self.send(index, FLUSH, lambda: Answer(OK))

    @rule(index=queues_, slba=places, blocks=lengths, equal=st.booleans(), asked=st.booleans())
    def first_half(self, index, slba, blocks, equal, asked):
        queue = self.queues[index]
        missed = self.miss(queue)
        data = self.model.get(slba, blocks) if equal else b"\xfe" * (blocks * 512)
        effect = self.compare_effect(slba, data)
        command, raw = self.capsule(queue, COMPARE, effect, data, asked=asked, slba=slba, cdw12=blocks - 1, flags=0x41)
        command.place = (slba, blocks)  # type: ignore[attr-defined]
        self.run(queue, raw, *missed)
        queue.first = command

    @rule(index=queues_, value=st.integers(1, 255), asked=st.booleans())
    def second_half(self, index, value, asked):
        queue = self.queues[index]
        first, queue.first = queue.first, None
        slba, blocks = first.place if first is not None else (0, 1)  # type: ignore[attr-defined]
        data = bytes([value]) * (blocks * 512)
        command, raw = self.capsule(
            queue, WRITE, lambda: Answer(MISSING), data, asked=asked, slba=slba, cdw12=blocks - 1, flags=0x42
        )
        if first is None:
            self.run(queue, raw, command)
            return
        command.effect = lambda: self.write_effect(slba, data)() if first.expected == Answer(OK) else Answer(FAILED)
        first.other = command.other = command
        # The order of their arrival does not matter.
        ready = [first, command] if first.here and command.here else []
        first.pair = command.pair = (first, command)  # type: ignore[attr-defined]
        self.run(queue, raw, *ready)

    @rule(index=queues_, slba=places, blocks=lengths, value=st.integers(1, 255), equal=st.booleans(),
          asked=st.tuples(st.booleans(), st.booleans()))  # fmt: skip
    def compare_and_write(self, index, slba, blocks, value, equal, asked):
        self.first_half(index, slba, blocks, equal, asked[0])
        self.second_half(index, value, asked[1])

    @rule(index=queues_, slba=st.integers(0, 20), between=st.sampled_from([READ, WRITE]), value=st.integers(1, 255))
    def second_half_too_late(self, index, slba, between, value):
        """Send a command between two halves, equal to commands that the fast path has served before."""
        data = bytes([value]) * 4096

        def plain():
            if between == READ:
                self.send(index, READ, self.read_effect(slba, 8), slba=slba, cdw12=7, length=4096)
            else:
                self.send(index, WRITE, self.write_effect(slba, data), data=data, slba=slba, cdw12=7)

        plain()
        plain()
        self.first_half(index, slba, 8, True, False)
        plain()
        self.second_half(index, value, False)

    @rule(index=queues_, which=st.integers(0, 7))
    def deliver(self, index, which):
        queue = self.queues[index]
        waiting = [command for command in queue.outstanding.values() if command.asked is not None and not command.here]
        if not waiting:
            return
        command = waiting[which % len(waiting)]
        assert command.asked is not None
        command.here = True
        pair = getattr(command, "pair", None)
        effective = [command] if pair is None else list(pair) if all(each.here for each in pair) else []
        self.run(queue, queue.h2c(command.cid, command.asked[0], 0, command.data), *effective)

    @rule()
    def wait(self):
        self.loop.run_until_complete(self.settled())
        self.check()

    # Checks

    def check(self) -> None:
        """Check that only commands without their data are outstanding, and that the content is right."""
        for queue in self.queues:
            assert all(command.expected is None for command in queue.outstanding.values())
        assert self.stored() == bytes(self.model.content)

    def stored(self) -> bytes:
        return bytes(self.backend.memory)

    @invariant()
    def content(self):
        if self.queues and not self.slow:
            self.check()

    def teardown(self):
        async def end() -> None:
            if self.queues:
                await self.settled()
                self.check()
                for queue in self.queues:
                    queue.queue.lost("the end")
                    queue.connection.close()
                    queue.queue.staging.settle()
                    assert queue.pool.used_bytes == 0
            if self.backend is not None:
                await self.backend.close()

        try:
            self.loop.run_until_complete(end())
        finally:
            self.loop.close()


class CommandsToHidden(Commands):
    def make(self):
        return Hidden(SIZE)

    def stored(self):
        return bytes(self.backend.ramdisk.memory)


class CommandsToFile(Commands):
    def make(self):
        self.slow = True
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "disk"
        return FileBackend(self.path, size=SIZE, workers=3)

    def stored(self):
        return self.path.read_bytes()

    def teardown(self):
        super().teardown()
        self.directory.cleanup()


def limits(examples: int, steps: int) -> Any:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )


TestMemory = pytest.mark.filterwarnings("ignore::ResourceWarning")(Commands.TestCase)
TestMemory.settings = limits(60, 40)
TestHidden = CommandsToHidden.TestCase
TestHidden.settings = limits(25, 40)
TestFile = CommandsToFile.TestCase
TestFile.settings = limits(25, 30)
