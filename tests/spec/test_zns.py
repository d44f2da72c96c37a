"""Layouts of the ZNS command set against the specification's offsets, and its small helpers."""

import struct

import pytest

from nvmeof.spec.zns import (
    IDENTIFY_CONTROLLER_ZNS,
    IDENTIFY_NAMESPACE_ZNS,
    LBA_FORMAT_EXTENSION,
    ZONE_DESCRIPTOR,
    ZONE_DESCRIPTOR_BYTES,
    ZONE_REPORT_HEADER,
    ZoneDescriptor,
    ZoneReceive,
    ZoneSend,
    ZoneState,
    build_changed_zones,
    parse_changed_zones,
    parse_zone_report,
)
from nvmeof.wire import layout


def test_offsets():
    offsets = {name: offset for name, (offset, _) in layout(IDENTIFY_NAMESPACE_ZNS).items()}
    assert offsets == {
        "zoc": 0, "ozcs": 2, "mar": 4, "mor": 8, "rrl": 12, "frl": 16, "rrl1": 20, "rrl2": 24, "rrl3": 28, "frl1": 32,
        "frl2": 36, "frl3": 40, "numzrwa": 44, "zrwafg": 48, "zrwasz": 50, "zrwacap": 52, "lbafe": 2816, "vs": 3840,
    }  # fmt: skip
    assert IDENTIFY_NAMESPACE_ZNS.sizeof() == IDENTIFY_CONTROLLER_ZNS.sizeof() == 4096
    assert LBA_FORMAT_EXTENSION.sizeof() == 16 and ZONE_REPORT_HEADER.sizeof() == 64
    assert ZONE_DESCRIPTOR.size == ZONE_DESCRIPTOR_BYTES == 64
    assert ZONE_DESCRIPTOR.offsets == {"zt": 0, "zs": 1, "za": 2, "zai": 3, "zcap": 8, "zslba": 16, "wp": 24}


def test_descriptor():
    raw = ZONE_DESCRIPTOR.pack(ZoneDescriptor(2, 0xE0, 0x80, 0, 1, 2, 3))
    assert raw == bytes([2, 0xE0, 0x80, 0, 0, 0, 0, 0]) + struct.pack("<3Q32x", 1, 2, 3)
    assert ZONE_DESCRIPTOR.unpack_from(raw).state is ZoneState.FULL


def test_dwords():
    assert ZoneSend.decode(0x00000104) == ZoneSend(4, True, 0)
    assert ZoneSend.decode(0xFFFF0210) == ZoneSend(0x10, False, 1)
    assert ZoneReceive.decode(0x00010501) == ZoneReceive(1, 5, True)
    assert ZoneReceive.decode(0xFFFE0000) == ZoneReceive(0, 0, False)


@pytest.mark.parametrize("count", [0, 1, 510, 511])
def test_changed_zones(count):
    zones = [64 * index for index in range(count)]
    page = build_changed_zones(reversed(zones))
    assert len(page) == 4096 and struct.unpack_from("<H", page) == (count,)
    assert parse_changed_zones(page) == zones


def test_too_many_changed_zones():
    page = build_changed_zones(range(512))
    assert page[:2] == b"\xff\xff" and not any(page[2:]) and parse_changed_zones(page) is None


def test_a_report_that_is_cut():
    zone = ZONE_DESCRIPTOR.pack(ZoneDescriptor(zs=0x10))
    assert parse_zone_report(struct.pack("<Q56x", 3) + zone + zone[:63]) == (3, [ZoneDescriptor(zs=0x10)])
    assert parse_zone_report(struct.pack("<Q56x", 9)) == (9, [])
