"""Endpoints, listeners and transports over stream sockets: what tcp and mptcp share.

`loop.sock_connect` and asyncio's transports are not used: the former refuses MPTCP sockets (python/cpython#123174),
the latter would hide how many bytes the kernel took. What is needed of a loop is `add_reader`, `add_writer` and
`getaddrinfo`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import socket
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from fcntl import ioctl
from termios import FIONREAD
from typing import Final, NoReturn

from nvmeof.address import Address, is_link_local, is_wildcard, strip_brackets
from nvmeof.errors import TransportError
from nvmeof.transport import options as setup
from nvmeof.transport.base import (
    Buffer,
    ConnectionInfo,
    Endpoint,
    Listener,
    ListenerInfo,
    SocketOptions,
    Transport,
    log,
    say_dropped,
)
from nvmeof.transport.options import Resolved, SockAddr
from nvmeof.transport.service_manager import InheritedSocket, take_inherited

IOV_MAX: Final = 1024
"""Buffers that one sendmsg takes (include/uapi/linux/uio.h, UIO_MAXIOV); more would be EMSGSIZE."""

ACCEPT_BATCH: Final = 64
"""Connections accepted per turn of the loop, at most."""

ACCEPT_SECONDS: Final = 200e-6
"""How long connections are accepted in one turn of the loop; the others wait for the next."""

ACCEPT_PAUSE_SECONDS: Final = (0.1, 1.0)
"""First and longest pause when descriptors or memory run out."""

_ACCEPT_IGNORED: Final = frozenset(
    # a connection that died before it was accepted, and pending network errors that accept(2) passes on
    (
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.ETIMEDOUT,
    )
)

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_DRAIN_BYTES: Final = 65536
_DRAIN_ROUNDS: Final = 16


def _closed_recv_into(buffer: memoryview | bytearray) -> NoReturn:
    raise ConnectionAbortedError(errno.ECONNABORTED, "the endpoint is closed")


def _closed_recv_both(buffer: memoryview, behind: memoryview) -> NoReturn:
    raise ConnectionAbortedError(errno.ECONNABORTED, "the endpoint is closed")


def _closed_sendmsg(buffers: Sequence[Buffer]) -> NoReturn:
    raise ConnectionAbortedError(errno.ECONNABORTED, "the endpoint is closed")


def _bounded_sendmsg(send: Callable[[Sequence[Buffer]], int]) -> Callable[[Sequence[Buffer]], int]:
    def sendmsg(buffers: Sequence[Buffer]) -> int:
        return send(buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX])

    return sendmsg


def _recv_both(
    receive: Callable[[Sequence[memoryview]], tuple[int, object, int, object]],
) -> Callable[[memoryview, memoryview], int]:
    def recv_both(buffer: memoryview, behind: memoryview) -> int:
        return receive((buffer, behind))[0]

    return recv_both


class SocketEndpoint(Endpoint):
    """An endpoint over a connected, non-blocking stream socket, which it owns from now on."""

    def __init__(self, sock: socket.socket, transport_name: str, peer: SockAddr) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self.transport_name = transport_name
        self.local_address, self.peer_address = setup.both_ends(sock, peer)
        self.recv_into = sock.recv_into
        self.recv_both = _recv_both(sock.recvmsg_into)
        self._available = array("i", [0])
        self.sendmsg = _bounded_sendmsg(sock.sendmsg)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading = False
        self._writing = False
        self._last_info: ConnectionInfo | None = None

    def fileno(self) -> int:
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def available(self) -> int:
        try:
            ioctl(self._fd, FIONREAD, self._available, True)
        except (OSError, ValueError):  # closed, or a kernel whose MPTCP sockets do not report it
            return 0
        return self._available[0]

    def set_reader(self, callback: Callable[[], object] | None) -> None:
        if callback is not None:
            self._running_loop().add_reader(self._fd, callback)
            self._reading = True
        elif self._reading:
            self._reading = False
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._fd)

    def set_writer(self, callback: Callable[[], object] | None) -> None:
        if callback is not None:
            self._running_loop().add_writer(self._fd, callback)
            self._writing = True
        elif self._writing:
            self._writing = False
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_writer(self._fd)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._fd < 0:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the endpoint is closed")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def shutdown(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # ENOTCONN: the peer was faster
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._fd < 0:
            return
        self.shutdown()
        # unread bytes turn the kernel's FIN into a reset, which would take our last words (a TermReq) with it
        scratch = bytearray(_DRAIN_BYTES)
        with contextlib.suppress(OSError):
            for _ in range(_DRAIN_ROUNDS):
                if not self._sock.recv_into(scratch):
                    break
        self._release()

    def abort(self) -> None:
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._release()

    def _release(self) -> None:
        self.set_reader(None)
        self.set_writer(None)
        self.recv_into = _closed_recv_into
        self.recv_both = _closed_recv_both
        self.sendmsg = _closed_sendmsg
        self._fd = -1
        self._sock.close()

    def describe(self) -> ConnectionInfo:
        if self._fd < 0:
            return self._closed_info()
        self._last_info = self._describe()
        return self._last_info

    def _describe(self) -> ConnectionInfo:
        """Read the figures of the open socket."""
        raise NotImplementedError

    def _closed_info(self) -> ConnectionInfo:
        if self._last_info is not None:
            return dataclasses.replace(self._last_info, closed=True)
        return ConnectionInfo(
            transport=self.transport_name,
            protocol=self.transport_name,
            local=self.local_address,
            peer=self.peer_address,
            closed=True,
        )


class SocketListener(Listener):
    """Accepts on one socket, in batches, and goes on whatever happens to single connections."""

    def __init__(
        self,
        sock: socket.socket,
        transport: SocketTransport,
        options: SocketOptions,
        accepted: Callable[[Endpoint], None],
        fallback_reason: str | None = None,
        interface: int = 0,
    ) -> None:
        self._sock = sock
        self._interface = interface
        self._transport = transport
        self._options = options
        self._accepted = accepted
        self._fallback_reason = fallback_reason
        self.address = setup.to_address(self._on_interface(sock.getsockname()))
        self._count = 0
        self._closed = False
        self._held = False
        self._pause_seconds = 0.0
        self._resume: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def _on_interface(self, sockaddr: SockAddr) -> SockAddr:
        """Return a socket address with the interface that is listened on, which MPTCP sockets forget."""
        if self._interface and is_link_local(str(sockaddr[0])):
            return (*sockaddr[:3], self._interface)
        return sockaddr

    def _readable(self) -> None:
        turns = self.turns
        if turns is None:
            until = time.perf_counter() + ACCEPT_SECONDS
            for _ in range(ACCEPT_BATCH):
                if not self._accept() or time.perf_counter() >= until:
                    return
            return
        while turns.open:
            began = turns.clock()
            if not self._accept():
                return
            turns.spend(turns.clock() - began)
        if not self._closed:
            self._loop.remove_reader(self._sock.fileno())
            turns.add(self, self._accept_in_turn)

    def _accept_in_turn(self) -> None:
        """Accept one connection in this listener's turn; listen to the socket again when there was none."""
        if self._accept():
            assert self.turns is not None
            self.turns.add(self, self._accept_in_turn)
        elif self._resume is None:
            self._watch()

    def _watch(self) -> None:
        """Accept when there is something to accept, unless it was told to hold."""
        if not self._closed and not self._held:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def hold(self) -> None:
        if not self._closed and not self._held:
            self._held = True
            self._loop.remove_reader(self._sock.fileno())

    def go_on(self) -> None:
        if self._held:
            self._held = False
            if self._resume is None:
                self._watch()

    def hand_over(self) -> InheritedSocket:
        """Return a copy of the socket, which goes on listening when this listener is closed."""
        return InheritedSocket("", self._transport.name, self.address, self._sock.dup(), self._fallback_reason)

    def _accept(self) -> bool:
        """Accept a connection; False: there is none now."""
        if self._closed or self._held:
            return False
        try:
            sock, peer = self._sock.accept()
        except BlockingIOError:
            self._pause_seconds = 0.0
            return False
        except OSError as error:
            if error.errno in _ACCEPT_IGNORED:
                return True
            self._pause(error)
            return False
        self._count += 1
        self._start(sock, self._on_interface(peer))
        return True

    def _start(self, sock: socket.socket, peer: SockAddr) -> None:
        """Set an accepted socket up and hand it over; a failure costs this connection only."""
        endpoint: SocketEndpoint | None = None
        try:
            sock.setblocking(False)
            setup.apply(sock, self._options)
            endpoint = self._transport.make_endpoint(sock, peer, accepted=True, fallback_reason=self._fallback_reason)
            self._accepted(endpoint)
        except (OSError, TransportError) as error:
            log.info("a connection from %s ended before it began: %s", setup.to_address(peer), error)
        except Exception as error:
            say_dropped(setup.to_address(peer), error)
        else:
            return
        if endpoint is not None:
            endpoint.abort()
        else:
            sock.close()

    def _pause(self, error: OSError) -> None:
        """Pause accepting, longer each time, without descriptors or memory: accepting again at once would spin."""
        shortest, longest = ACCEPT_PAUSE_SECONDS
        if not self._pause_seconds:
            log.warning("%s accepts no connections for a moment: %s", self.address, error.strerror or error)
        self._pause_seconds = min(longest, self._pause_seconds * 2 or shortest)
        self._loop.remove_reader(self._sock.fileno())
        self._resume = self._loop.call_later(self._pause_seconds, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._watch()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._resume is not None:
            self._resume.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def describe(self) -> ListenerInfo:
        name = self._transport.name
        return ListenerInfo(
            transport=name,
            protocol="tcp" if self._fallback_reason else name,
            fallback=self._fallback_reason is not None,
            fallback_reason=self._fallback_reason,
            address=self.address,
            accepted=self._count,
            paused=self._resume is not None,
            closed=self._closed,
        )


class SocketTransport(Transport):
    """Listens and connects with stream sockets; what kind of socket is the subclass's."""

    plain_tcp = True

    def open_socket(self, family: socket.AddressFamily) -> tuple[socket.socket, str | None]:
        """Return a new socket, and why it is less than this transport promises (None: it is not). Raises OSError."""
        raise NotImplementedError

    def make_endpoint(
        self, sock: socket.socket, peer: SockAddr, *, accepted: bool, fallback_reason: str | None
    ) -> SocketEndpoint:
        """Return the endpoint over a connected socket."""
        raise NotImplementedError

    # -- listening -------------------------------------------------------------------------------------------------

    async def listen(
        self, host: str, port: int, options: SocketOptions, accepted: Callable[[Endpoint], None]
    ) -> list[Listener]:
        addresses = await setup.resolve(host, port, passive=True, interface=options.host_iface)
        if options.ipv6_only and is_wildcard(host):
            addresses = [each for each in addresses if each[0] == socket.AF_INET6] or addresses
        for attempts_left in range(15, -1, -1):
            try:
                sockets = self._bind_all(addresses, options)
                break
            except OSError as error:
                # port 0: the port that the kernel picked on one address may be taken on another
                if port or error.errno != errno.EADDRINUSE or not attempts_left:
                    raise listen_failure(error, host, port) from None
        return [SocketListener(sock, self, options, accepted, reason, interface) for sock, reason, interface in sockets]

    def _bind_all(
        self, addresses: Sequence[Resolved], options: SocketOptions
    ) -> list[tuple[socket.socket, str | None, int]]:
        """Return sockets listening on all the addresses and one port, each with its fall-back and interface's number.

        Raises OSError or TransportError, leaving none open.
        """
        bound: list[tuple[socket.socket, str | None, int]] = []
        absent: OSError | None = None
        with contextlib.ExitStack() as cleanup:
            for family, sockaddr in addresses:
                if bound:
                    sockaddr = (sockaddr[0], bound[0][0].getsockname()[1], *sockaddr[2:])
                try:
                    sock, reason = self._bind(family, sockaddr, options)
                except OSError as error:
                    # a name (or '*') may have an address of a family that is switched off here
                    if len(addresses) > 1 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        absent = _with_address(error, sockaddr)
                        continue
                    raise _with_address(error, sockaddr) from None
                cleanup.callback(sock.close)
                bound.append((sock, reason, sockaddr[3] if len(sockaddr) > 3 else 0))
            if not bound and absent is not None:
                raise absent
            cleanup.pop_all()
        return bound

    def _bind(
        self, family: socket.AddressFamily, sockaddr: SockAddr, options: SocketOptions
    ) -> tuple[socket.socket, str | None]:
        inherited = take_inherited(self.name, sockaddr)
        if inherited is not None:
            return self._adopt(inherited.sock, options), inherited.fallback_reason
        sock, reason = self.open_socket(family)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # IPv4 has a separate socket: no peer, and no Discovery entry, has an address like ::ffff:192.0.2.1
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if options.host_iface:
                setup.bind_to_interface(sock, options.host_iface)
            setup.apply(sock, options)
            sock.bind(sockaddr)
            sock.listen(options.backlog)
        except BaseException:
            sock.close()
            raise
        return sock, reason

    def _adopt(self, sock: socket.socket, options: SocketOptions) -> socket.socket:
        """Set up a socket that the service manager has bound, and that listens already."""
        try:
            sock.setblocking(False)
            setup.apply(sock, options)
            sock.listen(options.backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    # -- connecting ------------------------------------------------------------------------------------------------

    async def connect(self, host: str, port: int, options: SocketOptions) -> Endpoint:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + options.connect_timeout_seconds
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await setup.resolve(host, port, interface=options.host_iface)
                sources = await self._sources(options)
        except TimeoutError:
            raise setup.connect_timeout(Address(host, port), options.connect_timeout_seconds) from None
        errors: list[TransportError] = []
        for index, (family, sockaddr) in enumerate(addresses):
            source = sources.get(family)
            if sources and source is None:
                continue
            # a silent address must not use up the time of those after it
            share = max(0.0, deadline - loop.time()) / (len(addresses) - index)
            try:
                async with asyncio.timeout(share):
                    return await self._connect_one(family, sockaddr, source, options)
            except TimeoutError:
                errors.append(setup.connect_timeout(setup.to_address(sockaddr), share))
            except OSError as error:
                errors.append(setup.connect_error(error, setup.to_address(sockaddr), options, share))
        if not errors:
            raise TransportError(
                f"{Address(host, port)} and the local address {options.host_traddr} are of different families"
            )
        raise setup.several_errors(host, port, errors)

    async def _sources(self, options: SocketOptions) -> dict[socket.AddressFamily, SockAddr]:
        """Return the local address to bind to, per family; empty: the kernel chooses."""
        if not options.host_traddr:
            return {}
        found = await setup.resolve(options.host_traddr, 0, interface=options.host_iface)
        return dict(reversed(found))  # of several in one family, the first

    async def _connect_one(
        self, family: socket.AddressFamily, sockaddr: SockAddr, source: SockAddr | None, options: SocketOptions
    ) -> Endpoint:
        sock, reason = self.open_socket(family)
        try:
            sock.setblocking(False)
            if options.host_iface:
                setup.bind_to_interface(sock, options.host_iface)
            setup.apply(sock, options)
            if source is not None:
                sock.bind(source)
            try:
                sock.connect(sockaddr)
            except (BlockingIOError, InterruptedError):
                await _writable(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, "") from None
            if sock.getsockname() == sock.getpeername():
                # a free ephemeral port connected to itself (TCP simultaneous open): there is no listener
                raise ConnectionRefusedError(errno.ECONNREFUSED, "")
            return self.make_endpoint(sock, sockaddr, accepted=False, fallback_reason=reason)
        except BaseException:
            sock.close()
            raise


async def _writable(sock: socket.socket) -> None:
    """Wait until a connection attempt has ended, in whichever way."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    descriptor = sock.fileno()

    def wake() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_writer(descriptor, wake)
    try:
        await ended
    finally:
        loop.remove_writer(descriptor)


def _with_address(error: OSError, sockaddr: SockAddr) -> OSError:
    error.filename = setup.to_address(sockaddr)
    return error


def listen_failure(error: OSError, host: str, port: int) -> TransportError:
    """Make the error of a listener that could not be made, with the failing address when it is known."""
    where = error.filename if isinstance(error.filename, Address) else Address(strip_brackets(host), port)
    return setup.listen_error(error, where)
