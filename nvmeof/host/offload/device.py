"""The offload device as the controller sees it: ``-t tcp_offload``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

from nvmeof.address import ip_of
from nvmeof.errors import ConfigurationError, LocalProtocolError, TransportError
from nvmeof.host.buffers import DeviceBuffer
from nvmeof.host.facts import QueueFacts
from nvmeof.host.offload.layout import COMMANDS_MAX, COMPLETION_BYTES, MAX_TRANSFER_BYTES, SUBMISSION_BYTES
from nvmeof.host.offload.link import OffloadLink
from nvmeof.host.offload.pool import POOL_MAX_BYTES, Region, check_size
from nvmeof.host.offload.process import DeviceProcess
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import CommandSeries, Queue, QueueDevice, Request
from nvmeof.host.socket_queue import SocketQueueDevice
from nvmeof.transport.route import find_route

OFFLOAD: Final = "tcp_offload"
STAGING_BYTES: Final = 64 << 20
"""The device's own buffers, for data that is copied."""
POOL_BYTES: Final = 256 << 20
"""The application's pool; memory is used for what has been taken once."""
START_SECONDS: Final = 30.0
_CONNECTION_OPTIONS: Final = SocketQueueDevice.allowed_opts | {
    "traddr", "trsvcid", "subnqn", "hostnqn", "connect_timeout", "disable_sqflow",
}  # fmt: skip
"""What the device is told of a controller's options: nothing of its secrets."""
_LASTING_FACTS: Final = frozenset({"local", "peer", "congestion", "nodelay", "hdr_digest", "data_digest"})


class _Station:
    """What one event loop has of a device: its memory, its process while there are controllers, its links."""

    def __init__(self, pool_bytes: int) -> None:
        self.region = Region(SUBMISSION_BYTES + COMPLETION_BYTES, STAGING_BYTES, pool_bytes)
        self.process: DeviceProcess | None = None
        self.starting = asyncio.Lock()
        self.controllers = 0
        self.buffers = 0
        self.entries = 0
        self.links: set[OffloadLink] = set()
        self.waiting: deque[tuple[OffloadLink, Request]] = deque()


