"""The kernel's route to an address: the local address and the network interface of packets that go there."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from struct import Struct
from typing import Final

from nvmeof.address import check_host, split_scope
from nvmeof.errors import TransportError
from nvmeof.transport.options import interface_index
from nvmeof.transport.paths.netlink import NETLINK_ROUTE, NetlinkSocket, attribute, attributes

_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_SRC: Final = 2
_RTA_OIF: Final = 4
_RTA_PREFSRC: Final = 7
_RTMSG: Final = Struct("=BBBBBBBBI")
"""struct rtmsg (include/uapi/linux/rtnetlink.h): family, lengths of destination and source in bits, five fields
that are 0 in a request, flags."""
_HEADER_BYTES: Final = 16
_U32: Final = Struct("=I")


@dataclass(frozen=True, slots=True)
class Route:
    """The route to one address."""

    source: str | None
    """Local address; None where the kernel does not say."""
    interface: str


def find_route(host: str, *, host_traddr: str | None = None, host_iface: str | None = None) -> Route:
    """Look up the route to an IP address, from the given local address and over the given interface.

    Raises :class:`TransportError` where there is none, ConfigurationError for an unknown interface.
    """
    text, scope = split_scope(check_host(host))
    address = ipaddress.ip_address(text)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = attribute(_RTA_DST, address.packed)
    bits = 0
    if host_traddr is not None:
        source = ipaddress.ip_address(split_scope(check_host(host_traddr))[0])
        if source.version != address.version:
            raise TransportError(f"cannot connect from {host_traddr} to {host}: one is IPv4, the other IPv6")
        body += attribute(_RTA_SRC, source.packed)
        bits = source.max_prefixlen
    interface = host_iface or scope
    if interface:
        body += attribute(_RTA_OIF, _U32.pack(interface_index(interface, host)))
    message = _RTMSG.pack(family, address.max_prefixlen, bits, 0, 0, 0, 0, 0, 0) + body
    with NetlinkSocket(NETLINK_ROUTE) as link:
        try:
            answers = link.request(_RTM_GETROUTE, 0, message)
        except OSError as error:
            raise _no_route(host, host_traddr, interface, error) from None
    for kind, data in answers:
        if kind == _RTM_NEWROUTE:
            found = dict(attributes(data[_HEADER_BYTES + _RTMSG.size :]))
            if _RTA_OIF in found:
                preferred = found.get(_RTA_PREFSRC)
                local = host_traddr if preferred is None else str(ipaddress.ip_address(bytes(preferred)))
                return Route(local, socket.if_indextoname(_U32.unpack(found[_RTA_OIF])[0]))
    raise _no_route(host, host_traddr, interface, OSError())


def _no_route(host: str, host_traddr: str | None, interface: str | None, error: OSError) -> TransportError:
    way = (f" from {host_traddr}" if host_traddr else "") + (f" over {interface}" if interface else "")
    why = f" ({os.strerror(error.errno)})" if error.errno else ""
    return TransportError(f"no route to {host}{way}{why}: are the addresses right, and is the network up?")
