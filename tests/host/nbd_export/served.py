"""A target with a ramdisk, a host, and its namespace exported on a Unix socket: all in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmeof import HostController, Ramdisk, Target, connect
from nvmeof.host.nbd_export.disk import ExportedDisk
from nvmeof.host.nbd_export.server import NbdServer, Place
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig

SIZE = 16 << 20
SUBNQN = "nqn.2026-01.org.example:exported"


@dataclass
class Served:
    """The running target, host and server; ``uri``: of the default export."""

    target: Target
    controller: HostController
    server: NbdServer
    socket: Path

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"


@asynccontextmanager
async def served(
    folder: Path, *backends: Any, mdts: int = 1 << 20, read_only: bool = False, **options: Any
) -> AsyncIterator[Served]:
    namespaces = tuple(NamespaceConfig(backend=backend) for backend in backends or [Ramdisk(SIZE)])
    subsystem = SubsystemConfig(nqn=SUBNQN, namespaces=namespaces, max_transfer_bytes=mdts)
    port = PortConfig(transport="tcp", host="127.0.0.1", port=0)
    async with Target(TargetConfig(subsystems=(subsystem,), ports=(port,))) as target:
        address = target.address
        async with await connect(
            address.host, address.port, subnqn=SUBNQN, transport="tcp", hostnqn="nqn.2026-01.org.example:nbd"
        ) as controller:
            disks = [
                ExportedDisk(namespace, str(namespace.nsid), read_only=read_only, oncs=controller.info.oncs)
                for namespace in await controller.namespaces()
            ]
            server = NbdServer(disks, **options)
            socket = folder / "export.sock"
            await server.listen(Place(path=str(socket)))
            try:
                yield Served(target, controller, server, socket)
            finally:
                await server.close()
