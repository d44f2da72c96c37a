"""Rows from outside: a command for each queue, a log page and a feature, seen on the wire of one target of two."""

from __future__ import annotations

import pytest

from nvmeof.spec.enums import CommandEffects, Csi, NvmOpcode
from nvmeof.spec.log_pages import ERROR_INFORMATION_ENTRY
from nvmeof.spec.status import Status
from nvmeof.target.commands.dispatch.base import Access, CommandRow, Completion, Direction, NsidRule
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.rows.features import dword
from nvmeof.target.commands.rows.log_pages import LogPageSpec
from nvmeof.target.commands.rows.rows import Rows
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.conformance.rawhost import RawHost, association, make_sqe, running
from tests.target.harness import Target

PING, SUM, PAGE, FEATURE = 0xC0, 0x91, 0xC1, 0xD5


def ping(ctx, sqe, data):
    return Completion(dw0=sqe.cdw10 + 1)


def check_sum(ctx, sqe):
    ctx.namespaces[sqe.nsid].check_range(sqe.slba, 1)


def sum_of(ctx, sqe, data):
    return Completion(dw0=sum(data))


ROWS = Rows(
    admin=(CommandRow(opcode=PING, name="Ping", handler=ping),),
    io={
        Csi.NVM: (
            CommandRow(
                opcode=SUM,
                name="Sum",
                handler=sum_of,
                check=check_sum,
                direction=Direction.HOST_TO_CONTROLLER,
                transfer_bytes=lambda ctx, sqe: 8,
                nsid=NsidRule.ACTIVE,
                access=Access.WRITE,
                lba_in_cdw10=True,
            ),
        )
    },
    log_pages=(LogPageSpec(PAGE, "Fortune", lambda ctx, controller, command, nsid: b"fortune!", during_sanitize=True),),
    features=(dword(FEATURE, "Mood", 0xF, 3, saveable=True),),
)


@pytest.fixture(autouse=True)
def left_open():
    yield
    RawHost.close_all()


async def outcomes(target):
    """Return the outcome of each of the four commands for a host: (status, DW0, data)."""
    admin, io = await association(target)
    answers = [
        await admin.call(make_sqe(1, PING, cdw10=41)),
        await io.call(make_sqe(2, SUM, nsid=1, length=8, sgl=0x01), bytes(range(8))),
        await admin.call(make_sqe(3, 0x02, length=8, cdw10=PAGE | 1 << 16)),
        await admin.call(make_sqe(4, 0x0A, cdw10=FEATURE)),
    ]
    return [(answer.status, answer.dw0, answer.data) for answer in answers]


async def test_rows_from_outside_on_the_wire_of_one_target_of_two():
    with_rows = {"namespaces": [Ramdisk("1M")], "tables": standard_tables(ROWS)}
    async with running(**with_rows) as target, running(namespaces=[Ramdisk("1M")]) as other:
        assert await outcomes(target) == [(0, 42, b""), (0, 28, b""), (0, 0, b"fortune!"), (0, 3, b"")]
        assert [status for status, _, _ in await outcomes(other)] == [
            Status.INVALID_OPCODE,
            Status.INVALID_OPCODE,
            Status.INVALID_LOG_PAGE,
            Status.INVALID_FIELD,
        ]


def test_the_logs_and_the_checks_include_them():
    target = Target(tables=standard_tables(ROWS))
    admin = target.admin()
    io = target.io(admin)
    effects = admin.read_bytes(admin.log_page(0x05, 4096))
    assert int.from_bytes(effects[PING * 4 :][:4], "little") == (
        CommandEffects.SUPPORTED | CommandEffects.CONTROLLER_SCOPE
    )
    assert effects[1024 + SUM * 4] & 1
    assert admin.read_bytes(admin.log_page(0x00, 1024))[PAGE * 4] & 1
    assert admin.read_bytes(admin.log_page(0x12, 1024))[FEATURE * 4] & 1
    # The entry of a refusal in the Error Information log has the logical block, as the row says.
    assert io.command(SUM, bytes(8), nsid=1, cdw10=5000).status == Status.LBA_OUT_OF_RANGE
    entry = ERROR_INFORMATION_ENTRY.parse(admin.read_bytes(admin.log_page(0x01, 64)))
    assert (entry.lba, entry.opcode) == (5000, SUM)
    assert admin.set_feature(FEATURE, 0x10).status == Status.INVALID_FIELD
    assert admin.set_feature(FEATURE, 7, save=True).status == 0 and admin.get_feature(FEATURE, 2).dw0 == 7
    # The admission checks of data apply to these commands too.
    target.subsystem.namespaces[1].block_access(Status.FORMAT_IN_PROGRESS)
    assert io.command(SUM, bytes(8), nsid=1).status == Status.FORMAT_IN_PROGRESS
    assert admin.command(PING).status == 0
    assert admin.command(0x84, cdw10=2).status == Status.FORMAT_IN_PROGRESS


def test_a_command_of_every_io_command_set():
    commands = standard_tables(ROWS)[CommandTables]
    assert SUM in commands.io[Csi.ZONED] and SUM not in commands.beside_nvm(Csi.ZONED)


class Reads:
    """The state of a controller that the page below has."""

    def __init__(self):
        self.count = 0

    def reset(self):
        self.count = 0


def count_reads(ctx, controller, command, nsid):
    reads = controller.parts[Reads]
    reads.count += 1
    return bytes([reads.count, 0, 0, 0])


def test_a_page_with_state_of_its_own():
    target = Target(tables=standard_tables(Rows(log_pages=(LogPageSpec(PAGE, "Reads", count_reads),))))
    admin, other = target.admin(), target.admin()
    assert [admin.read_bytes(admin.log_page(PAGE, 4))[0] for _ in range(3)] == [1, 2, 3]
    assert other.read_bytes(other.log_page(PAGE, 4))[0] == 1
    admin.set_property(0x14, 0x460060)
    admin.set_property(0x14, 0x460061)
    assert admin.read_bytes(admin.log_page(PAGE, 4))[0] == 1


def test_two_rows_for_one_command():
    with pytest.raises(ValueError, match="Ping: opcode C0h has a row already"):
        standard_tables(ROWS, Rows(admin=ROWS.admin))
    here = CommandRow(opcode=SUM, name="Sum", handler=sum_of, offered=lambda subsystem: False)
    with pytest.raises(ValueError, match="Sum: an I/O command cannot depend on the subsystem"):
        standard_tables(Rows(io={Csi.NVM: (here,)}))
    twice = Rows(io={Csi.ZONED: (CommandRow(opcode=NvmOpcode.READ, name="Read", handler=ping),)})
    with pytest.raises(ValueError, match="Read: opcode 02h has a row already"):
        standard_tables(twice)
