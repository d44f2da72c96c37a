"""``bench``: load on a namespace, and its results."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import click

from nvmeof.cli import interrupts
from nvmeof.cli.types import BYTES, Number, Seconds
from nvmeof.errors import ConfigurationError
from nvmeof.host.cli import options as opt
from nvmeof.host.cli import output as out
from nvmeof.host.cli.bench_plot import check_plot, curves, draw
from nvmeof.host.cli.bench_result import (
    BenchResult,
    Saved,
    at,
    comparison,
    direction_json,
    histogram_lines,
    print_comparison,
)
from nvmeof.host.cli.bench_result import load as load_result
from nvmeof.host.cli.subsystem import PATH_HEADINGS, multipath_options, open_host, path_rows
from nvmeof.host.client import HostController
from nvmeof.host.facts import QueueFacts, SubflowFacts
from nvmeof.host.head_load import HeadLoad
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.load import PATTERNS, Figures, Load, MeasuredLoad
from nvmeof.host.mixed_load import Direction, Mix, MixedLoad, VerifyError
from nvmeof.host.multipath.facts import MemberFacts
from nvmeof.host.namespace import Namespace
from nvmeof.host.queue import Queue
from nvmeof.host.socket_queue import SocketQueue
from nvmeof.transport.paths.diag import with_diag

WARM_UP_SECONDS = 0.25
REPORT_SECONDS = 0.5
KINDS = (*PATTERNS, "randrw", "rw")

BenchLoad = Load | HeadLoad | MixedLoad


async def run_bench(
    controller: HostController | HostSubsystem,
    namespace: Namespace,
    *,
    pattern: str,
    block_bytes: int,
    depth: int,
    seconds: float,
    mix: Mix | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> BenchResult:
    """Put load on ``namespace`` for ``seconds`` after a short warm-up; ``report`` gets the progress. When the task is
    cancelled, or a command fails, the result is what was measured until then, and not ``complete``. Raises the error of
    a failed command when nothing was measured.

    ``mix``: what a load of one kind of command cannot do; ``pattern`` and ``block_bytes`` describe it then.
    """
    queues = len(_io_queues(controller))
    load = _load_of(controller, namespace, pattern, block_bytes, depth, queues, mix)
    window = await _measure(load, controller, seconds, block_bytes, report)
    figures = window.figures
    if load.error is not None and (not figures.ios or isinstance(load.error, VerifyError)):
        raise load.error
    ios = max(figures.ios, 1)
    read, write = _directions(load, figures, pattern)
    return BenchResult(
        pattern=pattern,
        block_bytes=block_bytes,
        depth=depth,
        queues=queues,
        seconds=figures.seconds,
        ios=figures.ios,
        iops=figures.iops,
        megabytes_per_second=(read.bytes + write.bytes) / figures.seconds / 1e6,
        latency_p50_us=figures.latency_us(0.5),
        latency_p99_us=figures.latency_us(0.99),
        latency_p999_us=figures.latency_us(0.999),
        latency_max_us=figures.latency_us(1.0),
        cpu_user_us_per_io=window.cpu_user_seconds / ios * 1e6,
        cpu_system_us_per_io=window.cpu_system_seconds / ios * 1e6,
        success_flag_possible=controller.options.disable_sqflow,
        complete=not window.interrupted and load.error is None,
        verified=await _verified(load, interrupted=window.interrupted),
        read=read,
        write=write,
        error=load.error,
        connections=window.connections,
        paths=window.paths,
        path_rows=window.path_rows(namespace.nsid),
    )


def _load_of(
    controller: HostController | HostSubsystem,
    namespace: Namespace,
    pattern: str,
    block_bytes: int,
    depth: int,
    queues: int,
    mix: Mix | None,
) -> BenchLoad:
    """Return the load of ``mix``, or of one kind of command, not started. Raises :class:`ConfigurationError` for a
    block size that the namespace does not take.
    """
    if block_bytes % namespace.block_bytes or block_bytes < namespace.block_bytes:
        raise ConfigurationError(f"{block_bytes} bytes are no multiple of the block size, {namespace.block_bytes}")
    if block_bytes > min(namespace.port.max_transfer_bytes, namespace.size_bytes):
        raise ConfigurationError(f"{block_bytes} bytes are more than one command or the namespace takes")
    if mix is not None:
        return MixedLoad(namespace, mix)
    if isinstance(controller, HostSubsystem):
        return HeadLoad(namespace, pattern, block_bytes, depth * queues)
    return Load(namespace, controller.io_queues, pattern, block_bytes, depth)


@dataclass(frozen=True, slots=True)
class Window:
    """The measured part of a load: its figures, this process's CPU time, and the paths before and after it."""

    figures: Figures
    cpu_user_seconds: float
    cpu_system_seconds: float
    connections: list[QueueFacts]
    paths_before: list[MemberFacts]
    paths: list[MemberFacts]
    interrupted: bool
    """The task was cancelled during the measurement."""

    def path_rows(self, nsid: int) -> list[tuple[object, ...]]:
        """Return a line of a table for each path: how it reaches ``nsid``, and its traffic during the window."""
        before = {each["name"]: each for each in self.paths_before}
        return path_rows(nsid, before, self.paths, self.figures.seconds)


