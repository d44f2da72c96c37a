"""The kernel's MPTCP path manager: generic netlink `mptcp_pm`, version 1 (include/uapi/linux/mptcp_pm.h).

`PathManagerSocket` has a method per command. Those for endpoints, limits and flags act on the network namespace and
the in-kernel path manager; those with a token act on one connection, which must have been made while the namespace's
path manager was the user-space one (`sysctl.set_path_manager("userspace")`, Linux 5.19).
"""

from __future__ import annotations

import ipaddress
import socket
from enum import IntEnum
from typing import Any, Final, Self

from nvmeof.transport.base import Address
from nvmeof.transport.paths import netlink
from nvmeof.transport.paths.model import Limits, PathEndpoint, PathFlag
from nvmeof.transport.paths.netlink import NLM_F_ACK, NLM_F_DUMP, NetlinkSocket, device_name

_VERSION: Final = 1
_NESTED: Final = 0x8000


class Command(IntEnum):
    """MPTCP_PM_CMD_*."""

    ADD_ADDR = 1
    DEL_ADDR = 2
    GET_ADDR = 3
    FLUSH_ADDRS = 4
    SET_LIMITS = 5
    GET_LIMITS = 6
    SET_FLAGS = 7
    ANNOUNCE = 8
    REMOVE = 9
    SUBFLOW_CREATE = 10
    SUBFLOW_DESTROY = 11


class PathManagerSocket:
    """Commands to the path manager of the network namespace that this was opened in.

    Raises PathsUnavailable without pyroute2 or where the kernel lacks it; the methods raise OSError, PermissionError
    without CAP_NET_ADMIN (reading needs no privilege, but GET_ADDR did before Linux 5.19).
    """

    def __init__(self) -> None:
        self._messages = netlink.messages()
        self._link = NetlinkSocket(netlink.NETLINK_GENERIC)
        try:
            self._family, self.groups = netlink.generic_family(self._link, self._messages.FAMILY_NAME)
        except BaseException:
            self._link.close()
            raise

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, command: Command, *attributes: tuple[Any, ...], flags: int = NLM_F_ACK) -> list[Any]:
        message = self._messages.pm_msg()
        message["cmd"], message["version"] = int(command), _VERSION
        message["attrs"] = [(f"MPTCP_PM_ATTR_{name}", *rest) for name, *rest in attributes]
        answers = self._link.request(self._family, flags, netlink.encode(message))
        return [netlink.decode(self._messages.pm_msg, data) for _, data in answers]

    # -- of the network namespace

    def endpoints(self) -> list[PathEndpoint]:
        """Return all endpoints, in the kernel's order."""
        answers = self._send(Command.GET_ADDR, flags=NLM_F_DUMP)
        found = (answer.get_attr("MPTCP_PM_ATTR_ADDR") for answer in answers)
        return [_endpoint(address) for address in found if address is not None]

    def find(self, key: tuple[str, int | None]) -> PathEndpoint | None:
        """Return the endpoint of that address and port."""
        return next((each for each in self.endpoints() if each.key == key), None)

    def add(self, endpoint: PathEndpoint) -> PathEndpoint:
        """Add an endpoint; return it with its id. Raises FileExistsError for an address that has one."""
        self._send(Command.ADD_ADDR, _address(endpoint))
        return self.find(endpoint.key) or endpoint

    def delete(self, endpoint_id: int, address: str | None = None) -> None:
        """Remove an endpoint, and close the subflows that use it in every connection of the namespace.

        Id 0 with an address closes the subflows that use it as their connection's first address; no endpoint goes.
        """
        self._send(Command.DEL_ADDR, _address(PathEndpoint(address=address or "", id=endpoint_id)))

    def set_flags(self, endpoint: PathEndpoint, flags: PathFlag) -> None:
        """Switch BACKUP and FULLMESH of an endpoint on or off: peers are notified, subflows follow at once."""
        wanted = flags & (PathFlag.BACKUP | PathFlag.FULLMESH)
        name = PathEndpoint(address=endpoint.address, port=endpoint.port, id=endpoint.id, flags=wanted)
        self._send(Command.SET_FLAGS, _address(name, always_flags=True))

    def limits(self) -> Limits:
        """Return the limits in force."""
        (answer,) = self._send(Command.GET_LIMITS, flags=0)
        return Limits(
            int(answer.get_attr("MPTCP_PM_ATTR_SUBFLOWS")), int(answer.get_attr("MPTCP_PM_ATTR_RCV_ADD_ADDRS"))
        )

    def set_limits(self, limits: Limits) -> None:
        """Set the limits of later connections and subflows."""
        self._send(Command.SET_LIMITS, ("SUBFLOWS", limits.subflows), ("RCV_ADD_ADDRS", limits.add_addr_accepted))

    # -- of one connection, with the user-space path manager

    def announce(self, token: int, local: PathEndpoint) -> None:
        """Announce a local address to the peer of a connection; `local.id` is its identifier on both sides."""
        signalled = PathEndpoint(
            address=local.address, device=local.device, port=local.port, id=local.id, flags=PathFlag.SIGNAL
        )
        self._send(Command.ANNOUNCE, _address(signalled), ("TOKEN", token))

    def remove(self, token: int, local_id: int) -> None:
        """Withdraw an announced address, and close the subflows that use it."""
        self._send(Command.REMOVE, ("TOKEN", token), ("LOC_ID", local_id))

    def subflow_create(self, token: int, local: PathEndpoint, remote: Address) -> None:
        """Open a subflow of a connection from an address of ours to one of the peer's."""
        self._send(Command.SUBFLOW_CREATE, _address(local), ("TOKEN", token), _remote(remote))

    def subflow_destroy(self, token: int, local: Address, remote: Address) -> None:
        """Close the subflow of a connection that runs between these addresses and ports."""
        name = PathEndpoint(address=local.host.partition("%")[0], port=local.port)
        self._send(Command.SUBFLOW_DESTROY, _address(name), ("TOKEN", token), _remote(remote))

    def subflow_backup(self, token: int, local: Address, remote: Address, backup: bool) -> None:
        """Set the backup flag of one subflow of a connection (SET_FLAGS with a token, Linux 5.19)."""
        flags = PathFlag.BACKUP if backup else PathFlag(0)
        name = PathEndpoint(address=local.host.partition("%")[0], port=local.port, flags=flags)
        self._send(Command.SET_FLAGS, _address(name, always_flags=True), ("TOKEN", token), _remote(remote))


