import asyncio
import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvmeof.errors import ConfigurationError
from nvmeof.spec.enums import AnaState
from nvmeof.spec.identify import IDENTIFY_CONTROLLER
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE, IDENTIFY_NAMESPACE_INDEPENDENT
from nvmeof.spec.status import Status
from nvmeof.target.commands.standard import ADMISSION
from nvmeof.target.core.metadata import formatted_block_bytes
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.namespaces.zone_states import ZoneState
from nvmeof.target.server import Target as Server
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.commands.test_nvm import read, write
from tests.target.harness import Pending, Target
from tests.target.media_tools import Durable, Flawed, error, execute_in_loop, file_target, kept, location, submit

FORMAT = 0x80
ALL = 0xFFFFFFFF


def identify(admin, nsid=1, cns=0):
    return IDENTIFY_NAMESPACE.parse(admin.read_bytes(admin.identify(cns, nsid)))


def format_nvm(target, admin, cdw10=1, nsid=1):
    return submit(target, admin, FORMAT, nsid=nsid, cdw10=cdw10)


@pytest.mark.parametrize("ses", [0, 1])
@pytest.mark.parametrize("size", ["1M", 1 << 20 | 512])
def test_there_and_back(ses, size):
    target = Target(Ramdisk(size))
    admin = target.admin()
    io = target.io(admin)
    blocks = io.ctx.namespaces[1].size_blocks
    write(io, blocks - 1, b"x" * 512)
    assert format_nvm(target, admin, 1 | ses << 9).status == 0
    data = identify(admin)
    assert (data.nsze, data.flbas, data.nlbaf) == (256, 1, 1)
    assert [(each.lbads, each.ms) for each in data.lbaf[:3]] == [(9, 0), (12, 0), (0, 0)]
    assert not any(io.read_bytes(read(io, 0, 256, 4096)))
    assert read(io, 0, 1).status == Status.DATA_SGL_LENGTH_INVALID
    write(io, 255, b"y" * 4096, 4096)
    assert read(io, 256, 1, 4096).status == Status.LBA_OUT_OF_RANGE
    assert format_nvm(target, admin, ses << 9).status == 0
    data = identify(admin)
    assert (data.nsze, data.flbas) == (blocks, 0)
    assert not any(io.read_bytes(read(io, 0, 2048)) + io.read_bytes(read(io, blocks - 1, 1)))


@pytest.mark.parametrize("durable", [False, True])
def test_a_device_does_not_know_of_its_blocks(durable, caplog):
    """Its data exists at the next start, in blocks of another size unless one is given."""
    device = Ramdisk("1M")
    device.overwrite_to_erase = True
    target = Target(kept(device, Durable()) if durable else device)
    admin = target.admin()
    assert format_nvm(target, admin, 0).status == 0
    assert "nothing keeps" not in caplog.text
    assert format_nvm(target, admin, 1).status == 0
    assert ("has blocks of 4096 bytes now" in caplog.text) is not durable


def test_the_same_format_erases_data_and_marks():
    target = Target(Ramdisk("1M", block_bytes=4096))
    admin = target.admin()
    io = target.io(admin)
    write(io, 0, b"x" * 4096, 4096)
    assert io.command(0x04, nsid=1, cdw10=5, cdw12=0).status == 0
    assert format_nvm(target, admin, 1).status == 0
    assert not any(io.read_bytes(read(io, 0, 10, 4096)))
    assert io.ctx.namespaces[1].memory is not None


def test_all_attached_namespaces():
    target = Target(Ramdisk("1M"), Ramdisk("2M", block_bytes=4096))
    admin = target.admin()
    assert format_nvm(target, admin, 1, ALL).status == 0
    assert [identify(admin, nsid).nsze for nsid in (1, 2)] == [256, 512]
    assert format_nvm(target, admin, 0, ALL).status == 0
    assert [identify(admin, nsid).nsze for nsid in (1, 2)] == [2048, 4096]


def test_nothing_attached_is_no_error():
    target = Target()
    target.subsystem.remove_namespace(1)
    assert format_nvm(target, target.admin(), 1, ALL).status == 0