async def _measure(
    load: BenchLoad,
    controller: HostController | HostSubsystem,
    seconds: float,
    block_bytes: int,
    report: Callable[[str], None],
) -> Window:
    """Warm a load up, measure it for ``seconds``, and end it."""
    # a load of a given amount is measured from its first command on
    limited = isinstance(load, MixedLoad) and load.mix.limit_bytes is not None
    warm_up = 0.0 if limited else WARM_UP_SECONDS
    load.start()
    interrupted = False
    try:
        if warm_up:
            await asyncio.wait([load.finished], timeout=warm_up)
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
    return Window(figures, user, system, connections, paths_before, paths, interrupted)


def _directions(load: MeasuredLoad, figures: Figures, pattern: str) -> tuple[Direction, Direction]:
    """Return the results of the reads, and those of the writes."""
    if isinstance(load, MixedLoad):
        return load.reads, load.writes
    whole = Direction(figures.ios, figures.ios * figures.block_bytes, figures.latencies_ns)
    return (Direction(), whole) if pattern.endswith("write") else (whole, Direction())


async def _verified(load: MeasuredLoad, *, interrupted: bool) -> int:
    """Check the data that a load has written; return the number of commands whose data was checked in all."""
    if not isinstance(load, MixedLoad):
        return 0
    if load.mix.verify and not interrupted:
        await load.verify_written()
    return load.verified


async def _watch(load: MeasuredLoad, began: float, seconds: float, size: int, report: Callable[[str], None]) -> None:
    """Wait until the time is over or the load has ended; report twice a second."""
    counted, then = 0, began
    figures = load if isinstance(load, MixedLoad) else None
    sent = 0
    while not load.finished.done() and (left := began + seconds - time.perf_counter()) > 0:
        await asyncio.wait([load.finished], timeout=min(left, REPORT_SECONDS))
        now, ios = time.perf_counter(), len(load.latencies_ns)
        rate = (ios - counted) / (now - then) if now > then else 0.0
        done = figures.counted_bytes if figures is not None else ios * size
        speed = (done - sent) / (now - then) if now > then else 0.0
        report(f"bench: {now - began:.1f} of {seconds:g} s, {rate:,.0f} IOPS, {speed / 1e6:,.1f} MB/s")
        counted, then, sent = ios, now, done


