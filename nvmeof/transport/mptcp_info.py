"""Figures of an MPTCP socket: layouts of include/uapi/linux/mptcp.h and the calls that read them.

MPTCP_INFO fits Python's `getsockopt`; the others take a filled-in buffer as input, which only libc's `getsockopt`
passes on. MPTCP_FULL_INFO exists since Linux 6.5; before it MPTCP_TCPINFO and MPTCP_SUBFLOW_ADDRS (5.16) give the same
in two calls. Each structure carries its sizes, so that both sides may know more or less of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from typing import Final

from nvmeof.transport.base import Address, SubflowInfo
from nvmeof.transport.options import interface_name
from nvmeof.transport.tcp_info import TCP_INFO_BYTES, Layout, subflow_info

SOL_MPTCP: Final = 284
MPTCP_INFO: Final = 1
MPTCP_TCPINFO: Final = 2
MPTCP_SUBFLOW_ADDRS: Final = 3
MPTCP_FULL_INFO: Final = 4
TCP_IS_MPTCP: Final = 43

MPTCP_INFO_BYTES: Final = 256
"""Room offered to the kernel: more than twice what it fills today."""

MPTCP_INFO_FIELDS: Final[dict[str, tuple[int, str]]] = {
    "mptcpi_subflows": (0, "B"),
    "mptcpi_add_addr_signal": (1, "B"),
    "mptcpi_add_addr_accepted": (2, "B"),
    "mptcpi_subflows_max": (3, "B"),
    "mptcpi_add_addr_signal_max": (4, "B"),
    "mptcpi_add_addr_accepted_max": (5, "B"),
    "mptcpi_flags": (8, "I"),
    "mptcpi_token": (12, "I"),
    "mptcpi_write_seq": (16, "Q"),
    "mptcpi_snd_una": (24, "Q"),
    "mptcpi_rcv_nxt": (32, "Q"),
    "mptcpi_local_addr_used": (40, "B"),
    "mptcpi_local_addr_max": (41, "B"),
    "mptcpi_csum_enabled": (42, "B"),
    "mptcpi_retransmits": (44, "I"),
    "mptcpi_bytes_retrans": (48, "Q"),
    "mptcpi_bytes_sent": (56, "Q"),
    "mptcpi_bytes_received": (64, "Q"),
    "mptcpi_bytes_acked": (72, "Q"),
    "mptcpi_subflows_total": (80, "B"),
    "mptcpi_last_data_sent": (84, "I"),
    "mptcpi_last_data_recv": (88, "I"),
    "mptcpi_last_ack_recv": (92, "I"),
}
"""Field of `struct mptcp_info`: (offset, struct format)."""

MPTCP_INFO_LAYOUT: Final = Layout(MPTCP_INFO_FIELDS)

_SUBFLOW_DATA: Final = struct.Struct("=IIII")
"""struct mptcp_subflow_data: its size, subflows there are, element size of the kernel, element size of ours."""

_FULL_INFO: Final = struct.Struct("=IIIIIIQQ")
"""struct mptcp_full_info up to mptcp_info: tcp_info sizes (kernel, ours), subflow_info sizes (kernel, ours), subflows
there are, array length of ours, addresses of the two arrays."""

_SOCKADDR_STORAGE_BYTES: Final = 128
_SUBFLOW_ADDRS_BYTES: Final = 2 * _SOCKADDR_STORAGE_BYTES
_SUBFLOW_INFO_BYTES: Final = 8 + _SUBFLOW_ADDRS_BYTES
"""struct mptcp_subflow_info: u32 id, padding to 8, local and remote sockaddr_storage."""

_SUBFLOWS_FIRST_TRY: Final = 16
"""Array length offered at first; the kernel reports when there are more."""

_NOT_THERE: Final = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL)

_libc: Final = ctypes.CDLL(None, use_errno=True)


def mptcp_info(sock: socket.socket) -> dict[str, int | None]:
    """Return `struct mptcp_info`, None for fields that this kernel does not have. Raises OSError for a socket that does
    not (or no longer) run MPTCP."""
    return MPTCP_INFO_LAYOUT.read(sock.getsockopt(SOL_MPTCP, MPTCP_INFO, MPTCP_INFO_BYTES))


def subflows(sock: socket.socket) -> tuple[SubflowInfo, ...]:
    """Return every subflow with its addresses and TCP figures, oldest first; empty where the kernel does not report
    them."""
    for read in (_full_info, _tcpinfo_and_addresses):
        try:
            return read(sock)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
    return ()


def _getsockopt(sock: socket.socket, option: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Call libc's getsockopt at SOL_MPTCP, with the buffer's content as input; return how many bytes came back."""
    length = ctypes.c_uint32(len(buffer))
    if _libc.getsockopt(sock.fileno(), SOL_MPTCP, option, buffer, ctypes.byref(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return length.value


def _full_info(sock: socket.socket) -> tuple[SubflowInfo, ...]:
    room = _SUBFLOWS_FIRST_TRY
    while True:
        flows = ctypes.create_string_buffer(room * _SUBFLOW_INFO_BYTES)
        tcp = ctypes.create_string_buffer(room * TCP_INFO_BYTES)
        request = ctypes.create_string_buffer(_FULL_INFO.size + MPTCP_INFO_BYTES)
        addresses = ctypes.addressof(flows), ctypes.addressof(tcp)
        _FULL_INFO.pack_into(request, 0, 0, TCP_INFO_BYTES, 0, _SUBFLOW_INFO_BYTES, 0, room, *addresses)
        _getsockopt(sock, MPTCP_FULL_INFO, request)
        count = _FULL_INFO.unpack_from(request)[4]
        if count <= room:
            return parse_full_info(request.raw, flows.raw, tcp.raw)
        room = count + 4


def parse_full_info(answer: bytes, flows: bytes, tcp: bytes) -> tuple[SubflowInfo, ...]:
    """Return the subflows in a `struct mptcp_full_info` and its two arrays, as the kernel filled them in."""
    tcp_kernel, tcp_user, info_kernel, info_user, count, *_ = _FULL_INFO.unpack_from(answer)
    result = []
    for index in range(count):
        # the kernel has put the distance between elements that it used where our sizes were
        info = flows[index * info_user : index * info_user + min(info_kernel, info_user)]
        figures = tcp[index * tcp_user : index * tcp_user + min(tcp_kernel, tcp_user)]
        remote = 8 + _SOCKADDR_STORAGE_BYTES
        subflow_id = int.from_bytes(info[:4], sys.byteorder)
        result.append(subflow_info(figures, _address(info[8:remote]), _address(info[remote:]), subflow_id))
    return tuple(result)


def _tcpinfo_and_addresses(sock: socket.socket) -> tuple[SubflowInfo, ...]:
    addresses = _elements(sock, MPTCP_SUBFLOW_ADDRS, _SUBFLOW_ADDRS_BYTES)
    figures = _elements(sock, MPTCP_TCPINFO, TCP_INFO_BYTES)
    return tuple(
        subflow_info(data, _address(pair[:_SOCKADDR_STORAGE_BYTES]), _address(pair[_SOCKADDR_STORAGE_BYTES:]))
        # a subflow that came or went between the two calls is left out
        for pair, data in zip(addresses, figures, strict=False)
    )


def _elements(sock: socket.socket, option: int, element_bytes: int) -> list[bytes]:
    room = _SUBFLOWS_FIRST_TRY
    while True:
        buffer = ctypes.create_string_buffer(_SUBFLOW_DATA.size + room * element_bytes)
        _SUBFLOW_DATA.pack_into(buffer, 0, _SUBFLOW_DATA.size, 0, 0, element_bytes)
        _getsockopt(sock, option, buffer)
        count = _SUBFLOW_DATA.unpack_from(buffer)[1]
        if count <= room:
            return parse_subflow_data(buffer.raw)
        room = count + 4


def parse_subflow_data(answer: bytes) -> list[bytes]:
    """Return the elements behind a `struct mptcp_subflow_data`; they lie as close as the smaller of both sides'
    sizes."""
    header_bytes, count, kernel_bytes, user_bytes = _SUBFLOW_DATA.unpack_from(answer)
    step = min(kernel_bytes, user_bytes)
    return [answer[header_bytes + i * step : header_bytes + (i + 1) * step] for i in range(count)]


def _address(storage: bytes) -> Address:
    """Return a sockaddr_storage as an Address (of a v4-mapped one the IPv4 address)."""
    if len(storage) < 8:
        return Address("", 0)
    family = int.from_bytes(storage[:2], sys.byteorder)
    port = int.from_bytes(storage[2:4], "big")
    if family == socket.AF_INET:
        return Address(socket.inet_ntop(socket.AF_INET, storage[4:8]), port)
    if family == socket.AF_INET6 and len(storage) >= 28:
        packed = storage[8:24]
        if packed[:12] == bytes(10) + b"\xff\xff":
            return Address(socket.inet_ntop(socket.AF_INET, packed[12:]), port)
        text = socket.inet_ntop(socket.AF_INET6, packed)
        scope = int.from_bytes(storage[24:28], sys.byteorder)
        return Address(f"{text}%{interface_name(scope)}" if scope else text, port)
    return Address("", port)
