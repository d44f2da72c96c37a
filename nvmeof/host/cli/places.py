"""The sources and destinations of `cp`: files, block devices, the standard streams and namespaces, with one interface.

Offsets and lengths are bytes. The abilities of a place (seek, make holes) are attributes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nvmeof.cli import streams
from nvmeof.errors import ConfigurationError, NvmeStatusError
from nvmeof.host.cli.files import in_thread
from nvmeof.host.client import HostController
from nvmeof.host.host_subsystem import HostSubsystem
from nvmeof.host.namespace import Namespace
from nvmeof.spec.enums import Oncs
from nvmeof.spec.status import Status

T = TypeVar("T")

_ZEROES = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of a source. ``hole``: no data is stored, and the stretch reads as zeroes."""

    offset: int
    length: int
    hole: bool = False


class Place:
    """The Protocol of a place."""

    name: str
    size_bytes: int | None = None
    block_bytes = 1
    seekable = True
    """Pieces may be read or written in any order, and again."""
    keeps_holes = False
    """A hole takes no room: zeroes are better not written."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield the stretches of a range, holes apart from data."""
        yield Extent(offset, length)

    async def read_into(self, offset: int, view: memoryview) -> int:
        """Fill ``view``; return the bytes read, fewer only at the end."""
        raise NotImplementedError

    async def write(self, offset: int, view: memoryview) -> None:
        """Write all of ``view``."""
        raise NotImplementedError

    async def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes."""
        for start in range(offset, offset + length, len(_ZEROES)):
            await self.write(start, memoryview(_ZEROES)[: min(len(_ZEROES), offset + length - start)])

    async def flush(self) -> None:
        """Commit all written data to the medium."""

    async def identity(self) -> str:
        """Return an identity of this place's content, for a copy that is resumed later."""
        return self.name

    async def close(self) -> None:
        """Release what the place has open."""


def _named(error: OSError, name: str) -> OSError:
    return type(error)(error.errno, error.strerror, name)