@opt.command("bench")
@opt.optional_controller_options
@multipath_options()
@opt.namespace_option
@click.option("--rw", type=click.Choice(KINDS), default="randread", show_default=True, help="Kind of load.")
@click.option("--rwmixread", type=Number(0, 100), default=50, metavar="N", help="Percent reads of rw and randrw.  [50]")
@click.option(
    "-b",
    "--block-size",
    "--bs",
    "block_size",
    default="4k",
    metavar="SIZE",
    help="Bytes: 4k, a range 4k-64k, or 4k/70:64k/30.",
)
@click.option(
    "-d",
    "--depth",
    "--iodepth",
    "depth",
    type=Number(1, 4095),
    default=32,
    show_default=True,
    metavar="N",
    help="Commands per queue.",
)
@click.option(
    "--runtime",
    type=Seconds(0.01),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Duration of the measurement.",
)
@click.option("--size", type=BYTES, metavar="SIZE", help="Bytes to transfer in all.")
@click.option("--rate", type=BYTES, metavar="SIZE", help="At most so many bytes per second.")
@click.option("--rate-iops", type=Number(1), metavar="N", help="At most so many commands per second.")
@click.option("--verify", type=click.Choice(["crc32c"]), help="Check the data that was written.")
@click.option("--write-anyway", is_flag=True, help="Overwrite the data of the namespace.")
@click.option("--histogram", is_flag=True, help="Show how the latencies are distributed.")
@click.option("--plot", metavar="FILE", help="Draw the latencies: FILE.svg or FILE.png.")
@click.option("--compare", nargs=2, metavar="A B", help="Compare two results of -o json.")
@opt.output_option
@opt.coroutine
async def bench_command(output: str, nsid: int | None, **options: Any) -> None:
    """Measure IOPS, throughput, latency, CPU time. Writing needs --write-anyway."""
    if options["plot"]:
        check_plot(options["plot"])
    if options["compare"]:
        _compare(options["compare"][0], options["compare"][1], output, options["plot"])
        return
    if not options["traddr"]:
        raise click.UsageError("Missing option '-a' / '--traddr', or a TARGET: a URL or a saved connection.")
    rw, mix = options["rw"], mix_of(options)
    if rw not in ("read", "randread") and not options["write_anyway"]:
        raise ConfigurationError(f"{rw} overwrites the data of the namespace: give --write-anyway to allow it")
    options["queue_size"] = max(options["queue_size"], options["depth"] + 1)
    async with await open_host(options) as controller:
        namespace = await opt.open_namespace(controller, nsid)
        if mix is not None:
            mix = replace(mix, depth=mix.depth * len(_io_queues(controller)))
        with out.live_line() as report:
            result = await run_bench(
                controller, namespace, pattern=rw, block_bytes=max(size for size, _ in sizes_of(options["block_size"])),
                depth=options["depth"], seconds=options["runtime"], mix=mix, report=report,
            )  # fmt: skip
    result.job_options = _job_options(options)
    _show(result, output, options)
    if result.error is not None:
        raise result.error
    if not result.complete:
        raise asyncio.CancelledError  # the output says that the command was interrupted


def _show(result: BenchResult, output: str, options: dict[str, Any]) -> None:
    """Print a result, and draw it."""
    if output == "json":
        out.print_json(result.as_json())
    else:
        print_result(result)
        for name, each in (("read", result.read), ("write", result.write)):
            if options["histogram"] and each.ios:
                print(f"{name} latencies:")
                for line in histogram_lines(each.latencies_ns):
                    print(line)
    if options["plot"]:
        directions = {
            name: direction_json(each, result.seconds)
            for name, each in (("read", result.read), ("write", result.write))
            if each.ios
        }
        title = f"{result.pattern}, {options['block_size']}, depth {result.depth} x {result.queues}"
        draw(options["plot"], curves(Saved("", directions, None)), title)
        out.remark(f"drew {options['plot']}")


