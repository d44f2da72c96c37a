"""The fast path of a queue against the general path and against a model."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nvmeof.protocol.connection import TargetConnection
from tests.conformance.rawhost import (
    C2H,
    IN_CAPSULE,
    READ,
    RESPONSE,
    SUCCESS,
    TRANSPORT,
    WRITE,
    io_sqe,
)
from tests.protocol.wire import split
from tests.target.harness import Target
from tests.target.queue.queue_wire import (
    BATCHES,
    CHANGES,
    FIELD,
    INACCESSIBLE,
    OK,
    RANGE,
    WRITE_UNCORRECTABLE,
    Command,
    Wire,
    change,
    r2ts,
    statuses,
    two_namespaces,
)


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
def test_the_fast_path_equals_the_general_path(batches, changes, dgst, cattr, size):
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
