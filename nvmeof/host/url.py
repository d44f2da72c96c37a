"""Targets as URLs: ``nvme+mptcp://HOST:PORT/NQN?nsid=1``, with everything that a connection can be asked for.

::

    nvme+TRANSPORT://HOST[:PORT][/NQN][?NAME=VALUE[&NAME=VALUE...]]

HOST is an IP address (IPv6 in brackets, a link-local one with its interface: ``[fe80::1%25eth0]``) or a name. Without
NQN the only subsystem that the place's discovery service names is meant. The query has ``nsid``, further paths
(``path=ADDR[:PORT]``, repeatable), ``hostnqn``, ``hostid``, ``iopolicy``, MPTCP's ``mptcp_subflow`` (repeatable),
``mptcp_fullmesh``, ``mptcp_limits`` and ``path_manager``, and the options of connecting and of recovery under the names
that they have in a program (:class:`ConnectKeywords`, :class:`RecoveryKeywords`).

A character that means something in a URL is written as ``%`` and two hexadecimal digits.

Sources: RFC 3986 (generic syntax, percent-encoding), RFC 6874 (interfaces of IPv6 addresses).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Self, TypeAlias, get_type_hints
from urllib.parse import quote, unquote_to_bytes

from nvmeof.address import Address, check_host, parse_port
from nvmeof.errors import ConfigurationError
from nvmeof.host.options import ConnectKeywords, RecoveryKeywords
from nvmeof.spec.nqn import check_nqn

Value: TypeAlias = int | float | bool | str | tuple[str, ...]

SCHEME_PREFIX: Final = "nvme+"
EXAMPLE: Final = "nvme+mptcp://192.0.2.1:4420/nqn.2026-01.org.example:disk?nsid=1"
REPEATABLE: Final = frozenset({"host_traddr", "host_iface", "mptcp_subflow"})
"""Options that may be given several times; the first two once for all paths, or once for each."""
_FURTHER: Final[Mapping[str, type]] = {
    **dict.fromkeys(("hostnqn", "hostid", "iopolicy", "mptcp_subflow", "mptcp_limits", "path_manager"), str),
    "mptcp_fullmesh": bool,
    **dict.fromkeys(("dhchap_secret", "dhchap_ctrl_secret", "tls_key", "tls_suites"), str),
    **dict.fromkeys(("tls", "tls_compat"), bool),
    "tls_identity": int,
}
"""Options that are neither of one association nor of recovery: nvme-cli's and the command line's names."""
NSID_MAX: Final = 0xFFFFFFFE

_URL = re.compile(
    r"nvme\+(?P<transport>[a-z][a-z0-9._-]*)://(?P<place>[^/?#]*)(?:/(?P<nqn>[^?#]*))?(?:\?(?P<query>.*))?"
)
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TRUE, _FALSE = ("1", "true", "yes", "on", ""), ("0", "false", "no", "off")
_NQN_SAFE = ":=,@+"
"""Characters that a NQN may have in a URL as they are, and that no shell takes for anything."""


def is_url(text: str) -> bool:
    """Return whether a text is meant as a URL: no address, file or saved name has these characters."""
    return "://" in text


@dataclass(frozen=True, slots=True)
class TargetUrl:
    """A target, or a namespace of it, as a URL names it. ``str()`` of it is the URL in its shortest form."""

    transport: str
    paths: tuple[Address, ...]
    """Where to connect, at least one; port 0 where the URL says none."""
    subnqn: str | None = None
    nsid: int | None = None
    options: Mapping[str, Value] = field(default_factory=dict)
    """Further options by name; those of :data:`REPEATABLE` are tuples."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL. Raises :class:`ConfigurationError`, one sentence that says what is wrong with it."""
        given = text.strip()
        if "#" in given:
            raise ConfigurationError(f"{text!r} has a #, which begins nothing in a target's URL: write it as %23")
        match = _URL.fullmatch(given)
        if match is None:
            raise ConfigurationError(f"{text!r} is not a target's URL{_hint(given)}: write {EXAMPLE}")
        nqn = _decode(match["nqn"] or "", "the NQN", text)
        paths = [_place(match["place"], text)]
        nsid, options = None, dict[str, Value]()
        for name, value in _query(match["query"], text):
            if name == "path":
                paths.append(Address.parse(value, 0))
                if not paths[-1].host:
                    raise ConfigurationError(f"path={value} in {text!r} is a port without an address")
            elif name in REPEATABLE:
                options[name] = (*options.get(name, ()), value)  # type: ignore[misc]
            elif name in options or (name == "nsid" and nsid is not None):
                raise ConfigurationError(f"{text!r} gives {name} twice")
            elif name == "nsid":
                nsid = _nsid(value)
            else:
                options[name] = _value(name, value, text)
        for name in ("host_traddr", "host_iface"):
            count = len(options.get(name, ()))  # type: ignore[arg-type]
            if count not in (0, 1, len(paths)):
                raise ConfigurationError(
                    f"{text!r} has {len(paths)} paths and gives {name} {count} times: give it once for all, or for each"
                )
        return cls(
            match["transport"], tuple(paths), check_nqn(nqn, "the subsystem NQN") if nqn else None, nsid, options
        )

    def __str__(self) -> str:
        query = [] if self.nsid is None else [("nsid", str(self.nsid))]
        query += [("path", _place_text(path)) for path in self.paths[1:]]
        for name, value in self.options.items():
            query += [(name, _value_text(each)) for each in (value if isinstance(value, tuple) else (value,))]
        return (
            f"{SCHEME_PREFIX}{self.transport}://{_authority(self.paths[0])}"
            + (f"/{quote(self.subnqn, safe=_NQN_SAFE)}" if self.subnqn is not None else "")
            + ("?" if query else "")
            + "&".join(f"{name}={quote(value, safe=':,')}" for name, value in query)
        )

    def keywords(self) -> dict[str, Any]:
        """Return the arguments that :func:`nvmeof.connect` takes, for a URL of one path.

        Raises :class:`ConfigurationError` where the URL has what only several paths, or paths that last, can have.
        """
        check_no_secret(self.options)
        many = [f"path={_place_text(each)}" for each in self.paths[1:]]
        many += [name for name in (*RecoveryKeywords.__annotations__, "iopolicy") if name in self.options]
        if many:
            raise ConfigurationError(f"the URL has {many[0]}, which is of a subsystem: connect with connect_multipath")
        found: dict[str, Any] = {
            name: value[0] if isinstance(value, tuple) and name != "mptcp_subflow" else value
            for name, value in self.options.items()
        }
        path = self.paths[0]
        found |= {"traddr": path.host, "transport": self.transport, "subnqn": self.subnqn}
        found["trsvcid"] = path.port or None
        return found


