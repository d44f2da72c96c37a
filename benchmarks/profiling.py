"""Where the target's time goes: a sampling profile by line, or cProfile by function, of the real process under load.

This module is both sides of it: `run` starts the target through ``python -m benchmarks.profiling OUTPUT ...``, which
holds the sampler (a CPU-time interval timer) or cProfile ready and runs ``nvmeof.target`` as ``__main__``; SIGUSR2,
sent when the namespace has been filled, starts the profile.
CPython looks at signals only when a function begins or a call returns: a system call is booked on the line that makes
it, but copying by slice assignment on the function that is called next.
"""

from __future__ import annotations

import cProfile
import json
import linecache
import os
import pstats
import runpy
import signal
import sys
import tempfile
from collections import Counter
from io import StringIO
from pathlib import Path
from types import FrameType

from benchmarks import loopback
from benchmarks.cases import Case
from benchmarks.processes import ROOT, choose_cores, generate, running_target

INTERVAL_SECONDS = 0.001  # the kernel rounds it up to its tick
SIZE_BYTES = 1 << 26
START_SIGNAL = signal.SIGUSR2


def run(case: Case, seconds: float, lines: int, *, cprofile: bool = False) -> str:
    """Load a profiled target with ``case`` and return the table as text."""
    cores = choose_cores()
    plan = loopback.Plan(seconds=seconds, size_bytes=SIZE_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "profile"
        mode = "cprofile" if cprofile else "sample"
        launcher = (sys.executable, "-m", "benchmarks.profiling", mode, str(output))
        storage = ["--ramdisk", str(SIZE_BYTES)]
        with running_target(case.transport, storage, cores.server, launcher=launcher) as target:
            loopback.fill(target, cores, plan, case.transport)
            os.kill(target.pid, START_SIGNAL)
            figures = generate(target, cores.generator, [*case.arguments(), *plan.arguments()])
        if not output.exists():
            return "The target wrote no profile: it did not end by itself."
        text = _cprofile_table(output, lines) if cprofile else _sample_table(output, lines)
    cpu = figures["server_cpu"]
    ios = max(1, figures["ios"])
    head = (
        f"{case.name}: {figures['iops']:,.0f} IOPS while profiled, {cpu['user'] / ios * 1e6:.2f} us user and "
        f"{cpu['system'] / ios * 1e6:.2f} us system per I/O, {cpu['busy']:.2f} of its core\n"
    )
    return head + text


def _sample_table(path: Path, lines: int) -> str:
    counts = [(tuple(where), n) for where, n in json.loads(path.read_text())]
    total = sum(n for _, n in counts) or 1
    out = [f"{total} samples; share, place, line:"]
    for (file, line, function), count in sorted(counts, key=lambda item: -item[1])[:lines]:
        source = linecache.getline(file, line).strip()
        out.append(f"{count / total:6.1%}  {_short(file)}:{line} {function}  | {source}")
    functions: Counter[str] = Counter()
    for (file, _, function), count in counts:
        functions[f"{_short(file)} {function}"] += count
    out.append("by function:")
    out += [f"{count / total:6.1%}  {name}" for name, count in functions.most_common(lines)]
    return "\n".join(out)


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _cprofile_table(path: Path, lines: int) -> str:
    text = StringIO()
    pstats.Stats(str(path), stream=text).sort_stats("tottime").print_stats(lines)
    return text.getvalue().replace(f"{ROOT}/", "")


class _Sampler:
    """Counts the line that is being run at each tick of the process's CPU time."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int, str]] = Counter()

    def __call__(self, _signum: int, frame: FrameType | None) -> None:
        if frame is not None:
            code = frame.f_code
            self.counts[code.co_filename, frame.f_lineno, code.co_name] += 1

    def start(self, _signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGPROF, self)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)

    def stop(self, output: Path) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write_text(json.dumps([(list(where), n) for where, n in self.counts.items()]))


def main(arguments: list[str]) -> None:
    """``sample|cprofile OUTPUT TARGET-ARGUMENTS...``; the profile is written when the target ends."""
    mode, output = arguments[0], Path(arguments[1])
    sys.argv = ["nvmeof.target", *arguments[2:]]
    if mode == "cprofile":
        profiler = cProfile.Profile()
        signal.signal(START_SIGNAL, lambda *_: profiler.enable())
        try:
            runpy.run_module("nvmeof.target", run_name="__main__", alter_sys=True)
        finally:
            profiler.disable()
            profiler.dump_stats(str(output))
        return
    sampler = _Sampler()
    signal.signal(START_SIGNAL, sampler.start)
    try:
        runpy.run_module("nvmeof.target", run_name="__main__", alter_sys=True)
    finally:
        sampler.stop(output)


if __name__ == "__main__":
    main(sys.argv[1:])
