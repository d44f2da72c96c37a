"""The kernel's route to an address."""

from __future__ import annotations

import pytest

from nvmeof.errors import ConfigurationError, TransportError
from nvmeof.transport.route import Route, find_route


def test_loopback() -> None:
    assert find_route("127.0.0.1") == Route("127.0.0.1", "lo")
    assert find_route("127.0.0.1", host_traddr="127.0.0.5", host_iface="lo").interface == "lo"
    assert find_route("127.0.0.1", host_traddr="127.0.0.5").source in ("127.0.0.5", "127.0.0.1")


def test_no_route() -> None:
    with pytest.raises(TransportError, match=r"no route to 127.0.0.1 from 192.0.2.77"):
        find_route("127.0.0.1", host_traddr="192.0.2.77")
    with pytest.raises(TransportError, match="one is IPv4, the other IPv6"):
        find_route("127.0.0.1", host_traddr="::1")
    with pytest.raises(ConfigurationError, match="there is no network interface 'nowhere0'"):
        find_route("127.0.0.1", host_iface="nowhere0")
