"""`python -m tests.fuzz`: hostile bytes for everything that takes bytes from a peer (docs/fuzzing.md)."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import click

from tests.fuzz.engine import CORPUS, Result, by_chance, guided, keep
from tests.fuzz.harness import HARNESSES

MODULES = ("tests.fuzz.sans_io", "tests.fuzz.with_loop", "tests.fuzz.control")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=5.0, show_default=True, help="How long, all harnesses together.")
@click.option("--harness", "names", multiple=True, help="Only this one; repeatable.  [default: all]")
@click.option("--module", "modules", multiple=True, help="A module with further harnesses; repeatable.")
@click.option("--seed", type=int, help="Of the mutations.  [default: of the time]")
@click.option("--atheris", is_flag=True, help="Guided by coverage, one harness; needs the extra `fuzz`.")
@click.option("--corpus", type=click.Path(path_type=Path), default=CORPUS, help="Where inputs are, and are kept.")
@click.option("--list", "listing", is_flag=True, help="Name the harnesses and end.")
def main(
    minutes: float, names: tuple[str, ...], modules: tuple[str, ...], seed: int | None, atheris: bool, corpus: Path,
    listing: bool,
) -> None:  # fmt: skip
    """Give hostile inputs to harnesses until the time is over or an invariant breaks.

    Exit status: 0 when nothing broke.
    """
    for module in (*MODULES, *modules):
        importlib.import_module(module)
    chosen = names or tuple(HARNESSES)
    unknown = [name for name in chosen if name not in HARNESSES]
    if unknown:
        raise click.UsageError(f"there is no harness {unknown[0]!r}: {', '.join(HARNESSES)}")
    if listing:
        for name in chosen:
            click.echo(f"{name:16} {(HARNESSES[name].__doc__ or '').strip()}")
        return
    if atheris:
        if len(chosen) != 1:
            raise click.UsageError("--atheris takes one --harness: its process ends with it")
        guided(chosen[0], minutes * 60, corpus, click.echo)
    start = int(time.time()) if seed is None else seed
    click.echo(f"seed {start}")
    results = [_run(name, minutes * 60 / len(chosen), start, corpus) for name in chosen]
    count, seconds = sum(each.pdus for each in results), sum(each.seconds for each in results)
    click.echo(f"{'together':16} {count:9} PDUs in {seconds:6.1f} s, {count / max(seconds, 1e-9):7.0f} per second")
    sys.exit(any(each.failure is not None for each in results))


def _run(name: str, seconds: float, seed: int, corpus: Path) -> Result:
    result = by_chance(name, seconds, seed, corpus)
    rate = result.pdus / max(result.seconds, 1e-9)
    click.echo(f"{name:16} {result.pdus:9} PDUs in {result.seconds:6.1f} s, {rate:7.0f} per second")
    if result.failure is not None:
        data, what = result.failure
        click.echo(f"{name}: {what}\n  the input is in {keep(name, data, corpus)} (--seed {seed})")
    return result


if __name__ == "__main__":
    main()
