"""Addresses as text: reading and writing ``HOST:PORT``, ports, and the scope (interface) of link-local addresses.

Nothing here looks anything up. A *host* is an IP address (with ``%INTERFACE`` behind a link-local one), a name, or a
label of the memory transport. Spellings that one program reads as one address and the next as another are refused:
numbers that old C libraries take for IPv4 addresses (``127.1``, ``4560``, ``010.0.0.1``), and IPv6 addresses with a
port but without brackets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from nvmeof.errors import ConfigurationError

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

WILDCARD_NAMES: Final = ("", "*")
"""Every address of both families, where something is listened on."""

_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
"""A part that inet_aton(3) takes for a number."""
_TOGETHER: Final = re.compile(r"(\[[^\[\]]+\]|[^:\[\]]+):([0-9]+)")
"""A host with a port behind it."""
_PORT_DIGITS: Final = 32
"""More digits than a port can be written with; Python refuses to convert very long numbers."""


def parse_port(text: str | int) -> int:
    """Read a port: decimal, or hexadecimal with 0x, from 0 to 65535. Raises ConfigurationError."""
    if isinstance(text, int):
        number: int | None = text
    else:
        number = None
        digits = text.strip()
        if digits.isascii() and len(digits) <= _PORT_DIGITS:
            if digits.isdigit():
                number = int(digits)
            elif _NUMBER.fullmatch(digits) and len(digits) > 2:
                number = int(digits, 16)
    if number is None or not 0 <= number <= 65535:
        raise ConfigurationError(f"{text!r} is not a port: give a number from 0 to 65535")
    return number


def strip_brackets(host: str) -> str:
    """Take off the brackets of an IPv6 address: `[::1]` and `::1` are the same host."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def split_scope(host: str) -> tuple[str, str]:
    """Split `fe80::1%eth0` into address and interface; the second is empty where none is given."""
    address, _, scope = strip_brackets(host).partition("%")
    return address, scope


def ip_of(host: str) -> IpAddress | None:
    """Return the IP address of a host, without its scope, and as IPv4 where it is mapped into IPv6; None for a name."""
    try:
        address = ipaddress.ip_address(split_scope(host)[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_wildcard(host: str) -> bool:
    """Return whether a listener's host stands for every address: of IPv4 (`0.0.0.0`), or of both families (`::`, `*`,
    '')."""
    address = ip_of(host)
    return host in WILDCARD_NAMES if address is None else address.is_unspecified


def is_loopback(host: str) -> bool:
    """Return whether a host is reached only from this machine."""
    address = ip_of(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def is_link_local(host: str) -> bool:
    """Return whether a host is an IPv6 link-local address (fe80::/10), which is valid on one link only."""
    if ":" not in host:
        return False
    address = ip_of(host)
    return address is not None and address.version == 6 and address.is_link_local


def with_scope(host: str, interface: str) -> str:
    """Give a link-local address an interface of this machine, in place of any other; what is none stays as it is."""
    return f"{split_scope(host)[0]}%{interface}" if interface and is_link_local(host) else host


def check_host(host: str) -> str:
    """Return the host without brackets and, where it is IPv4 mapped into IPv6, as IPv4. Raises ConfigurationError."""
    bare = strip_brackets(host)
    text, percent, scope = bare.partition("%")
    address = ip_of(text)
    if address is None:
        _check_name(host, bare)
    elif percent and not is_link_local(text):
        raise ConfigurationError(
            f"{host!r} has an interface behind an address that is not link-local (fe80::/10): leave %{scope} away"
        )
    elif percent and not scope:
        raise ConfigurationError(f"{host!r} names no interface after the %")
    if address is None:
        return bare
    return f"{address}%{scope}" if scope else str(address)


def _check_name(host: str, bare: str) -> None:
    """Refuse a host that is no IP address and cannot be a name either."""
    if all(_NUMBER.fullmatch(part) for part in bare.removesuffix(".").split(".")):
        raise ConfigurationError(
            f"{host!r} is not an IPv4 address: write four decimal numbers without leading zeros, such as 192.0.2.1"
        )
    together = _TOGETHER.fullmatch(bare)
    if together:
        name, port = strip_brackets(together[1]), together[2]
        raise ConfigurationError(f"{host!r} is not a host: give the address {name} and the port {port} apart")
    if ":" in bare or "[" in bare or "]" in bare:
        raise ConfigurationError(f"{host!r} is not an IPv6 address")
    if "%" in bare:
        raise ConfigurationError(f"{host!r} is not an address: only IPv6 link-local ones have an interface after a %")


@dataclass(frozen=True, slots=True)
class Address:
    """A transport address: `host` (numeric, a name, or a label for memory) and `port` 0..65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, default_port: int = 4420) -> Address:
        """Read `1.2.3.4:4420`, `[::1]:4420`, `::1`, `fe80::1%eth0`, `name`; `4420` and `:4420` are a port alone.

        A port alone has the host '', which listens on every address of both families. Raises ConfigurationError, one
        sentence.
        """
        given = text.strip()
        if not given:
            raise ConfigurationError("an empty text is no address: write * for every address of this machine")
        if _NUMBER.fullmatch(given):
            return cls("", parse_port(given))
        host, port_text = _split(given)
        if not host and given.startswith("["):
            raise ConfigurationError(f"{text!r} has no address in its brackets")
        host = check_host(host)
        if port_text is None:
            return cls(host, default_port)
        if not port_text:
            raise ConfigurationError(f"{text!r} has no port after the colon")
        try:
            return cls(host, parse_port(port_text))
        except ConfigurationError:
            raise ConfigurationError(
                f"{port_text!r} in {text!r} is not a port: give a number from 0 to 65535"
            ) from None


def _split(text: str) -> tuple[str, str | None]:
    """Split an address into host and port (None: no port). Raises ConfigurationError for an address that cannot be
    split."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigurationError(f"{text!r} is not an address: an IPv6 address is written [ADDRESS]:PORT")
        return host, rest[1:] if rest else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    if ":" in text and (ip_of(text) is None or ":" in split_scope(text)[1]):
        raise ConfigurationError(f"{text!r} is not an IPv6 address; with a port it is written [ADDRESS]:PORT")
    return text, None
