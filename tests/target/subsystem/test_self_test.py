import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.spec.media import SelfTestCode
from nvmeof.spec.status import Status
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.commands.test_nvm import write
from tests.target.harness import Target
from tests.target.media_tools import Durable, Flawed, execute_in_loop, file_target, location, self_test_log, submit

SELF_TEST = 0x14
SHORT, EXTENDED, ABORT = 1, 2, 15
ALL = 0xFFFFFFFF
UNUSED = 15


def start(target, admin, code=SHORT, nsid=ALL):
    return submit(target, admin, SELF_TEST, nsid=nsid, cdw10=code)


def results(admin):
    """Return result, code, segment, valid, NSID, LBA and status of all results."""
    return [
        (
            each.status & 15,
            each.status >> 4,
            each.segment,
            each.valid,
            each.nsid,
            each.failing_lba,
            each.sct << 8 | each.sc,
        )
        for each in self_test_log(admin).results
        if each.status & 15 != UNUSED
    ]


def good(code):
    return (0, code, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("code", [SHORT, EXTENDED])
@pytest.mark.parametrize("nsid", [0, 1, 2, ALL])
def test_success(code, nsid):
    target = Target(Ramdisk("512M"), Ramdisk("1M", block_bytes=4096))
    target.runtime.time += 7200
    admin = target.admin()
    log = self_test_log(admin)
    assert (log.operation, log.completion) == (0, 0)
    assert start(target, admin, code, nsid).status == 0
    assert self_test_log(admin).operation == code
    target.runtime.settle()
    log = self_test_log(admin)
    assert (log.operation, log.completion) == (0, 0)
    assert results(admin) == [good(code)]


def test_progress_and_one_at_a_time():
    target = Target(Ramdisk("1G"))
    admin, other = target.admin(), target.admin()
    assert start(target, admin, EXTENDED).status == 0
    seen = []
    while self_test_log(other).operation:
        seen.append(self_test_log(other).completion)
        assert start(target, other, SHORT).status == Status.SELF_TEST_IN_PROGRESS
        target.runtime.turn()
    assert seen == sorted(seen) and seen[-1] == 99 and len(set(seen)) > 50
    assert results(other) == [good(EXTENDED)]


@pytest.mark.parametrize(
    ("cdw10", "nsid", "status", "where"),
    [
        *((code, ALL, Status.INVALID_FIELD, 40) for code in (0, 3, 4, 13, 14)),
        (SHORT, 3, Status.INVALID_FIELD, 4),
        (SHORT, 1024, Status.INVALID_FIELD, 4),
        (SHORT, 1025, Status.INVALID_NAMESPACE, 4),
        (EXTENDED, ALL - 1, Status.INVALID_NAMESPACE, 4),
        (ABORT, 77, Status.SUCCESS, None),
    ],
)
def test_refusals(cdw10, nsid, status, where):
    target = Target()
    admin = target.admin()
    assert start(target, admin, cdw10, nsid).status == status
    if where is not None:
        assert location(admin) == where
    target.runtime.settle()
    assert results(admin) == []


@pytest.mark.parametrize("block", [0, 1, 77, 100000, 262143])
def test_an_unreadable_block(block):
    backend = Flawed("128M")
    target = Target(Ramdisk("1M"), backend)
    admin = target.admin()
    backend.bad_blocks = {block, 262143}
    start(target, admin, EXTENDED)
    target.runtime.settle()
    assert results(admin) == [(7, EXTENDED, 7, 15, 2, block, 0x281)]
    assert list(target.subsystem.namespaces[2].unreadable_blocks.failing) == [(block, block + 1)]


def test_a_block_that_a_host_has_marked():
    target = Target()
    admin = target.admin()
    assert target.io(admin).command(0x04, nsid=1, cdw10=300, cdw12=3).status == 0
    start(target, admin)
    target.runtime.settle()
    assert results(admin) == [(7, SHORT, 7, 15, 1, 300, 0x281)]


def test_other_errors_are_reported_too():
    class Gone(Ramdisk):
        def verify(self, offset, length):
            raise OSError(19, "gone")

    target = Target(Gone("1M"))
    admin = target.admin()
    start(target, admin)
    target.runtime.settle()
    assert results(admin) == [(7, SHORT, 7, 15, 1, 0, 0x082)]


def test_a_short_test_looks_at_samples():
    lengths = []

    class AbortableAwait(Ramdisk):
        def verify(self, offset, length):
            lengths.append(length)

    target = Target(AbortableAwait("4G"))
    start(target, target.admin())
    target.runtime.settle()
    assert len(lengths) == 64 and sum(lengths) == 256 << 20


def test_a_critical_warning_fails_it():
    target = Target()
    admin = target.admin()
    admin.set_feature(0x04, 300)
    start(target, admin)
    target.runtime.settle()
    assert results(admin) == [(7, SHORT, 2, 0, 0, 0, 0)]


# Early ends


def aborted(target, admin, code, action, expected):
    start(target, admin, code)
    action()
    assert self_test_log(admin).operation == 0
    target.runtime.settle()
    assert results(admin)[0][:2] == (expected, code)


@pytest.mark.parametrize("code", [SHORT, EXTENDED])
def test_aborted_by_command(code):
    target = Target(Ramdisk("64M"))
    admin, other = target.admin(), target.admin()
    aborted(target, admin, code, lambda: start(target, other, ABORT), 1)
    assert len(results(admin)) == 1


@pytest.mark.parametrize("code", [SHORT, EXTENDED])
def test_aborted_by_sanitize(code):
    target = Target(Ramdisk("64M"))
    admin = target.admin()
    start(target, admin, code)
    assert submit(target, admin, 0x84, cdw10=2).status == 0
    target.runtime.settle()
    assert results(admin)[0][:2] == (9, code)


FORMATS = [  # NSID of the format, of the self-test: aborted?
    (1, 1, True),
    (2, 1, False),
    (ALL, 1, True),
    (1, ALL, True),
    (ALL, ALL, True),
    (ALL, 0, True),
    (1, 0, False),
]


@pytest.mark.parametrize("ses", [0, 1])
@pytest.mark.parametrize("code", [SHORT, EXTENDED])
@pytest.mark.parametrize(("formatted", "tested", "expected"), FORMATS)
def test_aborted_by_format(code, ses, formatted, tested, expected):
    target = Target(Ramdisk("64M"), Ramdisk("64M"))
    admin = target.admin()
    start(target, admin, code, tested)
    assert submit(target, admin, 0x80, nsid=formatted, cdw10=ses << 9).status == 0
    target.runtime.settle()
    assert results(admin)[0][:2] == (4 if expected else 0, code)


@pytest.mark.parametrize("code", [SHORT, EXTENDED])
@pytest.mark.parametrize("way", ["reset", "gone", "other"])
def test_resets(code, way):
    target = Target(Ramdisk("64M"))
    admin, other = target.admin(), target.admin()
    start(target, admin, code)
    if way == "reset":
        admin.set_property(0x14, 0x460060)
    elif way == "gone":
        admin.controller.destroy("gone")
    else:
        other.set_property(0x14, 0x460060)
        other.set_property(0x14, 0x460061)
    target.runtime.settle()
    assert results(other)[0][:2] == (2 if code == SHORT and way != "other" else 0, code)


@pytest.mark.parametrize(("nsid", "expected"), [(1, 3), (ALL, 0)])
def test_a_namespace_is_removed(nsid, expected):
    target = Target(Ramdisk("64M"), Ramdisk("1M"))
    admin = target.admin()
    start(target, admin, EXTENDED, nsid)
    target.runtime.turn()
    target.subsystem.remove_namespace(1)
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), nsid=1))
    target.runtime.settle()
    assert results(admin)[0][:2] == (expected, EXTENDED)


