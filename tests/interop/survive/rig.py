"""The target's guest, two links to it, and two hosts: ours on this machine, the kernel's own in the guest.

Everything of this machine runs in a network namespace that :func:`inside` has made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..guest import REPOSITORY, Guest
from .events import Event
from .watch import Order

NETNS = "NVMEOF_SURVIVE_NETNS"
"""Variable that names the network namespace, within it."""
NQN = "nqn.2026-01.io.nvmeof:survive"
ADDRESSES = ["10.78.1.2", "10.78.2.2"]
DISK_MIB = 192
LOAD_MIB = 2
BLOCK_BYTES = 512
CLOCK_QUESTIONS = 4
HOST_START_SECONDS = 150.0
QUIET_SECONDS = 1.5
"""Seconds under load before the event."""
HERE = Path(__file__).parent


def inside(arguments: list[str]) -> int:
    """Run this program again in a network namespace of its own; return its exit status."""
    name = f"survive{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "tests.interop.survive", *arguments]
    process = subprocess.Popen(command, env={**os.environ, NETNS: name})
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        subprocess.run(["ip", "netns", "del", name], check=False)


@dataclass(slots=True)
class Seen:
    """One host's record of an event, by its own clock."""

    result: dict[str, Any]
    clock_ahead: float = 0.0
    """How much the host's clock is ahead of this machine's."""


@dataclass(slots=True)
class Run:
    """One event, and the records of both hosts. Times of this machine's clock."""

    event: Event
    caused_at: float
    undone_at: float
    ours: Seen
    kernel: Seen


class OurHost:
    """Our host, a process of this machine."""

    def __init__(self, order: Order, log: Path) -> None:
        self.log = log
        self._errors = log.open("w")
        words = [sys.executable, "-m", "tests.interop.survive.our_host", json.dumps(asdict(order))]
        self._process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=self._errors, text=True)

    def ready(self) -> bool:
        """Wait until the load runs; return whether it does."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip() == "ready"

    def result(self, timeout_seconds: float) -> dict[str, Any]:
        """Wait for the result. Raises RuntimeError."""
        try:
            text = self._process.communicate(timeout=timeout_seconds)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise RuntimeError(f"our host does not end: {self.log}") from None
        finally:
            self._errors.close()
        if self._process.returncode or "Traceback" in self.log.read_text():
            raise RuntimeError(f"our host failed: {self.log.read_text()[-3000:]}")
        return dict(json.loads(text))

    def kill(self) -> None:
        """End the process by any means."""
        if self._process.poll() is None:
            self._process.kill()


class KernelHost:
    """The kernel's host in a guest: a process there that executes orders."""

    def __init__(self, guest: Guest, share: Path, log: Path) -> None:
        self.guest = guest
        self._orders = share / f"orders{guest.port}"
        shutil.rmtree(self._orders, ignore_errors=True)
        self._orders.mkdir()
        self._number = 0
        self._read = 0
        words = f"python3 -m survive.kernel_host /host/{self._orders.name}"
        self._command = guest.start(
            f"modprobe nvme-tcp\nPYTHONPYCACHEPREFIX=/host/pycache PYTHONPATH=/host/python exec {words}", log
        )

    def order(self, order: Order) -> None:
        """Send an order: connect and begin."""
        self._number += 1
        place = self._orders / "next"
        place.write_text(json.dumps(asdict(order)))
        place.rename(self._orders / str(self._number))

    def line(self, timeout_seconds: float) -> str:
        """Return the next line that it prints. Raises RuntimeError."""
        deadline = time.monotonic() + timeout_seconds
        while "\n" not in (new := self._command.output[self._read :]):
            if not self._command.running or time.monotonic() > deadline:
                raise RuntimeError(f"the kernel's host says no more:\n{new[-3000:]}")
            time.sleep(0.05)
        found = new.split("\n", 1)[0]
        self._read += len(found) + 1
        return found

    def json_line(self, timeout_seconds: float) -> dict[str, Any]:
        """Return the next line that is JSON. Raises RuntimeError."""
        while not (found := self.line(timeout_seconds)).startswith("{"):
            pass
        return dict(json.loads(found))


