"""The buddy allocator against a model, and the region's views."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.errors import ConfigurationError
from nvmeof.host.offload.pool import BUFFER_MAX_BYTES, LARGEST_ORDER, SMALLEST_ORDER, Buddies, Region, check_size

START = 3 * BUFFER_MAX_BYTES

actions = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, BUFFER_MAX_BYTES)),
        st.tuples(st.just("many"), st.integers(1, 1 << 20)),
        st.tuples(st.just("give"), st.integers(0, 1 << 30)),
    ),
    max_size=60,
)


@given(actions)
def test_pieces_never_overlap_and_all_come_back(steps: list[tuple[str, int]]) -> None:
    pool = Buddies(START, 2 * BUFFER_MAX_BYTES)
    held: list[tuple[int, int]] = []
    for what, number in steps:
        if what == "give":
            if held:
                pool.give(*held.pop(number % len(held)))
            continue
        order = pool.order(number)
        count = 1 if what == "take" else 7
        offsets = [pool.take(order)] if what == "take" else pool.take_many(order, count)
        if offsets and offsets[0] >= 0:
            assert len(offsets) == count
            held += [(order, offset) for offset in offsets]
        else:
            room = 2 * BUFFER_MAX_BYTES - sum(1 << each for each, _ in held)
            assert held and room < BUFFER_MAX_BYTES * 2
        spans = sorted((offset, offset + (1 << each)) for each, offset in held)
        assert all(first >= START and end <= START + 2 * BUFFER_MAX_BYTES for first, end in spans)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    for each in held:
        pool.give(*each)
    assert sorted(pool.take_many(LARGEST_ORDER, 2)) == [START, START + BUFFER_MAX_BYTES]


def test_free_neighbours_join_to_a_large_piece() -> None:
    pool = Buddies(0, BUFFER_MAX_BYTES)
    pieces = pool.take_many(20, 32)
    assert len(pieces) == 32
    assert pool.take(SMALLEST_ORDER) == -1
    for each in pieces:
        pool.give(20, each)
    assert pool.take(LARGEST_ORDER) == 0


def test_a_returned_piece_goes_to_the_list_of_its_user_also_after_a_join() -> None:
    pool = Buddies(0, BUFFER_MAX_BYTES)
    free = pool.free_list(20)
    piece = pool.take(20)
    assert pool.take(LARGEST_ORDER) == -1
    free.append(piece)
    assert pool.take(LARGEST_ORDER) == 0


def test_views_of_the_region_are_known_by_their_offset() -> None:
    region = Region(100, 1, 1)
    assert region.size_bytes == 3 * BUFFER_MAX_BYTES
    assert region.offset_of(region.memory) == 0
    assert region.offset_of(region.memory[5000:][3:10]) == 5003
    assert region.offset_of(region.memory.toreadonly()) == -1
    assert region.offset_of(memoryview(bytearray(10))) == -1
    assert region.offset_of(memoryview(b"abc")) == -1
    region.close()


@pytest.mark.parametrize("size", [0, -1, BUFFER_MAX_BYTES + 1])
def test_a_buffer_of_an_impossible_size(size: int) -> None:
    with pytest.raises(ConfigurationError, match="a device buffer has 1 to 33554432 bytes"):
        check_size(size)