def test_the_last_twenty():
    target = Target()
    admin = target.admin()
    for number in range(25):
        start(target, admin, SHORT if number % 2 else EXTENDED)
        target.runtime.settle()
    assert [each[1] for each in results(admin)] == [EXTENDED, SHORT] * 10


# Restarts


def durable(metadata_store, *backends):
    return Target(*backends, metadata_store=metadata_store)


def test_results_and_extended_tests_outlast_a_restart():
    metadata_store = Durable()
    target = durable(metadata_store, Ramdisk("256M"))
    admin = target.admin()
    start(target, admin, SHORT)
    target.runtime.settle()
    start(target, admin, EXTENDED)
    target.runtime.turn()
    target = durable(metadata_store, Ramdisk("256M"))
    target.subsystem.resume(target.runtime)
    admin = target.admin()
    assert self_test_log(admin).operation == EXTENDED
    assert results(admin) == [good(SHORT)]
    target.subsystem.resume(target.runtime)
    target.runtime.settle()
    assert results(admin) == [good(EXTENDED), good(SHORT)]
    target = durable(metadata_store, Ramdisk("256M"))
    target.subsystem.resume(target.runtime)
    assert self_test_log(target.admin()).operation == 0


@pytest.mark.parametrize("nonsense", [1, [], {"results": 5}, {"results": [["x"]]}, {"running": "xy"}, {"running": 3}])
def test_stored_results_may_be_invalid(nonsense):
    metadata_store = Durable()
    metadata_store._values["self-test"] = nonsense
    target = durable(metadata_store, Ramdisk("1M"))
    target.subsystem.resume(target.runtime)
    assert results(target.admin()) == []


async def test_a_file(tmp_path):
    path = tmp_path / "disk"
    backend, target = await file_target(path, size="64M")
    admin = target.admin()
    with path.open("r+b") as file:
        file.truncate((32 << 20) + 5 * 512)
    assert (await execute_in_loop(admin, SELF_TEST, nsid=1, cdw10=EXTENDED)).status == 0
    while target.subsystem.self_test.running is not SelfTestCode.NONE:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert results(admin) == [(7, EXTENDED, 7, 15, 1, 65541, 0x281)]
    await backend.close()


ACTIONS = ["short", "extended", "abort", "format", "reset", "turn", "settle", "write"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=20))
def test_any_sequence(actions):
    """At most one test runs, each start leaves one result, results are never lost and data is never changed."""
    target = Target(Ramdisk("64M"))
    admin = target.admin()
    io = target.io(admin)
    begun = 0
    for action in actions:
        running = target.subsystem.self_test.running
        if action in ("short", "extended"):
            status = start(target, admin, SHORT if action == "short" else EXTENDED).status
            assert status == (Status.SELF_TEST_IN_PROGRESS if running else 0)
            begun += not running
        elif action == "abort":
            assert start(target, admin, ABORT).status == 0
        elif action == "format":
            assert submit(target, admin, 0x80, nsid=1, cdw10=0).status == 0
        elif action == "reset":
            admin.set_property(0x14, 0x460060)
            admin.set_property(0x14, 0x460061)
            io = target.io(admin)
        elif action == "turn":
            target.runtime.turn()
        elif action == "settle":
            target.runtime.settle()
        else:
            assert write(io, 0, b"x" * 512).status == 0
        now = bool(target.subsystem.self_test.running)
        assert len(results(admin)) + now == min(begun, 20 + now)
