"""Zones stored in a file: their state after an end, a kill, and a loss of power."""

import asyncio
import errno
import os
import shutil
import zlib

import pytest

from nvmeof.errors import ConfigurationError
from nvmeof.spec.zns import ZoneState
from nvmeof.target.storage import zone_file
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.zone_file import FileZoneStore
from nvmeof.target.storage.zone_store import MemoryZoneStore, ZoneLayout, ZoneRecord

LAYOUT = ZoneLayout(512, 65536, 49152, 64)
COUNT = 5
FULL = ZoneRecord(ZoneState.FULL, 0, 96)
CLOSED = ZoneRecord(ZoneState.CLOSED, 0x80, 7)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "disk.zones"


@pytest.fixture
def reboot(monkeypatch):
    """Return a function that simulates a reboot of the machine."""
    boots = [b"0" * 16]
    monkeypatch.setattr(zone_file, "boot_id", lambda: boots[-1])
    return lambda: boots.append(bytes([boots[-1][0] + 1]) * 16)


def opened(path, layout=LAYOUT, count=COUNT, **options):
    store = FileZoneStore(path, layout, count, **options)
    records = store.load()
    store.abandon()
    return records


async def test_a_new_file_is_of_empty_zones(path):
    assert opened(path) == [ZoneRecord()] * COUNT
    assert path.stat().st_size == 4096 + COUNT * 128 and path.stat().st_mode & 0o777 == 0o600


async def test_put_outlives_the_process_but_not_the_power(path, reboot):
    store = FileZoneStore(path, LAYOUT, COUNT)
    store.put(0, FULL)
    await store.commit({0: FULL})
    store.put(1, CLOSED)
    store.put_extension(1, b"e" * 64)
    store.put(2, ZoneRecord(ZoneState.OFFLINE, 0, 3))
    await store.commit({2: ZoneRecord(ZoneState.READ_ONLY, 0, 2)})
    store.abandon()
    expected = [FULL, CLOSED, ZoneRecord(ZoneState.OFFLINE, 0, 3), ZoneRecord(), ZoneRecord()]
    assert opened(path) == opened(path) == expected
    reboot()
    expected = [FULL, ZoneRecord(), ZoneRecord(ZoneState.READ_ONLY, 0, 2), ZoneRecord(), ZoneRecord()]
    assert opened(path) == opened(path) == expected, "and so it stays"
    again = FileZoneStore(path, LAYOUT, COUNT)
    assert again.extension(1) == b"e" * 64
    again.abandon()


async def test_the_header_covers_first_halves_that_are_right(path, reboot, monkeypatch):
    store = FileZoneStore(path, LAYOUT, COUNT)
    store.put(0, CLOSED)
    store.abandon()
    reboot()
    done = []
    pwrite, fdatasync = os.pwrite, os.fdatasync
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: (done.append(at), pwrite(fd, data, at))[1])
    monkeypatch.setattr(os, "fdatasync", lambda fd: (done.append("sync"), fdatasync(fd))[1])
    opened(path)
    assert done == [4096 + 128 * index for index in range(COUNT)] + ["sync", 0, "sync"]


async def test_settle_commits_all(path, reboot):
    store = FileZoneStore(path, LAYOUT, COUNT)
    store.put(1, CLOSED)
    await store.settle()
    store.abandon()
    reboot()
    assert opened(path)[1] == CLOSED


async def test_without_a_boot_id_only_committed_records_count(path, monkeypatch):
    monkeypatch.setattr(zone_file, "_BOOT_ID", path.with_name("nothing"))
    store = FileZoneStore(path, LAYOUT, COUNT)
    store.put(0, CLOSED)
    await store.commit({1: FULL})
    store.abandon()
    assert opened(path)[:2] == [ZoneRecord(), FULL]


