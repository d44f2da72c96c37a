"""MPTCP's figures through netlink's socket diagnosis: of other processes too, and what sockets don't tell.

A subflow's backup flag and its own congestion control are in no socket option; the kernel gives them by socket
diagnosis (include/uapi/linux/inet_diag.h, sock_diag.h, mptcp.h), which needs no privilege for one's own network
namespace. The connection that a subflow belongs to is known by its token, which newer kernels show only with
CAP_NET_ADMIN; without it `connections` gives the connections without their subflows.

Read cost, measured on a 6.18 kernel (docs/howto/reading-figures.md): `with_diag` one exact look-up of 70-110 us per
subflow (one that is bound to an interface is found at the second or third try); `by_token` 32 us; `connections` walks
the kernel's table of all TCP sockets, 0.9 ms on a quiet machine: for a person's eyes, not for every command. pyroute2
is not needed here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Final

from nvmeof.transport.base import Address, ConnectionInfo, SubflowInfo
from nvmeof.transport.mptcp_info import MPTCP_INFO_LAYOUT
from nvmeof.transport.paths.netlink import (
    NETLINK_SOCK_DIAG,
    NLM_F_ACK,
    NLM_F_DUMP,
    NetlinkSocket,
    attribute,
    attributes,
)
from nvmeof.transport.tcp import sent_once
from nvmeof.transport.tcp_info import subflow_info

SOCK_DIAG_BY_FAMILY: Final = 20
SOCK_DESTROY: Final = 21

INET_DIAG_INFO: Final = 2
INET_DIAG_CONG: Final = 4
INET_DIAG_MARK: Final = 15
INET_DIAG_ULP_INFO: Final = 19
INET_ULP_INFO_MPTCP: Final = 3
INET_DIAG_REQ_PROTOCOL: Final = 3
_EXTENSIONS: Final = 1 << (INET_DIAG_INFO - 1) | 1 << (INET_DIAG_CONG - 1)
_MPTCP: Final = 262
_PROTOCOL_ELSEWHERE: Final = 255
"""In the request's one byte for a protocol: it is in the attribute."""

SOCKID: Final = struct.Struct(">HH16s16s")
"""struct inet_diag_sockid up to the addresses; behind it the interface (u32) and the cookie (2 x u32)."""
_SOCKID_TAIL: Final = struct.Struct("=III")
REQUEST: Final = struct.Struct("=BBBBI")
"""struct inet_diag_req_v2 before the socket id: family, protocol, extensions, padding, states."""
REPLY_BYTES: Final = 72
"""sizeof(struct inet_diag_msg); family at 0, state at 1, socket id at 4, inode at 68."""
_REPLY_INODE: Final = 68
_HEADER_BYTES: Final = 16
_NO_COOKIE: Final = 0xFFFFFFFF
_ALL_STATES: Final = 0xFFFFFFFF
_CONNECTED: Final = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11))
"""All but TIME_WAIT, CLOSE and LISTEN."""


class SubflowFlag(IntFlag):
    """MPTCP_SUBFLOW_FLAG_* of the diagnosis."""

    MCAP_REM = 1
    MCAP_LOC = 2
    JOIN_REM = 4
    JOIN_LOC = 8
    BACKUP_REM = 16
    BACKUP_LOC = 32
    FULLY_ESTABLISHED = 64
    CONNECTED = 128
    MAPVALID = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketDiag:
    """The facts of one socket from socket diagnosis. None: not reported (a privilege, an older kernel)."""

    local: Address
    peer: Address
    state: int
    device_index: int
    """The interface that the socket is bound to, 0: none."""
    inode: int
    info: bytes = b""
    """struct tcp_info, of an MPTCP socket struct mptcp_info."""
    congestion: str | None = None
    mark: int | None = None
    token: int | None = None
    """Of a subflow: the local token of its connection."""
    flags: SubflowFlag | None = None
    local_id: int | None = None
    remote_id: int | None = None

    @property
    def backup(self) -> bool | None:
        """Whether either end asked that this subflow be a backup."""
        if self.flags is None:
            return None
        return bool(self.flags & (SubflowFlag.BACKUP_REM | SubflowFlag.BACKUP_LOC))


