"""Reservations by commands of several hosts: conflicts, statuses, reports, any sequence."""

import struct
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvmeof.errors import CommandError
from nvmeof.spec.enums import AdminOpcode, NvmOpcode
from nvmeof.spec.reservations import RegisterAction, ReservationType
from nvmeof.spec.sqe import COPY_RANGE, SQE, CopyRange
from nvmeof.spec.status import Status
from nvmeof.target.commands.reservations.reservation_gate import gate
from nvmeof.target.namespaces.reservations import Group
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.commands.test_nvm import last_error
from tests.target.harness import ADMIN, IN_CAPSULE, NVM, ZNS, Pending, Target
from tests.target.reservation_hosts import ACQUIRE, KEYS, REGISTER, RELEASE, REPORT, Host, hostid, kinds, reserved
from tests.target.reservation_model import BEHAVIOR, COLUMNS, EA, EAAR, WE, WEAR, WERO, Model
from tests.target.zone_tools import BLOCK, ZONE, append, receive, send

CONFLICT, INVALID = Status.RESERVATION_CONFLICT, Status.INVALID_FIELD
CDW10, DATA, OPCODE = SQE.error_location("cdw10"), SQE.error_location("sgl_address"), SQE.error_location("opcode")
REGISTRATION_PREEMPTED, RELEASED, PREEMPTED = 1, 2, 3

IO_GROUPS = {
    NvmOpcode.FLUSH: "write",
    NvmOpcode.WRITE: "write",
    NvmOpcode.READ: "read",
    NvmOpcode.WRITE_UNCORRECTABLE: "write",
    NvmOpcode.COMPARE: "read",
    NvmOpcode.WRITE_ZEROES: "write",
    NvmOpcode.DATASET_MANAGEMENT: "write",
    NvmOpcode.VERIFY: "read",
    NvmOpcode.COPY: "write",
    NvmOpcode.CANCEL: "other",
    NvmOpcode.ZONE_MANAGEMENT_SEND: "write",
    NvmOpcode.ZONE_MANAGEMENT_RECEIVE: "read",
    NvmOpcode.ZONE_APPEND: "write",
    NvmOpcode.RESERVATION_REGISTER: "other",
    NvmOpcode.RESERVATION_REPORT: "other",
    # These are refused depending on keys: they have separate tests.
    NvmOpcode.RESERVATION_ACQUIRE: "other",
    NvmOpcode.RESERVATION_RELEASE: "other",
}
ADMIN_GROUPS = {
    AdminOpcode.CAPACITY_MANAGEMENT: "write",
    AdminOpcode.FORMAT_NVM: "write",
    AdminOpcode.NAMESPACE_ATTACHMENT: "write",
    AdminOpcode.NAMESPACE_MANAGEMENT: "write",
    AdminOpcode.SANITIZE: "write",
    AdminOpcode.SECURITY_SEND: "write",
    AdminOpcode.SECURITY_RECEIVE: "read",
}


def expected(rtype: int, group: str, number: int) -> str:
    if number == 0 or (number == 1 and rtype in (WEAR, EAAR)):
        return "A"
    return BEHAVIOR[group][COLUMNS[rtype] + (number == 1)]


def blocked_status(queue, opcode: int, nsid: int) -> bool:
    """Return the status with which the admission check refuses a command, if it does."""
    spec = ({**NVM, **ZNS} if queue.ctx.qid else ADMIN)[opcode]
    try:
        gate(queue.ctx, spec, queue.sqe(opcode, nsid=nsid))
    except CommandError as error:
        assert (error.status, error.error_location, error.dnr) == (CONFLICT, OPCODE, True)
        return True
    return False


@pytest.mark.parametrize("rtype", ReservationType)
def test_every_command_in_every_cell(rtype):
    hosts = reserved(rtype)
    for host in hosts:
        for opcode in (*NVM, *ZNS):
            group = IO_GROUPS[opcode]  # a new command needs its reservation group here
            assert blocked_status(host.io, opcode, 1) == (expected(rtype, group, host.number) == "C"), NvmOpcode(
                opcode
            ).name
        for opcode in ADMIN:
            group = ADMIN_GROUPS.get(opcode, "other")
            conflict = expected(rtype, group, host.number) == "C"
            assert blocked_status(host.admin, opcode, 1) == conflict, AdminOpcode(opcode).name


