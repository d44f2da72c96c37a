"""Zones kept in a file beside the data: one record per zone, written in place.

A record has two halves. The first is what the zone is now; it is written before a command completes, and the system has
it from then on: the end of this process, also a sudden one, does not change it. But what the system has not yet written
out is lost with the power, the data as well as these records, and in any order. The second half is written only when
the data that it speaks of is on the media. Which half counts is known by the boot: as long as the machine has not been
started again, the first, else the second. So a write pointer is never beyond data that was flushed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.spec.zns import ZoneState
from nvmeof.target.backend import syscalls
from nvmeof.target.backend.saver import Saver
from nvmeof.target.zone_store import ZoneLayout, ZoneRecord

_MAGIC: Final = b"NVMeoF zones\0\0\0\1"  # ends with the version
_HEADER: Final = struct.Struct("<16s16sQQQQ")  # magic, boot, bytes of a zone, its capacity, its extension, count
_HEADER_BYTES: Final = 4096
_HALF: Final = struct.Struct("<BB6xQ")
_RECORD_BYTES: Final = 64  # no record goes from one sector of the media into the next
_ANEW: Final = "remove it to begin with empty zones"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> bytes:
    """16 bytes that are others after the machine was started again; zeroes where that cannot be known."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return bytes(16)


class FileZoneStore:
    """Implements :class:`nvmeof.target.zone_store.ZoneStore`. The file is made when it is not there.

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
        self._saver = Saver(self._begin)
        try:
            self._fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT), 0o600)
        except OSError as error:
            if read_only and error.errno == errno.ENOENT:
                self._fd = -1  # never written: all zones are empty
                self._records = [ZoneRecord()] * count
                return
            raise ConfigurationError(f"cannot open {path}: {error.strerror}") from error
        try:
            self._records = self._open(count)
        except OSError as error:
            os.close(self._fd)
            raise ConfigurationError(f"cannot keep zones in {path}: {error.strerror}") from error
        except BaseException:
            os.close(self._fd)
            raise

    # Opening

    def _open(self, count: int) -> list[ZoneRecord]:
        header = os.pread(self._fd, _HEADER.size, 0)
        if not any(header) and not self._read_only:  # new, or the end came while it was made
            self._count = count
            self._reserve(count)
            self._write_header()
            syscalls.sync_directory(self.path.parent)
            return [ZoneRecord()] * count
        if len(header) != _HEADER.size or header[:16] != _MAGIC:
            raise ConfigurationError(f"{self.path} is not what zones are kept in; {_ANEW}")
        _, boot, *lengths, kept = _HEADER.unpack(header)
        layout = ZoneLayout(self.layout.block_bytes, *lengths)
        if layout != self.layout:
            raise ConfigurationError(f"{self.path} is about {layout}, and not about {self.layout}; {_ANEW}")
        if kept > count and self._held > count:
            raise ConfigurationError(f"{self.path} is about {kept} zones, more than the {count} that are to be served")
        self._count = kept
        there = os.fstat(self._fd).st_size
        if there < self._at(kept):
            raise ConfigurationError(
                f"{self.path} has been cut off: of {kept} zones, those behind the first "
                f"{max(there - _HEADER_BYTES, 0) // self._stride} are lost; {_ANEW}"
            )
        same_boot = boot == boot_id() and any(boot)
        records = self._read_all(second_half=not same_boot)
        if not same_boot and not self._read_only:
            # The first halves are put right before the header says that they count.
            for index, record in enumerate(records):
                os.pwrite(self._fd, self._encode(record), self._at(index))
            os.fdatasync(self._fd)
            self._write_header()
        self._records = records
        self.resize(count)
        return self._records

    def _read_all(self, *, second_half: bool) -> list[ZoneRecord]:
        records = []
        raw = os.pread(self._fd, self._count * self._stride, _HEADER_BYTES).ljust(self._count * self._stride, b"\0")
        for start in range(0, len(raw), self._stride):
            state, attributes, written = _HALF.unpack_from(raw, start + _HALF.size * second_half)
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

    def _encode(self, record: ZoneRecord) -> bytes:
        # An empty zone is all zeroes: a new file needs no records.
        state = 0 if record.state is ZoneState.EMPTY else record.state
        return _HALF.pack(state, record.attributes, record.written * self.layout.block_bytes)

    def _write_header(self) -> None:
        _, *lengths = self.layout
        header = _HEADER.pack(_MAGIC, boot_id(), *lengths, self._count)
        os.pwrite(self._fd, header, 0)
        os.fdatasync(self._fd)

    def _reserve(self, count: int) -> None:
        """Have the space, before the header speaks of it: later writes in place shall not fail for want of it."""
        size_bytes = _HEADER_BYTES + count * self._stride
        try:
            os.posix_fallocate(self._fd, 0, size_bytes)
        except OSError:
            os.ftruncate(self._fd, size_bytes)
        os.fdatasync(self._fd)

    def _at(self, index: int) -> int:
        return _HEADER_BYTES + index * self._stride

    # The store

    def load(self) -> list[ZoneRecord]:
        """All of them."""
        return list(self._records)

    def put(self, index: int, record: ZoneRecord) -> None:
        """What a zone is now. Raises `OSError`."""
        if not self._read_only:
            os.pwrite(self._fd, self._encode(record), self._at(index))
            self._records[index] = record

    def extension(self, index: int) -> bytes:
        """A zone's descriptor extension."""
        length = self.layout.extension_bytes
        found = os.pread(self._fd, length, self._at(index) + _RECORD_BYTES) if self._fd >= 0 else b""
        return found.ljust(length, b"\0")

    def put_extension(self, index: int, extension: bytes) -> None:
        """Keep a zone's descriptor extension. Raises `OSError`."""
        os.pwrite(self._fd, extension, self._at(index) + _RECORD_BYTES)

    def commit(self, records: Mapping[int, ZoneRecord]) -> Awaitable[None] | None:
        """These zones are so on non-volatile media; done when that is kept there too. Ends with `OSError`.

        What comes while something is being written goes with the next write, all together; the order is kept.
        """
        if self._read_only:
            return None
        self._pending.update(records)
        return self._saver.save()

    def _begin(self) -> Callable[[], None]:
        records, self._pending = self._pending, {}
        return partial(self.commit_now, records)

    def commit_now(self, records: Mapping[int, ZoneRecord]) -> None:
        """The same at once, in whatever thread. Raises `OSError`."""
        for index, record in records.items():
            if index < self._count:
                os.pwrite(self._fd, self._encode(record), self._at(index) + _HALF.size)
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
        self._reserve(count)
        self._count = count
        self._write_header()

    def set_block_bytes(self, block_bytes: int) -> None:
        """Blocks have another size: records are in these from now on. The file has bytes."""
        old, self.layout = self.layout.block_bytes, self.layout._replace(block_bytes=block_bytes)
        self._records = [each._replace(written=-(-each.written * old // block_bytes)) for each in self._records]

    async def settle(self) -> None:
        """Everything that was written is on the media, and nothing else will be: all zones are there as they are.

        Raises `OSError`.
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