def with_diag(info: ConnectionInfo) -> ConnectionInfo:
    """Return the facts with `backup` and `congestion` of every subflow, as far as the kernel reports them."""
    if info.closed or not info.subflows:
        return info
    try:
        with NetlinkSocket(NETLINK_SOCK_DIAG) as link:
            flows = tuple(_with_diag(link, flow) for flow in info.subflows)
    except OSError:
        return info
    return dataclasses.replace(info, subflows=flows)


def _with_diag(link: NetlinkSocket, flow: SubflowInfo) -> SubflowInfo:
    found = _look_up(link, flow.local, flow.peer)
    if found is None:
        return flow
    return dataclasses.replace(flow, backup=found.backup, congestion=found.congestion)


def look_up(local: Address, peer: Address) -> SocketDiag | None:
    """Return the TCP socket between these addresses in this network namespace; None for none."""
    with NetlinkSocket(NETLINK_SOCK_DIAG) as link:
        return _look_up(link, local, peer)


def _look_up(link: NetlinkSocket, local: Address, peer: Address) -> SocketDiag | None:
    for request in _exact(local, peer):
        with contextlib.suppress(OSError):
            for _, message in link.request(SOCK_DIAG_BY_FAMILY, 0, request):
                return parse_reply(message[_HEADER_BYTES:])
    return None


def destroy(local: Address, peer: Address) -> bool:
    """Close the TCP socket between these addresses, a single subflow say, at once (a reset goes out).

    False: there is none. Raises PermissionError without CAP_NET_ADMIN, OSError (EOPNOTSUPP) on a kernel without
    CONFIG_INET_DIAG_DESTROY.
    """
    with NetlinkSocket(NETLINK_SOCK_DIAG) as link:
        for request in _exact(local, peer):
            try:
                link.request(SOCK_DESTROY, NLM_F_ACK, request)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                    raise
                continue
            return True
    return False


def _exact(local: Address, peer: Address) -> Iterator[bytes]:
    """Yield requests that name one socket. One that is bound to an interface is found with that interface only."""
    family = socket.AF_INET6 if ":" in local.host else socket.AF_INET
    for index in (0, *(number for number, _ in socket.if_nameindex())):
        yield _request(family, socket.IPPROTO_TCP, _ALL_STATES, local, peer, index)


def _request(
    family: socket.AddressFamily,
    protocol: int,
    states: int,
    local: Address | None = None,
    peer: Address | None = None,
    index: int = 0,
) -> bytes:
    ends = [_packed(each, family) for each in (local, peer)]
    ports = [each.port if each else 0 for each in (local, peer)]
    request = REQUEST.pack(family, protocol if protocol < 256 else _PROTOCOL_ELSEWHERE, _EXTENSIONS, 0, states)
    request += SOCKID.pack(*ports, *ends) + _SOCKID_TAIL.pack(index, _NO_COOKIE, _NO_COOKIE)
    if protocol > 255:
        request += attribute(INET_DIAG_REQ_PROTOCOL, struct.pack("=I", protocol))
    return request


def _packed(address: Address | None, family: socket.AddressFamily) -> bytes:
    if address is None:
        return bytes(16)
    return socket.inet_pton(family, address.host.partition("%")[0]).ljust(16, b"\0")


def parse_reply(data: bytes) -> SocketDiag | None:
    """Parse a `struct inet_diag_msg` with its attributes; None for one that is too short."""
    if len(data) < REPLY_BYTES:
        return None
    family, state = data[0], data[1]
    sport, dport, source, destination = SOCKID.unpack_from(data, 4)
    index = struct.unpack_from("=I", data, 4 + SOCKID.size)[0]
    values: dict[str, Any] = {}
    for kind, payload in attributes(data[REPLY_BYTES:]):
        if kind == INET_DIAG_INFO:
            values["info"] = bytes(payload)
        elif kind == INET_DIAG_CONG:
            values["congestion"] = bytes(payload).rstrip(b"\0").decode("ascii", "replace")
        elif kind == INET_DIAG_MARK:
            values["mark"] = int.from_bytes(payload, sys.byteorder)
        elif kind == INET_DIAG_ULP_INFO:
            for inner, nested in attributes(payload):
                if inner == INET_ULP_INFO_MPTCP:
                    values |= _subflow_attributes(nested)
    return SocketDiag(
        local=Address(_text(source, family), sport),
        peer=Address(_text(destination, family), dport),
        state=state,
        device_index=index,
        inode=struct.unpack_from("=I", data, _REPLY_INODE)[0],
        **values,
    )


