import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.spec.discovery import parse_discovery_entries
from nvmeof.spec.enums import DISCOVERY_NQN, Lpa
from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.log_pages import COMMANDS_SUPPORTED_AND_EFFECTS, ERROR_INFORMATION_ENTRY, SMART_HEALTH
from nvmeof.spec.properties import CC_OFFSET
from nvmeof.spec.status import Status
from nvmeof.target.controller.changes import ChangedNamespaces
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig, SubsystemConfig
from nvmeof.target.subsystem.registry import PortInfo
from nvmeof.target.subsystem.subsystem import Subsystem
from tests.target.harness import CC_ENABLE, LOG_PAGES, NQN, Target

ALL = 0xFFFFFFFF
LSI_OF = {0x09: 1}
PAGES = sorted(LOG_PAGES.keys() - {0xBF})
"""All log pages except that of zoned namespaces."""
LID, LSP, NUMDL, NSID = 40, 41, 42, 4
LSI, LPOL, OT, CSI = 46, 48, 58 | 7 << 8, 59


def last_error(admin, admins=None):
    raw = admin.read_bytes(admin.log_page(1, 64))
    return ERROR_INFORMATION_ENTRY.parse(raw)


def read(queue, lid, length, offset=0, **fields):
    lsi = LSI_OF.get(lid, 0)
    numd = length // 4 - 1
    return queue.command(
        0x02,
        length=length,
        cdw10=lid | fields.pop("lsp", 0) << 8 | fields.pop("rae", 1) << 15 | (numd & 0xFFFF) << 16,
        cdw11=numd >> 16 | fields.pop("lsi", lsi) << 16,
        cdw12=offset & 0xFFFFFFFF,
        cdw13=offset >> 32,
        **fields,
    )


# The command


@pytest.mark.parametrize(
    ("fields", "status", "location"),
    [
        ({"lid": 0x7F}, Status.INVALID_LOG_PAGE, LID),
        ({"lid": 0x70}, Status.INVALID_LOG_PAGE, LID),
        ({"lid": 0x15}, Status.INVALID_LOG_PAGE, LID),
        ({"lid": 0x03, "nsid": 1}, Status.INVALID_FIELD, NSID),
        ({"lid": 0x03, "nsid": 1025}, Status.INVALID_NAMESPACE, NSID),
        ({"lid": 0x02, "nsid": 2}, Status.INVALID_FIELD, NSID),
        ({"lid": 0x02, "nsid": 0xFFFFFFFE}, Status.INVALID_NAMESPACE, NSID),
        ({"lid": 0x03, "length": 8196}, Status.INVALID_FIELD, NUMDL),
        ({"lid": 0x03, "length": 1 << 34}, Status.INVALID_FIELD, NUMDL),
        ({"lid": 0x03, "offset": 2}, Status.INVALID_FIELD, LPOL),
        ({"lid": 0x03, "offset": 516}, Status.INVALID_FIELD, LPOL),
        ({"lid": 0x03, "offset": 1 << 32}, Status.INVALID_FIELD, LPOL),
        ({"lid": 0x03, "offset": (1 << 64) - 4}, Status.INVALID_FIELD, LPOL),
        ({"lid": 0x03, "cdw14": 1 << 23}, Status.INVALID_FIELD, OT),
        ({"lid": 0x05, "cdw14": 5 << 24}, Status.INVALID_FIELD, CSI),
        ({"lid": 0x00, "cdw14": 9 << 24}, Status.INVALID_FIELD, CSI),
        ({"lid": 0x09, "lsi": 0}, Status.INVALID_FIELD, LSI),
        ({"lid": 0x09, "lsi": 2}, Status.INVALID_FIELD, LSI),
        ({"lid": 0x07, "length": 508}, Status.INVALID_FIELD, NUMDL),
        ({"lid": 0x07, "offset": 256}, Status.INVALID_FIELD, LPOL),
        ({"lid": 0x08, "length": 516}, Status.INVALID_FIELD, NUMDL),
        ({"lid": 0x08, "offset": 4}, Status.INVALID_FIELD, LPOL),
        ({"lid": 0x08, "offset": 1024}, Status.INVALID_FIELD, LPOL),
        ({"lid": 0x07, "lsp": 0b1011}, Status.INVALID_FIELD, LSP | 1 << 8),
        ({"lid": 0x0D, "lsp": 0}, Status.COMMAND_SEQUENCE_ERROR, LSP),
    ],
)
def test_refusals(fields, status, location):
    admin = Target(max_transfer_bytes=8192).admin()
    fields = dict(fields)
    completion = read(admin, fields.pop("lid"), fields.pop("length", 512), fields.pop("offset", 0), **fields)
    assert completion.status == status
    error = last_error(admin)
    assert (error.status >> 1 & 0x7FF, error.parameter_error_location) == (status, location)
    assert (error.opcode, error.sqid, error.trtype, error.log_page_version) == (2, 0, 3, 1)


