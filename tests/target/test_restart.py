"""A Target is started again after a stop or a failed start, and refuses too early calls in one sentence."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from nvmeof import FilePool, NamespaceConfig, RamdiskPool, Target, ZoneGeometry, connect
from nvmeof.errors import ConfigurationError, LocalProtocolError, TransportError
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import PortConfig, SubsystemConfig, TargetConfig

NQN = "nqn.2026-01.org.example:disk"
BLOCK = b"written before".ljust(512, b"\0")


async def first_block(target: Target, data: bytes | None = None, nsid: int = 1) -> bytes:
    """Write block 0 as a host, if there is data to write, and read it."""
    async with await connect(target.address.host, target.address.port, subnqn=target.subnqn) as controller:
        namespace = controller.namespace(nsid)
        if data is not None:
            await namespace.write(0, data)
        return await namespace.read(0)


async def test_it_starts_again_after_a_stop(tmp_path: Path) -> None:
    target = Target(namespaces=[Ramdisk("1M"), FileBackend(tmp_path / "disk", size="1M")])
    async with target:
        assert await first_block(target, BLOCK, 1) == BLOCK
        assert await first_block(target, BLOCK, 2) == BLOCK
        added = await target.add_namespace(Ramdisk("1M"))
        assert sorted(target.subsystems[target.subnqn].namespaces) == [1, 2, added]
    for _ in range(2):
        async with target:
            assert sorted(target.subsystems[target.subnqn].namespaces) == [1, 2]
            assert await first_block(target, nsid=1) == bytes(512)  # memory ends with each run
            assert await first_block(target, nsid=2) == BLOCK
    assert target.unflushed == []


async def test_it_starts_again_after_a_start_that_failed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        target = Target(namespaces=[Ramdisk("1M")], listen=f"127.0.0.1:{taken.getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(TransportError, match="in use"):
                await target.start()
    async with target:
        assert await first_block(target, BLOCK) == BLOCK


def test_it_starts_again_on_another_event_loop() -> None:
    target = Target(namespaces=[Ramdisk("1M")])

    async def once() -> None:
        async with target:
            assert await first_block(target) == bytes(512)

    asyncio.run(once())
    asyncio.run(once())


async def test_state_pools_and_zones_are_found_again(tmp_path: Path) -> None:
    zoned = NamespaceConfig(
        backend=FileBackend(tmp_path / "zoned", size="4M"), zoned=ZoneGeometry(zone_bytes=1 << 20, capacity_bytes=None)
    )
    memory = NamespaceConfig(backend=Ramdisk("4M"), zoned=ZoneGeometry(zone_bytes=1 << 20))
    subsystem = SubsystemConfig(
        nqn=NQN,
        namespaces=(zoned, memory),
        pool=FilePool(tmp_path / "pool", "16M"),
        metadata_store=JsonFileStore(tmp_path / "state"),
    )
    target = Target(TargetConfig(subsystems=(subsystem,), ports=(PortConfig(transport="tcp", host="127.0.0.1"),)))
    async with target:
        for nsid in (1, 2):
            assert await first_block(target, BLOCK, nsid) == BLOCK
    async with target:
        assert await first_block(target, nsid=1) == BLOCK
        assert await first_block(target, nsid=2) == bytes(512)
        assert await first_block(target, BLOCK, nsid=2) == BLOCK  # its zone is empty again


async def test_a_pool_in_memory_is_empty_again() -> None:
    target = Target(pool=RamdiskPool("16M"))
    for _ in range(2):
        async with target:
            assert target.subsystems[target.subnqn].unallocated_bytes == 16 << 20


async def test_misuse_is_a_sentence() -> None:
    target = Target(namespaces=[Ramdisk("1M")])
    await target.stop()  # nothing to do
    target.stop_now()
    for early in (
        lambda: target.add_namespace(Ramdisk("1M")),
        lambda: target.remove_namespace(1),
        lambda: target.add_path("127.0.0.1"),
    ):
        with pytest.raises(LocalProtocolError, match=r"start\(\)"):
            await early()
    with pytest.raises(LocalProtocolError, match=r"start\(\)"):
        _ = target.address
    assert target.addresses == []
    async with target:
        with pytest.raises(LocalProtocolError, match=r"stop\(\)"):
            await target.start()
        assert target.address.port
        with pytest.raises(ConfigurationError, match="no subsystem"):
            await target.add_namespace(Ramdisk("1M"), subnqn="nqn.2026-01.org.example:other")
        with pytest.raises(ConfigurationError, match="no namespace 7"):
            await target.remove_namespace(7)
    await target.stop()


@pytest.mark.parametrize("namespaces", ["4M", ["4M"], Ramdisk("4M"), [4 << 20], [Path("disk")], [None]])
def test_an_invalid_namespace_is_explained(namespaces: object) -> None:
    with pytest.raises(ConfigurationError, match=r"Ramdisk"):
        Target(namespaces=namespaces)  # type: ignore[arg-type]


async def test_zones_are_changed_by_a_program() -> None:
    zoned = NamespaceConfig(backend=Ramdisk("8M"), zoned=ZoneGeometry(zone_bytes=1 << 20))
    target = Target(namespaces=[zoned, Ramdisk("1M")])
    with pytest.raises(LocalProtocolError, match=r"start\(\)"):
        target.zones(1)
    async with target:
        zones = target.zones(1)
        assert len(zones) == 8
        zones.degrade(zones[3])
        zones.degrade(zones[4], readable=False)
        assert [zones[index].state.name for index in (2, 3, 4)] == ["EMPTY", "READ_ONLY", "OFFLINE"]
        with pytest.raises(ConfigurationError, match=r"namespace 2 .* has no zones"):
            target.zones(2)
        with pytest.raises(ConfigurationError, match="no namespace 7"):
            target.zones(7)
