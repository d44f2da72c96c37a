"""The kernel's own host with one NVMe path per link, as the reference: in the guest, which has nvme-tcp and root."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.mptcp.lab import LabError, Network
from benchmarks.mptcp.runs import BLOCK_BYTES, NVME_PORT, SUBNQN

DEVICE_SECONDS = 20.0
SUBSYSTEMS = Path("/sys/class/nvme-subsystem")


@contextlib.contextmanager
def connected(network: Network, addresses: Sequence[str], *options: str, port: int = NVME_PORT) -> Iterator[str]:
    """Connect to each address over TCP by ``nvme connect`` with ``options``, yield the device file, and disconnect.

    Raises LabError where a path cannot be connected, or no device appears.
    """
    host = network.host
    try:
        for address in addresses:
            host.run("nvme", "connect", "-t", "tcp", "-a", address, "-s", str(port), "-n", SUBNQN, *options)
        yield wait_for_device(network)
    finally:
        host.run("nvme", "disconnect", "-n", SUBNQN, check=False)


def wait_for_device(network: Network) -> str:
    """Wait for the device file of the namespace that the kernel has connected to, and return its path. Raises LabError
    where none appears.
    """
    deadline = time.monotonic() + DEVICE_SECONDS
    while time.monotonic() < deadline:
        found = network.host.run("sh", "-c", "ls /dev/nvme*n1 2>/dev/null || true").split()
        if found:
            return found[0]
        time.sleep(0.2)
    raise LabError("the kernel connected, but no block device appeared")


def policies() -> tuple[str, ...]:
    """Return those of our I/O policies that this kernel has."""
    known = ("numa", "round-robin", "queue-depth")
    control = next(SUBSYSTEMS.glob("nvme-subsys*/iopolicy"), None)
    if control is None:
        return ()
    before, found = control.read_text().strip(), []
    for name in known:
        with contextlib.suppress(OSError):
            control.write_text(name)
            found.append(name)
    control.write_text(before)
    return tuple(found)


def set_policy(name: str) -> None:
    """Choose the I/O policy of the kernel's subsystem. Raises LabError where it has no native multipath."""
    controls = list(SUBSYSTEMS.glob("nvme-subsys*/iopolicy"))
    if not controls:
        raise LabError("this kernel has no native NVMe multipath (nvme_core.multipath)")
    for control in controls:
        control.write_text(name)


def fio(
    network: Network, device: str, pattern: str, seconds: float, *, depth: int, jobs: int, ramp_seconds: float = 2.0
) -> float:
    """Return the MB/s of a load on a device file that equals our host's: 128 KiB, direct, ``depth`` per job. Raises
    LabError with fio's message.
    """
    process = network.host.start(
        ["fio", "--name=x", f"--filename={device}", f"--rw={pattern}", f"--bs={BLOCK_BYTES}", f"--iodepth={depth}",
         f"--numjobs={jobs}", "--ioengine=libaio", "--direct=1", "--time_based", f"--runtime={seconds:g}",
         f"--ramp_time={ramp_seconds:g}", "--group_reporting", "--output-format=json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=seconds + ramp_seconds + 90)
    try:
        job = json.loads(out[out.index("{") :])["jobs"][0]
    except (ValueError, LookupError):
        raise LabError(f"fio failed: {(err or out).strip().splitlines()[-1:]}") from None
    return float(job["write" if pattern.endswith("write") else "read"]["bw_bytes"]) / 1e6
