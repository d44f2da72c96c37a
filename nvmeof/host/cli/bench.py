"""``bench``: load on a namespace, and what came of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import click

from nvmeof.cli import interrupts
from nvmeof.cli.types import BYTES, Number, Seconds
from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.subsystem import PATH_HEADINGS, multipath_options, open_host, path_rows
from nvmeof.host.client import HostController
from nvmeof.host.facts import QueueFacts, SubflowFacts
from nvmeof.host.head_load import HeadLoad
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.load import PATTERNS, Figures, Load
from nvmeof.host.multipath.facts import MemberFacts
from nvmeof.host.namespace import Namespace
from nvmeof.host.queue import Queue
from nvmeof.host.socket_queue import SocketQueue
from nvmeof.transport.paths.diag import with_diag

WARM_UP_SECONDS = 0.25
REPORT_SECONDS = 0.5


@dataclass(slots=True)
class BenchResult:
    """Figures of one run; latencies in microseconds, CPU in microseconds of this process per I/O."""

    pattern: str
    block_bytes: int
    depth: int
    queues: int
    seconds: float
    ios: int
    iops: float
    megabytes_per_second: float
    latency_p50_us: float
    latency_p99_us: float
    latency_p999_us: float
    latency_max_us: float
    cpu_user_us_per_io: float
    cpu_system_us_per_io: float
    success_flag_possible: bool
    complete: bool = True
    """True if the load ran for the full time."""
    error: NvmeofError | None = None
    """The error of the command that ended the load."""
    connections: list[QueueFacts] = field(default_factory=list)
    paths: list[MemberFacts] = field(default_factory=list)
    """Of several: what each is, and what went over it since it was connected."""
    path_rows: list[tuple[object, ...]] = field(default_factory=list)
    """The same for people: what went over each path while it was measured."""


async def run_bench(
    controller: HostController | HostSubsystem,
    namespace: Namespace,
    *,
    pattern: str,
    block_bytes: int,
    depth: int,
    seconds: float,
    report: Callable[[str], None] = lambda text: None,
) -> BenchResult:
    """Put load on ``namespace`` for ``seconds`` after a short warm-up; ``report`` gets the progress. When the task is
    cancelled, or a command fails, the result is what was measured until then, and not ``complete``. Raises what a
    command failed with when nothing was measured.
    """
    if block_bytes % namespace.block_bytes or block_bytes < namespace.block_bytes:
        raise ConfigurationError(f"{block_bytes} bytes are no multiple of the block size, {namespace.block_bytes}")
    if block_bytes > min(namespace.port.max_transfer_bytes, namespace.size_bytes):
        raise ConfigurationError(f"{block_bytes} bytes are more than one command or the namespace takes")
    queues = len(_io_queues(controller))
    load: Load | HeadLoad
    if isinstance(controller, HostSubsystem):
        load = HeadLoad(namespace, pattern, block_bytes, depth * queues)
    else:
        load = Load(namespace, controller.io_queues, pattern, block_bytes, depth)
    measured = await _measure(controller, load, block_bytes, seconds, report)
    figures, ios = measured.figures, max(measured.figures.ios, 1)
    if load.error is not None and not figures.ios:
        raise load.error
    return BenchResult(
        pattern=pattern,
        block_bytes=block_bytes,
        depth=depth,
        queues=queues,
        seconds=figures.seconds,
        ios=figures.ios,
        iops=figures.iops,
        megabytes_per_second=figures.megabytes_per_second,
        latency_p50_us=figures.latency_us(0.5),
        latency_p99_us=figures.latency_us(0.99),
        latency_p999_us=figures.latency_us(0.999),
        latency_max_us=figures.latency_us(1.0),
        cpu_user_us_per_io=measured.user_seconds / ios * 1e6,
        cpu_system_us_per_io=measured.system_seconds / ios * 1e6,
        success_flag_possible=controller.options.disable_sqflow,
        complete=not measured.interrupted and load.error is None,
        error=load.error,
        connections=measured.connections,
        paths=measured.paths,
        path_rows=path_rows(
            namespace.nsid, {each["name"]: each for each in measured.paths_before}, measured.paths, figures.seconds
        ),
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was counted while a load ran. ``interrupted``: for less than the full time, since the task was cancelled."""

    figures: Figures
    user_seconds: float
    system_seconds: float
    interrupted: bool
    connections: list[QueueFacts]
    paths_before: list[MemberFacts]
    paths: list[MemberFacts]