async def test_commits_come_together_and_in_their_order(path, monkeypatch, reboot):
    store = FileZoneStore(path, LAYOUT, COUNT)
    calls = []
    commit_now = store.commit_now
    monkeypatch.setattr(store, "commit_now", lambda records: (calls.append(dict(records)), commit_now(records)))
    first = store.commit({0: CLOSED})
    await asyncio.sleep(0)  # the file is being written
    others = [store.commit({0: FULL, 1: FULL}), store.commit({1: CLOSED})]
    await asyncio.gather(first, *others)
    assert calls == [{0: CLOSED}, {0: FULL, 1: CLOSED}]
    store.abandon()
    reboot()
    assert opened(path)[:2] == [FULL, CLOSED]


async def test_a_commit_that_fails(path, monkeypatch):
    store = FileZoneStore(path, LAYOUT, COUNT)
    monkeypatch.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        await store.commit({0: FULL})
    store.abandon()


async def test_resize(path, reboot):
    store = FileZoneStore(path, LAYOUT, COUNT)
    store.put(4, FULL)
    await store.commit({4: FULL})
    store.resize(7)
    store.put(6, CLOSED)
    assert len(store.load()) == 7
    store.resize(6)
    store.abandon()
    assert opened(path, count=6) == [ZoneRecord()] * 4 + [FULL, ZoneRecord()]
    assert opened(path, count=8) == [ZoneRecord()] * 4 + [FULL] + [ZoneRecord()] * 3
    assert opened(path, count=2) == [ZoneRecord()] * 2
    assert opened(path, count=5) == [ZoneRecord()] * 5


async def test_zones_that_would_be_lost(path):
    opened(path)
    with pytest.raises(ConfigurationError, match="more than the 3"):
        opened(path, count=3, held=4)
    assert opened(path, count=3, held=3) == [ZoneRecord()] * 3, "the data has gone anyhow"
    path.with_name("disk").touch()
    backend = FileBackend(path.with_name("disk"), size="1M")
    await backend.open()
    backend.zone_store(LAYOUT, 16)
    await backend.close()
    smaller = FileBackend(path.with_name("disk"), size="512K")
    await smaller.open()
    with pytest.raises(ConfigurationError, match="16 zones"):
        smaller.zone_store(LAYOUT, 8)
    await smaller.close()


async def test_blocks_of_another_size(path):
    for store in (FileZoneStore(path, LAYOUT, COUNT), MemoryZoneStore(LAYOUT, COUNT)):
        store.put(0, ZoneRecord(ZoneState.CLOSED, 0, 9))
        store.set_block_bytes(4096)
        assert store.load()[0].written == 2 and store.layout.block_bytes == 4096
        store.put(1, ZoneRecord(ZoneState.CLOSED, 0, 1))
        if isinstance(store, FileZoneStore):
            store.abandon()
    assert [record.written for record in opened(path)[:2]] == [9, 8], "the file has bytes"
    large = opened(path, LAYOUT._replace(block_bytes=4096))
    assert [record.written for record in large[:2]] == [2, 1]


def test_a_memory_store():
    store = MemoryZoneStore(LAYOUT, 2)
    store.put(1, FULL)
    store.put_extension(1, b"x" * 64)
    assert store.extension(0) == bytes(64) and store.extension(1) == b"x" * 64 and store.commit({0: FULL}) is None
    store.resize(3)
    assert store.load() == [ZoneRecord(), FULL, ZoneRecord()]
    store.resize(1)
    store.resize(2)
    assert store.load() == [ZoneRecord()] * 2 and store.extension(1) == bytes(64)


@pytest.mark.parametrize("other", [{"zone_bytes": 131072}, {"capacity_bytes": 65536}, {"extension_bytes": 0}])
def test_other_zones(path, other):
    opened(path)
    with pytest.raises(ConfigurationError, match="remove it"):
        opened(path, LAYOUT._replace(**other))


@pytest.mark.parametrize("content", [b"", b"x", b"NVMeoF zones\0\0\0\2", bytes(8192), bytes(16) + b"x"])
def test_another_file(path, content):
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is no file of zones"):
        opened(path)


