import itertools

from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.core.block_ranges import BlockRanges

RANGE = st.tuples(st.integers(0, 40), st.integers(1, 12))


@given(st.lists(st.tuples(st.booleans(), RANGE), max_size=40), RANGE)
def test_ranges_against_a_set(changes, question):
    ranges, model = BlockRanges(), set()
    for adding, (start, length) in changes:
        if adding:
            ranges.add(start, start + length)
            model |= set(range(start, start + length))
        else:
            ranges.remove(start, start + length)
            model -= set(range(start, start + length))
        items = list(ranges)
        assert [block for start, end in items for block in range(start, end)] == sorted(model)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(items)), "joined, in order"
        assert len(ranges) == len(items)
    start, length = question
    assert ranges.overlaps(start, start + length) == (not model.isdisjoint(range(start, start + length)))
    cut = BlockRanges()
    for item in ranges:
        cut.add(*item)
    cut.remove(start, start + length)
    assert ranges.splits(start, start + length) == (len(cut) > len(ranges))


def test_nothing_is_removed_by_an_empty_range():
    ranges = BlockRanges()
    ranges.add(2, 8)
    ranges.remove(5, 5)
    ranges.remove(8, 1 << 64)
    assert list(ranges) == [(2, 8)]
