import errno
import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvmeof.spec.enums import AdminOpcode, LogPageId, NvmOpcode
from nvmeof.spec.media import SanitizeCommand
from nvmeof.spec.status import Status
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from nvmeof.target.subsystem.sanitize import SanitizeState
from tests.target.commands.test_nvm import read, write
from tests.target.harness import ADMIN, NVM, Pending, Target
from tests.target.media_tools import (
    Durable,
    Flawed,
    error,
    kept,
    location,
    sanitize_log,
    submit,
)

SANITIZE = 0x84
BLOCK_ERASE, OVERWRITE, EXIT, AUSE = 2, 3, 1, 8


def start(target, admin, cdw10=BLOCK_ERASE, cdw11=0):
    return submit(target, admin, SANITIZE, cdw10=cdw10, cdw11=cdw11)


def broken_target(ause=False):
    """Return a target whose last sanitize operation has failed."""
    backend = Flawed("1M")
    target = Target(backend)
    admin = target.admin()
    backend.fails["write_zeroes"] = error()
    assert start(target, admin, BLOCK_ERASE | (AUSE if ause else 0)).status == 0
    target.runtime.settle()
    return target, admin, backend


# Effects


@pytest.mark.parametrize("cdw10", [BLOCK_ERASE, OVERWRITE | 1 << 4, OVERWRITE | 2 << 4 | 1 << 8])
def test_everything_is_erased(cdw10):
    target = Target(Ramdisk("1M"), Ramdisk("1M", block_bytes=4096))
    admin = target.admin()
    io = target.io(admin)
    assert sanitize_log(admin).sstat == 0
    write(io, 5, b"x" * 512)
    write(io, 200, b"y" * 4096, 4096, nsid=2)
    assert io.command(0x04, nsid=1, cdw10=9, cdw12=0).status == 0
    target.runtime.settle()
    assert start(target, admin, cdw10, 0x12345678).status == 0
    log = sanitize_log(admin)
    assert (log.sprog < 0xFFFF, log.sstat & 7, log.scdw10, log.ssi) == (True, 2, cdw10, 1)
    target.runtime.settle()
    log = sanitize_log(admin)
    passes = cdw10 >> 4 & 0xF
    assert (log.sprog, log.sstat, log.scdw10, log.ssi) == (0xFFFF, 1 | passes << 3 | 1 << 8, cdw10, 0)
    assert not any(io.read_bytes(read(io, 0, 2048)))
    assert not any(io.read_bytes(read(io, 0, 256, 4096, nsid=2)))


def test_the_log_page():
    log = sanitize_log(Target().admin())
    assert (log.sprog, log.sstat, log.scdw10, log.eto, log.etbe) == (0xFFFF, 0, 0, 16, 1)
    assert {log.etce, log.etond, log.etbend, log.etcend, log.etpvds} == {0xFFFFFFFF}


@pytest.mark.parametrize("passes", range(1, 17))
def test_patterns(passes):
    plain = SanitizeCommand.decode(3 | (passes & 15) << 4, 0x0F0E0D0C).patterns
    inverted = SanitizeCommand.decode(3 | (passes & 15) << 4 | 1 << 8, 0x0F0E0D0C).patterns
    pattern, other = b"\x0c\x0d\x0e\x0f", b"\xf3\xf2\xf1\xf0"
    assert plain == [pattern] * passes
    assert inverted[0] == (pattern if passes % 2 else other) and inverted[-1] == pattern
    assert all(a != b for a, b in itertools.pairwise(inverted))


def test_every_pass_writes_its_pattern():
    class AbortableAwait(Ramdisk):
        seen: list[bytes] = []

        def flush(self):
            self.seen.append(bytes(self.memory[:8]))

    target = Target(AbortableAwait("1M"))
    admin = target.admin()
    write(target.io(admin), 0, b"x" * 512)
    start(target, admin, OVERWRITE | 2 << 4 | 1 << 8, 0x01020304)
    target.runtime.settle()
    pattern = bytes([4, 3, 2, 1] * 2)
    assert AbortableAwait.seen == [bytes(byte ^ 0xFF for byte in pattern), pattern, bytes(8)]


def test_overwrite_keeps_a_sparse_disk_sparse():
    backend = Ramdisk("1G")
    target = Target(backend)
    admin = target.admin()
    write(target.io(admin), 1000000, b"x" * 512)
    start(target, admin, OVERWRITE | 1 << 4)
    while target.subsystem.sanitizer.state.processing:
        assert sum(end - begin for begin, end in backend.allocated(0, 1 << 30)) <= 4 << 20
        target.runtime.turn()
    assert backend.allocated(0, 1 << 30) == []


