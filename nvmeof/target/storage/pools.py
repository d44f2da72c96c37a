"""Pools of capacity that namespaces are created from: memory, or files in a directory.

They implement :class:`nvmeof.target.namespaces.endurance_group.Pool`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

from nvmeof.errors import ConfigurationError
from nvmeof.size_text import format_size, parse_size
from nvmeof.target.core.metadata import DATA_SECTIONS, FORMAT_SECTION, POOL_SECTIONS, MemoryStore
from nvmeof.target.storage import syscalls
from nvmeof.target.storage.base import Backend
from nvmeof.target.storage.file import FileBackend
from nvmeof.target.storage.file_names import KEPT_SUFFIX, ZONES_SUFFIX, beside
from nvmeof.target.storage.json_file_store import JsonFileStore
from nvmeof.target.storage.ramdisk import Ramdisk

POOL_FILE = "pool.json"
"""The name of the file with a pool's metadata of its namespaces, and of the subsystem unless that has another file."""
SUFFIX = ".namespace"
_NAMESPACES = "namespaces"
_SHARED_ERRORS = frozenset({errno.EAGAIN, errno.EACCES})

logger = logging.getLogger(__name__)


class RamdiskPool:
    """Memory for hosts to create namespaces from: ``Target(pool=RamdiskPool("10G"))``.

    `capacity`: bytes, or text such as `10G`. Namespaces are ramdisks; memory is used as they are written to.
    """

    volatile_cache = False

    def __init__(self, capacity: str | int) -> None:
        self.capacity_bytes = parse_size(capacity)
        self.metadata_store = MemoryStore()
        self._ramdisks: dict[str, Ramdisk] = {}

    @property
    def description(self) -> str:
        """A few words for a log line."""
        return f"memory {format_size(self.capacity_bytes)}"

    async def acquire(self) -> None:
        """Lock the pool against other processes."""

    async def release(self) -> None:
        """Release the pool's lock and contents."""
        self._ramdisks.clear()
        self.metadata_store = MemoryStore()

    @property
    def ramdisks(self) -> dict[str, Ramdisk]:
        """The storage of its namespaces by name."""
        return dict(self._ramdisks)

    def take_over(self, kept: Mapping[str, Any], ramdisks: Mapping[str, Ramdisk]) -> None:
        """Have these sections and this storage in place of nothing, before anything is opened."""
        self.metadata_store = MemoryStore(kept)
        self._ramdisks = dict(ramdisks)

    def create(self, name: str, size_bytes: int, block_bytes: int) -> Backend:
        """Make storage of zeroes by a name that is new."""
        ramdisk = self._ramdisks[name] = Ramdisk(size_bytes, block_bytes=block_bytes)
        return ramdisk

    def open(self, name: str, *, zoned: bool = False) -> Backend:
        """Open storage that was created before. Raises `ConfigurationError` when it is not all there."""
        return self._ramdisks[name]

    def delete(self, name: str, backend: Backend | None) -> Awaitable[None] | None:
        """Close storage and give its space back. `backend`: if opened."""
        self._ramdisks.pop(name, None)
        return None if backend is None else backend.close()


