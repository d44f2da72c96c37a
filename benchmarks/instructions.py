"""Instructions per command of the cases without sockets, counted by callgrind: a guard that noise does not move.

Times vary with whatever else a machine does; the count of instructions does not. One process runs all cases under
``valgrind --tool=callgrind``; a small library with callgrind's client requests switches the counting on around each.
Two tools of this repository use it: `make guard` compares with the stored baseline (`benchmarks/instructions.json`) of
this interpreter, and ``python -m benchmarks.instructions --against DIR`` with another checkout.

What it does not measure: the kernel, cache misses, what processors do at once, and the copying of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

BASELINE: Final = Path(__file__).with_name("instructions.json")
TOLERANCE: Final = 0.03
CLOCK_STEP_SECONDS: Final = 1e-9
"""What a worker's clocks advance by with each call. How much one connection does in a turn of the event loop depends on
the time that it takes, and under callgrind everything takes long: with real clocks the counts would vary."""
ROUNDS: Final = 40
WARM_ROUNDS: Final = 12
CASES: Final = (
    "the target's queue behind it, data out",
    "the target's queue behind it, data and responses out",
    "the target's queue behind it, in-capsule writes",
    "the target's queue behind it, 128 KiB writes",
    "the target's queue behind it, data out, digests",
    "the target's queue behind it, in-capsule writes, digests",
    "commands in, data out in batches",
)
_COPIES: Final = re.compile(r"_*mem(cpy|move)")
_COST_LINE: Final = frozenset("0123456789+-*")
_SOURCE = r"""
#include <valgrind/callgrind.h>
void guard_start(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void guard_stop(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


class GuardError(Exception):
    """The instructions cannot be counted here; the text says what is missing."""


def interpreter() -> str:
    """Return what a baseline belongs to: the interpreter's version and the processor's kind."""
    return f"cpython-{platform.python_version()}-{platform.machine()}"


def _library(folder: Path) -> Path:
    """Compile callgrind's client requests. Raises `GuardError` without a compiler or valgrind's headers."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise GuardError("a C compiler is needed: install gcc")
    source, made = folder / "guard.c", folder / "guard.so"
    source.write_text(_SOURCE)
    done = subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", made, source], capture_output=True, text=True)
    if done.returncode:
        raise GuardError(f"valgrind's headers are needed: install valgrind ({done.stderr.strip().splitlines()[0]})")
    return made


def _load(name: str) -> Any:
    """Load a module of this checkout which uses public names alone: the package is the one that is measured."""
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def _worker(library: str, *, files: bool, pattern: str) -> None:
    """Run the cases of a pattern under callgrind: some rounds to warm up, then those that count."""
    # Before the package is there, which takes some of them by name.
    time.monotonic = time.perf_counter = itertools.count(1.0, CLOCK_STEP_SECONDS).__next__
    from benchmarks import connection  # of the checkout that is measured

    guard = ctypes.CDLL(library)
    commands: dict[str, int] = {}

    def measure(name: str, once: Callable[[], int], count: int) -> None:
        if not fnmatch(name, pattern):
            return
        commands[name] = count
        for _ in range(WARM_ROUNDS):
            once()
        guard.guard_start()
        for _ in range(ROUNDS):
            once()
        guard.guard_stop(name.encode())

    variants: dict[str, Callable[[], int]] = {name: once for name, _, once in connection._variants()}
    gc.collect()
    gc.disable()
    for name in CASES:
        measure(name, variants[name], connection.BATCH)
    driven = _load("driven_target")  # before there is a host in this process: see its description
    target = driven.DrivenTarget()
    for case in driven.CASES + (driven.FILE_CASES if files else ()):
        measure(case.name, target.case(case), driven.COMMANDS)
    both_ends = _load("both_ends")
    ends = both_ends.BothEnds()
    for name in both_ends.CASES:
        measure(name, ends.case(name), both_ends.COMMANDS)
    with contextlib.suppress(ImportError):  # an older package may lack what it needs
        host_alone = _load("host_alone")
        host = host_alone.HostAlone()
        for name in host_alone.CASES:
            alone = host.case(name)
            if alone is not None:  # else the package that is measured lacks that form
                measure(name, alone, host_alone.COMMANDS)
    print(json.dumps(commands), flush=True)
    os._exit(0)  # to stop a target takes time, which does not pass here


def _without_copies(profile: str) -> int:
    """Return the instructions of one of callgrind's profiles, without those that copy memory.

    A long copy counts an instruction for each byte, and whether a buffer that grows is moved depends on the heap.
    """
    total, own, inclusive = 0, True, False
    names: dict[str, bool] = {}  # by callgrind's number of a function: whether it copies
    for line in profile.splitlines():
        if line.startswith(("fn=", "cfn=")):
            number, _, name = line.partition("=")[2].partition(" ")
            if name:
                names[number] = _COPIES.match(name) is not None
            if line.startswith("fn="):
                own = not names[number]
        elif line.startswith("calls="):
            inclusive = True  # the next line is what was called
        elif line[:1] in _COST_LINE:
            if own and not inclusive:
                total += int(line.rpartition(" ")[2])
            inclusive = False
    return total


def count(checkout: Path, *, files: bool = False, pattern: str = "*") -> dict[str, float]:
    """Return instructions per command by case, of the package in ``checkout``; ``files``: with `FILE_CASES`;
    ``pattern``: of the names of the cases.

    Raises `GuardError` where valgrind, its headers or a compiler are missing, or when the worker fails.
    """
    if not shutil.which("valgrind"):
        raise GuardError("valgrind is needed: install valgrind")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = _library(folder)
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, "-X", "frozen_modules=on", str(Path(__file__).resolve()), "--worker", str(library)]
        command += ["--case", pattern, *["--files"] * files]
        environment = {
            **{k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LD_LIBRARY_PATH")},
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(checkout),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
        if done.returncode:
            raise GuardError(f"the cases failed under valgrind:\n{done.stderr[-2000:]}")
        commands: dict[str, int] = json.loads(done.stdout)
        figures: dict[str, float] = {}
        for path in folder.glob("out.*"):
            text = path.read_text()
            trigger = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            if trigger:
                figures[trigger[1]] = _without_copies(text) / (ROUNDS * commands[trigger[1]])
    missing = [name for name in commands if name not in figures]
    if missing:
        raise GuardError(f"callgrind wrote no figures for {missing[0]!r}")
    return {name: figures[name] for name in commands}


def compare(figures: dict[str, float], base: dict[str, float], what: str) -> list[str]:
    """Print a table of both; return the cases that cost more than `TOLERANCE` allows."""
    print(f"{'instructions per command':<58}{what:>12}{'now':>10}{'ratio':>8}")
    worse = []
    for name, now in figures.items():
        before = base.get(name)
        ratio = now / before if before else float("nan")
        print(f"{name:<58}{before or 0:>12,.0f}{now:>10,.0f}{ratio:>8.3f}")
        if before is not None and ratio > 1 + TOLERANCE:
            worse.append(name)
    return worse


def _baseline() -> dict[str, Any]:
    return json.loads(BASELINE.read_text()) if BASELINE.exists() else {}


def main() -> int:
    """Count, compare, and tell in the exit code whether a case has become dearer."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with another checkout of the repository")
    parser.add_argument("--files", action="store_true", help="reads of a file too; these counts vary with its threads")
    parser.add_argument("--case", default="*", help="only cases of this name or pattern")
    parser.add_argument("--store", action="store_true", help="make what is counted now the baseline")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.path[0] = os.environ["PYTHONPATH"]
        _worker(options.worker, files=options.files, pattern=options.case)
        return 0
    try:
        chosen = {"files": options.files, "pattern": options.case}
        figures = count(Path(__file__).resolve().parents[1], **chosen)
        stored = _baseline()
        if options.against:
            return bool(compare(figures, count(options.against.resolve(), **chosen), "there"))
    except GuardError as error:
        print(f"guard: {error}", file=sys.stderr)
        return 2
    base = stored.get(interpreter())
    if options.store or base is None:
        stored[interpreter()] = {name: round(value, 1) for name, value in figures.items()}
        if options.store:
            BASELINE.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
        compare(figures, base or figures, "baseline")
        if not options.store:
            print(f"no baseline for {interpreter()}: nothing is compared (--store makes one)")
        return 0
    worse = compare(figures, base, "baseline")
    for name in worse:
        print(f"guard: {name}: costs more than the baseline allows", file=sys.stderr)
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
