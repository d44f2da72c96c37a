"""Netlink with pyroute2's messages over a socket of our own.

pyroute2's sockets bring an event loop along: its synchronous ones refuse to work while one runs, its asynchronous
ones do not work on uvloop ("cannot open a UDP handle, invalid family 16"). The kernel answers these requests within
the system call, so that a plain blocking socket serves on every loop (measured: 40-90 us for a request and its
decoded answer). pyroute2 is imported on first use.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final, Self

from nvmeof.transport.paths.model import INSTALL_HINT, PathsUnavailable

NETLINK_ROUTE: Final = 0
NETLINK_SOCK_DIAG: Final = 4
NETLINK_GENERIC: Final = 16
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_EXT_ACK: Final = 11

NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLM_F_DUMP: Final = 0x300
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
GENL_ID_CTRL: Final = 16
CTRL_CMD_GETFAMILY: Final = 3
NLMSGERR_ATTR_MSG: Final = 1

_HEADER: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_RECEIVE_BYTES: Final = 1 << 16
_ANSWER_SECONDS: Final = 5.0
_TYPE_MASK: Final = 0x3FFF
"""Without NLA_F_NESTED and NLA_F_NET_BYTEORDER."""


def messages() -> ModuleType:
    """Return the message declarations. Raises PathsUnavailable where pyroute2 is not installed."""
    try:
        return importlib.import_module("nvmeof.transport.paths.messages")
    except ImportError:
        raise PathsUnavailable(INSTALL_HINT) from None


def available() -> bool:
    """Return whether pyroute2 is installed."""
    try:
        messages()
    except PathsUnavailable:
        return False
    return True


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the attributes (type, payload) that lie one after the other in `data`."""
    view = memoryview(data)
    while len(view) >= 4:
        length, kind = _ATTRIBUTE.unpack_from(view)
        if length < 4:
            return
        yield kind & _TYPE_MASK, view[4:length]
        view = view[(length + 3) & ~3 :]


def attribute(kind: int, payload: bytes) -> bytes:
    """Build one attribute, padded."""
    return (_ATTRIBUTE.pack(len(payload) + 4, kind) + payload).ljust((len(payload) + 7) & ~3, b"\0")


class NetlinkSocket:
    """One netlink socket; `request` waits for the kernel, which answers at once. Not thread-safe."""

    def __init__(self, protocol: int, groups: int = 0) -> None:
        try:
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        except OSError as error:
            raise PathsUnavailable(f"this kernel has no netlink of kind {protocol}: {error.strerror}") from None
        try:
            self.socket.bind((0, groups))
            self.socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self.socket.settimeout(_ANSWER_SECONDS)
        except BaseException:
            self.socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """Send a message of type `kind`; the answers as (type, whole message with its header).

        Raises OSError with the kernel's code and, where it gave one, its explanation.
        """
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0)
        self.socket.send(header + body)
        return list(self._answers(bool(flags & NLM_F_DUMP), bool(flags & NLM_F_ACK)))

    def _answers(self, dump: bool, acked: bool) -> Iterator[tuple[int, bytes]]:
        while True:
            data = self.socket.recv(_RECEIVE_BYTES)
            for kind, flags, sequence, message in split(data):
                if sequence != self._sequence:
                    continue  # left over from a request that was given up
                if kind == NLMSG_ERROR:
                    raise_error(message, flags)
                    return
                if kind == NLMSG_DONE:
                    return
                yield kind, message
                if not dump and not acked:
                    return

    def join(self, group: int) -> None:
        """Receive what is multicast to `group`. Raises OSError."""
        self.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the messages of a datagram: type, flags, sequence number, the message with its header."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[at : at + length]
        at += (length + 3) & ~3


def raise_error(message: bytes, flags: int) -> None:
    """Raise the error of an NLMSG_ERROR; return when it is an acknowledgement."""
    code = -int(struct.unpack_from("=i", message, _HEADER.size)[0])
    if not code:
        return
    text = os.strerror(code)
    if flags & NLM_F_ACK_TLVS:
        echoed = _HEADER.size if flags & NLM_F_CAPPED else struct.unpack_from("=I", message, _HEADER.size + 4)[0]
        for kind, payload in attributes(message[_HEADER.size + 4 + ((echoed + 3) & ~3) :]):
            if kind == NLMSGERR_ATTR_MSG:
                text = bytes(payload).rstrip(b"\0").decode("utf-8", "replace")
    raise OSError(code, text)


def encode(message: Any) -> bytes:
    """Encode a pyroute2 message as bytes, without the header, which `request` writes."""
    message.encode()
    return bytes(message.data[_HEADER.size :])


def decode(message_class: Any, data: bytes) -> Any:
    """Decode a received message (with its header) as an instance of a pyroute2 class."""
    message = message_class(data)
    message.decode()
    return message


def generic_family(link: NetlinkSocket, name: str) -> tuple[int, dict[str, int]]:
    """Return number and multicast groups of a generic netlink family. Raises PathsUnavailable where it does not
    exist."""
    request = messages().ctrlmsg()
    request["cmd"], request["version"] = CTRL_CMD_GETFAMILY, 1
    request["attrs"] = [("CTRL_ATTR_FAMILY_NAME", name)]
    try:
        answers = link.request(GENL_ID_CTRL, 0, encode(request))
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise PathsUnavailable(f"this kernel has no MPTCP path manager (generic netlink {name!r})") from None
        raise
    answer = decode(messages().ctrlmsg, answers[0][1])
    groups = {
        str(each.get_attr("CTRL_ATTR_MCAST_GRP_NAME")): int(each.get_attr("CTRL_ATTR_MCAST_GRP_ID"))
        for each in answer.get_attr("CTRL_ATTR_MCAST_GROUPS") or ()
    }
    return int(answer.get_attr("CTRL_ATTR_FAMILY_ID")), groups


def device_name(index: int) -> str:
    """Return the name of the interface of that number; '#7' where it was removed."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"#{index}"