class OffloadDevice(QueueDevice):
    """NVMe/TCP in a process of its own, one for each event loop that has controllers on this device.

    ``interfaces``: the network interfaces that the device is paired with; None: all. ``pool_bytes``: memory for
    buffers that applications take (:meth:`take_buffer`), up to 2 GiB.
    """

    name = OFFLOAD
    allowed_opts = SocketQueueDevice.allowed_opts
    max_hw_sectors = MAX_TRANSFER_BYTES
    max_segments = 1

    def __init__(self, interfaces: Sequence[str] | None = None, *, pool_bytes: int = POOL_BYTES) -> None:
        if not 0 < pool_bytes <= POOL_MAX_BYTES:
            raise ConfigurationError(f"the pool of an offload device has 1 to {POOL_MAX_BYTES} bytes, not {pool_bytes}")
        self.interfaces = None if interfaces is None else frozenset(interfaces)
        self._pool_bytes = pool_bytes
        self._stations: dict[asyncio.AbstractEventLoop, _Station] = {}

    def process_id(self) -> int | None:
        """Return the process identifier of the device of the running event loop; None where it does not run."""
        station = self._stations.get(asyncio.get_running_loop())
        process = station.process if station is not None else None
        return process.pid if process is not None and process.error is None else None

    # -- controllers

    def claim_dev(self, options: ConnectOptions) -> bool:
        """Return whether the route to the address leads over an interface of this device.

        Raises :class:`TransportError` where there is no route at all, ConfigurationError for an unknown interface. A
        name is looked up by :meth:`setup_ctrl`.
        """
        return options.transport == OFFLOAD and (ip_of(options.traddr) is None or self._reaches(options))

    def _reaches(self, options: ConnectOptions) -> bool:
        route = find_route(options.traddr, host_traddr=options.host_traddr, host_iface=options.host_iface)
        return self.interfaces is None or route.interface in self.interfaces

    async def setup_ctrl(self, options: ConnectOptions) -> None:
        """Start the device's process, if it does not run."""
        station = self._station()
        station.controllers += 1
        try:
            async with station.starting:
                if station.process is None or station.process.error is not None:
                    station.process = DeviceProcess(station.region)
                    await station.process.start(max(options.connect_timeout, START_SECONDS))
        except BaseException:
            station.controllers -= 1
            await self._rest(station)
            raise

    async def release_ctrl(self, options: ConnectOptions) -> None:
        """End the device's process with its last controller."""
        station = self._station()
        station.controllers -= 1
        await self._rest(station)

    def _station(self) -> _Station:
        loop = asyncio.get_running_loop()
        station = self._stations.get(loop)
        if station is None:
            station = self._stations[loop] = _Station(self._pool_bytes)
        return station

    async def _rest(self, station: _Station) -> None:
        """End the process without controllers, and forget the memory without buffers."""
        if station.controllers:
            return
        process, station.process = station.process, None
        if process is not None:
            await process.stop()
        self._forget(station)

    def _forget(self, station: _Station) -> None:
        if not (station.controllers or station.buffers or station.process):
            self._stations = {loop: each for loop, each in self._stations.items() if each is not station}

    # -- buffers

    def take_buffer(self, size_bytes: int) -> DeviceBuffer:
        """Take memory that the device reads and writes without a copy; belongs to the running event loop's device.

        Raises :class:`ConfigurationError` for a size beyond 32 MiB, LocalProtocolError when the pool is used up.
        """
        check_size(size_bytes)
        station = self._station()
        pool = station.region.pool
        order = pool.order(size_bytes)
        offset = pool.take(order)
        if offset < 0:
            raise LocalProtocolError(
                f"the pool of the offload device has no {size_bytes} bytes left: release buffers, or give it more "
                "(OffloadDevice(pool_bytes=...))"
            )
        station.buffers += 1

        def release(view: memoryview) -> None:
            if any(link.uses(offset, offset + len(view)) for link in list(station.links)):
                raise LocalProtocolError("a command is under way with this buffer: release it afterwards")
            pool.give(order, offset)
            station.buffers -= 1
            self._forget(station)

        return DeviceBuffer(station.region.memory[offset : offset + size_bytes], release)

    # -- queues

    async def create_queue(self, queue: Queue) -> None:
        station, options = self._station(), queue.options
        if station.entries + queue.entries > COMMANDS_MAX:
            raise TransportError(
                f"the offload device has room for {COMMANDS_MAX} queue entries, and {station.entries} are in use: "
                "ask for smaller queues, or for fewer"
            )
        assert station.process is not None
        link = OffloadLink(queue, station.process, station.region, station.waiting)
        await link.connect(_fields(queue), options.connect_timeout)
        if link.peer is not None and not self._reaches(options.with_changes(traddr=link.peer)):
            link.close()
            raise TransportError(f"the route to {options.traddr} ({link.peer}) does not lead over this offload device")
        station.links.add(link)
        station.entries += queue.entries
        queue.private = link

    def send_req(self, request: Request, more: bool) -> None:
        link = request.queue.private
        assert link is not None
        link.send(request, more)

    def send_batch(self, queue: Queue, batch: CommandSeries, cids: Sequence[int], requests: Sequence[Request]) -> None:
        link = _link(queue)
        assert link is not None
        link.send_batch(batch, cids, requests)

    def give_back(self, request: Request) -> bool:
        link = _link(request.queue)
        assert link is not None
        return link.give_back(request)

    def poll_queue(self, queue: Queue) -> int:
        """Deliver what the device has completed, of other queues too; return how many were this one's."""
        link, completed = _link(queue), queue.completed
        if link is not None:
            link.process.poll()
        return queue.completed - completed

    def drain_queue(self, queue: Queue) -> None:
        if queue.private is not None:
            queue.private.stop()

    def destroy_queue(self, queue: Queue) -> None:
        link = _link(queue)
        if link is not None:
            link.close()
            station = self._station()
            if link in station.links:
                station.links.remove(link)
                station.entries -= queue.entries

    def peer_address(self, queue: Queue) -> str | None:
        link = _link(queue)
        return None if link is None else link.peer

    def describe(self, queue: Queue) -> QueueFacts:
        """Return the facts of the connection as they were when it was made: the device tells no more."""
        link = _link(queue)
        known = {} if link is None else {key: link.facts[key] for key in _LASTING_FACTS if key in link.facts}
        return cast(QueueFacts, {**known, "transport": OFFLOAD})


def _fields(queue: Queue) -> dict[str, Any]:
    """Return what the device needs to know of a queue, for JSON."""
    options = queue.options
    given = {name: getattr(options, name) for name in options.given() & _CONNECTION_OPTIONS}
    return {
        "options": {**given, "hostid": str(options.hostid)},
        "qid": queue.qid,
        "entries": queue.entries,
        "capsule_bytes": queue.capsule_bytes,
    }


def _link(queue: Queue) -> OffloadLink | None:
    """Return the queue's link, where it has been created."""
    return queue.private if isinstance(queue.private, OffloadLink) else None
