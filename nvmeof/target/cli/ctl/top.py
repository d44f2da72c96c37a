"""``ctl top``: what a target does, as a live view of a terminal."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nvmeof.cli.interrupts import regular_end
from nvmeof.cli.tables import PIPE_COLUMNS, bar, clean, console, size
from nvmeof.cli.types import Number, Seconds
from nvmeof.target.cli.ctl.calls import client, run
from nvmeof.target.cli.ctl.rates import HostRate, NamespaceRate, Rates, Sample, rates
from nvmeof.target.control import ControlClient

_NARROW = 110
"""Below so many columns a bar has 10 characters, and NQNs are cut."""
_ROWS = 20
"""The most namespaces, and the most hosts, that are shown: those that do most."""


@click.command("top")
@click.option(
    "--interval", type=Seconds(0.1), default=1.0, show_default=True, metavar="SECONDS", help="Time between two."
)
@click.option("--count", type=Number(1), metavar="N", help="Stop after so many.  [default: at Ctrl-C]")
@click.option("--once", is_flag=True, help="Show what goes on in one interval, as text, and end.")
def top_command(interval: float, count: int | None, once: bool) -> None:
    """Show rates of namespaces and hosts, and what each path carries, until Ctrl-C."""
    run(_top(client(), interval, 1 if once else count, live=not once and sys.stdout.isatty()))


async def sample(target: ControlClient) -> Sample:
    """Take a sample of a target."""
    return Sample(
        await target.call("status"),
        await target.call("counters", {"by": "namespace"}),
        await target.call("connection.list", {"subflows": True}),
    )


async def _top(target: ControlClient, interval: float, count: int | None, *, live: bool) -> None:
    terminal = console()
    with regular_end():
        async with target:
            before = await sample(target)
            with Live(console=terminal, auto_refresh=False, screen=True) if live else nullcontext() as screen:
                shown = 0
                while count is None or shown < count:
                    await asyncio.sleep(interval)
                    now = await sample(target)
                    picture = view(rates(before, now), terminal.width)
                    before, shown = now, shown + 1
                    if screen is None:
                        terminal.print(picture)
                        sys.stdout.flush()
                    else:
                        screen.update(picture, refresh=True)


def view(seen: Rates, columns: int = PIPE_COLUMNS) -> Group:
    """Return a picture of a target between two samples, for a terminal of so many columns."""
    status = seen.status
    header = Text(
        f"nvmeof-target {clean(status['version'])}, process {status['pid']}, "
        f"up {_duration(status['uptime_seconds'])}   "
        f"{status['controllers']} controllers, {status['connections']} connections, "
        f"{size(status['memory_used_bytes'])} of data in memory",
        style="bold",
    )
    parts: list[Text | Table] = [header, Text(""), _namespaces(seen.namespaces, columns), Text("")]
    if seen.hosts:
        parts.append(_hosts(seen.hosts, columns))
    else:
        parts.append(Text("no host is connected"))
    return Group(*parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours:02}:{minutes:02}:{rest:02}"


def _table(*headings: str, left: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        justify, nowrap = ("left", True) if heading in left else ("right", True)
        table.add_column(heading, justify=justify, no_wrap=nowrap, overflow="ellipsis")
    return table


def _namespaces(rows: list[NamespaceRate], columns: int) -> Table:
    width = 10 if columns < _NARROW else 20
    table = _table("NSID", "reads/s", "read/s", "writes/s", "written/s", "in flight", "share", "subsystem",
                   left=("share", "subsystem"))  # fmt: skip
    busiest = sorted(rows, key=lambda each: (-each.bytes, each.subnqn, each.nsid))
    total = sum(each.bytes for each in rows)
    for each in busiest[:_ROWS]:
        share = each.bytes / total if total else 0.0
        table.add_row(
            str(each.nsid), f"{each.reads:.0f}", size(each.read_bytes), f"{each.writes:.0f}",
            size(each.written_bytes), str(each.in_flight), bar(share, width), clean(each.subnqn),
        )  # fmt: skip
    if len(busiest) > _ROWS:
        table.caption = f"{len(busiest) - _ROWS} namespaces that do less are not shown"
    return table


def _hosts(rows: list[HostRate], columns: int) -> Table:
    width = 10 if columns < _NARROW else 20
    table = _table("host, path", "commands/s", "in flight", "out/s", "in/s", "RTT", "share", "what",
                   left=("host, path", "share", "what"))  # fmt: skip
    for each in rows[:_ROWS]:
        paths = sorted(each.paths.values(), key=lambda path: (-path.bytes, path.local, path.peer))
        table.add_row(
            clean(each.host), f"{each.commands:.0f}", str(each.in_flight),
            size(sum(path.out_bytes for path in paths)), size(sum(path.in_bytes for path in paths)), "", "",
            f"controller {each.cntlid}, {each.queues} queues, {each.transport}"
            + (f", {each.refused} refused" if each.refused else ""),
            style="bold",
        )  # fmt: skip
        for path in paths:
            rtt = "" if path.rtt_us is None else f"{path.rtt_us / 1000:.2f} ms"
            table.add_row(
                f"  {path.local} - {path.peer}", "", "", size(path.out_bytes), size(path.in_bytes), rtt,
                bar(path.share, width), f"{path.share:.0%}",
            )  # fmt: skip
    if len(rows) > _ROWS:
        table.caption = f"{len(rows) - _ROWS} hosts that do less are not shown"
    return table
