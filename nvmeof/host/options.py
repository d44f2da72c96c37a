"""What a host can ask for when it connects: one frozen dataclass, named after nvme-cli's options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import ceil, isfinite
from typing import TypedDict, cast
from uuid import UUID

from nvmeof.address import check_host, ip_of
from nvmeof.errors import ConfigurationError
from nvmeof.security.dhchap_host import HostCredentials
from nvmeof.security.tls.credentials import TlsCredentials

QUEUE_SIZE_MIN = 2
QUEUE_SIZE_MAX = 4096
ADMIN_QUEUE_ENTRIES = 32
"""Entries of an admin queue over fabrics: what the specification sets as the minimum, and what hosts use."""


class ConnectKeywords(TypedDict, total=False):
    """The keyword arguments of :func:`nvmeof.connect` beyond address, name and identity; see ConnectOptions."""

    nr_io_queues: int
    queue_size: int
    keep_alive_tmo: float
    hdr_digest: bool
    data_digest: bool
    disable_sqflow: bool
    host_traddr: str | None
    host_iface: str | None
    tos: int | None
    mark: int | None
    congestion: str | None
    sndbuf_bytes: int | None
    rcvbuf_bytes: int | None
    discovery: bool
    io_timeout: float
    admin_timeout: float
    connect_timeout: float
    abort_first: bool
    dhchap: HostCredentials | None
    tls: TlsCredentials | None
    concat: bool
    hpda_bytes: int
    maxr2t: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """One association, and the transport options of its queues.

    Raises :class:`ConfigurationError`, one sentence, for a value that cannot be used.
    """

    traddr: str
    """IP address, a link-local one with its interface (``fe80::1%eth0``), or host name."""
    trsvcid: int = 4420
    transport: str = "tcp"
    subnqn: str
    hostnqn: str
    hostid: UUID
    nr_io_queues: int = 1
    queue_size: int = 128
    """Entries per I/O queue; one entry less can be outstanding."""
    keep_alive_tmo: float = 5.0
    """KATO in seconds; 0 switches keep-alive off."""
    hdr_digest: bool = False
    data_digest: bool = False
    disable_sqflow: bool = False
    """Ask for queues without SQ flow control, which lets a controller leave out completions of good reads."""
    host_traddr: str | None = None
    host_iface: str | None = None
    tos: int | None = None
    mark: int | None = None
    """SO_MARK of the queues' sockets."""
    congestion: str | None = None
    """TCP congestion control of the queues' sockets."""
    sndbuf_bytes: int | None = None
    """SO_SNDBUF of the queues' sockets; None: the kernel adapts it to the path."""
    rcvbuf_bytes: int | None = None
    """SO_RCVBUF of the queues' sockets; None: the kernel adapts it to the path."""
    discovery: bool = False
    """A connection to a discovery subsystem: no I/O queues, and no keep-alive unless it is persistent."""
    io_timeout: float = 30.0
    """Seconds that an I/O command may take; then the association is given up, as in Linux."""
    admin_timeout: float = 30.0
    """The same for commands of the admin queue."""
    abort_first: bool = False
    """Abort a command that has not been answered in time, and give the association up after as much time again."""
    dhchap: HostCredentials | None = None
    """What the host authenticates itself with where a controller demands it, and what controllers have to prove."""
    tls: TlsCredentials | None = None
    """The key for TLS 1.3 on every queue; None: connections are not encrypted."""
    concat: bool = False
    """Secure channel concatenation: authenticate in clear with ``dhchap``, then use TLS with the key that it makes."""
    connect_timeout: float = 10.0
    """Seconds for a connection, its handshake and its Connect command."""
    hpda_bytes: int = 4
    """Alignment that the host asks for in C2HData payloads."""
    maxr2t: int = 1
    """R2Ts that a controller may have outstanding per command."""

    def __post_init__(self) -> None:
        if not self.traddr:
            raise ConfigurationError("an address is needed")
        for host in (self.traddr, self.host_traddr):
            if host:
                check_host(host)
        _within("port", self.trsvcid, 1, 65535)
        _within("number of I/O queues", self.nr_io_queues, 0 if self.discovery else 1, 65535)
        _within("queue size", self.queue_size, QUEUE_SIZE_MIN, QUEUE_SIZE_MAX)
        _within("keep-alive timeout", self.keep_alive_tmo, 0, 0xFFFFFFFF // 1000)
        for name in ("io_timeout", "admin_timeout", "connect_timeout"):
            seconds = getattr(self, name)
            if not isinstance(seconds, int | float) or not seconds > 0:
                raise ConfigurationError(f"{name} must be a number of seconds, more than 0, not {seconds!r}")
        if self.concat and self.tls is not None:
            raise ConfigurationError("TLS has a key of its own, or one that authentication makes: give tls or concat")
        if self.concat and self.dhchap is None:
            raise ConfigurationError("concat makes the TLS key of an authentication: give the host's secret (dhchap)")
        if self.tos is not None:
            _within("type of service", self.tos, 0, 255)

    def same_path(self, other: ConnectOptions) -> bool:
        """Return whether a connection with `other` would use the path of this one. A path is identified by the
        transport, the target's address and port, the subsystem, the host's name and identifier, and the local address
        and interface, where not giving one is different from giving any: the rule of Linux (``nvmf_ip_options_match``,
        drivers/nvme/host/fabrics.c) with the transport added, as the MPTCP series does. Other than there, IP addresses
        are compared by value and host names without regard to case.
        """
        return self._path() == other._path()

    def _path(self) -> tuple[object, ...]:
        return (
            self.transport,
            _address(self.traddr),
            self.trsvcid,
            self.subnqn,
            self.hostnqn,
            self.hostid,
            None if self.host_traddr is None else _address(self.host_traddr),
            self.host_iface,
        )

    def given(self) -> frozenset[str]:
        """Return the names of the options that differ from their defaults (for a device's required and allowed
        options)."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) != f.default)

    def with_changes(self, **changes: object) -> ConnectOptions:
        """Return a copy with some options changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


class RecoveryKeywords(TypedDict, total=False):
    """The keyword arguments for recovery; see RecoveryOptions."""

    reconnect_delay: float
    ctrl_loss_tmo: float
    fast_io_fail_tmo: float | None
    quiesce_tmo: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryOptions:
    """What a path does after the loss of its association: nvme-cli's names, defaults and meanings, in seconds.

    Raises :class:`ConfigurationError`, one sentence, for a value that cannot be used.
    """

    reconnect_delay: float = 10.0
    """Between the loss and the first attempt to reconnect, and between attempts."""
    ctrl_loss_tmo: float = 600.0
    """How long attempts go on, in whole reconnect delays; then the path is removed. -1: for ever, 0: none."""
    fast_io_fail_tmo: float | None = None
    """From the loss until commands that wait for the path fail, while attempts go on; None: not before the removal."""
    quiesce_tmo: float | None = None
    """How long after the loss a write of unknown outcome waits before it is sent again, whatever the controller says.
    None: by its Command Quiesce Time, and not at all where it reports none (CQT 0). Linux never waits, which is 0."""

    def __post_init__(self) -> None:
        _seconds("reconnect_delay", self.reconnect_delay, above=0)
        if self.ctrl_loss_tmo != -1:
            _seconds("ctrl_loss_tmo", self.ctrl_loss_tmo, remark=", or -1 for ever")
        if self.fast_io_fail_tmo is not None:
            _seconds("fast_io_fail_tmo", self.fast_io_fail_tmo, remark=", or None for off")
        if self.quiesce_tmo is not None:
            _seconds("quiesce_tmo", self.quiesce_tmo, remark=", or None for what the controller says")

    @property
    def max_reconnects(self) -> int | None:
        """Attempts in a row until the path is removed, counted as by ``nvmf_parse_options`` of Linux; None: no end."""
        return None if self.ctrl_loss_tmo < 0 else ceil(self.ctrl_loss_tmo / self.reconnect_delay)


def _seconds(name: str, value: object, *, above: float | None = None, remark: str = "") -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not number or (cast(float, value) < 0 if above is None else cast(float, value) <= above):
        least = "0 or more" if above is None else f"more than {above:g}"
        raise ConfigurationError(f"{name} must be a number of seconds, {least}{remark}, not {value!r}")


def distinct_paths(candidates: Iterable[ConnectOptions]) -> list[ConnectOptions]:
    """Return the candidates in their order, only the first for each path."""
    found: list[ConnectOptions] = []
    for each in candidates:
        if not any(each.same_path(other) for other in found):
            found.append(each)
    return found


def _address(text: str) -> str:
    """Return one spelling per address: shortest form of an IP address, IPv4 for IPv4 mapped into IPv6, names in lower
    case."""
    host = check_host(text)
    return host.lower().removesuffix(".") if ip_of(host) is None else host


def _within(what: str, value: float, low: int, high: int) -> None:
    if not isinstance(value, int | float):
        raise ConfigurationError(f"the {what} is a number from {low} to {high}, not {value!r}")
    if not low <= value <= high:
        raise ConfigurationError(f"the {what} must be between {low} and {high}, not {value}")