@pytest.mark.parametrize("rtype", ReservationType)
def test_data_commands_are_refused_and_admitted(rtype):
    hosts = reserved(rtype)
    for host in hosts:
        assert host.read() == (CONFLICT if expected(rtype, "read", host.number) == "C" else 0)
        assert host.write() == (CONFLICT if expected(rtype, "write", host.number) == "C" else 0)
    assert hosts[0].release(rtype, KEYS[0]).status == 0
    assert [host.write() for host in hosts] == [0, 0, 0]


@pytest.mark.parametrize("rtype", ReservationType)
def test_reservation_commands_in_every_cell(rtype):
    """The host uses its right key, where it has one."""
    for number in range(3):
        for group, act in (
            ("acquire", lambda host: host.acquire(rtype, KEYS[host.number])),
            ("preempt", lambda host: host.preempt(rtype, KEYS[host.number], KEYS[0])),
            ("preempt and abort", lambda host: host.preempt(rtype, KEYS[host.number], KEYS[0], abort=True)),
            ("release", lambda host: host.release(rtype, KEYS[host.number])),
            ("other", lambda host: host.register(KEYS[host.number])),
            ("other", lambda host: host.report_bytes(64)),
        ):
            host = reserved(rtype)[number]
            assert act(host).status == (CONFLICT if expected(rtype, group, number) == "C" else 0), (group, number)


@pytest.mark.parametrize("rtype", ReservationType)
def test_a_zoned_namespace(rtype):
    target = Target()
    geometry = ZoneGeometry(zone_bytes=ZONE * BLOCK)
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), zoned=geometry))
    hosts = [Host(target, number) for number in range(3)]
    for host in hosts[:2]:
        assert host.register(KEYS[host.number], nsid=2).status == 0
    assert hosts[0].acquire(rtype, KEYS[0], nsid=2).status == 0
    for host in hosts:
        for group, act in (
            ("write", lambda host: append(host.io, 0, bytes(BLOCK))),
            ("write", lambda host: send(host.io, 3, ZONE)),  # open
            ("write", lambda host: send(host.io, 4, ZONE)),  # reset
            ("read", lambda host: receive(host.io, 0, 128, partial=True)),
        ):
            conflict = expected(rtype, group, host.number) == "C"
            assert act(host).status == (CONFLICT if conflict else 0)
            assert not conflict or last_error(host.io).error_location == OPCODE
    assert hosts[0].clear(KEYS[0], nsid=2).status == 0


def test_a_command_for_all_namespaces():
    """One namespace that is reserved for another host is a conflict; Sanitize is always for all."""
    hosts = reserved(WE, Ramdisk("1M"), Ramdisk("1M"))
    flush, everything = hosts[2].io, 0xFFFFFFFF
    assert blocked_status(flush, NvmOpcode.FLUSH, everything)
    assert not blocked_status(flush, NvmOpcode.FLUSH, 2)
    assert not blocked_status(hosts[0].io, NvmOpcode.FLUSH, everything)
    hosts[2].io.controller.detach(1)
    assert not blocked_status(flush, NvmOpcode.FLUSH, everything)  # of what is attached
    for rtype in (WE, EA):
        hosts = reserved(rtype, Ramdisk("1M"), Ramdisk("1M"))
        hosts[2].admin.controller.detach(1)
        for opcode, group in ADMIN_GROUPS.items():
            row = ADMIN.get(opcode)
            if row is None:  # one that does not exist
                row = replace(
                    ADMIN[AdminOpcode.ABORT], opcode=opcode, reservation=Group.READ if group == "read" else Group.WRITE
                )
            for nsid in (everything, 1, 2, 0):
                concerned = nsid in (everything, 1) or opcode == AdminOpcode.SANITIZE
                conflict = concerned and expected(rtype, group, 2) == "C"
                sqe = hosts[2].admin.sqe(opcode, nsid=nsid)
                if conflict:
                    with pytest.raises(CommandError) as caught:
                        gate(hosts[2].admin.ctx, row, sqe)
                    assert (caught.value.status, caught.value.error_location) == (CONFLICT, OPCODE)
                else:
                    gate(hosts[2].admin.ctx, row, sqe)
                gate(hosts[0].admin.ctx, row, sqe)
    flush = reserved(WE, Ramdisk("1M"), Ramdisk("1M"))[2].io
    assert flush.command(NvmOpcode.FLUSH, nsid=everything).status == CONFLICT
    assert flush.command(NvmOpcode.FLUSH, nsid=2).status == 0


