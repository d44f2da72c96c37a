"""The first MiB of a connection over MPTCP beside those over TCP: our host, our target, loopback, fresh connections.

The steady state is measured with 8 and with 32 pieces of 256 KiB under way, and bare sockets of the same kernel move
the same bytes in the same pattern: what MPTCP costs there, no program can get back.

``python -m benchmarks.start --tcp-port P --mptcp-port Q`` is the host's process; it prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cases import Case
from benchmarks.processes import SUBNQN, Cores, Server, generate, pinned, running_floor, running_target
from benchmarks.session import BenchmarkError
from nvmeof.aio.runloop import run as run_loop
from nvmeof.errors import NvmeofError
from nvmeof.host.client import HostController, connect

CHUNK_BYTES = 256 * 1024
CHUNKS_IN_FLIGHT = 8
DEEP_CHUNKS_IN_FLIGHT = 32
BARE_SECONDS = 0.5
FIRST_BYTES = 64 << 20
TRANSPORTS = ("tcp", "mptcp")
DIRECTIONS = ("read", "write")
PARTS = ("first", "steady", "deep")
FIRST_GOAL, STEADY_GOAL = 0.6, 0.8


@dataclass(frozen=True)
class Plan:
    """How often, and how much after the first 64 MiB."""

    rounds: int = 15
    bare_rounds: int = 5
    steady_bytes: int = 192 << 20
    size_bytes: int = 256 << 20
    congestion: str | None = None


QUICK = Plan(rounds=5, bare_rounds=3)
FULL = Plan()


def run(cores: Cores, plan: Plan) -> dict[str, Any]:
    """Measure both transports and directions in turn; medians, ratios and all samples."""
    storage = ["--ramdisk", str(plan.size_bytes)]
    with (
        running_target("tcp", storage, cores.server, congestion=plan.congestion) as tcp,
        running_target("mptcp", storage, cores.server, congestion=plan.congestion) as mptcp,
    ):
        samples = _host(tcp, mptcp, cores.generator, plan)
    bare = _bare(cores, plan)
    rows = []
    for direction in DIRECTIONS:
        row: dict[str, Any] = {"direction": direction}
        for part in PARTS:
            row[part] = _compared(
                *(
                    [s[f"{part}_mb_per_s"] for s in samples if (s["transport"], s["direction"]) == (name, direction)]
                    for name in TRANSPORTS
                )
            )
        row["bare_steady"], row["bare_deep"] = bare[direction, CHUNKS_IN_FLIGHT], bare[direction, DEEP_CHUNKS_IN_FLIGHT]
        rows.append(row)
    return {"plan": asdict(plan), "rows": rows, "samples": samples}


def _compared(tcp_rates: Sequence[float], mptcp_rates: Sequence[float]) -> dict[str, float]:
    return {
        "tcp": statistics.median(tcp_rates),
        "mptcp": statistics.median(mptcp_rates),
        # of neighbours in time: what slows the machine for a second slows both
        "ratio": statistics.median(b / a for a, b in zip(tcp_rates, mptcp_rates, strict=True)),
    }


def _bare(cores: Cores, plan: Plan) -> dict[tuple[str, int], dict[str, float]]:
    """Rates of bare sockets by direction and pieces under way."""
    found = {}
    with (
        running_floor(False, plan.size_bytes, cores.server, congestion=plan.congestion) as tcp,
        running_floor(True, plan.size_bytes, cores.server, congestion=plan.congestion) as mptcp,
    ):
        for direction, depth in itertools.product(DIRECTIONS, (CHUNKS_IN_FLIGHT, DEEP_CHUNKS_IN_FLIGHT)):
            rates: dict[str, list[float]] = {name: [] for name in TRANSPORTS}
            for _, (name, server) in itertools.product(range(plan.bare_rounds), (("tcp", tcp), ("mptcp", mptcp))):
                arguments = Case(direction, CHUNK_BYTES, depth, name).arguments()
                arguments += ["--seconds", str(BARE_SECONDS), "--warmup", "0.1", "--wait", "poll"]
                arguments += ["--span-bytes", str(plan.size_bytes)]
                arguments += ["--congestion", plan.congestion] if plan.congestion else []
                rates[name].append(generate(server, cores.generator, arguments)["mb_per_s"])
            found[direction, depth] = _compared(rates["tcp"], rates["mptcp"])
    return found


_GOALS = (
    ("first", "first 64 MiB", FIRST_GOAL),
    ("steady", "steady state, 8 under way", STEADY_GOAL),
    ("deep", "steady state, 32 under way", STEADY_GOAL),
)


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """At least 0.6 of TCP's rate over the first 64 MiB, and 0.8 from then on, in both directions.

    The steady state is looked at with 8 and with 32 pieces under way: with 8 the latency of each piece counts too.
    """
    return [
        {
            "goal": f"MPTCP / TCP, {row['direction']}, {words}: >= {limit}",
            "value": row[part]["ratio"],
            "reached": row[part]["ratio"] >= limit,
            "noisy": False,
        }
        for row in result["rows"]
        for part, words, limit in _GOALS
    ]


def _host(tcp: Server, mptcp: Server, cpu: int | None, plan: Plan) -> list[dict[str, Any]]:
    argv = [sys.executable, "-m", "benchmarks.start", "--tcp-port", str(tcp.port), "--mptcp-port", str(mptcp.port)]
    argv += ["--rounds", str(plan.rounds), "--steady-bytes", str(plan.steady_bytes)]
    argv += ["--congestion", plan.congestion] if plan.congestion else []
    process = pinned(argv, cpu, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=240)
    try:
        found: list[dict[str, Any]] = json.loads(out)
    except ValueError as error:
        last = (err.strip().splitlines() or ["no output"])[-1]
        raise BenchmarkError(f"the host failed: {last}") from error
    return found


# -- the host's process


async def _move(
    controller: HostController, direction: str, size_bytes: int, in_flight: int = CHUNKS_IN_FLIGHT
) -> float:
    """Read or write so much, in order; MB/s."""
    namespace = controller.namespace(1)
    await namespace.refresh()
    span, block = namespace.size_bytes, namespace.block_bytes
    offsets = iter(range(0, size_bytes, CHUNK_BYTES))

    def operation() -> Callable[[int], Awaitable[None]]:
        memory = bytearray(CHUNK_BYTES)
        if direction == "read":
            return lambda offset: namespace.read_into(offset % span // block, memory)
        return lambda offset: namespace.write(offset % span // block, memory)

    async def work(act: Callable[[int], Awaitable[None]]) -> None:
        for offset in offsets:
            await act(offset)

    workers = [work(operation()) for _ in range(in_flight)]
    began = time.perf_counter()
    await asyncio.gather(*workers)
    return size_bytes / (time.perf_counter() - began) / 1e6


async def _sample(options: argparse.Namespace, transport: str, direction: str) -> dict[str, Any]:
    port = options.tcp_port if transport == "tcp" else options.mptcp_port
    async with await connect(
        "127.0.0.1", port, subnqn=SUBNQN, transport=transport, nr_io_queues=1, congestion=options.congestion
    ) as controller:
        first = await _move(controller, direction, FIRST_BYTES)
        steady = await _move(controller, direction, options.steady_bytes)
        deep = await _move(controller, direction, options.steady_bytes, DEEP_CHUNKS_IN_FLIGHT)
        queue = next(each for each in controller.describe() if each.get("qid"))
        if queue["protocol"] != transport:
            raise BenchmarkError(f"the connection speaks {queue['protocol']}, not {transport}")
        return {
            "transport": transport,
            "direction": direction,
            "first_mb_per_s": first,
            "steady_mb_per_s": steady,
            "deep_mb_per_s": deep,
            "rcvbuf_bytes": queue["rcvbuf_bytes"],
        }


async def _samples(options: argparse.Namespace) -> list[dict[str, Any]]:
    for transport in TRANSPORTS:  # what was never written may be read without touching memory
        await _sample(options, transport, "write")
    turns = itertools.product(range(options.rounds), DIRECTIONS, TRANSPORTS)
    return [await _sample(options, transport, direction) for _, direction, transport in turns]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 with the samples."""
    parser = argparse.ArgumentParser(prog="benchmarks.start", description=__doc__)
    parser.add_argument("--tcp-port", type=int, required=True)
    parser.add_argument("--mptcp-port", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    parser.add_argument("--steady-bytes", type=int, default=FULL.steady_bytes)
    parser.add_argument("--congestion")
    try:
        samples = run_loop(_samples(parser.parse_args(argv)))
    except (NvmeofError, BenchmarkError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(samples))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
