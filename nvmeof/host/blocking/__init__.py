"""The host for scripts and notebooks: the names of the asyncio API, and every call waits for its result.

::

    from nvmeof.host import blocking

    with blocking.connect("192.0.2.1", 4420, subnqn="nqn.2026-01.org.example:disk") as controller:
        namespace = controller.namespace(1)
        namespace.write(0, bytes(4096))
        data = namespace.read(0, 8)
        with blocking.open(namespace, "r+b") as disk:
            disk.seek(100)
            disk.write(b"hello")

All connections are served by one event loop in a separate thread, so that any thread may call, several at once, also
one that runs another event loop (a notebook does). Ctrl-C ends the call that waits: its command is aborted, its buffers
are the caller's again, and the connection goes on.
"""

from __future__ import annotations

import uuid
from typing import Unpack

from nvmeof.host import client, discovery_service, host_subsystem
from nvmeof.host.blocking.api import HostController, HostSubsystem, Namespace, Reservations, Zones
from nvmeof.host.blocking.file import BlockIO, open
from nvmeof.host.blocking.portal import PORTAL
from nvmeof.host.blocking.watch import DiscoveryWatch
from nvmeof.host.device_registry import DeviceRegistry
from nvmeof.host.discovery import DiscoveryEntry
from nvmeof.host.options import ConnectKeywords
from nvmeof.host.referrals import Discovered
from nvmeof.trace import Trace
from nvmeof.transport.paths.session import PathOptions

__all__ = [
    "BlockIO",
    "DiscoveryWatch",
    "HostController",
    "HostSubsystem",
    "Namespace",
    "Reservations",
    "Zones",
    "connect",
    "connect_multipath",
    "discover",
    "discover_all",
    "open",
    "watch_discovery",
]


def connect(
    traddr: str | DiscoveryEntry,
    trsvcid: int | str | None = None,
    *,
    subnqn: str | None = None,
    transport: str | None = None,
    hostnqn: str | None = None,
    hostid: str | uuid.UUID | None = None,
    registry: DeviceRegistry = client.DEVICES,
    paths: PathOptions | None = None,
    trace: Trace | None = None,
    **options: Unpack[ConnectKeywords],
) -> HostController:
    """Connect to the controller of ``subnqn``, as :func:`nvmeof.connect` does, whose arguments and errors these are.

    ::

        with connect("192.0.2.1", subnqn="nqn.2026-01.org.example:disk", nr_io_queues=2) as controller:
            for namespace in controller.namespaces():
                print(namespace.nsid, namespace.size_bytes)
    """
    return HostController(
        PORTAL.run(
            client.connect(
                traddr,
                trsvcid,
                subnqn=subnqn,
                transport=transport,
                hostnqn=hostnqn,
                hostid=hostid,
                registry=registry,
                paths=paths,
                trace=trace,
                **options,
            )
        )
    )


def connect_multipath(
    *where: host_subsystem.PathSpec,
    subnqn: str | None = None,
    trsvcid: int | None = None,
    transport: str | None = None,
    hostnqn: str | None = None,
    hostid: str | uuid.UUID | None = None,
    iopolicy: str | None = None,
    native_multipath: bool = True,
    all_paths: bool = False,
    registry: DeviceRegistry = client.DEVICES,
    paths: PathOptions | None = None,
    trace: Trace | None = None,
    **options: Unpack[host_subsystem.PathKeywords],
) -> HostSubsystem:
    """Connect to a subsystem over several paths, as :func:`nvmeof.host.host_subsystem.connect_multipath` does.

    ::

        with connect_multipath("192.0.2.1", "192.0.2.2", subnqn="nqn.2026-01.org.example:disk") as subsystem:
            subsystem.namespace(1).write(0, bytes(4096))
    """
    return HostSubsystem(
        PORTAL.run(
            host_subsystem.connect_multipath(
                *where,
                subnqn=subnqn,
                trsvcid=trsvcid,
                transport=transport,
                hostnqn=hostnqn,
                hostid=hostid,
                iopolicy=iopolicy,
                native_multipath=native_multipath,
                all_paths=all_paths,
                registry=registry,
                paths=paths,
                trace=trace,
                **options,
            )
        )
    )


def discover(
    traddr: str,
    trsvcid: int | str | None = None,
    *,
    transport: str | None = None,
    **options: Unpack[client.DiscoverKeywords],
) -> list[DiscoveryEntry]:
    """Read the Discovery log, as :func:`nvmeof.discover` does, whose arguments and errors these are.

    ::

        for entry in discover("192.0.2.1"):
            print(entry.subnqn, entry.transport, entry.traddr, entry.trsvcid)
    """
    return PORTAL.run(client.discover(traddr, trsvcid, transport=transport, **options))


def discover_all(
    traddr: str,
    trsvcid: int | str | None = None,
    *,
    transport: str = client.DEFAULT_TRANSPORT,
    **options: Unpack[client.DiscoverKeywords],
) -> Discovered:
    """Read the Discovery log of a service and of all that it refers to, as :func:`nvmeof.discover_all` does.

    ::

        for entry in discover_all("192.0.2.1").entries:
            print(entry.subnqn, entry.address, entry.port)
    """
    return PORTAL.run(discovery_service.discover_all(traddr, trsvcid, transport=transport, **options))


def watch_discovery(
    traddr: str,
    trsvcid: int | str | None = None,
    *,
    transport: str = client.DEFAULT_TRANSPORT,
    **options: Unpack[discovery_service.WatchKeywords],
) -> DiscoveryWatch:
    """Watch the Discovery log of a service; arguments and errors are those of :func:`nvmeof.watch_discovery`.

    ::

        with watch_discovery("192.0.2.1") as watch:
            for change in watch:
                print([entry.subnqn for entry in change.added])
    """
    return DiscoveryWatch(discovery_service.watch_discovery(traddr, trsvcid, transport=transport, **options))
