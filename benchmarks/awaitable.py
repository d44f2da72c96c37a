"""The host's process of `benchmarks.side_by_side`: load through the awaitable API, and the CPU that it took.

Nothing but public names is used, so that the same file runs against another checkout of the package. It prints one JSON
object: I/Os, and seconds of user and system CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import random
from typing import Final

import nvmeof

SUBNQN: Final = "nqn.2026-01.io.nvmeof:benchmark"
WARM_UP_SECONDS: Final = 0.15


async def _load(options: argparse.Namespace) -> dict[str, float]:
    controller = await nvmeof.connect("127.0.0.1", options.port, subnqn=SUBNQN, transport="tcp")
    namespace = controller.namespace(1)
    await namespace.refresh()
    blocks = options.bs // namespace.block_bytes
    places = namespace.size_bytes // options.bs
    done, ending = 0, False

    async def worker(seed: int) -> None:
        nonlocal done
        rng, memory = random.Random(seed), memoryview(bytearray(options.bs))
        while not ending:
            slba = rng.randrange(places) * blocks
            if options.op == "read":
                await namespace.read_into(slba, memory)
            else:
                await namespace.write(slba, memory)
            done += 1

    workers = asyncio.gather(*map(worker, range(options.depth)))
    await asyncio.sleep(WARM_UP_SECONDS)
    before, count = os.times(), done
    await asyncio.sleep(options.seconds)
    after, count = os.times(), done - count
    ending = True
    await workers
    await controller.disconnect()
    return {"ios": count, "user": after.user - before.user, "system": after.system - before.system}


def main() -> None:
    """Run the load that the command line describes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--op", choices=["read", "write"], required=True)
    parser.add_argument("--bs", type=int, required=True, help="bytes of one command")
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    factory = None
    with contextlib.suppress(ImportError):  # as the command line
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(_load(parser.parse_args()))))


if __name__ == "__main__":
    main()
