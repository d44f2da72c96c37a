"""The subflows with which a connection began."""

from __future__ import annotations

from nvmeof.transport import Address, SubflowInfo
from nvmeof.transport.paths import first_subflows as module
from nvmeof.transport.paths.driver import Flow
from nvmeof.transport.paths.first_subflows import FirstSubflows


def flow(port: int, *, token: int = 1, state: str = "ESTABLISHED", host: str = "10.1.1.2") -> Flow:
    return Flow(token, SubflowInfo(local=Address(host, port), peer=Address("10.1.1.1", 4420), state=state))


def test_subflows_of_the_first_two_seconds_are_first() -> None:
    first = FirstSubflows()
    first.look([[flow(1)]], 100.0)
    first.look([[flow(1), flow(2)]], 101.5)
    first.look([[flow(1), flow(2), flow(3)]], 103.0)
    assert [flow(port) in first for port in (1, 2, 3)] == [True, True, False]
    assert flow(1, token=2) not in first


def test_a_closed_or_missing_subflow_is_no_first_one() -> None:
    first = FirstSubflows()
    first.look([[], [flow(1, state="CLOSE"), flow(2)]], 100.0)
    assert flow(1) not in first
    assert flow(2) in first


def test_first_subflows_stay_over_two_addresses() -> None:
    """One must remain when the next link fails; of two addresses one can stay."""
    first = FirstSubflows()
    four = [flow(number, host=f"10.1.{number}.2") for number in (1, 2, 3, 4)]
    first.look([four, [flow(1, token=2, host="10.1.1.2"), flow(2, token=2, host="10.1.2.2")]], 100.0)
    late = flow(9, host="10.1.1.2")
    assert first.spare(four[:1], four[1:])
    assert first.spare(four[1:2], [late, *four[2:]])
    assert not first.spare(four[2:3], [late, four[3]])
    assert not first.spare(four[2:], [late])
    assert first.spare([late], [])
    two = [flow(1, token=2, host="10.1.1.2"), flow(2, token=2, host="10.1.2.2")]
    assert first.spare(two[:1], two[1:])
    assert not first.spare(two[1:], [flow(9, token=2, host="10.1.1.2")])


def test_the_least_recently_used_connections_are_dropped() -> None:
    first = FirstSubflows()
    for token in range(module._REMEMBERED):
        first.look([[flow(1, token=token)]], 100.0)
    first.look([[flow(1, token=0)], [flow(1, token=99_999)]], 200.0)
    assert flow(1, token=0) in first
    assert flow(1, token=1) not in first
    assert flow(1, token=99_999) in first
