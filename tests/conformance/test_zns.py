"""Zones over the wire: appends and pipelined writes at once, on memory and in files; a target that restarts."""

from __future__ import annotations

import asyncio
import random
import struct
from pathlib import Path

import pytest

from nvmeof import FileBackend, NvmeStatusError, Ramdisk, Target, connect
from nvmeof.spec.status import Status
from nvmeof.spec.zns import ZoneState, parse_zone_report
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.subsystem.config import NamespaceConfig

ZONE = 4096  # blocks of 512 bytes
GEOMETRY = ZoneGeometry(zone_bytes=ZONE * 512, capacity_bytes=3 << 19, max_open=4, max_active=6)
APPEND, RECEIVE, SEND = 0x7D, 0x7A, 0x79


def served(kind: str, directory: Path) -> Target:
    backend = Ramdisk("32M") if kind == "ramdisk" else FileBackend(directory / "disk", size="32M")
    return Target(namespaces=[NamespaceConfig(backend=backend, zoned=GEOMETRY)], trtype="tcp")


def host(target: Target, **options):
    return connect(target.address.host, target.address.port, transport="tcp", subnqn=target.subnqn, **options)


def pattern(number: int, blocks: int) -> bytes:
    return struct.pack("<QQ", number, blocks) * (blocks * 32)


async def report(controller):
    result = await controller.io_passthru(RECEIVE, nsid=1, data_bytes=8192, cdw12=2047)
    return parse_zone_report(result.data)[1]


async def read(controller, slba: int, blocks: int) -> bytes:
    result = await controller.io_passthru(0x02, nsid=1, data_bytes=blocks * 512, cdw10=slba, cdw12=blocks - 1)
    return result.data


@pytest.mark.parametrize("kind", ["ramdisk", "file"])
@pytest.mark.parametrize("digests", [False, True])
async def test_appends_of_several_hosts(kind, digests, tmp_path):
    """Each block is at the SLBA of its completion, and the zones hold no other blocks."""
    places: dict[int, tuple[int, int]] = {}
    numbers = iter(range(1, 1000))
    chance = random.Random(4420)

    async def worker(controller) -> None:
        for _ in range(12):
            number, blocks, zone = next(numbers), chance.choice([1, 8, 16, 64]), chance.randrange(2)
            result = await controller.io_passthru(
                APPEND, nsid=1, data=pattern(number, blocks), cdw10=zone * ZONE, cdw12=blocks - 1
            )
            places[result.result] = (number, blocks)
            if number % 10 == 0:
                await controller.io_passthru(0x00, nsid=1)

    async with served(kind, tmp_path) as target:
        options = {"hdr_digest": digests, "data_digest": digests, "nr_io_queues": 2}
        async with await host(target, **options) as first, await host(target, **options) as second:
            await asyncio.gather(*(worker(controller) for controller in (first, second) for _ in range(4)))
            ends = {zone: zone * ZONE for zone in (0, 1)}
            for slba, (number, blocks) in sorted(places.items()):
                assert ends[slba // ZONE] == slba, "no gap and no overlap"
                ends[slba // ZONE] += blocks
                assert await read(first, slba, blocks) == pattern(number, blocks)
            zones = await report(second)
            assert [zones[0].wp, zones[1].wp] == list(ends.values())
    assert len(places) == 96


@pytest.mark.parametrize("kind", ["ramdisk", "file"])
async def test_pipelined_writes_of_one_queue(kind, tmp_path):
    """As many writes as the queue takes, each beginning where the one before ends: all arrive in order and succeed."""
    async with served(kind, tmp_path) as target, await host(target, nr_io_queues=1) as controller:
        await asyncio.gather(
            *(
                controller.io_passthru(0x01, nsid=1, data=pattern(number, 8), cdw10=number * 8, cdw12=7)
                for number in range(3 << 7)
            )
        )
        zones = await report(controller)
        assert zones[0].state is ZoneState.FULL
        for number in (0, 1, 100, 383):
            assert await read(controller, number * 8, 8) == pattern(number, 8)
        with pytest.raises(NvmeStatusError) as error:
            await controller.io_passthru(0x01, nsid=1, data=bytes(512), cdw10=0)
        assert error.value.status == Status.ZONE_IS_FULL


async def test_a_target_that_is_started_again(tmp_path):
    async with served("file", tmp_path) as target, await host(target) as controller:
        await controller.io_passthru(APPEND, nsid=1, data=pattern(1, 8), cdw12=7)
        await controller.io_passthru(SEND, nsid=1, cdw10=ZONE, cdw13=3)
        await controller.io_passthru(SEND, nsid=1, cdw10=2 * ZONE, cdw13=2)
    async with served("file", tmp_path) as target, await host(target) as controller:
        zones = await report(controller)
        states = [zone.state for zone in zones[:3]]
        assert states == [ZoneState.CLOSED, ZoneState.EMPTY, ZoneState.FULL] and zones[0].wp == 8
        assert (await controller.io_passthru(APPEND, nsid=1, data=pattern(2, 8), cdw12=7)).result == 8
        assert await read(controller, 0, 16) == pattern(1, 8) + pattern(2, 8)
