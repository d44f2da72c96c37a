"""The host's side of an experiment, in a process of its own: takes one JSON order, prints one JSON answer.

python -m benchmarks.mptcp.worker '{"task": "phases", "addresses": ["10.1.1.1"], ...}'
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from benchmarks.mptcp.load import Verifier, close_window, round_robin_load, stop
from nvmeof import connect
from nvmeof.errors import NvmeofError
from nvmeof.host.client import HostController
from nvmeof.host.facts import QueueFacts
from nvmeof.host.load import MeasuredLoad
from nvmeof.host.namespace import Namespace
from nvmeof.transport.paths.session import PathOptions

Order = Mapping[str, Any]
SUBFLOW_SECONDS = 3.0
SUBFLOW_SAMPLE_SECONDS = 0.25
COPY_BYTES = 512 * 1024
KATO_SECONDS = 30.0


async def open_controllers(order: Order, stack: contextlib.AsyncExitStack) -> list[HostController]:
    """Connect one controller per address; wait at most 3 s for the subflows that were asked for."""
    controllers = []
    for address in order["addresses"]:
        controller = await connect(
            address,
            order.get("port", 4420),
            subnqn=order["subnqn"],
            transport=order["transport"],
            nr_io_queues=order.get("queues", 1),
            queue_size=max(32, order.get("depth", 32) + 1),
            congestion=order.get("congestion"),
            keep_alive_tmo=order.get("keep_alive_seconds", KATO_SECONDS),
            io_timeout=60.0,
            paths=PathOptions(paths=tuple(order["paths"])) if order.get("paths") else None,
        )
        controllers.append(await stack.enter_async_context(controller))
    await wait_for_subflows(controllers, order)
    return controllers


async def wait_for_subflows(controllers: Sequence[HostController], order: Order) -> None:
    """Wait until each I/O queue has the subflows that were asked for, or for 3 s."""
    deadline = time.monotonic() + SUBFLOW_SECONDS
    while time.monotonic() < deadline and order["transport"] == "mptcp":
        if all(len(queue.get("subflows", ())) >= order.get("subflows", 1) for queue in io_queues(controllers)):
            break
        await asyncio.sleep(0.05)


def io_queues(controllers: Sequence[HostController]) -> list[QueueFacts]:
    """Return the facts of the I/O queues' connections."""
    return [queue for controller in controllers for queue in controller.describe() if queue.get("qid")]


def connection_facts(controllers: Sequence[HostController]) -> dict[str, Any]:
    """Return what the experiments' reports say of the connections."""
    queues = io_queues(controllers)
    return {
        "protocols": sorted({str(queue.get("protocol")) for queue in queues}),
        "fallback": any(queue.get("fallback") for queue in queues),
        "congestion": sorted({str(queue.get("congestion")) for queue in queues}),
        "subflows": [_established(queue) for queue in queues],
        "retransmits": sum(queue.get("retransmits") or 0 for queue in queues),
        "mptcp_retransmits": sum(queue.get("mptcp_retransmits") or 0 for queue in queues),
    }


def _established(queue: QueueFacts) -> int:
    """Count the open subflows: the kernel also lists a connection's first subflow after it has been closed."""
    return sum(flow.get("state") == "ESTABLISHED" for flow in queue.get("subflows") or ())


async def _most_subflows(controllers: list[HostController], most: list[int]) -> None:
    """Store in `most` the largest number of open subflows that a connection had."""
    while True:
        most[:] = [max([*most, *(_established(queue) for queue in io_queues(controllers))])]
        await asyncio.sleep(SUBFLOW_SAMPLE_SECONDS)


async def _namespace(controller: HostController) -> Namespace:
    namespace = controller.namespace(1)
    await namespace.refresh()
    return namespace


async def phases(order: Order) -> dict[str, Any]:
    """Run load in phases (``randread``, ``randwrite``, ``read``, ``write``, ``flush``) over all controllers in turn."""
    async with contextlib.AsyncExitStack() as stack:
        controllers = await open_controllers(order, stack)
        namespace = await _namespace(controllers[0])
        queues = [controller.io_queues[i] for i in range(order.get("queues", 1)) for controller in controllers]
        results = []
        for pattern in order["phases"]:
            if pattern == "flush":
                began = time.perf_counter()
                await namespace.flush()
                results.append({"pattern": pattern, "seconds": time.perf_counter() - began})
                continue
            load = round_robin_load(namespace, queues, pattern, order["block_bytes"], order["depth"])
            load.start(order.get("ramp_seconds", 0.0))
            await window([load], order)
            results.append({"pattern": pattern, **close_window(load)})
            facts = connection_facts(controllers)
            await stop(load)
        return {"phases": results, "connections": facts}


