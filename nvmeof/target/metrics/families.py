"""The metric families of a target: names, labels and values, by Prometheus' conventions.

Base units (seconds, bytes), `_total` at the end of counters, labels for what a figure is about. A family is made in
pieces, and the event loop serves I/O between two of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from nvmeof.spec.status import Status
from nvmeof.target.driver import QueueDriver
from nvmeof.target.meters import Commands, Meters, Path, Traffic
from nvmeof.target.queue.metering import BOUNDS, Tally
from nvmeof.target.server import Target
from nvmeof.transport.base import ConnectionInfo, SubflowInfo
from nvmeof.version import __version__

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PIECE_SERIES: Final = 32
"""Series of a family that are made and written at once."""
SUBFLOWS_MOST: Final = 512
"""Subflows that have series of their own; the sums by path have all of them."""

Turn: TypeAlias = Callable[[], Awaitable[None]]
Pair: TypeAlias = tuple[Sequence[str], float]
Seen: TypeAlias = list[tuple[QueueDriver, ConnectionInfo]]

COMMAND_LABELS: Final = ("subsystem", "nsid", "host", "port", "command")
PATH_LABELS: Final = ("host", "port", "local", "peer")
SUBFLOW_LABELS: Final = ("subsystem", "host", "controller", "queue", "subflow", "local", "peer")


def _pieces(family: Callable[[], Any], series: Iterable[Any], add: Callable[[Any, Any], None]) -> Iterator[Metric]:
    """Make a family of some series after the other; the first one also when there is none."""
    metric, count = family(), 0
    for each in series:
        if count == PIECE_SERIES:
            yield metric
            metric, count = family(), 0
        add(metric, each)
        count += 1
    yield metric


def _counter(name: str, text: str, labels: Sequence[str], series: Iterable[Pair]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    return _pieces(
        lambda: CounterMetricFamily(name, text, labels=labels), series, lambda family, each: family.add_metric(*each)
    )


def _gauge(name: str, text: str, labels: Sequence[str], series: Iterable[Pair]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    return _pieces(
        lambda: GaugeMetricFamily(name, text, labels=labels), series, lambda family, each: family.add_metric(*each)
    )


def _histogram(
    name: str, text: str, labels: Sequence[str], series: Iterable[tuple[Sequence[str], Tally]]
) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily

    def add(family: Any, each: tuple[Sequence[str], Tally]) -> None:
        values, tally = each
        total, buckets = 0, []
        for name, count in zip(BUCKET_NAMES, tally.buckets, strict=True):
            total += count
            buckets.append((name, total))
        family.add_metric(values, buckets, tally.seconds)

    return _pieces(lambda: HistogramMetricFamily(name, text, labels=labels), series, add)


BUCKET_NAMES: Final = (*(f"{bound:.9g}" for bound in BOUNDS), "+Inf")
"""The values of the label `le`."""


async def families(target: Target, meters: Meters, turn: Turn) -> AsyncIterator[Metric]:
    """Make the families of a target. Those of one name follow each other, each with some of its series.

    `turn` is awaited before each piece of work: it returns when the event loop has time for one.
    """
    for of_target in (_about_target, _about_subsystems, _about_ports):
        await turn()
        for family in of_target(target):
            yield family
            await turn()
    totals: dict[Commands, Tally] = {}
    for _ in meters.add_up(totals, lambda each: each):
        await turn()
    for family in _about_commands(totals):
        yield family
        await turn()
    if meters.takes_latencies:
        for name, text, labels, by, values in _HISTOGRAMS:
            totals = {}
            for _ in meters.add_up(totals, by):
                await turn()
            series = ((values(each), tally) for each, tally in totals.items() if tally.buckets)
            for family in _histogram(name, text, labels, series):
                yield family
                await turn()
    seen: Seen = []
    for driver in list(target.drivers):
        await turn()
        if not driver.endpoint.closed:
            seen.append((driver, driver.endpoint.describe()))
    for family in _about_connections(target, meters, seen):
        yield family
        await turn()


# -- the target --------------------------------------------------------------------------------------------------------


def _about_target(target: Target) -> Iterator[Metric]:
    yield from _gauge("nvmeof_build_info", "The version that runs.", ("version",), [((__version__,), 1)])
    pool = target.pool
    yield from _gauge("nvmeof_memory_used_bytes", "Memory for data on its way, in use.", (), [((), pool.used_bytes)])
    yield from _gauge("nvmeof_memory_limit_bytes", "Memory for data on its way.", (), [((), pool.limit_bytes)])
    refused = target.connections.refused
    yield from _counter("nvmeof_connections_refused", "Connections not taken: too many.", (), [((), refused)])


def _about_subsystems(target: Target) -> Iterator[Metric]:
    subsystems = [*target.subsystems.values(), target.registry.discovery]
    label = ("subsystem",)
    yield from _gauge(
        "nvmeof_controllers", "Associations.", label, (((each.nqn,), len(each.controllers)) for each in subsystems)
    )
    yield from _counter(
        "nvmeof_keep_alive_timeouts",
        "Associations that ended since their host was silent.",
        label,
        (((each.nqn,), each.keep_alive_timeouts) for each in subsystems),
    )
    spaces = [
        ((each.nqn, str(nsid)), namespace) for each in subsystems for nsid, namespace in list(each.namespaces.items())
    ]
    labels = ("subsystem", "nsid")
    yield from _gauge(
        "nvmeof_namespace_size_bytes",
        "Size of a namespace.",
        labels,
        ((values, each.size_blocks << each.block_shift) for values, each in spaces),
    )
    yield from _counter(
        "nvmeof_namespace_media_errors",
        "Commands that failed with a media error.",
        labels,
        ((values, each.counters.media_errors) for values, each in spaces),
    )


def _about_ports(target: Target) -> Iterator[Metric]:
    listeners = [
        ((str(portid), str(each.address)), each.describe())
        for portid, port in target.ports.items()
        for each in port.all_listeners
    ]
    labels = ("port", "address")
    yield from _counter(
        "nvmeof_connections_accepted",
        "Connections accepted by a listener.",
        labels,
        ((values, each.accepted) for values, each in listeners),
    )
    yield from _gauge(
        "nvmeof_listener_paused",
        "1 while a listener accepts nothing, for want of descriptors or memory.",
        labels,
        ((values, float(each.paused)) for values, each in listeners),
    )


# -- commands ----------------------------------------------------------------------------------------------------------


def _values(labels: Commands) -> Sequence[str]:
    return (labels.subnqn, str(labels.nsid), labels.host, str(labels.portid), labels.command)


def _status_word(status: int) -> str:
    try:
        return Status(status).name.lower()
    except ValueError:
        return f"{status:#06x}"


def _about_commands(totals: dict[Commands, Tally]) -> Iterator[Metric]:
    yield from _counter(
        "nvmeof_commands",
        "Commands completed, those that failed too.",
        COMMAND_LABELS,
        ((_values(labels), tally.count) for labels, tally in totals.items()),
    )
    yield from _counter(
        "nvmeof_command_data_bytes",
        "Data of I/O commands that succeeded.",
        COMMAND_LABELS,
        ((_values(labels), tally.size_bytes) for labels, tally in totals.items() if tally.size_bytes),
    )
    yield from _counter(
        "nvmeof_command_errors",
        "Commands completed with another status than success.",
        (*COMMAND_LABELS, "status"),
        (
            ((*_values(labels), _status_word(status)), count)
            for labels, tally in totals.items()
            for status, count in tally.errors.items()
        ),
    )


_HISTOGRAMS: Final[
    tuple[
        tuple[str, str, Sequence[str], Callable[[Commands], Commands | None], Callable[[Commands], Sequence[str]]], ...
    ]
] = (
    (
        "nvmeof_command_duration_seconds",
        "From the arrival of a command until its completion is given to the socket.",
        ("subsystem", "nsid", "command"),
        lambda each: each._replace(host="", portid=0),
        lambda each: (each.subnqn, str(each.nsid), each.command),
    ),
    (
        "nvmeof_host_command_duration_seconds",
        "The same of commands for namespaces, by host and port.",
        ("host", "port", "command"),
        lambda each: each._replace(subnqn="", nsid=0) if each.nsid else None,
        lambda each: (each.host, str(each.portid), each.command),
    ),
)
"""Name, text and labels of the histograms, by which labels they are summed up, and the values of the labels."""

# -- connections -------------------------------------------------------------------------------------------------------


def _about_connections(target: Target, meters: Meters, seen: Seen) -> Iterator[Metric]:
    counts: dict[Sequence[str], int] = {}
    for driver, info in seen:
        kind = "unconnected" if not driver.said else "io" if driver.queue.ctx.qid else "admin"
        values = (str(driver.port.portid), kind, info.protocol)
        counts[values] = counts.get(values, 0) + 1
    yield from _gauge("nvmeof_connections", "Open connections.", ("port", "kind", "protocol"), counts.items())
    yield from _counter("nvmeof_connections_ended", "Connections that ended.", (), [((), meters.ended)])
    yield from _counter(
        "nvmeof_connection_faults", "Of those: the ones that a broken protocol ended.", (), [((), meters.faults)]
    )
    yield from _gauge(
        "nvmeof_commands_in_progress",
        "Commands that have begun and not completed, event requests among them.",
        (),
        [((), sum(driver.queue.pending + len(driver.queue.transfers) for driver, _ in seen))],
    )
    throttle = target.connections.throttle
    yield from _gauge(
        "nvmeof_commands_waiting_for_limits",
        "Commands that wait for a rate limit.",
        (),
        [((), 0 if throttle is None else throttle.waiting)],
    )
    yield from _about_paths(meters, seen)
    yield from _about_subflows(meters, seen)


def _about_paths(meters: Meters, seen: Seen) -> Iterator[Metric]:
    paths: dict[Path, Traffic] = {}
    open_flows: dict[Path, int] = {}
    for path, traffic in list(meters.traffic_ended.items()):
        paths.setdefault(path, Traffic()).add(traffic)
    for driver, info in seen:
        if driver.meter is not None:
            for path, traffic in meters.paths(driver.meter, info):
                paths.setdefault(path, Traffic()).add(traffic)
                open_flows[path] = open_flows.get(path, 0) + 1

    def values(path: Path) -> Sequence[str]:
        return (path.host, str(path.portid), path.local, path.peer)

    for name, text, field in (
        ("nvmeof_path_sent_bytes", "Payload sent between two addresses, sent again or not.", "sent_bytes"),
        ("nvmeof_path_received_bytes", "Payload received between two addresses.", "received_bytes"),
        ("nvmeof_path_retransmitted_segments", "Segments sent again between two addresses.", "retransmits"),
    ):
        yield from _counter(
            name, text, PATH_LABELS, [(values(path), getattr(traffic, field)) for path, traffic in paths.items()]
        )
    yield from _gauge(
        "nvmeof_path_subflows",
        "Open TCP flows between two addresses.",
        PATH_LABELS,
        ((values(path), count) for path, count in open_flows.items()),
    )


_SUBFLOW_GAUGES: Final[tuple[tuple[str, str, Callable[[SubflowInfo], float | None]], ...]] = (
    ("nvmeof_subflow_rtt_seconds", "Smoothed round-trip time.", lambda flow: _seconds(flow.rtt_us)),
    ("nvmeof_subflow_cwnd_segments", "Congestion window.", lambda flow: flow.cwnd_segments),
    ("nvmeof_subflow_unacked_segments", "Segments under way.", lambda flow: flow.unacked_segments),
)
_SUBFLOW_COUNTERS: Final[tuple[tuple[str, str, Callable[[SubflowInfo], float | None]], ...]] = (
    ("nvmeof_subflow_sent_bytes", "Payload sent, sent again or not.", lambda flow: flow.bytes_sent),
    ("nvmeof_subflow_received_bytes", "Payload received.", lambda flow: flow.bytes_received),
    ("nvmeof_subflow_retransmitted_segments", "Segments sent again.", lambda flow: flow.retransmits),
)


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _about_subflows(meters: Meters, seen: Seen) -> Iterator[Metric]:
    """The subflows of I/O connections, those of MPTCP and the only one of TCP; the first `SUBFLOWS_MOST`."""
    flows: list[tuple[Sequence[str], SubflowInfo]] = []
    for driver, info in sorted(seen, key=lambda each: each[0].opened_at):
        meter, ctx = driver.meter, driver.queue.ctx
        if meter is None or not meter.qid or not driver.said:
            continue
        about = (meter.subnqn, meters.host(meter.hostnqn), str(getattr(ctx, "view").cntlid), str(meter.qid))  # noqa: B009
        for number, flow in enumerate(info.subflows):
            name = str(number if flow.id is None else flow.id)
            flows.append(((*about, name, flow.local.host, flow.peer.host), flow))
    flows = flows[:SUBFLOWS_MOST]
    for make, rows in ((_gauge, _SUBFLOW_GAUGES), (_counter, _SUBFLOW_COUNTERS)):
        for name, text, value in rows:
            yield from make(
                name,
                text + " Of one TCP flow of an I/O queue's connection.",
                SUBFLOW_LABELS,
                [(labels, found) for labels, flow in flows if (found := value(flow)) is not None],
            )
