"""What counting commands costs: CPU per command with no meters, with counters, and with latency histograms, in turns.

    python -m benchmarks.metering              # the target's driver alone, without a kernel: an upper bound
    python -m benchmarks.metering --sockets    # a target's process under load over loopback, user CPU per I/O
    python -m benchmarks.metering --agree      # p50 and p99 of the metrics beside those of the load generator

Each line is one case; the figures are medians over the rounds, in microseconds, and what each costs beyond no meters.
Goals: 3 % for counters, 10 % for histograms, of a process' user CPU (``--sockets``); p50 and p99 within 20 % where
the storage takes most of the time (``--agree``): a host also sees the network, and the target's socket buffer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.processes import choose_cores, free_port, generate, pinned, running_target

VARIANTS: Final = ("off", "counters", "histograms")
BATCHES: Final = 40
"""Batches of rounds of a case in one process; the fastest counts, for the others were disturbed."""
ROUNDS: Final = 30
SIZE: Final = "256M"
AGREE_CASES: Final = (
    ("ramdisk:64M,delay:read=20ms", 8),
    ("ramdisk:64M,delay:read=5ms", 1),
    ("ramdisk:64M,delay:read=1ms", 32),
    ("ramdisk:64M", 32),
)
SOCKET_CASES: Final = (
    ("read 4 KiB, one by one", ["--op", "read", "--depth", "1"]),
    ("read 4 KiB, depth 32", ["--op", "read", "--depth", "32"]),
    ("write 4 KiB, depth 32", ["--op", "write", "--depth", "32"]),
    ("read 128 KiB, depth 8", ["--op", "read", "--bs", "131072", "--depth", "8"]),
)


def _worker(variant: str) -> None:
    """Run the cases of one variant; print seconds of CPU per command by case."""
    from benchmarks import driven_target as driven
    from nvmeof.target.meters import Meters

    meters = {"off": None, "counters": Meters(None), "histograms": Meters(time.perf_counter)}[variant]
    target = driven.DrivenTarget(meters=meters)
    figures: dict[str, float] = {}
    for case in driven.CASES:
        figures[case.name] = _fastest(target.case(case)) / driven.COMMANDS
    target.close()
    print(json.dumps(figures))


def _fastest(once: Callable[[], int]) -> float:
    for _ in range(ROUNDS):
        once()
    found = []
    for _ in range(BATCHES):
        began = time.process_time()
        for _ in range(ROUNDS):
            once()
        found.append((time.process_time() - began) / ROUNDS)
    return min(found)


def _alone(rounds: int) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for variant in VARIANTS:
            argv = [sys.executable, str(Path(__file__)), "--worker", variant]
            process = pinned(argv, choose_cores().server, stdout=subprocess.PIPE)
            for name, seconds in json.loads(process.communicate()[0]).items():
                found.setdefault(name, {}).setdefault(variant, []).append(seconds * 1e6)
    return found


def _sockets(rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    cores = choose_cores()
    with contextlib.ExitStack() as stack:
        servers = {}
        for variant in VARIANTS:
            options = [] if variant == "off" else ["--metrics", "127.0.0.1:0"]
            options += ["--no-metrics-latency"] * (variant == "counters")
            target = running_target("tcp", ["--ramdisk", SIZE, *options], cores.server)
            servers[variant] = stack.enter_context(target)
        for name, arguments in SOCKET_CASES:
            for _ in range(rounds):
                for variant, server in servers.items():
                    more = ["--seconds", str(seconds), "--span-bytes", str(1 << 27), "--wait", "poll"]
                    sample = generate(server, cores.generator, [*arguments, *more])
                    user = sample["server_cpu"]["user"] / sample["ios"] * 1e6
                    found.setdefault(name, {}).setdefault(variant, []).append(user)
    return found


def _agree(seconds: float) -> None:
    """Print quantiles of both ends, for storage of several speeds."""
    from tests.target.metrics.scraping import Scrape

    cores = choose_cores()
    print(f"{'':<36}{'p50 there':>12}{'here':>10}{'ratio':>8}{'p99 there':>12}{'here':>10}{'ratio':>8}")
    for storage, depth in AGREE_CASES:
        port = free_port()
        options = ["--namespace", storage, "--metrics", f"127.0.0.1:{port}"]
        with running_target("tcp", options, cores.server) as server:
            arguments = ["--op", "read", "--depth", str(depth), "--seconds", str(seconds), "--warmup", "0"]
            sample = generate(server, cores.generator, [*arguments, "--span-bytes", str(1 << 25), "--wait", "poll"])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                shown = Scrape(page.read().decode())
        line = f"{storage}, depth {depth}".ljust(36)
        for share, name in ((0.5, "p50_us"), (0.99, "p99_us")):
            here = shown.quantile(share, "nvmeof_command_duration_seconds", command="read", nsid="1") * 1e6
            line += f"{sample[name]:>12.0f}{here:>10.0f}{here / sample[name]:>8.2f}"
        print(line, flush=True)


def _print(found: dict[str, dict[str, list[float]]]) -> None:
    print(f"{'':<52}{'off':>8}" + "".join(f"{name:>12}{'':>8}" for name in VARIANTS[1:]))
    for name, by_variant in found.items():
        off = statistics.median(by_variant["off"])
        line = f"{name:<52}{off:>8.2f}"
        for variant in VARIANTS[1:]:
            here = statistics.median(by_variant[variant])
            line += f"{here:>12.2f}{(here / off - 1) * 100:>7.1f}%"
        print(line)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metering", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sockets", action="store_true", help="whole processes, over loopback")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each sample, with --sockets")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--agree", action="store_true", help="latencies of both ends")
    options = parser.parse_args()
    if options.worker:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
        _worker(options.worker)
        return 0
    if options.agree:
        _agree(options.seconds)
        return 0
    _print(_sockets(options.rounds, options.seconds) if options.sockets else _alone(options.rounds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
