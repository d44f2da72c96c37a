"""``python -m benchmarks`` runs them all, or some; ``... profile`` shows where the target's time goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from benchmarks import codec, compare, connection, isolation, loopback, offload, procstat, profiling, report, start, tls
from benchmarks.cases import Case, full_grid, quick_grid
from benchmarks.processes import choose_cores, mptcp_available
from benchmarks.session import BenchmarkError

P = TypeVar("P", isolation.Plan, offload.Plan, tls.Plan)
R = TypeVar("R")
PARTS = ("codec", "connection", "loopback", "mptcp-start", "offload", "tls")
ALONE = ("isolation",)
"""Parts that run only when they are asked for: they take their time."""
QUICK = loopback.Plan(seconds=0.4, warmup_seconds=0.1, pairs=1, most_pairs=3, size_bytes=1 << 28)
FULL = loopback.Plan()


def _console() -> Console:
    # a table that is piped into a file should not be folded at 80 columns
    return Console(width=None if sys.stdout.isatty() else 200)


def _cases(quick: bool, match: str | None, transport: str | None, file: bool, console: Console) -> list[Case]:
    transports: tuple[str, ...] = (transport,) if transport else ("tcp", "mptcp")
    if "mptcp" in transports and not mptcp_available():
        console.print("This kernel has no MPTCP: its cases are left out.")
        transports = tuple(t for t in transports if t != "mptcp")
    cases = quick_grid(transports) if quick else full_grid(transports)
    if file:
        plain = [c for c in cases if not (c.digests or c.flow_control)]
        cases += [replace(case, storage="file") for case in plain]
    return [case for case in cases if match is None or fnmatch(case.name, match)]


def _plan(
    quick: bool,
    seconds: float | None,
    pairs: int | None,
    size_mib: int | None,
    engine: str,
    wait: str | None,
    congestion: str | None,
) -> loopback.Plan:
    plan = QUICK if quick else FULL
    if seconds is not None:
        plan = replace(plan, seconds=seconds)
    if pairs is not None:
        plan = replace(plan, pairs=pairs, most_pairs=max(pairs, plan.most_pairs if pairs > 1 else 1))
    if size_mib is not None:
        plan = replace(plan, size_bytes=size_mib << 20)
    # with one CPU a spinning generator would only keep the target from running
    patience = wait or ("spin" if len(os.sched_getaffinity(0)) > 1 else "poll")
    return replace(plan, engine=engine, wait=patience, congestion=congestion)


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="A short form: fewer cases, short samples, about half a minute.")
@click.option(
    "--only", "only", multiple=True, type=click.Choice([*PARTS, *ALONE]), help="Run only this part (repeatable)."
)
@click.option("--case", "match", help="Only cases with this name or pattern, e.g. 'tcp-read-4k-*'.")
@click.option("--transport", type=click.Choice(["tcp", "mptcp"]), help="Loopback: only this transport.")
@click.option("--file", "file", is_flag=True, help="Loopback: measure a file namespace too (in TMPDIR).")
@click.option("--seconds", type=click.FloatRange(0.05, 60), help="Length of a sample; isolation: of each scenario.")
@click.option(
    "--pairs", type=click.IntRange(1, 100), help="Loopback: quiet samples of each side; offload, tls: rounds."
)
@click.option(
    "--size-mib", type=click.IntRange(1, 1 << 20), help="Loopback: size of the namespace and of the floor's memory."
)
@click.option(
    "--engine", type=click.Choice(["auto", "c", "python"]), default="auto", show_default=True, help="Load loop."
)
@click.option(
    "--wait", type=click.Choice(["spin", "poll"]), help="How the generator waits [default: spin on two CPUs]."
)
@click.option("--congestion", help="TCP congestion control of all sides, e.g. reno [default: the system's].")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file [default: benchmarks/results]."
)
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Isolation: measure the target of this other checkout too, in the same run.",
)
@click.option("--strict", is_flag=True, help="Exit with 2 when a goal is missed.")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Benchmarks of the codecs, of the connection without sockets, of a target process on loopback, of the first MiB of
    a connection over MPTCP, of the offload device, and of TLS.

    README.md in this folder says what each number means.
    """
    if context.invoked_subcommand is not None:
        return
    console = _console()
    environment = procstat.environment()
    report.print_environment(console, environment)
    outcome: dict[str, Any] = {"environment": environment, "commit": report.commit(), "quick": options["quick"]}
    parts = options["only"] or PARTS
    if "codec" in parts:
        outcome["codec"] = codec.run(quick=options["quick"])
        report.print_codec(console, outcome["codec"])
    if "connection" in parts:
        outcome["connection"] = connection.run(quick=options["quick"])
        report.print_connection(console, outcome["connection"])
    if "loopback" in parts:
        _run_loopback(console, outcome, options)
    if "isolation" in parts:
        _run_isolation(console, outcome, options)
    if "mptcp-start" in parts:
        _run_start(console, outcome, options)
    if "offload" in parts:
        _run_offload(console, outcome, options)
    if "tls" in parts:
        _run_tls(console, outcome, options)
    try:
        path = report.save(outcome, options["output"])
    except OSError as error:
        raise click.ClickException(f"the results could not be written: {error}") from error
    console.print(f"Results: {path}", highlight=False)
    goals = outcome.get("goals", [])
    failed = any("error" in r for r in outcome.get("loopback", []))
    if failed:
        context.exit(1)
    if options["strict"] and not all(goal["reached"] for goal in goals):
        context.exit(2)