@pytest.mark.parametrize(
    ("cdw10", "nsid", "status", "where"),
    [
        (2, 1, Status.INVALID_FORMAT, 40),
        (15, 1, Status.INVALID_FORMAT, 40),
        (1 | 1 << 4, 1, Status.SUCCESS, None),
        (1 | 1 << 5, 1, Status.INVALID_FORMAT, 40 | 5 << 8),
        (1 | 7 << 5, 1, Status.INVALID_FORMAT, 40 | 5 << 8),
        (1 | 1 << 8, 1, Status.INVALID_FORMAT, 41),
        *((1 | ses << 9, 1, Status.INVALID_FIELD, 41 | 1 << 8) for ses in range(2, 8)),
        (1, 0, Status.INVALID_NAMESPACE, 4),
        (1, 3, Status.INVALID_FIELD, 4),
        (1, 1025, Status.INVALID_NAMESPACE, 4),
        (1, ALL - 1, Status.INVALID_NAMESPACE, 4),
        (1, 2, Status.NAMESPACE_WRITE_PROTECTED, 4),
        (1, ALL, Status.NAMESPACE_WRITE_PROTECTED, 4),
        (1 | 3 << 12, 1, Status.SUCCESS, None),
    ],
)
def test_refusals(cdw10, nsid, status, where):
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True))
    admin = target.admin()
    completion = format_nvm(target, admin, cdw10, nsid)
    assert completion.status == status
    if where is not None:
        assert (location(admin), completion.dnr) == (where, True)
        assert identify(admin).flbas == 0


def test_upper_bits_of_the_format_count_with_lbafee():
    target = Target()
    admin = target.admin()
    assert admin.set_feature(0x16, data=bytes([0, 0, 1]).ljust(512, b"\0")).status == 0
    assert format_nvm(target, admin, 1 | 1 << 12).status == Status.INVALID_FORMAT


def test_a_backend_that_cannot():
    backend = Flawed("1M")
    target = Target(backend)
    admin = target.admin()
    backend.fails["set_block_bytes"] = error(errno.EOPNOTSUPP)
    assert format_nvm(target, admin, 1).status == Status.INVALID_FORMAT
    assert format_nvm(target, admin, 0).status == 0


def test_inaccessible():
    target = Target()
    admin = target.admin()
    target.subsystem.set_ana_state(AnaState.INACCESSIBLE)
    assert format_nvm(target, admin).status == Status.ANA_INACCESSIBLE


def test_the_gates_are_in_order():
    names = [gate.__module__.rpartition(".")[2] for gate in ADMISSION]
    assert names.index("sanitize") < names.index("format_nvm") < names.index("reservation_gate")


def test_commands_during_a_format():
    target = Target(Ramdisk("256M"), Ramdisk("1M"))
    admin = target.admin()
    io = target.io(admin)
    assert read(io, 0, 1).status == 0
    pending = admin.submit(admin.sqe(FORMAT, nsid=1, cdw10=1))
    assert isinstance(pending, Pending)
    assert identify(admin).fpi in (0x80 | 100, 0x80 | 97)
    ready = IDENTIFY_NAMESPACE_INDEPENDENT.parse(admin.read_bytes(admin.identify(8, 1)))
    assert (ready.nstat, ready.fpi & 0x80) == (0, 0x80)
    for completion in (
        read(io, 0, 1),
        write(io, 0, bytes(512)),
        read(io, 1 << 40, 1),
        io.command(0x08, nsid=1, cdw12=0),
        io.command(0x04, nsid=1, cdw12=0),
        io.command(0x0C, nsid=1, cdw12=0),
        io.command(0x05, bytes(512), nsid=1, cdw12=0),
        io.command(0x09, bytes(16), nsid=1, cdw11=4),
        admin.command(FORMAT, nsid=1, cdw10=1),
        admin.command(FORMAT, nsid=ALL, cdw10=1),
        admin.command(0x84, cdw10=2),
        admin.command(0x14, nsid=1, cdw10=1),
        admin.command(0x14, nsid=ALL, cdw10=2),
        admin.command(0x86, length=64, nsid=1, cdw12=15, cdw13=0x11 << 24),
    ):
        assert (completion.status, completion.dnr) == (Status.FORMAT_IN_PROGRESS, False)
    assert read(io, 0, 1, nsid=2).status == 0
    assert io.command(0x00, nsid=1).status == 0, "Flush touches no data"
    fractions = set()
    while pending.completion is None:
        target.runtime.turn()
        pending.step()
        fractions.add(identify(admin).fpi & 0x7F)
    assert {50, 25, 0} <= fractions
    assert pending.completion.status == 0
    assert read(io, 0, 1, 4096).status == 0


