"""The host's side of the experiments with several NVMe paths: one JSON order in, one JSON answer out.

python -m benchmarks.mptcp.multipath_worker '{"task": "load", "addresses": ["10.1.1.1", "10.1.2.1"], ...}'
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import time
from typing import Any

from benchmarks.mptcp.load import BlockDevice, Verifier, close_window, stop
from benchmarks.mptcp.worker import KATO_SECONDS, Order, connection_facts, serve, wait_for_subflows, window
from nvmeof.host.client import HostController
from nvmeof.host.head_load import HeadLoad
from nvmeof.host.host_subsystem import HostSubsystem, connect_multipath

BLOCK_BYTES = 4096


async def _connect(order: Order) -> HostSubsystem:
    """Connect a subsystem over one path per address, and wait for the subflows that were asked for."""
    subsystem = await connect_multipath(
        *order["addresses"],
        subnqn=order["subnqn"],
        trsvcid=order.get("port", 4420),
        transport=order["transport"],
        iopolicy=order["iopolicy"],
        all_paths=True,
        nr_io_queues=order.get("queues", 1),
        queue_size=max(32, order["depth"] + 1),
        congestion=order.get("congestion"),
        keep_alive_tmo=order.get("keep_alive_seconds", KATO_SECONDS),
        reconnect_delay=order.get("reconnect_delay", 10.0),
        quiesce_tmo=0.0,  # as Linux: a command of a lost path goes to another path at once
        io_timeout=60.0,
    )
    await wait_for_subflows(_controllers(subsystem), order)
    return subsystem


def _controllers(subsystem: HostSubsystem) -> list[HostController]:
    return [path.controller for path in subsystem.paths if isinstance(path.controller, HostController)]


def _path_facts(subsystem: HostSubsystem) -> list[dict[str, Any]]:
    """Return what went over each path."""
    return [
        {"name": path.name, "ios": path.figures.ios, "errors": path.figures.errors,
         "failovers": path.figures.failovers, "state": path.path.state.value}
        for path in subsystem.paths
    ]  # fmt: skip


async def load(order: Order) -> dict[str, Any]:
    """Run load in phases (``randread``, ``randwrite``) over the paths that the I/O policy chooses."""
    async with await _connect(order) as subsystem:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        phases = []
        for pattern in order["phases"]:
            running = HeadLoad(namespace, pattern, order["block_bytes"], order["depth"])
            running.start()
            await window([running], order)
            phases.append({"pattern": pattern, **close_window(running)})
            await stop(running)
        connections = connection_facts(_controllers(subsystem))
        return {"phases": phases, "paths": _path_facts(subsystem), "connections": connections}


async def verify(order: Order) -> dict[str, Any]:
    """Run the verifying load over the paths that the I/O policy chooses; print a line when it runs."""
    async with await _connect(order) as subsystem:
        namespace = subsystem.namespace(1)
        await namespace.refresh()
        found = await _verify(namespace, order, connection_facts(_controllers(subsystem)))
        return found | {"paths": _path_facts(subsystem)}


async def verify_device(order: Order) -> dict[str, Any]:
    """Run the verifying load on the kernel's device file, which has native multipath below it."""
    device = DeviceFile(order["device"])
    try:
        return await _verify(device, order, {})
    finally:
        device.close()


async def _verify(device: BlockDevice, order: Order, connections: dict[str, Any]) -> dict[str, Any]:
    verifier = Verifier(device, order["block_bytes"], order["depth"], order.get("slots_each", 8))
    print(json.dumps({"running": time.monotonic(), "connections": connections}), flush=True)
    await verifier.run(order["seconds"])
    return {
        "times": verifier.times,
        "longest_seconds": verifier.longest_seconds,
        "errors": verifier.errors,
        "lost_bytes": verifier.lost_bytes,
    }


class DeviceFile:
    """A block device of the kernel for a verifying load, read and written past the page cache by threads."""

    def __init__(self, path: str) -> None:
        self.block_bytes = BLOCK_BYTES
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)

    async def read(self, lba: int, blocks: int = 1) -> bytes:
        return await asyncio.to_thread(self._read, lba * BLOCK_BYTES, blocks * BLOCK_BYTES)

    async def write(self, lba: int, data: bytes) -> None:
        await asyncio.to_thread(self._write, lba * BLOCK_BYTES, data)

    def _read(self, offset: int, length: int) -> bytes:
        with mmap.mmap(-1, length) as aligned:  # direct I/O needs whole pages
            if os.preadv(self._fd, [aligned], offset) != length:
                raise OSError(f"a read of {length} bytes at {offset} came back short")
            return bytes(aligned)

    def _write(self, offset: int, data: bytes) -> None:
        with mmap.mmap(-1, len(data)) as aligned:
            aligned[:] = data
            if os.pwritev(self._fd, [aligned], offset) != len(data):
                raise OSError(f"a write of {len(data)} bytes at {offset} was cut short")

    def close(self) -> None:
        """Close the device file."""
        os.close(self._fd)


if __name__ == "__main__":
    serve({"load": load, "verify": verify, "verify_device": verify_device})