@pytest.mark.parametrize(("offset", "value"), [(0, b"\x09"), (8, b"\xff" * 8)])
def test_impossible_records(path, offset, value):
    opened(path)
    with path.open("r+b") as file:
        file.seek(4096 + offset)
        file.write(value)
    with pytest.raises(ConfigurationError):
        opened(path)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fdatasync", "fsync"])
def test_a_kill_while_the_file_is_made(path, monkeypatch, call):
    """The file gets its name when it is complete."""

    def end(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, end)
    with pytest.raises(KeyboardInterrupt):
        opened(path)
    monkeypatch.undo()
    assert opened(path) == [ZoneRecord()] * COUNT


@pytest.mark.parametrize("missing_bytes", [1, 64, 1 << 20])
def test_zones_that_were_cut_off_are_reported(path, missing_bytes):
    """Such zones are not empty: their data would be overwritten."""
    opened(path)
    os.truncate(path, max(path.stat().st_size - missing_bytes, 4096))
    with pytest.raises(ConfigurationError, match="has been cut off"):
        opened(path)


def test_a_kill_while_zones_are_dropped(path, monkeypatch):
    """Zones that are added later are empty, whatever remains of the old ones."""
    store = FileZoneStore(path, LAYOUT, COUNT)
    store.put(COUNT - 1, FULL)
    monkeypatch.setattr(os, "ftruncate", lambda fd, size: (_ for _ in ()).throw(OSError(5, "the end")))
    with pytest.raises(OSError, match="the end"):
        store.resize(2)
    store.abandon()
    monkeypatch.undo()
    assert opened(path, count=2) == [ZoneRecord()] * 2
    assert opened(path, count=COUNT) == [ZoneRecord()] * COUNT


async def test_a_shared_file(tmp_path):
    backend = FileBackend(tmp_path / "disk", size="1M", shared=True)
    await backend.open()
    with pytest.raises(ConfigurationError, match="shared"):
        backend.zone_store(LAYOUT, 16)
    await backend.close()


async def test_a_device_has_no_file_for_zones(tmp_path, monkeypatch):
    backend = FileBackend(tmp_path / "disk", size="1M")
    await backend.open()
    monkeypatch.setattr(backend, "_device", True)
    assert not backend.has_zones
    with pytest.raises(ConfigurationError, match="need a file"):
        backend.zone_store(LAYOUT, 16)
    monkeypatch.undo()
    await backend.close()


