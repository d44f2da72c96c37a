"""Faults of a file that is served: its media fails, its size changes, its name is given to another file."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nvmeof.target.core.log_rate import CAUSES_MOST
from nvmeof.target.namespaces import namespace
from nvmeof.target.namespaces.lost_writes import LostWrites
from nvmeof.target.namespaces.zone_geometry import ZoneGeometry
from nvmeof.target.server import Target
from nvmeof.target.storage import fault_log, file_calls, kernel_aio
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.fault_log import FaultLog
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.filter import BackendFilter, Kind
from nvmeof.target.storage.filters.delay import DelayFilter
from nvmeof.target.storage.filters.error import ErrorFilter
from nvmeof.target.subsystem.config import NamespaceConfig
from tests.conformance.rawhost import (
    FLUSH,
    IN_CAPSULE,
    WRITE,
    WRITE_ZEROES,
    RawHost,
    association,
    io_sqe,
    make_sqe,
    running,
    until,
)

OUT_OF_RANGE, WRITE_FAULT, UNRECOVERED_READ_ERROR, CAPACITY_EXCEEDED = 0x80, 0x280, 0x281, 0x81
MIB = 1 << 20


@pytest.fixture(autouse=True)
def left_open(monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (namespace, file_calls):
        monkeypatch.setattr(module, "_faults", FaultLog(logging.getLogger(module.__name__)))
    yield
    RawHost.close_all()


@dataclass
class Hosts:
    """A target of one file, and its hosts."""

    target: Target
    path: Path

    async def host(self, number: int) -> tuple[RawHost, RawHost]:
        admin, io = await association(self.target, hostid=bytes([number] * 16))
        return admin, io

    async def flush(self, io: RawHost) -> int:
        return (await io.call(make_sqe(5, FLUSH, nsid=1))).status

    async def size(self, admin: RawHost) -> int:
        return int(struct.unpack_from("<Q", (await admin.call(make_sqe(6, 6, nsid=1, length=4096))).data)[0])

    async def changed(self, admin: RawHost) -> int:
        """Return the first NSID of the Changed Attached Namespace List."""
        page = await admin.call(make_sqe(7, 2, length=4096, cdw10=4 | 1023 << 16))
        return int(struct.unpack_from("<I", page.data)[0])


@asynccontextmanager
async def serving(path: Path, zoned: ZoneGeometry | None = None, **options: Any) -> AsyncIterator[Hosts]:
    config = NamespaceConfig(backend=FileBackend(path, **options), zoned=zoned)
    async with running(check=False, namespaces=[config]) as target:
        yield Hosts(target, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "disk").write_bytes(os.urandom(MIB))
    return tmp_path / "disk"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let fdatasync fail with errors, one after another."""
    codes: list[int] = []
    fdatasync = os.fdatasync

    def fails(fd: int) -> None:
        if codes:
            code = codes.pop(0)
            raise OSError(code, os.strerror(code))
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", fails)
    return codes


def content(path: Path) -> bytes:
    return path.read_bytes()


def lose_name(path: Path, *, replace: bool) -> None:
    if replace:
        (path.parent / "new").write_bytes(bytes(4096))
        (path.parent / "new").rename(path)
    else:
        path.unlink()


# The media fails


@pytest.mark.parametrize(("code", "status"), [(errno.EIO, WRITE_FAULT), (errno.ENOSPC, CAPACITY_EXCEEDED)])
async def test_every_host_learns_of_a_sync_that_failed(
    path: Path, broken: list[int], caplog: pytest.LogCaptureFixture, code: int, status: int
) -> None:
    """The system reports the failure once, to the first caller; all hosts may have lost their writes."""
    async with serving(path) as hosts:
        first, second, third = [await hosts.host(number) for number in (1, 2, 3)]
        for _, io in (first, second, third):
            assert (await io.write(0, bytes(512))).status == 0
        broken.append(code)
        assert await hosts.flush(second[1]) == status
        for _ in range(2):
            assert await hosts.flush(second[1]) == 0, "it knows"
        first[0].close()
        first[1].close()
        again = await hosts.host(1)
        assert await hosts.flush(again[1]) == status, "also after it has connected again"
        assert (await third[1].write(0, bytes(512), cdw12=1 << 30)).status == status, "FUA"
        new = await hosts.host(4)
        for _, io in (again, second, third, new):
            assert await hosts.flush(io) == 0
            assert (await io.write(0, bytes(512), cdw12=1 << 30)).status == 0
        broken.append(code)
        assert [await hosts.flush(io) for _, io in (new, third, second, new)] == [status, status, status, 0]
        lines = [record.message for record in caplog.records if "writing to the media failed" in record.message]
        assert len(lines) == 1 and f"{path}: writing to the media failed: {os.strerror(code)}" in lines[0]


