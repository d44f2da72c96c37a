import pytest

from nvmeof.spec.enums import AnaState
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER,
    mdts_bytes,
    parse_controller_list,
    parse_namespace_descriptors,
    parse_namespace_list,
)
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE, IDENTIFY_NAMESPACE_INDEPENDENT
from nvmeof.spec.log_pages import (
    COMMANDS_SUPPORTED_AND_EFFECTS,
    ERROR_INFORMATION_ENTRY,
    FIRMWARE_SLOT,
    SMART_HEALTH,
    SUPPORTED_LOG_PAGES,
    parse_ana_log,
)
from nvmeof.spec.status import Status, split_status
from nvmeof.target.commands.dispatch.base import NsidRule
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.harness import ADMIN, DISCOVERY, FEATURES, LOG_PAGES, NQN, NVM, Target, TestQueue


def identify(queue: TestQueue, cns: int, nsid: int = 0, **fields) -> bytes:
    data = queue.read_bytes(queue.identify(cns, nsid, **fields))
    assert len(data) == 4096
    return data


def last_location(queue: TestQueue) -> int:
    return queue.controller.error_log.newest()[0].error_location


@pytest.mark.parametrize("nsid", [1, 9, 1025, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", ["admin", "discovery"])
def test_commands_that_are_for_no_namespace(kind, nsid):
    queue = getattr(Target(), kind)()
    table = ADMIN if kind == "admin" else DISCOVERY
    assert {opcode for opcode, spec in table.items() if spec.nsid is NsidRule.UNUSED} == {0x08, 0x0C, 0x18}
    assert queue.command(0x08, nsid=nsid).status == queue.command(0x18, nsid=nsid).status == 0, "it is not looked at"
    refused = {opcode for opcode, spec in table.items() if spec.nsid is NsidRule.ZERO}
    assert refused == ({0x84} if kind == "admin" else set()), "who names a namespace must not lose them all"
    for opcode in refused:
        assert queue.command(opcode, nsid=nsid, cdw10=2).status == Status.INVALID_FIELD
        assert last_location(queue) == 4


# Identify


def test_identify_controller():
    target = Target(model="a model", firmware="1.2", incapsule_bytes=4096, max_transfer_bytes=1 << 18)
    queue = target.admin()
    data = IDENTIFY_CONTROLLER.parse(identify(queue, 1))
    assert (data.mn, data.fr, data.subnqn) == ("a model", "1.2", NQN)
    assert data.sn == target.subsystem.config.serial_number and len(data.sn) == 20
    assert data.cntlid == queue.controller.cntlid
    assert data.ver == 0x20100 and data.cntrltype == 1
    assert mdts_bytes(data.mdts) == 1 << 18
    assert data.cmic == 0b1011 and data.oaes & 0x80900 == 0x80900
    assert data.ctratt == 0x40251 and data.kas == 1 and data.endgidmax == 1
    assert (data.tnvmcap, data.unvmcap, data.maxcna) == (1 << 20, 0, 0)
    assert (data.aerl, data.acl, data.elpe) == (3, 3, 63)
    assert (data.sqes, data.cqes, data.maxcmd) == (0x66, 0x44, 1024)
    assert data.nn == data.mnan == 1024
    assert (data.oncs, data.fuses, data.cdfs) == (0x17FF, 1, 0b101)
    assert data.oacs == 0x212
    assert data.sgls == 1 | 1 << 20
    assert (data.ioccsz, data.iorcsz, data.icdoff, data.msdbd) == ((64 + 4096) // 16, 1, 0, 1)
    assert data.vwc == 0b110 and data.ofcs == 1
    assert data.anacap == 0x1F and data.nanagrpid == data.anagrpmax == 32 and data.anatt > 0
    assert data.cqt == 5000  # one second until the loss of a host is noticed, four for a backend's operations
    assert data.lpa & 0b111 == 0b111 and data.wctemp and data.cctemp > data.wctemp


def test_identify_discovery_controller():
    data = IDENTIFY_CONTROLLER.parse(identify(Target().discovery(), 1))
    assert data.cntrltype == 2 and data.dctype == 1 and data.oaes == 1 << 31
    assert data.subnqn == "nqn.2014-08.org.nvmexpress.discovery"
    assert data.nn == 0 and data.oncs == 0 and data.sqes == 0
    assert data.cqt == 0  # no I/O that could be outstanding


async def test_a_file_has_a_volatile_write_cache(tmp_path):
    backend = FileBackend(tmp_path / "disk", size="1M")
    await backend.open()
    queue = Target(backend, Ramdisk("1M")).admin()
    assert IDENTIFY_CONTROLLER.parse(identify(queue, 1)).vwc == 0b111
    assert IDENTIFY_NAMESPACE_INDEPENDENT.parse(identify(queue, 8, 1)).nsfeat == 0
    assert IDENTIFY_NAMESPACE_INDEPENDENT.parse(identify(queue, 8, 2)).nsfeat == 1 << 5
    await backend.close()


@pytest.mark.parametrize(("block_bytes", "lbads"), [(512, 9), (4096, 12)])
@pytest.mark.parametrize("cns", [0x00, 0x11])
def test_identify_namespace(block_bytes, lbads, cns):
    target = Target(Ramdisk("1M", block_bytes=block_bytes))
    queue = target.admin()
    data = IDENTIFY_NAMESPACE.parse(identify(queue, cns, 1))
    blocks = (1 << 20) // block_bytes
    assert data.nsze == data.ncap == data.nuse == blocks
    assert data.nlbaf == 1 and data.lbaf[data.flbas].lbads == lbads and data.lbaf[data.flbas].ms == 0
    assert data.dlfeat == 0b1001 and data.nmic == 1 and data.anagrpid == 1 and data.nsattr == 0
    assert data.npdg == data.npwg == 4096 // block_bytes - 1
    assert data.nguid == target.subsystem.namespaces[1].nguid and data.nvmcap == 1 << 20


def test_read_only_namespaces_are_marked():
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True))
    queue = target.admin()
    assert IDENTIFY_NAMESPACE.parse(identify(queue, 0, 2)).nsattr == 1
    assert IDENTIFY_NAMESPACE_INDEPENDENT.parse(identify(queue, 8, 2)).nsattr == 1


@pytest.mark.parametrize("cns", [0x00, 0x05, 0x08, 0x11])
def test_inactive_namespaces_are_zero_and_impossible_ones_invalid(cns):
    queue = Target().admin()
    assert not any(identify(queue, cns, 2))
    for nsid in (0, 1025, 0xFFFFFFFE, 0xFFFFFFFF):
        assert queue.identify(cns, nsid).status == Status.INVALID_NAMESPACE
        assert last_location(queue) == 4


def test_descriptors():
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), eui64=b"12345678"))
    queue = target.admin()
    first = parse_namespace_descriptors(identify(queue, 3, 1))
    assert [item.nidt for item in first] == [2, 3, 4]
    assert first[1].nid == target.subsystem.namespaces[1].uuid.bytes and first[2].nid == b"\0"
    assert parse_namespace_descriptors(identify(queue, 3, 2))[0].nid == b"12345678"
    assert queue.identify(3, 3).status == Status.INVALID_FIELD