def test_a_missing_directory(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot open"):
        opened(tmp_path / "no" / "zones")


def test_no_room(path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert opened(path) == [ZoneRecord()] * COUNT, "it is made sparse then"
    path.unlink()
    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(ConfigurationError, match="no room"):
        opened(path)


def test_read_only(path):
    assert opened(path, read_only=True) == [ZoneRecord()] * COUNT and not path.exists()
    store = FileZoneStore(path, LAYOUT, COUNT)
    store.put(1, CLOSED)
    store.put_extension(1, b"e" * 64)
    store.abandon()
    before = path.read_bytes()
    store = FileZoneStore(path, LAYOUT, COUNT + 1, read_only=True)
    assert store.load() == [ZoneRecord(), CLOSED] + [ZoneRecord()] * 4 and store.extension(1) == b"e" * 64
    store.put(0, FULL)
    store.resize(9)
    assert store.commit({0: FULL}) is None and not store.durable
    store.abandon()
    store.abandon()
    assert path.read_bytes() == before
    missing = FileZoneStore(path.with_name("missing"), LAYOUT, COUNT, read_only=True)
    assert missing.extension(3) == bytes(64)


async def test_the_backend_has_one_store(tmp_path):
    backend = FileBackend(tmp_path / "disk", size="1M")
    await backend.open()
    assert not backend.has_zones
    store = backend.zone_store(LAYOUT, 16)
    assert backend.zone_store(LAYOUT, 16) is store and backend.has_zones
    with pytest.raises(ConfigurationError, match="in use"):
        backend.zone_store(LAYOUT._replace(zone_bytes=131072), 8)
    store.put(3, FULL)
    await backend.close()
    assert store._fd == -1
    assert opened(tmp_path / "disk.zones", count=16)[3] == FULL
    shutil.copy(tmp_path / "disk.zones", tmp_path / "kept.zones")
    other = FileBackend(tmp_path / "disk", kept=tmp_path / "kept")
    await other.open()
    assert other.zone_store(LAYOUT, 16).load()[3] == FULL
    await other.close()


def kept_zones(path):
    """Return a file of a few zones, and the right state after a restart of the program."""
    layout = ZoneLayout(512, 65536, 49152, 64)
    store = FileZoneStore(path, layout, 3)
    store.put(0, FULL)
    store.put_extension(1, b"e" * 64)
    store.put(1, CLOSED)
    store.commit_now({0: FULL, 1: CLOSED})
    store.abandon()
    return layout, [FULL, CLOSED, ZoneRecord()], b"e" * 64


def found_zones(path, layout):
    store = FileZoneStore(path, layout, 3)
    try:
        return store.load(), store.extension(1)
    finally:
        store.abandon()


@pytest.mark.parametrize("rebooted", [False, True])
def test_every_bit_and_every_length(path, reboot, rebooted):
    """The file is read right, or refused with a sentence that names it: never another state or write pointer."""
    layout, right, extension = kept_zones(path)
    if rebooted:
        reboot()
    data = path.read_bytes()
    used = [*range(72), *range(4096, len(data))]
    changed = (data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in used for bit in range(8))
    refused = 0
    for damaged in (*changed, *(data[:length] for length in range(0, len(data), 5))):
        path.write_bytes(damaged)
        try:
            assert found_zones(path, layout) == (right, extension)
        except ConfigurationError as error:
            assert str(error).startswith(f"{path} ") and "remove it to begin with empty zones" in str(error)
            refused += 1
    assert refused == len(data) // 5 + 8 * (68 + 3 * 14 + 68), "all that is used"


def test_a_sector_of_zeroes_is_no_empty_zone(path):
    layout, _, _ = kept_zones(path)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(512))
    with pytest.raises(ConfigurationError, match="what it keeps of zone 0 does not match its checksum"):
        found_zones(path, layout)


def test_records_that_changed_their_places(path):
    layout, _, _ = kept_zones(path)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + data[4224:4352] + data[4096:4224] + data[4352:])
    with pytest.raises(ConfigurationError, match="of zone 0 does not match"):
        found_zones(path, layout)


def first_version(data):
    """Return the same file as the first version wrote it: without checksums."""
    old = bytearray(data)
    old[15] = 1
    old[64:68] = bytes(4)
    for start in range(4096, len(old), 128):
        for half in (0, 16):
            old[start + half + 4 : start + half + 8] = bytes(4)
        old[start + 60 : start + 64] = bytes(4)
    return bytes(old)


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_file_of_the_first_version_is_accepted_once(path, reboot, rebooted):
    layout, right, extension = kept_zones(path)
    data = path.read_bytes()
    path.write_bytes(first_version(data))
    if rebooted:
        reboot()
    assert found_zones(path, layout) == (right, extension)
    assert path.read_bytes()[:16] == data[:15] + b"\2"
    assert found_zones(path, layout) == (right, extension)
    if not rebooted:
        assert path.read_bytes() == data


def test_a_newer_version(path):
    layout, _, _ = kept_zones(path)
    data = bytearray(path.read_bytes())
    data[15] = 3
    data[64:68] = zlib.crc32(data[:64]).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=rf"{path} was written by a newer version"):
        found_zones(path, layout)


def test_a_fifo(path):
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match=rf"zones cannot be stored in {path}: not a regular file"):
        opened(path)
