"""Commands to a zoned namespace, for tests: namespace 2 unless said otherwise, blocks of 512 bytes."""

from __future__ import annotations

from nvmeof.spec.zns import ZoneDescriptor, parse_zone_report
from nvmeof.target.core.completion import Completion
from tests.target.harness import TestQueue

BLOCK = 512
ZONE = 64  # blocks


def rw(slba: int, blocks: int, **fields: int) -> dict[str, int]:
    return {"nsid": 2, "cdw10": slba & 0xFFFFFFFF, "cdw11": slba >> 32, "cdw12": blocks - 1, **fields}


def write(queue: TestQueue, slba: int, data: bytes, **fields: int) -> Completion:
    return queue.command(0x01, data, **rw(slba, len(data) // BLOCK, **fields))


def read(queue: TestQueue, slba: int, blocks: int, **fields: int) -> Completion:
    return queue.command(0x02, length=blocks * BLOCK, **rw(slba, blocks, **fields))


def append(queue: TestQueue, zslba: int, data: bytes, **fields: int) -> Completion:
    return queue.command(0x7D, data, **rw(zslba, len(data) // BLOCK, **fields))


def send(
    queue: TestQueue, action: int, zslba: int, data: bytes | None = None, *, select_all: bool = False, **fields: int
) -> Completion:
    fields = {"nsid": 2, "cdw10": zslba & 0xFFFFFFFF, "cdw11": zslba >> 32, **fields}
    return queue.command(0x79, data, **{"cdw13": action | select_all << 8, **fields})


def receive(
    queue: TestQueue,
    slba: int,
    length: int,
    *,
    action: int = 0,
    which: int = 0,
    partial: bool = False,
    **fields: int,
) -> Completion:
    fields = {"nsid": 2, "cdw10": slba & 0xFFFFFFFF, "cdw11": slba >> 32, **fields}
    cdw13 = action | which << 8 | partial << 16
    return queue.command(0x7A, length=length, **{"cdw12": length // 4 - 1, "cdw13": cdw13, **fields})


def descriptor(queue: TestQueue, zone: int, **fields: int) -> ZoneDescriptor:
    _, zones = parse_zone_report(queue.read_bytes(receive(queue, zone * ZONE, 128, partial=True, **fields)))
    return zones[0]