_SUBFLOW_ATTRIBUTES: Final = {2: "token", 8: "flags", 9: "remote_id", 10: "local_id"}
"""MPTCP_SUBFLOW_ATTR_TOKEN_LOC, _FLAGS, _ID_REM, _ID_LOC."""


def _subflow_attributes(data: memoryview) -> dict[str, Any]:
    values: dict[str, Any] = {
        _SUBFLOW_ATTRIBUTES[kind]: int.from_bytes(payload, sys.byteorder)
        for kind, payload in attributes(data)
        if kind in _SUBFLOW_ATTRIBUTES
    }
    if "flags" in values:
        values["flags"] = SubflowFlag(values["flags"] & (2 * SubflowFlag.MAPVALID - 1))
    return values


def _text(packed: bytes, family: int) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


# -- every connection of the network namespace


def connections(*, port: int | None = None, tokens: Iterable[int] | None = None) -> list[ConnectionInfo]:
    """Return the MPTCP connections of this network namespace, of all processes, oldest subflow first.

    `port`: only those with that port at either end; `tokens`: only these. Raises OSError where the kernel has no
    diagnosis for MPTCP (CONFIG_INET_MPTCP_DIAG).
    """
    wanted = None if tokens is None else set(tokens)
    with NetlinkSocket(NETLINK_SOCK_DIAG) as link:
        sockets = [each for each in _dump(link, _MPTCP) if each.peer.port]
        flows: dict[int, list[SocketDiag]] = {}
        for flow in _dump(link, socket.IPPROTO_TCP):
            if flow.token:
                flows.setdefault(flow.token, []).append(flow)
    result = []
    for each in sockets:
        if port is not None and port not in (each.local.port, each.peer.port):
            continue
        raw = MPTCP_INFO_LAYOUT.read(each.info)
        token = raw.get("mptcpi_token")
        if wanted is None or token in wanted:
            result.append(_connection(each, raw, flows.get(token or 0, [])))
    return result


def by_token(token: int) -> ConnectionInfo | None:
    """Return the connection of that local token, without its subflows, by one look-up; None for none."""
    for family in (socket.AF_INET, socket.AF_INET6):
        request = bytearray(_request(family, _MPTCP, _ALL_STATES))
        # the kernel takes the first half of the cookie for the token (net/mptcp/mptcp_diag.c)
        struct.pack_into("=I", request, REQUEST.size + SOCKID.size + 4, token)
        with contextlib.suppress(OSError), NetlinkSocket(NETLINK_SOCK_DIAG) as link:
            for _, message in link.request(SOCK_DIAG_BY_FAMILY, 0, bytes(request)):
                found = parse_reply(message[_HEADER_BYTES:])
                if found is not None:
                    return _connection(found, MPTCP_INFO_LAYOUT.read(found.info), [])
    return None


def _dump(link: NetlinkSocket, protocol: int) -> list[SocketDiag]:
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for _, message in link.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, _request(family, protocol, _CONNECTED)):
            reply = parse_reply(message[_HEADER_BYTES:])
            if reply is not None:
                found.append(reply)
    return found


def _connection(sock: SocketDiag, raw: dict[str, int | None], flows: list[SocketDiag]) -> ConnectionInfo:
    infos = tuple(
        dataclasses.replace(
            subflow_info(flow.info, flow.local, flow.peer), backup=flow.backup, congestion=flow.congestion
        )
        for flow in sorted(flows, key=lambda each: (each.local_id or 0, each.remote_id or 0))
    )
    rtts = [flow.rtt_us for flow in infos if flow.rtt_us]
    sent, received = raw.get("mptcpi_bytes_sent"), raw.get("mptcpi_bytes_received")
    return ConnectionInfo(
        transport="mptcp",
        protocol="mptcp",
        local=sock.local,
        peer=sock.peer,
        congestion=sock.congestion or (infos[0].congestion if infos else None),
        token=raw.get("mptcpi_token"),
        subflows=infos,
        bytes_sent=sent if sent is not None else sum(sent_once(flow) or 0 for flow in infos),
        bytes_received=received if received is not None else sum(flow.bytes_received or 0 for flow in infos),
        retransmits=sum(flow.retransmits or 0 for flow in infos) if infos else None,
        mptcp_retransmits=raw.get("mptcpi_retransmits"),
        rtt_us=min(rtts, default=None),
    )