def check_no_secret(options: Mapping[str, Value]) -> None:
    """Refuse, in a program, where a secret comes from: that is for the command line.

    Raises :class:`ConfigurationError`.
    """
    if "dhchap_secret" in options or "dhchap_ctrl_secret" in options:
        raise ConfigurationError("the URL names a secret, which only the command line reads: give dhchap= in a program")
    if any(name.startswith("tls") for name in options):
        raise ConfigurationError("the URL asks for TLS, for which only the command line reads keys: give tls=")


def _hint(given: str) -> str:
    """Say what may have been meant by a text that is no URL of ours."""
    scheme = given.partition("://")[0]
    if scheme.lower() in ("nvme", "tcp", "mptcp"):
        return ", which begins with nvme+mptcp:// or nvme+tcp://"
    return (
        ", whose scheme is in lower case"
        if scheme.lower().startswith(SCHEME_PREFIX) and scheme != scheme.lower()
        else ""
    )


def _decode(text: str, what: str, url: str) -> str:
    """Undo the percent-encoding. Raises ConfigurationError where it is broken."""
    if _BROKEN_PERCENT.search(text):
        raise ConfigurationError(f"{what} in {url!r} has a % without two hexadecimal digits: write % as %25")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeError:
        raise ConfigurationError(f"{what} in {url!r} is not UTF-8 text behind its percent signs") from None


