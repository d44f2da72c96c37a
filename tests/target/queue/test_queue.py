"""A queue without sockets: its fast path against the general path and against a model, staging, endings."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nvmeof.protocol.connection import ConnectionConfig, TargetConnection
from nvmeof.protocol.pdu_tap import PduTap
from nvmeof.spec.enums import AnaState
from nvmeof.spec.status import Status
from nvmeof.target.commands.admin_context import ConnectContext
from nvmeof.target.core.pool import BufferPool
from nvmeof.target.core.slices import LONG_SECONDS, Slices
from nvmeof.target.namespaces.feature_values import Value
from nvmeof.target.queue.detached import DetachedCommands
from nvmeof.target.queue.fast_path import FastPath
from nvmeof.target.queue.pacing import HOLD_BYTES, RUNNING_MOST
from nvmeof.target.queue.queue import TargetQueue
from nvmeof.target.queue.staging import READ_AHEAD_BYTES, SPARE_BYTES
from nvmeof.target.queue.tracing import CommandTrace
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from nvmeof.trace import Side, Trace, TracedQueue
from tests.conformance.rawhost import (
    C2H,
    FLUSH,
    IN_CAPSULE,
    R2T,
    READ,
    RESPONSE,
    SUCCESS,
    TRANSPORT,
    WRITE,
    WRITE_ZEROES,
    RawHost,
    connect_data,
    icreq,
    io_sqe,
    make_sqe,
)
from tests.protocol.wire import sent, split
from tests.target.backend_tools import Hidden
from tests.target.harness import HOST, HOSTID, NQN, Pending, Target

BLOCKS = 64
WRITE_UNCORRECTABLE, COMPARE = 0x04, 0x05
SIZE = BLOCKS * 512
OK, FIELD, CONFLICT, RANGE, INACCESSIBLE = 0, 0x02, 0x03, 0x80, 0x302


class NoFastPath(FastPath):
    """A fast path without templates, so that each command takes the general path."""

    __slots__ = ()

    def _template(self, *command: object) -> None:
        return None


@dataclass
class FakeDriver:
    spawned: list[tuple[Pending, Callable[[Any], None]]] = field(default_factory=list)
    wakes: int = 0
    ended: list[str] = field(default_factory=list)
    waiting: bool = False
    held_back: bool = False

    def spawn(self, pending, done):
        self.spawned.append((Pending(pending), done))

    def wake(self):
        self.wakes += 1

    def wait_for_room(self):
        self.waiting = True

    def hold_receiving(self, crowded):
        self.held_back = crowded

    def finish(self, reason, *, fault=False):
        self.ended.append(reason)


class Wire(RawHost):
    """A queue and a host that writes bytes to it."""

    def __init__(self, target: Target, *, dgst: int = 0, cattr: int = 0, entries: int = 128, fast_path: bool = True,
                 pool: BufferPool | None = None,
                 detached_commands: DetachedCommands | None = None, trace: Trace | None = None) -> None:  # fmt: skip
        self.header_digest, self.data_digest = bool(dgst & 1), bool(dgst & 2)
        self.target = target
        self.driver = FakeDriver()
        self.connection = TargetConnection(ConnectionConfig(header_digest=True, data_digest=True))
        self.pool = pool or BufferPool(1 << 20)
        self.queue = TargetQueue(self.connection, self.pool, detached_commands or DetachedCommands(), self.driver)
        seen = target.port.seen_at("192.0.2.1", 4420)
        self.queue.ctx = ConnectContext(target.runtime, target.registry, seen, self.queue)
        if trace is not None:
            self.queue.trace = CommandTrace(trace, TracedQueue(Side.TARGET, "host"), target.runtime.now)
            self.connection.tap = PduTap(self.queue.trace.pdus)
        if not fast_path:
            self.queue.fast_path.__class__ = NoFastPath
        controller = next(iter(target.subsystem.controllers.values()))
        self.feed(icreq(dgst=dgst))
        sqe = make_sqe(0, 0x7F, nsid=1, length=1024, sgl=IN_CAPSULE, cdw10=1 << 16, cdw11=entries - 1 | cattr << 16)
        answer = self.feed(self.capsule(sqe, connect_data(NQN, HOST, HOSTID, controller.cntlid)))
        assert self.queue.ctx.qid == 1, answer

    def feed(self, data: bytes, size: int = 1 << 30) -> bytes:
        """Return the output for `data`, received in pieces of at most `size`. Views stay live, as with a socket."""
        out = b""
        while data:
            buffer = self.connection.next_buffer()
            part = data[: min(size, len(buffer))]
            buffer[: len(part)] = part
            data = data[len(part) :]
            self.queue.handle(self.connection.bytes_received(len(part), 0.0), 0.0)
            out += sent(self.connection)
        self.queue.staging.settle()  # as the driver does
        return out


# -- the fast path


@dataclass(frozen=True)
class Command:
    opcode: int
    cid: int
    nsid: int = 1
    slba: int = 0
    nlb: int = 8
    flags: int = 0x40
    extra: int = 0  # more of CDW12: LR, FUA, PRINFO
    sgl: int | None = None
    sgl_skew: int = 0
    address: int = 0
    value: int = 0
    longer: int = 0

    def bytes(self, wire: Wire) -> bytes:
        moves = self.opcode in (READ, WRITE, COMPARE)
        sends = self.opcode in (WRITE, COMPARE)
        sgl = (IN_CAPSULE if sends else TRANSPORT) if self.sgl is None else self.sgl
        length = self.nlb * 512 + self.sgl_skew if moves else 0
        sqe = make_sqe(
            self.cid, self.opcode, nsid=self.nsid, length=length, sgl=sgl, address=self.address, flags=self.flags,
            cdw10=self.slba & 0xFFFFFFFF, cdw11=self.slba >> 32, cdw12=self.nlb - 1 | self.extra,
        )  # fmt: skip
        data = b""
        if sends and sgl == IN_CAPSULE:
            data = bytes([self.value]) * (self.nlb * 512 + self.longer)
        return wire.capsule(sqe, data)


PLAIN = st.builds(
    Command,
    opcode=st.sampled_from([READ, READ, READ, WRITE, WRITE]),
    cid=st.integers(0, 7),
    slba=st.integers(0, BLOCKS - 8),
    value=st.integers(1, 255),
)
ASKED = st.builds(
    Command,
    opcode=st.just(WRITE),
    cid=st.integers(0, 7),
    slba=st.integers(0, BLOCKS - 8),
    sgl=st.just(TRANSPORT),
)
ODD = st.builds(
    Command,
    opcode=st.sampled_from([READ, WRITE, WRITE_ZEROES, WRITE_UNCORRECTABLE, FLUSH, COMPARE, COMPARE, 0x7E]),
    cid=st.integers(0, 7),
    nsid=st.sampled_from([1, 1, 2, 9, 0xFFFFFFFF]),
    slba=st.sampled_from([0, 1, BLOCKS - 8, BLOCKS - 7, BLOCKS - 1, BLOCKS, 2 * BLOCKS - 8, 1 << 32, (1 << 64) - 8]),
    nlb=st.sampled_from([1, 8, 8, 12]),
    flags=st.sampled_from([0x40, 0x40, 0x40, 0x41, 0x41, 0x42, 0x00, 0x80]),
    extra=st.sampled_from([0, 0, 1 << 31, 1 << 30, 1 << 26, 1 << 24, 1 << 20]),
    sgl=st.sampled_from([None, None, None, TRANSPORT, IN_CAPSULE, 0x40]),
    sgl_skew=st.sampled_from([0, 0, 0, 512, -1]),
    address=st.sampled_from([0, 0, 8]),
    value=st.integers(1, 255),
    longer=st.sampled_from([0, 0, 4]),
)
BATCHES = st.lists(st.lists(st.one_of(PLAIN, PLAIN, ASKED, ODD), max_size=24), min_size=1, max_size=4)
CHANGES = st.sampled_from(
    ["nothing", "nothing", "remove", "add", "grow", "shrink", "inaccessible", "optimized", "cache", "detach", "attach"]
)


def two_namespaces() -> Target:
    target = Target(Ramdisk(SIZE), Ramdisk(2 * SIZE))
    target.admin()
    return target


def change(target: Target, what: str) -> None:
    subsystem = target.subsystem
    if what == "remove" and 1 in subsystem.namespaces:
        subsystem.remove_namespace(1)
    elif what == "add" and 1 not in subsystem.namespaces:
        subsystem.add_namespace(NamespaceConfig(backend=Ramdisk(SIZE), nsid=1))
    elif what in ("grow", "shrink") and 1 in subsystem.namespaces:
        subsystem.resize_namespace(1, 2 * SIZE if what == "grow" else SIZE // 2)
    elif what == "inaccessible":
        subsystem.set_ana_state(AnaState.INACCESSIBLE)
    elif what == "optimized":
        subsystem.set_ana_state(AnaState.OPTIMIZED)
    elif what == "detach":
        next(iter(subsystem.controllers.values())).detach(1)
    elif what == "attach" and 1 in subsystem.namespaces:
        next(iter(subsystem.controllers.values())).attach(subsystem.namespaces[1])
    elif what == "cache":
        next(iter(subsystem.controllers.values())).features.values[6, 0] = Value(0)


def state_of(wire: Wire) -> Any:
    spaces = wire.target.subsystem.namespaces
    return (
        {
            nsid: (bytes(space.backend.memory), space.counters, list(space.unreadable_blocks.marked))
            for nsid, space in spaces.items()
        },
        wire.queue.ctx.counters,
        wire.connection.in_flight,
        sorted(wire.queue.busy),
    )


PARTED = [  # the halves of a fused operation, the first of them refused, with a Write between them
    Command(WRITE, 0, sgl=TRANSPORT),
    Command(READ, 0),
    Command(READ, 1, flags=0x41),
    Command(WRITE, 2, sgl=TRANSPORT),
    Command(WRITE, 1, flags=0x42),
]


@settings(max_examples=150, deadline=None)
@example(batches=[PARTED], changes=["nothing"] * 4, dgst=0, cattr=0, size=1 << 30)
@given(
    batches=BATCHES,
    changes=st.lists(CHANGES, min_size=4, max_size=4),
    dgst=st.integers(0, 3),
    cattr=st.sampled_from([0, 4]),
    size=st.sampled_from([1 << 30, 1000, 72]),
)
def test_the_fast_path_does_what_the_general_path_does(batches, changes, dgst, cattr, size):
    """Byte for byte the same answers, and the same state after each batch."""
    wires = [Wire(two_namespaces(), dgst=dgst, cattr=cattr, fast_path=fast_path) for fast_path in (True, False)]
    open_r2ts: list[tuple[int, int, int]] = []
    for batch, what in zip(batches, changes, strict=False):
        answers = []
        for wire in wires:
            answers.append(wire.feed(b"".join(command.bytes(wire) for command in batch), size))
            assert not wire.driver.ended
        assert answers[0] == answers[1]
        assert state_of(wires[0]) == state_of(wires[1])
        for wire in wires:
            change(wire.target, what)
        # The data of all commands but one comes after the change; the CID of that one stays in use.
        open_r2ts += r2ts(answers[0])
        data = [(open_r2ts.pop(0), n) for n in range(len(open_r2ts) - 1)]
        answers = []
        for wire in wires:
            # One after the other: the order of two writes to the same blocks is otherwise undefined.
            pdus = [wire.h2c(cid, ttag, 0, bytes([n + 1]) * length) for (cid, ttag, length), n in data]
            answers.append([wire.feed(pdu, size) for pdu in pdus])
            assert not wire.driver.ended
        assert answers[0] == answers[1]
        assert state_of(wires[0]) == state_of(wires[1])


def expected(target: Target, command: Command) -> int:
    """Return the status of a plain command, from first principles."""
    space = next(iter(target.subsystem.controllers.values())).namespaces.get(command.nsid)
    if space is None:
        return FIELD
    if target.subsystem.ana.on(1).barred:
        return INACCESSIBLE
    if command.slba + command.nlb > len(space.backend.memory) // 512:
        return RANGE
    return OK


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(
        st.lists(
            st.builds(
                Command,
                opcode=st.sampled_from([READ, READ, WRITE]),
                cid=st.integers(0, 7),
                nsid=st.sampled_from([1, 1, 1, 2, 9]),
                slba=st.sampled_from([0, 1, 5, 24, 25, 56, 57, 120, 121, (1 << 64) - 8]),
                value=st.integers(1, 255),
                extra=st.sampled_from([0, 0, 1 << 31]),
            ),
            max_size=24,
        ),
        min_size=1,
        max_size=4,
    ),
    changes=st.lists(CHANGES, min_size=4, max_size=4),
    cattr=st.sampled_from([0, 4]),
)
def test_the_fast_path_against_a_model(batches, changes, cattr):
    """Every command answered once, in order; reads of one segment show what its writes left."""
    target = two_namespaces()
    wire = Wire(target, cattr=cattr)
    model = {nsid: bytearray(space.backend.memory) for nsid, space in target.subsystem.namespaces.items()}
    for batch, what in zip(batches, changes, strict=False):
        out = wire.feed(b"".join(command.bytes(wire) for command in batch), 32768)
        for command in batch:
            if command.opcode == WRITE and expected(target, command) == OK:
                at = command.slba * 512
                model[command.nsid][at : at + 4096] = bytes([command.value]) * 4096
        answers = []
        data = None
        for pdu in split(out):
            if pdu[0] == C2H:
                cid = struct.unpack_from("<H", pdu, 8)[0]
                data = pdu[24:]
                if pdu[1] & SUCCESS:
                    answers.append((cid, OK, data))
                    data = None
            else:
                assert pdu[0] == RESPONSE
                cid, status = struct.unpack_from("<HH", pdu, 20)
                answers.append((cid, status >> 1 & 0x7FF, data))
                data = None
        assert len(answers) == len(batch)
        whole = len(b"".join(command.bytes(wire) for command in batch)) <= 32768
        for command, (cid, status, got) in zip(batch, answers, strict=True):
            assert (cid, status) == (command.cid, expected(target, command))
            if command.opcode == READ and status == OK:
                assert got is not None and len(got) == 4096
                if whole:
                    at = command.slba * 512
                    assert got == model[command.nsid][at : at + 4096]
            else:
                assert got is None
        change(target, what)
        for nsid, space in target.subsystem.namespaces.items():
            kept = model.get(nsid, bytearray()) if what != "add" or nsid in model else bytearray()
            model[nsid] = bytearray(bytes(kept).ljust(len(space.backend.memory), b"\0")[: len(space.backend.memory)])
            assert bytes(space.backend.memory) == model[nsid]
        for nsid in list(model):
            if nsid not in target.subsystem.namespaces:
                del model[nsid]


def test_the_fast_path_is_taken(monkeypatch):
    """After the first of a kind, reads and in-capsule writes do not go through the tables."""
    wire = Wire(two_namespaces())
    slow: list[int] = []
    command = wire.queue.command
    monkeypatch.setattr(wire.queue, "command", lambda view, capsule: slow.append(view[0]) or command(view, capsule))
    for opcode in (READ, WRITE):
        commands = [Command(opcode, cid, slba=cid) for cid in range(8)]
        for _ in range(3):
            wire.feed(b"".join(each.bytes(wire) for each in commands))
    assert slow == [READ, WRITE]


ODD = {
    "opcode": (0, 0x00),
    "flags": (1, 0x80),
    "NSID": (4, 2),
    "SGL length": (33, 4),
    "SGL type": (39, 0x01),
    "SLBA": (47, 1),
    "number of blocks": (48, 1),
    "FUA": (51, 0x40),
    "dataset management": (52, 1),
}


@pytest.mark.parametrize("at", [0, 7, 19])
@pytest.mark.parametrize("field", ODD)
def test_one_odd_command_in_a_long_run_of_reads(field, at):
    """A run that is compared by columns is answered as if command by command, whatever one of its commands is."""
    answers = []
    for fast_path in (True, False):
        wire = Wire(two_namespaces(), fast_path=fast_path)
        wire.queue.ctx.namespaces[1].memory[:4096] = bytes(range(1, 9)) * 512
        wire.feed(wire.capsule(io_sqe(100, READ, 0, 1)))
        sqes = [bytearray(io_sqe(cid, READ, cid, 1)) for cid in range(20)]
        offset, value = ODD[field]
        sqes[at][offset] = value
        answers.append(wire.feed(b"".join(wire.capsule(bytes(sqe)) for sqe in sqes)))
    assert answers[0] == answers[1]


def test_a_long_run_of_like_reads_is_one_answer(monkeypatch):
    wire = Wire(two_namespaces())
    wire.feed(wire.capsule(io_sqe(100, READ, 0, 1)))
    runs: list[list[int]] = []
    send_reads = wire.connection.send_reads
    monkeypatch.setattr(
        TargetConnection, "send_reads",
        lambda connection, cids, data, length: runs.append(list(cids)) or send_reads(cids, data, length),
    )  # fmt: skip
    order = [7, 300, 2, 65535, 0, 1, 40, 41, 42, 43]
    wire.feed(b"".join(wire.capsule(io_sqe(cid, READ, cid % 8, 1)) for cid in order))
    assert runs == [order]


def wire_of_reads(length: int, count: int, backend: type[Ramdisk] = Ramdisk, pool: BufferPool | None = None) -> Wire:
    """Return a wire that has received ``count`` Reads of ``length`` bytes at once, and sent nothing yet."""
    target = Target(backend("1M"))
    target.admin()
    wire = Wire(target, fast_path=False, pool=pool)
    data = b"".join(wire.capsule(io_sqe(cid, READ, 0, length // 512)) for cid in range(count))
    buffer = wire.connection.next_buffer()
    buffer[: len(data)] = data
    wire.queue.handle(wire.connection.bytes_received(len(data), 0.0), 0.0)
    return wire


def test_held_commands_wait_for_room_in_the_backends():
    wire = wire_of_reads(512 << 10, 64)
    queue, spec = wire.queue, object()
    waiting = len(queue.held)
    assert waiting
    queue.running.update({1000 + number: (1, spec) for number in range(RUNNING_MOST)})
    wire.connection.data_to_send()
    wire.connection.bytes_sent(wire.connection.backlog_bytes)
    queue.resume()
    assert len(queue.held) == waiting
    queue.running.popitem()
    queue.resume()
    assert len(queue.held) < waiting


def test_commands_are_held_while_much_is_to_be_sent():
    """One receive brings many long Reads: the bytes that their answers hold are bounded, and all arrive in order."""
    length, count = 512 << 10, 64
    wire = wire_of_reads(length, count)
    connection, queue = wire.connection, wire.queue
    taken = HOLD_BYTES // length  # with their headers that is a little more
    assert len(queue.held) == count - taken
    assert HOLD_BYTES < connection.backlog_bytes <= HOLD_BYTES + length + 1024
    queue.resume()
    assert len(queue.held) == count - taken, "nothing has gone yet"
    answers = b""
    while connection.want_write:
        answers += b"".join(map(bytes, connection.data_to_send()))[:length]
        connection.bytes_sent(min(length, connection.backlog_bytes))
        queue.resume()
        assert connection.backlog_bytes <= HOLD_BYTES + length + 1024
    assert not queue.held
    responses = [pdu for pdu in split(answers) if pdu[0] == RESPONSE]
    assert [struct.unpack_from("<HH", pdu, 20) for pdu in responses] == [(cid, 0) for cid in range(count)]


def test_an_abort_ends_a_held_command():
    wire = wire_of_reads(512 << 10, 64)
    connection, queue = wire.connection, wire.queue
    held = len(queue.held)
    assert not queue.abort(0), "it is done"
    assert queue.abort(50) and not queue.abort(50)
    assert len(queue.held) == held - 1 and wire.driver.wakes
    answers = b""
    while connection.want_write:
        answers += sent(connection)
        queue.resume()
    fields = dict(struct.unpack_from("<HH", pdu, 20) for pdu in split(answers) if pdu[0] == RESPONSE)
    statuses = {cid: field >> 1 & 0x7FF for cid, field in fields.items()}
    assert statuses == {cid: Status.ABORTED_BY_REQUEST if cid == 50 else 0 for cid in range(64)}


@pytest.mark.parametrize("how", ["lost", "drain"])
def test_held_commands_end_with_their_queue(how):
    wire = wire_of_reads(512 << 10, 64)
    connection, queue = wire.connection, wire.queue
    assert queue.held
    if how == "lost":
        queue.lost("gone")
    else:
        assert queue.drain()
    assert not queue.held
    backlog = connection.backlog_bytes
    queue.resume()
    assert connection.backlog_bytes == backlog


@pytest.mark.parametrize("sgl", [IN_CAPSULE, TRANSPORT])
def test_no_fast_path_past_uncorrectable_blocks(sgl):
    """Reads and writes with a template find the mark; once the blocks are written, they take the fast path again."""
    wire = Wire(two_namespaces())

    def write(cid, slba):
        out = wire.feed(Command(WRITE, cid, slba=slba, value=7, sgl=sgl).bytes(wire))
        for asked in r2ts(out):
            out = wire.feed(wire.h2c(asked[0], asked[1], 0, bytes([7]) * asked[2]))
        return statuses(out)

    def read(cid, slba):
        return list(split(wire.feed(Command(READ, cid, slba=slba).bytes(wire))))

    for cid in range(3):
        assert write(cid, 8 * cid) == [(cid, OK)]
        assert read(cid, 8 * cid)[0][0] == C2H
    mark = Command(WRITE_UNCORRECTABLE, 5, slba=20, nlb=4)
    both = wire.feed(mark.bytes(wire) + Command(READ, 6, slba=16).bytes(wire))
    assert statuses(both) == [(5, OK), (6, 0x281)]
    assert wire.target.subsystem.namespaces[1].memory is None
    assert write(1, 24) == [(1, OK)], "other blocks"
    assert [pdu[0] for pdu in read(1, 16)] == [RESPONSE] and read(1, 24)[0][0] == C2H
    assert write(1, 16) == [(1, OK)]
    assert read(1, 16)[0][24:] == bytes([7]) * 4096
    assert wire.target.subsystem.namespaces[1].memory is not None


def test_a_mark_while_data_is_in_flight():
    """Data that was asked for before the mark is written after it: the blocks can then be read."""
    wire = Wire(two_namespaces())
    for cid in range(2):
        for name, ttag, length in r2ts(wire.feed(Command(WRITE, cid, sgl=TRANSPORT).bytes(wire))):
            half = length // 2
            wire.feed(wire.h2c(name, ttag, 0, bytes([9]) * half, last=False))
            wire.feed(Command(WRITE_UNCORRECTABLE, 5).bytes(wire))
            assert statuses(wire.feed(wire.h2c(name, ttag, half, bytes([9]) * half))) == [(cid, OK)]
        namespace = wire.target.subsystem.namespaces[1]
        assert bytes(namespace.memory[:4096]) == bytes([9]) * 4096


# -- staging and endings


def statuses(out: bytes) -> list[tuple[int, int]]:
    return [
        (cid, status >> 1 & 0x7FF)
        for cid, status in (struct.unpack_from("<HH", pdu, 20) for pdu in split(out) if pdu[0] == RESPONSE)
    ]


def r2ts(out: bytes) -> list[tuple[int, int, int]]:
    """Return (CID, TTAG, length) of R2Ts."""
    found = [struct.unpack_from("<HHII", pdu, 8) for pdu in split(out) if pdu[0] == R2T]
    return [(cid, ttag, length) for cid, ttag, _, length in found]


@pytest.mark.parametrize("closed", [False, True])
async def test_a_write_does_not_go_on_in_another_namespace(closed):
    """Data before the replacement of the namespace went to the old one: a success would hide the loss of half of the
    data.
    """
    target = Target(Ramdisk(4 * SIZE))
    target.admin()
    wire = Wire(target)
    size = 72 * 512
    write = [make_sqe(cid, WRITE, nsid=1, length=size, sgl=TRANSPORT, cdw12=71) for cid in range(2)]
    for sqe in write[:1]:  # the template
        [(_, ttag, _)] = r2ts(wire.feed(wire.capsule(sqe)))
        assert statuses(wire.feed(wire.h2c(0, ttag, 0, b"a" * size))) == [(0, 0)]
    [(_, ttag, _)] = r2ts(wire.feed(wire.capsule(write[1])))
    pdu = wire.h2c(1, ttag, 0, b"b" * size)
    half = 24 + size // 2
    assert wire.feed(pdu[:half]) == b""
    subsystem = wire.target.subsystem
    old = subsystem.remove_namespace(1)
    assert bytes(old.backend.memory[:512]) == b"b" * 512, "more than is collected first: it goes straight to memory"
    if closed:
        await old.backend.close()
    added = subsystem.add_namespace(NamespaceConfig(backend=Ramdisk(4 * SIZE), nsid=1))
    assert statuses(wire.feed(pdu[half:])) == [(1, 0x82)]
    assert not any(added.backend.memory)
    assert wire.queue.busy == set() and wire.queue.transfers == {}


@pytest.mark.parametrize("backend", [Ramdisk, Hidden])
@pytest.mark.parametrize("opcode", [WRITE, 0x05])
@pytest.mark.parametrize("length", [4096, 64 << 10])
def test_blocks_of_another_size_while_data_is_in_flight(backend, opcode, length):
    """A format happens in between: the same bytes would be other blocks, and fewer or more of them, than the command
    names.
    """
    wire = Wire(_with_admin(backend("1M")))
    subsystem = wire.target.subsystem
    memory = getattr(subsystem.namespaces[1].backend, "ramdisk", subsystem.namespaces[1].backend)
    sizes = [512, 4096]
    for cid, now in enumerate(reversed(sizes)):
        blocks = length // sizes[cid]
        [(_, ttag, asked)] = r2ts(wire.feed(wire.capsule(io_sqe(cid, opcode, 8, blocks, length=length))))
        assert asked == length
        memory.set_block_bytes(now)
        subsystem.attributes_changed(subsystem.namespaces[1])
        assert statuses(wire.feed(wire.h2c(cid, ttag, 0, b"a" * length))) == [(cid, 0x0F)]
        assert not any(memory.memory)
    assert wire.queue.busy == set() and wire.pool.used_bytes == 0


def test_staging_waits_for_memory_and_goes_on_in_order():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    wire = Wire(_with_admin(Hidden("1M")), pool=pool)
    held = pool.take(56 << 10)
    out = wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 16 * cid, 16)) for cid in range(4)))
    asked = r2ts(out)
    assert not asked, "64 KiB are taken by the 56"
    assert held is not None
    pool.give(held)
    assert wire.driver.wakes == 1
    asked = r2ts(sent(wire.connection))
    assert [cid for cid, _, _ in asked] == [0, 1, 2, 3]
    wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 0, 16)) for cid in range(4, 8)))
    assert not r2ts(sent(wire.connection)), "half of the pool for one host"
    done = []
    while asked:
        cid, ttag, length = asked.pop(0)
        out = wire.feed(wire.h2c(cid, ttag, 0, bytes([cid]) * length)) + sent(wire.connection)
        done += statuses(out)
        asked += r2ts(out)
    assert done == [(cid, 0) for cid in range(8)]
    assert pool.used_bytes == 0


def test_a_command_that_waits_for_memory_can_be_aborted():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    target = Target(Hidden("1M"))
    admin = target.admin()
    wire = Wire(target, pool=pool)

    def abort(cid: int, sqid: int = 1) -> bool:
        completion = admin.command(0x08, cdw10=sqid | cid << 16)
        assert completion.status == 0
        return completion.dw0 == 0

    held = pool.take(56 << 10)
    lengths = [8, 80, 8, 8]
    assert not wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 0, blocks)) for cid, blocks in enumerate(lengths)))
    assert abort(0) and abort(2)
    assert not abort(0) and not abort(2) and not abort(9) and not abort(1, sqid=2) and not abort(1, sqid=0)
    assert statuses(sent(wire.connection)) == [(0, 0x07), (2, 0x07)]
    assert sorted(wire.queue.busy) == [1, 3]
    assert not wire.feed(wire.capsule(io_sqe(2, WRITE, 0, 1))), "the CID is free again, and its command waits"
    pool.give(held)
    asked = r2ts(sent(wire.connection))
    assert [cid for cid, _, _ in asked] == [1], "64 KiB are all of the pool"
    assert not abort(1), "its host sends data now; it ends when that is there"
    cid, ttag, length = asked[0]
    out = wire.feed(wire.h2c(cid, ttag, 0, bytes(length))) + sent(wire.connection)
    assert statuses(out) == [(1, 0x07)]
    for cid, ttag, length in r2ts(out):
        assert statuses(wire.feed(wire.h2c(cid, ttag, 0, bytes(length)))) == [(cid, OK)]
    assert not wire.queue.busy and pool.used_bytes == 0 and not pool._waiters


def test_a_shorter_command_goes_on_when_the_one_before_it_is_aborted():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    target = Target(Hidden("1M"))
    admin = target.admin()
    wire = Wire(target, pool=pool)
    held = pool.take(32 << 10)
    other = pool.take(16 << 10)
    wire.feed(wire.capsule(io_sqe(0, WRITE, 0, 64)) + wire.capsule(io_sqe(1, WRITE, 0, 16)))
    assert wire.queue.busy == {0, 1}
    assert admin.command(0x08, cdw10=1).dw0 == 0
    out = sent(wire.connection)
    assert statuses(out) == [(0, 0x07)] and [cid for cid, _, _ in r2ts(out)] == [1]
    assert not pool._waiters
    pool.give(held)
    pool.give(other)


def _with_admin(*backends) -> Target:
    target = Target(*backends)
    target.admin()
    return target


@pytest.mark.parametrize("how", ["lost", "closed", "eof", "garbage"])
def test_the_end_of_a_queue_releases_everything(how):
    pool = BufferPool(1 << 20)
    target = _with_admin(Hidden("1M"))
    wire = Wire(target, pool=pool)
    wire.feed(b"".join(wire.capsule(io_sqe(cid, WRITE, 0, 64)) for cid in range(12)))
    assert pool.used_bytes == 12 * (32 << 10)
    if how == "lost":
        wire.queue.lost("the cable is out")
    elif how == "closed":
        wire.queue.close("the controller was reset")
    elif how == "eof":
        wire.queue.handle(wire.connection.eof_received(), 0.0)
    else:
        wire.feed(b"\xff" * 8)
    assert pool.used_bytes == 0 and len(wire.driver.ended) == 1
    assert 1 not in next(iter(target.subsystem.controllers.values())).queues
    wire.queue.lost("again")
    assert len(wire.driver.ended) == 1
    held = pool.take(1 << 20)
    assert held is not None
    pool.give(held)  # no command waits
    assert pool.used_bytes == 0


def test_reads_wait_while_much_is_to_be_sent():
    """Data that a host does not receive is not read: at most the read-ahead and one command is held."""
    length, count = 256 << 10, 64
    wire = wire_of_reads(length, count, Hidden, pool=BufferPool(64 << 20))
    connection, queue, pool = wire.connection, wire.queue, wire.pool
    taken = READ_AHEAD_BYTES // length  # with their headers that is a little more
    assert len(queue.staging.reads) == count - taken
    assert taken * length <= pool.used_bytes <= taken * length + SPARE_BYTES + 1024
    queue.resume()
    assert len(queue.staging.reads) == count - taken, "nothing has gone yet"
    answers = b""
    while connection.want_write:
        answers += b"".join(map(bytes, connection.data_to_send()))[:length]
        connection.bytes_sent(min(length, connection.backlog_bytes))
        queue.resume()
        assert connection.backlog_bytes <= READ_AHEAD_BYTES + length + 1024
        assert pool.used_bytes <= READ_AHEAD_BYTES + length + SPARE_BYTES
        queue.staging.settle()
        assert pool.used_bytes <= connection.backlog_bytes
    assert not queue.staging.reads and not queue.busy and pool.used_bytes == 0
    responses = [pdu for pdu in split(answers) if pdu[0] == RESPONSE]
    assert [struct.unpack_from("<HH", pdu, 20) for pdu in responses] == [(cid, 0) for cid in range(count)]


def test_no_more_is_received_while_many_commands_are_held():
    """Each command may hold a copy of its data."""
    wire = wire_of_reads(512 << 10, RUNNING_MOST)
    queue, connection = wire.queue, wire.connection
    assert queue.held and not queue.pacing.crowded
    for cid in range(RUNNING_MOST, 2 * RUNNING_MOST):
        queue.command(memoryview(io_sqe(cid, READ, 0, 1024)), None)
    assert len(queue.held) >= RUNNING_MOST and queue.pacing.crowded
    assert wire.driver.held_back and wire.driver.waiting
    while connection.want_write:
        sent(connection)
        queue.resume()
    assert not queue.held and not queue.pacing.crowded and not wire.driver.held_back


def test_reads_wait_for_memory():
    pool = BufferPool(64 << 10, reserve_bytes=0)
    target = _with_admin(Hidden("1M"))
    wire = Wire(target, pool=pool)
    held = pool.take(64 << 10)
    reads = b"".join(wire.capsule(io_sqe(cid, READ, 0, 16)) for cid in range(4))
    assert not wire.feed(reads) and wire.queue.commands() == dict.fromkeys(range(4), 1)
    assert statuses(wire.feed(wire.capsule(io_sqe(3, FLUSH, 0, 1)))) == [(3, Status.COMMAND_ID_CONFLICT)]
    assert statuses(wire.feed(wire.capsule(make_sqe(9, FLUSH, nsid=1)))) == [(9, 0)], "others do not wait"
    assert wire.queue.abort(2) and not wire.queue.abort(2)
    assert statuses(sent(wire.connection)) == [(2, Status.ABORTED_BY_REQUEST)]
    assert held is not None
    pool.give(held)
    assert wire.driver.wakes
    assert statuses(sent(wire.connection)) == [(0, 0), (1, 0), (3, 0)]
    wire.queue.staging.settle()
    assert not wire.queue.busy and pool.used_bytes == 0


@pytest.mark.parametrize("how", ["lost", "drain"])
def test_waiting_reads_end_with_their_queue(how):
    wire = wire_of_reads(512 << 10, 16, Hidden, pool=BufferPool(4 << 20))
    queue, pool = wire.queue, wire.pool
    assert queue.staging.reads
    if how == "lost":
        queue.lost("gone")
        wire.connection.close()  # as the driver does
        queue.staging.settle()
    else:
        assert queue.drain()
        sent(wire.connection)
        queue.staging.settle()
    queue.resume()
    assert not queue.staging.reads and pool.used_bytes == 0 and not pool._waiters


def test_a_command_that_goes_on_after_the_end_is_detached():
    detached_commands = DetachedCommands()
    target = _with_admin(Ramdisk("1M"))
    backend = target.subsystem.namespaces[1].backend

    class Gate:
        opened = False

        def __await__(self):
            while not self.opened:
                yield self

    gate = Gate()
    backend.flush = lambda: gate  # type: ignore[method-assign]
    backend.write_zeroes = lambda *_, **options: gate  # type: ignore[method-assign]
    wire = Wire(target, detached_commands=detached_commands)
    assert statuses(wire.feed(wire.capsule(make_sqe(4, FLUSH, nsid=1)))) == []
    assert statuses(wire.feed(wire.capsule(make_sqe(5, WRITE_ZEROES, nsid=1)))) == []
    [(flushing, flushed), (pending, done)] = wire.driver.spawned
    assert wire.queue.pending == 2
    resumed: list[int] = []
    assert not detached_commands.wait(HOST, lambda: resumed.append(1))
    wire.queue.lost("gone")
    assert detached_commands.wait(HOST, lambda: resumed.append(1))
    assert not detached_commands.wait("another host", lambda: resumed.append(2))
    gate.opened = True
    completion = flushing.step()
    assert completion is not None
    flushed(completion)
    assert not resumed, "a Flush changes no data: nothing waits for it"
    completion = pending.step()
    assert completion is not None
    done(completion)
    assert resumed == [1]
    assert not detached_commands.wait(HOST, lambda: resumed.append(3))
    assert not wire.connection.want_write or sent(wire.connection) == b""


def test_drain_begins_nothing_and_ends_begun_commands():
    wire = Wire(_with_admin(Ramdisk("1M")))
    [(cid, ttag, length)] = r2ts(wire.feed(wire.capsule(io_sqe(3, WRITE, 0, 8))))
    assert not wire.queue.drain() and wire.queue.receiving
    assert wire.feed(wire.capsule(io_sqe(4, READ, 0, 8)) * 3 + Command(WRITE, 5).bytes(wire)) == b""
    assert statuses(wire.feed(wire.h2c(cid, ttag, 0, bytes(length)))) == [(3, 0)]
    assert wire.queue.drain() and not wire.queue.receiving


# -- the event loop's time


class HandLoop:
    """An event loop whose clock moves with every reading, and whose callbacks the test calls."""

    def __init__(self, step: float) -> None:
        self.time, self.step = 0.0, step
        self.soon: list[Callable[[], None]] = []
        self.slices = Slices(lambda callback: self.soon.append(callback), self.clock)

    def clock(self) -> float:
        self.time += self.step
        return self.time

    def turn(self) -> None:
        callbacks, self.soon = self.soon, []
        for callback in callbacks:
            callback()


def flushes(wire: Wire, cids: range) -> bytes:
    return b"".join(wire.capsule(make_sqe(cid, FLUSH, nsid=1)) for cid in cids)


def answered(out: bytes) -> list[int]:
    return [struct.unpack_from("<H", pdu, 20)[0] for pdu in split(out)]


def test_one_receive_takes_the_loop_for_a_bounded_time_only():
    """100 commands take the general path, each for a tenth of a queue's share of a turn."""
    wire = Wire(two_namespaces())
    loop = HandLoop(LONG_SECONDS / 10)
    wire.queue.pacing.slices = loop.slices
    done = [answered(wire.feed(flushes(wire, range(100))))]
    assert 1 < len(done[0]) < 20
    assert len(wire.queue.held) == 100 - len(done[0])
    while loop.soon:
        loop.turn()
        done.append(answered(sent(wire.connection)))
        assert len(done[-1]) < 20
    assert [cid for turn in done for cid in turn] == list(range(100)), "in their order"
    assert wire.driver.wakes, "what comes later is sent"
    assert not wire.queue.held


def test_held_commands_precede_later_ones():
    wire = Wire(two_namespaces())
    loop = HandLoop(LONG_SECONDS / 10)
    wire.queue.pacing.slices = loop.slices
    out = answered(wire.feed(flushes(wire, range(30)))) + answered(wire.feed(flushes(wire, range(30, 40))))
    while loop.soon:
        loop.turn()
        out += answered(sent(wire.connection))
    assert out == list(range(40))


def test_a_queue_that_ends_with_commands_held_goes_on_with_none():
    wire = Wire(two_namespaces())
    loop = HandLoop(LONG_SECONDS / 10)
    wire.queue.pacing.slices = loop.slices
    wire.feed(flushes(wire, range(100)))
    wire.queue.lost("gone")
    while loop.soon:
        loop.turn()
    assert not sent(wire.connection)
    assert not wire.queue.held
