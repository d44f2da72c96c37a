import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE
from nvmeof.spec.status import Status
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.target.backend_tools import killed
from tests.target.commands.test_nvm import read, write
from tests.target.harness import Target
from tests.target.media_tools import (
    Durable,
    Flawed,
    error,
    execute_in_loop,
    file_target,
    finish,
    kept,
    location,
    submit,
)

ALL = 0xFFFFFFFF


def protect(target, admin, state=1, nsid=1, **fields):
    return submit(target, admin, 0x09, nsid=nsid, cdw10=0x84, cdw11=state, **fields)


def protection(admin, nsid=1, sel=0):
    return admin.command(0x0A, nsid=nsid, cdw10=0x84 | sel << 8)


def nsattr(admin, nsid=1):
    return IDENTIFY_NAMESPACE.parse(admin.read_bytes(admin.identify(0, nsid))).nsattr


def test_on_and_off():
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    assert (protection(admin).dw0, nsattr(admin)) == (0, 0)
    assert write(io, 0, b"x" * 512).status == 0
    admission_token = io.controller.namespaces.admission_token(io.ctx.namespaces[1])
    assert protect(target, admin).status == 0
    assert not admission_token.valid
    assert (protection(admin).dw0, nsattr(admin)) == (1, 1)
    assert protection(admin, sel=1).dw0 == 0
    assert protection(admin, sel=3).dw0 == 0b110
    assert write(io, 0, b"y" * 512).status == Status.NAMESPACE_WRITE_PROTECTED
    assert io.read_bytes(read(io, 0, 1)) == b"x" * 512
    assert protect(target, admin, 0).status == 0
    assert nsattr(admin) == 0
    assert write(io, 0, b"y" * 512).status == 0


COMMANDS = [  # opcode, data, fields, allowed
    (0x00, None, {}, True),
    (0x01, bytes(512), {}, False),
    (0x02, None, {"length": 512}, True),
    (0x04, None, {}, False),
    (0x05, bytes(512), {}, True),
    (0x08, None, {}, False),
    (0x09, bytes(16), {"cdw11": 4}, False),
    (0x09, bytes(16), {"cdw11": 3}, True),
    (0x0C, None, {}, True),
    (0x19, bytes(32), {"cdw10": 100}, False),
]


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_every_io_command(number):
    target = Target()
    admin = target.admin()
    io = target.io(admin)
    protect(target, admin)
    opcode, data, fields, allowed = COMMANDS[number]
    status = io.command(opcode, data, nsid=1, **fields).status
    assert status == (0 if allowed else Status.NAMESPACE_WRITE_PROTECTED)


def test_admin_commands():
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    admin = target.admin()
    protect(target, admin)
    assert submit(target, admin, 0x80, nsid=1, cdw10=0).status == Status.NAMESPACE_WRITE_PROTECTED
    assert submit(target, admin, 0x80, nsid=ALL, cdw10=0).status == Status.NAMESPACE_WRITE_PROTECTED
    assert submit(target, admin, 0x80, nsid=2, cdw10=0).status == 0
    assert submit(target, admin, 0x84, cdw10=2).status == Status.NAMESPACE_WRITE_PROTECTED
    assert submit(target, admin, 0x14, nsid=1, cdw10=1).status == 0
    assert submit(target, admin, 0x86, nsid=1, length=64, cdw12=15, cdw13=0x11 << 24).status == 0


@pytest.mark.parametrize(
    ("state", "nsid", "fields", "status", "where"),
    [
        (2, 1, {}, Status.INVALID_FIELD, 44),
        (3, 1, {}, Status.INVALID_FIELD, 44),
        (7, 1, {}, Status.INVALID_FIELD, 44),
        (1 << 3, 1, {}, Status.INVALID_FIELD, 44 | 3 << 8),
        (1 << 31, 1, {}, Status.INVALID_FIELD, 47 | 7 << 8),
        (1, 0, {}, Status.INVALID_NAMESPACE, 4),
        (1, 2, {}, Status.INVALID_FIELD, 4),
        (1, 5000, {}, Status.INVALID_NAMESPACE, 4),
        (1, 1, {"cdw10": 0x84 | 1 << 31}, Status.FEATURE_NOT_SAVEABLE, 43 | 7 << 8),
    ],
)
def test_refusals(state, nsid, fields, status, where):
    target = Target()
    admin = target.admin()
    command = {"nsid": nsid, "cdw10": 0x84, "cdw11": state, **fields}
    assert submit(target, admin, 0x09, **command).status == status
    assert location(admin) == where
    assert nsattr(admin) == 0