def test_progress_grows():
    target = Target(Ramdisk("512M"))
    admin = target.admin()
    start(target, admin)
    seen = [sanitize_log(admin).sprog]
    while target.subsystem.sanitizer.state.processing:
        target.runtime.turn()
        seen.append(sanitize_log(admin).sprog)
    assert seen == sorted(seen) and len(set(seen)) >= 8 and seen[-1] == 0xFFFF


@pytest.mark.parametrize("opcode", [0x01, 0x08, 0x09, 0x04])
def test_global_data_erased_until_a_write(opcode):
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    start(target, admin)
    target.runtime.settle()
    assert read(io, 0, 1).status == 0
    assert sanitize_log(admin).sstat >> 8 == 1
    data = {0x01: bytes(512), 0x09: bytes(16)}.get(opcode)
    assert io.command(opcode, data, nsid=1, cdw11=4 if opcode == 9 else 0, cdw12=0).status == 0
    assert sanitize_log(admin).sstat >> 8 == 0


def test_the_fast_path_ends_with_a_sanitize():
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    assert read(io, 0, 1).status == 0
    admission_token = io.controller.namespaces.admission_token(io.ctx.namespaces[1])
    start(target, admin)
    assert not admission_token.valid
    target.runtime.settle()
    assert io.ctx.namespaces[1].memory is not None


def test_events_go_to_the_host_that_started_the_operation():
    target = Target()
    admin, other = target.admin(), target.admin()
    mine, theirs = admin.submit(admin.sqe(0x0C)), other.submit(other.sqe(0x0C))
    start(target, admin)
    target.runtime.settle()
    assert mine.step().dw0 == 0x810106
    assert theirs.step() is None


def test_an_unsent_event_is_dropped_when_the_next_operation_begins():
    target = Target()
    admin = target.admin()
    for _ in range(2):
        start(target, admin)
        target.runtime.settle()
    assert admin.command(0x0C).dw0 == 0x810106
    event = admin.submit(admin.sqe(0x0C))
    assert event.step() is None


def test_a_disconnected_host_gets_no_event():
    target = Target()
    admin = target.admin()
    start(target, admin)
    admin.controller.destroy("gone")
    target.runtime.settle()
    assert sanitize_log(target.admin()).sstat & 7 == 1


def test_a_reset_does_not_stop_the_operation():
    target = Target()
    admin = target.admin()
    start(target, admin)
    admin.set_property(0x14, 0x460060)
    admin.set_property(0x14, 0x460061)
    target.runtime.settle()
    assert sanitize_log(admin).sstat & 7 == 1


def test_the_persistent_event_log_has_the_operation():
    target = Target()
    admin = target.admin()
    before = len(target.subsystem.history)
    start(target, admin)
    target.runtime.settle()
    assert [event.type for event in target.subsystem.history.events][before:] == [9, 10]


# Refusals


@pytest.mark.parametrize(
    ("cdw10", "status", "where"),
    [
        (0, Status.INVALID_FIELD, 40),
        (4, Status.INVALID_FIELD, 40),
        (5, Status.INVALID_FIELD, 40),
        (6, Status.INVALID_FIELD, 40),
        (7, Status.INVALID_FIELD, 40),
        (BLOCK_ERASE | 1 << 10, Status.INVALID_FIELD, 41 | 2 << 8),
        (BLOCK_ERASE | 1 << 9, Status.INVALID_FIELD, 41 | 1 << 8),
        (OVERWRITE | 1 << 9, Status.INVALID_FIELD, 41 | 1 << 8),
        (EXIT, Status.SUCCESS, None),
        (EXIT | 0x7F8, Status.SUCCESS, None),
    ],
)
def test_refusals(cdw10, status, where):
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    write(io, 0, b"x" * 512)
    assert start(target, admin, cdw10).status == status
    if where is not None:
        assert location(admin) == where
    target.runtime.settle()
    assert sanitize_log(admin).sstat == 0
    assert io.read_bytes(read(io, 0, 1)) == b"x" * 512


def test_deallocation_that_was_not_wanted():
    target = Target()
    admin = target.admin()
    assert admin.get_feature(0x17).dw0 == 0
    assert admin.set_feature(0x17, 2).status == Status.INVALID_FIELD
    assert admin.set_feature(0x17, 1).status == 0
    assert target.admin().get_feature(0x17).dw0 == 1, "it is the subsystem's"
    event = admin.submit(admin.sqe(0x0C))
    assert start(target, admin, BLOCK_ERASE | 1 << 9).status == 0
    target.runtime.settle()
    assert sanitize_log(admin).sstat & 7 == 4
    assert event.step().dw0 == 0x810206


