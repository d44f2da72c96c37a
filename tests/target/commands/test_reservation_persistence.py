"""Reservations over a power loss, and Preempt and Abort: the conditions of a command's completion."""

import asyncio
import errno
import json
import shutil
from typing import Any

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.reservations import ReservationType, pack_keys, pack_release
from nvmeof.spec.status import Status
from nvmeof.target.core.metadata import MemoryStore
from nvmeof.target.namespaces.inflight import InflightTable
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from tests.fake_runtime import FakeFuture
from tests.target.harness import Pending, Target
from tests.target.reservation_hosts import ACQUIRE, REGISTER, RELEASE, Host, hostid
from tests.target.reservation_model import EA, WE, WEAR, WERO

SET, CLEAR = 3 << 30, 2 << 30


class SlowStore(MemoryStore):
    """A metadata store that is durable when the test says so; `fails`: at once, or when the test says so."""

    durable = True

    def __init__(self) -> None:
        super().__init__()
        self.stored: Any = None  # the state after a power loss
        self.waiting: list[tuple[FakeFuture, Any]] = []
        self.fails = False

    def put(self, section: str, value: Any):
        if self.fails:
            raise OSError(errno.ENOSPC, "no space")
        super().put(section, value)
        future = FakeFuture()
        self.waiting.append((future, json.loads(json.dumps(value))))
        return self._wait(future)

    async def _wait(self, future: FakeFuture) -> None:
        if await future is not None:
            raise OSError(errno.EIO, "the disk is broken")

    def finish(self, broken: bool = False) -> None:
        future, value = self.waiting.pop(0)
        if not broken:
            self.stored = value
        future.set_result("broken" if broken else None)


@pytest.fixture
def metadata_store():
    return SlowStore()


@pytest.fixture
def target(metadata_store):
    disk = Ramdisk("1M")
    disk.metadata_store = metadata_store
    return Target(disk)


def after_power_loss(metadata_store: SlowStore) -> Target:
    disk = Ramdisk("1M")
    disk.metadata_store = SlowStore()
    if metadata_store.stored is not None:
        MemoryStore.put(disk.metadata_store, "reservations", metadata_store.stored)
    return Target(disk)


def pending(host: Host, opcode: int, data: bytes, cdw10: int) -> Pending:
    result = host.start(opcode, data, cdw10)
    assert isinstance(result, Pending)
    assert result.completion is None
    return result


def done(command: Pending, status: int = 0) -> None:
    command.step()
    assert command.completion is not None
    assert command.completion.status == status


def finish(metadata_store: SlowStore, command: Pending) -> None:
    metadata_store.finish()
    done(command)


def test_nothing_is_stored_without_ptpl(target, metadata_store):
    host = Host(target, 0)
    assert host.register(1).status == host.acquire(WE, 1).status == host.clear(1).status == 0
    assert metadata_store.stored is None
    assert not metadata_store.waiting


def test_completed_is_durable(target, metadata_store):
    hosts = [Host(target, 0), Host(target, 1)]
    steps = [
        (hosts[0], REGISTER, pack_keys(0, 1), SET),
        (hosts[1], REGISTER, pack_keys(0, 2), 0),
        (hosts[0], ACQUIRE, pack_keys(1, 0), WERO << 8),
        (hosts[1], ACQUIRE, pack_keys(2, 1), 1 | EA << 8),
    ]
    for host, opcode, data, cdw10 in steps:
        command = pending(host, opcode, data, cdw10)
        before = after_power_loss(metadata_store)
        finish(metadata_store, command)
        again = Host(after_power_loss(metadata_store), 5).report()
        now = hosts[0].report()
        assert Host(before, 5).report() != again
        assert (again.generation, again.rtype, again.persistent) == (now.generation, now.rtype, now.persistent)
        assert [(item.hostid, item.key, item.holder) for item in again.registrants] == [
            (item.hostid, item.key, item.holder) for item in now.registrants
        ]
    revived = [Host(after_power_loss(metadata_store), number) for number in range(3)]
    assert [host.write() for host in revived] == [Status.RESERVATION_CONFLICT, 0, Status.RESERVATION_CONFLICT]


def test_ptpl_cleared(target, metadata_store):
    host = Host(target, 0)
    finish(metadata_store, pending(host, REGISTER, pack_keys(0, 1), SET))
    finish(metadata_store, pending(host, REGISTER, pack_keys(0, 1), CLEAR))
    assert metadata_store.stored is None
    assert host.acquire(WE, 1).status == 0
    report = Host(after_power_loss(metadata_store), 0).report()
    assert (report.count, report.rtype, report.generation, report.persistent) == (0, 0, 0, False)


