"""The `mptcp` transport: NVMe over Multipath TCP, with TCP where MPTCP is not available.

The only module that knows IPPROTO_MPTCP. Falling back has four causes, and each is said once in the log: a kernel
without MPTCP, MPTCP switched off by sysctl, a peer (or a box between) without it, and a fallback in mid-connection (RFC
8684, section 3.7). The last two leave no trace on the socket but that MPTCP_INFO stops answering, so `describe` asks
each time.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from functools import partial
from typing import Final

from nvmeof.transport import mptcp_info
from nvmeof.transport.base import ConnectionInfo, log
from nvmeof.transport.options import SockAddr, congestion_of, integer_option
from nvmeof.transport.sockets import SocketEndpoint, SocketTransport
from nvmeof.transport.tcp import sent_once, tcp_connection_info
from nvmeof.transport.tcp_info import CLOSED_STATE
from nvmeof.transport.window import WindowOpener, open_window

IPPROTO_MPTCP: Final = 262
TRTYPE_MPTCP: Final = 4
"""Provisional: the number that the Linux series proposes. `set_trtype_code` changes it."""

FALLBACK_PEER: Final = "the peer, or a device on the way, does not speak MPTCP"
FALLBACK_LATER: Final = "the connection fell back to TCP after it had begun with MPTCP"
FALLBACK_SYSCTL: Final = "MPTCP is switched off here (sysctl net.mptcp.enabled=0)"
FALLBACK_KERNEL: Final = "this kernel has no MPTCP"

_OPEN_REASONS: Final = {
    errno.ENOPROTOOPT: FALLBACK_SYSCTL,
    errno.EPROTONOSUPPORT: FALLBACK_KERNEL,  # built without CONFIG_MPTCP
    errno.EINVAL: FALLBACK_KERNEL,  # before Linux 5.6 no protocol above 255 exists
}

_REMEMBERED_CAUSES: Final = 256
_said_causes: set[tuple[str, str]] = set()


def say_fallback(reason: str, peer_host: str = "", level: int = logging.WARNING) -> None:
    """Log a fallback, once per cause (and peer); after many peers silence, so that memory stays bounded."""
    cause = (reason, peer_host)
    if cause in _said_causes or len(_said_causes) >= _REMEMBERED_CAUSES:
        return
    _said_causes.add(cause)
    where = f" with {peer_host}" if peer_host else ""
    log.log(level, "using TCP in place of MPTCP%s: %s", where, reason)


def forget_fallbacks() -> None:
    """Say every cause again (for tests, and after a change of the system's configuration)."""
    _said_causes.clear()


def new_socket(family: socket.AddressFamily) -> socket.socket:
    """Return an MPTCP stream socket. Raises OSError where MPTCP is not available."""
    return socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP)


def why_no_mptcp() -> str | None:
    """Return why this machine opens no MPTCP sockets, in a few words; None where it does."""
    try:
        new_socket(socket.AF_INET).close()
    except OSError as error:
        return _OPEN_REASONS.get(error.errno or 0, os.strerror(error.errno or 0).lower())
    return None


