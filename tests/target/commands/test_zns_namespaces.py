"""Zoned namespaces as a whole: Identify, events, logs, and sizes that change."""

import pytest

from nvmeof.errors import CommandError, ConfigurationError
from nvmeof.spec.identify import IDENTIFY_CONTROLLER, parse_namespace_descriptors, parse_namespace_list
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.spec.zns import IDENTIFY_NAMESPACE_ZNS, ZoneAttributes, ZoneState, parse_changed_zones
from nvmeof.target.commands.table import execute, prepare
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import CC_ENABLE
from tests.target.zone_target import CAPACITY, ZONES, io, make, refused, states, zones_of
from tests.target.zone_tools import BLOCK, ZONE, append, descriptor, read, rw, write

# Identify, events and logs


def test_identify():
    target = make(max_open=4, max_active=6)
    admin = target.admin()
    zns = IDENTIFY_NAMESPACE_ZNS.parse(admin.read_bytes(admin.identify(5, 2, csi=2)))
    assert (zns.zoc, zns.ozcs, zns.mor, zns.mar, zns.rrl, zns.frl) == (0, 1, 3, 5, 0, 0)
    assert [(each.zsze, each.zdes) for each in zns.lbafe[:3]] == [(64, 2), (8, 2), (0, 0)]
    common = IDENTIFY_NAMESPACE.parse(admin.read_bytes(admin.identify(0, 2)))
    assert (common.nsze, common.ncap, common.nuse) == (ZONES * ZONE, ZONES * CAPACITY, ZONES * CAPACITY)
    assert admin.read_bytes(admin.identify(0x1B, 2, csi=2)) == admin.read_bytes(admin.identify(5, 2, csi=2))
    descriptors = parse_namespace_descriptors(admin.read_bytes(admin.identify(3, 2)))
    assert [item.nid for item in descriptors if item.nidt == 4] == [b"\2"]
    assert admin.identify(5, 1, csi=2).status != 0, "that is not a zoned one"
    for cns in (7, 0x1A):
        assert parse_namespace_list(admin.read_bytes(admin.identify(cns, 0, csi=2))) == [2]
        assert parse_namespace_list(admin.read_bytes(admin.identify(cns, 0))) == [1]
    assert admin.read_bytes(admin.identify(0x1C, 0, cntid=0xFFFF))[0] == 0b101
    assert admin.read_bytes(admin.identify(6, 0, csi=2))[0] == 8
    assert admin.get_feature(0x19).dw0 == 0 and admin.set_feature(0x19, 0).status == 0
    assert admin.set_feature(0x19, 1).status == Status.IO_COMMAND_SET_COMBINATION_REJECTED


def test_identify_without_limits():
    admin = make(read_across=False).admin()
    zns = IDENTIFY_NAMESPACE_ZNS.parse(admin.read_bytes(admin.identify(5, 2, csi=2)))
    assert (zns.ozcs, zns.mor, zns.mar) == (0, 0xFFFFFFFF, 0xFFFFFFFF)


def test_a_controller_without_command_sets_does_not_see_zones():
    target = make()
    admin = target.queue()
    admin.connect()
    admin.set_property(CC_OFFSET, CC_ENABLE & ~0x70)
    assert admin.csts & 1
    queue = target.io(admin)
    assert parse_namespace_list(admin.read_bytes(admin.identify(2))) == [1]
    assert not any(admin.read_bytes(admin.identify(0, 2)))
    refused(queue, read(queue, 0, 1), Status.INVALID_FIELD, 4)
    refused(queue, write(queue, 0, bytes(BLOCK)), Status.INVALID_FIELD, 4)
    assert append(queue, 0, bytes(BLOCK)).status == Status.INVALID_OPCODE
    assert queue.command(0x02, length=BLOCK, nsid=1).status == 0


def changed(admin, nsid=2, **fields):
    return parse_changed_zones(admin.read_bytes(admin.log_page(0xBF, 4096, nsid=nsid, **fields)))


def test_changed_zones_and_their_event():
    target = make()
    admin, other = target.admin(), target.admin()
    assert IDENTIFY_CONTROLLER.parse(admin.read_bytes(admin.identify(1))).oaes & 1 << 27
    assert admin.set_feature(0x0B, 1 << 27).status == 0
    waiting = admin.submit(admin.sqe(0x0C))
    zones = target.subsystem.namespaces[2].zones
    zones.degrade(zones.zones[3])
    zones.recommend(zones.zones[1], ZoneAttributes.RESET_RECOMMENDED)
    zones.finish(zones.zones[2])
    completion = waiting.step()
    assert (completion.dw0, completion.dw1) == (2 | 0xEF << 8 | 0xBF << 16, 2)
    assert changed(admin, rae=True) == changed(admin) == [ZONE, 2 * ZONE, 3 * ZONE] and changed(admin) == []
    assert changed(other) == [ZONE, 2 * ZONE, 3 * ZONE], "each controller has its own"
    queue = target.io(admin)
    assert [descriptor(queue, zone).za for zone in (1, 2, 3)] == [4, 1, 0]
    zones.recommend(zones.zones[1], ZoneAttributes.FINISH_RECOMMENDED)
    assert descriptor(queue, 1).za == 2
    for zone in zones.zones:
        zones.recommend(zone, ZoneAttributes(0))
    assert len(changed(admin)) == ZONES
    invalid, inactive = Status.INVALID_NAMESPACE, Status.INVALID_FIELD
    for nsid, status in ((1, invalid), (3, inactive), (0, invalid), (1025, invalid), (0xFFFFFFFF, inactive)):
        assert admin.log_page(0xBF, 4096, nsid=nsid).status == status
        assert admin.controller.error_log.newest()[0].error_location == 4


