"""What every transport has in common: addresses, options, endpoints, listeners, figures, and the registry.

An endpoint is a non-blocking byte stream that this package owns: `recv_into` and `sendmsg` go straight to the kernel
and return how much it took; readiness comes through `set_reader` and `set_writer` on the running loop. Nothing here
knows what the bytes mean, and nothing above may assume a file descriptor: `fileno()` is -1 where there is none.

The registry follows the kernel's own (`nvmet_register_transport`): a transport has a name and a TRTYPE code and knows
how to listen and to connect. Third parties add theirs through the entry-point group `nvmeof.transports`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from nvmeof.address import Address as Address
from nvmeof.errors import ConfigurationError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""A buffer that is sent without a copy."""

ENTRY_POINT_GROUP = "nvmeof.transports"

log = logging.getLogger("nvmeof.transport")


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """Options of sockets, for a host or a target: ``SocketOptions(congestion="cubic", tos=0x10)``.

    An option that is None keeps the system's value. TCP_NODELAY is always on. Raises
    :class:`~nvmeof.errors.ConfigurationError` for a value out of range.
    """

    host_traddr: str | None = None
    """Local address to connect from."""
    host_iface: str | None = None
    """Network interface to bind to (SO_BINDTODEVICE), for connecting and for listening."""
    tos: int | None = None
    """Type of service, 0..255: IP_TOS, and IPV6_TCLASS on IPv6."""
    priority: int | None = None
    """SO_PRIORITY; values above 6 need CAP_NET_ADMIN."""
    mark: int | None = None
    """SO_MARK for routing rules and traffic control, on all subflows; needs CAP_NET_ADMIN."""
    congestion: str | None = None
    """Name of a congestion control that the kernel offers, for instance 'cubic'."""
    sndbuf_bytes: int | None = None
    """SO_SNDBUF; memory: how many bytes this end may have under way."""
    rcvbuf_bytes: int | None = None
    """SO_RCVBUF, set before connecting or listening so that the window can follow."""
    connect_timeout_seconds: float = 10.0
    """For all addresses of a name together."""
    backlog: int = 1024
    """Connections that may wait to be accepted (the kernel caps it at net.core.somaxconn)."""
    ipv6_only: bool = False
    """Listen on `::` for IPv6 alone, when another process listens on 0.0.0.0 with the same port."""

    def __post_init__(self) -> None:
        if self.tos is not None and not 0 <= self.tos <= 255:
            raise ConfigurationError(f"the type of service {self.tos} is not between 0 and 255")
        if self.mark is not None and not 0 <= self.mark <= 0xFFFFFFFF:
            raise ConfigurationError(f"the mark {self.mark} is not between 0 and {0xFFFFFFFF}")
        if self.priority is not None and self.priority < 0:
            raise ConfigurationError(f"the socket priority {self.priority} is negative")
        for name in ("sndbuf_bytes", "rcvbuf_bytes"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 0x3FFFFFFF:
                raise ConfigurationError(f"{name} {value} is not between 1 and {0x3FFFFFFF}")
        if not self.connect_timeout_seconds > 0:
            raise ConfigurationError(f"a connect timeout of {self.connect_timeout_seconds} s leaves no time to connect")
        if self.backlog < 1:
            raise ConfigurationError(f"a backlog of {self.backlog} would accept no connection")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubflowInfo:
    """One TCP flow of a connection: the only one of plain TCP, one of several of MPTCP. None: not known here.

    Figures are those of the kernel's `struct tcp_info` (include/uapi/linux/tcp.h), in the units of the names.
    """

    id: int | None = None
    """The kernel's number of the subflow in its connection (MPTCP_FULL_INFO), None where it does not say."""
    local: Address
    peer: Address
    state: str = "UNKNOWN"
    """TCP state: ESTABLISHED, CLOSE_WAIT, ..."""
    bytes_sent: int | None = None
    """Payload with retransmissions."""
    bytes_acked: int | None = None
    bytes_received: int | None = None
    bytes_retransmitted: int | None = None
    retransmits: int | None = None
    """Segments sent again in the life of the flow."""
    lost_segments: int | None = None
    unacked_segments: int | None = None
    rtt_us: int | None = None
    rttvar_us: int | None = None
    min_rtt_us: int | None = None
    cwnd_segments: int | None = None
    mss_bytes: int | None = None
    delivery_rate_bytes_per_second: int | None = None
    last_data_sent_ms: int | None = None
    """Milliseconds since data went out last; since the flow began when none did."""
    last_data_received_ms: int | None = None
    last_ack_received_ms: int | None = None
    """Milliseconds since the peer last acknowledged something: detects a dead path."""
    timeouts: int | None = None
    """Retransmission timeouts in a row that nothing has answered yet."""
    backup: bool | None = None
    """MPTCP: used only where no regular subflow is left. Read by `paths.diag.with_diag` only, as `congestion` is."""
    congestion: str | None = None
    """Congestion control of this flow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionInfo:
    """The facts of one connection, as the kernel reported them when `describe()` was called."""

    transport: str
    """The transport that was asked for: 'tcp', 'mptcp', 'memory', ..."""
    protocol: str
    """The protocol in use now: 'mptcp', 'tcp', 'memory', ... A connection can fall back in mid-life."""
    fallback: bool = False
    """True where `protocol` is less than what `transport` asked for."""
    fallback_reason: str | None = None
    local: Address
    peer: Address
    closed: bool = False
    """True: closed by us; the figures are those last read, if any."""
    tls: str | None = None
    """The cipher suite of TLS; None where the connection is not encrypted. The figures are those of the encrypted
    bytes."""
    congestion: str | None = None
    nodelay: bool | None = None
    token: int | None = None
    """MPTCP's local token of the connection."""
    subflows: tuple[SubflowInfo, ...] = ()
    bytes_sent: int | None = None
    """Payload bytes that went out, each counted once: without retransmissions, whatever the number of subflows."""
    bytes_received: int | None = None
    retransmits: int | None = None
    """TCP segments sent again, all subflows together."""
    mptcp_retransmits: int | None = None
    """MPTCP-level retransmissions: data given to another subflow."""
    rtt_us: int | None = None
    """Smoothed round-trip time; with several subflows that of the fastest."""
    sndbuf_bytes: int | None = None
    rcvbuf_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers, for JSON; addresses as text."""
        result: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "subflows":
                value = [
                    {f.name: _plain(getattr(subflow, f.name)) for f in dataclasses.fields(subflow)} for subflow in value
                ]
            result[field.name] = _plain(value)
        return result


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Address) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerInfo:
    """The facts of a listener, as `Listener.describe()` returns them."""

    transport: str
    protocol: str
    fallback: bool = False
    fallback_reason: str | None = None
    address: Address
    accepted: int = 0
    """Connections accepted so far."""
    paused: bool = False
    """True: not accepting for a moment, for want of descriptors or memory."""
    closed: bool = False


class Turns(Protocol):
    """Scheduler of work that takes more of the event loop's time than reading and writing."""

    clock: Callable[[], float]

    @property
    def open(self) -> bool:
        """Whether such work may be done at once."""
        ...

    def spend(self, seconds: float) -> None:
        """Take note of work that was done at once."""
        ...

    def add(self, owner: Hashable, work: Callable[[], object]) -> None:
        """Call ``work`` in a turn of the loop to come, when it is the owner's turn."""
        ...


class Endpoint(ABC):
    """A non-blocking byte stream with one peer. Not thread-safe: it belongs to the loop it is used on.

    `recv_into(buffer) -> int`, `recv_both(buffer, behind) -> int` and `sendmsg(buffers) -> int` are attributes, so that
    a socket's own methods can stand there with nothing in between. `recv_into` gives 0 at the end of the stream;
    `recv_both` goes on in a second buffer when the first is full, and an endpoint may do without that. `sendmsg`
    returns how many bytes were taken, in the order given, perhaps fewer than there are; of a longer list only the first
    IOV_MAX buffers are offered. Both raise BlockingIOError when they would have to wait, and OSError for a broken
    connection (mostly a ConnectionError; also TimeoutError and EHOSTUNREACH). After `close` or `abort` they raise
    ConnectionAbortedError.
    """

    recv_into: Callable[[memoryview | bytearray], int]
    recv_both: Callable[[memoryview, memoryview], int]
    sendmsg: Callable[[Sequence[Buffer]], int]
    local_address: Address
    peer_address: Address
    transport_name: str

    @abstractmethod
    def fileno(self) -> int:
        """Return the file descriptor, or -1 where there is none (memory, closed)."""

    def available(self) -> int:
        """Return a lower bound of the bytes that one `recv_into` would give now; 0 also where that is unknown."""
        return 0

    @abstractmethod
    def set_reader(self, callback: Callable[[], object] | None) -> None:
        """Call back on the running loop whenever there is something to read (also EOF or an error); None: stop."""

    @abstractmethod
    def set_writer(self, callback: Callable[[], object] | None) -> None:
        """Call back on the running loop whenever something can be written (also after an error); None: stop."""

    @abstractmethod
    def shutdown(self) -> None:
        """Stop sending: the peer sees the end of the stream after what was sent. Reading goes on."""

    @abstractmethod
    def close(self) -> None:
        """Close in order: what `sendmsg` took is still delivered, then the peer sees the end. Idempotent."""

    @abstractmethod
    def abort(self) -> None:
        """Drop the connection at once (a reset for the peer). Idempotent."""

    @abstractmethod
    def describe(self) -> ConnectionInfo:
        """Return figures and facts, read again at each call."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """True after `close` or `abort`."""

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<{type(self).__name__} {self.transport_name} {self.local_address} peer {self.peer_address}{state}>"


class Listener(ABC):
    """One listening address; `address` has the real port.

    `turns`, where set, shares out the loop's time: connections are accepted one by one in turn with other work. A
    listener may ignore it.
    """

    address: Address
    turns: Turns | None = None

    @abstractmethod
    def close(self) -> None:
        """Stop listening; connections already accepted live on. Idempotent."""

    def hold(self) -> None:  # noqa: B027 - optional for a listener
        """Accept nothing until `go_on`: connections wait in the kernel, and none is refused. Idempotent."""

    def go_on(self) -> None:  # noqa: B027 - optional for a listener
        """Accept again after `hold`."""

    @abstractmethod
    def describe(self) -> ListenerInfo:
        """Return the facts of this listener."""


class Transport(ABC):
    """A way to carry a queue's bytes. `trtype` is the code of Discovery log entries (NVMe Base, TRTYPE).

    `plain_tcp`: a peer that knows nothing but TCP can connect to a listener of this transport. `announces`: a listener
    can announce further addresses to its peers, in the connections that are open.
    """

    name: str
    trtype: int
    plain_tcp: bool = False
    announces: bool = False

    @abstractmethod
    async def listen(
        self, host: str, port: int, options: SocketOptions, accepted: Callable[[Endpoint], None]
    ) -> list[Listener]:
        """Listen on every address of `host`; port 0 picks one, the same for all of them.

        `accepted` is called on the running loop for each connection. Raises TransportError with a sentence.
        """

    @abstractmethod
    async def connect(self, host: str, port: int, options: SocketOptions) -> Endpoint:
        """Connect to the first address of `host` that answers. Raises TransportError with a sentence."""


def say_dropped(peer: Address, error: Exception) -> None:
    """Log that the callback of a new connection failed; the listener goes on."""
    log.error("a new connection from %s was dropped: %s: %s", peer, type(error).__name__, error)
    log.debug("where that happened", exc_info=error)


_transports: dict[str, Transport] = {}
_plugins_loaded = False


def register(transport: Transport) -> None:
    """Add a transport. Raises ConfigurationError when its name or TRTYPE code is taken."""
    if transport.name in _transports:
        raise ConfigurationError(f"a transport named {transport.name!r} is registered already")
    _check_code(transport.name, transport.trtype)
    _transports[transport.name] = transport


def get(name: str | int) -> Transport:
    """Return the transport of that name or TRTYPE code. Raises ConfigurationError that lists the known ones."""
    found = _find(name)
    if found is None:
        _load_plugins()
        found = _find(name)
    if found is None:
        what = f"transport type {name}" if isinstance(name, int) else f"transport {name!r}"
        known = ", ".join(f"{each} ({_transports[each].trtype})" for each in names())
        raise ConfigurationError(f"unknown {what}: known are {known}")
    return found


def names() -> list[str]:
    """Return the names of all transports, sorted, those of plug-ins included."""
    _load_plugins()
    return sorted(_transports)


def set_trtype_code(name: str, code: int) -> None:
    """Give a transport another TRTYPE code (mptcp's 4 is provisional). Raises ConfigurationError when it is taken."""
    transport = get(name)
    _check_code(name, code)
    transport.trtype = code


def _find(name: str | int) -> Transport | None:
    if isinstance(name, str):
        return _transports.get(name)
    return next((each for each in _transports.values() if each.trtype == name), None)


def _check_code(name: str, code: int) -> None:
    if not 1 <= code <= 255:
        raise ConfigurationError(f"the transport type {code} of {name!r} is not between 1 and 255")
    other = next((each for each in _transports.values() if each.trtype == code and each.name != name), None)
    if other is not None:
        raise ConfigurationError(f"the transport type {code} of {name!r} is taken by {other.name!r}")


def _load_plugins() -> None:
    """Load what other packages offer, once; a broken one costs a log line and nothing else."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry.load()
            transport = loaded() if callable(loaded) else loaded
            if not isinstance(transport, Transport):
                raise TypeError(f"{entry.value} gives no Transport")
            register(transport)
        except Exception as error:  # a plug-in's fault, whatever it is, must not stop the others
            log.warning("transport plug-in %r was skipped: %s: %s", entry.name, type(error).__name__, error)
