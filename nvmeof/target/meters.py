"""The meters of all queues of a target, and the sums over those that have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from nvmeof.protocol.events import Event
from nvmeof.target.queue.metering import CountingMeter, LatencyMeter, QueueMeter, Tally
from nvmeof.transport.base import ConnectionInfo

HOSTS_MOST: Final = 64
"""So many hosts are named in labels, the first that connect; any host may give itself any number of names."""
OTHER_HOSTS: Final = "other"
"""The label of all hosts beyond `HOSTS_MOST`; no NQN has this form."""

PIECE_TALLIES: Final = 16
"""So many are added up at once."""


class Commands(NamedTuple):
    """What commands are counted by: the labels of their figures. `nsid` is 0 for those of no namespace."""

    subnqn: str
    nsid: int
    host: str
    portid: int
    command: str


class Path(NamedTuple):
    """What the figures of connections are summed up by: the host, the port, and both addresses of a subflow."""

    host: str
    portid: int
    local: str
    peer: str


class Traffic:
    """The sums over subflows: payload bytes and segments that were sent again."""

    __slots__ = ("received_bytes", "retransmits", "sent_bytes")

    def __init__(self, sent_bytes: int = 0, received_bytes: int = 0, retransmits: int = 0) -> None:
        self.sent_bytes = sent_bytes
        self.received_bytes = received_bytes
        self.retransmits = retransmits

    def add(self, other: Traffic) -> None:
        """Add the figures of another."""
        self.sent_bytes += other.sent_bytes
        self.received_bytes += other.received_bytes
        self.retransmits += other.retransmits


class Meters:
    """Makes a meter for each queue, and keeps what it has counted when it ends.

    `clock`: seconds, for latencies; None: none are taken. `hosts_most`: how many host NQNs are told apart.
    """

    def __init__(self, clock: Callable[[], float] | None, hosts_most: int = HOSTS_MOST) -> None:
        self._clock = clock
        self._hosts_most = hosts_most
        self._hosts: set[str] = set()
        self._open: set[QueueMeter] = set()
        self._ended: dict[Commands, Tally] = {}
        self.traffic_ended: dict[Path, Traffic] = {}
        """The traffic of connections that have ended."""
        self.faults = 0
        """Connections that ended because one side broke the protocol, or by a defect."""
        self.ended = 0
        """Connections that ended."""

    @property
    def takes_latencies(self) -> bool:
        """Whether there are histograms."""
        return self._clock is not None

    def open(self, portid: int, handle: Callable[[list[Event], float], object]) -> QueueMeter:
        """Return the meter of a new queue, whose own `handle` is given."""
        meter: QueueMeter = CountingMeter(portid) if self._clock is None else LatencyMeter(portid, self._clock, handle)
        self._open.add(meter)
        return meter

    def ending(self, meter: QueueMeter, info: ConnectionInfo, *, fault: bool) -> None:
        """Keep the traffic of a connection that is going to be closed."""
        self.ended += 1
        self.faults += fault
        for path, traffic in self.paths(meter, info):
            self.traffic_ended.setdefault(path, Traffic()).add(traffic)

    def paths(self, meter: QueueMeter, info: ConnectionInfo) -> Iterator[tuple[Path, Traffic]]:
        """Return the traffic of a connection's subflows, by path."""
        host = self.host(meter.hostnqn)
        for flow in info.subflows:
            yield (
                Path(host, meter.portid, flow.local.host, flow.peer.host),
                Traffic(flow.bytes_sent or 0, flow.bytes_received or 0, flow.retransmits or 0),
            )

    def close(self, meter: QueueMeter) -> None:
        """Keep what a meter has counted, whose queue has ended. Harmless when repeated."""
        if meter in self._open:
            self._open.discard(meter)
            for labels, tally in self._labelled(meter):
                self._ended.setdefault(labels, Tally()).add(tally)

    def host(self, nqn: str) -> str:
        """Return the label of a host: its NQN, or `OTHER_HOSTS` when too many others came first."""
        if nqn and nqn not in self._hosts:
            if len(self._hosts) >= self._hosts_most:
                return OTHER_HOSTS
            self._hosts.add(nqn)
        return nqn

    def _labelled(self, meter: QueueMeter) -> Iterator[tuple[Commands, Tally]]:
        host = self.host(meter.hostnqn)
        for kind, tally in meter.figures():
            yield Commands(meter.subnqn, kind.nsid, host, meter.portid, kind.command), tally

    def add_up(self, totals: dict[Commands, Tally], by: Callable[[Commands], Commands | None]) -> Iterator[None]:
        """Add what was counted to `totals`, under what `by` makes of its labels (None: not); pause after each piece."""
        for number, (labels, tally) in enumerate(list(self._ended.items())):
            _add(totals, by(labels), tally)
            if not number % PIECE_TALLIES:
                yield
        for meter in list(self._open):
            for number, (labels, tally) in enumerate(self._labelled(meter)):
                _add(totals, by(labels), tally)
                if not number % PIECE_TALLIES:
                    yield


def _add(totals: dict[Commands, Tally], labels: Commands | None, tally: Tally) -> None:
    if labels is not None:
        totals.setdefault(labels, Tally()).add(tally)
