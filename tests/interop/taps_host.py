"""Run in the guest: our host over MPTCP, on all paths. Prints one JSON object.

python3 taps_host.py ADDRESS PORT NQN MEBIBYTES
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import nvmeof

PIECE_BYTES = 1 << 20


def counters() -> dict[str, dict[str, int]]:
    """Return the bytes that each tap interface has carried."""
    return {
        device.name: {kind: int((device / "statistics" / f"{kind}_bytes").read_text()) for kind in ("tx", "rx")}
        for device in sorted(Path("/sys/class/net").glob("eth[1-9]"))
    }


async def main(address: str, port: int, nqn: str, mebibytes: int) -> dict[str, Any]:
    data = random.Random(1).randbytes(PIECE_BYTES)
    async with await nvmeof.connect(address, port, subnqn=nqn, transport="mptcp", nr_io_queues=1) as controller:
        (namespace,) = await controller.namespaces()
        await asyncio.sleep(1.0)  # wait for the joins
        blocks = PIECE_BYTES // namespace.block_bytes
        before = counters()
        for start in range(0, mebibytes, 8):
            pieces = range(start, min(start + 8, mebibytes))
            await asyncio.gather(*(namespace.write(piece * blocks, data) for piece in pieces))
        await namespace.flush()
        between = counters()
        equal = True
        for start in range(0, mebibytes, 8):
            pieces = range(start, min(start + 8, mebibytes))
            found = await asyncio.gather(*(namespace.read(piece * blocks, blocks) for piece in pieces))
            equal = equal and all(part == data for part in found)
        after = counters()
        return {
            "equal": equal,
            "written": {name: between[name]["tx"] - before[name]["tx"] for name in before},
            "read": {name: after[name]["rx"] - between[name]["rx"] for name in before},
            "queues": controller.describe(),
        }


if __name__ == "__main__":
    result = asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
    print(json.dumps(result, default=str))
