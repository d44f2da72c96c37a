"""What path management talks about: paths, their flags, limits, and what is missing to manage them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Any, Final

from nvmeof.address import ip_of, is_link_local, split_scope
from nvmeof.errors import ConfigurationError, TransportError

INSTALL_HINT = "path management needs pyroute2: pip install 'nvmeof-mptcp[mptcp]'"

SUBFLOWS_MAX = 8
"""The most extra subflows, and the most endpoints, that Linux has (MPTCP_PM_ADDR_MAX)."""


class PathFlag(IntFlag):
    """Flags of an endpoint (MPTCP_PM_ADDR_FLAG_*, include/uapi/linux/mptcp_pm.h)."""

    SIGNAL = 1
    """Announced to peers, which may connect to it."""
    SUBFLOW = 2
    """Connected from, to the peer's first address."""
    BACKUP = 4
    """Used only where no path without this flag is left."""
    FULLMESH = 8
    """With SUBFLOW: connected from to every address of the peer."""
    IMPLICIT = 16
    """Made by the kernel for an address that a subflow happens to use."""
    LAMINAR = 32
    """Used for connections to announced addresses (Linux 6.18)."""

    @property
    def words(self) -> str:
        """As `ip mptcp` writes them: 'subflow backup'."""
        return " ".join(flag.name.lower() for flag in type(self) if flag & self and flag.name)


NO_FLAGS: Final = PathFlag(0)


class PathRole(Enum):
    """The use of a path."""

    SIGNAL = "signal"
    """A target's address, announced."""
    SUBFLOW = "subflow"
    """A host's address, connected from."""

    @property
    def flag(self) -> PathFlag:
        return PathFlag.SIGNAL if self is PathRole.SIGNAL else PathFlag.SUBFLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class PathEndpoint:
    """An address that the in-kernel path manager of this network namespace uses."""

    address: str
    """IPv4 or IPv6, numeric."""
    device: str | None = None
    """The network interface; without it the routing table chooses."""
    port: int | None = None
    """The port of a signalled address, if it has one."""
    flags: PathFlag = NO_FLAGS
    id: int | None = None
    """The kernel's number of it, 1 to 255; 0 stands for a connection's first address."""

    @property
    def backup(self) -> bool:
        return bool(self.flags & PathFlag.BACKUP)

    @property
    def key(self) -> tuple[str, int | None]:
        """Return the key by which the kernel distinguishes endpoints."""
        return self.address, self.port

    def command(self) -> str:
        """Return the command line with which an administrator adds the endpoint."""
        device = f" dev {self.device}" if self.device else ""
        port = f" port {self.port}" if self.port else ""
        return f"ip mptcp endpoint add {self.address}{device}{port} {self.flags.words}".rstrip()

    def __str__(self) -> str:
        return f"{self.address}%{self.device}" if self.device else self.address


@dataclass(frozen=True, slots=True)
class Limits:
    """How many extra subflows a connection may have, and how many announced addresses it may take up."""

    subflows: int
    add_addr_accepted: int

    def __post_init__(self) -> None:
        for value in (self.subflows, self.add_addr_accepted):
            if not 0 <= value <= SUBFLOWS_MAX:
                raise ConfigurationError(f"the limits of MPTCP are 0 to {SUBFLOWS_MAX}, not {value}")

    def command(self) -> str:
        """Return the command line with which an administrator sets the limits."""
        return f"ip mptcp limits set subflows {self.subflows} add_addr_accepted {self.add_addr_accepted}"

    def at_least(self, other: Limits) -> Limits:
        """Return the larger value of each limit."""
        return Limits(
            max(self.subflows, other.subflows),
            max(self.add_addr_accepted, other.add_addr_accepted),
        )


def parse_limits(text: str) -> Limits:
    """Read `SUBFLOWS,ADDRESSES`. Raises ConfigurationError."""
    numbers = text.split(",")
    if len(numbers) != 2 or not all(each.strip().isdigit() for each in numbers):
        raise ConfigurationError(f"{text!r} are no limits: give SUBFLOWS,ADDRESSES such as 8,8")
    return Limits(int(numbers[0]), int(numbers[1]))


ALL_PATHS: Final = Limits(SUBFLOWS_MAX, SUBFLOWS_MAX)
"""As many paths as the kernel takes."""


class PathPrivilegeError(TransportError):
    """CAP_NET_ADMIN is missing. `commands`: what an administrator would run to the same effect."""

    def __init__(self, what: str, commands: Iterable[str]) -> None:
        self.commands = tuple(commands)
        lines = "; ".join(self.commands)
        super().__init__(f"{what} needs the privilege CAP_NET_ADMIN: an administrator would run `{lines}`")


class PathsUnavailable(TransportError):
    """This kernel, or this installation, has no means to manage paths; the sentence says which is missing."""


@dataclass(frozen=True, slots=True)
class PathSpec:
    """A path as it was asked for: an address, and an interface where one was given."""

    address: str
    device: str | None = None
    backup: bool = False
    fullmesh: bool = False
    mark: int | None = None
    """SO_MARK of its subflows (`sockops`)."""
    congestion: str | None = None
    """Congestion control of its subflows (`sockops`)."""

    def endpoint(self, role: PathRole) -> PathEndpoint:
        """Return the path in the kernel's form. Raises ConfigurationError for flags that exclude each other, and for a
        link-local IPv6 address that is to be announced.

        ADD_ADDR (RFC 8684, section 3.4.1) carries no interface, and Linux does not connect to a link-local address
        without one (seen on 6.18: MPJoinSynTxConnectErr rises at the host, no subflow comes).
        """
        flags = role.flag
        if role is PathRole.SIGNAL and is_link_local(self.address):
            raise ConfigurationError(
                f"{self.address} is link-local: announced, it has no interface, and a host's kernel cannot connect to "
                "it; announce another address of that interface (of scope global, also fd00::/8)"
            )
        if self.backup:
            flags |= PathFlag.BACKUP
        if self.fullmesh:
            if role is PathRole.SIGNAL:
                raise ConfigurationError("fullmesh is for the addresses that a host connects from, not for a target's")
            flags |= PathFlag.FULLMESH
        return PathEndpoint(address=self.address, device=self.device, flags=flags)


def parse_path(text: str, *, fullmesh: bool = False) -> PathSpec:
    """Read `ADDR[%dev]` with `,backup`, `,fullmesh`, `,mark=N`, `,congestion=NAME` behind it.

    Raises ConfigurationError with a sentence.
    """
    where, *words = text.strip().split(",")
    address, device = split_scope(where)
    if "%" in where and not device:
        raise ConfigurationError(f"{text!r} names no interface after the %")
    parsed = ip_of(address)
    if parsed is None:
        raise ConfigurationError(
            f"{address!r} is not an IP address: a path is ADDR, ADDR%INTERFACE or 'auto', with ,backup as a flag"
        )
    if parsed.is_unspecified or parsed.is_multicast:
        raise ConfigurationError(f"{address} is not an address of one interface")
    return PathSpec(str(parsed), device or None, **{"fullmesh": fullmesh, **_words(text, words)})


def _words(text: str, words: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("backup", "fullmesh") and not equals:
            values[name] = True
        elif name == "mark" and value:
            try:
                values[name] = int(value, 0)
            except ValueError:
                raise ConfigurationError(f"{value!r} in {text!r} is no mark: give a number") from None
        elif name == "congestion" and value:
            values[name] = value
        else:
            raise ConfigurationError(
                f"{word!r} in {text!r} is nothing that a path has: backup, fullmesh, mark=N, congestion=NAME"
            )
    return values
