"""Discovery services for asyncio programs: what they and their referrals know, and changes of a log as they come.

::

    async with watch_discovery("192.0.2.1") as watch:
        async for change in watch:
            print([entry.subnqn for entry in change.added])
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, Unpack, cast

from nvmeof.address import parse_port
from nvmeof.errors import ConfigurationError, NvmeofError, TransportError
from nvmeof.host.async_events import EventStream
from nvmeof.host.client import DEFAULT_TRANSPORT, DiscoverKeywords, HostController, connect
from nvmeof.host.discovery import DiscoveryEntry, DiscoveryLog
from nvmeof.host.options import RecoveryKeywords, RecoveryOptions
from nvmeof.host.referrals import Discovered, DiscoveryService, ServiceLog, follow_referrals
from nvmeof.spec.enums import DISCOVERY_NQN, DISCOVERY_PORT, NVME_PORT, LogPageId
from nvmeof.spec.flags import Oaes
from nvmeof.transport import Address, get

log = logging.getLogger("nvmeof.host")

PERSISTENT_KEEP_ALIVE = 30.0
"""KATO of a persistent discovery controller in seconds, as nvme-cli sets it (``NVMF_DEF_DISC_TMO``)."""


class WatchKeywords(DiscoverKeywords, RecoveryKeywords, total=False):
    """The keyword arguments of :func:`watch_discovery`: those of discovery, and those of recovery."""


async def discover_all(
    traddr: str,
    trsvcid: int | str | None = None,
    *,
    transport: str = DEFAULT_TRANSPORT,
    **options: Unpack[DiscoverKeywords],
) -> Discovered:
    """Read the Discovery log of a service, and of all services that it refers to, each once.

    ::

        found = await discover_all("192.0.2.1")
        for entry in found.entries:
            print(entry.subnqn, entry.address, entry.port)

    Arguments and errors are those of :func:`nvmeof.discover`. What goes wrong behind a referral is no error: one that
    leads back, or nowhere, is a sentence in ``left_out`` of what this gives. All services are asked over ``transport``.
    """
    service = _service(traddr, trsvcid, transport, options)
    chosen = cast(DiscoverKeywords, {"keep_alive_tmo": 0, **options})

    async def read(each: DiscoveryService) -> ServiceLog:
        if each.transport is not None:
            get(each.transport)
        async with await _open(each, transport, chosen) as controller:
            found = cast(DiscoveryLog, await controller.discovery_log())
            return ServiceLog(found, tuple(_addresses(controller)))

    return await follow_referrals(service, read, secured=options.get("tls") is not None)


def _service(traddr: str, trsvcid: int | str | None, transport: str, options: DiscoverKeywords) -> DiscoveryService:
    port = None if trsvcid is None else parse_port(trsvcid)
    return DiscoveryService(traddr, port, options.get("subnqn") or DISCOVERY_NQN, transport)


async def _open(service: DiscoveryService, transport: str, options: DiscoverKeywords) -> HostController:
    """Connect to a discovery service; without a port to 8009, then to 4420. Raises as :func:`nvmeof.connect` does."""
    chosen = cast(DiscoverKeywords, {"nr_io_queues": 0, **options, "discovery": True, "subnqn": service.subnqn})
    if service.trsvcid is not None:
        return await connect(service.traddr, service.trsvcid, transport=transport, **chosen)
    try:
        return await connect(service.traddr, DISCOVERY_PORT, transport=transport, **chosen)
    except TransportError as first:
        try:
            return await connect(service.traddr, NVME_PORT, transport=transport, **chosen)
        except TransportError as second:
            raise second from first


def _addresses(controller: HostController) -> Iterator[Address]:
    """What the service is known to be behind: what was asked for, and what a name stood for."""
    options = controller.options
    yield Address(options.traddr, options.trsvcid)
    peer = controller.device.peer_address(controller.association.admin_queue)
    if peer:
        yield Address(peer, options.trsvcid)


@dataclass(frozen=True, slots=True)
class DiscoveryChange:
    """A change of a Discovery log. ``log``: all of it as it is now; of the first change all entries are ``added``."""

    log: DiscoveryLog
    added: tuple[DiscoveryEntry, ...]
    removed: tuple[DiscoveryEntry, ...]
    reconnected: bool = False
    """The service had been lost, and was connected again: what it names may have been lost too.

    Both tuples may be empty then. As the ``rediscover`` event of Linux (drivers/nvme/host/core.c).
    """


class DiscoveryWatch:
    """A persistent connection to a discovery service: an asynchronous iterator of :class:`DiscoveryChange`.

    What :func:`watch_discovery` gives; ends with its ``async with`` block. The first change is the log as it is. A lost
    connection is made again, and all that has changed since is one change. The wait for a change can be cancelled (by
    ``asyncio.timeout``, say) and begun again; nothing is missed.
    """

    def __init__(
        self, service: DiscoveryService, transport: str, options: DiscoverKeywords, recovery: RecoveryOptions
    ) -> None:
        self.service = service
        self.recovery = recovery
        self._transport = transport
        self._options = options
        self._controller: HostController | None = None
        self._events: EventStream | None = None
        self._stale = True
        self._reconnected = False
        self._known: DiscoveryLog | None = None

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Shut the discovery controller down in order. Safe to call twice."""
        controller, self._controller, self._events = self._controller, None, None
        if controller is not None:
            await controller.disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DiscoveryChange:
        while True:
            try:
                change = await self._next()
            except TransportError as error:
                await self._recover(error)
                continue
            if change is not None:
                return change

    async def _next(self) -> DiscoveryChange | None:
        """Wait for an event if nothing is to be read, then read; None: nothing of the log is different."""
        if self._controller is None or self._events is None:
            await self._connect()
        assert self._controller is not None and self._events is not None
        if not self._stale:
            event = await anext(self._events)
            if event.log_page != LogPageId.DISCOVERY:
                return None
            self._stale = True
        found = cast(DiscoveryLog, await self._controller.discovery_log())
        self._stale = False
        before, self._known = self._known, found
        reconnected, self._reconnected = self._reconnected, False
        known = before or ()
        change = DiscoveryChange(
            found,
            tuple(entry for entry in found if entry not in known),
            tuple(entry for entry in known if entry not in found),
            reconnected,
        )
        return change if before is None or change.added or change.removed or reconnected else None

    async def _connect(self) -> None:
        controller = await _open(self.service, self._transport, self._options)
        if not controller.info.oaes & Oaes.DISCOVERY_LOG:
            await controller.disconnect()
            raise NvmeofError(f"the discovery service at {self.service} does not report changes of its log")
        self._controller, self._events = controller, aiter(controller.events)
        self._stale = True

    async def _recover(self, error: TransportError) -> None:
        """Connect again, as often as the options of recovery allow. Raises what the last attempt failed with."""
        await self.close()
        attempts = 0
        while self.recovery.max_reconnects is None or attempts < self.recovery.max_reconnects:
            attempts += 1
            log.info("lost the discovery service at %s, connecting again: %s", self.service, error)
            await asyncio.sleep(self.recovery.reconnect_delay)
            try:
                await self._connect()
            except TransportError as again:
                error = again
                continue
            self._reconnected = self._known is not None
            return
        raise error


