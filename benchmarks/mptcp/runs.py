"""The parts of every experiment: a target, a bare sender's server, and runs of the host's side."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mptcp.lab import LabError, Network

SUBNQN = "nqn.2026-01.io.nvmeof:experiment"
NVME_PORT = 4420
BARE_PORT = 5001
START_SECONDS = 120.0
BLOCK_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """How long, and how often, an experiment measures."""

    quick: bool
    congestion: str
    scratch: Path
    """A directory for large files, removed at the end."""

    def pick(self, quick: Any, full: Any) -> Any:
        """Return the short form's value or the full form's."""
        return quick if self.quick else full


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


@contextlib.contextmanager
def target(network: Network, transport: str, congestion: str, *arguments: str) -> Iterator[None]:
    """Run our target on all addresses of the target's network namespace; `arguments` give its NVMe namespaces."""
    argv = [sys.executable, "-m", "nvmeof.target", "--trtype", transport, "--listen", f"0.0.0.0:{NVME_PORT}"]
    argv += ["--subnqn", SUBNQN, "--congestion", congestion, "--quiet", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = network.target.start(argv, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_listening(network, process, log)
            yield
        finally:
            _stop(process)


def _wait_until_listening(network: Network, process: subprocess.Popen[str], log: Any) -> None:
    wanted = f":{NVME_PORT:04X} "
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        lines = Path(f"/proc/{network.target.pid}/net/tcp").read_text().splitlines()[1:]
        if any(wanted in line and line.split()[3] == "0A" for line in lines):
            return
        time.sleep(0.05)
    log.seek(0)
    words = log.read().strip().splitlines()
    raise LabError(f"the target did not start: {words[-1] if words else 'it printed nothing'}")


@contextlib.contextmanager
def bare_server(network: Network, transport: str, congestion: str) -> Iterator[None]:
    """Run the bare sender's server in the target's network namespace."""
    argv = [sys.executable, "-m", "benchmarks.mptcp.sender", "serve", "--transport", transport]
    argv += ["--listen", f"0.0.0.0:{BARE_PORT}", "--congestion", congestion]
    process = network.target.start(argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise LabError("the bare sender's server did not start")
        yield
    finally:
        _stop(process)


def answer(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Return the last line of JSON that a process prints. Raises LabError with the process's message."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise LabError(f"the host's side did not end within {seconds:g} s") from None
    lines = (out or "").strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        words = (err or "").strip().splitlines()
        said = words[-1] if words else "it printed nothing"
        raise LabError(f"the host's side failed (exit status {process.returncode}): {said}") from None
    if "error" in found:
        raise LabError(f"the host's side failed: {found['error']}")
    return found


WORKER = "benchmarks.mptcp.worker"


def start_worker(network: Network, module: str = WORKER, **order: Any) -> subprocess.Popen[str]:
    """Start the host's side of an experiment with an order (see `worker`, or the module given)."""
    order = {"addresses": [network.target_address(1)], "port": NVME_PORT, "subnqn": SUBNQN, **order}
    argv = [sys.executable, "-m", module, json.dumps(order)]
    return network.host.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def work(network: Network, timeout_seconds: float = 120.0, module: str = WORKER, **order: Any) -> dict[str, Any]:
    """Run the host's side once; return its answer."""
    return answer(start_worker(network, module, **order), timeout_seconds)


def first_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a verifying load prints when it runs. Raises LabError where it did not start."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith('{"running"'):
        process.kill()
        out, err = process.communicate()
        raise LabError(f"the verifying load did not start: {(line + out + err).strip().splitlines()[-1:]}")
    first: dict[str, Any] = json.loads(line)
    return first


def bare(
    network: Network, transport: str, direction: str, congestion: str, seconds: float, warmup: float = 1.0
) -> float:
    """Measure the bare sender in one direction as the host sees it, `read` or `write`; return MB/s."""
    argv = [sys.executable, "-m", "benchmarks.mptcp.sender", "measure", "--transport", transport]
    argv += ["--address", f"{network.target_address(1)}:{BARE_PORT}", "--direction", direction]
    argv += ["--seconds", str(seconds), "--warmup", str(warmup), "--congestion", congestion]
    process = network.host.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return float(answer(process, seconds + warmup + 60)["mb_per_s"])


def link_megabytes(before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> list[float]:
    """Return the MB that each link carried in both directions, headers included."""
    return [round((b[0] - a[0] + b[1] - a[1]) / 1e6, 3) for a, b in zip(before, after, strict=True)]