class FilePool:
    """A directory for hosts to create namespaces in: ``Target(pool=FilePool("/srv/nvme", "100G"))``.

    `directory` is made unless it is there; each namespace is a sparse file in it. `capacity`: of all together.
    One process uses a directory at a time. Raises `ConfigurationError` for one that cannot be used.
    """

    volatile_cache = True

    def __init__(self, directory: str | os.PathLike[str], capacity: str | int, *, workers: int = 4) -> None:
        self.directory = Path(directory)
        self.capacity_bytes = parse_size(capacity)
        self._workers = workers
        self._lock = -1
        try:
            _make_directory(self.directory)
        except OSError as error:
            raise ConfigurationError(f"cannot use {self.directory} as a pool: {error.strerror}") from error
        self.metadata_store = JsonFileStore(self.directory / POOL_FILE, sections=POOL_SECTIONS)

    @property
    def description(self) -> str:
        """A few words for a log line."""
        return f"directory {self.directory}"

    def path(self, name: str) -> Path:
        """Return the path of a namespace's file."""
        return self.directory / f"{name}{SUFFIX}"

    async def acquire(self) -> None:
        """Lock the directory, and read its state. Raises `ConfigurationError` when another process has it."""
        if self._lock >= 0:
            return
        lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno in _SHARED_ERRORS:
                raise ConfigurationError(f"{self.directory} is in use by another process") from error
            raise
        self._lock = lock
        try:
            if not self.metadata_store.path.exists():  # before it is made
                self._check_named(None)
            self.metadata_store.hold()
            self._check_named(self.metadata_store.get(_NAMESPACES))
        except BaseException:
            await self.release()
            raise

    def _check_named(self, stored: object) -> None:
        """Raise `ConfigurationError` for namespaces in the directory whose list has gone; log those not in the list."""
        found = sorted(each.name for each in self.directory.glob(f"*{SUFFIX}"))
        if found and stored is None:
            raise ConfigurationError(
                f"{self.directory} holds {len(found)} files of namespaces ({found[0]}{', ...' if found[1:] else ''}), "
                f"and {self.metadata_store.path} does not name them: put {POOL_FILE} back, "
                "or move these files away to start with an empty pool"
            )
        names = json.dumps(stored)
        unnamed = [each for each in found if each.removesuffix(SUFFIX) not in names]
        if unnamed:
            logger.warning(
                "%s is not named in %s: it is no namespace, and its space is not counted (%d such files)",
                self.directory / unnamed[0],
                self.metadata_store.path,
                len(unnamed),
            )

    async def release(self) -> None:
        """Let the directory go."""
        await self.metadata_store.release()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    async def create(self, name: str, size_bytes: int, block_bytes: int) -> Backend:
        """Make storage of zeroes by a name that is new."""
        path = self.path(name)
        try:
            await asyncio.to_thread(self._make_file, path, size_bytes)
            # What a host may change later (Format NVM) is in one place from the start.
            metadata_store = JsonFileStore(beside(path, KEPT_SUFFIX), sections=DATA_SECTIONS)
            await metadata_store.put(FORMAT_SECTION, {"block_bytes": block_bytes})
            return await self.open(name)  # zones are made with the namespace
        except BaseException:
            await self.delete(name, None)
            raise

    async def open(self, name: str, *, zoned: bool = False) -> Backend:
        """Open storage that was created before. Raises `ConfigurationError` when it is not all there."""
        path = self.path(name)
        if not path.exists():
            raise ConfigurationError(
                f"{path} is not there, and {self.metadata_store.path} names it as a namespace: put it back, "
                "or take it out of there to give the namespace up"
            )
        for kept in (beside(path, KEPT_SUFFIX), *([beside(path, ZONES_SUFFIX)] if zoned else [])):
            if not kept.exists():
                raise ConfigurationError(
                    f"{kept} is not there, which keeps what belongs to {path}: put it back, or take the namespace out "
                    f"of {self.metadata_store.path} to give it up"
                )
        backend = FileBackend(self.path(name), workers=self._workers)
        await backend.open()
        return backend

    async def delete(self, name: str, backend: Backend | None) -> None:
        """Close storage and give its space back. `backend`: if opened."""
        if backend is not None:
            await backend.close()
        await asyncio.to_thread(self._remove_files, self.path(name))

    # In a thread

    def _make_file(self, path: Path, size_bytes: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)
        syscalls.sync_directory(self.directory)

    def _remove_files(self, path: Path) -> None:
        # What belongs to the data is in files beside it, whose names begin with its own.
        for each in sorted(self.directory.glob(f"{path.name}*")):
            each.unlink(missing_ok=True)
        syscalls.sync_directory(self.directory)


def _make_directory(path: Path) -> None:
    """Create the directory unless it exists; its name is on the media before any file is created in it."""
    if not path.is_dir():
        if path.parent != path:
            _make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        syscalls.sync_directory(path.parent)