async def _measure(
    controller: HostController | HostSubsystem,
    load: Load | HeadLoad,
    block_bytes: int,
    seconds: float,
    report: Callable[[str], None],
) -> _Measured:
    """Run the load: a warm-up, then ``seconds`` in which is counted."""
    load.start()
    interrupted = False
    try:
        await asyncio.wait([load.finished], timeout=WARM_UP_SECONDS)
        before, began, paths_before = os.times(), time.perf_counter(), _paths(controller)
        load.open_window()
        try:
            await _watch(load, began, seconds, block_bytes, report)
        except asyncio.CancelledError:
            interrupted = True
        after = os.times()
        with interrupts.unhurried():
            figures = load.close_window()
        connections, paths = _figures(controller), _paths(controller)
    finally:
        load.stop()
        if interrupted:
            asyncio.current_task().uncancel()  # type: ignore[union-attr]
        await load.finished
    user, system = after.user - before.user, after.system - before.system
    return _Measured(figures, user, system, interrupted, connections, paths_before, paths)


async def _watch(load: Load | HeadLoad, began: float, seconds: float, size: int, report: Callable[[str], None]) -> None:
    """Wait until the time is over or the load has ended; report twice a second."""
    counted, then = 0, began
    while not load.finished.done() and (left := began + seconds - time.perf_counter()) > 0:
        await asyncio.wait([load.finished], timeout=min(left, REPORT_SECONDS))
        now, ios = time.perf_counter(), len(load.latencies_ns)
        rate = (ios - counted) / (now - then) if now > then else 0.0
        report(f"bench: {now - began:.1f} of {seconds:g} s, {rate:,.0f} IOPS, {rate * size / 1e6:,.1f} MB/s")
        counted, then = ios, now