@pytest.mark.parametrize("by_host", [False, True])
def test_write_protected(by_host):
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=not by_host))
    admin = target.admin()
    if by_host:
        assert admin.set_feature(0x84, 1, nsid=2).status == 0
    assert start(target, admin).status == Status.NAMESPACE_WRITE_PROTECTED
    assert start(target, admin, EXIT).status == 0


# During an operation: every command in every state


def states():
    for ause in (0, AUSE):
        target = Target()
        admin = target.admin()
        io = target.io(admin)
        start(target, admin, BLOCK_ERASE | ause)
        yield "processing", target, admin, io
    for ause in (False, True):
        target, admin, _ = broken_target(ause)
        yield "failure", target, admin, target.io(admin)


ADMIN_ALLOWED = {0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18}
LOG_PAGES_ALLOWED = {0x01, 0x02, 0x04, 0x0C, 0x80, 0x81}
"""The log pages that the specification lists, and log page 0Ch (ANA)."""


def test_every_admin_command_in_every_state():
    for state, _, admin, _ in states():
        for opcode in set(ADMIN) - {SANITIZE, AdminOpcode.GET_LOG_PAGE, AdminOpcode.ASYNC_EVENT_REQUEST}:
            completion = admin.command(opcode, nsid=1, cdw10=1)
            if completion.status == Status.INVALID_OPCODE:
                continue  # not offered by this subsystem
            aborted = completion.status == Status.SANITIZE_IN_PROGRESS
            assert aborted == (opcode not in ADMIN_ALLOWED), (state, hex(opcode))
            assert not (aborted and completion.dnr)


def test_every_log_page_in_every_state():
    for state, _, admin, _ in states():
        for lid in LogPageId:
            status = admin.log_page(lid, 512).status
            allowed = lid in LOG_PAGES_ALLOWED
            assert (status == Status.SANITIZE_IN_PROGRESS) == (not allowed), (state, lid)


def test_every_io_command_in_every_state():
    for state, _, _, io in states():
        expected = Status.SANITIZE_IN_PROGRESS if state == "processing" else Status.SANITIZE_FAILED
        for opcode in NVM:
            status = io.command(opcode, nsid=1).status
            assert (status == expected) == (opcode != NvmOpcode.FLUSH), (state, hex(opcode))
        assert io.command(0, nsid=1).status == 0
        assert io.command(0, nsid=0xFFFFFFFF).status == 0


def test_events_and_fabrics_commands_go_on():
    for _, _, admin, _ in states():
        assert isinstance(admin.submit(admin.sqe(0x0C)), Pending) or True
        assert admin.get_property(0x1C).status == 0


def test_the_error_log_has_no_lba_during_an_operation():
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    read(io, 1 << 40, 1)
    start(target, admin)
    assert admin.read_bytes(admin.log_page(1, 64))[16:24] == bytes(8)
    target.runtime.settle()
    assert admin.read_bytes(admin.log_page(1, 64))[16:24] != bytes(8)


ACTIONS = [
    (EXIT, 0),
    *((action, ause) for action in (BLOCK_ERASE, OVERWRITE) for ause in (0, AUSE)),
    *((action, 0) for action in (0, 4, 5, 6, 7)),
]
OK, IN_PROGRESS, FAILED, INVALID = (
    Status.SUCCESS, Status.SANITIZE_IN_PROGRESS, Status.SANITIZE_FAILED, Status.INVALID_FIELD,
)  # fmt: skip
BAD = [INVALID] * 5
TABLE = {
    SanitizeState.IDLE: [OK, OK, OK, OK, OK, *BAD],
    SanitizeState.RESTRICTED_PROCESSING: [IN_PROGRESS] * 10,
    SanitizeState.UNRESTRICTED_PROCESSING: [IN_PROGRESS] * 10,
    SanitizeState.RESTRICTED_FAILURE: [FAILED, OK, FAILED, OK, FAILED, *BAD],
    SanitizeState.UNRESTRICTED_FAILURE: [OK, OK, OK, OK, OK, *BAD],
}


@pytest.mark.parametrize("state", SanitizeState)
@pytest.mark.parametrize("column", range(10))
def test_sanitize_in_every_state(state, column):
    if state.failure:
        target, admin, _ = broken_target(state is SanitizeState.UNRESTRICTED_FAILURE)
    else:
        target = Target()
        admin = target.admin()
        if state.processing:
            start(target, admin, BLOCK_ERASE | (AUSE if state is SanitizeState.UNRESTRICTED_PROCESSING else 0))
    assert target.subsystem.sanitizer.state is state
    action, ause = ACTIONS[column]
    assert start(target, admin, action | ause).status == TABLE[state][column]


# Failures