def test_feature_83h(target, metadata_store):
    host = Host(target, 0)
    assert host.register(1).status == 0
    for value, kept in ((1, True), (0, False), (1, True)):
        command = host.admin.submit(host.admin.sqe(0x09, nsid=1, cdw10=0x83, cdw11=value))
        assert isinstance(command, Pending)
        finish(metadata_store, command)
        assert host.admin.get_feature(0x83, nsid=1).dw0 == value
        assert host.report().persistent == kept
        assert (metadata_store.stored is not None) == kept
    assert Host(after_power_loss(metadata_store), 0).report().count == 1


def test_notified_changes_are_durable(target, metadata_store):
    """Other hosts are excluded at once, but notified when the change is durable."""
    hosts = [Host(target, 0), Host(target, 1)]
    finish(metadata_store, pending(hosts[0], REGISTER, pack_keys(0, 1), SET))
    finish(metadata_store, pending(hosts[1], REGISTER, pack_keys(0, 2), 0))
    finish(metadata_store, pending(hosts[0], ACQUIRE, pack_keys(1, 0), WE << 8))
    command = pending(hosts[1], ACQUIRE, pack_keys(2, 1), 1 | WE << 8)
    assert hosts[0].write() == Status.RESERVATION_CONFLICT
    assert hosts[0].notices() == []
    finish(metadata_store, command)
    assert len(hosts[0].notices()) == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_a_change_that_cannot_be_stored_is_undone(target, metadata_store, at_once):
    hosts = [Host(target, 0), Host(target, 1)]
    finish(metadata_store, pending(hosts[0], REGISTER, pack_keys(0, 1), SET))
    admission_token = hosts[1].io.controller.namespaces.admission_token(target.subsystem.namespaces[1])
    if at_once:
        metadata_store.fails = True
        completion = hosts[0].acquire(EA, 1)
    else:
        command = pending(hosts[0], ACQUIRE, pack_keys(1, 0), EA << 8)
        assert hosts[1].read() == Status.RESERVATION_CONFLICT
        metadata_store.finish(broken=True)
        completion = command.step()
    assert (completion.status, completion.dnr) == (Status.INTERNAL_ERROR, False)
    assert not admission_token.valid
    assert hosts[1].read() == 0
    assert hosts[0].report().rtype == 0
    assert Host(after_power_loss(metadata_store), 0).report().rtype == 0


def test_a_release_that_is_undone(target, metadata_store):
    """A host that was admitted in between is excluded again."""
    hosts = [Host(target, 0), Host(target, 1)]
    finish(metadata_store, pending(hosts[0], REGISTER, pack_keys(0, 1), SET))
    finish(metadata_store, pending(hosts[0], ACQUIRE, pack_keys(1, 0), EA << 8))
    command = pending(hosts[0], RELEASE, pack_release(1), EA << 8)
    assert hosts[1].read() == 0
    admission_token = hosts[1].io.controller.namespaces.admission_token(target.subsystem.namespaces[1])
    metadata_store.finish(broken=True)
    done(command, Status.INTERNAL_ERROR)
    assert not admission_token.valid
    assert hosts[1].read() == Status.RESERVATION_CONFLICT


def test_a_failure_behind_another_change(target, metadata_store):
    """The second change stays, and so does the state that it was based on."""
    host = Host(target, 0)
    finish(metadata_store, pending(host, REGISTER, pack_keys(0, 1), SET))
    first = pending(host, ACQUIRE, pack_keys(1, 0), EA << 8)
    second = pending(host, REGISTER, pack_keys(1, 2), 2)
    metadata_store.finish(broken=True)
    done(first, Status.INTERNAL_ERROR)
    finish(metadata_store, second)
    report = Host(after_power_loss(metadata_store), 0).report()
    assert (report.rtype, report.registrants[0].key) == (EA, 2)


def test_a_repeated_command_is_durable_as_well(target, metadata_store):
    host = Host(target, 0)
    finish(metadata_store, pending(host, REGISTER, pack_keys(0, 1), SET))
    first = pending(host, ACQUIRE, pack_keys(1, 0), EA << 8)
    second = pending(host, ACQUIRE, pack_keys(1, 0), EA << 8)
    finish(metadata_store, first)
    assert second.step() is None
    finish(metadata_store, second)


