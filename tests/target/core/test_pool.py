import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.core.pool import BufferPool, MemoryShare, class_bytes


def test_buffers_are_reused_last_in_first_out():
    pool = BufferPool(1 << 20)
    first, second = pool.take(8192), pool.take(5000)
    assert (len(first), len(second), pool.used_bytes) == (8192, 5000, 16384)
    memory = second.obj
    pool.give(first)
    pool.give(second)
    assert pool.take(8000).obj is memory and pool.idle_bytes == 8192


def test_the_limit():
    pool = BufferPool(16384)
    held = [pool.take(8192), pool.take(4096), pool.take(1)]
    assert pool.take(1) is None
    pool.give(held[2])
    assert pool.take(8192) is None and pool.take(4096) is not None


def test_idle_memory_of_another_size_is_dropped_when_needed():
    pool = BufferPool(16384)
    for view in [pool.take(4096) for _ in range(4)]:
        pool.give(view)
    assert pool.idle_bytes == 16384
    assert pool.take(16384) is not None and pool.idle_bytes == 0


def test_one_buffer_beyond_the_limit_when_nothing_is_out():
    pool = BufferPool(4096)
    large = pool.take(1 << 20)
    assert large is not None and pool.take(1) is None
    pool.give(large)
    assert pool.used_bytes == 0 and pool.idle_bytes == 0 and pool.take(1) is not None


def waiter(pool, called, name, length, share=None, out=None):
    """Wait for `length` bytes, and take them when called."""

    def callback():
        called.append(name)
        view = pool.take(length, share)
        assert view is not None
        if out is not None:
            out.append(view)

    pool.when_free(callback, class_bytes(length), share)
    return callback


def test_waiters_are_called_in_order_once_they_can_be_served():
    pool, called = BufferPool(8192), []
    held = [pool.take(4096), pool.take(4096)]
    waiter(pool, called, "large", 8192)
    forgotten = waiter(pool, called, "forgotten", 1)
    waiter(pool, called, "first", 1)
    pool.forget(forgotten)
    pool.forget(forgotten)
    pool.give(held.pop())
    assert not called, "no request overtakes a waiter of the same share"
    pool.give(held.pop())
    assert called == ["large"] and pool.used_bytes == 8192


def test_a_share_takes_at_most_as_much_as_stays_free():
    pool, shares = BufferPool(64 << 10, reserve_bytes=8 << 10), [MemoryShare() for _ in range(4)]
    for share in shares:
        while pool.take(4096, share) is not None:
            pass
    # Half of it, half of the rest and so on; the last share gets its first buffer from the reserve.
    assert [share.held_bytes >> 10 for share in shares] == [32, 16, 8, 4]
    assert pool.limit_bytes - pool.used_bytes == 4096
    late = [MemoryShare() for _ in range(4)]
    assert [pool.take(4096, share) is not None for share in late] == [True, True, True, False]
    assert pool.used_bytes == pool.limit_bytes + pool.reserve_bytes


def test_shares_that_wait_are_served_in_turn():
    pool, called = BufferPool(16 << 10, reserve_bytes=0), []
    greedy, out = MemoryShare(), []
    held = [pool.take(4096) for _ in range(4)]
    others = [MemoryShare() for _ in range(3)]
    for _ in range(2):
        waiter(pool, called, "greedy", 4096, greedy, out)
    for number, share in enumerate(others):
        waiter(pool, called, number, 4096, share, out)
    while held:
        pool.give(held.pop())
    assert called == ["greedy", 0, 1, 2], "a second one for the first share comes after the others"
    pool.give(out.pop(1))
    assert called == ["greedy", 0, 1, 2], "it may not have more than is left free"
    pool.give(out.pop(1))
    assert called == ["greedy", 0, 1, 2, "greedy"]
    assert pool.used_bytes == 12 << 10


def test_memory_that_comes_from_elsewhere_is_counted():
    pool, share, called = BufferPool(16 << 10, reserve_bytes=0), MemoryShare(), []
    assert pool.reserve(12 << 10, share) and not pool.reserve(1, share)
    assert pool.take(4096) is not None and pool.take(1) is None
    waiter(pool, called, "it", 8192, MemoryShare())
    pool.release(12 << 10, share)
    assert called == ["it"] and share.held_bytes == 0 and pool.used_bytes == 12 << 10


def test_a_pool_must_hold_a_buffer():
    with pytest.raises(ValueError, match="holds no buffer"):
        BufferPool(100)


@given(st.lists(st.tuples(st.integers(1, 70_000), st.booleans()), max_size=60))
def test_accounting(steps):
    pool, out = BufferPool(256 << 10), []
    for length, give in steps:
        if give and out:
            pool.give(out.pop())
        else:
            view = pool.take(length)
            if view is not None:
                assert len(view) == length and not view.readonly
                out.append(view)
        assert pool.used_bytes == sum(len(view.obj) for view in out)
        assert pool.used_bytes + pool.idle_bytes <= pool.limit_bytes
    assert len({id(view.obj) for view in out}) == len(out)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 20_000), st.booleans()), max_size=80))
def test_the_bytes_of_shares_are_bounded(steps):
    """The bytes of every share are counted, and a share that holds nothing is refused only when the reserve is
    empty.
    """
    pool, shares = BufferPool(64 << 10), [MemoryShare() for _ in range(5)]
    out: list[tuple[memoryview, MemoryShare]] = []
    for number, length, give in steps:
        if give and out:
            pool.give(out.pop(number % len(out))[0])
            continue
        share = shares[number]
        view = pool.take(length, share)
        if view is not None:
            out.append((view, share))
        else:
            room = pool.limit_bytes - pool.used_bytes
            assert room < share.held_bytes + class_bytes(length)
            assert share.held_bytes or room + pool.reserve_bytes < class_bytes(length)
        assert pool.used_bytes <= pool.limit_bytes + pool.reserve_bytes
        assert [each.held_bytes for each in shares] == [
            sum(len(view.obj) for view, owner in out if owner is each) for each in shares
        ]
    for view, _ in out:
        pool.give(view)
    assert pool.used_bytes == 0 and not any(share.held_bytes for share in shares) and not pool._owners
