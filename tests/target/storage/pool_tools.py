"""Runs of a target with a pool in a directory, for tests."""

import logging
from pathlib import Path

from nvmeof.aio.runtime import AsyncioRuntime
from nvmeof.target.storage.pools import FilePool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.management import NewNamespace
from nvmeof.target.subsystem.subsystem import Subsystem

NQN = "nqn.2026-01.org.example:pool"
MEGABYTE = 1 << 20
HOST = "nqn.2026-01.org.example:host"


class Member:
    """The part of a controller that concerns namespaces."""

    def __init__(self, subsystem: Subsystem, cntlid: int, host_nqn: str = HOST) -> None:
        self.cntlid = cntlid
        self.host_nqn = host_nqn
        self.attached = {}
        self.ana = subsystem.ana.on(1)
        subsystem.start_attached(self)
        subsystem.controllers[cntlid] = self

    def attach(self, *namespaces):
        self.attached.update((namespace.nsid, namespace) for namespace in namespaces)

    def detach(self, nsid):
        return self.attached.pop(nsid, None) is not None

    def enabled(self, csi):
        return True

    def busy_with(self, nsid):
        return False

    def namespace_changed(self, nsid): ...

    def allocation_changed(self, nsid): ...


class Life:
    """One run of a target with a pool, from its start to its end or kill."""

    def __init__(self, directory: Path, capacity: str = "10M", configured: bool = False) -> None:
        self.pool = FilePool(directory, capacity)
        self.configured = configured

    async def __aenter__(self) -> "Life":
        self.runtime = AsyncioRuntime(logging.getLogger("nvmeof.target"))
        await self.pool.acquire()
        namespaces = (NamespaceConfig(backend=Ramdisk("1M")),) if self.configured else ()
        try:
            self.subsystem = Subsystem(SubsystemConfig(nqn=NQN, pool=self.pool, namespaces=namespaces))
            self.manager = self.subsystem.manager
            await self.manager.open()
        except BaseException:
            await self.pool.release()
            raise
        self.member = Member(self.subsystem, 1)
        return self

    async def __aexit__(self, *_) -> None:
        for backend in self.subsystem.created_backends:
            await backend.close()
        await self.pool.release()

    async def create(self, size=MEGABYTE, **fields) -> int:
        new = NewNamespace(**{"size_bytes": size, "block_bytes": 512, **fields})
        return await self.manager.create(self.runtime, new)

    async def delete(self, nsid) -> None:
        await self.manager.delete(self.runtime, nsid)

    async def attach(self, nsid, *cntlids) -> None:
        await self.manager.attach(self.runtime, nsid, cntlids or (1,))

    async def detach(self, nsid, *cntlids) -> None:
        await self.manager.detach(self.runtime, nsid, cntlids or (1,))

    async def write(self, nsid, data) -> None:
        pending = self.subsystem.namespaces[nsid].write(0, memoryview(bytearray(data)), fua=True)
        if pending is not None:
            await pending

    async def read(self, nsid) -> bytes:
        lease = self.subsystem.namespaces[nsid].read(0, 1)
        lease = lease if not hasattr(lease, "__await__") else await lease
        data = bytes(lease.view)
        lease.release()
        return data

    async def state(self):
        """Return all that a host can see."""
        spaces = {}
        for nsid, space in self.subsystem.namespaces.items():
            data = await self.read(nsid)
            spaces[nsid] = (space.uuid, space.nguid, space.size_blocks, space.block_bytes, space.shared, data)
        return spaces, sorted(self.member.attached), self.subsystem.unallocated_bytes


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
