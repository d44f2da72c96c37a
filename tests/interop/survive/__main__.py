"""`python -m tests.interop.survive`: two hosts, a kernel's target, and events that happen to it.

Our host and the kernel's own have two paths each to one namespace of nvmet and write and check half of it each, while
the target goes through an event; the time lines of both go into a table.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..guest import NEWEST, REPOSITORY, CommandFailed, GuestError, kernels, release
from .events import EVENTS
from .report import DOCUMENT, write_document
from .rig import NETNS, Rig, inside
from .timeline import Line, line

RESULTS = REPOSITORY / "build" / "survive"


def told(name: str, found: Line) -> str:
    """Print one line on the terminal."""

    def seconds(value: float | None) -> str:
        return "     -" if value is None else f"{value:6.2f}"

    return (
        f"  {name:7} noticed {seconds(found.noticed)}  failed over {seconds(found.failed_over)}"
        f"  longest wait {found.longest_wait:6.2f}  back {seconds(found.back)}"
        f"  {found.commands} commands, {found.errors} errors, {found.wrong} wrong"
        + (f" ({found.first_error[:110]})" if found.first_error else "")
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kernel", "wanted", multiple=True, metavar="VERSION", help="6.1, 6.12 or newest; repeatable (all).")
@click.option("--event", "names", multiple=True, type=click.Choice([e.name for e in EVENTS]), help="Repeatable (all).")
@click.option("--list", "listing", is_flag=True, help="Name the events and end.")
@click.option("--write", is_flag=True, help=f"Write {DOCUMENT} from the results of all kernels and end.")
@click.option("--directory", type=click.Path(path_type=Path), default=RESULTS, help="Where results go (build/survive).")
def main(wanted: tuple[str, ...], names: tuple[str, ...], listing: bool, write: bool, directory: Path) -> None:
    """Cause events at a kernel's target under the verifying load of two hosts. Needs root, and the lab.

    Exit status: 0 when nothing was lost and nothing was wrong, for our host and the kernel's.
    """
    if listing:
        for event in EVENTS:
            click.echo(f"{event.name:15} {event.what}")
        return
    if write:
        click.echo(write_document(directory))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # guests must not outlive this process
    if NETNS not in os.environ:
        sys.exit(inside(sys.argv[1:]))
    available = kernels()
    chosen = [available[-1] if name == NEWEST else name for name in wanted] or available
    faults = 0
    for kernel in chosen:
        if kernel not in available:
            raise click.ClickException(f"there is no kernel {kernel}; there are {', '.join(available) or 'none'}")
        faults += run_kernel(kernel, names, directory)
    sys.exit(1 if faults else 0)


def run_kernel(kernel: str, names: tuple[str, ...], directory: Path) -> int:
    """Cause the events with one kernel; return the number of faults of our host and of runs."""
    click.echo(f"kernel {release(kernel)}")
    saved = directory / f"{kernel}.json"
    events: dict[str, Any] = json.loads(saved.read_text())["events"] if saved.exists() else {}
    faults = 0
    rig: Rig | None = None
    try:
        for event in (each for each in EVENTS if not names or each.name in names):
            click.echo(f"{time.strftime('%T')} {event.name}: {event.what}")
            try:
                rig = rig or Rig(kernel, directory / kernel, click.echo)
                run = rig.run(event)
            except (GuestError, CommandFailed, RuntimeError) as error:
                click.echo(f"  FAILED: {error}")
                faults += 1
                if rig is not None:
                    rig.close()
                rig = None
                continue
            ours, theirs = line(run, run.ours), line(run, run.kernel)
            (rig.directory / f"{event.name}.json").write_text(json.dumps(asdict(run), indent=1))
            events[event.name] = {"ours": asdict(ours), "kernel": asdict(theirs)}
            saved.write_text(json.dumps({"release": release(kernel), "events": events}, indent=1) + "\n")
            for name, found in (("ours", ours), ("kernel", theirs)):
                click.echo(told(name, found))
                for fault in found.faults:
                    click.echo(f"    {'FAULT' if name == 'ours' else 'remark'}: {fault}")
            faults += len(ours.faults)
    finally:
        if rig is not None:
            rig.close()
    return faults


if __name__ == "__main__":
    main()