def test_a_metadata_store_with_foreign_content():
    disk = Ramdisk("1M")
    disk.metadata_store.put("reservations", {"registrants": 5})
    with pytest.raises(ConfigurationError, match="section 'reservations' of"):
        Target(disk)


# Preempt and Abort


def test_preempt_and_abort_waits():
    """The command waits until the preempted hosts' commands have ended; those of other hosts do not count."""
    target = Target()
    hosts = [Host(target, number) for number in range(3)]
    hosts[0].connect()
    for host in hosts:
        assert host.register(7 + host.number).status == 0
    assert hosts[0].acquire(WE, 7).status == 0
    commands = target.subsystem.namespaces[1].in_progress
    slow = [commands.begin(hostid(0)) for _ in range(2)]
    others = commands.begin(hostid(2))
    command = pending(hosts[1], ACQUIRE, pack_keys(8, 7), 2 | WE << 8)
    aborted = [queue.ctx.queue.aborted for queue in (hosts[0].io, hosts[0].admin, hosts[1].io, hosts[2].io)]
    assert aborted == [[1], [1], [], []]
    assert len(hosts[0].notices()) == 1
    slow[0].end()
    assert command.step() is None
    slow[1].end()
    done(command)
    assert hosts[1].preempt(WE, 8, 9).status == 0  # without Abort there is no wait
    others.end()
    assert hosts[2].io.ctx.queue.aborted == []


def test_preempting_oneself_aborts_nothing():
    target = Target()
    host = Host(target, 0)
    assert host.register(1).status == host.acquire(WEAR, 1).status == 0
    own = target.subsystem.namespaces[1].in_progress.begin(host.hostid)
    assert host.preempt(WE, 1, 0, abort=True).status == 0
    assert host.preempt(EA, 1, 1, abort=True).status == 0
    assert host.io.ctx.queue.aborted == []
    own.end()


def test_in_progress():
    commands, called = InflightTable(), []
    one, two = commands.begin(b"a"), commands.begin(b"b")
    assert not commands.watch([b"c"], lambda: called.append("c"))
    assert commands.watch([b"a"], lambda: called.append("a"))
    assert commands.watch([b"a", b"b"], lambda: called.append("ab"))
    one.end()
    assert called == ["a"]
    two.end()
    assert called == ["a", "ab"]
    assert not commands.watch([b"a", b"b"], lambda: None)


# Files


async def serve(path) -> tuple[FileBackend, Target]:
    backend = FileBackend(path, size="1M")
    await backend.open()
    return backend, Target(backend)


@pytest.mark.parametrize("how", ["orderly", "killed"])
@pytest.mark.parametrize("rtype", ReservationType)
def test_a_file_and_its_reservations(tmp_path, how, rtype):
    async def scenario() -> None:
        backend, target = await serve(tmp_path / "disk")
        host, other = Host(target, 0), Host(target, 1)
        capabilities = IDENTIFY_NAMESPACE.parse(host.admin.read_bytes(host.admin.identify(0, 1))).rescap
        assert capabilities == 0xFF
        for one in (host, other):
            assert (await one.run(REGISTER, pack_keys(0, 5 + one.number), SET)).status == 0
        assert (await host.run(ACQUIRE, pack_keys(5, 0), rtype << 8)).status == 0
        before = host.report()
        path = tmp_path / "disk"
        if how == "killed":
            # The state after a kill: the files as they are now.
            path = tmp_path / "copy"
            for suffix in ("", ".nvmeof"):
                shutil.copy(f"{tmp_path}/disk{suffix}", f"{path}{suffix}")
        await backend.close()
        backend, target = await serve(path)
        host, other, stranger = (Host(target, number) for number in range(3))
        after = stranger.report()
        assert [(item.hostid, item.key, item.holder) for item in after.registrants] == [
            (item.hostid, item.key, item.holder) for item in before.registrants
        ]
        assert (after.rtype, after.generation, after.persistent) == (rtype, before.generation, True)
        completion = await stranger.run(0x01, bytes(512), 0)
        assert completion.status == Status.RESERVATION_CONFLICT
        assert (await host.run(RELEASE, pack_release(5), rtype << 8)).status == 0
        assert (await stranger.run(0x01, bytes(512), 0)).status == 0
        # Without PTPL nothing is stored after the next one.
        assert (await host.run(REGISTER, pack_keys(0, 5), CLEAR)).status == 0
        assert (await host.run(ACQUIRE, pack_keys(5, 0), rtype << 8)).status == 0
        await backend.close()
        backend, target = await serve(path)
        assert Host(target, 0).report().count == 0
        await backend.close()

    asyncio.run(scenario())
