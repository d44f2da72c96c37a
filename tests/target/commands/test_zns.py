"""The commands of zoned namespaces: fields, reports, limits, and refusals with their locations."""

import struct

import pytest

from nvmeof.spec.status import Status
from nvmeof.spec.zns import NO_WRITE_POINTER, ZoneSendAction, ZoneState, parse_zone_report
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import COLUMNS
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import IN_CAPSULE, Target
from tests.target.zone_target import CAPACITY, ZONES, io, refused, states, zones_of
from tests.target.zone_tools import BLOCK, ZONE, append, descriptor, read, receive, rw, send, write

# Writing


def test_a_write_goes_where_the_pointer_is():
    queue = io()
    data = bytes(range(256)) * 4
    assert write(queue, 64, data).status == 0
    assert write(queue, 66, data).status == 0
    refused(queue, write(queue, 64, data), Status.ZONE_INVALID_WRITE)
    refused(queue, write(queue, 69, data), Status.ZONE_INVALID_WRITE)
    refused(queue, write(queue, 129, data), Status.ZONE_INVALID_WRITE)
    assert queue.read_bytes(read(queue, 64, 8)) == data * 2 + bytes(4 * BLOCK)
    shown = descriptor(queue, 1)
    assert (shown.zslba, shown.zcap, shown.wp, shown.zt) == (64, CAPACITY, 68, 2)


def test_no_fast_path_passes_a_write_pointer():
    assert io().ctx.namespaces[2].memory is None


@pytest.mark.parametrize(
    ("before", "slba", "blocks", "status"),
    [
        (0, 0, CAPACITY, 0),
        (0, 0, CAPACITY + 1, Status.ZONED_BOUNDARY_ERROR),
        (0, 0, ZONE + 1, Status.ZONED_BOUNDARY_ERROR),
        (10, 10, CAPACITY - 10, 0),
        (10, 10, CAPACITY - 9, Status.ZONED_BOUNDARY_ERROR),
        (10, 9, ZONE, Status.ZONED_BOUNDARY_ERROR),
        (CAPACITY, CAPACITY, 1, Status.ZONE_IS_FULL),
        (0, ZONE - 1, 1, Status.ZONE_INVALID_WRITE),
        (0, ZONE - 1, 2, Status.ZONED_BOUNDARY_ERROR),
        (0, ZONES * ZONE - 1, 1, Status.ZONE_INVALID_WRITE),
        (0, ZONES * ZONE, 1, Status.LBA_OUT_OF_RANGE),
        (0, ZONES * ZONE - 1, 2, Status.LBA_OUT_OF_RANGE),
    ],
)
def test_boundaries(before, slba, blocks, status):
    queue = io()
    if before:
        assert write(queue, 0, bytes(before * BLOCK)).status == 0
    completion = write(queue, slba, bytes(blocks * BLOCK))
    assert completion.status == status
    if status:
        refused(queue, completion, status)
    completion = queue.command(0x08, **rw(slba, blocks)) if status else None
    assert completion is None or completion.status == status, "Write Zeroes is a write"
    assert not status or queue.command(0x04, **rw(slba, blocks)).status == status, "so is Write Uncorrectable"


def test_append_returns_the_lba_of_the_data():
    queue = io()
    for expected in (64, 66, 68):
        completion = append(queue, 64, b"%02d" % expected * BLOCK)
        assert (completion.status, completion.dw0, completion.dw1) == (0, expected, 0)
    assert queue.read_bytes(read(queue, 66, 2)) == b"66" * BLOCK
    refused(queue, append(queue, 65, bytes(BLOCK)), Status.INVALID_FIELD)
    refused(queue, append(queue, ZONES * ZONE, bytes(BLOCK)), Status.LBA_OUT_OF_RANGE)
    refused(queue, append(queue, 64, bytes(43 * BLOCK)), Status.ZONED_BOUNDARY_ERROR)
    assert append(queue, 64, bytes(42 * BLOCK)).status == 0
    refused(queue, append(queue, 64, bytes(BLOCK)), Status.ZONE_IS_FULL)


