"""Opening a file or block device that is to be served: found or made, locked, examined.

The result is an `OpenedFile`. Nothing here knows of the event loop, of reading or of writing.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import format_size
from nvmeof.target.core.metadata import DATA_SECTIONS, MemoryStore, formatted_block_bytes
from nvmeof.target.storage import syscalls
from nvmeof.target.storage.base import DEFAULT_BLOCK_BYTES, Capabilities
from nvmeof.target.storage.direct_io import DirectFile
from nvmeof.target.storage.file_calls import NOT_SUPPORTED
from nvmeof.target.storage.file_names import KEPT_SUFFIX, ZONES_SUFFIX, beside, check_links
from nvmeof.target.storage.json_file_store import JsonFileStore

logger = logging.getLogger(__name__)

_OPEN_HERE: Final[set[tuple[int, int]]] = set()
"""Device and inode of each file that this process has locked."""


def identity_of(fd: int) -> tuple[int, int]:
    """Return device and inode of an open file."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How a file is to be served; the fields are the parameters of `FileBackend`, with sizes in bytes."""

    path: Path
    size_bytes: int | None = None
    block_bytes: int | None = None
    read_only: bool = False
    shared: bool = False
    kept: Path | None = None
    direct: bool = False

    def flags(self) -> tuple[tuple[str, bool], ...]:
        """Return the options without a value, by their names in the text of a namespace, and whether each is on."""
        return ("read-only", self.read_only), ("shared", self.shared), ("direct", self.direct)

    def kept_path(self) -> Path:
        """Return the path of the metadata file."""
        return self.kept or beside(self.path, KEPT_SUFFIX)

    def zones_path(self, *, device: bool) -> Path | None:
        """Return the file for zones; None for a device with none given."""
        if self.kept is not None:
            return Path(f"{self.kept}{ZONES_SUFFIX}")
        return None if device else beside(self.path, ZONES_SUFFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    """An open file and what was found out about it. `direct`: the same file past the page cache, if it is served so.

    `device`: it is a block device. `guest`: another process has the lock. `room_bytes`: its size, or the part that was
    asked for, not rounded to blocks. `metadata_store`: its metadata.
    """

    fd: int
    direct: DirectFile | None
    device: bool
    guest: bool
    room_bytes: int
    metadata_store: JsonFileStore | MemoryStore
    capabilities: Capabilities


def open_file(options: FileOptions) -> OpenedFile:
    """Open a file, create it where a size is given, lock and examine it.

    Raises `ConfigurationError` for a file that does not exist, is in use, or has another block size.
    """
    fd = _open(options)
    try:
        opened = _examine(fd, options)
    except BaseException:
        os.close(fd)
        raise
    if not opened.guest:
        _OPEN_HERE.add(identity_of(fd))
    return opened


def closing(fd: int) -> None:
    """Forget that this process serves a file; call it before the file is closed."""
    _OPEN_HERE.discard(identity_of(fd))


def _open(options: FileOptions) -> int:
    flags = os.O_CLOEXEC | (os.O_RDONLY if options.read_only else os.O_RDWR)
    try:
        _check_kind(options.path, options.path.stat().st_mode)  # first: open() of a FIFO would wait for a writer
        return os.open(options.path, flags)
    except FileNotFoundError as error:
        if options.size_bytes is None or options.read_only:
            raise ConfigurationError(f"{options.path} does not exist; give a size to create it") from error
    except OSError as error:
        advice = "" if options.read_only else "; it could be served read-only" * (error.errno == errno.EROFS)
        raise ConfigurationError(f"cannot open {options.path}: {error.strerror}{advice}") from error
    return _make_file(flags, options, options.size_bytes)


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise ConfigurationError(f"{path} is neither a regular file nor a block device")


def _make_file(flags: int, options: FileOptions, size_bytes: int) -> int:
    """Create the file. Its name is on the media before the metadata mentions it."""
    for kept in (options.kept_path(), options.zones_path(device=False)):
        if kept is not None and kept.exists():
            raise ConfigurationError(
                f"{kept} belongs to {options.path}, which is not there: put it back, or remove {kept}"
            )
    try:
        path = options.path.resolve()
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
            syscalls.sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot make {options.path} of {format_size(size_bytes)}: {error.strerror}"
        ) from error
    return fd