def _address(endpoint: PathEndpoint, *, name: str = "ADDR", always_flags: bool = False) -> tuple[Any, ...]:
    attributes: list[tuple[str, Any]] = []

    def put(attribute: str, value: Any) -> None:
        attributes.append((f"MPTCP_PM_ADDR_ATTR_{attribute}", value))

    if endpoint.address:
        version = ipaddress.ip_address(endpoint.address).version
        put("FAMILY", int(socket.AF_INET if version == 4 else socket.AF_INET6))
        put(f"ADDR{version}", endpoint.address)
    if endpoint.id is not None:
        put("ID", endpoint.id)
    if endpoint.port:
        put("PORT", endpoint.port)
    if endpoint.flags or always_flags:
        put("FLAGS", int(endpoint.flags))
    if endpoint.device is not None:
        try:
            put("IF_IDX", socket.if_nametoindex(endpoint.device))
        except OSError as error:
            raise OSError(error.errno, f"there is no network interface {endpoint.device!r}") from None
    return name, {"attrs": attributes}, _NESTED


def _remote(address: Address) -> tuple[Any, ...]:
    return _address(PathEndpoint(address=address.host.partition("%")[0], port=address.port), name="ADDR_REMOTE")


def _endpoint(message: Any) -> PathEndpoint:
    index = message.get_attr("MPTCP_PM_ADDR_ATTR_IF_IDX")
    address = message.get_attr("MPTCP_PM_ADDR_ATTR_ADDR4") or message.get_attr("MPTCP_PM_ADDR_ATTR_ADDR6")
    return PathEndpoint(
        address=str(address),
        device=device_name(index) if index else None,
        port=message.get_attr("MPTCP_PM_ADDR_ATTR_PORT") or None,
        flags=PathFlag(message.get_attr("MPTCP_PM_ADDR_ATTR_FLAGS") or 0),
        id=message.get_attr("MPTCP_PM_ADDR_ATTR_ID"),
    )
