"""Network interfaces, their addresses and routes (rtnetlink), and what `auto` makes of them."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any, Final

from nvmeof.address import WILDCARD_NAMES, Address, is_link_local, is_loopback, strip_brackets
from nvmeof.transport.options import without_interface
from nvmeof.transport.paths import netlink
from nvmeof.transport.paths.model import SUBFLOWS_MAX, PathSpec
from nvmeof.transport.paths.netlink import NLM_F_DUMP, NetlinkSocket

RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26

IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_LOWER_UP: Final = 0x10000
_SCOPE_GLOBAL: Final = 0
_TENTATIVE_OR_FAILED: Final = 0x40 | 0x08
"""IFA_F_TENTATIVE, IFA_F_DADFAILED: not usable (yet)."""
_TEMPORARY_OR_DEPRECATED: Final = 0x01 | 0x20
_ROUTE_UNICAST: Final = 1


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface as it is now."""

    index: int
    name: str
    up: bool
    """Switched on, with a carrier."""
    loopback: bool
    addresses: tuple[str, ...] = ()
    """Usable addresses of global scope, IPv4 first."""


def interfaces() -> dict[str, Interface]:
    """Return all interfaces of this network namespace by name. Raises PathsUnavailable without pyroute2."""
    classes = netlink.messages()
    with NetlinkSocket(netlink.NETLINK_ROUTE) as link:
        links = [
            netlink.decode(classes.ifinfmsg, data)
            for kind, data in link.request(RTM_GETLINK, NLM_F_DUMP, netlink.encode(classes.ifinfmsg()))
            if kind == RTM_NEWLINK
        ]
        addresses = [
            netlink.decode(classes.ifaddrmsg, data)
            for kind, data in link.request(RTM_GETADDR, NLM_F_DUMP, netlink.encode(classes.ifaddrmsg()))
            if kind == RTM_NEWADDR
        ]
    found: dict[int, list[str]] = {}
    for message in sorted(addresses, key=lambda each: int(each["family"])):
        text = usable_address(message)
        if text is not None:
            found.setdefault(int(message["index"]), []).append(text)
    return {each.name: each for each in (_interface(message, found) for message in links)}


def _interface(message: Any, addresses: dict[int, list[str]]) -> Interface:
    index, flags = int(message["index"]), int(message["flags"])
    return Interface(
        index=index,
        name=str(message.get_attr("IFLA_IFNAME")),
        up=is_up(flags),
        loopback=bool(flags & IFF_LOOPBACK),
        addresses=tuple(addresses.get(index, ())),
    )


def is_up(flags: int) -> bool:
    """Return whether an interface with these flags carries packets."""
    return bool(flags & IFF_UP and flags & IFF_LOWER_UP)


def usable_address(message: Any) -> str | None:
    """Return the address in an RTM_NEWADDR message, None for one that no path should use."""
    flags = int(message.get_attr("IFA_FLAGS") or message["flags"])
    if int(message["scope"]) != _SCOPE_GLOBAL or flags & _TENTATIVE_OR_FAILED:
        return None
    if message["family"] == socket.AF_INET6 and flags & _TEMPORARY_OR_DEPRECATED:
        return None
    address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return str(address) if address else None


def device_of(address: str) -> str | None:
    """Return the interface that has this address; None for none. Raises ConfigurationError for a link-local address,
    which several may have."""
    if is_link_local(address):
        raise without_interface(address)
    return next((each.name for each in interfaces().values() if address in each.addresses), None)


def source_for(peer: str) -> tuple[str, str] | None:
    """Return local address and interface that the routing table selects for a peer; None without a route."""
    classes = netlink.messages()
    message = classes.rtmsg()
    host = strip_brackets(peer).partition("%")[0]
    version = ipaddress.ip_address(host).version
    message["family"] = int(socket.AF_INET if version == 4 else socket.AF_INET6)
    message["dst_len"] = 32 if version == 4 else 128
    message["attrs"] = [("RTA_DST", host)]
    with NetlinkSocket(netlink.NETLINK_ROUTE) as link:
        try:
            answers = link.request(RTM_GETROUTE, 0, netlink.encode(message))
        except OSError:
            return None
    for kind, data in answers:
        if kind == RTM_NEWROUTE:
            route = netlink.decode(classes.rtmsg, data)
            source, index = route.get_attr("RTA_PREFSRC"), route.get_attr("RTA_OIF")
            if source and index:
                return str(source), socket.if_indextoname(int(index))
    return None


def auto_signal(listening: list[Address]) -> list[PathSpec]:
    """Return the addresses that a target can announce: of every interface that is up, reached by its listeners or not
    yet.

    Loopback is left out. A listener on loopback alone announces nothing, since no other machine can reach it. Of the
    families that are listened on, at most one address each per interface.
    """
    hosts = [strip_brackets(each.host) for each in listening]
    if all(is_loopback(host) for host in hosts):
        return []
    versions = {version for host in hosts for version in _versions(host)}
    return _one_per_interface(versions)


def auto_subflow(peer: str) -> list[PathSpec]:
    """Return the local addresses to connect from, of the peer's family: one per interface that is up, the routed one
    included.

    A peer on loopback has no further paths.
    """
    host = strip_brackets(peer).partition("%")[0]
    if is_loopback(host):
        return []
    source = source_for(host)
    if source is not None and source[1] in interfaces() and interfaces()[source[1]].loopback:
        return []  # the peer is this machine
    return _one_per_interface(set(_versions(host)), first=source[1] if source else None)


def _one_per_interface(versions: set[int], first: str | None = None) -> list[PathSpec]:
    specs = []
    known = sorted(interfaces().values(), key=lambda each: (each.name != first, each.index))
    for interface in known:
        if interface.loopback or not interface.up:
            continue
        for version in sorted(versions):
            address = next((a for a in interface.addresses if ipaddress.ip_address(a).version == version), None)
            if address is not None:
                specs.append(PathSpec(address, interface.name))
    return specs[:SUBFLOWS_MAX]


def _versions(host: str) -> tuple[int, ...]:
    if host in WILDCARD_NAMES:
        return (4, 6)
    try:
        return (ipaddress.ip_address(host.partition("%")[0]).version,)
    except ValueError:
        return (4,)


def covered(address: str, listening: list[Address]) -> bool:
    """Return whether a listener accepts connections to this address."""
    wanted = ipaddress.ip_address(address)
    for each in listening:
        try:
            host = ipaddress.ip_address(strip_brackets(each.host).partition("%")[0])
        except ValueError:
            continue
        if host == wanted or (host.is_unspecified and host.version == wanted.version):
            return True
    return False
