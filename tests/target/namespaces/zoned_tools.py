"""A zoned namespace for tests: zones of 64 blocks of 512 bytes."""

from nvmeof.target.namespaces.namespace import NamespaceIdentifiers
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from tests.target.backend_tools import settled

NQN = "nqn.2026-01.org.example:disk"
IDENTIFIERS = NamespaceIdentifiers.derive(NQN, 1)
BLOCK = 512
ZONE = 64
GEOMETRY = ZoneGeometry(zone_bytes=ZONE * BLOCK, extension_bytes=64)


def data(letter: str, blocks: int = 1) -> memoryview:
    return memoryview(letter.encode() * BLOCK * blocks)


async def read(namespace, slba, nlb):
    lease = await settled(namespace.read(slba, nlb))
    try:
        return bytes(lease.view)
    finally:
        lease.release()
