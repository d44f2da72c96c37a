import pytest

from nvmeof.target.core.log_rate import PEERS_MOST, LogRate, left_out_text


def test_a_burst_then_a_rate():
    rate = LogRate(3, 0.5)
    assert [rate.admit("192.0.2.1:1000", 0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert rate.admit("192.0.2.1:1001", 1.9) is None, "another port is the same peer"
    assert rate.admit("192.0.2.2:1000", 1.9) == 0
    assert rate.admit("192.0.2.1:1002", 2.1) == 3
    assert rate.admit("192.0.2.1:1003", 1000.0) == 0
    assert [rate.admit("192.0.2.1:1", 1000.0) for _ in range(3)] == [0, 0, None], "no more than the burst is saved up"


def test_many_peers_have_a_limit_together_and_are_not_all_remembered():
    rate = LogRate(2, 1.0)
    admitted = [rate.admit(f"192.0.{n >> 8}.{n & 255}:1", 0.0) for n in range(4 * PEERS_MOST)]
    assert admitted.count(0) == 16 and len(rate._peers) == PEERS_MOST


@pytest.mark.parametrize(("left_out", "text"), [(0, ""), (7, " (7 lines about this peer were left out)")])
def test_what_is_said_of_them(left_out, text):
    assert left_out_text(left_out) == text
