"""ANA: states of groups per port, what commands do in each, the log, events, and namespaces that move."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import AnaState, Csi, NvmOpcode
from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.log_pages import parse_ana_log
from nvmeof.spec.status import Status
from nvmeof.target.commands.dispatch.base import AnaRule, NsidRule
from nvmeof.target.commands.dispatch.command_tables import CommandTables
from nvmeof.target.commands.standard import standard_tables
from nvmeof.target.storage.pools import RamdiskPool
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.ana import ANA_TRANSITION_SECONDS, AnaGroups, parse_ana_state
from nvmeof.target.subsystem.config import NamespaceConfig
from nvmeof.target.subsystem.management import NamespaceManager, Record
from nvmeof.target.subsystem.registry import PortInfo
from tests.target.harness import Pending, Target, TestQueue
from tests.target.management_tools import create

COMMANDS = standard_tables()[CommandTables]
BARRED = {
    AnaState.INACCESSIBLE: 0x302,
    AnaState.PERSISTENT_LOSS: 0x301,
    AnaState.CHANGE: 0x303,
}
STATES = [AnaState.OPTIMIZED, AnaState.NON_OPTIMIZED, *BARRED]
ANA_EVENT = 0x000C0302
ALL = 0xFFFFFFFF


def on_port(target: Target, portid: int) -> TestQueue:
    """Return an admin queue, enabled, of a host that connected through another port."""
    port = PortInfo(portid=portid, transport="tcp", trtype=3, traddr="192.0.2.9", trsvcid=str(4420 + portid))
    queue = target.queue(port)
    queue.connect()
    queue.set_property(0x14, 0x460001)
    return queue


def read(queue: TestQueue, nsid: int = 1) -> int:
    completion = queue.command(NvmOpcode.READ, length=512, nsid=nsid)
    if completion.release is not None:
        completion.release()
    assert not (completion.status and completion.dnr), "a host has to try another path"
    return completion.status


def log(queue: TestQueue, *, rgo: bool = False, length: int = 4096) -> tuple[int, Any]:
    return parse_ana_log(queue.read_bytes(queue.log_page(0x0C, length, lsp=int(rgo))))


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_of_a_port(state):
    target = Target()
    here, there = target.admin(), on_port(target, 2)
    target.subsystem.set_ana_state(state, portid=2)
    io = target.queue(there.ctx.port)
    io.connect(qid=1, cntlid=there.controller.cntlid)
    assert read(target.io(here)) == 0
    assert read(io) == BARRED.get(state, 0)
    assert log(here)[1][0].state == AnaState.OPTIMIZED and log(there)[1][0].state == state


def test_a_state_for_all_ports_holds_for_later_ones():
    target = Target()
    target.admin()
    target.subsystem.set_ana_state(AnaState.NON_OPTIMIZED)
    assert log(on_port(target, 7))[1][0].state == AnaState.NON_OPTIMIZED


def test_a_state_is_of_a_group():
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    admin = target.admin()
    io = target.io(admin)
    target.subsystem.move_namespace(2, 9)
    target.subsystem.set_ana_state(AnaState.CHANGE, 9)
    assert (read(io, 1), read(io, 2)) == (0, 0x303)
    target.subsystem.move_namespace(2, 1)
    assert read(io, 2) == 0
    target.subsystem.move_namespace(1, 9)
    assert (read(io, 1), read(io, 2)) == (0x303, 0)


def test_persistent_loss_never_ends():
    target = Target()
    target.admin()
    target.subsystem.set_ana_state(AnaState.PERSISTENT_LOSS)
    for state in set(STATES) - {AnaState.PERSISTENT_LOSS}:
        with pytest.raises(ConfigurationError, match="never ends"):
            target.subsystem.set_ana_state(state)
    target.subsystem.set_ana_state(AnaState.PERSISTENT_LOSS)
    target.subsystem.ana.forget(1)
    assert target.subsystem.ana.on(2).state(1) is AnaState.PERSISTENT_LOSS, "it was set for all ports"


def test_one_lost_port_leaves_all_ports_as_they_were():
    target = Target()
    target.admin()
    on_port(target, 2)
    target.subsystem.set_ana_state(AnaState.PERSISTENT_LOSS, portid=2)
    with pytest.raises(ConfigurationError, match="port 2"):
        target.subsystem.set_ana_state(AnaState.INACCESSIBLE)
    assert target.subsystem.ana.on(1).state(1) is AnaState.OPTIMIZED


@pytest.mark.parametrize("group", [0, 33, 0xFFFFFFFF])
def test_invalid_groups(group):
    target = Target()
    with pytest.raises(ConfigurationError, match="1 to 32"):
        target.subsystem.set_ana_state(AnaState.INACCESSIBLE, group)
    with pytest.raises(ConfigurationError, match="1 to 32"):
        target.subsystem.move_namespace(1, group)
    with pytest.raises(ConfigurationError, match="ANA group"):
        target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), anagrpid=group))
    with pytest.raises(ConfigurationError, match="no namespace 5"):
        target.subsystem.move_namespace(5, 1)


def test_words():
    assert [parse_ana_state(word) for word in ("optimized", "non-optimized", "inaccessible", "persistent-loss")] == (
        [*STATES[:2], AnaState.INACCESSIBLE, AnaState.PERSISTENT_LOSS]
    )
    with pytest.raises(ConfigurationError, match="non-optimized, inaccessible, persistent-loss, change, not 'lost'"):
        parse_ana_state("lost")


# What commands do in each state


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("opcode", sorted(COMMANDS.nvm))
def test_io_commands(opcode, state):
    """NVMe Base 8.1.1.10 exempts admin commands only; Cancel ends commands that now go elsewhere."""
    target = Target()
    queue = target.io(target.admin())
    target.subsystem.set_ana_state(state)
    length = {NvmOpcode.READ: 512, NvmOpcode.RESERVATION_REPORT: 64}.get(opcode, 0)
    data = {
        NvmOpcode.WRITE: bytes(512),
        NvmOpcode.COMPARE: bytes(512),
        NvmOpcode.DATASET_MANAGEMENT: bytes(16),
        NvmOpcode.COPY: bytes(32),
        NvmOpcode.RESERVATION_REGISTER: bytes(16),
        NvmOpcode.RESERVATION_ACQUIRE: bytes(16),
        NvmOpcode.RESERVATION_RELEASE: bytes(8),
    }.get(opcode)
    fields = {"cdw11": 1, "cdw10": 15} if opcode == NvmOpcode.RESERVATION_REPORT else {}
    completion = queue.submit(queue.sqe(opcode, data, length=length or None, nsid=1, **fields), data)
    if isinstance(completion, Pending):
        completion.close()
        assert state not in BARRED
    elif state in BARRED and opcode != NvmOpcode.CANCEL:
        assert (completion.status, completion.dnr) == (BARRED[state], False)
    else:
        assert completion.status >> 8 != 3


def test_rows_name_their_behaviour():
    by_rule: dict[AnaRule, set[str]] = {rule: set() for rule in AnaRule}
    for spec in (*COMMANDS.admin.values(), *COMMANDS.io[Csi.ZONED].values()):
        if spec.nsid not in (NsidRule.UNUSED, NsidRule.ZERO):
            by_rule[spec.ana].add(spec.name)
    assert by_rule[AnaRule.UNAFFECTED] == {"Identify", "Get Log Page", "Cancel"}
    assert by_rule[AnaRule.FIELDS] == {
        "Get Features", "Set Features", "Device Self-test", "Namespace Management", "Namespace Attachment",
    }  # fmt: skip
    assert {"Format NVM", "Get LBA Status", "Reservation Report", "Zone Append"} <= by_rule[AnaRule.ABORTED]


@pytest.mark.parametrize("nsid", [1, ALL])
@pytest.mark.parametrize("state", BARRED)
def test_admin_commands(state, nsid):
    target = Target(Ramdisk("1M"), Ramdisk("1M"), pool=RamdiskPool("4M"))
    queue = target.admin()
    target.subsystem.set_ana_state(state)
    assert queue.command(0x80, nsid=nsid).status == BARRED[state], "Format NVM"
    assert queue.command(0x14, nsid=nsid, cdw10=1).status == BARRED[state], "Device Self-test"
    assert queue.command(0x14, nsid=nsid, cdw10=0xF).status == 0, "to end one is of no namespace"
    assert queue.command(0x0D, nsid=nsid, cdw10=1).status == BARRED[state], "Namespace Management, delete"
    assert queue.log_page(2, 512, nsid=ALL).status == 0
    assert queue.command(0x14, nsid=0, cdw10=1).status == 0, "a test of the controller alone"
    assert target.io(queue).command(0, nsid=nsid).status == BARRED[state], "Flush"


def test_one_accessible_namespace_of_all_is_enough():
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    queue = target.io(target.admin())
    target.subsystem.move_namespace(2, 2)
    target.subsystem.set_ana_state(AnaState.INACCESSIBLE, 2)
    assert queue.command(0, nsid=1).status == 0 and queue.command(0, nsid=ALL).status == 0x302


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("fid", [0x05, 0x82, 0x83])
def test_features_that_are_not_available(fid, state):
    queue = Target().admin()
    queue.ctx.subsystem.set_ana_state(state)
    assert queue.get_feature(fid, nsid=1).status == BARRED.get(state, 0)
    assert queue.set_feature(fid, nsid=1).status == BARRED.get(state, 0)
    assert queue.get_feature(fid, 3, nsid=1).status == 0, "capabilities are no value of the namespace"


@pytest.mark.parametrize("state", STATES)
def test_features_that_are_available(state):
    """Features that the host sets at every connection, and namespace features that are not saved."""
    queue = Target().admin()
    queue.ctx.subsystem.set_ana_state(state)
    for nsid in (0, ALL):
        assert queue.set_feature(0x0B, 0x800, nsid=nsid).status == 0
    assert queue.get_feature(0x84, nsid=1).status == 0
    ranges = bytes([2]) + bytes(15) + (1).to_bytes(8, "little") * 2 + bytes(range(16)) + bytes(16)
    completion = queue.set_feature(0x03, data=ranges.ljust(4096, b"\0"), nsid=1)
    assert (completion.status == 0x301) == (state is AnaState.PERSISTENT_LOSS)
    saved = queue.set_feature(0x03, data=ranges.ljust(4096, b"\0"), nsid=1, save=True)
    assert saved.status == BARRED.get(state, saved.status) and (saved.status >> 8 != 3 or state in BARRED)
    assert queue.set_feature(0x84, 1, nsid=1).status == BARRED.get(state, 0), "it is always stored"


@pytest.mark.parametrize("state", STATES)
def test_identify(state):
    """Linux regards a namespace with NCAP 0 as removed: only NUSE and NVMCAP are cleared."""
    queue = Target().admin()
    queue.ctx.subsystem.set_ana_state(state)
    data = IDENTIFY_NAMESPACE.parse(queue.read_bytes(queue.identify(0, nsid=1)))
    hidden = state in (AnaState.INACCESSIBLE, AnaState.PERSISTENT_LOSS)
    assert (data.nsze, data.ncap, data.anagrpid) == (2048, 2048, 1)
    assert data.nvmcap == (0 if hidden else 1 << 20) and not (hidden and data.nuse)


# The log, events, and Identify Controller


def test_identify_controller():
    queue = Target(max_ana_groups=5).admin()
    data = IDENTIFY_CONTROLLER.parse(queue.read_bytes(queue.identify(1)))
    assert (data.anatt, data.anacap, data.anagrpmax, data.nanagrpid) == (10, 0b11111, 5, 5)


def test_the_log():
    target = Target(*(Ramdisk("1M") for _ in range(4)))
    admin = target.admin()
    for nsid, group in ((2, 7), (4, 7), (3, 3)):
        target.subsystem.move_namespace(nsid, group)
    target.subsystem.set_ana_state(AnaState.INACCESSIBLE, 7)
    changes, groups = log(admin)
    assert changes == 4
    assert [(each.grpid, each.state, each.chgcnt, each.nsids) for each in groups] == [
        (1, 1, 4, (1,)), (3, 1, 2, (3,)), (7, 3, 4, (2, 4)),
    ]  # fmt: skip
    whole = admin.read_bytes(admin.log_page(0x0C, 16 + 3 * 32 + 4 * 4))
    assert admin.read_bytes(admin.log_page(0x0C, 48, 48)) == whole[48:96], "it can be read in parts"
    changes, groups = log(admin, rgo=True, length=16 + 3 * 32)
    assert [(each.grpid, each.state, each.nsids) for each in groups] == [(1, 1, ()), (3, 1, ()), (7, 3, ())]


@pytest.mark.parametrize("state", STATES[1:])
def test_the_event_is_for_the_controllers_of_the_port(state):
    target = Target()
    here, there = target.admin(), on_port(target, 2)
    for queue in (here, there):
        queue.set_feature(0x0B, 0x900)
    waiting = [queue.submit(queue.sqe(0x0C)) for queue in (here, there)]
    target.subsystem.set_ana_state(state, portid=2)
    assert waiting[0].step() is None and waiting[1].step().dw0 == ANA_EVENT
    waiting[0].close()


def test_a_move_is_reported_as_an_ana_change_and_no_other():
    target = Target()
    admin = target.admin()
    admin.set_feature(0x0B, 0x900)
    target.subsystem.move_namespace(1, 2)
    target.subsystem.move_namespace(1, 2)
    assert admin.command(0x0C).dw0 == ANA_EVENT
    assert not any(admin.read_bytes(admin.log_page(4, 4096)))
    waiting = admin.submit(admin.sqe(0x0C))
    assert isinstance(waiting, Pending)
    waiting.close()


def test_a_lasting_change_is_logged_once(caplog):
    target = Target()
    target.admin()
    target.subsystem.set_ana_state(AnaState.CHANGE)
    with caplog.at_level(logging.WARNING):
        for now in range(5, 40):
            target.subsystem.tick(float(now))
            assert len(caplog.records) == (now >= 5 + ANA_TRANSITION_SECONDS)
    target.subsystem.set_ana_state(AnaState.OPTIMIZED)
    target.subsystem.set_ana_state(AnaState.CHANGE)
    target.subsystem.tick(100.0)
    assert len(caplog.records) == 1


# Namespaces that hosts make


def test_a_group_outlives_a_restart():
    """The group of a namespace that a host has created, as requested and as moved."""
    pool = RamdiskPool("64M")
    target = Target(pool=pool)
    queue = target.admin()
    assert [create(queue, anagrpid=group).dw0 for group in (0, 4, 5)] == [2, 3, 4]
    target.subsystem.move_namespace(4, 6)
    kept = json.loads(json.dumps(pool.metadata_store.get("namespaces")))
    assert [Record.from_json(value).anagrpid for value in kept["namespaces"]] == [1, 4, 6]
    assert "anagrpid" not in kept["namespaces"][0], "as versions before wrote it"
    manager = NamespaceManager(target.subsystem, pool)
    made = [manager._made(record, Ramdisk("1M")) for record in map(Record.from_json, kept["namespaces"])]
    assert [namespace.anagrpid for namespace in made] == [1, 4, 6]


# Everything, against a model


class AnaMachine(RuleBasedStateMachine):
    """Two ports, three namespaces, three groups: the answers of each path, and states and counts of its log."""

    def __init__(self) -> None:
        super().__init__()
        self.target = Target(*(Ramdisk("64K") for _ in range(3)))
        self.admins = {1: self.target.admin(), 2: on_port(self.target, 2)}
        self.queues = {}
        for portid, admin in self.admins.items():
            self.queues[portid] = self.target.queue(admin.ctx.port)
            self.queues[portid].connect(qid=1, cntlid=admin.controller.cntlid)
        self.states = {(port, group): AnaState.OPTIMIZED for port in (1, 2) for group in (1, 2, 3)}
        self.groups = dict.fromkeys((1, 2, 3), 1)
        self.seen = {port: log(admin) for port, admin in self.admins.items()}

    @rule(port=st.sampled_from([1, 2, None]), group=st.integers(1, 3), state=st.sampled_from(STATES))
    def transition(self, port: int | None, group: int, state: AnaState) -> None:
        ports = [1, 2] if port is None else [port]
        lost = any(self.states[each, group] is AnaState.PERSISTENT_LOSS for each in ports)
        if lost and state is not AnaState.PERSISTENT_LOSS:
            with pytest.raises(ConfigurationError):
                self.target.subsystem.set_ana_state(state, group, portid=port)
            return
        self.target.subsystem.set_ana_state(state, group, portid=port)
        for each in ports:
            self.states[each, group] = state

    @rule(nsid=st.integers(1, 3), group=st.integers(1, 3))
    def move(self, nsid: int, group: int) -> None:
        self.target.subsystem.move_namespace(nsid, group)
        self.groups[nsid] = group

    @rule(port=st.sampled_from([1, 2]))
    def reset(self, port: int) -> None:
        admin = self.admins[port]
        admin.set_property(0x14, 0x460000)
        admin.set_property(0x14, 0x460001)
        self.queues[port] = self.target.queue(admin.ctx.port)
        self.queues[port].connect(qid=1, cntlid=admin.controller.cntlid)
        self.seen[port] = log(admin)
        assert self.seen[port][0] == 0 and {each.chgcnt for each in self.seen[port][1]} == {1}

    @invariant()
    def commands(self) -> None:
        for port, queue in self.queues.items():
            for nsid, group in self.groups.items():
                assert read(queue, nsid) == BARRED.get(self.states[port, group], 0)

    @invariant()
    def logs(self) -> None:
        for port, admin in self.admins.items():
            changes, groups = log(admin)
            before, old = self.seen[port]
            known = {each.grpid: each for each in old}
            assert {nsid: each.grpid for each in groups for nsid in each.nsids} == self.groups
            for each in groups:
                assert each.state == self.states[port, each.grpid]
                was = known.get(each.grpid)
                if was is not None:
                    same = (was.state, was.nsids) == (each.state, each.nsids)
                    assert each.chgcnt >= was.chgcnt and (same or each.chgcnt > was.chgcnt)
            differs = [(each.state, each.nsids) for each in groups] != [(each.state, each.nsids) for each in old]
            assert changes >= before and (not differs or changes > before or len(groups) > len(old))
            self.seen[port] = changes, groups


AnaMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAnaMachine = AnaMachine.TestCase


def test_transitions_are_counted():
    groups = AnaGroups(3)
    assert groups.set(2, AnaState.CHANGE) and not groups.set(2, AnaState.CHANGE) and groups.set(2, AnaState.OPTIMIZED)
    assert groups.transitions == {2: 2} and groups.barred == {} and groups.states == {2: AnaState.OPTIMIZED}
    assert Status.ANA_TRANSITION == 0x303
