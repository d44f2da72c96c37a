"""`python -m tests.interop`: a stock Linux kernel's opinion of this target and host (`make interop`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from . import (  # noqa: F401  (they register themselves)
    checks,
    checks_ana,
    checks_authentication,
    checks_config,
    checks_features,
    checks_host,
    checks_io,
    checks_json,
    checks_logs,
    checks_media,
    checks_mptcp,
    checks_namespaces,
    checks_reservations,
    checks_tls,
    checks_zns,
)
from .bench import CHECKS, Check
from .guest import LAB, NEWEST, REPOSITORY, kernels, release
from .runner import Result, Runner

QUICK_KERNEL = "6.12"
STYLE = {"ok": "green", "FAIL": "bold red", "skipped": "yellow"}


def table(results: list[Result]) -> Table:
    """Return a table: checks down, kernels across."""
    columns = list(dict.fromkeys(result.kernel for result in results))
    cells = {(result.check, result.kernel): result for result in results}
    shown = Table(title="interop: stock Linux kernels", title_justify="left")
    shown.add_column("check")
    for kernel in columns:
        shown.add_column(kernel, justify="right")
    for name in dict.fromkeys(result.check for result in results):
        row = [name]
        for kernel in columns:
            cell = cells.get((name, kernel))
            row.append(f"[{STYLE[cell.verdict]}]{cell.verdict}[/] {cell.seconds:5.1f} s" if cell else "")
        shown.add_row(*row)
    return shown


def choose(patterns: tuple[str, ...], quick: bool) -> list[Check]:
    """Return the checks that were asked for. Raises ClickException for a name that fits none."""
    for pattern in patterns:
        if not any(_fits(check, pattern) for check in CHECKS):
            raise click.ClickException(f"no check fits {pattern!r}; --list shows them")
    chosen = [c for c in CHECKS if not patterns or any(_fits(c, pattern) for pattern in patterns)]
    return [c for c in chosen if c.quick or not quick]


def _fits(check: Check, pattern: str) -> bool:
    return fnmatch(check.name, pattern) or check.name.split("/")[0] == pattern


def prepare() -> None:
    """Build missing images of the guest (tools/lab/prepare)."""
    if shutil.which("qemu-system-x86_64") is None:
        raise click.ClickException("qemu-system-x86_64 is not installed (Debian's package qemu-system-x86)")
    if subprocess.run([LAB / "prepare"], check=False).returncode:
        raise click.ClickException("tools/lab/prepare could not build the guest's images")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--kernel", "wanted", multiple=True, metavar="VERSION", help="6.1, 6.12 or newest; repeatable (all).")
@click.option("--check", "patterns", multiple=True, metavar="NAME", help="A check, or a pattern; repeatable (all).")
@click.option("--quick", is_flag=True, help=f"The short form: fewer checks, on {QUICK_KERNEL}.")
@click.option("--list", "listing", is_flag=True, help="Name the checks and end.")
@click.option("--peer", type=click.Choice(["ours", "nvmet"]), default="ours", help="nvmet tries the checks themselves.")
@click.option("--directory", type=click.Path(path_type=Path), help="Where logs go (build/interop).")
@click.option("--no-prepare", is_flag=True, help="Take the guest's images as they are.")
def main(
    wanted: tuple[str, ...],
    patterns: tuple[str, ...],
    quick: bool,
    listing: bool,
    peer: str,
    directory: Path | None,
    no_prepare: bool,
) -> None:
    """Try this target and host with stock Linux kernels in QEMU.

    Exit status: 0 when every check is ok or skipped, 1 when one failed.
    """
    chosen = choose(patterns, quick)
    if listing:
        for check in chosen:
            click.echo(
                f"{check.name:34} {'quick ' if check.quick else '      '} {(check.run.__doc__ or '').splitlines()[0]}"
            )
        return
    if not no_prepare:
        prepare()
    available = kernels()
    chosen_kernels = [available[-1] if name == NEWEST and available else name for name in wanted]
    for name in chosen_kernels:
        if name not in available:
            raise click.ClickException(f"there is no kernel {name}; there are {', '.join(available) or 'none'}")
    versions = chosen_kernels or ([QUICK_KERNEL] if quick and QUICK_KERNEL in available else available)
    if not versions:
        raise click.ClickException("there are no kernels; run tools/lab/prepare")
    directory = directory or REPOSITORY / "build" / "interop"
    console = Console(width=None if sys.stdout.isatty() else 120)

    def told(result: Result) -> None:
        console.print(f"{result.kernel:5} {result.check:34} [{STYLE[result.verdict]}]{result.verdict}[/]"
                      f" {result.seconds:6.1f} s  ", end="")  # fmt: skip
        console.print(result.detail if result.verdict == "FAIL" else result.detail[:120], markup=False, highlight=False)

    console.print("kernels:", ", ".join(map(release, versions)), markup=False, highlight=False)
    started = time.monotonic()
    runner = Runner(directory, "ours" if peer == "ours" else "nvmet", told)
    for kernel in versions:
        runner.run_kernel(kernel, chosen)
    saved = runner.save()
    console.print(table(runner.results))
    failed = [result for result in runner.results if result.verdict == "FAIL"]
    for result in failed:
        console.print(f"\n{result.check} on {result.kernel}:\n{result.detail}", markup=False, highlight=False)
    console.print(
        f"{len(runner.results)} checks, {len(failed)} failed, {time.monotonic() - started:.0f} s;"
        f" logs and results: {saved}"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
