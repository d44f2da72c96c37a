"""Rates from two samples of a target's counters. No I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a target says of itself at one moment: the results of `status`, `counters` and `connection.list`."""

    status: Row
    namespaces: list[Row]
    connections: list[Row]

    @property
    def at(self) -> float:
        """When it was taken, in seconds on the target's clock."""
        return float(self.status["time"])


@dataclass(slots=True)
class NamespaceRate:
    """A namespace between two samples; rates are per second."""

    subnqn: str
    nsid: int
    reads: float
    writes: float
    read_bytes: float
    written_bytes: float
    in_flight: int

    @property
    def bytes(self) -> float:
        """Bytes per second, both directions together."""
        return self.read_bytes + self.written_bytes


@dataclass(slots=True)
class PathRate:
    """One subflow, or the only flow of a plain TCP connection, with those of the same two addresses."""

    local: str
    peer: str
    out_bytes: float = 0.0
    in_bytes: float = 0.0
    rtt_us: int | None = None
    share: float = 0.0
    """Of what its host's connections carried: 0 to 1."""

    @property
    def bytes(self) -> float:
        """Bytes per second, both directions together."""
        return self.out_bytes + self.in_bytes


@dataclass(slots=True)
class HostRate:
    """The connections of one association between two samples; rates are per second."""

    host: str
    subnqn: str
    cntlid: int
    transport: str
    queues: int = 0
    commands: float = 0.0
    refused: int = 0
    in_flight: int = 0
    paths: dict[tuple[str, str], PathRate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """A target between two samples."""

    status: Row
    seconds: float
    namespaces: list[NamespaceRate]
    hosts: list[HostRate]


def _delta(before: Mapping[Key, Row], key: Key, row: Row, name: str, seconds: float) -> float:
    """Return a counter's rate; 0 for what was not there before, or began again."""
    then = before.get(key)
    if then is None or seconds <= 0:
        return 0.0
    return max(0.0, (row.get(name) or 0) - (then.get(name) or 0)) / seconds


def rates(before: Sample, now: Sample) -> Rates:
    """Return what went on between two samples."""
    seconds = now.at - before.at
    known = {(row["subnqn"], row["nsid"]): row for row in before.namespaces}
    namespaces = [
        NamespaceRate(
            subnqn=row["subnqn"],
            nsid=row["nsid"],
            reads=_delta(known, key, row, "reads", seconds),
            writes=_delta(known, key, row, "writes", seconds),
            read_bytes=_delta(known, key, row, "bytes_read", seconds),
            written_bytes=_delta(known, key, row, "bytes_written", seconds),
            in_flight=row["in_flight"],
        )
        for row in now.namespaces
        for key in [(row["subnqn"], row["nsid"])]
    ]
    return Rates(now.status, seconds, namespaces, _hosts(before.connections, now.connections, seconds))


def _connection_key(row: Row) -> Key:
    return (row["subnqn"], row["cntlid"], row["qid"], row["peer"])


def _flows(row: Row) -> Iterable[tuple[Key, Row]]:
    """Yield the flows of a connection: its subflows, or what the connection itself says."""
    flows = row.get("subflows") or [row]
    for flow in flows:
        yield (*_connection_key(row), flow["local"], flow["peer"]), flow


def _hosts(before: list[Row], now: list[Row], seconds: float) -> list[HostRate]:
    connections = {_connection_key(row): row for row in before}
    flows = {key: flow for row in before if row["cntlid"] is not None for key, flow in _flows(row)}
    found: dict[Key, HostRate] = {}
    for row in now:
        if row["cntlid"] is None:
            continue
        key = (row["subnqn"], row["cntlid"], row["host"])
        each = found.setdefault(key, HostRate(row["host"], row["subnqn"], row["cntlid"], row["protocol"]))
        each.queues += 1
        each.commands += _delta(connections, _connection_key(row), row, "commands", seconds)
        each.refused += row["refused"]
        each.in_flight += row["in_flight"]
        for flow_key, flow in _flows(row):
            _add_flow(each, flows, flow_key, flow, seconds)
    for each in found.values():
        total = sum(path.bytes for path in each.paths.values())
        for path in each.paths.values():
            path.share = path.bytes / total if total else 0.0
    return sorted(found.values(), key=lambda each: (-each.commands, each.subnqn, each.cntlid))


def _add_flow(host: HostRate, before: Mapping[Key, Row], key: Key, flow: Row, seconds: float) -> None:
    # Ports differ from queue to queue: a path is a pair of addresses.
    ends = (flow["local"].rpartition(":")[0], flow["peer"].rpartition(":")[0])
    path = host.paths.setdefault(ends, PathRate(*ends))
    path.out_bytes += _delta(before, key, flow, "bytes_sent", seconds)
    path.in_bytes += _delta(before, key, flow, "bytes_received", seconds)
    rtt = flow.get("rtt_us")
    if rtt is not None:
        path.rtt_us = rtt if path.rtt_us is None else min(path.rtt_us, rtt)
