"""The `tcp` transport: NVMe/TCP over plain TCP sockets."""

from __future__ import annotations

import socket
from typing import Final

from nvmeof.transport.base import Address, ConnectionInfo, SubflowInfo
from nvmeof.transport.options import SockAddr, congestion_of, integer_option
from nvmeof.transport.sockets import SocketEndpoint, SocketTransport
from nvmeof.transport.tcp_info import TCP_INFO_BYTES, subflow_info

TRTYPE_TCP: Final = 3
"""NVMe Base, Discovery log entry, TRTYPE: TCP."""


def tcp_figures(sock: socket.socket, local: Address, peer: Address) -> SubflowInfo | None:
    """Return TCP_INFO of a socket, None where the kernel gives none."""
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:
        return None
    return subflow_info(data, local, peer)


def tcp_connection_info(
    sock: socket.socket, transport: str, local: Address, peer: Address, fallback_reason: str | None = None
) -> ConnectionInfo:
    """Return the facts of a connection that speaks plain TCP, whatever was asked for."""
    flow = tcp_figures(sock, local, peer)
    nodelay = integer_option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return ConnectionInfo(
        transport=transport,
        protocol="tcp",
        fallback=fallback_reason is not None,
        fallback_reason=fallback_reason,
        local=local,
        peer=peer,
        congestion=congestion_of(sock),
        nodelay=None if nodelay is None else bool(nodelay),
        subflows=() if flow is None else (flow,),
        bytes_sent=sent_once(flow) if flow else None,
        bytes_received=flow.bytes_received if flow else None,
        retransmits=flow.retransmits if flow else None,
        rtt_us=flow.rtt_us if flow else None,
        sndbuf_bytes=integer_option(sock, socket.SOL_SOCKET, socket.SO_SNDBUF),
        rcvbuf_bytes=integer_option(sock, socket.SOL_SOCKET, socket.SO_RCVBUF),
    )


def sent_once(flow: SubflowInfo) -> int | None:
    """Return the payload bytes of a flow without retransmissions."""
    if flow.bytes_sent is None:
        return None
    return flow.bytes_sent - (flow.bytes_retransmitted or 0)


class TcpEndpoint(SocketEndpoint):
    """A TCP connection."""

    def _describe(self) -> ConnectionInfo:
        return tcp_connection_info(self._sock, self.transport_name, self.local_address, self.peer_address)


class TcpTransport(SocketTransport):
    """TRTYPE 3."""

    name = "tcp"
    trtype = TRTYPE_TCP

    def open_socket(self, family: socket.AddressFamily) -> tuple[socket.socket, str | None]:
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP), None

    def make_endpoint(
        self, sock: socket.socket, peer: SockAddr, *, accepted: bool, fallback_reason: str | None
    ) -> TcpEndpoint:
        return TcpEndpoint(sock, self.name, peer)
