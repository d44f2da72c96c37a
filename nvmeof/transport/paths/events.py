"""Events of the path manager and of the network, on the running event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from nvmeof.transport.base import Address, log
from nvmeof.transport.paths import interfaces, netlink
from nvmeof.transport.paths.model import PathPrivilegeError
from nvmeof.transport.paths.netlink import NetlinkSocket

EVENTS_GROUP: Final = "mptcp_pm_events"

RTM_DELLINK: Final = 17
RTM_DELADDR: Final = 21
RTMGRP_LINK: Final = 0x1
RTMGRP_IPV4_IFADDR: Final = 0x10
RTMGRP_IPV6_IFADDR: Final = 0x100

_RECEIVE_BYTES: Final = 1 << 16
_BATCH: Final = 64
"""Datagrams per turn of the loop."""


class MptcpEventType(IntEnum):
    """enum mptcp_event_type."""

    CREATED = 1
    ESTABLISHED = 2
    CLOSED = 3
    ANNOUNCED = 6
    REMOVED = 7
    SUB_ESTABLISHED = 10
    SUB_CLOSED = 11
    SUB_PRIORITY = 13
    LISTENER_CREATED = 15
    LISTENER_CLOSED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MptcpEvent:
    """An event of an MPTCP connection of this network namespace. None: not in the event."""

    type: MptcpEventType
    token: int | None = None
    local: Address | None = None
    remote: Address | None = None
    local_id: int | None = None
    remote_id: int | None = None
    backup: bool | None = None
    server_side: bool = False
    error: int | None = None


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """An interface is, or is no longer, there and up."""

    device: str
    up: bool


@dataclass(frozen=True, slots=True)
class AddressEvent:
    """An interface got or lost an address."""

    device: str
    address: str
    present: bool


class _Stream:
    """A netlink socket whose datagrams go to a callback until `close`."""

    def __init__(self, link: NetlinkSocket, lost: Callable[[], object] | None = None) -> None:
        self._link = link
        self._lost = lost
        link.socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(link.socket.fileno(), self._readable)

    def close(self) -> None:
        """Stop. Idempotent."""
        if self._link.socket.fileno() < 0:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._link.socket.fileno())
        self._link.close()

    def _readable(self) -> None:
        for _ in range(_BATCH):
            if self._link.socket.fileno() < 0:
                return
            try:
                data = self._link.socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: events were lost because they came faster than they were read
                log.info("network events were missed: %s", error.strerror)
                if self._lost is not None:
                    self._lost()
                return
            for kind, _, _, message in netlink.split(data):
                self._take(kind, message)

    def _take(self, kind: int, message: bytes) -> None:
        raise NotImplementedError


class MptcpEvents(_Stream):
    """Calls `callback` for each event of the path manager. Raises PathPrivilegeError without CAP_NET_ADMIN."""

    def __init__(self, callback: Callable[[MptcpEvent], object]) -> None:
        self._message_class = netlink.messages().pm_event
        link = NetlinkSocket(netlink.NETLINK_GENERIC)
        try:
            self._family, groups = netlink.generic_family(link, netlink.messages().FAMILY_NAME)
            link.join(groups[EVENTS_GROUP])
        except PermissionError:
            link.close()
            raise PathPrivilegeError("watching MPTCP connections", ["ip mptcp monitor"]) from None
        except BaseException:
            link.close()
            raise
        self._callback = callback
        super().__init__(link)

    def _take(self, kind: int, message: bytes) -> None:
        if kind == self._family:
            event = parse_event(netlink.decode(self._message_class, message))
            if event is not None:
                self._callback(event)


def parse_event(message: Any) -> MptcpEvent | None:
    """Parse the event in a pyroute2 message, None for a kind that a newer kernel added."""
    try:
        kind = MptcpEventType(message["cmd"])
    except ValueError:
        return None

    def get(name: str) -> Any:
        return message.get_attr(f"MPTCP_ATTR_{name}")

    def address(side: str) -> Address | None:
        host = get(f"{side}ADDR4") or get(f"{side}ADDR6")
        return Address(str(host), int(get(f"{side}PORT") or 0)) if host else None

    backup = get("BACKUP")
    return MptcpEvent(
        type=kind,
        token=get("TOKEN"),
        local=address("S"),
        remote=address("D"),
        local_id=get("LOC_ID"),
        remote_id=get("REM_ID"),
        backup=None if backup is None else bool(backup),
        server_side=bool(get("SERVER_SIDE")),
        error=get("ERROR"),
    )


class NetworkEvents(_Stream):
    """Calls `callback` for every change of links and addresses; needs no privilege.

    `lost` is called when events were missed: the whole state has to be read again.
    """

    def __init__(
        self, callback: Callable[[LinkEvent | AddressEvent], object], lost: Callable[[], object] | None = None
    ) -> None:
        self._classes = netlink.messages()
        self._callback = callback
        groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
        super().__init__(NetlinkSocket(netlink.NETLINK_ROUTE, groups), lost)

    def _take(self, kind: int, message: bytes) -> None:
        if kind in (interfaces.RTM_NEWLINK, RTM_DELLINK):
            info = netlink.decode(self._classes.ifinfmsg, message)
            name = info.get_attr("IFLA_IFNAME")
            if name:
                up = kind == interfaces.RTM_NEWLINK and interfaces.is_up(int(info["flags"]))
                self._callback(LinkEvent(str(name), up))
        elif kind in (interfaces.RTM_NEWADDR, RTM_DELADDR):
            info = netlink.decode(self._classes.ifaddrmsg, message)
            address = info.get_attr("IFA_LOCAL") or info.get_attr("IFA_ADDRESS")
            if address:
                present = kind == interfaces.RTM_NEWADDR and interfaces.usable_address(info) is not None
                self._callback(AddressEvent(netlink.device_name(int(info["index"])), str(address), present))
