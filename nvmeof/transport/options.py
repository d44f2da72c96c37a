"""Setting up sockets, finding addresses, and saying in one sentence why something did not work."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from nvmeof.address import WILDCARD_NAMES, Address, check_host, ip_of, is_link_local, split_scope, with_scope
from nvmeof.errors import ConfigurationError, ConnectTimeout, TransportError
from nvmeof.transport.base import SocketOptions, log

SockAddr: TypeAlias = tuple[Any, ...]
Resolved: TypeAlias = tuple[socket.AddressFamily, SockAddr]

SO_MARK: Final = 36
"""Not in Python's socket module before 3.14."""

_said: set[str] = set()


def warn_once(sentence: str) -> None:
    """Log a sentence the first time it comes up in this process."""
    if sentence not in _said:
        _said.add(sentence)
        log.warning("%s", sentence)


async def resolve(host: str, port: int, *, passive: bool = False, interface: str | None = None) -> list[Resolved]:
    """Find all stream addresses of a host, in the system's order of preference, each once.

    Names are looked up in an executor; numeric addresses are not looked up at all. With `passive`, '', '*' and '::'
    stand for every address of both families. `interface` is that of link-local addresses which come without one.
    Raises ConfigurationError for what is no address and for a missing or unknown interface, TransportError for a name
    that cannot be found.
    """
    if not 0 <= port <= 65535:
        raise TransportError(f"{port} is not a port: give a number from 0 to 65535")
    host = check_host(host)
    four, six = (socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port, 0, 0))
    if host in WILDCARD_NAMES:
        if not passive:
            raise TransportError("no address to connect to was given")
        return [four, six]
    if passive and host == "::":
        return [six, four]
    if ip_of(host) is not None:
        return [_numeric(host, port, interface)]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise TransportError(f"cannot find the address of {host!r}: {reason}") from None
    addresses: dict[Resolved, None] = {}
    for family, _, _, _, sockaddr in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            addresses[socket.AddressFamily(family), sockaddr] = None
    if not addresses:
        raise TransportError(f"{host!r} has no IPv4 or IPv6 address")
    return _with_interfaces(list(addresses), interface)


def without_interface(address: str) -> ConfigurationError:
    """Return the error for a link-local address without its interface."""
    return ConfigurationError(
        f"{address} is link-local and needs its interface: write {address}%INTERFACE ({interface_names()})"
    )


def _numeric(host: str, port: int, interface: str | None) -> Resolved:
    """Return the socket address of an IP address, a link-local one with its interface's number."""
    address, scope = split_scope(host)
    if ":" not in address:
        return socket.AF_INET, (address, port)
    if not is_link_local(address):
        return socket.AF_INET6, (address, port, 0, 0)
    if not scope and not interface:
        raise without_interface(address)
    index = interface_index(scope or interface or "", host)
    if scope and interface and interface_index(interface, host) != index:
        raise ConfigurationError(f"{host} is on another interface than {interface}, which was asked for")
    return socket.AF_INET6, (address, port, 0, index)


def _with_interfaces(addresses: list[Resolved], interface: str | None) -> list[Resolved]:
    """Return a name's addresses, the link-local ones with their interface; those are left out where it is unknown."""
    found: list[Resolved] = []
    missing: ConfigurationError | None = None
    for family, sockaddr in addresses:
        if family == socket.AF_INET6 and is_link_local(sockaddr[0]) and not sockaddr[3]:
            try:
                family, sockaddr = _numeric(sockaddr[0], sockaddr[1], interface)
            except ConfigurationError as error:
                missing = error
                continue
        found.append((family, sockaddr))
    if not found and missing is not None:
        raise missing
    return found


def interface_names() -> str:
    """Return the network interfaces of this machine, for a sentence."""
    names = sorted(name for _, name in socket.if_nameindex())
    return f"this machine has {', '.join(names)}" if names else "this machine has none"


def interface_index(interface: str, host: str = "") -> int:
    """Return the number of a network interface, given by name or number. Raises ConfigurationError where there is
    none."""
    try:
        if interface.isascii() and interface.isdigit():
            socket.if_indextoname(int(interface))
            return int(interface)
        return socket.if_nametoindex(interface)
    except (OSError, OverflowError, ValueError):
        where = f" ({host})" if host else ""
        raise ConfigurationError(f"there is no network interface {interface!r}{where}: {interface_names()}") from None