@pytest.mark.parametrize("ause", [False, True])
def test_a_failure_and_its_end(ause):
    target, admin, backend = broken_target(ause)
    log = sanitize_log(admin)
    assert (log.sprog, log.sstat & 7, log.ssi) == (0xFFFF, 3, 0x34 if ause else 0x12)
    io = target.io(admin)
    assert read(io, 0, 1).status == Status.SANITIZE_FAILED
    assert admin.command(0x0C).dw0 == 0x810106
    if ause:
        assert start(target, admin, EXIT).status == 0
        assert read(io, 0, 1).status == 0
        assert sanitize_log(admin).sstat & 7 == 3, "it stays the last one"
    backend.fails.clear()
    assert start(target, admin).status == 0
    target.runtime.settle()
    assert sanitize_log(admin).sstat & 7 == 1
    assert read(io, 0, 1).status == 0


def test_a_metadata_store_that_fails():
    metadata_store = Durable()
    target = Target(kept(Ramdisk("1M"), metadata_store))
    admin = target.admin()
    io = target.io(admin)
    write(io, 0, b"x" * 512)
    metadata_store.error = error(errno.ENOSPC)
    completion = start(target, admin)
    assert (completion.status, completion.dnr) == (Status.INTERNAL_ERROR, False)
    target.runtime.settle()
    assert sanitize_log(admin).sstat == 0
    assert io.read_bytes(read(io, 0, 1)) == b"x" * 512
    metadata_store.error = None
    assert start(target, admin).status == 0


def test_a_failure_that_cannot_be_cleared():
    backend, metadata_store = Flawed("1M"), Durable()
    target = Target(kept(backend, metadata_store))
    admin = target.admin()
    backend.fails["flush"] = error()
    start(target, admin, BLOCK_ERASE | AUSE)
    target.runtime.settle()
    metadata_store.error = error()
    assert start(target, admin, EXIT).status == Status.INTERNAL_ERROR
    metadata_store.error = None
    assert start(target, admin, EXIT).status == 0


# Any sequence


class Sequence(RuleBasedStateMachine):
    """Commands, failures and restarts in any order: data never survives a success, and is never readable during an
    operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metadata_store = Durable()
        self.backend = kept(Flawed("128M"), self.metadata_store)
        self.boot()

    def boot(self) -> None:
        self.target = Target(self.backend)
        self.target.subsystem.resume(self.target.runtime)
        self.admin = self.target.admin()
        self.io = self.target.io(self.admin)

    @property
    def state(self) -> SanitizeState:
        return self.target.subsystem.sanitizer.state

    @rule(column=st.integers(0, 9))
    def sanitize(self, column):
        action, ause = ACTIONS[column]
        before = self.state
        assert start(self.target, self.admin, action | ause).status == TABLE[before][column]

    @rule(turns=st.integers(1, 8))
    def go_on(self, turns):
        for _ in range(turns):
            self.target.runtime.turn()

    @rule()
    def finish(self):
        self.target.runtime.settle()
        assert not self.state.processing

    @rule(name=st.sampled_from(["write_zeroes", "flush", "write"]))
    def breaks(self, name):
        self.backend.fails[name] = error()

    @rule()
    def repaired(self):
        self.backend.fails.clear()

    @rule()
    def restart(self):
        before, outcome = self.state, sanitize_log(self.admin).sstat & 7
        self.boot()
        assert self.state is before
        assert sanitize_log(self.admin).sstat & 7 == outcome

    @rule()
    def reset(self):
        self.admin.set_property(0x14, 0x460060)
        self.admin.set_property(0x14, 0x460061)
        self.io = self.target.io(self.admin, 1)

    @rule(slba=st.sampled_from([0, 7, 262143]))
    def write(self, slba):
        status = write(self.io, slba, b"x" * 512).status
        if self.state is SanitizeState.IDLE:
            assert status == (Status.WRITE_FAULT if "write" in self.backend.fails else 0)
        else:
            assert status == (Status.SANITIZE_IN_PROGRESS if self.state.processing else Status.SANITIZE_FAILED)

    @invariant()
    def consistent(self):
        log = sanitize_log(self.admin)
        assert (log.sprog == 0xFFFF) == (not self.state.processing)
        assert (log.sstat & 7 == 2) == self.state.processing
        if self.state.failure:
            assert log.sstat & 7 == 3
        if log.sstat >> 8 & 1:
            assert self.state is SanitizeState.IDLE and self.backend.allocated(0, 128 << 20) == []
        readable = read(self.io, 0, 1).status == 0
        assert readable == (self.state is SanitizeState.IDLE)


TestSequence = Sequence.TestCase
TestSequence.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