@pytest.mark.parametrize("cns", [0x02, 0x07, 0x10])
def test_namespace_lists(cns):
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nsid=9))
    queue = target.admin()
    assert parse_namespace_list(identify(queue, cns)) == [1, 2, 9]
    assert parse_namespace_list(identify(queue, cns, 2)) == [9]
    assert parse_namespace_list(identify(queue, cns, 0xFFFFFFFD)) == []
    assert queue.identify(cns, 0xFFFFFFFE).status == Status.INVALID_NAMESPACE


def test_controller_lists():
    target = Target()
    queue, _, _ = (target.admin() for _ in range(3))
    assert parse_controller_list(identify(queue, 0x13)) == [1, 2, 3]
    assert parse_controller_list(identify(queue, 0x13, cntid=2)) == [2, 3]
    assert parse_controller_list(identify(queue, 0x12, 1)) == [1, 2, 3]
    assert parse_controller_list(identify(queue, 0x12, 5)) == []


def test_command_set_structures():
    queue = Target().admin()
    assert not any(identify(queue, 6)[1:]), "no limit but that of Verify"
    combinations = identify(queue, 0x1C, cntid=0xFFFF)
    assert combinations[0] & 1 and not any(combinations[8:])
    for cns in (5, 6, 7):
        assert queue.identify(cns, 1, csi=1).status == Status.INVALID_FIELD
        assert last_location(queue) == 47