def to_address(sockaddr: SockAddr) -> Address:
    """Return the Address of a socket address of the socket module; that of a link has its interface in the host
    part."""
    host = str(sockaddr[0])
    if len(sockaddr) > 3 and sockaddr[3] and "%" not in host:
        host = f"{host}%{interface_name(sockaddr[3])}"
    return Address(host, int(sockaddr[1]))


def both_ends(sock: socket.socket, peer: SockAddr) -> tuple[Address, Address]:
    """Return the local and the peer's address of a connected socket, link-local ones with their interface.

    An MPTCP socket has forgotten it (getsockname(2) gives scope 0, seen on Linux 6.18), so each end takes it from the
    other, or from the interface that has the local address.
    """
    local, there = to_address(sock.getsockname()), to_address(peer)
    if not (is_link_local(local.host) or is_link_local(there.host)):
        return local, there
    scope = split_scope(there.host)[1] or split_scope(local.host)[1] or interface_of(local.host)
    return Address(with_scope(local.host, scope), local.port), Address(with_scope(there.host, scope), there.port)


def interface_of(host: str) -> str:
    """Return the only network interface that has an IPv6 address; empty where none or several have it."""
    address = ip_of(host)
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    found = [line.split() for line in lines]
    names = {fields[-1] for fields in found if address is not None and fields and fields[0] == address.packed.hex()}
    return names.pop() if len(names) == 1 else ""


def interface_name(index: int) -> str:
    """Return the name of a network interface; its number in decimal where it was removed."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)


def apply(sock: socket.socket, options: SocketOptions) -> None:
    """Set the options, and TCP_NODELAY, on a socket that is not connected yet, or was just accepted.

    Raises ConfigurationError for a value that the kernel refuses, TransportError when a privilege is missing.
    """
    set_nodelay(sock)
    if options.sndbuf_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.sndbuf_bytes)
    if options.rcvbuf_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.rcvbuf_bytes)
    if options.tos is not None:
        set_tos(sock, options.tos)
    # after the type of service, of which the kernel derives a priority
    if options.priority is not None:
        set_priority(sock, options.priority)
    if options.mark is not None:
        set_mark(sock, options.mark)
    if options.congestion is not None:
        set_congestion(sock, options.congestion)


def set_nodelay(sock: socket.socket) -> None:
    """Disable Nagle's algorithm. asyncio does so for protocol 6 only, so that an MPTCP socket would go without."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOPROTOOPT):
            raise
        warn_once("this kernel (before Linux 5.17) has no TCP_NODELAY for MPTCP: expect delays at low queue depths")


def set_priority(sock: socket.socket, priority: int) -> None:
    """Set SO_PRIORITY. Raises TransportError where the privilege is missing."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
    except PermissionError:
        raise TransportError(f"socket priority {priority} needs CAP_NET_ADMIN: 0 to 6 need no privilege") from None


def set_mark(sock: socket.socket, mark: int) -> None:
    """Set SO_MARK; an MPTCP socket hands it on to all of its subflows. Raises TransportError without the privilege."""
    try:
        # the kernel takes it as a signed number
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark - (1 << 32) if mark > 0x7FFFFFFF else mark)
    except PermissionError:
        raise TransportError(f"marking sockets with {mark} needs the privilege CAP_NET_ADMIN") from None


def set_tos(sock: socket.socket, tos: int) -> None:
    """Set IP_TOS, and IPV6_TCLASS on IPv6. A kernel that refuses one on this kind of socket costs a log line only."""
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    if sock.family == socket.AF_INET6:
        try:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOPROTOOPT):
                raise
            warn_once("this kernel takes no traffic class for MPTCP over IPv6: it is left at the default")


def set_congestion(sock: socket.socket, name: str) -> None:
    """Set TCP_CONGESTION. Raises ConfigurationError or TransportError that lists what this kernel offers."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        # an MPTCP socket without subflows takes any name without a word, and ignores a wrong one
        if congestion_of(sock) != name:
            raise OSError(errno.ENOENT, "")
    except PermissionError:
        raise TransportError(
            f"congestion control {name!r} is reserved to administrators here; allowed are"
            f" {_congestion_controls('tcp_allowed_congestion_control')}"
        ) from None
    except (OSError, ValueError):
        raise ConfigurationError(
            f"congestion control {name!r} is not there: this kernel offers"
            f" {_congestion_controls('tcp_available_congestion_control')}"
        ) from None


