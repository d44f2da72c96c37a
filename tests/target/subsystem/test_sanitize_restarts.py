"""Sanitize over restarts: operations go on, failures persist, and half erased data is not readable."""

import asyncio
import json

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.spec.status import Status
from nvmeof.target.server import Target as Server
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.ramdisk import Ramdisk
from nvmeof.target.subsystem.sanitize import SanitizeState
from tests.target.commands.test_nvm import read, write
from tests.target.harness import Target
from tests.target.media_tools import Durable, Flawed, error, execute_in_loop, file_target, kept, sanitize_log
from tests.target.subsystem.test_sanitize import AUSE, BLOCK_ERASE, EXIT, OVERWRITE, SANITIZE, start


@pytest.mark.parametrize("kill_after", range(0, 40, 3))
@pytest.mark.parametrize("cdw10", [BLOCK_ERASE | AUSE, OVERWRITE | 2 << 4])
def test_an_interrupted_operation_goes_on(kill_after, cdw10):
    metadata_store, data = Durable(), Flawed("128M")
    target = Target(kept(data, metadata_store), Ramdisk("1M"))
    admin = target.admin()
    write(target.io(admin), 200000, b"x" * 512)
    assert start(target, admin, cdw10).status == 0
    assert metadata_store.get("sanitize")["state"] == "running"
    for _ in range(kill_after):
        target.runtime.turn()
    done = not target.subsystem.sanitizer.state.processing
    target = Target(data, Ramdisk("1M"))
    target.subsystem.resume(target.runtime)
    admin = target.admin()
    io = target.io(admin)
    log = sanitize_log(admin)
    assert (log.sstat & 7, log.scdw10) == (1 if done else 2, cdw10)
    if not done:
        assert read(io, 0, 1).status == Status.SANITIZE_IN_PROGRESS
        target.subsystem.resume(target.runtime)  # another namespace was added: no second operation
    target.runtime.settle()
    assert sanitize_log(admin).sstat & 7 == 1
    assert not any(io.read_bytes(read(io, 200000, 1)))
    assert metadata_store.get("sanitize")["state"] == "done"


def test_the_subsystem_records_disks_without_metadata():
    metadata_store, backend = Durable(), Ramdisk("128M")
    target = Target(backend, metadata_store=metadata_store)
    admin = target.admin()
    write(target.io(admin), 200000, b"x" * 512)
    start(target, admin)
    target = Target(backend, Ramdisk("1M"), metadata_store=metadata_store)
    target.subsystem.namespaces[2].backend.memory[:1] = b"y"
    target.subsystem.resume(target.runtime)
    admin = target.admin()
    assert sanitize_log(admin).sstat & 7 == 2
    target.runtime.settle()
    assert backend.allocated(0, 128 << 20) == []
    assert target.subsystem.namespaces[2].backend.memory[:1] == b"y"
    assert sanitize_log(Target(backend, metadata_store=metadata_store).admin()).sstat & 7 == 0, (
        "not before it was resumed"
    )


def test_another_disk_in_the_same_place_is_not_erased():
    """A configured namespace has the same UUID, whatever disk it is."""
    metadata_store = Durable()
    target = Target(Ramdisk("1M"), metadata_store=metadata_store)
    start(target, target.admin())
    assert metadata_store.get("sanitize")["state"] == "running"
    other = Ramdisk("1M")
    other.memory[:1] = b"x"
    target = Target(other, metadata_store=metadata_store)
    target.subsystem.resume(target.runtime)
    target.runtime.settle()
    assert other.memory[:1] == b"x"
    assert sanitize_log(target.admin()).sstat & 7 == 3, "it has not succeeded either"
    admin = target.admin()
    assert target.subsystem.sanitizer.state is SanitizeState.IDLE
    assert read(target.io(admin), 0, 1).status == 0


def test_other_namespaces_are_left_alone_when_the_operation_goes_on():
    metadata_store = Durable()
    target = Target(kept(Ramdisk("1M"), metadata_store))
    start(target, target.admin())
    newcomer = kept(Ramdisk("1M"), Durable())
    newcomer.memory[:1] = b"x"
    target = Target(kept(Ramdisk("1M"), metadata_store), newcomer)
    target.subsystem.resume(target.runtime)
    target.runtime.settle()
    assert newcomer.memory[:1] == b"x"
    assert newcomer.metadata_store.get("sanitize") is None


