"""Slices, with a loop and a clock that the test moves: work per turn, order of owners, and work at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.core.slices import Slices


class Loop:
    """An event loop whose work takes the time that it states; a turn calls what the turn before has scheduled."""

    def __init__(self) -> None:
        self.time = 0.0
        self.soon: list[Callable[[], None]] = []
        self.slices = Slices(lambda callback: self.soon.append(callback), lambda: self.time, slice_seconds=1.0)
        self.done: list[tuple[str, int]] = []

    def add(self, owner: str, number: int, seconds: float = 0.0, *, whole: bool = False) -> None:
        def work() -> None:
            self.time += seconds
            self.done.append((owner, number))

        self.slices.add(owner, work, whole=whole)

    def turn(self) -> list[tuple[str, int]]:
        self.done = []
        callbacks, self.soon[:] = list(self.soon), []
        for callback in callbacks:
            callback()
        return self.done

    def turns(self) -> list[list[tuple[str, int]]]:
        out = []
        while self.soon:
            out.append(self.turn())
        return out


def test_a_turn_does_as_much_as_fits_in_a_slice():
    loop = Loop()
    for number in range(5):
        loop.add("a", number, 0.4)
    assert loop.turn() == [("a", 0), ("a", 1), ("a", 2)], "what has begun is finished"
    assert not loop.slices.open
    assert loop.turns() == [[("a", 3), ("a", 4)], []]
    assert loop.slices.open


def test_owners_take_turns_whatever_one_has_piled_up():
    loop = Loop()
    for number in range(100):
        loop.add("many", number, 1.0)
    loop.turn()
    loop.add("few", 0, 1.0)
    assert [loop.turn(), loop.turn()] == [[("many", 1)], [("few", 0)]]


def test_of_continued_work_one_piece_is_done_per_turn():
    loop = Loop()
    for number in range(3):
        loop.add("a", number, whole=True)
    loop.add("b", 0, whole=True)
    assert loop.turns() == [[("a", 0)], [("b", 0)], [("a", 1)], [("a", 2)], []]


def test_work_at_once_uses_the_slice_of_its_turn():
    loop = Loop()
    assert loop.slices.open
    loop.slices.spend(0.9)
    assert loop.slices.open
    loop.slices.spend(0.2)
    assert not loop.slices.open
    loop.turn()
    assert loop.slices.open, "a new turn"
    assert loop.turns() == [], "an idle loop does not turn"


def test_nothing_overtakes_waiting_work():
    loop = Loop()
    loop.add("a", 0)
    assert not loop.slices.open
    loop.turns()
    assert loop.slices.open


def test_work_that_raises_stops_no_other():
    loop = Loop()

    def broken() -> None:
        raise ZeroDivisionError

    loop.slices.add("a", broken)
    loop.add("b", 1)
    with pytest.raises(ZeroDivisionError):
        loop.turn()
    assert ("b", 1) in [done for turn in loop.turns() for done in turn]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.3, 0.7, 2.0]), st.booleans()), max_size=40))
def test_work_is_done_in_the_order_of_its_owner_and_no_turn_is_long(work):
    loop = Loop()
    for number, (owner, seconds, whole) in enumerate(work):
        loop.add(owner, number, seconds, whole=whole)
    done = []
    while loop.soon:
        began = loop.time
        done += loop.turn()
        longest = max((seconds for _, seconds, _ in work), default=0.0)
        assert loop.time - began < 1.0 + longest or loop.time == began
    assert sorted(number for _, number in done) == list(range(len(work)))
    for owner in "abc":
        numbers = [number for who, number in done if who == owner]
        assert numbers == sorted(numbers)


def test_a_turn_that_served_reads_and_writes_is_followed_by_one_for_them():
    loop = Loop()
    loop.add("a", 0)
    for _ in range(3):
        loop.slices.io.served = True
        assert loop.turn() == [], "a write to a file takes several turns"
    assert loop.turn() == [("a", 0)], "a turn has passed without any"


def test_reads_and_writes_without_end_leave_something():
    loop = Loop()  # patience: 1 ms
    for number in range(3):
        loop.add("a", number, 1.0)
    waited, done = [0.0], []
    for _ in range(100):
        loop.slices.io.served = True
        loop.time += 0.3e-3
        found = loop.turn()
        done += found
        waited[-1] += 0.3e-3
        if found:
            waited.append(0.0)
    assert [number for _, number in done] == [0, 1, 2]
    assert max(waited[:3]) < 2e-3


def test_io_served_before_there_was_work_soon_stops_counting():
    loop = Loop()
    loop.slices.io.served = True
    loop.add("a", 0)
    assert loop.turns() == [[], [("a", 0)]]


def test_threads_go_first_while_something_waits():
    gone = []
    loop = Loop()
    slices = Slices(lambda callback: loop.soon.append(callback), lambda: loop.time, give_way=lambda: gone.append(1))
    slices.spend(1.0)
    loop.turn()
    assert not gone, "the loop waits by itself when there is no work"
    slices.add("a", lambda: None)
    slices.io.served = True
    loop.turn()
    loop.turn()
    assert len(gone) == 2, "in each turn, also in one that is left to reads and writes"