def _congestion_controls(file: str) -> str:
    try:
        return ", ".join(sorted(Path("/proc/sys/net/ipv4", file).read_text().split())) or "none"
    except OSError:
        return "an unknown list"


def bind_to_interface(sock: socket.socket, interface: str) -> None:
    """Set SO_BINDTODEVICE, before connecting or listening. Raises ConfigurationError or TransportError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    except PermissionError:
        raise TransportError(f"binding to the interface {interface!r} needs the privilege CAP_NET_RAW") from None
    except OSError:
        raise ConfigurationError(f"there is no network interface {interface!r}: {interface_names()}") from None


def congestion_of(sock: socket.socket) -> str | None:
    """Return the congestion control in use, None where the kernel does not report it."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode("ascii", "replace")
    except OSError:
        return None


def integer_option(sock: socket.socket, level: int, option: int) -> int | None:
    """Return the value of an integer option, None for an unknown option."""
    try:
        return sock.getsockopt(level, option)
    except OSError:
        return None


def connect_error(error: OSError, where: Address, options: SocketOptions, seconds: float) -> TransportError:
    """Make the error of a connection to `where` that failed; `seconds`: its time limit."""
    code = error.errno
    if code == errno.ECONNREFUSED:
        return TransportError(f"connection refused by {where}: is a target listening there?")
    if code == errno.ETIMEDOUT or isinstance(error, TimeoutError):
        return connect_timeout(where, seconds)
    if code in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return TransportError(f"no route to {where}: is the address right, and the network up?")
    if code == errno.ECONNRESET:
        return TransportError(f"{where} dropped the connection while it was being made")
    if code == errno.EADDRNOTAVAIL:
        if options.host_traddr:
            return TransportError(f"cannot connect from {options.host_traddr}: no interface here has that address")
        return TransportError(f"cannot connect to {where}: no local address or port is free for it")
    if code in (errno.EPERM, errno.EACCES):
        return TransportError(f"not permitted to connect to {where}: a firewall or a policy of this machine forbids it")
    if code == errno.EAFNOSUPPORT:
        return TransportError(f"cannot connect to {where}: this machine has no {_family_name(where)}")
    if code in (errno.EMFILE, errno.ENFILE):
        return TransportError(f"cannot connect to {where}: too many open files (see `ulimit -n`)")
    return TransportError(f"cannot connect to {where}: {_reason(error)}")


def connect_timeout(where: Address, seconds: float) -> ConnectTimeout:
    """Make the error of a connection attempt without an answer."""
    shown = max(0.01, round(seconds, 2))
    return ConnectTimeout(f"no answer from {where} within {shown:g} s: is the machine up, and the port open?")


def listen_error(error: OSError, where: Address) -> TransportError:
    """Make the error of a listener on `where` that failed."""
    code = error.errno
    if code == errno.EADDRINUSE:
        return TransportError(f"cannot listen on {where}: the port is in use by another program")
    if code == errno.EADDRNOTAVAIL:
        return TransportError(f"cannot listen on {where}: no interface of this machine has that address")
    if code in (errno.EPERM, errno.EACCES):
        return TransportError(f"not permitted to listen on {where}: ports below 1024 may need administrator rights")
    if code == errno.EAFNOSUPPORT:
        return TransportError(f"cannot listen on {where}: this machine has no {_family_name(where)}")
    if code in (errno.EMFILE, errno.ENFILE):
        return TransportError(f"cannot listen on {where}: too many open files (see `ulimit -n`)")
    return TransportError(f"cannot listen on {where}: {_reason(error)}")


def several_errors(host: str, port: int, errors: Sequence[TransportError]) -> TransportError:
    """Make one error for all addresses of a name that were tried; a single one stays as it is."""
    if len(errors) == 1:
        return errors[0]
    kind = ConnectTimeout if all(isinstance(error, ConnectTimeout) for error in errors) else TransportError
    reasons = "; ".join(str(error).partition(": is ")[0] for error in errors)
    return kind(f"none of the {len(errors)} addresses of {Address(host, port)} could be used: {reasons}")


def _family_name(where: Address) -> str:
    return "IPv6" if ":" in where.host else "IPv4"


def _reason(error: OSError) -> str:
    text = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    return text[:1].lower() + text[1:]