def speaks_mptcp(sock: socket.socket) -> bool:
    """Return whether a connected MPTCP socket runs MPTCP now. True, too, on kernels before 5.16, which do not report
    it."""
    try:
        sock.getsockopt(mptcp_info.SOL_MPTCP, mptcp_info.MPTCP_INFO, mptcp_info.MPTCP_INFO_BYTES)
    except OSError:
        # an accepted plain TCP connection is a TCP socket in all; one that fell back still reads 262
        if integer_option(sock, socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP:
            return False
        return _info_unknown_here()
    return True


def _info_unknown_here() -> bool:
    """Return whether this kernel's MPTCP sockets support no MPTCP_INFO at all (tested on a fresh socket)."""
    try:
        with new_socket(socket.AF_INET) as fresh:
            fresh.getsockopt(mptcp_info.SOL_MPTCP, mptcp_info.MPTCP_INFO, mptcp_info.MPTCP_INFO_BYTES)
    except OSError as error:
        return error.errno in (errno.EOPNOTSUPP, errno.ENOPROTOOPT)
    return False


class MptcpEndpoint(SocketEndpoint):
    """A connection that was asked to be MPTCP. `fallback_reason`: why its socket is a TCP one from the start.

    `accepted`: it came to a listener, where ordinary TCP hosts are welcome and nothing to warn of.
    """

    def __init__(
        self,
        sock: socket.socket,
        transport_name: str,
        peer: SockAddr,
        fallback_reason: str | None,
        *,
        accepted: bool = False,
    ) -> None:
        super().__init__(sock, transport_name, peer)
        self._reason = fallback_reason
        self._ended = select.poll()
        self._ended.register(sock.fileno(), select.POLLRDHUP)
        if fallback_reason is None and not speaks_mptcp(sock):
            self._reason = FALLBACK_PEER
            say_fallback(FALLBACK_PEER, self.peer_address.host, logging.INFO if accepted else logging.WARNING)
        if self._reason is None:
            WindowOpener(self, partial(open_window, sock))

    def available(self) -> int:
        # FIONREAD of an MPTCP socket counts the peer's DATA_FIN as a byte (Linux, net/mptcp/protocol.c,
        # mptcp_inq_hint): a reader that relied on that byte would wait for it forever.
        count = super().available()
        if count and self._ended.poll(0):
            return count - 1
        return count

    def _describe(self) -> ConnectionInfo:
        sock = self._sock
        if self._reason is None:
            try:
                raw = mptcp_info.mptcp_info(sock)
                flows = mptcp_info.subflows(sock)
            except OSError:
                if not speaks_mptcp(sock):
                    self._reason = FALLBACK_LATER
                    say_fallback(FALLBACK_LATER, self.peer_address.host)
                raw, flows = {}, ()
        if self._reason is not None:
            return tcp_connection_info(sock, self.transport_name, self.local_address, self.peer_address, self._reason)
        nodelay = integer_option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)
        # The kernel reports the first subflow as long as the connection lives, also when closed: its bytes count.
        live = tuple(flow for flow in flows if flow.state != CLOSED_STATE)
        rtts = [flow.rtt_us for flow in live if flow.rtt_us]
        sent, received = raw.get("mptcpi_bytes_sent"), raw.get("mptcpi_bytes_received")
        return ConnectionInfo(
            transport=self.transport_name,
            protocol="mptcp",
            local=self.local_address,
            peer=self.peer_address,
            congestion=congestion_of(sock),
            nodelay=None if nodelay is None else bool(nodelay),
            token=raw.get("mptcpi_token"),
            subflows=live,
            # kernels before 6.5 count only per subflow
            bytes_sent=sent if sent is not None else _total([sent_once(flow) for flow in flows]),
            bytes_received=received if received is not None else _total([flow.bytes_received for flow in flows]),
            retransmits=_total([flow.retransmits for flow in flows]),
            mptcp_retransmits=raw.get("mptcpi_retransmits"),
            rtt_us=min(rtts, default=None),
            sndbuf_bytes=integer_option(sock, socket.SOL_SOCKET, socket.SO_SNDBUF),
            rcvbuf_bytes=integer_option(sock, socket.SOL_SOCKET, socket.SO_RCVBUF),
        )


def _total(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


class MptcpTransport(SocketTransport):
    """TRTYPE 4 for now, MPTCP where both ends have it and TCP elsewhere."""

    name = "mptcp"
    trtype = TRTYPE_MPTCP
    announces = True

    def open_socket(self, family: socket.AddressFamily) -> tuple[socket.socket, str | None]:
        try:
            return new_socket(family), None
        except OSError as error:
            reason = _OPEN_REASONS.get(error.errno or 0)
            if reason is None:
                raise
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        say_fallback(reason)
        return sock, reason

    def make_endpoint(
        self, sock: socket.socket, peer: SockAddr, *, accepted: bool, fallback_reason: str | None
    ) -> MptcpEndpoint:
        return MptcpEndpoint(sock, self.name, peer, fallback_reason, accepted=accepted)