async def window(loads: Sequence[MeasuredLoad], order: Order) -> None:
    """Let loads warm up, and open their windows for the order's seconds; the caller closes the windows."""
    await asyncio.sleep(order["warmup_seconds"])
    for load in loads:
        load.open_window()
    await asyncio.sleep(order["seconds"])


async def latency(order: Order) -> dict[str, Any]:
    """Measure small reads one at a time, alone and beside streams of large ones, on their queue or on another."""
    async with contextlib.AsyncExitStack() as stack:
        controllers = await open_controllers(order, stack)
        namespace = await _namespace(controllers[0])
        queues = controllers[0].io_queues
        small = round_robin_load(namespace, queues[-1:], "randread", 4096, 1)
        small.start()
        await window([small], order)
        alone = close_window(small)
        await stop(small)
        streams = queues[:-1] if len(queues) > 1 else queues
        stream = round_robin_load(
            namespace, streams, order["stream"], order["block_bytes"], order["depth"] // len(streams)
        )
        stream.start()
        small = round_robin_load(namespace, queues[-1:], "randread", 4096, 1)
        small.start()
        await window([stream, small], order)
        beside, streamed = close_window(small), close_window(stream)
        facts = connection_facts(controllers)
        await asyncio.gather(stop(stream), stop(small))
        return {"alone": alone, "beside": beside, "stream": streamed, "connections": facts}


async def copy(order: Order) -> dict[str, Any]:
    """Copy a file to the namespace with ``depth`` pieces outstanding; return the digest of the data that was read."""
    async with contextlib.AsyncExitStack() as stack:
        controllers = await open_controllers(order, stack)
        namespace = await _namespace(controllers[0])
        digest = hashlib.sha256()
        offset = 0
        pieces = asyncio.Semaphore(order["depth"])

        async def write(block: int, data: bytes) -> None:
            try:
                await namespace.write(block, data)
            finally:
                pieces.release()

        began = time.perf_counter()
        with open(order["path"], "rb") as source:  # noqa: ASYNC230, PTH123 -- reading is part of what is measured
            async with asyncio.TaskGroup() as group:
                while data := source.read(COPY_BYTES):
                    digest.update(data)
                    await pieces.acquire()
                    group.create_task(write(offset // namespace.block_bytes, data))
                    offset += len(data)
        await namespace.flush()
        seconds = time.perf_counter() - began
        return {
            "bytes": offset,
            "seconds": seconds,
            "mb_per_s": offset / seconds / 1e6,
            "sha256": digest.hexdigest(),
            "connections": connection_facts(controllers),
        }


async def verify(order: Order) -> dict[str, Any]:
    """Run the verifying load. Print a line when it runs; the answer has the time of each completion."""
    async with contextlib.AsyncExitStack() as stack:
        controllers = await open_controllers(order, stack)
        namespace = await _namespace(controllers[0])
        verifier = Verifier(namespace, order["block_bytes"], order["depth"], order.get("slots_each", 8))
        print(json.dumps({"running": time.monotonic(), "connections": connection_facts(controllers)}), flush=True)
        most = [0]
        counting = asyncio.create_task(_most_subflows(controllers, most))
        try:
            await verifier.run(order["seconds"])
        finally:
            counting.cancel()
        return {
            "most_subflows": most[0],
            "times": verifier.times,
            "block_bytes": order["block_bytes"],
            "errors": verifier.errors,
            "lost_bytes": verifier.lost_bytes,
            "connections": connection_facts(controllers),
        }


Tasks = Mapping[str, Callable[[Order], Awaitable[dict[str, Any]]]]
TASKS: Tasks = {"phases": phases, "latency": latency, "copy": copy, "verify": verify}


def serve(tasks: Tasks) -> None:
    """Do the task of the order on the command line, and print its answer, or the error, as a line of JSON."""
    order = json.loads(sys.argv[1])
    runner: Any = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        runner = uvloop.run
    try:
        answer = runner(tasks[order["task"]](order))
    except* (NvmeofError, OSError, TimeoutError) as group:
        answer = {"error": str(group.exceptions[0]) or type(group.exceptions[0]).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    serve(TASKS)
