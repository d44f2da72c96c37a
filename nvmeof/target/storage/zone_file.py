"""Zones stored in a file beside the data: one record per zone, written in place.

The file begins with a header (4,096 bytes) that says what zones these are. Header and records have checksums: what does
not match is refused.

A record has two halves. The first is what the zone is now; it is written before a command completes, and the system has
it from then on: the end of this process, also a sudden one, does not change it. But what the system has not yet written
out is lost with the power, the data as well as these records, and in any order. The second half is written only when
the data that it speaks of is on the media. Which half counts is known by the boot: as long as the machine has not been
started again, the first, else the second. So a write pointer is never beyond data that was flushed.
"""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from zlib import crc32

from nvmeof.errors import ConfigurationError
from nvmeof.spec.zns import ZoneAttributes, ZoneState
from nvmeof.target.storage import syscalls
from nvmeof.target.storage.kept_document import check_link
from nvmeof.target.storage.write_coalescer import WriteCoalescer
from nvmeof.target.storage.zone_store import ZoneLayout, ZoneRecord

_MAGIC: Final = b"NVMeoF zones\0\0\0"
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<15sB16sQQQQI")
"""Magic, version, boot, bytes of a zone, its capacity, its extension, count; CRC-32 of all that."""
_HEADER_BYTES: Final = 4096
_HALF: Final = struct.Struct("<BB2xIQ")  # state, attributes, CRC-32, bytes written
_CHECKED: Final = struct.Struct("<QBBQ")  # number of the zone, state, attributes, bytes written: what the CRC is of
_CRC: Final = struct.Struct("<I")
_CRC_AT: Final = 60
"""Where in a record the CRC-32 of the zone's descriptor extension is: right before that."""
_RECORD_BYTES: Final = 64  # no record goes from one sector of the media into the next
_EMPTY_AT_ONCE: Final = 4096  # zones
_ANEW: Final = "remove it to begin with empty zones"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> bytes:
    """Return 16 bytes that differ after each boot of the machine; zeroes where they are unknown."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return bytes(16)


class FileZoneStore:
    """Implements :class:`nvmeof.target.storage.zone_store.ZoneStore`. The file is made when it is not there.

    `held`: how many zones the data has room for; when it is served with fewer, those that would be forgotten are a
    `ConfigurationError`. So is a file of other zones, or that is not one of these at all.
    """

    durable = True

    def __init__(
        self, path: Path, layout: ZoneLayout, count: int, *, held: int | None = None, read_only: bool = False
    ) -> None:
        self.path = path
        self._held = count if held is None else held
        self.layout = layout
        self._read_only = read_only
        self.durable = not read_only
        self._stride = _RECORD_BYTES + layout.extension_bytes
        self._count = 0
        self._pending: dict[int, ZoneRecord] = {}
        self._saver = WriteCoalescer(self._begin)
        check_link(path)
        self._extended = False  # an extension was written, and may not be on the media yet
        try:
            self._fd = self._open_file(path, count)
        except OSError as error:
            raise ConfigurationError(f"cannot open {path}: {error.strerror}") from error
        if self._fd < 0:
            self._records = [ZoneRecord()] * count
            return
        try:
            self._records = self._open(count)
        except OSError as error:
            os.close(self._fd)
            raise ConfigurationError(f"cannot keep zones in {path}: {error.strerror}") from error
        except BaseException:
            os.close(self._fd)
            raise

    # Opening

    def _open_file(self, path: Path, count: int) -> int:
        """Open the file, and make it when it is not there; -1 when it need not be made: all zones are empty."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a FIFO may never come to its beginning
                raise ConfigurationError(f"zones cannot be stored in {path}: not a regular file; {_ANEW}")
        except FileNotFoundError:
            return -1 if self._read_only else self._make(path, count)
        return os.open(path, os.O_CLOEXEC | (os.O_RDONLY if self._read_only else os.O_RDWR))

    def _make(self, path: Path, count: int) -> int:
        """Make a file of empty zones. It has its name when all of it is on the media."""
        new = path.with_name(path.name + ".new")
        fd = os.open(new, os.O_CLOEXEC | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            self._fd = fd
            self._reserve(0, count)
            self._count = count
            self._write_header()
            new.rename(path)
            syscalls.sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            new.unlink(missing_ok=True)
            raise
        return fd

    def _open(self, count: int) -> list[ZoneRecord]:
        boot, stored, checked = self._read_header()
        if stored > count and self._held > count:
            raise ConfigurationError(
                f"{self.path} is about {stored} zones, more than the {count} that are to be served"
            )
        self._count = stored
        there = os.fstat(self._fd).st_size
        if there < self._at(stored):
            raise ConfigurationError(
                f"{self.path} has been cut off: of {stored} zones, those behind the first "
                f"{max(there - _HEADER_BYTES, 0) // self._stride} are lost; {_ANEW}"
            )
        same_boot = boot == boot_id() and any(boot)
        records = self._read_all(second_half=not same_boot, checked=checked)
        if not (same_boot and checked) and not self._read_only:
            # The records are put right before the header says that they count, and are checked.
            for index, record in enumerate(records):
                self._rewrite(index, record, whole=not checked)
            os.fdatasync(self._fd)
            self._write_header()
        self._records = records
        self.resize(count)
        return self._records

    def _rewrite(self, index: int, record: ZoneRecord, *, whole: bool) -> None:
        """Put the first half right; of a file without checksums all of the record."""
        half = self._encode(index, record)
        if not whole:
            os.pwrite(self._fd, half, self._at(index))
            return
        extension = os.pread(self._fd, self.layout.extension_bytes, self._at(index) + _RECORD_BYTES)
        os.pwrite(self._fd, (half + half).ljust(_CRC_AT, b"\0") + _CRC.pack(crc32(extension)), self._at(index))

    def _read_header(self) -> tuple[bytes, int, bool]:
        """Return the boot, the number of zones, and whether there are checksums."""
        raw = os.pread(self._fd, _HEADER.size, 0)
        if len(raw) != _HEADER.size or raw[:15] != _MAGIC:
            raise ConfigurationError(f"{self.path} is no file of zones, or damaged; {_ANEW}")
        _, version, boot, *lengths, stored, crc = _HEADER.unpack(raw)
        if version > _VERSION and crc == crc32(raw[: -_CRC.size]):
            raise ConfigurationError(
                f"{self.path} was written by a newer version of nvmeof (its format is {version}, and {_VERSION} is "
                f"known here): use that version, or {_ANEW}"
            )
        # A file of the first version has zeroes there.
        if crc != (crc32(raw[: -_CRC.size]) if version == _VERSION else 0) or version not in (1, _VERSION):
            raise ConfigurationError(f"{self.path} is damaged: its header does not match its checksum; {_ANEW}")
        layout = ZoneLayout(self.layout.block_bytes, *lengths)
        if layout != self.layout:
            raise ConfigurationError(f"{self.path} is about {layout}, and not about {self.layout}; {_ANEW}")
        return boot, stored, version == _VERSION

    def _read_all(self, *, second_half: bool, checked: bool) -> list[ZoneRecord]:
        records = []
        raw = os.pread(self._fd, self._count * self._stride, _HEADER_BYTES).ljust(self._count * self._stride, b"\0")
        for index, start in enumerate(range(0, len(raw), self._stride)):
            state, attributes, crc, written = _HALF.unpack_from(raw, start + _HALF.size * second_half)
            extension = raw[start + _CRC_AT : start + self._stride]
            if checked:
                self._check(index, _CHECKED.pack(index, state, attributes, written), crc)
                if attributes & ZoneAttributes.EXTENSION_VALID:
                    self._check(index, extension[_CRC.size :], _CRC.unpack_from(extension)[0])
            try:
                known = ZoneState(state or ZoneState.EMPTY)
            except ValueError:
                raise ConfigurationError(
                    f"{self.path} has a zone in state {state:X}h, which there is not; {_ANEW}"
                ) from None
            if written > self.layout.capacity_bytes:
                raise ConfigurationError(
                    f"{self.path} has a zone with {written} bytes written, more than it holds; {_ANEW}"
                )
            # Up to the end of a block: they may have been smaller when it was written.
            records.append(ZoneRecord(known, attributes, -(-written // self.layout.block_bytes)))
        return records

    def _check(self, index: int, data: bytes, crc: int) -> None:
        if crc32(data) != crc:
            raise ConfigurationError(
                f"{self.path} is damaged: what it keeps of zone {index} does not match its checksum; put it back from "
                f"a copy, or {_ANEW}"
            )

    def _encode(self, index: int, record: ZoneRecord) -> bytes:
        state = 0 if record.state is ZoneState.EMPTY else record.state
        written = record.written * self.layout.block_bytes
        crc = crc32(_CHECKED.pack(index, state, record.attributes, written))
        return _HALF.pack(state, record.attributes, crc, written)

    def _write_header(self) -> None:
        _, *lengths = self.layout
        header = _HEADER.pack(_MAGIC, _VERSION, boot_id(), *lengths, self._count, 0)[: -_CRC.size]
        os.pwrite(self._fd, header + _CRC.pack(crc32(header)), 0)
        os.fdatasync(self._fd)

    def _reserve(self, first: int, end: int) -> None:
        """Write records of empty zones, and have their space: later writes in place shall not fail for want of it."""
        size_bytes = self._at(end)
        try:
            os.posix_fallocate(self._fd, 0, size_bytes)
        except OSError:
            os.ftruncate(self._fd, size_bytes)
        no_extension = _CRC.pack(crc32(bytes(self.layout.extension_bytes)))
        for start in range(first, end, _EMPTY_AT_ONCE):
            records = bytearray()
            for index in range(start, min(start + _EMPTY_AT_ONCE, end)):
                half = self._encode(index, ZoneRecord())
                records += ((half + half).ljust(_CRC_AT, b"\0") + no_extension).ljust(self._stride, b"\0")
            os.pwrite(self._fd, records, self._at(start))
        os.fdatasync(self._fd)

    def _at(self, index: int) -> int:
        return _HEADER_BYTES + index * self._stride

    # The store

    def load(self) -> list[ZoneRecord]:
        """Return the records of all zones."""
        return list(self._records)

    def put(self, index: int, record: ZoneRecord) -> None:
        """Store the current record of a zone. Raises `OSError`."""
        if not self._read_only:
            os.pwrite(self._fd, self._encode(index, record), self._at(index))
            self._records[index] = record

    def extension(self, index: int) -> bytes:
        """Return a zone's descriptor extension."""
        length = self.layout.extension_bytes
        found = os.pread(self._fd, length, self._at(index) + _RECORD_BYTES) if self._fd >= 0 else b""
        return found.ljust(length, b"\0")

    def put_extension(self, index: int, extension: bytes) -> None:
        """Keep a zone's descriptor extension. Raises `OSError`."""
        os.pwrite(self._fd, _CRC.pack(crc32(extension)) + extension, self._at(index) + _CRC_AT)
        self._extended = True

    def commit(self, records: Mapping[int, ZoneRecord]) -> Awaitable[None] | None:
        """Commit records of zones whose data is on non-volatile media. Ends with `OSError`. Records that come during a
        write are merged into the next one, in order.
        """
        if self._read_only:
            return None
        self._pending.update(records)
        return self._saver.save()

    def _begin(self) -> Callable[[], None]:
        records, self._pending = self._pending, {}
        return partial(self.commit_now, records)

    def commit_now(self, records: Mapping[int, ZoneRecord]) -> None:
        """Commit records at once, in the caller's thread. Raises `OSError`."""
        if self._extended:  # before a record that speaks of it
            self._extended = False
            os.fdatasync(self._fd)
        for index, record in records.items():
            if index < self._count:
                os.pwrite(self._fd, self._encode(index, record), self._at(index) + _HALF.size)
        os.fdatasync(self._fd)

    def resize(self, count: int) -> None:
        """Keep so many zones from now on. Raises `OSError`."""
        self._records = (self._records + [ZoneRecord()] * (count - len(self._records)))[:count]
        if self._read_only or count == self._count:
            return
        if count < self._count:
            # The header first: it never speaks of more than there is.
            self._count = count
            self._write_header()
            os.ftruncate(self._fd, self._at(count))
            return
        # What may be behind the end, if it was shortened last and that came to no end, is not what is new there.
        os.ftruncate(self._fd, self._at(self._count))
        self._reserve(self._count, count)
        self._count = count
        self._write_header()

    def set_block_bytes(self, block_bytes: int) -> None:
        """Convert records to another block size, in bytes; the file itself counts in bytes."""
        old, self.layout = self.layout.block_bytes, self.layout._replace(block_bytes=block_bytes)
        self._records = [each._replace(written=-(-each.written * old // block_bytes)) for each in self._records]

    async def settle(self) -> None:
        """Commit the current records of all zones, when all data is on the media and no write follows. Raises
        `OSError`.
        """
        await self._saver.finish()
        if self._fd >= 0 and not self._read_only:
            await asyncio.to_thread(self._settle)

    def _settle(self) -> None:
        size_bytes = self._count * self._stride
        raw = bytearray(os.pread(self._fd, size_bytes, _HEADER_BYTES).ljust(size_bytes, b"\0"))
        half = _HALF.size
        for start in range(0, size_bytes, self._stride):
            raw[start + half : start + 2 * half] = raw[start : start + half]
        os.pwrite(self._fd, raw, _HEADER_BYTES)
        os.fdatasync(self._fd)

    def abandon(self) -> None:
        """Close the file, with the zones as they are in it. Calling it twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
