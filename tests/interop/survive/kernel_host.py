"""Runs in the guest: the kernel's host under the verifying load.

Argument: a directory, in which orders are files called 1, 2 and so on. For each it prints ``ready``, then a line
of JSON. One process for all, since Python takes long to start in an emulated guest.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from .watch import Order, Snapshot, Timeline, attend, order_of

SYS = Path("/sys/class/nvme")
NSID = "1"


def text(path: Path) -> str:
    """Return the content of a file of sysfs, nothing where it is gone."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


class Kernel:
    """The controllers of one subsystem, and the namespace that they share, in sysfs."""

    def __init__(self, nqn: str) -> None:
        self.nqn = nqn

    def controllers(self) -> dict[str, Path]:
        """Return the controllers by the target's address."""
        found = {}
        for each in sorted(SYS.glob("nvme*")):
            if text(each / "subsysnqn") == self.nqn:
                address = dict(part.split("=", 1) for part in text(each / "address").split(",") if "=" in part)
                found[address.get("traddr", "?")] = each
        return found

    def path_device(self, controller: Path) -> Path | None:
        """Return the hidden device of the namespace through one controller."""
        number = controller.name.removeprefix("nvme")
        devices = Path("/sys/block").glob(f"nvme*c{number}n*")
        return next((each for each in devices if text(each / "nsid") == NSID), None)

    def head(self) -> str:
        """Return the name of the namespace's device, nothing where there is none."""
        for subsystem in Path("/sys/class/nvme-subsystem").glob("*"):
            if text(subsystem / "subsysnqn") == self.nqn:
                for each in subsystem.glob("nvme*n*"):
                    if "c" not in each.name.removeprefix("nvme") and text(each / "nsid") == NSID:
                        return each.name
        return ""

    def look(self) -> Snapshot:
        """Return the states of controllers and namespace."""
        seen = {"bytes": str(int(text(Path("/sys/block") / self.head() / "size") or 0) * 512)}
        for address, controller in self.controllers().items():
            device = self.path_device(controller)
            seen[f"{address} state"] = text(controller / "state")
            seen[f"{address} ana"] = text(device / "ana_state") if device is not None else "no namespace"
        return seen

    def carried(self) -> dict[str, int]:
        """Return how many commands each path has completed."""
        counts = {}
        for address, controller in self.controllers().items():
            device = self.path_device(controller)
            fields = text(device / "stat").split() if device is not None else []
            if fields:
                counts[address] = int(fields[0]) + int(fields[4])
        return counts


class BlockDevice:
    """A block device, past the page cache."""

    failure: type[Exception] = OSError

    def __init__(self, name: str) -> None:
        self.block_bytes = int(text(Path(f"/sys/block/{name}/queue/logical_block_size")))
        self._file = os.open(f"/dev/{name}", os.O_RDWR | os.O_DIRECT)
        self._threads = ThreadPoolExecutor(8)

    def close(self) -> None:
        """Close the device; a thread may hang on a device that is gone."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        os.close(self._file)

    async def read(self, first: int, blocks: int) -> bytes:
        """Return blocks. Raises OSError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, first, blocks)

    def _read(self, first: int, blocks: int) -> bytes:
        with mmap.mmap(-1, blocks * self.block_bytes) as place:
            done = os.preadv(self._file, [place], first * self.block_bytes)
            if done != len(place):
                raise OSError(f"{done} bytes were read in place of {len(place)}")
            return place[:]

    async def write(self, first: int, data: bytes) -> None:
        """Write blocks. Raises OSError."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._write, first, data)

    def _write(self, first: int, data: bytes) -> None:
        with mmap.mmap(-1, len(data)) as place:
            place[:] = data
            done = os.pwritev(self._file, [place], first * self.block_bytes)
            if done != len(data):
                raise OSError(f"{done} bytes were written in place of {len(data)}")


def connect(order: Order) -> Kernel:
    """Connect with the default timers, and wait for the namespace. Raises SystemExit."""
    kernel = Kernel(order.nqn)
    for address, port in zip(order.addresses, order.ports, strict=True):
        subprocess.run(
            ["nvme", "connect", "-t", "tcp", "-a", address, "-s", str(port), "-n", order.nqn, "-i", "1"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    deadline = time.time() + 20
    while len(kernel.carried()) < len(order.addresses) or kernel.look()["bytes"] == "0":
        if time.time() > deadline:
            raise SystemExit(f"no namespace after 20 s: {kernel.look()}")
        time.sleep(0.05)
    return kernel


def attend_to(order: Order) -> None:
    """Connect, run the load until it ends, disconnect."""
    kernel = connect(order)
    time.sleep(0.5)  # the partition scan
    device = BlockDevice(kernel.head())
    try:
        found = asyncio.run(attend(order, device, Timeline(kernel.look, kernel.carried)))
    finally:
        device.close()
        subprocess.run(["nvme", "disconnect", "-n", order.nqn], check=False, stdout=subprocess.DEVNULL)
    print(json.dumps(found), flush=True)


def main(directory: Path) -> None:
    """Execute one order after the other, until killed."""
    for number in count(1):
        while not (order := text(directory / str(number))):
            time.sleep(0.05)
        attend_to(order_of(order))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