def test_a_copy_in_progress_is_stopped():
    """The namespace itself stops begun work, whatever part of a command it is."""
    target = Target()
    io = target.io(target.admin())
    namespace = io.ctx.namespaces[1]
    namespace.block_access(Status.FORMAT_IN_PROGRESS)
    for operation in (
        lambda: namespace.read(0, 1),
        lambda: namespace.write(0, memoryview(bytes(512))),
        lambda: namespace.copy(0, 8, 1),
        lambda: namespace.verify(0, 1),
        lambda: namespace.compare(0, memoryview(bytes(512))),
        lambda: namespace.write_zeroes(0, 1, deallocate=True),
        lambda: namespace.deallocate(0, 1),
        lambda: namespace.mark_uncorrectable(0, 1),
    ):
        with pytest.raises(Exception, match="format"):
            operation()
    assert namespace.memory is None
    namespace.block_access(None)
    assert namespace.memory is not None


def test_hosts_get_an_event():
    target = Target()
    admin, other = target.admin(), target.admin(cntlid=0xFFFF)
    for each in (admin, other):
        each.set_feature(0x0B, 1 << 8)
    event = other.submit(other.sqe(0x0C))
    assert format_nvm(target, admin, 1).status == 0
    event.step()
    assert event.completion.dw0 == 0x040002
    assert other.read_bytes(other.log_page(4, 4096))[:8] == b"\1\0\0\0\0\0\0\0"


def test_the_persistent_event_log_has_the_format():
    target = Target()
    admin = target.admin()
    before = len(target.subsystem.history)
    format_nvm(target, admin, 1)
    assert [event.type for event in target.subsystem.history.events][before:] == [7, 8]


@pytest.mark.parametrize("name", ["write_zeroes", "flush"])
@pytest.mark.parametrize(
    ("code", "status"), [(errno.EIO, Status.WRITE_FAULT), (errno.ENOSPC, Status.CAPACITY_EXCEEDED)]
)
def test_a_backend_that_fails(name, code, status):
    backend, metadata_store = Flawed("1M"), Durable()
    target = Target(kept(backend, metadata_store))
    admin = target.admin()
    backend.fails[name] = error(code)
    assert format_nvm(target, admin, 1).status == status
    assert identify(admin).flbas == 0
    assert metadata_store.get("format") is None
    assert read(target.io(admin), 0, 1).status == 0, "the namespace can be used as before"
    backend.fails.clear()
    assert format_nvm(target, admin, 1).status == 0


def test_the_other_namespaces_stay_when_one_fails():
    backend = Flawed("1M")
    target = Target(backend, Ramdisk("1M"))
    admin = target.admin()
    backend.fails["write_zeroes"] = error()
    assert format_nvm(target, admin, 1, ALL).status == Status.WRITE_FAULT
    assert [identify(admin, nsid).flbas for nsid in (1, 2)] == [0, 0]
    assert read(target.io(admin), 0, 1, nsid=2).status == 0


def test_a_metadata_store_that_fails():
    metadata_store = Durable()
    target = Target(kept(Ramdisk("1M"), metadata_store))
    admin = target.admin()
    io = target.io(admin)
    write(io, 0, b"x" * 512)
    metadata_store.error = error(errno.ENOSPC)
    assert format_nvm(target, admin, 1).status == Status.CAPACITY_EXCEEDED
    assert io.read_bytes(read(io, 0, 1)) == b"x" * 512


def test_a_failure_at_the_very_end():
    class Ending(Durable):
        def put(self, section, value):
            if section == "format" and value == {"block_bytes": 4096}:
                raise error()
            return super().put(section, value)

    metadata_store = Ending()
    target = Target(kept(Ramdisk("1M"), metadata_store))
    admin = target.admin()
    assert format_nvm(target, admin, 1).status == Status.WRITE_FAULT
    assert (identify(admin).flbas, target.subsystem.namespaces[1].block_bytes, metadata_store.get("format")) == (
        0,
        512,
        None,
    )
    assert read(target.io(admin), 2047, 1).status == 0