def _place(text: str, url: str) -> Address:
    """Read HOST[:PORT] of a URL."""
    if "@" in text:
        raise ConfigurationError(f"{url!r} has an @ before its host: a target's URL has no user")
    port = ""
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigurationError(f"{url!r} has no complete [ADDRESS]:PORT")
        address, percent, scope = inner.partition("%")
        # RFC 6874 writes %25eth0; people write %eth0
        scope = _decode(scope[2:], "the interface", url) if scope.startswith("25") and scope != "25" else scope
        host, port = check_host(f"{address}{percent}{scope}"), rest[1:]
        if ":" not in host and ":" not in address:
            raise ConfigurationError(f"{url!r} has brackets around what is no IPv6 address")
    else:
        name, colon, port = text.partition(":")
        if ":" in port:
            raise ConfigurationError(f"{url!r} has an IPv6 address without brackets: write [ADDRESS]:PORT")
        host = check_host(_decode(name, "the host", url))
        if colon and not port:
            raise ConfigurationError(f"{url!r} has no port after the colon")
    if not host:
        raise ConfigurationError(f"{url!r} names no host")
    if not port:
        return Address(host, 0)
    number = parse_port(port)
    if not number:
        raise ConfigurationError(f"{url!r} has the port 0, where nothing can be reached")
    return Address(host, number)


def _authority(path: Address) -> str:
    address, percent, scope = path.host.partition("%")
    if ":" in address:
        host = f"[{address}{'%25' if percent else ''}{quote(scope, safe='')}]"
    else:
        host = quote(path.host, safe="")
    return f"{host}:{path.port}" if path.port else host


def _place_text(path: Address) -> str:
    return str(path) if path.port else path.host


def _query(text: str | None, url: str) -> list[tuple[str, str]]:
    pairs = []
    for part in (text or "").split("&"):
        if part:
            name, _, value = part.partition("=")
            pairs.append((_decode(name, "an option", url).replace("-", "_"), _decode(value, "an option", url)))
    return pairs


@cache
def option_kinds() -> Mapping[str, type]:
    """Return the options of a URL's query beside ``nsid`` and ``path``, with the type of each one's value."""
    hints = {**get_type_hints(ConnectKeywords), **get_type_hints(RecoveryKeywords)}
    kinds = dict(_FURTHER)
    for name, hint in hints.items():
        kind = next(each for each in getattr(hint, "__args__", (hint,)) if each is not type(None))
        if kind in (bool, int, float, str):  # the others, such as credentials, are objects of a program
            kinds[name] = kind
    return kinds


def _value(name: str, text: str, url: str) -> Value:
    kind = option_kinds().get(name)
    if kind is None:
        known = ", ".join(sorted(("nsid", "path", *option_kinds())))
        raise ConfigurationError(f"{url!r} has an unknown option {name!r}; there are {known}")
    try:
        if kind is bool:
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError
            return text.lower() in _TRUE
        if kind is int:
            return int(text, 0)
        if kind is float:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
    except ValueError:
        form = {bool: "1 or 0", int: "a whole number", float: "a number"}[kind]
        raise ConfigurationError(f"{name}={text} in {url!r} is not {form}") from None
    return text


def _value_text(value: Value) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _nsid(text: str) -> int:
    try:
        nsid = int(text, 0)
    except ValueError:
        nsid = 0
    if not 1 <= nsid <= NSID_MAX:
        raise ConfigurationError(f"nsid={text} is not a namespace: give a number from 1 to {NSID_MAX}")
    return nsid