def test_append_beyond_32_bits():
    target = Target()
    geometry = ZoneGeometry(zone_bytes=1 << 40)
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("8T"), zoned=geometry))
    queue = io(target)
    completion = append(queue, 3 << 31, bytes(BLOCK))
    assert (completion.dw0, completion.dw1) == (0x80000000, 1)
    assert append(queue, 3 << 31, bytes(BLOCK)).dw0 == 0x80000001


@pytest.mark.parametrize(
    ("extra", "status", "location"),
    [
        (1 << 25, Status.INVALID_FIELD, 51 | 1 << 8),
        (1 << 16, Status.INVALID_FIELD, 50),
        (1 << 20, Status.INVALID_FIELD, 50 | 4 << 8),
        (1 << 30 | 1 << 31, 0, 0),
    ],
)
def test_append_fields(extra, status, location):
    queue = io()
    completion = queue.command(0x7D, bytes(BLOCK), **rw(0, 1, cdw12=extra))
    if status:
        refused(queue, completion, status, location)
    else:
        assert completion.status == 0


def test_append_within_zasl():
    target = Target(max_transfer_bytes=8192)
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), zoned=ZoneGeometry(zone_bytes=ZONE * BLOCK)))
    queue = io(target)
    assert append(queue, 0, bytes(8192)).status == 0
    refused(queue, append(queue, 0, bytes(8192 + BLOCK)), Status.INVALID_FIELD, 48)
    assert target.admin().read_bytes(target.admin().identify(6, 0, csi=2))[0] == 1


def test_copy_to_and_from_zones():
    queue = io()
    write(queue, 0, b"1" * BLOCK + b"2" * BLOCK)

    def copy(slba, source, blocks):
        data = struct.pack("<8xQH14x", source, blocks - 1)
        pending = queue.submit(queue.sqe(0x19, data, nsid=2, cdw10=slba, cdw12=0), data)
        return pending if hasattr(pending, "status") else pending.completion

    assert copy(ZONE, 0, 4).status == 0
    assert queue.read_bytes(read(queue, ZONE, 4)) == b"1" * BLOCK + b"2" * BLOCK + bytes(2 * BLOCK)
    assert descriptor(queue, 1).wp == ZONE + 4
    refused(queue, copy(ZONE, 0, 1), Status.ZONE_INVALID_WRITE)
    assert copy(ZONE + 4, 1, 1).status == 0 and copy(2 * ZONE, 2 * ZONE + 50, 1).status == 0
    zones_of(queue).degrade(zones_of(queue).zones[0], readable=False)
    refused(queue, copy(ZONE + 5, 0, 1), Status.ZONE_IS_OFFLINE)


# Reading


