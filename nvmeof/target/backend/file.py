"""A namespace in a regular file or on a block device.

Reads are served from the page cache without a thread where the kernel can (RWF_NOWAIT); whatever may block runs in a
few threads. Unaligned or overlapping requests are kept apart by range locks, so that no reader sees half a block.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.target.backend import syscalls
from nvmeof.target.backend.base import BLOCK_BYTES_CHOICES, Backend, Capabilities, Lease, SourceError
from nvmeof.target.backend.file_keeper import FileKeeper
from nvmeof.target.backend.ranges import RangeLocks
from nvmeof.target.backend.threads import ThreadBatches
from nvmeof.target.keeper import MemoryKeeper
from nvmeof.target.pool import BufferPool
from nvmeof.target.sizes import format_size, parse_size

logger = logging.getLogger(__name__)
T = TypeVar("T")
_ZEROES = bytes(1 << 20)
_PIECE_BYTES = 1 << 18  # what a thread reads at a time of data that goes nowhere else
_WOULD_WAIT = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


class FileBackend(Backend):
    """`size`: None takes the file's; else the file is made, or extended sparse, to that size.

    `shared`: do without the lock that keeps two targets from serving one file for writing. `workers`: threads.
    `kept`: the file for what belongs to the data and must outlive the process (reservations and the like). Beside a
    regular file that may be written it is PATH.nvmeof; a device has none unless it is given.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: str | int | None = None,
        block_bytes: int = 512,
        read_only: bool = False,
        shared: bool = False,
        workers: int = 4,
        pool: BufferPool | None = None,
        kept: str | os.PathLike[str] | None = None,
    ) -> None:
        if block_bytes not in BLOCK_BYTES_CHOICES:
            raise ConfigurationError(f"a block size of {block_bytes} bytes is not supported: 512 or 4096")
        self.path = Path(path)
        self._wanted_bytes = None if size is None else parse_size(size)
        self._block_bytes = block_bytes
        self._read_only = read_only
        self._shared = shared
        self._workers = workers
        self._pool = pool or BufferPool()
        self._kept = kept
        self._fd = -1
        self._device = False
        self._capabilities: Capabilities | None = None
        self._threads: ThreadBatches | None = None  # None: closed
        self._ranges = RangeLocks()
        self._read_nowait = self._write_nowait = True
        self._write_dsync = True
        self._zero_range = True
        self._flushing = False
        self._flush_waiters: list[asyncio.Future[None]] = []

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise ConfigurationError(f"{self.path} has not been opened yet")
        return self._capabilities

    @property
    def description(self) -> str:
        return f"{'device' if self._device else 'file'} {self.path}"

    # Opening and closing

    async def open(self) -> None:
        if self._fd >= 0:
            return
        fd = self._open_file()
        try:
            self._capabilities = self._examine(fd)
            self.keeper = self._open_keeper()
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._threads = ThreadBatches(self._workers, f"nvmeof-{self.path.name}")

    def _open_file(self) -> int:
        flags = os.O_CLOEXEC | (os.O_RDONLY if self._read_only else os.O_RDWR)
        if self._wanted_bytes is not None and not self._read_only:
            flags |= os.O_CREAT
        try:
            return os.open(self.path, flags, 0o600)
        except FileNotFoundError as error:
            raise ConfigurationError(f"{self.path} does not exist; give a size to have it made") from error
        except OSError as error:
            advice = "" if self._read_only else "; it could be served read-only" * (error.errno == errno.EROFS)
            raise ConfigurationError(f"cannot open {self.path}: {error.strerror}{advice}") from error

    def _examine(self, fd: int) -> Capabilities:
        mode = os.fstat(fd).st_mode
        self._device = stat.S_ISBLK(mode)
        if not self._device and not stat.S_ISREG(mode):
            raise ConfigurationError(f"{self.path} is neither a regular file nor a block device")
        self._lock(fd)
        writable = not self._read_only
        if self._device:
            size_bytes = syscalls.device_size(fd)
            writable = writable and not syscalls.device_read_only(fd)
            if self._wanted_bytes is not None and self._wanted_bytes > size_bytes:
                raise ConfigurationError(f"{self.path} has {size_bytes} bytes, fewer than {self._wanted_bytes}")
            size_bytes = self._wanted_bytes or size_bytes
        else:
            size_bytes = self._file_size(fd)
        size_bytes -= size_bytes % self._block_bytes
        if size_bytes == 0:
            raise ConfigurationError(f"{self.path} is smaller than one block of {self._block_bytes} bytes; give a size")
        return Capabilities(
            size_bytes=size_bytes,
            block_bytes=self._block_bytes,
            can_write=writable,
            can_deallocate=writable,
            can_write_zeroes=writable,
            volatile_cache=writable,
            # A discarded block of a device may read as anything.
            deallocated_reads_zero=not self._device,
        )

    def _open_keeper(self) -> FileKeeper | MemoryKeeper:
        if self._kept is not None:
            return FileKeeper(self._kept)
        if self._device or self._read_only:
            return MemoryKeeper()
        return FileKeeper(self.path.with_name(self.path.name + ".nvmeof"))

    def _lock(self, fd: int) -> None:
        if self._shared:
            return
        kind = fcntl.LOCK_SH if self._read_only else fcntl.LOCK_EX
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"{self.path} is in use by another process") from error
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise

    def _file_size(self, fd: int) -> int:
        size_bytes = os.fstat(fd).st_size
        wanted = self._wanted_bytes
        if wanted is None:
            return size_bytes
        if wanted > size_bytes:
            if self._read_only:
                raise ConfigurationError(f"{self.path} has {size_bytes} bytes, fewer than {wanted}, and is read-only")
            try:
                os.ftruncate(fd, wanted)
            except OSError as error:
                raise ConfigurationError(
                    f"cannot extend {self.path} to {format_size(wanted)}: {error.strerror}"
                ) from error
        return wanted

    async def close(self) -> None:
        """Wait for what was begun, flush, close. What cannot be flushed is logged."""
        threads = self._threads
        if threads is None:
            return
        self._threads = None
        await threads.close()
        if isinstance(self.keeper, FileKeeper):
            await self.keeper.close()
        fd, self._fd = self._fd, -1
        try:
            if self.capabilities.can_write:
                await asyncio.to_thread(os.fdatasync, fd)
        except OSError as error:
            logger.error("%s: flush failed: %s", self.description, error.strerror or error)
        finally:
            os.close(fd)

    def resize(self, size_bytes: int) -> None:
        if size_bytes <= 0 or size_bytes % self._block_bytes:
            raise OSError(errno.EINVAL, f"{size_bytes} bytes is not a whole number of {self._block_bytes}-byte blocks")
        if self._device:
            if size_bytes > syscalls.device_size(self._fd):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif size_bytes != os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, size_bytes)
        self._capabilities = replace(self.capabilities, size_bytes=size_bytes)

    # Operations

    def acquire_read(self, offset: int, length: int) -> Lease | Awaitable[Lease]:
        view = self._pool.take(length)
        if view is None or self._ranges.busy(offset, offset + length, exclusive=False):
            return self._read_later(offset, length, view, 0)
        done = 0
        if self._read_nowait:
            try:
                done = os.preadv(self._fd, [view], offset, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno in _NOT_SUPPORTED:
                    # A property of the file system: asking again would only cost a system call per read.
                    self._read_nowait = False
                elif error.errno not in _WOULD_WAIT:
                    self._pool.give(view)
                    raise
            if done == length:
                return self._lease(view)
        return self._read_later(offset, length, view, done)

    def _lease(self, view: memoryview) -> Lease:
        return Lease(view, stable=True, release=lambda: self._pool.give(view))

    def _read_later(self, offset: int, length: int, view: memoryview | None, done: int) -> asyncio.Future[Lease]:
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        if view is None:
            self._read_when_free(offset, length, future)
        else:
            self._read_in_thread(offset, view, done, future)
        return future

    def _read_when_free(self, offset: int, length: int, future: asyncio.Future[Lease]) -> None:
        if future.done():
            return  # given up
        try:
            self._open_threads()
        except OSError as error:  # closed meanwhile: not the affair of whoever gave the memory back
            future.set_exception(error)
            return
        view = self._pool.take(length)
        if view is None:
            self._pool.when_free(lambda: self._read_when_free(offset, length, future))
        else:
            self._read_in_thread(offset, view, 0, future)

    def _read_in_thread(self, offset: int, view: memoryview, done: int, future: asyncio.Future[Lease]) -> None:
        def read() -> Lease:
            self._read_fully(view[done:], offset + done)
            return self._lease(view)

        def free(delivered: bool) -> None:
            if not delivered:
                self._pool.give(view)

        self._locked(offset, len(view), False, read, future, free)

    def compare(self, offset: int, data: memoryview) -> asyncio.Future[bool]:
        # In a thread, in pieces: a command that holds the pool's memory for its data never waits for more of it.
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._locked(offset, len(data), False, lambda: self._compare_now(offset, data), future, None)
        return future

    def verify(self, offset: int, length: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._locked(offset, length, False, lambda: self._verify_now(offset, length), future, None, slow=True)
        return future

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> Awaitable[None] | None:
        done = 0
        if self._write_nowait and not fua and not self._ranges.busy(offset, offset + len(data), exclusive=True):
            try:
                done = os.pwritev(self._fd, [data], offset, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno in _NOT_SUPPORTED:
                    self._write_nowait = False
                elif error.errno not in _WOULD_WAIT:
                    raise
            if done == len(data):
                return None
        rest, start = data[done:], offset + done
        # The whole range is locked, also when a part of it is written already: nobody sees the halves.
        return self._exclusive(offset, len(data), lambda: self._write_fully(rest, start, fua), slow=fua)

    def copy(self, source: int, destination: int, length: int, *, fua: bool = False) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Both locks in one step: copies to and fro wait for each other in the order of their arrival.
        ranges = [(source, source + length, False), (destination, destination + length, True)]
        self._run_locked(ranges, lambda: self._copy_now(source, destination, length, fua), future, None, slow=True)
        return future

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> Awaitable[None]:
        return self._exclusive(offset, length, lambda: self._zero(offset, length, deallocate, fua), slow=True)

    def deallocate(self, offset: int, length: int) -> Awaitable[None]:
        return self._exclusive(offset, length, lambda: self._deallocate_now(offset, length), slow=True)

    def flush(self) -> Awaitable[None] | None:
        if not self.capabilities.can_write:
            return None
        threads = self._open_threads()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flush_waiters.append(future)
        if not self._flushing:
            self._start_flush(threads)
        return future

    def _start_flush(self, threads: ThreadBatches) -> None:
        # One at a time, for all who asked before it began: more would only keep threads from reading.
        waiters, self._flush_waiters = self._flush_waiters, []
        self._flushing = True
        flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(result: asyncio.Future[None]) -> None:
            self._flushing = False
            error = result.exception()
            for waiter in waiters:
                if waiter.done():
                    continue
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)
            if self._flush_waiters:
                self._start_flush(threads)

        flushed.add_done_callback(done)
        threads.run(self._flush_now, flushed, slow=True)

    def _open_threads(self) -> ThreadBatches:
        if self._threads is None:
            raise OSError(errno.EBADF, f"{self.path} is closed")
        return self._threads

    def _exclusive(self, offset: int, length: int, call: Callable[[], None], *, slow: bool) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._locked(offset, length, True, call, future, None, slow=slow)
        return future

    def _locked(
        self,
        offset: int,
        length: int,
        exclusive: bool,
        call: Callable[[], T],
        future: asyncio.Future[T],
        after: Callable[[bool], None] | None,
        *,
        slow: bool = False,
    ) -> None:
        self._run_locked([(offset, offset + length, exclusive)], call, future, after, slow=slow)

    def _run_locked(
        self,
        ranges: list[tuple[int, int, bool]],
        call: Callable[[], T],
        future: asyncio.Future[T],
        after: Callable[[bool], None] | None,
        *,
        slow: bool,
    ) -> None:
        """Run in a thread with all of the ranges (start, end, exclusive) locked; none overlaps another."""
        try:
            threads = self._open_threads()
        except OSError:
            if after is not None:
                after(False)
            raise
        locks = [self._ranges.acquire(start, end, exclusive=exclusive) for start, end, exclusive in ranges]

        def finished(delivered: bool) -> None:
            # Here, not when the future is done: a cancelled command does not free its range before the thread does.
            for lock in locks:
                self._ranges.release(lock)
            if after is not None:
                after(delivered)

        def start() -> None:
            if all(lock.granted for lock in locks):
                threads.run(call, future, finished, slow=slow)

        waiting = [lock for lock in locks if not lock.granted]
        for lock in waiting:
            lock.when_granted = start
        if not waiting:
            start()

    # In a thread

    def _read_fully(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise OSError(errno.EIO, f"{self.path} has become shorter than its namespace")
            view = view[count:]
            offset += count

    def _compare_now(self, offset: int, data: memoryview) -> bool:
        piece = bytearray(min(len(data), _PIECE_BYTES))
        for start in range(0, len(data), _PIECE_BYTES):
            wanted = data[start : start + _PIECE_BYTES]
            if len(wanted) < len(piece):
                piece = bytearray(len(wanted))
            self._read_fully(memoryview(piece), offset + start)
            if piece != wanted:
                return False
        return True

    def _verify_now(self, offset: int, length: int) -> None:
        piece = memoryview(bytearray(min(length, _PIECE_BYTES)))
        for start in range(0, length, _PIECE_BYTES):
            self._read_fully(piece[: length - start], offset + start)

    def _write_fully(self, data: memoryview, offset: int, fua: bool) -> None:
        sync_after = fua
        while data:
            count = 0
            if fua and self._write_dsync:
                try:
                    count = os.pwritev(self._fd, [data], offset, os.RWF_DSYNC)
                    sync_after = False
                except OSError as error:
                    if error.errno not in _NOT_SUPPORTED:
                        raise
                    self._write_dsync = False
                    sync_after = True
            if not count:
                count = os.pwritev(self._fd, [data], offset)
            if count == 0:
                raise OSError(errno.EIO, f"{self.path} takes no more bytes")
            data = data[count:]
            offset += count
        if sync_after:
            os.fdatasync(self._fd)

    def _copy_now(self, source: int, destination: int, length: int, fua: bool) -> None:
        piece = memoryview(bytearray(min(length, _PIECE_BYTES)))
        for start in range(0, length, _PIECE_BYTES):
            part = piece[: length - start]
            try:
                self._read_fully(part, source + start)
            except OSError as error:
                raise SourceError(error.errno, error.strerror) from error
            self._write_fully(part, destination + start, False)
        if fua:
            os.fdatasync(self._fd)

    def _zero(self, offset: int, length: int, deallocate: bool, fua: bool) -> None:
        if not self._zero_fast(offset, length, deallocate):
            end = offset + length
            for start in range(offset, end, len(_ZEROES)):
                part = memoryview(_ZEROES)[: min(len(_ZEROES), end - start)]
                self._write_fully(part, start, False)
        if fua:
            os.fdatasync(self._fd)

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
            # Deallocate is a hint: from now on it is not even tried.
            self._capabilities = replace(self.capabilities, can_deallocate=False)

    def _flush_now(self) -> None:
        os.fdatasync(self._fd)