def test_fields_that_a_page_does_not_use_are_ignored():
    admin = Target().admin()
    assert read(admin, 3, 512, lsp=0x7F, lsi=0xFFFF, cdw14=0x09 << 24).status == 0
    assert read(admin, 7, 512, lsp=0b1010).status == 0, "MCDA counts only with the bit to create"


def test_csi_is_ignored_before_the_host_selects_all_command_sets():
    target = Target()
    admin = target.queue()
    admin.connect()
    admin.set_property(CC_OFFSET, CC_ENABLE & ~0x70)
    data = COMMANDS_SUPPORTED_AND_EFFECTS.parse(admin.read_bytes(read(admin, 5, 4096, cdw14=9 << 24)))
    assert data.iocs[1] & 1


def whole(queue, lid, **fields):
    """Read a page from its beginning, cut where the rest is zero."""
    return queue.read_bytes(read(queue, lid, 1 << 17, **fields))


@pytest.mark.parametrize("lid", PAGES)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_parts_put_together_are_the_page(lid, data):
    """Any offsets and lengths: each part equals the whole page there, and zeroes follow its end."""
    row = LOG_PAGES[lid]
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    queue = target.admin() if row.io else target.discovery()
    nsid = 1 if row.per_namespace else 0
    if lid == 7:
        read(queue, 7, 512, lsp=1)
    if lid == 0x0D:
        read(queue, 0x0D, 512, lsp=1)
    expected = whole(queue, lid, nsid=nsid)
    size = queue.controller and len(row.build(queue.ctx, queue.controller, _decoded(lid), nsid))
    lengths = data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=8))
    position, parts, turn = 0, b"", 0
    while position < size:
        length = lengths[turn % len(lengths)] * row.whole * (1 + size // 4096)
        turn += 1
        parts += queue.read_bytes(read(queue, lid, length, position, nsid=nsid))
        position += length
    assert parts == expected.ljust(len(parts), b"\0")[: len(parts)]


def _decoded(lid):
    from nvmeof.spec.log_pages import GetLogPage

    return GetLogPage(lid=lid, length_bytes=4, lsi=LSI_OF.get(lid, 0))


@pytest.mark.parametrize("lid", PAGES)
def test_the_end_of_a_page(lid):
    row = LOG_PAGES[lid]
    target = Target()
    queue = target.admin() if row.io else target.discovery()
    nsid = 1 if row.per_namespace else ALL
    if lid == 0x0D:
        read(queue, 0x0D, 512, lsp=1)
    size = len(row.build(queue.ctx, queue.controller, _decoded(lid), nsid))
    if size % row.whole == 0:
        assert queue.read_bytes(read(queue, lid, row.whole, size, nsid=nsid)) == bytes(row.whole)
    beyond = (size // row.whole + 1) * row.whole
    assert read(queue, lid, row.whole, beyond, nsid=nsid).status == Status.INVALID_FIELD


def test_supported_log_pages_has_the_parameters_of_each():
    target = Target()
    for queue, kind in ((target.admin(), "io"), (target.discovery(), "discovery")):
        dwords = struct.unpack("<256I", queue.read_bytes(queue.log_page(0, 1024)))
        for lid, row in LOG_PAGES.items():
            if not getattr(row, kind):
                assert dwords[lid] == 0
            else:
                assert dwords[lid] == 1 | (row.entries is not None) << 1 | row.lidsp << 16
    io = struct.unpack("<256I", target.admin().read_bytes(target.admin().log_page(0, 1024)))
    assert (io[7], io[0x0D], io[3]) == (0x10001, 0x10001, 1)


def test_log_page_attributes_are_those_of_the_pages():
    target = Target()
    data = IDENTIFY_CONTROLLER.parse(target.admin().read_bytes(target.admin().identify(1)))
    assert data.lpa == 0x7F == sum(Lpa) and data.pels == 1 and data.elpe == 63
    assert data.oaes & 1 << 10 == 0, "telemetry notices have no bit in OAES"
    discovery = target.discovery()
    data = IDENTIFY_CONTROLLER.parse(discovery.read_bytes(discovery.identify(1)))
    assert data.lpa == Lpa.EXTENDED_DATA | Lpa.SUPPORTED_LOG_PAGES | Lpa.COMMANDS_SUPPORTED_AND_EFFECTS


# Error Information


def test_errors_over_resets_and_around_the_ring():
    target = Target()
    admin = target.admin()
    for _ in range(70):
        admin.command(0xFE, nsid=3)
    admin.set_property(CC_OFFSET, CC_ENABLE & ~1)
    admin.set_property(CC_OFFSET, CC_ENABLE)
    raw = admin.read_bytes(admin.log_page(1, 64 * 64))
    counts = [ERROR_INFORMATION_ENTRY.parse(raw[at : at + 64]).error_count for at in range(0, 4096, 64)]
    assert counts == list(range(70, 6, -1))
    assert target.subsystem.lifetime.errors == 70


def test_an_entry_byte_by_byte():
    target = Target()
    admin = target.admin()
    queue = target.io(admin, 3)
    queue.command(0x02, length=512, nsid=1, cdw10=0x89ABCDEF, cdw11=0x01234567)
    raw = admin.read_bytes(admin.log_page(1, 64))
    status = (0x80 | 1 << 13 | 1 << 14) << 1
    assert raw[:8] == b"\1" + bytes(7) and raw[8:10] == b"\3\0"
    assert raw[12:14] == status.to_bytes(2, "little") and raw[14:16] == b"\x28\0"
    assert raw[16:24] == bytes.fromhex("efcdab8967452301") and raw[24:28] == b"\1\0\0\0"
    assert raw[28:32] == b"\0\3\0\2" and raw[63] == 1 and not any(raw[32:63])


def test_only_commands_with_a_logical_block_address_have_one():
    target = Target()
    admin = target.admin()
    queue = target.io(admin)
    for opcode, lba in ((0x01, 7), (0x08, 7), (0x0C, 7), (0x09, 0), (0x00, 0), (0x0E, 0)):
        queue.command(opcode, length=512, nsid=9, cdw10=7)
        assert last_error(admin).lba == lba


def test_a_connect_that_fails_is_in_the_log_of_its_controller():
    target = Target(max_io_queues=4)
    admin = target.admin()
    queue = target.queue()
    assert queue.try_connect(qid=5, cntlid=admin.controller.cntlid).status == Status.CONNECT_INVALID_PARAMETERS
    error = last_error(admin)
    assert (error.sqid, error.opcode, error.nsid) == (5, 0x7F, 0)
    assert error.parameter_error_location == 42
    stranger = target.queue()
    stranger.try_connect(qid=5, cntlid=admin.controller.cntlid, hostnqn="nqn.2026-01.org.example:x")
    assert last_error(admin).error_count == error.error_count, "another host does not write into it"


# Changed namespaces


def test_more_than_1024_changed_namespaces():
    target = Target(max_namespaces=1100)
    admin = target.admin()
    admin.controller.parts[ChangedNamespaces].update(range(1, 1025))
    data = admin.read_bytes(admin.log_page(4, 4096, rae=True))
    assert struct.unpack("<1024I", data) == tuple(range(1, 1025))
    admin.controller.parts[ChangedNamespaces].add(1025)
    data = admin.read_bytes(admin.log_page(4, 4096))
    assert data == b"\xff\xff\xff\xff" + bytes(4092)
    assert admin.read_bytes(admin.log_page(4, 4096)) == bytes(4096), "RAE = 0 empties it"


# Effects


def test_admin_commands_have_a_scope_and_io_commands_do_not():
    admin = Target().admin()
    data = COMMANDS_SUPPORTED_AND_EFFECTS.parse(admin.read_bytes(admin.log_page(5, 4096)))
    assert data.acs[0x06] == 1 | 1 << 21
    assert data.acs[0x80] >> 20 == 1 and data.acs[0x84] >> 20 == 1 << 5, "a namespace, the subsystem"
    assert all(entry >> 20 for entry in data.acs if entry)
    assert not any(entry >> 16 for entry in data.iocs)


# ANA


def test_ana_counts_changes_since_the_reset():
    from nvmeof.spec.enums import AnaState
    from nvmeof.spec.log_pages import parse_ana_log

    target = Target(Ramdisk("1M"))
    admin = target.admin()

    def counts():
        header, groups = parse_ana_log(admin.read_bytes(admin.log_page(0x0C, 64)))
        return header, groups[0].chgcnt

    assert counts() == (0, 1)
    target.subsystem.set_ana_state(AnaState.NON_OPTIMIZED)
    target.subsystem.set_ana_state(AnaState.OPTIMIZED)
    assert counts() == (2, 3)
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M")))
    assert counts() == (3, 4)
    admin.set_property(CC_OFFSET, CC_ENABLE & ~1)
    admin.set_property(CC_OFFSET, CC_ENABLE)
    assert counts() == (0, 1)


# Endurance group


def test_endurance_group():
    target = Target(Ramdisk("16M"), Ramdisk("1M"))
    admin = target.admin()
    queue = target.io(admin)
    queue.command(0x02, length=512, nsid=1)
    queue.command(0x01, bytes(512), nsid=1)
    queue.command(0x0C, nsid=1, cdw12=9)
    admin.command(0xFE)
    raw = admin.read_bytes(read(admin, 9, 512, nsid=ALL))
    assert raw[:8] == b"\0\0\0\x64\x0a\0\0\0"
    fields = {at: int.from_bytes(raw[at : at + 16], "little") for at in range(32, 192, 16)}
    assert (fields[32], fields[48], fields[64], fields[80]) == (0, 1, 1, 1), "billions of bytes, rounded up"
    assert (fields[96], fields[112], fields[128], fields[144]) == (2, 1, 0, 1)
    assert fields[160] == 17 << 20


# SMART


def test_the_smart_counters_of_each_command():
    target = Target(Ramdisk("16M"))
    admin = target.admin()
    queue = target.io(admin)

    def smart():
        data = SMART_HEALTH.parse(admin.read_bytes(admin.log_page(2, 512)))
        return data.data_units_read, data.data_units_written, data.host_read_commands, data.host_write_commands

    def blocks(count):
        return {"nsid": 1, "cdw12": count - 1}

    assert smart() == (0, 0, 0, 0)
    queue.command(0x02, length=512, **blocks(1))
    assert smart() == (1, 0, 1, 0), "one block is a unit that was begun"
    queue.command(0x02, length=512 * 999, **blocks(999))
    assert smart() == (1, 0, 2, 0)
    queue.command(0x02, length=512, **blocks(1))
    assert smart() == (2, 0, 3, 0)
    queue.command(0x05, bytes(512 * 1000), **blocks(1000))
    assert smart() == (3, 0, 4, 0), "Compare"
    queue.command(0x0C, **blocks(1000))
    assert smart() == (4, 0, 4, 0), "Verify reads data units, and is no host read command"
    queue.command(0x01, bytes(512 * 1000), **blocks(1000))
    assert smart() == (4, 1, 4, 1)
    queue.command(0x08, **blocks(2000))
    queue.command(0x04, **blocks(2000))
    queue.command(0x09, struct.pack("<IIQ", 0, 2000, 0), nsid=1, cdw11=4)
    queue.command(0x00, nsid=1)
    assert smart() == (4, 1, 4, 1), "no user data"
    queue.command(0x01, bytes(512 * 1000), **blocks(1000))
    assert queue.command(0x19, struct.pack("<8xQH14x", 0, 99), nsid=1, cdw10=5000).status == 0
    assert smart() == (4, 3, 5, 3), "Copy counts as both, but reads no data units of the host"


def test_smart_of_one_namespace_and_of_all():
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    admin = target.admin()
    queue = target.io(admin)
    queue.command(0x02, length=512, nsid=2)

    def reads(nsid):
        return SMART_HEALTH.parse(admin.read_bytes(admin.log_page(2, 512, nsid=nsid))).host_read_commands

    assert (reads(0), reads(ALL), reads(1), reads(2)) == (1, 1, 0, 1)
    target.subsystem.remove_namespace(2)
    assert reads(0) == 1, "what was done stays done"


# Discovery


@pytest.fixture
def ports():
    target = Target(admin_label="the disk in the hall")
    target.registry.add_subsystem(Subsystem(SubsystemConfig(nqn="nqn.2026-01.org.example:other")))
    target.registry.add_port(
        PortInfo(portid=2, transport="tcp", trtype=3, traddr="192.0.2.9", trsvcid="4421", discovery_only=False)
    )
    return target, target.discovery()


def test_discovery_by_index(ports):
    _, queue = ports
    page = queue.read_bytes(read(queue, 0x70, 8192))
    count = int.from_bytes(page[8:16], "little")
    assert count == 5
    for index in range(count + 1):
        part = queue.read_bytes(read(queue, 0x70, 1024, index, cdw14=1 << 23))
        assert part == page[1024 * index : 1024 * (index + 1)]
    assert read(queue, 0x70, 1024, count + 1, cdw14=1 << 23).status == Status.INVALID_FIELD
    assert read(queue, 0x70, 1024, 1 << 60, cdw14=1 << 23).status == Status.INVALID_FIELD
    odd = queue.read_bytes(read(queue, 0x70, 1024, 3, cdw14=1 << 23))
    assert odd == page[3072:4096], "an index need not be a multiple of anything"


def test_extended_entries_have_the_label(ports):
    _, queue = ports
    plain = queue.read_bytes(read(queue, 0x70, 8192))
    page = queue.read_bytes(read(queue, 0x70, 8192, lsp=1))
    assert plain[18] == 0 and page[18] == 1
    (total,) = struct.unpack_from("<I", page, 20)
    position, entries = 1024, []
    while position < total:
        (length, attributes) = struct.unpack_from("<IH", page, position + 1024)
        entries.append((page[position : position + 1024], page[position + 1032 : position + length], attributes))
        position += length
    assert position == total
    assert [entry for entry, _, _ in entries] == [plain[1024 * n : 1024 * (n + 1)] for n in range(1, 6)]
    labels = [tail for entry, tail, count in entries if count]
    assert labels == [struct.pack("<HH", 2, 20) + b"the disk in the hall"] * 2
    for index in range(6):
        part = queue.read_bytes(read(queue, 0x70, 64, index, lsp=1, cdw14=1 << 23))
        start = 0 if index == 0 else 1024 + sum(1032 + len(tail) for _, tail, _ in entries[: index - 1])
        assert part == page[start : start + 64]


def test_a_label_that_is_no_ascii():
    target = Target(admin_label="Flür")
    queue = target.discovery()
    page = queue.read_bytes(read(queue, 0x70, 8192, lsp=1))
    assert struct.pack("<HH", 3, 8) + "Flür".encode() + bytes(3) in page


def test_entries_of_the_port_only(ports):
    _, queue = ports
    page = queue.read_bytes(read(queue, 0x70, 8192, lsp=2))
    assert page[18] == 2
    found = parse_discovery_entries(page[1024 : 1024 * (1 + int.from_bytes(page[8:16], "little"))])
    assert [(entry.portid, entry.subnqn) for entry in found] == [
        (1, DISCOVERY_NQN),
        (1, NQN),
        (1, "nqn.2026-01.org.example:other"),
    ]


def test_a_host_does_not_see_subsystems_that_it_may_not_use():
    target = Target(allowed_hosts=frozenset({"nqn.2026-01.org.example:friend"}))
    queue = target.discovery()
    page = queue.read_bytes(read(queue, 0x70, 8192, lsp=4))
    assert page[18] == 0 and int.from_bytes(page[8:16], "little") == 1


def test_the_generation_reports_a_change_between_two_reads(ports):
    target, queue = ports
    before = queue.read_bytes(read(queue, 0x70, 16))
    assert queue.read_bytes(read(queue, 0x70, 16)) == before
    target.registry.remove_port(2)
    after = queue.read_bytes(read(queue, 0x70, 16))
    assert int.from_bytes(after[:8], "little") == int.from_bytes(before[:8], "little") + 1
