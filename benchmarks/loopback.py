"""Target against floor on loopback: interleaved samples, noisy ones dropped, one summary per case."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import GOALS, Case
from benchmarks.processes import Cores, Server, generate, running_floor, running_target
from benchmarks.session import BenchmarkError

MIN_GOT = 0.9
SATURATED = 0.9
SLOW_HOST = 1.25
FILL_BLOCK_BYTES = 1 << 17

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure."""

    seconds: float = 1.0
    warmup_seconds: float = 0.3
    pairs: int = 3
    most_pairs: int = 8
    size_bytes: int = 1 << 30
    engine: str = "auto"
    wait: str = "spin"
    congestion: str | None = None

    def arguments(self) -> list[str]:
        out = ["--seconds", str(self.seconds), "--warmup", str(self.warmup_seconds)]
        out += ["--span-bytes", str(self.size_bytes), "--engine", self.engine, "--wait", self.wait]
        return out + (["--congestion", self.congestion] if self.congestion else [])


@dataclass
class Side:
    """The samples of one side of a case."""

    samples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, sample: dict[str, Any]) -> None:
        self.samples.append(sample)

    @property
    def quiet(self) -> list[dict[str, Any]]:
        """Samples in which both processes had their cores, without those in which the machine itself was slow.

        On a shared host the same work may cost twice the CPU time for a second or two; the scheduler does not see that.
        """
        undisturbed = [s for s in self.samples if is_quiet(s)]
        best = min((cpu_us(s) for s in undisturbed), default=0.0)
        return [s for s in undisturbed if cpu_us(s) <= SLOW_HOST * best]

    @property
    def usable(self) -> list[dict[str, Any]]:
        """The quiet samples, or all when none was quiet."""
        return self.quiet or self.samples


def cpu_us(sample: dict[str, Any]) -> float:
    """CPU time of the server per I/O."""
    use = sample["server_cpu"]
    return float((use["user"] + use["system"]) / max(1, sample["ios"]) * 1e6)


def is_quiet(sample: dict[str, Any]) -> bool:
    """Did both processes get at least 0.9 of the CPU time that they were ready to use?

    This is the runqueue's own account: a process that blocks because it has nothing to do wants nothing.
    """
    stolen = sample["steal_seconds"] / sample["elapsed_seconds"]
    got = min(sample["server_cpu"]["got"], sample["generator_cpu"]["got"])
    return bool(got >= MIN_GOT and stolen <= 1 - MIN_GOT)


def summarize_side(side: Side) -> dict[str, Any]:
    """One side's figures: rates are medians over samples, CPU per I/O is pooled over them."""
    samples = side.usable
    ios = sum(s["ios"] for s in samples) or 1

    def median(key: str) -> float:
        return float(statistics.median(s[key] for s in samples))

    def per_io(who: str, what: str) -> float:
        return float(sum(s[who][what] for s in samples) / ios * 1e6)

    busy = statistics.median(s["server_cpu"]["busy"] for s in samples)
    return {
        "iops": median("iops"),
        "mb_per_s": median("mb_per_s"),
        "p50_us": median("p50_us"),
        "p99_us": median("p99_us"),
        "user_us": per_io("server_cpu", "user"),
        "system_us": per_io("server_cpu", "system"),
        "cpu_us": per_io("server_cpu", "user") + per_io("server_cpu", "system"),
        "generator_user_us": per_io("generator_cpu", "user"),
        "generator_system_us": per_io("generator_cpu", "system"),
        "server_busy": busy,
        "saturated": busy >= SATURATED,
        "ios_per_recv": median("ios_per_recv"),
        "samples": len(samples),
        "dropped": len(side.samples) - len(samples),
        "noisy": not side.quiet,
    }