@pytest.mark.parametrize("ause", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_a_failure_outlasts_a_restart(ause, left):
    metadata_store, backend = Durable(), Flawed("1M")
    target = Target(kept(backend, metadata_store))
    admin = target.admin()
    backend.fails["write_zeroes"] = error()
    start(target, admin, BLOCK_ERASE | (AUSE if ause else 0))
    target.runtime.settle()
    if left and ause:
        assert start(target, admin, EXIT).status == 0
    target = Target(backend)
    target.subsystem.resume(target.runtime)
    admin = target.admin()
    assert sanitize_log(admin).sstat & 7 == 3
    status = 0 if left and ause else Status.SANITIZE_FAILED
    assert read(target.io(admin), 0, 1).status == status


@pytest.mark.parametrize("nonsense", [1, {}, {"state": "strange", "cdw10": 1, "cdw11": 0, "left": False}, [1]])
def test_an_invalid_stored_operation_is_reported(nonsense):
    """The operation may have been to erase everything."""
    metadata_store = Durable()
    metadata_store._values["sanitize"] = nonsense
    with pytest.raises(ConfigurationError, match="section 'sanitize' of"):
        Target(kept(Ramdisk("1M"), metadata_store))


async def test_a_file_is_overwritten_and_deallocated(tmp_path):
    path = tmp_path / "disk"
    backend, target = await file_target(path, size="8M")
    admin = target.admin()
    io = target.io(admin)
    await execute_in_loop(io, 0x01, b"x" * 65536, nsid=1, cdw10=4096, cdw12=127)
    seen = []
    allocated = backend.allocated

    def watched(offset, length):
        seen.append(path.read_bytes().count(b"x"))
        return allocated(offset, length)

    backend.allocated = watched
    assert (await execute_in_loop(admin, SANITIZE, cdw10=OVERWRITE | 2 << 4, cdw11=0x79797979)).status == 0
    assert (await execute_in_loop(io, 0x02, nsid=1, length=512)).status == Status.SANITIZE_IN_PROGRESS
    assert (await execute_in_loop(io, 0x00, nsid=1)).status == 0
    while target.subsystem.sanitizer.state.processing:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert seen == [65536, 0]
    assert path.read_bytes() == bytes(8 << 20)
    assert path.stat().st_blocks == 0
    await backend.close()


async def test_a_server_that_is_killed_goes_on(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (4 << 20))
    backend, target = await file_target(path)
    assert (await execute_in_loop(target.admin(), SANITIZE, cdw10=BLOCK_ERASE)).status == 0
    await target.runtime.stop()
    await backend.close()
    assert b"x" in path.read_bytes()
    async with Server(namespaces=[FileBackend(path)], trtype="tcp") as server:
        sanitizer = server.subsystems[server.subnqn].sanitizer
        assert sanitizer.state is SanitizeState.RESTRICTED_PROCESSING
        while sanitizer.state.processing:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert path.read_bytes() == bytes(4 << 20)


@pytest.mark.parametrize(
    "section",
    [
        {"sanitize": {"state": "running", "cdw10": 2, "cdw11": 0, "left": False}},
        {"format": {"block_bytes": 512, "erase": 1}},
    ],
)
@pytest.mark.parametrize("how", [{"read_only": True}, {"shared": True}])
async def test_a_half_erased_file_is_not_served(tmp_path, section, how):
    """The target cannot go on erasing: the file is served read-only, or another process has it."""
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 8192)
    (tmp_path / "disk.nvmeof").write_text(json.dumps({"nvmeof": 1, "kept": section}))
    first = FileBackend(path)
    if "shared" in how:
        await first.open()
    with pytest.raises(ConfigurationError, match="only partly erased"):
        await Server(namespaces=[FileBackend(path, **how)], trtype="tcp").start()
    await first.close()


async def test_a_file_that_could_not_be_erased_is_not_served_read_only(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 8192)
    failed = {"sanitize": {"state": "failed", "cdw10": 2, "cdw11": 0, "left": False}}
    (tmp_path / "disk.nvmeof").write_text(json.dumps({"nvmeof": 1, "kept": failed}))
    async with Server(namespaces=[FileBackend(path, read_only=True)], trtype="tcp") as server:
        assert server.subsystems[server.subnqn].namespaces[1].blocked_status == Status.SANITIZE_FAILED


async def test_a_stop_in_the_middle_is_quick(tmp_path):
    path = tmp_path / "disk"
    async with Server(namespaces=[FileBackend(path, size="64M"), Ramdisk("1T")], trtype="tcp") as server:
        subsystem = server.subsystems[server.subnqn]
        await subsystem.sanitizer.start(server.runtime, BLOCK_ERASE, 0, lambda sanitizer: None)
    assert subsystem.sanitizer.state.processing
