"""Our host under the verifying load. Argument: an order; prints ``ready``, then JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

from nvmeof import PathAddress, connect_multipath
from nvmeof.errors import NvmeofError
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.namespace import Namespace

from .watch import Order, Snapshot, Timeline, attend, order_of

NSID = 1


class NamespaceDevice:
    """A namespace of ours."""

    failure: type[Exception] = NvmeofError

    def __init__(self, namespace: Namespace) -> None:
        self.block_bytes = namespace.block_bytes
        self._namespace = namespace

    async def read(self, first: int, blocks: int) -> bytes:
        """Return blocks. Raises NvmeofError."""
        return await self._namespace.read(first, blocks)

    async def write(self, first: int, data: bytes) -> None:
        """Write blocks. Raises NvmeofError."""
        await self._namespace.write(first, data)


def look(subsystem: HostSubsystem, namespace: Namespace) -> Snapshot:
    """Return the states of paths and namespace."""
    seen = {"bytes": str(namespace.size_bytes)}
    for member in subsystem.paths:
        address = member.path.options.traddr
        path = member.namespaces.get(NSID)
        seen[f"{address} state"] = member.path.state.value
        seen[f"{address} ana"] = path.describe()["ana_state"] if path is not None else "no namespace"
    return seen


def carried(subsystem: HostSubsystem) -> dict[str, int]:
    """Return how many commands each path has completed."""
    return {member.path.options.traddr: member.figures.ios for member in subsystem.paths}


async def main(order: Order) -> None:
    """Connect with the default timers, run the load until it ends, disconnect."""
    paths = [PathAddress(*each, "tcp") for each in zip(order.addresses, order.ports, strict=True)]
    async with await connect_multipath(*paths, subnqn=order.nqn, all_paths=True) as subsystem:
        namespace = subsystem.namespace(NSID)
        await namespace.refresh()
        timeline = Timeline(lambda: look(subsystem, namespace), lambda: carried(subsystem))
        found = await attend(order, NamespaceDevice(namespace), timeline)
        outages = [each for member in subsystem.paths for each in member.path.describe()["outages"]]
        print(json.dumps({**found, "outages": outages, "end": subsystem.core.describe()}, default=str), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    asyncio.run(main(order_of(sys.argv[1])))