@opt.command("bench")
@opt.controller_options
@multipath_options()
@opt.namespace_option
@click.option("--rw", type=click.Choice(PATTERNS), default="randread", show_default=True, help="Kind of load.")
@click.option(
    "-b", "--block-size", type=BYTES, default=4096, metavar="SIZE", help="Bytes of one command.  [default: 4k]"
)
@click.option(
    "-d", "--depth", type=Number(1, 4095), default=32, show_default=True, metavar="N", help="Commands per queue."
)
@click.option(
    "--runtime", type=Seconds(0.01), default=5.0, show_default=True, metavar="SECONDS", help="How long it measures."
)
@click.option("--write-anyway", is_flag=True, help="Yes, overwrite what is on the namespace.")
@opt.output_option
@opt.coroutine
async def bench_command(
    nsid: int | None,
    rw: str,
    block_size: int,
    depth: int,
    runtime: float,
    write_anyway: bool,
    output: str,
    **options: Any,
) -> None:
    """Measure IOPS, throughput, latency and CPU time. Writing destroys data and needs --write-anyway."""
    if rw.endswith("write") and not write_anyway:
        raise ConfigurationError(f"{rw} overwrites what is on the namespace: say --write-anyway if that may be")
    options["queue_size"] = max(options["queue_size"], depth + 1)
    async with await open_host(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        with out.live_line() as report:
            result = await run_bench(
                controller, namespace, pattern=rw, block_bytes=block_size, depth=depth, seconds=runtime, report=report
            )
    if output == "json":
        out.print_json(
            {
                each.name: getattr(result, each.name)
                for each in fields(result)
                if each.name not in ("error", "path_rows")
            }
        )
    else:
        print_result(result)
    if result.error is not None:
        raise result.error
    if not result.complete:
        raise asyncio.CancelledError  # the command was interrupted, and says so


def _io_queues(controller: HostController | HostSubsystem) -> list[Queue]:
    """Return the I/O queues of all paths that are live."""
    if not isinstance(controller, HostSubsystem):
        return controller.io_queues
    live = [member.controller for member in controller.paths if member.usable]
    return [queue for each in live if each is not None for queue in each.io_queues]


def _paths(controller: HostController | HostSubsystem) -> list[MemberFacts]:
    return controller.core.describe()["paths"] if isinstance(controller, HostSubsystem) else []


def _figures(controller: HostController | HostSubsystem) -> list[QueueFacts]:
    """Return the facts of the I/O queues, with each subflow's backup flag and congestion control."""
    found: list[QueueFacts] = []
    for queue in _io_queues(controller):
        each: QueueFacts = {
            "qid": queue.qid,
            "entries": queue.entries,
            "outstanding": len(queue.requests),
            "completed": queue.completed,
            **queue.device.describe(queue),
        }
        if isinstance(queue.private, SocketQueue):
            each["subflows"] = with_diag(queue.private.endpoint.describe()).as_dict()["subflows"]
        found.append(each)
    return found


def _subflow_rows(subflows: list[SubflowFacts]) -> list[tuple[object, ...]]:
    """Return a line of a table for each subflow of a connection."""
    total = sum((each["bytes_received"] or 0) + (each["bytes_sent"] or 0) for each in subflows)
    return [
        (
            f"  {each['local']} - {each['peer']}",
            each["state"].lower() + (" backup" if each["backup"] else ""),
            out.size(each["bytes_received"] or 0),
            out.size(each["bytes_sent"] or 0),
            f"{((each['bytes_received'] or 0) + (each['bytes_sent'] or 0)) / total if total else 0:.0%}",
            f"{(each['rtt_us'] or 0) / 1000:.2f} ms",
            each["cwnd_segments"] or 0,
            each["retransmits"] or 0,
            each["congestion"] or "",
        )
        for each in subflows
    ]


def print_result(result: BenchResult) -> None:
    """Print the figures for a person."""
    out.print_fields(
        (
            ("load", f"{result.pattern}, {out.block_size(result.block_bytes)}, depth {result.depth} x {result.queues}"),
            ("measured", f"{result.seconds:.2f} s" + ("" if result.complete else ", ended early")),
            ("IOPS", f"{result.iops:,.0f}"),
            ("throughput", f"{result.megabytes_per_second:,.1f} MB/s"),
            (
                "latency",
                (
                    f"p50 {result.latency_p50_us:.1f} us, p99 {result.latency_p99_us:.1f} us, "
                    f"p99.9 {result.latency_p999_us:.1f} us, max {result.latency_max_us:.1f} us"
                ),
            ),
            (
                "host CPU per I/O",
                f"{result.cpu_user_us_per_io:.2f} us user, {result.cpu_system_us_per_io:.2f} us system",
            ),
        )
    )
    if result.path_rows:
        out.print_table(PATH_HEADINGS, result.path_rows, right=PATH_HEADINGS[3:], key="  path")
    for each in result.connections:
        parts = [out.transport_in_use(each)]
        if each.get("congestion"):
            parts.append(str(each["congestion"]))
        if each.get("retransmits") is not None:
            parts.append(f"{each['retransmits']} retransmissions")
        if each.get("rtt_us") is not None:
            parts.append(f"RTT {each['rtt_us']} us")
        print(f"queue {each['qid']} : {', '.join(parts)}")
        subflows = each.get("subflows") or []
        if len(subflows) > 1:
            headings = ("  subflow", "state", "in", "out", "share", "RTT", "cwnd", "resent", "control")
            out.print_table(headings, _subflow_rows(subflows), right=headings[2:-1], key="  subflow")


COMMANDS = (bench_command,)
