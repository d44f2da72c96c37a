"""The display of `paths watch`: every MPTCP connection of this network namespace, and the rate of each subflow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nvmeof.cli.tables import BAR_WIDTH as BAR_WIDTH
from nvmeof.cli.tables import bar as bar
from nvmeof.host.cli import output as out
from nvmeof.transport import ConnectionInfo, SubflowInfo


@dataclass(slots=True)
class FlowRate:
    """One subflow between two samples; rates in bytes per second."""

    flow: SubflowInfo
    out_rate: float = 0.0
    in_rate: float = 0.0
    share: float = 0.0
    """Of what its connection carried, both directions together: 0 to 1."""

    @property
    def rate(self) -> float:
        return self.out_rate + self.in_rate


@dataclass(slots=True)
class ConnectionRate:
    """One connection between two samples."""

    info: ConnectionInfo
    flows: list[FlowRate] = field(default_factory=list)

    @property
    def out_rate(self) -> float:
        return sum(flow.out_rate for flow in self.flows)

    @property
    def in_rate(self) -> float:
        return sum(flow.in_rate for flow in self.flows)

    def as_dict(self) -> dict[str, Any]:
        """Return the connection's figures for JSON, each subflow with its rates and share."""
        facts = self.info.as_dict()
        for flow, rate in zip(facts["subflows"], self.flows, strict=True):
            flow["sent_bytes_per_second"] = round(rate.out_rate)
            flow["received_bytes_per_second"] = round(rate.in_rate)
            flow["share"] = round(rate.share, 4)
        return facts


class Sampler:
    """Turns samples of counters into rates."""

    def __init__(self) -> None:
        self._before: dict[tuple[Any, ...], tuple[int, int]] = {}
        self._at: float | None = None

    def take(self, connections: Iterable[ConnectionInfo], now: float) -> list[ConnectionRate]:
        """Return the next sample, taken at `now` (seconds); without rates for subflows that the previous sample
        lacks.
        """
        elapsed = now - self._at if self._at is not None else 0.0
        seen: dict[tuple[Any, ...], tuple[int, int]] = {}
        result = []
        for info in connections:
            rates = ConnectionRate(info)
            for flow in info.subflows:
                key = (info.token, flow.local, flow.peer)
                counts = flow.bytes_sent or 0, flow.bytes_received or 0
                before = self._before.get(key)
                seen[key] = counts
                rate = FlowRate(flow)
                if before is not None and elapsed > 0:
                    rate.out_rate = max(0, counts[0] - before[0]) / elapsed
                    rate.in_rate = max(0, counts[1] - before[1]) / elapsed
                rates.flows.append(rate)
            total = sum(flow.rate for flow in rates.flows)
            for rate in rates.flows:
                rate.share = rate.rate / total if total else 0.0
            result.append(rates)
        self._before, self._at = seen, now
        return result


def view(rates: list[ConnectionRate], columns: int = out.PIPE_COLUMNS) -> Group:
    """Return all connections, one table each; in a narrow terminal without the least important columns."""
    parts: list[Any] = []
    for each in sorted(rates, key=lambda each: -(each.out_rate + each.in_rate)):
        info = each.info
        parts.append(
            Text(
                f"{info.local} - {info.peer}  token {info.token or 0:08x}  "
                f"out {out.size(each.out_rate)}/s  in {out.size(each.in_rate)}/s  "
                f"reinjected {info.mptcp_retransmits or 0}",
                style="bold",
            )
        )
        parts.append(_table(each, columns))
    if not parts:
        parts.append(Text("no MPTCP connection in this network namespace"))
    return Group(*parts)


_HEADINGS = (
    "subflow", "state", "out/s", "in/s", "share", "", "RTT", "cwnd", "delivery/s", "resent", "idle", "control",
)  # fmt: skip
_LEAST_FIRST = ("control", "idle", "share", "cwnd", "delivery/s", "resent", "state")
"""What is left out of a narrow terminal, in this order; "share" is the bar, its number stays."""
_LEFT = frozenset(("subflow", "state", "share", "control"))


def _table(rates: ConnectionRate, columns: int) -> Table:
    rows = [[out.clean(cell) for cell in _cells(each)] for each in rates.flows]
    widths = [max(map(cell_len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    shown = list(range(len(_HEADINGS)))
    for name in _LEAST_FIRST:
        if sum(widths[at] + 2 for at in shown) <= columns + 2:
            break
        shown.remove(_HEADINGS.index(name))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for at in shown:
        heading = _HEADINGS[at]
        table.add_column(heading, justify="left" if heading in _LEFT else "right", no_wrap=True)
    for each, row in zip(rates.flows, rows, strict=True):
        healthy = each.flow.state == "ESTABLISHED" and not each.flow.timeouts
        table.add_row(*(Text(row[at]) for at in shown), style="" if healthy else "red")
    return table


def _cells(rate: FlowRate) -> tuple[object, ...]:
    flow = rate.flow
    idle = min(flow.last_data_sent_ms or 0, flow.last_data_received_ms or 0)
    return (
        f"{flow.local} - {flow.peer}",
        flow.state.lower() + (" backup" if flow.backup else ""),
        out.size(rate.out_rate),
        out.size(rate.in_rate),
        bar(rate.share),
        f"{rate.share:.0%}",
        f"{(flow.rtt_us or 0) / 1000:.2f} ms",
        flow.cwnd_segments or 0,
        out.size(flow.delivery_rate_bytes_per_second or 0),
        flow.retransmits or 0,
        f"{idle / 1000:.1f} s",
        flow.congestion or "",
    )