def test_a_zoned_namespace():
    zoned = ZoneGeometry(zone_bytes=4 << 20, capacity_bytes=3 << 20)
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("64M"), nsid=2, zoned=zoned))
    admin = target.admin()
    admin.set_property(0x14, 0x460060)
    admin.set_property(0x14, 0x460061 | 6 << 4)
    io = target.io(admin)
    assert write(io, 0, b"x" * 4096, nsid=2).status == 0
    assert format_nvm(target, admin, 1, 2).status == 0
    namespace = target.subsystem.namespaces[2]
    assert (namespace.block_bytes, namespace.size_blocks) == (4096, 16384)
    zones = [namespace.zones.at(zslba) for zslba in range(0, 16384, 1024)]
    assert {(zone.pointer - zone.start, zone.state) for zone in zones} == {(0, ZoneState.EMPTY)}
    assert write(io, 0, b"y" * 4096, 4096, nsid=2).status == 0
    assert format_nvm(target, admin, 0, 2).status == 0
    assert write(io, 0, b"y" * 4096, nsid=2).status == 0


def test_a_format_that_can_neither_end_nor_be_undone():
    """No data may be written that the next start would erase; another format resolves the state."""

    class Failing(Durable):
        def put(self, section, value):
            result = super().put(section, value)
            if section == "format":
                self.error = error()
            return result

    backend, metadata_store = Flawed("1M"), Failing()
    target = Target(kept(backend, metadata_store))
    admin = target.admin()
    io = target.io(admin)
    backend.fails["flush"] = error()
    assert format_nvm(target, admin, 1).status == Status.WRITE_FAULT
    completion = write(io, 0, b"x" * 512)
    assert (completion.status, completion.dnr) == (Status.NAMESPACE_NOT_READY, False)
    backend.fails.clear()
    metadata_store.error = None
    backend.metadata_store = target.subsystem.namespaces[1].backend.metadata_store = Durable()
    assert format_nvm(target, admin, 1).status == 0
    assert write(io, 0, b"x" * 4096, 4096).status == 0


def test_a_sanitize_operation_ends_a_failed_format():
    metadata_store = Durable()
    target = Target(kept(Ramdisk("1M"), metadata_store))
    admin = target.admin()
    target.subsystem.namespaces[1].block_access(Status.NAMESPACE_NOT_READY)
    metadata_store.put("format", {"block_bytes": 4096, "erase": 1})
    assert submit(target, admin, 0x84, cdw10=2).status == 0
    target.runtime.settle()
    assert metadata_store.get("format") == {"block_bytes": 512}
    assert read(target.io(admin), 0, 1).status == 0


def test_an_interrupted_format_goes_on():
    metadata_store = Durable()
    target = Target(kept(Ramdisk("256M"), metadata_store))
    admin = target.admin()
    write(target.io(admin), 500000, b"x" * 512)
    admin.submit(admin.sqe(FORMAT, nsid=1, cdw10=1 | 1 << 9))
    assert metadata_store.get("format") == {"block_bytes": 4096, "erase": 1}
    # Killed here. A file would be opened with the new block size.
    backend = kept(Ramdisk("256M", block_bytes=4096), metadata_store)
    backend.memory[256000000:256000001] = b"x"
    target = Target(backend)
    target.subsystem.resume(target.runtime)
    admin = target.admin()
    io = target.io(admin)
    assert read(io, 0, 1, 4096).status == Status.FORMAT_IN_PROGRESS
    target.runtime.settle()
    assert not any(io.read_bytes(read(io, 62500, 1, 4096)))
    assert metadata_store.get("format") == {"block_bytes": 4096}


def test_identify_reports_a_format():
    admin = Target().admin()
    data = IDENTIFY_CONTROLLER.parse(admin.read_bytes(admin.identify(1)))
    assert data.oacs & 0x212 == 0x212
    assert (data.fna, data.nwpc, data.dsto, data.edstt) == (0, 1, 1, 1)
    assert data.sanicap == 1 << 30 | 1 << 29 | 1 << 2 | 1 << 1