@pytest.mark.parametrize("rtype", [WE, EA])
def test_copies_from_other_namespaces(rtype):
    """A source is checked as for a Read, the destination as for a Write."""
    hosts = reserved(rtype, Ramdisk("1M"), Ramdisk("1M"))
    for host in hosts:
        behavior = bytearray(512)
        behavior[4] = 1 << 2  # descriptors of format 2h
        assert host.admin.command(0x09, bytes(behavior), cdw10=0x16).status == 0
        for source, destination in ((1, 2), (2, 1)):
            data = COPY_RANGE.pack(CopyRange(snsid=source, nlb=0))
            completion = host.io.submit(host.io.sqe(0x19, data, nsid=destination, cdw12=2 << 8), data)
            if isinstance(completion, Pending):
                assert completion.completion is not None
                completion = completion.completion
            group = "read" if source == 1 else "write"
            assert completion.status == (CONFLICT if expected(rtype, group, host.number) == "C" else 0)


def test_admission_tokens_are_withdrawn():
    hosts = [Host(Target(), number) for number in range(1)]
    namespace = hosts[0].target.subsystem.namespaces[1]
    controller = hosts[0].io.controller

    def withdrawn(act) -> bool:
        admission_token = controller.namespaces.admission_token(namespace)
        assert act().status == 0
        return not admission_token.valid

    assert withdrawn(lambda: hosts[0].register(1))
    assert withdrawn(lambda: hosts[0].acquire(WE, 1))
    assert withdrawn(lambda: hosts[0].preempt(EA, 1, 1))
    assert withdrawn(lambda: hosts[0].release(EA, 1))
    assert withdrawn(lambda: hosts[0].clear(1))
    assert not withdrawn(lambda: hosts[0].report_bytes(64))


def test_controllers_of_one_host_are_one_registrant():
    hosts = reserved(EA)
    _, other = hosts[0].connect()
    assert other.command(0x01, bytes(512), nsid=1).status == 0
    assert other.command(RELEASE, struct.pack("<Q", KEYS[0]), nsid=1, cdw10=EA << 8).status == 0
    assert len(hosts[0].report().registrants) == 2


# Statuses with their places


@pytest.mark.parametrize(
    ("opcode", "cdw10", "status", "location"),
    [
        *[(REGISTER, action, INVALID, CDW10) for action in range(3, 8)],
        (REGISTER, 1 << 30, INVALID, SQE.error_location("cdw10", 30)),
        *[(ACQUIRE, action | WE << 8, INVALID, CDW10) for action in range(3, 8)],
        *[(ACQUIRE, rtype << 8, INVALID, SQE.error_location("cdw10", 8)) for rtype in (0, 7, 0xFF)],
        *[(ACQUIRE, action | 0 << 8, INVALID, SQE.error_location("cdw10", 8)) for action in (1, 2)],
        (ACQUIRE, 1 << 3 | WE << 8, INVALID, SQE.error_location("cdw10", 3)),
        *[(RELEASE, action, INVALID, CDW10) for action in range(2, 8)],
        *[(RELEASE, rtype << 8, INVALID, SQE.error_location("cdw10", 8)) for rtype in (0, 7, 0xFF)],
        (RELEASE, 1 << 3 | WE << 8, INVALID, SQE.error_location("cdw10", 3)),
        (RELEASE, 1 | 1 << 3, INVALID, SQE.error_location("cdw10", 3)),
        (RELEASE, EA << 8, INVALID, SQE.error_location("cdw10", 8)),
        # bits without a meaning for these namespaces
        (REGISTER, 1 << 4 | 1 << 29, 0, 0),
        (ACQUIRE, 1 << 4 | 1 << 31 | WE << 8, 0, 0),
        (RELEASE, 1 << 4 | 1 << 31 | WE << 8, 0, 0),
        (RELEASE, 1 | 0xFF << 8, 0, 0),
    ],
)
def test_fields(opcode, cdw10, status, location):
    host = reserved(WE)[0]
    data = struct.pack("<QQ", KEYS[0], KEYS[0])[: 8 if opcode == RELEASE else 16]
    completion = host.io.command(opcode, data, nsid=1, cdw10=cdw10)
    assert completion.status == status
    if status:
        assert (completion.dnr, completion.more) == (True, True)
        assert last_error(host.io).error_location == location


