"""The rings: records arrive in order and unchanged, however often the ring wraps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmeof.host.offload.layout import (
    COMMAND,
    COMMAND_UNITS,
    COMMANDS_MAX,
    COMPLETION,
    COMPLETION_BYTES,
    COMPLETIONS_MAX,
    HEADER,
    READ,
    SERIES_MAX,
    SUBMISSION_BYTES,
    UNIT_BYTES,
    WHOLE,
    WRITE,
    Kind,
    RingReader,
    RingWriter,
    good_items,
    series_items,
)

START, SIZE = 64, 2048


def test_sizes() -> None:
    assert (HEADER.size, COMMAND.size, COMMAND_UNITS, COMPLETION.size, UNIT_BYTES) == (16, 80, 5, 12, 16)
    assert (series_items(3, whole=True).size, series_items(3, whole=False).size) == (30, 42)


def test_all_that_can_be_outstanding_fits_the_rings() -> None:
    """Each record comes with a PAD as long as the longest record."""
    longest = COMMAND.size + series_items(SERIES_MAX, whole=False).size + UNIT_BYTES
    assert COMMANDS_MAX * COMMAND.size + longest <= SUBMISSION_BYTES
    alone = -(-(HEADER.size + COMPLETION.size) // UNIT_BYTES) * UNIT_BYTES
    assert COMMANDS_MAX * alone + HEADER.size + COMPLETIONS_MAX * COMPLETION.size <= COMPLETION_BYTES
    assert longest // UNIT_BYTES < 1 << 16


class Ends:
    """Both ends of a small ring."""

    def __init__(self) -> None:
        self.doorbell = os.eventfd(0, os.EFD_NONBLOCK)
        self.memory = memoryview(bytearray(START + SIZE + 64))
        self.writer = RingWriter(self.memory, START, SIZE, self.doorbell)
        self.reader = RingReader(self.memory, START, SIZE, self.doorbell)

    def close(self) -> None:
        os.close(self.doorbell)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
commands = st.tuples(
    st.just(Kind.COMMAND), st.sampled_from([0, READ, WRITE]), u16, u16, st.binary(min_size=64, max_size=64), u32, u32
)
series = st.tuples(
    st.just(Kind.SERIES), st.sampled_from([READ, WRITE, READ | WHOLE]), u16, st.integers(1, 20), u64, u32, u32
)
completions = st.tuples(
    st.just(Kind.COMPLETIONS), u16, st.lists(st.tuples(u16, u16, u32, u32), min_size=1, max_size=30)
)
signals = st.tuples(st.sampled_from([Kind.DRAIN, Kind.DRAINED, Kind.ERROR]), u16, st.binary(max_size=100))
good = st.tuples(st.just(Kind.GOOD), u16, st.lists(u16, min_size=1, max_size=40))
turns_of_records = st.lists(
    st.lists(st.one_of(commands, series, completions, good, signals), min_size=1, max_size=3), max_size=30
)


def write(writer: RingWriter, record: tuple) -> None:
    kind, *rest = record
    if kind == Kind.COMMAND:
        flags, queue, cid, sqe, size, offset = rest
        writer.command(flags, queue, cid, sqe, size, offset)
    elif kind == Kind.SERIES:
        flags, queue, count, slba, size, offset = rest
        items = [slba] * count + list(range(count)) + ([] if flags & WHOLE else [offset] * count)
        writer.series(flags, queue, count, size, offset, bytes(64), items)
    elif kind == Kind.COMPLETIONS:
        queue, entries = rest
        writer.completions(queue, [value for entry in entries for value in entry], len(entries))
    elif kind == Kind.GOOD:
        writer.good(*rest)
    else:
        writer.signal(kind, rest[0], rest[1])


def read(memory: memoryview, record: tuple) -> tuple:
    kind, flags, queue, count, size, offset, at = record
    if kind == Kind.COMMAND:
        return Kind.COMMAND, flags, queue, count, bytes(memory[at : at + 64]), size, offset
    if kind == Kind.SERIES:
        items = series_items(count, whole=flags & WHOLE != 0).unpack_from(memory, at + 64)
        assert items[count : 2 * count] == tuple(range(count))
        assert items[2 * count :] == (() if flags & WHOLE else (offset,) * count)
        return Kind.SERIES, flags, queue, count, items[0], size, offset
    if kind == Kind.COMPLETIONS:
        return Kind.COMPLETIONS, queue, list(COMPLETION.iter_unpack(memory[at : at + count * COMPLETION.size]))
    if kind == Kind.GOOD:
        return Kind.GOOD, queue, list(good_items(count).unpack_from(memory, at))
    return Kind(kind), queue, bytes(memory[at : at + count])


def normal(record: tuple) -> tuple:
    if record[0] == Kind.SERIES:
        kind, flags, queue, count, slba, size, offset = record
        return kind, flags, queue, count, slba, size, offset
    return record


@given(turns_of_records)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_written_records_are_read(turns: list[list[tuple]]) -> None:
    ends = Ends()
    try:
        for turn in turns:
            for record in turn:
                write(ends.writer, record)
            ends.reader.listen()
            assert not list(ends.reader.records()), "nothing is announced before the doorbell"
            ends.writer.ring()
            ends.reader.listen()
            assert [read(ends.memory, each) for each in ends.reader.records()] == [normal(each) for each in turn]
        assert bytes(ends.memory[:START]) == bytes(START) and bytes(ends.memory[START + SIZE :]) == bytes(64)
    finally:
        ends.close()


def test_a_record_is_found_without_being_read(ends: Ends) -> None:
    ends.writer.completions(1, [0] * 4, 1)
    ends.writer.signal(Kind.DRAINED, 2)
    ends.writer.ring()
    ends.reader.listen()
    assert ends.reader.announced(Kind.DRAINED, 2)
    assert not ends.reader.announced(Kind.DRAINED, 1)
    assert [each[0] for each in ends.reader.records()] == [Kind.COMPLETIONS, Kind.DRAINED]


@pytest.mark.parametrize("header", [(9, 0, 0, 1, 0, 0, 0), (1, 0, 0, 0, 0, 0, 0), (1, 0, 0, 5, 0, 0, 0)])
def test_invalid_records(ends: Ends, header: tuple[int, ...]) -> None:
    HEADER.pack_into(ends.memory, START, *header)
    os.eventfd_write(ends.doorbell, 1)
    ends.reader.listen()
    with pytest.raises(ValueError, match="a record of kind"):
        list(ends.reader.records())


def test_a_ring_that_is_closed_rings_nothing(ends: Ends) -> None:
    ends.writer.close()
    ends.writer.signal(Kind.DRAIN, 1)
    ends.writer.ring()
    ends.reader.listen()
    assert not ends.reader.units and not ends.writer.pending