def _examine(fd: int, options: FileOptions) -> OpenedFile:
    mode = os.fstat(fd).st_mode
    device = stat.S_ISBLK(mode)
    _check_kind(options.path, mode)
    guest = _lock(fd, options)
    if not device and options.kept is None:
        check_links(options.path, os.fstat(fd), (KEPT_SUFFIX, ZONES_SUFFIX))
    metadata_store = _open_metadata(options, device=device, guest=guest)
    block_bytes = _choose_block_bytes(options, metadata_store)
    writable = not options.read_only
    if device:
        room_bytes = _device_size(fd, options)
        writable = writable and not syscalls.device_read_only(fd)
    else:
        room_bytes = _file_size(fd, options)
    rest = room_bytes % block_bytes
    size_bytes = room_bytes - rest
    if size_bytes == 0:
        raise ConfigurationError(f"{options.path} is smaller than one block of {block_bytes} bytes; give a size")
    if rest:
        logger.warning(
            "%s: its last %d bytes are not served: less than a block of %d bytes",
            options.path, rest, block_bytes,
        )  # fmt: skip
    capabilities = Capabilities(
        size_bytes=size_bytes,
        block_bytes=block_bytes,
        can_write=writable,
        can_deallocate=writable,
        can_write_zeroes=writable,
        volatile_cache=writable,
        # A discarded block of a device may read as anything.
        deallocated_reads_zero=not device,
    )
    return OpenedFile(
        fd=fd,
        direct=DirectFile(fd, str(options.path), writable=writable) if options.direct else None,
        device=device,
        guest=guest,
        room_bytes=room_bytes,
        metadata_store=metadata_store,
        capabilities=capabilities,
    )


def _device_size(fd: int, options: FileOptions) -> int:
    size_bytes = syscalls.device_size(fd)
    if options.size_bytes is not None and options.size_bytes > size_bytes:
        raise ConfigurationError(f"{options.path} has {size_bytes} bytes, fewer than {options.size_bytes}")
    return options.size_bytes or size_bytes


def _open_metadata(options: FileOptions, *, device: bool, guest: bool) -> JsonFileStore | MemoryStore:
    if device and options.kept is None:
        return MemoryStore()
    metadata_store = JsonFileStore(options.kept_path(), sections=DATA_SECTIONS)
    # Each process has the whole metadata in memory: of two that write, each would undo the changes of the other.
    if options.read_only or guest:
        return MemoryStore(metadata_store.values, metadata_store.origin)
    metadata_store.add_checksum()
    return metadata_store


def _choose_block_bytes(options: FileOptions, metadata_store: JsonFileStore | MemoryStore) -> int:
    wanted, formatted = options.block_bytes, formatted_block_bytes(metadata_store)
    if formatted is None:
        return wanted or DEFAULT_BLOCK_BYTES
    if wanted not in (None, formatted):
        raise ConfigurationError(
            f"{options.path} has blocks of {formatted} bytes (it was made with them, or a host has formatted it), not "
            f"of {wanted}: leave the block size out"
        )
    return formatted


def _lock(fd: int, options: FileOptions) -> bool:
    """Lock a file, exclusively unless it is read-only; return whether another process has it and it is shared."""
    if options.shared and options.read_only:
        return False  # a read-only target writes no metadata and need not exclude other processes
    kind = fcntl.LOCK_SH if options.read_only else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if options.shared:
            return True
        if identity_of(fd) in _OPEN_HERE:
            raise ConfigurationError(
                f"{options.path} is served already by this process: give each file once (links count as the file)"
            ) from error
        raise ConfigurationError(f"{options.path} is in use by another process") from error
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    return False


def _file_size(fd: int, options: FileOptions) -> int:
    size_bytes = os.fstat(fd).st_size
    wanted = options.size_bytes
    if wanted is None:
        return size_bytes
    if wanted < size_bytes:
        logger.warning(
            "%s has %d bytes: only the first %s are served, as the size says",
            options.path, size_bytes, format_size(wanted),
        )  # fmt: skip
    if wanted > size_bytes:
        if options.read_only:
            raise ConfigurationError(f"{options.path} has {size_bytes} bytes, fewer than {wanted}, and is read-only")
        try:
            os.ftruncate(fd, wanted)
        except OSError as error:
            raise ConfigurationError(
                f"cannot extend {options.path} to {format_size(wanted)}: {error.strerror}"
            ) from error
    return wanted