def summarize(case: Case, target: Side, floor: Side) -> dict[str, Any]:
    """The case's line: both sides, their ratios, and the conditions as they were found, not as they were asked for."""
    ours, bare = summarize_side(target), summarize_side(floor)
    seen = target.usable[0]
    return {
        "name": case.name,
        "op": case.op,
        "block_size_bytes": case.block_size_bytes,
        "depth": seen["depth"],
        "transport": case.transport,
        "protocol": seen["protocol"],
        "header_digest": seen["header_digest"],
        "data_digest": seen["data_digest"],
        "flow_control": case.flow_control,
        "success_flag": seen["success_flag"],
        "in_capsule": seen["in_capsule"],
        "storage": case.storage,
        "engine": seen["engine"],
        "engine_note": seen["engine_note"],
        "wait": seen["wait"],
        "target": ours,
        "floor": bare,
        "target_user_us": ours["user_us"],
        "iops_ratio": ours["iops"] / bare["iops"] if bare["iops"] else 0.0,
        "cpu_ratio": ours["cpu_us"] / bare["cpu_us"] if bare["cpu_us"] else 0.0,
        "noisy": ours["noisy"] or bare["noisy"],
        "samples": {"target": target.samples, "floor": floor.samples},
    }


def fill(server: Server, cores: Cores, plan: Plan, transport: str) -> None:
    """Write the whole namespace once: blocks never written may be read without touching memory."""
    arguments = ["--fill", "--op", "write", "--bs", str(FILL_BLOCK_BYTES), "--depth", "8"]
    arguments += ["--span-bytes", str(plan.size_bytes), *["--mptcp"] * (transport == "mptcp")]
    generate(server, cores.generator, arguments)


def run_case(case: Case, target: Server, floor: Server, cores: Cores, plan: Plan) -> dict[str, Any]:
    """Target, floor, target, floor, ... until each side has enough quiet samples or the patience ends."""
    ours, bare = Side(), Side()
    arguments = [*case.arguments(), *plan.arguments()]
    for _ in range(plan.most_pairs):
        sample = generate(target, cores.generator, arguments)
        ours.add(sample)
        success = [] if sample["success_flag"] is not False else ["--no-success"]
        inline = [] if sample["in_capsule"] is not False else ["--no-in-capsule"]
        depth = ["--depth", str(sample["depth"])]
        bare.add(generate(floor, cores.generator, [*arguments, *success, *inline, *depth]))
        if min(len(ours.quiet), len(bare.quiet)) >= plan.pairs:
            break
    return summarize(case, ours, bare)


@contextlib.contextmanager
def _storage(kind: str, plan: Plan) -> Iterator[list[str]]:
    if kind == "ramdisk":
        yield ["--ramdisk", str(plan.size_bytes)]
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "namespace.img"
        with path.open("wb") as file:
            file.truncate(plan.size_bytes)
        yield ["--file", str(path)]


def run(cases: Sequence[Case], cores: Cores, plan: Plan, say: Say) -> list[dict[str, Any]]:
    """Measure ``cases``; those of one transport and storage share a target process. A case that fails says so."""
    results: list[dict[str, Any]] = []
    groups = list(dict.fromkeys((case.transport, case.storage) for case in cases))
    for transport, kind in groups:
        mptcp = transport == "mptcp"
        with (
            _storage(kind, plan) as storage,
            running_target(transport, storage, cores.server, congestion=plan.congestion) as target,
            running_floor(mptcp, plan.size_bytes, cores.server, congestion=plan.congestion) as floor,
        ):
            say(f"{transport}: filling {plan.size_bytes >> 20} MiB")
            fill(target, cores, plan, transport)
            for case in (c for c in cases if (c.transport, c.storage) == (transport, kind)):
                try:
                    result = run_case(case, target, floor, cores, plan)
                except BenchmarkError as error:
                    result = {"name": case.name, "error": str(error)}
                    say(f"{case.name}: {error}")
                else:
                    say(f"{case.name}: {result['target']['iops']:,.0f} IOPS, {result['iops_ratio']:.2f} of the floor")
                results.append(result)
    return results


def check_goals(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals whose case was measured, each with its value and whether it was reached."""
    by_name = {r["name"]: r for r in results if "error" not in r}
    return [
        {
            "goal": goal.text,
            "value": by_name[goal.case.name][goal.figure],
            "reached": goal.reached(by_name[goal.case.name][goal.figure]),
            "noisy": by_name[goal.case.name]["noisy"],
        }
        for goal in GOALS
        if goal.case.name in by_name
    ]