def _run_loopback(console: Console, outcome: dict[str, Any], options: dict[str, Any]) -> None:
    cases = _cases(options["quick"], options["match"], options["transport"], options["file"], console)
    plan = _plan(
        options["quick"],
        options["seconds"],
        options["pairs"],
        options["size_mib"],
        options["engine"],
        options["wait"],
        options["congestion"],
    )
    cores = choose_cores()
    if cores.server is None:
        console.print("Only one CPU: target and generator share it, and the rates say little.")
    outcome["plan"] = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    try:
        results = loopback.run(cases, cores, plan, lambda text: console.print(text, highlight=False, markup=False))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    outcome["loopback"] = results
    goals = loopback.check_goals(results)
    outcome["goals"] = goals
    report.print_loopback(console, results)
    report.print_goals(console, goals)


def _run_isolation(console: Console, outcome: dict[str, Any], options: dict[str, Any]) -> None:
    cores = choose_cores()
    if cores.server is None:
        raise click.ClickException("the isolation benchmark needs two CPUs: one for the target, one for the load")
    plan = _timed(isolation.QUICK if options["quick"] else isolation.Plan(), options)
    match = options["match"] or "*"
    scenarios = [name for name in isolation.SCENARIOS if fnmatch(name, match)]
    if not scenarios:
        raise click.ClickException(f"no scenario is called {match!r}; there are {', '.join(isolation.SCENARIOS)}")
    builds = [isolation.this_build()]
    if options["against"]:
        builds.append(isolation.Build(options["against"].name, options["against"].resolve()))

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    outcome["isolation_plan"] = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    results = isolation.run(scenarios, builds, cores, plan, say)
    outcome["isolation"] = results
    isolation.print_results(console, results)
    outcome.setdefault("goals", []).extend(isolation.check_goals(results))


def _run_start(console: Console, outcome: dict[str, Any], options: dict[str, Any]) -> None:
    if not mptcp_available():
        console.print("This kernel has no MPTCP: mptcp-start is left out.")
        return
    plan = replace(start.QUICK if options["quick"] else start.FULL, congestion=options["congestion"])
    result = _measured(outcome, "mptcp-start", lambda: start.run(choose_cores(), plan))
    report.print_start(console, result)
    _conclude(console, outcome, start.goals(result))


def _run_offload(console: Console, outcome: dict[str, Any], options: dict[str, Any]) -> None:
    plan = _timed(offload.QUICK if options["quick"] else offload.FULL, options)
    results = _measured(outcome, "offload", lambda: offload.run(plan))
    offload.print_results(console, results)
    _conclude(console, outcome, offload.check_goals(results))


def _run_tls(console: Console, outcome: dict[str, Any], options: dict[str, Any]) -> None:
    plan = _timed(tls.QUICK if options["quick"] else tls.FULL, options)
    results = _measured(outcome, "tls", lambda: tls.run(choose_cores(), plan))
    tls.print_results(console, results)
    _conclude(console, outcome, tls.check_goals(results))


def _timed(plan: P, options: dict[str, Any]) -> P:
    """Return a plan with the seconds and rounds that were asked for."""
    asked = {"seconds": options["seconds"], "rounds": options["pairs"]}
    return replace(plan, **{name: value for name, value in asked.items() if value is not None})


def _measured(outcome: dict[str, Any], part: str, measure: Callable[[], R]) -> R:
    """Measure a part and take note of its results."""
    try:
        outcome[part] = results = measure()
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    return results


def _conclude(console: Console, outcome: dict[str, Any], reached: list[dict[str, Any]]) -> None:
    """Take note of a part's goals, and print them."""
    outcome.setdefault("goals", []).extend(reached)
    report.print_goals(console, reached)


@main.command("profile")
@click.option("--case", "name", default="tcp-read-4k-d32", show_default=True, help="Name of a loopback case.")
@click.option("--seconds", type=click.FloatRange(0.5, 60), default=4.0, show_default=True)
@click.option("--lines", type=click.IntRange(1, 200), default=25, show_default=True, help="How many lines to print.")
@click.option(
    "--cprofile", is_flag=True, help="cProfile (calls, distorted times) instead of sampling (lines, true times)."
)
def profile(name: str, seconds: float, lines: int, cprofile: bool) -> None:
    """Where the target's time goes under one loopback case."""
    case = next((c for c in full_grid() if c.name == name), None)
    if case is None:
        raise click.ClickException(f"there is no case {name!r}; one is {Case('read', 4096, 32).name!r}")
    try:
        click.echo(profiling.run(case, seconds, lines, cprofile=cprofile))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error


@main.command("compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
def compare_files(before: Path, after: Path) -> None:
    """Two result files side by side, each figure with its quotient."""
    try:
        found = compare.compare(before, after, _console())
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    if not found:
        raise click.ClickException("the two files have no figure in common")


if __name__ == "__main__":
    main()
