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

_NARROW = 130
"""Below so many columns a bar has 10 characters."""
_VERY_NARROW = 100
"""Below so many columns some figures are left out, so that none is cut."""
_PATH_COLUMNS = 50
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
        parts += _hosts(seen.hosts, columns)
    else:
        parts.append(Text("no host is connected"))
    return Group(*parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours:02}:{minutes:02}:{rest:02}"


def _namespaces(rows: list[NamespaceRate], columns: int) -> Table:
    width = 10 if columns < _NARROW else 20
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("NSID", "reads/s", "read/s", "writes/s", "written/s", "in flight"):
        table.add_column(name, no_wrap=True, justify="right", min_width=len(name))
    table.add_column("share", no_wrap=True, min_width=width)
    whole = columns >= _VERY_NARROW
    if whole:
        table.add_column("subsystem", no_wrap=True, overflow="ellipsis")
    busiest = sorted(rows, key=lambda each: (-each.bytes, each.subnqn, each.nsid))
    total = sum(each.bytes for each in rows)
    for each in busiest[:_ROWS]:
        share = each.bytes / total if total else 0.0
        table.add_row(
            str(each.nsid), f"{each.reads:.0f}", size(each.read_bytes), f"{each.writes:.0f}",
            size(each.written_bytes), str(each.in_flight), bar(share, width),
            *([clean(each.subnqn)] if whole else []),
        )  # fmt: skip
    if len(busiest) > _ROWS:
        table.caption = f"{len(busiest) - _ROWS} namespaces that do less are not shown"
    return table


def _hosts(rows: list[HostRate], columns: int) -> list[Text | Table]:
    """Return a line and a table for each host: what it does in all, then by path. The columns of all are in line."""
    parts: list[Text | Table] = []
    for number, each in enumerate(rows[:_ROWS]):
        refused = f", {each.refused} refused" if each.refused else ""
        what = f"controller {each.cntlid}, {each.queues} queues, {each.transport}{refused}"
        parts.append(Text(f"{what}: {clean(each.host)}", style="bold", no_wrap=True, overflow="ellipsis"))
        parts.append(_paths(each, columns, heading=not number))
    if len(rows) > _ROWS:
        parts.append(Text(f"{len(rows) - _ROWS} hosts that do less are not shown", style="dim"))
    return parts


def _paths(host: HostRate, columns: int, *, heading: bool) -> Table:
    bar_width = 10 if columns < _NARROW else 20
    widths = {"commands/s": 10, "in flight": 9, "out/s": 9, "in/s": 9, "RTT": 9, "share": bar_width, "": 4}
    if columns < _VERY_NARROW:
        del widths["in flight"], widths["RTT"]
    room = columns - sum(widths.values()) - 2 * len(widths)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=heading)
    table.add_column("path", width=max(12, min(_PATH_COLUMNS, room)), no_wrap=True, overflow="ellipsis")
    for name, width in widths.items():
        table.add_column(name, width=width, no_wrap=True, justify="left" if name == "share" else "right")
    paths = sorted(host.paths.values(), key=lambda path: (-path.bytes, path.local, path.peer))
    out, into = sum(path.out_bytes for path in paths), sum(path.in_bytes for path in paths)
    cells = {"commands/s": f"{host.commands:.0f}", "in flight": str(host.in_flight), "out/s": size(out)}
    cells["in/s"] = size(into)
    table.add_row("all paths", *(cells.get(name, "") for name in widths))
    for path in paths:
        rtt = "" if path.rtt_us is None else f"{path.rtt_us / 1000:.2f} ms"
        cells = {"out/s": size(path.out_bytes), "in/s": size(path.in_bytes), "RTT": rtt}
        cells.update({"share": bar(path.share, bar_width), "": f"{path.share:.0%}"})
        table.add_row(f"  {path.local} - {path.peer}", *(cells.get(name, "") for name in widths))
    return table