def test_reads_across_zones():
    queue = io()
    write(queue, 0, b"a" * BLOCK * CAPACITY)
    write(queue, ZONE, b"b" * BLOCK)
    expected = b"a" * BLOCK * 8 + bytes(BLOCK * (ZONE - CAPACITY)) + b"b" * BLOCK + bytes(BLOCK)
    assert queue.read_bytes(read(queue, CAPACITY - 8, len(expected) // BLOCK)) == expected
    assert queue.command(0x05, expected, **rw(CAPACITY - 8, len(expected) // BLOCK)).status == 0
    assert queue.command(0x05, b"x" * len(expected), **rw(CAPACITY - 8, len(expected) // BLOCK)).status == 0x285
    assert queue.command(0x0C, **rw(0, ZONES * ZONE)).status == 0
    zones_of(queue).degrade(zones_of(queue).zones[1], readable=False)
    refused(queue, read(queue, CAPACITY, ZONE), Status.ZONE_IS_OFFLINE)


def test_reads_that_must_stay_in_a_zone():
    queue = io(read_across=False)
    assert read(queue, 0, ZONE).status == 0
    for opcode, data in ((0x02, None), (0x05, bytes(2 * BLOCK)), (0x0C, None)):
        length = 0 if opcode == 0x0C else 2 * BLOCK
        refused(queue, queue.command(opcode, data, length=length, **rw(ZONE - 1, 2)), Status.ZONED_BOUNDARY_ERROR)


def test_data_before_a_reset_is_gone():
    queue = io()
    write(queue, 0, b"x" * BLOCK * 4)
    queue.command(0x04, **rw(4, 1))
    assert read(queue, 4, 1).status == Status.UNRECOVERED_READ_ERROR
    assert send(queue, ZoneSendAction.RESET, 0).status == 0
    assert not any(queue.read_bytes(read(queue, 0, ZONE)))
    assert not any(queue.ctx.namespaces[2].backend.memory[: 4 * BLOCK]), "the memory was given back"
    write(queue, 0, b"y" * BLOCK)
    assert queue.read_bytes(read(queue, 0, 2)) == b"y" * BLOCK + bytes(BLOCK)


def test_deallocate_leaves_the_pointer_and_needs_a_zone_that_can_change():
    queue = io()
    write(queue, 0, b"x" * BLOCK * 16)

    def deallocate(slba, blocks):
        return queue.command(0x09, struct.pack("<IIQ", 0, blocks, slba), nsid=2, cdw10=0, cdw11=4)

    assert deallocate(0, 8).status == 0 and descriptor(queue, 0).wp == 16
    assert queue.read_bytes(read(queue, 0, 16)) == bytes(8 * BLOCK) + b"x" * BLOCK * 8
    zones = zones_of(queue)
    zones.degrade(zones.zones[1])
    refused(queue, deallocate(0, ZONE + 1), Status.ZONE_IS_READ_ONLY)
    assert deallocate(0, ZONE).status == 0
    zones.degrade(zones.zones[1], readable=False)
    refused(queue, deallocate(ZONE, 1), Status.ZONE_IS_OFFLINE)


# Zone Management Send


@pytest.mark.parametrize(
    ("fields", "status", "location"),
    [
        ({"action": 0}, Status.INVALID_FIELD, 52),
        ({"action": 6}, Status.INVALID_FIELD, 52),
        ({"action": 0x11}, Status.INVALID_FIELD, 52),
        ({"action": 0xFF}, Status.INVALID_FIELD, 52),
        ({"action": 0x10, "select_all": True, "data": bytes(128)}, Status.INVALID_FIELD, 53),
        ({"action": 3, "cdw13": 3 | 1 << 9}, Status.INVALID_FIELD, 53 | 1 << 8),
        ({"action": 3, "zslba": 1}, Status.INVALID_FIELD, 40),
        ({"action": 3, "zslba": ZONES * ZONE}, Status.LBA_OUT_OF_RANGE, 40),
        ({"action": 3, "zslba": (1 << 64) - 1}, Status.LBA_OUT_OF_RANGE, 40),
        ({"action": 3, "nsid": 1}, Status.INVALID_OPCODE, 0),
        ({"action": 3, "nsid": 9}, Status.INVALID_OPCODE, 0),
        ({"action": 0x10, "data": bytes(64)}, Status.DATA_SGL_LENGTH_INVALID, 32),
    ],
)
def test_send_fields(fields, status, location):
    queue = io()
    fields = {"zslba": 0, **fields}
    refused(queue, send(queue, fields.pop("action"), fields.pop("zslba"), fields.pop("data", None), **fields), status,
            location)  # fmt: skip


def test_a_write_protected_namespace():
    target = Target()
    target.subsystem.add_namespace(
        NamespaceConfig(backend=Ramdisk("1M"), zoned=ZoneGeometry(zone_bytes=ZONE * BLOCK), read_only=True)
    )
    queue = io(target)
    refused(queue, send(queue, ZoneSendAction.OPEN, 0), Status.NAMESPACE_WRITE_PROTECTED, 4)
    refused(queue, append(queue, 0, bytes(BLOCK)), Status.NAMESPACE_WRITE_PROTECTED, 4)
    assert receive(queue, 0, 64).status == 0


@pytest.mark.parametrize("sgl_type", [IN_CAPSULE, 0x5A])
def test_descriptor_extensions(sgl_type):
    queue = io()
    assert send(queue, ZoneSendAction.SET_EXTENSION, ZONE, b"e" * 128, sgl_type=sgl_type).status == 0
    report = queue.read_bytes(receive(queue, 0, 64 + 3 * (64 + 128), action=1))
    number, zones = parse_zone_report(report, 128)
    assert (number, [zone.za for zone in zones]) == (ZONES, [0, 0x80, 0])
    assert report[128:256] == bytes(128) and report[320:448] == b"e" * 128
    assert write(queue, ZONE, bytes(BLOCK)).status == 0
    assert send(queue, ZoneSendAction.RESET, ZONE).status == 0
    again = queue.read_bytes(receive(queue, ZONE, 256, action=1))
    assert not any(again[128:]) and parse_zone_report(again, 128)[1][0].za == 0


def test_no_descriptor_extensions():
    queue = io(extension_bytes=0)
    refused(queue, send(queue, ZoneSendAction.SET_EXTENSION, 0), Status.INVALID_FIELD, 52)
    refused(queue, receive(queue, 0, 128, action=1), Status.INVALID_FIELD, 52)


# Limits


def test_too_many_active_zones():
    queue = io(max_active=3, max_open=2)
    for zone in (0, 1, 2):
        assert write(queue, zone * ZONE, bytes(BLOCK)).status == 0
    assert [zone.state for zone in zones_of(queue).zones[:3]] == [ZoneState.CLOSED] + [ZoneState.IMPLICITLY_OPENED] * 2
    for completion in (
        write(queue, 3 * ZONE, bytes(BLOCK)),
        append(queue, 3 * ZONE, bytes(BLOCK)),
        send(queue, ZoneSendAction.OPEN, 3 * ZONE),
        send(queue, ZoneSendAction.SET_EXTENSION, 3 * ZONE, bytes(128)),
    ):
        refused(queue, completion, Status.TOO_MANY_ACTIVE_ZONES)
    assert send(queue, ZoneSendAction.FINISH, 3 * ZONE).status == 0, "a full zone is not active"
    assert write(queue, 0, bytes(BLOCK)).status == Status.ZONE_INVALID_WRITE
    assert write(queue, 1, bytes(BLOCK)).status == 0 and zones_of(queue).opened == 2
    assert send(queue, ZoneSendAction.RESET, 0).status == 0 and write(queue, 4 * ZONE, bytes(BLOCK)).status == 0


def test_the_zone_written_longest_ago_is_closed():
    queue = io(max_open=2)
    write(queue, 0, bytes(BLOCK))
    write(queue, ZONE, bytes(BLOCK))
    write(queue, 1, bytes(BLOCK))
    write(queue, 2 * ZONE, bytes(BLOCK))
    assert [zone.state for zone in zones_of(queue).zones[:3]] == [
        ZoneState.IMPLICITLY_OPENED,
        ZoneState.CLOSED,
        ZoneState.IMPLICITLY_OPENED,
    ]


def test_too_many_open_zones():
    queue = io(max_open=2)
    assert send(queue, ZoneSendAction.OPEN, 0).status == send(queue, ZoneSendAction.OPEN, ZONE).status == 0
    refused(queue, send(queue, ZoneSendAction.OPEN, 2 * ZONE), Status.TOO_MANY_OPEN_ZONES)
    refused(queue, write(queue, 2 * ZONE, bytes(BLOCK)), Status.TOO_MANY_OPEN_ZONES)
    assert send(queue, ZoneSendAction.SET_EXTENSION, 2 * ZONE, bytes(128)).status == 0
    refused(queue, send(queue, ZoneSendAction.OPEN, 0, select_all=True), Status.TOO_MANY_OPEN_ZONES)
    assert zones_of(queue).zones[2].state is ZoneState.CLOSED
    assert send(queue, ZoneSendAction.CLOSE, 0).status == 0
    refused(queue, send(queue, ZoneSendAction.OPEN, 0, select_all=True), Status.TOO_MANY_OPEN_ZONES)
    assert send(queue, ZoneSendAction.RESET, 0).status == 0
    assert send(queue, ZoneSendAction.OPEN, 0, select_all=True).status == 0 and zones_of(queue).opened == 2


def test_opening_all_closed_zones_closes_implicitly_opened_ones():
    queue = io(max_open=2)
    for zone in (0, 1, 2, 3):
        write(queue, zone * ZONE, bytes(BLOCK))
    assert send(queue, ZoneSendAction.OPEN, 0, select_all=True).status == 0
    assert [zone.state.name for zone in zones_of(queue).zones[:4]] == [
        "EXPLICITLY_OPENED", "EXPLICITLY_OPENED", "CLOSED", "CLOSED",
    ]  # fmt: skip


# Zone Management Receive


@pytest.mark.parametrize("partial", [False, True])
def test_reporting_options(partial):
    queue = io()
    expected = states(queue)
    assert set(expected) == set(COLUMNS)
    for which, state in enumerate(expected, 1):
        number, zones = parse_zone_report(queue.read_bytes(receive(queue, 0, 4096, which=which, partial=partial)))
        assert number == len(zones) == (1 if which > 1 else ZONES - 6)
        assert zones[0].zslba == (which - 1) * ZONE and all(zone.state is state for zone in zones)
    number, zones = parse_zone_report(queue.read_bytes(receive(queue, 0, 4096, partial=partial)))
    assert number == ZONES and [zone.zslba for zone in zones] == [ZONE * index for index in range(ZONES)]
    assert [zone.wp for zone in zones[:7]] == [0, ZONE + 1, 2 * ZONE, 3 * ZONE + 1] + [NO_WRITE_POINTER] * 3
    refused(queue, receive(queue, 0, 4096, which=8), Status.INVALID_FIELD, 53)
    refused(queue, receive(queue, 0, 4096, which=0xFF), Status.INVALID_FIELD, 53)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("length", [64, 68, 124, 128, 132, 192, 256, 260, 1024, 4096, 8192])
def test_reports_of_any_length(length, extended):
    queue = io()
    states(queue)
    send(queue, ZoneSendAction.SET_EXTENSION, 8 * ZONE, b"8" * 128)
    stride = 64 + 128 * extended
    whole = queue.read_bytes(receive(queue, 0, 64 + stride * ZONES, action=extended))
    for first in (0, 1, 8, ZONES - 1):
        slba = first * ZONE + (ZONE - 1 if first else 0)
        expected = whole[64 + first * stride : 64 + first * stride + length - 64].ljust(length - 64, b"\0")
        for partial in (False, True):
            report = queue.read_bytes(receive(queue, slba, length, action=extended, partial=partial))
            assert len(report) == length and report[64:] == expected
            number = ZONES - first
            assert report[:64] == struct.pack("<Q56x", min(number, (length - 64) // stride) if partial else number)


def test_receive_fields():
    queue = io()
    refused(queue, receive(queue, 0, 60), Status.INVALID_FIELD, 48)
    refused(queue, receive(queue, 0, (1 << 20) + 4), Status.INVALID_FIELD, 48)
    refused(queue, receive(queue, 0, 64, action=2), Status.INVALID_FIELD, 52)
    refused(queue, receive(queue, ZONES * ZONE, 64), Status.LBA_OUT_OF_RANGE)
    assert receive(queue, 0, 1 << 20).status == 0
    assert receive(queue, 0, 64, nsid=1).status == Status.INVALID_OPCODE
