import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.core.log_rate import CAUSES_MOST, LogRate, PeerRate, left_out_text


def test_a_burst_then_a_rate():
    rate = PeerRate(3, 0.5)
    assert [rate.admit("192.0.2.1:1000", 0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert rate.admit("192.0.2.1:1001", 1.9) is None, "another port is the same peer"
    assert rate.admit("192.0.2.2:1000", 1.9) == 0
    assert rate.admit("192.0.2.1:1002", 2.1) == 3
    assert rate.admit("192.0.2.1:1003", 1000.0) == 0
    assert [rate.admit("192.0.2.1:1", 1000.0) for _ in range(3)] == [0, 0, None], "no more than the burst is saved up"


def test_many_peers_share_a_limit_and_are_not_all_stored():
    rate = PeerRate(2, 1.0)
    admitted = [rate.admit(f"192.0.{n >> 8}.{n & 255}:1", 0.0) for n in range(4 * CAUSES_MOST)]
    assert admitted.count(0) == 16 and len(rate._causes) == CAUSES_MOST


@pytest.mark.parametrize(("left_out", "text"), [(0, ""), (7, " (7 lines about this peer were left out)")])
def test_the_text_of_left_out_lines(left_out, text):
    assert left_out_text(left_out) == text


@given(st.lists(st.floats(0.0, 100.0), max_size=60), st.integers(1, 5), st.floats(0.01, 2.0))
def test_a_cause_has_no_more_lines_than_its_rate_and_each_left_out_is_counted_once(pauses, burst, per_second):
    rate, now, admitted, reported = LogRate(burst, per_second, together=0), 0.0, 0, 0
    for pause in pauses:
        now += pause
        left_out = rate.admit("fault", now)
        if left_out is not None:
            admitted += 1
            reported += left_out
        assert admitted <= burst + now * per_second + 1e-6
    last = rate.admit("fault", now + burst / per_second + 1)
    assert last is not None and reported + last + admitted == len(pauses)


def test_one_line_a_minute():
    rate = LogRate(1, 1 / 60, together=0)
    assert [rate.admit("full", now) for now in (0.0, 1.0, 59.0, 60.0, 119.0, 120.5)] == [0, None, None, 2, None, 1]
    assert [rate.admit(kind, 120.5) for kind in range(100)] == [0] * 100
