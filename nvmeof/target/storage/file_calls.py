"""System calls of a file backend that may block: they run in its threads."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path

from nvmeof.target.storage import syscalls
from nvmeof.target.storage.base import Backend, Capabilities, SizeChangedError, SourceError
from nvmeof.target.storage.direct_io import DirectFile, unaligned
from nvmeof.target.storage.fault_log import FaultLog
from nvmeof.target.storage.operation import Operation

NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
_faults = FaultLog(logging.getLogger(__name__))
_ZEROES = bytes(1 << 20)
_PIECE_BYTES = 1 << 18  # how much a thread reads at a time of data that is only compared or checked


class FileCalls(Backend):
    """The part of :class:`~nvmeof.target.storage.file.FileBackend` that knows nothing of the event loop."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = -1
        self._device = False
        self._capabilities: Capabilities | None = None
        self.direct: DirectFile | None = None
        """The file opened past the page cache, where it is served with `direct`."""
        self._write_dsync = True
        self._zero_range = True

    @property
    def fd(self) -> int:
        """The open file."""
        return self._fd

    def reaches(self, end: int) -> bool:
        """Return whether the file has bytes up to ``end``: a write beyond would extend the file."""
        return self._device or os.lseek(self._fd, 0, os.SEEK_END) >= end

    def _pread(self, view: memoryview, offset: int) -> int:
        direct = self.direct
        if direct is not None and direct.fits(offset, len(view)):
            try:
                return direct.read(view, offset)
            except OSError as error:
                if not unaligned(error):
                    raise
        return os.preadv(self._fd, [view], offset)

    def _pwrite(self, data: memoryview, offset: int, *flags: int) -> int:
        direct = self.direct
        if direct is not None and direct.fits(offset, len(data)):
            try:
                return direct.write(data, offset, *flags)
            except OSError as error:
                if not unaligned(error):
                    raise
        return os.pwritev(self._fd, [data], offset, *flags)

    def _read_fully(self, view: memoryview, offset: int) -> None:
        while view:
            count = self._pread(view, offset)
            if count == 0:
                raise self._shorter()
            view = view[count:]
            offset += count

    def _shorter(self) -> SizeChangedError:
        return SizeChangedError(errno.EIO, f"{self.path} has become shorter than its namespace")

    def _check_inside(self, end: int) -> None:
        """Raise `SizeChangedError` for a write that would extend the file: a hole, read as zeroes, would precede it."""
        if not self.reaches(end):
            raise self._shorter()

    def _compare_now(self, offset: int, data: memoryview, operation: Operation[bool]) -> bool:
        piece = bytearray(min(len(data), _PIECE_BYTES))
        for start in range(0, len(data), _PIECE_BYTES):
            operation.check()
            wanted = data[start : start + _PIECE_BYTES]
            if len(wanted) < len(piece):
                piece = bytearray(len(wanted))
            self._read_fully(memoryview(piece), offset + start)
            if piece != wanted:
                return False
        return True

    def _compare_and_write_now(
        self, offset: int, compare: memoryview, data: memoryview, fua: bool, operation: Operation[bool]
    ) -> bool:
        try:
            same = self._compare_now(offset, compare, operation)
        except OSError as error:
            if error.errno == errno.ECANCELED:
                raise
            raise SourceError(error.errno, error.strerror) from error
        if same:
            self._write_fully(data, offset, fua)
        return same

    def _verify_now(self, offset: int, length: int, operation: Operation[None]) -> None:
        piece = memoryview(bytearray(min(length, _PIECE_BYTES)))
        for start in range(0, length, _PIECE_BYTES):
            operation.check()
            self._read_fully(piece[: length - start], offset + start)

    def write_fully(self, data: memoryview, offset: int, *, sync: bool = False) -> None:
        """Write all of a range, with `sync` to the media. Raises `OSError`, `SizeChangedError` for one beyond the
        end."""
        self._write_fully(data, offset, sync)

    def sync(self, since: int) -> None:
        """Commit all that was written to the media. ``since``: `sync_failures` before the first write that this is to
        commit. Raises `OSError`; the failure is counted."""
        self._sync(since)

    def _write_fully(self, data: memoryview, offset: int, fua: bool) -> None:
        sync_after, since = fua, self.sync_failures
        self._check_inside(offset + len(data))
        while data:
            count = 0
            if fua and self._write_dsync:
                try:
                    count = self._pwrite(data, offset, os.RWF_DSYNC)
                    sync_after = False
                except OSError as error:
                    if error.errno == errno.EIO:
                        self._sync_failed(error)
                    if error.errno not in NOT_SUPPORTED:
                        raise
                    self._write_dsync = False
                    sync_after = True
            if not count:
                count = self._pwrite(data, offset)
            if count == 0:
                raise OSError(errno.EIO, f"{self.path} takes no more bytes")
            data = data[count:]
            offset += count
        if sync_after:
            self._sync(since)
        elif fua:
            self._check_committed(since)

    def _copy_now(self, source: int, destination: int, length: int, fua: bool, operation: Operation[None]) -> None:
        piece, since = memoryview(bytearray(min(length, _PIECE_BYTES))), self.sync_failures
        starts = range(0, length, _PIECE_BYTES)
        # A destination that overlaps its source is filled from the end, as memmove does.
        for start in starts if destination < source else reversed(starts):
            operation.check()
            part = piece[: length - start]
            try:
                self._read_fully(part, source + start)
            except OSError as error:
                raise SourceError(error.errno, error.strerror) from error
            self._write_fully(part, destination + start, False)
        if fua:
            self._sync(since)

    def _zero(self, offset: int, length: int, deallocate: bool, fua: bool, operation: Operation[None]) -> None:
        since = self.sync_failures
        if not self._zero_fast(offset, length, deallocate):
            end = offset + length
            for start in range(offset, end, len(_ZEROES)):
                operation.check()
                part = memoryview(_ZEROES)[: min(len(_ZEROES), end - start)]
                self._write_fully(part, start, False)
        if fua:
            self._sync(since)

    def _zero_fast(self, offset: int, length: int, deallocate: bool) -> bool:
        if not self._zero_range:
            return False
        if self._device:
            ways = [syscalls.zero_device]
        else:
            ways = [syscalls.zero_range, syscalls.punch_hole]
            if deallocate:
                ways.reverse()
        for way in ways:
            try:
                way(self._fd, offset, length)
            except OSError as error:
                if error.errno not in syscalls.UNSUPPORTED:
                    raise
            else:
                return True
        self._zero_range = False
        return False

    def _deallocate_now(self, offset: int, length: int) -> None:
        way = syscalls.discard_device if self._device else syscalls.punch_hole
        try:
            way(self._fd, offset, length)
        except OSError as error:
            if error.errno not in syscalls.UNSUPPORTED:
                raise
            # Deallocate is a hint: from now on it is not tried.
            self._capabilities = replace(self.capabilities, can_deallocate=False)

    def _flush_now(self) -> None:
        self._sync(self.sync_failures)

    def _sync(self, since: int) -> None:
        """Call fdatasync(2). The kernel reports a failure only to the first caller, so it is counted here."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._sync_failed(error)
            raise
        self._check_committed(since)

    def _check_committed(self, since: int) -> None:
        """Raise `OSError` when another thread's sync has failed since then.

        The kernel takes the pages that it could not write for clean, those of other writers too: their own sync finds
        nothing to do, and succeeds.
        """
        if self.sync_failures != since:
            code = (self.sync_error and self.sync_error.errno) or errno.EIO
            raise OSError(code, "another sync failed while this was written: it may be lost")

    def _sync_failed(self, error: OSError) -> None:
        self.sync_error = error
        self.sync_failures += 1
        _faults.error(
            (self.path, error.errno),
            f"{self.path}: writing to the media failed: {error.strerror or error}; what was written since the last "
            "flush may be lost; each host gets the error at its next Flush",
        )

    def _allocated_now(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the allocated parts of a range, from the holes of the file system; the whole range where holes are not
        reported."""
        end = offset + length
        if self._device:
            return [(offset, end)]
        found = []
        position = offset
        while position < end:
            try:
                start = os.lseek(self._fd, position, os.SEEK_DATA)
                stop = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    break
                if error.errno not in NOT_SUPPORTED:
                    raise
                return [(offset, end)]
            if start >= end:
                break
            found.append((start, min(stop, end)))
            position = stop
        return found