class Rig:
    """One kernel under test."""

    def __init__(self, kernel: str, directory: Path, say: Callable[[str], None]) -> None:
        self.kernel = kernel
        self.directory = directory
        self._say = say
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.share = directory.parent / "share"  # for all kernels, since it has the guest's compiled modules
        for each in self.share.glob("stop*"):
            each.unlink()
        (self.share / "python" / "survive").mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "survive.sh", self.share)
        for name in ("__init__.py", "load.py", "watch.py", "kernel_host.py"):
            shutil.copy(HERE / name, self.share / "python" / "survive")
        self._netns = os.environ[NETNS]
        self._disk = directory / "disk"
        self._log = directory / "guest.log"
        self._stop = 0
        self._clocks: dict[Guest, float] = {}
        self._second: KernelHost | None = None
        with self._disk.open("wb") as disk:
            disk.truncate(DISK_MIB << 20)
        self.guest = self._boot(1, "-d", str(self._disk), "--reset")
        self._kernel = KernelHost(self.guest, self.share, directory / "kernel.log")
        self._ip("route", "replace", "10.78.1.0/24", "via", "10.77.1.2")
        self._ip("route", "replace", "10.78.2.0/24", "via", "10.77.2.2")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self.target("net_up; disks_up; target_up")

    def _boot(self, first: int, *options: str) -> Guest:
        words = ["-n", "2", "--netns", self._netns, "--first-tap", str(first), "-m", "1024", *options]
        return Guest(self.kernel, self.share, self.directory / f"guest{first}.log", options=words)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def close(self) -> None:
        """End the guests."""
        if self._second is not None:
            self._second.guest.close()
        self.guest.close()
        self._disk.unlink(missing_ok=True)

    def target(self, script: str, timeout_seconds: float = 60) -> str:
        """Run functions of survive.sh in the target's guest; return what they print."""
        return self.guest.run(f". /host/survive.sh\n{script}", self._log, {"NQN": NQN}, timeout_seconds)

    def _second_host(self) -> KernelHost:
        """Return a kernel host in another guest, which does not go down with the target."""
        if self._second is None:
            guest = self._boot(3)
            routes = "; ".join(f"ip route add 10.78.{i}.0/24 via 10.77.{i + 2}.1" for i in (1, 2))
            guest.run(routes, self._log)
            self._second = KernelHost(guest, self.share, self.directory / "kernel2.log")
        return self._second

    def clock_ahead(self, guest: Guest) -> float:
        """Return how much a guest's clock is ahead of this machine's: the best of several measurements, made once."""
        if guest not in self._clocks:
            best, ahead = 1e9, 0.0
            for _ in range(CLOCK_QUESTIONS):
                before = time.time()
                there = float(guest.run("date +%s.%N", self._log))
                took = time.time() - before
                if took < best:
                    best, ahead = took, there - (before + took / 2)
            self._clocks[guest] = ahead
        return self._clocks[guest]

    def run(self, event: Event) -> Run:
        """Cause one event under both loads. Raises RuntimeError where a host reports no result."""
        kernel = self._second_host() if event.reboots else self._kernel
        where = kernel.guest
        self._stop += 1
        stop = self.share / f"stop{self._stop}"
        blocks = (LOAD_MIB << 20) // BLOCK_BYTES
        run = time.time_ns() & 0xFFFFFFFF
        mine = Order(NQN, ADDRESSES, run, 0, blocks, str(stop))
        theirs = Order(NQN, ADDRESSES, run + 1, blocks, blocks, f"/host/{stop.name}")
        ahead_there = self.clock_ahead(where)
        ours = OurHost(mine, self.directory / f"{event.name}.ours.log")
        try:
            where.run("dmesg -C", self._log)
            kernel.order(theirs)
            if not ours.ready():
                raise RuntimeError(f"our host did not start: {ours.log.read_text()[-3000:]}")
            while kernel.line(HOST_START_SECONDS) != "ready":
                pass
            time.sleep(QUIET_SECONDS)
            caused_at, undone_at = self._happen(event)
            stop.write_text(str(event.settle_seconds))
            found = ours.result(event.settle_seconds + 120)
            there = kernel.json_line(event.settle_seconds + 120)
        except BaseException:
            ours.kill()
            raise
        finally:
            with suppress(Exception):
                messages = where.run("dmesg", self._log)
                (self.directory / f"{event.name}.dmesg").write_text(messages)
        self._disconnected(where)
        self.target(event.restore)
        return Run(event, caused_at, undone_at, Seen(found), Seen(there, ahead_there))

    def _disconnected(self, guest: Guest) -> None:
        guest.run(
            "nvme disconnect-all; for _ in $(seq 100); do ls /sys/class/nvme/nvme* >/dev/null 2>&1 || exit 0;"
            " sleep 0.1; done; exit 1", self._log,
        )  # fmt: skip

    def _happen(self, event: Event) -> tuple[float, float]:
        """Cause and undo an event; return the times by this machine's clock."""
        if event.reboots:
            return self._reboot(event)
        caused_at = self._at(event.cause)
        time.sleep(max(0.0, caused_at + event.hold_seconds - time.time()))
        return caused_at, self._at(event.undo)

    def _at(self, script: str) -> float:
        printed = self.target(f"now; {script}")
        return float(printed.split()[0]) - self.clock_ahead(self.guest)

    def _reboot(self, event: Event) -> tuple[float, float]:
        before = self.guest.run("cat /proc/sys/kernel/random/boot_id", self._log)
        caused_at = time.time()
        command = self.guest.start(f". /host/survive.sh\n{event.cause}", self._log, {"NQN": NQN})
        time.sleep(1)
        command.kill()
        self.guest.started = time.monotonic()
        self.guest.wait_for_agent()
        if self.guest.run("cat /proc/sys/kernel/random/boot_id", self._log) == before:
            raise RuntimeError("the guest was not reset")
        self._clocks.pop(self.guest, None)
        self._kernel = KernelHost(self.guest, self.share, self.directory / "kernel.log")
        self.target("net_up; disks_up")
        self.target(event.undo)
        return caused_at, time.time()
