"""What ``describe()`` says of a controller's queues and their connections, as mappings for ``json.dumps``."""

from __future__ import annotations

from typing import TypedDict


class SubflowFacts(TypedDict, total=False):
    """One TCP flow of a connection; the keys are the fields of :class:`nvmeof.transport.base.SubflowInfo`."""

    id: int | None
    local: str
    peer: str
    state: str
    bytes_sent: int | None
    bytes_acked: int | None
    bytes_received: int | None
    bytes_retransmitted: int | None
    retransmits: int | None
    lost_segments: int | None
    unacked_segments: int | None
    rtt_us: int | None
    rttvar_us: int | None
    min_rtt_us: int | None
    cwnd_segments: int | None
    mss_bytes: int | None
    delivery_rate_bytes_per_second: int | None
    last_data_sent_ms: int | None
    last_data_received_ms: int | None
    last_ack_received_ms: int | None
    timeouts: int | None
    backup: bool | None
    congestion: str | None


class QueueFacts(TypedDict, total=False):
    """One queue and its connection, as they are now.

    The first four exist for every device, ``transport`` too; the rest are the fields of
    :class:`nvmeof.transport.base.ConnectionInfo`, addresses as text, and exist for queues over sockets.
    """

    qid: int
    entries: int
    outstanding: int
    """Commands that have been sent and are not completed."""
    completed: int
    hdr_digest: bool
    data_digest: bool
    transport: str
    protocol: str
    fallback: bool
    fallback_reason: str | None
    local: str
    peer: str
    closed: bool
    tls: str | None
    """The cipher suite of TLS; None: the connection is not encrypted."""
    congestion: str | None
    nodelay: bool | None
    token: int | None
    subflows: list[SubflowFacts]
    bytes_sent: int | None
    bytes_received: int | None
    retransmits: int | None
    mptcp_retransmits: int | None
    rtt_us: int | None
    sndbuf_bytes: int | None
    rcvbuf_bytes: int | None


class OutageFacts(TypedDict):
    """One time for which a path was not live. Times are seconds of the runtime's clock (monotonic)."""

    reason: str
    noticed_at: float
    attempts: int
    """Attempts to reconnect."""
    failfast_at: float | None
    """When fast_io_fail_tmo let waiting commands fail."""
    reconnected_at: float | None
    """When the path was live again; None: not yet, or never."""


class PathFacts(TypedDict):
    """The facts of a path: its state by Linux's name, its controller, and its outages, the latest last."""

    transport: str
    traddr: str
    trsvcid: int
    state: str
    cntlid: int | None
    """Of the live association."""
    attempts: int
    """Attempts to reconnect in the present outage."""
    max_reconnects: int | None
    error: str | None
    """Why the last association, or the last attempt, ended."""
    outages: list[OutageFacts]
