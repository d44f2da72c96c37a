import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.core.pool import BufferPool


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


def test_waiters_are_called_in_order_until_one_takes_what_is_free():
    pool, called = BufferPool(8192), []
    held = [pool.take(4096), pool.take(4096)]

    def waiter(name, length):
        def callback():
            called.append(name)
            if pool.take(length) is None:
                pool.when_free(callback)

        return callback

    callbacks = [waiter("large", 8192), waiter("forgotten", 1), waiter("first", 1), waiter("second", 1)]
    for callback in callbacks:
        pool.when_free(callback)
    pool.forget(callbacks[1])
    pool.forget(callbacks[1])
    pool.give(held.pop())
    assert called == ["large", "first"]
    pool.give(held.pop())
    assert called == ["large", "first", "second"]


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