@pytest.mark.parametrize("cns", [0x04, 0x14, 0x15, 0x18, 0x20, 0x80, 0xFF])
def test_unknown_structures(cns):
    queue = Target().admin()
    assert queue.identify(cns).status == Status.INVALID_FIELD
    assert last_location(queue) == 40


@pytest.mark.parametrize("cns", [0, 2, 3, 6])
def test_discovery_controllers_have_no_namespaces_to_identify(cns):
    assert Target().discovery().identify(cns, 1).status == Status.INVALID_FIELD


def test_identify_of_a_wrong_length():
    assert Target().admin().command(0x06, length=4092, cdw10=1).status == Status.DATA_SGL_LENGTH_INVALID


# Log pages


def test_supported_log_pages_lists_the_working_ones():
    target = Target()
    for queue, expected in (
        (target.admin(), {lid for lid, row in LOG_PAGES.items() if row.io}),
        (target.discovery(), {0, 1, 5, 0x12, 0x13, 0x70}),
    ):
        lids = SUPPORTED_LOG_PAGES.parse(queue.read_bytes(queue.log_page(0, 1024))).lids
        assert {lid for lid, value in enumerate(lids) if value & 1} == expected
        for lid in range(256):
            status = queue.log_page(lid, 512).status
            assert (status == Status.INVALID_LOG_PAGE) is (lid not in expected)


def test_error_log_has_the_last_errors_newest_first():
    target = Target()
    admin = target.admin()
    queue = target.io(admin, 2)
    queue.command(0x02, length=512, nsid=1, cdw10=0x12345)
    admin.identify(0xFF)
    data = admin.read_bytes(admin.log_page(1, 64 * 64))
    entries = [ERROR_INFORMATION_ENTRY.parse(data[start : start + 64]) for start in range(0, 4096, 64)]
    first, second = entries[:2]
    assert (first.error_count, first.sqid, first.parameter_error_location, first.opcode) == (2, 0, 40, 6)
    assert (second.error_count, second.sqid, second.cid, second.lba, second.nsid) == (1, 2, queue.cid, 0x12345, 1)
    assert split_status(second.status) == (Status.LBA_OUT_OF_RANGE, True, True) and second.trtype == 3
    assert entries[2].error_count == 0


def test_error_log_is_a_ring():
    admin = Target().admin()
    for _ in range(70):
        admin.identify(0xFF)
    data = admin.read_bytes(admin.log_page(1, 4096))
    counts = [ERROR_INFORMATION_ENTRY.parse(data[start : start + 64]).error_count for start in range(0, 4096, 64)]
    assert counts == list(range(70, 6, -1))


def test_smart_counts_commands():
    target = Target(Ramdisk("16M"), Ramdisk("1M"))
    target.subsystem.power_on(target.runtime.time - 7300)
    admin = target.admin()
    queue = target.io(admin)
    for _ in range(3):
        queue.command(0x02, length=1 << 20, nsid=1, cdw12=2047)
    queue.command(0x01, bytes(512), nsid=2)
    admin.identify(0xFF)
    data = SMART_HEALTH.parse(admin.read_bytes(admin.log_page(2, 512, nsid=0xFFFFFFFF)))
    assert (data.host_read_commands, data.data_units_read) == (3, 7)
    assert (data.host_write_commands, data.data_units_written) == (1, 1)
    assert data.error_log_entries == 1 and data.power_on_hours == 2 and data.critical_warning == 0
    assert 273 < data.composite_temperature < 343 and data.available_spare == 100
    second = SMART_HEALTH.parse(admin.read_bytes(admin.log_page(2, 512, nsid=2)))
    assert (second.host_read_commands, second.host_write_commands) == (0, 1)
    assert admin.log_page(2, 512, nsid=7).status == Status.INVALID_FIELD
    assert admin.log_page(2, 512, nsid=1025).status == Status.INVALID_NAMESPACE


def test_firmware_slot():
    admin = Target(firmware="9.9").admin()
    data = FIRMWARE_SLOT.parse(admin.read_bytes(admin.log_page(3, 512)))
    assert data.afi == 1 and data.frs[0] == "9.9" and data.frs[1] == ""