class FilePlace(Place):
    """A file or block device that is open as ``fd``."""

    def __init__(self, name: str, fd: int, *, fresh: bool = False) -> None:
        self.name = name
        self._fd = fd
        self._fresh = fresh
        status = os.fstat(fd)
        self.regular = stat.S_ISREG(status.st_mode)
        self.size_bytes = status.st_size if self.regular else os.lseek(fd, 0, os.SEEK_END)
        self.keeps_holes = self.regular and fresh
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="file data")

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        except OSError as error:
            raise _named(error, self.name) from None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield data and holes as the file system reports them (SEEK_DATA, SEEK_HOLE)."""
        end = offset + length
        while offset < end:
            try:
                data = min(os.lseek(self._fd, offset, os.SEEK_DATA), end)
            except OSError as error:
                # ENXIO: a hole to the end; others: the call is not supported, so all of it is data
                if error.errno != 6:
                    yield Extent(offset, end - offset)
                    return
                data = end
            if data > offset:
                yield Extent(offset, data - offset, hole=True)
            if data < end:
                hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
                yield Extent(data, hole - data)
                data = hole
            offset = data

    async def read_into(self, offset: int, view: memoryview) -> int:
        def read() -> int:
            done = 0
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if not count:
                    break
                done += count
            return done

        return await self._run(read)

    async def write(self, offset: int, view: memoryview) -> None:
        def write() -> None:
            done = 0
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)

        await self._run(write)

    async def zero(self, offset: int, length: int) -> None:
        if not self._fresh:
            await super().zero(offset, length)

    async def reserve(self, length: int) -> None:
        """Give a regular file its length: the new part is a hole until written."""
        if self.regular:
            await self._run(os.ftruncate, self._fd, length)

    async def flush(self) -> None:
        await self._run(os.fsync, self._fd)

    async def identity(self) -> str:
        status = os.fstat(self._fd)
        return f"{status.st_dev}:{status.st_ino}:{self.size_bytes}:{status.st_mtime_ns}"

    async def close(self) -> None:
        self._pool.shutdown(wait=True)
        os.close(self._fd)


class StreamPlace(Place):
    """A pipe, terminal or standard stream: from beginning to end, once."""

    seekable = False

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd

    async def read_into(self, offset: int, view: memoryview) -> int:
        def read() -> int:
            done = 0
            while done < len(view):
                count = os.readv(self._fd, [view[done:]])
                if not count:
                    break
                done += count
            return done

        try:
            return await in_thread(read)
        except OSError as error:
            raise _named(error, self.name) from None

    async def write(self, offset: int, view: memoryview) -> None:
        def write() -> None:
            done = 0
            while done < len(view):
                done += os.write(self._fd, view[done:])

        try:
            await in_thread(write)
        except OSError as error:
            raise _named(error, self.name) from None


class NamespacePlace(Place):
    """A namespace of a host that this place closes at the end."""

    def __init__(self, name: str, host: HostController | HostSubsystem, namespace: Namespace, oncs: int) -> None:
        self.name = name
        self.host = host
        self.namespace = namespace
        self.size_bytes = namespace.size_bytes
        self.block_bytes = namespace.block_bytes
        self.keeps_holes = bool(oncs & Oncs.WRITE_ZEROES)

    def _lba(self, offset: int) -> int:
        return offset // self.block_bytes

    async def read_into(self, offset: int, view: memoryview) -> int:
        await self.namespace.read_into(self._lba(offset), view)
        return len(view)

    async def write(self, offset: int, view: memoryview) -> None:
        rest = len(view) % self.block_bytes
        if rest:  # the last block is filled up with zeroes
            view = memoryview(bytes(view) + bytes(self.block_bytes - rest))
        await self.namespace.write(self._lba(offset), view)

    async def zero(self, offset: int, length: int) -> None:
        if not self.keeps_holes:
            await super().zero(offset, length)
            return
        await self.namespace.write_zeroes(self._lba(offset), -(-length // self.block_bytes), deallocate=True)

    async def flush(self) -> None:
        try:
            await self.namespace.flush()
        except NvmeStatusError as error:
            if error.status != Status.INVALID_OPCODE:
                raise

    async def identity(self) -> str:
        info = self.namespace.info
        return f"{self.host.options.subnqn}:{self.namespace.nsid}:{bytes(info.nguid).hex()}:{self.size_bytes}"

    async def close(self) -> None:
        await self.host.disconnect()


# -- opening files


def open_source(path: str) -> Place:
    """Open a file, device, pipe or, for ``-``, standard input. Raises OSError, ConfigurationError."""
    if path == "-":
        streams.demand(streams.STDIN, "give a file or a namespace in place of -")
        return StreamPlace(streams.NAMES[streams.STDIN], 0)
    with streams.interruptible():
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return _place_of(path, fd)


def _place_of(path: str, fd: int, *, fresh: bool = False) -> Place:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        os.close(fd)
        raise ConfigurationError(f"{path} is a directory: give a file")
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return FilePlace(path, fd, fresh=fresh)
    return StreamPlace(path, fd)


class Destination:
    """A file to copy to: a regular one is written under a temporary name, and takes its name when it is complete."""

    def __init__(self, path: str, *, partial: str | None = None) -> None:
        """Take ``partial``, the file that an earlier copy has begun."""
        self.path = path
        self.partial: Path | None = None
        if path == "-":
            streams.demand(streams.STDOUT, "give a file or a namespace in place of -")
            self.place: Place = StreamPlace(streams.NAMES[streams.STDOUT], 1)
            return
        final = Path(path).resolve()
        before = final.stat() if final.exists() else None
        if before is not None and not stat.S_ISREG(before.st_mode):
            flags = os.O_RDWR if stat.S_ISBLK(before.st_mode) else os.O_WRONLY
            with streams.interruptible():
                self.place = _place_of(path, os.open(path, flags | os.O_CLOEXEC))
            return
        self._final = final
        fd = self._open_partial(partial)
        if before is not None:
            with contextlib.suppress(OSError):
                os.fchown(fd, before.st_uid, before.st_gid)
            with contextlib.suppress(OSError):
                os.fchmod(fd, stat.S_IMODE(before.st_mode))
        self.place = _place_of(path, fd, fresh=True)

    def _open_partial(self, known: str | None) -> int:
        if known is not None:
            self.partial = Path(known)
            return os.open(self.partial, os.O_RDWR | os.O_CLOEXEC)
        for number in range(1, 1000):
            self.partial = self._final.with_name(f"{self._final.name[:200]}.{number}.partial")
            try:
                return os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                continue
            except OSError as error:
                raise _named(error, self.path) from None
        raise ConfigurationError(
            f"{self._final.parent} has a thousand partial files of {self._final.name}: remove them"
        )

    def complete(self) -> None:
        """Give the file its name."""
        if self.partial is not None:
            self.partial.replace(self._final)

    def forget(self) -> None:
        """Remove an empty partial file."""
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)
