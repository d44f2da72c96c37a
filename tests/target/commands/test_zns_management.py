"""Zoned namespaces that hosts create, format and sanitize."""

import pytest

from nvmeof.spec.namespace_management import NAMESPACE_CREATE
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.spec.zns import IDENTIFY_NAMESPACE_ZNS, ZoneState
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zoned import ZonedNamespace
from nvmeof.target.server import Target as Server
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.pools import FilePool, RamdiskPool
from nvmeof.target.subsystem.config import NamespaceConfig, PortConfig, SubsystemConfig, TargetConfig
from nvmeof.target.subsystem.management import NewNamespace
from nvmeof.wire import build
from tests.target.backend_tools import settled
from tests.target.harness import CC_ENABLE, NQN, Target
from tests.target.management_tools import attach, delete
from tests.target.zone_tools import append, descriptor

ZONED = 2 << 24
BLOCKS = 1 << 17  # of one zone of 64 MiB


def create(queue, *, cdw11=ZONED, **fields):
    fields = {"nsze": 2 * BLOCKS, "ncap": fields.get("nsze", 2 * BLOCKS), "nmic": 1, **fields}
    return queue.command(0x0D, build(NAMESPACE_CREATE, **fields), cdw11=cdw11)


@pytest.fixture
def target():
    return Target(pool=RamdiskPool("1G"))


def test_created_attached_used_and_deleted(target):
    admin = target.admin()
    completion = create(admin, rar=4, ror=3)
    assert (completion.status, completion.dw0) == (0, 2)
    assert attach(admin, 2).status == 0
    queue = target.io(admin)
    zns = IDENTIFY_NAMESPACE_ZNS.parse(admin.read_bytes(admin.identify(5, 2, csi=2)))
    assert (zns.lbafe[0].zsze, zns.lbafe[1].zsze, zns.mar, zns.mor) == (BLOCKS, BLOCKS // 8, 3, 2)
    assert append(queue, BLOCKS, b"x" * 512).dw0 == BLOCKS
    assert descriptor(queue, 0).state is ZoneState.EMPTY
    assert delete(admin, 2).status == 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"nsze": BLOCKS + 1}, Status.INVALID_FIELD),
        ({"nsze": BLOCKS // 8, "flbas": 1}, 0),
        ({"nsze": BLOCKS, "flbas": 1}, 0),
        ({"nsze": BLOCKS // 16, "flbas": 1}, Status.INVALID_FIELD),
        ({"znsco": 1}, Status.INVALID_FIELD),
        ({"rnumzrwa": 1}, Status.INVALID_FIELD),
        ({"rar": 2, "ror": 3}, Status.INVALID_FIELD),
        ({"ror": 3}, 0),
        ({"rar": 0xFFFFFFFF, "ror": 0xFFFFFFFF}, 0),
    ],
)
def test_create_is_checked(target, fields, status):
    admin = target.admin()
    assert create(admin, **fields).status == status
    if status:
        assert admin.controller.error_log.newest()[0].error_location == 24


def test_identify_reports_what_a_host_can_create(target):
    admin = target.admin()
    for completion in (admin.identify(5, 0xFFFFFFFF, csi=2), admin.identify(0x0A, csi=2)):
        zns = IDENTIFY_NAMESPACE_ZNS.parse(admin.read_bytes(completion))
        assert [each.zsze for each in zns.lbafe[:3]] == [BLOCKS, BLOCKS // 8, 0] and zns.mar == 0xFFFFFFFF


def test_not_attached_to_a_controller_without_command_sets(target):
    admin = target.queue()
    admin.connect()
    admin.set_property(CC_OFFSET, CC_ENABLE & ~0x70)
    assert create(admin).status == 0
    assert attach(admin, 2).status == Status.IO_COMMAND_SET_NOT_ENABLED


async def test_a_pool_in_a_directory_stores_zones(tmp_path):
    async def life(first):
        subsystem_config = SubsystemConfig(nqn=NQN, pool=FilePool(tmp_path, "1G"))
        ports = (PortConfig(transport="tcp", host="127.0.0.1", port=0),)
        async with Server(TargetConfig(subsystems=(subsystem_config,), ports=ports)) as server:
            subsystem = server.subsystems[NQN]
            assert subsystem.manager is not None
            if first:
                options = {"zone_bytes": 64 << 20, "max_active": 3, "max_open": 2}
                new = NewNamespace(size_bytes=128 << 20, block_bytes=512, csi=2, options=options)
                await subsystem.manager.create(server.runtime, new)
            namespace = subsystem.namespaces[1]
            assert isinstance(namespace, ZonedNamespace) and len(namespace.zones) == 2
            assert (namespace.geometry.max_active, namespace.geometry.max_open) == (3, 2)
            await settled(namespace.append(0, memoryview(b"x" * 512))[1])
            written = namespace.zones.zones[0].written
            if not first:
                await subsystem.manager.delete(server.runtime, 1, by=0)
            return written

    assert [await life(True), await life(False)] == [1, 2]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".zones")]


async def test_a_file_that_is_formatted_to_other_blocks_keeps_its_zones_apart(tmp_path):
    """However far the format has come: with the new block size the zones can be read, and are emptied."""
    geometry = ZoneGeometry(zone_bytes=1 << 20)
    for written in (9, 2, 1):
        backend = FileBackend(tmp_path / "disk", size="4M")
        await backend.open()
        target = Target()
        target.subsystem.add_namespace(NamespaceConfig(backend=backend, zoned=geometry))
        namespace = target.subsystem.namespaces[2]
        if written == 9:
            await settled(namespace.write(0, memoryview(bytes(9 * 512))))
            await settled(backend.metadata_store.put("format", {"block_bytes": 4096, "erase": 0}))
        elif written == 2:
            assert (namespace.block_bytes, namespace.zones.zones[0].written) == (4096, 2)
            await settled(namespace.erased())
            await settled(namespace.write(0, memoryview(bytes(4096))))
        else:
            assert namespace.zones.zones[0].written == written
        await backend.close()
