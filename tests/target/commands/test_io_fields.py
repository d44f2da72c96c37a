"""Fields of I/O commands besides range and data: every bit of CDW12, refused with its location or without effect."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.status import Status
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.commands.test_nvm import BLOCKS, io_queue, last_error, read, rw, write
from tests.target.harness import Pending, Target
from tests.target.namespaces.test_zone_states import make as zoned

WRITE, READ, UNCORRECTABLE, COMPARE, ZEROES, VERIFY = 0x01, 0x02, 0x04, 0x05, 0x08, 0x0C
MOVES = {WRITE, COMPARE, READ}
CETYPE = dict.fromkeys(range(16, 20), 16)
DTYPE = dict.fromkeys(range(20, 24), 20)
REFUSED = {
    WRITE: CETYPE | DTYPE,
    READ: CETYPE,
    COMPARE: CETYPE,
    ZEROES: CETYPE | dict.fromkeys(range(20, 23), 20) | {23: 25},
    VERIFY: CETYPE | {29: 29},
    UNCORRECTABLE: DTYPE,
}
"""By opcode: bits of CDW12 that are refused, and the bit that the error location names."""


@pytest.mark.parametrize("bit", range(16, 32))
@pytest.mark.parametrize("opcode", sorted(REFUSED))
def test_every_bit_of_cdw12(opcode, bit):
    queue = io_queue()
    data = bytes(512) if opcode in (WRITE, COMPARE) else None
    length = 512 if opcode in MOVES else 0
    completion = queue.command(opcode, data, length=length, nsid=1, cdw12=1 << bit, cdw13=0xFF, cdw14=1, cdw15=1)
    named = REFUSED[opcode].get(bit)
    if named is None:
        assert completion.status == 0
    else:
        assert completion.status == Status.INVALID_FIELD
        assert last_error(queue).error_location == (48 + named // 8) | (named % 8) << 8


# Write Zeroes of a whole namespace


def test_namespace_zeroes():
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    admin = target.admin()
    queue = target.io(admin)
    assert IDENTIFY_CONTROLLER.parse(admin.read_bytes(admin.identify(1))).oncs & 1 << 12
    for nsid in (1, 2):
        write(queue, 0, b"\xff" * 1024 * 512, nsid=nsid)
        write(queue, 1024, b"\xff" * 1024 * 512, nsid=nsid)
    fields = {"nsid": 1, "cdw10": 1 << 31, "cdw11": 1 << 31, "cdw12": 1 << 25 | 1 << 23 | 0xFFFF}
    completion = queue.command(ZEROES, **fields)
    assert (completion.status, completion.dw0) == (0, 1), "SLBA and NLB are ignored, LBACZ is set"
    assert not any(target.subsystem.namespaces[1].memory)
    assert all(target.subsystem.namespaces[2].memory)
    completion = queue.command(ZEROES, nsid=2, cdw12=1 << 25)
    assert (completion.status, completion.dw0) == (0, 0)


def test_namespace_zeroes_makes_blocks_readable_again():
    queue = io_queue()
    assert queue.command(UNCORRECTABLE, nsid=1, cdw10=7).status == 0
    assert queue.command(ZEROES, nsid=1, cdw12=1 << 25 | 1 << 23).dw0 == 1
    assert read(queue, 0, 16).status == 0


@pytest.mark.parametrize("lack", ["can_deallocate", "deallocated_reads_zero"])
def test_namespace_zeroes_needs_deallocation_to_zeroes(lack):
    class Lacking(Ramdisk):
        @property
        def capabilities(self):
            return replace(super().capabilities, **{lack: False})

    queue = io_queue(Lacking("1M"))
    write(queue, 0, b"\xff" * 512)
    assert queue.command(ZEROES, nsid=1, cdw12=1 << 25 | 1 << 23).status == Status.INVALID_FIELD
    assert last_error(queue).error_location == 50 | 7 << 8
    assert any(queue.read_bytes(read(queue, 0, 1)))


def test_namespace_zeroes_of_a_read_only_namespace():
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True, nsid=2))
    queue = target.io(target.admin())
    assert queue.command(ZEROES, nsid=2, cdw12=1 << 25 | 1 << 23).status == Status.NAMESPACE_WRITE_PROTECTED


# Force Unit Access of what reads


class Cached(Ramdisk):
    """A backend that reports a volatile cache, and records its calls."""

    def __init__(self, later: bool) -> None:
        super().__init__("1M")
        self.later = later
        self.calls: list[str] = []

    @property
    def capabilities(self):
        return replace(super().capabilities, volatile_cache=True)

    def flush(self):
        self.calls.append("flush")
        return self._flush() if self.later else None

    async def _flush(self):
        self.calls.append("flushed")

    def acquire_read(self, offset, length):
        self.calls.append("read")
        return super().acquire_read(offset, length)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("opcode", [READ, COMPARE, VERIFY])
def test_force_unit_access_commits_first(opcode, later):
    backend = Cached(later)
    queue = io_queue(backend)
    for bit in (0, 1 << 30):
        data = bytes(512) if opcode == COMPARE else None
        sqe = queue.sqe(opcode, data, length=0 if opcode == VERIFY else 512, nsid=1, cdw12=bit)
        result = queue.submit(sqe, data)
        completion = result.completion if isinstance(result, Pending) else result
        assert completion is not None and completion.status == 0
    assert backend.calls == ["read", "flush", *(["flushed"] if later else []), "read"]


# Dataset Management: hints


@pytest.mark.parametrize("attributes", range(8))
def test_all_attributes_of_dataset_management(attributes):
    queue = io_queue()
    write(queue, 0, b"\xff" * 512 * 16)
    ranges = struct.pack("<IIQ", 0xFFFFFFFF, 8, 0) + struct.pack("<IIQ", 0, 0, BLOCKS)
    assert queue.command(0x09, ranges, nsid=1, cdw10=1, cdw11=attributes | 0xFFFFFFF8).status == 0
    assert any(queue.read_bytes(read(queue, 0, 8))) is not bool(attributes & 4)
    assert all(queue.read_bytes(read(queue, 8, 8)))


# Atomic write units


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_atomic_write_units(block_bytes):
    target = Target(Ramdisk("1M", block_bytes=block_bytes))
    admin = target.admin()
    controller = IDENTIFY_CONTROLLER.parse(admin.read_bytes(admin.identify(1)))
    space = IDENTIFY_NAMESPACE.parse(admin.read_bytes(admin.identify(0, 1)))
    assert (controller.awun, controller.awupf, controller.acwu) == (7, 0, 7), "8 blocks, whatever their size"
    assert space.nsfeat & 2
    assert space.nawun == space.nacwu == 32768 // block_bytes - 1
    assert (space.nawupf, space.nabsn, space.nabo, space.nabspf) == (0, 0, 0, 0)
    assert space.nawun >= controller.awun and space.nacwu >= controller.acwu


def test_zones_cannot_be_zeroed_whole():
    _, queue, namespace = zoned()
    assert queue.command(ZEROES, nsid=namespace.nsid, cdw12=1 << 25 | 1 << 23).status == Status.INVALID_FIELD
    assert last_error(queue).error_location == 50 | 7 << 8


def test_range_of_write_uncorrectable():
    queue = io_queue()
    assert queue.command(UNCORRECTABLE, **rw(BLOCKS - 1, 2)).status == Status.LBA_OUT_OF_RANGE
