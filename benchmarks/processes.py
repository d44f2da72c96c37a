"""The processes of a loopback run: the target, the floor, and a load generator per sample."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import procstat
from benchmarks.session import IPPROTO_MPTCP, BenchmarkError

SUBNQN = "nqn.2026-01.io.nvmeof:benchmark"
ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Cores:
    """Where the two sides run; None where the machine has but one CPU to give."""

    generator: int | None
    server: int | None


def choose_cores() -> Cores:
    cpus = sorted(os.sched_getaffinity(0))
    return Cores(cpus[0], cpus[1]) if len(cpus) > 1 else Cores(None, None)


@dataclass
class Server:
    """A running target or floor."""

    name: str
    pid: int
    port: int


def pinned(
    argv: Sequence[str], cpu: int | None, search: Sequence[str] | None = None, nice: int = 0, **kwargs: Any
) -> subprocess.Popen[str]:
    """A process on one CPU. ``search``: where it finds modules [default: this checkout, then what is set].

    ``nice``: its priority, if that is permitted.
    """

    def place() -> None:
        procstat.pin(cpu)
        if nice:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, nice)

    if search is None:
        search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
    return subprocess.Popen(list(argv), preexec_fn=place, text=True, env=environment, **kwargs)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def mptcp_available() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP):
        return True
    return False


def target_arguments(port: int, *, trtype: str, storage: Sequence[str], congestion: str | None) -> list[str]:
    """The target's own command line, after ``python -m nvmeof.target``."""
    arguments = ["--trtype", trtype, "--listen", f"127.0.0.1:{port}", "--subnqn", SUBNQN, *storage]
    return arguments + (["--congestion", congestion] if congestion else [])


def stop(process: subprocess.Popen[str]) -> None:
    """Ask a process to end, and kill it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_port(process: subprocess.Popen[str], port: int, log: Any) -> None:
    """Wait until something listens. Raises `BenchmarkError` with the last line of ``log`` when the process ends."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            last = (log.read().strip().splitlines() or ["it said nothing"])[-1]
            raise BenchmarkError(f"the target ended with exit code {process.returncode}: {last}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise BenchmarkError(f"the target did not listen on port {port} within {START_SECONDS:g} s")


@contextlib.contextmanager
def running_target(
    trtype: str,
    storage: Sequence[str],
    cpu: int | None,
    *,
    congestion: str | None = None,
    launcher: Sequence[str] = (sys.executable, "-m", "nvmeof.target"),
) -> Iterator[Server]:
    """A target process for the time of the block. ``launcher`` is what its arguments are put behind."""
    port = free_port()
    arguments = target_arguments(port, trtype=trtype, storage=storage, congestion=congestion)
    with tempfile.TemporaryFile("w+") as log:
        process = pinned([*launcher, *arguments], cpu, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_port(process, port, log)
            yield Server("target", process.pid, port)
        finally:
            stop(process)


@contextlib.contextmanager
def running_floor(mptcp: bool, size_bytes: int, cpu: int | None, *, congestion: str | None = None) -> Iterator[Server]:
    argv = [sys.executable, "-m", "benchmarks.floor", "--size-bytes", str(size_bytes)]
    argv += ["--mptcp"] * mptcp + (["--congestion", congestion] if congestion else [])
    process = pinned(argv, cpu, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line.isdigit():
            raise BenchmarkError("the floor server did not start")
        yield Server("floor", process.pid, int(line))
    finally:
        stop(process)
        if process.stdout:
            process.stdout.close()


def generate(
    server: Server, cpu: int | None, arguments: Sequence[str], timeout_seconds: float = 180.0
) -> dict[str, Any]:
    """One generator run against ``server``; its figures. Raises `BenchmarkError` with the generator's sentence."""
    argv = [sys.executable, "-m", "benchmarks.generator", "--port", str(server.port), "--watch", str(server.pid)]
    argv += ["--floor"] if server.name == "floor" else ["--subnqn", SUBNQN]
    argv += ["--cpu", str(cpu)] if cpu is not None else []
    process = pinned([*argv, *arguments], cpu, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise BenchmarkError(f"the load generator did not end within {timeout_seconds:g} s") from error
    try:
        result: dict[str, Any] = json.loads(out)
    except ValueError as error:
        last = (err.strip().splitlines() or ["no output"])[-1]
        raise BenchmarkError(f"the load generator failed: {last}") from error
    if "error" in result:
        raise BenchmarkError(f"{server.name}: {result['error']}")
    return result
