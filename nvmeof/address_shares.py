"""Counts by the address of a peer, so that one peer does not take all there is."""

from __future__ import annotations

import ipaddress


def counted_as(address: str) -> str:
    """Return what an address counts as: IPv6 by its network of 64 bits, of which one host has every address.

    IPv4 counts by the whole address, written in IPv6 too; so do an address of the link, and what is no IP address.

    >>> counted_as("2001:db8::1:2:3:4"), counted_as("192.0.2.1"), counted_as("::ffff:192.0.2.1")
    ('2001:db8::/64', '192.0.2.1', '192.0.2.1')
    """
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.strip("[]").partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    if parsed.is_link_local or parsed.is_loopback:
        return address
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


class AddressShares:
    """Counts of something by address: an address gets one more while it has fewer than are left free of `most`.

    So one address alone gets half of them, and an address that has none is refused only when all are taken. An IPv6
    address shares with its network of 64 bits (`counted_as`).
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._by_address: dict[str, int] = {}

    def take(self, address: str) -> bool:
        """Count one more for an address; False: it has its share, or none is left."""
        if not self.has_room(address):
            return False
        key = counted_as(address)
        self._by_address[key] = self._by_address.get(key, 0) + 1
        self.taken += 1
        return True

    def has_room(self, address: str) -> bool:
        """Return whether `take` would count one more for an address."""
        return self._by_address.get(counted_as(address), 0) < self.most - self.taken

    def give(self, address: str) -> None:
        """Release a connection that `take` counted."""
        key = counted_as(address)
        here = self._by_address.pop(key) - 1
        if here:
            self._by_address[key] = here
        self.taken -= 1
