"""TLS beside the floor of its own library: reads through host and target with TLS, the same without, in one run.

The floor is both ends of one connection in one thread, without sockets and without NVMe: OpenSSL by the same calls, the
same cipher, records of 16 KiB, encrypted and decrypted. Host and target are two processes over loopback; they read
plain and with TLS in turn, round after round, with the floor in between. Rounds in which a process got less than 0.9 of
the CPU that it wanted do not count, unless there are no others: then the result is marked as noisy. "By CPU" is the
same quotient with bytes per CPU second, of the busier of both ends, which other programs change less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

import nvmeof
from benchmarks.processes import Cores, pinned
from benchmarks.procstat import cpu_between, pin, read_cpu
from benchmarks.session import BenchmarkError
from nvmeof.aio.runloop import run as run_loop
from nvmeof.security.tls.session import TlsSession
from nvmeof.security.tls.suites import Suite, parse_suites
from nvmeof.spec.auth import HashId

HOSTNQN: Final = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-0000000000b1"
SUBNQN: Final = "nqn.2026-01.io.nvmeof:target"
SUITES: Final = {"TLS_AES_128_GCM_SHA256": HashId.SHA256, "TLS_AES_256_GCM_SHA384": HashId.SHA384}
"""The cipher suites that are measured, each with the hash function of its key."""
RATE_GOAL: Final = 0.6
CPU_GOAL: Final = 1.3
GOT_LEAST: Final = 0.9
"""Share of the CPU that a process wanted, and has to have got, for its sample to count."""
LARGE, LARGE_DEPTH = 128 * 1024, 8
SMALL, SMALL_DEPTH = 4096, 32
RECORD_BYTES: Final = 16 * 1024
FLOOR_BYTES: Final = 8 * RECORD_BYTES
"""Bytes of one step of the floor: those of one large read."""
_VARIABLE: Final = "NVMEOF_BENCHMARK_TLS_KEY"
CHILD_SECONDS: Final = 300


@dataclass(frozen=True)
class Plan:
    """How long and how often is measured."""

    seconds: float = 0.5
    rounds: int = 9
    warmup_seconds: float = 0.1


FULL: Final = Plan()
QUICK: Final = Plan(0.2, 3)


class Floor:
    """Both ends of a TLS connection in one thread."""

    def __init__(self, key: nvmeof.TlsKey, suite: Suite) -> None:
        psk = key.psk(HOSTNQN, SUBNQN)
        self._host, self._target = (TlsSession(psk, (suite,), server=server) for server in (False, True))
        done = [False, False]
        while not all(done):
            done[0] = done[0] or self._host.handshake()
            self._carry(self._host, self._target)
            done[1] = done[1] or self._target.handshake()
            self._carry(self._target, self._host)
        self._data = os.urandom(FLOOR_BYTES)
        self._buffer = memoryview(bytearray(FLOOR_BYTES))

    @staticmethod
    def _carry(source: TlsSession, sink: TlsSession) -> None:
        while len(output := source.output()):
            space = sink.space()
            count = min(len(output), len(space))
            space[:count] = output[:count]
            sink.received(count)
            source.sent(count)

    def measure(self, seconds: float) -> dict[str, float]:
        """Encrypt and decrypt for so long; MB/s, and CPU seconds of a byte."""
        moved, began, cpu, before = 0, time.perf_counter(), time.process_time(), read_cpu(os.getpid())
        while (spent := time.perf_counter() - began) < seconds:
            self._target.write(self._data)
            self._carry(self._target, self._host)
            if self._host.read_into(self._buffer) != FLOOR_BYTES:
                raise BenchmarkError("the floor lost bytes")
            moved += FLOOR_BYTES
        got = cpu_between(before, read_cpu(os.getpid())).got
        return {"mb_per_s": moved / spent / 1e6, "cpu_per_byte": (time.process_time() - cpu) / moved, "got": got}


async def _read(controller: nvmeof.HostController, size: int, depth: int, seconds: float) -> int:
    """Read for so long; the number of reads."""
    loop, namespace, done = asyncio.get_running_loop(), controller.namespace(1), 0
    until, step = loop.time() + seconds, size // namespace.block_bytes
    starts = range(0, namespace.size_blocks - step, step)

    async def worker(index: int) -> None:
        nonlocal done
        view, at = memoryview(bytearray(size)), index
        while loop.time() < until:
            await namespace.read_into(starts[at % len(starts)], view)
            at += depth
            done += 1

    await asyncio.gather(*map(worker, range(depth)))
    return done


async def _measure(
    controller: nvmeof.HostController, target: int, size: int, depth: int, plan: Plan
) -> dict[str, float]:
    """Return MB/s, user CPU seconds of one read at both ends together, CPU seconds of a byte at the busier end, and the
    share of the CPU that was got."""
    await _read(controller, size, depth, plan.warmup_seconds)
    before = [read_cpu(each) for each in (os.getpid(), target)]
    count = await _read(controller, size, depth, plan.seconds)
    ends = [cpu_between(was, read_cpu(each)) for was, each in zip(before, (os.getpid(), target), strict=True)]
    return {
        "mb_per_s": count * size / ends[0].wall / 1e6,
        "user_s": sum(each.user for each in ends) / count,
        "cpu_per_byte": max(each.user + each.system for each in ends) / (count * size),
        "got": min(each.got for each in ends),
    }


async def _child(port: int, target: int, suite: Suite, plan: Plan) -> list[dict[str, Any]]:
    key = nvmeof.load_tls_key(f"env:{_VARIABLE}")
    floor = Floor(key, suite)
    where: dict[str, Any] = {"trsvcid": port, "subnqn": SUBNQN, "hostnqn": HOSTNQN, "transport": "tcp"}
    credentials = nvmeof.TlsCredentials(key, suites=(suite,))
    samples = []
    async with (
        await nvmeof.connect("127.0.0.1", **where) as plain,
        await nvmeof.connect("127.0.0.1", **where, tls=credentials) as secured,
    ):
        if secured.describe()[0].get("tls") != suite.name:
            raise BenchmarkError(f"the connection does not use {suite.name}")
        for controller in (plain, secured):
            await controller.namespace(1).refresh()
        for _ in range(plan.rounds):
            sample: dict[str, Any] = {"floor": floor.measure(plan.seconds)}
            for name, controller in (("plain", plain), ("tls", secured)):
                sample[f"{name}_large"] = await _measure(controller, target, LARGE, LARGE_DEPTH, plan)
                sample[f"{name}_small"] = await _measure(controller, target, SMALL, SMALL_DEPTH, plan)
            samples.append(sample)
    return samples


@contextmanager
def _target(key: nvmeof.TlsKey, cpu: int | None) -> Iterator[tuple[int, int]]:
    """A target for the time of the block; its port and process."""
    os.environ[_VARIABLE] = key.to_text()
    command = [sys.executable, "-m", "nvmeof.target", "--listen", "127.0.0.1:0", "-o", "json", "--trtype", "tcp"]
    command += ["--ramdisk", "256M", "--tls", "allowed", "--tls-key", f"{HOSTNQN}=env:{_VARIABLE}"]
    process = pinned(command, cpu, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        with process.stdout:
            yield json.loads(process.stdout.readline())["listeners"][0]["port"], process.pid
    finally:
        del os.environ[_VARIABLE]
        process.terminate()
        process.wait()


def run(cores: Cores, plan: Plan) -> list[dict[str, Any]]:
    """Measure every cipher suite; one mapping for each. Raises BenchmarkError."""
    found = []
    for name, hash_id in SUITES.items():
        key = nvmeof.generate_tls_key(hash_id)
        with _target(key, cores.server) as (port, pid):
            command = [sys.executable, "-m", "benchmarks.tls", "--port", str(port), "--target", str(pid)]
            command += ["--suite", name, "--seconds", str(plan.seconds), "--rounds", str(plan.rounds)]
            command += [] if cores.generator is None else ["--cpu", str(cores.generator)]
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, timeout=CHILD_SECONDS, check=True)
            except (subprocess.SubprocessError, OSError) as error:
                raise BenchmarkError(f"the TLS benchmark failed: {error}") from error
        samples = json.loads(done.stdout)
        quiet = [each for each in samples if min(part["got"] for part in each.values()) >= GOT_LEAST]
        found.append({"suite": name, "samples": samples, "noisy": not quiet, **_summary(quiet or samples)})
    return found


def _summary(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians, and the two ratios with goals: each of what was measured in one round."""

    def median(name: str, figure: str) -> float:
        return float(statistics.median(each[name][figure] for each in samples))

    return {
        "floor_mb_per_s": median("floor", "mb_per_s"),
        "plain_mb_per_s": median("plain_large", "mb_per_s"),
        "tls_mb_per_s": median("tls_large", "mb_per_s"),
        "rate_ratio": statistics.median(s["tls_large"]["mb_per_s"] / s["floor"]["mb_per_s"] for s in samples),
        "rate_ratio_by_cpu": statistics.median(
            s["floor"]["cpu_per_byte"] / s["tls_large"]["cpu_per_byte"] for s in samples
        ),
        "plain_us": median("plain_small", "user_s") * 1e6,
        "tls_us": median("tls_small", "user_s") * 1e6,
        "floor_us": median("floor", "cpu_per_byte") * SMALL * 1e6,
        "cpu_ratio": statistics.median(
            s["tls_small"]["user_s"] / (s["plain_small"]["user_s"] + s["floor"]["cpu_per_byte"] * SMALL)
            for s in samples
        ),
    }


