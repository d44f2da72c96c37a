"""Range locks against a model, in chains of any length and in any number."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.storage import ranges
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ranges import RangeLocks

REQUESTS = st.tuples(st.integers(0, 12), st.integers(1, 6), st.booleans())


@pytest.mark.parametrize("most", [4, 256])
@given(steps=st.lists(st.one_of(REQUESTS, st.integers(0, 40)), max_size=60))
def test_against_a_model(most, steps):
    """A lock is granted that overlaps no older one of another kind; a shorter queue grants nothing earlier."""
    locks, alive, told = RangeLocks(), [], []
    limit, ranges.MOST_LOCKS = ranges.MOST_LOCKS, most
    try:
        for step in steps:
            if isinstance(step, tuple):
                start, length, exclusive = step
                lock = locks.acquire(start, start + length, exclusive=exclusive)
                if lock.granted:
                    told.append(lock)
                else:
                    lock.when_granted = lambda lock=lock: told.append(lock)
                alive.append(lock)
            elif held := [lock for lock in alive if lock.granted]:
                lock = held[step % len(held)]
                alive.remove(lock)
                told.remove(lock)
                locks.release(lock)
            expected = [
                lock
                for position, lock in enumerate(alive)
                if position < most
                and not any(
                    older.start < lock.end and lock.start < older.end and (older.exclusive or lock.exclusive)
                    for older in alive[:position]
                )
            ]
            assert [lock for lock in alive if lock.granted] == expected
            assert set(told) == set(expected) and len(told) == len(expected), "each waiter is called once"
            assert len(locks) == len(alive)
        while alive:  # no lock is lost
            lock = next(lock for lock in alive if lock.granted)
            alive.remove(lock)
            locks.release(lock)
        assert not len(locks)
    finally:
        ranges.MOST_LOCKS = limit


@pytest.mark.parametrize("count", [2000])
async def test_a_chain_of_cancelled_writes(tmp_path, count):
    """Each write waits only for the one before it, and grants the next when it finds itself cancelled."""
    backend = FileBackend(tmp_path / "disk", size="16M")
    await backend.open()
    backend._write_nowait = False
    data = memoryview(bytes(1024))
    writes = [backend.write(512 * position, data) for position in range(count)]
    assert all(write.abandon() for write in writes[1:])
    await writes[0]
    await asyncio.gather(*writes, return_exceptions=True)
    await asyncio.wait_for(backend.write(512 * (count - 1), data), 20)
    assert not len(backend._ranges)
    await backend.close()


def test_any_number_of_locks():
    """Neither the references nor the time per lock grow with the number of locks."""
    locks = RangeLocks()
    made = [locks.acquire(0, 512, exclusive=True) for _ in range(10_000)]
    assert sum(len(lock._waiters) for lock in made) <= ranges.MOST_LOCKS**2
    for lock in made:
        assert lock.granted
        locks.release(lock)
    assert not len(locks)
