"""A namespace in a regular file or on a block device.

Reads are served from the page cache without a thread where the kernel can (RWF_NOWAIT); whatever may block runs in a
few threads. Unaligned or overlapping requests are kept apart by range locks, so that no reader sees half a block.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import parse_size
from nvmeof.target.core.metadata import FORMAT_SECTION, formatted_block_bytes
from nvmeof.target.core.owner import OWNER
from nvmeof.target.core.pool import BufferPool, class_bytes
from nvmeof.target.storage import syscalls
from nvmeof.target.storage.base import BLOCK_BYTES_CHOICES, DEFAULT_BLOCK_BYTES, Capabilities, Lease
from nvmeof.target.storage.file_calls import NOT_SUPPORTED, FileCalls
from nvmeof.target.storage.file_names import name_lost
from nvmeof.target.storage.file_opening import FileOptions, closing, open_file
from nvmeof.target.storage.file_runs import FileRuns
from nvmeof.target.storage.group_commit import GroupCommit
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.namespace_text import Element, NamespaceText
from nvmeof.target.storage.operation import Operation
from nvmeof.target.storage.ranges import RangeLocks
from nvmeof.target.storage.threads import ThreadBatches
from nvmeof.target.storage.write_coalescer import settle
from nvmeof.target.storage.zone_file import FileZoneStore
from nvmeof.target.storage.zone_store import ZoneLayout, ZoneStore

logger = logging.getLogger(__name__)
T = TypeVar("T")
WORKERS: Final = 8
"""Threads of a file: one association keeps at most half of them busy, two three quarters, and so on."""
IDLE_BYTES: Final = 64 << 20
"""Bytes of memory for reads that stay allocated for further reads."""
_WOULD_WAIT = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})


class FileBackend(FileCalls):
    """Storage in a regular file or on a block device: ``FileBackend("/srv/disk.img", size="64G")``.

    `size`: None takes the file's; else the file is made, or extended sparse, to that size.

    `shared`: go on without the lock that keeps two targets from serving one file for writing when another process has
    it; metadata is then read and not stored. `workers`: threads.
    `kept`: the metadata file, which stores what must outlive the process, such as reservations. Of a regular file
    that may be written it is PATH.nvmeof; a device has none unless given.
    `block_bytes`: None for the size it had before, or 512 for a new file. The metadata file stores it, and what a host
    formats the namespace to; a file cannot be opened with another block size.
    `direct`: read and write past the page cache (O_DIRECT); unaligned requests use the page cache.
    Opening raises `ConfigurationError` for a file that does not exist, is in use, or has another block size.
    """

    overwrite_to_erase = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: str | int | None = None,
        block_bytes: int | None = None,
        read_only: bool = False,
        shared: bool = False,
        workers: int = WORKERS,
        pool: BufferPool | None = None,
        kept: str | os.PathLike[str] | None = None,
        direct: bool = False,
    ) -> None:
        if block_bytes is not None and block_bytes not in BLOCK_BYTES_CHOICES:
            raise ConfigurationError(f"a block size of {block_bytes} bytes is not supported: 512 or 4096")
        super().__init__(path)
        self._options = FileOptions(
            path=self.path,
            size_bytes=None if size is None else parse_size(size),
            block_bytes=block_bytes,
            read_only=read_only,
            shared=shared,
            kept=None if kept is None else Path(kept),
            direct=direct,
        )
        self._block_bytes = block_bytes or DEFAULT_BLOCK_BYTES
        self._room_bytes = 0
        self._workers = workers
        # Memory for hosts is limited where their commands are taken, by association.
        self._pool = pool or BufferPool(sys.maxsize, idle_limit_bytes=IDLE_BYTES)
        self._threads: ThreadBatches | None = None  # None: closed
        self._ranges = RangeLocks()
        self._read_nowait = self._write_nowait = not direct
        self._name_lost = False
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

    def to_text(self) -> NamespaceText:
        options, given = self._options, list[tuple[str, str | None]]()
        if options.size_bytes is not None:
            given.append(("size", str(options.size_bytes)))
        if options.block_bytes is not None or self._block_bytes != DEFAULT_BLOCK_BYTES:
            given.append(("block-size", str(self._block_bytes)))
        given += [(name, None) for name, on in options.flags() if on]
        if options.kept is not None:
            given.append(("kept", str(options.kept.absolute())))
        return NamespaceText(Element("file", str(self.path.absolute()), tuple(given)))

    @property
    def identity(self) -> str:
        status = os.fstat(self._fd)
        known = syscalls.device_identity(self._fd) if self._device else f"inode {status.st_ino}"
        return f"{self.path.resolve()}, {self._room_bytes} bytes, {known}"

    # Opening and closing

    async def open(self) -> None:
        if self._fd >= 0:
            return
        opened = open_file(self._options)
        self._fd, self._device, self._room_bytes = opened.fd, opened.device, opened.room_bytes
        self._capabilities, self.metadata_store = opened.capabilities, opened.metadata_store
        self.direct = opened.direct
        self._block_bytes = opened.capabilities.block_bytes
        await self._remember_block_bytes()
        self._threads = ThreadBatches(self._workers, f"nvmeof-{self.path.name}")
        self.runs = runs = FileRuns(self, self._ranges, self._pool, self._open_threads)
        self._commits = GroupCommit(self, runs, self._threads)

    @property
    def _zones_path(self) -> Path | None:
        return self._options.zones_path(device=self._device)

    @property
    def has_zones(self) -> bool:
        return self._zones_path is not None and self._zones_path.exists()

    def _make_zone_store(self, layout: ZoneLayout, count: int) -> ZoneStore:
        path = self._zones_path
        if path is None:
            raise ConfigurationError(f"zones of {self.description} need a file to be stored in: give kept=PATH")
        if isinstance(self._zones, FileZoneStore):
            raise ConfigurationError(f"{path} has zones of {self._zones.layout}, and is in use")
        if self._options.shared and self.capabilities.can_write:
            raise ConfigurationError(
                f"{self.path} cannot be shared: no other process would see its write pointers move"
            )
        held = count if self._device else os.fstat(self._fd).st_size // layout.zone_bytes
        return FileZoneStore(path, layout, count, held=held, read_only=not self.capabilities.can_write)

    async def _remember_block_bytes(self) -> None:
        """Store a block size that was asked for, so that a start without that option uses the same size."""
        wanted = self._options.block_bytes
        if wanted in (None, DEFAULT_BLOCK_BYTES) or not isinstance(self.metadata_store, JsonFileStore):
            return
        if formatted_block_bytes(self.metadata_store) is None:
            try:
                await self.metadata_store.put(FORMAT_SECTION, {"block_bytes": wanted})
            except OSError as error:
                logger.warning(
                    "%s: its block size cannot be stored (%s): give it again at the next start",
                    self.path, error.strerror or error,
                )  # fmt: skip

    async def close(self) -> None:
        """Wait for what was begun, flush, close. A flush that fails is logged."""
        threads = self._threads
        if threads is None:
            return
        self._threads = None
        runs, self.runs = self.runs, None
        await threads.idle()
        while self._commits.busy:
            await self._commits.finish()
            await threads.idle()  # an operation that ends here may let a write begin that waited for its range
        await threads.close()
        if isinstance(runs, FileRuns):
            runs.close()
        if isinstance(self.metadata_store, JsonFileStore):
            await self.metadata_store.close()
        fd, self._fd = self._fd, -1
        closing(fd)
        zones, self._zones = self._zones, None
        try:
            if self.capabilities.can_write:
                await asyncio.to_thread(os.fdatasync, fd)  # at the end there is no receiver for the error
            if isinstance(zones, FileZoneStore):
                await zones.settle()
        except OSError as error:
            logger.error("%s: flush failed: %s", self.description, error.strerror or error)
        finally:
            os.close(fd)
            if self.direct is not None:
                self.direct.close()
            if isinstance(zones, FileZoneStore):
                zones.abandon()

    def resize(self, size_bytes: int) -> None:
        if size_bytes <= 0 or size_bytes % self._block_bytes:
            raise OSError(errno.EINVAL, f"{size_bytes} bytes is not a whole number of {self._block_bytes}-byte blocks")
        if self._device:
            if size_bytes > syscalls.device_size(self._fd):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif size_bytes != os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, size_bytes)
        self._room_bytes = size_bytes
        if self._options.size_bytes is not None:
            self._options = replace(self._options, size_bytes=size_bytes)
        self._capabilities = replace(self.capabilities, size_bytes=size_bytes)

    def revalidate(self) -> str:
        if self._fd < 0:
            return ""
        status = os.fstat(self._fd)
        if not self._device and not self._name_lost and name_lost(self.path, status):
            self._name_lost = True
            logger.error(
                "%s has been removed or replaced by another file: the old one is served until the target ends, and "
                "what is written to it cannot be found by that name; stop the target to serve the new one",
                self.path,
            )
        now = syscalls.device_size(self._fd) if self._device else status.st_size
        if self._options.size_bytes is not None:
            now = min(now, self._options.size_bytes)
        before, self._room_bytes = self.capabilities.size_bytes, now
        now -= now % self._block_bytes
        if now == before:
            return ""
        self._capabilities = replace(self.capabilities, size_bytes=now)
        if now > before:
            return f"{self.description} has grown from {before} to {now} bytes"
        return f"{self.description} has become shorter, from {before} to {now} bytes: the data behind is lost"

    def set_block_bytes(self, block_bytes: int) -> None:
        size_bytes = self._room_bytes - self._room_bytes % block_bytes
        if block_bytes not in BLOCK_BYTES_CHOICES or not size_bytes:
            raise OSError(errno.EINVAL, f"{self._room_bytes} bytes cannot be blocks of {block_bytes}")
        self._block_bytes = block_bytes
        self._capabilities = replace(self.capabilities, size_bytes=size_bytes, block_bytes=block_bytes)

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
                if error.errno in NOT_SUPPORTED:
                    # A property of the file system: another try would only cost a system call per read.
                    self._read_nowait = False
                elif error.errno not in _WOULD_WAIT:
                    self._pool.give(view)
                    raise
            if done == length:
                return self._lease(view)
        return self._read_later(offset, length, view, done)

    def _lease(self, view: memoryview) -> Lease:
        return Lease(view, stable=True, release=lambda: self._pool.give(view))

    def _read_later(self, offset: int, length: int, view: memoryview | None, done: int) -> Operation[Lease]:
        future: Operation[Lease] = Operation()
        if view is None:
            self._read_when_free(offset, length, future)
        else:
            self._read_in_thread(offset, view, done, future)
        return future

    def _read_when_free(self, offset: int, length: int, future: Operation[Lease]) -> None:
        if future.done():
            return  # given up
        try:
            self._open_threads()
        except OSError as error:  # closed since: the error is the read's, not that of the caller who returned memory
            future.set_exception(error)
            return
        view = self._pool.take(length)
        if view is None:
            self._pool.when_free(lambda: self._read_when_free(offset, length, future), class_bytes(length))
        else:
            self._read_in_thread(offset, view, 0, future)

    def _read_in_thread(self, offset: int, view: memoryview, done: int, future: Operation[Lease]) -> None:
        def read() -> Lease:
            self._read_fully(view[done:], offset + done)
            return self._lease(view)

        def free(delivered: bool) -> None:
            if not delivered:
                self._pool.give(view)

        self._locked(offset, len(view), False, read, future, free)

    def read_into(self, offset: int, view: memoryview) -> Operation[None]:
        future: Operation[None] = Operation()
        self._locked(offset, len(view), False, lambda: self._read_fully(view, offset), future, None)
        return future

    def compare(self, offset: int, data: memoryview) -> Operation[bool]:
        # In a thread, in pieces: a command that holds the pool's memory for its data never waits for more of it.
        future: Operation[bool] = Operation()
        self._locked(offset, len(data), False, lambda: self._compare_now(offset, data, future), future, None)
        return future

    def compare_and_write(
        self, offset: int, compare: memoryview, data: memoryview, *, fua: bool = False
    ) -> Operation[bool]:
        future: Operation[bool] = Operation()
        # Locked from the first byte read to the last one written: no other operation gets in between.
        self._locked(
            offset,
            len(data),
            True,
            lambda: self._compare_and_write_now(offset, compare, data, fua, future),
            future,
            None,
            slow=fua,
        )
        return future

    def verify(self, offset: int, length: int) -> Operation[None]:
        future: Operation[None] = Operation()
        self._locked(offset, length, False, lambda: self._verify_now(offset, length, future), future, None, slow=True)
        return future

    def write(self, offset: int, data: memoryview, *, fua: bool = False) -> Awaitable[None] | None:
        done = 0
        if self._write_nowait and not fua and not self._ranges.busy(offset, offset + len(data), exclusive=True):
            self._check_inside(offset + len(data))
            try:
                done = os.pwritev(self._fd, [data], offset, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno in NOT_SUPPORTED:
                    self._write_nowait = False
                elif error.errno not in _WOULD_WAIT:
                    raise
            if done == len(data):
                return None
        rest, start = data[done:], offset + done
        future: Operation[None] = Operation()
        if fua:
            self._run_locked(
                [(offset, offset + len(data), True)],
                lambda: None,
                future,
                None,
                run=partial(self._commits.add, data, offset),
            )
            return future
        future.half_done = done > 0  # no partial block may remain
        # The whole range is locked, also when a part of it is written already: no reader sees only a part of the write.
        self._locked(offset, len(data), True, lambda: self._write_fully(rest, start, False), future, None)
        return future

    def copy(self, source: int, destination: int, length: int, *, fua: bool = False) -> Operation[None]:
        future: Operation[None] = Operation()
        first, last = min(source, destination), max(source, destination)
        if last < first + length:
            ranges = [(first, last + length, True)]
        else:
            # Both locks in one step: copies in opposite directions wait for each other in the order of their arrival.
            ranges = [(source, source + length, False), (destination, destination + length, True)]
        self._run_locked(
            ranges, lambda: self._copy_now(source, destination, length, fua, future), future, None, slow=True
        )
        return future

    def write_zeroes(self, offset: int, length: int, *, deallocate: bool, fua: bool = False) -> Operation[None]:
        future: Operation[None] = Operation()
        self._locked(
            offset, length, True, lambda: self._zero(offset, length, deallocate, fua, future), future, None, slow=True
        )
        return future

    def deallocate(self, offset: int, length: int) -> Operation[None]:
        future: Operation[None] = Operation()
        self._locked(offset, length, True, lambda: self._deallocate_now(offset, length), future, None, slow=True)
        return future

    def flush(self) -> Awaitable[None] | None:
        if not self.capabilities.can_write:
            return None
        threads = self._open_threads()
        future: Operation[None] = Operation()
        self._flush_waiters.append(future)
        if not self._flushing:
            self._start_flush(threads)
        return future

    @property
    def used_bytes(self) -> int:
        size_bytes = self.capabilities.size_bytes
        if self._device or self._fd < 0:
            return size_bytes
        return min(os.fstat(self._fd).st_blocks * 512, size_bytes)

    def allocated(self, offset: int, length: int) -> Awaitable[list[tuple[int, int]]]:
        future: Operation[list[tuple[int, int]]] = Operation()
        self._locked(offset, length, False, lambda: self._allocated_now(offset, length), future, None, slow=True)
        return future

    def _start_flush(self, threads: ThreadBatches) -> None:
        # One flush at a time, for all who asked before it began: more would only occupy threads.
        waiters, self._flush_waiters = self._flush_waiters, []
        self._flushing = True
        flushed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(result: asyncio.Future[None]) -> None:
            self._flushing = False
            settle(waiters, result.exception())
            if self._flush_waiters:
                self._start_flush(threads)

        flushed.add_done_callback(done)
        threads.run(self._flush_now, flushed, slow=True)

    def _open_threads(self) -> ThreadBatches:
        if self._threads is None:
            raise OSError(errno.EBADF, f"{self.path} is closed")
        return self._threads

    def _locked(
        self,
        offset: int,
        length: int,
        exclusive: bool,
        call: Callable[[], T],
        future: Operation[T],
        after: Callable[[bool], None] | None,
        *,
        slow: bool = False,
    ) -> None:
        self._run_locked([(offset, offset + length, exclusive)], call, future, after, slow=slow)

    def _run_locked(
        self,
        ranges: list[tuple[int, int, bool]],
        call: Callable[[], T],
        future: Operation[T],
        after: Callable[[bool], None] | None,
        *,
        slow: bool = False,
        run: Callable[[Operation[T], Callable[[bool], None]], None] | None = None,
    ) -> None:
        """Run in a thread with all of the ranges (start, end, exclusive) locked; none overlaps another. `run`: hands
        the call over, in place of `call`.
        """
        try:
            threads = self._open_threads()
        except OSError:
            if after is not None:
                after(False)
            raise
        locks = self._ranges.acquire_all(ranges, OWNER.get())

        def finished(delivered: bool) -> None:
            # Release here, not when the future is done: a cancelled command must not free its range before the thread
            # does.
            for lock in locks:
                self._ranges.release(lock)
            if after is not None:
                after(delivered)

        def start() -> None:
            if not all(lock.granted for lock in locks):
                return
            if future.done():  # given up
                finished(False)
            elif run is not None:
                run(future, finished)
            else:
                threads.run(call, future, finished, slow=slow)

        waiting = [lock for lock in locks if not lock.granted]
        for lock in waiting:
            lock.when_granted = start
        if not waiting:
            start()
