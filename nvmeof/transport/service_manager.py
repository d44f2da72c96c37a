"""What a service and its manager (systemd) tell each other: states by datagram, and sockets that were opened before.

Both are a few lines of a protocol that systemd promises to keep: sd_notify(3) and sd_listen_fds(3). A manager that is
not there is nothing to wait for: without its environment variables nothing happens, and a message that cannot be sent
is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Final

from nvmeof.errors import TransportError
from nvmeof.transport.base import Address
from nvmeof.transport.options import SockAddr, to_address

FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START (sd_listen_fds(3))."""
_DESCRIPTORS_MOST: Final = 1024
_PROTOCOL_NAMES: Final = {socket.IPPROTO_TCP: "TCP", 262: "MPTCP"}

log = logging.getLogger("nvmeof.transport")


# -- telling states ----------------------------------------------------------------------------------------------------


class ServiceManager:
    """Tells the service manager what the service does (sd_notify(3)). `watchdog_seconds`: how often it wants to hear
    that the service goes on, at the least; 0: not at all.
    """

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._socket: socket.socket | None = None
        self._given = address
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        if address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> ServiceManager:
        """Take over what the manager has left in the environment, which processes of our own shall not have."""
        variables = os.environ if environment is None else environment
        address = variables.pop("NOTIFY_SOCKET", "")
        microseconds, pid = variables.pop("WATCHDOG_USEC", ""), variables.pop("WATCHDOG_PID", "")
        mine = pid in ("", str(os.getpid()))
        seconds = int(microseconds) / 1e6 if mine and microseconds.isdecimal() else 0.0
        return cls(address, seconds if address else 0.0)

    @property
    def there(self) -> bool:
        """Whether there is a manager to tell something."""
        return self._socket is not None

    def tell(self, *lines: str) -> None:
        """Send variables, such as ``READY=1``; what cannot be sent now is dropped."""
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                log.debug("the service manager could not be told: %s", error.strerror or error)

    def ready(self, status: str = "") -> None:
        """Say that the start, or a reload, has ended."""
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload has begun, and when (a notify-reload service has to)."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the service is going to end."""
        self.tell("STOPPING=1", "STATUS=stopping")

    def main_process(self, pid: int) -> None:
        """Say that another process is the service's main one from now on (sd_notify(3), MAINPID=)."""
        self.tell(f"MAINPID={pid}")

    def environment(self) -> dict[str, str]:
        """Return the variables for a process that takes the service over, as the manager would have set them."""
        if self._socket is None:
            return {}
        watchdog = {"WATCHDOG_USEC": str(round(self.watchdog_seconds * 1e6))} if self.watchdog_seconds else {}
        return {"NOTIFY_SOCKET": self._given, **watchdog}

    def alive(self) -> None:
        """Say that the service goes on."""
        self.tell("WATCHDOG=1")

    def close(self) -> None:
        """Tell nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


# -- sockets that were opened before -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    """A listening socket of the manager's, or of the process before this one. `name`: FileDescriptorName= of its unit,
    empty for one of the process before; `transport`: tcp or mptcp."""

    name: str
    transport: str
    address: Address
    sock: socket.socket
    fallback_reason: str | None = None
    """Why it is a TCP socket although its port was asked to be MPTCP; None where it is what it was asked to be."""

    @property
    def dual(self) -> bool:
        """Whether it takes IPv4 connections for an IPv6 wildcard."""
        sock = self.sock
        if sock.family != socket.AF_INET6 or self.address.host not in ("::", "*"):
            return False
        return not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


_inherited: list[InheritedSocket] = []


def receive_sockets(environment: MutableMapping[str, str] | None = None) -> list[InheritedSocket]:
    """Take over the listening sockets that the service manager has passed (sd_listen_fds(3)); listeners find them by
    their addresses.

    Raises `TransportError` for one that is no listening TCP or MPTCP socket, or takes both families of addresses.
    """
    variables = os.environ if environment is None else environment
    pid, count = variables.pop("LISTEN_PID", ""), variables.pop("LISTEN_FDS", "")
    names = variables.pop("LISTEN_FDNAMES", "").split(":")
    variables.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    for number in range(min(int(count), _DESCRIPTORS_MOST)):
        name = names[number] if number < len(names) else ""
        _inherited.append(_adopted(FIRST_DESCRIPTOR + number, name))
    return list(_inherited)


def _adopted(descriptor: int, name: str) -> InheritedSocket:
    what = f"descriptor {descriptor} of the service manager ({name or 'no name'})"
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    except OSError as error:
        raise TransportError(f"{what} is no socket: {error.strerror or error}") from error
    if not listening or protocol not in _PROTOCOL_NAMES or sock.family not in (socket.AF_INET, socket.AF_INET6):
        sock.detach()
        raise TransportError(f"{what} is no listening TCP or MPTCP socket: write ListenStream= in the socket unit")
    transport = "tcp" if protocol == socket.IPPROTO_TCP else "mptcp"
    found = InheritedSocket(name, transport, to_address(sock.getsockname()), sock)
    if found.dual:
        sock.detach()
        raise TransportError(
            f"{what} takes IPv4 for [::]: write BindIPv6Only=ipv6-only in the socket unit, and a ListenStream= for each"
        )
    return found


def inherited_socket(descriptor: int, transport: str, address: Address, fallback_reason: str | None) -> InheritedSocket:
    """Make the listening socket of a descriptor that the process before this one has handed over.

    Raises `TransportError` for one that is no socket.
    """
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise TransportError(f"the socket at {address} was not handed over: {error.strerror or error}") from error
    return InheritedSocket("", transport, address, sock, fallback_reason)


def adopt_sockets(sockets: Iterable[InheritedSocket]) -> None:
    """Let listeners find these sockets by their addresses, as those of the service manager."""
    _inherited.extend(sockets)


def take_inherited(transport: str, sockaddr: SockAddr) -> InheritedSocket | None:
    """Return the inherited socket at an address, once; None where there is none.

    Raises `TransportError` for one of another transport.
    """
    wanted = to_address(sockaddr)
    for each in _inherited:
        if each.address == wanted and wanted.port:
            if each.transport != transport:
                other = "SocketProtocol=mptcp" if transport == "mptcp" else "no SocketProtocol="
                raise TransportError(
                    f"the service manager's socket at {wanted} is of {each.transport}, not of {transport}: write "
                    f"{other} in the socket unit"
                )
            _inherited.remove(each)
            return each
    return None


def close_inherited() -> list[InheritedSocket]:
    """Close the sockets that nobody has taken, and return them."""
    left, _inherited[:] = list(_inherited), []
    for each in left:
        with contextlib.suppress(OSError):
            each.sock.close()
    return left