@pytest.mark.parametrize("killed", [False, True])
async def test_a_file_stores_its_format(tmp_path, killed):
    path = tmp_path / "disk"
    backend, target = await file_target(path, size=1 << 20 | 512)
    admin = target.admin()
    io = target.io(admin)
    await execute_in_loop(io, 0x01, b"x" * 512, nsid=1, cdw12=0)
    completion = await execute_in_loop(admin, FORMAT, nsid=1, cdw10=1 | 1 << 9)
    assert completion.status == 0
    data = identify(admin)
    assert (data.nsze, data.ncap) == (256, 256)
    assert data.nuse <= 2, "what has space of its own"
    assert path.read_bytes() == bytes(1 << 20 | 512)
    assert path.stat().st_blocks * 512 <= 8192
    if not killed:
        await backend.close()
    async with Server(namespaces=[FileBackend(path, shared=True)], trtype="tcp") as server:
        assert next(iter(server.subsystems.values())).namespaces[1].block_bytes == 4096
    with pytest.raises(ConfigurationError, match="4096"):
        await FileBackend(path, block_bytes=512, shared=True).open()
    reader = FileBackend(path, read_only=True, shared=True)
    await reader.open()
    assert reader.capabilities.block_bytes == 4096
    await reader.close()
    await backend.close()


async def test_a_file_in_the_middle_of_a_format(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (1 << 20))
    backend = FileBackend(path)
    await backend.open()
    pending = backend.metadata_store.put("format", {"block_bytes": 4096, "erase": 0})
    await pending
    await backend.close()
    async with Server(namespaces=[FileBackend(path)], trtype="tcp") as server:
        namespace = next(iter(server.subsystems.values())).namespaces[1]
        assert namespace.block_bytes == 4096
        while namespace.blocked_status:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert path.read_bytes() == bytes(1 << 20)


class Sequence(RuleBasedStateMachine):
    """Formats, kills in the middle of them, failures and writes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata_store = Durable()
        self.backend = kept(Flawed("192M"), self.metadata_store)
        self.pending = None
        self.wanted = 512  # the block size once all jobs have ended
        self.marked: int | None = None  # where a byte was written since the last format
        self.boot()

    def boot(self) -> None:
        self.backend.set_block_bytes(formatted_block_bytes(self.metadata_store) or 512)
        self.target = Target(self.backend)
        self.target.subsystem.resume(self.target.runtime)
        self.namespace = self.target.subsystem.namespaces[1]
        self.admin = self.target.admin()
        self.io = self.target.io(self.admin)

    @property
    def busy(self) -> bool:
        return self.namespace.blocked_status is not None

    def advance(self, turns: int) -> None:
        for _ in range(turns):
            self.target.runtime.turn()
            if self.pending is not None and self.pending.step() is not None:
                assert self.pending.completion.status in (0, Status.WRITE_FAULT)
                self.wanted = self.namespace.block_bytes
                self.pending = None

    @rule(index=st.integers(0, 1), ses=st.integers(0, 1))
    def format(self, index, ses):
        result = self.admin.submit(self.admin.sqe(FORMAT, nsid=1, cdw10=index | ses << 9))
        if self.busy and not isinstance(result, Pending):
            assert result.status == Status.FORMAT_IN_PROGRESS
            return
        assert isinstance(result, Pending)
        self.wanted, self.marked = (512, 4096)[index], None
        self.pending = result
        self.advance(0)
        if result.completion is not None:
            self.wanted, self.pending = self.namespace.block_bytes, None

    @rule(turns=st.integers(1, 3))
    def go_on(self, turns):
        self.advance(turns)

    @rule()
    def settle(self):
        self.advance(30)
        assert not self.busy

    @rule()
    def kill(self):
        if self.pending is not None:
            self.pending.close()
            self.pending = None
        self.boot()

    @rule(fails=st.booleans())
    def fails(self, fails):
        self.backend.fails = {"write_zeroes": error()} if fails else {}

    @rule(slba=st.sampled_from([0, 5, 49151]))
    def write(self, slba):
        size = self.namespace.block_bytes
        status = write(self.io, slba, b"x" * size, size).status
        assert status == (Status.FORMAT_IN_PROGRESS if self.busy else 0)
        if not status:
            self.marked = slba

    @invariant()
    def consistent(self):
        data = identify(self.admin)
        assert data.nsze * self.namespace.block_bytes == 192 << 20
        assert (data.fpi & 0x7F > 0) <= self.busy
        size = self.namespace.block_bytes
        for slba in (0, 5, 49151):
            completion = read(self.io, slba, 1, size)
            if self.busy:
                assert completion.status == Status.FORMAT_IN_PROGRESS
            elif self.marked == slba:
                assert self.io.read_bytes(completion) == b"x" * size
            else:
                assert completion.status == 0
        if not self.busy:
            kept_format = self.metadata_store.get("format")
            assert kept_format is None or kept_format["block_bytes"] == size


TestSequence = Sequence.TestCase
TestSequence.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
