import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeof.target.core.connection_limits import CONNECTIONS_MOST, AddressShares, connections_most, counted_as


def test_an_address_gets_half_of_the_rest():
    shares = AddressShares(16)
    taken = [sum(shares.take(address) for _ in range(20)) for address in "abcde"]
    assert taken == [8, 4, 2, 1, 1] and shares.taken == 16
    shares.give("a")
    assert not shares.take("a") and shares.take("f")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60))
def test_counts(steps):
    shares, counts = AddressShares(12), dict.fromkeys("abcd", 0)
    for address, give in steps:
        free = 12 - sum(counts.values())
        if give and counts[address]:
            shares.give(address)
            counts[address] -= 1
        elif shares.take(address):
            assert counts[address] < free
            counts[address] += 1
        else:
            assert counts[address] >= free
        assert shares.taken == sum(counts.values())


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("::1", "::1"),
        ("memory", "memory"),
        ("no:address", "no:address"),
    ],
)
def test_a_network_of_ipv6_is_one_peer(address, key):
    assert counted_as(address) == key


def test_a_host_with_all_addresses_of_its_network_gets_half():
    shares = AddressShares(16)
    taken = [f"2001:db8::{number:x}" for number in range(100) if shares.take(f"2001:db8::{number:x}")]
    assert len(taken) == 8 and shares.take("2001:db8:0:1::1") and shares.take("192.0.2.1")
    for address in taken:
        shares.give(address)
    assert shares.taken == 2


def test_descriptors_are_reserved_for_files():
    assert connections_most(1024) == 960 and connections_most(-1) == connections_most(1 << 20) == CONNECTIONS_MOST
    assert connections_most(10) == 1