def check_goals(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals as the other benchmarks do."""
    goals = []
    for each in results:
        rate, cpu = each["rate_ratio"], each["cpu_ratio"]
        words = f"TLS, {each['suite']}, 128 KiB reads / floor: >= {RATE_GOAL}"
        goals.append({"goal": words, "value": rate, "reached": rate >= RATE_GOAL, "noisy": each["noisy"]})
        words = f"TLS, {each['suite']}, user CPU of a 4 KiB read / (plain + floor): <= {CPU_GOAL}"
        goals.append({"goal": words, "value": cpu, "reached": cpu <= CPU_GOAL, "noisy": each["noisy"]})
    return goals


def print_results(console: Console, results: list[dict[str, Any]]) -> None:
    """One line per cipher suite."""
    title = "TLS: 128 KiB reads at depth 8 in MB/s; user CPU of a 4 KiB read at depth 32, both ends, in us"
    table = Table(title=title, title_justify="left")
    table.add_column("suite")
    for column in (
        "floor",
        "plain",
        "TLS",
        "TLS / floor",
        "by CPU",
        "plain us",
        "floor us",
        "TLS us",
        "TLS / (plain + floor)",
    ):
        table.add_column(column, justify="right")
    for each in results:
        cells = [f"{each[name]:.0f}" for name in ("floor_mb_per_s", "plain_mb_per_s", "tls_mb_per_s")]
        cells += [f"{each[name]:.2f}" for name in ("rate_ratio", "rate_ratio_by_cpu")]
        cells += [f"{each[name]:.1f}" for name in ("plain_us", "floor_us", "tls_us")]
        table.add_row(each["suite"], *cells, f"{each['cpu_ratio']:.2f}")
    console.print(table)


def main() -> None:
    """Measure over the target at a port, and print JSON: the process that :func:`run` starts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--seconds", type=float, default=FULL.seconds)
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    options = parser.parse_args()
    pin(options.cpu)
    plan = Plan(options.seconds, options.rounds)
    (suite,) = parse_suites(options.suite)
    print(json.dumps(run_loop(_child(options.port, options.target, suite, plan))))


if __name__ == "__main__":
    main()