def watch_discovery(
    traddr: str,
    trsvcid: int | str | None = None,
    *,
    transport: str = DEFAULT_TRANSPORT,
    **options: Unpack[WatchKeywords],
) -> DiscoveryWatch:
    """Watch the Discovery log of a service: a persistent discovery controller.

    ::

        async with watch_discovery("192.0.2.1") as watch:
            async for change in watch:
                print([entry.subnqn for entry in change.added])

    Arguments are those of :func:`nvmeof.discover`, with a ``keep_alive_tmo`` of 30 seconds, and those of recovery:
    ``reconnect_delay`` (10 seconds) and ``ctrl_loss_tmo`` (600). Connecting raises as :func:`nvmeof.connect` does, and
    :class:`NvmeofError` where the service cannot report changes.
    """
    recovery = {name: options.pop(name) for name in RecoveryKeywords.__annotations__ if name in options}  # type: ignore[misc]
    service = _service(traddr, trsvcid, transport, options)
    chosen = cast(DiscoverKeywords, {"keep_alive_tmo": PERSISTENT_KEEP_ALIVE, **options})
    if not chosen["keep_alive_tmo"]:
        raise ConfigurationError("a persistent discovery controller needs a keep_alive_tmo of more than 0")
    return DiscoveryWatch(service, transport, chosen, RecoveryOptions(**recovery))