def test_more_changed_zones_than_the_log_has_room_for():
    target = make(zone_bytes=BLOCK, capacity_bytes=None, extension_bytes=0)
    admin = target.admin()
    zones = target.subsystem.namespaces[2].zones
    for zone in zones.zones[:511]:
        zones.degrade(zone)
    assert len(changed(admin, rae=True)) == 511
    zones.degrade(zones.zones[511])
    page = admin.read_bytes(admin.log_page(0xBF, 4096, nsid=2))
    assert page == b"\xff\xff".ljust(4096, b"\0")


def test_a_reset_of_the_controller_forgets_changed_zones():
    target = make()
    admin = target.admin()
    zones = target.subsystem.namespaces[2].zones
    zones.degrade(zones.zones[3])
    admin.set_property(CC_OFFSET, 0)
    admin.set_property(CC_OFFSET, CC_ENABLE)
    assert changed(admin) == []


# Sizes


def test_resize():
    target = make(max_active=2)
    queue = io(target)
    write(queue, ZONE, b"a" * BLOCK)
    write(queue, 31 * ZONE, b"b" * BLOCK)
    target.subsystem.resize_namespace(2, (1 << 20) + ZONE * BLOCK + 512)
    assert len(zones_of(queue)) == 33 and queue.ctx.namespaces[2].size_blocks == 33 * ZONE
    assert descriptor(queue, 31).wp == 31 * ZONE + 1
    target.subsystem.resize_namespace(2, 2 * ZONE * BLOCK)
    assert len(zones_of(queue)) == 2 and zones_of(queue).active == 1
    refused(queue, write(queue, 2 * ZONE, bytes(BLOCK)), Status.LBA_OUT_OF_RANGE)
    assert queue.read_bytes(read(queue, ZONE, 1)) == b"a" * BLOCK
    target.subsystem.resize_namespace(2, 1 << 20)
    assert descriptor(queue, 31).state is ZoneState.EMPTY


def test_invalid_sizes():
    target = make()
    with pytest.raises(ConfigurationError):
        target.subsystem.resize_namespace(2, ZONE * BLOCK - BLOCK)
    assert target.subsystem.namespaces[2].backend.capabilities.size_bytes == 1 << 20, "nothing was begun"


def test_a_namespace_replaced_during_a_command():
    target = make()
    queue = io(target)
    sqes = [
        (queue.sqe(0x7D, bytes(BLOCK), **rw(0, 1)), memoryview(bytes(BLOCK))),
        (queue.sqe(0x79, nsid=2, cdw13=3), None),
        (queue.sqe(0x7A, length=64, nsid=2, cdw12=15), None),
    ]
    specs = [prepare(queue.ctx, sqe)[0] for sqe, _ in sqes]
    target.subsystem.remove_namespace(2)
    for gone in (True, False):
        if not gone:
            target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nsid=2))
        for spec, (sqe, data) in zip(specs, sqes, strict=True):
            status = Status.INVALID_FIELD if gone else Status.INVALID_NAMESPACE
            refused(queue, execute(queue.ctx, spec, sqe, data), status, 4)


def test_zones_that_are_cut_off_while_data_is_in_flight():
    target = make()
    queue = io(target)
    sqes = [
        (queue.sqe(0x7D, bytes(BLOCK), **rw(31 * ZONE, 1)), memoryview(bytes(BLOCK))),
        (queue.sqe(0x79, nsid=2, cdw13=3, cdw10=31 * ZONE), None),
    ]
    specs = [prepare(queue.ctx, sqe)[0] for sqe, _ in sqes]
    target.subsystem.resize_namespace(2, 2 * ZONE * BLOCK)
    for spec, (sqe, data) in zip(specs, sqes, strict=True):
        refused(queue, execute(queue.ctx, spec, sqe, data), Status.LBA_OUT_OF_RANGE, 40)


def test_there_is_no_zone_beyond_the_last():
    zones = zones_of(io(make()))
    for inside in (0, 1):
        with pytest.raises(CommandError) as refusal:
            zones.at(len(zones.zones) * ZONE + inside)
        assert (refusal.value.status, refusal.value.error_location) == (Status.LBA_OUT_OF_RANGE, 40)


def test_reset_of_all_zones():
    target = make()
    queue = io(target)
    states(queue)
    assert target.subsystem.namespaces[2].erased() is None
    assert all(zone.state is ZoneState.EMPTY and zone.pointer == zone.start for zone in zones_of(queue).zones)