FUA = 1 << 30
COPY, COMPARE, ZONE_APPEND = 0x19, 0x05, 0x7D
ZONES = ZoneGeometry(zone_bytes=64 * 512)


async def changed_with_fua(io: RawHost, how: str) -> int:
    """Return the status of a command that changes blocks with FUA (of a fused pair: of its write)."""
    if how == "zeroes":
        return int((await io.call(io_sqe(7, WRITE_ZEROES, 0, 1, length=0, cdw12=FUA))).status)
    if how == "copy":
        copy = make_sqe(7, COPY, nsid=1, length=32, sgl=IN_CAPSULE, cdw10=8, cdw12=FUA)
        return int((await io.call(copy, struct.pack("<8xQH14x", 0, 0))).status)
    if how == "append":
        append = io_sqe(7, ZONE_APPEND, 0, 1, sgl=IN_CAPSULE, cdw12=FUA)
        return int((await io.call(append, bytes(512))).status)
    compare = io_sqe(7, COMPARE, 0, 1, sgl=IN_CAPSULE, flags=0x41)
    write = io_sqe(8, WRITE, 0, 1, sgl=IN_CAPSULE, flags=0x42, cdw12=FUA)
    await io.send(io.capsule(compare, bytes(512)) + io.capsule(write, bytes(512)))
    assert (await io.completion(7)).status == 0
    return int((await io.completion(8)).status)


@pytest.mark.parametrize("how", ["zeroes", "copy", "fused", "append"])
async def test_every_command_with_fua_reports_a_failed_sync(path: Path, broken: list[int], how: str) -> None:
    os.truncate(path, 0)
    os.truncate(path, MIB)
    async with serving(path, ZONES if how == "append" else None) as hosts:
        (_, first), (_, second) = await hosts.host(1), await hosts.host(2)
        assert (await first.write(0, bytes(512))).status == 0
        broken.append(errno.EIO)
        assert await hosts.flush(second) == WRITE_FAULT
        assert await changed_with_fua(first, how) == WRITE_FAULT
        assert await changed_with_fua(first, how) == 0, "it knows"
        broken.append(errno.EIO)
        assert await hosts.flush(second) == WRITE_FAULT
        assert await changed_with_fua(second, how) == 0, "it knows from its Flush"


async def test_filters_hide_neither_failures_nor_sizes(path: Path, broken: list[int]) -> None:
    backend = ErrorFilter(DelayFilter(FileBackend(path), {}), kinds=[Kind.FLUSH], after=1, count=1)
    async with running(check=False, namespaces=[NamespaceConfig(backend=backend)]) as target:
        hosts = Hosts(target, path)
        (admin, first), (_, second) = await hosts.host(1), await hosts.host(2)
        broken.append(errno.ENOSPC)
        assert [await hosts.flush(io) for io in (first, second)] == [CAPACITY_EXCEEDED, WRITE_FAULT]
        assert [await hosts.flush(io) for io in (first, second, first, second)] == [CAPACITY_EXCEEDED, 0, 0, 0]
        os.truncate(path, 2 * MIB)
        assert await hosts.size(admin) == 4096


def test_a_filter_forwards_every_member() -> None:
    members = {name for name in vars(Backend) if not name.startswith("_")} | set(Backend.__annotations__)
    assert {name for name in members if not name.startswith("_")} - set(vars(BackendFilter)) == set()


async def test_health_reports_it(path: Path, broken: list[int]) -> None:
    async with serving(path) as hosts:
        (admin, _), (_, other) = await hosts.host(1), await hosts.host(2)
        assert (await admin.call(make_sqe(2, 9, cdw10=0x0B, cdw11=1 << 2))).status == 0
        for cid in (11, 12):
            await admin.send(admin.capsule(make_sqe(cid, 0x0C)))
        broken.append(errno.EIO)
        await hosts.flush(other)
        assert [(await admin.completion(cid)).dw0 & 0xFFFFFF for cid in (11, 12)] == [0x010400, 0x020001]
        smart = await admin.call(make_sqe(3, 2, length=512, cdw10=2 | 127 << 16, nsid=0xFFFFFFFF))
        assert smart.data[0] == 1 << 2
        entry = (await admin.call(make_sqe(4, 2, length=64, cdw10=1 | 15 << 16))).data
        assert struct.unpack_from("<HHH", entry, 8)[:2] == (0xFFFF, 0xFFFF)
        assert struct.unpack_from("<I", entry, 24)[0] == 1, "the namespace"