def test_wrong_keys():
    hosts = reserved(WE)

    def refused(host: Host, completion) -> tuple[int, int]:
        return completion.status, last_error(host.io).error_location

    one, two, three = hosts
    assert refused(one, one.register(7)) == (CONFLICT, DATA)
    assert refused(one, one.register(7, action=RegisterAction.REPLACE, crkey=8)) == (CONFLICT, DATA)
    assert refused(one, one.register(action=RegisterAction.UNREGISTER, crkey=8)) == (CONFLICT, DATA)
    assert refused(three, three.register(action=RegisterAction.UNREGISTER, crkey=8)) == (CONFLICT, OPCODE)
    assert refused(two, two.acquire(WE, 0)) == (CONFLICT, DATA)
    assert refused(two, two.acquire(WE, KEYS[1])) == (CONFLICT, OPCODE)
    assert refused(three, three.acquire(WE, KEYS[2])) == (CONFLICT, OPCODE)
    assert refused(two, two.preempt(WE, KEYS[1], 0)) == (INVALID, DATA)
    assert refused(two, two.release(WE, 1)) == (CONFLICT, DATA)
    assert refused(two, two.clear(1)) == (CONFLICT, DATA)
    assert one.report().generation == 2
    hosts = reserved(WEAR)
    assert refused(hosts[1], hosts[1].preempt(WE, KEYS[1], 99)) == (CONFLICT, DATA)
    assert one.register(action=RegisterAction.UNREGISTER, ignore=True).status == 0
    assert three.register(5, action=RegisterAction.REPLACE, ignore=True).status == 0
    assert {item.key for item in one.report().registrants} == {KEYS[1], 5}


def test_a_host_without_an_identifier():
    target = Target()
    host = Host(target, -1)
    assert host.hostid == bytes(16)
    for completion in (host.register(1), host.acquire(WE, 1), host.release(WE, 1), host.report_bytes(64)):
        assert (completion.status, completion.dnr) == (Status.HOST_ID_NOT_INITIALIZED, True)
    assert Host(target, 0).report().count == 0
    assert host.write() == 0


@pytest.mark.parametrize("opcode", [REGISTER, ACQUIRE, RELEASE])
def test_data_lengths(opcode):
    host = reserved(WE)[0]
    cdw10 = WE << 8 if opcode != REGISTER else 0
    whole = struct.pack("<QQ", KEYS[0], KEYS[0])[: 8 if opcode == RELEASE else 16]
    for length, status in ((len(whole) - 1, Status.DATA_SGL_LENGTH_INVALID), (len(whole) + 8, 0), (4096, 0)):
        data = whole[:length].ljust(length, b"\0")
        completion = host.io.command(opcode, data, nsid=1, cdw10=cdw10)
        assert completion.status == status
        if status:
            assert last_error(host.io).error_location == SQE.error_location("sgl_length")
    assert host.io.command(opcode, bytes(4097), nsid=1, cdw10=cdw10).status == Status.DATA_SGL_LENGTH_INVALID
    assert host.io.command(opcode, whole, nsid=1, cdw10=cdw10, sgl_type=IN_CAPSULE).status == 0


@pytest.mark.parametrize("opcode", [REGISTER, ACQUIRE, RELEASE, REPORT])
@pytest.mark.parametrize(
    ("nsid", "status"),
    [
        (0, Status.INVALID_NAMESPACE),
        (2, Status.INVALID_FIELD),
        (1025, Status.INVALID_NAMESPACE),
        (0xFFFFFFFF, Status.INVALID_FIELD),
    ],
)
def test_namespaces(opcode, nsid, status):
    host = Host(Target(), 0)
    assert host.io.command(opcode, bytes(16), nsid=nsid, cdw11=1, cdw10=3).status == status
    assert last_error(host.io).error_location == SQE.error_location("nsid")


# Reports


def test_report():
    hosts = reserved(WERO)
    assert hosts[0].io.controller is not None and hosts[1].io.controller is not None
    report = hosts[2].report()
    assert (report.generation, report.rtype, report.persistent, report.count) == (2, WERO, False, 2)
    expected = [(hostid(0), KEYS[0], True, 0xFFFF), (hostid(1), KEYS[1], False, 0xFFFF)]
    assert [(item.hostid, item.key, item.holder, item.cntlid) for item in report.registrants] == expected
    hosts[0].connect()
    hosts[1].io.controller.destroy("gone")
    report = hosts[2].report()
    assert [(item.hostid, item.key, item.holder, item.cntlid) for item in report.registrants] == expected, (
        "one entry per host, whatever controllers it has"
    )


