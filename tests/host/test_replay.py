"""The rules of replay: one by one, and together against a controller that executes late."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvmeof.errors import CommandNotExecuted, ConnectionLost, OutcomeUnknown
from nvmeof.host import sqe_builders
from nvmeof.host.replay import (
    CHANGES_BLOCKS,
    FUSED_RULE,
    LBA_END,
    RULES,
    UNKNOWN_RULE,
    ZONED_RULE,
    Extent,
    Replay,
    UnsettledWrites,
    changed_blocks,
    quiesce_seconds,
    replay_at,
    rule_of,
)
from nvmeof.spec.enums import Csi, DataTransfer, NvmOpcode
from nvmeof.spec.sqe import DSM_RANGE, SQE, DsmRange, Sqe

UNKNOWN = OutcomeUnknown("lost")
LBAS = st.integers(0, LBA_END - 1)


def test_every_io_command_has_a_rule() -> None:
    assert set(RULES) == set(NvmOpcode) - {NvmOpcode.FABRICS}


def test_commands_that_must_not_be_sent_twice_are_not() -> None:
    never = {opcode for opcode, each in RULES.items() if each.replay is Replay.NEVER}
    assert never == {
        NvmOpcode.COMPARE, NvmOpcode.COPY, NvmOpcode.CANCEL, NvmOpcode.ZONE_APPEND, NvmOpcode.ZONE_MANAGEMENT_SEND,
        NvmOpcode.RESERVATION_REGISTER, NvmOpcode.RESERVATION_ACQUIRE, NvmOpcode.RESERVATION_RELEASE,
        NvmOpcode.IO_MANAGEMENT_SEND,
    }  # fmt: skip


def test_commands_that_change_blocks_are_not_sent_again_at_once() -> None:
    for opcode in CHANGES_BLOCKS:
        assert RULES[opcode].replay is not Replay.AT_ONCE


@given(st.integers(0, 255), st.integers(0, 255), st.sampled_from(Csi), st.floats(0, 1e9))
def test_rules_by_opcode_fuse_and_command_set(opcode: int, flags: int, csi: Csi, quiesced_at: float) -> None:
    sqe = SQE.pack(Sqe(opcode=opcode, flags=flags, nsid=1))
    assert replay_at(sqe, CommandNotExecuted("not sent"), quiesced_at, csi) == -inf
    at = replay_at(sqe, UNKNOWN, quiesced_at, csi)
    if flags & 3 or opcode not in RULES:
        assert at is None
        return
    assert at in (None, -inf, quiesced_at)
    if opcode in CHANGES_BLOCKS:
        assert at in (None, quiesced_at)  # an old copy may still be executed until then
    if at == -inf:
        assert opcode & 3 != DataTransfer.HOST_TO_CONTROLLER  # a command with data for the controller has an effect
    if csi == Csi.ZONED and opcode in (NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES):
        assert at is None
    # any other loss is treated as one of unknown outcome
    assert replay_at(sqe, ConnectionLost("lost"), quiesced_at, csi) == at
    assert rule_of(sqe, csi).reason


@pytest.mark.parametrize(
    ("cqt_ms", "traffic_based", "quiesce_tmo", "seconds"),
    [
        (0, True, None, 0.0), (0, False, 7.0, 7.0), (1500, False, None, 11.5), (1500, True, None, 16.5),
        (1500, True, 0.0, 0.0), (1, False, None, 10.001),
    ],
)  # fmt: skip
def test_how_long_a_lost_controller_may_execute(
    cqt_ms: int, traffic_based: bool, quiesce_tmo: float | None, seconds: float
) -> None:
    found = quiesce_seconds(cqt_ms, 5.0, traffic_based=traffic_based, quiesce_tmo=quiesce_tmo)
    assert found == pytest.approx(seconds)


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    words = {
        Replay.AT_ONCE: "at once", Replay.QUIESCED: "when the lost controller has quiesced", Replay.NEVER: "never",
    }  # fmt: skip
    page = (Path(__file__).parents[2] / "docs" / "host-recovery.md").read_text()
    for opcode, each in RULES.items():
        title = NvmOpcode(opcode).name.replace("_", " ").title().replace("Io ", "I/O ")
        assert f"| {title} | {words[each.replay]} | {each.reason} |" in page
    for each in (FUSED_RULE, ZONED_RULE, UNKNOWN_RULE):
        assert f"| never | {each.reason} |" in page


# -- blocks


@given(LBAS, st.integers(1, 1 << 16), st.booleans())
def test_blocks_of_writes(lba: int, blocks: int, fua: bool) -> None:
    for sqe in (sqe_builders.write(3, lba, blocks, fua=fua), sqe_builders.write_zeroes(3, lba, blocks)):
        assert changed_blocks(sqe) == Extent(3, ((lba, lba + blocks),))


@given(st.lists(st.tuples(LBAS, st.integers(0, (1 << 32) - 1)), min_size=1, max_size=256))
def test_blocks_of_dataset_management(ranges: list[tuple[int, int]]) -> None:
    data = b"".join(DSM_RANGE.pack(DsmRange(length_blocks=count, slba=lba)) for lba, count in ranges)
    sqe = sqe_builders.dataset_management(1, len(ranges))
    assert changed_blocks(sqe, data) == Extent(1, tuple((lba, lba + count) for lba, count in ranges))
    # ranges that cannot be read count as all blocks
    assert changed_blocks(sqe, data[:-1]) == changed_blocks(sqe) == Extent(1, ((0, LBA_END),))


def test_blocks_of_the_others_are_never_too_few() -> None:
    def sqe(opcode: int, cdw13: int = 0) -> bytes:
        return SQE.pack(Sqe(opcode=opcode, nsid=1, cdw10=100, cdw13=cdw13))

    for opcode in (NvmOpcode.COPY, NvmOpcode.ZONE_APPEND, NvmOpcode.ZONE_MANAGEMENT_SEND):
        assert changed_blocks(sqe(opcode)) == Extent(1, ((100, LBA_END),))
    assert changed_blocks(sqe(NvmOpcode.ZONE_MANAGEMENT_SEND, 1 << 8)) == Extent(1, ((0, LBA_END),))
    for opcode in set(RULES) - CHANGES_BLOCKS:
        assert changed_blocks(sqe(opcode)) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=4), st.integers(0, 20), st.integers(1, 5))
def test_overlap_is_sharing_a_block(ranges: list[tuple[int, int]], first: int, count: int) -> None:
    one = Extent(1, tuple((start, start + length) for start, length in ranges))
    other = Extent(1, ((first, first + count),))
    blocks = {block for start, length in ranges for block in range(start, start + length)}
    assert one.overlaps(other) is other.overlaps(one) is bool(blocks & set(range(first, first + count)))
    assert not one.overlaps(Extent(2, ((0, LBA_END),)))


def test_unsettled_writes() -> None:
    unsettled = UnsettledWrites()
    assert not unsettled and unsettled.next_expiry == inf
    unsettled.add("a", Extent(1, ((0, 8),)))
    unsettled.add("b", Extent(1, ((8, 16),)), until=20.0)
    assert unsettled.blocks(Extent(1, ((7, 8),))) and unsettled.blocks(Extent(1, ((8, 9),)))
    assert not unsettled.blocks(Extent(1, ((16, 17),))) and not unsettled.blocks(None)
    assert not unsettled.blocks(Extent(1, ((0, 8),)), "a")
    assert unsettled.next_expiry == 20.0
    assert not unsettled.expire(19.9) and unsettled.expire(20.0)
    assert len(unsettled) == 1 and unsettled.next_expiry == inf
    # lost again, then given up: the later of the two times
    unsettled.add("a", Extent(1, ((0, 8),)), until=30.0)
    unsettled.add("a", Extent(1, ((0, 8),)), until=25.0)
    assert unsettled.next_expiry == 30.0
    assert unsettled.settle("a") and not unsettled.settle("a")


# -- the rules together, with a controller that executes commands of lost associations until it has quiesced


@dataclass(eq=False)
class Write:
    number: int
    extent: Extent
    sqe: bytes
    state: str = "waiting"  # waiting, sent, acknowledged, failed
    not_before: float = -inf
    copies: list[Copy] = field(default_factory=list)


@dataclass(eq=False)
class Copy:
    """One copy of a write at the controller, which may still be executed until `until`."""

    write: Write
    until: float = inf
    association: int = 0


class ReplayMachine(RuleBasedStateMachine):
    """Writes over associations that are lost; the host follows `replay_at` and `UnsettledWrites` alone.

    Checked: a block that an acknowledged write has written never shows an older write's data afterwards.
    """

    BLOCKS = 6

    @initialize(quiesce=st.sampled_from([3.0, 8.0]))
    def begin(self, quiesce: float) -> None:
        self.now = 0.0
        self.quiesce = quiesce
        self.association = 0
        self.memory = [0] * self.BLOCKS
        self.writes: list[Write] = []
        self.copies: list[Copy] = []
        self.unsettled = UnsettledWrites()

    def send_what_may_go(self) -> None:
        self.unsettled.expire(self.now)
        for write in self.writes:
            if write.state == "waiting" and write.not_before <= self.now:
                if self.unsettled.blocks(write.extent, write):
                    continue
                write.state = "sent"
                copy = Copy(write, association=self.association)
                write.copies.append(copy)
                self.copies.append(copy)

    @rule(first=st.integers(0, BLOCKS - 1), count=st.integers(1, 3))
    def issue(self, first: int, count: int) -> None:
        count = min(count, self.BLOCKS - first)
        sqe = sqe_builders.write(1, first, count)
        extent = changed_blocks(sqe)
        assert extent is not None
        # concurrent writes of the same blocks by one caller have no order: this caller waits
        if any(each.state in ("waiting", "sent") and each.extent.overlaps(extent) for each in self.writes):
            return
        self.writes.append(Write(len(self.writes) + 1, extent, sqe))
        self.send_what_may_go()

    def execute(self, copy: Copy) -> None:
        for first, end in copy.write.extent.ranges:
            for block in range(first, end):
                self.memory[block] = copy.write.number

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def the_controller_executes_one(self, data: st.DataObject) -> None:
        copy = data.draw(st.sampled_from(self.copies))
        self.copies.remove(copy)
        self.execute(copy)
        if copy.association == self.association and copy.write.state == "sent":
            copy.write.state = "acknowledged"
            self.unsettled.settle(copy.write)
            self.send_what_may_go()

    @rule(give_up=st.booleans(), executed=st.randoms(use_true_random=False))
    def lose_the_association(self, give_up: bool, executed: random.Random) -> None:
        quiesced_at = self.now + self.quiesce
        self.association += 1
        for copy in self.copies:
            copy.until = min(copy.until, quiesced_at)
        for write in self.writes:
            if write.state != "sent":
                continue
            at = replay_at(write.sqe, UNKNOWN, quiesced_at)
            assert at is not None
            if give_up and executed.random() < 0.5:
                write.state = "failed"  # such as by fast_io_fail_tmo: its caller knows that the outcome is unknown
                self.unsettled.add(write, write.extent, quiesced_at)
            else:
                write.state, write.not_before = "waiting", at
                self.unsettled.add(write, write.extent)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 9.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        # commands that the controller had not executed when it quiesced are never executed
        self.copies = [copy for copy in self.copies if copy.until > self.now]
        self.send_what_may_go()

    @invariant()
    def no_acknowledged_write_is_undone(self) -> None:
        for block in range(self.BLOCKS):
            newest = max(
                (write.number for write in self.writes
                 if write.state == "acknowledged" and block in range(*write.extent.ranges[0])),
                default=0,
            )  # fmt: skip
            assert self.memory[block] >= newest, (
                f"block {block}: {newest} was acknowledged, {self.memory[block]} is there"
            )

    def teardown(self) -> None:
        # no wait is endless
        for _ in range(4 * len(getattr(self, "writes", [])) + 4):
            self.time_passes(9.0)
            for copy in list(self.copies):
                self.copies.remove(copy)
                self.execute(copy)
                if copy.association == self.association and copy.write.state == "sent":
                    copy.write.state = "acknowledged"
                    self.unsettled.settle(copy.write)
            self.send_what_may_go()
        assert not self.unsettled and all(w.state in ("acknowledged", "failed") for w in self.writes)


ReplayMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestReplay = ReplayMachine.TestCase