def _compare(one: str, other: str, output: str, plot: str | None) -> None:
    a, b = load_result(one), load_result(other)
    rows = comparison(a, b)
    if output == "json":
        out.print_json({"a": one, "b": other, "figures": rows})
    else:
        print_comparison(a, b, rows)
    if plot:
        draw(plot, [*curves(a, one), *curves(b, other)], f"{one} and {other}")
        out.remark(f"drew {plot}")


def sizes_of(text: str) -> list[tuple[int, int]]:
    """Read --block-size: sizes with their weights. Raises :class:`click.BadParameter`, ConfigurationError."""
    low, dash, high = text.partition("-")
    if dash:
        size, most = BYTES.convert(low, None, None), BYTES.convert(high, None, None)
        if not 0 < size <= most:
            raise ConfigurationError(f"--block-size {text}: the first size must be the smaller one")
        found = []
        while size < most:
            found.append((size, 1))
            size *= 2
        return [*found, (most, 1)]
    if "/" not in text:
        return [(BYTES.convert(text, None, None), 1)]
    pairs = []
    for part in text.split(":"):
        size_text, _, percent = part.partition("/")
        if not (percent.isascii() and percent.isdigit() and 0 < int(percent) <= 100):
            raise ConfigurationError(f"--block-size {text}: {part!r} is no SIZE/PERCENT")
        pairs.append((BYTES.convert(size_text, None, None), int(percent)))
    if sum(percent for _, percent in pairs) != 100:
        raise ConfigurationError(f"--block-size {text}: the percentages must add up to 100")
    return pairs


def mix_of(options: dict[str, Any]) -> Mix | None:
    """Return the mix that the options ask for; None where one kind of command is enough."""
    sizes, rw = sizes_of(options["block_size"]), options["rw"]
    plain = rw in PATTERNS and len(sizes) == 1
    if plain and not any(options[name] for name in ("size", "rate", "rate_iops", "verify")):
        return None
    percent = options["rwmixread"] if rw in ("rw", "randrw") else 0 if rw.endswith("write") else 100
    return Mix(
        sizes=sizes,
        read_percent=percent,
        random=rw.startswith("rand"),
        depth=options["depth"],
        bytes_per_second=options["rate"],
        ios_per_second=options["rate_iops"],
        limit_bytes=options["size"],
        verify=options["verify"] is not None,
    )


def _job_options(options: dict[str, Any]) -> dict[str, str]:
    """Return the options of the run under fio's names."""
    names = {
        "rw": "rw", "block_size": "bs", "depth": "iodepth", "nr_io_queues": "numjobs", "runtime": "runtime",
        "size": "size", "rate": "rate", "rate_iops": "rate_iops", "verify": "verify", "rwmixread": "rwmixread",
    }  # fmt: skip
    found = {fio: str(options[name]) for name, fio in names.items() if options.get(name) is not None}
    if options["rw"] not in ("rw", "randrw"):
        del found["rwmixread"]
    return found


def _io_queues(controller: HostController | HostSubsystem) -> list[Queue]:
    """Return the I/O queues of all live paths."""
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


def _sizes_text(result: BenchResult) -> str:
    given = result.job_options.get("bs", "")
    return given if "-" in given or "/" in given else out.block_size(result.block_bytes)


def print_result(result: BenchResult) -> None:
    """Print the figures for a person."""
    out.print_fields(
        (
            ("load", f"{result.pattern}, {_sizes_text(result)}, depth {result.depth} x {result.queues}"),
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
    if result.read.ios and result.write.ios:
        for name, side in (("read", result.read), ("write", result.write)):
            speed = side.bytes / result.seconds / 1e6
            p50, p99 = (at(side.latencies_ns, share) / 1000 for share in (0.5, 0.99))
            print(
                f"{name:<16} : {side.ios / result.seconds:,.0f} IOPS, {speed:,.1f} MB/s, "
                f"p50 {p50:.1f} us, p99 {p99:.1f} us"
            )
    if result.verified:
        print(f"verified         : {result.verified:,} commands' data by CRC32C")
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
