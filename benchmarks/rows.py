"""The rows of the speed goals, one by one: this checkout, another one and the row's floor, in turns (A B C A B C).

    git worktree add ../before COMMIT
    python -m benchmarks.rows --against ../before --case 'file-ext4-*'
    python -m benchmarks.rows --list

All loads come from this checkout. File namespaces are on ext4 and XFS over a loop device, which root is needed for, or
in ``--folder``. A round in which a process had to wait for its core, or the hypervisor took time, is left out; ``~``
marks a row that has no other. Ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from benchmarks.loopback import Plan, fill, is_quiet
from benchmarks.processes import (
    ROOT,
    SUBNQN,
    Cores,
    Server,
    choose_cores,
    generate,
    pinned,
    running_floor,
    stop,
)
from benchmarks.session import BenchmarkError
from benchmarks.side_by_side import Build, target_of

SIZE_BYTES: Final = 1 << 28
FILE_SYSTEMS: Final = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
DEVICE_BYTES: Final = 2 << 30
WARMUP_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Row:
    """One row: what is sent, to what storage, beside which floor.

    ``mix``: the load is that of `benchmarks.mixed`, and there is no floor. ``storage``: the target's options, in which
    ``{file}`` and ``{file2}`` are paths of files of `SIZE_BYTES`.
    """

    name: str
    op: str = ""
    size: int = 4096
    depth: int = 32
    digests: bool = False
    mix: str = ""
    storage: str = f"--ramdisk {SIZE_BYTES}"
    system: str = ""  # the file system of its files
    direct: bool = False
    options: str = ""  # more of the target's, for this checkout alone

    @property
    def floor(self) -> str:
        """Which floor the row has: of memory, of digests, of files; empty for none."""
        if self.mix:
            return ""
        return "file" if self.system else "digests" if self.digests else "memory"

    def load(self) -> list[str]:
        """Return the arguments of its load generator."""
        if self.mix:
            return ["--mix", self.mix, "--depth", str(self.depth)]
        out = ["--op", self.op, "--bs", str(self.size), "--depth", str(self.depth)]
        return out + ["--header-digest", "--data-digest"] * self.digests


def _file_rows(system: str) -> Iterator[Row]:
    plain, direct = "--file {file}", "--namespace file:{file},direct"
    for op, size, depth in (("read", 4096, 32), ("write", 4096, 32), ("read", 1 << 17, 8), ("write", 1 << 17, 8)):
        name = f"file-{system}-{op}-{size >> 10}k-d{depth}"
        yield Row(name, op, size, depth, storage=plain, system=system)
    for op in ("read", "write"):
        yield Row(f"direct-{system}-{op}-4k-d32", op, storage=direct, system=system, direct=True)
    for depth in (1, 32):
        yield Row(f"file-{system}-fua-4k-d{depth}", mix="fua:4096", depth=depth, storage=plain, system=system)
        yield Row(f"direct-{system}-fua-4k-d{depth}", mix="fua:4096", depth=depth, storage=direct, system=system)


_TWO: Final = f"--ramdisk {SIZE_BYTES} --ramdisk {SIZE_BYTES}"
_SIZES: Final = (4096, 8192, 16384, 65536)
ROWS: Final = (
    Row("write-4k-d32", "write"),
    Row("write-4k-d128", "write", depth=128),
    Row("read-4k-d32-digests", "read", digests=True),
    Row("write-4k-d32-digests", "write", digests=True),
    Row("write-128k-d8-digests", "write", 1 << 17, 8, digests=True),
    Row("read-4k-d1", "read", depth=1),
    Row("read-4k-d1-poll", "read", depth=1, options="--poll 200"),
    Row("read-4k-d32-poll", "read", options="--poll 200"),
    Row("read-4k-d32", "read"),
    Row("mix-70-30", mix="read:4096x7,write:4096x3"),
    Row("mix-sizes-read", mix=",".join(f"read:{size}" for size in _SIZES)),
    Row("mix-sizes-write", mix=",".join(f"write:{size}" for size in _SIZES)),
    Row("mix-namespaces-read", mix="read:4096@1,read:4096@2", storage=_TWO),
    Row("mix-namespaces-write", mix="write:4096@1,write:4096@2", storage=_TWO),
    *(Row(f"unmixed-{op}-{size >> 10}k", mix=f"{op}:{size}") for op in ("read", "write") for size in _SIZES),
    *(row for system in FILE_SYSTEMS for row in _file_rows(system)),
    Row("zoned-read-4k-d32", mix="read:4096", storage=f"--ramdisk {SIZE_BYTES},zoned,zone-size=16M"),
    Row("read-512-d32", "read", 512),
    Row("write-512-d32", "write", 512),
    Row("write-16k-d8", "write", 1 << 14, 8),
    Row("write-64k-d8", "write", 1 << 16, 8),
)


@contextlib.contextmanager
def mounted(system: str, folder: Path) -> Iterator[Path]:
    """A new file system on a loop device over a sparse file in ``folder``. Raises `BenchmarkError` without root."""
    image, point = folder / f"{system}.img", folder / system
    with image.open("wb") as file:
        file.truncate(DEVICE_BYTES)
    point.mkdir()
    for command in ([*FILE_SYSTEMS[system], str(image)], ["mount", "-o", "loop", str(image), str(point)]):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip()
            raise BenchmarkError(f"{system} on a loop device: {said}; use --folder for a file elsewhere") from error
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=False)
        image.unlink()


def _image(folder: Path, name: str) -> str:
    path = folder / name
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE_BYTES)
    return str(path)


@contextlib.contextmanager
def floor_of(row: Row, folder: Path, cpu: int | None) -> Iterator[Server]:
    """Run the row's floor."""
    if row.floor == "memory":
        with running_floor(False, SIZE_BYTES, cpu) as server:
            yield server
        return
    argv = [sys.executable, "-m", "benchmarks.floor_storage", "--size-bytes", str(SIZE_BYTES)]
    argv += ["--digests"] if row.floor == "digests" else ["--file", _image(folder, "floor.img")]
    process = pinned([*argv, *["--direct"] * row.direct], cpu, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line.isdigit():
            raise BenchmarkError("the floor did not start")
        yield Server("floor", process.pid, int(line))
    finally:
        stop(process)
        assert process.stdout is not None
        process.stdout.close()


def _mix(server: Server, cpu: int | None, arguments: Sequence[str]) -> dict[str, Any]:
    argv = [sys.executable, "-m", "benchmarks.mixed", "--port", str(server.port), "--subnqn", SUBNQN]
    argv += ["--watch", str(server.pid), *(["--cpu", str(cpu)] if cpu is not None else []), *arguments]
    process = pinned(argv, cpu, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    try:
        result: dict[str, Any] = json.loads(out)
    except ValueError as error:
        last = (err.strip().splitlines() or ["no output"])[-1]
        raise BenchmarkError(f"the mixed load failed: {last}") from error
    if "error" in result:
        raise BenchmarkError(f"{server.name}: {result['error']}")
    return result


def _sample(row: Row, server: Server, cores: Cores, timing: Sequence[str]) -> dict[str, Any]:
    if row.mix:
        return _mix(server, cores.generator, [*row.load(), *timing])
    return generate(server, cores.generator, [*row.load(), *timing])


def measure(
    row: Row, builds: Sequence[Build], folder: Path, cores: Cores, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure one row; return its figures."""
    plan = Plan(size_bytes=SIZE_BYTES, wait="spin" if cores.server is not None else "poll")
    timing = ["--seconds", str(seconds), "--warmup", str(WARMUP_SECONDS), "--span-bytes", str(SIZE_BYTES)]
    timing += ["--wait", plan.wait]
    with contextlib.ExitStack() as stack:
        servers: list[Server] = []
        for build in builds:
            files = {"file": _image(folder, f"{build.name}.img")} if "{file}" in row.storage else {}
            storage = row.storage.format(**files).split()
            if build.folder == ROOT:
                storage += row.options.split()
            servers.append(stack.enter_context(target_of(build, "tcp", storage, cores.server)))
            if "zoned" not in row.storage:
                fill(servers[-1], cores, plan, "tcp")
        if row.floor:
            servers.append(stack.enter_context(floor_of(row, folder, cores.server)))
        quiet: list[list[dict[str, Any]]] = []
        noisy: list[list[dict[str, Any]]] = []
        for _ in range(2 * rounds):
            samples = [_sample(row, server, cores, timing) for server in servers]
            (quiet if all(map(is_quiet, samples)) else noisy).append(samples)
            if len(quiet) >= rounds:
                break
    return _summary(row, [server.name for server in servers], quiet or noisy, noisy=not quiet)


def _summary(
    row: Row, names: Sequence[str], rounds: Sequence[Sequence[dict[str, Any]]], *, noisy: bool
) -> dict[str, Any]:
    figures: dict[str, Any] = {"name": row.name, "rounds": len(rounds), "noisy": noisy}
    for index, name in enumerate(names):
        samples = [samples[index] for samples in rounds]
        figures[name] = {
            "user_us": statistics.median(s["server_cpu"]["user"] / max(1, s["ios"]) * 1e6 for s in samples),
            "cpu_us": statistics.median(
                (s["server_cpu"]["user"] + s["server_cpu"]["system"]) / max(1, s["ios"]) * 1e6 for s in samples
            ),
            "iops": statistics.median(s["iops"] for s in samples),
            "p99_us": statistics.median(s["p99_us"] for s in samples),
            "busy": statistics.median(s["server_cpu"]["busy"] for s in samples),
        }

    def ratio(a: str, b: str) -> float | None:
        if a not in names or b not in names:
            return None
        one, two = names.index(a), names.index(b)
        return float(statistics.median(s[one]["iops"] / max(1.0, s[two]["iops"]) for s in rounds))

    return figures | {"iops_to_there": ratio("here", "there"), "iops_to_floor": ratio("here", "floor")}


def _line(result: dict[str, Any]) -> str:
    def of(name: str, key: str, form: str) -> str:
        return format(result[name][key], form) if name in result else "-"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    cells = [result["name"] + " ~" * result["noisy"], str(result["rounds"])]
    cells += [of(name, "user_us", ".2f") for name in ("there", "here")]
    cells += [of(name, "cpu_us", ".2f") for name in ("there", "here", "floor")]
    cells += [of(name, "iops", ",.0f") for name in ("there", "here", "floor")]
    cells += [number(result["iops_to_there"]), number(result["iops_to_floor"]), of("here", "p99_us", ",.0f")]
    return "{:<32}{:>3}{:>8}{:>7}{:>8}{:>7}{:>7}{:>9}{:>9}{:>9}{:>7}{:>7}{:>8}".format(*cells)


_HEAD: Final = (
    f"{'user us, all CPU us, IOPS':<32}{'n':>3}{'there':>8}{'here':>7}{'there':>8}{'here':>7}{'floor':>7}"
    f"{'there':>9}{'here':>9}{'floor':>9}{'/there':>7}{'/floor':>7}{'p99 us':>8}"
)


def run(rows: Sequence[Row], builds: Sequence[Build], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the rows, and print a line for each. One that cannot be measured says why."""
    results, cores = [], choose_cores()
    print(_HEAD, flush=True)
    for system in dict.fromkeys(row.system for row in rows):
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
            if system and options.folder is None:
                folder = stack.enter_context(mounted(system, folder))
            for row in (row for row in rows if row.system == system):
                try:
                    results.append(measure(row, builds, folder, cores, options.rounds, options.seconds))
                except BenchmarkError as error:
                    print(f"{row.name:<32} {error}", flush=True)
                else:
                    print(_line(results[-1]), flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 when a row could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--against", type=Path, metavar="DIR", help="the other checkout [default: this one alone]")
    parser.add_argument("--case", default="*", help="names or a pattern [default: all]")
    parser.add_argument("--rounds", type=int, default=9, help="[default: 9]")
    parser.add_argument("--seconds", type=float, default=0.6, help="of a sample [default: 0.6]")
    parser.add_argument("--folder", type=Path, help="where files are [default: ext4 and XFS on loop devices]")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    options = parser.parse_args(argv)
    rows = [row for row in ROWS if fnmatch(row.name, options.case)]
    if options.list or not rows:
        print("\n".join(row.name for row in ROWS))
        return 0 if rows else 1
    builds = [Build("there", options.against.resolve())] if options.against else []
    try:
        results = run(rows, [*builds, Build("here", ROOT)], options)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return int(len(results) < len(rows))


if __name__ == "__main__":
    raise SystemExit(main())