def test_report_of_all_registrants():
    assert [item.holder for item in reserved(EAAR)[2].report().registrants] == [True, True]


def test_report_lengths():
    host = reserved(WE)[0]
    whole = host.io.read_bytes(host.report_bytes(64 + 2 * 64))
    for length in [*range(4, 64 + 2 * 64 + 40, 4), 4096, 1 << 20]:
        assert host.io.read_bytes(host.report_bytes(length)) == whole[:length].ljust(length, b"\0")
    assert host.report_bytes((1 << 20) + 4).status == INVALID
    assert last_error(host.io).error_location == CDW10
    sqe = host.io.sqe(REPORT, length=64, nsid=1, cdw10=31, cdw11=1)
    assert host.io.run(sqe).status == Status.DATA_SGL_LENGTH_INVALID


def test_report_for_identifiers_of_64_bits():
    host = reserved(WE)[0]
    for cdw11 in (0, 2):
        assert host.report_bytes(64, cdw11=cdw11).status == Status.HOST_ID_INCONSISTENT_FORMAT
        assert last_error(host.io).error_location == SQE.error_location("cdw11")


class Commands(RuleBasedStateMachine):
    """Any sequence of commands of three hosts, one with two controllers, against the model."""

    numbers = st.sampled_from(range(3))
    keys = st.sampled_from(range(3))
    types = st.sampled_from([int(rtype) for rtype in ReservationType])

    def __init__(self) -> None:
        super().__init__()
        target = Target()
        self.hosts = [Host(target, number) for number in range(3)]
        self.second_admin, _ = self.hosts[0].connect()
        self.model = Model()

    def compare(self, status: int, completion) -> None:
        assert completion.status == status
        told, self.model.notified = self.model.notified, []
        for host in self.hosts:
            wanted = sorted(kind for kind, other in told if other == host.number)
            assert sorted(kinds(host)) == wanted
            if host.number == 0:
                assert sorted(kinds(host, self.second_admin)) == wanted

    def key(self, number: int) -> int:
        return self.model.keys.get(number, 1)

    @rule(number=numbers, key=keys)
    def register(self, number, key):
        self.compare(self.model.register(number, key), self.hosts[number].register(key))

    @rule(number=numbers, crkey=keys, key=keys, ignore=st.booleans())
    def replace(self, number, crkey, key, ignore):
        completion = self.hosts[number].register(key, action=RegisterAction.REPLACE, crkey=crkey, ignore=ignore)
        self.compare(self.model.replace(number, crkey, key, ignore), completion)

    @rule(number=numbers, crkey=keys, ignore=st.booleans())
    def unregister(self, number, crkey, ignore):
        completion = self.hosts[number].register(action=RegisterAction.UNREGISTER, crkey=crkey, ignore=ignore)
        self.compare(self.model.unregister(number, crkey, ignore), completion)

    @rule(number=numbers, rtype=types)
    def acquire(self, number, rtype):
        key = self.key(number)
        self.compare(self.model.acquire(number, key, rtype), self.hosts[number].acquire(rtype, key))

    @rule(number=numbers, prkey=keys, rtype=types, abort=st.booleans())
    def preempt(self, number, prkey, rtype, abort):
        key = self.key(number)
        status = self.model.preempt(number, key, prkey, rtype)
        self.compare(status, self.hosts[number].preempt(rtype, key, prkey, abort=abort))

    @rule(number=numbers, rtype=types)
    def release(self, number, rtype):
        rtype = self.model.type or rtype
        key = self.key(number)
        self.compare(self.model.release(number, key, rtype), self.hosts[number].release(rtype, key))

    @rule(number=numbers, crkey=keys)
    def clear(self, number, crkey):
        self.compare(self.model.clear(number, crkey), self.hosts[number].clear(crkey))

    @invariant()
    def same(self) -> None:
        report = self.hosts[2].report()
        assert (report.generation, report.rtype) == (self.model.generation, self.model.type)
        assert {item.hostid[0] - 1: (item.key, item.holder) for item in report.registrants} == {
            number: (key, number in self.model.holders) for number, key in self.model.keys.items()
        }
        for host in self.hosts:
            assert host.read() == (CONFLICT if self.model.behavior(host.number, "read") == "C" else 0)
            assert host.write() == (CONFLICT if self.model.behavior(host.number, "write") == "C" else 0)


TestCommands = Commands.TestCase
TestCommands.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
