"""The experiments with several paths: `python -m benchmarks.mptcp --help`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from rich.console import Console

from benchmarks import procstat, report
from benchmarks.mptcp import (
    aggregation,
    failover,
    filecopy,
    foreign,
    lab,
    loss,
    multipath,
    multipath_failover,
    publish,
    selftest,
    unequal,
    vm,
)
from benchmarks.mptcp.runs import Settings

MODULES: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        aggregation,
        selftest,
        filecopy,
        loss,
        failover,
        unequal,
        foreign,
        multipath,
        multipath_failover,
    )
}
IN_GUEST: dict[str, str] = {
    "loss-vm": "loss",
    "unequal-vm": "unequal",
    "foreign": "foreign",
    "multipath-vm": "multipath",
    "multipath-failover-vm": "multipath-failover",
}
"""Experiments that run in the virtual machine, and the module of each."""
QUICK = ("aggregation", "selftest", "filecopy", "failover", "unequal", "multipath", "multipath-failover")
FULL = (
    *("aggregation", "selftest", "filecopy", "loss", "loss-vm", "failover", "unequal", "unequal-vm", "foreign"),
    *("multipath", "multipath-vm", "multipath-failover", "multipath-failover-vm"),
)
RESULTS = report.RESULTS / "mptcp"


def _finish(module: ModuleType, result: dict[str, Any], settings: Settings, began: float) -> dict[str, Any]:
    """Add to a result what a reader needs besides the figures."""
    result = {
        "name": module.NAME,
        "title": module.TITLE,
        "quick": settings.quick,
        "congestion_control": settings.congestion,
        "environment": procstat.environment(),
        "kernel_settings": dict(lab.settings()),
        "commit": report.commit(),
        "seconds": round(time.monotonic() - began, 1),
        **result,
    }
    return result | {"expected": module.EXPECTED, "seen": module.seen(result), "goals": module.goals(result)}


def _one(name: str, settings: Settings, console: Console, output: Path, plots: bool) -> bool:
    """Run, show and save one experiment; return whether it ran."""
    module = MODULES[IN_GUEST.get(name, name)]
    began = time.monotonic()
    console.print(f"{name}: {module.TITLE} ...", highlight=False)
    try:
        result = vm.run(name, settings) if name in IN_GUEST else module.run(settings)
    except lab.LabError as error:
        console.print(f"[red]{name} did not run[/]: {error}", highlight=False)
        return False
    result = _finish(module, result, settings, began)
    _say(module, result, console, output, name, plots)
    return True


def _say(module: ModuleType, result: dict[str, Any], console: Console, output: Path, name: str, plots: bool) -> None:
    publish.show(console, module, result)
    publish.keep(module, result, output, name)
    if plots:
        try:
            publish.draw(module, result, output, name)
        except ImportError:
            console.print("No figures: matplotlib is not installed (pip install 'nvmeof-mptcp[plots]').")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--quick", is_flag=True, help="The short form: what needs no virtual machine, in about 8 minutes.")
@click.option("--congestion", metavar="NAME", help="TCP congestion control of both sides.  [default: cubic or reno]")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, show_default=True)
@click.option("--no-plots", is_flag=True, help="Tables, text and JSON only.")
@click.option("--redraw", is_flag=True, help="Run nothing; make tables and figures again from the JSON in --output.")
@click.option("--strict", is_flag=True, help="Exit with 2 when a goal is missed.")
def main(
    names: tuple[str, ...],
    quick: bool,
    congestion: str | None,
    output: Path,
    no_plots: bool,
    redraw: bool,
    strict: bool,
) -> None:
    """Run the experiments NAMES (all: aggregation, selftest, filecopy, loss, loss-vm, failover, unequal, unequal-vm,
    foreign, multipath, multipath-vm, multipath-failover, multipath-failover-vm), in network namespaces of our own; no
    root needed.

    docs/experiments.md says what each is for.
    """
    unknown = sorted(set(names) - set(FULL))
    if unknown:
        raise click.ClickException(f"there is no experiment {unknown[0]!r}; there are {', '.join(FULL)}")
    chosen = names or (QUICK if quick else FULL)
    console = Console(width=None if sys.stdout.isatty() else 160)
    output.mkdir(parents=True, exist_ok=True)
    if redraw:
        _redraw(chosen, console, output)
        return
    try:
        lab.enter("benchmarks.mptcp", sys.argv[1:])
        chosen_control = lab.choose_congestion(congestion)
    except lab.LabError as error:
        raise click.ClickException(str(error)) from error
    settings = Settings(quick, chosen_control, Path(tempfile.mkdtemp(prefix="nvmeof-", dir=_disk())))
    report.print_environment(console, procstat.environment())
    console.print(f"Congestion control on both sides: {settings.congestion}", highlight=False)
    began = time.monotonic()
    try:
        ran = [_one(name, settings, console, output, not no_plots) for name in chosen]
    finally:
        shutil.rmtree(settings.scratch, ignore_errors=True)
    console.print(f"{sum(ran)} of {len(ran)} experiments in {time.monotonic() - began:.0f} s; results in {output}")
    if not all(ran):
        raise SystemExit(1)
    if strict and not all(goal["reached"] for name in chosen for goal in _kept(output, name)["goals"]):
        raise SystemExit(2)


def _disk() -> str | None:
    """Return the directory for large files: /var/tmp is on a disk where /tmp may be memory."""
    return os.environ.get("TMPDIR") or ("/var/tmp" if Path("/var/tmp").is_dir() else None)


def _kept(output: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"{name}.json").read_text())
    return found


def _redraw(names: tuple[str, ...], console: Console, output: Path) -> None:
    for name in names:
        if not (output / f"{name}.json").exists():
            continue
        module = MODULES[IN_GUEST.get(name, name)]
        result = _kept(output, name)
        seen: Callable[[dict[str, Any]], str] = module.seen
        result |= {"expected": module.EXPECTED, "seen": seen(result), "goals": module.goals(result)}
        _say(module, result, console, output, name, True)


if __name__ == "__main__":
    main()