async def test_a_flush_after_a_failure_reports_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own sync succeeds, since the failure was reported to the one before: its data may nevertheless be lost."""
    async with serving(path) as hosts:
        (_, first), (_, second) = await hosts.host(1), await hosts.host(2)
        go, calls, fdatasync = threading.Event(), [], os.fdatasync

        def slow(fd: int) -> None:
            calls.append(fd)
            if len(calls) == 1:
                go.wait(10)
                raise OSError(errno.EIO, "broken")
            fdatasync(fd)

        monkeypatch.setattr(os, "fdatasync", slow)
        one = asyncio.ensure_future(hosts.flush(first))
        await until(lambda: calls)
        two = asyncio.ensure_future(hosts.flush(second))
        backend = next(iter(hosts.target.subsystems.values())).namespaces[1].backend
        await until(lambda: backend._flush_waiters)
        go.set()
        assert [await one, await two] == [WRITE_FAULT, WRITE_FAULT]


def test_hosts_whose_record_was_dropped_get_the_error_again() -> None:
    lost = LostWrites()
    for number in range(5000):
        lost.connected(number.to_bytes(16, "big"), 0)
    assert len(lost._told) == 4096
    lost.connected(b"new", 1)
    assert not lost.tell(b"new", 1)
    assert lost.tell(bytes(16), 1) and not lost.tell(bytes(16), 1) and lost.tell(b"new", 2)


@pytest.mark.parametrize(
    ("code", "on_write"),
    [
        (errno.ENOSPC, (CAPACITY_EXCEEDED, True)),
        (errno.EDQUOT, (CAPACITY_EXCEEDED, True)),
        (errno.EIO, (WRITE_FAULT, True)),
        (errno.ENODATA, (WRITE_FAULT, True)),
        (errno.EUCLEAN, (WRITE_FAULT, True)),
        (errno.EPERM, (0x20, True)),
        (errno.EROFS, (0x20, True)),
        (errno.ESTALE, (0x82, False)),
    ],
)
async def test_a_full_disk_is_a_line_of_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, on_write: Any
) -> None:
    """One line, however many commands fail; and the status that says what is wrong."""

    def fails(*arguments: Any) -> int:
        raise OSError(code, os.strerror(code))

    async with serving(path) as hosts:
        _, io = await hosts.host(1)
        monkeypatch.setattr(kernel_aio, "_NUMBERS", {})  # each write of a run by a pwritev
        monkeypatch.setattr(os, "pwritev", fails)
        for _ in range(20):
            completion = await io.write(0, bytes(512))
            assert (completion.status, completion.dnr) == on_write
        monkeypatch.undo()
        lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.message for record in lines] == [
            f"writing to namespace 1 (file {path}) failed: {os.strerror(code)}"
        ]


def test_lines_that_were_left_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    faults = FaultLog(logging.getLogger("x"), now=lambda: now)
    for _ in range(5):
        faults.error("full", "the disk is full")
        faults.error("bad", "the disk is bad")
    now += fault_log.SECONDS
    faults.error("full", "the disk is full")
    for kind in range(1000):
        faults.error(kind, "x")
    messages = [record.message for record in caplog.records]
    assert messages[:3] == ["the disk is full", "the disk is bad", "the disk is full (4 more like this)"]
    assert len(faults._rate._causes) <= CAUSES_MOST


# Its size changes


async def noticed(hosts: Hosts, admin: RawHost, how: str, io: RawHost) -> None:
    if how == "Identify":
        await hosts.size(admin)
    elif how == "a read":
        assert (await io.read(2047, 1)).status == UNRECOVERED_READ_ERROR
    elif how == "a write":
        assert (await io.write(2047, bytes(512))).status == OUT_OF_RANGE
    elif how == "a write with FUA":
        assert (await io.write(2047, bytes(512), cdw12=1 << 30)).status == OUT_OF_RANGE


@pytest.mark.parametrize("how", ["Identify", "a while"])
@pytest.mark.parametrize("now", [2 * MIB, 3 * MIB + 700])
async def test_a_file_that_grows(path: Path, caplog: pytest.LogCaptureFixture, how: str, now: int) -> None:
    async with serving(path) as hosts:
        admin, io = await hosts.host(1)
        assert await hosts.size(admin) == 2048
        assert (await admin.call(make_sqe(2, 9, cdw10=0x0B, cdw11=1 << 8))).status == 0
        await admin.send(admin.capsule(make_sqe(9, 0x0C)))
        os.truncate(path, now)
        await noticed(hosts, admin, how, io)
        assert (await admin.completion(9)).dw0 == 0x040002
        assert await hosts.changed(admin) == 1
        assert await hosts.size(admin) == now // 512
        assert (await io.write(now // 512 - 1, bytes(512))).status == 0
        assert f"file {path} has grown from {MIB} to {now // 512 * 512} bytes; hosts are told" in caplog.text
        assert await hosts.size(admin) == now // 512 and caplog.text.count("has grown") == 1


@pytest.mark.parametrize("how", ["Identify", "a while", "a read", "a write", "a write with FUA"])
async def test_a_file_that_is_truncated(path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """Data beyond the new end is lost, and never read as zeroes."""
    was = content(path)
    async with serving(path) as hosts:
        admin, io = await hosts.host(1)
        assert (await admin.call(make_sqe(2, 9, cdw10=0x0B, cdw11=1 << 8))).status == 0
        await admin.send(admin.capsule(make_sqe(9, 0x0C)))
        os.truncate(path, MIB // 2)
        await noticed(hosts, admin, how, io)
        assert (await admin.completion(9)).dw0 == 0x040002
        assert await hosts.size(admin) == 1024
        for slba in (1024, 1500, 2047):
            assert (await io.read(slba, 1)).status == OUT_OF_RANGE
            assert (await io.write(slba, bytes(512))).status == OUT_OF_RANGE
        assert (await io.read(1023, 1)).data == was[MIB // 2 - 512 : MIB // 2]
        assert (await io.write(1023, bytes(512))).status == 0
        assert len(content(path)) == MIB // 2, "no write has made it longer"
        assert f"file {path} has become shorter, from {MIB} to {MIB // 2} bytes" in caplog.text


async def test_a_write_beyond_the_end_makes_no_hole(path: Path) -> None:
    """Before the truncation was noticed: at once, in a thread, and by every command that writes."""
    async with serving(path) as hosts:
        _, io = await hosts.host(1)
        os.truncate(path, 4096)
        ranges = struct.pack("<8xQH6x8x", 0, 0).ljust(32, b"\0")
        statuses = [
            (await io.write(100, bytes(512))).status,
            (await io.call(make_sqe(3, 8, nsid=1, cdw10=100, cdw12=0))).status,
            (await io.call(make_sqe(3, 0x19, nsid=1, cdw10=100, length=32), ranges)).status,
        ]
        assert all(statuses) and len(content(path)) == 4096


async def test_a_size_that_was_given_is_a_limit(path: Path) -> None:
    async with serving(path, size=MIB // 2) as hosts:
        admin, _ = await hosts.host(1)
        os.truncate(path, 2 * MIB)
        assert await hosts.size(admin) == 1024
        os.truncate(path, MIB // 4)
        assert await hosts.size(admin) == 512
        os.truncate(path, 2 * MIB)
        assert await hosts.size(admin) == 1024


async def test_nothing_remains(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(path) as hosts:
        admin, io = await hosts.host(1)
        os.truncate(path, 0)
        assert await hosts.size(admin) == 0
        assert (await io.read(0, 1)).status == OUT_OF_RANGE
        assert await hosts.flush(io) == 0
    assert "from 1048576 to 0 bytes" in caplog.text


async def test_zones_of_a_file_that_changes(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(path, ZoneGeometry(zone_bytes=64 << 10)) as hosts:
        admin, io = await hosts.host(1)
        os.truncate(path, 2 * MIB)
        assert await hosts.size(admin) == 4096
        os.truncate(path, MIB)
        assert await hosts.size(admin) == 2048
        os.truncate(path, 512)
        await hosts.size(admin)
        assert "cannot be used until the next start" in caplog.text
        assert (await io.read(0, 1)).status == 0x82


@pytest.mark.parametrize("how", ["replaced", "removed"])
async def test_a_file_that_loses_its_name(path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """The target goes on with the old file, as is usual in Unix, and reports it."""
    async with serving(path) as hosts:
        admin, io = await hosts.host(1)
        lose_name(path, replace=how == "replaced")
        for _ in range(3):
            assert await hosts.size(admin) == 2048
        assert caplog.text.count(f"{path} has been removed or replaced by another file") == 1
        assert (await io.write(0, bytes(512))).status == 0