def test_effects_log_has_every_command_that_works_and_no_other():
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    data = COMMANDS_SUPPORTED_AND_EFFECTS.parse(admin.read_bytes(admin.log_page(5, 4096)))
    for opcode in range(256):
        offered = opcode in ADMIN and ADMIN[opcode].offered(target.subsystem)
        assert bool(data.acs[opcode] & 1) == offered
        assert bool(data.iocs[opcode] & 1) == (opcode in NVM)
        if opcode != 0x7F:
            status = io.command(opcode, length=0, nsid=1).status
            assert (status == Status.INVALID_OPCODE) == (opcode not in NVM)
    assert data.iocs[0x01] & 2 and not data.iocs[0x02] & 2
    zoned = COMMANDS_SUPPORTED_AND_EFFECTS.parse(admin.read_bytes(admin.log_page(5, 4096, cdw14=2 << 24)))
    assert zoned.acs == data.acs
    assert {opcode for opcode in range(256) if zoned.iocs[opcode] != data.iocs[opcode]} == {0x79, 0x7A, 0x7D}
    other = COMMANDS_SUPPORTED_AND_EFFECTS.parse(admin.read_bytes(admin.log_page(5, 4096, cdw14=1 << 24)))
    assert other.acs == data.acs and not any(other.iocs)  # the command set exists, but not on this controller
    completion = admin.log_page(5, 4096, cdw14=9 << 24)
    assert completion.status == Status.INVALID_FIELD and last_location(admin) == 59


def test_ana_log():
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    admin = target.admin()
    chgcnt, groups = parse_ana_log(admin.read_bytes(admin.log_page(0x0C, 8208, nsid=0xFFFFFFFF)))
    assert chgcnt == 0 and len(groups) == 1
    assert (groups[0].grpid, groups[0].state, groups[0].nsids) == (1, 1, (1, 2))
    target.subsystem.set_ana_state(AnaState.CHANGE)
    chgcnt, groups = parse_ana_log(admin.read_bytes(admin.log_page(0x0C, 48, lsp=1)))
    assert chgcnt == 1 and groups[0].state == 15 and groups[0].nsids == ()


def test_parts_of_log_pages():
    admin = Target().admin()
    whole = admin.read_bytes(admin.log_page(5, 4096))
    assert admin.read_bytes(admin.log_page(5, 16, 20)) == whole[20:36]
    assert admin.read_bytes(admin.log_page(5, 8192)) == whole + bytes(4096), "beyond the end: zeroes"
    assert admin.read_bytes(admin.log_page(5, 4, 4096)) == bytes(4)
    assert admin.log_page(5, 4, 4100).status == Status.INVALID_FIELD
    assert admin.log_page(5, 4, 1 << 40).status == Status.INVALID_FIELD
    assert last_location(admin) == 48
    assert admin.log_page(5, 4, 2).status == Status.INVALID_FIELD
    assert admin.log_page(5, 4, cdw14=1 << 23).status == Status.INVALID_FIELD


def test_log_pages_keep_to_mdts():
    admin = Target(max_transfer_bytes=8192).admin()
    assert admin.log_page(5, 8192).status == 0
    assert admin.log_page(5, 8196).status == Status.INVALID_FIELD


# The rest


@pytest.mark.parametrize("opcode", [0x00, 0x01, 0x04, 0x05, 0x0D, 0x10, 0x11, 0x15, 0x19, 0x24, 0xC1])
def test_unknown_admin_commands(opcode):
    target = Target()
    for queue in (target.admin(), target.discovery()):
        assert queue.command(opcode).status == Status.INVALID_OPCODE


def test_keep_alive():
    admin = Target().admin()
    assert admin.command(0x18).status == 0


def test_a_feature_that_cannot_be_changed(monkeypatch):
    from nvmeof.target.commands.rows.features import FeatureSpec, Value

    row = FeatureSpec(0x06, "fixed", lambda controller, sqe: Value(3), lambda controller, sqe: Value(3))
    monkeypatch.setitem(FEATURES, 0x06, row)
    admin = Target().admin()
    assert admin.get_feature(6).dw0 == 3 and admin.get_feature(6, 3).dw0 == 0
    assert admin.set_feature(6, 1).status == Status.FEATURE_NOT_CHANGEABLE