def test_all_namespaces():
    target = Target(Ramdisk("1M"), Ramdisk("1M"))
    admin = target.admin()
    assert protect(target, admin, 1, ALL).status == 0
    assert [nsattr(admin, nsid) for nsid in (1, 2)] == [1, 1]
    assert protection(admin, ALL).status == Status.INVALID_NAMESPACE


def test_hosts_get_an_event():
    target = Target()
    admin, other = target.admin(), target.admin()
    other.set_feature(0x0B, 1 << 8)
    event = other.submit(other.sqe(0x0C))
    protect(target, admin)
    assert event.step().dw0 == 0x040002


def test_a_configured_read_only_namespace_is_not_write_protected():
    target = Target()
    target.subsystem.add_namespace(NamespaceConfig(backend=Ramdisk("1M"), read_only=True))
    admin = target.admin()
    assert (protection(admin, 2).dw0, nsattr(admin, 2)) == (0, 1)
    assert protect(target, admin, 0, 2).status == 0
    assert nsattr(admin, 2) == 1


def test_protection_holds_for_all_hosts_and_through_resets():
    target = Target()
    admin = target.admin()
    protect(target, admin)
    other = target.admin()
    assert write(target.io(other), 0, bytes(512)).status == Status.NAMESPACE_WRITE_PROTECTED
    admin.set_property(0x14, 0x460060)
    admin.set_property(0x14, 0x460061)
    assert protection(admin).dw0 == 1


def test_a_namespace_that_cannot_be_flushed_is_not_protected():
    backend = Flawed("1M")
    target = Target(backend)
    admin = target.admin()
    backend.fails["flush"] = error()
    assert protect(target, admin).status == Status.WRITE_FAULT
    assert write(target.io(admin), 0, bytes(512)).status == 0


def test_a_metadata_store_that_fails():
    metadata_store = Durable()
    target = Target(kept(Ramdisk("1M"), metadata_store))
    admin = target.admin()
    metadata_store.error = error(errno.ENOSPC)
    assert protect(target, admin).status == Status.INTERNAL_ERROR


@pytest.mark.parametrize("was_killed", [False, True])
async def test_a_file_stays_protected(tmp_path, was_killed):
    path = tmp_path / "disk"
    backend, target = await file_target(path, size="1M")
    admin = target.admin()
    assert (await execute_in_loop(admin, 0x09, nsid=1, cdw10=0x84, cdw11=1)).status == 0
    await backend.close() if not was_killed else killed(backend)
    again = FileBackend(path)
    await again.open()
    target = Target(again)
    admin = target.admin()
    io = target.io(admin)
    assert protection(admin).dw0 == 1
    assert write(io, 0, bytes(512)).status == Status.NAMESPACE_WRITE_PROTECTED
    assert (await execute_in_loop(admin, 0x09, nsid=1, cdw10=0x84, cdw11=0)).status == 0
    killed(again)
    last = FileBackend(path)
    await last.open()
    assert not Target(last).subsystem.namespaces[1].write_protected
    for each in (backend, again, last):
        await each.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["protect", "allow", "write", "restart", "reset"]), max_size=15))
def test_any_sequence(actions):
    metadata_store, backend = Durable(), Ramdisk("1M")
    target = Target(kept(backend, metadata_store))
    admin = target.admin()
    protected, content = False, 0
    for number, action in enumerate(actions, 1):
        if action in ("protect", "allow"):
            assert protect(target, admin, int(action == "protect")).status == 0
            protected = action == "protect"
        elif action == "write":
            io = target.io(admin, number)
            data = bytes([number]) * 512
            status = finish(target, io.submit(io.sqe(0x01, data, nsid=1, cdw12=0), data)).status
            assert status == (Status.NAMESPACE_WRITE_PROTECTED if protected else 0)
            content = content if protected else number
        elif action == "restart":
            target = Target(backend)
            admin = target.admin()
        else:
            admin.set_property(0x14, 0x460060)
            admin.set_property(0x14, 0x460061)
        assert (protection(admin).dw0, nsattr(admin), backend.memory[0]) == (protected, protected, content)
